//! The replicas that live on this node: opened where the metadata says so, closed when they have left.
//!
//! One shard that is damaged does not keep the others from being served: it is told in its status, and its part of the
//! rows is an error, never missing in silence. A replica whose place is elsewhere is closed only once its group has let
//! it go; then its folder goes with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use model::{ErrorKind, ShardId};
use parking_lot::Mutex;

use crate::group::GroupId;
use crate::metadata::Placement;
use crate::node::Cluster;
use crate::replica::Replica;
use crate::start::DEPARTED_FILE;
use crate::upkeep::Upkeep;
use crate::{Error, Result};

/// Looked at so often even without news.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One shard of this node.
pub(crate) struct Slot {
    pub(crate) shard: ShardId,
    /// `Err`: it could not be opened, and why; the node's other shards go on.
    pub(crate) served: std::result::Result<Served, String>,
}

/// A shard that takes part.
pub(crate) struct Served {
    pub(crate) replica: Arc<Replica>,
    pub(crate) upkeep: Upkeep,
}

impl Slot {
    /// The replica, or why it takes no part.
    pub(crate) fn replica(&self) -> Result<&Arc<Replica>> {
        self.running().map(|served| &served.replica)
    }

    /// What runs, or why nothing does.
    pub(crate) fn running(&self) -> Result<&Served> {
        let stopped = |why: &String| Error::Stopped { what: format!("shard {}", self.shard), why: why.clone() };
        self.served.as_ref().map_err(stopped)
    }
}

/// The shards of this node.
#[derive(Default)]
pub(crate) struct Residents {
    /// Held while a replica is opened, from the look whether it is open already: no shard is opened twice.
    pub(crate) opening: tokio::sync::Mutex<()>,
    /// Those that are being closed: nobody opens them meanwhile.
    closing: Mutex<BTreeSet<ShardId>>,
    slots: ArcSwap<BTreeMap<ShardId, Arc<Slot>>>,
}

impl Residents {
    /// All of them, in order.
    pub(crate) fn all(&self) -> Vec<Arc<Slot>> {
        self.slots.load().values().cloned().collect()
    }

    /// The replicas that take part.
    pub(crate) fn running(&self) -> Vec<Arc<Replica>> {
        let slots = self.slots.load();
        let served = slots.values().filter_map(|slot| slot.served.as_ref().ok());
        served.map(|served| served.replica.clone()).filter(|replica| replica.stopped().is_none()).collect()
    }

    pub(crate) fn get(&self, shard: ShardId) -> Option<Arc<Slot>> {
        self.slots.load().get(&shard).cloned()
    }

    /// The shard's slot; an error where it is not here.
    pub(crate) fn served(&self, shard: ShardId) -> Result<Arc<Slot>> {
        self.get(shard).ok_or(Error::NotHere { shard, leader: None })
    }

    pub(crate) fn insert(&self, slot: Slot) {
        let slot = Arc::new(slot);
        self.slots.rcu(|slots| {
            let mut slots = BTreeMap::clone(slots);
            slots.insert(slot.shard, slot.clone());
            slots
        });
    }

    fn remove(&self, shard: ShardId) {
        self.slots.rcu(|slots| {
            let mut slots = BTreeMap::clone(slots);
            slots.remove(&shard);
            slots
        });
    }
}

/// Opens and closes replicas as the metadata says, until the node is gone.
pub(crate) async fn keep(cluster: Weak<Cluster>) {
    let Some(mut news) = cluster.upgrade().map(|cluster| cluster.metadata.news()) else { return };
    loop {
        {
            let Some(cluster) = cluster.upgrade() else { return };
            cluster.open_placed().await;
            cluster.close_departed().await;
        }
        // Its own sender is gone only with the node.
        let _ = tokio::time::timeout(LOOK_EVERY, news.changed()).await;
    }
}

impl Cluster {
    /// Opens what should be here and is not, all at once.
    pub(crate) async fn open_placed(&self) {
        let _one_at_a_time = self.residents.opening.lock().await;
        let state = self.metadata.state().clone();
        let me = self.node_id();
        let missing: Vec<(ShardId, Placement)> = (state.placements.iter())
            .filter(|(shard, _)| self.residents.get(**shard).is_none() && !self.residents.closing.lock().contains(*shard))
            // One that has its place elsewhere is a member until its group has let it go, after a restart too.
            .filter(|(shard, placement)| placement.replicas.contains(&me) || self.has_replica_of(**shard))
            .filter(|(shard, placement)| match placement.split_from {
                Some(from) => self.has_replica_of(**shard) || self.may_open_empty(from, &state),
                None => true,
            })
            .map(|(shard, placement)| (*shard, placement.clone()))
            .collect();
        let opening = missing.into_iter().map(|(shard, placement)| {
            let (shared, metadata) = (self.shared.clone(), self.metadata.clone());
            let opening = self.spawn(async move { shared.open_shard(shard, placement, metadata).await });
            async move { (shard, opening.await) }
        });
        for (shard, opened) in futures::future::join_all(opening).await {
            let served = match opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
                Ok(served) => Ok(served),
                Err(error) if error.kind() == ErrorKind::Broken => {
                    tracing::error!(%shard, %error, "a shard could not be opened; the others go on");
                    Err(error.to_string())
                }
                Err(error) => {
                    tracing::warn!(%shard, %error, "a shard could not be opened yet; it is tried again");
                    continue;
                }
            };
            self.residents.insert(Slot { shard, served });
        }
    }

    /// Removes what replicas kept that were let go before this node stopped, where a crash cut that off.
    pub(crate) fn remove_departed(&self) {
        let (disk, dir) = (&self.shared.options.disk, self.shared.options.data_dir.join("shards"));
        for dir in disk.list(&dir).unwrap_or_default() {
            if disk.list(&dir).is_ok_and(|names| names.contains(&dir.join(DEPARTED_FILE)))
                && let Err(error) = self.shared.remove_departed(&dir)
            {
                tracing::warn!(dir = %dir.display(), %error, "what a replica kept that has left could not be removed");
            }
        }
    }

    /// Closes replicas whose group has let them go, and removes what they kept.
    async fn close_departed(self: &Arc<Self>) {
        for slot in self.residents.all() {
            let Ok(served) = &slot.served else { continue };
            // A part that was split off begins with what is here, on this node at least.
            let still_split = |split: storage::SplitOff| self.residents.get(split.child).is_none();
            if served.replica.store().split_off().is_some_and(still_split) || !self.has_moved(slot.shard).await {
                continue;
            }
            tracing::info!(shard = %slot.shard, "this shard has left the node");
            self.residents.closing.lock().insert(slot.shard);
            self.residents.remove(slot.shard);
            // Compactions may take long to end; other shards come and go meanwhile.
            let cluster = self.clone();
            self.spawn(async move {
                let shard = slot.shard;
                cluster.close(&slot).await;
                drop(slot);
                cluster.residents.closing.lock().remove(&shard);
            });
        }
    }

    async fn close(&self, slot: &Slot) {
        let (Ok(served), shard) = (&slot.served, slot.shard) else { return };
        if let Some(switchboard) = &self.shared.switchboard {
            switchboard.disconnect_group(GroupId::Shard(shard));
        }
        // The group first: what waits for it learns that its outcome is unknown, and asks whoever leads now.
        if let Err(error) = served.replica.raft().shutdown().await {
            tracing::warn!(%shard, %error, "its group did not stop cleanly");
        }
        let upkeep = served.upkeep.clone();
        let _ = tokio::task::spawn_blocking(move || upkeep.stop()).await;
        // It acknowledges nothing any more. If it was taken in again just before that, others may count on what it has: then it
        // is opened again.
        if self.refresh().await.is_err() || !self.has_moved(shard).await {
            tracing::info!(%shard, "this shard may have come back to the node meanwhile: what it kept stays");
            return;
        }
        let shared = self.shared.clone();
        let removed = tokio::task::spawn_blocking(move || shared.remove_shard_dir(shard)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%shard, %error, "what it kept could not be removed");
        }
    }

    /// Whether the shard has its place elsewhere, and those who have it now say that this node is no member, for good. Its own
    /// log may not have heard of it.
    async fn has_moved(&self, shard: ShardId) -> bool {
        let state = self.metadata.state().clone();
        let me = self.node_id();
        let (Some(peers), Some(placement)) = (&self.peers, state.placements.get(&shard)) else { return false };
        if placement.replicas.contains(&me) {
            return false;
        }
        let path = format!("/peer/v1/shards/{shard}/leader");
        for &node in &placement.replicas {
            let asked = peers.call(node, crate::peer::Lane::Asks, &path, bytes::Bytes::new());
            let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(1), asked).await else { continue };
            let Ok(leading) = serde_json::from_slice::<crate::forward::Leading>(&answer) else { continue };
            if leading.leader == Some(node) {
                return !leading.voters.is_empty() && !leading.voters.contains(&me) && !leading.members.contains(&me);
            }
        }
        false
    }
}
