//! Puts output batches together from stretches of source batches.

use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, MutableArrayData, RecordBatch, make_array};
use arrow::compute::interleave;
use arrow::datatypes::SchemaRef;

use crate::batch_bytes::bytes_of;

/// Rows per stretch from which copying stretch by stretch beats gathering row by row.
const LONG_STRETCH: usize = 8;

/// A stretch of rows of one source batch, or one row merged from several.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Which of the held batches.
    held: u32,
    start: u32,
    len: u32,
    /// Older versions of the row, newest first, in `versions`; empty for a plain stretch.
    older: (u32, u32),
}

/// The batch being put together.
pub(super) struct Output {
    schema: SchemaRef,
    /// Columns before this one are the row's identity and equal in all its versions.
    first_field: usize,
    batch_rows: usize,
    held: Vec<Arc<RecordBatch>>,
    /// Bytes of held batches that nobody else holds any more.
    outlived_bytes: usize,
    /// So many of them that the batch ends early.
    max_outlived_bytes: usize,
    pieces: Vec<Piece>,
    versions: Vec<(u32, u32)>,
    rows: usize,
}

impl Output {
    pub(super) fn new(schema: SchemaRef, first_field: usize, batch_rows: usize, max_outlived_bytes: usize) -> Output {
        Output {
            schema,
            first_field,
            batch_rows,
            held: Vec::new(),
            outlived_bytes: 0,
            max_outlived_bytes,
            pieces: Vec::new(),
            versions: Vec::new(),
            rows: 0,
        }
    }

    /// Rows that still fit.
    pub(super) fn room(&self) -> usize {
        if self.outlived_bytes >= self.max_outlived_bytes { 0 } else { self.batch_rows - self.rows }
    }

    /// Appends `len` rows of a batch.
    pub(super) fn push(&mut self, batch: &Arc<RecordBatch>, start: usize, len: usize) {
        debug_assert!(len > 0 && len <= self.room());
        let held = self.hold(batch);
        self.rows += len;
        if let Some(last) = self.pieces.last_mut()
            && last.held == held
            && last.older.0 == last.older.1
            && (last.start + last.len) as usize == start
        {
            last.len += len as u32;
            return;
        }
        let none = self.versions.len() as u32;
        self.pieces.push(Piece { held, start: start as u32, len: len as u32, older: (none, none) });
    }

    /// Begins a row that several sources have; [`push_version`](Output::push_version) follows, newest first.
    pub(super) fn begin_merged(&mut self) {
        debug_assert!(self.room() > 0);
        let none = self.versions.len() as u32;
        self.pieces.push(Piece { held: u32::MAX, start: 0, len: 1, older: (none, none) });
        self.rows += 1;
    }

    pub(super) fn push_version(&mut self, batch: &Arc<RecordBatch>, row: usize) {
        let held = self.hold(batch);
        let piece = self.pieces.last_mut().expect("a merged row has begun");
        if piece.held == u32::MAX {
            (piece.held, piece.start) = (held, row as u32);
        } else {
            self.versions.push((held, row as u32));
            piece.older.1 += 1;
        }
    }

    /// Takes note that a batch of which rows were appended is held here alone from now on.
    pub(super) fn outlives(&mut self, batch: &RecordBatch) {
        self.outlived_bytes += bytes_of(batch);
    }

    fn hold(&mut self, batch: &Arc<RecordBatch>) -> u32 {
        // Sources take turns: the batch is nearly always among the last few.
        let found = self.held.iter().rposition(|held| Arc::ptr_eq(held, batch));
        found.unwrap_or_else(|| {
            self.held.push(batch.clone());
            self.held.len() - 1
        }) as u32
    }

    /// The batch so far, if it has rows; the next one begins.
    pub(super) fn take(&mut self) -> Option<RecordBatch> {
        if self.rows == 0 {
            return None;
        }
        let batch = match self.pieces[..] {
            [piece] if piece.older.0 == piece.older.1 => self.held[piece.held as usize].slice(piece.start as usize, piece.len as usize),
            _ => self.build(),
        };
        self.held.clear();
        self.outlived_bytes = 0;
        self.pieces.clear();
        self.versions.clear();
        self.rows = 0;
        Some(batch)
    }

    fn build(&self) -> RecordBatch {
        let columns = if self.rows >= self.pieces.len() * LONG_STRETCH {
            (0..self.schema.fields().len()).map(|c| self.copy(c)).collect()
        } else {
            self.gather()
        };
        RecordBatch::try_new(self.schema.clone(), columns).expect("all sources have the layout's columns")
    }

    /// One column, stretch by stretch.
    fn copy(&self, column: usize) -> ArrayRef {
        let arrays: Vec<ArrayData> = self.held.iter().map(|b| b.column(column).to_data()).collect();
        let mut out = MutableArrayData::new(arrays.iter().collect(), false, self.rows);
        for piece in &self.pieces {
            let (held, row) = self.pick(piece, column);
            out.try_extend(held as usize, row as usize, (row + piece.len) as usize).expect("a batch has fewer than 2 GiB of text");
        }
        make_array(out.freeze())
    }

    /// All columns, row by row.
    fn gather(&self) -> Vec<ArrayRef> {
        let mut rows: Vec<(usize, usize)> = Vec::with_capacity(self.rows);
        let mut merged: Vec<(usize, &Piece)> = Vec::new();
        for piece in &self.pieces {
            if piece.older.0 != piece.older.1 {
                merged.push((rows.len(), piece));
            }
            rows.extend((piece.start..piece.start + piece.len).map(|row| (piece.held as usize, row as usize)));
        }
        (0..self.schema.fields().len())
            .map(|column| {
                let arrays: Vec<&dyn Array> = self.held.iter().map(|b| b.column(column).as_ref()).collect();
                let lacking = column >= self.first_field && arrays.iter().any(|a| a.null_count() > 0);
                for &(at, piece) in &merged {
                    let (held, row) = if lacking { self.pick(piece, column) } else { (piece.held, piece.start) };
                    rows[at] = (held as usize, row as usize);
                }
                interleave(&arrays, &rows).expect("a column has one type in all sources")
            })
            .collect()
    }

    /// Which version of a piece has the say in a column: the newest that has a value.
    fn pick(&self, piece: &Piece, column: usize) -> (u32, u32) {
        let newest = (piece.held, piece.start);
        if piece.older.0 == piece.older.1 || column < self.first_field {
            return newest;
        }
        let has_value = |&(held, row): &(u32, u32)| self.held[held as usize].column(column).is_valid(row as usize);
        let older = &self.versions[piece.older.0 as usize..piece.older.1 as usize];
        std::iter::once(newest).chain(older.iter().copied()).find(has_value).unwrap_or(newest)
    }
}
