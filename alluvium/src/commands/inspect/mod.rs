//! `alluvium inspect`: what a file of a data directory holds, and whether its checksums are right.
//!
//! It only reads, and a running node may go on meanwhile: what it writes at that moment may look unfinished.

mod manifest;
mod parquet;
mod wal;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::rows::Format;

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  alluvium inspect manifest ./alluvium-data --format json\n  \
    alluvium inspect wal ./alluvium-data/shards/0/wal\n  alluvium inspect parquet FILE.parquet")]
pub(super) struct InspectArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The live Parquet files of a data directory or of one shard
    Manifest(PathArgs),
    /// The segments of a log: a data directory, a log's folder or one segment
    Wal(wal::WalArgs),
    /// One Parquet file
    Parquet(PathArgs),
}

#[derive(Args, Debug)]
struct PathArgs {
    /// The file or folder
    path: PathBuf,

    /// How it is printed [default: table on a terminal, csv otherwise]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
}

pub(super) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    match &args.what {
        What::Manifest(args) => manifest::run(args),
        What::Wal(args) => wal::run(args),
        What::Parquet(args) => parquet::run(args),
    }
}

/// Nanoseconds since 1970 as RFC 3339.
fn time_text(ns: i64) -> String {
    let array = arrow::array::TimestampNanosecondArray::from(vec![ns]);
    let options = arrow::util::display::FormatOptions::new().with_timestamp_format(Some("%Y-%m-%dT%H:%M:%S%.fZ"));
    arrow::util::display::ArrayFormatter::try_new(&array, &options).map_or_else(|_| ns.to_string(), |f| f.value(0).to_string())
}
