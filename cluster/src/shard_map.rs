//! Device to shard: ranges of the routing hash, numbered by epoch.

use model::{Epoch, ShardId};
use serde::{Deserialize, Serialize};

/// One shard's range of routing hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRange {
    /// The shard.
    pub shard: ShardId,
    /// First hash.
    pub start: u64,
    /// Last hash, inclusive (the whole range ends at `u64::MAX`).
    pub last: u64,
    /// Grows when the range changes; checked when a write is applied.
    pub version: Epoch,
}

/// All shards' ranges: sorted, without gap or overlap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMap {
    /// Grows with each change.
    pub epoch: Epoch,
    /// The ranges, by start.
    pub ranges: Vec<ShardRange>,
}

impl ShardMap {
    /// `n` equal ranges.
    pub fn even(n: u32) -> ShardMap {
        assert!(n > 0, "a shard map has shards");
        let width = (u128::from(u64::MAX) + 1) / u128::from(n);
        let ranges = (0..n)
            .map(|i| ShardRange {
                shard: ShardId(i),
                start: (width * u128::from(i)) as u64,
                last: if i + 1 == n { u64::MAX } else { (width * u128::from(i + 1) - 1) as u64 },
                version: Epoch(1),
            })
            .collect();
        ShardMap { epoch: Epoch(1), ranges }
    }

    /// A shard's range.
    pub fn range_of_shard(&self, shard: ShardId) -> Option<&ShardRange> {
        self.ranges.iter().find(|range| range.shard == shard)
    }

    /// The upper part of a shard's range, from `at` on, becomes another shard's; both parts have the next version.
    pub(crate) fn split(&mut self, shard: ShardId, child: ShardId, at: u64) {
        let place = self.ranges.iter().position(|range| range.shard == shard).expect("a shard of the map is split");
        let lower = &mut self.ranges[place];
        assert!(lower.start < at && at <= lower.last, "a range is split inside");
        let upper = ShardRange { shard: child, start: at, last: lower.last, version: Epoch(lower.version.0 + 1) };
        lower.last = at - 1;
        lower.version = upper.version;
        self.ranges.insert(place + 1, upper);
        self.epoch = Epoch(self.epoch.0 + 1);
    }

    /// The range that a routing hash ([`model::routing_hash`]) lies in.
    #[inline]
    pub fn range_of(&self, hash: u64) -> &ShardRange {
        &self.ranges[self.position(hash)]
    }

    /// Which of the ranges a routing hash lies in.
    #[inline]
    pub fn position(&self, hash: u64) -> usize {
        self.ranges.partition_point(|r| r.start <= hash) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_leaves_neither_gap_nor_overlap() {
        let mut map = ShardMap::even(2);
        let at = map.ranges[1].start + 5;
        map.split(ShardId(1), ShardId(2), at);
        map.split(ShardId(0), ShardId(3), 7);
        assert_eq!(map.ranges.iter().map(|r| (r.shard.0, r.version.0)).collect::<Vec<_>>(), [(0, 2), (3, 2), (1, 2), (2, 2)]);
        assert!(map.ranges.windows(2).all(|pair| pair[0].last + 1 == pair[1].start));
        assert_eq!((map.range_of(at).shard, map.range_of(at - 1).shard, map.epoch), (ShardId(2), ShardId(1), Epoch(3)));
    }

    #[test]
    fn every_hash_has_one_shard() {
        for n in [1, 2, 3, 7, 64] {
            let map = ShardMap::even(n);
            assert_eq!(map.ranges[0].start, 0);
            assert_eq!(map.ranges.last().unwrap().last, u64::MAX);
            for pair in map.ranges.windows(2) {
                assert_eq!(pair[0].last + 1, pair[1].start);
            }
            for hash in [0, 1, u64::MAX / 2, u64::MAX / 2 + 1, u64::MAX] {
                let range = map.range_of(hash);
                assert!(range.start <= hash && hash <= range.last);
            }
        }
    }
}
