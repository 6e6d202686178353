//! One node, through its public face, on a disk that can fail and lose power.

mod faults;
mod groups;
mod reads;
mod restart;
mod schema;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{AsArray, Float64Array, TimestampNanosecondArray};
use cluster::{Cluster, ClusterOptions};
use model::schema::NewColumn;
use model::{ColumnType, Epoch, FieldColumn, PointBatch, SeriesKey, ShardId, TableSchema, Timestamp, Values};
use storage::disk::{Disk, FaultyDisk};
use storage::entry::{RetryWindow, WritePart};
use storage::{ScanColumn, ScanRequest};

/// The time of day in these tests.
const NOW: Timestamp = Timestamp(1_780_000_000_000_000_000);
const DATABASE: &str = "fleet";
const TABLE: &str = "phone";

/// Rows by device and time.
type Rows = BTreeMap<(String, i64), f64>;

fn options(disk: &FaultyDisk) -> ClusterOptions {
    ClusterOptions {
        node: "n1".to_owned(),
        data_dir: PathBuf::from("/data"),
        disk: Arc::new(disk.clone()),
        shards: 1,
        clock: Arc::new(|| NOW),
        seed: 7,
        flush_bytes: 16 << 20,
        last_rows_bytes: 1 << 20,
        max_waiting_bytes: 16 << 20,
        peers: None,
    }
}

async fn start(disk: &FaultyDisk) -> Arc<Cluster> {
    Cluster::start(options(disk)).await.expect("the node starts")
}

/// A node with a table of one tag and one field.
async fn start_with_table(disk: &FaultyDisk) -> (Arc<Cluster>, Arc<TableSchema>) {
    let node = start(disk).await;
    node.create_database(DATABASE, None, None).await.unwrap();
    let columns =
        vec![NewColumn { name: "device_id".into(), field: None }, NewColumn { name: "celsius".into(), field: Some(ColumnType::F64) }];
    let agreed = node.add_columns(DATABASE, vec![(TABLE.into(), columns)]).await.unwrap();
    assert!(agreed.refused.is_empty());
    let table = table(&node);
    (node, table)
}

fn table(node: &Cluster) -> Arc<TableSchema> {
    node.catalog().database(DATABASE).unwrap().tables[TABLE].clone()
}

/// A part of one device's points.
fn part(table: &TableSchema, sequence: u64, device: &str, points: &[(i64, f64)]) -> WritePart {
    let mut batch = PointBatch::new(table.id, table.version);
    let series = batch.push_series(SeriesKey::new([Some(device)]).as_bytes());
    batch.row_series = vec![series; points.len()];
    batch.times = points.iter().map(|p| NOW.0 + p.0).collect();
    let id = table.column("celsius").unwrap().id;
    batch.columns = vec![FieldColumn { id, values: Values::F64(points.iter().map(|p| p.1).collect()), valid: None }];
    WritePart { origin: 99, sequence, arrived: NOW, range_version: Epoch(1), retry_window: RetryWindow::Day, batches: vec![batch] }
}

/// Everything that a query would see.
async fn rows(node: &Cluster, table: &Arc<TableSchema>) -> Rows {
    let mut rows = Rows::new();
    for shard in node.shards() {
        let view = node.read(shard).await.expect("the shard can be read");
        let device = table.column("device_id").unwrap().id;
        let celsius = table.column("celsius").unwrap().id;
        let request = ScanRequest {
            table: table.clone(),
            projection: vec![ScanColumn::Column(device), ScanColumn::Time, ScanColumn::Column(celsius)],
            times: i64::MIN..=i64::MAX,
            tags: Vec::new(),
            batch_rows: 1_000,
        };
        for batch in view.scan(&request).unwrap() {
            let batch = batch.unwrap();
            let devices = batch.column(0).as_string_view();
            let times: &TimestampNanosecondArray = batch.column(1).as_primitive();
            let values: &Float64Array = batch.column(2).as_primitive();
            for row in 0..batch.num_rows() {
                let key = (devices.value(row).to_owned(), times.value(row) - NOW.0);
                assert!(rows.insert(key, values.value(row)).is_none(), "each row stands once");
            }
        }
    }
    rows
}

fn row(device: &str, time: i64, value: f64) -> ((String, i64), f64) {
    ((device.to_owned(), time), value)
}

const SHARD: ShardId = ShardId(0);
