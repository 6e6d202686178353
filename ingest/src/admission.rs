//! How many bytes of bodies may be in flight, and the refusal beyond.
//!
//! A body counts from the moment its bytes arrive (inflated where it is compressed) until its answer is known, and so do the
//! values that it becomes, where they are so many that they may be far larger than its text. What does
//! not fit is refused at once and never waits here: a queue in front of a full server makes its answers late, and late
//! answers are retried. One body alone may always go up to the limit of a body.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::error::Error;

/// Bodies grow in steps of this many bytes, so that a large one does not touch the shared count at each piece.
const STEP_BYTES: u64 = 64 * 1024;

/// The bound, and what is in flight.
#[derive(Clone, Debug)]
pub struct Admission {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    in_flight: AtomicU64,
    limit: u64,
}

impl Admission {
    /// Lets in `limit` bytes at a time.
    pub fn new(limit: u64) -> Admission {
        Admission { shared: Arc::new(Shared { in_flight: AtomicU64::new(0), limit }) }
    }

    /// Bytes in flight now.
    pub fn in_flight(&self) -> u64 {
        self.shared.in_flight.load(Relaxed)
    }

    /// Lets in a body that says it has `announced` bytes (0 where it does not say). The announcement alone takes no room:
    /// a client that announces much and sends nothing must not keep others out.
    pub fn admit(&self, announced: u64) -> Result<Admitted, Error> {
        let in_flight = self.in_flight();
        if in_flight > 0 && in_flight.saturating_add(announced) > self.shared.limit {
            return Err(self.refusal());
        }
        Ok(Admitted { admission: self.clone(), held: 0 })
    }

    fn refusal(&self) -> Error {
        Error::Overloaded { limit: self.shared.limit }
    }
}

/// One body's share; given back when dropped.
#[derive(Debug)]
pub struct Admitted {
    admission: Admission,
    held: u64,
}

impl Admitted {
    /// Makes the share at least `bytes`.
    pub fn hold(&mut self, bytes: u64) -> Result<(), Error> {
        if bytes <= self.held {
            return Ok(());
        }
        let grown = if self.held == 0 { bytes } else { bytes.next_multiple_of(STEP_BYTES) };
        let more = grown - self.held;
        let before = self.admission.shared.in_flight.fetch_add(more, Relaxed);
        self.held = grown;
        let others = (before + more).saturating_sub(grown);
        if others > 0 && before + more > self.admission.shared.limit {
            return Err(self.admission.refusal());
        }
        Ok(())
    }

    /// Makes the share larger by `bytes`.
    pub fn hold_more(&mut self, bytes: u64) -> Result<(), Error> {
        self.hold(self.held.saturating_add(bytes))
    }

    /// Gives back what is beyond `bytes`, except for a step: that much is not worth touching what all share.
    pub fn give_back_beyond(&mut self, bytes: u64) {
        if let Some(more) = self.held.checked_sub(bytes).filter(|more| *more >= STEP_BYTES) {
            self.admission.shared.in_flight.fetch_sub(more, Relaxed);
            self.held = bytes;
        }
    }

    /// The whole share, for somebody else to hold; this one has nothing then.
    pub fn take(&mut self) -> Admitted {
        Admitted { admission: self.admission.clone(), held: std::mem::take(&mut self.held) }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.shared.in_flight.fetch_sub(self.held, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_given_back_when_the_answer_is_known() {
        let admission = Admission::new(100);
        let mut one = admission.admit(60).unwrap();
        one.hold(60).unwrap();
        assert_eq!(admission.in_flight(), 60);
        assert!(matches!(admission.admit(41), Err(Error::Overloaded { limit: 100 })));
        let mut other = admission.admit(40).unwrap();
        other.hold(40).unwrap();
        drop(one);
        assert_eq!(admission.in_flight(), 40);
        drop(other);
        assert_eq!(admission.in_flight(), 0);
    }

    #[test]
    fn a_share_grows_shrinks_and_changes_hands() {
        let admission = Admission::new(10 * STEP_BYTES);
        let mut one = admission.admit(0).unwrap();
        one.hold(100).unwrap();
        one.hold_more(2 * STEP_BYTES).unwrap();
        assert_eq!(admission.in_flight(), 3 * STEP_BYTES);
        one.give_back_beyond(3 * STEP_BYTES - 1);
        assert_eq!(admission.in_flight(), 3 * STEP_BYTES);
        one.give_back_beyond(100);
        assert_eq!(admission.in_flight(), 100);
        let other = one.take();
        drop(one);
        assert_eq!(admission.in_flight(), 100);
        drop(other);
        assert_eq!(admission.in_flight(), 0);
    }

    #[test]
    fn an_announcement_takes_no_room() {
        let admission = Admission::new(100);
        let silent = admission.admit(100).unwrap();
        let mut sending = admission.admit(100).unwrap();
        sending.hold(100).unwrap();
        drop(silent);
        assert_eq!(admission.in_flight(), 100);
    }

    #[test]
    fn a_body_that_grows_past_the_bound_is_refused_and_gives_everything_back() {
        let admission = Admission::new(3 * STEP_BYTES);
        let mut one = admission.admit(0).unwrap();
        one.hold(2 * STEP_BYTES).unwrap();
        let mut other = admission.admit(0).unwrap();
        other.hold(10).unwrap();
        assert!(other.hold(2 * STEP_BYTES).is_err());
        drop(other);
        assert_eq!(admission.in_flight(), 2 * STEP_BYTES);
    }

    #[test]
    fn one_body_alone_is_let_in_whatever_its_size() {
        let admission = Admission::new(10);
        let mut one = admission.admit(1_000).unwrap();
        one.hold(1_000).unwrap();
        assert!(admission.admit(0).is_err());
    }
}
