//! JSON and CSV.
//!
//! A JSON row has every column; a missing value is `null`. CSV writes it as nothing at all, and values that CSV has no
//! form for (lists, structs) as text. Times of any zone are written as the same instants in UTC.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::csv;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
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
}

impl Csv {
    pub(super) fn new(schema: &SchemaRef) -> Result<Csv> {
        let mut header = Vec::new();
        let names: Vec<Field> = schema.fields().iter().map(|f| Field::new(f.name(), DataType::Utf8, true)).collect();
        if !names.is_empty() {
            let empty = RecordBatch::new_empty(Arc::new(Schema::new(names)));
            csv::WriterBuilder::new().with_header(true).build(&mut header).write(&empty).map_err(|e| cannot("CSV", &e))?;
        }
        Ok(Csv { header: Some(header) })
    }
}

impl Encoder for Csv {
    fn rows(&mut self, batch: &RecordBatch) -> Result<Vec<u8>> {
        let mut bytes = self.header.take().unwrap_or_default();
        let batch = flat(&in_utc(batch, "CSV")?)?;
        let format = || TIME_FORMAT.to_owned();
        let builder = csv::WriterBuilder::new().with_header(false).with_timestamp_format(format()).with_timestamp_tz_format(format());
        builder.build(&mut bytes).write(&batch).map_err(|e| cannot("CSV", &e))?;
        Ok(bytes)
    }

    fn finish(&mut self) -> Result<Vec<u8>> {
        Ok(self.header.take().unwrap_or_default())
    }
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

/// Lists and structs as text.
fn flat(batch: &RecordBatch) -> Result<RecordBatch> {
    if !batch.schema().fields().iter().any(|f| f.data_type().is_nested()) {
        return Ok(batch.clone());
    }
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if !field.data_type().is_nested() {
            fields.push(field.as_ref().clone());
            columns.push(column.clone());
            continue;
        }
        let options = FormatOptions::default().with_timestamp_format(Some(TIME_FORMAT)).with_timestamp_tz_format(Some(TIME_FORMAT));
        let formatter = ArrayFormatter::try_new(column, &options).map_err(|e| cannot("CSV", &e))?;
        let texts: StringArray = (0..column.len()).map(|i| column.is_valid(i).then(|| formatter.value(i).to_string())).collect();
        fields.push(Field::new(field.name(), DataType::Utf8, true));
        columns.push(Arc::new(texts));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|e| cannot("CSV", &e))
}
