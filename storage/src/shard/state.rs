//! What entries change: pure transitions of the shard's state, no disk.
//!
//! The manifest is logical: entries alone move it, so it and every outcome are the same on all replicas (DESIGN rule 4).
//! Where a file of a fitting edit is not here, the replica is *behind* from that edit on: what views read stays as it was,
//! the old inputs and the sealed memtables included, until every file that the manifest names is here.

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
        parts.iter().map(|part| self.write_part(part)).collect()
    }

    fn write_part(&mut self, part: &WritePart) -> Outcome {
        self.now = self.now.max(Some(part.arrived));
        // First: a repeat of a part that was stored before a split is in both halves.
        if let Some(first) = self.retries.known(part) {
            return first;
        }
        if part.range_version != self.range.version {
            return Outcome::WrongRange { current: self.range.version };
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

    /// The range becomes the lower half. Rows of the upper half stay where they are, hidden, until compactions leave them out.
    pub(super) fn split(&mut self, term: Term, index: LogIndex, split: &Split) -> Outcome {
        self.begin(index);
        // Replayed from before the end of an earlier split, whose end the manifest knows already.
        let was_splitting = self.manifest.split_done.is_some_and(|at| index <= at);
        if !split.fits(&self.range) || self.is_splitting() || was_splitting {
            return Outcome::Ignored;
        }
        self.narrow(term, index, split.lower(), Some(*split));
        Outcome::Done
    }

    /// The range is what the shard map says, without anything being split off.
    pub(super) fn take_range(&mut self, term: Term, index: LogIndex, range: HashRange) -> Outcome {
        self.begin(index);
        if range.version <= self.range.version {
            return Outcome::Ignored;
        }
        self.narrow(term, index, range, None);
        Outcome::Done
    }

    fn narrow(&mut self, term: Term, index: LogIndex, range: HashRange, split: Option<Split>) {
        let before = self.range.version;
        self.range = range;
        self.close_memtable(term, index, before, split);
        // Newest rows that are at hand may be other shards'.
        self.last_rows = LastRows::default();
        self.expected = None;
        self.unsure = self.live.keys().copied().filter(|table| !self.too_large.contains(table)).collect();
    }

    /// What was split off has a shard of its own that keeps it.
    pub(super) fn split_done(&mut self, index: LogIndex, child: ShardId) -> Outcome {
        self.begin(index);
        if self.has_effect_of(index) {
            return Outcome::Done;
        }
        if self.manifest.split.take_if(|split| split.child == child).is_none() {
            return Outcome::Ignored;
        }
        self.manifest.split_done = Some(index);
        self.changed();
        Outcome::Done
    }

    /// Whether a part was split off that this shard still has to keep.
    pub(super) fn is_splitting(&self) -> bool {
        // While behind, memtables stay that the manifest has in files already.
        let flushed = self.manifest.flushed.map(|(_, index)| index);
        self.manifest.split.is_some() || self.sealed.iter().any(|sealed| sealed.split.is_some() && Some(sealed.end.1) > flushed)
    }

    /// What was split off, once it is in files and these are here.
    pub(super) fn split_off(&self) -> Option<&SplitOff> {
        self.manifest.split.as_deref().filter(|_| self.behind.is_none())
    }

    pub(super) fn range(&self) -> HashRange {
        self.range
    }

    pub(super) fn other(&mut self, index: LogIndex, membership: Option<Vec<u8>>) {
        self.begin(index);
        if let Some(membership) = membership {
            self.membership = membership;
        }
    }

    /// The files of an edit that were on the disk when the shard was opened and of which nothing is known yet.
    pub(super) fn unknown<'a>(&self, files: &'a [FileMeta]) -> Vec<&'a FileMeta> {
        files.iter().filter(|file| self.orphans.contains(&file.path)).collect()
    }

    /// Takes note that a file which was on the disk when the shard was opened is the one that is meant.
    pub(super) fn known(&mut self, file: &FileMeta) {
        if self.orphans.remove(&file.path) {
            self.unnamed.insert(file.path.clone(), Unnamed { file: Arc::new(file.clone()), own: false });
        }
    }

    /// A file has this name and may not keep it in a crash.
    pub(super) fn doubtful(&mut self, file: &FileMeta) {
        if self.live_file(file).is_none() && !self.unnamed.contains_key(&file.path) {
            self.orphans.insert(file.path.clone());
        }
    }

    /// A file that was on the disk when the shard was opened is not what it should be; whether it is to be removed.
    pub(super) fn forget_orphan(&mut self, path: &str) -> bool {
        self.orphans.remove(path)
    }

    /// Takes files that this process wrote for an edit.
    pub(super) fn made(&mut self, files: &[FileMeta]) {
        for file in files {
            self.unnamed.insert(file.path.clone(), Unnamed { file: Arc::new(file.clone()), own: true });
        }
    }

    /// Takes a file that was received, verified and synced.
    pub(super) fn received(&mut self, file: FileMeta) {
        self.orphans.remove(&file.path);
        self.leaving.forget(&file.path);
        if self.live_file(&file).is_none() {
            self.unnamed.insert(file.path.clone(), Unnamed { file: Arc::new(file), own: false });
        }
    }

    fn live_file(&self, file: &FileMeta) -> Option<&Arc<FileMeta>> {
        self.live.get(&file.table)?.iter().find(|live| live.path == file.path)
    }

    /// Whether the file is here and not live.
    fn waits(&self, file: &FileMeta) -> bool {
        self.unnamed.get(&file.path).is_some_and(|here| *here.file == *file)
    }

    /// Of these files those that are not here; [`unknown`](State::unknown) ones count as not here.
    pub(super) fn missing<'a>(&self, files: impl IntoIterator<Item = &'a FileMeta>) -> Vec<FileMeta> {
        let live: HashSet<&str> = self.live.values().flatten().map(|file| file.path.as_str()).collect();
        files.into_iter().filter(|file| !live.contains(file.path.as_str()) && !self.waits(file)).cloned().collect()
    }

    /// A file that is here and named, or waits for the edit that names it, or was named a moment ago; it stays on disk while
    /// the `Arc` is held.
    pub(super) fn pin(&self, path: &str) -> Option<Arc<FileMeta>> {
        let live = self.live.values().flatten().find(|file| file.path == path).cloned();
        live.or_else(|| self.pin_other(path))
    }

    fn pin_other(&self, path: &str) -> Option<Arc<FileMeta>> {
        self.unnamed.get(path).map(|here| here.file.clone()).or_else(|| self.leaving.find(path))
    }

    /// Applies an edit. Whether it fits is decided by the manifest alone; its files are looked for afterwards.
    pub(super) fn edit(&mut self, index: LogIndex, edit: &ManifestEdit) -> Outcome {
        let before = self.applied;
        self.begin(index);
        // Once an edit of this process has come back through the log, no edit of an earlier process can follow.
        self.replayed |= edit.files().iter().any(|file| self.unnamed.get(&file.path).is_some_and(|here| here.own));
        let sealed = match edit {
            ManifestEdit::Flush { end, .. } => self.sealed.iter().position(|s| s.end.1 == *end),
            ManifestEdit::Compact { .. } => None,
        };
        // From the split on, not only once it is in files: what is split off begins with all that is there then.
        let covers = sealed.is_some() || (matches!(edit, ManifestEdit::Compact { .. }) && !self.is_splitting());
        let lacks = self.behind.is_some() || !edit.files().iter().all(|file| self.waits(file));
        let held = (lacks && self.behind.is_none()).then(|| self.manifest_as_of(before));
        let fits = covers && !self.has_effect_of(index);
        let Some(left) = fits.then(|| self.manifest.apply_edit(edit)).flatten() else {
            self.leave_unnamed(edit);
            return Outcome::Ignored;
        };
        let dropped = sealed.map(|place| self.settle(place)).unwrap_or_default();
        if let Some(held) = held {
            self.behind = Some(Box::new(Behind { held, edits: 0 }));
        }
        if let Some(behind) = &mut self.behind {
            behind.edits += 1;
            self.release(&left, Leaving::compacted);
        } else {
            self.unsaved = true;
            let files = edit.files().iter().map(|file| match self.unnamed.remove(&file.path) {
                Some(here) => here.file,
                None => Arc::new(file.clone()),
            });
            let files = files.collect();
            self.add_live(files);
            self.release(&left, Leaving::compacted);
            if let (ManifestEdit::Flush { end, .. }, Some(last)) = (edit, sealed) {
                self.flushed(*end, last);
            }
        }
        self.release(&dropped, Leaving::dropped);
        Outcome::Done
    }

    /// The manifest reaches the end of a sealed memtable: it takes the rest of the state as of there, and lets go of files
    /// of tables that were dropped while their rows were on their way into files. Gives these.
    fn settle(&mut self, place: usize) -> Vec<FileMeta> {
        let sealed = self.sealed[place].clone();
        let manifest = &mut self.manifest;
        manifest.range = sealed.range;
        manifest.membership.clone_from(&sealed.membership);
        manifest.retries.clone_from(sealed.retries());
        let gone = |file: &&FileMeta| manifest.dropped.get(&file.table.0).is_some_and(|&at| file.to.0 <= at);
        let dropped: Vec<FileMeta> = manifest.files.values().filter(gone).cloned().collect();
        for file in &dropped {
            manifest.files.remove(&file.path);
            manifest.dropped_files.insert(file.path.clone());
        }
        if let Some(split) = sealed.split {
            let index = sealed.end.1;
            // Its log begins with this state and knows no term yet.
            let flushed = Some((Term(0), index));
            let own = Manifest { flushed, as_of: Some(index), range: split.upper(), version: 0, split_done: None, ..manifest.clone() };
            let own = Manifest { dropped_files: BTreeSet::new(), split: None, ..own };
            manifest.split = Some(Box::new(SplitOff { child: split.child, manifest: own }));
        }
        dropped
    }

    /// Lets go of files that the manifest does not name any more. While behind, views still need the inputs of compactions.
    fn release(&mut self, left: &[FileMeta], leave: fn(&mut Leaving, Arc<FileMeta>)) {
        let dropped = |file: &FileMeta| self.manifest.dropped_files.contains(&file.path);
        let (behind, dropped): (bool, Vec<bool>) = (self.behind.is_some(), left.iter().map(dropped).collect());
        for (file, dropped) in left.iter().zip(dropped) {
            let gone = match self.unnamed.remove(&file.path) {
                Some(here) => Some(here.file),
                None if behind && !dropped => None,
                None => self.take_live(file),
            };
            if let Some(file) = gone {
                leave(&mut self.leaving, file);
            }
        }
    }

    /// What the manifest names and is not here; nothing unless this replica is behind.
    pub(super) fn lacks(&self) -> Vec<FileMeta> {
        match self.behind {
            Some(_) => self.missing(self.manifest.files.values()),
            None => Vec::new(),
        }
    }

    /// Lets the manifest's files take the place of what this replica went by: all of them are here. Drops exactly the sealed
    /// memtables that they cover.
    pub(super) fn catch_up(&mut self) {
        assert!(self.lacks().is_empty(), "the files are here");
        if self.behind.take().is_some() {
            let flushed = self.manifest.flushed.map(|(_, index)| index);
            while self.sealed.front().is_some_and(|sealed| Some(sealed.end.1) <= flushed) {
                self.sealed.pop_front();
            }
            self.replace_live();
            self.unsaved = true;
        }
    }

    /// What [`install`](State::install) is going to make the manifest, to be saved first.
    pub(super) fn before_install(&self, manifest: Manifest) -> Manifest {
        let mut dropped_files = self.manifest.dropped_files.clone();
        dropped_files.retain(|path| !manifest.files.contains_key(path));
        Manifest { dropped_files, version: self.manifest.version, ..manifest }
    }

    /// Replaces everything by the state of a manifest that is on disk and whose files are here.
    pub(super) fn install(&mut self, manifest: Manifest, retries: Retries) {
        let flushed = manifest.flushed.map(|(_, index)| index);
        self.applied = flushed;
        self.range = manifest.range;
        self.active = Memtable::default();
        self.active_start = flushed.map_or(LogIndex(0), LogIndex::next);
        self.sealed.clear();
        self.behind = None;
        self.cutoffs = Arc::new(manifest.cutoffs.clone());
        self.membership.clone_from(&manifest.membership);
        self.retries = retries;
        self.too_large.clear();
        self.manifest = manifest;
        self.replace_live();
        self.unsaved = false;
        self.saved = flushed;
    }

    /// Makes the manifest's files the ones that views read.
    fn replace_live(&mut self) {
        let mut before: HashMap<String, Arc<FileMeta>> =
            std::mem::take(&mut self.live).values().flatten().map(|file| (file.path.clone(), file.clone())).collect();
        let mut files = Vec::with_capacity(self.manifest.files.len());
        for (path, file) in &self.manifest.files {
            let waited = self.unnamed.remove(path).map(|here| here.file);
            files.push(before.remove(path).or(waited).unwrap_or_else(|| Arc::new(file.clone())));
            self.orphans.remove(path);
        }
        for (path, file) in before {
            match self.manifest.dropped_files.contains(&path) {
                true => self.leaving.dropped(file),
                false => self.leaving.compacted(file),
            }
        }
        (self.file_bytes, self.file_rows) = (0, 0);
        self.unsure = files.iter().map(|file| file.table).filter(|table| !self.too_large.contains(table)).collect();
        self.last_rows = LastRows::default();
        self.expected = None;
        self.add_live(files);
    }

    /// The sealed memtables up to `last` are in files now.
    fn flushed(&mut self, end: LogIndex, last: usize) {
        let gone: Vec<Arc<Sealed>> = self.sealed.drain(..=last).collect();
        let mut expected = self.expected.take().filter(|e| e.end == end);
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

    /// Files of an edit that had no effect, unless an earlier one names them: no later one can.
    fn leave_unnamed(&mut self, edit: &ManifestEdit) {
        for file in edit.files() {
            if self.waits(file)
                && !self.manifest.files.contains_key(&file.path)
                && let Some(here) = self.unnamed.remove(&file.path)
            {
                self.leaving.compacted(here.file);
            }
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

    /// Takes a file out of the live ones and gives it as views hold it; `None`: it is not live here.
    fn take_live(&mut self, file: &FileMeta) -> Option<Arc<FileMeta>> {
        let place = self.live.get(&file.table)?.iter().position(|f| f.path == file.path)?;
        let taken = Arc::make_mut(&mut self.live).get_mut(&file.table).expect("it was found there").remove(place);
        self.file_bytes -= taken.bytes;
        self.file_rows -= taken.rows;
        Some(taken)
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

    /// Paths of files that can be removed: no manifest on disk names them, no edit to come can, no view reads them.
    pub(super) fn sweep(&mut self) -> Vec<String> {
        if self.unsaved || self.behind.is_some() {
            return Vec::new();
        }
        let mut free = self.leaving.sweep(self.now);
        if self.replayed {
            free.extend(self.orphans.drain());
        }
        let unnamed = std::mem::take(&mut self.unnamed);
        for (path, here) in unnamed {
            if Arc::strong_count(&here.file) > 1 || self.may_be_named(&here.file) {
                self.unnamed.insert(path, here);
            } else {
                free.push(path);
            }
        }
        for path in &free {
            self.unsaved |= self.manifest.dropped_files.remove(path);
        }
        free
    }

    /// Whether an edit, or a snapshot to be installed, may still name this file: it has rows beyond the flushed index, or is a
    /// compaction's and inputs that begin and end where it does are live.
    fn may_be_named(&self, file: &FileMeta) -> bool {
        let live = self.live.get(&file.table).map_or(&[] as &[Arc<FileMeta>], Vec::as_slice);
        let takes_the_place = || live.iter().any(|input| input.from == file.from) && live.iter().any(|input| input.to == file.to);
        self.manifest.flushed.is_none_or(|(_, flushed)| file.to > flushed) || (file.level > 0 && takes_the_place())
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
