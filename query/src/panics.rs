//! Panics on query threads: an answer during which there was one is not taken for whole.
//!
//! Steps of a plan run in tasks that hand their rows on through channels. A task that panics drops its end, and to whoever
//! reads the rows they have ended well. Which task it was cannot be told from outside, so any panic counts: another
//! query that was under way fails with it, and can be asked again. Where storage reads bytes that may be damaged, it takes
//! a panic of the decoder for that by itself.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;

/// The name of threads that run queries.
pub(crate) const THREAD: &str = "query";

static SEEN: AtomicU64 = AtomicU64::new(0);
static COUNTED: Once = Once::new();

/// Counts panics of query threads from now on, beside what else is done about them.
pub(crate) fn count() {
    COUNTED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().name() == Some(THREAD) && !storage::damage_is_expected() {
                SEEN.fetch_add(1, Ordering::SeqCst);
            }
            before(panic);
        }));
    });
}

/// What was seen until some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Until(u64);

impl Until {
    pub(crate) fn now() -> Until {
        Until(SEEN.load(Ordering::SeqCst))
    }

    /// An error if there was a panic since.
    pub(crate) fn none_since(self) -> Result<(), Error> {
        match Until::now() == self {
            true => Ok(()),
            false => {
                Err(Error::Engine { message: "a step of a query panicked, and the rows may lack some: the log says where".to_owned() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_query_thread_is_seen_and_no_other() {
        count();
        let start = Until::now();
        let panics = |name: &str| std::thread::Builder::new().name(name.to_owned()).spawn(|| panic!("on purpose")).unwrap().join().is_err();
        assert!(panics("another"));
        assert!(start.none_since().is_ok());
        assert!(panics(THREAD));
        assert!(start.none_since().is_err());
        assert!(Until::now().none_since().is_ok());
    }
}
