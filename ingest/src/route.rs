//! Cuts batches into one part per shard.
//!
//! A pure choice: the shard map and the routing hashes decide. A batch whose series all belong to one shard, which is
//! every batch of a single device, moves there without a copy.

use cluster::ShardMap;
use cluster::shard_map::ShardRange;
use model::PointBatch;

use crate::line_protocol::ParsedBatch;

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
}
