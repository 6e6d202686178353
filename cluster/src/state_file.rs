//! Small files that are read and written whole: the node's identity, a replica's number, the list of them, the metadata snapshot.
//!
//! ```text
//! file = | magic "ALLUVIUM" | kind u32 | format u32 | length u64 | payload … | xxh3-64 of everything before u64 |
//! ```
//!
//! A file is replaced atomically: the new one is written beside it, synced, and renamed over it. Numbers are little-endian.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use storage::Error as StorageError;
use storage::disk::Disk;
use xxhash_rust::xxh3::xxh3_64;

use crate::Result;

const MAGIC: &[u8; 8] = b"ALLUVIUM";
const HEAD_BYTES: usize = 24;
const TAIL_BYTES: usize = 8;

/// What a state file holds; a number never gets a second meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum StateFile {
    Identity = 1,
    Replica = 2,
    Metadata = 3,
    Replicas = 4,
}

/// The newest format that this program writes and reads.
const FORMAT: u32 = 1;

/// Replaces the file durably.
pub(crate) fn save(disk: &dyn Disk, path: &Path, kind: StateFile, payload: &[u8]) -> Result<()> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + payload.len() + TAIL_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(kind as u32).to_le_bytes());
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
    let beside = path.with_extension("new");
    let io = |doing: &'static str| move |source: io::Error| StorageError::io(doing, path, source);
    // Left over from a crash in the middle of this function; nothing names it.
    if listed(disk, &beside)? {
        disk.remove(&beside).map_err(io("remove"))?;
    }
    let write = || -> io::Result<()> {
        let mut file = disk.create(&beside)?;
        file.write_all(&bytes)?;
        file.sync()
    };
    if let Err(error) = write() {
        // A full disk: what was begun goes, so that the same call succeeds when there is room.
        let _ = disk.remove(&beside);
        return Err(StorageError::io("write", path, error).into());
    }
    disk.rename(&beside, path).map_err(io("rename"))?;
    disk.sync_dir(path.parent().expect("a state file is in a folder")).map_err(io("sync the folder of"))?;
    Ok(())
}

/// The file's payload; `None` where there is no file.
pub(crate) fn load(disk: &dyn Disk, path: &Path, kind: StateFile) -> Result<Option<Vec<u8>>> {
    if !listed(disk, path)? {
        return Ok(None);
    }
    let bytes = disk.read(path).map_err(|e| StorageError::io("read", path, e))?;
    let corrupt = |at: usize, what: &str| StorageError::Corrupt { path: path.to_owned(), at: at as u64, what: what.to_owned() };
    if bytes.len() < HEAD_BYTES + TAIL_BYTES || &bytes[..8] != MAGIC {
        return Err(corrupt(0, "it does not begin as a file of alluvium does").into());
    }
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    if number(12) > FORMAT {
        return Err(StorageError::NewerFormat { path: path.to_owned(), found: number(12), known: FORMAT }.into());
    }
    if number(8) != kind as u32 {
        return Err(corrupt(8, "it holds something else").into());
    }
    let end = bytes.len() - TAIL_BYTES;
    if u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes")) != (end - HEAD_BYTES) as u64 {
        return Err(corrupt(16, "its length is not what it says").into());
    }
    if u64::from_le_bytes(bytes[end..].try_into().expect("eight bytes")) != xxh3_64(&bytes[..end]) {
        return Err(corrupt(end, "its checksum does not match").into());
    }
    Ok(Some(bytes[HEAD_BYTES..end].to_vec()))
}

/// Reads every state file of a data directory, for people who check a stopped one; gives those that are damaged.
pub(crate) fn check_state_files(disk: &dyn Disk, data_dir: &Path) -> Vec<(PathBuf, crate::Error)> {
    let mut files = vec![
        (data_dir.join("identity"), StateFile::Identity),
        (data_dir.join("replicas"), StateFile::Replicas),
        (data_dir.join("meta").join("snapshot"), StateFile::Metadata),
    ];
    match disk.list(&data_dir.join("shards")) {
        Ok(shards) => files.extend(shards.into_iter().map(|shard| (shard.join("replica"), StateFile::Replica))),
        Err(e) => return vec![(data_dir.join("shards"), StorageError::io("list", data_dir.join("shards"), e).into())],
    }
    files.into_iter().filter_map(|(path, kind)| load(disk, &path, kind).err().map(|error| (path, error))).collect()
}

/// Whether there is a file or folder of this path.
pub(crate) fn listed(disk: &dyn Disk, path: &Path) -> Result<bool> {
    let dir = path.parent().expect("a state file is in a folder");
    let names = disk.list(dir).map_err(|e| StorageError::io("list", dir, e))?;
    Ok(names.iter().any(|name| name.file_name() == path.file_name()))
}
