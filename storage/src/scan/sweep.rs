//! Cuts a scan's time into spans for a reader who wants its newest (or its oldest) rows and will stop early.
//!
//! The spans follow each other in the direction of the sweep, do not overlap, and together hold every row of the request.
//! Each is scanned by itself, merged like any scan, so that what is read of one span is final (DESIGN rule 1). A span is at most a day,
//! because a file holds a day: the scan of one span opens the files of that day. The first is short, because the
//! newest rows are in memory, where a short span is cheap. Time between sources is skipped.

use std::ops::RangeInclusive;

use super::{ScanRequest, View};
use crate::Result;

/// The first span of a sweep is no longer than this.
const FIRST_NS: i64 = 15 * 60 * 1_000_000_000;
const DAY_NS: i64 = 86_400_000_000_000;
/// Spans of one sweep; the last holds all that is left.
const MAX_SPANS: usize = 1_000;

/// The end of time at which a sweep begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sweep {
    /// Newest rows first.
    Newest,
    /// Oldest rows first.
    Oldest,
}

impl View {
    /// The spans of time to scan one after the other, for a request whose rows are wanted from one end of time.
    pub fn spans(&self, request: &ScanRequest, sweep: Sweep) -> Result<Vec<RangeInclusive<i64>>> {
        let request = self.visible(request)?;
        if request.times.is_empty() {
            return Ok(Vec::new());
        }
        let files = self.files_for(&request).map(|f| (f.min_time, f.max_time));
        let memtables = self.in_memory(request.table.id).filter(|rows| rows.may_match(&request)).map(|rows| rows.times());
        Ok(cut(&request.times, &files.chain(memtables).collect::<Vec<_>>(), sweep))
    }
}

/// Cuts `times` so that every instant of a source is in one span.
fn cut(times: &RangeInclusive<i64>, sources: &[(i64, i64)], sweep: Sweep) -> Vec<RangeInclusive<i64>> {
    let mut spans = Vec::new();
    let (mut first, mut last) = (*times.start(), *times.end());
    while first <= last {
        let in_reach = sources.iter().filter(|(min, max)| *min <= last && *max >= first);
        let span = match sweep {
            Sweep::Newest => {
                let Some(end) = in_reach.map(|(_, max)| *max).max().map(|max| max.min(last)) else { break };
                let day = end.div_euclid(DAY_NS).saturating_mul(DAY_NS);
                let short = if spans.is_empty() { end.saturating_sub(FIRST_NS) } else { i64::MIN };
                first.max(day).max(short)..=end
            }
            Sweep::Oldest => {
                let Some(start) = in_reach.map(|(min, _)| *min).min().map(|min| min.max(first)) else { break };
                let day = start.div_euclid(DAY_NS).saturating_mul(DAY_NS).saturating_add(DAY_NS - 1);
                let short = if spans.is_empty() { start.saturating_add(FIRST_NS) } else { i64::MAX };
                start..=last.min(day).min(short)
            }
        };
        if spans.len() + 1 == MAX_SPANS {
            spans.push(first..=last);
            break;
        }
        let over = match sweep {
            Sweep::Newest => span.start().checked_sub(1).map(|end| last = end).is_none(),
            Sweep::Oldest => span.end().checked_add(1).map(|start| first = start).is_none(),
        };
        spans.push(span);
        if over {
            break;
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    const H: i64 = 3_600_000_000_000;

    #[test]
    fn a_sweep_visits_every_source_once_day_by_day() {
        let sources = [(H, 5 * H), (3 * H, 30 * H), (100 * H, 100 * H)];
        let newest = cut(&(i64::MIN..=i64::MAX), &sources, Sweep::Newest);
        let expected = [100 * H - FIRST_NS..=100 * H, 24 * H..=30 * H, 0..=24 * H - 1];
        assert_eq!(newest, expected);
        let oldest = cut(&(i64::MIN..=i64::MAX), &sources, Sweep::Oldest);
        assert_eq!(oldest[..3], [H..=H + FIRST_NS, H + FIRST_NS + 1..=24 * H - 1, 24 * H..=48 * H - 1]);
        assert_eq!(oldest.last().unwrap(), &(100 * H..=120 * H - 1));
    }

    #[test]
    fn every_instant_of_a_source_is_in_one_span() {
        let ends = [i64::MIN, i64::MIN + 1, -25 * H, -1, 0, 1, 49 * H, i64::MAX - 1, i64::MAX];
        for (i, &min) in ends.iter().enumerate() {
            for &max in &ends[i..] {
                for sweep in [Sweep::Newest, Sweep::Oldest] {
                    let spans = cut(&(i64::MIN..=i64::MAX), &[(min, max)], sweep);
                    for at in ends.into_iter().filter(|t| (min..=max).contains(t)) {
                        assert_eq!(spans.iter().filter(|s| s.contains(&at)).count(), 1, "{at} of {min}..={max}, {sweep:?}");
                    }
                    assert!(spans.len() <= MAX_SPANS);
                }
            }
        }
        assert!(cut(&(0..=10), &[(20, 30)], Sweep::Newest).is_empty());
    }
}
