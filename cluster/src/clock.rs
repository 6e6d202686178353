//! The time of day, held to the pace of a clock that only ticks.
//!
//! Retention drops rows by the time of day. A time of day that jumps ahead, by a mistake far away, must not drop what
//! is young: from the start of the node on, time here never runs faster than the machine's monotonic clock (DESIGN rule 12).

use std::time::Instant;

use model::Timestamp;

use crate::node::Clock;

/// The clock that cutoffs are taken from.
pub(crate) struct SteadyClock {
    clock: Clock,
    anchor: (Timestamp, Instant),
}

impl SteadyClock {
    pub(crate) fn new(clock: Clock) -> SteadyClock {
        let anchor = (clock(), Instant::now());
        SteadyClock { clock, anchor }
    }

    /// Now, or earlier where the time of day has jumped ahead since the start.
    pub(crate) fn now(&self) -> Timestamp {
        let (at, since) = self.anchor;
        let elapsed = i64::try_from(since.elapsed().as_nanos()).unwrap_or(i64::MAX);
        (self.clock)().min(Timestamp(at.0.saturating_add(elapsed)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    #[test]
    fn a_jump_ahead_is_not_believed_and_a_jump_back_is() {
        let time = Arc::new(AtomicI64::new(1_000));
        let clock = time.clone();
        let steady = SteadyClock::new(Arc::new(move || Timestamp(clock.load(Ordering::Relaxed))));
        time.store(1_000 + 10 * Timestamp::DAY, Ordering::Relaxed);
        assert!(steady.now().0 < 1_000 + Timestamp::DAY);
        time.store(500, Ordering::Relaxed);
        assert_eq!(steady.now(), Timestamp(500));
    }
}
