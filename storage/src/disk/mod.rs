//! The one seam to the file system: [`RealDisk`] here, [`FaultyDisk`] in tests.
//!
//! Nothing else in this crate opens, writes, syncs, renames or removes a file.

mod faulty;
mod log_file;
mod real;

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use faulty::FaultyDisk;
pub use real::{DirLock, RealDisk};

/// A file system, or something that behaves like one on a bad day.
pub trait Disk: Debug + Send + Sync {
    /// Makes a folder and its parents.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Names in a folder, sorted; an absent folder has none.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// A file's bytes.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Opens a file for reading at any offset.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadAt>>;
    /// Creates a file (it must not exist) for writing from front to back.
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>>;
    /// Renames within one file system; durable after [`sync_dir`](Disk::sync_dir).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name in the same file system (the name must be free); durable after
    /// [`sync_dir`](Disk::sync_dir) of its folder. The bytes stay until both names are removed.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder and all that is in it; an absent one is fine. Not in one step: a crash may leave a part.
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in a folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes that can still be written.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Creates a log segment of `len` bytes, written with zeros and synced (itself and its name), or opens one that
    /// exists and has that length. What is then read from it is what the device holds, not what the page cache hoped.
    fn segment(&self, path: &Path, len: u64) -> io::Result<Arc<dyn Segment>>;
    /// A number that was never given before: from the system's randomness, or from a test's seed.
    fn nonce(&self) -> io::Result<u64>;
}

/// A file that is read at offsets.
pub trait ReadAt: Debug + Send + Sync {
    /// Fills `buf` from `offset` or fails.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Its length.
    fn len(&self) -> io::Result<u64>;
    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A new file that is written from front to back.
pub trait WriteFile: io::Write + Send + Debug {
    /// Makes what was written durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// One file of the log; never a hole.
pub trait Segment: Debug + Send + Sync {
    /// Its length in bytes; fixed.
    fn len(&self) -> u64;
    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Stores bytes. Visible to `read` at once, durable after `sync`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes `offset..offset+len` durable. An error is final: what is on disk is unknown.
    fn sync(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Reads bytes; a bad sector is an error.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}
