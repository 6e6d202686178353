//! The few bytes that raft must never forget (its vote), and what recovery must know before it reads the log.
//!
//! ```text
//! hard_state = slot 0 (4096 bytes) | slot 1 (4096 bytes)
//! slot = | "allu-hs\0" | format u32 | blob_bytes u32 | log identity u128 | counter u64 | durable_end u64 |
//!        | cut_segment u64 | cut_offset u64 | blob ... | zeros ... | crc32c u32 |
//! ```
//!
//! The slot with the higher counter whose checksum is right counts. A save writes and syncs one slot, then the other: a
//! save that power loss tore leaves the other slot as it was, and one rotten slot never hides a save that returned.
//!
//! `durable_end` is one above the last record that was durable at the time of the save: a log that ends before it is
//! damaged. `cut_segment` and `cut_offset` say that a truncation has begun there and must be finished (0: none).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, Segment};
use crate::{Error, Result};

/// The newest format that this program reads, and the one it writes.
const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"allu-hs\0";
const SLOT_BYTES: usize = 4096;
const FILE_BYTES: u64 = 2 * SLOT_BYTES as u64;
const BLOB_AT: usize = 64;
const CRC_AT: usize = SLOT_BYTES - 4;
/// The largest blob.
pub const MAX_HARD_STATE_BYTES: usize = CRC_AT - BLOB_AT;

/// What a slot holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) identity: u128,
    counter: u64,
    /// One above the last record known durable.
    pub(super) durable_end: u64,
    /// A truncation under way: segment number and offset.
    pub(super) cut: Option<(u64, u64)>,
    /// The caller's bytes; none were saved yet if it is empty.
    pub(super) blob: Vec<u8>,
}

impl Saved {
    fn encode(&self) -> Vec<u8> {
        let (cut_segment, cut_offset) = self.cut.unwrap_or((0, 0));
        let mut out = Vec::with_capacity(SLOT_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&(self.blob.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.identity.to_le_bytes());
        for number in [self.counter, self.durable_end, cut_segment, cut_offset] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.blob);
        out.resize(CRC_AT, 0);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// The slot's content, or none if it is torn, rotten or was never written.
    fn decode(bytes: &[u8], path: &Path) -> Result<Option<Saved>> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if &bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..CRC_AT]) != u32_at(CRC_AT) {
            return Ok(None);
        }
        let found = u32_at(8);
        if found > FORMAT {
            return Err(Error::NewerFormat { path: path.to_owned(), found, known: FORMAT });
        }
        let Some(blob) = bytes[..CRC_AT].get(BLOB_AT..BLOB_AT.saturating_add(u32_at(12) as usize)) else { return Ok(None) };
        let cut = (u64_at(48) != 0).then(|| (u64_at(48), u64_at(56)));
        Ok(Some(Saved {
            identity: u128::from_le_bytes(bytes[16..32].try_into().expect("sixteen bytes")),
            counter: u64_at(32),
            durable_end: u64_at(40),
            cut,
            blob: blob.to_vec(),
        }))
    }
}

/// The file, open.
#[derive(Debug)]
pub(super) struct HardState {
    file: Arc<dyn Segment>,
    path: PathBuf,
    saved: Saved,
    /// Which slot the next save writes first: never the only good one.
    first_slot: u64,
}

impl HardState {
    pub(super) fn path_in(dir: &Path) -> PathBuf {
        dir.join("hard_state")
    }

    /// Founds the file for a new log: made under another name, so that a file of this name is always whole.
    pub(super) fn found(disk: &dyn Disk, dir: &Path, identity: u128) -> Result<HardState> {
        let path = HardState::path_in(dir);
        let new = dir.join("hard_state.new");
        let file = disk.segment(&new, FILE_BYTES).map_err(|e| Error::io("create", &new, e))?;
        let mut state = HardState { file, path: new.clone(), saved: Saved { identity, ..Saved::default() }, first_slot: 0 };
        state.save(|_| {})?;
        disk.rename(&new, &path).map_err(|e| Error::io("rename", &new, e))?;
        disk.sync_dir(dir).map_err(|e| Error::SyncFailed { path: dir.to_owned(), source: e })?;
        state.path = path;
        Ok(state)
    }

    /// Opens the file and mends a slot that the last save or the disk left bad.
    pub(super) fn open(disk: &dyn Disk, dir: &Path) -> Result<HardState> {
        let path = HardState::path_in(dir);
        let file = disk.segment(&path, FILE_BYTES).map_err(|e| Error::io("open", &path, e))?;
        let (saved, stale) = newest(&path, &slots(&path, |at, bytes| file.read(at, bytes))?)?;
        let mut state = HardState { file, path, saved, first_slot: stale.unwrap_or(0) };
        if stale.is_some() {
            state.save(|_| {})?;
        }
        Ok(state)
    }

    /// What the file says, and what is wrong with it all the same; mends nothing.
    pub(super) fn read(disk: &dyn Disk, dir: &Path) -> Result<(Saved, Option<Error>)> {
        let path = HardState::path_in(dir);
        let file = disk.open(&path).map_err(|e| Error::io("open", &path, e))?;
        let slots = slots(&path, |at, bytes| file.read_exact_at(bytes, at))?;
        let saved = newest(&path, &slots)?.0;
        let bad = slots.iter().position(Option::is_none).map(|slot| Error::Corrupt {
            path,
            at: slot as u64 * SLOT_BYTES as u64,
            what: format!("the checksum of slot {slot} does not match: the other one counts, and if it is lost too, the log cannot be opened (a start mends it)"),
        });
        Ok((saved, bad))
    }

    pub(super) fn saved(&self) -> &Saved {
        &self.saved
    }

    /// Changes what is saved, durably. After an error nobody knows what is on disk: the log must stop.
    pub(super) fn save(&mut self, change: impl FnOnce(&mut Saved)) -> Result<()> {
        let mut next = self.saved.clone();
        change(&mut next);
        assert!(next.blob.len() <= MAX_HARD_STATE_BYTES, "a hard state has at most {MAX_HARD_STATE_BYTES} bytes");
        next.counter += 1;
        let bytes = next.encode();
        for slot in [self.first_slot, 1 - self.first_slot] {
            let at = slot * SLOT_BYTES as u64;
            let written = self.file.write_at(at, &bytes).and_then(|()| self.file.sync(at, SLOT_BYTES as u64));
            written.map_err(|e| Error::SyncFailed { path: self.path.clone(), source: e })?;
        }
        self.saved = next;
        Ok(())
    }
}

/// What the two slots say; none where one is torn or rotten.
fn slots(path: &Path, read: impl Fn(u64, &mut [u8]) -> io::Result<()>) -> Result<Vec<Option<Saved>>> {
    let slot = |slot: u64| {
        let mut bytes = vec![0; SLOT_BYTES];
        read(slot * SLOT_BYTES as u64, &mut bytes).map_err(|e| Error::io("read", path, e))?;
        Saved::decode(&bytes, path)
    };
    (0..2).map(slot).collect()
}

/// The slot that counts, and the number of one that does not say the same.
fn newest(path: &Path, slots: &[Option<Saved>]) -> Result<(Saved, Option<u64>)> {
    let Some(saved) = slots.iter().flatten().max_by_key(|saved| saved.counter).cloned() else {
        return Err(Error::Corrupt { path: path.to_owned(), at: 0, what: "neither of its two slots has the right checksum".to_owned() });
    };
    let stale = slots.iter().position(|slot| slot.as_ref() != Some(&saved));
    Ok((saved, stale.map(|slot| slot as u64)))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::disk::FaultyDisk;

    const DIR: &str = "log";

    fn founded(disk: &FaultyDisk) -> HardState {
        let mut state = HardState::found(disk, Path::new(DIR), 77).unwrap();
        state.save(|s| s.blob = b"vote 1".to_vec()).unwrap();
        state
    }

    #[test]
    fn a_save_that_returned_survives_power_loss_and_one_rotten_slot() {
        for seed in 0..100 {
            let disk = FaultyDisk::new(seed);
            let mut state = founded(&disk);
            state.save(|s| s.blob = b"vote 2".to_vec()).unwrap();
            let after = disk.power_loss(seed);
            after.flip_bit(&HardState::path_in(Path::new(DIR)), (seed % 2) * 4096 + seed, 3);
            assert_eq!(HardState::open(&after, Path::new(DIR)).unwrap().saved().blob, b"vote 2", "seed {seed}");
            // It was mended: the other slot may rot next.
            after.flip_bit(&HardState::path_in(Path::new(DIR)), ((seed + 1) % 2) * 4096 + seed, 3);
            assert_eq!(HardState::open(&after, Path::new(DIR)).unwrap().saved().blob, b"vote 2", "seed {seed}");
        }
    }

    #[test]
    fn a_save_cut_by_power_loss_leaves_the_old_or_the_new_vote() {
        for seed in 0..100 {
            for n in 1..=4 {
                let disk = FaultyDisk::new(seed);
                let mut state = founded(&disk);
                disk.fail_from(n, ErrorKind::Other);
                assert!(matches!(state.save(|s| s.blob = b"vote 2".to_vec()), Err(Error::SyncFailed { .. })));
                let after = disk.power_loss(seed);
                let blob = HardState::open(&after, Path::new(DIR)).unwrap().saved().blob.clone();
                assert!(blob == b"vote 1" || blob == b"vote 2", "seed {seed}, I/O {n}: {blob:?}");
            }
        }
    }

    #[test]
    fn two_rotten_slots_are_damage_and_not_a_new_log() {
        let disk = FaultyDisk::new(1);
        founded(&disk);
        let path = HardState::path_in(Path::new(DIR));
        disk.flip_bit(&path, 70, 0);
        disk.flip_bit(&path, 4096 + 70, 0);
        assert!(matches!(HardState::open(&disk, Path::new(DIR)), Err(Error::Corrupt { .. })));
    }
}
