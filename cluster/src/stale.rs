//! How old a replica's rows may be that does not lead: what `consistency=stale` reads, and how stale it is.
//!
//! A leader tells in each message how far it has committed. Once this replica has applied that far, its rows are at
//! least as new as that message. Only this node's steady clock is asked: how long ago did such a message come?

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Messages that are remembered until what they told is applied; the oldest go first, which makes the answer too old,
/// never too young.
const MAX_MARKS: usize = 64;

/// What leaders told, and when.
#[derive(Debug, Default)]
pub(crate) struct Heard(Mutex<Marks>);

#[derive(Debug, Default)]
struct Marks {
    /// When a message came, and the last index that it told to be committed.
    waiting: VecDeque<(Instant, u64)>,
    /// When the newest message came of which all is applied.
    reached: Option<Instant>,
}

impl Heard {
    /// A leader's message came.
    pub(crate) fn note(&self, committed: Option<u64>) {
        let Some(committed) = committed else { return };
        let now = Instant::now();
        let mut marks = self.0.lock();
        match marks.waiting.back_mut() {
            // The same again, but younger.
            Some((at, last)) if *last == committed => *at = now,
            _ => {
                if marks.waiting.len() >= MAX_MARKS {
                    marks.waiting.pop_front();
                }
                marks.waiting.push_back((now, committed));
            }
        }
    }

    /// How old rows are of which everything up to `applied` is here; `None`: nobody knows.
    pub(crate) fn age(&self, applied: Option<u64>) -> Option<Duration> {
        let mut marks = self.0.lock();
        while let Some((at, committed)) = marks.waiting.front().copied()
            && applied.is_some_and(|applied| applied >= committed)
        {
            marks.reached = Some(at);
            if marks.waiting.len() == 1 {
                break;
            }
            marks.waiting.pop_front();
        }
        marks.reached.map(|at| at.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_as_old_as_the_newest_message_of_which_all_is_applied() {
        let heard = Heard::default();
        assert_eq!(heard.age(Some(9)), None);
        heard.note(Some(5));
        let first = Instant::now();
        heard.note(Some(7));
        assert_eq!(heard.age(Some(4)), None);
        assert!(heard.age(Some(5)).unwrap() >= first.elapsed());
        let before = heard.age(Some(6)).unwrap();
        heard.note(Some(7));
        assert!(heard.age(Some(7)).unwrap() <= before);
        assert!(heard.age(Some(6)).is_some(), "what was reached stays reached");
    }
}
