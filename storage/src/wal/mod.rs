//! The write-ahead log of one shard (or of the metadata group): raft's log on recycled segments.
//!
//! A record is safe on this disk once a sync of it returned; when a caller may be told so is cluster's business. Records
//! are numbered without gaps. The log may lose its unsynced tail in a crash (cut on open), its tail to a newer leader
//! ([`truncate`](Wal::truncate)) and its head after a flush ([`purge`](Wal::purge)), but never its middle: damage is an
//! error that names the place and changes nothing. Payloads are plain bytes.
//!
//! ```text
//! DIR/00000000000000000007.wal   full segment     header | record | record | ...
//! DIR/00000000000000000008.wal   newest segment   header | record | mark | record | zeros
//! DIR/spare-3                    a segment to be: zeros, or purged records
//! DIR/hard_state                 raft's vote, and what recovery must know first
//! ```
//!
//! | file | answers |
//! |---|---|
//! | [`record`] | one record's bytes |
//! | `segment` | one file's header, name and durable end |
//! | `log` | append, sync, mark, truncate, purge |
//! | `recovery` | open: torn tail or damage? |
//! | `sums` | the checksums of stretches that reach over each other |
//! | `index`, `reader` | where each record lies; reading beside the owner |
//! | `spares` | segments made ahead and recycled |
//! | `survey` | what lies on disk, changing nothing |
//! | `hard_state` | two slots that are never both bad |
//! | `syncer` | the threads that sync for all logs of a disk |

mod hard_state;
mod index;
mod log;
mod metrics;
mod reader;
pub mod record;
mod recovery;
mod segment;
mod spares;
mod sums;
mod survey;
mod syncer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use model::{LogIndex, Term};

use crate::Result;
use crate::disk::Disk;

use hard_state::HardState;
use log::Log;
use recovery::Recovered;
use syncer::Request;

pub use hard_state::MAX_HARD_STATE_BYTES;
pub use metrics::Metrics;
pub use reader::WalReader;
pub use segment::FORMAT;
pub use survey::{LogSurvey, SegmentSurvey, survey};
pub use syncer::{Done, Syncer};

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
    /// The threads that sync for all logs of this disk.
    pub syncer: Syncer,
    /// The log's folder.
    pub dir: PathBuf,
    /// Bytes of the first segment; later ones double up to `max_segment_bytes`.
    pub first_segment_bytes: u64,
    /// Bytes of the largest segment.
    pub max_segment_bytes: u64,
}

/// One log. One owner appends, truncates and purges; [`reader`](Wal::reader)s read beside it.
#[derive(Debug)]
pub struct Wal {
    log: Arc<Log>,
    hard: HardState,
}

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
    /// Opens the log in its folder, or founds it: cuts a torn tail, refuses damage in the middle. What it then holds is
    /// durable.
    pub fn open(options: WalOptions) -> Result<(Wal, Opened)> {
        let Recovered { log, hard, opened } = recovery::recover(options)?;
        // What was found was synced, and from here on a rotten end of it is damage.
        log.mark().map_err(|e| log.stopped_by(&e))?;
        Ok((Wal { log, hard }, opened))
    }

    /// Copies records into the log: all, or none and an error. [`Error::DiskFull`](crate::Error::DiskFull) leaves the log
    /// as it was, and the same append succeeds when there is room again.
    ///
    /// # Panics
    /// If a record does not follow the last one, or is larger than [`record::MAX_PAYLOAD_BYTES`].
    pub fn append(&mut self, records: &[NewRecord<'_>]) -> Result<Appended> {
        self.log.append(records)
    }

    /// Has everything up to `upto` synced by one of the disk's threads, then calls `done` there (which must not block). After a
    /// failed sync every later append and sync of this log fails too: the process must stop.
    pub fn sync_then(&self, upto: Appended, done: Done) {
        self.log.syncer.request(Request { log: self.log.clone(), upto: upto.last, done });
    }

    /// Saves a small blob (raft's vote) durably before it returns; blocks for two syncs. An empty blob counts as none.
    ///
    /// # Panics
    /// If the blob is larger than [`MAX_HARD_STATE_BYTES`].
    pub fn save_hard_state(&mut self, blob: &[u8]) -> Result<()> {
        self.log.check()?;
        let durable_end = self.log.durable_end.load(Ordering::Acquire);
        let saved = self.hard.save(|saved| {
            saved.blob = blob.to_vec();
            saved.durable_end = durable_end;
        });
        saved.map_err(|e| self.log.stop(e))
    }

    /// Removes `from` and everything after it, durably (a newer leader's tail comes instead).
    pub fn truncate(&mut self, from: LogIndex) -> Result<()> {
        self.log.truncate(&mut self.hard, from)
    }

    /// Everything before `upto` is no longer needed; whole segments are recycled, the newest stays. If `upto` is above the
    /// next record's index (a snapshot came from elsewhere), the log is emptied and may go on at any index.
    pub fn purge(&mut self, upto: LogIndex) -> Result<()> {
        self.log.purge(&mut self.hard, upto)
    }

    /// Ends a fully synced log with a mark now, as the disk's threads do after 100 ms without a sync: from then on a
    /// rotten last record is damage and not a torn tail. For a clean end.
    pub fn mark(&self) -> std::result::Result<(), Arc<crate::Error>> {
        self.log.mark()
    }

    /// A handle that asks for room beside the owner.
    pub fn room(&self) -> WalRoom {
        WalRoom { log: self.log.clone() }
    }

    /// A handle that reads beside the owner.
    pub fn reader(&self) -> WalReader {
        WalReader { log: self.log.clone() }
    }

    /// Bytes of the records that are kept.
    pub fn bytes(&self) -> u64 {
        self.log.index.read().bytes()
    }

    /// The last index known durable.
    pub fn durable(&self) -> Option<LogIndex> {
        self.log.durable_end.load(Ordering::Acquire).checked_sub(1).map(LogIndex)
    }
}

/// Waits for a sync or chore of this log that is under way, so that the folder may be opened again.
impl Drop for Wal {
    fn drop(&mut self) {
        self.log.close();
    }
}

impl Appended {
    /// The newest record.
    pub fn last(self) -> LogIndex {
        self.last
    }
}

impl Synced {
    /// The newest record.
    pub fn last(self) -> LogIndex {
        self.last
    }
}

/// Asks for room in a log beside its owner; cheap to clone.
///
/// For an owner that cannot say no any more once it appends: it asks first.
#[derive(Clone, Debug)]
pub struct WalRoom {
    log: Arc<Log>,
}

impl WalRoom {
    /// Makes sure that records of `bytes` in all, with [`record::size`] for each, can be appended without asking the file
    /// system for room; [`Error::DiskFull`](crate::Error::DiskFull) if there is none. What others append meanwhile comes off
    /// it. Mostly a look at two numbers; sometimes a segment is written with zeros, which blocks.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        self.log.reserve(bytes)
    }
}
