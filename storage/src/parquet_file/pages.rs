//! A checksum for every page of a Parquet file.
//!
//! Parquet's own page checksums are optional and the library does not write them, so each file carries a table of them
//! between its last row group and its page indexes, where other readers skip it. The footer's key `alluvium.pages` says at
//! which byte it begins. Every page is checked each time it is read, so a query that needs three pages of a large file pays
//! for three pages, and a flipped bit is an error with a place and never an answer.
//!
//! ```text
//! table = | "ALLUPAGE" | format u32 | count u32 | page × count | xxh3-64 of everything before it u64 |
//! page  = | offset u64 | length u32 | xxh3-64 u64 |      in order of offset, without gaps inside a row group; little-endian
//! ```

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use crate::Error;

/// Format number of the table, and so of the file around it: Parquet's own version says nothing about our part.
const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"ALLUPAGE";
const PAGE_BYTES: usize = 20;
const FRAME_BYTES: usize = 8 + 4 + 4 + 8;

/// The key in the footer that says where the table begins.
pub(crate) const KEY: &str = "alluvium.pages";

/// One page's place and checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// Its first byte in the file.
    pub(crate) offset: u64,
    /// Its bytes, header included.
    pub(crate) len: u32,
    /// xxh3-64 of them.
    pub(crate) sum: u64,
}

impl Unreadable {
    /// The error of a file whose table stands at `at`.
    pub(crate) fn in_file(self, path: &Path, at: u64) -> Error {
        match self {
            Unreadable::Damaged(what) => Error::Corrupt { path: path.to_owned(), at, what: what.to_owned() },
            Unreadable::NewerFormat(found) => Error::NewerFormat { path: path.to_owned(), found, known: FORMAT },
        }
    }
}

/// The table's bytes.
pub(crate) fn encode(pages: &[Page]) -> Vec<u8> {
    let mut out = Vec::with_capacity(FRAME_BYTES + pages.len() * PAGE_BYTES);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&(pages.len() as u32).to_le_bytes());
    for page in pages {
        out.extend_from_slice(&page.offset.to_le_bytes());
        out.extend_from_slice(&page.len.to_le_bytes());
        out.extend_from_slice(&page.sum.to_le_bytes());
    }
    let sum = xxh3_64(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

/// Why a table cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// What does not fit.
    Damaged(&'static str),
    /// Its format number.
    NewerFormat(u32),
}

/// Reads the table from the start of `bytes`.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Page>, Unreadable> {
    const CUT: Unreadable = Unreadable::Damaged("the table of page checksums is cut short");
    let head = bytes.get(..16).ok_or(CUT)?;
    if &head[..8] != MAGIC {
        return Err(Unreadable::Damaged("the table of page checksums does not begin where the footer says"));
    }
    let format = u32_at(head, 8);
    if format != FORMAT {
        return Err(Unreadable::NewerFormat(format));
    }
    let count = u32_at(head, 12) as usize;
    let end = count.checked_mul(PAGE_BYTES).map(|n| n + 16).filter(|&n| n + 8 <= bytes.len());
    let end = end.ok_or(CUT)?;
    if xxh3_64(&bytes[..end]) != u64_at(bytes, end) {
        return Err(Unreadable::Damaged("the checksum of the table of page checksums does not match"));
    }
    let page = |at: usize| Page { offset: u64_at(bytes, at), len: u32_at(bytes, at + 8), sum: u64_at(bytes, at + 12) };
    Ok((0..count).map(|i| page(16 + i * PAGE_BYTES)).collect())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_pages_comes_back_and_any_flipped_bit_is_noticed() {
        let pages: Vec<Page> = (0..5).map(|i| Page { offset: 4 + i * 100, len: 100, sum: i * 77 }).collect();
        let bytes = encode(&pages);
        assert_eq!(decode(&bytes), Ok(pages));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "{len} bytes");
        }
    }
}
