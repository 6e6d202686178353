//! How a node starts: whose directory is this, where are the others, the metadata group, then all shards at once.
//!
//! A node that is alone returns only when every log is replayed and every group leads. A node with peers returns when it
//! belongs to its cluster, knows what the metadata group has decided, and its replicas are open; groups whose other
//! members are still starting find their leader later. A damaged metadata group keeps the node from starting, because
//! without it no row has a name; a damaged shard does not (`residents.rs`).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use model::{NodeId, ReplicaId, ShardId};
use parking_lot::Mutex;
use storage::disk::Disk;
use storage::wal::{Syncer, WalOptions};
use storage::{Shard, ShardOptions};
use tokio::runtime::Handle;
use xxhash_rust::xxh3::xxh3_128;

use crate::bootstrap::{self, Belongs, Introduction};
use crate::clock::SteadyClock;
use crate::cutoffs::Cutoffs;
use crate::dead_leaders;
use crate::forward::Forwards;
use crate::group::{self, Founding, GroupId, GroupKind, Member};
use crate::health::{GroupHealth, Health};
use crate::identity::{Chance, Identity, KnownReplicas, take_replica};
use crate::log_store::{LogStore, ToldOfFailures};
use crate::members;
use crate::metadata::command::Command;
use crate::metadata::{self, Metadata, MetadataMachine, Placement, Published};
use crate::metrics::Metrics;
use crate::network::GroupNetwork;
use crate::node::{Cluster, ClusterOptions};
use crate::nodes::{NodeInfo, NodeState, Roles};
use crate::peer::Peers;
use crate::replica::{Replica, ReplicaParts};
use crate::residents::{self, Residents, Served};
use crate::room::Room;
use crate::shard_map::ShardMap;
use crate::split;
use crate::state_machine::{Progress, ShardMachine};
use crate::switchboard::{GroupHandle, Switchboard};
use crate::upkeep::Upkeep;
use crate::{Error, Result};

/// What messages call the metadata group.
const METADATA: &str = "the metadata group";
/// First and largest segment of a shard's log.
const SHARD_SEGMENT_BYTES: (u64, u64) = (4 << 20, 64 << 20);
/// First and largest segment of the metadata group's log.
const METADATA_SEGMENT_BYTES: (u64, u64) = (1 << 20, 4 << 20);
/// Free bytes below which no write is let in.
const RESERVE_BYTES: u64 = 32 << 20;

/// In the folder of a replica that has moved away, until the folder is gone.
pub(crate) const DEPARTED_FILE: &str = "departed";
/// Replicas that a shard should have where nobody says otherwise; fewer nodes hold fewer.
const REPLICATION: u32 = 3;
/// A founder that is not the first waits so long for the first to found a shard's group before it does so itself.
const FOUND_ANYWAY: Duration = Duration::from_secs(3);
/// Between two tries to have something decided while the cluster is coming into being.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// How long a node with peers waits for its shards' groups to lead before it says that it is ready all the same.
const LEADERS_TIMEOUT: Duration = Duration::from_secs(10);

/// Threads of the groups' runtime: half the cores. What a group hands from task to task then mostly stays on one thread
/// and wakes nobody.
fn group_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

pub(crate) async fn start(options: ClusterOptions) -> Result<Arc<Cluster>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(group_threads())
        .thread_name("groups")
        .enable_all()
        .build()
        .map_err(|e| storage::Error::io("start the threads for", &options.data_dir, e))?;
    let mut runtime = Abandoned(Some(runtime));
    let handle = runtime.0.as_ref().expect("just made").handle().clone();
    let started = handle.spawn(open(options, handle.clone())).await;
    let cluster = started.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    *cluster.runtime.lock() = runtime.0.take();
    Ok(cluster)
}

/// A runtime that nobody may need: whoever starts a node may also lose patience, on a thread that must not wait.
struct Abandoned(Option<tokio::runtime::Runtime>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn open(options: ClusterOptions, runtime: Handle) -> Result<Arc<Cluster>> {
    let disk = options.disk.clone();
    let mut chance = Chance::new(options.seed);
    disk.create_dir_all(&options.data_dir).map_err(|e| storage::Error::io("create", options.data_dir.clone(), e))?;
    let identity = Identity::take(&*disk, &options.data_dir, &options.node, options.peers.is_some(), &mut chance)?;
    let me = this_node(&options, &identity);
    let new_cluster = chance.number();
    let (switchboard, belongs) = match &options.peers {
        None => (None, Belongs::Already),
        Some(with) => {
            let peers = Peers::new(me.id, with.door.security().clone(), runtime.clone());
            let introduction = Introduction::new(me.clone(), identity.clone(), disk.clone(), options.data_dir.clone(), peers.clone());
            let switchboard = Switchboard::new(introduction, peers);
            with.door.open(switchboard.clone());
            let belongs = switchboard.introduction.find(&with.join, with.bootstrap_expect, new_cluster).await?;
            (Some(switchboard), belongs)
        }
    };
    let syncer = Syncer::start();
    let metrics = Metrics::new(syncer.metrics().clone());
    let cluster_id = switchboard.as_ref().map_or(identity.cluster, |s| s.introduction.cluster()).expect("it belongs to a cluster now");
    let shared = Arc::new(Shared {
        room: Arc::new(Room::new(disk.clone(), options.data_dir.clone(), RESERVE_BYTES)),
        health: Arc::new(Health::new()),
        syncer,
        metrics,
        me,
        cluster: cluster_id,
        switchboard,
        chance: Mutex::new(chance),
        known: KnownReplicas::open(disk.clone(), &options.data_dir)?,
        options,
        runtime,
    });
    let metadata = shared.clone().open_metadata(belongs).await?;
    shared.refuse_another_cluster(&metadata)?;
    metadata.register(shared.me.clone(), shared.peers()).await?;

    let cluster = Arc::new_cyclic(|weak: &Weak<Cluster>| Cluster {
        metadata: metadata.clone(),
        residents: Residents::default(),
        forwards: Forwards::default(),
        peers: shared.peers().cloned(),
        cutoffs: Cutoffs::new(weak.clone(), SteadyClock::new(shared.options.clock.clone())),
        metrics: shared.metrics.clone(),
        max_waiting_bytes: shared.options.max_waiting_bytes,
        shared: shared.clone(),
        runtime: Mutex::new(None),
    });
    if let Some(switchboard) = &shared.switchboard {
        switchboard.connect_cluster(&cluster);
    }
    cluster.remove_departed();
    cluster.open_placed().await;
    tokio::spawn(residents::keep(Arc::downgrade(&cluster)));
    tokio::spawn(split::keep(Arc::downgrade(&cluster)));
    if shared.switchboard.is_some() {
        tokio::spawn(members::keep(Arc::downgrade(&cluster)));
        tokio::spawn(dead_leaders::watch(Arc::downgrade(&cluster)));
        cluster.wait_for_leaders(LEADERS_TIMEOUT).await;
    } else {
        cluster.cutoffs.advance().await?;
    }
    tokio::spawn(cluster.cutoffs.clone().keep_moving());
    tracing::info!(
        node = shared.me.name,
        id = %shared.me.id,
        incarnation = shared.me.incarnation,
        shards = cluster.residents.all().len(),
        "the node's groups are open"
    );
    Ok(cluster)
}

fn this_node(options: &ClusterOptions, identity: &Identity) -> NodeInfo {
    let (roles, http, rpc) = match &options.peers {
        None => (Roles::ALL, String::new(), String::new()),
        Some(with) => (with.roles, with.http.clone(), with.rpc.clone()),
    };
    NodeInfo {
        given_up: false,
        id: identity.node,
        name: identity.name.clone(),
        roles,
        http,
        rpc,
        incarnation: identity.incarnation,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: NodeState::Active,
    }
}

/// What all groups of the node share.
pub(crate) struct Shared {
    pub(crate) options: ClusterOptions,
    pub(crate) me: NodeInfo,
    pub(crate) cluster: u128,
    pub(crate) health: Arc<Health>,
    /// `None`: a node that is alone.
    pub(crate) switchboard: Option<Arc<Switchboard>>,
    room: Arc<Room>,
    syncer: Syncer,
    metrics: Metrics,
    pub(crate) chance: Mutex<Chance>,
    /// The replicas that this data directory has had.
    known: KnownReplicas,
    pub(crate) runtime: Handle,
}

impl Shared {
    fn peers(&self) -> Option<&Arc<Peers>> {
        self.switchboard.as_ref().map(|switchboard| switchboard.peers())
    }

    fn wal(&self, dir: PathBuf, (first, max): (u64, u64)) -> WalOptions {
        WalOptions { disk: self.options.disk.clone(), syncer: self.syncer.clone(), dir, first_segment_bytes: first, max_segment_bytes: max }
    }

    /// The number of the replica with which a node founds a group: known to all founders alike.
    pub(crate) fn founding_replica(&self, group: GroupId, node: NodeId) -> ReplicaId {
        ReplicaId(xxh3_128(format!("{:032x} {group} {node}", self.cluster).as_bytes()))
    }

    fn founders(&self, group: GroupId, nodes: impl Iterator<Item = NodeInfo>) -> BTreeMap<u64, Member> {
        let member = |node: NodeInfo| {
            let replica = self.founding_replica(group, node.id);
            (node.id.0, Member { name: node.name, replica, rpc: node.rpc })
        };
        nodes.map(member).collect()
    }

    /// Opens this node's member of the metadata group and founds the cluster where it is new; returns when this node
    /// knows what was decided.
    async fn open_metadata(self: Arc<Shared>, belongs: Belongs) -> Result<Arc<Metadata>> {
        let published;
        let member;
        if self.me.roles.storage {
            let dir = self.options.data_dir.join("meta");
            if self.known.any() && is_empty(&*self.options.disk, &dir)? {
                let what = "the metadata (databases, schemas, where shards are) is gone, and shards are here: put the folder back, or \
                            take an empty --data-dir and a new node"
                    .to_owned();
                return Err(storage::Error::Corrupt { path: dir, at: 0, what }.into());
            }
            make_dir(&*self.options.disk, &dir, &self.options.data_dir)?;
            let shared = self.clone();
            let (log, (machine, shown)) = blocking(move || {
                let wal = shared.wal(dir.join("wal"), METADATA_SEGMENT_BYTES);
                let told = ToldOfFailures { group: Arc::default(), node: shared.health.clone() };
                let log = LogStore::open(
                    GroupKind::Metadata,
                    METADATA,
                    wal,
                    (shared.me.id.0, shared.founding_replica(GroupId::Metadata, shared.me.id)),
                    told,
                )?;
                Ok((log, MetadataMachine::open(shared.options.disk.clone(), dir.join("snapshot"))?))
            })
            .await?;
            let founders = match (&belongs, &self.switchboard) {
                (Belongs::Founder(founders), _) => founders.clone(),
                (_, None) => vec![self.me.clone()],
                _ => Vec::new(),
            };
            let founding = match founders.is_empty() {
                true => Founding::Wait,
                false => Founding::With(self.founders(GroupId::Metadata, founders.iter().cloned())),
            };
            let log_of_group = log.log();
            let network = GroupNetwork { group: GroupId::Metadata, peers: self.peers().cloned() };
            let raft = group::start(METADATA, self.me.id.0, founding, log, machine, network).await?;
            if let Some(switchboard) = &self.switchboard {
                switchboard.connect_group(GroupId::Metadata, GroupHandle::Metadata(raft.clone()));
            }
            published = shown;
            member = Some(metadata::Member { raft, log: log_of_group });
        } else {
            published = Arc::new(Published::default());
            member = None;
        }
        if let Belongs::Taken(shown) = &belongs {
            published.publish(Arc::new(shown.state.clone()), shown.next);
        }
        let metadata = Metadata::new(member, self.peers().cloned(), self.runtime.clone(), published.clone());
        if let Some(switchboard) = &self.switchboard {
            switchboard.connect_metadata(metadata.clone());
            tokio::spawn(metadata::follow::follow(metadata.clone(), published, switchboard.peers().clone()));
            self.say_hello(&metadata).await;
        }
        self.found(&metadata, &belongs).await?;
        Ok(metadata)
    }

    /// Tells those who may not know where this node is now, and learns where they are; again while the node knows of
    /// nothing decided.
    async fn say_hello(&self, metadata: &Arc<Metadata>) {
        let (Some(switchboard), Some(with)) = (&self.switchboard, &self.options.peers) else { return };
        // An address that was decided counts when it changes: until then what a node says of itself is newer.
        let mut decided: HashMap<NodeId, String> = HashMap::new();
        for node in metadata.state().nodes.values() {
            switchboard.peers().found_at(node.id, &node.rpc);
            decided.insert(node.id, node.rpc.clone());
        }
        let ask = move |switchboard: Arc<Switchboard>, metadata: Arc<Metadata>, join: Vec<String>, me: NodeId| async move {
            let addresses = bootstrap::addresses(&join, metadata.state().nodes.values().cloned(), me);
            switchboard.introduction.ask_all(&addresses).await
        };
        let (switchboard, metadata, join, me) = (switchboard.clone(), metadata.clone(), with.join.clone(), self.me.id);
        ask(switchboard.clone(), metadata.clone(), join.clone(), me).await;
        tokio::spawn(async move {
            let mut news = metadata.news();
            loop {
                for node in metadata.state().nodes.values() {
                    if decided.insert(node.id, node.rpc.clone()).as_ref() != Some(&node.rpc) {
                        switchboard.peers().found_at(node.id, &node.rpc);
                    }
                }
                if metadata.state().cluster.is_none() {
                    ask(switchboard.clone(), metadata.clone(), join.clone(), me).await;
                    let _ = tokio::time::timeout(TRY_AGAIN * 5, news.changed()).await;
                } else if news.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// Has the cluster come into being, if that is this node's to do; returns when it has.
    async fn found(&self, metadata: &Arc<Metadata>, belongs: &Belongs) -> Result<()> {
        let founders = match (belongs, &self.options.peers) {
            (Belongs::Founder(founders), _) => founders.clone(),
            (_, None) => vec![self.me.clone()],
            _ => Vec::new(),
        };
        let mut news = metadata.news();
        while metadata.state().cluster.is_none() {
            if founders.is_empty() {
                let _ = news.changed().await;
                continue;
            }
            let shards = ShardMap::even(self.options.shards);
            let replication = self.options.peers.as_ref().and_then(|with| with.replicas).unwrap_or(REPLICATION);
            let command = Command::Found { cluster: self.cluster, shards, replication, nodes: founders.clone() };
            match metadata.decide(command).await {
                Ok(_) => {}
                Err(error) if self.switchboard.is_none() => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "the cluster is not founded yet; it is tried again");
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        }
        Ok(())
    }

    fn refuse_another_cluster(&self, metadata: &Metadata) -> Result<()> {
        if metadata.state().cluster == Some(self.cluster) {
            return Ok(());
        }
        let path = self.options.data_dir.join("meta");
        let what = "it belongs to another cluster than the directory it is in".to_owned();
        Err(Error::Storage(storage::Error::Corrupt { path, at: 0, what }))
    }

    pub(crate) fn shard_dir(&self, shard: ShardId) -> PathBuf {
        self.options.data_dir.join("shards").join(shard.to_string())
    }

    /// Removes what a shard kept. That it is nobody's is noted first, so that a crash in between is finished at the next start.
    pub(crate) fn remove_shard_dir(&self, shard: ShardId) -> std::io::Result<()> {
        let (disk, dir) = (&self.options.disk, self.shard_dir(shard));
        disk.create(&dir.join(DEPARTED_FILE))?.sync()?;
        disk.sync_dir(&dir)?;
        self.known.forget(shard).map_err(std::io::Error::other)?;
        disk.remove_dir_all(&dir)
    }

    /// Removes a folder that was marked before, where that was cut off.
    pub(crate) fn remove_departed(&self, dir: &Path) -> std::io::Result<()> {
        if let Some(shard) = dir.file_name().and_then(|name| name.to_str()?.parse().ok()) {
            self.known.forget(ShardId(shard)).map_err(std::io::Error::other)?;
        }
        self.options.disk.remove_dir_all(dir)
    }

    /// Whether the shard's replica was opened here before and its folder has gone since, without having left.
    fn is_gone(&self, shard: ShardId) -> Result<bool> {
        let dir = self.shard_dir(shard);
        let names = self.options.disk.list(&dir).map_err(|e| storage::Error::io("list", dir.clone(), e))?;
        if names.contains(&dir.join(DEPARTED_FILE)) {
            // It was about to leave.
            self.known.forget(shard)?;
        }
        Ok(self.known.get(shard).is_some() && !names.contains(&dir.join("replica")))
    }

    pub(crate) async fn open_shard(self: Arc<Shared>, shard: ShardId, placement: Placement, metadata: Arc<Metadata>) -> Result<Served> {
        let group = GroupId::Shard(shard);
        let name = format!("shard {shard}");
        let node = self.me.id;
        let is_founder = placement.founders.contains(&node);
        // A state from before moves were noted tells by its places.
        let is_gone = self.is_gone(shard)?;
        if is_gone && self.options.peers.is_none() {
            let what = "the folder of this shard is gone, and it was here: put it back; its rows are in no other place".to_owned();
            return Err(storage::Error::Corrupt { path: self.shard_dir(shard), at: 0, what }.into());
        }
        if is_gone {
            tracing::error!(%shard, dir = %self.shard_dir(shard).display(), "the folder of a replica is gone: a new one begins with nothing");
        }
        let is_founded = is_gone
            || placement.has_moved
            || placement.split_from.is_some()
            || !placement.replicas.iter().all(|replica| placement.founders.contains(replica));
        let new = match is_founder && !is_gone {
            true => self.founding_replica(group, node),
            false => ReplicaId(self.chance.lock().number()),
        };
        let health = Arc::new(GroupHealth::default());
        let (shared, log_name, group_health) = (self.clone(), name.clone(), health.clone());
        let (log, store, replica) = blocking(move || {
            let (options, dir) = (&shared.options, shared.shard_dir(shard));
            if options.disk.list(&dir).map_err(|e| storage::Error::io("list", dir.clone(), e))?.contains(&dir.join(DEPARTED_FILE)) {
                // Left over from a replica that has moved away.
                options.disk.remove_dir_all(&dir).map_err(|e| storage::Error::io("remove", dir.clone(), e))?;
            }
            make_dir(&*options.disk, &dir, &options.data_dir)?;
            let replica = take_replica(&*options.disk, &dir, new)?;
            if shared.known.get(shard) == Some(replica) && is_empty(&*options.disk, &dir.join("wal"))? {
                let what = format!(
                    "the log of this shard is gone, and with it rows that were acknowledged: put it back; where other nodes have \
                     replicas, remove {} and this one begins anew from theirs",
                    dir.display()
                );
                return Err(storage::Error::Corrupt { path: dir.join("wal"), at: 0, what }.into());
            }
            let wal = shared.wal(dir.join("wal"), SHARD_SEGMENT_BYTES);
            let store = Shard::open(ShardOptions {
                disk: options.disk.clone(),
                dir: dir.join("data"),
                shard,
                replica,
                flush_bytes: options.flush_bytes,
                last_rows_bytes: options.last_rows_bytes,
            })?;
            let told = ToldOfFailures { group: group_health, node: shared.health.clone() };
            let log = LogStore::open(GroupKind::Shard, &log_name, wal, (node.0, replica), told)?;
            let flushed = store.flushed().0.map(|(_, index)| index.0);
            if let Some(purged) = log.log().purged()
                && flushed.is_none_or(|flushed| flushed < purged)
            {
                let what = format!(
                    "the manifest names files up to entry {}, and the log begins after entry {purged}: rows between are nowhere here",
                    flushed.map_or_else(|| "none".to_owned(), |flushed| flushed.to_string())
                );
                return Err(storage::Error::Corrupt { path: dir.join("data"), at: 0, what }.into());
            }
            shared.known.note(shard, replica)?;
            Ok((log, Arc::new(store), replica))
        })
        .await?;
        let progress = Arc::new(Progress { applied_rows: self.metrics.applied_rows.clone(), ..Progress::default() });
        let machine = ShardMachine::open(name.clone(), store.clone(), progress.clone(), health.clone())?;
        let log_of_group = log.log();
        let state = metadata.state().clone();
        let known = placement.founders.iter().filter_map(|id| state.nodes.get(id).cloned());
        let founders = self.founders(group, known);
        // One that came in the place of a lost one founds nothing, now and after each start.
        let is_founder = is_founder && replica == self.founding_replica(group, node);
        let is_founded = is_founded || !is_founder;
        let founding = match placement.founders.first() == Some(&node) && !is_founded {
            true => Founding::With(founders.clone()),
            false => Founding::Wait,
        };
        let network = GroupNetwork { group, peers: self.peers().cloned() };
        let raft = group::start(&name, node.0, founding, log, machine, network).await?;
        if let Some(switchboard) = &self.switchboard {
            switchboard.connect_group(group, GroupHandle::Shard(raft.clone()));
        }
        if is_founder && !is_founded {
            self.runtime.spawn(group::found_anyway(raft.clone(), founders, FOUND_ANYWAY));
        }
        let replica = Replica::new(ReplicaParts {
            shard,
            name,
            store,
            raft,
            log: log_of_group,
            progress: progress.clone(),
            health,
            node_health: self.health.clone(),
            room: self.room.clone(),
            runtime: self.runtime.clone(),
            metrics: self.metrics.clone(),
            clock: self.options.clock.clone(),
            max_waiting_bytes: self.options.max_waiting_bytes,
            flush_bytes: self.options.flush_bytes,
        });
        let upkeep = Upkeep::start(replica.clone(), metadata, self.runtime.clone(), self.peers().cloned(), self.options.flush_bytes);
        progress.upkeep.set(upkeep.flush_asks()).expect("set once");
        Ok(Served { replica, upkeep })
    }
}

/// Whether there is nothing in a folder, or no such folder.
fn is_empty(disk: &dyn Disk, dir: &Path) -> Result<bool> {
    Ok(disk.list(dir).map_err(|e| storage::Error::io("list", dir, e))?.is_empty())
}

/// Makes a folder below the data directory that a crash does not take back: a replica that came back without it would found
/// its group anew, with nothing of what it has acknowledged.
fn make_dir(disk: &dyn Disk, dir: &Path, data_dir: &Path) -> Result<()> {
    disk.create_dir_all(dir).map_err(|e| storage::Error::io("create", dir, e))?;
    for parent in dir.ancestors().skip(1).take_while(|parent| parent.starts_with(data_dir)) {
        disk.sync_dir(parent).map_err(|e| storage::Error::io("sync", parent, e))?;
    }
    Ok(())
}

/// Opening reads files and syncs: not on the threads of groups that run already.
async fn blocking<T: Send + 'static>(open: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(open).await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
