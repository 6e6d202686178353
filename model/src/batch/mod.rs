//! Points of one table on their way together, as columns, and their byte encoding.
//!
//! A [`PointBatch`] is what the parser makes, what a log record carries, what the memtable takes. Rows are in order of
//! arrival; where one row (series and time) stands twice, the later one wins field by field. Encoding is plain
//! little-endian columns with narrow integers where they fit: it is written once per batch and read once per replica,
//! so it is made for copying, not for size; files are where bytes are saved.
//!
//! ```text
//! batch    = | table u32 | schema_version u32 | rows u32 | series u32 | columns u16 | row_series_width u8 | time_width u8 |
//!            | key_bytes u32 | key_end u32 × series | keys …                  series keys, see SeriesKey
//!            | row_series u8/u16/u32 × rows                                   absent (width 0) where row i is of series i
//!            | time_min i64 | time - time_min u32/u64 × rows
//!            | column × columns
//! column   = | id u16 | type u8 | flags u8 | validity u64 × ceil(rows/64) |   validity only with flag 1 (some rows lack it)
//!            | values …
//! values   = F64: f64 × rows
//!            I64, U64: | width u8 | min u64 | value - min u8/u16/u32/u64 × rows |
//!            Bool: u64 × ceil(rows/64)
//!            Str: | bytes u32 | end u32 × rows | text … |
//! ```

mod columns;
mod encoding;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

pub use self::columns::{Bitmap, FieldColumn, Strings, Values};
use crate::ids::TableId;

/// Rows that one batch may have; a larger request becomes several.
pub const MAX_ROWS: usize = 1 << 24;

/// Points of one table on their way together.
#[derive(Clone, Debug, PartialEq)]
pub struct PointBatch {
    /// The table.
    pub table: TableId,
    /// The table's schema version that the columns were looked up in.
    pub schema_version: u32,
    /// The distinct series' keys one after the other ([`SeriesKey`](crate::SeriesKey)).
    pub keys: Vec<u8>,
    /// Where in `keys` each series' key ends.
    pub key_ends: Vec<u32>,
    /// Which series each row is of.
    pub row_series: Vec<u32>,
    /// Each row's time, nanoseconds since 1970.
    pub times: Vec<i64>,
    /// The fields, each id once. A field that no row has is left out.
    pub columns: Vec<FieldColumn>,
}

impl PointBatch {
    /// A batch without rows.
    pub fn new(table: TableId, schema_version: u32) -> PointBatch {
        PointBatch {
            table,
            schema_version,
            keys: Vec::new(),
            key_ends: Vec::new(),
            row_series: Vec::new(),
            times: Vec::new(),
            columns: Vec::new(),
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.times.len()
    }

    /// Number of distinct series.
    pub fn series(&self) -> usize {
        self.key_ends.len()
    }

    /// The key of series `i`.
    #[inline]
    pub fn key(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.key_ends[i - 1] as usize };
        &self.keys[start..self.key_ends[i] as usize]
    }

    /// Adds a series and gives its number in this batch. The caller sees to it that no key stands twice.
    pub fn push_series(&mut self, key: &[u8]) -> u32 {
        self.keys.extend_from_slice(key);
        self.key_ends.push(self.keys.len() as u32);
        (self.key_ends.len() - 1) as u32
    }

    /// The rows `start..end` as a batch of their own, with the series that they use.
    pub fn slice(&self, start: usize, end: usize) -> PointBatch {
        let mut part = PointBatch::new(self.table, self.schema_version);
        let mut renumbered = vec![u32::MAX; self.series()];
        for &series in &self.row_series[start..end] {
            let number = &mut renumbered[series as usize];
            if *number == u32::MAX {
                *number = part.push_series(self.key(series as usize));
            }
            part.row_series.push(*number);
        }
        let rows: Vec<u32> = (start as u32..end as u32).collect();
        self.fill(part, &rows).expect("a slice has rows")
    }

    /// The batch cut by the owner of each series (`owners[series]`): one part per owner that has rows, with the series that
    /// it uses renumbered; rows stay in order. One pass over the rows, however many owners there are.
    pub fn split(&self, owners: &[u32]) -> Vec<(u32, PointBatch)> {
        debug_assert_eq!(owners.len(), self.series());
        const UNSEEN: u32 = u32::MAX;
        let mut parts: Vec<(u32, PointBatch, Vec<u32>)> = Vec::new();
        let mut place_of_owner = HashMap::new();
        let mut places = vec![(UNSEEN, UNSEEN); self.series()];
        for (row, &series) in self.row_series.iter().enumerate() {
            let (place, number) = &mut places[series as usize];
            if *place == UNSEEN {
                let owner = owners[series as usize];
                *place = *place_of_owner.entry(owner).or_insert_with(|| {
                    parts.push((owner, PointBatch::new(self.table, self.schema_version), Vec::new()));
                    parts.len() as u32 - 1
                });
                *number = parts[*place as usize].1.push_series(self.key(series as usize));
            }
            let (_, part, rows) = &mut parts[*place as usize];
            part.row_series.push(*number);
            rows.push(row as u32);
        }
        parts.into_iter().filter_map(|(owner, part, rows)| self.fill(part, &rows).map(|part| (owner, part))).collect()
    }

    fn fill(&self, mut part: PointBatch, rows: &[u32]) -> Option<PointBatch> {
        if rows.is_empty() {
            return None;
        }
        part.times = rows.iter().map(|&r| self.times[r as usize]).collect();
        for column in &self.columns {
            let valid = column.valid.as_ref().map(|v| {
                let mut bits = Bitmap::default();
                rows.iter().for_each(|&r| bits.push(v.get(r as usize)));
                bits
            });
            let present = valid.as_ref().map_or(rows.len(), Bitmap::count);
            if present == 0 {
                continue;
            }
            let mut values = Values::new(column.values.kind());
            values.extend_from(&column.values, rows);
            part.columns.push(FieldColumn { id: column.id, values, valid: valid.filter(|_| present < rows.len()) });
        }
        Some(part)
    }
}
