//! A segment of the log as a file of this machine: stored by `pwrite`, made durable by `fdatasync`, read by `pread`.
//!
//! It promises what [`Segment`] promises. Every byte of the file was *written* as zero and synced before it is used, so a
//! store never asks for a block (a full disk is an error at creation), and a sync never has a journal to wait for. A file
//! that is used again has its pages in memory: stores into them cost a twentieth of what new ones cost.
//!
//! It was a memory map once. A page of a shared map is write-protected at each sync and taken back by a page fault and an
//! interrupt on every other core at the next store; `pwrite` does neither. Figures: `docs/decisions/0004`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::Segment;

/// Bytes read at a time to bring a file into memory.
const PIECE: usize = 256 * 1024;

/// A file of fixed length without holes.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    len: u64,
}

impl LogFile {
    /// Takes a file that was just written whole.
    pub(super) fn new(file: File, len: u64) -> LogFile {
        LogFile { file, len }
    }

    /// Takes a file of an earlier process: reads it once, so that its pages are in memory and a bad sector is told now and
    /// not by the store of a record.
    pub(super) fn warmed(file: File, len: u64) -> io::Result<LogFile> {
        let mut piece = vec![0; PIECE];
        let mut at = 0;
        while at < len {
            let n = (len - at).min(PIECE as u64) as usize;
            file.read_exact_at(&mut piece[..n], at)?;
            at += n as u64;
        }
        Ok(LogFile { file, len })
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{len} bytes at {offset} are outside the segment"))),
        }
    }
}

impl Segment for LogFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(offset, bytes.len() as u64)?;
        self.file.write_all_at(bytes, offset)
    }

    /// Syncs the whole file: only what was stored since the last time is dirty.
    fn sync(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        self.file.sync_data()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check(offset, buf.len() as u64)?;
        self.file.read_exact_at(buf, offset)
    }
}
