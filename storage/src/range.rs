//! Which routing hashes a shard keeps, and how such a range becomes two.
//!
//! A split is one entry of the shard's log. From there on the shard keeps the lower half, refuses what was routed by the
//! older version of its range, and hides the rows of the upper half, which older memtables and files still hold. These rows
//! are the new shard's: once they are in files, [`SplitOff`] is all that it begins with.

use model::{Epoch, LogIndex, ShardId};
use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;

/// A range of routing hashes ([`model::routing_hash`]) and its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashRange {
    /// First hash.
    pub start: u64,
    /// Last hash, inclusive.
    pub last: u64,
    /// Grows with each split; what was routed by another version is refused.
    pub version: Epoch,
}

/// The version of a range that was never split. Its ends do not matter: all that is in the shard was routed to it.
pub(crate) const FIRST_VERSION: Epoch = Epoch(1);

impl Default for HashRange {
    fn default() -> HashRange {
        HashRange { start: 0, last: u64::MAX, version: FIRST_VERSION }
    }
}

impl HashRange {
    /// Whether a routing hash lies in it.
    #[inline]
    pub fn contains(&self, hash: u64) -> bool {
        (self.start..=self.last).contains(&hash)
    }

    pub(crate) fn was_never_split(&self) -> bool {
        self.version == FIRST_VERSION
    }

    /// Whether what was written under this version of the range may hold rows of others.
    pub(crate) fn is_narrower_than(&self, version: Epoch) -> bool {
        version < self.version
    }
}

/// One range becomes two: the shard keeps `start..at`, a new one gets `at..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// The new shard.
    pub child: ShardId,
    /// First hash of the range.
    pub start: u64,
    /// First hash of the new shard.
    pub at: u64,
    /// Last hash of the range, inclusive.
    pub last: u64,
    /// The version of the range that is split; both halves have the next one.
    pub version: Epoch,
}

impl Split {
    /// Whether a range can be split so.
    pub(crate) fn fits(&self, range: &HashRange) -> bool {
        let same = range.was_never_split() || (range.start, range.last) == (self.start, self.last);
        self.version == range.version && same && self.start < self.at && self.at <= self.last
    }

    /// What the shard keeps.
    pub fn lower(&self) -> HashRange {
        HashRange { start: self.start, last: self.at - 1, version: Epoch(self.version.0 + 1) }
    }

    /// What the new shard gets.
    pub fn upper(&self) -> HashRange {
        HashRange { start: self.at, last: self.last, version: Epoch(self.version.0 + 1) }
    }
}

/// What a new shard begins with: the state at the split, all of it in files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitOff {
    /// The new shard.
    pub child: ShardId,
    /// Its first manifest, with the membership of the shard that it was split from. Its log goes on behind the split's index.
    pub(crate) manifest: Manifest,
}

impl SplitOff {
    /// The index of the split.
    pub fn index(&self) -> LogIndex {
        self.manifest.flushed.map(|(_, index)| index).unwrap_or_default()
    }

    /// The membership that was in force at the split, opaque here.
    pub fn membership(&self) -> &[u8] {
        &self.manifest.membership
    }

    /// The new shard's range.
    pub fn range(&self) -> HashRange {
        self.manifest.range
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_meet_and_have_the_next_version() {
        let split = Split { child: ShardId(3), start: 10, at: 15, last: 20, version: Epoch(4) };
        assert_eq!(split.lower(), HashRange { start: 10, last: 14, version: Epoch(5) });
        assert_eq!(split.upper(), HashRange { start: 15, last: 20, version: Epoch(5) });
        let range = HashRange { start: 10, last: 20, version: Epoch(4) };
        assert!(split.fits(&range));
        for wrong in [
            Split { at: 10, ..split },
            Split { at: 21, ..split },
            Split { start: 9, ..split },
            Split { last: 21, ..split },
            Split { version: Epoch(3), ..split },
        ] {
            assert!(!wrong.fits(&range), "{wrong:?}");
        }
        assert!(Split { version: Epoch(1), ..split }.fits(&HashRange::default()), "a shard that was never split learns its ends");
    }
}
