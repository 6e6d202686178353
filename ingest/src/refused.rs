//! The last refused lines, kept for `system.refused_lines`.
//!
//! A ring in memory: whoever sends bad lines sees them in the answer; whoever runs the server sees here what devices keep
//! getting wrong. Bounded in number and in bytes a line; nothing of it survives a restart.

use std::collections::VecDeque;
use std::sync::Arc;

use model::Timestamp;
use parking_lot::Mutex;

/// Lines that are kept.
const KEPT_LINES: usize = 1_000;

/// One refused line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedRow {
    /// When its body arrived.
    pub time: Timestamp,
    /// The database it was meant for.
    pub database: Arc<str>,
    /// Its number in the body; the first line has number 1.
    pub line_number: u64,
    /// Its text, cut.
    pub line: Box<str>,
    /// Why it was refused.
    pub reason: Box<str>,
    /// `X-Request-Id` of its request.
    pub request_id: Box<str>,
}

/// The ring.
#[derive(Debug, Default)]
pub struct RefusedLines {
    rows: Mutex<VecDeque<RefusedRow>>,
}

impl RefusedLines {
    /// Keeps rows; the oldest give way.
    pub fn keep(&self, rows: impl Iterator<Item = RefusedRow>) {
        let mut kept = self.rows.lock();
        for row in rows.take(KEPT_LINES) {
            if kept.len() == KEPT_LINES {
                kept.pop_front();
            }
            kept.push_back(row);
        }
    }

    /// What is kept now, oldest first.
    pub fn snapshot(&self) -> Vec<RefusedRow> {
        self.rows.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_lines_give_way() {
        let row = |n: u64| RefusedRow {
            time: Timestamp(1),
            database: "default".into(),
            line_number: n,
            line: "bad".into(),
            reason: "no field".into(),
            request_id: "r".into(),
        };
        let ring = RefusedLines::default();
        ring.keep((1..=600).map(row));
        ring.keep((601..=1_200).map(row));
        let kept: Vec<u64> = ring.snapshot().iter().map(|r| r.line_number).collect();
        assert_eq!(kept, (201..=1_200).collect::<Vec<_>>());
    }
}
