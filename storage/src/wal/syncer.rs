//! A few threads per disk that sync for all logs on it, and one that prepares and recycles segments.
//!
//! Each log belongs to one syncing thread. It takes all requests that wait, syncs each of its logs once up to its newest
//! record, and runs the callbacks of that log. While it syncs, the next requests gather: that is the whole group commit,
//! without a timer. Two threads let the logs of two shards be on their way to the disk at once; more would only wait for
//! it. When a log has been quiet for [`QUIET`] after a sync, it gets a mark (see [`record`](super::record)).
//!
//! Both queues are bounded. A full request queue makes `sync_then` wait for the disk; a full chore queue drops the chore,
//! and whoever needs what it would have prepared does it himself. The request queue is a lock and two conditions and not a
//! channel, whose receiver yields the processor some times before it sleeps: at two thousand syncs a second that was a
//! sixteenth of all CPU time.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded};
use model::LogIndex;
use parking_lot::{Condvar, Mutex};

use super::Synced;
use super::log::Log;
use super::metrics::Metrics;
use crate::Error;

/// What is called when a sync is over.
pub type Done = Box<dyn FnOnce(std::result::Result<Synced, Arc<Error>>) + Send>;

/// Syncs of one disk that are under way at once.
const SYNCING_THREADS: usize = 2;
/// Requests that may wait for a thread's sync.
const REQUESTS: usize = 1024;
/// Chores that may wait.
const CHORES: usize = 64;
/// After this time without a sync a log gets its mark.
const QUIET: Duration = Duration::from_millis(100);

/// The threads that sync for all logs on one disk. Clones share them; they end when the last is gone.
#[derive(Clone, Debug)]
pub struct Syncer {
    metrics: Metrics,
    threads: Option<Threads>,
}

#[derive(Clone, Debug)]
struct Threads {
    lanes: Arc<Lanes>,
    chores: Sender<Chore>,
    /// Logs so far: they take turns on the threads.
    logs: Arc<AtomicUsize>,
}

/// The queues of the syncing threads, which end when this is gone.
#[derive(Debug)]
struct Lanes([Arc<Lane>; SYNCING_THREADS]);

impl Drop for Lanes {
    fn drop(&mut self) {
        self.0.iter().for_each(|lane| lane.close());
    }
}

/// What waits for one syncing thread.
#[derive(Debug, Default)]
struct Lane {
    state: Mutex<Waiting>,
    filled: Condvar,
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: Vec<Request>,
    closed: bool,
}

impl Lane {
    /// Waits while the queue is full; gives the request back if nobody will serve it.
    fn put(&self, request: Request) -> std::result::Result<(), Request> {
        let mut state = self.state.lock();
        while state.requests.len() >= REQUESTS && !state.closed {
            self.emptied.wait(&mut state);
        }
        if state.closed {
            return Err(request);
        }
        state.requests.push(request);
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Moves all that waits to `taken`; waits for it, but not beyond `until`. `false`: there will be nothing more.
    fn take(&self, until: Option<Instant>, taken: &mut Vec<Request>) -> bool {
        let mut state = self.state.lock();
        while state.requests.is_empty() && !state.closed {
            match until {
                None => self.filled.wait(&mut state),
                Some(until) if self.filled.wait_until(&mut state, until).timed_out() => break,
                Some(_) => {}
            }
        }
        taken.append(&mut state.requests);
        let open = !state.closed;
        drop(state);
        self.emptied.notify_all();
        open || !taken.is_empty()
    }

    fn close(&self) {
        self.state.lock().closed = true;
        self.filled.notify_all();
        self.emptied.notify_all();
    }
}

pub(super) struct Request {
    pub(super) log: Arc<Log>,
    pub(super) upto: LogIndex,
    pub(super) done: Done,
}

#[derive(Debug)]
pub(super) enum Chore {
    /// Have a spare segment of this length.
    Prepare(Arc<Log>, u64),
    /// Rename what was purged.
    Tidy(Arc<Log>),
}

impl Syncer {
    /// Starts the threads.
    ///
    /// # Panics
    /// If the system has no thread to give.
    pub fn start() -> Syncer {
        let metrics = Metrics::default();
        let (chores, waiting_chores) = bounded(CHORES);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.to_owned()).spawn(work).expect("the system gives a thread at start");
        };
        let lanes = std::array::from_fn(|number| {
            let lane = Arc::new(Lane::default());
            let served = lane.clone();
            spawn(&format!("wal-sync-{number}"), Box::new(move || sync_until_closed(&served)));
            lane
        });
        spawn("wal-chores", Box::new(move || waiting_chores.iter().for_each(Chore::run)));
        Syncer { metrics, threads: Some(Threads { lanes: Arc::new(Lanes(lanes)), chores, logs: Arc::default() }) }
    }

    /// Syncs on the caller's own thread before `sync_then` returns, writes no marks by itself: for tests that must run the
    /// same way twice.
    pub fn inline() -> Syncer {
        Syncer { metrics: Metrics::default(), threads: None }
    }

    /// What the logs of this syncer count.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The thread of a new log.
    pub(super) fn lane(&self) -> usize {
        self.threads.as_ref().map_or(0, |threads| threads.logs.fetch_add(1, Ordering::Relaxed) % SYNCING_THREADS)
    }

    pub(super) fn request(&self, request: Request) {
        let refused = match &self.threads {
            None => return serve(request.log.clone(), vec![request]),
            Some(threads) => threads.lanes.0[request.log.lane].put(request),
        };
        if let Err(request) = refused {
            let why = "its syncing thread has ended".to_owned();
            (request.done)(Err(Arc::new(Error::Stopped { what: request.log.name(), why })));
        }
    }

    pub(super) fn chore(&self, chore: Chore) {
        match &self.threads {
            None => chore.run(),
            // A full queue is no harm, see the head of this file.
            Some(threads) => drop(threads.chores.try_send(chore)),
        }
    }
}

impl Chore {
    fn run(self) {
        match self {
            Chore::Prepare(log, len) => log.prepare(len),
            Chore::Tidy(log) => log.tidy(),
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("log", &self.log.dir).field("upto", &self.upto).finish_non_exhaustive()
    }
}

/// Takes no more requests, and drops those that wait, when the thread ends.
struct CloseOnEnd<'a>(&'a Lane);

impl Drop for CloseOnEnd<'_> {
    fn drop(&mut self) {
        self.0.close();
        let left = std::mem::take(&mut self.0.state.lock().requests);
        drop(left);
    }
}

/// One sync for all these requests of one log.
fn serve(log: Arc<Log>, requests: Vec<Request>) {
    let result = log.sync();
    for request in requests {
        (request.done)(result.clone().map(|()| Synced { last: request.upto }));
    }
}

fn sync_until_closed(lane: &Lane) {
    // However the thread ends, nobody waits for it.
    let _end = CloseOnEnd(lane);
    let mut waiting: Vec<Request> = Vec::new();
    // Logs that were synced and have no mark yet, the longest quiet first.
    let mut quiet: Vec<(Instant, Weak<Log>)> = Vec::new();
    while lane.take(quiet.first().map(|(since, _)| *since + QUIET), &mut waiting) {
        while let Some(first) = waiting.first() {
            let log = first.log.clone();
            let of_this_log = waiting.extract_if(.., |request| Arc::ptr_eq(&request.log, &log)).collect();
            quiet.retain(|(_, other)| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(&log)));
            quiet.push((Instant::now(), Arc::downgrade(&log)));
            serve(log, of_this_log);
        }
        let due = quiet.partition_point(|(since, _)| since.elapsed() >= QUIET);
        for (_, log) in quiet.drain(..due) {
            if let Some(log) = log.upgrade()
                && let Err(error) = log.mark()
            {
                // The log has stopped; its owner hears of it at the next append, or has closed it: a replica that has moved away.
                match &*error {
                    Error::Stopped { .. } => tracing::debug!(log = %log.name(), %error, "the end of the log is not marked"),
                    _ => tracing::error!(log = %log.name(), %error, "could not mark the end of the log"),
                }
            }
        }
    }
}
