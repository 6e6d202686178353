//! Decides which row groups and pages of a file a scan must read.
//!
//! From the footer's statistics alone. It may keep too many rows, which costs time; it never drops one that matches
//! (`tests/parquet_file.rs` compares with reading everything). Only time and tags prune: what a field says counts only
//! after the merge (DESIGN rule 1). No IO here.

use std::ops::{Range, RangeInclusive};

use parquet::arrow::arrow_reader::RowSelection;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::statistics::Statistics;

use crate::scan::TagFilter;

/// What a scan wants, with columns as positions in the file.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// Rows outside are not wanted.
    pub(crate) times: RangeInclusive<i64>,
    /// Where time is.
    pub(crate) time_leaf: usize,
    /// Where each filtered tag is. Tags that the file lacks are settled before.
    pub(crate) tags: Vec<(usize, &'a TagFilter)>,
}

/// The row groups that may hold wanted rows.
pub(crate) fn row_groups(meta: &ParquetMetaData, wanted: &Wanted<'_>) -> Vec<usize> {
    (0..meta.num_row_groups()).filter(|&i| may_match(meta.row_group(i), wanted)).collect()
}

fn may_match(group: &RowGroupMetaData, wanted: &Wanted<'_>) -> bool {
    let time = match group.column(wanted.time_leaf).statistics() {
        Some(Statistics::Int64(s)) => match (s.min_opt(), s.max_opt()) {
            (Some(min), Some(max)) => min <= wanted.times.end() && max >= wanted.times.start(),
            _ => true,
        },
        _ => true,
    };
    time && wanted.tags.iter().all(|(leaf, filter)| match group.column(*leaf).statistics() {
        Some(statistics) => {
            tag_may_match(filter, statistics.min_bytes_opt(), statistics.max_bytes_opt(), statistics.null_count_opt().is_none_or(|n| n > 0))
        }
        None => true,
    })
}

/// `min` and `max` may be cut short; then they are a lower and an upper bound, which is all that is needed.
fn tag_may_match(filter: &TagFilter, min: Option<&[u8]>, max: Option<&[u8]>, has_null: bool) -> bool {
    filter.values.iter().any(|value| match (value, min, max) {
        (None, ..) => has_null,
        (Some(value), Some(min), Some(max)) => min <= value.as_bytes() && value.as_bytes() <= max,
        (Some(_), ..) => true,
    })
}

/// The rows of `groups` that lie in pages which may match, one behind the other; `None` if every page must be read.
pub(crate) fn pages(meta: &ParquetMetaData, groups: &[usize], wanted: &Wanted<'_>) -> Option<RowSelection> {
    let (columns, offsets) = (meta.column_index()?, meta.offset_index()?);
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let (mut before, mut all) = (0, true);
    for &group in groups {
        let rows = meta.row_group(group).num_rows() as usize;
        let mut kept: Vec<Range<usize>> = std::iter::once(0..rows).collect();
        let leaves = std::iter::once((wanted.time_leaf, None)).chain(wanted.tags.iter().map(|(leaf, filter)| (*leaf, Some(*filter))));
        for (leaf, filter) in leaves {
            let (Some(index), Some(offset)) = (columns[group].get(leaf), offsets[group].get(leaf)) else { continue };
            let starts: Vec<usize> = offset.page_locations().iter().map(|p| p.first_row_index as usize).collect();
            let matching = (0..starts.len()).filter(|&page| page_may_match(index, page, wanted, filter));
            let matching = matching.map(|page| starts[page]..starts.get(page + 1).copied().unwrap_or(rows));
            kept = intersect(&kept, &join(matching));
        }
        all &= kept.len() == 1 && kept[0] == (0..rows);
        ranges.extend(kept.into_iter().map(|r| r.start + before..r.end + before));
        before += rows;
    }
    (!all).then(|| RowSelection::from_consecutive_ranges(ranges.into_iter(), before))
}

fn page_may_match(index: &ColumnIndexMetaData, page: usize, wanted: &Wanted<'_>, filter: Option<&TagFilter>) -> bool {
    match (index, filter) {
        (ColumnIndexMetaData::INT64(index), None) => match (index.min_value(page), index.max_value(page)) {
            (Some(min), Some(max)) => min <= wanted.times.end() && max >= wanted.times.start(),
            _ => true,
        },
        (ColumnIndexMetaData::BYTE_ARRAY(index), Some(filter)) => {
            let has_null = index.null_count(page).is_none_or(|n| n > 0);
            if index.is_null_page(page) {
                return filter.values.iter().any(Option::is_none);
            }
            tag_may_match(filter, index.min_value(page), index.max_value(page), has_null)
        }
        _ => true,
    }
}

/// Joins neighbours.
fn join(ranges: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

/// The rows that are in both; both are in order.
fn intersect(a: &[Range<usize>], b: &[Range<usize>]) -> Vec<Range<usize>> {
    let (mut i, mut j) = (0, 0);
    let mut both = Vec::new();
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        let (start, end) = (x.start.max(y.start), x.end.min(y.end));
        if start < end {
            both.push(start..end);
        }
        if x.end < y.end {
            i += 1;
        } else {
            j += 1;
        }
    }
    both
}

#[cfg(test)]
mod tests {
    use model::ColumnId;

    use super::*;

    #[test]
    fn ranges_intersect_and_join() {
        assert_eq!(intersect(&[0..10, 20..30], &[5..25, 29..40]), [5..10, 20..25, 29..30]);
        assert_eq!(join([0..2, 2..4, 6..7].into_iter()), [0..4, 6..7]);
        assert!(intersect(&[0..5, 9..10], &[]).is_empty());
    }

    #[test]
    fn a_tag_is_kept_where_its_value_may_stand() {
        let filter =
            |values: &[Option<&str>]| TagFilter { column: ColumnId(0), values: values.iter().map(|v| v.map(str::to_owned)).collect() };
        /// Wanted values, smallest, largest, whether rows lack the tag, whether to keep.
        type Case = (&'static [Option<&'static str>], Option<&'static str>, Option<&'static str>, bool, bool);
        let cases: [Case; 7] = [
            (&[Some("b")], Some("a"), Some("c"), false, true),
            (&[Some("a"), Some("z")], Some("b"), Some("c"), false, false),
            (&[Some("c")], Some("a"), Some("c"), true, true),
            (&[None], Some("a"), Some("c"), true, true),
            (&[None], Some("a"), Some("c"), false, false),
            (&[Some("b")], None, None, false, true),
            (&[], Some("a"), Some("c"), true, false),
        ];
        for (values, min, max, has_null, expected) in cases {
            let bytes = |v: Option<&'static str>| v.map(str::as_bytes);
            assert_eq!(tag_may_match(&filter(values), bytes(min), bytes(max), has_null), expected, "{values:?} in {min:?}..={max:?}");
        }
    }
}
