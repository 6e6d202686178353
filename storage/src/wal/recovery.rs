//! Opens a log: what is there, what was torn, what is damaged.
//!
//! Everything is read by `pread`, so that a bad sector is an error. Records are followed from the oldest segment on, each
//! must carry its predecessor's checksum and index. At the first place B where no such record is, the question is whether
//! a crash tore the unsynced end off or whether bytes that were safe are damaged. It is damage if
//!
//! 1. a later segment exists (it got its name only after everything before it was durable), or
//! 2. any record of this segment's epoch behind B says that it was durable beyond B, or
//! 3. the hard state says that the record expected at B was durable.
//!
//! Damage is an error that names the file and the offset; nothing is changed. Otherwise the tail is torn: everything from B
//! on was never acknowledged, is overwritten with zeros, and the rest is synced before anybody hears of it. A record that
//! rotted after it was synced, with nothing behind it, looks like a torn tail; the mark behind it is there to tell.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use model::{LogIndex, Term};
use parking_lot::{Mutex, RwLock};

use super::hard_state::HardState;
use super::index::{Index, IndexedSegment};
use super::log::{Log, Tail, zero};
use super::record::{self, CRC_BYTES, Decoded, HEAD_BYTES, MARK, MARK_BYTES, NotARecord};
use super::segment::{self, Body, HEADER_BYTES, Header, LogSegment};
use super::spares::{self, MAX_SPARES, Spares};
use super::sums::Sums;
use super::survey::SegmentSurvey;
use super::{Opened, WalOptions};
use crate::disk::Disk;
use crate::{Error, Result};

/// Segments are read in pieces of this size.
const WINDOW: usize = 1024 * 1024;

/// A log that was opened.
pub(super) struct Recovered {
    pub(super) log: Arc<Log>,
    pub(super) hard: HardState,
    pub(super) opened: Opened,
}

pub(super) fn recover(options: WalOptions) -> Result<Recovered> {
    let WalOptions { disk, syncer, dir, first_segment_bytes, max_segment_bytes } = options;
    assert!(first_segment_bytes >= 2 * HEADER_BYTES && first_segment_bytes <= max_segment_bytes, "segments have a sensible size");
    assert!(max_segment_bytes <= u64::from(u32::MAX), "offsets in a segment have 32 bits");
    disk.create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        disk.sync_dir(parent).map_err(|e| Error::io("sync", parent, e))?;
    }
    let found = Found::list(&*disk, &dir)?;
    // A process that was killed may have renamed a segment and not synced its name: what is acknowledged from here on
    // must not hang on that.
    disk.sync_dir(&dir).map_err(|e| Error::SyncFailed { path: dir.clone(), source: e })?;
    let mut hard = match found.hard_state {
        true => HardState::open(&*disk, &dir)?,
        false => found_hard_state(&*disk, &dir, &found)?,
    };
    let identity = hard.saved().identity;
    let mut segments = found.segments;
    finish_cut(&*disk, &dir, &mut hard, &mut segments)?;

    let mut chain = Chain::default();
    let mut index = Index::default();
    let mut tail = Tail::default();
    let mut cut_bytes = 0;
    let paths: Vec<(u64, PathBuf)> = segments.into_iter().collect();
    for (i, (number, path)) in paths.iter().enumerate() {
        let newest = i + 1 == paths.len();
        let (indexed, end) = match newest {
            false => {
                let indexed = sealed_segment(&*disk, path, *number, identity, &mut chain)?;
                let end = indexed.end;
                (indexed, end)
            }
            true => {
                let last = newest_segment(&*disk, path, *number, identity, &mut chain, hard.saved().durable_end)?;
                cut_bytes = last.cut_bytes;
                (last.indexed, last.end)
            }
        };
        if newest {
            tail.active = Some(indexed.segment.clone());
            tail.end = end;
            tail.previous_crc = chain.crc;
            tail.next = chain.next;
            tail.number = *number;
            tail.ends_with_mark = end > indexed.end;
        }
        index.segments.push_back(indexed);
    }
    if paths.is_empty() && hard.saved().durable_end > 0 {
        let what = format!("records before {} were durable, but there is no segment", hard.saved().durable_end);
        return Err(Error::Corrupt { path: dir, at: 0, what });
    }
    let opened = Opened {
        first: chain.first,
        last: chain.last,
        hard_state: Some(&hard.saved().blob).filter(|blob| !blob.is_empty()).map(|blob| blob.clone().into()),
        cut_bytes,
    };
    let log = Arc::new(Log {
        durable_end: AtomicU64::new(tail.next.map_or(0, |next| next.0)),
        disk,
        dir,
        lane: syncer.lane(),
        syncer,
        identity,
        first_segment_bytes,
        max_segment_bytes,
        tail: Mutex::new(tail),
        index: RwLock::new(index),
        spares: Mutex::new(found.spares),
        syncing: Mutex::new(()),
        tidying: Mutex::new(()),
        preparing: Mutex::new(()),
        stopped: OnceLock::new(),
    });
    if paths.is_empty() {
        // The first append of a new log should not wait for zeros either.
        log.prepare(first_segment_bytes);
    }
    Ok(Recovered { log, hard, opened })
}

/// What lies in a log's folder.
struct Found {
    segments: BTreeMap<u64, PathBuf>,
    spares: Spares,
    hard_state: bool,
}

impl Found {
    /// Lists the folder and removes what a crash left half made.
    fn list(disk: &dyn Disk, dir: &Path) -> Result<Found> {
        let mut found = Found { segments: BTreeMap::new(), spares: Spares::default(), hard_state: false };
        for path in disk.list(dir).map_err(|e| Error::io("list", dir, e))? {
            if let Some(number) = segment::number_of(&path) {
                found.segments.insert(number, path);
            } else if let Some(number) = spares::number_of(&path) {
                found.spares.next_name = found.spares.next_name.max(number);
                let len = disk.open(&path).and_then(|file| file.len()).map_err(|e| Error::io("open", &path, e))?;
                if found.spares.cold.len() < MAX_SPARES && len >= 2 * HEADER_BYTES {
                    found.spares.cold.push((path, len));
                } else {
                    disk.remove(&path).map_err(|e| Error::io("remove", &path, e))?;
                }
            } else if path == HardState::path_in(dir) {
                found.hard_state = true;
            } else if path.extension().is_some_and(|extension| extension == "new") {
                disk.remove(&path).map_err(|e| Error::io("remove", &path, e))?;
            }
        }
        Ok(found)
    }
}

fn found_hard_state(disk: &dyn Disk, dir: &Path, found: &Found) -> Result<HardState> {
    if !found.segments.is_empty() {
        // It is made before the first segment: it was there.
        let what = "it is missing beside the log's segments, and with it a vote that must not be forgotten".to_owned();
        return Err(Error::Corrupt { path: HardState::path_in(dir), at: 0, what });
    }
    let nonce = || disk.nonce().map(u128::from).map_err(|e| Error::io("draw an identity for", dir, e));
    let identity = nonce()? << 64 | nonce()?;
    HardState::found(disk, dir, identity)
}

/// Finishes a truncation that a crash interrupted.
fn finish_cut(disk: &dyn Disk, dir: &Path, hard: &mut HardState, segments: &mut BTreeMap<u64, PathBuf>) -> Result<()> {
    let Some((number, offset)) = hard.saved().cut else { return Ok(()) };
    let Some(path) = segments.get(&number).cloned() else {
        return Err(Error::Corrupt {
            path: segment::path_of(dir, number),
            at: offset,
            what: "it is missing while it was truncated".to_owned(),
        });
    };
    for gone in segments.split_off(&(number + 1)).values() {
        disk.remove(gone).map_err(|e| Error::io("remove", gone, e))?;
    }
    let len = disk.open(&path).and_then(|file| file.len()).map_err(|e| Error::io("open", &path, e))?;
    let file = disk.segment(&path, len).map_err(|e| Error::io("open", &path, e))?;
    let header = read_header(&path, number, hard.saved().identity, &|at, buf| file.read(at, buf))?;
    let segment = LogSegment::new(Body::Writable(file), path.clone(), None, &header, offset);
    let failed = |source| Error::SyncFailed { path: path.clone(), source };
    zero(&segment, offset, len).map_err(failed)?;
    disk.sync_dir(dir).map_err(failed)?;
    hard.save(|saved| saved.cut = None)
}

/// What the next record must continue.
#[derive(Default)]
pub(super) struct Chain {
    crc: u32,
    next: Option<LogIndex>,
    number: Option<u64>,
    first: Option<(Term, LogIndex)>,
    last: Option<(Term, LogIndex)>,
    /// Where the segment before stopped being records, and why: to be named if the next one does not continue it.
    stop: Option<(PathBuf, u64, NotARecord)>,
}

impl Chain {
    /// Checks that a segment continues the one before it, which is thereby complete.
    fn enter(&mut self, header: &Header, path: &Path) -> Result<()> {
        if let Some(before) = self.number
            && before + 1 != header.number
        {
            let what = format!("segment {} follows segment {before}: what was between them is missing", header.number);
            return Err(Error::Corrupt { path: path.to_owned(), at: 0, what });
        }
        if let Some((path, at, reason)) = self.stop.take()
            && (self.next != Some(header.first) || self.crc != header.previous_crc)
        {
            return Err(Error::Corrupt { path, at, what: format!("{reason}, and later segments exist") });
        }
        self.number = Some(header.number);
        self.crc = header.previous_crc;
        self.next = Some(header.first);
        Ok(())
    }

    /// Takes a record that follows, or says that it does not.
    fn follow(&mut self, found: &Decoded<'_>) -> std::result::Result<(), NotARecord> {
        if found.head.previous_crc != self.crc {
            return Err(NotARecord::Chain);
        }
        if !found.is_mark() {
            let term_falls = self.last.is_some_and(|(term, _)| found.head.term < term);
            if self.next != Some(found.head.index) || term_falls {
                return Err(NotARecord::Chain);
            }
            let id = (found.head.term, found.head.index);
            self.first.get_or_insert(id);
            self.last = Some(id);
            self.next = Some(found.head.index.next());
        }
        self.crc = found.crc;
        Ok(())
    }
}

type ReadAt<'a> = &'a dyn Fn(u64, &mut [u8]) -> io::Result<()>;

fn read_header(path: &Path, number: u64, identity: u128, read: ReadAt<'_>) -> Result<Header> {
    let mut bytes = [0; HEADER_BYTES as usize];
    match read(0, &mut bytes) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(Error::Corrupt { path: path.to_owned(), at: 0, what: "it is shorter than its header".to_owned() });
        }
        other => other.map_err(|e| Error::io("read", path, e))?,
    }
    let header = Header::decode(&bytes, path)?;
    if header.identity != identity {
        return Err(Error::Corrupt { path: path.to_owned(), at: 16, what: "it belongs to another log".to_owned() });
    }
    if header.number != number {
        let what = format!("it says that it is segment {}", header.number);
        return Err(Error::Corrupt { path: path.to_owned(), at: 32, what });
    }
    Ok(header)
}

fn sealed_segment(disk: &dyn Disk, path: &Path, number: u64, identity: u128, chain: &mut Chain) -> Result<IndexedSegment> {
    let file = disk.open(path).map_err(|e| Error::io("open", path, e))?;
    let len = file.len().map_err(|e| Error::io("open", path, e))?;
    let read = |at, buf: &mut [u8]| file.read_exact_at(buf, at);
    let header = read_header(path, number, identity, &read)?;
    chain.enter(&header, path)?;
    let mut window = Window::new(path, record::seed(header.epoch), len, &read);
    let records = window.follow(chain)?;
    chain.stop = Some((path.to_owned(), records.end, records.stop));
    let end = records.end;
    let segment = LogSegment::new(Body::Sealed { file: file.clone(), len }, path.to_owned(), None, &header, end);
    Ok(IndexedSegment { segment: Arc::new(segment), first: header.first, offsets: records.offsets, end: records.last_end })
}

struct Newest {
    indexed: IndexedSegment,
    /// Where the next record goes.
    end: u64,
    cut_bytes: u64,
}

fn newest_segment(disk: &dyn Disk, path: &Path, number: u64, identity: u128, chain: &mut Chain, durable_end: u64) -> Result<Newest> {
    let len = length_of(disk, path)?;
    let file = disk.segment(path, len).map_err(|e| Error::io("open", path, e))?;
    let read = |at, buf: &mut [u8]| file.read(at, buf);
    let (header, records, tail) = judge_newest(path, number, identity, chain, durable_end, len, &read)?;
    let segment = LogSegment::new(Body::Writable(file.clone()), path.to_owned(), None, &header, records.end);
    let failed = |source| Error::SyncFailed { path: path.to_owned(), source };
    if tail.is_dirty {
        if tail.cut_bytes > 0 {
            tracing::warn!(path = %path.display(), at = records.end, bytes = tail.cut_bytes, "cut a torn tail");
        }
        zero(&segment, records.end, len).map_err(failed)?;
    }
    // A killed process may have left records in the page cache only.
    file.sync(0, records.end).map_err(failed)?;
    let indexed = IndexedSegment { segment: Arc::new(segment), first: header.first, offsets: records.offsets, end: records.last_end };
    Ok(Newest { indexed, end: records.end, cut_bytes: tail.cut_bytes })
}

fn length_of(disk: &dyn Disk, path: &Path) -> Result<u64> {
    let len = disk.open(path).and_then(|file| file.len()).map_err(|e| Error::io("open", path, e))?;
    if len <= HEADER_BYTES {
        return Err(Error::Corrupt { path: path.to_owned(), at: 0, what: format!("it was cut short to {len} bytes") });
    }
    Ok(len)
}

/// Reads the newest segment: its records and what lies behind them, or the error that it is damaged. Changes nothing.
fn judge_newest(
    path: &Path,
    number: u64,
    identity: u128,
    chain: &mut Chain,
    durable_end: u64,
    len: u64,
    read: ReadAt<'_>,
) -> Result<(Header, Followed, TailFound)> {
    let header = read_header(path, number, identity, read)?;
    chain.enter(&header, path)?;
    let mut window = Window::new(path, record::seed(header.epoch), len, read);
    let records = window.follow(chain)?;
    let tail = window.after(records.end, chain, header.recycled)?;
    if let Some(proof) = tail.proof {
        let what = format!("{}, and the record at byte {proof} says that it was durable", records.stop);
        return Err(Error::Corrupt { path: path.to_owned(), at: records.end, what });
    }
    let expected = chain.next.expect("the header names the first index").0;
    if durable_end > expected {
        let what = format!("{}, but every record before {durable_end} was durable and {expected} is missing", records.stop);
        return Err(Error::Corrupt { path: path.to_owned(), at: records.end, what });
    }
    Ok((header, records, tail))
}

/// What must be known of a log to look at one of its segments.
pub(super) struct Limits {
    pub(super) identity: u128,
    pub(super) durable_end: u64,
    /// Where a truncation has begun: what lies behind it in this segment is gone.
    pub(super) end: Option<u64>,
}

/// Reads one segment and changes nothing.
pub(super) fn look_at(
    disk: &dyn Disk,
    path: &Path,
    number: u64,
    newest: bool,
    limits: &Limits,
    chain: &mut Chain,
) -> Result<SegmentSurvey> {
    let bytes = length_of(disk, path)?;
    let file = disk.open(path).map_err(|e| Error::io("open", path, e))?;
    let read = |at, buf: &mut [u8]| file.read_exact_at(buf, at);
    let len = limits.end.map_or(bytes, |end| end.min(bytes));
    let (header, records, torn_bytes) = if newest {
        let (header, records, tail) = judge_newest(path, number, limits.identity, chain, limits.durable_end, len, &read)?;
        (header, records, tail.cut_bytes)
    } else {
        let header = read_header(path, number, limits.identity, &read)?;
        chain.enter(&header, path)?;
        let records = Window::new(path, record::seed(header.epoch), len, &read).follow(chain)?;
        chain.stop = Some((path.to_owned(), records.end, records.stop));
        (header, records, 0)
    };
    let count = records.offsets.len() as u64;
    Ok(SegmentSurvey {
        path: path.to_owned(),
        number,
        first: (count > 0).then_some(header.first),
        last: (count > 0).then(|| LogIndex(header.first.0 + count - 1)),
        records: count,
        marks: records.marks,
        used_bytes: records.end,
        bytes,
        torn_bytes,
    })
}

/// The records of a segment, up to the first place where none follows.
struct Followed {
    offsets: Vec<u32>,
    marks: u64,
    /// Where the last record ends.
    last_end: u64,
    /// Where the last record or mark ends.
    end: u64,
    stop: NotARecord,
}

/// What lies behind the last record of the newest segment.
#[derive(Default)]
struct TailFound {
    /// A record that says that what is missing was durable.
    proof: Option<u64>,
    /// Bytes of records of this epoch that are cut off.
    cut_bytes: u64,
    is_dirty: bool,
}

/// Reads a segment in large pieces and gives small ones.
struct Window<'a> {
    path: &'a Path,
    seed: u32,
    len: u64,
    read: ReadAt<'a>,
    bytes: Vec<u8>,
    start: u64,
}

impl<'a> Window<'a> {
    fn new(path: &'a Path, seed: u32, len: u64, read: ReadAt<'a>) -> Window<'a> {
        Window { path, seed, len, read, bytes: Vec::new(), start: 0 }
    }

    /// `len` bytes at an offset; fewer at the end of the segment.
    fn get(&mut self, at: u64, len: usize) -> Result<&[u8]> {
        let end = (at + len as u64).min(self.len);
        if at < self.start || end > self.start + self.bytes.len() as u64 {
            let wanted = (end - at).max(WINDOW as u64).min(self.len - at);
            self.bytes.resize(wanted as usize, 0);
            self.start = at;
            (self.read)(at, &mut self.bytes).map_err(|e| Error::io("read", self.path, e))?;
        }
        let from = (at - self.start) as usize;
        Ok(&self.bytes[from..from + (end - at) as usize])
    }

    fn record(&mut self, at: u64) -> Result<std::result::Result<Decoded<'_>, NotARecord>> {
        if at >= self.len {
            return Ok(Err(NotARecord::Empty));
        }
        let size = match record::peek_size(self.get(at, 4)?) {
            Ok(size) => size,
            Err(reason) => return Ok(Err(reason)),
        };
        let seed = self.seed;
        Ok(record::decode(self.get(at, size)?, seed))
    }

    fn follow(&mut self, chain: &mut Chain) -> Result<Followed> {
        let mut found = Followed { offsets: Vec::new(), marks: 0, last_end: HEADER_BYTES, end: HEADER_BYTES, stop: NotARecord::Empty };
        loop {
            let next = self.record(found.end)?;
            let next = next.and_then(|record| chain.follow(&record).map(|()| record));
            match next {
                Ok(record) => {
                    let (size, is_mark) = (record.size as u64, record.is_mark());
                    if is_mark {
                        found.marks += 1;
                    } else {
                        found.offsets.push(u32::try_from(found.end).expect("a segment has less than 4 GiB"));
                        found.last_end = found.end + size;
                    }
                    found.end += size;
                }
                Err(reason) => {
                    found.stop = reason;
                    return Ok(found);
                }
            }
        }
    }

    /// Looks through everything behind `end`.
    fn after(&mut self, end: u64, chain: &Chain, recycled: bool) -> Result<TailFound> {
        let mut found = TailFound::default();
        let mut last_trace = end;
        if self.begins_the_next_record(end, chain)? {
            let size = record::peek_size(self.get(end, 4)?).unwrap_or(HEAD_BYTES + CRC_BYTES);
            last_trace = (end + size as u64).min(self.len);
        }
        let mut sums = None;
        let mut at = end;
        while at < self.len {
            let word = self.get(at, 8)?;
            if word.iter().all(|&b| b == 0) {
                at += 8;
                continue;
            }
            found.is_dirty = true;
            if !recycled {
                // Zeros were here before, so whatever is here now was meant to be a record.
                last_trace = last_trace.max((at + 8).min(self.len));
            }
            if self.may_be_a_record(at, end, chain)?
                && self.has_its_checksum(at, end, &mut sums)?
                && let Ok(record) = self.record(at)?
            {
                let (size, durable_offset) = (record.size as u64, record.head.durable_offset);
                if durable_offset > end {
                    found.proof = Some(at);
                    return Ok(found);
                }
                last_trace = last_trace.max(at + size);
                at += size;
                continue;
            }
            at += 8;
        }
        found.cut_bytes = last_trace - end;
        Ok(found)
    }

    /// Whether the bytes at the end look like a torn record of this life.
    fn begins_the_next_record(&mut self, end: u64, chain: &Chain) -> Result<bool> {
        let bytes = self.get(end, HEAD_BYTES)?;
        if bytes.len() < HEAD_BYTES {
            return Ok(false);
        }
        let head = record::decode_head(bytes);
        Ok(head.previous_crc == chain.crc && Some(head.index) == chain.next && head.kind != 0)
    }

    /// A cheap look before the checksum: what a record behind the end must say, since indexes have no gaps and terms do not
    /// fall. Whoever writes strings may have bytes put here, in a segment that is used again, that say anything.
    fn may_be_a_record(&mut self, at: u64, end: u64, chain: &Chain) -> Result<bool> {
        let len = self.len;
        let bytes = self.get(at, HEAD_BYTES)?;
        if bytes.len() < HEAD_BYTES || bytes[5..8] != [0; 3] {
            return Ok(false);
        }
        let (head, size) = (record::decode_head(bytes), record::peek_size(bytes));
        if !size.is_ok_and(|size| at + size as u64 <= len) || head.durable_offset > at {
            return Ok(false);
        }
        if head.kind == MARK {
            return Ok(size == Ok(MARK_BYTES) && (head.term, head.index) == (Term(0), LogIndex(0)));
        }
        let next = chain.next.expect("the header names the first index").0;
        let between = (at - end) / MARK_BYTES as u64;
        let follows = (next..=next.saturating_add(between)).contains(&head.index.0);
        Ok((1..MARK).contains(&head.kind) && follows && chain.last.is_none_or(|(term, _)| head.term >= term))
    }

    /// Whether the checksum of what may be a record is right, told without reading all of it: lengths may say that very many
    /// records reach over each other.
    fn has_its_checksum(&mut self, at: u64, end: u64, sums: &mut Option<Sums>) -> Result<bool> {
        let (path, read, len) = (self.path, self.read, self.len);
        let failed = |e| Error::io("read", path, e);
        let sums = match sums {
            Some(sums) => sums,
            None => sums.insert(Sums::of(end..len, read).map_err(failed)?),
        };
        let size = record::peek_size(self.get(at, 4)?).unwrap_or(MARK_BYTES) as u64;
        let crc_at = at + size - CRC_BYTES as u64;
        let mut crc = [0; CRC_BYTES];
        read(crc_at, &mut crc).map_err(failed)?;
        Ok(sums.crc(at..crc_at, self.seed, read).map_err(failed)? == u32::from_le_bytes(crc))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::record::{Head, encode};
    use super::*;

    const SEED: u32 = 77;
    /// Where the last record ends.
    const END: u64 = HEADER_BYTES;
    const NEXT: u64 = 1_000;

    /// What is found in a segment behind its last record, and how many bytes were read for it.
    fn found_in(segment: &[u8]) -> (TailFound, usize) {
        let bytes_read = Cell::new(0);
        let read = |at: u64, buf: &mut [u8]| {
            bytes_read.set(bytes_read.get() + buf.len());
            buf.copy_from_slice(&segment[at as usize..at as usize + buf.len()]);
            Ok(())
        };
        let last = Some((Term(5), LogIndex(NEXT - 1)));
        let chain = Chain { crc: 3, next: Some(LogIndex(NEXT)), last, ..Chain::default() };
        let found = Window::new(Path::new("test"), SEED, segment.len() as u64, &read).after(END, &chain, true).unwrap();
        (found, bytes_read.get())
    }

    /// A segment full of what looks like heads of records of this size, one every 32 bytes: as a string may say that lay here
    /// before.
    fn crafted(bytes: u64, size: usize, index: u64) -> Vec<u8> {
        let mut segment = vec![0; bytes as usize];
        for at in (END..bytes - 64).step_by(32) {
            let head = Head { kind: 1, term: Term(5), index: LogIndex(index), durable_offset: 0, previous_crc: 0 };
            let payload = size - HEAD_BYTES - CRC_BYTES;
            segment[at as usize..at as usize + 32].copy_from_slice(&head.encode(payload)[..32]);
        }
        segment
    }

    fn put(segment: &mut [u8], at: u64, head: Head, payload: &[u8]) {
        let record = encode(&head, payload, SEED);
        segment[at as usize..at as usize + record.len()].copy_from_slice(&record);
    }

    #[test]
    fn crafted_bytes_behind_the_end_are_not_all_hashed_over_and_over() {
        const BYTES: u64 = 5 << 18;
        // Larger than a piece that is read at once: what is hashed is read anew for each.
        const SIZE: usize = WINDOW + (1 << 17);
        // An index that was not told in advance, and one that was.
        for (index, times) in [(7, 3), (NEXT, 8)] {
            let (found, bytes_read) = found_in(&crafted(BYTES, SIZE, index));
            assert!(found.proof.is_none() && found.is_dirty, "index {index}");
            assert!(bytes_read as u64 <= times * BYTES, "index {index}: {bytes_read} bytes were read");
        }
    }

    #[test]
    fn a_later_record_or_mark_among_crafted_bytes_is_found() {
        let at = END + 64 * 1024;
        let record = Head { kind: 1, term: Term(6), index: LogIndex(NEXT + 4), durable_offset: END + 8, previous_crc: 9 };
        let mark = Head { kind: MARK, term: Term(0), index: LogIndex(0), ..record };
        for (head, payload) in [(record, &[7; 5_000][..]), (Head { term: Term(5), ..record }, &[]), (mark, &[])] {
            let mut segment = crafted(256 * 1024, 128 * 1024, NEXT);
            put(&mut segment, at, head, payload);
            assert_eq!(found_in(&segment).0.proof, Some(at), "{head:?}");
            // Of another life.
            segment[at as usize + 36] ^= 1;
            assert_eq!(found_in(&segment).0.proof, None, "{head:?}");
        }
        // The first record behind the end may be the one that is missing, and the one that is there the second.
        let mut segment = vec![0; 64 * 1024];
        put(&mut segment, END + MARK_BYTES as u64, Head { index: LogIndex(NEXT + 1), ..record }, &[]);
        assert_eq!(found_in(&segment).0.proof, Some(END + MARK_BYTES as u64));
        put(&mut segment, END + MARK_BYTES as u64, Head { index: LogIndex(NEXT + 2), ..record }, &[]);
        assert_eq!(found_in(&segment).0.proof, None, "there is no room for two records before it");
    }
}
