//! Looks a log over without changing anything, for people who inspect a data directory. The judgement is recovery's own.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use model::LogIndex;

use super::Record;
use super::hard_state::HardState;
use super::record;
use super::recovery::{self, Chain};
use super::segment::{self, HEADER_BYTES, Header};
use crate::disk::Disk;
use crate::{Error, Result};

/// One segment as it lies on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentSurvey {
    /// Its file.
    pub path: PathBuf,
    /// Its number.
    pub number: u64,
    /// The index of its first record, if it has one.
    pub first: Option<LogIndex>,
    /// The index of its last record.
    pub last: Option<LogIndex>,
    /// Records.
    pub records: u64,
    /// Marks between them.
    pub marks: u64,
    /// Bytes up to the end of the last record or mark.
    pub used_bytes: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes behind the last record that a crash left torn: never acknowledged, cut at the next start.
    pub torn_bytes: u64,
}

/// A log as it lies on disk.
#[derive(Debug)]
pub struct LogSurvey {
    /// Its segments, oldest first, up to the first damage.
    pub segments: Vec<SegmentSurvey>,
    /// What its user keeps beside it; `None`: the log was not founded yet.
    pub hard_state: Option<Bytes>,
    /// The first damage; what lies behind it was not looked at.
    pub damage: Option<Error>,
}

impl LogSurvey {
    /// The records that were seen, in order; for short logs: all of them are held at once.
    pub fn records(&self, disk: &dyn Disk) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for segment in &self.segments {
            let path = &segment.path;
            let bytes = disk.read(path).map_err(|e| Error::io("read", path, e))?;
            let corrupt = |at: usize, what: String| Error::Corrupt { path: path.clone(), at: at as u64, what };
            let header = bytes.first_chunk().ok_or_else(|| corrupt(0, "it is shorter than its header".to_owned()))?;
            let seed = record::seed(Header::decode(header, path)?.epoch);
            let mut at = HEADER_BYTES as usize;
            while at < segment.used_bytes as usize {
                let found = record::decode(&bytes[at..], seed).map_err(|reason| corrupt(at, reason.to_string()))?;
                if !found.is_mark() {
                    let payload = Bytes::copy_from_slice(found.payload);
                    records.push(Record { kind: found.head.kind, term: found.head.term, index: found.head.index, payload });
                }
                at += found.size;
            }
        }
        Ok(records)
    }
}

/// Reads every record of the log in `dir`. An error is one of reading; damage is part of the answer.
pub fn survey(disk: &dyn Disk, dir: &Path) -> Result<LogSurvey> {
    let mut segments = Vec::new();
    for path in disk.list(dir).map_err(|e| Error::io("list", dir, e))? {
        segments.extend(segment::number_of(&path).map(|number| (number, path)));
    }
    segments.sort();
    let mut log = LogSurvey { segments: Vec::new(), hard_state: None, damage: None };
    match survey_segments(disk, dir, &segments, &mut log) {
        Err(error @ (Error::Corrupt { .. } | Error::NewerFormat { .. })) => log.damage = Some(error),
        other => other?,
    }
    Ok(log)
}

fn survey_segments(disk: &dyn Disk, dir: &Path, found: &[(u64, PathBuf)], log: &mut LogSurvey) -> Result<()> {
    let path = HardState::path_in(dir);
    let has_hard_state = disk.list(dir).map_err(|e| Error::io("list", dir, e))?.contains(&path);
    if !has_hard_state {
        return match found.first() {
            // A folder that a crash left before its log was founded.
            None => Ok(()),
            Some(_) => Err(Error::Corrupt { path, at: 0, what: "it is missing beside the log's segments".to_owned() }),
        };
    }
    let (saved, bad_slot) = HardState::read(disk, dir)?;
    log.hard_state = Some(saved.blob.clone().into());
    // A truncation that a crash interrupted: what lies behind its place is finished off by the next start.
    let cut = saved.cut;
    let found: Vec<&(u64, PathBuf)> = found.iter().filter(|(number, _)| cut.is_none_or(|(last, _)| *number <= last)).collect();
    let mut chain = Chain::default();
    for (i, (number, path)) in found.iter().enumerate() {
        let newest = i + 1 == found.len();
        let end = cut.filter(|(segment, _)| segment == number).map(|(_, offset)| offset);
        let limits = recovery::Limits { identity: saved.identity, durable_end: saved.durable_end, end };
        log.segments.push(recovery::look_at(disk, path, *number, newest, &limits, &mut chain)?);
    }
    if found.is_empty() && saved.durable_end > 0 {
        let what = format!("records before {} were durable, but there is no segment", saved.durable_end);
        return Err(Error::Corrupt { path: dir.to_owned(), at: 0, what });
    }
    // Last: the records can be read all the same.
    bad_slot.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::Term;

    use super::*;
    use crate::disk::{Disk, RealDisk};
    use crate::wal::{NewRecord, Syncer, Wal, WalOptions};

    fn written(dir: &Path, records: u64) -> Arc<dyn Disk> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let options = WalOptions {
            disk: disk.clone(),
            syncer: Syncer::inline(),
            dir: dir.to_owned(),
            first_segment_bytes: 16 << 10,
            max_segment_bytes: 16 << 10,
        };
        let (mut wal, _) = Wal::open(options).unwrap();
        for index in 1..=records {
            let record = NewRecord { kind: 1, term: Term(1), index: LogIndex(index), payload: &[index as u8; 3_000] };
            let appended = wal.append(&[record]).unwrap();
            wal.sync_then(appended, Box::new(|synced| assert!(synced.is_ok())));
        }
        disk
    }

    #[test]
    fn every_record_is_seen_and_nothing_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = written(dir.path(), 10);
        let bytes = |path: &Path| std::fs::read(path).unwrap();
        let before: Vec<_> = disk.list(dir.path()).unwrap().iter().map(|path| (path.clone(), bytes(path))).collect();
        let log = survey(&*disk, dir.path()).unwrap();
        assert!(log.damage.is_none(), "{:?}", log.damage);
        assert!(log.segments.len() > 1);
        assert_eq!(log.segments.iter().map(|s| s.records).sum::<u64>(), 10);
        assert_eq!(log.segments.first().unwrap().first, Some(LogIndex(1)));
        assert_eq!(log.segments.last().unwrap().last, Some(LogIndex(10)));
        let after: Vec<_> = disk.list(dir.path()).unwrap().iter().map(|path| (path.clone(), bytes(path))).collect();
        assert!(before == after, "a file was changed");
    }

    #[test]
    fn a_flipped_bit_in_any_segment_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let disk = written(dir.path(), 10);
        let log = survey(&*disk, dir.path()).unwrap();
        for segment in &log.segments {
            let whole = std::fs::read(&segment.path).unwrap();
            let mut bad = whole.clone();
            bad[5_000] ^= 1;
            std::fs::write(&segment.path, &bad).unwrap();
            let damage = survey(&*disk, dir.path()).unwrap().damage;
            // Without a mark behind it, the only record of the newest segment is taken for a torn one.
            let lone_last = segment.path == log.segments.last().unwrap().path && segment.records == 1;
            assert!(lone_last || matches!(damage, Some(Error::Corrupt { .. })), "{segment:?}: {damage:?}");
            std::fs::write(&segment.path, &whole).unwrap();
        }
    }
}
