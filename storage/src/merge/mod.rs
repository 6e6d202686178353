//! Several sorted sources of one table become one: rows in order of (series key, time), each identity once.
//!
//! Where sources hold the same row, its fields merge: of the sources in their order of writes the latest that has a value
//! wins the field (DESIGN rules 1 and 2). Work is done per run and not per row wherever it can be: a stretch of rows that
//! lies in one source only is found by its ends and copied whole. Filters and files are not known here; the scan and the
//! compaction both lean on this one function, so they cannot disagree about what a row is.
//!
//! The columns of every source and of the output are [`layout`]: `time`, every tag of the table in key order, then fields.

mod output;
mod runs;

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{SchemaRef, TimestampNanosecondType};
use model::{ColumnId, TableSchema};

use self::output::Output;
pub(crate) use self::runs::Runs;
use crate::batch_bytes::BATCH_BYTES;
use crate::key_columns::KeyColumns;
use crate::scan::{Rows, ScanColumn};
use crate::{Result, scan};

/// The columns that sources must have to be merged: `time`, all tags in key order, then these fields.
pub fn layout(table: &TableSchema, fields: impl IntoIterator<Item = ColumnId>) -> Vec<ScanColumn> {
    let tags = table.tags().into_iter().map(|c| c.id);
    std::iter::once(ScanColumn::Time).chain(tags.chain(fields).map(ScanColumn::Column)).collect()
}

/// The layout of whole rows, which is also the order of [`scan::arrow_schema`] and of files.
pub fn whole_layout(table: &TableSchema) -> Vec<ScanColumn> {
    layout(table, table.fields().map(|c| c.id))
}

/// Merges sources given in their order of writes, oldest first. Each is in order and holds a row once; all have the
/// columns of `layout` of `table`. Output batches have about `batch_rows` rows, fewer where rows are large.
pub fn merge(table: &TableSchema, layout: &[ScanColumn], mut sources: Vec<Rows>, batch_rows: usize) -> Rows {
    match sources.len() {
        0 => Box::new(std::iter::empty()),
        1 => sources.swap_remove(0),
        _ => Box::new(Merge::new(scan::schema_of(table, layout), KeyColumns::of(table), sources, batch_rows.max(1))),
    }
}

/// One source and where it stands.
struct Cursor {
    rows: Rows,
    /// `None` once the source has ended.
    current: Option<Current>,
}

/// The batch in hand of one source.
struct Current {
    batch: Arc<RecordBatch>,
    times: ScalarBuffer<i64>,
    runs: Runs,
    /// The run that `at` lies in.
    run: usize,
    /// The next row.
    at: usize,
}

impl Current {
    fn new(batch: RecordBatch, tags: KeyColumns) -> Current {
        let times = batch.column(0).as_primitive::<TimestampNanosecondType>().values().clone();
        let runs = Runs::with_keys(&batch, tags);
        debug_assert!(in_order(&times, &runs), "a source gives its rows in order, each once");
        Current { batch: Arc::new(batch), times, runs, run: 0, at: 0 }
    }

    fn key(&self) -> &[u8] {
        self.runs.key(self.run)
    }

    fn run_end(&self) -> usize {
        self.runs.end(self.run)
    }

    fn rows(&self) -> usize {
        self.times.len()
    }
}

fn in_order(times: &[i64], runs: &Runs) -> bool {
    (0..runs.len()).all(|r| {
        let ordered = times[runs.start(r)..runs.end(r)].windows(2).all(|w| w[0] < w[1]);
        ordered && (r == 0 || runs.key(r - 1) < runs.key(r))
    })
}

struct Merge {
    tags: KeyColumns,
    cursors: Vec<Cursor>,
    /// Cursors that stand in the series at hand, oldest first; kept here to be reused.
    same: Vec<usize>,
    output: Output,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Running,
    Ended,
}

impl Merge {
    fn new(schema: SchemaRef, tags: KeyColumns, sources: Vec<Rows>, batch_rows: usize) -> Merge {
        // Besides the batch in hand of each source, the output may hold on to as much again.
        let max_outlived_bytes = sources.len() * BATCH_BYTES;
        Merge {
            tags,
            cursors: sources.into_iter().map(|rows| Cursor { rows, current: None }).collect(),
            same: Vec::new(),
            output: Output::new(schema, 1 + tags.count(), batch_rows, max_outlived_bytes),
            state: State::New,
        }
    }

    /// Moves a cursor over `n` rows, which lie in its batch.
    fn advance(&mut self, cursor: usize, n: usize) -> Result<()> {
        let current = self.cursors[cursor].current.as_mut().expect("only a cursor with rows moves");
        current.at += n;
        if current.at == current.rows() {
            self.output.outlives(&current.batch);
            return self.load(cursor);
        }
        while current.at >= current.run_end() {
            current.run += 1;
        }
        Ok(())
    }

    /// Takes a cursor's next batch with rows.
    fn load(&mut self, cursor: usize) -> Result<()> {
        let cursor = &mut self.cursors[cursor];
        cursor.current = None;
        for batch in cursor.rows.by_ref() {
            let batch = batch?;
            if batch.num_rows() > 0 {
                cursor.current = Some(Current::new(batch, self.tags));
                break;
            }
        }
        Ok(())
    }

    /// One stretch of the output. `false`: all sources have ended.
    fn step(&mut self) -> Result<bool> {
        self.same.clear();
        let mut least: Option<&[u8]> = None;
        let mut next: Option<&[u8]> = None;
        for (i, cursor) in self.cursors.iter().enumerate() {
            let Some(current) = &cursor.current else { continue };
            let key = current.key();
            match least.map(|least| key.cmp(least)) {
                None => least = Some(key),
                Some(std::cmp::Ordering::Equal) => {}
                Some(std::cmp::Ordering::Less) => {
                    next = least.replace(key);
                    self.same.clear();
                }
                Some(std::cmp::Ordering::Greater) => {
                    if next.is_none_or(|next| key < next) {
                        next = Some(key);
                    }
                    continue;
                }
            }
            self.same.push(i);
        }
        match self.same[..] {
            [] => Ok(false),
            [only] => {
                let current = self.cursors[only].current.as_ref().expect("it has a key");
                let until = match next {
                    // The series before `next` are in this source alone.
                    Some(next) => current.runs.end(current.runs.last_before(next, current.run)),
                    None => current.rows(),
                };
                let n = (until - current.at).min(self.output.room());
                self.output.push(&current.batch, current.at, n);
                self.advance(only, n)?;
                Ok(true)
            }
            _ => self.merge_series().map(|()| true),
        }
    }

    /// Interleaves the cursors in `same`, which stand in one series, until one of them leaves its run or the output is full.
    fn merge_series(&mut self) -> Result<()> {
        loop {
            // The earliest time, who has it first, and the earliest time after it.
            let (mut earliest, mut first, mut ties, mut bound) = (i64::MAX, usize::MAX, 0, None::<i64>);
            for &i in &self.same {
                let current = self.cursors[i].current.as_ref().expect("it stands in the series");
                let time = current.times[current.at];
                if first == usize::MAX || time < earliest {
                    if first != usize::MAX {
                        bound = Some(earliest);
                    }
                    (earliest, first, ties) = (time, i, 1);
                } else if time == earliest {
                    ties += 1;
                } else {
                    bound = Some(bound.map_or(time, |b| b.min(time)));
                }
            }
            let left_run = if ties == 1 {
                let current = self.cursors[first].current.as_ref().expect("it stands in the series");
                let end = current.run_end();
                let bound = bound.expect("two cursors at least are in the series");
                let n = stretch(&current.times[current.at..end], bound).min(self.output.room());
                self.output.push(&current.batch, current.at, n);
                let left_run = current.at + n == end;
                self.advance(first, n)?;
                left_run
            } else {
                let mut left_run = false;
                self.output.begin_merged();
                for &i in self.same.iter().rev() {
                    let current = self.cursors[i].current.as_ref().expect("it stands in the series");
                    if current.times[current.at] == earliest {
                        self.output.push_version(&current.batch, current.at);
                        left_run |= current.at + 1 == current.run_end();
                    }
                }
                for k in 0..self.same.len() {
                    let i = self.same[k];
                    let current = self.cursors[i].current.as_ref().expect("it stands in the series");
                    if current.times[current.at] == earliest {
                        self.advance(i, 1)?;
                    }
                }
                left_run
            };
            if left_run || self.output.room() == 0 {
                return Ok(());
            }
        }
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        if self.state == State::New {
            for i in 0..self.cursors.len() {
                self.load(i)?;
            }
            self.state = State::Running;
        }
        while self.output.room() > 0 && self.step()? {}
        Ok(self.output.take())
    }
}

/// How many of the first `times`, which ascend and of which one at least is before `bound`, are before it.
fn stretch(times: &[i64], bound: i64) -> usize {
    let mut step = 1;
    while step < times.len() && times[step] < bound {
        step *= 2;
    }
    let from = step / 2;
    from + times[from..step.min(times.len())].partition_point(|&t| t < bound)
}

impl Iterator for Merge {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Ended {
            return None;
        }
        match self.next_batch() {
            Ok(Some(batch)) => Some(Ok(batch)),
            Ok(None) => {
                self.state = State::Ended;
                None
            }
            Err(error) => {
                // After an error there is nothing more: a reader must never take the rest for an answer.
                self.state = State::Ended;
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests;
