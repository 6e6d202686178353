//! What entries change: pure transitions of the shard's state, no disk.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, OnceLock};

use model::{DatabaseId, DecodeError, Epoch, LogIndex, TableId, Term, Timestamp};

use super::ShardStats;
use crate::entry::{Outcome, WritePart};
use crate::last_rows::{LastRows, TableLastRows};
use crate::manifest::{FileMeta, Manifest, ManifestEdit};
use crate::memtable::{Captured, Memtable};
use crate::parquet_file::{Leaving, ParquetFiles};
use crate::retries::Retries;
use crate::scan::View;
use crate::scan::view::LiveFiles;

/// The version of the shard's range. Ranges do not change before shards can be split.
const RANGE_VERSION: Epoch = Epoch(1);

/// A memtable that was closed at an index, and the rest of the state as of that index.
#[derive(Clone, Debug)]
pub(super) struct Sealed {
    /// The first index whose rows it may hold.
    pub(super) start: LogIndex,
    /// The seal's term and index.
    pub(super) end: (Term, LogIndex),
    pub(super) tables: Captured,
    rows: usize,
    bytes: usize,
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

pub(super) struct State {
    applied: Option<LogIndex>,
    active: Memtable,
    /// The first index whose rows the active memtable may hold.
    active_start: LogIndex,
    /// Oldest first.
    sealed: VecDeque<Arc<Sealed>>,
    /// Live files and the state as of the flushed index. Cutoffs and drops run ahead of it: applying them again is harmless.
    manifest: Manifest,
    live: LiveFiles,
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
            active: Memtable::default(),
            active_start: flushed.map_or(LogIndex(0), LogIndex::next),
            sealed: VecDeque::new(),
            live: LiveFiles::default(),
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

    pub(super) fn write(&mut self, index: LogIndex, parts: &[WritePart]) -> Vec<Outcome> {
        self.begin(index);
        parts.iter().map(|part| self.write_part(part)).collect()
    }

    fn write_part(&mut self, part: &WritePart) -> Outcome {
        self.now = self.now.max(Some(part.arrived));
        if part.range_version != RANGE_VERSION {
            return Outcome::WrongRange { current: RANGE_VERSION };
        }
        if let Some(first) = self.retries.known(part) {
            return first;
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
        let memtable = std::mem::take(&mut self.active);
        self.sealed.push_back(Arc::new(Sealed {
            start: self.active_start,
            end: (term, index),
            tables: memtable.capture(),
            rows: memtable.rows(),
            bytes: memtable.bytes(),
            membership: self.membership.clone(),
            retries: self.retries.clone(),
            encoded_retries: OnceLock::new(),
        }));
        self.active_start = index.next();
        Outcome::Done
    }

    pub(super) fn other(&mut self, index: LogIndex, membership: Option<Vec<u8>>) {
        self.begin(index);
        if let Some(membership) = membership {
            self.membership = membership;
        }
    }

    pub(super) fn edit(&mut self, index: LogIndex, edit: &ManifestEdit, files_here: bool) -> Outcome {
        self.begin(index);
        let sealed = match edit {
            ManifestEdit::Flush { end, .. } => self.sealed.iter().position(|s| s.end.1 == *end),
            ManifestEdit::Compact { .. } => None,
        };
        let fits = files_here && (sealed.is_some() || matches!(edit, ManifestEdit::Compact { .. }));
        let Some(left) = fits.then(|| self.manifest.apply_edit(edit)).flatten() else {
            self.leave_unnamed(edit);
            return Outcome::Ignored;
        };
        self.unsaved = true;
        edit.files().iter().for_each(|file| {
            self.orphans.remove(&file.path);
        });
        self.add_live(edit.files().iter().cloned().map(Arc::new).collect());
        for file in self.remove_live(&left) {
            self.leaving.compacted(file);
        }
        if let (ManifestEdit::Flush { end, .. }, Some(last)) = (edit, sealed) {
            self.flushed(*end, last);
        }
        Outcome::Done
    }

    /// The sealed memtables up to `last` are in files now.
    fn flushed(&mut self, end: LogIndex, last: usize) {
        let gone: Vec<Arc<Sealed>> = self.sealed.drain(..=last).collect();
        let newest = gone.last().expect("one at least was flushed");
        self.manifest.membership.clone_from(&newest.membership);
        self.manifest.retries.clone_from(newest.retries());
        // A table that was dropped while its rows were on their way into files.
        let dropped: Vec<FileMeta> = (self.manifest.files.values())
            .filter(|file| self.manifest.dropped.get(&file.table.0).is_some_and(|&at| file.to.0 <= at))
            .cloned()
            .collect();
        for file in &dropped {
            self.manifest.files.remove(&file.path);
            self.manifest.dropped_files.insert(file.path.clone());
        }
        for file in self.remove_live(&dropped) {
            self.leaving.dropped(file);
        }
        let mut expected = self.expected.take().filter(|e| e.end == end);
        self.replayed |= expected.is_some();
        for &table in gone.iter().flat_map(|sealed| sealed.tables.keys()) {
            let sure = expected.as_mut().and_then(|e| Some((e.last_rows.remove(&table)??, e.max_bytes)));
            let dropped = self.manifest.dropped.get(&table.0).is_some_and(|&at| at > end.0);
            match sure.filter(|_| !dropped) {
                Some((rows, max_bytes)) => self.keep_last_rows(table, rows, max_bytes),
                None => {
                    Arc::make_mut(&mut self.last_rows).remove(&table);
                    if !dropped && !self.too_large.contains(&table) {
                        self.unsure.insert(table);
                    }
                }
            }
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

    /// Takes the newest rows of a table as its files had them when they reached `flushed`; `None`: they are too large.
    pub(super) fn recalled(&mut self, table: TableId, flushed: Option<LogIndex>, rows: Option<Arc<TableLastRows>>, max_bytes: usize) {
        let Some(rows) = rows else {
            self.too_large.insert(table);
            return;
        };
        let dropped = self.manifest.dropped.get(&table.0).is_some_and(|&at| flushed.is_none_or(|flushed| at > flushed.0));
        if self.manifest.flushed.map(|(_, index)| index) == flushed && !dropped {
            self.keep_last_rows(table, rows, max_bytes);
        } else if !dropped {
            // A flush came between: next time.
            self.unsure.insert(table);
        }
    }

    /// Files of an edit that had no effect, unless an earlier one names them.
    fn leave_unnamed(&mut self, edit: &ManifestEdit) {
        for file in edit.files() {
            if !self.manifest.files.contains_key(&file.path) && !self.manifest.dropped_files.contains(&file.path) {
                self.orphans.remove(&file.path);
                self.leaving.compacted(Arc::new(file.clone()));
            }
        }
    }

    pub(super) fn retain(&mut self, index: LogIndex, database: DatabaseId, cutoff: Timestamp) -> Outcome {
        self.begin(index);
        let left = self.manifest.expire(database, cutoff);
        for file in self.remove_live(&left) {
            self.leaving.dropped(file);
        }
        self.cutoffs = Arc::new(self.manifest.cutoffs.clone());
        self.unsaved = true;
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
        let left = self.manifest.drop_table(table, index);
        for file in self.remove_live(&left) {
            self.leaving.dropped(file);
        }
        Arc::make_mut(&mut self.last_rows).remove(&table);
        self.unsaved = true;
        Outcome::Done
    }

    fn add_live(&mut self, files: Vec<Arc<FileMeta>>) {
        let live = Arc::make_mut(&mut self.live);
        for file in files {
            self.file_bytes += file.bytes;
            self.file_rows += file.rows;
            let table = live.entry(file.table).or_default();
            let place = table.partition_point(|f| (f.to, f.from) <= (file.to, file.from));
            table.insert(place, file);
        }
    }

    /// Takes files out of the live ones and gives them as views hold them.
    fn remove_live(&mut self, files: &[FileMeta]) -> Vec<Arc<FileMeta>> {
        if files.is_empty() {
            return Vec::new();
        }
        let live = Arc::make_mut(&mut self.live);
        let mut removed = Vec::with_capacity(files.len());
        for file in files {
            self.file_bytes -= file.bytes;
            self.file_rows -= file.rows;
            let table = live.get_mut(&file.table).expect("a live file's table is known");
            let place = table.iter().position(|f| f.path == file.path).expect("the file was live");
            removed.push(table.remove(place));
        }
        removed
    }

    pub(super) fn expect_flush(&mut self, end: LogIndex, last_rows: HashMap<TableId, Option<Arc<TableLastRows>>>, max_bytes: usize) {
        self.expected = Some(ExpectedFlush { end, last_rows, max_bytes });
    }

    pub(super) fn oldest_sealed(&self) -> Option<Arc<Sealed>> {
        self.sealed.front().cloned()
    }

    pub(super) fn capture(&self, parquet: Arc<ParquetFiles>) -> View {
        View {
            applied: self.applied,
            flushed: self.manifest.flushed.map(|(_, index)| index),
            files: self.live.clone(),
            memtables: self.sealed.iter().map(|s| s.tables.clone()).chain([self.active.capture()]).collect(),
            cutoffs: self.cutoffs.clone(),
            last_rows: self.last_rows.clone(),
            parquet,
        }
    }

    pub(super) fn active_bytes(&self) -> usize {
        self.active.bytes()
    }

    pub(super) fn has_unflushed(&self, table: Option<TableId>) -> bool {
        match table {
            None => self.active.rows() > 0 || self.sealed.iter().any(|s| s.rows > 0),
            Some(table) => self.active.capture().contains_key(&table) || self.sealed.iter().any(|s| s.tables.contains_key(&table)),
        }
    }

    pub(super) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(super) fn saved(&self) -> Option<LogIndex> {
        self.saved
    }

    /// The manifest to save, if the one on disk is older.
    pub(super) fn begin_save(&mut self) -> Option<Manifest> {
        std::mem::take(&mut self.unsaved).then(|| self.manifest.clone())
    }

    pub(super) fn end_save(&mut self, manifest: &Manifest, saved: bool) {
        if saved {
            self.manifest.version = manifest.version;
            self.saved = manifest.flushed.map(|(_, index)| index);
        } else {
            self.unsaved = true;
        }
    }

    /// Paths of files that can be removed: no manifest on disk names them, no view reads them.
    pub(super) fn sweep(&mut self) -> Vec<String> {
        if self.unsaved {
            return Vec::new();
        }
        let mut free = self.leaving.sweep(self.now);
        if self.replayed {
            free.extend(self.orphans.drain());
        }
        for path in &free {
            self.unsaved |= self.manifest.dropped_files.remove(path);
        }
        free
    }

    pub(super) fn figures(&self) -> ShardStats {
        let sealed = self.sealed.iter().fold((0, 0), |(rows, bytes), s| (rows + s.rows, bytes + s.bytes));
        ShardStats {
            applied: self.applied,
            flushed: self.manifest.flushed.map(|(_, index)| index),
            memtable_rows: (self.active.rows() + sealed.0) as u64,
            memtable_bytes: (self.active.bytes() + sealed.1) as u64,
            files: self.manifest.files.len() as u64,
            file_bytes: self.file_bytes,
            file_rows: self.file_rows,
        }
    }
}
