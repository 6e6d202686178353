//! `alluvium doctor DIR`: checks every checksum of a stopped data directory. It changes nothing.
//!
//! Looked at: the node's and replicas' identity and the metadata group's saved state, every record of every log and both
//! copies of its vote, every manifest, every byte of every live Parquet file, and whether what these say is here is here. What a
//! crash leaves behind (a torn tail, files that no manifest names) is told, but is no damage: the next start tidies it up.

use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use model::ReplicaId;
use storage::disk::{DirLock, Disk, RealDisk};
use storage::manifest;
use storage::parquet_file::ParquetFiles;
use storage::wal;

use crate::exit::Exit;
use crate::print::thousands;

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  alluvium doctor ./alluvium-data\n\nExit codes: 0 no damage, 1 damage found or the directory is in use."
)]
pub(super) struct DoctorArgs {
    /// The data directory of a node that is not running
    dir: PathBuf,
}

pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let dir = &args.dir;
    anyhow::ensure!(
        ["shards", "meta", "identity"].iter().any(|name| dir.join(name).exists()),
        "{} is no data directory of alluvium: it has neither shards nor meta nor an identity",
        dir.display()
    );
    let _stopped = DirLock::take(dir)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut visit = Visit { disk, bar: ProgressBar::hidden(), found: Found::default() };
    visit.state_files(dir);
    let logs = logs_in(dir)?;
    let shards = manifest::find(&*visit.disk, dir)?;
    visit.bar = progress_bar(&logs, &shards);
    for log in &logs {
        visit.log(log);
    }
    for shard in shards {
        visit.shard(shard);
    }
    visit.bar.finish_and_clear();
    let found = visit.found;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{} logs with {} records, {} manifests, {} Parquet files with {} rows: {}",
        logs.len(),
        thousands(found.records),
        found.manifests,
        thousands(found.files),
        thousands(found.rows),
        if found.damaged == 0 { "no damage".to_owned() } else { format!("{} DAMAGED", found.damaged) }
    )?;
    match found.damaged {
        0 => Ok(()),
        n => Err(Exit::Failed(format!("{n} damaged: what is named above is not served; restore it from a replica or a backup")).into()),
    }
}

#[derive(Default)]
struct Found {
    damaged: u64,
    records: u64,
    manifests: u64,
    files: u64,
    rows: u64,
}

struct Visit {
    disk: Arc<dyn Disk>,
    bar: ProgressBar,
    found: Found,
}

impl Visit {
    fn state_files(&mut self, dir: &Path) {
        for (path, error) in cluster::check_data_dir(&self.disk, dir) {
            self.damaged(&path, &error);
        }
    }

    fn log(&mut self, dir: &Path) {
        match wal::survey(&*self.disk, dir) {
            Err(error) => self.damaged(dir, &error),
            Ok(log) => {
                self.found.records += log.segments.iter().map(|s| s.records).sum::<u64>();
                for segment in log.segments.iter().filter(|s| s.torn_bytes > 0) {
                    self.note(
                        &segment.path,
                        format!("a torn tail of {} bytes, never acknowledged; the next start cuts it", segment.torn_bytes),
                    );
                }
                if let Some(error) = log.damage {
                    self.damaged(dir, &error);
                }
            }
        }
        self.bar.inc(bytes_below(dir));
    }

    fn shard(&mut self, shard: manifest::Found) {
        self.found.manifests += 1;
        let manifest = match shard.manifest {
            Ok(manifest) => manifest,
            Err(error) => return self.damaged(&shard.dir, &error),
        };
        let files = ParquetFiles::new(self.disk.clone(), shard.dir.clone(), ReplicaId(0));
        for file in manifest.files.values() {
            self.found.files += 1;
            match files.verify(file) {
                Ok(()) => self.found.rows += file.rows,
                Err(error) => self.damaged(&shard.dir.join(&file.path), &error),
            }
            self.bar.inc(file.bytes);
        }
        match files.list() {
            Ok(list) => {
                let orphans = manifest.orphans(list.iter().map(String::as_str)).len();
                if orphans > 0 {
                    self.note(&shard.dir, format!("{orphans} files that no manifest names; the next start removes them"));
                }
            }
            Err(error) => self.damaged(&shard.dir, &error),
        }
    }

    fn damaged(&mut self, path: &Path, error: &dyn Display) {
        self.found.damaged += 1;
        // The error names its file already in most cases; the place is repeated where it does not.
        let text = error.to_string();
        let text = if text.contains(&*path.to_string_lossy()) { text } else { format!("{}: {text}", path.display()) };
        self.bar.suspend(|| println!("damaged  {text}"));
    }

    fn note(&self, path: &Path, text: String) {
        self.bar.suspend(|| println!("note     {}: {text}", path.display()));
    }
}

/// The folders of all logs: the metadata group's and each shard's.
pub(super) fn logs_in(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut logs = vec![dir.join("meta").join("wal")];
    if let Ok(shards) = std::fs::read_dir(dir.join("shards")) {
        let mut folders = shards.map(|entry| Ok(entry?.path().join("wal"))).collect::<std::io::Result<Vec<_>>>()?;
        folders.sort();
        logs.extend(folders);
    }
    logs.retain(|log| log.is_dir());
    Ok(logs)
}

fn bytes_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

fn progress_bar(logs: &[PathBuf], shards: &[manifest::Found]) -> ProgressBar {
    let of_files = |shard: &manifest::Found| shard.manifest.as_ref().map_or(0, |m| m.files.values().map(|f| f.bytes).sum());
    let total = logs.iter().map(|dir| bytes_below(dir)).sum::<u64>() + shards.iter().map(of_files).sum::<u64>();
    let template = "{wide_bar} {bytes}/{total_bytes} · {bytes_per_sec} · {eta} left";
    ProgressBar::new(total).with_style(ProgressStyle::with_template(template).expect("the template is constant"))
}
