//! A shard's state at its flushed index, as bytes: for a replica that lacks it.
//!
//! It holds what replay cannot give back once the log before the flushed index is gone: which files are live and in which
//! order, the membership, the answers to repeats, cutoffs and drops. The rows are in the files, which travel apart and must
//! be there before a snapshot is [installed](crate::Shard::install). It never holds what is only in memory (DESIGN rule 5).
//!
//! ```text
//! snapshot = | "ALLUSNAP" | format u32 = 1, 2 once split | 0 u32 | body length u64 | xxh3-64 of everything else u64 | body |   [`crate::frame`]
//! body     = the Manifest as JSON, without `dropped_files` and with `version` 0: both are about one disk
//! ```

use std::path::Path;
use std::sync::Arc;

use model::{LogIndex, Term};

use crate::frame;
use crate::manifest::{FileMeta, Manifest};
use crate::retries::Retries;
use crate::{Error, Result};

const KIND: frame::Kind = frame::Kind { magic: b"ALLUSNAP", format: 2, name: "a snapshot" };
/// What errors call it: it has no path.
const NAME: &str = "a snapshot";

/// The state at the flushed index. One that was taken here keeps its files on disk until it is dropped.
#[derive(Clone, Debug)]
pub struct Snapshot {
    manifest: Manifest,
    files: Vec<FileMeta>,
    retries: Retries,
    _pins: Vec<Arc<FileMeta>>,
}

impl Snapshot {
    pub(crate) fn new(mut manifest: Manifest, pins: Vec<Arc<FileMeta>>) -> Result<Snapshot> {
        let retries = Retries::decode(&manifest.retries).map_err(|e| Error::Corrupt {
            path: NAME.into(),
            at: e.at as u64,
            what: format!("its retry table has a {e}"),
        })?;
        manifest.dropped_files.clear();
        manifest.version = 0;
        let files = manifest.files.values().cloned().collect();
        Ok(Snapshot { manifest, files, retries, _pins: pins })
    }

    /// The bytes drawn in the module's header.
    pub fn encode(&self) -> Vec<u8> {
        frame::encode(KIND, self.manifest.format(), &serde_json::to_vec(&self.manifest).expect("a manifest is plain data"))
    }

    /// Reads them back. Never panics on foreign bytes.
    pub fn decode(bytes: &[u8]) -> Result<Snapshot> {
        let path = Path::new(NAME);
        Snapshot::new(Manifest::parse(path, frame::decode(KIND, path, bytes)?)?, Vec::new())
    }

    /// The flushed index and its term; `None`: nothing was flushed yet, and the log has everything.
    pub fn flushed(&self) -> Option<(Term, LogIndex)> {
        self.manifest.flushed
    }

    /// The membership that was in force at the flushed index, opaque here.
    pub fn membership(&self) -> &[u8] {
        &self.manifest.membership
    }

    /// The files that hold the rows, in order of their paths.
    pub fn files(&self) -> &[FileMeta] {
        &self.files
    }

    pub(crate) fn into_parts(self) -> (Manifest, Retries) {
        (self.manifest, self.retries)
    }
}

#[cfg(test)]
mod tests {
    use model::Epoch;
    use model::Timestamp;

    use super::*;
    use crate::entry::{RetryWindow, WritePart};
    use crate::manifest::tests::file;

    fn snapshot() -> Snapshot {
        let mut retries = Retries::default();
        let part = WritePart {
            origin: 7,
            sequence: 8,
            arrived: Timestamp(9),
            range_version: Epoch(1),
            retry_window: RetryWindow::Day,
            batches: Vec::new(),
        };
        retries.stored(&part, 3);
        let mut manifest = Manifest {
            flushed: Some((Term(2), LogIndex(9))),
            as_of: Some(LogIndex(12)),
            membership: vec![1, 0, 255],
            retries: retries.encode(),
            ..Manifest::default()
        };
        for file in [file("a", 1, 0..=4), file("b", 1, 5..=9)] {
            manifest.files.insert(file.path.clone(), file);
        }
        manifest.cutoffs.insert(1, -5);
        manifest.dropped.insert(4, 11);
        manifest.dropped_files.insert("parquet/x/y/late/gone.parquet".to_owned());
        Snapshot::new(manifest, Vec::new()).unwrap()
    }

    #[test]
    fn a_snapshot_comes_back_without_what_is_about_the_senders_disk() {
        let sent = snapshot();
        let got = Snapshot::decode(&sent.encode()).unwrap();
        assert_eq!(got.manifest, sent.manifest);
        assert!(got.manifest.dropped_files.is_empty());
        assert_eq!((got.flushed(), got.membership()), (Some((Term(2), LogIndex(9))), [1, 0, 255].as_slice()));
        assert_eq!(got.files(), [file("a", 1, 0..=4), file("b", 1, 5..=9)]);
    }

    #[test]
    fn any_flipped_bit_or_cut_is_refused() {
        let bytes = snapshot().encode();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Snapshot::decode(&damaged), Err(Error::Corrupt { .. })), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(matches!(Snapshot::decode(&bytes[..len]), Err(Error::Corrupt { .. })), "{len} bytes");
        }
    }

    #[test]
    fn a_newer_format_is_refused_by_both_numbers() {
        let mut bytes = snapshot().encode();
        frame::set_format(&mut bytes, 3);
        let error = Snapshot::decode(&bytes).unwrap_err();
        assert!(matches!(error, Error::NewerFormat { found: 3, known: 2, .. }), "{error}");
    }

    #[test]
    fn a_snapshot_that_names_a_file_outside_of_the_shard_is_refused() {
        let mut manifest = snapshot().manifest;
        let outside = FileMeta { path: "parquet/../../x.parquet".to_owned(), ..file("a", 1, 0..=1) };
        manifest.files.insert(outside.path.clone(), outside);
        let bytes = frame::encode(KIND, 1, &serde_json::to_vec(&manifest).unwrap());
        assert!(matches!(Snapshot::decode(&bytes), Err(Error::Corrupt { .. })));
    }

    #[test]
    fn a_kept_snapshot_of_format_1_is_read() {
        let kept = include_bytes!("../tests/fixtures/snapshot-1");
        assert_eq!(Snapshot::decode(kept).unwrap().manifest, snapshot().manifest);
    }
}
