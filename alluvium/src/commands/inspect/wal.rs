//! `alluvium inspect wal`: the segments of a log, or with `--records` every record of them.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use storage::disk::RealDisk;
use storage::wal;

use crate::commands::doctor::logs_in;
use crate::commands::rows::{self, Format};
use crate::exit::Exit;

const SHOWN: [&str; 8] = ["segment", "first", "last", "records", "marks", "used_bytes", "bytes", "state"];

#[derive(Args, Debug)]
pub(super) struct WalArgs {
    /// A data directory, the folder of a log, or one segment of it
    path: PathBuf,

    /// How it is printed [default: table on a terminal, csv otherwise]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
}

pub(super) fn run(args: &WalArgs) -> anyhow::Result<()> {
    let only = args.path.is_file().then(|| args.path.clone());
    let dir = match &only {
        Some(file) => file.parent().unwrap_or(&args.path).to_owned(),
        None => args.path.clone(),
    };
    anyhow::ensure!(dir.is_dir(), "{} is neither a folder nor a file", args.path.display());
    let logs = match logs_in(&dir)? {
        none if none.is_empty() => vec![dir],
        logs => logs,
    };
    let mut rows = Vec::new();
    let mut damage = Vec::new();
    for log in &logs {
        let survey = wal::survey(&RealDisk, log)?;
        rows.extend(survey.segments.iter().filter(|s| only.as_ref().is_none_or(|only| only.file_name() == s.path.file_name())).map(row));
        damage.extend(survey.damage);
    }
    anyhow::ensure!(!rows.is_empty() || !damage.is_empty(), "there is no segment of a log in {}", args.path.display());
    rows::print(&mut std::io::stdout().lock(), Format::or_usual(args.format), &SHOWN, &rows)?;
    for error in &damage {
        writeln!(std::io::stderr(), "damaged  {error}")?;
    }
    match damage.len() {
        0 => Ok(()),
        n => Err(Exit::Failed(format!("{n} of {} logs are damaged", logs.len())).into()),
    }
}

fn row(segment: &wal::SegmentSurvey) -> Value {
    json!({
        "segment": segment.path,
        "number": segment.number,
        "format": wal::FORMAT,
        "first": segment.first.map(|index| index.0),
        "last": segment.last.map(|index| index.0),
        "records": segment.records,
        "marks": segment.marks,
        "used_bytes": segment.used_bytes,
        "bytes": segment.bytes,
        "torn_bytes": segment.torn_bytes,
        "state": if segment.torn_bytes > 0 { "torn tail" } else { "whole" },
    })
}
