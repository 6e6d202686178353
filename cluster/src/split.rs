//! One shard becomes two, while both are written and read.
//!
//! ```text
//! asked        the metadata group gives the new shard a number                         metadata/state.rs
//! split        the shard's leader flushes, then proposes the split; from there on what was routed by the older range
//!              is refused and routed again, and nobody reads by it                     storage::range
//! in files     the leader flushes what the split has closed
//! founded      every replica founds the new shard beside itself, from its own files
//! live         the new shard's leader has committed an entry: a majority keeps it. The map shows both
//! done         the split shard need not keep the other half any more: compactions leave it out
//! ```
//!
//! Each step is taken by whoever can, looks at what is there, and can be taken again; nothing is undone. Between *split*
//! and *live*, which is a small flush and an election, writes and queries of this shard wait and are sent again by the nodes that
//! took them. A replica that could not found the new shard gets it from the others, as any new replica does.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use model::{Epoch, ShardId};
use storage::disk::Disk;
use storage::entry::{Entry, Outcome};
use storage::{HashRange, Split, SplitOff};
use tokio::time::Instant;

use crate::group::{GroupId, Member, Membership, log_id};
use crate::identity::take_replica;
use crate::log_record::{decode_membership, encode_membership};
use crate::metadata::command::{Command, Decided};
use crate::metadata::{Placement, Splitting, State};
use crate::node::Cluster;
use crate::replica::Replica;
use crate::residents::Slot;
use crate::shard_map::ShardRange;
use crate::start::DEPARTED_FILE;
use crate::{Error, Result};

/// Looked at so often without news, while a split is on its way, and after a step has failed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_SOON: Duration = Duration::from_millis(25);
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Elections that the node which leads the other half asks for, and the time between two.
const ELECTIONS: u32 = 20;
const ELECTION_PAUSE: Duration = Duration::from_millis(100);
/// How long a step may take before the next look: a flush goes on meanwhile, and the node's other splits do too.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// Brings splits forward until the node is gone.
pub(crate) async fn keep(cluster: Weak<Cluster>) {
    let Some(mut news) = cluster.upgrade().map(|cluster| cluster.metadata.news()) else { return };
    loop {
        let pause = {
            let Some(cluster) = cluster.upgrade() else { return };
            cluster.bring_splits_forward().await
        };
        // Its own sender is gone only with the node.
        let _ = tokio::time::timeout(pause, news.changed()).await;
    }
}

/// Has a new shard led by the node that leads the other half, as soon as the others have founded it too: nobody waits for a
/// timeout. Where that does not come to be, a timeout elects.
async fn lead(replica: Arc<Replica>) {
    let raft = replica.raft();
    for _ in 0..ELECTIONS {
        if raft.trigger().elect(false).await.is_err() {
            return;
        }
        let led = raft.wait(Some(ELECTION_PAUSE)).metrics(|m| m.current_leader.is_some(), "the new shard is led").await;
        if led.is_ok() {
            return;
        }
    }
}

impl Cluster {
    /// Decides that a shard is split, in the middle of its range or where `at` says; gives the new shard's number. It then
    /// happens by itself: [`Cluster::moves`] tells how far it is.
    pub async fn split(&self, shard: ShardId, at: Option<u64>) -> Result<ShardId> {
        let map = self.shard_map();
        let outdated = |what: String| Error::Outdated { what };
        let range = map.range_of_shard(shard).ok_or(Error::NoShard { shard })?;
        let at = at.unwrap_or(range.start + (range.last - range.start) / 2 + 1);
        if at <= range.start || at > range.last {
            return Err(Error::OutOfRange { shard, at, first: range.start, last: range.last });
        }
        let asked = (self.shared.options.clock)();
        match self.metadata.decide(Command::Split { shard, at, version: range.version, asked }).await? {
            Decided::SplitOff { child } => Ok(child),
            _ => Err(outdated(format!("shard {shard} is being split already, or was a moment ago"))),
        }
    }

    /// Returns when this node's map has none of these ranges any more, or when that takes too long: whether it is so.
    pub async fn wait_for_other_ranges(&self, ranges: &[ShardRange], patience: Duration) -> bool {
        let mut news = self.metadata.news();
        let same = |range: &ShardRange| self.shard_map().range_of_shard(range.shard).is_some_and(|now| now.version == range.version);
        let deadline = Instant::now() + patience;
        while ranges.iter().any(same) {
            if tokio::time::timeout_at(deadline, news.changed()).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Takes the steps that this node can take. How long to wait before the next look.
    async fn bring_splits_forward(&self) -> Duration {
        let state = self.metadata.state().clone();
        let running = self.residents.running();
        let splitting: Vec<&Arc<Replica>> = running.iter().filter(|replica| replica.store().is_splitting()).collect();
        let map = self.shard_map();
        let lacks = |r: &Arc<Replica>| map.range_of_shard(r.shard()).is_some_and(|range| range.version > r.store().range().version);
        if state.splits.is_empty() && splitting.is_empty() && !running.iter().any(|r| r.raft().is_leader() && lacks(r)) {
            return LOOK_EVERY;
        }
        let mut failed = false;
        for replica in &splitting {
            if let Some(split) = replica.store().split_off().filter(|split| self.residents.get(split.child).is_none())
                && let Err(error) = self.found(replica, &split).await
            {
                tracing::warn!(shard = %split.child, %error, "a shard that was split off could not be founded; it is tried again");
                failed = true;
            }
        }
        let steps = running.iter().filter(|replica| replica.raft().is_leader()).map(|replica| {
            let state = &state;
            async move {
                let shard = replica.shard();
                let step = tokio::time::timeout(STEP_TIMEOUT, self.step_of_split(replica, state)).await;
                match &step {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::info!(%shard, %error, "a split is not further yet; it is tried again"),
                    Err(_) => tracing::warn!(%shard, "a step of a split takes long; it is tried again"),
                }
                !matches!(step, Ok(Ok(())))
            }
        });
        failed |= futures::future::join_all(steps).await.contains(&true);
        if failed { LOOK_AGAIN } else { LOOK_SOON }
    }

    /// What the leader of a shard does about a split of it, or about its own coming into being.
    async fn step_of_split(&self, replica: &Arc<Replica>, state: &State) -> Result<()> {
        let (shard, store) = (replica.shard(), replica.store());
        let map = self.shard_map();
        // First, for the next split of this shard begins only after it.
        if let Some(split) = store.split_off()
            && map.range_of_shard(split.child).is_some()
        {
            replica.propose(Entry::SplitDone { child: split.child }).await?;
        }
        if let Some(range) = map.range_of_shard(shard)
            && range.version > store.range().version
        {
            // The split entry may be in the log and not applied yet.
            replica.read().await?;
            if range.version > store.range().version {
                // A replica that never had it was made the only one (`recover.rs`), and ended before it was told its range.
                replica.propose(Entry::Range(HashRange { start: range.start, last: range.last, version: range.version })).await?;
                tracing::warn!(%shard, "a split that this shard has lost has still taken place");
            }
        }
        if let Some(going) = state.splits.get(&shard) {
            return self.split_and_flush(replica, going).await;
        }
        if map.range_of_shard(shard).is_none() {
            let Some((&parent, _)) = state.splits.iter().find(|(_, going)| going.child == shard) else { return Ok(()) };
            // An entry of this leader's own was committed: a majority has what the shard began with.
            replica.read().await?;
            let at = (self.shared.options.clock)();
            self.metadata.decide(Command::SplitLive { shard: parent, child: shard, at }).await?;
            tracing::info!(shard = %parent, child = %shard, "the shard is split");
        }
        Ok(())
    }

    async fn split_and_flush(&self, replica: &Arc<Replica>, going: &Splitting) -> Result<()> {
        let (shard, store) = (replica.shard(), replica.store());
        let slot = self.residents.served(shard)?;
        let upkeep = slot.running()?.upkeep.clone();
        if store.range().version == going.version {
            // What is flushed now need not be while everybody waits.
            upkeep.flush(None).await?;
            let Splitting { child, start, at, last, version } = *going;
            let split = Split { child, start, at, last, version };
            let outcome = replica.propose(Entry::Split(split)).await?;
            tracing::info!(%shard, %child, at, ?outcome, "the range is split");
            if outcome != Outcome::Done {
                return Ok(());
            }
        }
        if store.is_splitting() && store.split_off().is_none() {
            upkeep.flush(None).await?;
        }
        Ok(())
    }

    /// Founds a shard that was split off from this node's replica, and opens it.
    async fn found(&self, parent: &Arc<Replica>, split: &SplitOff) -> Result<()> {
        let _one_at_a_time = self.residents.opening.lock().await;
        let still = parent.store().split_off().is_some_and(|now| now.child == split.child);
        if !still || self.residents.get(split.child).is_some() {
            return Ok(());
        }
        let (shared, child, store, off) = (self.shared.clone(), split.child, parent.store().clone(), split.clone());
        let membership = self.founding_membership(split)?;
        let founded = tokio::task::spawn_blocking(move || {
            let (disk, dir, shards) = (&shared.options.disk, shared.shard_dir(child), shared.options.data_dir.join("shards"));
            let replica = shared.founding_replica(GroupId::Shard(child), shared.me.id);
            store.found_split_off(&off, &dir.join("data"), replica, membership)?;
            for folder in [&dir, &shards] {
                disk.sync_dir(folder).map_err(|e| storage::Error::io("sync", folder, e))?;
            }
            // Last: a folder with a replica's number is not founded again.
            take_replica(&**disk, &dir, replica).map(|_| ())
        });
        founded.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let opened = self.shared.clone().open_shard(child, Placement::default(), self.metadata.clone()).await?;
        if parent.raft().is_leader() {
            self.spawn(lead(opened.replica.clone()));
        }
        tracing::info!(shard = %parent.shard(), %child, "the shard that was split off is founded here");
        self.residents.insert(Slot { shard: child, served: Ok(opened) });
        Ok(())
    }

    /// The members of the shard that was split from, each with a replica of the new shard: the same on all of them.
    fn founding_membership(&self, split: &SplitOff) -> Result<Vec<u8>> {
        let unreadable = |e: std::io::Error| Error::Stopped { what: format!("shard {}", split.child), why: e.to_string() };
        let before = decode_membership(split.membership()).map_err(unreadable)?;
        let voters = before.membership().get_joint_config().last().cloned().unwrap_or_default();
        let group = GroupId::Shard(split.child);
        let nodes: BTreeMap<u64, Member> = (before.membership().nodes())
            .filter(|(id, _)| voters.contains(id))
            .map(|(id, member)| (*id, Member { replica: self.shared.founding_replica(group, model::NodeId(*id)), ..member.clone() }))
            .collect();
        let membership = Membership::new(vec![voters], nodes).map_err(|e| unreadable(std::io::Error::other(e)))?;
        Ok(encode_membership(Some(&log_id(model::Term(0), split.index())), &membership))
    }

    /// Whether a shard that was split off may be opened empty, to be filled by the others: not while this node's replica of
    /// the other half can still found it.
    pub(crate) fn may_open_empty(&self, (parent, version): (ShardId, Epoch), state: &State) -> bool {
        match self.residents.get(parent).as_ref().map(|slot| slot.running()) {
            // It is damaged or has stopped, and founds nothing.
            Some(Err(_)) => true,
            Some(Ok(served)) if served.replica.stopped().is_some() => true,
            Some(Ok(served)) => served.replica.store().range().version >= version && !served.replica.store().is_splitting(),
            None => !state.placements.get(&parent).is_some_and(|placement| placement.replicas.contains(&self.node_id())),
        }
    }

    /// Whether this node has a replica of a shard on its disk that was not let go.
    pub(crate) fn has_replica_of(&self, shard: ShardId) -> bool {
        let dir = self.shared.shard_dir(shard);
        let disk: &Arc<dyn Disk> = &self.shared.options.disk;
        disk.list(&dir).is_ok_and(|names| names.contains(&dir.join("replica")) && !names.contains(&dir.join(DEPARTED_FILE)))
    }
}
