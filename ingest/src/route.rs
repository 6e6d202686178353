//! Cuts batches into one part per shard, and parts into entries that a log takes.
//!
//! A pure choice: the shard map and the routing hashes decide. A batch whose series all belong to one shard, which is
//! every batch of a single device, moves there without a copy.

use cluster::ShardMap;
use cluster::shard_map::ShardRange;
use model::PointBatch;

use crate::line_protocol::ParsedBatch;

/// Encoded bytes of one entry's batches; the rest of an entry is its header.
pub(crate) const MAX_PIECE_BYTES: usize = (1 << 20) - (16 << 10);

/// The batches of one shard.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ShardPart {
    /// The shard and its range as the map has it.
    pub(crate) range: ShardRange,
    /// A batch a table.
    pub(crate) batches: Vec<PointBatch>,
}

/// Which rows are to be routed.
#[derive(Clone, Debug)]
pub(crate) enum Rows {
    /// All of them.
    All,
    /// Those that lay in these ranges of an older map: the others are stored already.
    In(Vec<ShardRange>),
}

impl Rows {
    fn wanted(&self, hash: u64) -> bool {
        match self {
            Rows::All => true,
            Rows::In(ranges) => ranges.iter().any(|r| r.start <= hash && hash <= r.last),
        }
    }
}

/// A series that no part gets.
const NOBODY: u32 = u32::MAX;

/// One part for each shard that gets rows, in order of the map.
pub(crate) fn route(batches: Vec<ParsedBatch>, map: &ShardMap, rows: &Rows) -> Vec<ShardPart> {
    let mut parts: Vec<(u32, Vec<PointBatch>)> = Vec::new();
    for ParsedBatch { batch, hashes } in batches {
        debug_assert_eq!(batch.series(), hashes.len());
        let owner = |&hash: &u64| if rows.wanted(hash) { map.position(hash) as u32 } else { NOBODY };
        let Some(first) = hashes.first().map(owner) else { continue };
        if hashes.iter().all(|hash| owner(hash) == first) {
            if first != NOBODY {
                part_of(&mut parts, first).push(batch);
            }
            continue;
        }
        let owners: Vec<u32> = hashes.iter().map(owner).collect();
        for (owner, share) in batch.split(&owners) {
            if owner != NOBODY {
                part_of(&mut parts, owner).push(share);
            }
        }
    }
    parts.sort_by_key(|(position, _)| *position);
    parts.into_iter().map(|(position, batches)| ShardPart { range: map.ranges[position as usize].clone(), batches }).collect()
}

fn part_of(parts: &mut Vec<(u32, Vec<PointBatch>)>, position: u32) -> &mut Vec<PointBatch> {
    let at = parts.iter().position(|(p, _)| *p == position).unwrap_or_else(|| {
        parts.push((position, Vec::with_capacity(1)));
        parts.len() - 1
    });
    &mut parts[at].1
}

/// Cuts a part's batches into pieces of at most `max_bytes` when encoded, in order. A single row is never cut.
pub(crate) fn pieces(batches: Vec<PointBatch>, max_bytes: usize) -> Vec<Vec<PointBatch>> {
    let whole: usize = batches.iter().map(PointBatch::encoded_len_bound).sum();
    if whole <= max_bytes {
        return vec![batches];
    }
    let mut pieces = Vec::with_capacity(whole / max_bytes + 2);
    let mut piece = Vec::new();
    let mut piece_bytes = 0;
    for batch in batches {
        for (bytes, small) in small_batches(batch, max_bytes) {
            if piece_bytes + bytes > max_bytes && !piece.is_empty() {
                pieces.push(std::mem::take(&mut piece));
                piece_bytes = 0;
            }
            piece_bytes += bytes;
            piece.push(small);
        }
    }
    pieces.push(piece);
    pieces
}

fn small_batches(batch: PointBatch, max_bytes: usize) -> Vec<(usize, PointBatch)> {
    let bytes = batch.encoded_len_bound();
    if bytes <= max_bytes || batch.rows() == 1 {
        return vec![(bytes, batch)];
    }
    let wanted = bytes.div_ceil(max_bytes).min(batch.rows());
    let rows = batch.rows().div_ceil(wanted);
    let mut small = Vec::with_capacity(wanted);
    for start in (0..batch.rows()).step_by(rows) {
        // Rows differ in size (strings): a slice that is still too large is cut again.
        small.extend(small_batches(batch.slice(start, (start + rows).min(batch.rows())), max_bytes));
    }
    small
}

#[cfg(test)]
mod tests {
    use model::{ColumnId, DatabaseId, FieldColumn, SeriesKey, TableId, Values, routing_hash};

    use super::*;

    fn batch(table: u32, devices: &[String]) -> ParsedBatch {
        let mut batch = PointBatch::new(TableId(table), 1);
        let mut hashes = Vec::new();
        for (row, device) in devices.iter().enumerate() {
            let key = SeriesKey::new([Some(device.as_str())]);
            let series = batch.push_series(key.as_bytes());
            hashes.push(routing_hash(DatabaseId(1), key.as_bytes()));
            batch.row_series.push(series);
            batch.times.push(row as i64);
        }
        let values = Values::I64((0..devices.len() as i64).collect());
        batch.columns.push(FieldColumn { id: ColumnId(1), values, valid: None });
        ParsedBatch { batch, hashes }
    }

    fn devices(n: usize) -> Vec<String> {
        (0..n).map(|d| format!("device-{d}")).collect()
    }

    fn rows(parts: &[ShardPart]) -> Vec<(u32, i64)> {
        let mut rows: Vec<(u32, i64)> =
            parts.iter().flat_map(|p| p.batches.iter().flat_map(|b| b.times.iter().map(|&t| (b.table.0, t)))).collect();
        rows.sort_unstable();
        rows
    }

    #[test]
    fn every_row_goes_to_the_shard_of_its_device_once() {
        let names = devices(500);
        let map = ShardMap::even(7);
        let parts = route(vec![batch(1, &names), batch(2, &names[..20])], &map, &Rows::All);
        for part in &parts {
            for batch in &part.batches {
                for series in 0..batch.series() {
                    assert_eq!(map.range_of(routing_hash(DatabaseId(1), batch.key(series))), &part.range);
                }
            }
        }
        let expected: Vec<(u32, i64)> = (0..500).map(|t| (1, t)).chain((0..20).map(|t| (2, t))).collect();
        assert_eq!(rows(&parts), expected);
    }

    #[test]
    fn a_batch_of_one_shard_moves_without_a_copy() {
        let parsed = batch(1, &devices(1));
        let keys = parsed.batch.keys.as_ptr();
        let parts = route(vec![parsed], &ShardMap::even(64), &Rows::All);
        assert_eq!(parts.len(), 1);
        assert_eq!(parts[0].batches[0].keys.as_ptr(), keys);
    }

    #[test]
    fn only_rows_of_the_changed_ranges_are_routed_again() {
        let names = devices(300);
        let old = ShardMap::even(3);
        let changed = old.ranges[1].clone();
        let all = route(vec![batch(1, &names)], &old, &Rows::All);
        let again = route(vec![batch(1, &names)], &ShardMap::even(8), &Rows::In(vec![changed.clone()]));
        let of_changed = all.iter().find(|p| p.range == changed).expect("300 devices reach 3 shards");
        assert_eq!(rows(&again), rows(std::slice::from_ref(of_changed)));
    }

    #[test]
    fn pieces_keep_all_rows_in_order_within_the_limit() {
        let first = batch(1, &devices(1_000)).batch;
        let second = batch(2, &devices(10)).batch;
        let whole = first.encoded_len_bound() + second.encoded_len_bound();
        for max_bytes in [1, 100, 5_000, whole - 1, whole] {
            let pieces = pieces(vec![first.clone(), second.clone()], max_bytes);
            let times: Vec<(u32, i64)> =
                pieces.iter().flatten().flat_map(|b| b.times.iter().map(|&t| (b.table.0, t)).collect::<Vec<_>>()).collect();
            let expected: Vec<(u32, i64)> = (0..1_000).map(|t| (1, t)).chain((0..10).map(|t| (2, t))).collect();
            assert_eq!(times, expected, "{max_bytes}");
            for piece in &pieces {
                let bytes: usize = piece.iter().map(PointBatch::encoded_len_bound).sum();
                let one_row = piece.len() == 1 && piece[0].rows() == 1;
                assert!(bytes <= max_bytes || one_row, "{bytes} of {max_bytes}");
            }
        }
    }
}
