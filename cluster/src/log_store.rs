//! Raft's log kept in `storage::wal`.
//!
//! `append` runs on the group's single raft task: it copies into the log's files and returns; openraft hears that the
//! entries are durable from the disk's sync thread, never before. A vote is synced before it is answered. The newest
//! entries stay at hand as they were proposed, so that applying them neither reads the disk nor decodes.
//!
//! A failed sync stops the whole process (DESIGN 3). A log that has no room is found out before a proposal is made
//! (`room.rs`), because openraft takes any error from here as the end of the group.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::Stream;
use http::HeaderValue;
use model::{LogIndex, ReplicaId, Term, Timestamp};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use storage::entry::Entry;
use storage::wal::{NewRecord, Wal, WalOptions, WalReader, WalRoom};
use tracing::Span;

use crate::group::{Content, GroupKind, LogId, RaftEntry, Types, Vote, log_id};
use crate::health::{GroupHealth, Health};
use crate::log_record::{HardState, decode_entry, encode_payload};
use crate::{Error, Result, trace};

/// Bytes of entries that one read gives at once: what a follower's request or a replay holds in memory.
const READ_BYTES: usize = 4 << 20;
/// Bytes of the newest entries kept at hand. More than may be in flight at once, so that apply finds them.
const RECENT_BYTES: usize = 8 << 20;
/// Entries among which the last write is looked for: elections and upkeep make fewer between two writes.
const NEWEST_ENTRIES: u64 = 64;

/// A group's log; clones share it.
#[derive(Clone)]
pub(crate) struct LogStore {
    log: Arc<Log>,
}

/// The log as the node's other parts see it.
pub(crate) struct Log {
    kind: GroupKind,
    name: String,
    wal: Mutex<Wal>,
    reader: WalReader,
    room: WalRoom,
    recent: Mutex<Recent>,
    hard: Mutex<HardState>,
    sole_voter: AtomicBool,
    node: u64,
    replica: ReplicaId,
    health: Arc<GroupHealth>,
    node_health: Arc<Health>,
}

/// Who is told when a log fails.
pub(crate) struct ToldOfFailures {
    pub(crate) group: Arc<GroupHealth>,
    pub(crate) node: Arc<Health>,
}

/// The newest entries and where the log ends.
#[derive(Default)]
struct Recent {
    entries: VecDeque<RaftEntry>,
    bytes: usize,
    last: Option<LogId>,
}

impl Recent {
    fn push(&mut self, entry: RaftEntry) {
        if let Some(last) = &self.last {
            assert_eq!(entry.log_id.index, last.index + 1, "the log has no gaps");
        }
        self.last = Some(entry.log_id);
        self.bytes += bytes_of(&entry);
        self.entries.push_back(entry);
        while self.bytes > RECENT_BYTES
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= bytes_of(&oldest);
        }
    }

    /// Entries from `start` on to before `end`, if the first of them is at hand.
    fn get(&self, start: u64, end: u64, max_bytes: usize) -> Option<Vec<RaftEntry>> {
        let first = self.entries.front()?.log_id.index;
        let skip = start.checked_sub(first)?;
        let mut bytes = 0;
        let mut found = Vec::new();
        for entry in self.entries.iter().skip(skip as usize).take_while(|e| e.log_id.index < end) {
            bytes += bytes_of(entry);
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Some(found)
    }

    /// Lets go of entries before `index`. That may be beyond the end (a snapshot was installed): what comes then does not
    /// follow on what was here.
    fn forget_before(&mut self, index: u64) {
        while let Some(oldest) = self.entries.front()
            && oldest.log_id.index < index
        {
            self.bytes -= bytes_of(oldest);
            self.entries.pop_front();
        }
    }

    fn forget_from(&mut self, from: u64) {
        while let Some(newest) = self.entries.back()
            && newest.log_id.index >= from
        {
            self.bytes -= bytes_of(newest);
            self.entries.pop_back();
        }
    }
}

pub(crate) fn bytes_of(entry: &RaftEntry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.bytes().len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

/// The one further on in the log: a tail that a newer term has replaced may have the higher term and end before it.
fn later(a: Option<LogId>, b: Option<LogId>) -> Option<LogId> {
    [a, b].into_iter().flatten().max_by_key(|id| id.index)
}

/// The trace that an entry is told under.
pub(crate) fn trace_of(entry: &RaftEntry) -> Option<&HeaderValue> {
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.trace(),
        EntryPayload::Blank | EntryPayload::Membership(_) => None,
    }
}

impl LogStore {
    /// Opens the log, or founds it. `me` are this node and its replica of the group.
    pub(crate) fn open(kind: GroupKind, name: &str, options: WalOptions, me: (u64, ReplicaId), told: ToldOfFailures) -> Result<LogStore> {
        let dir = options.dir.clone();
        let corrupt = |what: String| Error::Storage(storage::Error::Corrupt { path: dir.clone(), at: 0, what });
        let (mut wal, opened) = Wal::open(options)?;
        let hard = match &opened.hard_state {
            None => HardState::default(),
            Some(bytes) => HardState::decode(bytes).map_err(|e| corrupt(e.to_string()))?,
        };
        // Whole segments go at a purge, so the log may hold older records than it was asked to; never fewer.
        if let Some((_, first)) = opened.first {
            let next = hard.purged.as_ref().map_or(0, |id| id.index + 1);
            if first.0 > next {
                return Err(corrupt(format!("the log begins at entry {first}, but only entries before {next} were purged")));
            }
        }
        if opened.cut_bytes > 0 {
            tracing::warn!(dir = %dir.display(), bytes = opened.cut_bytes, "cut an unsynced tail off the log");
        }
        // A purge that a crash cut off is done now: beyond the end it empties the log, and the next entry may follow.
        if let Some(purged) = &hard.purged {
            wal.purge(LogIndex(purged.index + 1))?;
        }
        let last = later(opened.last.map(|(term, index)| log_id(term, index)), hard.purged);
        let (reader, room) = (wal.reader(), wal.room());
        let recent = Mutex::new(Recent { last, ..Recent::default() });
        let log = Log {
            kind,
            name: name.to_owned(),
            wal: Mutex::new(wal),
            reader,
            room,
            recent,
            hard: Mutex::new(hard),
            sole_voter: AtomicBool::new(false),
            node: me.0,
            replica: me.1,
            health: told.group,
            node_health: told.node,
        };
        Ok(LogStore { log: Arc::new(log) })
    }

    /// The shared part.
    pub(crate) fn log(&self) -> Arc<Log> {
        self.log.clone()
    }
}

impl Log {
    /// Bytes of segments that hold records.
    pub(crate) fn bytes(&self) -> u64 {
        self.wal.lock().bytes()
    }

    /// The last entry known durable.
    pub(crate) fn durable(&self) -> Option<LogIndex> {
        self.wal.lock().durable()
    }

    /// The last entry that the log has let go of.
    pub(crate) fn purged(&self) -> Option<u64> {
        self.hard.lock().purged.as_ref().map(|id| id.index)
    }

    /// The last entry.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.recent.lock().last
    }

    /// When the last write arrived, if one of the newest entries of the log is a write.
    pub(crate) fn last_arrival(&self) -> Option<Timestamp> {
        let last = self.last()?.index;
        let first = self.hard.lock().purged.as_ref().map_or(0, |id| id.index + 1);
        (first.max(last.saturating_sub(NEWEST_ENTRIES))..=last).rev().find_map(|index| {
            let entries = self.read(index, index + 1, READ_BYTES).ok()?;
            match &entries.first()?.payload {
                EntryPayload::Normal(proposal) => match proposal.content() {
                    Content::Shard(Entry::Write(parts)) => parts.iter().map(|part| part.arrived).max(),
                    _ => None,
                },
                _ => None,
            }
        })
    }

    /// Makes sure that entries of `bytes` in all can be appended; an error now instead of the end of the group later.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<()> {
        Ok(self.room.reserve(bytes as u64)?)
    }

    /// Marks the end of a log that is fully synced, for a clean end: a rotten last record is then known as damage.
    pub(crate) fn mark(&self) {
        if let Err(error) = self.wal.lock().mark() {
            tracing::warn!(group = self.name, %error, "could not mark the end of the log");
        }
    }

    /// Whether this node is the group's only voter by the newest membership in its log: set before that entry can
    /// have any effect, so nobody else can have acknowledged anything.
    pub(crate) fn sole_voter(&self) -> bool {
        self.sole_voter.load(Ordering::Acquire)
    }

    /// Takes note of the membership in force.
    pub(crate) fn note_membership(&self, membership: &crate::group::Membership) {
        let sole = membership.get_joint_config().iter().all(|voters| voters.len() == 1 && voters.contains(&self.node));
        self.sole_voter.store(sole && !membership.get_joint_config().is_empty() && self.is_named(membership), Ordering::Release);
    }

    /// Whether it is this replica that a membership names, and not one that this node had before on another folder. A replica
    /// that learns the log from its beginning reads memberships of long ago on its way.
    pub(crate) fn is_named(&self, membership: &crate::group::Membership) -> bool {
        membership.get_node(&self.node).is_some_and(|member| member.replica == self.replica)
    }

    fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<RaftEntry>> {
        if start >= end {
            return Ok(Vec::new());
        }
        {
            let mut recent = self.recent.lock();
            // A sole voter reads entries to apply them, in order: what came before is applied. Given back this soon, its memory
            // is still in the cache when the next requests get it. Whoever else may ask finds it on the disk.
            if self.sole_voter() {
                recent.forget_before(start);
            }
            if let Some(found) = recent.get(start, end, max_bytes) {
                return Ok(found);
            }
        }
        let records = self.reader.read(LogIndex(start), LogIndex(end), max_bytes).map_err(|e| self.failed(e))?;
        records.into_iter().map(|r| decode_entry(self.kind, r)).collect()
    }

    /// An error of the log as openraft takes it: the group's end, and the process's if the disk's state is unknown.
    fn failed(&self, error: storage::Error) -> io::Error {
        if matches!(error, storage::Error::SyncFailed { .. }) {
            self.node_health.stop(error.to_string());
        }
        self.health.stop(&self.name, error.to_string());
        io::Error::other(error)
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<RaftEntry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (mut start, end) = bounds(&range);
        let mut found = Vec::new();
        loop {
            let more = self.log.read(start, end, READ_BYTES)?;
            let Some(last) = more.last() else { return Ok(found) };
            start = last.log_id.index + 1;
            found.extend(more);
        }
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<RaftEntry>> {
        self.log.read(start, end, READ_BYTES)
    }

    /// Replaying a log of gigabytes holds a few megabytes at a time.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<RaftEntry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let log = self.log.clone();
        let read = (VecDeque::new(), start);
        futures::stream::unfold(Some((log, read)), move |state| {
            let step = state.and_then(|(log, (mut ready, next))| {
                if ready.is_empty() && next < end {
                    match log.read(next, end, READ_BYTES) {
                        Ok(more) if more.is_empty() => {
                            let what = format!("entry {next} of the log is missing");
                            return Some((Err(io::Error::new(io::ErrorKind::InvalidData, what)), None));
                        }
                        Ok(more) => ready.extend(more),
                        Err(error) => return Some((Err(error), None)),
                    }
                }
                let entry: RaftEntry = ready.pop_front()?;
                let next = entry.log_id.index + 1;
                // `next` names the entry after those in `ready` only once `ready` is empty: until then it is not read.
                Some((Ok(entry), Some((log, (ready, next)))))
            });
            std::future::ready(step)
        })
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.log.hard.lock().vote)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        Ok(LogState { last_purged_log_id: self.log.hard.lock().purged, last_log_id: self.log.recent.lock().last })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let mut hard = self.log.hard.lock();
        let new = HardState { vote: Some(*vote), purged: hard.purged };
        self.log.wal.lock().save_hard_state(&new.encode()).map_err(|e| self.log.failed(e))?;
        *hard = new;
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<RaftEntry> = entries.into_iter().collect();
        let payloads: Vec<(u8, Bytes)> = entries.iter().map(|e| encode_payload(&e.payload)).collect();
        let records: Vec<NewRecord<'_>> = entries
            .iter()
            .zip(&payloads)
            .map(|(entry, (kind, payload))| NewRecord {
                kind: *kind,
                term: Term(entry.log_id.leader_id.term),
                index: LogIndex(entry.log_id.index),
                payload,
            })
            .collect();
        let traced = entries.iter().find_map(|entry| Some((trace_of(entry)?, entry.log_id.index)));
        let span = traced.map_or_else(Span::none, |(trace, index)| trace::log_sync(trace, &self.log.name, index));
        let mut wal = self.log.wal.lock();
        let appended = wal.append(&records).map_err(|e| self.log.failed(e))?;
        {
            let mut recent = self.log.recent.lock();
            for entry in entries {
                if let EntryPayload::Membership(membership) = &entry.payload {
                    self.log.note_membership(membership);
                }
                recent.push(entry);
            }
        }
        let health = self.log.node_health.clone();
        wal.sync_then(
            appended,
            Box::new(move |synced| {
                drop(span);
                match synced {
                    Ok(_) => callback.io_completed(Ok(())),
                    Err(error) => {
                        health.stop(error.to_string());
                        callback.io_completed(Err(io::Error::other(error.to_string())));
                    }
                }
            }),
        );
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.as_ref().map_or(0, |id| id.index + 1);
        self.log.wal.lock().truncate(LogIndex(from)).map_err(|e| self.log.failed(e))?;
        // A membership may have gone with the tail; until the next one nobody reads without asking the others.
        self.log.sole_voter.store(false, Ordering::Release);
        let mut recent = self.log.recent.lock();
        recent.forget_from(from);
        recent.last = last;
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let mut hard = self.log.hard.lock();
        let new = HardState { vote: hard.vote, purged: Some(upto) };
        let mut wal = self.log.wal.lock();
        // The place first: after a crash between the two, the log holds more than it says, never less.
        wal.save_hard_state(&new.encode()).map_err(|e| self.log.failed(e))?;
        *hard = new;
        wal.purge(LogIndex(upto.index + 1)).map_err(|e| self.log.failed(e))?;
        let mut recent = self.log.recent.lock();
        recent.forget_before(upto.index + 1);
        recent.last = later(recent.last, Some(upto));
        Ok(())
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(&s) => s,
        Bound::Excluded(&s) => s + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&e) => e.saturating_add(1),
        Bound::Excluded(&e) => e,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_at_hand_has_no_gap_after_a_purge_beyond_the_end() {
        let mut recent = Recent::default();
        let entry = |index| RaftEntry { log_id: log_id(Term(1), LogIndex(index)), payload: EntryPayload::Blank };
        (0..2).for_each(|index| recent.push(entry(index)));
        recent.forget_before(13);
        recent.last = Some(log_id(Term(1), LogIndex(12)));
        (13..15).for_each(|index| recent.push(entry(index)));
        let found = recent.get(13, 15, 1_000).expect("they are at hand");
        assert_eq!(found.iter().map(|e| e.log_id.index).collect::<Vec<_>>(), [13, 14]);
        assert!(recent.get(1, 15, 1_000).is_none(), "what is not at hand is read from the disk");
    }
}
