//! Leaves out the rows of series that are another shard's since a split: files and memtables from before hold both halves.

use arrow::array::BooleanArray;
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter_record_batch;
use arrow::record_batch::RecordBatch;
use model::{DatabaseId, TableSchema, routing_hash};

use super::Rows;
use crate::Result;
use crate::key_columns::KeyColumns;
use crate::merge::Runs;
use crate::range::HashRange;

/// Of rows laid out as [`crate::merge::layout`] says, those whose routing hash lies in the range.
pub(crate) fn within(range: HashRange, table: &TableSchema, rows: Rows) -> Rows {
    Box::new(Within { range, database: table.database, tags: KeyColumns::of(table), rows })
}

struct Within {
    range: HashRange,
    database: DatabaseId,
    tags: KeyColumns,
    rows: Rows,
}

impl Within {
    /// `None`: no row is left.
    fn narrow(&self, batch: RecordBatch) -> Option<RecordBatch> {
        let runs = Runs::with_keys(&batch, self.tags);
        let kept: Vec<bool> = (0..runs.len()).map(|run| self.range.contains(routing_hash(self.database, runs.key(run)))).collect();
        if kept.iter().all(|kept| *kept) {
            return (batch.num_rows() > 0).then_some(batch);
        }
        if kept.iter().all(|kept| !kept) {
            return None;
        }
        let mut run = 0;
        let bits = BooleanBuffer::collect_bool(batch.num_rows(), |row| {
            while row >= runs.end(run) {
                run += 1;
            }
            kept[run]
        });
        Some(filter_record_batch(&batch, &BooleanArray::new(bits, None)).expect("the filter is as long as the batch"))
    }
}

impl Iterator for Within {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.rows.next()? {
                Ok(batch) => {
                    if let Some(batch) = self.narrow(batch) {
                        return Some(Ok(batch));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
