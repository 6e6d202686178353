//! This node's part of the cluster: its shards' replicas, the metadata group, and what other crates may ask of them.

use std::path::PathBuf;
use std::sync::Arc;

use model::schema::{NewColumn, SchemaError};
use model::{Catalog, DatabaseSchema, LogIndex, ShardId, TableId, Term, Timestamp};
use storage::disk::Disk;
use storage::manifest::FileMeta;
use storage::{Outcome, View, WritePart};

use crate::Result;
use crate::shard_map::ShardMap;

/// Where the time of day comes from; the real one is made in `alluvium`.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

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
    /// Seed of everything random (election timeouts, uuids).
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

/// This node's part of the cluster.
pub struct Cluster {}

impl Cluster {
    /// Opens or founds the node's groups and replays their logs; ready when it returns.
    pub async fn start(_options: ClusterOptions) -> Result<Arc<Cluster>> {
        unimplemented!("cluster owner")
    }

    /// The databases, tables and columns as this node knows them now; cheap.
    pub fn catalog(&self) -> Arc<Catalog> {
        unimplemented!("cluster owner")
    }

    /// The shard map as this node knows it now; cheap.
    pub fn shard_map(&self) -> Arc<ShardMap> {
        unimplemented!("cluster owner")
    }

    /// Creates a database. One that exists alike is fine.
    pub async fn create_database(
        &self,
        _name: &str,
        _routing_tag: Option<&str>,
        _retention_ns: Option<i64>,
    ) -> Result<Arc<DatabaseSchema>> {
        unimplemented!("cluster owner")
    }

    /// Agrees on new tables and columns; those that are there already alike are fine, a conflict is told for each and
    /// the others are still added.
    pub async fn add_columns(&self, _database: &str, _tables: Vec<(Arc<str>, Vec<NewColumn>)>) -> Result<Agreed> {
        unimplemented!("cluster owner")
    }

    /// Forgets a database and drops its tables' rows in all shards.
    pub async fn drop_database(&self, _name: &str) -> Result<()> {
        unimplemented!("cluster owner")
    }

    /// Forgets a table and drops its rows in all shards.
    pub async fn drop_table(&self, _database: &str, _table: &str) -> Result<()> {
        unimplemented!("cluster owner")
    }

    /// Sets how long rows are kept; `None` for ever.
    pub async fn set_retention(&self, _database: &str, _retention_ns: Option<i64>) -> Result<()> {
        unimplemented!("cluster owner")
    }

    /// The instant before which rows of a database are refused and hidden, if it has a retention.
    pub fn cutoff(&self, _database: &DatabaseSchema) -> Option<Timestamp> {
        unimplemented!("cluster owner")
    }

    /// Has a part kept: returns once it is synced by a majority, committed and applied.
    pub async fn write(&self, _shard: ShardId, _part: WritePart) -> Result<Applied> {
        unimplemented!("cluster owner")
    }

    /// The shards that a query must read, all of them local for now.
    pub fn shards(&self) -> Vec<ShardId> {
        unimplemented!("cluster owner")
    }

    /// A view of a shard that holds every write acknowledged before the call (DESIGN rule 9).
    pub async fn read(&self, _shard: ShardId) -> Result<View> {
        unimplemented!("cluster owner")
    }

    /// Returns when everything acknowledged before the call is in files named by the manifest.
    pub async fn flush(&self, _table: Option<TableId>) -> Result<()> {
        unimplemented!("cluster owner")
    }

    /// Flushes, then merges until each row stands once.
    pub async fn compact(&self, _table: Option<TableId>) -> Result<()> {
        unimplemented!("cluster owner")
    }

    /// For `system.shards`.
    pub fn shard_status(&self) -> Vec<ShardStatus> {
        unimplemented!("cluster owner")
    }

    /// For `system.files`.
    pub fn files(&self) -> Vec<(ShardId, FileMeta)> {
        unimplemented!("cluster owner")
    }

    /// Returns, with the reason, when the process must stop because its log could not be synced; pends for ever otherwise.
    pub async fn stopped(&self) -> String {
        unimplemented!("cluster owner")
    }

    /// Takes no more writes, finishes those that wait, flushes nothing, stops the groups.
    pub async fn shutdown(&self) {
        unimplemented!("cluster owner")
    }
}
