//! Where each record lies: one table of offsets per segment, in memory, shared by the log's owner and its readers.
//!
//! Four bytes a record. Built by recovery, extended by append, cut by truncate and purge.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use model::LogIndex;

use super::segment::{HEADER_BYTES, LogSegment};

/// All live segments, oldest first.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) segments: VecDeque<IndexedSegment>,
    /// Counts truncations: what a reader took from the table before one may be overwritten after it.
    pub(super) truncations: u64,
}

/// One segment and where its records begin.
#[derive(Debug)]
pub(super) struct IndexedSegment {
    pub(super) segment: Arc<LogSegment>,
    /// The index of its first record, also when it has none yet.
    pub(super) first: LogIndex,
    pub(super) offsets: Vec<u32>,
    /// Where the last record ends.
    pub(super) end: u64,
}

/// Neighbouring records of one segment.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) segment: Arc<LogSegment>,
    pub(super) first: LogIndex,
    /// Offset of each record within `bytes`.
    pub(super) offsets: Vec<usize>,
    /// Where they lie in the segment.
    pub(super) bytes: Range<u64>,
}

impl IndexedSegment {
    pub(super) fn new(segment: Arc<LogSegment>, first: LogIndex) -> IndexedSegment {
        IndexedSegment { segment, first, offsets: Vec::new(), end: HEADER_BYTES }
    }

    /// One above its last record.
    pub(super) fn next(&self) -> LogIndex {
        LogIndex(self.first.0 + self.offsets.len() as u64)
    }

    /// Where record number `i` of this segment ends at the latest (a mark may lie between it and the next).
    fn end_of(&self, i: usize) -> u64 {
        self.offsets.get(i + 1).map_or(self.end, |&next| u64::from(next))
    }
}

impl Index {
    pub(super) fn push(&mut self, offset: u64, end: u64) {
        let active = self.segments.back_mut().expect("a record is appended to a segment");
        active.offsets.push(u32::try_from(offset).expect("a segment has less than 4 GiB"));
        active.end = end;
    }

    /// The position of the segment that holds a record, and the record's number in it.
    pub(super) fn locate(&self, index: LogIndex) -> Option<(usize, usize)> {
        let after = self.segments.partition_point(|s| s.first <= index);
        let position = after.checked_sub(1)?;
        let segment = &self.segments[position];
        (index < segment.next()).then(|| (position, (index.0 - segment.first.0) as usize))
    }

    /// The first records of `start..end` that lie in one segment: at least one, then as many as fit `max_bytes`.
    pub(super) fn run(&self, start: LogIndex, end: LogIndex, max_bytes: usize) -> Option<Run> {
        if start >= end {
            return None;
        }
        let (position, from) = self.locate(start)?;
        let indexed = &self.segments[position];
        let wanted = (end.0 - start.0).min((indexed.offsets.len() - from) as u64) as usize;
        let begin = u64::from(indexed.offsets[from]);
        let limit = begin.saturating_add(max_bytes as u64);
        let mut count = 1;
        while count < wanted && indexed.end_of(from + count) <= limit {
            count += 1;
        }
        Some(Run {
            segment: indexed.segment.clone(),
            first: start,
            offsets: indexed.offsets[from..from + count].iter().map(|&o| (u64::from(o) - begin) as usize).collect(),
            bytes: begin..indexed.end_of(from + count - 1),
        })
    }

    /// Bytes of all records.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.end - HEADER_BYTES).sum()
    }
}
