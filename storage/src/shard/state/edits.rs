//! The shard's files: which wait for an edit, which are live, which have left; and what an edit or a snapshot makes of them.

use super::*;

impl State {
    /// The files of an edit that were on the disk when the shard was opened and of which nothing is known yet.
    pub(in crate::shard) fn unknown<'a>(&self, files: &'a [FileMeta]) -> Vec<&'a FileMeta> {
        files.iter().filter(|file| self.orphans.contains(&file.path)).collect()
    }

    /// Takes note that a file which was on the disk when the shard was opened is the one that is meant.
    pub(in crate::shard) fn known(&mut self, file: &FileMeta) {
        if self.orphans.remove(&file.path) {
            self.unnamed.insert(file.path.clone(), Unnamed { file: Arc::new(file.clone()), own: false });
        }
    }

    /// A file has this name and may not keep it in a crash.
    pub(in crate::shard) fn doubtful(&mut self, file: &FileMeta) {
        if self.live_file(file).is_none() && !self.unnamed.contains_key(&file.path) {
            self.orphans.insert(file.path.clone());
        }
    }

    /// A file that was on the disk when the shard was opened is not what it should be; whether it is to be removed.
    pub(in crate::shard) fn forget_orphan(&mut self, path: &str) -> bool {
        self.orphans.remove(path)
    }

    /// Takes files that this process wrote for an edit.
    pub(in crate::shard) fn made(&mut self, files: &[FileMeta]) {
        for file in files {
            self.unnamed.insert(file.path.clone(), Unnamed { file: Arc::new(file.clone()), own: true });
        }
    }

    /// Takes a file that was received, verified and synced.
    pub(in crate::shard) fn received(&mut self, file: FileMeta) {
        self.orphans.remove(&file.path);
        self.leaving.forget(&file.path);
        if self.live_file(&file).is_none() {
            self.unnamed.insert(file.path.clone(), Unnamed { file: Arc::new(file), own: false });
        }
    }

    pub(in crate::shard) fn live_file(&self, file: &FileMeta) -> Option<&Arc<FileMeta>> {
        self.live.get(&file.table)?.iter().find(|live| live.path == file.path)
    }

    /// Whether the file is here and not live.
    pub(in crate::shard) fn waits(&self, file: &FileMeta) -> bool {
        self.unnamed.get(&file.path).is_some_and(|here| *here.file == *file)
    }

    /// Of these files those that are not here; [`unknown`](State::unknown) ones count as not here.
    pub(in crate::shard) fn missing<'a>(&self, files: impl IntoIterator<Item = &'a FileMeta>) -> Vec<FileMeta> {
        let live: HashSet<&str> = self.live.values().flatten().map(|file| file.path.as_str()).collect();
        files.into_iter().filter(|file| !live.contains(file.path.as_str()) && !self.waits(file)).cloned().collect()
    }

    /// A file that is here and named, or waits for the edit that names it, or was named a moment ago; it stays on disk while
    /// the `Arc` is held.
    pub(in crate::shard) fn pin(&self, path: &str) -> Option<Arc<FileMeta>> {
        let live = self.live.values().flatten().find(|file| file.path == path).cloned();
        live.or_else(|| self.pin_other(path))
    }

    pub(in crate::shard) fn pin_other(&self, path: &str) -> Option<Arc<FileMeta>> {
        self.unnamed.get(path).map(|here| here.file.clone()).or_else(|| self.leaving.find(path))
    }

    /// Applies an edit. Whether it fits is decided by the manifest alone; its files are looked for afterwards.
    pub(in crate::shard) fn edit(&mut self, index: LogIndex, edit: &ManifestEdit) -> Outcome {
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
    pub(in crate::shard) fn settle(&mut self, place: usize) -> Vec<FileMeta> {
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
            let own = Manifest {
                flushed,
                as_of: Some(index),
                range: split.upper(),
                dropped_files: BTreeSet::new(),
                split: None,
                split_done: None,
                version: 0,
                ..manifest.clone()
            };
            manifest.split = Some(Box::new(SplitOff { child: split.child, manifest: own }));
        }
        dropped
    }

    /// Lets go of files that the manifest does not name any more. While behind, views still need the inputs of compactions.
    pub(in crate::shard) fn release(&mut self, left: &[FileMeta], leave: fn(&mut Leaving, Arc<FileMeta>)) {
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
    pub(in crate::shard) fn lacks(&self) -> Vec<FileMeta> {
        match self.behind {
            Some(_) => self.missing(self.manifest.files.values()),
            None => Vec::new(),
        }
    }

    /// Lets the manifest's files take the place of what this replica went by: all of them are here. Drops exactly the sealed
    /// memtables that they cover.
    pub(in crate::shard) fn catch_up(&mut self) {
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
    pub(in crate::shard) fn before_install(&self, manifest: Manifest) -> Manifest {
        let mut dropped_files = self.manifest.dropped_files.clone();
        dropped_files.retain(|path| !manifest.files.contains_key(path));
        Manifest { dropped_files, version: self.manifest.version, ..manifest }
    }

    /// Replaces everything by the state of a manifest that is on disk and whose files are here.
    pub(in crate::shard) fn install(&mut self, manifest: Manifest, retries: Retries) {
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
    pub(in crate::shard) fn replace_live(&mut self) {
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
    pub(in crate::shard) fn flushed(&mut self, end: LogIndex, last: usize) {
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

    /// Files of an edit that had no effect, unless an earlier one names them: no later one can.
    pub(in crate::shard) fn leave_unnamed(&mut self, edit: &ManifestEdit) {
        for file in edit.files() {
            if self.waits(file)
                && !self.manifest.files.contains_key(&file.path)
                && let Some(here) = self.unnamed.remove(&file.path)
            {
                self.leaving.compacted(here.file);
            }
        }
    }

    pub(in crate::shard) fn add_live(&mut self, files: Vec<Arc<FileMeta>>) {
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
    pub(in crate::shard) fn take_live(&mut self, file: &FileMeta) -> Option<Arc<FileMeta>> {
        let place = self.live.get(&file.table)?.iter().position(|f| f.path == file.path)?;
        let taken = Arc::make_mut(&mut self.live).get_mut(&file.table).expect("it was found there").remove(place);
        self.file_bytes -= taken.bytes;
        self.file_rows -= taken.rows;
        Some(taken)
    }

    /// Paths of files that can be removed: no manifest on disk names them, no edit to come can, no view reads them.
    pub(in crate::shard) fn sweep(&mut self) -> Vec<String> {
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
    pub(in crate::shard) fn may_be_named(&self, file: &FileMeta) -> bool {
        let live = self.live.get(&file.table).map_or(&[] as &[Arc<FileMeta>], Vec::as_slice);
        let takes_the_place = || live.iter().any(|input| input.from == file.from) && live.iter().any(|input| input.to == file.to);
        self.manifest.flushed.is_none_or(|(_, flushed)| file.to > flushed) || (file.level > 0 && takes_the_place())
    }
}
