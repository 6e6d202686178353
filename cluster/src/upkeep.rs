//! What keeps a shard in shape off the acknowledgement path: seal, flush, let go of the log, compact.
//!
//! Only the leader does it: the others fetch the files that it made (`files.rs`), apply its edits, and let go of their logs.
//!
//! Each shard has two threads, one that flushes and one that compacts, so that a long compaction never holds up the
//! flush that frees memory, and neither runs on the groups' runtime. Both only propose; every replica applies. A flush
//! that finds no room is tried again with growing pauses. Damage stops this shard, and the others go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use model::{Catalog, ErrorKind, LogIndex, TableId};
use openraft::async_runtime::WatchReceiver;
use storage::entry::{Entry, Outcome};
use storage::manifest::ManifestEdit;
use storage::urgency::Urgency;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::files;
use crate::metadata::{Metadata, State};
use crate::peer::Peers;
use crate::replica::Replica;
use crate::{Error, Result};

/// Points do not stay in memory alone for longer than this.
const SEAL_AFTER: Duration = Duration::from_secs(600);
/// A log of this many times a memtable's bytes is let go of even if its memtable is small (retries, retention entries).
const SEAL_AT_LOGS: u64 = 4;
/// At least so much: a log is let go of by whole segments, and its newest stays.
const SEAL_AT_LEAST_BYTES: u64 = 256 << 20;
/// How often a thread looks by itself.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// First and longest pause after a failure.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LONGEST: Duration = Duration::from_secs(15);
/// Requests that may wait for one thread.
const MAX_ASKS: usize = 1_000;
/// How long to wait for openraft to take note of a flush before the log is let go.
const NOTE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a thread is asked to do.
#[derive(Debug)]
pub(crate) enum Ask {
    /// See whether there is something to do.
    Look,
    /// Do it now for this table (or all), and tell.
    Now(Option<TableId>, oneshot::Sender<Result<()>>),
    /// End.
    Stop,
}

/// A shard's two threads.
#[derive(Clone, Debug)]
pub(crate) struct Upkeep {
    flush: Arc<Worker>,
    compact: Arc<Worker>,
}

#[derive(Debug)]
struct Worker {
    asks: Sender<Ask>,
    thread: parking_lot::Mutex<Option<JoinHandle<()>>>,
    stopping: Arc<AtomicBool>,
}

impl Worker {
    fn start(name: String, urgency: Urgency, run: impl FnOnce(Receiver<Ask>, Arc<AtomicBool>) + Send + 'static) -> Worker {
        let (asks, receiver) = bounded(MAX_ASKS);
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let run = move || {
            urgency.take();
            run(receiver, stop)
        };
        let thread = std::thread::Builder::new().name(name).spawn(run).expect("a thread can be started");
        Worker { asks, thread: parking_lot::Mutex::new(Some(thread)), stopping }
    }

    async fn now(&self, table: Option<TableId>) -> Result<()> {
        let (done, told) = oneshot::channel();
        match self.asks.try_send(Ask::Now(table, done)) {
            Ok(()) => told.await.unwrap_or(Err(Error::ShuttingDown)),
            Err(error) if error.is_full() => Err(Error::Busy { what: "the queue of flushes and compactions".to_owned(), limit: MAX_ASKS }),
            Err(_) => Err(Error::ShuttingDown),
        }
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        // A full queue wakes the thread as well.
        let _ = self.asks.try_send(Ask::Stop);
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("an upkeep thread panicked");
        }
    }
}

impl Upkeep {
    /// Starts the shard's threads.
    pub(crate) fn start(
        replica: Arc<Replica>,
        metadata: Arc<Metadata>,
        runtime: Handle,
        peers: Option<Arc<Peers>>,
        flush_bytes: usize,
    ) -> Upkeep {
        let shard = replica.shard();
        let work = Work {
            replica,
            metadata,
            runtime,
            peers,
            seal_log_bytes: (SEAL_AT_LOGS * flush_bytes as u64).max(SEAL_AT_LEAST_BYTES),
            unapplied_flush: Unapplied::default(),
            unapplied_merge: Unapplied::default(),
        };
        let compacting = work.clone();
        let compact =
            Worker::start(format!("compact-{shard}"), Urgency::Whenever, move |asks, stopping| compacting.compact_until(&asks, &stopping));
        let after_flush = compact.asks.clone();
        let flush = Worker::start(format!("flush-{shard}"), Urgency::OneAtATime, move |asks, stopping| {
            work.flush_until(&asks, &stopping, &after_flush)
        });
        Upkeep { flush: Arc::new(flush), compact: Arc::new(compact) }
    }

    /// Where the state machine tells that a memtable is full.
    pub(crate) fn flush_asks(&self) -> Sender<Ask> {
        self.flush.asks.clone()
    }

    /// Returns when what was applied before the call is in files.
    pub(crate) async fn flush(&self, table: Option<TableId>) -> Result<()> {
        self.flush.now(table).await
    }

    /// Returns when each row that was in files before the call stands once.
    pub(crate) async fn compact(&self, table: Option<TableId>) -> Result<()> {
        self.compact.now(table).await
    }

    /// Ends the threads after what they are doing; blocks.
    pub(crate) fn stop(&self) {
        self.flush.stop();
        self.compact.stop();
    }
}

#[derive(Clone)]
struct Work {
    replica: Arc<Replica>,
    metadata: Arc<Metadata>,
    runtime: Handle,
    peers: Option<Arc<Peers>>,
    seal_log_bytes: u64,
    unapplied_flush: Unapplied,
    unapplied_merge: Unapplied,
}

/// What was made of rows and could not be given to a majority, or not be proposed, yet.
type Unapplied = Arc<parking_lot::Mutex<Option<ManifestEdit>>>;
type Done = oneshot::Sender<Result<()>>;

impl Work {
    fn flush_until(&self, asks: &Receiver<Ask>, stopping: &AtomicBool, after_flush: &Sender<Ask>) {
        let mut unflushed_since: Option<Instant> = None;
        let mut retry = None;
        let mut told = None;
        while let Some(now) = wait(asks, stopping, retry.unwrap_or(LOOK_EVERY)) {
            let store = self.replica.store();
            let caught_up = self.catch_up();
            // Files that are here and reach beyond what is applied need the entries, not more room.
            let lacks = |error: &Error| !matches!(error, Error::Storage(storage::Error::Unfit { .. }));
            self.replica.note_lack(caught_up.as_ref().is_err_and(lacks));
            if let Err(error) = caught_up {
                tracing::warn!(group = self.replica.name(), %error, "this replica lacks files and could not fetch them; it is tried again");
                retry = Some(RETRY_FIRST);
            } else if !self.replica.raft().is_leader() {
                retry = None;
                unflushed_since = None;
                told = None;
                *self.unapplied_flush.lock() = None;
                if let Err(error) = self.follow() {
                    tracing::warn!(group = self.replica.name(), %error, "what is no longer needed was not let go of");
                }
            }
            if !self.replica.raft().is_leader() {
                tell(now, &Err(self.replica.not_here()));
                continue;
            }
            let state = self.metadata.state().clone();
            let decided = Some((state.shards.as_ref().map(|map| map.epoch), state.catalog.version));
            if told != decided {
                match self.tell_what_was_decided(&state) {
                    Ok(()) => told = decided,
                    Err(error) => {
                        tracing::warn!(group = self.replica.name(), %error, "could not drop rows that are forgotten or too old; tried again")
                    }
                }
            }
            if !store.has_unflushed(None) {
                unflushed_since = None;
            }
            let since = *unflushed_since.get_or_insert_with(Instant::now);
            let due = (store.has_unflushed(None) && since.elapsed() >= SEAL_AFTER) || self.replica.log().bytes() >= self.seal_log_bytes;
            // While flushes fail, what is due is sealed already: another seal would only make the log longer.
            let seal = now.iter().any(|(table, _)| store.has_unflushed(*table)) || store.wants_seal() || (due && retry.is_none());
            let done = self.flush(seal);
            retry = match &done {
                Ok(flushed) => {
                    if *flushed {
                        unflushed_since = None;
                        let _ = after_flush.try_send(Ask::Look);
                    }
                    None
                }
                Err(error) => Some(self.failed("flush", error, retry)),
            };
            tell(now, &done.map(|_| ()));
        }
    }

    /// Fetches files that this replica missed when their edits were applied, if there are any.
    fn catch_up(&self) -> Result<()> {
        if self.replica.store().stats().behind == 0 {
            return Ok(());
        }
        let Some(peers) = &self.peers else { return Ok(()) };
        let leader = self.replica.leader().filter(|node| *node != peers.me());
        // A leader that lacks files asks those who may have them.
        let members = self.replica.raft().voter_ids().map(model::NodeId).filter(|node| *node != peers.me());
        let mut last = None;
        for node in leader.into_iter().chain(members) {
            match self.runtime.block_on(files::heal(&self.replica, peers, node)) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => last = Some(error),
            }
        }
        let why = last.map_or_else(|| "nobody has all of them".to_owned(), |error| error.to_string());
        Err(Error::NoMajority { shard: self.replica.shard(), what: "has the files that this replica lacks".to_owned(), why })
    }

    /// What a replica that does not lead does: saves its manifest, removes files that nothing names, lets go of its log.
    fn follow(&self) -> Result<()> {
        self.replica.refuse_if_stopped()?;
        self.replica.store().tidy()?;
        self.let_go_of_log()
    }

    /// Seals if asked to, then turns all sealed memtables into files. Whether there was any.
    fn flush(&self, seal: bool) -> Result<bool> {
        self.replica.refuse_if_stopped()?;
        if seal {
            self.propose(Entry::Seal)?;
        }
        let mut flushed = false;
        loop {
            let started = Instant::now();
            let kept = self.unapplied_flush.lock().is_some();
            let mut edit = self.take_unapplied(&self.unapplied_flush, || self.replica.store().flush(&self.catalog()));
            if matches!(&edit, Err(storage::Error::StaleSchema { .. })) {
                // Rows of a table, or a column, that was decided a moment ago, elsewhere.
                self.runtime.block_on(self.metadata.refresh())?;
                edit = self.replica.store().flush(&self.catalog());
            }
            self.replica.room().note_flush(!matches!(&edit, Err(storage::Error::DiskFull { .. })));
            let Some(edit) = edit? else { break };
            let (rows, bytes) = written(&edit);
            if self.propose_edit(edit, &self.unapplied_flush)? == Outcome::Ignored {
                if kept {
                    continue;
                }
                tracing::warn!(group = self.replica.name(), "a flush came too late: its memtable is in files already");
                break;
            }
            let metrics = self.replica.metrics();
            metrics.flush_seconds.observe(started.elapsed().as_secs_f64());
            metrics.flush_rows.inc_by(rows);
            metrics.flush_bytes.inc_by(bytes);
            flushed = true;
        }
        if flushed {
            self.let_go_of_log()?;
        }
        Ok(flushed)
    }

    /// Lets openraft take note of the flushed index, then let go of the log before it.
    fn let_go_of_log(&self) -> Result<()> {
        let (Some((_, flushed)), _) = self.replica.store().flushed() else { return Ok(()) };
        let Some(LogIndex(keep)) = self.replica.store().purgeable() else { return Ok(()) };
        let Some(upto) = keep.checked_sub(1).map(|upto| upto.min(flushed.0)).map(|upto| self.kept_for_followers(upto)) else {
            return Ok(());
        };
        let raft = self.replica.raft();
        if raft.metrics().borrow_watched().purged.as_ref().is_some_and(|purged| purged.index >= upto) {
            return Ok(());
        }
        let noted = self.runtime.block_on(async {
            raft.trigger().snapshot().await.map_err(|e| e.to_string())?;
            let covers = |m: &openraft::RaftMetrics<crate::group::Types>| m.snapshot.as_ref().is_some_and(|s| s.index >= upto);
            raft.wait(Some(NOTE_TIMEOUT)).metrics(covers, "the flushed index is noted").await.map_err(|e| e.to_string())?;
            raft.trigger().purge_log(upto).await.map_err(|e| e.to_string())
        });
        if let Err(why) = noted {
            // Not an error of the flush: the log only stays longer.
            tracing::warn!(group = self.replica.name(), why, "the log was not let go of");
        }
        Ok(())
    }

    /// How much of the log may go: a member that lacks a little is spared a snapshot, one that lacks much is not.
    fn kept_for_followers(&self, upto: u64) -> u64 {
        if self.replica.log().bytes() >= self.seal_log_bytes {
            return upto;
        }
        let metrics = self.replica.raft().metrics().borrow_watched().clone();
        let slowest = metrics.replication.iter().flatten().map(|(_, matched)| matched.as_ref().map_or(0, |id| id.index)).min();
        slowest.map_or(upto, |slowest| upto.min(slowest))
    }

    fn compact_until(&self, asks: &Receiver<Ask>, stopping: &AtomicBool) {
        let mut retry = None;
        while let Some(now) = wait(asks, stopping, retry.unwrap_or(LOOK_EVERY * 12)) {
            let mut failed = None;
            if !self.replica.raft().is_leader() {
                *self.unapplied_merge.lock() = None;
                tell(now, &Err(self.replica.not_here()));
                retry = None;
                continue;
            }
            for (table, done) in now {
                let result = self.compact(table, true, stopping);
                failed = failed.or(result.as_ref().err().map(|error| self.failed("compaction", error, retry)));
                let _ = done.send(result);
            }
            if let Err(error) = self.compact(None, false, stopping) {
                failed = Some(self.failed("compaction", &error, retry));
            }
            retry = failed;
        }
    }

    fn compact(&self, table: Option<TableId>, full: bool, stopping: &AtomicBool) -> Result<()> {
        loop {
            self.replica.refuse_if_stopped()?;
            if stopping.load(Ordering::Acquire) {
                return Err(Error::ShuttingDown);
            }
            let started = Instant::now();
            let edit = self.take_unapplied(&self.unapplied_merge, || self.replica.store().compact(&self.catalog(), table, full))?;
            let Some(edit) = edit else { return Ok(()) };
            let (rows, bytes) = written(&edit);
            if self.propose_edit(edit, &self.unapplied_merge)? == Outcome::Ignored {
                tracing::debug!(group = self.replica.name(), "a compaction came too late: an input is gone");
            }
            let metrics = self.replica.metrics();
            metrics.compaction_seconds.observe(started.elapsed().as_secs_f64());
            metrics.compaction_rows.inc_by(rows);
            metrics.compaction_bytes.inc_by(bytes);
        }
    }

    /// What the metadata group has decided and this shard may not have been told: whoever decided it stopped before, or told
    /// the shard that this one was split from.
    fn tell_what_was_decided(&self, state: &State) -> Result<()> {
        self.drop_unknown_tables(&state.catalog)?;
        let here = self.replica.store().cutoffs();
        for (&database, &cutoff) in state.cutoffs.iter().filter(|(database, cutoff)| here.get(database).is_none_or(|here| here < cutoff)) {
            self.propose(Entry::Retention { database, cutoff })?;
        }
        Ok(())
    }

    /// Rows of tables that the catalog has forgotten.
    fn drop_unknown_tables(&self, catalog: &Catalog) -> Result<()> {
        let mut unknown: Vec<TableId> = self.replica.store().files().iter().map(|f| f.table).collect();
        unknown.sort_unstable();
        unknown.dedup();
        unknown.retain(|&table| catalog.has_forgotten(table));
        for table in unknown {
            self.propose(Entry::DropTable { table })?;
        }
        Ok(())
    }

    fn catalog(&self) -> Arc<Catalog> {
        self.metadata.state().catalog.clone()
    }

    /// The files that were made before and that no edit has named yet, or new ones: they are not made, and kept, twice.
    fn take_unapplied(
        &self,
        unapplied: &Unapplied,
        make: impl FnOnce() -> storage::Result<Option<ManifestEdit>>,
    ) -> storage::Result<Option<ManifestEdit>> {
        // What became of its rows meanwhile may have had the files removed.
        match unapplied.lock().take().filter(|edit| self.replica.store().missing_files(edit.files()).is_empty()) {
            Some(edit) => Ok(Some(edit)),
            None => make(),
        }
    }

    /// Spreads the files of an edit and proposes it. Where that fails the edit is kept for the next try, and its files with it:
    /// they would pile up if each try made new ones. If it was written after all, the next one has no effect.
    fn propose_edit(&self, edit: ManifestEdit, unapplied: &Unapplied) -> Result<Outcome> {
        let spread = self.runtime.block_on(files::spread(&self.replica, self.peers.as_ref(), edit.files()));
        let proposed = spread.and_then(|()| self.propose(Entry::Manifest(edit.clone())));
        if proposed.is_err() {
            *unapplied.lock() = Some(edit);
        }
        proposed
    }

    fn propose(&self, entry: Entry) -> Result<Outcome> {
        self.runtime.block_on(self.replica.propose(entry))
    }

    /// Takes note of a failure; how long to wait before it is tried again.
    fn failed(&self, what: &'static str, error: &Error, before: Option<Duration>) -> Duration {
        if matches!(error, Error::ShuttingDown) {
            return RETRY_FIRST;
        }
        match what {
            "flush" => self.replica.metrics().flush_failures.inc(),
            _ => self.replica.metrics().compaction_failures.inc(),
        };
        if error.kind() == ErrorKind::Broken {
            self.replica.health().stop(self.replica.name(), error.to_string());
            return RETRY_LONGEST;
        }
        let pause = before.map_or(RETRY_FIRST, |b| (b * 2).min(RETRY_LONGEST));
        tracing::warn!(group = self.replica.name(), %error, ?pause, "{what} failed and is tried again");
        pause
    }
}

/// Rows and bytes of the files that an edit brings.
fn written(edit: &ManifestEdit) -> (u64, u64) {
    edit.files().iter().fold((0, 0), |(rows, bytes), file| (rows + file.rows, bytes + file.bytes))
}

/// Waits for something to do; who asked to be told. `None`: end.
fn wait(asks: &Receiver<Ask>, stopping: &AtomicBool, pause: Duration) -> Option<Vec<(Option<TableId>, Done)>> {
    let first = match asks.recv_timeout(pause) {
        Ok(ask) => Some(ask),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => return None,
    };
    let mut told = Vec::new();
    for ask in first.into_iter().chain(asks.try_iter()) {
        match ask {
            Ask::Look => {}
            Ask::Now(table, done) => told.push((table, done)),
            Ask::Stop => return None,
        }
    }
    (!stopping.load(Ordering::Acquire)).then_some(told)
}

/// Tells all who asked.
fn tell(asked: Vec<(Option<TableId>, Done)>, result: &Result<()>) {
    for (_, done) in asked {
        let _ = done.send(match result {
            Ok(()) => Ok(()),
            Err(error) => Err(error.again()),
        });
    }
}
