//! What one entry of a shard's log says, and its bytes.
//!
//! Applying the same entries in the same order gives the same state on every replica. The numbers of delete and erase
//! entries are reserved here so that no older program can take them for something else.
//!
//! ```text
//! entry     = | format u8 = 1 | kind u8 | body |                             all numbers little-endian
//! kind        1 write, 2 seal, 3 manifest, 4 retention, 5 drop table, 8 split, 9 split done, 10 range; 11 packed manifest; reserved: 6 delete, 7 erase
//! write     = | parts u32 | part … |
//! part      = | origin u128 | sequence u64 | arrived i64 | range_version u64 | retry_window u8 | batches u32 | batch … |
//! batch     = see model::batch
//! seal      = nothing
//! manifest  = | JSON of a ManifestEdit |                                   up to 8 MiB of it
//! packed    = | bytes of the JSON u32 | the JSON under zstd |               beyond
//! retention = | database u32 | cutoff i64 |
//! drop      = | table u32 |
//! split     = | child u32 | start u64 | at u64 | last u64 | version u64 |     see crate::range
//! done      = | child u32 |
//! range     = | start u64 | last u64 | version u64 |
//! ```

use std::io::Read;

use bytes::Bytes;
use model::{DatabaseId, DecodeError, Epoch, PointBatch, ShardId, TableId, Timestamp};

use crate::manifest::ManifestEdit;
use crate::range::{HashRange, Split};

/// Bytes that one entry may have when encoded; larger parts become several.
pub const MAX_ENTRY_BYTES: usize = 1 << 20;

/// One entry of a shard's log.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// Points of one or more requests that arrived together.
    Write(Vec<WritePart>),
    /// Every replica closes its memtable here.
    Seal,
    /// Files become live, others leave (DESIGN rule 4).
    Manifest(ManifestEdit),
    /// Rows of a database older than this are gone.
    Retention {
        /// The database.
        database: DatabaseId,
        /// The first instant that is kept.
        cutoff: Timestamp,
    },
    /// All rows of a table written before this entry are gone.
    DropTable {
        /// The table.
        table: TableId,
    },
    /// The shard's range becomes two (DESIGN rules 2 and 7). Every replica closes its memtable here.
    Split(Split),
    /// The shard keeps these routing hashes from here on, by the word of the shard map: it lost the entry that said so, or all
    /// that it had (`cluster recover`). Every replica closes its memtable here. No effect where the version is not newer.
    Range(HashRange),
    /// The shard that was split off keeps its rows on a majority of its own: this one need not any more.
    SplitDone {
        /// The shard that was split off.
        child: ShardId,
    },
}

/// One request's points for this shard.
#[derive(Clone, Debug, PartialEq)]
pub struct WritePart {
    /// Who numbers `sequence`: the ingest node's uuid, or the hash of a client's `Idempotency-Key`.
    pub origin: u128,
    /// The request's number at its origin; a repeat is answered with the first outcome.
    pub sequence: u64,
    /// When the request arrived (the leader's clock): bounds how long the outcome is remembered.
    pub arrived: Timestamp,
    /// The version of the shard's range by which the points were routed here.
    pub range_version: Epoch,
    /// How long a repeat is known as one.
    pub retry_window: RetryWindow,
    /// The points, a batch a table.
    pub batches: Vec<PointBatch>,
}

/// How long the outcome of a part is remembered, so that a repeat of it is answered and not stored again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RetryWindow {
    /// For the seconds in which an ingest node may send it again.
    Recent = 0,
    /// For 24 hours: the client gave it an `Idempotency-Key`.
    Day = 1,
}

/// What became of one [`WritePart`] or other entry; the same on every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The points are in the memtable.
    Stored {
        /// Rows of the part.
        rows: u32,
    },
    /// Nothing was stored: the shard's range has changed since the points were routed; route them again.
    WrongRange {
        /// The shard's range version now.
        current: Epoch,
    },
    /// Nothing was stored: a table of it was dropped before. Whoever sent it knew of a table that is no more.
    Dropped,
    /// The entry had effect (seal, manifest, retention, drop, split).
    Done,
    /// A manifest edit that no longer fits (its start is not the flushed index, or an input is gone), or a split of a range
    /// that is another by now: no effect.
    Ignored,
}

const FORMAT: u8 = 1;
const WRITE: u8 = 1;
const SEAL: u8 = 2;
const MANIFEST: u8 = 3;
const RETENTION: u8 = 4;
const DROP_TABLE: u8 = 5;
const SPLIT: u8 = 8;
const SPLIT_DONE: u8 = 9;
const RANGE: u8 = 10;
const PACKED_MANIFEST: u8 = 11;

/// Bytes of an edit's JSON from which it is packed: a flush of many tables has to fit in one record of the log.
const PACK_BYTES: usize = 8 << 20;
/// Bytes that a packed edit may have when it is unpacked, whatever it says.
const MAX_UNPACKED_BYTES: usize = 256 << 20;

/// The bytes of [`Entry::Write`] with these parts, which stay whose they are.
pub fn encode_write(parts: &[WritePart], out: &mut Vec<u8>) {
    out.push(FORMAT);
    out.push(WRITE);
    out.extend_from_slice(&(parts.len() as u32).to_le_bytes());
    for part in parts {
        out.extend_from_slice(&part.origin.to_le_bytes());
        out.extend_from_slice(&part.sequence.to_le_bytes());
        out.extend_from_slice(&part.arrived.0.to_le_bytes());
        out.extend_from_slice(&part.range_version.0.to_le_bytes());
        out.push(part.retry_window as u8);
        out.extend_from_slice(&(part.batches.len() as u32).to_le_bytes());
        part.batches.iter().for_each(|batch| batch.encode(out));
    }
}

impl Entry {
    /// Appends the entry's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        if let Entry::Write(parts) = self {
            return encode_write(parts, out);
        }
        out.push(FORMAT);
        match self {
            Entry::Write(_) => unreachable!("done above"),
            Entry::Seal => out.push(SEAL),
            Entry::Manifest(edit) => {
                let json = serde_json::to_vec(edit).expect("an edit is plain data, written to memory");
                if json.len() <= PACK_BYTES {
                    out.push(MANIFEST);
                    out.extend_from_slice(&json);
                } else {
                    let bytes = u32::try_from(json.len()).expect("an edit has less than 4 GiB");
                    out.push(PACKED_MANIFEST);
                    out.extend_from_slice(&bytes.to_le_bytes());
                    out.extend_from_slice(&zstd::bulk::compress(&json, 1).expect("zstd compresses in memory"));
                }
            }
            Entry::Retention { database, cutoff } => {
                out.push(RETENTION);
                out.extend_from_slice(&database.0.to_le_bytes());
                out.extend_from_slice(&cutoff.0.to_le_bytes());
            }
            Entry::DropTable { table } => {
                out.push(DROP_TABLE);
                out.extend_from_slice(&table.0.to_le_bytes());
            }
            Entry::Split(split) => {
                out.push(SPLIT);
                out.extend_from_slice(&split.child.0.to_le_bytes());
                for number in [split.start, split.at, split.last, split.version.0] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            }
            Entry::Range(range) => {
                out.push(RANGE);
                for number in [range.start, range.last, range.version.0] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            }
            Entry::SplitDone { child } => {
                out.push(SPLIT_DONE);
                out.extend_from_slice(&child.0.to_le_bytes());
            }
        }
    }

    /// Reads an entry back. Never panics on foreign bytes.
    pub fn decode(bytes: &Bytes) -> Result<Entry, DecodeError> {
        let mut cursor = Cursor { bytes, at: 0 };
        if cursor.take::<1>("entry format")? != [FORMAT] {
            return Err(DecodeError { what: "entry format (a newer alluvium wrote it)", at: 0 });
        }
        let [kind] = cursor.take::<1>("entry kind")?;
        let entry = match kind {
            WRITE => Entry::Write(cursor.parts()?),
            SEAL => Entry::Seal,
            MANIFEST => return edit(&bytes[cursor.at..], cursor.at),
            PACKED_MANIFEST => {
                let unpacked = cursor.unpacked()?;
                return edit(&unpacked, cursor.at);
            }
            RETENTION => Entry::Retention {
                database: DatabaseId(u32::from_le_bytes(cursor.take("database")?)),
                cutoff: Timestamp(i64::from_le_bytes(cursor.take("cutoff")?)),
            },
            DROP_TABLE => Entry::DropTable { table: TableId(u32::from_le_bytes(cursor.take("table")?)) },
            SPLIT => Entry::Split(Split {
                child: ShardId(u32::from_le_bytes(cursor.take("child")?)),
                start: u64::from_le_bytes(cursor.take("start of the range")?),
                at: u64::from_le_bytes(cursor.take("place of the split")?),
                last: u64::from_le_bytes(cursor.take("end of the range")?),
                version: Epoch(u64::from_le_bytes(cursor.take("range version")?)),
            }),
            RANGE => Entry::Range(HashRange {
                start: u64::from_le_bytes(cursor.take("start of the range")?),
                last: u64::from_le_bytes(cursor.take("end of the range")?),
                version: Epoch(u64::from_le_bytes(cursor.take("range version")?)),
            }),
            SPLIT_DONE => Entry::SplitDone { child: ShardId(u32::from_le_bytes(cursor.take("child")?)) },
            _ => return Err(DecodeError { what: "entry kind (a newer alluvium wrote it)", at: 1 }),
        };
        match cursor.at == bytes.len() {
            true => Ok(entry),
            false => Err(DecodeError { what: "entry's end", at: cursor.at }),
        }
    }
}

/// The entry of an edit's JSON, which stands at byte `at` of it, packed or not.
fn edit(json: &[u8], at: usize) -> Result<Entry, DecodeError> {
    serde_json::from_slice(json).map(Entry::Manifest).map_err(|_| DecodeError { what: "manifest edit", at })
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let taken = self.bytes.get(self.at..self.at + N).ok_or(DecodeError { what, at: self.at })?;
        self.at += N;
        Ok(taken.try_into().expect("as long as asked"))
    }

    /// The JSON of a packed edit, which reaches to the entry's end.
    fn unpacked(&mut self) -> Result<Vec<u8>, DecodeError> {
        let bytes = u32::from_le_bytes(self.take("size of a manifest edit")?) as usize;
        let bad = DecodeError { what: "packed manifest edit", at: self.at };
        if bytes > MAX_UNPACKED_BYTES {
            return Err(bad);
        }
        // Room is made as bytes come, not by what foreign bytes say, and never for more than they say and one.
        let mut json = Vec::new();
        let decoder = zstd::Decoder::with_buffer(&self.bytes[self.at..]).map_err(|_| bad.clone())?;
        decoder.take(bytes as u64 + 1).read_to_end(&mut json).map_err(|_| bad.clone())?;
        if json.len() == bytes { Ok(json) } else { Err(bad) }
    }

    fn parts(&mut self) -> Result<Vec<WritePart>, DecodeError> {
        let count = u32::from_le_bytes(self.take("parts")?);
        // Not reserved by what foreign bytes say: each part has bytes of its own.
        let mut parts = Vec::with_capacity((count as usize).min(self.bytes.len() / 45));
        for _ in 0..count {
            let origin = u128::from_le_bytes(self.take("origin")?);
            let sequence = u64::from_le_bytes(self.take("sequence")?);
            let arrived = Timestamp(i64::from_le_bytes(self.take("arrival")?));
            let range_version = Epoch(u64::from_le_bytes(self.take("range version")?));
            let retry_window = match self.take::<1>("retry window")? {
                [0] => RetryWindow::Recent,
                [1] => RetryWindow::Day,
                _ => return Err(DecodeError { what: "retry window", at: self.at - 1 }),
            };
            let batches = u32::from_le_bytes(self.take("batches")?);
            let mut part = WritePart { origin, sequence, arrived, range_version, retry_window, batches: Vec::new() };
            for _ in 0..batches {
                let start = self.at;
                let inside = |e: DecodeError| DecodeError { what: e.what, at: start + e.at };
                let (batch, len) = PointBatch::decode(&self.bytes[start..]).map_err(inside)?;
                self.at += len;
                part.batches.push(batch);
            }
            parts.push(part);
        }
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use model::{ColumnId, FieldColumn, SeriesKey, Values};
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::FileMeta;
    use crate::wal::record::MAX_PAYLOAD_BYTES;

    fn write() -> Entry {
        let mut batch = PointBatch::new(TableId(9), 2);
        let series = batch.push_series(SeriesKey::new([Some("phone-1"), None, Some("eu")]).as_bytes());
        batch.row_series = vec![series; 2];
        batch.times = vec![1_000, 2_000];
        batch.columns = vec![FieldColumn { id: ColumnId(3), values: Values::I64(vec![5, -5]), valid: None }];
        let part = WritePart {
            origin: 1 << 100,
            sequence: 4,
            arrived: Timestamp(5),
            range_version: Epoch(6),
            retry_window: RetryWindow::Day,
            batches: vec![batch.clone(), batch],
        };
        Entry::Write(vec![part.clone(), WritePart { batches: Vec::new(), retry_window: RetryWindow::Recent, ..part }])
    }

    fn split() -> Split {
        Split { child: ShardId(9), start: 1, at: 1 << 40, last: u64::MAX, version: Epoch(2) }
    }

    /// An edit of a flush of so many tables, whose names and keys are long and have little in common.
    fn flush_of(tables: u32) -> Entry {
        let files = (0..tables).map(|table| {
            let [a, b] = [2 * table, 2 * table + 1].map(|n| xxhash_rust::xxh3::xxh3_128(&n.to_le_bytes()));
            let name = format!("{a:032x}{b:032x}").repeat(3);
            let key = |n: u128| (0..16u128).flat_map(|i| (n.wrapping_mul(2 * i + 3)).to_le_bytes()).collect::<Vec<u8>>();
            FileMeta {
                path: format!("parquet/fleet/{name}/day=2026-11-23/0-1-9-{b:032x}-{table}.parquet"),
                table: TableId(table),
                checksum: a as u64,
                tail_checksum: b as u64,
                min_key: key(a),
                max_key: key(b),
                ..crate::manifest::tests::file("f", 1, 1..=9)
            }
        });
        let (end, term) = (model::LogIndex(9), model::Term(3));
        Entry::Manifest(ManifestEdit::Flush { start: None, end, term, files: files.collect(), replica: model::ReplicaId(7) })
    }

    fn all() -> Vec<Entry> {
        let edit = ManifestEdit::Compact { inputs: vec!["a".into()], outputs: Vec::new(), replica: model::ReplicaId(7) };
        vec![
            write(),
            Entry::Seal,
            Entry::Manifest(edit),
            Entry::Retention { database: DatabaseId(1), cutoff: Timestamp(-2) },
            Entry::DropTable { table: TableId(3) },
            Entry::Split(split()),
            Entry::SplitDone { child: ShardId(9) },
            Entry::Range(split().upper()),
        ]
    }

    fn bytes_of(entry: &Entry) -> Vec<u8> {
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        bytes
    }

    #[test]
    fn decode_gives_back_what_was_encoded() {
        for entry in all() {
            assert_eq!(Entry::decode(&bytes_of(&entry).into()), Ok(entry));
        }
    }

    #[test]
    fn a_cut_or_longer_entry_is_an_error() {
        for entry in all() {
            let bytes = bytes_of(&entry);
            for cut in 0..bytes.len() {
                assert!(Entry::decode(&Bytes::copy_from_slice(&bytes[..cut])).is_err(), "{entry:?} cut at {cut}");
            }
            let longer = [bytes.as_slice(), b"x"].concat();
            assert!(Entry::decode(&longer.into()).is_err(), "{entry:?}");
        }
    }

    #[test]
    fn an_edit_of_very_many_files_is_packed_and_fits_in_a_record_of_the_log() {
        let entry = flush_of(12_000);
        let Entry::Manifest(edit) = &entry else { unreachable!() };
        let json = serde_json::to_vec(edit).unwrap();
        assert!(json.len() > MAX_PAYLOAD_BYTES, "{} bytes need not be packed", json.len());
        let bytes = Bytes::from(bytes_of(&entry));
        assert!(bytes.len() < MAX_PAYLOAD_BYTES, "{} bytes", bytes.len());
        assert_eq!(Entry::decode(&bytes), Ok(entry));
        // As older programs wrote it.
        let plain = [&[FORMAT, MANIFEST][..], &json].concat();
        assert_eq!(Entry::decode(&plain.into()), Entry::decode(&bytes));
    }

    #[test]
    fn a_packed_edit_is_no_larger_than_it_says_and_never_larger_than_the_limit() {
        let entry = flush_of(8_000);
        let whole = bytes_of(&entry);
        assert_eq!(whole[..2], [FORMAT, PACKED_MANIFEST]);
        let json = u32::from_le_bytes(whole[2..6].try_into().unwrap());
        for said in [0, json - 1, json + 1, u32::MAX] {
            let lying = [&whole[..2], &said.to_le_bytes(), &whole[6..]].concat();
            assert!(Entry::decode(&lying.into()).is_err(), "{said} instead of {json} bytes");
        }
        for cut in [2, 5, 6, 7, whole.len() / 2, whole.len() - 1] {
            assert!(Entry::decode(&Bytes::copy_from_slice(&whole[..cut])).is_err(), "cut at {cut}");
        }
        let longer = [whole.as_slice(), b"x"].concat();
        assert!(Entry::decode(&longer.into()).is_err());
        let bomb = zstd::bulk::compress(&vec![b' '; MAX_UNPACKED_BYTES + 1], 1).unwrap();
        let bomb = [&[FORMAT, PACKED_MANIFEST][..], &(MAX_UNPACKED_BYTES as u32 + 1).to_le_bytes(), &bomb].concat();
        assert!(Entry::decode(&bomb.into()).is_err());
    }

    #[test]
    fn what_a_newer_program_wrote_is_refused_and_not_taken_for_something_else() {
        for reserved in [0, 6, 7, 12, 255] {
            assert!(Entry::decode(&Bytes::copy_from_slice(&[FORMAT, reserved])).is_err());
        }
        assert!(Entry::decode(&Bytes::from_static(&[2, SEAL])).is_err());
    }

    #[test]
    fn the_bytes_are_the_ones_that_older_logs_hold() {
        let hex = |entry: &Entry| bytes_of(entry).iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(&Entry::Seal), "0102");
        assert_eq!(hex(&Entry::Retention { database: DatabaseId(1), cutoff: Timestamp(-2) }), "010401000000feffffffffffffff");
        assert_eq!(hex(&Entry::DropTable { table: TableId(3) }), "010503000000");
        let split_bytes = "010809000000010000000000000000000000000100".to_owned() + "00ffffffffffffffff0200000000000000";
        assert_eq!(hex(&Entry::Split(split())), split_bytes);
        assert_eq!(hex(&Entry::SplitDone { child: ShardId(9) }), "010909000000");
        assert_eq!(hex(&Entry::Range(split().upper())), "010a0000000000010000ffffffffffffffff0300000000000000");
        let part = WritePart {
            origin: 1,
            sequence: 2,
            arrived: Timestamp(3),
            range_version: Epoch(4),
            retry_window: RetryWindow::Day,
            batches: Vec::new(),
        };
        let expected = "010101000000010000000000000000000000000000000200000000000000030000000000000004000000000000000100000000";
        assert_eq!(hex(&Entry::Write(vec![part])), expected);
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), known in any::<bool>()) {
            if known && bytes.len() > 1 {
                bytes[0] = FORMAT;
                bytes[1] %= 13;
            }
            let _ = Entry::decode(&bytes.into());
        }

        #[test]
        fn damaged_entries_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = bytes_of(&write());
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Entry::decode(&bytes.into());
        }
    }
}
