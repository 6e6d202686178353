//! Which threads go first where there is more to do than there are cores.
//!
//! A write waits for the threads that sync and for those that agree; these work for all who wait, a little for each. They
//! are woken for it thousands of times a second, and each time that another thread has to be done first, everybody waits.
//! So the threads that work for one alone, or for nobody who waits, give way to them. Nobody starves: a thread that gives
//! way still gets its share.

/// What a thread works for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// One request or one query, or memory that is to come free: a third of the share of a thread that syncs or agrees.
    OneAtATime,
    /// Nobody who waits: a tenth of it.
    Whenever,
}

impl Urgency {
    /// Makes it the calling thread's. Where the system does not let it, all threads are equal: slower, never wrong.
    pub fn take(self) {
        let nice = match self {
            Urgency::OneAtATime => 5,
            Urgency::Whenever => 10,
        };
        if let Err(error) = rustix::process::setpriority_process(None, nice) {
            tracing::debug!(%error, ?self, "a thread could not be made to give way");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_calling_thread_gives_way() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let there = std::thread::spawn(move || {
            Urgency::OneAtATime.take();
            nice()
        });
        assert_eq!((there.join().unwrap(), nice()), (before.max(5), before));
    }
}
