//! A shard in a temporary folder and the batches that a fleet of phones sends to it.
#![allow(dead_code, reason = "each bench uses its part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use model::schema::NewColumn;
use model::{
    Bitmap, Catalog, ColumnKind, ColumnType, DatabaseId, DatabaseSchema, Epoch, FieldColumn, LogIndex, PointBatch, ReplicaId, SeriesKey,
    ShardId, TableId, TableSchema, Term, Timestamp, Values,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use storage::disk::RealDisk;
use storage::entry::RetryWindow;
use storage::merge::whole_layout;
use storage::{Entry, ScanColumn, ScanRequest, Shard, ShardOptions, WritePart};
use tempfile::TempDir;

pub(crate) const DEVICES: usize = 10_000;
/// Rows of one request.
pub(crate) const BATCH_ROWS: usize = 5_000;
/// 2026-11-23.
const START: i64 = 20_780 * Timestamp::DAY;

pub(crate) fn table() -> Arc<TableSchema> {
    let mut table = TableSchema::new(TableId(1), DatabaseId(1), "phone".into());
    let mut add = |name: &str, field| table.add(&NewColumn { name: name.into(), field }, "device_id", 100).expect("a new column");
    for tag in ["device_id", "model", "os", "region"] {
        add(tag, None);
    }
    for name in ["latitude", "longitude", "celsius", "speed", "battery", "load"] {
        add(name, Some(ColumnType::F64));
    }
    for name in ["steps", "heart_rate", "signal_dbm"] {
        add(name, Some(ColumnType::I64));
    }
    add("charging", Some(ColumnType::Bool));
    Arc::new(table)
}

pub(crate) fn catalog() -> Catalog {
    let table = table();
    let database = DatabaseSchema {
        id: DatabaseId(1),
        name: "default".into(),
        routing_tag: "device_id".into(),
        retention_ns: None,
        tables: [(table.name.clone(), table)].into(),
    };
    Catalog { version: 1, databases: [(database.name.clone(), Arc::new(database))].into(), next_table: 100, ..Catalog::default() }
}

/// `rounds` rows of each device, ten seconds apart, in the order in which devices report, from round `first` on.
pub(crate) fn entries(first: usize, rounds: usize) -> Vec<Entry> {
    let table = table();
    let mut random = SmallRng::seed_from_u64(first as u64);
    let keys: Vec<SeriesKey> = (0..DEVICES)
        .map(|d| {
            let tags = [format!("device-{d:012}"), format!("model-{}", d % 40), format!("os-{}", d % 7), format!("region-{}", d % 3)];
            SeriesKey::new(tags.iter().map(|t| Some(t.as_str())))
        })
        .collect();
    let rows: Vec<(usize, i64)> = (first..first + rounds)
        .flat_map(|round| (0..DEVICES).map(move |d| (d, START + round as i64 * 10_000_000_000 + d as i64 * 1_000_000)))
        .collect();
    static SEQUENCE: AtomicU64 = AtomicU64::new(0);
    rows.chunks(BATCH_ROWS)
        .map(|rows| {
            let mut batch = PointBatch::new(table.id, table.version);
            for &(device, time) in rows {
                let series = batch.push_series(keys[device].as_bytes());
                batch.row_series.push(series);
                batch.times.push(time);
            }
            for column in table.fields() {
                let n = rows.len();
                let values = match column.kind {
                    ColumnKind::Field(ColumnType::F64) => {
                        Values::F64((0..n).map(|_| random.random_range(-9_000..9_000) as f64 / 100.0).collect())
                    }
                    ColumnKind::Field(ColumnType::I64) => Values::I64((0..n).map(|_| random.random_range(0..10_000)).collect()),
                    _ => {
                        let mut bits = Bitmap::default();
                        (0..n).for_each(|_| bits.push(random.random_bool(0.2)));
                        Values::Bool(bits)
                    }
                };
                batch.columns.push(FieldColumn { id: column.id, values, valid: None });
            }
            Entry::Write(vec![WritePart {
                origin: 1,
                sequence: SEQUENCE.fetch_add(1, Ordering::Relaxed),
                arrived: Timestamp(START),
                range_version: Epoch(1),
                retry_window: RetryWindow::Recent,
                batches: vec![batch],
            }])
        })
        .collect()
}

/// A shard and its log's length.
pub(crate) struct Place {
    pub shard: Shard,
    next: u64,
    _dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        let dir = TempDir::new().expect("a temporary folder");
        let options = ShardOptions {
            disk: Arc::new(RealDisk),
            dir: dir.path().to_owned(),
            shard: ShardId(0),
            replica: ReplicaId(1),
            flush_bytes: 64 << 20,
            last_rows_bytes: 64 << 20,
        };
        Place { shard: Shard::open(options).expect("a new shard"), next: 0, _dir: dir }
    }

    pub(crate) fn apply(&mut self, entry: &Entry) {
        self.shard.apply(Term(1), LogIndex(self.next), entry).expect("an entry of this program");
        self.next += 1;
    }

    pub(crate) fn with(entries: &[Entry]) -> Place {
        let mut place = Place::new();
        entries.iter().for_each(|entry| place.apply(entry));
        place
    }

    /// Turns what is in memory into files.
    pub(crate) fn flush(&mut self) {
        self.apply(&Entry::Seal);
        let edit = self.shard.flush(&catalog()).expect("room for files").expect("a sealed memtable");
        self.apply(&Entry::Manifest(edit));
    }

    /// Reads what a request wants and counts its rows.
    pub(crate) fn read(&self, request: &ScanRequest) -> usize {
        self.shard.view().scan(request).expect("a view").map(|batch| batch.expect("rows").num_rows()).sum()
    }
}

/// All rows and columns.
pub(crate) fn everything() -> ScanRequest {
    let table = table();
    let projection = whole_layout(&table);
    ScanRequest { table, projection, times: i64::MIN..=i64::MAX, tags: Vec::new(), batch_rows: 8 * 1024 }
}

/// One field and time, as most dashboards ask.
pub(crate) fn one_field() -> ScanRequest {
    let celsius = table().column("celsius").expect("a field").id;
    ScanRequest { projection: vec![ScanColumn::Time, ScanColumn::Column(celsius)], ..everything() }
}
