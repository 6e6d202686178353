//! `alluvium inspect manifest`: every live Parquet file, with all that the manifest says of it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use storage::disk::RealDisk;
use storage::manifest::{self, FileMeta};

use super::{PathArgs, time_text};
use crate::commands::rows::{self, Format};

const SHOWN: [&str; 8] = ["shard", "database", "table", "rows", "bytes", "min_time", "max_time", "file"];

pub(super) fn run(args: &PathArgs) -> anyhow::Result<()> {
    let dir = if args.path.is_file() { args.path.parent().unwrap_or(Path::new(".")) } else { &args.path };
    let found = manifest::find(&RealDisk, dir)?;
    anyhow::ensure!(!found.is_empty(), "there is no manifest in {}: name a data directory or a shard's folder", dir.display());
    let mut rows = Vec::new();
    for shard in found {
        let manifest = shard.manifest?;
        let number = shard_of(&shard.dir);
        rows.extend(manifest.files.values().map(|file| row(&shard.dir, number, file)));
    }
    rows::print(&mut std::io::stdout().lock(), Format::or_usual(args.format), &SHOWN, &rows)
}

fn row(dir: &Path, shard: Option<u32>, file: &FileMeta) -> Value {
    let path: PathBuf = dir.join(&file.path);
    let (database, table) = names_of(&file.path);
    json!({
        "path": path,
        "file": path.file_name().map(|name| name.to_string_lossy()),
        "database": database,
        "database_id": file.database.0,
        "table": table,
        "table_id": file.table.0,
        "shard": shard,
        "rows": file.rows,
        "bytes": file.bytes,
        "min_time": time_text(file.min_time),
        "max_time": time_text(file.max_time),
        "checksum": format!("{:016x}", file.checksum),
        "level": file.level,
        "from_index": file.from.0,
        "to_index": file.to.0,
        "schema_version": file.schema_version,
    })
}

/// The shard's number, from its folder `shards/N/…`.
fn shard_of(dir: &Path) -> Option<u32> {
    let full = std::path::absolute(dir).ok()?;
    let mut parts = full.components().rev().map(|part| part.as_os_str().to_string_lossy().into_owned());
    let mut below = None;
    parts.find_map(|part| {
        let number = (part == "shards").then(|| below.as_ref().and_then(|name: &String| name.parse().ok())).flatten();
        below = Some(part);
        number
    })
}

/// Database and table, as a file's folders name them; a name that was too long for a folder is shown cut.
fn names_of(path: &str) -> (String, String) {
    let mut folders = path.split('/').skip(1).map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned());
    (folders.next().unwrap_or_default(), folders.next().unwrap_or_default())
}

/// The manifest entry of a Parquet file and its shard's folder, found by going up from the file.
pub(super) fn entry_of(path: &Path) -> anyhow::Result<Option<FileMeta>> {
    let full = path.canonicalize().with_context(|| format!("could not open {}", path.display()))?;
    for dir in full.ancestors().skip(1) {
        if dir.join(manifest::FILE).is_file() {
            let manifest = manifest::Manifest::load(&RealDisk, dir)?.unwrap_or_default();
            let below = full.strip_prefix(dir)?.to_string_lossy().into_owned();
            return Ok(manifest.files.get(&below).cloned());
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_shards_are_read_from_folders() {
        assert_eq!(names_of("parquet/home/Smart%20TV/day=2026-01-01/x.parquet"), ("home".to_owned(), "Smart TV".to_owned()));
        assert_eq!(shard_of(Path::new("/var/lib/shards/data/shards/7/data")), Some(7));
        assert_eq!(shard_of(Path::new("/tmp/elsewhere")), None);
    }
}
