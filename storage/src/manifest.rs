//! Which files are live, in which order, and the log index that they reach.
//!
//! A manifest is a value: edits are pure functions, applied alike by every replica, and say which files left. On disk it is
//! one file, written whole to `MANIFEST.new`, synced and renamed, so that it is either the old or the new one. The old one
//! is not kept: the log before the flushed index is gone by then, and an older manifest would open a shard that silently
//! lacks rows. A damaged manifest is named and refused; the shard is restored from a replica or a backup.
//!
//! ```text
//! MANIFEST = | "ALLUMANI" | format u32 = 1, 2 once split | 0 u32 | body length u64 | xxh3-64 of everything else u64 | body |   [`crate::frame`]
//! body     = the Manifest as JSON, readable by people in an emergency: tail -c +33 MANIFEST
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use model::{DatabaseId, Epoch, LogIndex, ReplicaId, TableId, Term, Timestamp};
use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::frame::{self, HEADER_BYTES};
use crate::range::{FIRST_VERSION, HashRange, SplitOff};
use crate::{Error, Result};

/// The file's name in its shard's folder.
pub const FILE: &str = "MANIFEST";
/// Its name until it is whole and durable; one left over by a crash means nothing.
pub const NEW_FILE: &str = "MANIFEST.new";
const KIND: frame::Kind = frame::Kind { magic: b"ALLUMANI", format: 2, name: "a manifest" };

/// One live Parquet file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMeta {
    /// Path below the shard's folder: `parquet/<db>/<table>/day=YYYY-MM-DD/<file>.parquet`.
    pub path: String,
    /// The database.
    pub database: DatabaseId,
    /// The table.
    pub table: TableId,
    /// The UTC day since 1970 that its rows lie in; `None` for a `late/` file of several days.
    pub day: Option<i32>,
    /// The days of a `late/` file, in order; empty for a file of one day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<i32>,
    /// How many compactions its rows have been through; 0 after a flush.
    pub level: u8,
    /// First log index whose rows it may hold: with `to` its place in the order of writes.
    pub from: LogIndex,
    /// Last log index whose rows it may hold.
    pub to: LogIndex,
    /// Rows in it; each row identity stands once.
    pub rows: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// xxh3-64 of all its bytes.
    pub checksum: u64,
    /// Bytes of its tail: everything behind the last row group, read at once when it is opened.
    pub tail_bytes: u64,
    /// xxh3-64 of the tail.
    pub tail_checksum: u64,
    /// Oldest row, nanoseconds since 1970.
    pub min_time: i64,
    /// Newest row.
    pub max_time: i64,
    /// No series key in it comes before this one: the smallest, or how that begins.
    #[serde(with = "hex")]
    pub min_key: Vec<u8>,
    /// No series key in it comes after this one: the largest, or a shorter one beyond it.
    #[serde(with = "hex")]
    pub max_key: Vec<u8>,
    /// The table's schema version that it was written with.
    pub schema_version: u32,
    /// The version of the shard's range that it was written under: with an older one than the shard's it may hold rows
    /// of other shards, which are left out when it is read.
    #[serde(default = "first_version", skip_serializing_if = "is_first_version")]
    pub range_version: Epoch,
}

fn first_version() -> Epoch {
    FIRST_VERSION
}

fn is_first_version(version: &Epoch) -> bool {
    *version == FIRST_VERSION
}

impl FileMeta {
    /// Whether it may hold rows of this day.
    pub fn has_day(&self, day: i32) -> bool {
        match self.day {
            Some(own) => own == day,
            None => self.days.binary_search(&day).is_ok(),
        }
    }

    /// The days that it holds rows of, in order.
    pub fn days(&self) -> &[i32] {
        match &self.day {
            Some(day) => std::slice::from_ref(day),
            None => &self.days,
        }
    }

    /// Whether its path stays below the shard's folder: a file that came from elsewhere is written there.
    pub(crate) fn is_inside(&self) -> bool {
        let mut parts = self.path.split('/');
        parts.next() == Some(crate::parquet_file::names::FOLDER)
            && self.path.ends_with(".parquet")
            && parts.all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0']))
    }
}

/// A change of the set of live files; proposed through the log, applied by every replica alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ManifestEdit {
    /// Sealed memtables became files. Applies only if `start` is the flushed index.
    Flush {
        /// The flushed index before; `None` if nothing was flushed yet.
        start: Option<LogIndex>,
        /// The seal's index: the flushed index after.
        end: LogIndex,
        /// The seal's term.
        term: Term,
        /// The new files; may be none.
        files: Vec<FileMeta>,
        /// Who wrote them.
        replica: ReplicaId,
    },
    /// Files became fewer files. Applies only if all `inputs` are live.
    Compact {
        /// Paths of the files that leave.
        inputs: Vec<String>,
        /// The files that take their place; none if every row was expired.
        outputs: Vec<FileMeta>,
        /// Who wrote them.
        replica: ReplicaId,
    },
}

impl ManifestEdit {
    /// The files that it brings.
    pub fn files(&self) -> &[FileMeta] {
        match self {
            ManifestEdit::Flush { files, .. } => files,
            ManifestEdit::Compact { outputs, .. } => outputs,
        }
    }
}

/// The live files of one shard as of its flushed index, with what must be restored beside them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Everything up to and including this log index is in files (or had no rows). `None`: nothing yet.
    pub flushed: Option<(Term, LogIndex)>,
    /// Live files by path.
    pub files: BTreeMap<String, FileMeta>,
    /// Files that retention or DROP TABLE took out: not read any more, kept on disk for a day by [`crate::parquet_file::Leaving`].
    #[serde(default)]
    pub dropped_files: BTreeSet<String>,
    /// The last log entry whose effect on files, cutoffs and drops is in here: it may lie behind the flushed index, and the
    /// log that is replayed from there changes nothing of them up to it. `None`: an older program saved it, whose replay
    /// relied on edits that have no effect the second time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<LogIndex>,
    /// Retention cutoffs by database.
    pub cutoffs: BTreeMap<u32, i64>,
    /// Tables dropped, with the log index of the drop.
    pub dropped: BTreeMap<u32, u64>,
    /// openraft's membership as of the flushed index, opaque here.
    #[serde(with = "hex")]
    pub membership: Vec<u8>,
    /// The retry table as of the flushed index, opaque here ([`crate::retries`]).
    #[serde(with = "hex")]
    pub retries: Vec<u8>,
    /// The routing hashes that the shard keeps, as of the flushed index.
    #[serde(default, skip_serializing_if = "HashRange::was_never_split")]
    pub range: HashRange,
    /// What was split off and is not yet kept by a shard of its own. Nothing is compacted meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Box<SplitOff>>,
    /// The entry by which the last split ended: no split up to it has effect when the log is replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_done: Option<LogIndex>,
    /// Grows with each save.
    pub version: u64,
}

impl Manifest {
    /// Applies an edit if it fits (DESIGN rule 4) and gives the files that left; `None`: it does not fit and has no effect.
    ///
    /// A flush fits only if it starts at the flushed index, a compaction only if all its inputs are live and no split is on
    /// its way, whose new shard begins with exactly these files on all replicas. Both must name files inside the shard's
    /// folder that are not live yet.
    pub fn apply_edit(&mut self, edit: &ManifestEdit) -> Option<Vec<FileMeta>> {
        if edit.files().iter().any(|f| !f.is_inside() || self.files.contains_key(&f.path)) {
            return None;
        }
        match edit {
            ManifestEdit::Flush { start, end, term, files, .. } => {
                let flushed = self.flushed.map(|(_, index)| index);
                if flushed != *start || flushed.is_some_and(|index| *end <= index) {
                    return None;
                }
                self.flushed = Some((*term, *end));
                self.files.extend(files.iter().map(|f| (f.path.clone(), f.clone())));
                Some(Vec::new())
            }
            ManifestEdit::Compact { inputs, outputs, .. } => {
                if inputs.is_empty() || self.split.is_some() || !inputs.iter().all(|path| self.files.contains_key(path)) {
                    return None;
                }
                let left = inputs.iter().filter_map(|path| self.files.remove(path)).collect();
                self.files.extend(outputs.iter().map(|f| (f.path.clone(), f.clone())));
                Some(left)
            }
        }
    }

    /// Takes out the files whose rows are all older than the cutoff and gives them. Rows of files that reach over the
    /// cutoff are hidden by scans and leave with the next compaction of their file.
    pub fn expire(&mut self, database: DatabaseId, cutoff: Timestamp) -> Vec<FileMeta> {
        let known = self.cutoffs.entry(database.0).or_insert(i64::MIN);
        *known = cutoff.0.max(*known);
        let cutoff = *known;
        self.drop_files(|file| file.database == database && file.max_time < cutoff)
    }

    /// Takes out the files of a table dropped at `at` and gives them.
    pub fn drop_table(&mut self, table: TableId, at: LogIndex) -> Vec<FileMeta> {
        self.dropped.insert(table.0, at.0);
        self.drop_files(|file| file.table == table && file.from <= at)
    }

    fn drop_files(&mut self, gone: impl Fn(&FileMeta) -> bool) -> Vec<FileMeta> {
        let paths: Vec<String> = self.files.values().filter(|f| gone(f)).map(|f| f.path.clone()).collect();
        self.dropped_files.extend(paths.iter().cloned());
        paths.iter().filter_map(|path| self.files.remove(path)).collect()
    }

    /// Of the Parquet files found in the shard's folder (paths below it), those that nothing names: leftovers of a crash
    /// or of an edit that did not apply.
    pub fn orphans<'a>(&self, found: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
        found.into_iter().filter(|path| !self.files.contains_key(*path) && !self.dropped_files.contains(*path)).collect()
    }

    /// Reads the shard's manifest; `None` if there is none yet.
    pub fn load(disk: &dyn Disk, dir: &Path) -> Result<Option<Manifest>> {
        let path = dir.join(FILE);
        let bytes = match disk.read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", path, error)),
        };
        Manifest::decode(&path, &bytes).map(Some)
    }

    /// Makes this the shard's manifest, durably. A failure leaves the one before in place.
    pub fn save(&mut self, disk: &dyn Disk, dir: &Path) -> Result<()> {
        self.version += 1;
        let (new, path) = (dir.join(NEW_FILE), dir.join(FILE));
        let bytes = self.encode();
        let written = write_new(disk, &new, &bytes);
        if let Err(error) = written {
            // What is on disk under this name is unknown and nothing names it: the next save starts with a new file.
            let _ = disk.remove(&new);
            return Err(error);
        }
        disk.rename(&new, &path).map_err(|e| Error::io("rename", &new, e))?;
        disk.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        frame::encode(KIND, self.format(), &serde_json::to_vec(self).expect("a manifest is plain data"))
    }

    /// 2 where a program that knows only 1 would show rows of other shards, or forget a shard that is coming into being.
    pub(crate) fn format(&self) -> u32 {
        if self.range.was_never_split() && self.split.is_none() { 1 } else { 2 }
    }

    /// Reads the file's bytes; `path` is for the error.
    pub fn decode(path: &Path, bytes: &[u8]) -> Result<Manifest> {
        Manifest::parse(path, frame::decode(KIND, path, bytes)?)
    }

    /// Reads the JSON behind a frame; `path` is for the error.
    pub(crate) fn parse(path: &Path, body: &[u8]) -> Result<Manifest> {
        let corrupt = |what: String| Error::Corrupt { path: path.to_owned(), at: HEADER_BYTES as u64, what };
        let manifest: Manifest = serde_json::from_slice(body).map_err(|e| corrupt(format!("the body does not parse: {e}")))?;
        if let Some((path, file)) = manifest.files.iter().find(|(path, file)| **path != file.path || !file.is_inside()) {
            return Err(corrupt(format!("the file {path} is listed as {}", file.path)));
        }
        Ok(manifest)
    }
}

fn write_new(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    match disk.remove(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("remove", path, error)),
    }
    let mut file = disk.create(path).map_err(|e| Error::io("create", path, e))?;
    file.write_all(bytes).map_err(|e| Error::io("write", path, e))?;
    // A failed sync says nothing about what is on disk, but nothing names this file yet: it is removed and written anew.
    file.sync().map_err(|e| Error::io("sync", path, e))
}

/// A manifest found under a data directory.
#[derive(Debug)]
pub struct Found {
    /// The shard's folder.
    pub dir: PathBuf,
    /// What its manifest says, or why it cannot be read.
    pub manifest: Result<Manifest>,
}

/// Every manifest at or below `dir`, for people who inspect a data directory; reads nothing else.
pub fn find(disk: &dyn Disk, dir: &Path) -> Result<Vec<Found>> {
    /// Folders between a data directory and a shard's folder, with room to spare.
    const DEPTH: usize = 4;
    let mut found = Vec::new();
    let mut level = vec![dir.to_owned()];
    for depth in 0..=DEPTH {
        let mut below = Vec::new();
        for folder in level {
            let names = match disk.list(&folder) {
                Ok(names) => names,
                Err(error) if depth == 0 => return Err(Error::io("list", folder, error)),
                // A file, which has no names in it.
                Err(_) => continue,
            };
            let names: Vec<PathBuf> = names.iter().filter_map(|name| Some(folder.join(name.file_name()?))).collect();
            if names.iter().any(|path| path.file_name().is_some_and(|n| n == FILE)) {
                let manifest = Manifest::load(disk, &folder).map(Option::unwrap_or_default);
                found.push(Found { dir: folder, manifest });
            } else {
                below.extend(names);
            }
        }
        level = below;
    }
    Ok(found)
}

/// Bytes as text in JSON, a third of the size of a list of numbers.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let text: String = bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect();
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|d| d as u8).ok_or(D::Error::custom("not a hexadecimal digit"));
        if !text.len().is_multiple_of(2) {
            return Err(D::Error::custom("an odd number of hexadecimal digits"));
        }
        text.as_bytes().chunks_exact(2).map(|pair| Ok(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::ops::RangeInclusive;

    use super::*;
    use crate::disk::FaultyDisk;

    /// A file of table 1 with 100 rows on one day.
    pub(crate) fn file(name: &str, day: i32, span: RangeInclusive<u64>) -> FileMeta {
        let start = i64::from(day) * Timestamp::DAY;
        FileMeta {
            path: format!("parquet/default/phone/day={day}/{name}.parquet"),
            database: DatabaseId(1),
            table: TableId(1),
            day: Some(day),
            days: Vec::new(),
            level: 0,
            from: LogIndex(*span.start()),
            to: LogIndex(*span.end()),
            rows: 100,
            bytes: 1_000,
            checksum: u64::MAX,
            tail_bytes: 100,
            tail_checksum: 3,
            min_time: start,
            max_time: start + Timestamp::DAY - 1,
            min_key: b"\x01a\x00\x00".to_vec(),
            max_key: b"\x01b\xff\x00\x00".to_vec(),
            schema_version: 2,
            range_version: FIRST_VERSION,
        }
    }

    fn flush(start: Option<u64>, end: u64, files: Vec<FileMeta>) -> ManifestEdit {
        ManifestEdit::Flush { start: start.map(LogIndex), end: LogIndex(end), term: Term(3), files, replica: ReplicaId(u128::MAX) }
    }

    fn compact(inputs: &[&FileMeta], outputs: Vec<FileMeta>) -> ManifestEdit {
        ManifestEdit::Compact { inputs: inputs.iter().map(|f| f.path.clone()).collect(), outputs, replica: ReplicaId(1) }
    }

    fn with_two_files() -> (Manifest, FileMeta, FileMeta) {
        let (a, b) = (file("a", 1, 0..=4), file("b", 1, 5..=9));
        let mut manifest = Manifest::default();
        assert_eq!(manifest.apply_edit(&flush(None, 4, vec![a.clone()])), Some(vec![]));
        assert_eq!(manifest.apply_edit(&flush(Some(4), 9, vec![b.clone()])), Some(vec![]));
        (manifest, a, b)
    }

    #[test]
    fn a_flush_applies_only_where_it_starts_at_the_flushed_index() {
        let (manifest, ..) = with_two_files();
        let new = || vec![file("new", 1, 10..=12)];
        for refused in [flush(None, 12, new()), flush(Some(4), 12, new()), flush(Some(10), 12, new()), flush(Some(9), 9, new())] {
            let mut copy = manifest.clone();
            assert_eq!(copy.apply_edit(&refused), None, "{refused:?}");
            assert_eq!(copy, manifest);
        }
        let mut copy = manifest.clone();
        assert!(copy.apply_edit(&flush(Some(9), 12, new())).is_some());
        assert_eq!(copy.flushed, Some((Term(3), LogIndex(12))));
        assert_eq!(copy.files.len(), 3);
    }

    #[test]
    fn a_compaction_applies_only_once_and_only_where_all_inputs_are_live() {
        let (mut manifest, a, b) = with_two_files();
        let merged = file("merged", 1, 0..=9);
        let stranger = file("stranger", 1, 0..=9);
        assert_eq!(manifest.apply_edit(&compact(&[&a, &stranger], vec![merged.clone()])), None);
        assert_eq!(manifest.apply_edit(&compact(&[], vec![merged.clone()])), None);
        let edit = compact(&[&a, &b], vec![merged.clone()]);
        assert_eq!(manifest.apply_edit(&edit), Some(vec![a, b]));
        assert_eq!(manifest.apply_edit(&edit), None);
        assert_eq!(manifest.files.into_values().collect::<Vec<_>>(), [merged]);
    }

    #[test]
    fn an_edit_that_names_a_file_outside_of_the_shard_has_no_effect() {
        for path in ["../x.parquet", "parquet/../../x.parquet", "/etc/x.parquet", "parquet//x.parquet", "parquet/x", "parquet/a\\b.parquet"]
        {
            let mut manifest = Manifest::default();
            let bad = FileMeta { path: path.to_owned(), ..file("a", 1, 0..=1) };
            assert_eq!(manifest.apply_edit(&flush(None, 1, vec![bad])), None, "{path}");
        }
    }

    #[test]
    fn retention_drops_whole_files_and_its_cutoff_never_falls() {
        let (mut manifest, a, b) = with_two_files();
        let young = file("young", 2, 10..=12);
        assert!(manifest.apply_edit(&flush(Some(9), 12, vec![young.clone()])).is_some());
        assert!(manifest.expire(DatabaseId(1), Timestamp(a.max_time)).is_empty());
        assert!(manifest.expire(DatabaseId(2), Timestamp(i64::MAX)).is_empty());
        assert_eq!(manifest.expire(DatabaseId(1), Timestamp(a.max_time + 1)), [a.clone(), b]);
        assert!(manifest.expire(DatabaseId(1), Timestamp(5)).is_empty());
        assert_eq!(manifest.cutoffs[&1], a.max_time + 1);
        // They are kept on disk, so they are no orphans.
        let found = [a.path.as_str(), young.path.as_str(), "parquet/default/phone/day=1/left-over.parquet"];
        assert_eq!(manifest.orphans(found), ["parquet/default/phone/day=1/left-over.parquet"]);
    }

    #[test]
    fn a_dropped_table_loses_the_files_written_before_the_drop() {
        let (mut manifest, a, b) = with_two_files();
        assert_eq!(manifest.drop_table(TableId(1), LogIndex(4)), [a]);
        assert!(manifest.drop_table(TableId(2), LogIndex(20)).is_empty());
        assert_eq!(manifest.files.into_values().collect::<Vec<_>>(), [b]);
    }

    #[test]
    fn a_manifest_comes_back_and_any_flipped_bit_or_cut_is_named() {
        let (mut manifest, ..) = with_two_files();
        manifest.membership = vec![0, 1, 254, 255];
        let bytes = manifest.encode();
        let path = Path::new("shard/MANIFEST");
        assert_eq!(Manifest::decode(path, &bytes).unwrap(), manifest);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let error = Manifest::decode(path, &damaged).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "bit {bit}: {error}");
            assert!(error.to_string().contains("shard/MANIFEST"), "{error}");
        }
        for len in 0..bytes.len() {
            assert!(matches!(Manifest::decode(path, &bytes[..len]), Err(Error::Corrupt { .. })), "{len} bytes");
        }
    }

    #[test]
    fn a_newer_format_is_refused_by_both_numbers() {
        let mut bytes = Manifest::default().encode();
        frame::set_format(&mut bytes, 3);
        let error = Manifest::decode(Path::new("MANIFEST"), &bytes).unwrap_err();
        assert!(matches!(error, Error::NewerFormat { found: 3, known: 2, .. }), "{error}");
    }

    #[test]
    fn a_manifest_that_an_older_program_saved_is_read() {
        let (manifest, ..) = with_two_files();
        let kept = include_bytes!("../tests/fixtures/manifest-1-without-as-of");
        assert_eq!(Manifest::decode(Path::new(FILE), kept).unwrap(), manifest);
        assert_eq!(manifest.encode(), kept, "what it did not know is not written where there is none");
    }

    #[test]
    fn a_save_that_fails_or_loses_power_leaves_the_old_manifest_or_the_new() {
        let dir = Path::new("shard");
        let (mut old, ..) = with_two_files();
        for kind in [std::io::ErrorKind::StorageFull, std::io::ErrorKind::Other] {
            let mut finished = false;
            for n in 1.. {
                let disk = FaultyDisk::new(n);
                old.save(&disk, dir).unwrap();
                let mut new = old.clone();
                assert!(new.apply_edit(&flush(Some(9), 12, vec![file("c", 1, 10..=12)])).is_some());
                disk.fail_once(n, kind);
                let saved = new.save(&disk, dir);
                disk.heal();
                for after in [disk.power_loss(n), disk.kill()] {
                    let loaded = Manifest::load(&after, dir).unwrap().unwrap();
                    assert!(loaded == old || loaded == new, "I/O {n}");
                    assert!(saved.is_err() || loaded == new, "I/O {n}");
                }
                // The same disk takes the next save.
                new.save(&disk, dir).unwrap();
                assert_eq!(Manifest::load(&disk, dir).unwrap().unwrap(), new);
                if saved.is_ok() {
                    finished = true;
                    break;
                }
                if kind == std::io::ErrorKind::StorageFull {
                    assert!(matches!(saved, Err(Error::DiskFull { .. })), "I/O {n}");
                }
            }
            assert!(finished);
        }
    }

    #[test]
    fn manifests_are_found_below_a_data_directory() {
        let disk = FaultyDisk::new(1);
        let (mut manifest, ..) = with_two_files();
        for shard in ["data/shards/0", "data/shards/1"] {
            manifest.save(&disk, Path::new(shard)).unwrap();
        }
        disk.flip_bit(Path::new("data/shards/1/MANIFEST"), 40, 0);
        let found = find(&disk, Path::new("data")).unwrap();
        assert_eq!(found.iter().map(|f| f.dir.to_str().unwrap()).collect::<Vec<_>>(), ["data/shards/0", "data/shards/1"]);
        assert_eq!(found[0].manifest.as_ref().unwrap().files.len(), 2);
        assert!(matches!(found[1].manifest, Err(Error::Corrupt { .. })));
    }
}
