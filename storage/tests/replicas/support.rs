//! Replicas on disks in memory, the files that travel between them, and rows as a map keeps them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, TimestampNanosecondType};
use model::schema::NewColumn;
use model::{
    Bitmap, Catalog, ColumnId, ColumnType, DatabaseId, DatabaseSchema, Epoch, FieldColumn, LogIndex, PointBatch, ReplicaId, SeriesKey,
    ShardId, TableId, TableSchema, Term, Timestamp, Values,
};
use storage::disk::FaultyDisk;
use storage::entry::RetryWindow;
use storage::manifest::{FileMeta, ManifestEdit};
use storage::merge::whole_layout;
use storage::{Entry, Outcome, Result, ScanRequest, Shard, ShardOptions, View, WritePart};

pub(crate) const DATABASE: DatabaseId = DatabaseId(1);
pub(crate) const HOUR: i64 = 3_600_000_000_000;
pub(crate) const DIR: &str = "shard";
/// A day and a half before midnight of day 19,700.
pub(crate) const START: i64 = 19_700 * Timestamp::DAY - 36 * HOUR;

/// Device and time to the two fields.
pub(crate) type Rows = BTreeMap<(String, i64), (Option<i64>, Option<i64>)>;
/// By table.
pub(crate) type Tables = BTreeMap<u32, Rows>;

/// The numbers of all tables.
pub(crate) const TABLES: std::ops::RangeInclusive<u32> = 1..=12;

pub(crate) fn catalog() -> Catalog {
    let mut database =
        DatabaseSchema { id: DATABASE, name: "fleet".into(), routing_tag: "device_id".into(), retention_ns: None, tables: BTreeMap::new() };
    for id in TABLES {
        let named = match id {
            1 => "phone".to_owned(),
            2 => "watch".to_owned(),
            _ => format!("table{id}"),
        };
        let mut table = TableSchema::new(TableId(id), DATABASE, named.as_str().into());
        for (name, field) in [("device_id", None), ("a", Some(ColumnType::I64)), ("b", Some(ColumnType::I64))] {
            table.add(&NewColumn { name: name.into(), field }, "device_id", 100).unwrap();
        }
        database.tables.insert(named.into(), Arc::new(table));
    }
    Catalog { version: 1, databases: [(database.name.clone(), Arc::new(database))].into(), next_table: 100, ..Catalog::default() }
}

pub(crate) fn open_on(disk: &FaultyDisk, replica: u128) -> Result<Shard> {
    Shard::open(ShardOptions {
        disk: Arc::new(disk.clone()),
        dir: PathBuf::from(DIR),
        shard: ShardId(3),
        replica: ReplicaId(replica),
        flush_bytes: 1 << 20,
        last_rows_bytes: 1 << 20,
    })
}

/// One part with one batch.
pub(crate) fn write(sequence: u64, table: u32, rows: &Rows) -> Entry {
    let fields: Vec<ColumnId> = catalog().table(TableId(table)).unwrap().1.fields().map(|c| c.id).collect();
    let mut batch = PointBatch::new(TableId(table), 3);
    let (mut a, mut b) = ((Vec::new(), Bitmap::default()), (Vec::new(), Bitmap::default()));
    for ((device, time), values) in rows {
        let series = batch.push_series(SeriesKey::new([Some(device.as_str())]).as_bytes());
        batch.row_series.push(series);
        batch.times.push(*time);
        for (value, column) in [(values.0, &mut a), (values.1, &mut b)] {
            column.0.push(value.unwrap_or_default());
            column.1.push(value.is_some());
        }
    }
    for (id, (values, valid)) in fields.into_iter().zip([a, b]) {
        if valid.count() > 0 {
            batch.columns.push(FieldColumn { id, values: Values::I64(values), valid: (valid.count() < rows.len()).then_some(valid) });
        }
    }
    Entry::Write(vec![WritePart {
        origin: 5,
        sequence,
        arrived: Timestamp(sequence as i64),
        range_version: Epoch(1),
        retry_window: RetryWindow::Day,
        batches: vec![batch],
    }])
}

/// Some rows of one device.
pub(crate) fn rows(device: &str, hours: std::ops::Range<i64>, a: i64) -> Rows {
    hours.map(|hour| ((device.to_owned(), START + hour * HOUR), (Some(a), (hour % 2 == 0).then_some(hour)))).collect()
}

pub(crate) fn write_over(all: &mut Rows, newer: &Rows) {
    for (key, (a, b)) in newer {
        let row = all.entry(key.clone()).or_default();
        *row = (a.or(row.0), b.or(row.1));
    }
}

/// All rows that a view shows of a table.
pub(crate) fn read(view: &View, table: u32) -> Rows {
    let catalog = catalog();
    let table = catalog.table(TableId(table)).unwrap().1;
    let request =
        ScanRequest { table: table.clone(), projection: whole_layout(table), times: i64::MIN..=i64::MAX, tags: Vec::new(), batch_rows: 50 };
    let mut rows = Rows::new();
    for batch in view.scan(&request).unwrap() {
        let batch = batch.unwrap();
        let c = batch.columns();
        for row in 0..batch.num_rows() {
            let value = |i: usize| c[i].is_valid(row).then(|| c[i].as_primitive::<Int64Type>().value(row));
            let key = (c[1].as_string_view().value(row).to_owned(), c[0].as_primitive::<TimestampNanosecondType>().value(row));
            assert!(rows.insert(key, (value(2), value(3))).is_none(), "a row stands twice");
        }
    }
    rows
}

pub(crate) fn apply(shard: &Shard, index: u64, entry: &Entry) -> Vec<Outcome> {
    shard.apply(Term(1), LogIndex(index), entry).unwrap()
}

/// Sends one file from one replica to another, in pieces.
pub(crate) fn send(from: &Shard, to: &Shard, file: &FileMeta) -> Result<()> {
    let sent = from.open_file(&file.path)?;
    let mut receiver = to.receive_file(file)?;
    let mut at = 0;
    loop {
        let bytes = sent.read(at, 700)?;
        if bytes.is_empty() {
            return receiver.finish();
        }
        receiver.write(&bytes)?;
        at += bytes.len() as u64;
    }
}

/// Sends the files that `to` lacks.
pub(crate) fn send_missing(from: &Shard, to: &Shard, files: &[FileMeta]) -> Result<()> {
    to.missing_files(files).iter().try_for_each(|file| send(from, to, file))
}

/// Writes, seals and flushes on the first replica, as entries `at..at + 2` on all, and gives the edit.
pub(crate) fn flushed(shards: &[&Shard], at: u64, entry: &Entry) -> ManifestEdit {
    for shard in shards {
        apply(shard, at, entry);
        apply(shard, at + 1, &Entry::Seal);
    }
    shards[0].flush(&catalog()).unwrap().unwrap()
}

/// Names of the files on a disk below a folder of the shard's.
pub(crate) fn names_below(disk: &FaultyDisk, folder: &str) -> Vec<String> {
    let below = PathBuf::from(DIR).join(folder);
    disk.files().into_iter().filter(|(path, _)| path.starts_with(&below)).map(|(path, _)| path.display().to_string()).collect()
}
