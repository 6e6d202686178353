//! A shard's state machine for openraft: a committed entry goes to [`Shard::apply`], its outcomes go back.
//!
//! The snapshot is the state at the flushed index (DESIGN rule 5): what the manifest names, never what is only in
//! memory. Its files travel apart: they are here before it is installed (`files.rs`).
//!
//! An error while applying could differ between members: it stops this group, and the node's others go on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use model::{LogIndex, Term};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use prometheus_client::metrics::counter::Counter;
use storage::Shard;
use storage::entry::{Entry, Outcome};

use crate::Result;
use crate::group::{Answer, Content, LogId, RaftEntry, Snapshot, SnapshotMeta, StoredMembership, Types, log_id};
use crate::health::GroupHealth;
use crate::log_record::{decode_membership, encode_membership};

/// What the state machine tells the shard's other parts after each entry.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Bytes of memtables, those that are being flushed included.
    pub(crate) memtable_bytes: AtomicU64,
    /// Told when memtables have become fewer.
    pub(crate) freed: tokio::sync::Notify,
    /// Rows that were stored, of all shards.
    pub(crate) applied_rows: Counter,
    /// Wakes the thread that flushes.
    pub(crate) upkeep: std::sync::OnceLock<crossbeam::channel::Sender<crate::upkeep::Ask>>,
}

/// Applies a shard's entries in the log's order.
pub(crate) struct ShardMachine {
    name: String,
    shard: Arc<Shard>,
    applied: Option<LogId>,
    membership: StoredMembership,
    progress: Arc<Progress>,
    health: Arc<GroupHealth>,
}

impl ShardMachine {
    /// Takes the shard as it stands at its flushed index; the log is replayed over it.
    pub(crate) fn open(name: String, shard: Arc<Shard>, progress: Arc<Progress>, health: Arc<GroupHealth>) -> Result<ShardMachine> {
        let meta = flushed(&shard).map_err(|e| crate::Error::Stopped { what: name.clone(), why: e.to_string() })?;
        Ok(ShardMachine { name, shard, applied: meta.last_log_id, membership: meta.last_membership, progress, health })
    }

    fn apply_one(&mut self, entry: &RaftEntry) -> io::Result<Answer> {
        let (term, index) = (Term(entry.log_id.leader_id.term), LogIndex(entry.log_id.index));
        let answer = match &entry.payload {
            EntryPayload::Normal(proposal) => match proposal.content() {
                Content::Shard(entry) => {
                    let apply = || self.shard.apply(term, index, entry).map_err(io::Error::other);
                    // Saving a manifest waits for the disk: the thread's other tasks, other groups' heartbeats among them, go on.
                    let outcomes = if matches!(entry, Entry::Manifest(_)) { tokio::task::block_in_place(apply) } else { apply() }?;
                    let stored = outcomes.iter().map(|outcome| if let Outcome::Stored { rows } = outcome { u64::from(*rows) } else { 0 });
                    self.progress.applied_rows.inc_by(stored.sum());
                    self.tell(entry, &outcomes);
                    Answer::Shard(outcomes)
                }
                Content::Metadata(_) => return Err(io::Error::other("metadata commands in a shard's log")),
            },
            EntryPayload::Blank => {
                self.shard.apply_other(term, index, None).map_err(io::Error::other)?;
                Answer::Other
            }
            EntryPayload::Membership(membership) => {
                let bytes = encode_membership(Some(&entry.log_id), membership);
                self.shard.apply_other(term, index, Some(bytes)).map_err(io::Error::other)?;
                self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                Answer::Other
            }
        };
        self.applied = Some(entry.log_id);
        Ok(answer)
    }

    fn tell(&self, entry: &Entry, outcomes: &[Outcome]) {
        let bytes = self.shard.stats().memtable_bytes;
        if self.progress.memtable_bytes.swap(bytes, Ordering::Relaxed) > bytes {
            self.progress.freed.notify_waiters();
        }
        let news = matches!((entry, outcomes), (Entry::Seal | Entry::Manifest(_), [Outcome::Done]));
        if (news || self.shard.wants_seal())
            && let Some(upkeep) = self.progress.upkeep.get()
        {
            // A full queue means that the thread has not looked yet: it will.
            let _ = upkeep.try_send(crate::upkeep::Ask::Look);
        }
    }
}

impl RaftStateMachine<Types> for ShardMachine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = AtFlushedIndex;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let answer = self.apply_one(&entry).inspect_err(|error| {
                self.health.stop(&self.name, format!("entry {} could not be applied: {error}", entry.log_id.index));
            })?;
            if let Some(responder) = responder {
                responder.send(answer);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<AtFlushedIndex> {
        Some(AtFlushedIndex { shard: self.shard.clone() })
    }

    async fn get_snapshot_builder(&mut self) -> AtFlushedIndex {
        AtFlushedIndex { shard: self.shard.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Bytes) -> io::Result<()> {
        let installed = storage::Snapshot::decode(&snapshot).and_then(|snapshot| {
            let shard = self.shard.clone();
            tokio::task::block_in_place(move || shard.install(snapshot))
        });
        // What was not installed changes nothing here; raft has to be told all the same, and takes it as the group's end.
        installed.map_err(|error| {
            self.health.stop(&self.name, format!("a snapshot could not be installed: {error}"));
            io::Error::other(error)
        })?;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.progress.memtable_bytes.store(self.shard.stats().memtable_bytes, Ordering::Relaxed);
        self.progress.freed.notify_waiters();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let snapshot = taken(&self.shard)?;
        Ok(snapshot.meta.last_log_id.is_some().then_some(snapshot))
    }
}

/// Where the shard's files have come, for openraft.
pub(crate) struct AtFlushedIndex {
    shard: Arc<Shard>,
}

impl RaftSnapshotBuilder<Types> for AtFlushedIndex {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        taken(&self.shard)
    }
}

/// The snapshot as openraft hands it on.
fn taken(shard: &Shard) -> io::Result<Snapshot> {
    let snapshot = shard.snapshot().map_err(io::Error::other)?;
    Ok(Snapshot { meta: meta_of(snapshot.flushed(), snapshot.membership())?, snapshot: snapshot.encode().into() })
}

fn flushed(shard: &Shard) -> io::Result<SnapshotMeta> {
    let (at, membership) = shard.flushed();
    meta_of(at, &membership)
}

fn meta_of(at: Option<(Term, LogIndex)>, membership: &[u8]) -> io::Result<SnapshotMeta> {
    let last_membership = if membership.is_empty() { StoredMembership::default() } else { decode_membership(membership)? };
    Ok(SnapshotMeta { last_log_id: at.map(|(term, index)| log_id(term, index)), last_membership })
}
