//! Rows that a command has itself, in the formats in which the server gives its answers.
//!
//! A table has the columns that fit a reader and is drawn on a terminal unless another format is asked for; the other
//! formats are for programs and have every field.

use std::io::{IsTerminal, Write};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, UInt64Array};
use arrow::ipc::writer::StreamWriter;
use clap::ValueEnum;
use parquet::arrow::ArrowWriter;
use serde_json::Value;

use crate::print::{Sheet, printable, terminal_width};

/// What rows look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A drawn table, for eyes
    Table,
    /// Comma separated, with a header
    Csv,
    /// One array of row objects
    Json,
    /// One row object a line
    Jsonl,
    /// A Parquet file
    Parquet,
    /// An Arrow IPC stream
    Arrow,
}

impl Format {
    /// What was asked for; else a table on a terminal, csv for whoever reads a pipe.
    pub(super) fn or_usual(asked: Option<Format>) -> Format {
        asked.unwrap_or(if std::io::stdout().is_terminal() { Format::Table } else { Format::Csv })
    }

    /// As the server calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Format::Table => "table",
            Format::Csv => "csv",
            Format::Json => "json",
            Format::Jsonl => "jsonl",
            Format::Parquet => "parquet",
            Format::Arrow => "arrow",
        }
    }
}

/// Prints objects that all have the same fields; `shown` are the columns of a table, and the first ones elsewhere.
pub(super) fn print(out: &mut impl Write, format: Format, shown: &[&str], rows: &[Value]) -> anyhow::Result<()> {
    match format {
        Format::Table => {
            let cells = rows.iter().map(|row| shown.iter().map(|name| cell(&row[*name])).collect()).collect();
            Sheet::of_words(shown, cells).draw(out, terminal_width())?;
        }
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(rows)?)?,
        Format::Jsonl => {
            for row in rows {
                writeln!(out, "{row}")?;
            }
        }
        Format::Csv => arrow::csv::Writer::new(&mut *out).write(&batch(shown, rows)?)?,
        Format::Parquet => {
            let (batch, mut bytes) = (batch(shown, rows)?, Vec::new());
            let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None)?;
            writer.write(&batch)?;
            writer.close()?;
            out.write_all(&bytes)?;
        }
        Format::Arrow => {
            let batch = batch(shown, rows)?;
            let mut writer = StreamWriter::try_new(&mut *out, &batch.schema())?;
            writer.write(&batch)?;
            writer.finish()?;
        }
    }
    Ok(out.flush()?)
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => printable(text),
        other => other.to_string(),
    }
}

/// The rows as columns: numbers and truths where all are, text otherwise.
fn batch(shown: &[&str], rows: &[Value]) -> anyhow::Result<RecordBatch> {
    let rest = rows.first().and_then(Value::as_object).into_iter().flat_map(|row| row.keys().map(String::as_str));
    let names: Vec<&str> = shown.iter().copied().chain(rest.filter(|name| !shown.contains(name))).collect();
    Ok(RecordBatch::try_from_iter_with_nullable(names.into_iter().map(|name| {
        let values: Vec<&Value> = rows.iter().map(|row| &row[name]).collect();
        (name, column(&values), true)
    }))?)
}

fn column(values: &[&Value]) -> ArrayRef {
    let all = |fits: fn(&Value) -> bool| values.iter().any(|v| !v.is_null()) && values.iter().all(|v| v.is_null() || fits(v));
    if all(Value::is_u64) {
        Arc::new(values.iter().map(|v| v.as_u64()).collect::<UInt64Array>())
    } else if all(Value::is_i64) {
        Arc::new(values.iter().map(|v| v.as_i64()).collect::<Int64Array>())
    } else if all(Value::is_boolean) {
        Arc::new(values.iter().map(|v| v.as_bool()).collect::<BooleanArray>())
    } else {
        let text = |value: &Value| match value {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        Arc::new(values.iter().map(|v| text(v)).collect::<StringArray>())
    }
}

#[cfg(test)]
mod tests {
    use arrow::ipc::reader::StreamReader;
    use serde_json::json;

    use super::*;

    fn printed(format: Format, rows: &[Value]) -> Vec<u8> {
        let mut out = Vec::new();
        print(&mut out, format, &["name", "rows"], rows).unwrap();
        out
    }

    #[test]
    fn programs_get_every_field_and_eyes_those_that_fit() {
        let rows = [json!({"name": "a, b", "rows": 7, "path": "/x"}), json!({"name": "c", "rows": null, "path": "/y"})];
        let text = |format| String::from_utf8(printed(format, &rows)).unwrap();
        assert_eq!(text(Format::Csv), "name,rows,path\n\"a, b\",7,/x\nc,,/y\n");
        let lines: Vec<Value> = text(Format::Jsonl).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines, rows);
        assert_eq!(serde_json::from_str::<Vec<Value>>(&text(Format::Json)).unwrap(), rows);
        assert!(!text(Format::Table).contains("path"));
        let batches: Vec<RecordBatch> =
            StreamReader::try_new(printed(Format::Arrow, &rows).as_slice(), None).unwrap().map(|b| b.unwrap()).collect();
        assert_eq!((batches[0].num_rows(), batches[0].num_columns()), (2, 3));
        assert!(batches[0].column(1).data_type().is_integer());
        let file = bytes::Bytes::from(printed(Format::Parquet, &rows));
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(file, 10).unwrap();
        assert_eq!(reader.map(|b| b.unwrap().num_rows()).sum::<usize>(), 2);
    }

    #[test]
    fn no_rows_still_have_columns() {
        assert_eq!(printed(Format::Csv, &[]), b"name,rows\n");
        assert_eq!(printed(Format::Jsonl, &[]), b"");
        assert_eq!(printed(Format::Json, &[]), b"[]\n");
    }
}
