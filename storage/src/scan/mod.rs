//! A consistent view of one shard: memtable and files captured together, read as sorted, merged record batches.
//!
//! Rows come out in order of (series key, time), each identity once, merged field by field (DESIGN rules 1, 2, 9). Below
//! the merge only time, tags and the routing hash prune. Field predicates are the query's business.
//!
//! A question goes to as few sources as can have an answer, and is merged only where sources overlap in their series: a
//! source that stands alone is passed through as it is, sources of different series follow each other.

mod key_filter;
mod sweep;
pub(crate) mod view;
mod within;

use std::ops::RangeInclusive;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use model::{ColumnId, ColumnKind, ColumnType, TableSchema};

pub(crate) use self::key_filter::KeyFilter;
pub use self::sweep::Sweep;
pub use self::view::View;
pub(crate) use self::within::within;
use crate::Result;

/// A column of a scan's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScanColumn {
    /// The row's time: Arrow `Timestamp(Nanosecond, None)`, UTC, never null.
    Time,
    /// A tag (`Utf8View`) or field (`Float64`, `Int64`, `UInt64`, `Boolean`, `Utf8View`); null where the row lacks it.
    Column(ColumnId),
}

/// The tag must have one of these values (`None`: the tag is absent).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagFilter {
    /// The tag's column.
    pub column: ColumnId,
    /// Its allowed values.
    pub values: Vec<Option<String>>,
}

/// What is asked of a view.
#[derive(Clone, Debug)]
pub struct ScanRequest {
    /// The table.
    pub table: Arc<TableSchema>,
    /// The output's columns in order; may be empty (rows are then only counted).
    pub projection: Vec<ScanColumn>,
    /// Rows outside are left out.
    pub times: RangeInclusive<i64>,
    /// Rows that fail one of them are left out.
    pub tags: Vec<TagFilter>,
    /// Rows per output batch, about.
    pub batch_rows: usize,
}

/// A scan's output: batches in order of (series key, time). It blocks on the disk; run it on a blocking thread.
pub type Rows = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

/// The Arrow schema of a table as SQL sees it: `time`, tags in key order, fields oldest first.
pub fn arrow_schema(table: &TableSchema) -> SchemaRef {
    schema_of(table, &crate::merge::whole_layout(table))
}

/// The Arrow schema of some columns of a table.
pub(crate) fn schema_of(table: &TableSchema, columns: &[ScanColumn]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|c| arrow_field(table, *c)).collect::<Vec<_>>()))
}

fn arrow_field(table: &TableSchema, column: ScanColumn) -> Field {
    let ScanColumn::Column(id) = column else {
        return Field::new(model::schema::TIME_COLUMN, DataType::Timestamp(TimeUnit::Nanosecond, None), false);
    };
    let column = table.column_by_id(id).expect("a request names columns of its own table");
    let kind = match column.kind {
        ColumnKind::Tag { .. } | ColumnKind::Field(ColumnType::Str) => DataType::Utf8View,
        ColumnKind::Field(ColumnType::F64) => DataType::Float64,
        ColumnKind::Field(ColumnType::I64) => DataType::Int64,
        ColumnKind::Field(ColumnType::U64) => DataType::UInt64,
        ColumnKind::Field(ColumnType::Bool) => DataType::Boolean,
    };
    Field::new(&*column.name, kind, true)
}
