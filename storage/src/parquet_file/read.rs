//! Reads one Parquet file: opens it by its tail, prunes, decodes what is left, checks every page that it touches.
//!
//! Rows come out in the file's order, (series key, time), in this crate's Arrow types, and only rows that the request
//! wants. Damage is an error that names the file and the byte; a panic inside the Parquet library counts as damage.

use std::cell::Cell;
use std::fmt;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampNanosecondType};
use arrow::error::ArrowError;
use bytes::Bytes;
use model::ColumnId;
use parking_lot::Mutex;
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowPredicate, ArrowPredicateFn, ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
    RowFilter,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::pages::{self, Page};
use super::prune::{self, Wanted};
use crate::batch_bytes::{VALUE_BYTES, batch_rows};
use crate::disk::{Disk, ReadAt};
use crate::manifest::FileMeta;
use crate::scan::{Rows, ScanColumn, ScanRequest, TagFilter};
use crate::{Error, Result};

/// What every Parquet file begins with.
const MAGIC: &[u8; 4] = b"PAR1";

/// An open file: its footer and page checksums at hand.
pub struct ParquetFile {
    pub(super) path: Arc<Path>,
    file: Arc<dyn ReadAt>,
    len: u64,
    pages: Arc<[Page]>,
    arrow: ArrowReaderMetadata,
    /// Which leaf holds which column; time is under `None`.
    leaves: Vec<Option<ColumnId>>,
    /// Bytes of each leaf's values, of the page with the largest: a batch has as many rows as these allow.
    value_bytes: Vec<u64>,
    min_time: i64,
    max_time: i64,
}

impl fmt::Debug for ParquetFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParquetFile").field("path", &self.path).field("pages", &self.pages.len()).finish_non_exhaustive()
    }
}

/// What makes a file's error.
pub(super) fn corrupt(path: &Path, at: u64, what: impl Into<String>) -> Error {
    Error::Corrupt { path: path.to_owned(), at, what: what.into() }
}

thread_local! {
    static EXPECTS_DAMAGE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is decoding bytes that may be damaged, so that a panic is caught and is an error of the file; for
/// whoever counts panics.
pub fn damage_is_expected() -> bool {
    EXPECTS_DAMAGE.get()
}

/// Runs the Parquet library on bytes from the disk: its panics are damage like its errors.
pub(super) fn guarded<T>(path: &Path, at: u64, decode: impl FnOnce() -> std::result::Result<T, String>) -> Result<T> {
    let before = EXPECTS_DAMAGE.replace(true);
    let decoded = catch_unwind(AssertUnwindSafe(decode));
    EXPECTS_DAMAGE.set(before);
    match decoded {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(what)) => Err(corrupt(path, at, what)),
        Err(panic) => {
            let what = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(corrupt(path, at, format!("it does not decode: {}", what.unwrap_or("the Parquet library panicked"))))
        }
    }
}

/// The end of a file in memory, which answers as the file would.
pub(super) struct Tail {
    pub(super) bytes: Bytes,
    pub(super) start: u64,
}

impl Length for Tail {
    fn len(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl ChunkReader for Tail {
    type T = Cursor<Bytes>;

    fn get_read(&self, start: u64) -> std::result::Result<Self::T, ParquetError> {
        let length = self.len().saturating_sub(start) as usize;
        Ok(Cursor::new(self.get_bytes(start, length)?))
    }

    fn get_bytes(&self, start: u64, length: usize) -> std::result::Result<Bytes, ParquetError> {
        let from = start.checked_sub(self.start).map(|s| s as usize);
        let range = from.and_then(|from| Some(from..from.checked_add(length)?)).filter(|r| r.end <= self.bytes.len());
        match range {
            Some(range) => Ok(self.bytes.slice(range)),
            None => Err(ParquetError::General(format!("the footer points to {length} bytes at {start}, outside of the tail"))),
        }
    }
}

impl Tail {
    /// Parses footer, page indexes and page checksums.
    pub(super) fn parse(&self, path: &Path) -> Result<(ParquetMetaData, Vec<Page>)> {
        let metadata = guarded(path, self.start, || {
            ParquetMetaDataReader::new()
                .with_page_index_policy(PageIndexPolicy::Required)
                .parse_and_finish(self)
                .map_err(|e| format!("the footer does not parse: {e}"))
        })?;
        let keys = metadata.file_metadata().key_value_metadata();
        let value = keys.and_then(|keys| keys.iter().find(|k| k.key == pages::KEY)).and_then(|k| k.value.as_deref());
        let at = value.and_then(|v| v.parse::<u64>().ok()).and_then(|at| at.checked_sub(self.start));
        let table = at.and_then(|at| self.bytes.get(at as usize..));
        let table = table.ok_or_else(|| corrupt(path, self.start, "the footer does not say where the page checksums are"))?;
        let pages = pages::decode(table).map_err(|why| why.in_file(path, self.start))?;
        Ok((metadata, pages))
    }
}

impl ParquetFile {
    /// Opens the file that the manifest names, and checks its length and tail.
    pub(super) fn open(disk: &dyn Disk, path: PathBuf, meta: &FileMeta) -> Result<ParquetFile> {
        let file = disk.open(&path).map_err(|e| Error::io("open", &path, e))?;
        let len = file.len().map_err(|e| Error::io("read the length of", &path, e))?;
        if len != meta.bytes || meta.tail_bytes > len {
            return Err(corrupt(&path, len, format!("it has {len} bytes and should have {}", meta.bytes)));
        }
        let start = len - meta.tail_bytes;
        let mut bytes = vec![0; meta.tail_bytes as usize];
        file.read_exact_at(&mut bytes, start).map_err(|e| Error::io("read", &path, e))?;
        if xxh3_64(&bytes) != meta.tail_checksum {
            return Err(corrupt(&path, start, "the checksum of its tail does not match"));
        }
        let (metadata, pages) = Tail { bytes: bytes.into(), start }.parse(&path)?;
        let arrow = guarded(&path, start, || load_arrow(metadata).map_err(|e| format!("the footer does not parse: {e}")))?;
        let mut leaves = Vec::with_capacity(arrow.schema().fields().len());
        for field in arrow.schema().fields() {
            let id = field.metadata().get(PARQUET_FIELD_ID_META_KEY).and_then(|id| id.parse::<u32>().ok());
            let id = id.ok_or_else(|| corrupt(&path, start, format!("column {} has no id", field.name())))?;
            leaves.push(id.checked_sub(1).map(|id| ColumnId(id as u16)));
        }
        let value_bytes = (0..leaves.len()).map(|leaf| largest_values(arrow.metadata(), leaf)).collect();
        let (min_time, max_time) = (meta.min_time, meta.max_time);
        Ok(ParquetFile { path: path.into(), file, len, pages: pages.into(), arrow, leaves, value_bytes, min_time, max_time })
    }

    /// Rows in it.
    pub fn rows(&self) -> u64 {
        self.arrow.metadata().file_metadata().num_rows() as u64
    }

    /// Reads every byte: each page matches its checksum, pages and tail make up the whole file without a gap, every page
    /// that the offset index names can be read, and whole file and rows are what the manifest says.
    pub(super) fn verify(&self, meta: &FileMeta) -> Result<()> {
        let corrupt = |at: u64, what: &str| Err(corrupt(&self.path, at, what));
        let mut hash = Xxh3::new();
        let mut bytes = Vec::new();
        let mut at = 0;
        let magic = Page { offset: 0, len: MAGIC.len() as u32, sum: xxh3_64(MAGIC) };
        for page in std::iter::once(&magic).chain(&*self.pages) {
            if page.offset != at {
                return corrupt(at, "no page begins here");
            }
            bytes.resize(page.len as usize, 0);
            self.file.read_exact_at(&mut bytes, at).map_err(|e| Error::io("read", &*self.path, e))?;
            if xxh3_64(&bytes) != page.sum {
                return corrupt(at, "the checksum of a page does not match");
            }
            hash.update(&bytes);
            at += u64::from(page.len);
        }
        if at.checked_add(meta.tail_bytes) != Some(self.len) {
            return corrupt(at, "the tail does not begin where the last page ends");
        }
        bytes.resize(meta.tail_bytes as usize, 0);
        self.file.read_exact_at(&mut bytes, at).map_err(|e| Error::io("read", &*self.path, e))?;
        hash.update(&bytes);
        if hash.digest() != meta.checksum {
            return corrupt(0, "the checksum of the whole file does not match");
        }
        let metadata = self.arrow.metadata();
        for (group, indexes) in metadata.row_groups().iter().zip(metadata.offset_index().into_iter().flatten()) {
            for (column, index) in group.columns().iter().zip(indexes) {
                let (start, first) = (column.byte_range().0, index.page_locations().first());
                let dictionary = first.filter(|p| p.offset as u64 != start).map(|p| (start, p.offset as u64 - start));
                let pages = index.page_locations().iter().map(|p| (p.offset as u64, p.compressed_page_size as u64));
                for (offset, len) in dictionary.into_iter().chain(pages) {
                    if self.page(offset, len as usize).is_none() {
                        return corrupt(offset, "the offset index names a page that has no checksum");
                    }
                }
            }
        }
        match self.rows() == meta.rows {
            true => Ok(()),
            false => corrupt(self.len, &format!("it has {} rows and should have {}", self.rows(), meta.rows)),
        }
    }

    fn page(&self, offset: u64, len: usize) -> Option<Page> {
        let found = self.pages.binary_search_by_key(&offset, |page| page.offset);
        found.ok().map(|i| self.pages[i]).filter(|page| page.len as usize == len)
    }

    /// About how many bytes of memory it takes while it is open.
    pub(super) fn memory_bytes(&self) -> usize {
        self.arrow.metadata().memory_size() + self.pages.len() * size_of::<Page>()
    }

    /// The rows that the request wants, in order of (series key, time). Columns that the file lacks are null. Batches have
    /// fewer rows than asked for where rows are large, so that one takes about 4 MiB at most, besides a page of each column.
    pub fn scan(self: &Arc<Self>, request: &ScanRequest) -> Result<Rows> {
        let leaf_of = |id: Option<ColumnId>| self.leaves.iter().position(|leaf| *leaf == id);
        let time_leaf = leaf_of(None).ok_or_else(|| corrupt(&self.path, self.len, "it has no column for time"))?;
        let mut tags = Vec::new();
        for filter in &request.tags {
            match leaf_of(Some(filter.column)) {
                Some(leaf) => tags.push((leaf, filter)),
                // Every row of this file lacks the tag.
                None if filter.values.iter().any(Option::is_none) => {}
                None => return Ok(Box::new(std::iter::empty())),
            }
        }
        let wanted = Wanted { times: request.times.clone(), time_leaf, tags };
        let metadata = self.arrow.metadata();
        let groups = prune::row_groups(metadata, &wanted);
        if groups.is_empty() {
            return Ok(Box::new(std::iter::empty()));
        }
        let mut projected = Vec::new();
        let mut columns = Vec::with_capacity(request.projection.len());
        for column in &request.projection {
            let id = match column {
                ScanColumn::Time => None,
                ScanColumn::Column(id) => Some(*id),
            };
            let leaf = leaf_of(id);
            columns.push((output_field(request, id)?, leaf));
            projected.extend(leaf);
        }
        projected.sort_unstable();
        projected.dedup();
        let place = |leaf: usize| projected.binary_search(&leaf).expect("every leaf of the output is projected");
        let (fields, sources): (Vec<Field>, Vec<Option<usize>>) = columns.into_iter().map(|(field, leaf)| (field, leaf.map(place))).unzip();

        let failed = Arc::new(Mutex::new(None));
        let reader = CheckedReader { file: self.clone(), failed: failed.clone() };
        let parquet_schema = metadata.file_metadata().schema_descr();
        let decoded = guarded(&self.path, 0, || {
            let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(reader, self.arrow.clone())
                .with_projection(ProjectionMask::leaves(parquet_schema, projected.iter().copied()))
                .with_batch_size(batch_rows(projected.iter().map(|&leaf| self.value_bytes[leaf]).sum(), request.batch_rows));
            if let Some(selection) = prune::pages(metadata, &groups, &wanted) {
                builder = builder.with_row_selection(selection);
            }
            let mut predicates: Vec<Box<dyn ArrowPredicate>> = Vec::new();
            for (leaf, filter) in &wanted.tags {
                predicates.push(tag_predicate(ProjectionMask::leaves(parquet_schema, [*leaf]), filter));
            }
            if self.min_time < *request.times.start() || self.max_time > *request.times.end() {
                predicates.push(time_predicate(ProjectionMask::leaves(parquet_schema, [time_leaf]), request.times.clone()));
            }
            if !predicates.is_empty() {
                builder = builder.with_row_filter(RowFilter::new(predicates));
            }
            builder.with_row_groups(groups.clone()).build().map_err(|e| e.to_string())
        });
        let decoded = match (decoded, failed.lock().take()) {
            (Ok(decoded), _) => decoded,
            (Err(_), Some(error)) | (Err(error), None) => return Err(error),
        };
        Ok(Box::new(FileRows { file: self.clone(), decoded: Some(decoded), failed, schema: Arc::new(Schema::new(fields)), sources }))
    }
}

/// Bytes of a value of a leaf, on average in the page where that is the most.
fn largest_values(metadata: &ParquetMetaData, leaf: usize) -> u64 {
    let groups = metadata.row_groups().iter().zip(metadata.offset_index().into_iter().flatten());
    let pages = groups.filter_map(|(group, leaves)| leaves.get(leaf).map(|index| (group.num_rows(), index)));
    let averages = pages.flat_map(|(rows, index)| {
        let starts = index.page_locations().iter().map(|page| page.first_row_index);
        let ends = starts.clone().skip(1).chain([rows]);
        let texts = index.unencoded_byte_array_data_bytes().map_or(&[] as &[i64], Vec::as_slice);
        starts.zip(ends).zip(texts).map(|((start, end), &bytes)| bytes.max(0).unsigned_abs().div_ceil((end - start).max(1).unsigned_abs()))
    });
    VALUE_BYTES as u64 + averages.max().unwrap_or(0)
}

fn load_arrow(metadata: ParquetMetaData) -> std::result::Result<ArrowReaderMetadata, ParquetError> {
    let metadata = Arc::new(metadata);
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true).with_page_index_policy(PageIndexPolicy::Required);
    let plain = ArrowReaderMetadata::try_new(metadata.clone(), options.clone())?;
    // Strings are read as views into the decoded pages, which is the form that the rest of the program works in.
    let fields = plain.schema().fields().iter().map(|field| match field.data_type() {
        DataType::Utf8 => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8View)),
        _ => field.clone(),
    });
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    ArrowReaderMetadata::try_new(metadata, options.with_schema(schema))
}

fn output_field(request: &ScanRequest, id: Option<ColumnId>) -> Result<Field> {
    let Some(id) = id else {
        return Ok(Field::new(model::schema::TIME_COLUMN, super::time_type(), false));
    };
    let column = request.table.column_by_id(id);
    let column = column.ok_or_else(|| Error::Stopped { what: format!("column {id}"), why: "the table does not have it".to_owned() })?;
    let kind = match column.kind {
        model::ColumnKind::Tag { .. } => DataType::Utf8View,
        model::ColumnKind::Field(kind) => super::field_type(kind),
    };
    Ok(Field::new(&*column.name, kind, true))
}

fn time_predicate(mask: ProjectionMask, times: std::ops::RangeInclusive<i64>) -> Box<dyn ArrowPredicate> {
    Box::new(ArrowPredicateFn::new(mask, move |batch: RecordBatch| {
        let column = batch.column(0).as_primitive::<TimestampNanosecondType>().values();
        let bits = BooleanBuffer::collect_bool(column.len(), |i| times.contains(&column[i]));
        Ok(BooleanArray::new(bits, None))
    }))
}

fn tag_predicate(mask: ProjectionMask, filter: &TagFilter) -> Box<dyn ArrowPredicate> {
    let mut values: Vec<Option<String>> = filter.values.clone();
    values.sort_unstable();
    values.dedup();
    Box::new(ArrowPredicateFn::new(mask, move |batch: RecordBatch| {
        let column = batch.column(0).as_string_view();
        let mut last: Option<(Option<&str>, bool)> = None;
        let bits = BooleanBuffer::collect_bool(column.len(), |i| {
            let value = column.is_valid(i).then(|| column.value(i));
            // Rows of one series stand together: one comparison instead of a search.
            match last {
                Some((seen, matches)) if seen == value => matches,
                _ => {
                    let matches = values.binary_search_by(|v| v.as_deref().cmp(&value)).is_ok();
                    last = Some((value, matches));
                    matches
                }
            }
        });
        Ok(BooleanArray::new(bits, None))
    }))
}

/// Gives the Parquet library pages, and only whole pages whose checksum matches.
#[derive(Clone)]
struct CheckedReader {
    file: Arc<ParquetFile>,
    /// The first error, which the library would turn into text.
    failed: Arc<Mutex<Option<Error>>>,
}

impl CheckedReader {
    fn fail(&self, error: Error) -> ParquetError {
        let text = error.to_string();
        self.failed.lock().get_or_insert(error);
        ParquetError::General(text)
    }
}

impl Length for CheckedReader {
    fn len(&self) -> u64 {
        self.file.len
    }
}

impl ChunkReader for CheckedReader {
    type T = Cursor<Bytes>;

    fn get_read(&self, start: u64) -> std::result::Result<Self::T, ParquetError> {
        Err(self.fail(corrupt(&self.file.path, start, "its offset index is missing")))
    }

    fn get_bytes(&self, start: u64, length: usize) -> std::result::Result<Bytes, ParquetError> {
        let Some(page) = self.file.page(start, length) else {
            return Err(self.fail(corrupt(&self.file.path, start, format!("no page of {length} bytes begins here"))));
        };
        let mut bytes = vec![0; length];
        if let Err(error) = self.file.file.read_exact_at(&mut bytes, start) {
            return Err(self.fail(Error::io("read", &*self.file.path, error)));
        }
        if xxh3_64(&bytes) != page.sum {
            return Err(self.fail(corrupt(&self.file.path, start, format!("the checksum of a page of {length} bytes does not match"))));
        }
        Ok(bytes.into())
    }
}

/// The batches of one scan of one file.
struct FileRows {
    file: Arc<ParquetFile>,
    decoded: Option<ParquetRecordBatchReader>,
    failed: Arc<Mutex<Option<Error>>>,
    schema: SchemaRef,
    /// For each output column its place among the decoded ones; `None`: null in every row.
    sources: Vec<Option<usize>>,
}

impl FileRows {
    fn output(&self, decoded: RecordBatch) -> std::result::Result<RecordBatch, ArrowError> {
        let rows = decoded.num_rows();
        let columns: Vec<ArrayRef> = (self.sources.iter().zip(self.schema.fields()))
            .map(|(source, field)| match source {
                Some(i) => decoded.column(*i).clone(),
                None => new_null_array(field.data_type(), rows),
            })
            .collect();
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &RecordBatchOptions::new().with_row_count(Some(rows)))
    }
}

impl Iterator for FileRows {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let decoded = self.decoded.as_mut()?;
        let next = guarded(&self.file.path, 0, || decoded.next().transpose().map_err(|e| e.to_string()));
        let output = match next {
            Ok(Some(batch)) => self.output(batch).map_err(|e| corrupt(&self.file.path, 0, e.to_string())),
            Ok(None) => {
                self.decoded = None;
                return None;
            }
            Err(error) => Err(self.failed.lock().take().unwrap_or(error)),
        };
        if output.is_err() {
            // After an error there is nothing more: a reader must never take the rest for an answer.
            self.decoded = None;
        }
        Some(output)
    }
}
