//! What is kept on disk: one shard's log, memtable and Parquet files.
//!
//! `storage` does not know that other nodes exist, who may write, or what SQL is. It is asked in its own words: keep this
//! entry of this shard's log; give me these columns of this table, this span of time, these tag values.
//!
//! | file | answers |
//! |---|---|
//! | [`shard`] | a shard's whole life: open, apply, seal, flush, compact, view |
//! | [`entry`] | what one entry of a shard's log says, and its bytes |
//! | [`wal`] | the write-ahead log: append, sync, recover, purge |
//! | [`disk`] | the one seam to the file system |
//! | `memtable` | applied points that are not yet in a file |
//! | `last_rows` | the newest row of each series in the files, kept at hand |
//! | [`flush`], [`parquet_file`], [`manifest`], [`compaction`] | memtable to file, one file, which files are live, files to fewer files |
//! | [`snapshot`] | the state at the flushed index, for a replica that lacks it; the files travel apart |
//! | [`scan`], [`merge`] | a consistent view of memtable and files as sorted, merged record batches |
//! | [`range`] | which routing hashes the shard keeps, and how that becomes two |
//! | `batch_bytes` | how many bytes the rows of a batch take, and how many may stand together |
//! | [`retries`] | what was answered to which request |
//! | [`urgency`] | which threads go first |

mod batch_bytes;
pub mod compaction;
pub mod disk;
pub mod entry;
pub mod error;
pub mod flush;
mod frame;
mod key_columns;
mod last_rows;
pub mod manifest;
mod memtable;
pub mod merge;
pub mod parquet_file;
pub mod range;
pub mod retries;
pub mod scan;
pub mod shard;
pub mod snapshot;
pub mod urgency;
pub mod wal;

pub use entry::{Entry, Outcome, WritePart};
pub use error::Error;
pub use parquet_file::damage_is_expected;
pub use range::{HashRange, Split, SplitOff};
pub use scan::{ScanColumn, ScanRequest, TagFilter, View};
pub use shard::{Adopted, FileReceiver, SentFile, Shard, ShardOptions, ShardStats};
pub use snapshot::Snapshot;

/// What storage's functions give.
pub type Result<T> = std::result::Result<T, Error>;
