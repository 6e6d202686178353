//! The disk of this machine, and the lock that keeps other processes out of a data directory.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::TryRngCore;
use rand::rngs::OsRng;
use rustix::fs::{Advice, FallocateFlags};

use super::log_file::LogFile;
use super::{Disk, ReadAt, Segment, WriteFile};
use crate::{Error, Result};

/// The file system of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

/// Zeros are written in pieces of this size: large enough for the disk, small enough for the cache.
const ZEROS: usize = 256 * 1024;

impl Disk for RealDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut names = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadAt>> {
        Ok(Arc::new(RealFile(File::open(path)?)))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        Ok(Box::new(RealFile(OpenOptions::new().write(true).create_new(true).open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        match fs::remove_dir_all(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let system = rustix::fs::statvfs(path)?;
        Ok(system.f_bavail.saturating_mul(system.f_frsize))
    }

    fn segment(&self, path: &Path, len: u64) -> io::Result<Arc<dyn Segment>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => LogFile::warmed(reopened(file, len)?, len)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => LogFile::new(created(self, path, len)?, len),
            Err(e) => return Err(e),
        };
        Ok(Arc::new(file))
    }

    fn nonce(&self) -> io::Result<u64> {
        OsRng.try_next_u64().map_err(io::Error::other)
    }
}

/// An existing segment, without what the page cache believes of it: after a failed sync the cache holds bytes that are
/// not on the disk and calls them clean.
fn reopened(file: File, len: u64) -> io::Result<File> {
    let found = file.metadata()?.len();
    if found != len {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it has {found} bytes instead of {len}")));
    }
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(file)
}

/// A new segment whose every byte was written and synced; on any error there is no file.
fn created(disk: &RealDisk, path: &Path, len: u64) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    let written =
        write_zeros(&file, len).and_then(|()| file.sync_all()).and_then(|()| disk.sync_dir(path.parent().unwrap_or(Path::new("."))));
    match written {
        Ok(()) => Ok(file),
        Err(e) => {
            // The first error is the one to tell; a leftover is removed by the next open of the log.
            let _ = fs::remove_file(path);
            Err(e)
        }
    }
}

fn write_zeros(file: &File, len: u64) -> io::Result<()> {
    // Asks for the blocks at once: in one piece on the disk, and refused before anything is written when there is no
    // room. Not every file system can; the zeros below count.
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) | Err(rustix::io::Errno::NOSYS) => {}
        Err(e) => return Err(e.into()),
    }
    let zeros = vec![0; ZEROS];
    let mut at = 0;
    while at < len {
        let piece = &zeros[..(len - at).min(ZEROS as u64) as usize];
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

#[derive(Debug)]
struct RealFile(File);

impl ReadAt for RealFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

impl Write for RealFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteFile for RealFile {
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_all()
    }
}

/// A data directory of one's own: no second process gets it while this value lives.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the directory (made if absent), or says that another process has it.
    pub fn take(dir: &Path) -> Result<DirLock> {
        fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        let path = dir.join("LOCK");
        // The lock belongs to the open file: the system releases it when the process ends, in whichever way.
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|e| Error::io("open", &path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(DirLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::InUse { path: dir.to_owned() }),
            Err(TryLockError::Error(e)) => Err(Error::io("lock", path, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_on_a_data_directory_is_refused_until_the_first_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::take(dir.path()).unwrap();
        assert!(matches!(DirLock::take(dir.path()), Err(Error::InUse { .. })));
        drop(first);
        DirLock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_segment_is_zeros_then_what_was_stored_and_survives_being_reopened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        let segment = RealDisk.segment(&path, 64 * 1024).unwrap();
        assert_eq!(fs::read(&path).unwrap(), vec![0; 64 * 1024]);
        segment.write_at(5000, b"stored into its blocks").unwrap();
        let mut read = [0; 22];
        segment.read(5000, &mut read).unwrap();
        assert_eq!(&read, b"stored into its blocks");
        segment.sync(5000, 22).unwrap();
        drop(segment);
        let again = RealDisk.segment(&path, 64 * 1024).unwrap();
        again.read(5000, &mut read).unwrap();
        assert_eq!(&read, b"stored into its blocks");
        assert!(RealDisk.segment(&path, 32 * 1024).is_err(), "another length than the file's is refused");
    }

    #[test]
    fn nothing_is_stored_synced_or_read_outside_a_segment() {
        let dir = tempfile::tempdir().unwrap();
        let segment = RealDisk.segment(&dir.path().join("segment"), 8192).unwrap();
        assert!(segment.write_at(8190, b"four").is_err());
        assert!(segment.write_at(u64::MAX, b"four").is_err());
        assert!(segment.sync(8192, 1).is_err());
        assert!(segment.read(8190, &mut [0; 4]).is_err());
    }
}
