//! How the columns of a new file are encoded: cheaply by rule when a memtable is flushed, by trial when files are compacted.
//!
//! A flush is on the way of sustained writing and its files live for minutes, so it takes what encodes fastest. A
//! compacted file lives for long and is read often: each column's first rows are encoded in every way that suits its type,
//! compressed, and the smallest wins. Sizes and costs as measured: `docs/file-formats.md`.

use std::io;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, Schema};
use model::{ColumnKind, ColumnType, TableSchema};
use parquet::arrow::ArrowSchemaConverter;
use parquet::arrow::arrow_writer::{ArrowRowGroupWriterFactory, compute_leaves};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;

/// Rows of a row group: the unit that is buffered while a file is written.
pub(crate) const ROW_GROUP_ROWS: usize = 128 * 1024;
/// Rows of a page: the unit that a query reads, checks and decodes.
pub(super) const PAGE_ROWS: usize = 16 * 1024;
/// Rows on which encodings are tried: one page tells floats that walk from floats that repeat.
pub(crate) const TRIAL_ROWS: usize = PAGE_ROWS;

/// What a file is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// For a flush: the least work.
    Cheap,
    /// For a compaction: the fewest bytes.
    Rich,
}

/// How one column is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// A dictionary and indexes into it, plain where the dictionary grows too large.
    Dictionary,
    /// This encoding.
    Plain(Encoding),
}

const PLAIN: Choice = Choice::Plain(Encoding::PLAIN);
const DELTA: Choice = Choice::Plain(Encoding::DELTA_BINARY_PACKED);

/// What a column is to the choice of its encoding; `None` is time.
pub(super) type Kind = Option<ColumnKind>;

/// The choice that costs least.
fn cheap(kind: Kind) -> Choice {
    match kind {
        Some(ColumnKind::Tag { .. }) => Choice::Dictionary,
        None | Some(ColumnKind::Field(ColumnType::I64 | ColumnType::U64)) => DELTA,
        Some(ColumnKind::Field(_)) => PLAIN,
    }
}

/// The choices worth a trial; the first wins a tie.
fn candidates(kind: Kind) -> &'static [Choice] {
    match kind {
        None => &[DELTA, Choice::Dictionary],
        Some(ColumnKind::Tag { .. }) => &[Choice::Dictionary],
        Some(ColumnKind::Field(ColumnType::F64)) => &[PLAIN, Choice::Dictionary, Choice::Plain(Encoding::BYTE_STREAM_SPLIT)],
        Some(ColumnKind::Field(ColumnType::I64 | ColumnType::U64)) => &[DELTA, Choice::Dictionary, PLAIN],
        Some(ColumnKind::Field(ColumnType::Bool)) => &[PLAIN],
        Some(ColumnKind::Field(ColumnType::Str)) => &[Choice::Dictionary, Choice::Plain(Encoding::DELTA_LENGTH_BYTE_ARRAY), PLAIN],
    }
}

/// How a column's pages are compressed.
pub(super) fn compression(effort: Effort, kind: Kind) -> Compression {
    match (effort, kind) {
        // Numbers of a file that lives for minutes: compressing them cost a third of the flush and halved what is written.
        (Effort::Cheap, Some(ColumnKind::Field(ColumnType::Str))) => Compression::LZ4_RAW,
        (Effort::Cheap, _) => Compression::UNCOMPRESSED,
        // Level 3 saves 3 % of a fleet's bytes over level 1 and costs a quarter more CPU for the whole compaction.
        (Effort::Rich, _) => Compression::ZSTD(ZstdLevel::try_new(1).expect("zstd has a level 1")),
    }
}

pub(super) fn kinds(table: &TableSchema) -> Vec<Kind> {
    let mut kinds = vec![None];
    kinds.extend(table.tags().iter().map(|c| Some(c.kind)));
    kinds.extend(table.fields().map(|c| Some(c.kind)));
    kinds
}

/// The choice for each column by rule.
pub(crate) fn by_rule(table: &TableSchema) -> Vec<Choice> {
    kinds(table).into_iter().map(cheap).collect()
}

/// The choice for each column by trial on `columns`, the first rows of the file.
pub(crate) fn by_trial(table: &TableSchema, schema: &Schema, columns: &[Vec<ArrayRef>]) -> Result<Vec<Choice>, ParquetError> {
    let mut chosen = Vec::with_capacity(columns.len());
    for ((kind, field), arrays) in kinds(table).into_iter().zip(schema.fields()).zip(columns) {
        let candidates = candidates(kind);
        let mut best = (u64::MAX, candidates[0]);
        if candidates.len() > 1 {
            for &choice in candidates {
                let size = encoded_size(field, kind, arrays, choice)?;
                if size < best.0 {
                    best = (size, choice);
                }
            }
        }
        chosen.push(best.1);
    }
    Ok(chosen)
}

fn encoded_size(field: &Arc<Field>, kind: Kind, arrays: &[ArrayRef], choice: Choice) -> Result<u64, ParquetError> {
    let schema = Arc::new(Schema::new(vec![field.clone()]));
    let builder = WriterProperties::builder()
        .set_compression(compression(Effort::Rich, kind))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_statistics_enabled(EnabledStatistics::None);
    let properties = Arc::new(with_choice(builder, field, choice).build());
    let parquet_schema = ArrowSchemaConverter::new().convert(&schema)?;
    let writer = SerializedFileWriter::new(io::sink(), parquet_schema.root_schema_ptr(), properties)?;
    let factory = ArrowRowGroupWriterFactory::new(&writer, schema);
    let mut column = factory.create_column_writers(0)?.pop().ok_or(ParquetError::General("no column".to_owned()))?;
    for array in arrays {
        for leaf in compute_leaves(field, array)? {
            column.write(&leaf)?;
        }
    }
    Ok(column.close()?.close().bytes_written)
}

fn with_choice(builder: WriterPropertiesBuilder, field: &Field, choice: Choice) -> WriterPropertiesBuilder {
    let path = ColumnPath::new(vec![field.name().clone()]);
    match choice {
        Choice::Dictionary => builder.set_column_dictionary_enabled(path, true),
        Choice::Plain(encoding) => builder.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, encoding),
    }
}

/// The properties of a file with these choices.
pub(crate) fn properties(table: &TableSchema, schema: &Schema, choices: &[Choice], effort: Effort) -> WriterProperties {
    // Rows are sorted by tags in key order, then time; time is the first column, tags follow in key order.
    let tags = table.tags().len() as i32;
    let sorting = (1..=tags).chain([0]).map(|column_idx| SortingColumn { column_idx, descending: false, nulls_first: true });
    let mut builder = WriterProperties::builder()
        .set_created_by(concat!("alluvium ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(PAGE_ROWS / 4)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_write_page_header_statistics(false)
        .set_sorting_columns(Some(sorting.collect()));
    for ((field, kind), &choice) in schema.fields().iter().zip(kinds(table)).zip(choices) {
        debug_assert!(!matches!(field.data_type(), DataType::Struct(_)), "a column is a leaf");
        builder = with_choice(builder, field, choice);
        builder = builder.set_column_compression(ColumnPath::new(vec![field.name().clone()]), compression(effort, kind));
    }
    builder.build()
}
