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
//! The groups run on a small runtime of their own, so that they never wait behind a query; what blocks on the disk runs
//! on threads of its own (`upkeep.rs`).

use std::path::PathBuf;
use std::sync::Arc;

use futures::future::try_join_all;
use model::schema::{NewColumn, SchemaError};
use model::{Catalog, DatabaseSchema, LogIndex, ShardId, TableId, Term, Timestamp};
use storage::disk::Disk;
use storage::entry::Entry;
use storage::manifest::FileMeta;
use storage::{Outcome, View, WritePart};
use tokio::runtime::Runtime;

use crate::cutoffs::Cutoffs;
use crate::health::Health;
use crate::metadata::command::{Command, Decided};
use crate::metadata::{Metadata, missing};
use crate::metrics::Metrics;
use crate::replica::Replica;
use crate::shard_map::ShardMap;
use crate::start;
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
}

/// What became of a request for columns.
#[derive(Clone, Debug)]
pub struct Agreed {
    /// The catalog that has every column that could be added.
    pub catalog: Arc<Catalog>,
    /// Why the others could not, one each; empty where all are there.
    pub refused: Vec<SchemaError>,
}

/// One line of `system.shards`.
#[derive(Clone, Debug)]
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

/// This node's part of the cluster.
pub struct Cluster {
    pub(crate) node: String,
    pub(crate) metadata: Arc<Metadata>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) health: Arc<Health>,
    pub(crate) cutoffs: Arc<Cutoffs>,
    pub(crate) metrics: Metrics,
    pub(crate) runtime: parking_lot::Mutex<Option<Runtime>>,
}

impl Cluster {
    /// Opens or founds the node's groups and replays their logs; ready when it returns.
    pub async fn start(options: ClusterOptions) -> Result<Arc<Cluster>> {
        start::start(options).await
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
        match self.metadata.decide(Command::DropDatabase { name: name.into() }).await? {
            Decided::Dropped { tables } => self.drop_rows(&tables).await,
            other => expect_done(other, name, None),
        }
    }

    /// Forgets a table and drops its rows in all shards.
    pub async fn drop_table(&self, database: &str, table: &str) -> Result<()> {
        let command = Command::DropTable { database: database.into(), table: table.into() };
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

    /// Has a part kept: returns once it is synced by a majority, committed and applied.
    pub async fn write(&self, shard: ShardId, part: WritePart) -> Result<Applied> {
        self.served(shard)?.replica.write(part).await
    }

    /// The shards that a query must read, all of them local for now.
    pub fn shards(&self) -> Vec<ShardId> {
        self.slots.iter().map(|slot| slot.shard).collect()
    }

    /// A view of a shard that holds every write acknowledged before the call (DESIGN rule 9).
    pub async fn read(&self, shard: ShardId) -> Result<View> {
        self.served(shard)?.replica.read().await
    }

    /// Returns when everything acknowledged before the call is in files named by the manifest.
    pub async fn flush(&self, table: Option<TableId>) -> Result<()> {
        let all = self.slots.iter().map(|slot| async { self.served(slot.shard)?.upkeep.flush(table).await });
        try_join_all(all).await.map(|_| ())
    }

    /// Flushes, then merges until each row stands once.
    pub async fn compact(&self, table: Option<TableId>) -> Result<()> {
        self.flush(table).await?;
        let all = self.slots.iter().map(|slot| async { self.served(slot.shard)?.upkeep.compact(table).await });
        try_join_all(all).await.map(|_| ())
    }

    /// For `system.shards`.
    pub fn shard_status(&self) -> Vec<ShardStatus> {
        let map = self.shard_map();
        let status = |slot: &Slot| {
            let range = map.ranges.iter().find(|r| r.shard == slot.shard);
            let mut status = ShardStatus {
                shard: slot.shard,
                hash_start: range.map_or(0, |r| r.start),
                hash_last: range.map_or(0, |r| r.last),
                leader: None,
                replicas: vec![self.node.clone()],
                term: Term(0),
                applied: None,
                durable: None,
                rows_in_memory: 0,
                wal_bytes: 0,
                stopped: None,
            };
            match &slot.served {
                Err(why) => status.stopped = Some(why.clone()),
                Ok(Served { replica, .. }) => {
                    let (raft, stats) = (replica.raft(), replica.store().stats());
                    status.stopped = replica.stopped();
                    status.leader = (status.stopped.is_none() && raft.is_leader()).then(|| self.node.clone());
                    status.term = replica.term();
                    status.applied = stats.applied;
                    status.durable = replica.log().durable();
                    status.rows_in_memory = stats.memtable_rows;
                    status.wal_bytes = replica.log().bytes();
                }
            }
            status
        };
        self.slots.iter().map(status).collect()
    }

    /// For `system.files`.
    pub fn files(&self) -> Vec<(ShardId, FileMeta)> {
        let served = self.slots.iter().filter_map(|slot| slot.served.as_ref().ok());
        served.flat_map(|s| s.replica.store().files().into_iter().map(|file| (s.replica.shard(), file))).collect()
    }

    /// Returns, with the reason, when the process must stop because its log could not be synced; pends for ever otherwise.
    pub async fn stopped(&self) -> String {
        self.health.wait_stopped().await
    }

    /// Takes no more writes, finishes those that wait, flushes nothing, stops the groups.
    pub async fn shutdown(&self) {
        for served in self.slots.iter().filter_map(|slot| slot.served.as_ref().ok()) {
            if served.replica.stopped().is_none() {
                served.replica.drain().await;
            }
        }
        // The threads may be writing a file: waiting for them must not hold up the caller's runtime.
        let Some(runtime) = self.runtime.lock().take() else { return };
        let upkeep: Vec<_> = self.slots.iter().filter_map(|s| s.served.as_ref().ok()).map(|s| s.upkeep.clone()).collect();
        if runtime.spawn_blocking(move || upkeep.iter().for_each(Upkeep::stop)).await.is_err() {
            tracing::error!("the upkeep threads did not stop cleanly");
        }
        for served in self.slots.iter().filter_map(|slot| slot.served.as_ref().ok()) {
            if let Err(error) = served.replica.raft().shutdown().await {
                tracing::warn!(group = served.replica.name(), %error, "a group did not stop cleanly");
            }
            served.replica.log().mark();
        }
        self.metadata.shutdown().await;
        runtime.shutdown_background();
    }

    fn served(&self, shard: ShardId) -> Result<&Served> {
        let at = self.slots.binary_search_by_key(&shard, |slot| slot.shard).map_err(|_| Error::NoLeader { shard })?;
        let stopped = |why: &String| Error::Stopped { what: format!("shard {shard}"), why: why.clone() };
        self.slots[at].served.as_ref().map_err(stopped)
    }

    /// Tells every shard that these tables' rows are gone. A shard that has stopped drops them when it starts again.
    async fn drop_rows(&self, tables: &[TableId]) -> Result<()> {
        let running = self.slots.iter().filter_map(|slot| slot.served.as_ref().ok());
        let all = running.filter(|s| s.replica.stopped().is_none()).map(|served| async {
            for &table in tables {
                served.replica.propose(Entry::DropTable { table }).await?;
            }
            Ok::<(), Error>(())
        });
        try_join_all(all).await.map(|_| ())
    }
}

impl Drop for Cluster {
    /// Without [`shutdown`](Cluster::shutdown) this is a crash as far as anyone can see: what waits has no answer. The
    /// threads are still ended, so that the data directory can be opened again in this process.
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.lock().take() else { return };
        let upkeep: Vec<_> = self.slots.iter().filter_map(|s| s.served.as_ref().ok()).map(|s| s.upkeep.clone()).collect();
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
        Decided::Done | Decided::Added { .. } | Decided::Dropped { .. } => Ok(()),
        Decided::Schema(error) => Err(Error::Schema(error)),
        Decided::NoDatabase => Err(Error::NoDatabase { name: database.to_owned() }),
        Decided::TokenExists => Err(Error::TokenExists { name: database.to_owned() }),
        Decided::TooManyTokens => Err(Error::TooManyTokens),
        Decided::NoAdminLeft => Err(Error::NoAdminLeft),
        Decided::NoTable => Err(Error::NoTable { name: table.unwrap_or_default().to_owned() }),
        Decided::DatabaseExists { routing_tag } => {
            Err(Error::DatabaseExists { name: database.to_owned(), routing_tag: routing_tag.to_string() })
        }
    }
}
