//! A shard's whole life on one screen: open, apply, seal, flush, compact, view.

use std::path::PathBuf;
use std::sync::Arc;

use model::{Catalog, LogIndex, ReplicaId, ShardId, TableId, Term};

use crate::Result;
use crate::disk::Disk;
use crate::entry::{Entry, Outcome};
use crate::manifest::{FileMeta, ManifestEdit};
use crate::scan::View;

/// How a shard is kept.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// The file system.
    pub disk: Arc<dyn Disk>,
    /// The shard's folder.
    pub dir: PathBuf,
    /// Which shard.
    pub shard: ShardId,
    /// Which replica of it: file names carry it.
    pub replica: ReplicaId,
    /// Memtable bytes at which the shard asks to be sealed.
    pub flush_bytes: usize,
    /// Bytes of last rows kept at hand.
    pub last_rows_bytes: usize,
}

/// Figures for `system.shards`, metrics and the maintenance loop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// The last entry applied.
    pub applied: Option<LogIndex>,
    /// Everything up to here is in files.
    pub flushed: Option<LogIndex>,
    /// Rows in memtables.
    pub memtable_rows: u64,
    /// Bytes of memtables.
    pub memtable_bytes: u64,
    /// Live files.
    pub files: u64,
    /// Their bytes.
    pub file_bytes: u64,
    /// Their rows.
    pub file_rows: u64,
}

/// One replica of one shard.
///
/// One caller at a time applies entries; flush, compaction and views may run beside it on other threads.
#[derive(Debug)]
pub struct Shard {}

impl Shard {
    /// Opens the shard's folder, or founds it. The state is that of the flushed index: the log is replayed from there
    /// by whoever owns it.
    pub fn open(_options: ShardOptions) -> Result<Shard> {
        unimplemented!("storage-memtable owner")
    }

    /// The position that the state on disk covers, and the membership saved with it: replay starts after it.
    pub fn flushed(&self) -> (Option<(Term, LogIndex)>, Vec<u8>) {
        unimplemented!("storage-memtable owner")
    }

    /// Applies a committed entry; one outcome per write part, or one for any other entry.
    ///
    /// `membership` is what [`flushed`](Shard::flushed) shall give once this index is flushed (openraft's, opaque).
    pub fn apply(&self, _term: Term, _index: LogIndex, _entry: &Entry) -> Result<Vec<Outcome>> {
        unimplemented!("storage-memtable owner")
    }

    /// Takes note of an entry that has no effect on rows (raft's blank and membership entries).
    pub fn apply_other(&self, _term: Term, _index: LogIndex, _membership: Option<Vec<u8>>) -> Result<()> {
        unimplemented!("storage-memtable owner")
    }

    /// Whether the memtable is so large that a seal should be proposed.
    pub fn wants_seal(&self) -> bool {
        unimplemented!("storage-memtable owner")
    }

    /// Whether there is any row that no file has (of `table`, or of all).
    pub fn has_unflushed(&self, _table: Option<TableId>) -> bool {
        unimplemented!("storage-memtable owner")
    }

    /// Writes the sealed memtables to files, verifies and syncs them, and gives the edit to propose. `None`: nothing is sealed.
    pub fn flush(&self, _catalog: &Catalog) -> Result<Option<ManifestEdit>> {
        unimplemented!("storage-memtable owner")
    }

    /// Runs the next compaction that pays (`full`: until each row stands once, then `None`), and gives the edit to propose.
    pub fn compact(&self, _catalog: &Catalog, _table: Option<TableId>, _full: bool) -> Result<Option<ManifestEdit>> {
        unimplemented!("storage-memtable owner")
    }

    /// Memtable and files as of the last applied entry.
    pub fn view(&self) -> View {
        unimplemented!("storage-memtable owner")
    }

    /// All live files.
    pub fn files(&self) -> Vec<FileMeta> {
        unimplemented!("storage-memtable owner")
    }

    /// The first log index that must be kept: everything before it is in files.
    pub fn purgeable(&self) -> Option<LogIndex> {
        unimplemented!("storage-memtable owner")
    }

    /// Figures.
    pub fn stats(&self) -> ShardStats {
        unimplemented!("storage-memtable owner")
    }
}
