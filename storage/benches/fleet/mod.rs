//! Rows of a fleet as the memtable gives them: sorted batches in memory.
#![allow(dead_code, reason = "each bench uses its part")]

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringViewArray, TimestampNanosecondArray};
use model::schema::NewColumn;
use model::{ColumnType, DatabaseId, Epoch, LogIndex, ReplicaId, TableId, TableSchema};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use storage::disk::RealDisk;
use storage::manifest::FileMeta;
use storage::parquet_file::{Effort, NewFile, ParquetFiles};
use storage::scan::arrow_schema;
use tempfile::TempDir;

pub(crate) const DEVICES: usize = 10_000;
pub(crate) const ROWS_PER_DEVICE: usize = 50;
const BATCH_ROWS: usize = 8 * 1024;
/// 2026-11-23.
const DAY: i32 = 20_780;
const FLOATS: [(&str, f64); 6] = [("latitude", 1e4), ("longitude", 1e4), ("celsius", 1e2), ("speed", 1e2), ("battery", 1e2), ("load", 1e2)];

pub(crate) fn table() -> Arc<TableSchema> {
    let mut table = TableSchema::new(TableId(1), DatabaseId(1), "phone".into());
    let mut add = |name: &str, field| table.add(&NewColumn { name: name.into(), field }, "device_id", 100).expect("a new column");
    _ = ["device_id", "model", "os", "region"].map(|tag| add(tag, None));
    _ = FLOATS.map(|(name, _)| add(name, Some(ColumnType::F64)));
    _ = ["steps", "heart_rate", "signal_dbm"].map(|name| add(name, Some(ColumnType::I64)));
    add("charging", Some(ColumnType::Bool));
    Arc::new(table)
}

/// Ten seconds between a device's rows; `part` follows `part - 1` in time.
pub(crate) struct Fleet {
    pub batches: Vec<RecordBatch>,
    pub part: usize,
}

impl Fleet {
    pub(crate) fn new(part: usize, rows_per_device: usize) -> Fleet {
        let mut random = SmallRng::seed_from_u64(part as u64);
        let schema = arrow_schema(&table());
        let start = i64::from(DAY) * model::Timestamp::DAY + (part * rows_per_device) as i64 * 10_000_000_000;
        let mut batches = Vec::new();
        let mut rows = Rows::default();
        for device in 0..DEVICES {
            let mut floats: [i64; 6] = std::array::from_fn(|_| random.random_range(-20_000..20_000));
            let mut ints: [i64; 3] = [random.random_range(0..10_000), 70, -80];
            let mut charging = random.random_bool(0.2);
            for row in 0..rows_per_device {
                // Devices report at the same second of their interval, give or take some milliseconds.
                let jitter = (device as i64 % 10_000 * 1_000_000) + random.random_range(0..20) * 1_000_000;
                rows.times.push(start + row as i64 * 10_000_000_000 + jitter);
                rows.devices.push(device);
                for ((walk, (_, scale)), column) in floats.iter_mut().zip(FLOATS).zip(&mut rows.floats) {
                    *walk += random.random_range(-12..=12);
                    column.push(*walk as f64 / scale);
                }
                ints[0] += random.random_range(0..15);
                ints[1] = (ints[1] + random.random_range(-2..=2)).clamp(50, 180);
                ints[2] = (ints[2] + random.random_range(-1..=1)).clamp(-110, -50);
                rows.ints.iter_mut().zip(ints).for_each(|(column, value)| column.push(value));
                charging ^= random.random_bool(0.01);
                rows.charging.push(charging);
                if rows.times.len() == BATCH_ROWS {
                    batches.push(std::mem::take(&mut rows).batch(&schema));
                }
            }
        }
        if !rows.times.is_empty() {
            batches.push(rows.batch(&schema));
        }
        Fleet { batches, part }
    }

    pub(crate) fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

#[derive(Default)]
struct Rows {
    times: Vec<i64>,
    devices: Vec<usize>,
    floats: [Vec<f64>; 6],
    ints: [Vec<i64>; 3],
    charging: Vec<bool>,
}

impl Rows {
    fn batch(self, schema: &arrow::datatypes::SchemaRef) -> RecordBatch {
        let text =
            |of: &dyn Fn(usize) -> String| -> ArrayRef { Arc::new(StringViewArray::from_iter_values(self.devices.iter().map(|&d| of(d)))) };
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(TimestampNanosecondArray::from(self.times)),
            text(&|d| format!("device-{d:012}")),
            text(&|d| format!("model-{}", d % 40)),
            text(&|d| format!("os-{}", d % 7)),
            text(&|d| ["eu-west", "us-east", "ap-south"][d % 3].to_owned()),
        ];
        columns.extend(self.floats.into_iter().map(|c| Arc::new(Float64Array::from(c)) as ArrayRef));
        columns.extend(self.ints.into_iter().map(|c| Arc::new(Int64Array::from(c)) as ArrayRef));
        columns.push(Arc::new(BooleanArray::from(self.charging)));
        RecordBatch::try_new(schema.clone(), columns).expect("the columns of the table")
    }
}

/// A folder on this machine's disk.
pub(crate) struct Place {
    pub files: Arc<ParquetFiles>,
    _dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        let dir = TempDir::new().expect("a temporary folder");
        let files = ParquetFiles::new(Arc::new(RealDisk), PathBuf::from(dir.path()), ReplicaId(1));
        Place { files, _dir: dir }
    }

    pub(crate) fn write(&self, fleet: &Fleet, effort: Effort) -> FileMeta {
        let part = fleet.part as u64;
        let (from, to) = (LogIndex(part * 10), LogIndex(part * 10 + 9));
        let new =
            NewFile { database: "default".into(), table: table(), day: Some(DAY), level: 0, from, to, range_version: Epoch(1), effort };
        let mut file = self.files.create(new).expect("a new file");
        fleet.batches.iter().try_for_each(|batch| file.write(batch)).expect("room on the disk");
        file.finish().expect("a verified file")
    }
}
