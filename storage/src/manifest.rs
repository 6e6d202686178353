//! Which files are live, in which order, and the log index that they reach.

use std::collections::BTreeMap;

use model::{DatabaseId, LogIndex, ReplicaId, TableId, Term};
use serde::{Deserialize, Serialize};

/// One live Parquet file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMeta {
    /// Path below the shard's folder: `<db>/<table>/day=YYYY-MM-DD/<file>.parquet`.
    pub path: String,
    /// The database.
    pub database: DatabaseId,
    /// The table.
    pub table: TableId,
    /// The UTC day since 1970 that its rows lie in; `None` for a `late/` file of several days.
    pub day: Option<i32>,
    /// How many compactions its rows have been through; 0 after a flush.
    pub level: u8,
    /// First log index whose rows it may hold: with `to` its place in the order of writes.
    pub from: LogIndex,
    /// Last log index whose rows it may hold.
    pub to: LogIndex,
    /// Rows in it; each row identity stands once.
    pub rows: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// xxh3-64 of all its bytes.
    pub checksum: u64,
    /// Oldest row, nanoseconds since 1970.
    pub min_time: i64,
    /// Newest row.
    pub max_time: i64,
    /// Smallest series key in it (base: raw bytes).
    pub min_key: Vec<u8>,
    /// Largest series key in it.
    pub max_key: Vec<u8>,
    /// The table's schema version that it was written with.
    pub schema_version: u32,
}

/// A change of the set of live files; proposed through the log, applied by every replica alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ManifestEdit {
    /// Sealed memtables became files. Applies only if `start` is the flushed index.
    Flush {
        /// The flushed index before.
        start: LogIndex,
        /// The seal's index: the flushed index after.
        end: LogIndex,
        /// The new files; may be none.
        files: Vec<FileMeta>,
        /// Who wrote them.
        replica: ReplicaId,
    },
    /// Files became fewer files. Applies only if all `inputs` are live.
    Compact {
        /// Paths of the files that leave.
        inputs: Vec<String>,
        /// The files that take their place.
        outputs: Vec<FileMeta>,
        /// Who wrote them.
        replica: ReplicaId,
    },
}

/// The live files of one shard as of its flushed index, with what must be restored beside them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Everything up to and including this log index is in files (or had no rows). `None`: nothing yet.
    pub flushed: Option<(Term, LogIndex)>,
    /// Live files by path.
    pub files: BTreeMap<String, FileMeta>,
    /// Retention cutoffs by database, as of the flushed index.
    pub cutoffs: BTreeMap<u32, i64>,
    /// Tables dropped, with the log index of the drop, as of the flushed index.
    pub dropped: BTreeMap<u32, u64>,
    /// openraft's membership as of the flushed index, opaque here.
    pub membership: Vec<u8>,
    /// The retry table as of the flushed index, opaque here ([`crate::retries`]).
    pub retries: Vec<u8>,
    /// Grows with each save.
    pub version: u64,
}
