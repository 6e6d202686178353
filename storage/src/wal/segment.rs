//! One file of the log: its name, its header, and how much of it is durable.
//!
//! ```text
//! segment = | header 4096 | record | record | ... | zeros, or records of the file's earlier life |
//! header  = | "allu-wal" | format u32 | flags u32 | log identity u128 | number u64 | epoch u64 | first_index u64 |
//!           | previous_crc u32 | zeros ... | crc32c u32 |
//! ```
//!
//! Segments are numbered from 1 without gaps and named `<number, 20 digits>.wal`. A file gets that name only once its
//! header, its first records and the whole segment before it are durable, so a segment that has a successor is complete:
//! it ends where the successor's `first_index` and `previous_crc` say. `epoch` is random and seeds every record's
//! checksum: a recycled file's old records are not taken for new ones. Flag 1 says that the file is recycled.
//!
//! The header's checksum is its last four bytes and covers the 4092 before it, in every format to come: a damaged format
//! number is damage and not a newer program's file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use model::LogIndex;

use super::record;
use crate::disk::{ReadAt, Segment};
use crate::{Error, Result};

/// Where a segment's first record begins.
pub(super) const HEADER_BYTES: u64 = 4096;
/// The newest segment format that this program reads, and the one it writes.
pub const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"allu-wal";
const RECYCLED: u32 = 1;
const CRC_AT: usize = HEADER_BYTES as usize - 4;

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) identity: u128,
    pub(super) number: u64,
    pub(super) epoch: u64,
    pub(super) first: LogIndex,
    pub(super) previous_crc: u32,
    /// Whether the file may hold bytes of an earlier life behind the last record.
    pub(super) recycled: bool,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES as usize);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&(if self.recycled { RECYCLED } else { 0 }).to_le_bytes());
        out.extend_from_slice(&self.identity.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.first.0.to_le_bytes());
        out.extend_from_slice(&self.previous_crc.to_le_bytes());
        out.resize(CRC_AT, 0);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES as usize], path: &Path) -> Result<Header> {
        let corrupt = |at: usize, what: &str| Error::Corrupt { path: path.to_owned(), at: at as u64, what: what.to_owned() };
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if &bytes[..8] != MAGIC {
            return Err(corrupt(0, "it does not begin like a segment of a log"));
        }
        if crc32c::crc32c(&bytes[..CRC_AT]) != u32_at(CRC_AT) {
            return Err(corrupt(CRC_AT, "the header's checksum does not match"));
        }
        let found = u32_at(8);
        if found > FORMAT {
            return Err(Error::NewerFormat { path: path.to_owned(), found, known: FORMAT });
        }
        Ok(Header {
            identity: u128::from_le_bytes(bytes[16..32].try_into().expect("sixteen bytes")),
            number: u64_at(32),
            epoch: u64_at(40),
            first: LogIndex(u64_at(48)),
            previous_crc: u32_at(56),
            recycled: u32_at(12) & RECYCLED != 0,
        })
    }
}

/// The name of a segment in the log's folder.
pub(super) fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.wal"))
}

/// The number in a segment's name, if it is one.
pub(super) fn number_of(path: &Path) -> Option<u64> {
    let digits = path.file_name()?.to_str()?.strip_suffix(".wal")?;
    if digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// How a segment's bytes are reached. Only segments that were written by this process, and the newest, can be written.
#[derive(Debug)]
pub(super) enum Body {
    Writable(Arc<dyn Segment>),
    Sealed { file: Arc<dyn ReadAt>, len: u64 },
}

/// A segment in use. Readers and the syncing thread hold it beside the log's owner; the file is recycled when the last
/// of them has let go.
#[derive(Debug)]
pub(super) struct LogSegment {
    body: Body,
    /// The name it has once it is published.
    pub(super) path: PathBuf,
    /// The name it has until then; none if it was found published.
    pub(super) unpublished: Option<PathBuf>,
    pub(super) number: u64,
    /// The seed of its records' checksums.
    pub(super) seed: u32,
    published: AtomicBool,
    /// Everything before this offset is durable. Changed only by whoever holds the log's `syncing` lock.
    synced: AtomicU64,
}

impl LogSegment {
    pub(super) fn new(body: Body, path: PathBuf, unpublished: Option<PathBuf>, header: &Header, synced: u64) -> LogSegment {
        LogSegment {
            body,
            path,
            published: AtomicBool::new(unpublished.is_none()),
            unpublished,
            number: header.number,
            seed: record::seed(header.epoch),
            synced: AtomicU64::new(synced),
        }
    }

    /// The same segment, opened to be written too.
    pub(super) fn reopened(&self, file: Arc<dyn Segment>) -> LogSegment {
        LogSegment {
            body: Body::Writable(file),
            path: self.path.clone(),
            unpublished: None,
            number: self.number,
            seed: self.seed,
            published: AtomicBool::new(true),
            synced: AtomicU64::new(self.synced()),
        }
    }

    pub(super) fn len(&self) -> u64 {
        match &self.body {
            Body::Writable(file) => file.len(),
            Body::Sealed { len, .. } => *len,
        }
    }

    pub(super) fn is_writable(&self) -> bool {
        matches!(self.body, Body::Writable(_))
    }

    /// The file to store into.
    ///
    /// # Panics
    /// If it was opened only to be read.
    pub(super) fn writable(&self) -> &Arc<dyn Segment> {
        match &self.body {
            Body::Writable(file) => file,
            Body::Sealed { .. } => panic!("only writable segments are written"),
        }
    }

    pub(super) fn into_writable(self) -> Option<Arc<dyn Segment>> {
        match self.body {
            Body::Writable(file) => Some(file),
            Body::Sealed { .. } => None,
        }
    }

    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        match &self.body {
            Body::Writable(file) => file.read(offset, buf),
            Body::Sealed { file, .. } => file.read_exact_at(buf, offset),
        }
        .map_err(|e| Error::io("read", self.current_path(), e))
    }

    pub(super) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    pub(super) fn set_synced(&self, offset: u64) {
        self.synced.store(offset, Ordering::Release);
    }

    pub(super) fn is_published(&self) -> bool {
        self.published.load(Ordering::Acquire)
    }

    pub(super) fn set_published(&self) {
        self.published.store(true, Ordering::Release);
    }

    /// The name it has now.
    pub(super) fn current_path(&self) -> &Path {
        match &self.unpublished {
            Some(path) if !self.is_published() => path,
            _ => &self.path,
        }
    }

    /// Whether a record of this many bytes fits behind `end`, with room for a mark after it.
    pub(super) fn fits(len: u64, end: u64, record_bytes: usize) -> bool {
        end + (record_bytes + record::MARK_BYTES) as u64 <= len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header { identity: 7 << 100, number: 12, epoch: 99, first: LogIndex(1000), previous_crc: 5, recycled: true };

    fn bytes() -> [u8; HEADER_BYTES as usize] {
        HEADER.encode().try_into().unwrap()
    }

    #[test]
    fn a_header_reads_back_and_every_damaged_byte_is_noticed() {
        assert_eq!(Header::decode(&bytes(), Path::new("x")).unwrap(), HEADER);
        for byte in 0..bytes().len() {
            let mut bad = bytes();
            bad[byte] ^= 4;
            assert!(matches!(Header::decode(&bad, Path::new("x")), Err(Error::Corrupt { .. })), "byte {byte}");
        }
    }

    #[test]
    fn a_newer_format_is_refused_naming_both() {
        let mut newer = bytes();
        newer[8..12].copy_from_slice(&(FORMAT + 1).to_le_bytes());
        let crc = crc32c::crc32c(&newer[..CRC_AT]);
        newer[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        match Header::decode(&newer, Path::new("x")) {
            Err(Error::NewerFormat { found, known, .. }) => assert_eq!((found, known), (FORMAT + 1, FORMAT)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_of_segments_hold_their_number() {
        let dir = Path::new("log");
        assert_eq!(number_of(&path_of(dir, 42)), Some(42));
        for other in ["spare-3", "spare-3.new", "00000000000000000042.tmp", "42.wal", "hard_state"] {
            assert_eq!(number_of(&dir.join(other)), None, "{other}");
        }
    }
}
