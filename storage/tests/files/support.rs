//! Rows as a model keeps them, and the same rows as batches.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringViewArray, TimestampNanosecondArray, UInt64Array,
};
use arrow::datatypes::{Float64Type, Int64Type, TimestampNanosecondType, UInt64Type};
use model::schema::NewColumn;
use model::{ColumnType, DatabaseId, Epoch, LogIndex, ReplicaId, SeriesKey, TableId, TableSchema, Timestamp};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use storage::Result;
use storage::disk::{Disk, FaultyDisk};
use storage::flush::{FlushTable, flush};
use storage::manifest::FileMeta;
use storage::merge::whole_layout;
use storage::parquet_file::{Effort, NewFile, ParquetFiles};
use storage::scan::{Rows, ScanRequest, arrow_schema};

pub(crate) const DIR: &str = "shard";
pub(crate) const DAY: i64 = Timestamp::DAY;
/// 2026-11-23.
pub(crate) const TODAY: i32 = 20_780;

/// The fields of one row; `None` where it has no value.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fields {
    pub(crate) celsius: Option<f64>,
    pub(crate) steps: Option<i64>,
    pub(crate) total: Option<u64>,
    pub(crate) on: Option<bool>,
    pub(crate) note: Option<String>,
}

impl Fields {
    /// What stands where `newer` was written over this.
    pub(crate) fn overwrite(&mut self, newer: &Fields) {
        let Fields { celsius, steps, total, on, note } = newer.clone();
        self.celsius = celsius.or(self.celsius);
        self.steps = steps.or(self.steps);
        self.total = total.or(self.total);
        self.on = on.or(self.on);
        self.note = note.or(self.note.take());
    }
}

/// Device and region.
pub(crate) type Tags = (Option<String>, Option<String>);
/// Rows in the order of files: absent tags first.
pub(crate) type Model = BTreeMap<(Tags, i64), Fields>;

pub(crate) fn table() -> Arc<TableSchema> {
    let mut table = TableSchema::new(TableId(1), DatabaseId(1), "phone/α".into());
    let columns = [
        ("device_id", None),
        ("celsius", Some(ColumnType::F64)),
        ("region", None),
        ("steps", Some(ColumnType::I64)),
        ("total", Some(ColumnType::U64)),
        ("on", Some(ColumnType::Bool)),
        ("note", Some(ColumnType::Str)),
    ];
    for (name, field) in columns {
        table.add(&NewColumn { name: name.into(), field }, "device_id", 100).unwrap();
    }
    Arc::new(table)
}

/// The rows as one batch in the table's column order.
pub(crate) fn batch<'a>(rows: impl IntoIterator<Item = (&'a (Tags, i64), &'a Fields)>) -> RecordBatch {
    let rows: Vec<_> = rows.into_iter().collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampNanosecondArray::from_iter_values(rows.iter().map(|(k, _)| k.1))),
        Arc::new(StringViewArray::from_iter(rows.iter().map(|(k, _)| k.0.0.as_deref()))),
        Arc::new(StringViewArray::from_iter(rows.iter().map(|(k, _)| k.0.1.as_deref()))),
        Arc::new(Float64Array::from_iter(rows.iter().map(|(_, f)| f.celsius))),
        Arc::new(Int64Array::from_iter(rows.iter().map(|(_, f)| f.steps))),
        Arc::new(UInt64Array::from_iter(rows.iter().map(|(_, f)| f.total))),
        Arc::new(BooleanArray::from_iter(rows.iter().map(|(_, f)| f.on))),
        Arc::new(StringViewArray::from_iter(rows.iter().map(|(_, f)| f.note.as_deref()))),
    ];
    RecordBatch::try_new(arrow_schema(&table()), columns).unwrap()
}

/// The rows in batches of `size`.
pub(crate) fn batches(rows: &Model, size: usize) -> Vec<RecordBatch> {
    let all: Vec<_> = rows.iter().collect();
    all.chunks(size.max(1)).map(|chunk| batch(chunk.iter().copied())).collect()
}

fn text(column: &ArrayRef, row: usize) -> Option<String> {
    let column = column.as_string_view();
    column.is_valid(row).then(|| column.value(row).to_owned())
}

/// Batches of the table's columns as rows; panics if a row stands twice or out of order.
pub(crate) fn rows_of(batches: &[RecordBatch]) -> Model {
    let mut model = Model::new();
    for batch in batches {
        let c = batch.columns();
        for row in 0..batch.num_rows() {
            let time = c[0].as_primitive::<TimestampNanosecondType>().value(row);
            let valid = |i: usize| c[i].is_valid(row);
            let fields = Fields {
                celsius: valid(3).then(|| c[3].as_primitive::<Float64Type>().value(row)),
                steps: valid(4).then(|| c[4].as_primitive::<Int64Type>().value(row)),
                total: valid(5).then(|| c[5].as_primitive::<UInt64Type>().value(row)),
                on: valid(6).then(|| c[6].as_boolean().value(row)),
                note: text(&c[7], row),
            };
            let key = ((text(&c[1], row), text(&c[2], row)), time);
            let last = model.last_key_value().map(|(key, _)| key.clone());
            assert!(last.as_ref().is_none_or(|last| *last < key), "{key:?} comes after {last:?}");
            model.insert(key, fields);
        }
    }
    model
}

/// Random rows: few devices and times, so that writes overlap.
pub(crate) fn random_rows(seed: u64, rows: usize, times: RangeInclusive<i64>) -> Model {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut model = Model::new();
    for _ in 0..rows {
        let device = random.random_bool(0.95).then(|| format!("device-{:03}", random.random_range(0..20)));
        let region = random.random_bool(0.8).then(|| ["eu", "us", "ap"][random.random_range(0..3)].to_owned());
        let step = ((times.end() - times.start()) / 50).max(1);
        let time = times.start() + random.random_range(0..=(times.end() - times.start()) / step) * step;
        let fields = Fields {
            celsius: random.random_bool(0.8).then(|| f64::from(random.random_range(-400..400)) / 10.0),
            steps: random.random_bool(0.8).then(|| random.random_range(-1_000..1_000)),
            total: random.random_bool(0.5).then(|| random.random()),
            on: random.random_bool(0.5).then(|| random.random()),
            note: random.random_bool(0.3).then(|| "é\u{0}x".repeat(random.random_range(0..5))),
        };
        model.insert(((device, region), time), fields);
    }
    model
}

/// Text that does not get smaller by much.
pub(crate) fn random_text(seed: u64, bytes: usize) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut random = SmallRng::seed_from_u64(seed);
    let letters = (0..bytes.div_ceil(10)).flat_map(|_| {
        let bits: u64 = random.random();
        (0..10).map(move |i| char::from(LETTERS[(bits >> (6 * i)) as usize % 64]))
    });
    letters.take(bytes).collect()
}

pub(crate) fn files_on(disk: &FaultyDisk) -> Arc<ParquetFiles> {
    ParquetFiles::new(Arc::new(disk.clone()), PathBuf::from(DIR), ReplicaId(7))
}

/// A request for all columns of all rows.
pub(crate) fn everything() -> ScanRequest {
    let table = table();
    let projection = whole_layout(&table);
    ScanRequest { table, projection, times: i64::MIN..=i64::MAX, tags: Vec::new(), batch_rows: 1_000 }
}

/// Writes the rows as one file.
pub(crate) fn write(files: &Arc<ParquetFiles>, rows: &Model, day: Option<i32>, effort: Effort) -> Result<FileMeta> {
    let new = NewFile {
        database: "default".into(),
        table: table(),
        day,
        level: 0,
        from: LogIndex(0),
        to: LogIndex(9),
        range_version: Epoch(1),
        effort,
    };
    let mut file = files.create(new)?;
    for batch in batches(rows, 777) {
        file.write(&batch)?;
    }
    let meta = file.finish()?;
    files.sync_folders([&meta])?;
    Ok(meta)
}

/// Flushes the rows as entries `span` of the log would have brought them.
pub(crate) fn flush_rows(files: &Arc<ParquetFiles>, rows: &Model, span: RangeInclusive<u64>) -> Result<Vec<FileMeta>> {
    let mut days = BTreeMap::new();
    for (_, time) in rows.keys() {
        *days.entry(Timestamp(*time).day()).or_insert(0) += 1;
    }
    let rows: Rows = Box::new(batches(rows, 100).into_iter().map(Ok));
    let table = FlushTable { database: "default".into(), schema: table(), days, rows };
    flush(files, (LogIndex(*span.start()), LogIndex(*span.end())), Epoch(1), [Ok(table)])
}

/// All rows of a file.
pub(crate) fn read(files: &ParquetFiles, meta: &FileMeta) -> Result<Model> {
    let batches = files.open(meta)?.scan(&everything())?.collect::<Result<Vec<_>>>()?;
    Ok(rows_of(&batches))
}

/// What the files say together, in their order of writes.
pub(crate) fn read_all<'a>(files: &ParquetFiles, live: impl IntoIterator<Item = &'a FileMeta>) -> Result<Model> {
    let mut live: Vec<&FileMeta> = live.into_iter().collect();
    live.sort_by_key(|f| f.from);
    let mut all = Model::new();
    for meta in live {
        write_over(&mut all, &read(files, meta)?);
    }
    Ok(all)
}

pub(crate) fn write_over(rows: &mut Model, newer: &Model) {
    for (key, fields) in newer {
        rows.entry(key.clone()).or_default().overwrite(fields);
    }
}

pub(crate) fn key_of(tags: &Tags) -> Vec<u8> {
    SeriesKey::new([tags.0.as_deref(), tags.1.as_deref()]).as_bytes().to_vec()
}

/// Every file on the disk that is no folder's name.
pub(crate) fn names(disk: &FaultyDisk) -> Vec<String> {
    disk.files().into_iter().map(|(path, _)| path.display().to_string()).collect()
}

/// The bytes of a file on the disk.
pub(crate) fn bytes(disk: &FaultyDisk, meta: &FileMeta) -> Vec<u8> {
    (disk as &dyn Disk).read(&Path::new(DIR).join(&meta.path)).unwrap()
}

/// Few rows with every kind of value, on one day.
pub(crate) fn any_rows() -> impl Strategy<Value = Model> {
    (any::<u64>(), 1..300usize).prop_map(|(seed, rows)| random_rows(seed, rows, today()))
}

pub(crate) fn today() -> RangeInclusive<i64> {
    let start = i64::from(TODAY) * DAY;
    start..=start + DAY - 1
}
