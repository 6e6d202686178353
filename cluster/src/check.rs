//! What a stopped node's directory lacks: files and folders whose absence is damage, because others say that they were there.
//!
//! A start refuses a shard, or the node, at the first of these that it meets (`start.rs`), and knows the replicas that it had by
//! `DIR/replicas`. Here each absence is named before, also those that only a comparison with the metadata shows. Nothing is
//! called damage that a crash may leave behind: folders are made, and the first manifest is saved, some time after what asks
//! for them was agreed on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::ShardId;
use storage::disk::Disk;
use storage::manifest::{self, Manifest};
use storage::wal;

use crate::Result;
use crate::identity::{Identity, KnownReplicas};
use crate::log_record::HardState;
use crate::metadata::{MetadataMachine, State};
use crate::moves::MoveKind;
use crate::start::DEPARTED_FILE;
use crate::state_file::{check_state_files, listed};

/// Where something is wrong with a data directory, and what.
type Wrong = (PathBuf, String);

/// Looks for what is missing, and reads every state file, for people who check a stopped directory.
pub fn check_data_dir(disk: &Arc<dyn Disk>, data_dir: &Path) -> Vec<(PathBuf, String)> {
    let mut wrong: Vec<Wrong> = check_state_files(&**disk, data_dir).into_iter().map(|(path, e)| (path, e.to_string())).collect();
    if let Err(error) = look_for_missing(disk, data_dir, &mut wrong) {
        wrong.push((data_dir.to_owned(), error.to_string()));
    }
    wrong
}

fn look_for_missing(disk: &Arc<dyn Disk>, data_dir: &Path, wrong: &mut Vec<Wrong>) -> Result<()> {
    let shards = Held::all(&**disk, data_dir)?;
    let (identity_path, meta) = (data_dir.join("identity"), data_dir.join("meta"));
    let has_metadata = has_log(&**disk, &meta.join("wal"))?;
    if (has_metadata || !shards.is_empty()) && !listed(&**disk, &identity_path)? {
        let what = "it is missing: a start would take this directory for that of a new node, of another cluster";
        wrong.push((identity_path.clone(), what.to_owned()));
    }
    if !has_metadata && shards.iter().any(|shard| shard.has_log || shard.manifest.is_some()) {
        let what = "its log is missing although shards are here: without it no row has a name, and a start would found a new cluster";
        wrong.push((meta.clone(), what.to_owned()));
    }
    let splitting: BTreeSet<u32> = shards.iter().filter_map(|shard| shard.manifest.as_ref()?.split.as_ref().map(|s| s.child.0)).collect();
    for shard in &shards {
        shard.check(&**disk, splitting.contains(&shard.number), wrong)?;
    }
    if !has_metadata {
        return Ok(());
    }
    // Damage of either is told where it is read.
    let (Ok(Some(identity)), Ok(state)) = (Identity::read(&**disk, data_dir), MetadataMachine::left_behind(disk, &meta)) else {
        return Ok(());
    };
    let has = |shard: ShardId| shards.iter().any(|held| held.number == shard.0);
    let known = KnownReplicas::open(disk.clone(), data_dir).map(|known| known.shards()).unwrap_or_default();
    let missing: BTreeSet<ShardId> = missing_shards(&state, &identity).filter(|shard| !splitting.contains(&shard.0)).chain(known).collect();
    for shard in missing.into_iter().filter(|shard| !has(*shard)) {
        let what = "the shard is missing: by the metadata, or by DIR/replicas, this node holds it";
        wrong.push((data_dir.join("shards").join(shard.to_string()), what.to_owned()));
    }
    Ok(())
}

/// The shards that this node must have a folder of. While one is on its way its folder may be still to come, and while
/// there is no database nothing was ever kept.
fn missing_shards<'a>(state: &'a State, identity: &'a Identity) -> impl Iterator<Item = ShardId> + 'a {
    let placed = state.placements.iter().filter(|(_, placement)| placement.replicas.contains(&identity.node));
    let settled = placed.filter(|(shard, _)| state.moves.running(MoveKind::Move, **shard).is_none());
    settled.map(|(shard, _)| *shard).filter(|_| !state.catalog.databases.is_empty())
}

/// One shard's folder.
struct Held {
    number: u32,
    dir: PathBuf,
    /// `None`: there is none; one that cannot be read is damage that is told elsewhere.
    manifest: Option<Manifest>,
    manifest_is_there: bool,
    has_log: bool,
}

impl Held {
    fn all(disk: &dyn Disk, data_dir: &Path) -> Result<Vec<Held>> {
        let folder = data_dir.join("shards");
        let mut all = Vec::new();
        for dir in disk.list(&folder).map_err(|e| storage::Error::io("list", &folder, e))? {
            let Some(number) = dir.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
            // Left over from a replica that has moved away: the next start removes it.
            if listed(disk, &dir.join(DEPARTED_FILE))? {
                continue;
            }
            let manifest_is_there = listed(disk, &dir.join("data").join(manifest::FILE))?;
            let manifest = Manifest::load(disk, &dir.join("data")).ok().flatten();
            let has_log = has_log(disk, &dir.join("wal"))?;
            all.push(Held { number, dir, manifest, manifest_is_there, has_log });
        }
        Ok(all)
    }

    /// `is_splitting`: another shard's manifest still has it, from which a start founds it.
    fn check(&self, disk: &dyn Disk, is_splitting: bool, wrong: &mut Vec<Wrong>) -> Result<()> {
        let (log, data, replica) = (self.dir.join("wal"), self.dir.join("data"), self.dir.join("replica"));
        if !self.has_log {
            let has_files = self.manifest_is_there || listed(disk, &data.join("parquet"))?;
            if has_files && !is_splitting {
                let what = "the shard's log is missing although its files are here: with it went the newest rows and a vote that must not \
                            be forgotten";
                wrong.push((log, what.to_owned()));
            }
            return Ok(());
        }
        if !listed(disk, &replica)? {
            wrong.push((replica, "it is missing: without it the shard's group does not know this replica".to_owned()));
        }
        // A log that cannot be read is damage that is told elsewhere.
        let Ok(survey) = wal::survey(disk, &log) else { return Ok(()) };
        let Some(Ok(hard)) = survey.hard_state.filter(|blob| !blob.is_empty()).map(|blob| HardState::decode(&blob)) else { return Ok(()) };
        let Some(purged) = hard.purged.map(|id| id.index) else { return Ok(()) };
        let path = data.join(manifest::FILE);
        match &self.manifest {
            None if !self.manifest_is_there => {
                let what = format!(
                    "it is missing: the rows of the log's entries up to {purged} are in the files that it named, and no more in the log"
                );
                wrong.push((path, what));
            }
            Some(manifest) if manifest.flushed.is_none_or(|(_, flushed)| flushed.0 < purged) => {
                let upto = manifest.flushed.map_or("nothing".to_owned(), |(_, flushed)| format!("entries up to {flushed}"));
                wrong.push((path, format!("it is too old: it names the files of {upto}, but the log begins after entry {purged}")));
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether a log was founded in the folder, or holds anything.
fn has_log(disk: &dyn Disk, dir: &Path) -> Result<bool> {
    let names = disk.list(dir).map_err(|e| storage::Error::io("list", dir, e))?;
    Ok(names.iter().any(|path| path.ends_with("hard_state") || path.extension().is_some_and(|extension| extension == "wal")))
}
