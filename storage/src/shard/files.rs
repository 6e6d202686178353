//! A shard's files on their way: received from elsewhere, and read to be sent elsewhere.
//!
//! A received file is seen by nobody before it is whole: it grows under `incoming/`, is compared with what its manifest
//! entry says, synced, read back, and only then gets its name. A crash leaves either the whole file or, under `incoming/`,
//! what the next open removes. A file that is read to be sent stays on disk until its reader is dropped.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3;

use super::Shard;
use super::state::State;
use crate::disk::{Disk, ReadAt, WriteFile};
use crate::manifest::FileMeta;
use crate::parquet_file::ParquetFiles;
use crate::{Error, Result};

/// The folder below a shard's folder where received files grow.
const INCOMING: &str = "incoming";

/// Removes what an earlier process did not receive to its end.
pub(super) fn remove_half_received(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let incoming = dir.join(INCOMING);
    let left = disk.list(&incoming).map_err(|e| Error::io("list", &incoming, e))?;
    left.iter().try_for_each(|path| disk.remove(path).map_err(|e| Error::io("remove", path, e)))
}

impl Shard {
    /// Of these files those that are not here. Reads files that were on the disk when the shard was opened and that nothing
    /// has named since.
    pub fn missing_files(&self, files: &[FileMeta]) -> Vec<FileMeta> {
        let unknown: Vec<FileMeta> = self.state.lock().unknown(files).into_iter().cloned().collect();
        for file in unknown {
            match self.parquet.verify(&file).and_then(|()| self.parquet.sync_folders([&file])) {
                Ok(()) => self.state.lock().known(&file),
                Err(Error::Corrupt { .. }) => {
                    let _names = self.names.lock();
                    if self.state.lock().forget_orphan(&file.path) {
                        self.parquet.remove([file.path.as_str()]);
                    }
                }
                // It may be readable the next time; until then it is as good as missing.
                Err(error) => tracing::warn!(shard = %self.options.shard, path = file.path, %error, "a file could not be looked at"),
            }
        }
        self.state.lock().missing(files)
    }

    /// Begins to receive a file. One that is here already is replaced once the new one is whole, which repairs it.
    pub fn receive_file(&self, file: &FileMeta) -> Result<FileReceiver> {
        if !file.is_inside() {
            return Err(Error::Unfit { what: file.path.clone(), why: "it does not lie in the shard's folder".to_owned() });
        }
        let (disk, folder) = (&self.options.disk, self.options.dir.join(INCOMING));
        disk.create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
        let nonce = disk.nonce().map_err(|e| Error::io("name a file in", &folder, e))?;
        let path = folder.join(format!("{nonce:016x}"));
        let grows = disk.create(&path).map_err(|e| Error::io("create", &path, e))?;
        Ok(FileReceiver {
            meta: file.clone(),
            path,
            grows: Some(grows),
            written: 0,
            hash: Box::default(),
            parquet: self.parquet.clone(),
            names: self.names.clone(),
            state: self.state.clone(),
        })
    }

    /// Opens a file to be sent: one that the manifest names, or that was written here for an edit that is not applied yet.
    pub fn open_file(&self, path: &str) -> Result<SentFile> {
        let meta = self.state.lock().pin(path);
        let meta = meta.ok_or_else(|| Error::NoSuchFile { shard: self.options.shard, path: path.to_owned() })?;
        let full = self.options.dir.join(&meta.path);
        let file = self.options.disk.open(&full).map_err(|e| Error::io("open", &full, e))?;
        Ok(SentFile { meta, path: full, file })
    }

    /// At most `max` bytes of a file from `offset` on; none at its end. Opens it each time: see [`open_file`](Shard::open_file).
    pub fn read_file(&self, path: &str, offset: u64, max: usize) -> Result<Bytes> {
        self.open_file(path)?.read(offset, max)
    }

    /// Recognizes files that an earlier process left on the disk. Damage in the middle of one is found when it is read.
    pub(super) fn recognize(&self, files: &[FileMeta]) {
        let unknown: Vec<FileMeta> = self.state.lock().unknown(files).into_iter().cloned().collect();
        for file in unknown {
            match self.parquet.check_tail(&file).and_then(|()| self.parquet.sync_folders([&file])) {
                Ok(()) => self.state.lock().known(&file),
                Err(error) => tracing::warn!(shard = %self.options.shard, path = file.path, %error, "a file is not what it should be"),
            }
        }
    }
}

/// Receives one file. Dropped before [`finish`](FileReceiver::finish) has succeeded, it leaves nothing.
pub struct FileReceiver {
    meta: FileMeta,
    path: PathBuf,
    grows: Option<Box<dyn WriteFile>>,
    written: u64,
    hash: Box<Xxh3>,
    parquet: Arc<ParquetFiles>,
    names: Arc<Mutex<()>>,
    state: Arc<Mutex<State>>,
}

impl std::fmt::Debug for FileReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileReceiver").field("path", &self.meta.path).field("written", &self.written).finish_non_exhaustive()
    }
}

impl FileReceiver {
    /// Takes the next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.written + bytes.len() as u64;
        if written > self.meta.bytes {
            return Err(self.unfit(format!("it has more than {} bytes", self.meta.bytes)));
        }
        let grows = self.grows.as_mut().expect("it is open until it is finished");
        grows.write_all(bytes).map_err(|e| Error::io("write", &self.path, e))?;
        self.hash.update(bytes);
        self.written = written;
        Ok(())
    }

    /// Makes the file one of the shard's: whole, verified and durable.
    pub fn finish(mut self) -> Result<()> {
        if self.written != self.meta.bytes {
            return Err(self.unfit(format!("it has {} bytes and should have {}", self.written, self.meta.bytes)));
        }
        if self.hash.digest() != self.meta.checksum {
            return Err(self.unfit("its checksum does not match".to_owned()));
        }
        let mut grows = self.grows.take().expect("it is open until it is finished");
        // A failed sync says nothing about what is on disk, but nothing names this file: it is removed and received anew.
        let synced = grows.sync().map_err(|e| Error::io("sync", &self.path, e));
        drop(grows);
        synced?;
        self.parquet.verify_at(&self.path, &self.meta)?;
        // Nobody removes a file of this name from here until the shard knows that it is here.
        let names = self.names.clone();
        let _names = names.lock();
        let named = self.parquet.rename_into_place(&self.path, &self.meta);
        match &named {
            Ok(()) => self.state.lock().received(self.meta.clone()),
            Err(_) => self.state.lock().doubtful(&self.meta),
        }
        named
    }

    fn unfit(&self, why: String) -> Error {
        Error::Unfit { what: format!("the file received as {}", self.meta.path), why }
    }
}

impl Drop for FileReceiver {
    fn drop(&mut self) {
        drop(self.grows.take());
        match self.parquet.disk().remove(&self.path) {
            Ok(()) => {}
            // It has its name.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "could not remove a half received file; the next start does"),
        }
    }
}

/// A file that is being sent; it stays on disk until this is dropped.
#[derive(Debug)]
pub struct SentFile {
    meta: Arc<FileMeta>,
    path: PathBuf,
    file: Arc<dyn ReadAt>,
}

impl SentFile {
    /// What its manifest says of it.
    pub fn meta(&self) -> &FileMeta {
        &self.meta
    }

    /// At most `max` bytes from `offset` on; none at its end. Who receives them checks them.
    pub fn read(&self, offset: u64, max: usize) -> Result<Bytes> {
        let mut bytes = vec![0; self.meta.bytes.saturating_sub(offset).min(max as u64) as usize];
        if bytes.is_empty() {
            return Ok(Bytes::new());
        }
        self.file.read_exact_at(&mut bytes, offset).map_err(|e| Error::io("read", &self.path, e))?;
        Ok(bytes.into())
    }
}
