//! From sealed memtables to Parquet files.
//!
//! A flush writes what it is given, table by table, a file for each day that has enough rows, and one `late/` file for the
//! days that have few. It names nothing in a manifest: it gives the files, verified and durable, for an edit to be
//! proposed. If it fails, a full disk included, it leaves nothing behind and can be run again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter_record_batch;
use arrow::datatypes::TimestampNanosecondType;
use model::{Epoch, LogIndex, TableSchema, Timestamp};

use crate::manifest::FileMeta;
use crate::parquet_file::{Effort, FileWriter, NewFile, ParquetFiles};
use crate::scan::Rows;
use crate::{Error, Result};

/// Bytes of row groups that the files which grow at the same time may hold together.
const MAX_HELD_BYTES: usize = 256 << 20;
/// Rows from which a day gets a file of its own even if it is not the newest.
const OWN_FILE_ROWS: u64 = 64 * 1024;

/// The rows of one table in the sealed memtables.
pub struct FlushTable {
    /// Name of its database.
    pub database: Arc<str>,
    /// The table.
    pub schema: Arc<TableSchema>,
    /// How many rows each day has, at most: rows that `rows` merges may be counted twice.
    pub days: BTreeMap<i32, u64>,
    /// The rows in order of (series key, time), each identity once; columns: time, tags in key order, fields oldest first.
    pub rows: Rows,
}

/// Writes the tables' rows, which entries `from..=to` of the log brought under one version of the shard's range.
pub fn flush(
    files: &Arc<ParquetFiles>,
    (from, to): (LogIndex, LogIndex),
    range_version: Epoch,
    tables: impl IntoIterator<Item = Result<FlushTable>>,
) -> Result<Vec<FileMeta>> {
    let start = Instant::now();
    let mut written = Vec::new();
    match write_tables(files, (from, to), range_version, tables, &mut written) {
        Ok(()) => {
            let (rows, bytes) = written.iter().fold((0, 0), |(rows, bytes), f| (rows + f.rows, bytes + f.bytes));
            tracing::info!(%from, %to, files = written.len(), rows, bytes, elapsed = ?start.elapsed(), "flushed");
            Ok(written)
        }
        Err(error) => {
            files.remove(written.iter().map(|f| f.path.as_str()));
            Err(error)
        }
    }
}

fn write_tables(
    files: &Arc<ParquetFiles>,
    (from, to): (LogIndex, LogIndex),
    range_version: Epoch,
    tables: impl IntoIterator<Item = Result<FlushTable>>,
    written: &mut Vec<FileMeta>,
) -> Result<()> {
    for table in tables {
        let table = table?;
        let (database, table, rows, days) = (table.database, table.schema, table.rows, table.days);
        let new = NewFile { database, table, day: None, level: 0, from, to, range_version, effort: Effort::Cheap };
        let mut by_day = ByDay::with_days(files, new, &days_apart(&days));
        for batch in rows {
            by_day.write(&batch?)?;
        }
        by_day.finish(written)?;
    }
    files.sync_folders(written.iter())
}

/// Which days get a file of their own; the others share a `late/` file.
///
/// The newest day always does, so that a table that is written in order of time never has late files. A single other day
/// does too: a `late/` file of one day would be nothing but a detour.
fn days_apart(days: &BTreeMap<i32, u64>) -> Vec<i32> {
    let newest = days.keys().next_back().copied();
    let mut apart: Vec<i32> =
        days.iter().filter(|&(&day, &rows)| rows >= OWN_FILE_ROWS || Some(day) == newest).map(|(&day, _)| day).collect();
    if apart.len() + 1 == days.len() {
        apart = days.keys().copied().collect();
    }
    apart
}

/// Writes sorted rows of several days into a file a day, and into one for all other days.
pub(crate) struct ByDay {
    files: Arc<ParquetFiles>,
    new: NewFile,
    apart: BTreeMap<i32, Option<FileWriter>>,
    late: Option<FileWriter>,
}

impl ByDay {
    /// A file of its own for each of these days.
    pub(crate) fn with_days(files: &Arc<ParquetFiles>, new: NewFile, days: &[i32]) -> ByDay {
        ByDay { files: files.clone(), new, apart: days.iter().map(|&day| (day, None)).collect(), late: None }
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let times = batch.column(0).as_primitive::<TimestampNanosecondType>().values();
        let Some(&first) = times.first() else { return Ok(()) };
        self.make_room()?;
        let (min, max) = times.iter().fold((first, first), |(lo, hi), &t| (lo.min(t), hi.max(t)));
        let (first_day, last_day) = (Timestamp(min).day(), Timestamp(max).day());
        if first_day == last_day {
            return self.file_of(first_day)?.write(batch);
        }
        let days: Vec<i32> = times.iter().map(|&t| Timestamp(t).day()).collect();
        let apart: Vec<i32> = self.apart.range(first_day..=last_day).map(|(&day, _)| day).collect();
        let mut left = batch.num_rows();
        for day in apart {
            let rows = select(batch, |i| days[i] == day)?;
            left -= rows.num_rows();
            if rows.num_rows() > 0 {
                self.file_of(day)?.write(&rows)?;
            }
        }
        if left > 0 {
            let rows = select(batch, |i| !self.apart.contains_key(&days[i]))?;
            let day = days.iter().copied().find(|day| !self.apart.contains_key(day)).expect("rows of such a day are left");
            return self.file_of(day)?.write(&rows);
        }
        Ok(())
    }

    /// Where the files hold too much together, the one that holds most ends its row group: far more than a batch.
    fn make_room(&mut self) -> Result<()> {
        if self.apart.values().chain([&self.late]).flatten().map(FileWriter::held_bytes).sum::<usize>() < MAX_HELD_BYTES {
            return Ok(());
        }
        let files = self.apart.values_mut().chain([&mut self.late]).flatten();
        files.max_by_key(|file| file.held_bytes()).map_or(Ok(()), FileWriter::let_go)
    }

    fn file_of(&mut self, day: i32) -> Result<&mut FileWriter> {
        let (slot, day) = match self.apart.get_mut(&day) {
            Some(slot) => (slot, Some(day)),
            None => (&mut self.late, None),
        };
        match slot {
            Some(file) => Ok(file),
            None => Ok(slot.insert(self.files.create(NewFile { day, ..self.new.clone() })?)),
        }
    }

    /// Finishes the files and adds them to `written`, of which the caller disposes if this fails.
    pub(crate) fn finish(self, written: &mut Vec<FileMeta>) -> Result<()> {
        for file in self.apart.into_values().chain([self.late]).flatten() {
            written.push(file.finish()?);
        }
        Ok(())
    }
}

fn select(batch: &RecordBatch, keep: impl FnMut(usize) -> bool) -> Result<RecordBatch> {
    let keep = BooleanArray::new(BooleanBuffer::collect_bool(batch.num_rows(), keep), None);
    filter_record_batch(batch, &keep).map_err(|e| Error::Stopped { what: "flush".to_owned(), why: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_days_share_a_late_file_and_the_newest_never_does() {
        /// Rows by day, and the days that get a file of their own.
        type Case = (&'static [(i32, u64)], &'static [i32]);
        let cases: [Case; 5] = [
            (&[(5, 3)], &[5]),
            (&[(4, 1), (5, 3)], &[4, 5]),
            (&[(1, 9), (4, 1), (5, 3)], &[5]),
            (&[(1, 9), (3, OWN_FILE_ROWS), (4, 1), (5, 3)], &[3, 5]),
            (&[(1, 9), (3, OWN_FILE_ROWS), (5, 3)], &[1, 3, 5]),
        ];
        for (days, expected) in cases {
            assert_eq!(days_apart(&days.iter().copied().collect()), expected, "{days:?}");
        }
    }
}
