//! One record of the log as bytes.
//!
//! ```text
//! record = | length u32 | kind u8 | flags u8 | 0 u16 | term u64 | index u64 | durable_offset u64 | previous_crc u32 |
//!          | payload ... | zeros up to a multiple of 8 | crc32c u32 |
//! ```
//!
//! All numbers are little-endian. `length` is that of the 36 bytes before the payload, the payload and the checksum,
//! without the zeros; a record begins at a multiple of 8. The checksum is seeded with the segment's random epoch and
//! covers every byte before it, so that a record of the segment's earlier life is not taken for one of this life.
//! `previous_crc` is the checksum of the record before it: a lost or swapped block in the middle breaks the chain.
//! `durable_offset` is how far this segment was known durable when the record was written: a reader that finds a bad
//! record before that offset knows that it is damage and not a torn tail.
//!
//! A mark (kind 128) has no index and no payload; it only carries a newer `durable_offset`.
//!
//! [`decode`] is given any bytes and never panics; whether the record fits its neighbours is the reader's question.

use std::fmt;

use model::{LogIndex, Term};

/// Bytes before the payload.
pub const HEAD_BYTES: usize = 36;
/// Bytes of the checksum.
pub const CRC_BYTES: usize = 4;
/// The largest payload: far above an entry's 1 MiB, small enough that a length says something.
pub const MAX_PAYLOAD_BYTES: usize = 16 * 1024 * 1024;
/// The kind of a mark; callers use 1 ..= 127.
pub const MARK: u8 = 128;
/// A whole mark.
pub const MARK_BYTES: usize = size(0);

/// Bytes that a record with this payload takes in a segment.
pub const fn size(payload_bytes: usize) -> usize {
    (HEAD_BYTES + payload_bytes + CRC_BYTES).next_multiple_of(8)
}

/// The checksum's first value for a segment.
pub fn seed(epoch: u64) -> u32 {
    crc32c::crc32c(&epoch.to_le_bytes())
}

/// The fields before the payload, without the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The caller's kind, or [`MARK`].
    pub kind: u8,
    /// The term; 0 in a mark.
    pub term: Term,
    /// The index; 0 in a mark.
    pub index: LogIndex,
    /// How far the segment was durable when this was written.
    pub durable_offset: u64,
    /// The checksum of the record before this one.
    pub previous_crc: u32,
}

impl Head {
    /// The bytes before the payload.
    pub fn encode(&self, payload_bytes: usize) -> [u8; HEAD_BYTES] {
        let length = (HEAD_BYTES + payload_bytes + CRC_BYTES) as u32;
        let mut out = [0; HEAD_BYTES];
        out[0..4].copy_from_slice(&length.to_le_bytes());
        out[4] = self.kind;
        out[8..16].copy_from_slice(&self.term.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.index.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.durable_offset.to_le_bytes());
        out[32..36].copy_from_slice(&self.previous_crc.to_le_bytes());
        out
    }
}

/// A record found in bytes; its checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// The fields before the payload.
    pub head: Head,
    /// The payload.
    pub payload: &'a [u8],
    /// The checksum, which the next record repeats.
    pub crc: u32,
    /// Bytes that the record takes, a multiple of 8.
    pub size: usize,
}

impl Decoded<'_> {
    /// Whether it is a mark.
    pub fn is_mark(&self) -> bool {
        self.head.kind == MARK
    }
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotARecord {
    /// The length is 0: nothing was written here yet.
    Empty,
    /// The length cannot be, or is not all here.
    Length(u32),
    /// A kind, flag or reserved byte that no version has written.
    Field,
    /// The checksum is another one.
    Checksum,
    /// A whole record, but not the one that follows its predecessor.
    Chain,
}

impl fmt::Display for NotARecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotARecord::Empty => f.write_str("zeros where a record was"),
            NotARecord::Length(length) => write!(f, "a record of impossible length {length}"),
            NotARecord::Field => f.write_str("a record of unknown kind"),
            NotARecord::Checksum => f.write_str("the checksum does not match"),
            NotARecord::Chain => f.write_str("a record that does not follow the one before it"),
        }
    }
}

/// The bytes that the record at the start of `bytes` takes, by its length alone: how much to read before [`decode`].
pub fn peek_size(bytes: &[u8]) -> Result<usize, NotARecord> {
    let length = bytes.first_chunk::<4>().map_or(0, |b| u32::from_le_bytes(*b));
    match length as usize {
        0 => Err(NotARecord::Empty),
        l if (HEAD_BYTES + CRC_BYTES..=HEAD_BYTES + CRC_BYTES + MAX_PAYLOAD_BYTES).contains(&l) => Ok(l.next_multiple_of(8)),
        _ => Err(NotARecord::Length(length)),
    }
}

/// The record at the start of `bytes`, of a segment with this [`seed`].
pub fn decode(bytes: &[u8], seed: u32) -> Result<Decoded<'_>, NotARecord> {
    let size = peek_size(bytes)?;
    let length = read_u32(bytes, 0);
    let Some(record) = bytes.get(..size) else { return Err(NotARecord::Length(length)) };
    let head = decode_head(record);
    let kind_is_known = (1..=MARK).contains(&head.kind);
    if !kind_is_known || record[5..8] != [0; 3] {
        return Err(NotARecord::Field);
    }
    let crc = read_u32(record, size - CRC_BYTES);
    if crc32c::crc32c_append(seed, &record[..size - CRC_BYTES]) != crc {
        return Err(NotARecord::Checksum);
    }
    Ok(Decoded { head, payload: &record[HEAD_BYTES..length as usize - CRC_BYTES], crc, size })
}

/// The fields of what may be a record, before its checksum was looked at; `bytes` has at least [`HEAD_BYTES`].
pub(super) fn decode_head(bytes: &[u8]) -> Head {
    Head {
        kind: bytes[4],
        term: Term(read_u64(bytes, 8)),
        index: LogIndex(read_u64(bytes, 16)),
        durable_offset: read_u64(bytes, 24),
        previous_crc: read_u32(bytes, 32),
    }
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A whole record as bytes; the log itself stores the pieces without putting them together first.
pub fn encode(head: &Head, payload: &[u8], seed: u32) -> Vec<u8> {
    let size = size(payload.len());
    let mut out = Vec::with_capacity(size);
    out.extend_from_slice(&head.encode(payload.len()));
    out.extend_from_slice(payload);
    out.resize(size - CRC_BYTES, 0);
    let crc = crc32c::crc32c_append(seed, &out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: Head = Head { kind: 7, term: Term(3), index: LogIndex(41), durable_offset: 4096, previous_crc: 0xfeed };

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(payload: Vec<u8>, epoch: u64, kind in 1..=MARK, term: u64, index: u64, durable_offset: u64) {
            let head = Head { kind, term: Term(term), index: LogIndex(index), durable_offset, previous_crc: 9 };
            let mut bytes = encode(&head, &payload, seed(epoch));
            prop_assert_eq!(bytes.len(), size(payload.len()));
            prop_assert_eq!(bytes.len() % 8, 0);
            bytes.extend_from_slice(b"what follows");
            let decoded = decode(&bytes, seed(epoch)).unwrap();
            prop_assert_eq!(decoded.head, head);
            prop_assert_eq!(decoded.payload, &payload[..]);
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(bytes: Vec<u8>, seed: u32) {
            let _ = decode(&bytes, seed);
        }

        #[test]
        fn bytes_that_begin_like_a_record_are_decoded_without_a_panic(length in 0u32..200, rest: Vec<u8>, seed: u32) {
            let bytes = [&length.to_le_bytes()[..], &[1, 0, 0, 0], &rest].concat();
            prop_assert!(decode(&bytes, seed).is_err());
        }
    }

    #[test]
    fn every_turned_bit_is_noticed() {
        let good = encode(&HEAD, b"thirteen byte", seed(5));
        for byte in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[byte] ^= 1 << bit;
                assert!(decode(&bad, seed(5)).is_err(), "byte {byte} bit {bit}");
            }
        }
    }

    #[test]
    fn a_record_of_another_epoch_is_none() {
        let bytes = encode(&HEAD, b"payload", seed(5));
        assert_eq!(decode(&bytes, seed(6)), Err(NotARecord::Checksum));
    }

    #[test]
    fn the_layout_is_the_one_that_is_drawn() {
        let bytes = encode(&HEAD, b"abc", seed(1));
        assert_eq!(
            bytes[..36],
            [43, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 41, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0xed, 0xfe, 0, 0]
        );
        assert_eq!(&bytes[36..44], b"abc\0\0\0\0\0".get(..8).unwrap());
        assert_eq!(bytes.len(), 48);
    }
}
