//! Writes one Parquet file, from sorted batches to a verified, synced file that nothing names yet.
//!
//! ```text
//! file = | "PAR1" | row group × n | page checksums | page indexes | footer | footer length u32 | "PAR1" |
//!                                  \______________________ tail, read at once when opened _____________/
//! ```
//!
//! Rows come sorted by (series key, time), each identity once; that is the caller's promise and is checked in debug builds.
//! A file that is not finished is removed when its writer is dropped.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampNanosecondType};
use model::{ColumnKind, ColumnType, Epoch, LogIndex, TableSchema};
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::arrow::{ArrowSchemaConverter, PARQUET_FIELD_ID_META_KEY};
use parquet::basic::Compression;
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::writer::SerializedFileWriter;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::encoding::{self, Effort, ROW_GROUP_ROWS, TRIAL_ROWS};
use super::pages::{self, Page};
use super::tag_column::TagColumn;
use super::{ParquetFiles, names};
use crate::batch_bytes::{BATCH_BYTES, bytes_of, rows_within};
use crate::disk::WriteFile;
use crate::key_columns::KeyColumns;
use crate::manifest::FileMeta;
use crate::{Error, Result};

/// What a new file is to be.
#[derive(Clone, Debug)]
pub struct NewFile {
    /// Name of its database.
    pub database: Arc<str>,
    /// Its table.
    pub table: Arc<TableSchema>,
    /// The day of its rows; `None`: several days, for `late/`.
    pub day: Option<i32>,
    /// How many compactions its rows have been through.
    pub level: u8,
    /// First log index whose rows it may hold.
    pub from: LogIndex,
    /// Last log index whose rows it may hold.
    pub to: LogIndex,
    /// The version of the shard's range under which its rows were written, or left out.
    pub range_version: Epoch,
    /// How well it is packed.
    pub effort: Effort,
}

/// The columns of a table's files: time, tags in key order, fields oldest first. Each carries its column's id (time: 0,
/// others: id + 1) as Parquet's field id, by which readers of this crate find it.
pub(crate) fn file_schema(table: &TableSchema) -> SchemaRef {
    let field = |name: &str, kind: DataType, nullable: bool, id: u32| {
        Field::new(name, kind, nullable).with_metadata([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())].into())
    };
    let mut fields = vec![field(model::schema::TIME_COLUMN, super::time_type(), false, 0)];
    fields.extend(table.tags().iter().map(|c| field(&c.name, DataType::Utf8View, true, u32::from(c.id.0) + 1)));
    fields.extend(table.fields().map(|c| field(&c.name, super::field_type(field_kind(c)), true, u32::from(c.id.0) + 1)));
    Arc::new(Schema::new(fields))
}

fn field_kind(column: &model::Column) -> ColumnType {
    match column.kind {
        model::ColumnKind::Field(kind) => kind,
        model::ColumnKind::Tag { .. } => ColumnType::Str,
    }
}

/// Takes what the Parquet library writes and keeps it until a row group is whole, so that pages can be hashed where they
/// lie and the disk sees few large writes.
#[derive(Debug, Default)]
struct Pending(Vec<u8>);

impl Write for Pending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes of one tag's texts at which a row group ends early: readers hold them all.
const MAX_TAG_BYTES: usize = 8 << 20;
/// Bytes of a row group's pages, packed or waiting for it, at which it ends early: they are in memory until it is written.
const ROW_GROUP_BYTES: usize = 64 << 20;
/// Bytes of rows that wait for the choice of encodings.
const WAITING_BYTES: usize = 16 << 20;
/// Bytes of a file's bounds in the manifest.
const MAX_BOUND_BYTES: usize = 256;

/// The Parquet side of a file, once its encodings are chosen.
struct Encoder {
    parquet: SerializedFileWriter<Pending>,
    factory: ArrowRowGroupWriterFactory,
    /// The columns of the row group at hand; none between two.
    group: Vec<ColumnWriter>,
    group_rows: usize,
    tags: usize,
    tag_compression: Compression,
}

/// One column of a row group.
enum ColumnWriter {
    Tag(TagColumn),
    Other(Box<ArrowColumnWriter>),
}

/// Writes one file.
pub struct FileWriter {
    files: Arc<ParquetFiles>,
    new: NewFile,
    schema: SchemaRef,
    relative: String,
    path: PathBuf,
    file: Option<Box<dyn WriteFile>>,
    /// Rows that wait for the choice of encodings.
    waiting: Vec<RecordBatch>,
    waiting_bytes: usize,
    encoder: Option<Encoder>,
    pages: Vec<Page>,
    hash: Xxh3,
    written: u64,
    rows: u64,
    times: (i64, i64),
    keys: (Vec<u8>, Vec<u8>),
    days: Vec<i32>,
}

impl std::fmt::Debug for FileWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileWriter").field("path", &self.path).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl FileWriter {
    pub(super) fn create(files: &Arc<ParquetFiles>, new: NewFile) -> Result<FileWriter> {
        let folder = names::folder(&new.database, &new.table.name, new.day);
        let dir = files.dir.join(&folder);
        files.disk.create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
        // A name that is taken belongs to an attempt whose edit may still be applied: it keeps its file.
        let (relative, path, file) = loop {
            let name = names::file_name(new.level, new.from, new.to, files.replica, files.next_number());
            let path = dir.join(&name);
            match files.disk.create(&path) {
                Ok(file) => break (format!("{folder}/{name}"), path, file),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(Error::io("create", path, error)),
            }
        };
        Ok(FileWriter {
            files: files.clone(),
            schema: file_schema(&new.table),
            new,
            relative,
            path,
            file: Some(file),
            waiting: Vec::new(),
            waiting_bytes: 0,
            encoder: None,
            pages: Vec::new(),
            hash: Xxh3::new(),
            written: 0,
            rows: 0,
            times: (i64::MAX, i64::MIN),
            keys: (Vec::new(), Vec::new()),
            days: Vec::new(),
        })
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes that it holds in memory until a row group is written.
    pub(crate) fn held_bytes(&self) -> usize {
        self.waiting_bytes + self.encoder.as_ref().map_or(0, Encoder::group_bytes)
    }

    /// Ends the row group early, so that it holds next to nothing.
    pub(crate) fn let_go(&mut self) -> Result<()> {
        if self.encoder.is_none() && self.rows > 0 {
            self.choose()?;
        }
        if self.encoder.as_ref().is_some_and(|e| e.group_rows > 0) {
            self.end_group()?;
        }
        Ok(())
    }

    /// Appends rows, whose columns are those of the table in order (time, tags, fields) and which come after all before.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        assert_eq!(batch.num_columns(), self.schema.fields().len(), "a batch has the table's columns");
        self.take_note(batch);
        match (&mut self.encoder, self.new.effort) {
            (None, Effort::Rich) => {
                self.waiting.push(batch.clone());
                self.waiting_bytes += bytes_of(batch);
                if self.rows >= TRIAL_ROWS as u64 || self.waiting_bytes >= WAITING_BYTES {
                    self.choose()?;
                }
                Ok(())
            }
            (None, Effort::Cheap) => {
                self.choose()?;
                self.encode(batch)
            }
            (Some(_), _) => self.encode(batch),
        }
    }

    /// Keeps the statistics that the manifest wants.
    fn take_note(&mut self, batch: &RecordBatch) {
        let times = batch.column(0).as_primitive::<TimestampNanosecondType>().values();
        let (min, max) = times.iter().fold(self.times, |(lo, hi), &t| (lo.min(t), hi.max(t)));
        self.times = (min, max);
        match self.new.day {
            Some(day) => {
                let inside = |t: i64| model::Timestamp(t).day() == day;
                assert!(inside(min) && inside(max), "a file of one day holds rows of that day");
            }
            None => {
                for &time in times {
                    let day = model::Timestamp(time).day();
                    if let Err(place) = self.days.binary_search(&day) {
                        self.days.insert(place, day);
                    }
                }
            }
        }
        let tags = KeyColumns::of(&self.new.table);
        let first = tags.key(batch, 0);
        let last = tags.key(batch, batch.num_rows() - 1);
        debug_assert!(first <= last && (self.rows == 0 || self.keys.1 <= first), "rows come in order of their series");
        if self.rows == 0 {
            self.keys.0 = first;
        }
        self.keys.1 = last;
        self.rows += batch.num_rows() as u64;
    }

    /// Chooses encodings, and encodes what has waited for them.
    fn choose(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let choices = match self.new.effort {
            Effort::Cheap => encoding::by_rule(&self.new.table),
            Effort::Rich => {
                let mut left = TRIAL_ROWS;
                let mut columns: Vec<Vec<ArrayRef>> = vec![Vec::new(); self.schema.fields().len()];
                for batch in &waiting {
                    let rows = batch.num_rows().min(left);
                    left -= rows;
                    for (column, array) in columns.iter_mut().zip(batch.columns()) {
                        column.push(array.slice(0, rows));
                    }
                }
                encoding::by_trial(&self.new.table, &self.schema, &columns).map_err(|e| self.refused(e))?
            }
        };
        self.encoder = Some(self.start(&choices).map_err(|e| self.refused(e))?);
        waiting.iter().try_for_each(|batch| self.encode(batch))
    }

    fn start(&self, choices: &[encoding::Choice]) -> std::result::Result<Encoder, ParquetError> {
        let properties = encoding::properties(&self.new.table, &self.schema, choices, self.new.effort);
        let parquet_schema = ArrowSchemaConverter::new().convert(&self.schema)?;
        let mut parquet = SerializedFileWriter::new(Pending::default(), parquet_schema.root_schema_ptr(), Arc::new(properties))?;
        // The writer buffers: what it wrote is only in `Pending`, where offsets are counted, once it is flushed.
        parquet.flush()?;
        let factory = ArrowRowGroupWriterFactory::new(&parquet, self.schema.clone());
        let tags = self.new.table.tags().len();
        let tag_compression = encoding::compression(self.new.effort, Some(ColumnKind::Tag { position: 0 }));
        Ok(Encoder { parquet, factory, group: Vec::new(), group_rows: 0, tags, tag_compression })
    }

    fn encode(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut start = 0;
        while start < batch.num_rows() {
            let encoder = self.encoder.as_mut().expect("encodings are chosen");
            let rows = (ROW_GROUP_ROWS - encoder.group_rows).min(batch.num_rows() - start);
            let rows = rows_within(batch, start, rows, BATCH_BYTES);
            let encoded = encoder.append(&self.schema, &batch.slice(start, rows));
            let full = encoder.is_full();
            encoded.map_err(|e| self.refused(e))?;
            if full {
                self.end_group()?;
            }
            start += rows;
        }
        Ok(())
    }

    /// Closes the row group and hands its bytes to the disk.
    fn end_group(&mut self) -> Result<()> {
        let encoder = self.encoder.as_mut().expect("encodings are chosen");
        // The library holds some bytes back: only it knows how far it is.
        let start = encoder.parquet.bytes_written() as u64;
        let ended = encoder.end_group(start);
        let ranges = ended.map_err(|e| self.refused(e))?;
        let pending = self.take_pending();
        for (offset, len) in ranges {
            let at = (offset - self.written) as usize;
            self.pages.push(Page { offset, len, sum: xxh3_64(&pending[at..at + len as usize]) });
        }
        self.write_out(&pending)?;
        self.give_back(pending);
        Ok(())
    }

    fn take_pending(&mut self) -> Vec<u8> {
        self.encoder.as_mut().map(|e| std::mem::take(&mut e.parquet.inner_mut().0)).unwrap_or_default()
    }

    /// Lets the next row group use the same memory.
    fn give_back(&mut self, mut pending: Vec<u8>) {
        pending.clear();
        if let Some(encoder) = &mut self.encoder {
            encoder.parquet.inner_mut().0 = pending;
        }
    }

    fn write_out(&mut self, bytes: &[u8]) -> Result<()> {
        let file = self.file.as_mut().expect("the file is open until it is finished");
        file.write_all(bytes).map_err(|e| Error::io("write", &self.path, e))?;
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn refused(&self, error: ParquetError) -> Error {
        Error::Parquet { doing: "encode", path: self.path.clone(), message: error.to_string() }
    }

    /// Ends the file, syncs it, reads it back and compares. Its folder is not synced yet: see [`ParquetFiles::sync_folders`].
    pub fn finish(mut self) -> Result<FileMeta> {
        assert!(self.rows > 0, "a file has rows");
        self.let_go()?;
        let tail_start = self.written;
        let table = pages::encode(&self.pages);
        let encoder = self.encoder.as_mut().expect("encodings are chosen");
        let ended = encoder.end_file(&table, tail_start, &self.new);
        ended.map_err(|e| self.refused(e))?;
        let tail = self.take_pending();
        let tail_checksum = xxh3_64(&tail);
        self.write_out(&tail)?;
        let mut file = self.file.take().expect("the file is open until it is finished");
        // A failed sync says nothing about what is on disk, but nothing names this file yet: it is removed and written anew.
        let synced = file.sync().map_err(|e| Error::io("sync", &self.path, e));
        drop(file);
        let meta = FileMeta {
            path: self.relative.clone(),
            database: self.new.table.database,
            table: self.new.table.id,
            day: self.new.day,
            days: std::mem::take(&mut self.days),
            level: self.new.level,
            from: self.new.from,
            to: self.new.to,
            rows: self.rows,
            bytes: self.written,
            checksum: self.hash.digest(),
            tail_bytes: tail.len() as u64,
            tail_checksum,
            min_time: self.times.0,
            max_time: self.times.1,
            min_key: at_least(std::mem::take(&mut self.keys.0)),
            max_key: at_most(std::mem::take(&mut self.keys.1)),
            schema_version: self.new.table.version,
            range_version: self.new.range_version,
        };
        let verified = synced.and_then(|()| self.files.verify(&meta));
        if let Err(error) = verified {
            self.remove();
            return Err(error);
        }
        // From here on the file is the caller's: dropping the writer leaves it.
        self.relative.clear();
        Ok(meta)
    }

    fn remove(&mut self) {
        drop(self.file.take());
        if !self.relative.is_empty() {
            self.relative.clear();
            if let Err(error) = self.files.disk.remove(&self.path) {
                tracing::warn!(path = %self.path.display(), %error, "could not remove an unfinished file; the next start does");
            }
        }
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Encoder {
    fn append(&mut self, schema: &Schema, batch: &RecordBatch) -> std::result::Result<(), ParquetError> {
        if self.group.is_empty() {
            self.begin_group()?;
        }
        for ((field, array), writer) in schema.fields().iter().zip(batch.columns()).zip(&mut self.group) {
            match writer {
                ColumnWriter::Tag(tag) => tag.append(array.as_string_view())?,
                ColumnWriter::Other(writer) => {
                    for leaf in compute_leaves(field, array)? {
                        writer.write(&leaf)?;
                    }
                }
            }
        }
        self.group_rows += batch.num_rows();
        Ok(())
    }

    fn begin_group(&mut self) -> std::result::Result<(), ParquetError> {
        let schema = self.parquet.schema_descr();
        let writers = self.factory.create_column_writers(self.parquet.flushed_row_groups().len())?;
        self.group = (writers.into_iter().enumerate())
            .map(|(leaf, writer)| match (1..=self.tags).contains(&leaf) {
                true => ColumnWriter::Tag(TagColumn::new(schema.column(leaf), self.tag_compression)),
                false => ColumnWriter::Other(Box::new(writer)),
            })
            .collect();
        Ok(())
    }

    /// Whether the row group has to end.
    fn is_full(&self) -> bool {
        let long = |writer: &ColumnWriter| matches!(writer, ColumnWriter::Tag(tag) if tag.dictionary_bytes() >= MAX_TAG_BYTES);
        self.group_rows == ROW_GROUP_ROWS || self.group.iter().any(long) || self.group_bytes() >= ROW_GROUP_BYTES
    }

    /// Bytes of the row group at hand.
    fn group_bytes(&self) -> usize {
        let bytes = self.group.iter().map(|writer| match writer {
            ColumnWriter::Tag(tag) => tag.memory_bytes(),
            ColumnWriter::Other(writer) => writer.memory_size(),
        });
        bytes.sum()
    }

    /// Closes the row group, which begins at byte `start` of the file, and gives the place of each of its pages.
    fn end_group(&mut self, start: u64) -> std::result::Result<Vec<(u64, u32)>, ParquetError> {
        let mut ranges = Vec::new();
        let mut row_group = self.parquet.next_row_group()?;
        let mut at = start;
        for writer in self.group.drain(..) {
            let sizes = match writer {
                ColumnWriter::Tag(tag) => {
                    let (bytes, close, sizes) = tag.close()?;
                    row_group.append_column(&bytes, close)?;
                    sizes
                }
                ColumnWriter::Other(writer) => {
                    let chunk = writer.close()?;
                    let sizes = page_sizes(chunk.close())?;
                    chunk.append_to_row_group(&mut row_group)?;
                    sizes
                }
            };
            for size in sizes {
                ranges.push((at, size));
                at += u64::from(size);
            }
        }
        row_group.close()?;
        self.parquet.flush()?;
        self.group_rows = 0;
        Ok(ranges)
    }

    fn end_file(&mut self, table: &[u8], tail_start: u64, new: &NewFile) -> std::result::Result<(), ParquetError> {
        let facts = [
            (pages::KEY, tail_start.to_string()),
            ("alluvium.database", new.database.to_string()),
            ("alluvium.table", new.table.name.to_string()),
            ("alluvium.log", format!("{}..={}", new.from, new.to)),
        ];
        for (key, value) in facts {
            self.parquet.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        self.parquet.write_all(table)?;
        self.parquet.finish()?;
        Ok(())
    }
}

/// The sizes of a column chunk's pages in order, that of its dictionary first if it has one.
fn page_sizes(chunk: &ColumnCloseResult) -> std::result::Result<Vec<u32>, ParquetError> {
    let index = chunk.offset_index.as_ref().ok_or(ParquetError::General("no offset index".to_owned()))?;
    let pages = index.page_locations().iter().map(|p| p.compressed_page_size as u32);
    let dictionary = chunk.bytes_written - pages.clone().map(u64::from).sum::<u64>();
    Ok((dictionary > 0).then_some(dictionary as u32).into_iter().chain(pages).collect())
}

/// A bound of at most [`MAX_BOUND_BYTES`] that no key of the file comes before: manifests do not grow with what devices are
/// called.
fn at_least(mut smallest: Vec<u8>) -> Vec<u8> {
    smallest.truncate(MAX_BOUND_BYTES);
    smallest
}

/// A bound that no key of the file comes after: the next key of so many bytes, where the largest has more.
fn at_most(mut largest: Vec<u8>) -> Vec<u8> {
    if largest.len() > MAX_BOUND_BYTES {
        // Every key begins with the number of its first component, so there is a byte to count up.
        let last = largest[..MAX_BOUND_BYTES].iter().rposition(|byte| *byte < u8::MAX).unwrap_or(0);
        largest.truncate(last + 1);
        largest[last] = largest[last].saturating_add(1);
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_long_keys_are_short_and_hold_them() {
        for key in [vec![1, 7], [&[1u8][..], &[9; 5_000]].concat(), [&[1u8][..], &[255; 5_000]].concat()] {
            let (min, max) = (at_least(key.clone()), at_most(key.clone()));
            assert!(min <= key && key <= max, "{min:?} {max:?}");
            assert!(min.len() <= MAX_BOUND_BYTES && max.len() <= MAX_BOUND_BYTES);
        }
        assert_eq!((at_least(vec![1, 7]), at_most(vec![1, 7])), (vec![1, 7], vec![1, 7]));
    }
}
