//! How a shard that was split off comes into being on this disk: with the files of the one that it was split from, under
//! second names, so that no byte is copied.
//!
//! Every replica does this by itself, from what the log says, and all begin with the same state. The manifest comes last: a
//! folder without one is begun anew.

use std::path::Path;

use model::ReplicaId;

use super::Shard;
use crate::manifest::Manifest;
use crate::parquet_file::ParquetFiles;
use crate::range::{HashRange, SplitOff};
use crate::{Error, Result};

impl Shard {
    /// The routing hashes that the shard keeps.
    pub fn range(&self) -> HashRange {
        self.state.lock().range()
    }

    /// Whether a part was split off that this shard still has to keep.
    pub fn is_splitting(&self) -> bool {
        self.state.lock().is_splitting()
    }

    /// What was split off and has no shard of its own yet, once it is in files that are here.
    pub fn split_off(&self) -> Option<SplitOff> {
        self.state.lock().split_off().cloned()
    }

    /// Founds the shard that was split off in the folder `dir`, durably: to be opened there as `replica`, by members that
    /// `membership` names (opaque here). One that is founded already stays as it is.
    pub fn found_split_off(&self, split: &SplitOff, dir: &Path, replica: ReplicaId, membership: Vec<u8>) -> Result<()> {
        let disk = &self.options.disk;
        if Manifest::load(&**disk, dir)?.is_some() {
            return Ok(());
        }
        let mut manifest = Manifest { membership, ..split.manifest.clone() };
        // Nobody gives the names away meanwhile: files leave only once this shard has been told that the split is done.
        for file in manifest.files.values() {
            let (from, to) = (self.options.dir.join(&file.path), dir.join(&file.path));
            let folder = to.parent().expect("a file lies in a folder");
            disk.create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
            match disk.link(&from, &to) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                linked => linked.map_err(|e| Error::io("link", from, e))?,
            }
        }
        disk.create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        ParquetFiles::new(disk.clone(), dir.to_owned(), replica).sync_folders(manifest.files.values())?;
        manifest.save(&**disk, dir)
    }
}
