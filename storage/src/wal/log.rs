//! The log itself, shared by its owner, its readers, the syncing thread and the chore thread.
//!
//! Locks are taken in this order: `syncing`, `tail`, `index`; `tidying` and `preparing` before `spares`; none is held by a
//! reader while it reads the disk. The owner appends under `tail` (a copy, no I/O unless a segment must be made); a sync
//! reads the end under `tail`, then works without it.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use model::{LogIndex, Term};
use parking_lot::{Mutex, RwLock};

use super::hard_state::HardState;
use super::index::{Index, IndexedSegment};
use super::metrics::Metrics;
use super::record::{self, CRC_BYTES, HEAD_BYTES, Head, MARK, MARK_BYTES, MAX_PAYLOAD_BYTES};
use super::segment::{self, Body, HEADER_BYTES, Header, LogSegment};
use super::spares::{Spare, Spares};
use super::syncer::{Chore, Syncer};
use super::{Appended, NewRecord};
use crate::disk::Disk;
use crate::{Error, Result};

/// Records up to this size are put together first and stored at once.
const SMALL_PAYLOAD: usize = 16 * 1024;
/// Larger ones are summed and stored in pieces that stay in the cache between the two.
const PIECE: usize = 128 * 1024;

#[derive(Debug)]
pub(super) struct Log {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) syncer: Syncer,
    /// Which of the syncer's threads syncs it.
    pub(super) lane: usize,
    pub(super) identity: u128,
    pub(super) first_segment_bytes: u64,
    pub(super) max_segment_bytes: u64,
    pub(super) tail: Mutex<Tail>,
    pub(super) index: RwLock<Index>,
    pub(super) spares: Mutex<Spares>,
    /// Held while the log is synced or truncated.
    pub(super) syncing: Mutex<()>,
    pub(super) tidying: Mutex<()>,
    pub(super) preparing: Mutex<()>,
    /// One above the last durable record; 0 if none.
    pub(super) durable_end: AtomicU64,
    /// Why nothing is written any more.
    pub(super) stopped: OnceLock<Arc<Error>>,
}

/// Where the next record goes.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// The segment that is written; none in an empty log.
    pub(super) active: Option<Arc<LogSegment>>,
    pub(super) end: u64,
    pub(super) previous_crc: u32,
    /// The index that the next record must have; any if the log is empty.
    pub(super) next: Option<LogIndex>,
    /// The newest segment's number.
    pub(super) number: u64,
    /// Full segments that are not durable yet, with their ends, oldest first.
    pub(super) full: VecDeque<(Arc<LogSegment>, u64)>,
    pub(super) ends_with_mark: bool,
    /// Whether the next segment was asked for.
    pub(super) asked: bool,
    /// Where small records are put together.
    pub(super) scratch: Vec<u8>,
}

impl Log {
    pub(super) fn name(&self) -> String {
        format!("the log in {}", self.dir.display())
    }

    pub(super) fn metrics(&self) -> &Metrics {
        self.syncer.metrics()
    }

    /// Refuses work after the first failed sync.
    pub(super) fn check(&self) -> Result<()> {
        match self.stopped.get() {
            None => Ok(()),
            Some(first) => Err(self.stopped_by(first)),
        }
    }

    /// What to answer after `first` stopped the log.
    pub(super) fn stopped_by(&self, first: &Error) -> Error {
        Error::Stopped { what: self.name(), why: first.to_string() }
    }

    /// Ends all writing: what is on disk is unknown from here on. Gives the error back.
    pub(super) fn stop(&self, error: Error) -> Error {
        let copy = self.stopped_by(&error);
        if self.stopped.set(Arc::new(copy)).is_ok() {
            tracing::error!(log = %self.dir.display(), %error, "the log stops");
        }
        error
    }

    pub(super) fn append(self: &Arc<Log>, records: &[NewRecord<'_>]) -> Result<Appended> {
        self.check()?;
        let mut tail = self.tail.lock();
        let mut next = tail.next;
        for record in records {
            assert!((1..MARK).contains(&record.kind), "kind {} is not a caller's", record.kind);
            assert!(record.payload.len() <= MAX_PAYLOAD_BYTES, "a payload of {} bytes is too large", record.payload.len());
            assert!(next.is_none_or(|next| next == record.index), "record {} does not follow {:?}", record.index, tail.next);
            next = Some(record.index.next());
        }
        // All segments that these records will need, before the first byte is stored: a full disk changes nothing.
        let mut fresh = self.room_for(&tail, records)?.into_iter();
        let mut bytes = 0;
        for record in records {
            let size = record::size(record.payload.len());
            if !tail.has_room(size) {
                let spare = fresh.next().expect("room was made before");
                self.roll(&mut tail, spare, record.index).map_err(|e| self.stop(e))?;
            }
            let active = tail.active.clone().expect("there is room in it");
            let head = Head {
                kind: record.kind,
                term: record.term,
                index: record.index,
                durable_offset: active.synced(),
                previous_crc: tail.previous_crc,
            };
            let offset = tail.end;
            tail.store(&active, &head, record.payload).map_err(|e| self.stop(Error::io("write", active.current_path(), e)))?;
            tail.ends_with_mark = false;
            tail.next = Some(record.index.next());
            self.index.write().push(offset, tail.end);
            bytes += size;
        }
        self.metrics().appended_bytes.inc_by(bytes as u64);
        self.metrics().appended_records.inc_by(records.len() as u64);
        self.ask_ahead(&mut tail);
        let last = tail.next.map(|next| LogIndex(next.0 - 1));
        Ok(Appended { last: last.unwrap_or_default() })
    }

    fn room_for(&self, tail: &Tail, records: &[NewRecord<'_>]) -> Result<Vec<Spare>> {
        let mut fresh: Vec<Spare> = Vec::new();
        let mut room = tail.active.as_ref().map(|active| (active.len(), tail.end));
        for record in records {
            let size = record::size(record.payload.len());
            let (len, end) = match room {
                Some((len, end)) if LogSegment::fits(len, end, size) => (len, end),
                _ => match self.take_spare(HEADER_BYTES + (size + MARK_BYTES) as u64) {
                    Ok(spare) => {
                        let len = spare.file.len();
                        fresh.push(spare);
                        (len, HEADER_BYTES)
                    }
                    Err(e) => {
                        self.give_back(fresh);
                        return Err(e);
                    }
                },
            };
            room = Some((len, end + size as u64));
        }
        Ok(fresh)
    }

    /// Begins a new segment. It gets its name when it is synced.
    fn roll(&self, tail: &mut Tail, spare: Spare, first: LogIndex) -> Result<()> {
        let header = Header {
            identity: self.identity,
            number: tail.number + 1,
            epoch: self.disk.nonce().map_err(|e| Error::io("draw an epoch for", &spare.path, e))?,
            first,
            previous_crc: tail.previous_crc,
            recycled: spare.recycled,
        };
        spare.file.write_at(0, &header.encode()).map_err(|e| Error::io("write", &spare.path, e))?;
        let path = segment::path_of(&self.dir, header.number);
        let segment = Arc::new(LogSegment::new(Body::Writable(spare.file), path, Some(spare.path), &header, 0));
        if let Some(full) = tail.active.replace(segment.clone()) {
            let end = tail.end;
            tail.full.push_back((full, end));
        }
        tail.end = HEADER_BYTES;
        tail.number = header.number;
        tail.asked = false;
        self.index.write().segments.push_back(IndexedSegment::new(segment, first));
        Ok(())
    }

    /// Asks for the next segment when this one is half full.
    fn ask_ahead(self: &Arc<Log>, tail: &mut Tail) {
        let Some(active) = &tail.active else { return };
        if !tail.asked && tail.end >= active.len() / 2 {
            tail.asked = true;
            let len = (active.len() * 2).clamp(self.first_segment_bytes, self.max_segment_bytes);
            self.syncer.chore(Chore::Prepare(self.clone(), len));
        }
    }

    /// Makes everything appended until now durable.
    pub(super) fn sync(&self) -> std::result::Result<(), Arc<Error>> {
        let _syncing = self.syncing.lock();
        self.sync_locked()
    }

    /// [`sync`](Log::sync), for who holds `syncing`.
    fn sync_locked(&self) -> std::result::Result<(), Arc<Error>> {
        if let Some(first) = self.stopped.get() {
            return Err(first.clone());
        }
        let (pieces, next) = {
            let tail = self.tail.lock();
            let active = tail.active.iter().map(|active| (active.clone(), tail.end));
            (tail.full.iter().cloned().chain(active).collect::<Vec<_>>(), tail.next)
        };
        // Oldest first: a segment gets its name only when everything before it is durable.
        for (segment, end) in &pieces {
            self.sync_segment(segment, *end).map_err(|e| Arc::new(self.stop(e)))?;
        }
        self.tail.lock().full.retain(|(segment, end)| segment.synced() < *end);
        if let Some(next) = next {
            self.durable_end.store(next.0, Ordering::Release);
        }
        Ok(())
    }

    fn sync_segment(&self, segment: &LogSegment, end: u64) -> Result<()> {
        let failed = |source| Error::SyncFailed { path: segment.current_path().to_owned(), source };
        let start = segment.synced();
        if start < end {
            let began = Instant::now();
            segment.writable().sync(start, end - start).map_err(failed)?;
            self.metrics().sync_duration.observe(began.elapsed().as_secs_f64());
            self.metrics().syncs.inc();
        }
        if let Some(spare_path) = segment.unpublished.as_ref().filter(|_| !segment.is_published()) {
            self.disk.rename(spare_path, &segment.path).map_err(failed)?;
            self.disk.sync_dir(&self.dir).map_err(failed)?;
            segment.set_published();
        }
        segment.set_synced(end);
        Ok(())
    }

    /// Ends the log with a mark if everything is durable and nothing says so yet.
    pub(super) fn mark(&self) -> std::result::Result<(), Arc<Error>> {
        let _syncing = self.syncing.lock();
        if let Some(first) = self.stopped.get() {
            return Err(first.clone());
        }
        {
            let mut tail = self.tail.lock();
            let Some(active) = tail.active.clone() else { return Ok(()) };
            let nothing_new = tail.ends_with_mark || tail.end == HEADER_BYTES;
            if nothing_new || active.synced() != tail.end || tail.end + MARK_BYTES as u64 > active.len() {
                return Ok(());
            }
            let head = Head { kind: MARK, term: Term(0), index: LogIndex(0), durable_offset: tail.end, previous_crc: tail.previous_crc };
            let stored = tail.store(&active, &head, &[]);
            stored.map_err(|e| Arc::new(self.stop(Error::io("write", active.current_path(), e))))?;
            tail.ends_with_mark = true;
        }
        self.sync_locked()
    }

    pub(super) fn truncate(&self, hard: &mut HardState, from: LogIndex) -> Result<()> {
        self.check()?;
        let _syncing = self.syncing.lock();
        let Some(from) = self.first_to_cut(from) else { return Ok(()) };
        // Publishes every segment, so that the place of the cut has a name that recovery finds.
        self.sync_locked().map_err(|e| self.stopped_by(&e))?;
        let mut tail = self.tail.lock();
        let cut = self.cut_index(from);
        let stop = |e| self.stop(e);
        // If the power goes from here on, recovery finishes the cut.
        hard.save(|saved| {
            saved.durable_end = saved.durable_end.min(from.0);
            saved.cut = Some((cut.kept.number, cut.offset));
        })
        .map_err(stop)?;
        let kept = self.writable(&cut.kept).map_err(stop)?;
        let previous_crc = {
            let mut head = [0; HEAD_BYTES];
            kept.read(cut.offset, &mut head).map_err(stop)?;
            record::decode_head(&head).previous_crc
        };
        let _tidying = self.tidying.lock();
        for segment in cut.gone.into_iter().rev() {
            self.retire(segment)?;
        }
        zero(&kept, cut.offset, cut.end).map_err(|e| stop(Error::SyncFailed { path: kept.path.clone(), source: e }))?;
        hard.save(|saved| saved.cut = None).map_err(stop)?;
        kept.set_synced(cut.offset);
        self.durable_end.store(from.0, Ordering::Release);
        tail.number = kept.number;
        tail.end = cut.offset;
        tail.previous_crc = previous_crc;
        tail.next = Some(from);
        tail.ends_with_mark = false;
        tail.asked = false;
        tail.active = Some(kept);
        Ok(())
    }

    /// Where a truncation begins: `from`, or the first record if that is later; none if there is nothing to cut.
    fn first_to_cut(&self, from: LogIndex) -> Option<LogIndex> {
        let index = self.index.read();
        let first = index.segments.front()?.first;
        let next = index.segments.back()?.next();
        (from < next).then(|| from.max(first))
    }

    /// Cuts the table at a record that is in it.
    fn cut_index(&self, from: LogIndex) -> Cut {
        let mut index = self.index.write();
        let (position, number) = index.locate(from).expect("the record is in the log");
        index.truncations += 1;
        let gone = index.segments.drain(position + 1..).map(|s| s.segment).collect();
        let kept = &mut index.segments[position];
        // Behind the last record there may be marks.
        let (offset, end) = (u64::from(kept.offsets[number]), kept.segment.synced());
        kept.offsets.truncate(number);
        kept.end = offset;
        Cut { kept: kept.segment.clone(), offset, end, gone }
    }

    /// The segment, writable: one that was opened only to be read is opened again.
    fn writable(&self, segment: &Arc<LogSegment>) -> Result<Arc<LogSegment>> {
        if segment.is_writable() {
            return Ok(segment.clone());
        }
        let file = self.disk.segment(&segment.path, segment.len()).map_err(|e| Error::io("open", &segment.path, e))?;
        let writable = Arc::new(segment.reopened(file));
        let mut index = self.index.write();
        let indexed = index.segments.back_mut().expect("the kept segment is the last");
        indexed.segment = writable.clone();
        Ok(writable)
    }

    pub(super) fn purge(self: &Arc<Log>, hard: &mut HardState, upto: LogIndex) -> Result<()> {
        self.check()?;
        if self.index.read().segments.back().is_some_and(|last| upto > last.next()) {
            return self.empty(hard);
        }
        let purged: Vec<Arc<LogSegment>> = {
            let tail = self.tail.lock();
            let mut index = self.index.write();
            // The newest stays, and so does one that this disk has not synced yet.
            let oldest_unsynced = tail.full.front().map(|(segment, _)| segment).or(tail.active.as_ref());
            let keep = oldest_unsynced.map_or(u64::MAX, |segment| segment.number);
            let count = index.segments.iter().take_while(|s| s.next() <= upto && s.segment.number < keep).count();
            index.segments.drain(..count).map(|s| s.segment).collect()
        };
        if !purged.is_empty() {
            self.spares.lock().purged.extend(purged);
            self.syncer.chore(Chore::Tidy(self.clone()));
        }
        Ok(())
    }

    /// Drops every record: what comes next begins somewhere else (after a snapshot).
    fn empty(&self, hard: &mut HardState) -> Result<()> {
        let _syncing = self.syncing.lock();
        self.sync_locked().map_err(|e| self.stopped_by(&e))?;
        hard.save(|saved| saved.durable_end = 0).map_err(|e| self.stop(e))?;
        let mut tail = self.tail.lock();
        let segments: Vec<Arc<LogSegment>> = {
            let mut index = self.index.write();
            index.truncations += 1;
            index.segments.drain(..).map(|s| s.segment).collect()
        };
        *tail = Tail { number: tail.number, ..Tail::default() };
        drop(tail);
        self.durable_end.store(0, Ordering::Release);
        self.tidy();
        let _tidying = self.tidying.lock();
        for segment in segments {
            self.retire(segment)?;
        }
        Ok(())
    }

    /// Refuses further work and waits for what is under way.
    pub(super) fn close(&self) {
        let _ = self.stopped.set(Arc::new(Error::Stopped { what: self.name(), why: "it was closed".to_owned() }));
        drop((self.syncing.lock(), self.tidying.lock(), self.preparing.lock()));
    }
}

/// Where and what a truncation removes.
struct Cut {
    kept: Arc<LogSegment>,
    offset: u64,
    end: u64,
    gone: Vec<Arc<LogSegment>>,
}

/// Writes zeros over `start..end`, durably.
pub(super) fn zero(segment: &LogSegment, start: u64, end: u64) -> io::Result<()> {
    let file = segment.writable();
    let zeros = [0; 8192];
    let end = end.min(file.len());
    let mut at = start;
    while at < end {
        let piece = &zeros[..(end - at).min(zeros.len() as u64) as usize];
        file.write_at(at, piece)?;
        at += piece.len() as u64;
    }
    file.sync(start, end - start)
}

impl Tail {
    fn has_room(&self, size: usize) -> bool {
        self.active.as_ref().is_some_and(|active| LogSegment::fits(active.len(), self.end, size))
    }

    /// Bytes behind the last record.
    pub(super) fn free_bytes(&self) -> u64 {
        self.active.as_ref().map_or(0, |active| active.len() - self.end)
    }

    /// Stores a record at the end.
    fn store(&mut self, active: &LogSegment, head: &Head, payload: &[u8]) -> io::Result<()> {
        let file = active.writable();
        let size = record::size(payload.len());
        let head = head.encode(payload.len());
        let padding = [0; 7];
        let padding = &padding[..size - CRC_BYTES - HEAD_BYTES - payload.len()];
        let crc = if payload.len() <= SMALL_PAYLOAD {
            self.scratch.clear();
            self.scratch.extend_from_slice(&head);
            self.scratch.extend_from_slice(payload);
            self.scratch.extend_from_slice(padding);
            let crc = crc32c::crc32c_append(active.seed, &self.scratch);
            self.scratch.extend_from_slice(&crc.to_le_bytes());
            file.write_at(self.end, &self.scratch)?;
            crc
        } else {
            let mut crc = crc32c::crc32c_append(active.seed, &head);
            file.write_at(self.end, &head)?;
            let mut at = self.end + HEAD_BYTES as u64;
            for piece in payload.chunks(PIECE) {
                crc = crc32c::crc32c_append(crc, piece);
                file.write_at(at, piece)?;
                at += piece.len() as u64;
            }
            crc = crc32c::crc32c_append(crc, padding);
            file.write_at(at, padding)?;
            file.write_at(at + padding.len() as u64, &crc.to_le_bytes())?;
            crc
        };
        self.end += size as u64;
        self.previous_crc = crc;
        Ok(())
    }
}
