//! Series that lines have named: raw `table,tag=value…` text of a line to its key, hash and table.
//!
//! A series that is known costs one hash and one comparison; its tags are not looked at. The same tags in another order
//! or with other escapes are another text but the same series, so an entry names the first one with its key. Numbers
//! within a batch are kept here too, stamped with the body they belong to.
//!
//! During a body nothing is forgotten, for a key must not stand twice in a batch; between bodies the bounds hold.

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

/// Series kept between bodies.
const MAX_SERIES: usize = 64 * 1024;
/// Bytes of texts and keys kept between bodies.
const MAX_BYTES: usize = 16 << 20;

/// One raw text.
struct Entry {
    text_hash: u64,
    /// Where its key is in `bytes`.
    key_start: u32,
    key_len: u32,
    /// The first entry with the same table and key, often itself.
    first: u32,
    table: u32,
    /// Its part of the table's rows in body `body`, and its number there.
    part: u32,
    number: u32,
    body: u64,
    routing_hash: u64,
    key_hash: u64,
}

/// An entry and where its text starts, together so that neither waits for the other to come from memory.
#[derive(Clone, Copy)]
struct Text {
    start: u32,
    entry: u32,
}

/// The series that a parser remembers.
#[derive(Default)]
pub(super) struct Series {
    entries: Vec<Entry>,
    /// Each text, the space behind it, and its key.
    bytes: Vec<u8>,
    by_text: HashTable<Text>,
    by_key: HashTable<u32>,
}

impl Series {
    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Series::default();
    }

    /// Keeps the bounds; called between bodies.
    pub(super) fn bound(&mut self) {
        if self.entries.len() > MAX_SERIES || self.bytes.len() > MAX_BYTES {
            self.clear();
        }
    }

    /// The entry of the raw text that ends with the last byte but one of `text`; the last is the space behind it.
    ///
    /// With its space no text is the start of another, for that space is unescaped: so lengths need not be compared.
    #[inline]
    pub(super) fn find(&self, text: &[u8]) -> Option<usize> {
        debug_assert_eq!(text.last(), Some(&b' '));
        let hash = xxh3_64(text);
        let found = self.by_text.find(hash, |t| self.bytes[t.start as usize..].starts_with(text))?;
        Some(self.entries[found.entry as usize].first as usize)
    }

    /// Remembers a raw text, with its space, that is not known yet; gives the entry that stands for its series.
    pub(super) fn add(&mut self, text: &[u8], table: usize, key: &[u8], routing_hash: u64) -> usize {
        let entry = self.entries.len() as u32;
        let (text_hash, key_hash) = (xxh3_64(text), xxh3_64(key));
        let known = self.by_key.find(key_hash, |&i| {
            let entry = &self.entries[i as usize];
            entry.key_hash == key_hash && entry.table == table as u32 && self.key(i as usize) == key
        });
        let first = known.copied().unwrap_or(entry);
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(text);
        let (key_start, key_len) = (self.bytes.len() as u32, key.len() as u32);
        self.bytes.extend_from_slice(key);
        let table = table as u32;
        self.entries.push(Entry { text_hash, key_start, key_len, first, table, part: 0, number: 0, body: 0, routing_hash, key_hash });
        let entries = &self.entries;
        self.by_text.insert_unique(text_hash, Text { start, entry }, |t| entries[t.entry as usize].text_hash);
        if first == entry {
            self.by_key.insert_unique(key_hash, entry, |&i| entries[i as usize].key_hash);
        }
        first as usize
    }

    /// The table that entry `i` belongs to.
    #[inline]
    pub(super) fn table(&self, i: usize) -> usize {
        self.entries[i].table as usize
    }

    /// The key and routing hash of entry `i`.
    #[inline]
    pub(super) fn key_and_hash(&self, i: usize) -> (&[u8], u64) {
        (self.key(i), self.entries[i].routing_hash)
    }

    /// The routing hash of entry `i`.
    #[inline]
    pub(super) fn routing_hash(&self, i: usize) -> u64 {
        self.entries[i].routing_hash
    }

    /// The part of its table's rows of body `body` that entry `i` stands in and its number there, if it has them.
    #[inline]
    pub(super) fn place(&self, i: usize, body: u64) -> Option<(usize, u32)> {
        let entry = &self.entries[i];
        (entry.body == body).then_some((entry.part as usize, entry.number))
    }

    /// Gives entry `i` its place in body `body`.
    #[inline]
    pub(super) fn set_place(&mut self, i: usize, body: u64, (part, number): (usize, u32)) {
        let entry = &mut self.entries[i];
        (entry.body, entry.part, entry.number) = (body, part as u32, number);
    }

    #[inline]
    fn key(&self, i: usize) -> &[u8] {
        let entry = &self.entries[i];
        &self.bytes[entry.key_start as usize..][..entry.key_len as usize]
    }
}
