//! Whether the disk has room for more log: asked before a write is proposed, because a raft group takes a log that
//! cannot grow as its end.
//!
//! Below the reserve no write is let in, and what the reserve holds is for flushes: they make room by letting go of the
//! log. It is looked at again before each group of writes, so writes go on by themselves.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use storage::disk::Disk;

use crate::{Error, Result};

/// How long one look at the disk is believed.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The room on the data directory's disk.
#[derive(Debug)]
pub(crate) struct Room {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    reserve_bytes: u64,
    started: Instant,
    looked_ms: AtomicU64,
    enough: AtomicBool,
    flushes_fail: AtomicBool,
}

impl Room {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf, reserve_bytes: u64) -> Room {
        Room {
            disk,
            dir,
            reserve_bytes,
            started: Instant::now(),
            looked_ms: AtomicU64::new(u64::MAX),
            enough: AtomicBool::new(true),
            flushes_fail: AtomicBool::new(false),
        }
    }

    /// An error where the log may not grow.
    pub(crate) fn check(&self) -> Result<()> {
        let now = self.started.elapsed().as_millis() as u64;
        let looked = self.looked_ms.load(Ordering::Relaxed);
        if looked == u64::MAX || now.saturating_sub(looked) >= LOOK_EVERY.as_millis() as u64 {
            self.looked_ms.store(now, Ordering::Relaxed);
            // A file system that cannot say is taken to have room; the log finds out.
            let free = self.disk.free_bytes(&self.dir).unwrap_or(u64::MAX);
            let enough = free >= self.reserve_bytes;
            if self.enough.swap(enough, Ordering::Relaxed) != enough {
                match enough {
                    true => tracing::info!(free, "there is room on the disk again; writes go on"),
                    false => tracing::warn!(free, reserve = self.reserve_bytes, "the disk is full; writes are refused, reads go on"),
                }
            }
        }
        match self.enough.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err(self.full()),
        }
    }

    /// Takes note of a flush that found no room, or of one that did.
    pub(crate) fn note_flush(&self, found_room: bool) {
        self.flushes_fail.store(!found_room, Ordering::Relaxed);
    }

    /// An error where flushes find no room, which is then why memory is full.
    pub(crate) fn refuse_if_flushes_fail(&self) -> Result<()> {
        match self.flushes_fail.load(Ordering::Relaxed) {
            true => Err(self.full()),
            false => Ok(()),
        }
    }

    fn full(&self) -> Error {
        Error::DiskFull(storage::Error::DiskFull { path: self.dir.clone() }.to_string())
    }
}
