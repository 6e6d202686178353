//! Where one series ends and the next begins in a sorted batch.

use arrow::array::{Array, RecordBatch, StringViewArray};

use crate::key_columns::KeyColumns;

/// The runs of rows with equal tags in one batch, and on demand their series keys.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    /// Where each run ends.
    ends: Vec<u32>,
    keys: Vec<u8>,
    key_ends: Vec<u32>,
}

impl Runs {
    /// The runs of a batch's series.
    pub(crate) fn new(batch: &RecordBatch, tags: KeyColumns) -> Runs {
        Runs::of(&tags.in_batch(batch), batch.num_rows())
    }

    /// The runs of rows in which all of these columns have equal values.
    pub(crate) fn of(columns: &[&StringViewArray], rows: usize) -> Runs {
        let mut runs = Runs::default();
        if rows == 0 {
            return runs;
        }
        // Equal views are equal texts; unequal ones are looked at more closely below, once per run and seldom more.
        let mut differs = vec![false; rows];
        for column in columns {
            let views: &[u128] = column.views();
            for (differs, pair) in differs[1..].iter_mut().zip(views.windows(2)) {
                *differs |= pair[0] != pair[1];
            }
            if let Some(nulls) = column.nulls() {
                for (row, differs) in differs.iter_mut().enumerate().skip(1) {
                    *differs |= nulls.is_null(row) != nulls.is_null(row - 1);
                }
            }
        }
        for (row, differs) in differs.iter().enumerate().skip(1) {
            if *differs && columns.iter().any(|c| value(c, row) != value(c, row - 1)) {
                runs.ends.push(row as u32);
            }
        }
        runs.ends.push(rows as u32);
        runs
    }

    /// The runs and their series keys.
    pub(crate) fn with_keys(batch: &RecordBatch, tags: KeyColumns) -> Runs {
        let columns = tags.in_batch(batch);
        let mut runs = Runs::of(&columns, batch.num_rows());
        for run in 0..runs.len() {
            let row = runs.start(run);
            tags.write(&mut runs.keys, &columns, row);
            runs.key_ends.push(runs.keys.len() as u32);
        }
        runs
    }

    /// How many runs.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The first row of run `i`.
    pub(crate) fn start(&self, i: usize) -> usize {
        if i == 0 { 0 } else { self.ends[i - 1] as usize }
    }

    /// The row after the last of run `i`.
    pub(crate) fn end(&self, i: usize) -> usize {
        self.ends[i] as usize
    }

    /// The series key of run `i`.
    pub(crate) fn key(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.key_ends[i - 1] as usize };
        &self.keys[start..self.key_ends[i] as usize]
    }

    /// About how many bytes of memory they take.
    pub(crate) fn bytes(&self) -> usize {
        self.keys.len() + (self.ends.len() + self.key_ends.len()) * size_of::<u32>()
    }

    /// The last run, `from` or later, whose key is before `bound`; run `from` is.
    pub(crate) fn last_before(&self, bound: &[u8], from: usize) -> usize {
        let mut step = 1;
        while from + step < self.len() && self.key(from + step) < bound {
            step *= 2;
        }
        let (mut low, mut high) = (from + step / 2, (from + step).min(self.len()));
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            if self.key(middle) < bound { low = middle } else { high = middle }
        }
        low
    }
}

fn value(column: &StringViewArray, row: usize) -> Option<&str> {
    column.is_valid(row).then(|| column.value(row))
}
