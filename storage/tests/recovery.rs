//! What a log holds after everything that can happen to it: cuts, rot, lost power, failing and full disks, random work.
//!
//! The model is a vector of records. Whatever was synced must be there; whatever was only appended may be there, as a
//! prefix; nothing else ever.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;
use model::{LogIndex, Term};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use storage::Error;
use storage::disk::{Disk, FaultyDisk, RealDisk};
use storage::wal::{NewRecord, Opened, Record, Synced, Syncer, Wal, WalOptions};

const DIR: &str = "shard-0/log";
/// Large enough for its header and some records, small enough that every test rolls over.
const FIRST_SEGMENT: u64 = 8 * 1024;

fn options(disk: &FaultyDisk) -> WalOptions {
    WalOptions {
        disk: Arc::new(disk.clone()),
        syncer: Syncer::inline(),
        dir: PathBuf::from(DIR),
        first_segment_bytes: FIRST_SEGMENT,
        max_segment_bytes: 2 * FIRST_SEGMENT,
    }
}

fn open(disk: &FaultyDisk) -> storage::Result<(Wal, Opened)> {
    Wal::open(options(disk))
}

/// A payload that says which record it is and in which life it was written.
fn payload(life: u64, index: u64, len: usize) -> Vec<u8> {
    let mut bytes = format!("life {life} record {index} ").into_bytes();
    let mut random = SmallRng::seed_from_u64(life << 32 | index);
    bytes.extend((0..len).map(|_| random.random::<u8>()));
    bytes
}

fn record(term: u64, index: u64, payload: Vec<u8>) -> Record {
    Record { kind: 1, term: Term(term), index: LogIndex(index), payload: Bytes::from(payload) }
}

fn append(wal: &mut Wal, records: &[Record]) -> storage::Result<storage::wal::Appended> {
    let new: Vec<NewRecord<'_>> =
        records.iter().map(|r| NewRecord { kind: r.kind, term: r.term, index: r.index, payload: &r.payload }).collect();
    wal.append(&new)
}

/// Syncs and waits for the answer.
fn sync(wal: &Wal, upto: storage::wal::Appended) -> Result<Synced, Arc<Error>> {
    let (answer, answered) = mpsc::sync_channel(1);
    wal.sync_then(upto, Box::new(move |result| answer.send(result).unwrap()));
    answered.recv().unwrap()
}

fn append_synced(wal: &mut Wal, records: &[Record]) {
    let appended = append(wal, records).unwrap();
    assert_eq!(sync(wal, appended).unwrap().last(), records.last().unwrap().index);
}

fn all(wal: &Wal, opened: &Opened) -> Vec<Record> {
    match opened.first {
        None => Vec::new(),
        Some((_, first)) => wal.reader().read(first, LogIndex(u64::MAX), usize::MAX).unwrap(),
    }
}

fn segments(disk: &FaultyDisk) -> Vec<PathBuf> {
    disk.files().into_iter().map(|(path, _)| path).filter(|path| path.extension().is_some_and(|e| e == "wal")).collect()
}

fn records(range: std::ops::Range<u64>, len: usize) -> Vec<Record> {
    range.map(|i| record(1, i, payload(0, i, len))).collect()
}

#[test]
fn a_new_log_is_empty_and_what_is_synced_is_read_back_after_a_restart() {
    let disk = FaultyDisk::new(1);
    let (mut wal, opened) = open(&disk).unwrap();
    assert_eq!((opened.first, opened.last, opened.hard_state, opened.cut_bytes), (None, None, None, 0));
    assert_eq!(wal.durable(), None);
    let written = records(0..100, 300);
    for batch in written.chunks(7) {
        append_synced(&mut wal, batch);
    }
    wal.save_hard_state(b"a vote").unwrap();
    assert_eq!(wal.durable(), Some(LogIndex(99)));
    assert!(segments(&disk).len() > 2, "the test rolls over");
    drop(wal);
    let (wal, opened) = open(&disk.power_loss(1)).unwrap();
    assert_eq!(all(&wal, &opened), written);
    assert_eq!(opened.last, Some((Term(1), LogIndex(99))));
    assert_eq!(opened.hard_state.as_deref(), Some(&b"a vote"[..]));
    assert_eq!(wal.durable(), Some(LogIndex(99)));
}

#[test]
fn a_read_gives_at_least_one_record_then_what_fits_and_nothing_beyond_the_end() {
    let disk = FaultyDisk::new(1);
    let (mut wal, _) = open(&disk).unwrap();
    let written = records(5..45, 400);
    append_synced(&mut wal, &written);
    let reader = wal.reader();
    assert_eq!(reader.read(LogIndex(10), LogIndex(12), usize::MAX).unwrap(), written[5..7]);
    assert_eq!(reader.read(LogIndex(10), LogIndex(45), 1).unwrap(), written[5..6]);
    let some = reader.read(LogIndex(5), LogIndex(45), 2000).unwrap();
    assert!((2..=5).contains(&some.len()), "{}", some.len());
    assert_eq!(some, written[..some.len()]);
    assert_eq!(reader.read(LogIndex(0), LogIndex(45), usize::MAX).unwrap(), []);
    assert_eq!(reader.read(LogIndex(45), LogIndex(46), usize::MAX).unwrap(), []);
    assert_eq!(reader.read(LogIndex(44), LogIndex(99), usize::MAX).unwrap(), written[39..]);
}

#[test]
fn a_record_larger_than_a_segment_gets_a_segment_of_its_own_size() {
    let disk = FaultyDisk::new(1);
    let (mut wal, _) = open(&disk).unwrap();
    let written = vec![record(1, 0, payload(0, 0, 10)), record(1, 1, payload(0, 1, 1_200_000)), record(2, 2, payload(0, 2, 10))];
    append_synced(&mut wal, &written);
    drop(wal);
    let (wal, opened) = open(&disk.power_loss(3)).unwrap();
    assert_eq!(all(&wal, &opened), written);
}

/// Cuts the newest segment short by every possible number of bytes (they read as zeros) and opens it.
#[test]
fn a_log_cut_at_every_byte_keeps_the_whole_records_before_the_cut_and_invents_nothing() {
    let disk = FaultyDisk::new(1);
    let (mut wal, _) = open(&disk).unwrap();
    // Nothing but the first record was synced: no later record claims that what is cut was durable.
    append_synced(&mut wal, &records(0..1, 50));
    let written = records(0..12, 50);
    append(&mut wal, &written[1..]).unwrap();
    let live = disk.kill();
    // The first sync gave the segment its name.
    let [path] = &segments(&live)[..] else { panic!("one segment") };
    let whole = live.bytes(path);
    let end = whole.iter().rposition(|&b| b != 0).unwrap() + 1;
    let mut seen = std::collections::BTreeSet::new();
    for cut in 4096 + 200..end {
        let disk = live.kill();
        let mut bytes = whole.clone();
        bytes[cut..].fill(0);
        disk.set_bytes(path, bytes);
        let (mut wal, opened) = open(&disk).unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
        let found = all(&wal, &opened);
        assert_eq!(found, written[..found.len()], "cut at {cut}");
        seen.insert(found.len());
        // And the log goes on from there.
        let next = found.len() as u64;
        append_synced(&mut wal, &[record(9, next, payload(9, next, 20))]);
        drop(wal);
        let (wal, opened) = open(&disk.power_loss(cut as u64)).unwrap();
        assert_eq!(all(&wal, &opened).len(), found.len() + 1, "cut at {cut}");
    }
    assert_eq!(seen, (1..12).collect(), "every prefix was met");
}

#[test]
fn a_turned_bit_anywhere_in_durable_records_is_damage_that_names_the_place_and_changes_nothing() {
    let disk = FaultyDisk::new(1);
    let (mut wal, _) = open(&disk).unwrap();
    for r in records(0..60, 200) {
        append_synced(&mut wal, &[r]);
    }
    wal.mark().unwrap();
    drop(wal);
    let paths = segments(&disk);
    assert!(paths.len() >= 2);
    for path in &paths {
        let whole = disk.bytes(path);
        // Up to the last record: what follows in a full segment is unused.
        let (wal, opened) = open(&disk.kill()).unwrap();
        drop((wal, opened));
        let end = whole.iter().rposition(|&b| b != 0).unwrap() + 1;
        let newest = path == paths.last().unwrap();
        // The mark at the very end may rot: it protects the records, nothing protects it.
        let end = if newest { end - 40 } else { end };
        for byte in (0..end).step_by(if newest { 1 } else { 37 }) {
            let disk = disk.kill();
            disk.flip_bit(path, byte as u64, (byte % 8) as u8);
            let before = disk.bytes(path);
            match open(&disk) {
                Err(Error::Corrupt { path: named, at, .. }) => {
                    assert_eq!(&named, path, "byte {byte}");
                    assert!(at <= byte as u64 || byte < 4096, "byte {byte} is not behind {at}");
                }
                other => panic!("byte {byte} of {}: {other:?}", path.display()),
            }
            assert_eq!(disk.bytes(path), before, "damage is left as it is");
        }
    }
}

#[test]
fn a_rotten_last_record_looks_torn_without_a_mark_and_is_damage_with_one() {
    for marked in [false, true] {
        let disk = FaultyDisk::new(1);
        let (mut wal, _) = open(&disk).unwrap();
        append_synced(&mut wal, &records(0..3, 100));
        if marked {
            wal.mark().unwrap();
        }
        drop(wal);
        let path = segments(&disk).pop().unwrap();
        // Inside the payload of the third record.
        let record_bytes = storage::wal::record::size(payload(0, 0, 100).len()) as u64;
        disk.flip_bit(&path, 4096 + 2 * record_bytes + 60, 0);
        match (marked, open(&disk)) {
            (false, Ok((wal, opened))) => {
                assert_eq!(all(&wal, &opened).len(), 2);
                assert!(opened.cut_bytes > 0, "the replica knows that it may have forgotten something");
            }
            (true, Err(Error::Corrupt { at, .. })) => assert_eq!(at, 4096 + 2 * record_bytes),
            (_, other) => panic!("marked {marked}: {other:?}"),
        }
    }
}

#[test]
fn the_hard_state_remembers_that_a_record_was_durable() {
    let disk = FaultyDisk::new(1);
    let (mut wal, _) = open(&disk).unwrap();
    append_synced(&mut wal, &records(0..3, 100));
    wal.save_hard_state(b"vote").unwrap();
    drop(wal);
    let path = segments(&disk).pop().unwrap();
    let mut bytes = disk.bytes(&path);
    bytes[4096 + 300..].fill(0);
    disk.set_bytes(&path, bytes);
    assert!(matches!(open(&disk), Err(Error::Corrupt { .. })));
}

#[test]
fn a_missing_segment_or_hard_state_is_damage_and_not_a_new_log() {
    let disk = FaultyDisk::new(1);
    let (mut wal, _) = open(&disk).unwrap();
    for r in records(0..100, 300) {
        append_synced(&mut wal, &[r]);
    }
    wal.save_hard_state(b"vote").unwrap();
    drop(wal);
    let paths = segments(&disk);
    assert!(paths.len() >= 3);
    for missing in [&paths[1], paths.last().unwrap(), &PathBuf::from(DIR).join("hard_state")] {
        let disk = disk.kill();
        disk.remove(missing).unwrap();
        assert!(matches!(open(&disk), Err(Error::Corrupt { .. })), "without {}", missing.display());
    }
    let disk = disk.kill();
    for path in &paths {
        disk.remove(path).unwrap();
    }
    assert!(matches!(open(&disk), Err(Error::Corrupt { .. })), "without any segment");
}

#[test]
fn a_segment_of_a_newer_program_is_refused_naming_both_formats() {
    let disk = FaultyDisk::new(1);
    let (mut wal, _) = open(&disk).unwrap();
    append_synced(&mut wal, &records(0..3, 100));
    drop(wal);
    let path = segments(&disk).pop().unwrap();
    let mut bytes = disk.bytes(&path);
    bytes[8..12].copy_from_slice(&7u32.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..4092]);
    bytes[4092..4096].copy_from_slice(&crc.to_le_bytes());
    disk.set_bytes(&path, bytes.clone());
    match open(&disk) {
        Err(Error::NewerFormat { found, known, .. }) => assert_eq!((found, known), (7, storage::wal::FORMAT)),
        other => panic!("{other:?}"),
    }
    assert_eq!(disk.bytes(&path), bytes, "and left as it is");
}

#[test]
fn records_of_a_recycled_segment_never_come_back() {
    let disk = FaultyDisk::new(4);
    let (mut wal, _) = open(&disk).unwrap();
    // Many lives in the same few files, all records of the same sizes, so that old ones lie where new ones are expected.
    let mut next = 0;
    for life in 0..20 {
        for _ in 0..40 {
            append_synced(&mut wal, &[record(1, next, payload(life, next, 200))]);
            next += 1;
        }
        wal.purge(LogIndex(next)).unwrap();
        for seed in 0..5 {
            let (wal, opened) = open(&disk.power_loss(seed)).unwrap();
            let found = all(&wal, &opened);
            assert_eq!(opened.last, Some((Term(1), LogIndex(next - 1))));
            for r in &found {
                let written_in = r.index.0 / 40;
                assert_eq!(r.payload, payload(written_in, r.index.0, 200), "record {}", r.index);
            }
        }
    }
    let recycled = disk.files().len();
    assert!(recycled <= 9, "files are used again: {:?}", disk.files());
}

#[test]
fn a_truncated_tail_stays_away_and_another_takes_its_place() {
    for from in [0, 1, 17, 30, 31, 58, 59] {
        let disk = FaultyDisk::new(from);
        let (mut wal, _) = open(&disk).unwrap();
        let mut written = records(0..60, 300);
        append_synced(&mut wal, &written);
        wal.truncate(LogIndex(from)).unwrap();
        written.truncate(from as usize);
        let (after, opened) = open(&disk.power_loss(from)).unwrap();
        assert_eq!(all(&after, &opened), written, "from {from}");
        let newer: Vec<Record> = (from..70).map(|i| record(2, i, payload(2, i, 100))).collect();
        append_synced(&mut wal, &newer);
        written.extend(newer);
        let (after, opened) = open(&disk.power_loss(from)).unwrap();
        assert_eq!(all(&after, &opened), written, "from {from}");
    }
}

#[test]
fn a_truncation_after_a_restart_cuts_a_segment_that_was_opened_to_be_read() {
    let disk = FaultyDisk::new(8);
    let (mut wal, _) = open(&disk).unwrap();
    append_synced(&mut wal, &records(0..90, 300));
    drop(wal);
    let (mut wal, _) = open(&disk).unwrap();
    wal.truncate(LogIndex(5)).unwrap();
    let newer = record(3, 5, payload(3, 5, 10));
    append_synced(&mut wal, std::slice::from_ref(&newer));
    let (after, opened) = open(&disk.power_loss(1)).unwrap();
    assert_eq!(all(&after, &opened)[5], newer);
    assert_eq!(opened.last, Some((Term(3), LogIndex(5))));
}

#[test]
fn a_purge_beyond_the_end_empties_the_log_for_a_snapshot() {
    let disk = FaultyDisk::new(8);
    let (mut wal, _) = open(&disk).unwrap();
    append_synced(&mut wal, &records(0..50, 300));
    wal.purge(LogIndex(1000)).unwrap();
    assert_eq!(wal.bytes(), 0);
    let (_, opened) = open(&disk.power_loss(2)).unwrap();
    assert_eq!(opened.last, None);
    append_synced(&mut wal, &[record(4, 1000, payload(1, 1000, 10))]);
    let (wal, opened) = open(&disk.power_loss(3)).unwrap();
    assert_eq!(opened.first, Some((Term(4), LogIndex(1000))));
    assert_eq!(all(&wal, &opened).len(), 1);
}

#[test]
fn a_full_disk_refuses_an_append_whole_and_takes_it_when_there_is_room() {
    let disk = FaultyDisk::new(8);
    let (mut wal, _) = open(&disk).unwrap();
    append_synced(&mut wal, &records(0..3, 300));
    let used: u64 = disk.files().iter().map(|(_, len)| len).sum();
    disk.set_capacity(used);
    let mut more = records(3..60, 300);
    assert!(matches!(append(&mut wal, &more), Err(Error::DiskFull { .. })));
    assert_eq!(wal.reader().read(LogIndex(0), LogIndex(99), usize::MAX).unwrap().len(), 3, "all or none");
    // A small one still fits, and goes on behind the third.
    append_synced(&mut wal, &records(3..4, 300));
    disk.set_capacity(u64::MAX);
    append_synced(&mut wal, &more.split_off(1));
    let (wal, opened) = open(&disk.power_loss(3)).unwrap();
    assert_eq!(all(&wal, &opened), records(0..60, 300));
}

#[test]
fn what_was_reserved_is_appended_on_a_full_disk_and_what_cannot_be_is_told_before() {
    let disk = FaultyDisk::new(31);
    let (mut wal, _) = open(&disk).unwrap();
    let records: Vec<Record> = (0..6).map(|i| record(1, i, payload(1, i, 3_000))).collect();
    let bytes: usize = records.iter().map(|r| storage::wal::record::size(r.payload.len())).sum();
    wal.room().reserve(bytes as u64).unwrap();
    disk.set_capacity(disk.files().iter().map(|(_, bytes)| bytes).sum());
    for record in &records {
        append(&mut wal, std::slice::from_ref(record)).unwrap();
    }
    assert!(matches!(wal.room().reserve(bytes as u64), Err(Error::DiskFull { .. })));
    disk.set_capacity(u64::MAX);
    wal.room().reserve(bytes as u64).unwrap();
}

#[test]
fn after_a_failed_sync_everything_fails_and_the_sync_is_never_tried_again() {
    let disk = FaultyDisk::new(8);
    let (mut wal, _) = open(&disk).unwrap();
    append_synced(&mut wal, &records(0..3, 300));
    let appended = append(&mut wal, &records(3..6, 300)).unwrap();
    disk.fail_once(1, ErrorKind::Other);
    assert!(matches!(*sync(&wal, appended).unwrap_err(), Error::SyncFailed { .. }));
    let ios = disk.ios();
    assert!(matches!(*sync(&wal, appended).unwrap_err(), Error::Stopped { .. }));
    assert!(matches!(append(&mut wal, &records(6..7, 300)), Err(Error::Stopped { .. })));
    assert!(matches!(wal.save_hard_state(b"vote"), Err(Error::Stopped { .. })));
    assert!(matches!(wal.truncate(LogIndex(1)), Err(Error::Stopped { .. })));
    assert!(matches!(wal.purge(LogIndex(1)), Err(Error::Stopped { .. })));
    assert_eq!(disk.ios(), ios, "nothing touched the disk");
    assert_eq!(wal.durable(), Some(LogIndex(2)));
}

/// What a log must hold: synced records for sure, appended ones perhaps, truncated and purged ones no more.
#[derive(Clone, Debug, Default)]
struct Model {
    /// Every record that was appended and not truncated; the first has index 0.
    records: Vec<Record>,
    /// How many of them are durable for sure.
    synced: usize,
    /// Below this they may be gone.
    purged: u64,
    /// Set while a truncation has begun and did not return: from here on either is right.
    truncating: Option<usize>,
    vote: Vec<u8>,
    next_vote: Vec<u8>,
    life: u64,
}

impl Model {
    /// One random step; an error of the log ends the run.
    fn step(&mut self, wal: &mut Wal, random: &mut SmallRng) -> Result<(), String> {
        match random.random_range(0..100) {
            0..60 => {
                let count = random.random_range(1..6);
                let term = self.life + 1;
                let start = self.records.len() as u64;
                let new: Vec<Record> = (start..start + count)
                    .map(|i| {
                        let len = if random.random_bool(0.05) { 3000 } else { random.random_range(0..400) };
                        record(term, i, payload(self.life << 20 | random.random_range(0..1 << 20), i, len))
                    })
                    .collect();
                self.records.extend(new.iter().cloned());
                let appended = append(wal, &new).map_err(|e| e.to_string())?;
                if random.random_bool(0.6) {
                    let synced = sync(wal, appended).map_err(|e| e.to_string())?;
                    assert_eq!(synced.last().0 + 1, self.records.len() as u64);
                    self.synced = self.records.len();
                }
            }
            60..70 => {
                self.next_vote = random.random::<[u8; 16]>().to_vec();
                wal.save_hard_state(&self.next_vote).map_err(|e| e.to_string())?;
                self.vote = self.next_vote.clone();
            }
            70..80 if self.records.len() as u64 > self.purged => {
                let from = random.random_range(self.purged as usize..=self.records.len());
                self.truncating = Some(from);
                wal.truncate(LogIndex(from as u64)).map_err(|e| e.to_string())?;
                self.truncating = None;
                if from < self.records.len() {
                    self.records.truncate(from);
                    self.synced = from;
                }
                self.life += 1;
            }
            80..90 => {
                // Never beyond what is durable here.
                let upto = random.random_range(self.purged..=self.synced as u64);
                self.purged = upto;
                wal.purge(LogIndex(upto)).map_err(|e| e.to_string())?;
            }
            90..95 => wal.mark().map_err(|e| e.to_string())?,
            _ => {
                let found = wal.reader().read(LogIndex(self.purged), LogIndex(u64::MAX), 10_000).map_err(|e| e.to_string())?;
                let from = self.purged as usize;
                assert_eq!(found, self.records[from..from + found.len()]);
                assert!(!found.is_empty() || from == self.records.len());
            }
        }
        Ok(())
    }

    /// Compares a reopened log, and goes on from what it has.
    fn check(&mut self, wal: &Wal, opened: &Opened, context: &str) {
        let found = all(wal, opened);
        let first = opened.first.map_or(self.records.len() as u64, |(_, index)| index.0);
        let next = opened.last.map(|(_, index)| index.0 + 1);
        let certain = self.truncating.map_or(self.synced, |from| from.min(self.synced));
        match next {
            None => assert!(certain as u64 <= self.purged, "{context}: {certain} synced records are gone"),
            Some(next) => {
                assert!(first <= self.purged, "{context}: begins at {first}, purged were only those before {}", self.purged);
                assert!(next >= certain as u64, "{context}: ends before {next}, {certain} were synced");
                assert!(next <= self.records.len() as u64, "{context}: {next} were never written");
                assert_eq!(found, self.records[first as usize..next as usize], "{context}");
            }
        }
        let vote = opened.hard_state.as_deref().unwrap_or_default();
        assert!(vote == self.vote || vote == self.next_vote, "{context}: a vote was forgotten");
        self.vote = vote.to_vec();
        self.next_vote = vote.to_vec();
        self.records.truncate(next.unwrap_or(self.purged) as usize);
        self.synced = self.records.len();
        self.truncating = None;
        self.life += 1;
    }
}

/// 150 seeds, or those from `SEED` on, `SEEDS` of them.
fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let first = number("SEED").unwrap_or(0);
    first..first + number("SEEDS").unwrap_or(150)
}

#[test]
fn random_work_with_lost_power_keeps_everything_that_was_synced() {
    for seed in seeds() {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut disk = FaultyDisk::new(seed);
        let mut model = Model::default();
        for crash in 0..8 {
            let context = format!("seed {seed}, crash {crash}");
            let (mut wal, opened) = open(&disk).unwrap_or_else(|e| panic!("{context}: {e}"));
            model.check(&wal, &opened, &context);
            // Half the runs end by power loss between two steps, half in the middle of one.
            if random.random_bool(0.5) {
                disk.fail_from(random.random_range(1..400), ErrorKind::Other);
            }
            for _ in 0..random.random_range(1..60) {
                if model.step(&mut wal, &mut random).is_err() {
                    break;
                }
            }
            let next = if random.random_bool(0.8) { disk.power_loss(random.random()) } else { disk.kill() };
            drop(wal);
            disk = next;
        }
    }
}

/// The same fixed piece of work, with its n-th I/O failing, for every n until none fails.
#[test]
fn every_single_io_may_fail_once_or_for_good() {
    for (kind, sticky) in
        [(ErrorKind::Other, false), (ErrorKind::Other, true), (ErrorKind::StorageFull, false), (ErrorKind::StorageFull, true)]
    {
        let mut fired = 0;
        for n in 1.. {
            let disk = FaultyDisk::new(n);
            match sticky {
                true => disk.fail_from(n, kind),
                false => disk.fail_once(n, kind),
            }
            let mut model = Model::default();
            let mut random = SmallRng::seed_from_u64(99);
            let ran = open(&disk).map_err(|e| e.to_string()).and_then(|(mut wal, opened)| {
                model.check(&wal, &opened, "at first");
                (0..40).try_for_each(|_| model.step(&mut wal, &mut random))
            });
            let ios = disk.ios();
            disk.heal();
            let context = format!("I/O {n}, {kind}, sticky {sticky}");
            for after in [disk.power_loss(n), disk.kill()] {
                let mut model = model.clone();
                let (wal, opened) = open(&after).unwrap_or_else(|e| panic!("{context}: {e} ({ran:?})"));
                model.check(&wal, &opened, &context);
            }
            if ios < n {
                assert!(ran.is_ok(), "{context}: {ran:?}");
                break;
            }
            fired += 1;
        }
        assert!(fired > 100, "{fired} I/Os were tried");
    }
}

#[test]
fn recovery_that_fails_at_any_io_can_be_repeated() {
    let disk = FaultyDisk::new(5);
    let (mut wal, _) = open(&disk).unwrap();
    append_synced(&mut wal, &records(0..80, 300));
    append(&mut wal, &records(80..85, 300)).unwrap();
    // The power goes in the middle of a truncation: the cut must be finished by whoever opens the log.
    disk.fail_from(8, ErrorKind::Other);
    wal.truncate(LogIndex(20)).unwrap_err();
    for n in 1.. {
        let disk = disk.power_loss(n);
        disk.fail_from(n, ErrorKind::Other);
        let failed = open(&disk).is_err();
        let disk = disk.power_loss(n);
        let (wal, opened) = open(&disk).unwrap_or_else(|e| panic!("I/O {n}: {e}"));
        let found = all(&wal, &opened);
        assert!(found.len() == 20 || found.len() >= 80, "I/O {n}: {}", found.len());
        assert_eq!(found, records(0..found.len() as u64, 300));
        if !failed {
            return;
        }
    }
}

#[test]
fn on_the_real_disk_threads_sync_many_logs_together_and_readers_read_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let syncer = Syncer::start();
    std::thread::scope(|scope| {
        for shard in 0..3u64 {
            let (syncer, dir) = (syncer.clone(), dir.path().join(format!("shard-{shard}")));
            scope.spawn(move || {
                let options = || WalOptions {
                    disk: Arc::new(RealDisk),
                    syncer: syncer.clone(),
                    dir: dir.clone(),
                    first_segment_bytes: 64 * 1024,
                    max_segment_bytes: 256 * 1024,
                };
                let (mut wal, _) = Wal::open(options()).unwrap();
                let written: Vec<Record> = (0..400).map(|i| record(1, i, payload(shard, i, (i as usize * 37) % 9000))).collect();
                for batch in written.chunks(16) {
                    let reader = wal.reader();
                    append_synced(&mut wal, batch);
                    let first = batch[0].index;
                    assert_eq!(reader.read(first, batch[batch.len() - 1].index.next(), usize::MAX).unwrap(), batch);
                    if first.0 == 256 {
                        wal.purge(LogIndex(200)).unwrap();
                    }
                }
                drop(wal);
                let (wal, opened) = Wal::open(options()).unwrap();
                let found = all(&wal, &opened);
                assert!(opened.first.unwrap().1 <= LogIndex(200));
                assert_eq!(found, written[written.len() - found.len()..]);
            });
        }
    });
    assert!(Path::new(dir.path()).join("shard-0/hard_state").exists());
}

#[test]
fn a_reader_beside_a_truncating_owner_sees_old_or_new_records_and_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = Wal::open(WalOptions {
        disk: Arc::new(RealDisk),
        syncer: Syncer::inline(),
        dir: dir.path().join("log"),
        first_segment_bytes: 64 * 1024,
        max_segment_bytes: 128 * 1024,
    })
    .unwrap();
    append_synced(&mut wal, &records(0..50, 500));
    let reader = wal.reader();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for r in reader.read(LogIndex(0), LogIndex(1000), usize::MAX).unwrap() {
                    let life = if r.index.0 < 20 { 0 } else { r.term.0 - 1 };
                    assert_eq!(r.payload, payload(life, r.index.0, 500), "record {}", r.index);
                }
            }
        });
        for life in 1..60 {
            wal.truncate(LogIndex(20)).unwrap();
            let newer: Vec<Record> = (20..60).map(|i| record(life + 1, i, payload(life, i, 500))).collect();
            append_synced(&mut wal, &newer);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
