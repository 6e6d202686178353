//! The series of one table: their keys, by number, and the numbers by key.

use std::sync::Arc;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

/// Series per block of keys.
const BLOCK: usize = 256;

/// The keys of up to 256 series, one after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyBlock {
    keys: Vec<u8>,
    ends: Vec<u32>,
}

impl KeyBlock {
    fn key(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        &self.keys[start..self.ends[i] as usize]
    }
}

/// The key of a series.
pub(super) fn key(blocks: &[Arc<KeyBlock>], number: u32) -> &[u8] {
    blocks[number as usize / BLOCK].key(number as usize % BLOCK)
}

/// Finds a series' number by its key's hash, verified by the key's bytes.
#[derive(Debug, Default)]
pub(super) struct SeriesIndex {
    slots: HashTable<(u64, u32)>,
}

impl SeriesIndex {
    /// The number of the series with this key and whether it is new; a new key is added to `blocks`.
    pub(super) fn find_or_add(&mut self, blocks: &mut Vec<Arc<KeyBlock>>, bytes: &[u8]) -> (u32, bool) {
        let hash = xxh3_64(bytes);
        if let Some(&(_, number)) = self.slots.find(hash, |&(h, number)| h == hash && key(blocks, number) == bytes) {
            return (number, false);
        }
        let number = self.slots.len() as u32;
        self.slots.insert_unique(hash, (hash, number), |&(h, _)| h);
        if (number as usize).is_multiple_of(BLOCK) {
            blocks.push(Arc::default());
        }
        // Copies at most one block when a reader holds it.
        let last = Arc::make_mut(blocks.last_mut().expect("there is one"));
        last.keys.extend_from_slice(bytes);
        last.ends.push(last.keys.len() as u32);
        (number, true)
    }
}
