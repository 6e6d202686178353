//! Reads records beside the log's owner.
//!
//! A reader takes places from the shared table, lets go of it, and reads by `pread`. The segment cannot be recycled in the
//! meantime (the reader holds it); it can be truncated, and then what was read may be half new: it is read again.
//! Every checksum is verified again at each read, so rot after recovery is an error and not an answer.

use std::sync::Arc;

use bytes::Bytes;
use model::LogIndex;

use super::Record;
use super::index::Run;
use super::log::Log;
use super::record::{self, NotARecord};
use crate::{Error, Result};

/// Reads records; cheap to clone.
#[derive(Clone, Debug)]
pub struct WalReader {
    pub(super) log: Arc<Log>,
}

impl WalReader {
    /// Records from `start` to before `end`, at least one if there is one, then as many as fit `max_bytes` (their
    /// headers count too). Empty if `start` is not in the log. A payload shares memory with those read with it.
    pub fn read(&self, start: LogIndex, end: LogIndex, max_bytes: usize) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        let mut from = start;
        let mut left = max_bytes;
        loop {
            let (run, truncations) = {
                let index = self.log.index.read();
                (index.run(from, end, left), index.truncations)
            };
            let Some(run) = run else { return Ok(records) };
            let bytes = run.bytes.end - run.bytes.start;
            if !records.is_empty() && bytes > left as u64 {
                return Ok(records);
            }
            match read_run(&run) {
                Ok(found) => records.extend(found),
                // Not damage if the owner was truncating under our eyes: the table has changed, ask it again.
                Err(_) if self.log.index.read().truncations != truncations => {
                    records.clear();
                    (from, left) = (start, max_bytes);
                    continue;
                }
                Err(e) => return Err(e),
            }
            from = LogIndex(run.first.0 + run.offsets.len() as u64);
            left = left.saturating_sub(bytes as usize);
            if left == 0 {
                return Ok(records);
            }
        }
    }
}

fn read_run(run: &Run) -> Result<Vec<Record>> {
    let segment = &run.segment;
    let mut bytes = vec![0; (run.bytes.end - run.bytes.start) as usize];
    segment.read(run.bytes.start, &mut bytes)?;
    let bytes = Bytes::from(bytes);
    let mut records = Vec::with_capacity(run.offsets.len());
    for (i, &offset) in run.offsets.iter().enumerate() {
        let corrupt = |reason: NotARecord| Error::Corrupt {
            path: segment.current_path().to_owned(),
            at: run.bytes.start + offset as u64,
            what: reason.to_string(),
        };
        let found = record::decode(&bytes[offset..], segment.seed).map_err(corrupt)?;
        if found.head.index.0 != run.first.0 + i as u64 {
            return Err(corrupt(NotARecord::Chain));
        }
        records.push(Record {
            kind: found.head.kind,
            term: found.head.term,
            index: found.head.index,
            payload: bytes.slice_ref(found.payload),
        });
    }
    Ok(records)
}
