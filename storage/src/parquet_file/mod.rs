//! The Parquet files of one shard: immutable, sorted, checked whenever they are read.
//!
//! A file holds rows of one table and one day (or, under `late/`, of several days that had few rows), sorted by series key
//! and time, each row identity once. Any Parquet reader can read it: columns are named as in SQL, time is
//! `TIMESTAMP(NANOS)` without time zone, strings are plain `STRING`, a column has one type in all files. Its bytes are
//! drawn in [`write`], [`names`] and [`pages`]. Which files count is the manifest's business, not this module's.

pub mod encoding;
mod inspect;
mod leaving;
pub mod names;
mod pages;
mod prune;
mod read;
mod tag_column;
mod write;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::{DataType, TimeUnit};
use model::{ColumnType, ReplicaId};
use parking_lot::Mutex;

use crate::disk::Disk;
use crate::manifest::FileMeta;
use crate::{Error, Result};

pub use encoding::Effort;
pub use inspect::{ColumnReport, FileReport, inspect};
pub use leaving::{KEEP_DROPPED_NS, Leaving};
pub use read::{ParquetFile, damage_is_expected};
pub use write::{FileWriter, NewFile};

/// Files that one shard keeps open at most.
const MAX_OPEN_FILES: usize = 256;
/// Bytes of footers and indexes that one shard keeps at most; the file in use is always kept.
const MAX_FOOTER_BYTES: usize = 64 << 20;

/// Arrow's type of time.
pub(crate) fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, None)
}

/// Arrow's type of a field.
pub(crate) fn field_type(kind: ColumnType) -> DataType {
    match kind {
        ColumnType::F64 => DataType::Float64,
        ColumnType::I64 => DataType::Int64,
        ColumnType::U64 => DataType::UInt64,
        ColumnType::Bool => DataType::Boolean,
        ColumnType::Str => DataType::Utf8View,
    }
}

/// The Parquet files of one replica of one shard.
#[derive(Debug)]
pub struct ParquetFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    replica: ReplicaId,
    next: AtomicU64,
    open: Mutex<OpenFiles>,
}

/// Open files by path, with the turn in which each was last used.
#[derive(Debug, Default)]
struct OpenFiles {
    files: HashMap<String, (Arc<ParquetFile>, u64)>,
    bytes: usize,
    turn: u64,
}

impl ParquetFiles {
    /// The files below a shard's folder.
    pub fn new(disk: Arc<dyn Disk>, dir: PathBuf, replica: ReplicaId) -> Arc<ParquetFiles> {
        // Not the numbers of an earlier process, whose files may be known under their names elsewhere. Without chance they
        // are still names that are free here.
        let first = disk.nonce().unwrap_or_default() & u64::from(u32::MAX);
        Arc::new(ParquetFiles { disk, dir, replica, next: AtomicU64::new(first), open: Mutex::default() })
    }

    /// The shard's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The replica whose files these are.
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Begins a new file.
    pub fn create(self: &Arc<Self>, new: NewFile) -> Result<FileWriter> {
        FileWriter::create(self, new)
    }

    /// Opens a file that the manifest names; an open one is shared.
    pub fn open(&self, meta: &FileMeta) -> Result<Arc<ParquetFile>> {
        if let Some(file) = self.open.lock().get(&meta.path) {
            return Ok(file);
        }
        // Not under the lock: a slow disk must not hold up scans of files that are open. Two scans may open one file
        // twice; the second replaces the first.
        let file = Arc::new(ParquetFile::open(&*self.disk, self.dir.join(&meta.path), meta)?);
        self.open.lock().insert(meta.path.clone(), file.clone());
        Ok(file)
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// Checks length and tail of a file that may be the one that is meant.
    pub(crate) fn check_tail(&self, meta: &FileMeta) -> Result<()> {
        ParquetFile::open(self.disk(), self.dir.join(&meta.path), meta).map(drop)
    }

    /// Reads back what is to become this file and lies at `path`, and compares every byte.
    pub(crate) fn verify_at(&self, path: &Path, meta: &FileMeta) -> Result<()> {
        ParquetFile::open(self.disk(), path.to_owned(), meta)?.verify(meta)
    }

    /// Gives a verified file its name, durably. An open one by this name is opened anew.
    pub(crate) fn rename_into_place(&self, from: &Path, meta: &FileMeta) -> Result<()> {
        let path = self.dir.join(&meta.path);
        let folder = path.parent().expect("a file lies in a folder");
        self.disk.create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        // A name that a crash may forget is not renamed: the new one might be forgotten with it.
        let before = from.parent().expect("a file lies in a folder");
        self.disk.sync_dir(before).map_err(|e| Error::io("sync", before, e))?;
        self.disk.rename(from, &path).map_err(|e| Error::io("rename", from, e))?;
        self.open.lock().forget(&meta.path);
        self.sync_folders([meta])
    }

    /// Reads a file back and compares every byte with what the manifest says of it.
    pub fn verify(&self, meta: &FileMeta) -> Result<()> {
        verify(&*self.disk, &self.dir, meta)
    }

    /// Makes the names of files durable, each folder once; before this no manifest may name them.
    pub fn sync_folders<'a>(&self, files: impl IntoIterator<Item = &'a FileMeta>) -> Result<()> {
        let mut folders = BTreeSet::new();
        for file in files {
            let path = self.dir.join(&file.path);
            folders.extend(path.ancestors().skip(1).take_while(|p| p.starts_with(&self.dir)).map(Path::to_owned));
        }
        // Deepest first: a folder's name is durable once its parent is synced.
        folders.iter().rev().try_for_each(|folder| self.disk.sync_dir(folder).map_err(|e| Error::io("sync", folder, e)))
    }

    /// Removes files that nothing names any more. One that cannot be removed is left to the next start's search for orphans.
    pub fn remove<'a>(&self, paths: impl IntoIterator<Item = &'a str>) {
        for relative in paths {
            self.open.lock().forget(relative);
            let path = self.dir.join(relative);
            match self.disk.remove(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(path = %path.display(), %error, "could not remove a file that is not needed any more"),
            }
        }
    }

    /// Every Parquet file in the shard's folder, by path below it, whether the manifest names it or not.
    pub fn list(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let databases = self.below(names::FOLDER)?;
        for table in self.each_below(&databases)? {
            for folder in self.below(&table)? {
                found.extend(self.below(&folder)?.into_iter().filter(|path| path.ends_with(".parquet")));
            }
        }
        Ok(found)
    }

    fn each_below(&self, folders: &[String]) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for folder in folders {
            all.extend(self.below(folder)?);
        }
        Ok(all)
    }

    fn below(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.dir.join(folder);
        let names = self.disk.list(&path).map_err(|e| Error::io("list", &path, e))?;
        let names = names.iter().filter_map(|name| name.file_name()?.to_str());
        Ok(names.map(|name| format!("{folder}/{name}")).collect())
    }
}

/// Reads a file below the shard's folder `dir` and compares every byte with what the manifest says of it.
pub fn verify(disk: &dyn Disk, dir: &Path, meta: &FileMeta) -> Result<()> {
    ParquetFile::open(disk, dir.join(&meta.path), meta)?.verify(meta)
}

impl OpenFiles {
    fn get(&mut self, path: &str) -> Option<Arc<ParquetFile>> {
        self.turn += 1;
        let (file, used) = self.files.get_mut(path)?;
        *used = self.turn;
        Some(file.clone())
    }

    fn insert(&mut self, path: String, file: Arc<ParquetFile>) {
        self.turn += 1;
        self.bytes += file.memory_bytes();
        if let Some((old, _)) = self.files.insert(path, (file, self.turn)) {
            self.bytes -= old.memory_bytes();
        }
        while self.files.len() > 1 && (self.files.len() > MAX_OPEN_FILES || self.bytes > MAX_FOOTER_BYTES) {
            let oldest = self.files.iter().min_by_key(|(_, (_, used))| *used).map(|(path, _)| path.clone());
            self.forget(&oldest.expect("there are files"));
        }
    }

    fn forget(&mut self, path: &str) {
        if let Some((old, _)) = self.files.remove(path) {
            self.bytes -= old.memory_bytes();
        }
    }
}
