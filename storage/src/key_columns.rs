//! The series keys of a batch's rows: a batch has tags as columns, a key has them by position ([`model::SeriesKey`]).
//!
//! A table without the routing tag has no column for position 0; its keys begin with that absent component all the same, so
//! that they compare with those in memory, and with those that it gets once it has the tag.

use arrow::array::{Array, AsArray, RecordBatch, StringViewArray};
use model::point::write_key;
use model::{ColumnKind, TableSchema};

/// Which columns of a batch, behind its first one (the time), make the series key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyColumns {
    /// How many tag columns there are, in key order.
    count: usize,
    /// Absent components before them.
    absent: usize,
}

impl KeyColumns {
    /// Of batches whose columns are laid out as [`crate::merge::layout`] says.
    pub(crate) fn of(table: &TableSchema) -> KeyColumns {
        let tags = table.tags();
        let has_routing_tag = tags.first().is_some_and(|tag| tag.kind == ColumnKind::Tag { position: 0 });
        KeyColumns { count: tags.len(), absent: usize::from(!has_routing_tag) }
    }

    /// How many there are.
    pub(crate) fn count(self) -> usize {
        self.count
    }

    /// The columns.
    pub(crate) fn in_batch(self, batch: &RecordBatch) -> Vec<&StringViewArray> {
        (1..=self.count).map(|i| batch.column(i).as_string_view()).collect()
    }

    /// Appends the series key of a row of these columns.
    pub(crate) fn write(self, key: &mut Vec<u8>, columns: &[&StringViewArray], row: usize) {
        let tags = columns.iter().map(|column| column.is_valid(row).then(|| column.value(row)));
        write_key(key, std::iter::repeat_n(None, self.absent).chain(tags));
    }

    /// The series key of a row of a batch.
    pub(crate) fn key(self, batch: &RecordBatch, row: usize) -> Vec<u8> {
        let mut key = Vec::new();
        self.write(&mut key, &self.in_batch(batch), row);
        key
    }
}
