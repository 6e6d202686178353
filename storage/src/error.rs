//! What goes wrong on disk, with the nouns that an operator needs.

use std::io;
use std::path::PathBuf;

use model::{ErrorKind, ShardId};
use thiserror::Error;

/// An error of this crate; [`kind`](Error::kind) tells what can be done about it.
#[derive(Debug, Error)]
pub enum Error {
    /// The file system refused.
    #[error("could not {doing} {}: {source}", path.display())]
    Io {
        /// What was tried, as an infinitive: `open`, `read`, `rename`.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// There is no room; nothing was damaged and the same request succeeds when there is room again.
    #[error("the disk of {} is full: free some space, writes go on by themselves", path.display())]
    DiskFull {
        /// The file that did not fit.
        path: PathBuf,
    },
    /// A sync of the log or the hard state failed: what is on disk is unknown, so the process must stop.
    #[error("could not sync {}: {source}; the replica stops, start it again to recover from what is on disk", path.display())]
    SyncFailed {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Bytes that were written are not there any more as they were written.
    #[error("{} is damaged at byte {at}: {what}; it is not served, restore it from a replica or a backup", path.display())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Where.
        at: u64,
        /// What does not fit.
        what: String,
    },
    /// A file of a version that this program does not know.
    #[error("{} has format {found}, this program knows up to {known}: start a newer alluvium", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format number.
        found: u32,
        /// The newest format that this program reads.
        known: u32,
    },
    /// Another process has the data directory.
    #[error("{} is in use by another process: stop it, or choose another --data-dir", path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
    /// An entry of the log that does not decode: our own mistake or a foreign peer's.
    #[error("entry {index} of the log does not decode: {source}")]
    BadEntry {
        /// Its log index.
        index: u64,
        /// Where it breaks.
        source: model::DecodeError,
    },
    /// Arrow or Parquet refused.
    #[error("could not {doing} {}: {message}", path.display())]
    Parquet {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The library's reason.
        message: String,
    },
    /// A question was planned with an older schema than rows have that it would meet: plan it again.
    #[error("table '{table}' has schema version {newest} by now and was asked with version {asked}: ask again")]
    StaleSchema {
        /// The table.
        table: std::sync::Arc<str>,
        /// The version that the question was planned with.
        asked: u32,
        /// The highest version that a row was written with.
        newest: u32,
    },
    /// This replica lacks files that its manifest names.
    #[error("shard {shard} is {edits} edits behind: it neither flushes nor compacts before it has the files that they name")]
    Behind {
        /// The shard.
        shard: ShardId,
        /// Edits that are not in effect.
        edits: u64,
    },
    /// A part of the shard is on its way to a shard of its own.
    #[error("shard {shard} is being split and compacts nothing meanwhile: try again in a moment")]
    Splitting {
        /// The shard.
        shard: ShardId,
    },
    /// A snapshot names files that were not received.
    #[error("shard {shard} lacks {files} files of a snapshot, the first is {first}: receive them first")]
    MissingFiles {
        /// The shard.
        shard: ShardId,
        /// How many.
        files: usize,
        /// Path of the first below the shard's folder.
        first: String,
    },
    /// A file is asked for that is not named, or not any more.
    #[error("shard {shard} has no file {path}, or not any more: ask for its files again")]
    NoSuchFile {
        /// The shard.
        shard: ShardId,
        /// Its path below the shard's folder.
        path: String,
    },
    /// Bytes that came from elsewhere are not what they should be; nothing was changed.
    #[error("{what} does not fit: {why}")]
    Unfit {
        /// What came.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The shard was closed or has stopped after an earlier error.
    #[error("{what} has stopped: {why}")]
    Stopped {
        /// The shard or log.
        what: String,
        /// The first error.
        why: String,
    },
}

/// Too many open files, of the process or the machine, or no memory for another.
fn is_out_of_handles(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

impl Error {
    /// What the one who gets it can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::DiskFull { .. }
            | Error::StaleSchema { .. }
            | Error::Behind { .. }
            | Error::Splitting { .. }
            | Error::MissingFiles { .. }
            | Error::NoSuchFile { .. }
            | Error::Unfit { .. } => ErrorKind::TryAgain,
            // The process has no more of what the system gives, not the disk: that passes.
            Error::Io { source, .. } if is_out_of_handles(source) => ErrorKind::TryAgain,
            _ => ErrorKind::Broken,
        }
    }

    /// Wraps an `io::Error`; a full disk becomes [`Error::DiskFull`].
    pub fn io(doing: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Error {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::DiskFull { path },
            _ => Error::Io { doing, path, source },
        }
    }
}
