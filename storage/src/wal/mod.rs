//! The write-ahead log of one shard (or of the metadata group): raft's log on mapped segments.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use model::{LogIndex, Term};

use crate::disk::Disk;
use crate::{Error, Result};

/// A record to append.
#[derive(Clone, Copy, Debug)]
pub struct NewRecord<'a> {
    /// The caller's own kind of record (1 ..= 127).
    pub kind: u8,
    /// The term it was proposed in.
    pub term: Term,
    /// Its index: one above the last.
    pub index: LogIndex,
    /// The bytes to keep.
    pub payload: &'a [u8],
}

/// A record read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The caller's own kind of record.
    pub kind: u8,
    /// The term it was proposed in.
    pub term: Term,
    /// Its index.
    pub index: LogIndex,
    /// Its bytes.
    pub payload: Bytes,
}

/// Proof that records up to `last` were copied into the log. Not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub(crate) last: LogIndex,
}

/// Proof that records up to `last` are durable on this disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    pub(crate) last: LogIndex,
}

/// How a log is kept.
#[derive(Clone, Debug)]
pub struct WalOptions {
    /// The file system.
    pub disk: Arc<dyn Disk>,
    /// The thread that syncs for all logs of this disk.
    pub syncer: Syncer,
    /// The log's folder.
    pub dir: PathBuf,
    /// Bytes of the first segment; later ones double up to `max_segment_bytes`.
    pub first_segment_bytes: u64,
    /// Bytes of the largest segment.
    pub max_segment_bytes: u64,
}

/// One thread per disk that syncs for all logs on it. Clones share the thread.
#[derive(Clone, Debug)]
pub struct Syncer {}

impl Syncer {
    /// Starts the thread.
    pub fn start() -> Syncer {
        unimplemented!("wal owner")
    }
}

/// One log. One owner appends, truncates and purges; [`reader`](Wal::reader)s read beside it.
#[derive(Debug)]
pub struct Wal {}

/// What a log held when it was opened.
#[derive(Clone, Debug, Default)]
pub struct Opened {
    /// The oldest record and its term, if any.
    pub first: Option<(Term, LogIndex)>,
    /// The newest record and its term.
    pub last: Option<(Term, LogIndex)>,
    /// What [`Wal::save_hard_state`] saved last.
    pub hard_state: Option<Bytes>,
    /// Bytes of a torn tail that were cut off.
    pub cut_bytes: u64,
}

impl Wal {
    /// Opens the log in its folder, or founds it: cuts a torn tail, refuses damage in the middle.
    pub fn open(_options: WalOptions) -> Result<(Wal, Opened)> {
        unimplemented!("wal owner")
    }

    /// Copies records into the log.
    pub fn append(&mut self, _records: &[NewRecord<'_>]) -> Result<Appended> {
        unimplemented!("wal owner")
    }

    /// Has everything up to `upto` synced by the disk's thread, then calls `done` there (which must not block).
    pub fn sync_then(&self, _upto: Appended, _done: Box<dyn FnOnce(std::result::Result<Synced, Arc<Error>>) + Send>) {
        unimplemented!("wal owner")
    }

    /// Saves a small blob (raft's vote) durably before it returns; blocks for one sync.
    pub fn save_hard_state(&mut self, _blob: &[u8]) -> Result<()> {
        unimplemented!("wal owner")
    }

    /// Removes `from` and everything after it, durably (a newer leader's tail comes instead).
    pub fn truncate(&mut self, _from: LogIndex) -> Result<()> {
        unimplemented!("wal owner")
    }

    /// Everything before `upto` is no longer needed; whole segments are recycled.
    pub fn purge(&mut self, _upto: LogIndex) -> Result<()> {
        unimplemented!("wal owner")
    }

    /// A handle that reads beside the owner.
    pub fn reader(&self) -> WalReader {
        unimplemented!("wal owner")
    }

    /// Bytes of segments that hold records.
    pub fn bytes(&self) -> u64 {
        unimplemented!("wal owner")
    }

    /// The last index known durable.
    pub fn durable(&self) -> Option<LogIndex> {
        unimplemented!("wal owner")
    }
}

/// Reads records; cheap to clone.
#[derive(Clone, Debug)]
pub struct WalReader {}

impl WalReader {
    /// Records from `start` to before `end`, at least one if there is one, then as many as fit `max_bytes` of payload.
    pub fn read(&self, _start: LogIndex, _end: LogIndex, _max_bytes: usize) -> Result<Vec<Record>> {
        unimplemented!("wal owner")
    }
}
