//! How a node starts: whose directory is this, the metadata group, then all shards at once, then their upkeep.
//!
//! It returns only when every log is replayed and every group leads. One shard that is damaged does not keep the node
//! from starting: it is told in its status and its part of the rows is an error, never missing in silence. A damaged
//! metadata group does, because without it no row has a name.

use std::path::PathBuf;
use std::sync::Arc;

use model::{ErrorKind, ReplicaId, ShardId};
use storage::wal::{Syncer, WalOptions};
use storage::{Shard, ShardOptions};
use tokio::runtime::Handle;

use crate::clock::SteadyClock;
use crate::cutoffs::Cutoffs;
use crate::group::{self, GroupKind, Member};
use crate::health::{GroupHealth, Health};
use crate::identity::{Chance, Identity, take_replica};
use crate::log_store::{LogStore, ToldOfFailures};
use crate::metadata::command::Command;
use crate::metadata::{Metadata, MetadataMachine};
use crate::metrics::Metrics;
use crate::node::{Cluster, ClusterOptions, Served, Slot};
use crate::replica::{Replica, ReplicaParts};
use crate::room::Room;
use crate::shard_map::ShardMap;
use crate::state_machine::{Progress, ShardMachine};
use crate::upkeep::Upkeep;
use crate::{Error, Result};

/// What messages call the metadata group.
const METADATA: &str = "the metadata group";
/// Threads of the groups' runtime.
const GROUP_THREADS: usize = 2;
/// First and largest segment of a shard's log.
const SHARD_SEGMENT_BYTES: (u64, u64) = (4 << 20, 64 << 20);
/// First and largest segment of the metadata group's log.
const METADATA_SEGMENT_BYTES: (u64, u64) = (1 << 20, 4 << 20);
/// Free bytes below which no write is let in.
const RESERVE_BYTES: u64 = 32 << 20;

pub(crate) async fn start(options: ClusterOptions) -> Result<Arc<Cluster>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(GROUP_THREADS)
        .thread_name("groups")
        .enable_time()
        .build()
        .map_err(|e| storage::Error::io("start the threads for", &options.data_dir, e))?;
    let started = runtime.spawn(open(options, runtime.handle().clone())).await;
    match started.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
        Ok(cluster) => {
            *cluster.runtime.lock() = Some(runtime);
            Ok(cluster)
        }
        Err(error) => {
            runtime.shutdown_background();
            Err(error)
        }
    }
}

async fn open(options: ClusterOptions, runtime: Handle) -> Result<Arc<Cluster>> {
    let disk = options.disk.clone();
    let mut chance = Chance::new(options.seed);
    let make_dir = |dir: PathBuf| disk.create_dir_all(&dir).map_err(|e| storage::Error::io("create", dir, e));
    make_dir(options.data_dir.clone())?;
    let identity = Identity::take(&*disk, &options.data_dir, &options.node, &mut chance)?;
    let syncer = Syncer::start();
    let metrics = Metrics::new(syncer.metrics().clone());
    let shared = Arc::new(Shared {
        room: Arc::new(Room::new(disk.clone(), options.data_dir.clone(), RESERVE_BYTES)),
        health: Arc::new(Health::new()),
        syncer,
        metrics,
        identity,
        options,
        runtime,
    });

    make_dir(shared.options.data_dir.join("meta"))?;
    let metadata = shared.clone().open_metadata().await?;
    if metadata.state().cluster.is_none() {
        let shards = ShardMap::even(shared.options.shards);
        metadata.decide(Command::Found { cluster: shared.identity.cluster, shards }).await?;
    }
    shared.refuse_another_cluster(&metadata)?;

    let map = metadata.state().shards.clone().expect("just founded");
    let mut opening = Vec::new();
    for range in &map.ranges {
        let dir = shared.options.data_dir.join("shards").join(range.shard.to_string());
        make_dir(dir.clone())?;
        let new = ReplicaId(chance.number());
        opening.push((range.shard, tokio::spawn(shared.clone().open_shard(range.shard, new, dir, metadata.clone()))));
    }
    let mut slots = Vec::new();
    for (shard, opened) in opening {
        let opened = opened.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let served = match opened {
            Ok(served) => Ok(served),
            Err(error) if error.kind() == ErrorKind::Broken => {
                tracing::error!(%shard, %error, "a shard could not be opened; the others go on");
                Err(error.to_string())
            }
            Err(error) => return Err(error),
        };
        slots.push(Slot { shard, served });
    }
    slots.sort_by_key(|slot| slot.shard);

    let replicas = slots.iter().filter_map(|slot| slot.served.as_ref().ok()).map(|s| s.replica.clone()).collect();
    let cutoffs = Cutoffs::new(metadata.clone(), replicas, SteadyClock::new(shared.options.clock.clone()));
    cutoffs.advance().await?;
    tokio::spawn(cutoffs.clone().keep_moving());
    let cluster = Arc::new(Cluster {
        node: shared.identity.name.clone(),
        metadata,
        slots,
        health: shared.health.clone(),
        cutoffs,
        metrics: shared.metrics.clone(),
        runtime: parking_lot::Mutex::new(None),
    });
    tracing::info!(
        node = shared.identity.name,
        incarnation = shared.identity.incarnation,
        shards = cluster.slots.len(),
        "the node's groups lead"
    );
    Ok(cluster)
}

/// What all groups of the node share.
struct Shared {
    options: ClusterOptions,
    identity: Identity,
    health: Arc<Health>,
    room: Arc<Room>,
    syncer: Syncer,
    metrics: Metrics,
    runtime: Handle,
}

impl Shared {
    fn wal(&self, dir: PathBuf, (first, max): (u64, u64)) -> WalOptions {
        WalOptions { disk: self.options.disk.clone(), syncer: self.syncer.clone(), dir, first_segment_bytes: first, max_segment_bytes: max }
    }

    fn member(&self, replica: ReplicaId) -> Member {
        Member { name: self.identity.name.clone(), replica }
    }

    async fn open_metadata(self: Arc<Shared>) -> Result<Arc<Metadata>> {
        let dir = self.options.data_dir.join("meta");
        let node = self.identity.node.0;
        let shared = self.clone();
        let (log, (machine, published)) = blocking(move || {
            let wal = shared.wal(dir.join("wal"), METADATA_SEGMENT_BYTES);
            let told = ToldOfFailures { group: Arc::default(), node: shared.health.clone() };
            let log = LogStore::open(GroupKind::Metadata, METADATA, wal, node, told)?;
            Ok((log, MetadataMachine::open(shared.options.disk.clone(), dir.join("snapshot"))?))
        })
        .await?;
        // One metadata group a cluster: its replicas are told apart by the cluster's number and the node's.
        let replica = ReplicaId(self.identity.cluster ^ u128::from(node));
        let shared_log = log.log();
        let raft = group::start(METADATA, node, self.member(replica), log, machine).await?;
        Ok(Metadata::new(raft, shared_log, self.runtime.clone(), published))
    }

    fn refuse_another_cluster(&self, metadata: &Metadata) -> Result<()> {
        if metadata.state().cluster == Some(self.identity.cluster) {
            return Ok(());
        }
        let path = self.options.data_dir.join("meta");
        let what = "it belongs to another cluster than the directory it is in".to_owned();
        Err(Error::Storage(storage::Error::Corrupt { path, at: 0, what }))
    }

    async fn open_shard(self: Arc<Shared>, shard: ShardId, new: ReplicaId, dir: PathBuf, metadata: Arc<Metadata>) -> Result<Served> {
        let name = format!("shard {shard}");
        let node = self.identity.node.0;
        let health = Arc::new(GroupHealth::default());
        let (shared, log_name, group_health) = (self.clone(), name.clone(), health.clone());
        let (log, store, replica) = blocking(move || {
            let options = &shared.options;
            let replica = take_replica(&*options.disk, &dir, new)?;
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
            Ok((LogStore::open(GroupKind::Shard, &log_name, wal, node, told)?, Arc::new(store), replica))
        })
        .await?;
        let progress = Arc::new(Progress::default());
        let machine = ShardMachine::open(name.clone(), store.clone(), progress.clone(), health.clone())?;
        let shared_log = log.log();
        let raft = group::start(&name, node, self.member(replica), log, machine).await?;
        shared_log.note_membership(&group::membership(&raft));
        let replica = Replica::new(ReplicaParts {
            shard,
            name,
            store,
            raft,
            log: shared_log,
            progress: progress.clone(),
            health,
            node_health: self.health.clone(),
            room: self.room.clone(),
            runtime: self.runtime.clone(),
            metrics: self.metrics.clone(),
            max_waiting_bytes: self.options.max_waiting_bytes,
            flush_bytes: self.options.flush_bytes,
        });
        let upkeep = Upkeep::start(replica.clone(), metadata, self.runtime.clone(), self.options.flush_bytes);
        progress.upkeep.set(upkeep.flush_asks()).expect("set once");
        Ok(Served { replica, upkeep })
    }
}

/// Opening reads files and syncs: not on the threads of groups that run already.
async fn blocking<T: Send + 'static>(open: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(open).await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
