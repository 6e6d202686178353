//! `alluvium inspect parquet FILE`: columns, sizes, time span, and whether the bytes are those that the manifest names.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::Context;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::LogicalType;
use parquet::file::metadata::ParquetMetaData;
use parquet::schema::types::ColumnDescriptor;
use serde_json::{Value, json};
use xxhash_rust::xxh3::Xxh3;

use super::{PathArgs, manifest, time_text};
use crate::commands::rows::{self, Format};
use crate::exit::Exit;
use crate::print::thousands;

const SHOWN: [&str; 6] = ["column", "type", "compressed_bytes", "plain_bytes", "nulls", "encodings"];

pub(super) fn run(args: &PathArgs) -> anyhow::Result<()> {
    let path = &args.path;
    let file = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
    let bytes = file.metadata()?.len();
    let checksum = checksum_of(path)?;
    let entry = manifest::entry_of(path)?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).with_context(|| format!("{} is damaged", path.display()))?;
    let metadata = reader.metadata().clone();
    let columns = columns_of(&metadata);
    let mut rows = 0u64;
    for batch in reader.build()? {
        rows += batch.with_context(|| format!("{} is damaged", path.display()))?.num_rows() as u64;
    }
    let named = entry.as_ref().map(|e| (e.checksum, e.bytes, e.rows) == (checksum, bytes, rows));
    let about = json!({
        "path": path, "rows": rows, "row_groups": metadata.num_row_groups(), "bytes": bytes,
        "checksum": format!("{checksum:016x}"),
        "checksum_of_manifest": entry.as_ref().map(|e| format!("{:016x}", e.checksum)),
        "is_as_the_manifest_says": named,
        "min_time": entry.as_ref().map(|e| time_text(e.min_time)),
        "max_time": entry.as_ref().map(|e| time_text(e.max_time)),
        "columns": columns,
    });
    let mut out = std::io::stdout();
    match Format::or_usual(args.format) {
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&about)?)?,
        format => {
            rows::print(&mut out, format, &SHOWN, &columns)?;
            // Below a drawn table; a program that reads columns has no use for sentences.
            let mut out: Box<dyn Write> = if format == Format::Table { Box::new(out) } else { Box::new(std::io::stderr()) };
            let (rows, bytes) = (thousands(rows), thousands(bytes));
            writeln!(out, "{rows} rows · {} row groups · {bytes} bytes · checksum {checksum:016x}", metadata.num_row_groups())?;
            if let Some(entry) = &entry {
                writeln!(out, "times {} .. {}", time_text(entry.min_time), time_text(entry.max_time))?;
            }
            let verdict = match named {
                Some(true) => "it is what the manifest names, byte for byte",
                Some(false) => "IT IS NOT WHAT THE MANIFEST NAMES",
                None => "no manifest names it: it does not count",
            };
            writeln!(out, "{verdict}")?;
        }
    }
    match named {
        Some(false) => Err(Exit::Failed(format!("{} is damaged: it is not what the manifest names", path.display())).into()),
        _ => Ok(()),
    }
}

fn checksum_of(path: &Path) -> anyhow::Result<u64> {
    let mut file = File::open(path)?;
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.digest()),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// Each column summed over its row groups.
fn columns_of(metadata: &ParquetMetaData) -> Vec<Value> {
    let schema = metadata.file_metadata().schema_descr();
    let column = |i: usize| {
        let chunks = || metadata.row_groups().iter().map(move |group| group.column(i));
        let encodings: std::collections::BTreeSet<String> =
            chunks().flat_map(|chunk| chunk.encodings().map(|e| e.to_string()).collect::<Vec<_>>()).collect();
        let nulls: Option<u64> = chunks().map(|chunk| chunk.statistics().and_then(|s| s.null_count_opt())).sum();
        json!({
            "column": schema.column(i).name(),
            "type": type_of(&schema.column(i)),
            "compressed_bytes": chunks().map(|chunk| chunk.compressed_size()).sum::<i64>(),
            "plain_bytes": chunks().map(|chunk| chunk.uncompressed_size()).sum::<i64>(),
            "nulls": nulls,
            "encodings": encodings.into_iter().collect::<Vec<_>>().join(" "),
        })
    };
    (0..schema.num_columns()).map(column).collect()
}

/// What a column means, in a word: its logical type, or the physical one where that says it all.
fn type_of(column: &ColumnDescriptor) -> String {
    match column.logical_type_ref() {
        Some(LogicalType::Timestamp(..)) => "TIMESTAMP(NANOS)".to_owned(),
        Some(other) => format!("{other:?}").to_uppercase(),
        None => column.physical_type().to_string(),
    }
}
