//! Some rows of one table as columns, in order of arrival.

use model::{Bitmap, ColumnId, FieldColumn, PointBatch, Values};

/// Rows that a chunk may have: a row's address is its chunk's number and 13 bits.
pub(super) const CHUNK_ROWS: usize = 1 << ROW_BITS;
/// A chunk with fewer rows is copied when a reader holds it and the writer goes on; a larger one is left as it is.
pub(super) const COPY_ROWS: usize = 512;

const ROW_BITS: u32 = 13;

/// Where a row is: chunk and place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowAddress(u32);

impl RowAddress {
    pub(super) fn new(chunk: usize, row: usize) -> RowAddress {
        debug_assert!(row < CHUNK_ROWS && chunk < 1 << (32 - ROW_BITS));
        RowAddress((chunk as u32) << ROW_BITS | row as u32)
    }

    #[inline]
    pub(super) fn chunk(self) -> usize {
        (self.0 >> ROW_BITS) as usize
    }

    #[inline]
    pub(super) fn row(self) -> usize {
        self.0 as usize & (CHUNK_ROWS - 1)
    }
}

/// Some rows as columns. A column may have fewer rows than the chunk: the rows after its end lack it.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    series: Vec<u32>,
    times: Vec<i64>,
    columns: Vec<FieldColumn>,
    min_time: i64,
    max_time: i64,
    bytes: usize,
}

impl Default for Chunk {
    fn default() -> Chunk {
        Chunk { series: Vec::new(), times: Vec::new(), columns: Vec::new(), min_time: i64::MAX, max_time: i64::MIN, bytes: 0 }
    }
}

impl Chunk {
    /// A chunk that goes on after a full one: it has room for as many rows, so that nothing is copied while it grows.
    pub(super) fn after(full: &Chunk) -> Chunk {
        let column = |c: &FieldColumn| {
            let mut values = Values::with_room(c.values.kind(), CHUNK_ROWS);
            if let (Values::Str(room), Values::Str(full)) = (&mut values, &c.values) {
                room.bytes.reserve(full.bytes.len());
            }
            FieldColumn { id: c.id, values, valid: None }
        };
        Chunk {
            series: Vec::with_capacity(CHUNK_ROWS),
            times: Vec::with_capacity(CHUNK_ROWS),
            columns: full.columns.iter().map(column).collect(),
            ..Chunk::default()
        }
    }

    /// Appends the rows `start..end` of a batch; `numbers` are its series' numbers in the table.
    pub(super) fn append(&mut self, batch: &PointBatch, numbers: &[u32], start: usize, end: usize) {
        let rows_before = self.rows();
        self.series.extend(batch.row_series[start..end].iter().map(|&s| numbers[s as usize]));
        let times = &batch.times[start..end];
        self.times.extend_from_slice(times);
        (self.min_time, self.max_time) = times.iter().fold((self.min_time, self.max_time), |(min, max), &t| (min.min(t), max.max(t)));
        self.bytes += (end - start) * (size_of::<u32>() + size_of::<i64>());
        for (i, from) in batch.columns.iter().enumerate() {
            // Batches of a table mostly have the same columns in the same order.
            let place = match self.columns.get(i) {
                Some(column) if column.id == from.id => i,
                _ => self.columns.iter().position(|c| c.id == from.id).unwrap_or_else(|| {
                    self.columns.push(FieldColumn { id: from.id, values: Values::new(from.values.kind()), valid: None });
                    self.columns.len() - 1
                }),
            };
            let column = &mut self.columns[place];
            let text_before = text_bytes(&column.values);
            let len_before = column.values.len();
            pad(column, rows_before);
            column.values.extend_range(&from.values, start, end);
            match (&mut column.valid, &from.valid) {
                (Some(valid), Some(from)) => valid.extend_range(from, start, end),
                (Some(valid), None) => valid.extend(end - start, true),
                (None, Some(from)) => {
                    let mut valid = Bitmap::filled(rows_before, true);
                    valid.extend_range(from, start, end);
                    column.valid = Some(valid);
                }
                (None, None) => {}
            }
            self.bytes += (column.values.len() - len_before) * value_bytes(&column.values);
            self.bytes += text_bytes(&column.values) - text_before;
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.times.len()
    }

    /// Each row's series number.
    pub(super) fn series(&self) -> &[u32] {
        &self.series
    }

    pub(super) fn times(&self) -> &[i64] {
        &self.times
    }

    pub(super) fn min_time(&self) -> i64 {
        self.min_time
    }

    pub(super) fn max_time(&self) -> i64 {
        self.max_time
    }

    /// About how many bytes the rows take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn column(&self, id: ColumnId) -> Option<&FieldColumn> {
        self.columns.iter().find(|c| c.id == id)
    }
}

/// Lengthens a column to `rows` rows, which lack it.
fn pad(column: &mut FieldColumn, rows: usize) {
    let len = column.values.len();
    if len < rows {
        let valid = column.valid.get_or_insert_with(|| Bitmap::filled(len, true));
        valid.extend(rows - len, false);
        column.values.extend_empty(rows - len);
    }
}

/// Bytes of one value, its bit of validity counted with it.
fn value_bytes(values: &Values) -> usize {
    match values {
        Values::F64(_) | Values::I64(_) | Values::U64(_) => 8,
        Values::Bool(_) => 1,
        Values::Str(_) => 4,
    }
}

fn text_bytes(values: &Values) -> usize {
    match values {
        Values::Str(strings) => strings.bytes.len(),
        _ => 0,
    }
}
