//! This node's part of the cluster: its shards' replicas, the metadata group, and what other crates may ask of them.
//!
//! ```text
//! DIR/identity            cluster, node, number of starts          identity.rs
//! DIR/meta/wal/…          the metadata group's log                 storage::wal
//! DIR/meta/snapshot       its state, saved from time to time       metadata/machine.rs
//! DIR/shards/N/replica    the replica's number                     identity.rs
//! DIR/shards/N/wal/…      the shard's log                          storage::wal
//! DIR/shards/N/data/…     its manifest and Parquet files           storage::shard
//! ```
//!
//! The groups and the way to peers run on a small runtime of their own, so that they never wait behind a query; what
//! blocks on the disk runs on threads of its own (`upkeep.rs`). What is asked here of a shard is asked wherever the shard
//! is led (`forward.rs`), but for [`Cluster::read`], which reads this node's own replica.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use model::schema::{NewColumn, SchemaError};
use model::{Catalog, DatabaseSchema, LogIndex, NodeId, ShardId, TableId, Term, Timestamp};
use serde::{Deserialize, Serialize};
use storage::disk::Disk;
use storage::entry::Entry;
use storage::manifest::FileMeta;
use storage::{Outcome, View};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::cutoffs::Cutoffs;
use crate::forward::{At, Forwards};
use crate::group::{self, GroupId};
use crate::metadata::command::{Command, Decided};
use crate::metadata::{Metadata, missing};
use crate::metrics::Metrics;
use crate::moves::Move;
use crate::nodes::{NodeInfo, NodeState, Roles};
use crate::peer::{Lane, PeerDoor, Peers};
use crate::residents::{Residents, Served};
use crate::shard_map::ShardMap;
use crate::start::{self, Shared};
use crate::tokens::{self, MAX_TOKEN_NAME_BYTES, Token};
use crate::upkeep::Upkeep;
use crate::{Error, Result};

/// Where the time of day comes from; the real one is made in `alluvium`.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How long a node that goes away without [`Cluster::shutdown`] waits for its groups' tasks.
const ABANDON_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Proof that a write was synced by a majority, committed and applied; only this can become a 204.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub(crate) outcome: Outcome,
}

impl Applied {
    /// What became of it.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }
}

/// How this node takes part.
#[derive(Clone)]
pub struct ClusterOptions {
    /// This node's name, unique in the cluster (`--node-id`).
    pub node: String,
    /// The data directory (locked by the caller).
    pub data_dir: PathBuf,
    /// The file system.
    pub disk: Arc<dyn Disk>,
    /// Shards of a new data directory; an existing one keeps its own.
    pub shards: u32,
    /// The time of day.
    pub clock: Clock,
    /// Seed of the numbers that this node draws: its cluster's, its replicas'.
    pub seed: u64,
    /// Memtable bytes of one shard at which it is sealed and flushed.
    pub flush_bytes: usize,
    /// Bytes of last rows kept at hand per shard.
    pub last_rows_bytes: usize,
    /// Bytes of writes that may wait for one shard.
    pub max_waiting_bytes: usize,
    /// How it finds and speaks to others; `None`: it is alone.
    pub peers: Option<PeerOptions>,
}

/// How a node finds and speaks to others.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// What it can be asked to do.
    pub roles: Roles,
    /// Where it speaks HTTP, as others reach it: `HOST:PORT`.
    pub http: String,
    /// Where it speaks to peers, as others reach it: `HOST:PORT`.
    pub rpc: String,
    /// Addresses to ask for the cluster.
    pub join: Vec<String>,
    /// Found a cluster once so many storage nodes have found each other.
    pub bootstrap_expect: Option<u32>,
    /// Replicas that a shard of a new cluster should have.
    pub replicas: Option<u32>,
    /// A node out of reach for so long is taken to be gone: see [`GONE_AFTER`].
    pub gone_after: Duration,
    /// What answers peers; the program hands requests in from the moment that it is made.
    pub door: Arc<PeerDoor>,
}

/// A node out of reach for so long is taken to be gone: its replicas are made anew elsewhere, and without any it is
/// forgotten.
pub const GONE_AFTER: Duration = Duration::from_secs(600);
/// How long writes that wait may take once the node stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a node may take to tell its figures before the answer does without it.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// What became of a request for columns.
#[derive(Clone, Debug)]
pub struct Agreed {
    /// The catalog that has every column that could be added.
    pub catalog: Arc<Catalog>,
    /// Why the others could not, one each; empty where all are there.
    pub refused: Vec<SchemaError>,
}

/// One line of `system.shards`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardStatus {
    /// The shard.
    pub shard: ShardId,
    /// First routing hash.
    pub hash_start: u64,
    /// Last routing hash, inclusive.
    pub hash_last: u64,
    /// Node that leads it, if any.
    pub leader: Option<String>,
    /// Nodes that hold it.
    pub replicas: Vec<String>,
    /// The current term.
    pub term: Term,
    /// The last entry applied.
    pub applied: Option<LogIndex>,
    /// The last entry synced here.
    pub durable: Option<LogIndex>,
    /// Rows in memtables.
    pub rows_in_memory: u64,
    /// Bytes of log segments in use.
    pub wal_bytes: u64,
    /// Why it has stopped, if it has.
    pub stopped: Option<String>,
}

/// What a node tells of its shards.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct NodeFigures {
    shards: Vec<ShardStatus>,
    files: Vec<(ShardId, FileMeta)>,
}

/// This node's part of the cluster.
pub struct Cluster {
    pub(crate) metadata: Arc<Metadata>,
    pub(crate) residents: Residents,
    pub(crate) forwards: Forwards,
    /// `None`: a node that is alone.
    pub(crate) peers: Option<Arc<Peers>>,
    pub(crate) cutoffs: Arc<Cutoffs>,
    pub(crate) metrics: Metrics,
    pub(crate) max_waiting_bytes: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) runtime: parking_lot::Mutex<Option<Runtime>>,
}

impl Cluster {
    /// Opens or founds the node's groups and replays their logs; ready when it returns.
    pub async fn start(options: ClusterOptions) -> Result<Arc<Cluster>> {
        start::start(options).await
    }

    /// Runs something beside the groups: never anything that blocks.
    pub(crate) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.shared.runtime.spawn(task)
    }

    /// The runtime of the groups, where the port of peers is served: heartbeats come in there.
    pub fn handle(&self) -> &tokio::runtime::Handle {
        &self.shared.runtime
    }

    /// This node's number.
    pub fn node_id(&self) -> NodeId {
        self.shared.me.id
    }

    /// This node, as it has told the cluster.
    pub fn this_node(&self) -> &NodeInfo {
        &self.shared.me
    }

    /// The cluster's number.
    pub fn cluster_id(&self) -> u128 {
        self.shared.cluster
    }

    /// The way to the other nodes; `None` for a node that is alone.
    pub fn peers(&self) -> Option<&Arc<Peers>> {
        self.peers.as_ref()
    }

    /// All nodes, those that are gone included, as this node knows them.
    pub fn nodes(&self) -> Vec<NodeInfo> {
        self.metadata.state().nodes.values().cloned().collect()
    }

    /// A node, as this one knows it.
    pub fn node(&self, node: NodeId) -> Option<NodeInfo> {
        self.metadata.state().nodes.get(&node).cloned()
    }

    /// Whether a node answers, within a second.
    pub async fn is_alive(&self, node: NodeId) -> bool {
        self.in_reach(node).await
    }

    /// Where a shard's replicas should be; the first should lead.
    pub fn replicas(&self, shard: ShardId) -> Vec<NodeId> {
        self.metadata.state().placements.get(&shard).map(|placement| placement.replicas.clone()).unwrap_or_default()
    }

    /// Returns when this node knows every database, table and column that was decided before the call.
    pub async fn refresh(&self) -> Result<()> {
        self.metadata.refresh().await
    }

    /// Says whether shards may be placed on a node; a draining one gives away those that it has.
    pub async fn set_node_state(&self, node: NodeId, state: NodeState) -> Result<()> {
        match self.metadata.decide(Command::SetNodeState { node, state }).await? {
            Decided::Outdated => Err(Error::Outdated { what: format!("node {node} is not known") }),
            other => expect_done(other, "", None),
        }
    }

    /// Says where a shard's replicas should be, if they should still be where the asker thought. Returns once that is
    /// decided; the replicas then move by themselves.
    pub async fn place(&self, shard: ShardId, were: Vec<NodeId>, replicas: Vec<NodeId>) -> Result<()> {
        let asked = Some((self.shared.options.clock)());
        match self.metadata.decide(Command::Place { shard, were, replicas, asked }).await? {
            Decided::Outdated => Err(Error::Outdated { what: format!("the replicas of shard {shard} have other places") }),
            other => expect_done(other, "", None),
        }
    }

    /// What is and was on its way: replicas to other places, shards to be split.
    pub fn moves(&self) -> Vec<Move> {
        self.metadata.state().moves.lines().to_vec()
    }

    /// The databases, tables and columns as this node knows them now; cheap.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.metadata.state().catalog.clone()
    }

    /// The shard map as this node knows it now; cheap.
    pub fn shard_map(&self) -> Arc<ShardMap> {
        self.metadata.state().shards.clone().expect("a node starts only with a founded cluster")
    }

    /// What an operator watches.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Creates a database. One that exists alike is fine.
    pub async fn create_database(&self, name: &str, routing_tag: Option<&str>, retention_ns: Option<i64>) -> Result<Arc<DatabaseSchema>> {
        let command = Command::CreateDatabase { name: name.into(), routing_tag: routing_tag.map(Into::into), retention_ns };
        expect_done(self.metadata.decide(command).await?, name, None)?;
        if retention_ns.is_some() {
            self.cutoffs.advance().await?;
        }
        self.catalog().database(name).cloned().ok_or_else(|| Error::NoDatabase { name: name.to_owned() })
    }

    /// Agrees on new tables and columns; those that are there already alike are fine, a conflict is told for each and
    /// the others are still added.
    pub async fn add_columns(&self, database: &str, tables: Vec<(Arc<str>, Vec<NewColumn>)>) -> Result<Agreed> {
        let catalog = self.catalog();
        let Some(schema) = catalog.database(database) else { return Err(Error::NoDatabase { name: database.to_owned() }) };
        let missing = missing(schema, &tables);
        if missing.is_empty() {
            return Ok(Agreed { catalog, refused: Vec::new() });
        }
        let mut refused = Vec::new();
        for decided in self.metadata.add_columns(&schema.name, missing).await? {
            match decided {
                Decided::Added { refused: more } => refused.extend(more),
                other => expect_done(other, database, None)?,
            }
        }
        Ok(Agreed { catalog: self.catalog(), refused })
    }

    /// Forgets a database and drops its tables' rows in all shards.
    pub async fn drop_database(&self, name: &str) -> Result<()> {
        let asked = self.shared.chance.lock().number();
        match self.metadata.decide(Command::DropDatabase { name: name.into(), asked }).await? {
            Decided::Dropped { tables } => self.drop_rows(&tables).await,
            other => expect_done(other, name, None),
        }
    }

    /// Forgets a table and drops its rows in all shards.
    pub async fn drop_table(&self, database: &str, table: &str) -> Result<()> {
        let asked = self.shared.chance.lock().number();
        let command = Command::DropTable { database: database.into(), table: table.into(), asked };
        match self.metadata.decide(command).await? {
            Decided::Dropped { tables } => self.drop_rows(&tables).await,
            other => expect_done(other, database, Some(table)),
        }
    }

    /// Sets how long rows are kept; `None` for ever.
    pub async fn set_retention(&self, database: &str, retention_ns: Option<i64>) -> Result<()> {
        let decided = self.metadata.decide(Command::SetRetention { database: database.into(), retention_ns }).await?;
        expect_done(decided, database, None)?;
        self.cutoffs.advance().await
    }

    /// The instant before which rows of a database are refused and hidden, if it has (or had) a retention.
    pub fn cutoff(&self, database: &DatabaseSchema) -> Option<Timestamp> {
        self.metadata.state().cutoffs.get(&database.id).copied()
    }

    /// Makes an access token known to all nodes. The same one again is fine.
    pub async fn create_token(&self, token: Token) -> Result<()> {
        let name = token.name.to_string();
        if name.is_empty() || name.len() > MAX_TOKEN_NAME_BYTES || name.chars().any(char::is_control) {
            return Err(Error::BadTokenName);
        }
        expect_done(self.metadata.decide(Command::CreateToken { token }).await?, &name, None)
    }

    /// Puts an access token in the place of whatever has its name.
    pub async fn reset_token(&self, token: Token) -> Result<()> {
        let name = token.name.to_string();
        expect_done(self.metadata.decide(Command::ResetToken { token }).await?, &name, None)
    }

    /// Forgets an access token: once this returns, this node lets nobody in by it any more, the others within moments.
    pub async fn revoke_token(&self, name: &str) -> Result<()> {
        if !self.metadata.state().tokens.contains_key(name) {
            return Err(Error::NoToken { name: name.to_owned() });
        }
        expect_done(self.metadata.decide(Command::RevokeToken { name: name.into() }).await?, name, None)
    }

    /// All access tokens, by name.
    pub fn tokens(&self) -> Vec<Arc<Token>> {
        self.metadata.state().tokens.values().cloned().collect()
    }

    /// Whether there is any token: from then on requests need one.
    pub fn has_tokens(&self) -> bool {
        !self.metadata.state().tokens.is_empty()
    }

    /// The token of a secret, if there is one.
    pub fn authorize(&self, secret: &str) -> Option<Arc<Token>> {
        tokens::find(self.metadata.state().tokens.values(), secret).cloned()
    }

    /// All shards, wherever they are.
    pub fn shards(&self) -> Vec<ShardId> {
        self.shard_map().ranges.iter().map(|range| range.shard).collect()
    }

    /// A view of a shard that holds every write acknowledged before the call (DESIGN rule 9), of this node's own
    /// replica; [`Error::NotHere`] where another leads the shard, naming it if this node knows who.
    pub async fn read(&self, shard: ShardId) -> Result<View> {
        match self.residents.served(shard) {
            Ok(slot) => slot.replica()?.read().await,
            Err(_) => Err(Error::NotHere { shard, leader: self.leader(shard) }),
        }
    }

    /// A view of this node's own replica as it is, and how old it may be: of the leader's, since a majority last
    /// knew it as such; `None` where it has
    /// not heard from a leader yet.
    pub fn read_stale(&self, shard: ShardId) -> Result<(View, Option<Duration>)> {
        let slot = self.residents.served(shard)?;
        let replica = slot.replica()?;
        replica.refuse_if_stopped()?;
        let view = replica.view();
        if let Some(age) = replica.age_as_leader() {
            return Ok((view, Some(age)));
        }
        let connected = self.shared.switchboard.as_ref().and_then(|switchboard| switchboard.group(GroupId::Shard(shard)));
        let age = connected.and_then(|(_, heard)| heard.age(view.applied().map(|index| index.0)));
        Ok((view, age))
    }

    /// Returns when everything acknowledged before the call is in files named by the manifest.
    pub async fn flush(&self, table: Option<TableId>) -> Result<()> {
        let all = self.shards().into_iter().map(|shard| self.upkeep(shard, "flush", table));
        try_join_all(all).await.map(|_| ())
    }

    /// Flushes, then merges until each row stands once.
    pub async fn compact(&self, table: Option<TableId>) -> Result<()> {
        self.flush(table).await?;
        let all = self.shards().into_iter().map(|shard| self.upkeep(shard, "compact", table));
        try_join_all(all).await.map(|_| ())
    }

    async fn upkeep(&self, shard: ShardId, what: &'static str, table: Option<TableId>) -> Result<()> {
        self.at_leader(shard, |at| async move {
            match at {
                At::Here(_) => self.upkeep_here(shard, what, table).await,
                At::There(node) => {
                    let body = table.map_or_else(String::new, |table| table.to_string());
                    self.ask(node, shard, what, Bytes::from(body)).await
                }
            }
        })
        .await
    }

    async fn upkeep_here(&self, shard: ShardId, what: &str, table: Option<TableId>) -> Result<()> {
        let slot = self.residents.served(shard)?;
        let upkeep = slot.running()?.upkeep.clone();
        match what {
            "flush" => upkeep.flush(table).await,
            _ => upkeep.compact(table).await,
        }
    }

    /// Flushes a shard for another node.
    pub(crate) async fn flush_for_peer(&self, shard: ShardId, table: &[u8]) -> Result<Bytes> {
        self.upkeep_here(shard, "flush", table_of(table)?).await.map(|()| Bytes::new())
    }

    /// Compacts a shard for another node.
    pub(crate) async fn compact_for_peer(&self, shard: ShardId, table: &[u8]) -> Result<Bytes> {
        self.upkeep_here(shard, "compact", table_of(table)?).await.map(|()| Bytes::new())
    }

    /// For `system.shards`: all shards, with the figures of this node's replicas.
    pub fn shard_status(&self) -> Vec<ShardStatus> {
        let state = self.metadata.state().clone();
        let name = |node: NodeId| state.nodes.get(&node).map_or_else(|| node.to_string(), |n| n.name.clone());
        let status = |range: &crate::shard_map::ShardRange| {
            let mut status = ShardStatus {
                shard: range.shard,
                hash_start: range.start,
                hash_last: range.last,
                leader: self.leader(range.shard).map(name),
                replicas: self.replicas(range.shard).into_iter().map(name).collect(),
                term: Term(0),
                applied: None,
                durable: None,
                rows_in_memory: 0,
                wal_bytes: 0,
                stopped: None,
            };
            match self.residents.get(range.shard).as_ref().map(|slot| &slot.served) {
                None => {}
                Some(Err(why)) => {
                    status.stopped = Some(why.clone());
                    status.leader = None;
                }
                Some(Ok(Served { replica, .. })) => {
                    let stats = replica.store().stats();
                    status.stopped = replica.stopped();
                    if status.stopped.is_some() {
                        status.leader = None;
                    }
                    status.term = replica.term();
                    status.applied = stats.applied;
                    status.durable = replica.log().durable();
                    status.rows_in_memory = stats.memtable_rows;
                    status.wal_bytes = replica.log().bytes();
                }
            }
            status
        };
        self.shard_map().ranges.iter().map(status).collect()
    }

    /// For `system.shards` and `system.files` of the whole cluster: each shard as its leader sees it, or, where nobody
    /// leads it, as whoever has it does. A node that does not answer in time is left out.
    pub async fn figures(&self) -> (Vec<ShardStatus>, Vec<(ShardId, FileMeta)>) {
        let own = self.status_for_peer();
        let Some(peers) = &self.peers else { return (own.shards, own.files) };
        let others = self.nodes().into_iter().filter(|node| node.roles.storage && node.id != peers.me() && node.state != NodeState::Gone);
        let asked = others.map(|node| async move {
            let call = peers.call(node.id, Lane::Asks, "/peer/v1/status", Bytes::new());
            let answer = tokio::time::timeout(STATUS_TIMEOUT, call).await.ok()?.ok()?;
            Some((node.name, serde_json::from_slice::<NodeFigures>(&answer).ok()?))
        });
        let mut figures = vec![(self.shared.me.name.clone(), own)];
        figures.extend(join_all(asked).await.into_iter().flatten());
        let mut shards = self.shard_status();
        let mut files = Vec::new();
        for status in &mut shards {
            let of = |figures: &NodeFigures| figures.shards.iter().find(|s| s.shard == status.shard).cloned();
            let leads = |(name, figures): &&(String, NodeFigures)| of(figures).is_some_and(|s| s.leader.as_ref() == Some(name));
            let holds = |(_, figures): &&(String, NodeFigures)| of(figures).is_some_and(|s| s.applied.is_some());
            let Some((_, best)) = figures.iter().find(leads).or_else(|| figures.iter().find(holds)) else { continue };
            files.extend(best.files.iter().filter(|(shard, _)| *shard == status.shard).cloned());
            *status = of(best).expect("it was found by it");
        }
        (shards, files)
    }

    /// What this node tells of its shards.
    pub(crate) fn status_for_peer(&self) -> NodeFigures {
        NodeFigures { shards: self.shard_status(), files: self.files() }
    }

    /// For `system.files`: those of this node's replicas.
    pub fn files(&self) -> Vec<(ShardId, FileMeta)> {
        let slots = self.residents.all();
        let served = slots.iter().filter_map(|slot| slot.served.as_ref().ok());
        served.flat_map(|s| s.replica.store().files().into_iter().map(|file| (s.replica.shard(), file))).collect()
    }

    /// Returns, with the reason, when the process must stop because its log could not be synced; pends for ever otherwise.
    pub async fn stopped(&self) -> String {
        self.shared.health.wait_stopped().await
    }

    /// Returns when each of this node's groups has a leader, or when it takes too long.
    pub(crate) async fn wait_for_leaders(&self, patience: Duration) {
        for replica in self.residents.running() {
            let led = replica.raft().wait(Some(patience)).metrics(|m| m.current_leader.is_some(), "the group has a leader").await;
            if led.is_err() {
                tracing::warn!(group = replica.name(), "nobody leads it yet");
            }
        }
    }

    /// Hands the groups that this node leads to others, where another can lead; for a node that is about to stop.
    pub async fn hand_over(&self) {
        if self.peers.is_none() {
            return;
        }
        let shards = self.residents.running().into_iter().map(|replica| async move { group::hand_over(replica.raft()).await });
        let metadata = async {
            if let Some(own) = self.metadata.own() {
                group::hand_over(&own.raft).await;
            }
        };
        futures::future::join(join_all(shards), metadata).await;
    }

    /// Takes no more writes, finishes those that wait, flushes nothing, stops the groups.
    pub async fn shutdown(&self) {
        self.hand_over().await;
        let draining = join_all(self.residents.running().into_iter().map(|replica| async move { replica.drain().await }));
        if tokio::time::timeout(DRAIN_TIMEOUT, draining).await.is_err() {
            // A leader that was cut off from the others cannot settle what it was given; its writers learn that below.
            tracing::warn!("some writes were not settled in time; their outcome is unknown");
        }
        // The threads may be writing a file: waiting for them must not hold up the caller's runtime. It is taken out only at the
        // end: whoever loses patience before leaves it to `drop`.
        let Some(runtime) = self.runtime.lock().as_ref().map(|runtime| runtime.handle().clone()) else { return };
        let upkeep = self.all_upkeep();
        if runtime.spawn_blocking(move || upkeep.iter().for_each(Upkeep::stop)).await.is_err() {
            tracing::error!("the upkeep threads did not stop cleanly");
        }
        for slot in self.residents.all() {
            let Ok(served) = &slot.served else { continue };
            if let Err(error) = served.replica.raft().shutdown().await {
                tracing::warn!(group = served.replica.name(), %error, "a group did not stop cleanly");
            }
            served.replica.log().mark();
        }
        self.metadata.shutdown().await;
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }

    fn all_upkeep(&self) -> Vec<Upkeep> {
        self.residents.all().iter().filter_map(|slot| slot.served.as_ref().ok()).map(|served| served.upkeep.clone()).collect()
    }

    /// Tells every shard that these tables' rows are gone. A shard that has stopped drops them when it starts again.
    async fn drop_rows(&self, tables: &[TableId]) -> Result<()> {
        let all = self.shards_that_run().into_iter().map(|shard| async move {
            for &table in tables {
                self.propose(shard, Entry::DropTable { table }).await?;
            }
            Ok::<(), Error>(())
        });
        // A shard that cannot be told now is told when it is led again; the others are told all the same.
        join_all(all).await.into_iter().collect()
    }

    /// All shards but those of which this node knows that they have stopped here and are nowhere else.
    pub(crate) fn shards_that_run(&self) -> Vec<ShardId> {
        let stopped = |shard: &ShardId| {
            self.peers.is_none()
                && self.residents.get(*shard).is_some_and(|slot| match &slot.served {
                    Ok(served) => served.replica.stopped().is_some(),
                    Err(_) => true,
                })
        };
        self.shards().into_iter().filter(|shard| !stopped(shard)).collect()
    }
}

impl Drop for Cluster {
    /// Without [`shutdown`](Cluster::shutdown) this is a crash as far as anyone can see: what waits has no answer. The
    /// threads are still ended, so that the data directory can be opened again in this process.
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.lock().take() else { return };
        let upkeep = self.all_upkeep();
        // On a thread of its own: this may be a task of another runtime, where waiting like this is not allowed.
        let ended = std::thread::spawn(move || {
            upkeep.iter().for_each(Upkeep::stop);
            runtime.shutdown_timeout(ABANDON_TIMEOUT);
        });
        if ended.join().is_err() {
            tracing::error!("the groups did not end cleanly");
        }
    }
}

/// The error that a decision means, if it means one; `database` is the name that was decided on, of a token too.
fn expect_done(decided: Decided, database: &str, table: Option<&str>) -> Result<()> {
    match decided {
        Decided::Done | Decided::Added { .. } | Decided::Dropped { .. } | Decided::SplitOff { .. } => Ok(()),
        Decided::Schema(error) => Err(Error::Schema(error)),
        Decided::NoDatabase => Err(Error::NoDatabase { name: database.to_owned() }),
        Decided::TokenExists => Err(Error::TokenExists { name: database.to_owned() }),
        Decided::TooManyTokens => Err(Error::TooManyTokens),
        Decided::NoAdminLeft => Err(Error::NoAdminLeft),
        Decided::NoTable => Err(Error::NoTable { name: table.unwrap_or_default().to_owned() }),
        Decided::DatabaseExists { routing_tag } => {
            Err(Error::DatabaseExists { name: database.to_owned(), routing_tag: routing_tag.to_string() })
        }
        Decided::Outdated => Err(Error::Outdated { what: database.to_owned() }),
    }
}

/// The table that another node names, if it names one.
fn table_of(text: &[u8]) -> Result<Option<TableId>> {
    if text.is_empty() {
        return Ok(None);
    }
    let unreadable = || Error::PeerFailed { node: "a peer".to_owned(), why: "the table that it names is none".to_owned() };
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.map(|id| Some(TableId(id))).ok_or_else(unreadable)
}
