//! How many bytes the rows of a batch take, told by their types and their texts' lengths.
//!
//! Rows are worked on in batches of some thousands, which is right while a row is small; a text field may have megabytes.
//! What holds batches is therefore bounded in bytes as well. Texts that share a buffer are counted each, so that a bound
//! holds however they were made; buffers that texts keep alive beyond their own bytes are not.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::DataType;

/// Bytes of a batch that a source gives, about: a merge holds one or two of each source.
pub(crate) const BATCH_BYTES: usize = 4 << 20;
/// Bytes that a value is counted with, whatever its type; a text has its own besides.
pub(crate) const VALUE_BYTES: usize = 8;

/// The bytes of its rows, about.
pub(crate) fn bytes_of(batch: &RecordBatch) -> usize {
    let columns = batch.columns().iter().map(|column| match column.data_type() {
        // The low half of a view is its text's length.
        DataType::Utf8View => column.as_string_view().views().iter().map(|&view| VALUE_BYTES + view as u32 as usize).sum(),
        _ => column.len() * VALUE_BYTES,
    });
    columns.sum()
}

/// How many of `rows` rows from `start` on to take for at most `max_bytes`, about half of them at least; one in any case.
pub(crate) fn rows_within(batch: &RecordBatch, start: usize, rows: usize, max_bytes: usize) -> usize {
    let mut rows = rows;
    while rows > 1 && bytes_of(&batch.slice(start, rows)) > max_bytes {
        rows /= 2;
    }
    rows
}

/// How many rows of `row_bytes` each make a batch of at most [`BATCH_BYTES`] and `max_rows`; one in any case.
pub(crate) fn batch_rows(row_bytes: u64, max_rows: usize) -> usize {
    usize::try_from(BATCH_BYTES as u64 / row_bytes.max(1)).unwrap_or(max_rows).clamp(1, max_rows.max(1))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringViewArray};

    use super::*;

    #[test]
    fn bytes_are_those_of_values_and_texts() {
        let texts = ["", "eight by", &"x".repeat(1_000), "y"];
        let columns: [(&str, ArrayRef); 2] =
            [("a", Arc::new(Int64Array::from(vec![1; 4]))), ("b", Arc::new(StringViewArray::from_iter_values(texts)))];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        assert_eq!(bytes_of(&batch), 8 * VALUE_BYTES + 1_009);
        assert_eq!(bytes_of(&batch.slice(1, 1)), 2 * VALUE_BYTES + 8);
        /// Start, rows, bytes, and how many rows they are.
        type Case = (usize, usize, usize, usize);
        let cases: [Case; 5] = [(0, 4, 2_000, 4), (0, 4, 1_000, 2), (2, 2, 1_000, 1), (2, 1, 10, 1), (0, 2, 0, 1)];
        for (start, rows, bytes, expected) in cases {
            assert_eq!(rows_within(&batch, start, rows, bytes), expected, "{rows} rows from {start} in {bytes} bytes");
        }
    }

    #[test]
    fn batches_have_fewer_rows_where_rows_are_large() {
        for (row_bytes, expected) in [(0, 8_192), (100, 8_192), (1 << 12, 1_024), (1 << 30, 1), (u64::MAX, 1)] {
            assert_eq!(batch_rows(row_bytes, 8_192), expected, "{row_bytes} bytes a row");
        }
        assert_eq!(batch_rows(8, 0), 1);
    }
}
