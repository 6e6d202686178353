//! A shard's whole life on one screen: open, apply, seal, flush, compact, view.
//!
//! The shard is a state machine over its log: applying the same entries gives the same state on every replica. Applying
//! never waits for a scan, a flush or a compaction, which work on what they captured; it touches the disk only to save
//! the manifest after an edit. The state on disk is that of the flushed index (DESIGN rule 5): its owner replays the
//! log from there, and replaying an entry whose effect is on disk already changes nothing.
//!
//! A replica may lack a file that an edit names. The outcome is the same as everywhere, the rows stay where they are, and
//! it is *behind* until the files were [received](Shard::receive_file) and [adopted](Shard::adopt): it serves and applies as
//! before, and neither flushes nor compacts.
//!
//! It does not know who may write, how entries were agreed on, where files come from, or what becomes of an outcome.
//!
//! Locks, in this order: `flushing` or `compacting` (one upkeep of a kind at a time), `saving` (one manifest at a time),
//! `names` (a file gets its name or loses it), `state` (never held over anything that waits for the disk).

mod files;
mod split;
mod state;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use model::{Catalog, DatabaseId, LogIndex, ReplicaId, ShardId, TableId, TableSchema, Term, Timestamp};
use parking_lot::Mutex;

pub use self::files::{FileReceiver, SentFile};
use self::state::{Sealed, State};
use crate::compaction::{self, Eagerness};
use crate::disk::Disk;
use crate::entry::{Entry, Outcome};
use crate::flush::{self, FlushTable};
use crate::last_rows::TableLastRows;
use crate::manifest::{FileMeta, Manifest, ManifestEdit};
use crate::merge::{merge, whole_layout};
use crate::parquet_file::ParquetFiles;
use crate::scan::{Rows, ScanRequest, View};
use crate::snapshot::Snapshot;
use crate::{Error, Result};

/// Rows per batch that flush and compaction work with.
const UPKEEP_BATCH_ROWS: usize = 16 * 1024;
/// Tables of a memtable at which the shard asks to be sealed: each becomes a file at least, and all of them are named by one
/// entry of the log. As many as one database may have, so that many small tables alone do not make many small flushes.
const MEMTABLE_TABLES: usize = model::schema::MAX_TABLES_PER_DATABASE;
/// Rows in files up to which a table's newest rows are read from them after a start; a larger table is asked from its files.
const RECALL_ROWS: u64 = 50_000_000;

/// How a shard is kept.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// The file system.
    pub disk: Arc<dyn Disk>,
    /// The shard's folder.
    pub dir: PathBuf,
    /// Which shard.
    pub shard: ShardId,
    /// Which replica of it: file names carry it.
    pub replica: ReplicaId,
    /// Memtable bytes at which the shard asks to be sealed.
    pub flush_bytes: usize,
    /// Bytes of last rows kept at hand.
    pub last_rows_bytes: usize,
}

/// Figures for `system.shards`, metrics and the maintenance loop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// The last entry applied.
    pub applied: Option<LogIndex>,
    /// Everything up to here is in files.
    pub flushed: Option<LogIndex>,
    /// Rows in memtables.
    pub memtable_rows: u64,
    /// Bytes of memtables.
    pub memtable_bytes: u64,
    /// Live files.
    pub files: u64,
    /// Their bytes.
    pub file_bytes: u64,
    /// Their rows.
    pub file_rows: u64,
    /// Edits that are not in effect here because files are missing; 0: this replica is not behind.
    pub behind: u64,
}

/// What became of [`Shard::adopt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adopted {
    /// All files that the manifest names are here and in effect.
    Whole,
    /// Still behind: these files are missing, which entries after the snapshot brought.
    Lacks(Vec<FileMeta>),
}

/// One replica of one shard.
///
/// One caller at a time applies entries; flush, compaction and views may run beside it on other threads.
pub struct Shard {
    options: ShardOptions,
    parquet: Arc<ParquetFiles>,
    flushing: Mutex<()>,
    compacting: Mutex<()>,
    saving: Mutex<()>,
    names: Arc<Mutex<()>>,
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard").field("shard", &self.options.shard).field("dir", &self.options.dir).finish_non_exhaustive()
    }
}

impl Shard {
    /// Opens the shard's folder, or founds it. The state is that of the flushed index: the log is replayed from there
    /// by whoever owns it.
    pub fn open(options: ShardOptions) -> Result<Shard> {
        let (disk, dir) = (&options.disk, &options.dir);
        disk.create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        let manifest = Manifest::load(&**disk, dir)?.unwrap_or_default();
        files::remove_half_received(&**disk, dir)?;
        let parquet = ParquetFiles::new(disk.clone(), dir.clone(), options.replica);
        let found = parquet.list()?;
        let orphans = manifest.orphans(found.iter().map(String::as_str)).into_iter().map(str::to_owned).collect();
        let state = State::restore(manifest, orphans).map_err(|e| Error::Corrupt {
            path: dir.join(crate::manifest::FILE),
            at: e.at as u64,
            what: format!("its retry table has a {e}"),
        })?;
        tracing::info!(shard = %options.shard, files = state.figures().files, flushed = ?state.figures().flushed, "shard opened");
        Ok(Shard {
            parquet,
            flushing: Mutex::default(),
            compacting: Mutex::default(),
            saving: Mutex::default(),
            names: Arc::default(),
            state: Arc::new(Mutex::new(state)),
            options,
        })
    }

    /// Which replica of the shard this is.
    pub fn replica(&self) -> ReplicaId {
        self.options.replica
    }

    /// The position that the state covers which is not only in memory, and the membership that was in force there:
    /// replay starts after it.
    pub fn flushed(&self) -> (Option<(Term, LogIndex)>, Vec<u8>) {
        let state = self.state.lock();
        (state.held().flushed, state.held().membership.clone())
    }

    /// Applies a committed entry; one outcome per write part, or one for any other entry.
    pub fn apply(&self, term: Term, index: LogIndex, entry: &Entry) -> Result<Vec<Outcome>> {
        let outcome = match entry {
            Entry::Write(parts) => return Ok(self.state.lock().write(index, parts)),
            Entry::Seal => self.state.lock().seal(term, index),
            Entry::Manifest(edit) => {
                self.recognize(edit.files());
                let (outcome, before, behind) = {
                    let mut state = self.state.lock();
                    let before = state.edits_behind();
                    (state.edit(index, edit), before, state.edits_behind())
                };
                if before == 0 && behind > 0 {
                    tracing::warn!(shard = %self.options.shard, %index, "an edit names files that are not here: the rows stay where they are until it has them");
                }
                self.save_soon();
                outcome
            }
            Entry::Retention { database, cutoff } => self.state.lock().retain(index, *database, *cutoff),
            Entry::DropTable { table } => self.state.lock().drop_table(index, *table),
            Entry::Split(split) => self.state.lock().split(term, index, split),
            Entry::Range(range) => self.state.lock().take_range(term, index, *range),
            Entry::SplitDone { child } => self.state.lock().split_done(index, *child),
        };
        Ok(vec![outcome])
    }

    /// Takes note of an entry that has no effect on rows (raft's blank and membership entries). `membership` is what
    /// [`flushed`](Shard::flushed) gives once this index is flushed (openraft's, opaque here).
    pub fn apply_other(&self, _term: Term, index: LogIndex, membership: Option<Vec<u8>>) -> Result<()> {
        self.state.lock().other(index, membership);
        Ok(())
    }

    /// Whether the memtable is so large, or of so many tables, that a seal should be proposed.
    pub fn wants_seal(&self) -> bool {
        let state = self.state.lock();
        state.active_bytes() >= self.options.flush_bytes || state.active_tables() >= MEMTABLE_TABLES
    }

    /// Whether there is any row that no file has (of `table`, or of all).
    pub fn has_unflushed(&self, table: Option<TableId>) -> bool {
        self.state.lock().has_unflushed(table)
    }

    /// Writes the oldest sealed memtable to files, verifies and syncs them, and gives the edit to propose. `None`: nothing
    /// is sealed. Refused while this replica is behind. Rows of
    /// tables that the catalog has forgotten leave; one that is older than the rows is refused.
    pub fn flush(&self, catalog: &Catalog) -> Result<Option<ManifestEdit>> {
        let _one_at_a_time = self.flushing.lock();
        self.tidy()?;
        self.refuse_if_behind()?;
        let (start, sealed, view) = {
            let state = self.state.lock();
            let Some(sealed) = state.oldest_sealed() else { return Ok(None) };
            (state.held().flushed.map(|(_, index)| index), sealed, self.capture(&state))
        };
        let tables = sealed.tables.iter().filter_map(|(&id, rows)| {
            let Some((database, schema)) = catalog.table(id) else {
                if !catalog.has_forgotten(id) {
                    let newest = rows.schema_version();
                    return Some(Err(Error::StaleSchema { table: format!("number {id}").into(), asked: 0, newest }));
                }
                tracing::warn!(shard = %self.options.shard, table = %id, rows = rows.rows(), "rows of a table that the catalog has forgotten leave");
                return None;
            };
            if schema.version < rows.schema_version() {
                return Some(Err(Error::StaleSchema { table: schema.name.clone(), asked: schema.version, newest: rows.schema_version() }));
            }
            let mut request = whole(schema);
            if let Some(&cutoff) = view.cutoffs.get(&schema.database.0) {
                request.times = cutoff..=i64::MAX;
            }
            let sorted = rows.sorted(&request);
            (sorted.len() > 0).then(|| {
                Ok(FlushTable { database: database.name.clone(), schema: schema.clone(), days: rows.days(), rows: sorted.read(&request) })
            })
        });
        let (term, end) = sealed.end;
        let files = flush::flush(&self.parquet, (sealed.start, end), sealed.range_version, tables)?;
        let last_rows = self.last_rows_after(&view, &sealed, catalog)?;
        let mut state = self.state.lock();
        state.made(&files);
        state.expect_flush(end, &view, last_rows, self.options.last_rows_bytes);
        Ok(Some(ManifestEdit::Flush { start, end, term, files, replica: self.options.replica }))
    }

    /// Runs the next compaction that pays (`full`: until each row stands once, then `None`), and gives the edit to propose.
    /// Refused while this replica is behind; while a part is being split off nothing pays, and `full` is refused.
    pub fn compact(&self, catalog: &Catalog, table: Option<TableId>, full: bool) -> Result<Option<ManifestEdit>> {
        let _one_at_a_time = self.compacting.lock();
        self.tidy()?;
        self.refuse_if_behind()?;
        self.recall(catalog);
        // The view keeps the inputs on disk until their rows are in the output. Under one lock: a view from before a split has
        // both halves.
        let view = {
            let state = self.state.lock();
            if state.is_splitting() {
                return if full { Err(Error::Splitting { shard: self.options.shard }) } else { Ok(None) };
            }
            self.capture(&state)
        };
        // A table that the catalog does not know as its files do waits for a newer one.
        let known = |files: &&Vec<Arc<FileMeta>>| {
            let of = files.first().and_then(|file| catalog.table(file.table));
            of.is_some_and(|(_, schema)| files.iter().all(|file| file.schema_version <= schema.version))
        };
        let files = view.files.values().filter(known).flatten().map(|file| &**file);
        let eagerness = if full { Eagerness::UntilEachRowStandsOnce } else { Eagerness::WhenItPays };
        let Some(plan) = compaction::plan(files, &view.cutoffs, &view.range, table, eagerness) else { return Ok(None) };
        let (database, schema) = catalog.table(plan.table).expect("only files of known tables were offered");
        let cutoff = Timestamp(view.cutoffs.get(&database.id.0).copied().unwrap_or(i64::MIN));
        let edit = compaction::compact(&self.parquet, &plan, database.name.clone(), schema, cutoff, view.range)?;
        self.state.lock().made(edit.files());
        Ok(Some(edit))
    }

    /// The instants before which each database's rows are dropped, as of the last entry applied.
    pub fn cutoffs(&self) -> BTreeMap<DatabaseId, Timestamp> {
        let view = self.view();
        view.cutoffs.iter().map(|(&database, &cutoff)| (DatabaseId(database), Timestamp(cutoff))).collect()
    }

    /// The state at the flushed index, for a replica that lacks it. While this replica is behind, it is the newest one whose
    /// files are all here.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let (manifest, pins) = self.state.lock().snapshot();
        Snapshot::new(manifest, pins)
    }

    /// Heals a replica that is behind, from a snapshot of another one and its files, which were received before.
    ///
    /// The snapshot says which files to receive; what became of them since, this replica's log has told it, so it is the
    /// manifest as of its own last entry that takes effect: the sealed memtables up to its flushed index, which is the
    /// snapshot's or a later one, are dropped, and nothing else changes. Does nothing unless it is behind.
    pub fn adopt(&self, snapshot: Snapshot) -> Result<Adopted> {
        self.recognize(snapshot.files());
        let lacks = {
            let state = self.state.lock();
            let (applied, flushed) = (state.figures().applied, state.held().flushed);
            let reaches = snapshot.flushed().map(|(_, index)| index);
            if reaches > applied {
                return Err(misfit(format!("it reaches entry {reaches:?}, and {applied:?} is applied: install it")));
            }
            if snapshot.flushed() < flushed {
                return Err(misfit(format!("it reaches entry {reaches:?}, and {flushed:?} is flushed: ask for a newer one")));
            }
            state.lacks()
        };
        // Files that later entries brought may be on the disk since before this process began.
        self.recognize(&lacks);
        {
            let mut state = self.state.lock();
            let lacks = state.lacks();
            if !lacks.is_empty() {
                return Ok(Adopted::Lacks(lacks));
            }
            state.catch_up();
        }
        self.save_soon();
        Ok(Adopted::Whole)
    }

    /// Makes all state the snapshot's, durably: memtables are dropped, and its flushed index is the last entry applied. Its
    /// files were received before. A crash leaves the old state or the new one. No entry may be applied meanwhile.
    pub fn install(&self, snapshot: Snapshot) -> Result<()> {
        self.recognize(snapshot.files());
        let _one_at_a_time = self.saving.lock();
        let (mut manifest, retries, _pins) = {
            let state = self.state.lock();
            let (applied, reaches) = (state.figures().applied, snapshot.flushed().map(|(_, index)| index));
            if reaches < applied {
                return Err(misfit(format!("it reaches entry {reaches:?}, and {applied:?} is applied: adopt it")));
            }
            let missing = state.missing(snapshot.files());
            if let Some(first) = missing.first() {
                return Err(Error::MissingFiles { shard: self.options.shard, files: missing.len(), first: first.path.clone() });
            }
            let pins: Vec<_> = snapshot.files().iter().filter_map(|file| state.pin(&file.path)).collect();
            let (manifest, retries) = snapshot.into_parts();
            (state.before_install(manifest), retries, pins)
        };
        if let Err(error) = manifest.save(&*self.options.disk, &self.options.dir) {
            self.state.lock().save_again();
            return Err(error);
        }
        self.state.lock().install(manifest, retries);
        Ok(())
    }

    /// Memtable and files as of the last applied entry.
    pub fn view(&self) -> View {
        self.capture(&self.state.lock())
    }

    /// All live files.
    pub fn files(&self) -> Vec<FileMeta> {
        self.state.lock().files()
    }

    /// The first log index that must be kept: everything before it is in files that the manifest on disk names.
    pub fn purgeable(&self) -> Option<LogIndex> {
        self.state.lock().saved().map(LogIndex::next)
    }

    /// Figures.
    pub fn stats(&self) -> ShardStats {
        self.state.lock().figures()
    }

    fn capture(&self, state: &State) -> View {
        state.capture(self.parquet.clone())
    }

    /// Saves what is not saved yet and removes files that nothing needs any more. `flush` and `compact` begin with it; a
    /// replica that does neither calls it now and then.
    pub fn tidy(&self) -> Result<()> {
        self.save()?;
        let _names = self.names.lock();
        let free = self.state.lock().sweep();
        if !free.is_empty() {
            tracing::debug!(shard = %self.options.shard, files = free.len(), "files removed that nothing names any more");
            self.parquet.remove(free.iter().map(String::as_str));
        }
        Ok(())
    }

    fn refuse_if_behind(&self) -> Result<()> {
        match self.state.lock().edits_behind() {
            0 => Ok(()),
            edits => Err(Error::Behind { shard: self.options.shard, edits }),
        }
    }

    /// Saves the manifest; a failure is told by the next `tidy`, which tries again. Until then the log is kept.
    fn save_soon(&self) {
        if let Err(error) = self.save() {
            tracing::warn!(shard = %self.options.shard, %error, "the manifest could not be saved; the log is kept until it is");
        }
    }

    fn save(&self) -> Result<()> {
        let _one_at_a_time = self.saving.lock();
        let Some(mut manifest) = self.state.lock().begin_save() else { return Ok(()) };
        let saved = manifest.save(&*self.options.disk, &self.options.dir);
        self.state.lock().end_save(&manifest, saved.is_ok());
        saved
    }

    /// Reads the newest rows of tables whose files hold rows from before this process, so that they are at hand again.
    ///
    /// A table that cannot be read or is too large is asked from its files: slower, never wrong.
    fn recall(&self, catalog: &Catalog) {
        let (view, tables) = {
            let mut state = self.state.lock();
            (self.capture(&state), state.take_unsure())
        };
        for id in tables {
            let files = view.files.get(&id).map_or(&[] as &[Arc<FileMeta>], Vec::as_slice);
            let rows: u64 = files.iter().map(|f| f.rows).sum();
            let Some((_, schema)) = catalog.table(id) else { continue };
            if rows > RECALL_ROWS {
                continue;
            }
            let in_files = View { memtables: Vec::new(), ..view.clone() };
            let newest = in_files.scan(&whole(schema)).and_then(|rows| TableLastRows::of(schema, rows, self.options.last_rows_bytes));
            match newest {
                Ok(newest) => self.state.lock().recalled(id, &view, newest.map(Arc::new), self.options.last_rows_bytes),
                Err(error) => {
                    tracing::warn!(shard = %self.options.shard, table = %id, %error, "the newest rows of a table could not be read")
                }
            }
        }
    }

    /// What the newest rows of the sealed memtable's tables will be once it is flushed; `None` where that is not sure.
    fn last_rows_after(&self, view: &View, sealed: &Sealed, catalog: &Catalog) -> Result<HashMap<TableId, Option<Arc<TableLastRows>>>> {
        let mut after = HashMap::new();
        for (&id, rows) in sealed.tables.iter() {
            let Some((_, schema)) = catalog.table(id) else { continue };
            if view.range.is_narrower_than(sealed.range_version) {
                // It holds other shards' series too.
                after.insert(id, None);
                continue;
            }
            let request = whole(schema);
            let mut sources: Vec<Rows> = Vec::new();
            match view.last_rows.get(&id) {
                Some(known) => sources.push(known.read(&request)),
                None if view.files.get(&id).is_none_or(Vec::is_empty) => {}
                None => {
                    after.insert(id, None);
                    continue;
                }
            }
            sources.push(rows.newest(&request).read(&request));
            let merged = merge(schema, &request.projection, sources, UPKEEP_BATCH_ROWS);
            after.insert(id, TableLastRows::of(schema, merged, self.options.last_rows_bytes)?.map(Arc::new));
        }
        Ok(after)
    }
}

fn misfit(why: String) -> Error {
    Error::Unfit { what: "a snapshot".to_owned(), why }
}

/// Asks for all rows of a table, with all columns.
fn whole(table: &Arc<TableSchema>) -> ScanRequest {
    ScanRequest {
        table: table.clone(),
        projection: whole_layout(table),
        times: i64::MIN..=i64::MAX,
        tags: Vec::new(),
        batch_rows: UPKEEP_BATCH_ROWS,
    }
}
