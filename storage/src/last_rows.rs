//! The newest row of each series in the files, kept at hand.
//!
//! With it the newest row of a series is found without reading a file: it is this one or one of the memtable's. A table's
//! rows are here only while they are sure, that is for every series of the table and whole: from the table's first flush
//! on, or once they were read from its files. Tables that would not fit in their bound are left out and must be asked
//! from the files. Rows are those of the flushed index, so a view captures them together with the files.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array, new_null_array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, TimestampNanosecondType};
use model::{TableId, TableSchema};

use crate::Result;
use crate::key_columns::KeyColumns;
use crate::merge::{Runs, whole_layout};
use crate::scan::{KeyFilter, Rows, ScanColumn, ScanRequest, schema_of};

/// The tables whose newest rows are sure.
pub(crate) type LastRows = Arc<HashMap<TableId, Arc<TableLastRows>>>;

/// The newest row of every series of one table.
#[derive(Debug)]
pub(crate) struct TableLastRows {
    columns: Vec<ScanColumn>,
    rows: RecordBatch,
    /// One run a series: its key.
    keys: Runs,
}

impl TableLastRows {
    /// Of rows in order (all columns of the table), the last of each series; `None` if they take more than `max_bytes`.
    pub(crate) fn of(table: &TableSchema, rows: Rows, max_bytes: usize) -> Result<Option<TableLastRows>> {
        let columns = whole_layout(table);
        let mut batches = Vec::new();
        let mut bytes = 0;
        for batch in last_of_each_series(table, rows) {
            let batch = compact(&batch?);
            bytes += batch.get_array_memory_size();
            if bytes > max_bytes {
                return Ok(None);
            }
            batches.push(batch);
        }
        let rows = concat_batches(&schema_of(table, &columns), &batches).expect("batches of one table have one schema");
        let keys = Runs::with_keys(&rows, KeyColumns::of(table));
        Ok(Some(TableLastRows { columns, rows, keys }))
    }

    /// About how many bytes they take.
    pub(crate) fn bytes(&self) -> usize {
        self.rows.get_array_memory_size() + self.keys.bytes()
    }

    /// The rows that pass the request's tag filters, as its projection; its times are ignored.
    pub(crate) fn read(&self, request: &ScanRequest) -> Rows {
        let filter = KeyFilter::new(request);
        let rows = match filter.is_empty() {
            true => self.rows.clone(),
            false => {
                let wanted: Vec<u32> = (0..self.keys.len()).filter(|&i| filter.matches(self.keys.key(i))).map(|i| i as u32).collect();
                take_record_batch(&self.rows, &UInt32Array::from(wanted)).expect("the rows are there")
            }
        };
        let schema = schema_of(&request.table, &request.projection);
        let columns: Vec<ArrayRef> = (request.projection.iter().zip(schema.fields()))
            .map(|(asked, field)| match self.columns.iter().position(|c| c == asked) {
                Some(i) => rows.column(i).clone(),
                // The table got the column after these rows were kept.
                None => new_null_array(field.data_type(), rows.num_rows()),
            })
            .collect();
        let rows = RecordBatch::try_new(schema, columns).expect("a table's columns keep their types");
        Box::new((rows.num_rows() > 0).then_some(Ok(rows)).into_iter())
    }
}

/// Of rows in order, with time and all tags first, the last of each series.
pub(crate) fn last_of_each_series(table: &TableSchema, rows: Rows) -> impl Iterator<Item = Result<RecordBatch>> + use<> {
    LastOfEach { rows, tags: KeyColumns::of(table), held: None, ended: false }
}

struct LastOfEach {
    rows: Rows,
    tags: KeyColumns,
    /// The last row of the last series so far: the next batch may go on with it.
    held: Option<RecordBatch>,
    ended: bool,
}

impl LastOfEach {
    fn step(&mut self, batch: RecordBatch) -> RecordBatch {
        let batch = match self.held.take() {
            Some(held) => concat_batches(&batch.schema(), [&held, &batch]).expect("batches of one read have one schema"),
            None => batch,
        };
        let runs = Runs::new(&batch, self.tags);
        let last = runs.len() - 1;
        self.held = Some(batch.slice(batch.num_rows() - 1, 1));
        let rows: Vec<u32> = (0..last).map(|run| runs.end(run) as u32 - 1).collect();
        take_record_batch(&batch, &UInt32Array::from(rows)).expect("the rows are in the batch")
    }
}

impl Iterator for LastOfEach {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            match self.rows.next() {
                Some(Ok(batch)) if batch.num_rows() == 0 => {}
                Some(Ok(batch)) => {
                    let done = self.step(batch);
                    if done.num_rows() > 0 {
                        return Some(Ok(done));
                    }
                }
                Some(Err(error)) => {
                    self.ended = true;
                    self.held = None;
                    return Some(Err(error));
                }
                None => self.ended = true,
            }
        }
        self.held.take().map(Ok)
    }
}

/// The rows whose time (the first column) is not before `cutoff`.
pub(crate) fn not_before(batch: &RecordBatch, cutoff: i64) -> RecordBatch {
    let times = batch.column(0).as_primitive::<TimestampNanosecondType>().values();
    let keep = BooleanArray::new(BooleanBuffer::collect_bool(times.len(), |i| times[i] >= cutoff), None);
    filter_record_batch(batch, &keep).expect("the filter is as long as the batch")
}

/// The batch with texts of its own: those that it had may hold on to the pages of a whole file.
fn compact(batch: &RecordBatch) -> RecordBatch {
    let columns = batch.columns().iter().map(|column| match column.data_type() {
        DataType::Utf8View => Arc::new(column.as_string_view().gc()) as ArrayRef,
        _ => column.clone(),
    });
    RecordBatch::try_new(batch.schema(), columns.collect()).expect("nothing but the texts' place has changed")
}
