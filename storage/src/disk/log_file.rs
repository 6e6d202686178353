//! A log segment stored through a memory map: the only file of the project with `unsafe`.
//!
//! It promises what [`Segment`] promises: stores are visible to `read` at once and durable after `sync`. Three habits
//! keep the map from biting:
//!
//! - Never a hole. Every byte was *written* as zero and synced before the file is mapped, so a full disk is an error at
//!   creation and never a SIGBUS at a store. (On a copy-on-write file system a later overwrite may still need room; the
//!   log's folder wants ext4 or XFS.)
//! - Prefaulted. `MADV_POPULATE_WRITE` takes the page faults before the first store, and tells of a bad sector as an
//!   error where a store would be killed. Kernels before 5.14 do not know it; then stores fault as usual.
//! - Written through the map, read by `pread`. A bad sector found while reading is an error value.
//!
//! `msync(MS_SYNC)` of the range is what makes stores durable; `MS_ASYNC` (memmap2's `flush_async`) does nothing on
//! Linux and is not used. The file's length never changes while it is mapped, and the lock of the data directory keeps
//! other processes away.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use memmap2::{Advice, MmapOptions, MmapRaw};
use parking_lot::Mutex;

use super::Segment;

/// A mapped file of fixed length.
#[derive(Debug)]
pub(super) struct MappedSegment {
    file: File,
    map: MmapRaw,
    /// Held while bytes are stored, so that two stores never race; reads do not go through the map.
    storing: Mutex<()>,
}

impl MappedSegment {
    /// Maps a file that has no holes.
    pub(super) fn map(file: File, len: u64) -> io::Result<MappedSegment> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let map = MmapOptions::new().len(len).map_raw(&file)?;
        match map.advise(Advice::PopulateWrite) {
            Err(e) if e.raw_os_error() != Some(EINVAL) => return Err(e),
            _ => {}
        }
        Ok(MappedSegment { file, map, storing: Mutex::new(()) })
    }

    fn range(&self, offset: u64, len: u64) -> io::Result<(usize, usize)> {
        match offset.checked_add(len) {
            Some(end) if end <= self.map.len() as u64 => Ok((offset as usize, len as usize)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{len} bytes at {offset} are outside the segment"))),
        }
    }
}

/// "Unknown advice": the kernel is older than `MADV_POPULATE_WRITE`.
const EINVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();

impl Segment for MappedSegment {
    fn len(&self) -> u64 {
        self.map.len() as u64
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (start, len) = self.range(offset, bytes.len() as u64)?;
        let _storing = self.storing.lock();
        // SAFETY: `start + len` was checked to lie inside the map, which lives as long as `self`. `bytes` is a shared
        // slice of memory that is not this map, for no reference to mapped memory is ever handed out (`map` is private
        // and reads go through the file), so the two do not overlap. `storing` makes this the only store. The pages are
        // backed by written blocks and the file is not shortened while it is mapped, so the store does not trap.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.map.as_mut_ptr().add(start), len) };
        Ok(())
    }

    fn sync(&self, offset: u64, len: u64) -> io::Result<()> {
        let (start, len) = self.range(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        self.map.flush_range(start, len)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}
