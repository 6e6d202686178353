//! JSON and CSV.
//!
//! A JSON row has every column; a missing value is `null`. CSV is PostgreSQL's: a missing value is nothing at all, an empty
//! text is `""`, so that the two differ; a row of one missing value is thus an empty line. Values that CSV has no form for
//! (lists, structs) are text. Times of any zone are written as the same instants in UTC.

use std::sync::Arc;

use datafusion::arrow::array::{Array, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, FieldRef, Fields, Schema, SchemaRef};
use datafusion::arrow::json::writer::{JsonArray, LineDelimited, WriterBuilder};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};

use super::{Encoder, cannot};
use crate::Result;

/// RFC 3339 of a time in UTC.
pub(super) const TIME_FORMAT: &str = "%Y-%m-%dT%H:%M:%S%.fZ";

pub(super) struct Json {
    lines: bool,
    begun: bool,
}

impl Json {
    pub(super) fn array() -> Json {
        Json { lines: false, begun: false }
    }

    pub(super) fn lines() -> Json {
        Json { lines: true, begun: false }
    }

    fn builder() -> WriterBuilder {
        let format = || TIME_FORMAT.to_owned();
        WriterBuilder::new().with_explicit_nulls(true).with_timestamp_format(format()).with_timestamp_tz_format(format())
    }
}

impl Encoder for Json {
    fn rows(&mut self, batch: &RecordBatch) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(batch.num_rows() * batch.num_columns() * 16);
        if batch.num_rows() == 0 {
            return Ok(bytes);
        }
        let batch = &in_utc(batch, "JSON")?;
        if self.lines {
            let mut writer = Json::builder().build::<_, LineDelimited>(&mut bytes);
            writer.write(batch).map_err(|e| cannot("JSON", &e))?;
            writer.finish().map_err(|e| cannot("JSON", &e))?;
            return Ok(bytes);
        }
        // The library's array ends with its batch: its brackets are cut off and ours go around all batches.
        let mut writer = Json::builder().build::<_, JsonArray>(&mut bytes);
        writer.write(batch).map_err(|e| cannot("JSON", &e))?;
        writer.finish().map_err(|e| cannot("JSON", &e))?;
        drop(writer);
        assert!(bytes.first() == Some(&b'[') && bytes.last() == Some(&b']'), "a JSON array has brackets");
        bytes.pop();
        bytes[0] = if self.begun { b',' } else { b'[' };
        self.begun = true;
        Ok(bytes)
    }

    fn finish(&mut self) -> Result<Vec<u8>> {
        Ok(match (self.lines, self.begun) {
            (true, _) => Vec::new(),
            (false, true) => b"]".to_vec(),
            (false, false) => b"[]".to_vec(),
        })
    }
}

pub(super) struct Csv {
    /// Not written yet: the header is sent even where there is no row.
    header: Option<Vec<u8>>,
    /// A cell on its way, to be looked at before it is written.
    cell: String,
}

impl Csv {
    pub(super) fn new(schema: &SchemaRef) -> Csv {
        let mut header = Vec::new();
        for (i, field) in schema.fields().iter().enumerate() {
            if i > 0 {
                header.push(b',');
            }
            put_quoted(&mut header, field.name());
        }
        if !header.is_empty() {
            header.push(b'\n');
        }
        Csv { header: Some(header), cell: String::new() }
    }
}

impl Encoder for Csv {
    fn rows(&mut self, batch: &RecordBatch) -> Result<Vec<u8>> {
        let mut bytes = self.header.take().unwrap_or_default();
        let batch = &in_utc(batch, "CSV")?;
        let options = FormatOptions::default().with_timestamp_format(Some(TIME_FORMAT)).with_timestamp_tz_format(Some(TIME_FORMAT));
        let mut columns = Vec::with_capacity(batch.num_columns());
        for column in batch.columns() {
            columns.push((column.logical_nulls(), ArrayFormatter::try_new(column, &options).map_err(|e| cannot("CSV", &e))?));
        }
        for row in 0..batch.num_rows() {
            for (i, (nulls, values)) in columns.iter().enumerate() {
                if i > 0 {
                    bytes.push(b',');
                }
                if nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                    continue;
                }
                self.cell.clear();
                values.value(row).write(&mut self.cell).map_err(|e| cannot("CSV", &e))?;
                put_quoted(&mut bytes, &self.cell);
            }
            bytes.push(b'\n');
        }
        Ok(bytes)
    }

    fn finish(&mut self) -> Result<Vec<u8>> {
        Ok(self.header.take().unwrap_or_default())
    }
}

/// A value that is there: between quotes where it would be read as something else without, as an empty one would.
fn put_quoted(out: &mut Vec<u8>, text: &str) {
    if !text.is_empty() && !text.bytes().any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r')) {
        return out.extend_from_slice(text.as_bytes());
    }
    out.push(b'"');
    for (i, part) in text.split('"').enumerate() {
        if i > 0 {
            out.extend_from_slice(b"\"\"");
        }
        out.extend_from_slice(part.as_bytes());
    }
    out.push(b'"');
}

/// The batch with the times of all zones in UTC.
fn in_utc(batch: &RecordBatch, format: &str) -> Result<RecordBatch> {
    let schema = batch.schema();
    let types: Vec<Option<DataType>> = schema.fields().iter().map(|field| type_in_utc(field.data_type())).collect();
    if types.iter().all(Option::is_none) {
        return Ok(batch.clone());
    }
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for ((field, column), other) in schema.fields().iter().zip(batch.columns()).zip(types) {
        match other {
            None => {
                fields.push(field.clone());
                columns.push(column.clone());
            }
            Some(other) => {
                columns.push(cast(column, &other).map_err(|e| cannot(format, &e))?);
                fields.push(Arc::new(field.as_ref().clone().with_data_type(other)));
            }
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|e| cannot(format, &e))
}

/// The type with UTC in place of other zones; `None` where there are none.
fn type_in_utc(kind: &DataType) -> Option<DataType> {
    let inner = |field: &FieldRef| type_in_utc(field.data_type()).map(|kind| Arc::new(field.as_ref().clone().with_data_type(kind)));
    Some(match kind {
        DataType::Timestamp(unit, Some(zone)) if &**zone != "+00:00" => DataType::Timestamp(*unit, Some("+00:00".into())),
        DataType::List(field) => DataType::List(inner(field)?),
        DataType::LargeList(field) => DataType::LargeList(inner(field)?),
        DataType::FixedSizeList(field, length) => DataType::FixedSizeList(inner(field)?, *length),
        DataType::Struct(fields) if fields.iter().any(|field| inner(field).is_some()) => {
            DataType::Struct(fields.iter().map(|field| inner(field).unwrap_or_else(|| field.clone())).collect::<Fields>())
        }
        _ => return None,
    })
}
