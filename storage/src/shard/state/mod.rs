//! What entries change: pure transitions of the shard's state, no disk.
//!
//! The manifest is logical: entries alone move it, so it and every outcome are the same on all replicas (DESIGN rule 4).
//! Where a file of a fitting edit is not here, the replica is *behind* from that edit on: what views read stays as it was,
//! the old inputs and the sealed memtables included, until every file that the manifest names is here.

mod edits;
mod split;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, OnceLock};

use model::{DatabaseId, DecodeError, Epoch, LogIndex, ShardId, TableId, Term, Timestamp};

use super::ShardStats;
use crate::entry::{Outcome, WritePart};
use crate::last_rows::{LastRows, TableLastRows};
use crate::manifest::{FileMeta, Manifest, ManifestEdit};
use crate::memtable::{Captured, Memtable};
use crate::parquet_file::{Leaving, ParquetFiles};
use crate::range::{HashRange, Split, SplitOff};
use crate::retries::Retries;
use crate::scan::View;
use crate::scan::view::{InMemory, LiveFiles};

/// A memtable that was closed at an index, and the rest of the state as of that index.
#[derive(Clone, Debug)]
pub(super) struct Sealed {
    /// The first index whose rows it may hold.
    pub(super) start: LogIndex,
    /// The seal's term and index.
    pub(super) end: (Term, LogIndex),
    pub(super) tables: Captured,
    /// The version of the range under which its rows were written.
    pub(super) range_version: Epoch,
    rows: usize,
    bytes: usize,
    /// The range from its end on.
    range: HashRange,
    /// The split that it was closed by, if any.
    split: Option<Split>,
    membership: Vec<u8>,
    retries: Retries,
    encoded_retries: OnceLock<Vec<u8>>,
}

impl Sealed {
    fn retries(&self) -> &Vec<u8> {
        self.encoded_retries.get_or_init(|| self.retries.encode())
    }
}

/// What a flush of this process has worked out for when its edit is applied.
struct ExpectedFlush {
    end: LogIndex,
    last_rows: HashMap<TableId, Option<Arc<TableLastRows>>>,
    max_bytes: usize,
}

/// A file on this disk that views do not read (yet).
struct Unnamed {
    file: Arc<FileMeta>,
    /// Whether this process wrote it, for an edit to be proposed.
    own: bool,
}

/// What a replica that is behind goes by.
struct Behind {
    /// The manifest before the first edit whose files were not all here. Its own files are; it is the one on disk.
    held: Manifest,
    /// Edits that moved the manifest alone since.
    edits: u64,
}

pub(super) struct State {
    applied: Option<LogIndex>,
    /// What the shard keeps; what it holds from before may be wider.
    range: HashRange,
    active: Memtable,
    /// The first index whose rows the active memtable may hold.
    active_start: LogIndex,
    /// Oldest first.
    sealed: VecDeque<Arc<Sealed>>,
    /// Live files, cutoffs and drops as of the last entry applied (or of `as_of` while the log is replayed up to there), the
    /// rest as of the flushed index.
    manifest: Manifest,
    behind: Option<Box<Behind>>,
    /// The files that views read: those of the manifest unless this replica is behind.
    live: LiveFiles,
    /// Files that are here, by path: written or received, and not live.
    unnamed: HashMap<String, Unnamed>,
    cutoffs: Arc<BTreeMap<u32, i64>>,
    membership: Vec<u8>,
    retries: Retries,
    last_rows: LastRows,
    /// Tables with files whose newest rows nobody has tried to read yet.
    unsure: BTreeSet<TableId>,
    /// Tables whose newest rows take too much memory.
    too_large: BTreeSet<TableId>,
    expected: Option<ExpectedFlush>,
    leaving: Leaving,
    /// Files that nothing named when the shard was opened; an edit in the log that is being replayed may still do.
    orphans: HashSet<String>,
    /// Whether the log was replayed: an entry that this process proposed was applied.
    replayed: bool,
    /// Time as the log tells it; `None` before its first write.
    now: Option<Timestamp>,
    /// Whether the manifest on disk is older than this one.
    unsaved: bool,
    /// The flushed index of the manifest on disk.
    saved: Option<LogIndex>,
    file_bytes: u64,
    file_rows: u64,
}

impl State {
    /// The state as of the manifest's flushed index.
    pub(super) fn restore(manifest: Manifest, orphans: HashSet<String>) -> Result<State, DecodeError> {
        let flushed = manifest.flushed.map(|(_, index)| index);
        let mut state = State {
            applied: flushed,
            range: manifest.range,
            active: Memtable::default(),
            active_start: flushed.map_or(LogIndex(0), LogIndex::next),
            sealed: VecDeque::new(),
            behind: None,
            live: LiveFiles::default(),
            unnamed: HashMap::new(),
            cutoffs: Arc::new(manifest.cutoffs.clone()),
            membership: manifest.membership.clone(),
            retries: Retries::decode(&manifest.retries)?,
            last_rows: LastRows::default(),
            unsure: BTreeSet::new(),
            too_large: BTreeSet::new(),
            expected: None,
            leaving: Leaving::default(),
            orphans,
            replayed: false,
            now: None,
            unsaved: false,
            saved: flushed,
            file_bytes: 0,
            file_rows: 0,
            manifest,
        };
        let files: Vec<Arc<FileMeta>> = state.manifest.files.values().cloned().map(Arc::new).collect();
        state.unsure = files.iter().map(|file| file.table).collect();
        state.add_live(files);
        let dropped: Vec<String> = state.manifest.dropped_files.iter().cloned().collect();
        dropped.into_iter().for_each(|path| state.leaving.dropped_before(path));
        Ok(state)
    }

    fn begin(&mut self, index: LogIndex) {
        assert!(self.applied.is_none_or(|applied| index > applied), "entry {index} after {:?}", self.applied);
        self.applied = Some(index);
    }

    /// Whether the manifest has this entry's effect already: the log is being replayed.
    fn has_effect_of(&self, index: LogIndex) -> bool {
        self.manifest.as_of.is_some_and(|as_of| index <= as_of)
    }

    /// The manifest with the last entry that it shows.
    fn manifest_as_of(&self, applied: Option<LogIndex>) -> Manifest {
        Manifest { as_of: self.manifest.as_of.max(applied), ..self.manifest.clone() }
    }

    /// The manifest whose files are all here.
    pub(super) fn held(&self) -> &Manifest {
        self.behind.as_ref().map_or(&self.manifest, |behind| &behind.held)
    }

    /// Says that the manifest on disk is older now; while behind, the one on disk stays.
    fn changed(&mut self) {
        self.unsaved |= self.behind.is_none();
    }

    pub(super) fn write(&mut self, index: LogIndex, parts: &[WritePart]) -> Vec<Outcome> {
        self.begin(index);
        parts.iter().map(|part| self.write_part(index, part)).collect()
    }

    fn write_part(&mut self, index: LogIndex, part: &WritePart) -> Outcome {
        self.now = self.now.max(Some(part.arrived));
        // First: a repeat of a part that was stored before a split is in both halves.
        if let Some(first) = self.retries.known(part) {
            return first;
        }
        if part.range_version != self.range.version {
            return Outcome::WrongRange { current: self.range.version };
        }
        // A drop of a later index is in a manifest that is ahead of the log that is replayed.
        let dropped = |table: TableId| self.manifest.dropped.get(&table.0).is_some_and(|&at| at < index.0);
        if !self.manifest.dropped.is_empty() && part.batches.iter().any(|batch| dropped(batch.table)) {
            return Outcome::Dropped;
        }
        let mut rows = 0;
        for batch in &part.batches {
            self.active.insert(batch);
            rows += batch.rows() as u32;
        }
        self.retries.stored(part, rows);
        Outcome::Stored { rows }
    }

    pub(super) fn seal(&mut self, term: Term, index: LogIndex) -> Outcome {
        self.begin(index);
        self.close_memtable(term, index, self.range.version, None);
        Outcome::Done
    }

    fn close_memtable(&mut self, term: Term, index: LogIndex, range_version: Epoch, split: Option<Split>) {
        let memtable = std::mem::take(&mut self.active);
        self.sealed.push_back(Arc::new(Sealed {
            start: self.active_start,
            end: (term, index),
            tables: memtable.capture(),
            range_version,
            rows: memtable.rows(),
            bytes: memtable.bytes(),
            range: self.range,
            split,
            membership: self.membership.clone(),
            retries: self.retries.clone(),
            encoded_retries: OnceLock::new(),
        }));
        self.active_start = index.next();
    }

    pub(super) fn other(&mut self, index: LogIndex, membership: Option<Vec<u8>>) {
        self.begin(index);
        if let Some(membership) = membership {
            self.membership = membership;
        }
    }

    /// Keeps a table's newest rows as of the flushed index, if all tables' together fit.
    fn keep_last_rows(&mut self, table: TableId, rows: Arc<TableLastRows>, max_bytes: usize) {
        let last_rows = Arc::make_mut(&mut self.last_rows);
        last_rows.remove(&table);
        let others: usize = last_rows.values().map(|rows| rows.bytes()).sum();
        if others + rows.bytes() <= max_bytes {
            last_rows.insert(table, rows);
        } else {
            self.too_large.insert(table);
        }
    }

    /// The tables whose newest rows should be read from files; each is given once.
    pub(super) fn take_unsure(&mut self) -> BTreeSet<TableId> {
        std::mem::take(&mut self.unsure)
    }

    /// Takes the newest rows of a table as its files had them in a view; `None`: they are too large.
    pub(super) fn recalled(&mut self, table: TableId, view: &View, rows: Option<Arc<TableLastRows>>, max_bytes: usize) {
        let flushed = view.flushed;
        let Some(rows) = rows else {
            self.too_large.insert(table);
            return;
        };
        let dropped = self.manifest.dropped.get(&table.0).is_some_and(|&at| flushed.is_none_or(|flushed| at > flushed.0));
        let as_now = self.held().flushed.map(|(_, index)| index) == flushed && self.range.version == view.range.version;
        if as_now && !dropped {
            self.keep_last_rows(table, rows, max_bytes);
        } else if !dropped {
            // A flush or a split came between: next time.
            self.unsure.insert(table);
        }
    }

    pub(super) fn retain(&mut self, index: LogIndex, database: DatabaseId, cutoff: Timestamp) -> Outcome {
        self.begin(index);
        if self.has_effect_of(index) {
            return Outcome::Done;
        }
        let left = self.manifest.expire(database, cutoff);
        self.release(&left, Leaving::dropped);
        self.cutoffs = Arc::new(self.manifest.cutoffs.clone());
        self.changed();
        Outcome::Done
    }

    pub(super) fn drop_table(&mut self, index: LogIndex, table: TableId) -> Outcome {
        self.begin(index);
        self.active.drop_table(table);
        for sealed in &mut self.sealed {
            if sealed.tables.contains_key(&table) {
                let sealed = Arc::make_mut(sealed);
                if let Some(rows) = Arc::make_mut(&mut sealed.tables).remove(&table) {
                    sealed.rows -= rows.rows();
                    sealed.bytes -= rows.bytes();
                }
            }
        }
        Arc::make_mut(&mut self.last_rows).remove(&table);
        if self.has_effect_of(index) {
            return Outcome::Done;
        }
        let left = self.manifest.drop_table(table, index);
        self.release(&left, Leaving::dropped);
        if self.behind.is_some() {
            // All that views read of the table was written before.
            for file in self.live.get(&table).cloned().unwrap_or_default() {
                if let Some(file) = self.take_live(&file) {
                    self.leaving.dropped(file);
                }
            }
        }
        self.changed();
        Outcome::Done
    }

    pub(super) fn expect_flush(
        &mut self,
        end: LogIndex,
        view: &View,
        last_rows: HashMap<TableId, Option<Arc<TableLastRows>>>,
        max_bytes: usize,
    ) {
        // Where a split came between, they are both halves'.
        self.expected = (view.range.version == self.range.version).then_some(ExpectedFlush { end, last_rows, max_bytes });
    }

    pub(super) fn oldest_sealed(&self) -> Option<Arc<Sealed>> {
        self.sealed.front().cloned()
    }

    pub(super) fn capture(&self, parquet: Arc<ParquetFiles>) -> View {
        View {
            applied: self.applied,
            flushed: self.held().flushed.map(|(_, index)| index),
            files: self.live.clone(),
            memtables: self.memtables().collect(),
            range: self.range,
            cutoffs: self.cutoffs.clone(),
            last_rows: self.last_rows.clone(),
            parquet,
        }
    }

    fn memtables(&self) -> impl Iterator<Item = InMemory> {
        let sealed = self.sealed.iter().map(|s| InMemory { tables: s.tables.clone(), range_version: s.range_version });
        sealed.chain([InMemory { tables: self.active.capture(), range_version: self.range.version }])
    }

    pub(super) fn active_bytes(&self) -> usize {
        self.active.bytes()
    }

    pub(super) fn active_tables(&self) -> usize {
        self.active.tables()
    }

    pub(super) fn has_unflushed(&self, table: Option<TableId>) -> bool {
        match table {
            None => self.active.rows() > 0 || self.sealed.iter().any(|s| s.rows > 0),
            Some(table) => self.active.capture().contains_key(&table) || self.sealed.iter().any(|s| s.tables.contains_key(&table)),
        }
    }

    /// The files that views read, in order of their paths.
    pub(super) fn files(&self) -> Vec<FileMeta> {
        let mut files: Vec<FileMeta> = self.live.values().flatten().map(|file| (**file).clone()).collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }

    /// Edits that moved the manifest alone; 0: this replica is not behind.
    pub(super) fn edits_behind(&self) -> u64 {
        self.behind.as_ref().map_or(0, |behind| behind.edits)
    }

    /// The state at the flushed index, and its files as they are pinned.
    pub(super) fn snapshot(&self) -> (Manifest, Vec<Arc<FileMeta>>) {
        let manifest = match &self.behind {
            Some(behind) => behind.held.clone(),
            None => self.manifest_as_of(self.applied),
        };
        let live: HashMap<&str, &Arc<FileMeta>> = self.live.values().flatten().map(|file| (file.path.as_str(), file)).collect();
        let pin = |path: &String| live.get(path.as_str()).map(|&file| file.clone()).or_else(|| self.pin_other(path));
        let pins = manifest.files.keys().filter_map(pin).collect();
        (manifest, pins)
    }

    pub(super) fn saved(&self) -> Option<LogIndex> {
        self.saved
    }

    /// The manifest to save, if the one on disk is older.
    pub(super) fn begin_save(&mut self) -> Option<Manifest> {
        std::mem::take(&mut self.unsaved).then(|| match &self.behind {
            Some(behind) => behind.held.clone(),
            None => self.manifest_as_of(self.applied),
        })
    }

    pub(super) fn end_save(&mut self, manifest: &Manifest, saved: bool) {
        if saved {
            self.manifest.version = manifest.version;
            if let Some(behind) = &mut self.behind {
                behind.held.version = manifest.version;
            }
            self.saved = manifest.flushed.map(|(_, index)| index);
        } else {
            self.unsaved = true;
        }
    }

    /// A save failed in a way that leaves open which manifest is on disk.
    pub(super) fn save_again(&mut self) {
        self.unsaved = true;
    }

    pub(super) fn figures(&self) -> ShardStats {
        let sealed = self.sealed.iter().fold((0, 0), |(rows, bytes), s| (rows + s.rows, bytes + s.bytes));
        ShardStats {
            applied: self.applied,
            flushed: self.held().flushed.map(|(_, index)| index),
            memtable_rows: (self.active.rows() + sealed.0) as u64,
            memtable_bytes: (self.active.bytes() + sealed.1) as u64,
            files: self.live.values().map(Vec::len).sum::<usize>() as u64,
            file_bytes: self.file_bytes,
            file_rows: self.file_rows,
            behind: self.edits_behind(),
        }
    }
}
