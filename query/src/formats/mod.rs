//! Rows to bytes: JSON, JSON lines, CSV, Arrow, Parquet, a drawn table.
//!
//! An encoder gives its bytes piece by piece, so that a large answer is never held whole; what it gives is complete
//! only after `finish`. Times are RFC 3339 with `Z`; 64-bit integers keep all their digits.

mod accept;
mod binary;
mod drawn;
mod text;

use std::collections::HashSet;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;

pub(crate) use self::accept::preferred;
use crate::Result;
use crate::error::Error;

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// An array of row objects.
    #[default]
    Json,
    /// A row object per line.
    JsonLines,
    /// Comma separated values with a header.
    Csv,
    /// A Parquet file.
    Parquet,
    /// An Arrow IPC stream.
    Arrow,
    /// A table drawn with lines, for people.
    Table,
}

impl Format {
    /// The format of this name, as in `?format=`.
    pub fn named(name: &str) -> Option<Format> {
        Some(match name {
            "json" => Format::Json,
            "jsonl" | "ndjson" | "json_lines" => Format::JsonLines,
            "csv" => Format::Csv,
            "parquet" => Format::Parquet,
            "arrow" => Format::Arrow,
            "table" | "pretty" => Format::Table,
            _ => return None,
        })
    }

    /// The format of this media type, as in `Accept`.
    pub fn accepted(media_type: &str) -> Option<Format> {
        Some(match media_type {
            "application/json" => Format::Json,
            "application/jsonl" | "application/x-ndjson" | "application/ndjson" => Format::JsonLines,
            "text/csv" => Format::Csv,
            "application/vnd.apache.parquet" => Format::Parquet,
            "application/vnd.apache.arrow.stream" => Format::Arrow,
            "text/plain" => Format::Table,
            _ => return None,
        })
    }

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::JsonLines => "application/jsonl",
            Format::Csv => "text/csv; charset=utf-8",
            Format::Parquet => "application/vnd.apache.parquet",
            Format::Arrow => "application/vnd.apache.arrow.stream",
            Format::Table => "text/plain; charset=utf-8",
        }
    }

    /// All of these rows at once.
    pub fn write(self, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>> {
        let mut encoder = self.encoder(schema)?;
        let mut bytes = Vec::new();
        for batch in batches {
            bytes.extend(encoder.rows(batch)?);
        }
        bytes.extend(encoder.finish()?);
        Ok(bytes)
    }

    /// An encoder of rows with these columns.
    ///
    /// Objects and Parquet files find a column by its name: two of one name would be one for whoever reads them. The other
    /// formats go by position.
    pub(crate) fn encoder(self, schema: &SchemaRef) -> Result<Box<dyn Encoder>> {
        if let (Format::Json | Format::JsonLines | Format::Parquet, Some(name)) = (self, twice(schema)) {
            return Err(Error::sql(format!(
                "the answer has two columns called '{name}': name the columns, and give one of them another name with AS"
            )));
        }
        Ok(match self {
            Format::Json => Box::new(text::Json::array()),
            Format::JsonLines => Box::new(text::Json::lines()),
            Format::Csv => Box::new(text::Csv::new(schema)),
            Format::Parquet => Box::new(binary::Parquet::new(schema)?),
            Format::Arrow => Box::new(binary::Arrow::new(schema)?),
            Format::Table => Box::new(drawn::Table::new(schema)),
        })
    }
}

/// A name that two columns have.
fn twice(schema: &SchemaRef) -> Option<&str> {
    let mut seen = HashSet::new();
    schema.fields().iter().map(|field| field.name().as_str()).find(|name| !seen.insert(*name))
}

/// Turns batches into bytes.
pub(crate) trait Encoder: Send {
    /// The bytes of these rows that can be sent already.
    fn rows(&mut self, batch: &RecordBatch) -> Result<Vec<u8>>;
    /// The last bytes: only with them the answer is whole.
    fn finish(&mut self) -> Result<Vec<u8>>;
}

fn cannot(format: &str, e: &dyn std::fmt::Display) -> Error {
    Error::sql(format!("the answer cannot be written as {format}: {e}; choose another format or cast the column"))
}

#[cfg(test)]
mod tests;
