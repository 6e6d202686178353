//! The frame around a body that is written whole: manifest and snapshot.
//!
//! ```text
//! framed = | magic, 8 bytes | format u32 | 0 u32 | body length u64 | xxh3-64 of everything else u64 | body |   little-endian
//! ```
//!
//! The frame is the same in every format to come, so a whole file of a newer one is told from a damaged one: the checksum is
//! looked at first, then the number.

use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use crate::{Error, Result};

/// Bytes before the body.
pub(crate) const HEADER_BYTES: usize = 32;

/// What is framed, and the newest format that this program knows; it reads those before, too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) magic: &'static [u8; 8],
    pub(crate) format: u32,
    /// For errors: `a manifest`.
    pub(crate) name: &'static str,
}

/// The body in its frame. A format before the newest is for what an older program can read as well.
pub(crate) fn encode(kind: Kind, format: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(kind.magic);
    bytes.extend_from_slice(&format.to_le_bytes());
    bytes.extend_from_slice(&0u32.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    let sum = checksum(&bytes, body);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// The body, if all bytes are as they were written; `path` is for the error.
pub(crate) fn decode<'a>(kind: Kind, path: &Path, bytes: &'a [u8]) -> Result<&'a [u8]> {
    let corrupt = |at: usize, what: String| Error::Corrupt { path: path.to_owned(), at: at as u64, what };
    if bytes.len() < HEADER_BYTES {
        return Err(corrupt(bytes.len(), "the header is cut short".to_owned()));
    }
    let (head, body) = bytes.split_at(HEADER_BYTES);
    if &head[..8] != kind.magic {
        return Err(corrupt(0, format!("this is not {}", kind.name)));
    }
    let length = u64::from_le_bytes(head[16..24].try_into().expect("eight bytes"));
    if length != body.len() as u64 {
        return Err(corrupt(16, format!("the body has {} bytes and should have {length}", body.len())));
    }
    if checksum(&head[..24], body).to_le_bytes() != head[24..] {
        return Err(corrupt(24, "the checksum does not match".to_owned()));
    }
    let format = u32::from_le_bytes(head[8..12].try_into().expect("four bytes"));
    if !(1..=kind.format).contains(&format) {
        return Err(Error::NewerFormat { path: path.to_owned(), found: format, known: kind.format });
    }
    Ok(body)
}

fn checksum(head: &[u8], body: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(head);
    hash.update(body);
    hash.digest()
}

/// For tests: gives framed bytes another format number, and the checksum that goes with it.
#[cfg(test)]
pub(crate) fn set_format(bytes: &mut [u8], format: u32) {
    bytes[8..12].copy_from_slice(&format.to_le_bytes());
    let sum = checksum(&bytes[..24], &bytes[HEADER_BYTES..]);
    bytes[24..32].copy_from_slice(&sum.to_le_bytes());
}
