//! Columns under construction: rows are appended, a [`PointBatch`] comes out.

use model::schema::ColumnType;
use model::{Bitmap, ColumnId, FieldColumn, PointBatch, TableId, Values};

use super::ParsedBatch;

/// One table's rows of the body at hand.
pub(super) struct Builder {
    batch: PointBatch,
    hashes: Vec<u64>,
    expected_rows: usize,
}

/// A value on its way into a column; a string is its text.
#[derive(Clone, Copy)]
pub(super) enum Cell<'a> {
    F64(f64),
    I64(i64),
    U64(u64),
    Bool(bool),
    Str(&'a str),
}

/// A value as bits and the column it is for; a string is its place in the body and its length, 32 bits each.
#[derive(Clone, Copy)]
pub(super) struct PlainCell {
    pub(super) column: u32,
    pub(super) bits: u64,
}

impl Builder {
    pub(super) fn new() -> Builder {
        Builder { batch: PointBatch::new(TableId(0), 0), hashes: Vec::new(), expected_rows: 0 }
    }

    /// Rows so far.
    #[inline]
    pub(super) fn rows(&self) -> usize {
        self.batch.times.len()
    }

    /// Field columns so far.
    #[inline]
    pub(super) fn columns(&self) -> usize {
        self.batch.columns.len()
    }

    /// Adds a series that is not there yet.
    #[inline]
    pub(super) fn push_series(&mut self, key: &[u8], hash: u64) -> u32 {
        self.hashes.push(hash);
        self.batch.push_series(key)
    }

    /// Adds a field column that is not there yet; gives its place.
    pub(super) fn add_column(&mut self, id: ColumnId, kind: ColumnType) -> usize {
        let values = Values::with_room(kind, self.expected_rows);
        self.batch.columns.push(FieldColumn { id, values, valid: None });
        self.batch.columns.len() - 1
    }

    /// Gives the row at hand a value in the column at `place`; a second one for the same row replaces the first.
    pub(super) fn put(&mut self, place: usize, cell: Cell<'_>) {
        let row = self.batch.times.len();
        let column = &mut self.batch.columns[place];
        let len = column.values.len();
        if len > row {
            return replace(&mut column.values, row, cell);
        }
        if len < row {
            column.valid.get_or_insert_with(|| Bitmap::filled(len, true)).extend(row - len, false);
            column.values.extend_empty(row - len);
        }
        if let Some(valid) = &mut column.valid {
            valid.push(true);
        }
        match (&mut column.values, cell) {
            (Values::F64(v), Cell::F64(x)) => v.push(x),
            (Values::I64(v), Cell::I64(x)) => v.push(x),
            (Values::U64(v), Cell::U64(x)) => v.push(x),
            (Values::Bool(v), Cell::Bool(x)) => v.push(x),
            (Values::Str(v), Cell::Str(x)) => v.push(x),
            _ => unreachable!("the value's type was compared with the column's"),
        }
    }

    /// [`put`](Builder::put) for a value that is known to be of the column's type.
    #[inline]
    pub(super) fn put_plain(&mut self, place: usize, bits: u64, body: &str) {
        let row = self.batch.times.len();
        let column = &mut self.batch.columns[place];
        if column.valid.is_none() && column.values.len() == row {
            match &mut column.values {
                Values::F64(v) => v.push(f64::from_bits(bits)),
                Values::I64(v) => v.push(bits as i64),
                Values::U64(v) => v.push(bits),
                Values::Bool(v) => v.push(bits == 1),
                Values::Str(v) => v.push(plain_text(bits, body)),
            }
            return;
        }
        let cell = match column.values {
            Values::F64(_) => Cell::F64(f64::from_bits(bits)),
            Values::I64(_) => Cell::I64(bits as i64),
            Values::U64(_) => Cell::U64(bits),
            Values::Bool(_) => Cell::Bool(bits == 1),
            Values::Str(_) => Cell::Str(plain_text(bits, body)),
        };
        self.put(place, cell);
    }

    /// Ends the row at hand.
    #[inline]
    pub(super) fn end_row(&mut self, series: u32, time: i64) {
        self.batch.row_series.push(series);
        self.batch.times.push(time);
    }

    /// What was built, and an empty builder in its place; `None` if there is no row.
    pub(super) fn take(&mut self, table: TableId, schema_version: u32) -> Option<ParsedBatch> {
        let rows = self.rows();
        let mut batch = std::mem::replace(&mut self.batch, PointBatch::new(TableId(0), 0));
        let hashes = std::mem::take(&mut self.hashes);
        if rows == 0 {
            return None;
        }
        for column in &mut batch.columns {
            let len = column.values.len();
            if len < rows {
                column.valid.get_or_insert_with(|| Bitmap::filled(len, true)).extend(rows - len, false);
                column.values.extend_empty(rows - len);
            }
        }
        (batch.table, batch.schema_version) = (table, schema_version);
        self.expected_rows = rows;
        Some(ParsedBatch { batch, hashes })
    }

    /// Makes room for as many rows as the last batch had, but for no more than `most`.
    pub(super) fn expect_rows(&mut self, most: usize) {
        self.expected_rows = self.expected_rows.min(most);
        self.batch.times.reserve(self.expected_rows);
        self.batch.row_series.reserve(self.expected_rows);
    }
}

fn plain_text(bits: u64, body: &str) -> &str {
    let start = (bits >> 32) as usize;
    &body[start..start + bits as u32 as usize]
}

fn replace(values: &mut Values, row: usize, cell: Cell<'_>) {
    match (values, cell) {
        (Values::F64(v), Cell::F64(x)) => v[row] = x,
        (Values::I64(v), Cell::I64(x)) => v[row] = x,
        (Values::U64(v), Cell::U64(x)) => v[row] = x,
        (Values::Bool(v), Cell::Bool(x)) => v.set(row, x),
        (Values::Str(v), Cell::Str(x)) => {
            let start = if row == 0 { 0 } else { v.ends[row - 1] as usize };
            v.ends.truncate(row);
            v.bytes.truncate(start);
            v.push(x);
        }
        _ => unreachable!("the value's type was compared with the column's"),
    }
}
