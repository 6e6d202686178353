//! What one entry of a shard's log says, and its bytes.
//!
//! Applying the same entries in the same order gives the same state on every replica. The numbers of delete, erase and
//! split entries are reserved here so that no older program can take them for something else.

use bytes::Bytes;
use model::{DatabaseId, DecodeError, Epoch, PointBatch, TableId, Timestamp};

use crate::manifest::ManifestEdit;

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
    /// The points, a batch a table.
    pub batches: Vec<PointBatch>,
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
    /// The entry had effect (seal, manifest, retention, drop).
    Done,
    /// A manifest edit that no longer fits (its start is not the flushed index, or an input is gone): no effect.
    Ignored,
}

impl Entry {
    /// Appends the entry's bytes.
    pub fn encode(&self, _out: &mut Vec<u8>) {
        unimplemented!("storage-memtable owner")
    }

    /// Reads an entry back. Never panics on foreign bytes.
    pub fn decode(_bytes: &Bytes) -> Result<Entry, DecodeError> {
        unimplemented!("storage-memtable owner")
    }
}
