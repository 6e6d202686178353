//! Segments ready for use, so that an append does not wait for zeros to be written.
//!
//! A new file's pages cost about twenty times a used file's. So a purged segment is renamed to `spare-<n>`, and becomes
//! a segment again under a new random epoch once its last reader has let go. When there is no used one, the disk's chore
//! thread writes a new one ahead of need. At most [`MAX_SPARES`] are kept; more are removed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::log::Log;
use super::record::MARK_BYTES;
use super::segment::{HEADER_BYTES, LogSegment};
use crate::disk::Segment;
use crate::{Error, Result};

/// Bounds the disk space that a log holds without using it: this many segments.
pub(super) const MAX_SPARES: usize = 4;

/// A file that may become the next segment.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) file: Arc<dyn Segment>,
    pub(super) path: PathBuf,
    /// Whether it has bytes of an earlier life.
    pub(super) recycled: bool,
}

/// The spares of one log.
#[derive(Debug, Default)]
pub(super) struct Spares {
    ready: Vec<Spare>,
    /// Files of an earlier process, or never written in this one: path and length.
    pub(super) cold: Vec<(PathBuf, u64)>,
    /// Renamed, perhaps still read.
    read: Vec<(Arc<LogSegment>, PathBuf)>,
    /// Purged from the table, oldest first, not yet renamed.
    pub(super) purged: Vec<Arc<LogSegment>>,
    /// The number in the next spare's name.
    pub(super) next_name: u64,
}

impl Spares {
    /// Lets in those whose last reader has gone.
    fn refresh(&mut self) {
        for (segment, path) in std::mem::take(&mut self.read) {
            match Arc::try_unwrap(segment) {
                Ok(segment) => match segment.into_writable() {
                    Some(file) => self.ready.push(Spare { file, path, recycled: true }),
                    None => unreachable!("only writable segments wait for their readers"),
                },
                Err(segment) => self.read.push((segment, path)),
            }
        }
    }

    /// The largest that has at least `need` bytes.
    fn take(&mut self, need: u64) -> Option<Spare> {
        self.refresh();
        let best = (0..self.ready.len()).filter(|&i| self.ready[i].file.len() >= need).max_by_key(|&i| self.ready[i].file.len())?;
        Some(self.ready.swap_remove(best))
    }

    fn has(&mut self, need: u64) -> bool {
        self.refresh();
        self.ready.iter().any(|spare| spare.file.len() >= need)
    }

    fn count(&self) -> usize {
        self.ready.len() + self.cold.len() + self.read.len()
    }

    fn name(&mut self, dir: &Path) -> PathBuf {
        self.next_name += 1;
        dir.join(format!("spare-{}", self.next_name))
    }
}

/// The number in a spare's name, if it is one.
pub(super) fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("spare-")?.parse().ok()
}

impl Log {
    /// A file for the next segment, from the spares or made now.
    pub(super) fn take_spare(&self, need: u64) -> Result<Spare> {
        if let Some(spare) = self.spares.lock().take(need) {
            if spare.recycled {
                self.metrics().segments_recycled.inc();
            }
            return Ok(spare);
        }
        // The small size: zeros are written while a caller waits.
        self.make_spare(need.max(self.first_segment_bytes))
    }

    /// Puts back what an append did not use.
    pub(super) fn give_back(&self, spares: Vec<Spare>) {
        self.spares.lock().ready.extend(spares);
    }

    /// Makes sure that a segment is at hand; called by the chore thread.
    pub(super) fn prepare(&self, len: u64) {
        let _preparing = self.preparing.lock();
        if self.check().is_err() {
            return;
        }
        let cold = {
            let mut spares = self.spares.lock();
            spares.refresh();
            if !spares.ready.is_empty() {
                return;
            }
            spares.cold.pop()
        };
        let made = match cold {
            Some((path, len)) => match self.disk.segment(&path, len) {
                Ok(file) => Ok(Spare { file, path, recycled: true }),
                Err(e) => Err(Error::io("open", path, e)),
            },
            None => self.make_spare(len),
        };
        match made {
            Ok(spare) => self.spares.lock().ready.push(spare),
            // Not fatal: the append that needs it tries again and tells its caller.
            Err(e) => tracing::warn!(log = %self.dir.display(), error = %e, "could not prepare a spare segment"),
        }
    }

    /// Makes sure that records of `bytes` in all, their heads included, find room without the file system being asked.
    pub(super) fn reserve(&self, bytes: u64) -> Result<()> {
        let need = HEADER_BYTES + bytes + MARK_BYTES as u64;
        // What does not fit the active segment goes to a spare that could take it all.
        let enough = || self.tail.lock().free_bytes() >= need || self.spares.lock().has(need);
        if enough() {
            return Ok(());
        }
        let _preparing = self.preparing.lock();
        self.check()?;
        if enough() {
            return Ok(());
        }
        let spare = self.make_spare(need.max(self.first_segment_bytes))?;
        self.spares.lock().ready.push(spare);
        Ok(())
    }

    fn make_spare(&self, len: u64) -> Result<Spare> {
        let path = self.spares.lock().name(&self.dir);
        let new = path.with_extension("new");
        // Under another name until it is whole: what a crash leaves of it is removed by the next open.
        let file = self.disk.segment(&new, len).map_err(|e| Error::io("create", &new, e))?;
        self.disk.rename(&new, &path).map_err(|e| Error::io("rename", &new, e))?;
        self.metrics().segments_created.inc();
        Ok(Spare { file, path, recycled: false })
    }

    /// Renames what `purge` took from the table; called by the chore thread.
    pub(super) fn tidy(&self) {
        let _tidying = self.tidying.lock();
        while self.check().is_ok() {
            let Some(oldest) = self.spares.lock().purged.first().cloned() else { return };
            if self.retire(oldest.clone()).is_err() {
                return;
            }
            self.spares.lock().purged.retain(|s| !Arc::ptr_eq(s, &oldest));
        }
    }

    /// Takes a segment's name away, durably, and keeps the file as a spare if there are not too many. The next segment may
    /// be retired only after that: a gap in the numbers would look like a lost file.
    pub(super) fn retire(&self, segment: Arc<LogSegment>) -> Result<()> {
        let spare = {
            let mut spares = self.spares.lock();
            (spares.count() < MAX_SPARES).then(|| spares.name(&self.dir))
        };
        let path = &segment.path;
        match &spare {
            Some(spare) => self.disk.rename(path, spare).map_err(|e| self.stop(Error::io("rename", path, e)))?,
            None => self.disk.remove(path).map_err(|e| self.stop(Error::io("remove", path, e)))?,
        }
        self.disk.sync_dir(&self.dir).map_err(|e| self.stop(Error::SyncFailed { path: self.dir.clone(), source: e }))?;
        if let Some(spare) = spare {
            let mut spares = self.spares.lock();
            match segment.is_writable() {
                true => spares.read.push((segment, spare)),
                false => spares.cold.push((spare, segment.len())),
            }
        }
        Ok(())
    }
}
