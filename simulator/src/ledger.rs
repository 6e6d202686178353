//! What was sent and what was answered, for every point; and the verdict when everything is read back.
//!
//! 24 bytes a point. A point is *acknowledged* once any body that carried it got a 204 (or a 400 that did not name its
//! line), *refused* if a 400 named it and no other body carried it, else *unknown*: it may be there or not.
//!
//! - lost: acknowledged, but not there
//! - invented: there, but never sent (or only refused)
//! - altered: there with another value or tag than sent
//! - doubled: rows beyond the first of one device and time

use crate::fleet::Sent;
use crate::kinds::KindName;

/// What is known of one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// No answer, or one that leaves it open.
    Unknown = 0,
    /// The server will never take it.
    Refused = 1,
    /// The server says it is kept.
    Acknowledged = 2,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    time_ns: i64,
    hash: u64,
    device: u32,
    kind: KindName,
    answer: Answer,
    seen: bool,
}

/// All points of a run.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Vec<Entry>,
    settled: bool,
}

/// What reading everything back has shown; each must be 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// Rows read.
    pub rows: u64,
    /// Acknowledged, but not there.
    pub lost: u64,
    /// There, but never sent.
    pub invented: u64,
    /// There with another value or tag.
    pub altered: u64,
    /// Rows beyond the first of one device and time.
    pub doubled: u64,
}

impl Verdict {
    /// Whether every promise held.
    pub fn holds(&self) -> bool {
        self.lost == 0 && self.invented == 0 && self.altered == 0 && self.doubled == 0
    }
}

impl Ledger {
    /// Notes a line before it is sent; gives its number for [`answer`](Ledger::answer).
    pub fn sent(&mut self, sent: Sent) -> usize {
        self.entries.push(Entry {
            time_ns: sent.time_ns,
            hash: sent.hash,
            device: sent.device,
            kind: sent.kind,
            answer: Answer::Unknown,
            seen: false,
        });
        self.settled = false;
        self.entries.len() - 1
    }

    /// Notes what was answered for lines `start..end`.
    pub fn answer(&mut self, start: usize, end: usize, answer: Answer) {
        for entry in &mut self.entries[start..end] {
            entry.answer = answer;
        }
    }

    /// How many lines have this answer.
    pub fn count(&self, answer: Answer) -> u64 {
        self.entries.iter().filter(|e| e.answer == answer).count() as u64
    }

    /// Number of lines.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no line was noted.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sorts for reading back; the best answer of a point's lines becomes its answer.
    fn settle(&mut self) {
        if self.settled {
            return;
        }
        self.entries.sort_unstable_by_key(|e| (e.kind, e.device, e.time_ns, std::cmp::Reverse(e.answer)));
        self.entries.dedup_by_key(|e| (e.kind, e.device, e.time_ns));
        self.settled = true;
    }

    /// Starts reading back.
    pub fn check(&mut self) -> Check<'_> {
        self.settle();
        self.entries.iter_mut().for_each(|e| e.seen = false);
        Check { ledger: self, verdict: Verdict::default() }
    }
}

/// Reading back in progress.
pub struct Check<'a> {
    ledger: &'a mut Ledger,
    verdict: Verdict,
}

impl Check<'_> {
    /// Whether any point of this kind was sent.
    pub fn expects(&self, kind: KindName) -> bool {
        let first = self.ledger.entries.partition_point(|e| e.kind < kind);
        self.ledger.entries.get(first).is_some_and(|e| e.kind == kind)
    }

    /// Compares one row; `device` is `None` where the row's tag names no device of the fleet.
    pub fn row(&mut self, kind: KindName, device: Option<u32>, time_ns: i64, hash: u64) {
        self.verdict.rows += 1;
        let found = device
            .and_then(|device| self.ledger.entries.binary_search_by_key(&(kind, device, time_ns), |e| (e.kind, e.device, e.time_ns)).ok());
        let Some(entry) = found.map(|i| &mut self.ledger.entries[i]) else {
            self.verdict.invented += 1;
            return;
        };
        if entry.seen {
            self.verdict.doubled += 1;
        } else if entry.answer == Answer::Refused {
            self.verdict.invented += 1;
        } else if entry.hash != hash {
            self.verdict.altered += 1;
        }
        entry.seen = true;
    }

    /// The rows of this kind are read again from the first: an answer broke off. Damage that it showed stays counted.
    /// Gives how many of the fleet's points are to be seen again.
    pub fn begin_again(&mut self, kind: KindName) -> u64 {
        let mut again = 0;
        for entry in self.ledger.entries.iter_mut().filter(|e| e.kind == kind && e.seen) {
            entry.seen = false;
            again += 1;
        }
        self.verdict.rows -= again;
        again
    }

    /// The verdict once all rows were compared.
    pub fn finish(mut self) -> Verdict {
        self.verdict.lost = self.ledger.entries.iter().filter(|e| e.answer == Answer::Acknowledged && !e.seen).count() as u64;
        self.verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(device: u32, time_ns: i64, hash: u64) -> Sent {
        Sent { kind: KindName::Phone, device, time_ns, hash }
    }

    #[test]
    fn each_kind_of_damage_is_counted_as_what_it_is() {
        let mut ledger = Ledger::default();
        for i in 0..6 {
            ledger.sent(point(i, 10, 100 + u64::from(i)));
        }
        ledger.answer(0, 4, Answer::Acknowledged);
        ledger.answer(4, 5, Answer::Refused);
        let mut check = ledger.check();
        check.row(KindName::Phone, Some(0), 10, 100); // well
        check.row(KindName::Phone, Some(1), 10, 999); // altered
        check.row(KindName::Phone, Some(2), 10, 102);
        check.row(KindName::Phone, Some(2), 10, 102); // doubled
        check.row(KindName::Phone, Some(4), 10, 104); // refused, yet there
        check.row(KindName::Phone, Some(5), 10, 105); // unknown: may be there
        check.row(KindName::Phone, Some(77), 10, 1); // nobody's
        check.row(KindName::Watch, Some(0), 10, 100); // in the wrong table
        let verdict = check.finish();
        assert_eq!(verdict, Verdict { rows: 8, lost: 1, invented: 3, altered: 1, doubled: 1 });
        assert!(!verdict.holds());
    }

    #[test]
    fn an_answer_that_broke_off_is_read_again_and_its_damage_stays() {
        let mut ledger = Ledger::default();
        for i in 0..3 {
            ledger.sent(point(i, 10, 100 + u64::from(i)));
        }
        ledger.answer(0, 3, Answer::Acknowledged);
        let mut check = ledger.check();
        check.row(KindName::Phone, Some(0), 10, 100);
        check.row(KindName::Phone, Some(1), 10, 101);
        assert_eq!(check.begin_again(KindName::Phone), 2);
        (0..3).for_each(|i| check.row(KindName::Phone, Some(i), 10, 100 + u64::from(i)));
        assert_eq!(check.finish(), Verdict { rows: 3, ..Verdict::default() });
        let mut check = ledger.check();
        check.row(KindName::Phone, Some(0), 10, 999);
        check.begin_again(KindName::Phone);
        (0..3).for_each(|i| check.row(KindName::Phone, Some(i), 10, 100 + u64::from(i)));
        assert_eq!(check.finish().altered, 1);
    }

    #[test]
    fn a_duplicate_line_is_one_point_with_the_better_answer() {
        let mut ledger = Ledger::default();
        ledger.sent(point(1, 10, 5));
        ledger.sent(point(1, 10, 5));
        ledger.answer(0, 1, Answer::Acknowledged);
        assert_eq!(ledger.check().finish().lost, 1);
        let mut check = ledger.check();
        check.row(KindName::Phone, Some(1), 10, 5);
        assert!(check.finish().holds());
    }
}
