//! A disk in memory that fails when it is told to and loses power when it is told to: for tests.
//!
//! It behaves like a disk on a bad day, not like a friendly file system:
//!
//! - Any I/O, counted from 1, can be made to fail, once or from then on ([`fail_once`](FaultyDisk::fail_once),
//!   [`fail_from`](FaultyDisk::fail_from)); a test that tries every n until none fires has tried them all.
//! - A failed sync leaves the file as Linux does: some blocks reached the disk, some did not, and all of them count as
//!   clean, so that a second sync succeeds and saves nothing.
//! - [`power_loss`](FaultyDisk::power_loss) gives the disk as it may be found after the power went: of the bytes stored
//!   since the last sync a random subset of 512-byte blocks is there, of the creations, renames and removals since the last
//!   `sync_dir` a random subset happened. The disk itself goes on, so that one run can be cut at many points.
//!
//! Everything random comes from the seed. What it does not do: folders are durable at once, a block of 512 bytes is
//! never torn, and nothing rots by itself ([`flip_bit`](FaultyDisk::flip_bit) does that).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Disk, ReadAt, Segment, WriteFile};

/// What a power loss keeps or loses as a whole.
const BLOCK: usize = 512;

/// A disk in memory, for tests. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct FaultyDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    random: SmallRng,
    /// Files by name, as a running process sees them, and as they are after a power loss without luck.
    names: BTreeMap<PathBuf, FileId>,
    durable_names: BTreeMap<PathBuf, FileId>,
    /// What happened to names since the last `sync_dir` of their folder, in order.
    name_changes: Vec<NameChange>,
    files: BTreeMap<FileId, Content>,
    next_file: u64,
    ios: u64,
    fault: Option<Fault>,
    /// Bytes that all files together may have.
    capacity: u64,
}

type FileId = u64;

#[derive(Clone, Debug)]
enum NameChange {
    Create(PathBuf, FileId),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

#[derive(Clone, Debug, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Blocks that differ from `durable`, or may.
    dirty: BTreeSet<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    at: u64,
    kind: ErrorKind,
    sticky: bool,
}

impl FaultyDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> FaultyDisk {
        FaultyDisk {
            state: Arc::new(Mutex::new(State {
                random: SmallRng::seed_from_u64(seed),
                names: BTreeMap::new(),
                durable_names: BTreeMap::new(),
                name_changes: Vec::new(),
                files: BTreeMap::new(),
                next_file: 0,
                ios: 0,
                fault: None,
                capacity: u64::MAX,
            })),
        }
    }

    /// How many I/Os there were: every read, store, sync, and change of a name.
    pub fn ios(&self) -> u64 {
        self.state.lock().ios
    }

    /// Makes the `n`-th I/O from now (1 is the next one) fail.
    pub fn fail_once(&self, n: u64, kind: ErrorKind) {
        let mut state = self.state.lock();
        state.fault = Some(Fault { at: state.ios + n, kind, sticky: false });
    }

    /// Makes the `n`-th I/O from now (1 is the next one) and every one after it fail.
    pub fn fail_from(&self, n: u64, kind: ErrorKind) {
        let mut state = self.state.lock();
        state.fault = Some(Fault { at: state.ios + n, kind, sticky: true });
    }

    /// Lets I/Os succeed again.
    pub fn heal(&self) {
        self.state.lock().fault = None;
    }

    /// Bounds the bytes of all files together; what does not fit fails with `StorageFull`.
    pub fn set_capacity(&self, bytes: u64) {
        self.state.lock().capacity = bytes;
    }

    /// The disk as it may be found after the power went now. This one goes on as if nothing had happened.
    pub fn power_loss(&self, seed: u64) -> FaultyDisk {
        let state = self.state.lock();
        let mut random = SmallRng::seed_from_u64(seed);
        let mut names = state.durable_names.clone();
        // Sometimes all or none of the changes, mostly some.
        let luck = [0.0, 0.5, 0.5, 1.0][random.random_range(0..4)];
        for change in &state.name_changes {
            if random.random_bool(luck) {
                apply(&mut names, change);
            }
        }
        let mut files = BTreeMap::new();
        for &id in names.values() {
            let luck = [0.0, 0.1, 0.5, 0.9, 1.0][random.random_range(0..5)];
            files.insert(id, survivor(&state.files[&id], luck, &mut random));
        }
        let next_file = state.next_file;
        FaultyDisk {
            state: Arc::new(Mutex::new(State {
                random,
                durable_names: names.clone(),
                names,
                name_changes: Vec::new(),
                files,
                next_file,
                ios: 0,
                fault: None,
                capacity: state.capacity,
            })),
        }
    }

    /// The disk as it is found after the process was killed: everything that was stored is there.
    pub fn kill(&self) -> FaultyDisk {
        let state = self.state.lock();
        let mut random = state.random.clone();
        let random = SmallRng::seed_from_u64(random.random());
        FaultyDisk {
            state: Arc::new(Mutex::new(State {
                random,
                names: state.names.clone(),
                durable_names: state.durable_names.clone(),
                name_changes: state.name_changes.clone(),
                files: state.files.clone(),
                next_file: state.next_file,
                ios: 0,
                fault: None,
                capacity: state.capacity,
            })),
        }
    }

    /// Names and lengths of all files.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let state = self.state.lock();
        state.names.iter().map(|(name, id)| (name.clone(), state.files[id].now.len() as u64)).collect()
    }

    /// A file's bytes, without an I/O.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn bytes(&self, path: &Path) -> Vec<u8> {
        let state = self.state.lock();
        state.files[&state.names[path]].now.clone()
    }

    /// Replaces a file's bytes, durably and without an I/O: damage, or a file cut short.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn set_bytes(&self, path: &Path, bytes: Vec<u8>) {
        let mut state = self.state.lock();
        let id = state.names[path];
        state.files.insert(id, Content { durable: bytes.clone(), now: bytes, dirty: BTreeSet::new() });
    }

    /// Turns one bit of a file over, as rot does.
    ///
    /// # Panics
    /// If there is no such file or no such byte.
    pub fn flip_bit(&self, path: &Path, byte: u64, bit: u8) {
        let mut state = self.state.lock();
        let id = state.names[path];
        let content = state.files.get_mut(&id).expect("a name has a file");
        content.now[byte as usize] ^= 1 << bit;
        if let Some(durable) = content.durable.get_mut(byte as usize) {
            *durable ^= 1 << bit;
        }
    }
}

/// What is left of a file: each block that was not synced is there with probability `luck`.
fn survivor(content: &Content, luck: f64, random: &mut SmallRng) -> Content {
    let mut bytes = content.durable.clone();
    if content.now.len() > bytes.len() && random.random_bool(luck) {
        bytes.resize(content.now.len(), 0);
    }
    for &block in &content.dirty {
        let start = block * BLOCK;
        let end = (start + BLOCK).min(bytes.len()).min(content.now.len());
        if start < end && random.random_bool(luck) {
            bytes[start..end].copy_from_slice(&content.now[start..end]);
        }
    }
    Content { durable: bytes.clone(), now: bytes, dirty: BTreeSet::new() }
}

fn apply(names: &mut BTreeMap<PathBuf, FileId>, change: &NameChange) {
    match change {
        NameChange::Create(path, id) => {
            names.insert(path.clone(), *id);
        }
        NameChange::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
        NameChange::Remove(path) => {
            names.remove(path);
        }
    }
}

impl NameChange {
    fn touches(&self, dir: &Path) -> bool {
        let inside = |path: &PathBuf| path.parent() == Some(dir);
        match self {
            NameChange::Create(path, _) | NameChange::Remove(path) => inside(path),
            NameChange::Rename(from, to) => inside(from) || inside(to),
        }
    }
}

impl State {
    /// Counts one I/O and fails it if it is its turn.
    fn io(&mut self) -> io::Result<()> {
        self.ios += 1;
        match self.fault {
            Some(Fault { at, kind, sticky }) if self.ios == at || (sticky && self.ios > at) => {
                Err(io::Error::new(kind, format!("injected at I/O {}", self.ios)))
            }
            _ => Ok(()),
        }
    }

    fn file(&self, path: &Path) -> io::Result<FileId> {
        self.names.get(path).copied().ok_or_else(|| not_found(path))
    }

    fn change(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.name_changes.push(change);
    }

    fn create(&mut self, path: &Path) -> io::Result<FileId> {
        self.io()?;
        if self.names.contains_key(path) {
            return Err(io::Error::new(ErrorKind::AlreadyExists, path.display().to_string()));
        }
        let id = self.next_file;
        self.next_file += 1;
        self.files.insert(id, Content::default());
        self.change(NameChange::Create(path.to_owned(), id));
        Ok(id)
    }

    fn free(&self) -> u64 {
        let used: u64 = self.names.values().map(|id| self.files[id].now.len() as u64).sum();
        self.capacity.saturating_sub(used)
    }

    fn write(&mut self, id: FileId, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.io()?;
        let end = offset + bytes.len();
        let grows = end.saturating_sub(self.files[&id].now.len()) as u64;
        if grows > 0 && grows > self.free() {
            return Err(ErrorKind::StorageFull.into());
        }
        let content = self.files.get_mut(&id).expect("an open file exists");
        if content.now.len() < end {
            content.now.resize(end, 0);
        }
        content.now[offset..end].copy_from_slice(bytes);
        content.dirty.extend(offset / BLOCK..end.div_ceil(BLOCK));
        Ok(())
    }

    fn sync(&mut self, id: FileId, offset: usize, len: usize) -> io::Result<()> {
        let failed = self.io().err();
        let State { files, random, .. } = self;
        let content = files.get_mut(&id).expect("an open file exists");
        let blocks: Vec<usize> = content.dirty.range(offset / BLOCK..(offset + len).div_ceil(BLOCK)).copied().collect();
        if content.durable.len() < content.now.len() && failed.is_none() {
            content.durable.resize(content.now.len(), 0);
        }
        for block in blocks {
            content.dirty.remove(&block);
            let start = block * BLOCK;
            let end = (start + BLOCK).min(content.now.len()).min(content.durable.len());
            if start < end && (failed.is_none() || random.random_bool(0.5)) {
                content.durable[start..end].copy_from_slice(&content.now[start..end]);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Drops the page cache's clean pages: blocks of a failed sync turn back into what the device holds.
    fn forget_clean(&mut self, id: FileId) {
        let content = self.files.get_mut(&id).expect("a name has a file");
        for block in (0..content.durable.len().div_ceil(BLOCK)).filter(|block| !content.dirty.contains(block)) {
            let range = block * BLOCK..((block + 1) * BLOCK).min(content.durable.len());
            content.now[range.clone()].copy_from_slice(&content.durable[range]);
        }
    }

    fn read(&mut self, id: FileId, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.io()?;
        let content = &self.files[&id].now;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match start.checked_add(buf.len()).and_then(|end| content.get(start..end)) {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.io()?;
        self.file(path)?;
        self.change(NameChange::Remove(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        self.io()?;
        let (done, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.name_changes).into_iter().partition(|c| c.touches(dir));
        self.name_changes = left;
        for change in done {
            apply(&mut self.durable_names, &change);
        }
        Ok(())
    }
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(ErrorKind::NotFound, path.display().to_string())
}

impl Disk for FaultyDisk {
    fn create_dir_all(&self, _path: &Path) -> io::Result<()> {
        self.state.lock().io()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut state = self.state.lock();
        state.io()?;
        // Files of the folder and the folders that files below it imply.
        let mut found = BTreeSet::new();
        for name in state.names.keys() {
            if let Ok(rest) = name.strip_prefix(dir)
                && let Some(first) = rest.iter().next()
            {
                found.insert(dir.join(first));
            }
        }
        Ok(found.into_iter().collect())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut state = self.state.lock();
        state.io()?;
        let id = state.file(path)?;
        Ok(state.files[&id].now.clone())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadAt>> {
        let mut state = self.state.lock();
        state.io()?;
        let id = state.file(path)?;
        Ok(Arc::new(FaultyFile { state: self.state.clone(), id, written: 0 }))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let id = self.state.lock().create(path)?;
        Ok(Box::new(FaultyFile { state: self.state.clone(), id, written: 0 }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.io()?;
        state.file(from)?;
        state.change(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.io()?;
        let id = state.file(from)?;
        if state.names.contains_key(to) {
            return Err(io::Error::new(ErrorKind::AlreadyExists, to.display().to_string()));
        }
        state.change(NameChange::Create(to.to_owned(), id));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.state.lock().remove(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let inside: Vec<PathBuf> = state.names.keys().filter(|name| name.starts_with(dir)).cloned().collect();
        inside.iter().try_for_each(|path| state.remove(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.state.lock().sync_dir(dir)
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let mut state = self.state.lock();
        state.io()?;
        Ok(state.free())
    }

    fn segment(&self, path: &Path, len: u64) -> io::Result<Arc<dyn Segment>> {
        let mut state = self.state.lock();
        let id = match state.file(path) {
            Ok(id) => {
                state.io()?;
                let found = state.files[&id].now.len() as u64;
                if found != len {
                    return Err(io::Error::new(ErrorKind::InvalidData, format!("it has {found} bytes instead of {len}")));
                }
                state.forget_clean(id);
                id
            }
            Err(_) => {
                let id = state.create(path)?;
                let made = state
                    .write(id, 0, &vec![0; len as usize])
                    .and_then(|()| state.sync(id, 0, len as usize))
                    .and_then(|()| state.sync_dir(path.parent().unwrap_or(Path::new("."))));
                if let Err(e) = made {
                    state.change(NameChange::Remove(path.to_owned()));
                    return Err(e);
                }
                id
            }
        };
        Ok(Arc::new(FaultySegment { state: self.state.clone(), id, len }))
    }

    fn nonce(&self) -> io::Result<u64> {
        Ok(self.state.lock().random.random())
    }
}

#[derive(Debug)]
struct FaultyFile {
    state: Arc<Mutex<State>>,
    id: FileId,
    written: usize,
}

impl ReadAt for FaultyFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.state.lock().read(self.id, offset, buf)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().files[&self.id].now.len() as u64)
    }
}

impl Write for FaultyFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.state.lock().write(self.id, self.written, buf)?;
        self.written += buf.len();
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteFile for FaultyFile {
    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.state.lock();
        let len = state.files[&self.id].now.len();
        state.sync(self.id, 0, len)
    }
}

#[derive(Debug)]
struct FaultySegment {
    state: Arc<Mutex<State>>,
    id: FileId,
    len: u64,
}

impl FaultySegment {
    fn range(&self, offset: u64, len: usize) -> io::Result<usize> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.len => Ok(offset as usize),
            _ => Err(ErrorKind::InvalidInput.into()),
        }
    }
}

impl Segment for FaultySegment {
    fn len(&self) -> u64 {
        self.len
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = self.range(offset, bytes.len())?;
        self.state.lock().write(self.id, offset, bytes)
    }

    fn sync(&self, offset: u64, len: u64) -> io::Result<()> {
        let offset = self.range(offset, len as usize)?;
        self.state.lock().sync(self.id, offset, len as usize)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.range(offset, buf.len())?;
        self.state.lock().read(self.id, offset, buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synced_bytes_under_a_synced_name_survive_every_power_loss() {
        for seed in 0..200 {
            let disk = FaultyDisk::new(seed);
            let (tmp, path) = (Path::new("dir/file.tmp"), Path::new("dir/file"));
            let mut file = disk.create(tmp).unwrap();
            file.write_all(&[7; 3000]).unwrap();
            file.sync().unwrap();
            disk.rename(tmp, path).unwrap();
            disk.sync_dir(Path::new("dir")).unwrap();
            file.write_all(&[8; 3000]).unwrap();
            let after = disk.power_loss(seed);
            assert_eq!(after.bytes(path)[..3000], [7; 3000], "seed {seed}");
        }
    }

    #[test]
    fn unsynced_blocks_and_names_are_sometimes_kept_and_sometimes_lost() {
        let (mut kept, mut lost, mut named, mut unnamed) = (0, 0, 0, 0);
        for seed in 0..200 {
            let disk = FaultyDisk::new(seed);
            let segment = disk.segment(Path::new("dir/segment"), 8192).unwrap();
            segment.write_at(0, &[9; 8192]).unwrap();
            disk.create(Path::new("dir/new")).unwrap();
            let after = disk.power_loss(seed);
            let bytes = after.bytes(Path::new("dir/segment"));
            kept += bytes.iter().filter(|&&b| b == 9).count();
            lost += bytes.iter().filter(|&&b| b == 0).count();
            match after.open(Path::new("dir/new")) {
                Ok(_) => named += 1,
                Err(_) => unnamed += 1,
            }
        }
        assert!(kept > 0 && lost > 0 && named > 0 && unnamed > 0, "{kept} {lost} {named} {unnamed}");
    }

    #[test]
    fn a_sync_after_a_failed_sync_succeeds_and_saves_nothing() {
        let disk = FaultyDisk::new(3);
        let segment = disk.segment(Path::new("segment"), 64 * 1024).unwrap();
        segment.write_at(0, &[9; 64 * 1024]).unwrap();
        disk.fail_once(1, ErrorKind::Other);
        assert!(segment.sync(0, 64 * 1024).is_err());
        segment.sync(0, 64 * 1024).unwrap();
        for seed in 0..20 {
            assert!(disk.power_loss(seed).bytes(Path::new("segment")).contains(&0), "seed {seed}: the failed sync lost blocks for good");
        }
    }

    #[test]
    fn a_full_disk_refuses_and_leaves_no_segment_behind() {
        let disk = FaultyDisk::new(0);
        disk.set_capacity(10_000);
        assert_eq!(disk.segment(Path::new("dir/segment"), 16_384).unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(disk.list(Path::new("dir")).unwrap(), Vec::<PathBuf>::new());
    }
}
