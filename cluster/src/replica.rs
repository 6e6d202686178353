//! This node's member of one shard's group: queue, propose, answer.
//!
//! Writes that wait together become one entry of the log, of at most [`MAX_ENTRY_BYTES`]; while it is synced the next
//! one forms. There is no timer: the first that waits forms the group, as soon as there is a place for it and every task
//! that is ready has had its turn. So an idle shard proposes at once, a busy one in larger groups. Each writer gets its own
//! outcome, from the task that applied it. A part that does not fit an entry is cut by rows, always alike, so that a
//! retry of it is cut into the same pieces and each is answered with its first outcome.
//!
//! What waits is bounded in bytes; beyond the bound a write is refused at once and nothing of it is stored.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt;
use http::HeaderValue;
use model::{NodeId, PointBatch, ReplicaId, ShardId, Term};
use openraft::Raft;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::ClientWriteResult;
use parking_lot::Mutex;
use storage::entry::{Entry, MAX_ENTRY_BYTES, Outcome, WritePart};
use storage::wal::record::MAX_PAYLOAD_BYTES;
use storage::{Shard, View};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::group::{self, Answer, LEASE, Proposal, Reply, Types};
use crate::health::{GroupHealth, Health};
use crate::log_store::Log;
use crate::metrics::Metrics;
use crate::node::{Applied, Clock};
use crate::room::Room;
use crate::state_machine::{Progress, ShardMachine};
use crate::together::{Waits, take_together};
use crate::{Error, Result, trace};

/// Groups of one shard on their way at once: one syncs while the other is copied and applied.
const GROUPS_IN_FLIGHT: usize = 2;
/// What an entry and a part of it add to their batches, at most.
pub(crate) const PART_OVERHEAD_BYTES: usize = 128;
/// Bytes of batches in one part: it fits an entry alone.
const MAX_PART_BYTES: usize = MAX_ENTRY_BYTES - 2 * PART_OVERHEAD_BYTES;
/// Room that the log keeps for upkeep and for openraft's own entries when writes find none.
const LOG_SLACK_BYTES: usize = 1 << 20;
/// Memtables may hold this many times the bytes at which one is sealed; then flushes are behind and writes wait.
const MEMTABLES: u64 = 4;
/// How long a write waits for a flush before it is refused.
const MEMORY_WAIT: Duration = Duration::from_secs(2);

/// How a replica is put together.
pub(crate) struct ReplicaParts {
    pub(crate) shard: ShardId,
    pub(crate) name: String,
    pub(crate) store: Arc<Shard>,
    pub(crate) raft: Raft<Types, ShardMachine>,
    pub(crate) log: Arc<Log>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) health: Arc<GroupHealth>,
    pub(crate) node_health: Arc<Health>,
    pub(crate) room: Arc<Room>,
    pub(crate) runtime: Handle,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    pub(crate) max_waiting_bytes: usize,
    pub(crate) flush_bytes: usize,
}

/// One member of one shard's group.
pub(crate) struct Replica {
    parts: ReplicaParts,
    queue: Mutex<Queue>,
    /// Tells the writer that forms the next group that there is a place for it.
    place: Notify,
    settled: Notify,
    lacks_files: AtomicBool,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Of what waits and what is in flight.
    bytes: usize,
    /// Of what nobody waited for any more when its turn came, and which is not yet taken off the metric.
    abandoned: usize,
    groups: usize,
    /// Whether a group was taken out and is not yet in raft's queue: the next must not get there before it.
    is_proposing: bool,
    /// Whether one of the writers that wait will form the next group.
    is_forming: bool,
    closed: bool,
}

type Answered = oneshot::Receiver<Result<Applied>>;

struct Waiting {
    part: WritePart,
    bytes: usize,
    since: Instant,
    trace: Option<HeaderValue>,
    answer: oneshot::Sender<Result<Applied>>,
}

impl Replica {
    pub(crate) fn new(parts: ReplicaParts) -> Arc<Replica> {
        Arc::new(Replica {
            parts,
            queue: Mutex::default(),
            place: Notify::new(),
            settled: Notify::new(),
            lacks_files: AtomicBool::new(false),
        })
    }

    pub(crate) fn shard(&self) -> ShardId {
        self.parts.shard
    }

    pub(crate) fn name(&self) -> &str {
        &self.parts.name
    }

    pub(crate) fn store(&self) -> &Arc<Shard> {
        &self.parts.store
    }

    pub(crate) fn log(&self) -> &Log {
        &self.parts.log
    }

    pub(crate) fn raft(&self) -> &Raft<Types, ShardMachine> {
        &self.parts.raft
    }

    pub(crate) fn health(&self) -> &GroupHealth {
        &self.parts.health
    }

    pub(crate) fn room(&self) -> &Room {
        &self.parts.room
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.parts.metrics
    }

    /// Why it takes no part any more, if so.
    pub(crate) fn stopped(&self) -> Option<String> {
        self.parts.health.stopped().map(str::to_owned).or_else(|| self.parts.node_health.stopped())
    }

    pub(crate) fn refuse_if_stopped(&self) -> Result<()> {
        match self.stopped() {
            Some(why) => Err(Error::Stopped { what: self.parts.name.clone(), why }),
            None => Ok(()),
        }
    }

    /// Has a part kept: synced by a majority, committed, applied.
    pub(crate) async fn write(self: &Arc<Replica>, part: WritePart) -> Result<Applied> {
        self.refuse_if_stopped()?;
        self.wait_for_memory().await?;
        let bytes = bytes_of(&part);
        if bytes <= MAX_PART_BYTES {
            let (answers, forming) = self.enqueue([(part, bytes)])?;
            form_in_time(forming).await;
            return self.answer(answers.into_iter().next().expect("one part, one answer")).await;
        }
        // All pieces or none enter the queue.
        let pieces = cut(part).into_iter().map(|piece| {
            let bytes = bytes_of(&piece);
            (piece, bytes)
        });
        let (answers, forming) = self.enqueue(pieces)?;
        form_in_time(forming).await;
        let mut outcome = Outcome::Stored { rows: 0 };
        for answer in answers {
            outcome = join(outcome, self.answer(answer).await?.outcome);
        }
        Ok(Applied { outcome })
    }

    async fn answer(&self, answer: oneshot::Receiver<Result<Applied>>) -> Result<Applied> {
        answer.await.unwrap_or_else(|_| {
            let why = self.stopped().unwrap_or_else(|| "its group stopped before it answered".to_owned());
            Err(Error::Unknown { shard: self.parts.shard, why })
        })
    }

    /// Waits a little where flushes are behind, so that a burst is slowed down before it is refused.
    async fn wait_for_memory(&self) -> Result<()> {
        self.parts.room.check()?;
        let limit = MEMTABLES * self.parts.flush_bytes as u64;
        let full = || self.parts.progress.memtable_bytes.load(Ordering::Relaxed) > limit;
        if !full() {
            return Ok(());
        }
        let freed = async {
            loop {
                let freed = self.parts.progress.freed.notified();
                if !full() {
                    return;
                }
                freed.await;
            }
        };
        // Where flushes find no room, waiting does not help.
        self.parts.room.refuse_if_flushes_fail()?;
        if tokio::time::timeout(MEMORY_WAIT, freed).await.is_ok() {
            return Ok(());
        }
        self.parts.metrics.refused.inc();
        self.parts.room.refuse_if_flushes_fail()?;
        Err(Error::Overloaded { what: format!("the memory of {} (points not yet in files)", self.parts.name), limit })
    }

    /// Puts parts into the queue. The first to come after a group was formed has to form the next one.
    fn enqueue(self: &Arc<Replica>, parts: impl IntoIterator<Item = (WritePart, usize)>) -> Result<(Vec<Answered>, Option<Forming>)> {
        let (since, trace) = (Instant::now(), trace::current());
        let (mut waiting, mut answers, mut total) = (Vec::with_capacity(1), Vec::with_capacity(1), 0);
        let arrived = (self.parts.clock)();
        for (part, bytes) in parts {
            // The leader's clock, not that of whoever routes: of those there are many, and one is always wrong.
            let part = WritePart { arrived, ..part };
            let (answer, receiver) = oneshot::channel();
            waiting.push(Waiting { part, bytes, since, trace: trace.clone(), answer });
            answers.push(receiver);
            total += bytes;
        }
        let is_first = {
            let mut queue = self.queue.lock();
            if queue.closed {
                return Err(Error::ShuttingDown);
            }
            // One request may be larger than the whole bound: it is let in when nothing else waits.
            if queue.bytes > 0 && queue.bytes + total > self.parts.max_waiting_bytes {
                self.parts.metrics.refused.inc();
                let what = format!("the queue of {}", self.parts.name);
                return Err(Error::Overloaded { what, limit: self.parts.max_waiting_bytes as u64 });
            }
            queue.bytes += total;
            queue.waiting.extend(waiting);
            self.parts.metrics.waiting_bytes.inc_by(total as i64);
            !std::mem::replace(&mut queue.is_forming, true)
        };
        Ok((answers, is_first.then(|| Forming { replica: self.clone() })))
    }

    /// Proposes what may be proposed now, on the task that found that it may; one group after the other, in the order in which
    /// they were taken out: of two lines of one request the later one wins.
    fn propose_waiting(self: &Arc<Replica>) {
        while let Some(group) = self.next_group() {
            let Some(sending) = self.propose_group(group) else {
                self.queue.lock().is_proposing = false;
                continue;
            };
            // openraft's queue is full. The caller may be cancelled while it waits, so it is not the caller who waits.
            let replica = self.clone();
            self.parts.runtime.spawn(async move {
                sending.await;
                replica.queue.lock().is_proposing = false;
                replica.propose_waiting();
            });
            return;
        }
    }

    fn next_group(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.queue.lock();
        let group = if queue.is_forming { None } else { queue.form_group() };
        let abandoned = std::mem::take(&mut queue.abandoned);
        if abandoned > 0 {
            self.parts.metrics.waiting_bytes.dec_by(abandoned as i64);
            self.settled.notify_waiters();
        }
        group
    }

    /// Proposes what waited together; what is left to do if openraft did not take it at once.
    fn propose_group(self: &Arc<Replica>, mut waiting: Vec<Waiting>) -> Option<impl Future<Output = ()> + Send + use<>> {
        let trace = waiting.iter_mut().find_map(|w| w.trace.take());
        let bytes = waiting.iter().map(|w| w.bytes).sum();
        let oldest = waiting.first().map_or_else(Instant::now, |w| w.since);
        let (parts, answers): (Vec<WritePart>, Vec<_>) = waiting.into_iter().map(|w| (w.part, w.answer)).unzip();
        self.parts.metrics.group_parts.observe(parts.len() as f64);
        let mut group = InFlight { replica: self.clone(), bytes, answers, oldest };
        if let Err(error) = self.parts.log.reserve(GROUPS_IN_FLIGHT * (MAX_ENTRY_BYTES + PART_OVERHEAD_BYTES) + bytes + LOG_SLACK_BYTES) {
            group.refuse(&error);
            return None;
        }
        let entry = Entry::Write(parts);
        let mut encoded = Vec::with_capacity(bytes + PART_OVERHEAD_BYTES);
        entry.encode(&mut encoded);
        self.parts.metrics.group_bytes.observe(encoded.len() as f64);
        let proposal = Proposal::shard(encoded.into(), entry).traced(trace);
        let raft = self.parts.raft.clone();
        let reply = Reply::new(move |result: ClientWriteResult<Types>| group.settle(result));
        // Unconstrained: a caller that has used up its share of its thread must not hold up the others of the group.
        let mut send = Box::pin(tokio::task::unconstrained(async move {
            // An error is the group's end; it reaches the writers by the reply, which openraft drops.
            let _ = raft.client_write_ff(proposal, Some(reply)).await;
        }));
        (&mut send).now_or_never().is_none().then_some(send)
    }

    /// Proposes an entry of the shard's own upkeep and waits for its outcome.
    pub(crate) async fn propose(&self, entry: Entry) -> Result<Outcome> {
        self.refuse_if_stopped()?;
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        if bytes.len() > MAX_PAYLOAD_BYTES {
            let what = format!("an entry of {} bytes for the log of {}", bytes.len(), self.parts.name);
            return Err(Error::Overloaded { what, limit: MAX_PAYLOAD_BYTES as u64 });
        }
        self.parts.log.reserve(bytes.len() + PART_OVERHEAD_BYTES)?;
        let stopped = |why: String| Error::Stopped { what: self.parts.name.clone(), why };
        match self.parts.raft.client_write(Proposal::shard(bytes.into(), entry)).await {
            Ok(response) => match response.data {
                Answer::Shard(outcomes) => Ok(outcomes.into_iter().next().expect("one entry, one outcome")),
                other => unreachable!("a shard answers its entries with outcomes, not {other:?}"),
            },
            Err(RaftError::APIError(error)) => Err(self.not_written(&error)),
            Err(RaftError::Fatal(error)) => Err(stopped(self.stopped().unwrap_or_else(|| error.to_string()))),
        }
    }

    fn not_written(&self, error: &ClientWriteError<Types>) -> Error {
        match error {
            ClientWriteError::ForwardToLeader(to) => Error::NotHere { shard: self.parts.shard, leader: to.leader_id.map(NodeId) },
            // Appended here, then perhaps replaced by another leader's entry, perhaps not.
            other => Error::Unknown { shard: self.parts.shard, why: other.to_string() },
        }
    }

    /// Whether this member can take so many bytes of a leader's entries: an error now, and the leader tries again in a
    /// moment, instead of the group's end here. One that cannot get files either has no end to what it holds in memory.
    pub(crate) fn may_follow(&self, bytes: usize) -> Result<()> {
        self.parts.log.reserve(bytes + LOG_SLACK_BYTES)?;
        let limit = 2 * MEMTABLES * self.parts.flush_bytes as u64;
        if self.lacks_files.load(Ordering::Relaxed) && self.parts.progress.memtable_bytes.load(Ordering::Relaxed) > limit {
            return Err(Error::Overloaded { what: format!("the memory of {} (points whose files it lacks)", self.parts.name), limit });
        }
        Ok(())
    }

    /// Takes note whether there are files that this replica could not get when it last tried.
    pub(crate) fn note_lack(&self, lacks_files: bool) {
        self.lacks_files.store(lacks_files, Ordering::Relaxed);
    }

    /// Who leads the group, as far as this member knows; itself only while it may.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        self.parts.raft.metrics().borrow_watched().current_leader.map(NodeId)
    }

    /// How old the rows of this member are as the leader's, if it takes itself for that.
    pub(crate) fn age_as_leader(&self) -> Option<Duration> {
        let age = group::age_as_leader(&self.parts.raft, &self.parts.log)?;
        // Within the lease no other can have been elected.
        Some(if age < LEASE { Duration::ZERO } else { age })
    }

    /// The error of one who asked this member for what only a leader does.
    pub(crate) fn not_here(&self) -> Error {
        let me = NodeId(*self.parts.raft.node_id());
        Error::NotHere { shard: self.parts.shard, leader: self.leader().filter(|leader| *leader != me) }
    }

    /// The members that vote, if that is agreed on for good.
    pub(crate) fn agreed_voters(&self) -> Vec<NodeId> {
        let metrics = self.parts.raft.metrics().borrow_watched().clone();
        let membership = &metrics.membership_config;
        match *membership.log_id() <= metrics.last_applied && membership.membership().get_joint_config().len() == 1 {
            true => membership.voter_ids().map(NodeId).collect(),
            false => Vec::new(),
        }
    }

    /// All members by the newest membership in the log.
    pub(crate) fn members(&self) -> Vec<NodeId> {
        group::membership(&self.parts.raft).nodes().map(|(id, _)| NodeId(*id)).collect()
    }

    /// Whether that membership has this replica, by its number.
    pub(crate) fn is_named(&self) -> bool {
        self.parts.log.is_named(&group::membership(&self.parts.raft))
    }

    /// Whether others may count on its vote: the newest membership names it, or there is none yet and it is the replica that the
    /// group is founded with. One that came in the place of a lost one would vote against what that one has acknowledged.
    pub(crate) fn may_vote(&self, founding: ReplicaId) -> bool {
        let membership = group::membership(&self.parts.raft);
        match membership.nodes().next() {
            Some(_) => self.parts.log.is_named(&membership),
            None => self.parts.store.replica() == founding,
        }
    }

    /// The term that this member is in.
    pub(crate) fn term(&self) -> Term {
        Term(self.parts.raft.metrics().borrow_watched().current_term)
    }

    /// What the shard holds now, without asking whether that is the newest: see `read_point.rs`.
    pub(crate) fn view(&self) -> View {
        self.parts.store.view()
    }

    /// Takes no more writes and waits for those that it has taken.
    pub(crate) async fn drain(&self) {
        self.queue.lock().closed = true;
        loop {
            let settled = self.settled.notified();
            {
                let queue = self.queue.lock();
                if queue.groups == 0 && queue.waiting.is_empty() {
                    return;
                }
            }
            settled.await;
        }
    }
}

impl Waits for Waiting {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_wanted(&self) -> bool {
        !self.answer.is_closed()
    }
}

impl Queue {
    /// What may be proposed now, and must be before the next: nothing while enough is in flight.
    fn form_group(&mut self) -> Option<Vec<Waiting>> {
        if self.groups >= GROUPS_IN_FLIGHT || self.is_proposing {
            return None;
        }
        let (group, abandoned) = take_together(&mut self.waiting, MAX_PART_BYTES);
        self.bytes -= abandoned;
        self.abandoned += abandoned;
        if group.is_empty() {
            return None;
        }
        self.groups += 1;
        self.is_proposing = true;
        Some(group)
    }
}

/// A group that was proposed. However it ends, its bytes and its place come free; who has no answer then learns that
/// the outcome is unknown, because the sender is gone.
struct InFlight {
    replica: Arc<Replica>,
    bytes: usize,
    answers: Vec<oneshot::Sender<Result<Applied>>>,
    oldest: Instant,
}

impl InFlight {
    /// Nothing of it was proposed, and each writer is told why.
    fn refuse(mut self, error: &Error) {
        for answer in std::mem::take(&mut self.answers) {
            let _ = answer.send(Err(error.again()));
        }
    }

    fn settle(&mut self, result: ClientWriteResult<Types>) {
        let answers = std::mem::take(&mut self.answers);
        self.replica.parts.metrics.propose_seconds.observe(self.oldest.elapsed().as_secs_f64());
        match result {
            Ok(response) => match response.data {
                Answer::Shard(outcomes) => {
                    assert_eq!(outcomes.len(), answers.len(), "one outcome per part");
                    for (answer, outcome) in answers.into_iter().zip(outcomes) {
                        // A writer that went away does not need its answer.
                        let _ = answer.send(Ok(Applied { outcome }));
                    }
                }
                other => unreachable!("a shard answers its entries with outcomes, not {other:?}"),
            },
            Err(error) => {
                for answer in answers {
                    let _ = answer.send(Err(self.replica.not_written(&error)));
                }
            }
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let replica = &self.replica;
        if !self.answers.is_empty() {
            // openraft let go of it without a word: its core has ended.
            let why = replica.parts.raft.metrics().borrow_watched().running_state.as_ref().err().map(ToString::to_string);
            let why = why.unwrap_or_else(|| "its raft core has ended".to_owned());
            replica.parts.health.stop(&replica.parts.name, why);
        }
        replica.parts.metrics.waiting_bytes.dec_by(self.bytes as i64);
        let is_forming = {
            let mut queue = replica.queue.lock();
            queue.bytes -= self.bytes;
            queue.groups -= 1;
            if replica.stopped().is_some() {
                // Nothing of these was proposed; each is told so by its dropped sender.
                let left: Vec<Waiting> = queue.waiting.drain(..).collect();
                let bytes: usize = left.iter().map(|w| w.bytes).sum();
                queue.bytes -= bytes;
                replica.parts.metrics.waiting_bytes.dec_by(bytes as i64);
            }
            queue.is_forming
        };
        match is_forming {
            true => replica.place.notify_one(),
            false => replica.propose_waiting(),
        }
        replica.settled.notify_waiters();
    }
}

/// A writer's duty to form the next group. It is done when this is dropped, so a writer that goes away leaves nobody waiting.
struct Forming {
    replica: Arc<Replica>,
}

impl Drop for Forming {
    fn drop(&mut self) {
        self.replica.queue.lock().is_forming = false;
        self.replica.propose_waiting();
    }
}

/// Forms the next group when there is a place for it, and after the tasks of this thread that are ready now: they may be about
/// to bring writes of their own, and a group costs the same whether one waits in it or thirty.
async fn form_in_time(forming: Option<Forming>) {
    let Some(forming) = forming else { return };
    loop {
        let place = forming.replica.place.notified();
        if forming.replica.queue.lock().groups < GROUPS_IN_FLIGHT {
            break;
        }
        place.await;
    }
    tokio::task::yield_now().await;
}

/// Bytes that a part takes in an entry, at most.
pub(crate) fn bytes_of(part: &WritePart) -> usize {
    PART_OVERHEAD_BYTES + part.batches.iter().map(|b| b.encoded_len_bound() + 8).sum::<usize>()
}

/// Cuts a part into pieces that fit an entry each. The cut depends on the part alone. Each piece gets an origin made from the
/// part's, so that it is known again when it is repeated; and from the version of the range, because after a split
/// the same request is cut into other pieces.
fn cut(part: WritePart) -> Vec<WritePart> {
    let mut lists: Vec<Vec<PointBatch>> = Vec::new();
    let mut room = 0;
    let mut batches: VecDeque<PointBatch> = part.batches.into();
    while let Some(batch) = batches.pop_front() {
        let bytes = batch.encoded_len_bound() + 8;
        if bytes + PART_OVERHEAD_BYTES > MAX_PART_BYTES && batch.rows() > 1 {
            let middle = batch.rows() / 2;
            batches.push_front(batch.slice(middle, batch.rows()));
            batches.push_front(batch.slice(0, middle));
            continue;
        }
        if lists.is_empty() || room < bytes {
            lists.push(Vec::new());
            room = MAX_PART_BYTES - PART_OVERHEAD_BYTES;
        }
        room = room.saturating_sub(bytes);
        lists.last_mut().expect("just made").push(batch);
    }
    let mut origin = [0; 24];
    origin[..16].copy_from_slice(&part.origin.to_le_bytes());
    origin[16..].copy_from_slice(&part.range_version.0.to_le_bytes());
    let piece = |(i, batches): (usize, Vec<PointBatch>)| WritePart {
        origin: xxh3_128_with_seed(&origin, i as u64),
        sequence: part.sequence,
        arrived: part.arrived,
        range_version: part.range_version,
        retry_window: part.retry_window,
        batches,
    };
    lists.into_iter().enumerate().map(piece).collect()
}

/// The outcome of two pieces of one part.
fn join(a: Outcome, b: Outcome) -> Outcome {
    match (a, b) {
        (Outcome::Stored { rows: a }, Outcome::Stored { rows: b }) => Outcome::Stored { rows: a + b },
        (Outcome::Stored { .. }, other) | (other, _) => other,
    }
}

#[cfg(test)]
mod tests {
    use model::{Epoch, FieldColumn, SeriesKey, TableId, Timestamp, Values};
    use storage::entry::RetryWindow;

    use super::*;

    fn batch(table: u32, rows: usize) -> PointBatch {
        let mut batch = PointBatch::new(TableId(table), 1);
        let series = batch.push_series(SeriesKey::new([Some("phone-1")]).as_bytes());
        batch.row_series = vec![series; rows];
        batch.times = (0..rows as i64).collect();
        let values = Values::F64((0..rows).map(|i| i as f64).collect());
        batch.columns = vec![FieldColumn { id: model::ColumnId(1), values, valid: None }];
        batch
    }

    fn part(batches: Vec<PointBatch>) -> WritePart {
        WritePart { origin: 7, sequence: 3, arrived: Timestamp(0), range_version: Epoch(1), retry_window: RetryWindow::Recent, batches }
    }

    #[test]
    fn a_large_part_is_cut_into_pieces_that_fit_and_keep_every_row_in_order() {
        let whole = part(vec![batch(1, 100_000), batch(2, 10), batch(3, 70_000)]);
        let pieces = cut(whole.clone());
        assert!(pieces.len() > 2);
        let mut times: Vec<(TableId, i64)> = Vec::new();
        for piece in &pieces {
            assert!(bytes_of(piece) <= MAX_PART_BYTES);
            times.extend(piece.batches.iter().flat_map(|b| b.times.iter().map(|&t| (b.table, t))));
        }
        let all: Vec<(TableId, i64)> = whole.batches.iter().flat_map(|b| b.times.iter().map(|&t| (b.table, t))).collect();
        assert_eq!(times, all);
    }

    #[test]
    fn a_retry_is_cut_alike_and_each_piece_has_its_own_origin() {
        let pieces = cut(part(vec![batch(1, 200_000)]));
        assert_eq!(pieces, cut(part(vec![batch(1, 200_000)])));
        let after_a_split = cut(WritePart { range_version: Epoch(2), ..part(vec![batch(1, 200_000)]) });
        let mut origins: Vec<u128> = pieces.iter().chain(&after_a_split).map(|p| p.origin).chain([7]).collect();
        origins.sort_unstable();
        origins.dedup();
        assert_eq!(origins.len(), pieces.len() + after_a_split.len() + 1);
    }

    #[test]
    fn pieces_that_were_not_stored_speak_for_the_whole() {
        let stored = |rows| Outcome::Stored { rows };
        let wrong = Outcome::WrongRange { current: Epoch(2) };
        assert_eq!(join(stored(2), stored(3)), stored(5));
        assert_eq!(join(stored(2), wrong.clone()), wrong);
        assert_eq!(join(wrong.clone(), stored(1)), wrong);
    }
}
