use model::TableSchema;
use model::schema::NewColumn;
use model::{ColumnId, ColumnType, DatabaseId, FieldColumn, SeriesKey, Values};

use super::*;
use crate::merge::whole_layout;
use crate::scan::ScanRequest;

fn table() -> Arc<TableSchema> {
    let mut table = TableSchema::new(TableId(1), DatabaseId(1), "t".into());
    for (name, field) in [("device_id", None), ("v", Some(ColumnType::I64))] {
        table.add(&NewColumn { name: name.into(), field }, "device_id", 10).unwrap();
    }
    Arc::new(table)
}

fn batch(device: &str, times: std::ops::Range<i64>) -> PointBatch {
    let table = table();
    let mut batch = PointBatch::new(table.id, table.version);
    batch.push_series(SeriesKey::new([Some(device)]).as_bytes());
    batch.times = times.collect();
    batch.row_series = vec![0; batch.times.len()];
    batch.columns.push(FieldColumn { id: ColumnId(1), values: Values::I64(batch.times.clone()), valid: None });
    batch
}

fn request(batch_rows: usize) -> ScanRequest {
    let table = table();
    ScanRequest { projection: whole_layout(&table), table, times: i64::MIN..=i64::MAX, tags: Vec::new(), batch_rows }
}

fn rows_of(captured: &Captured) -> usize {
    let request = request(1000);
    captured[&TableId(1)].sorted(&request).read(&request).map(|batch| batch.unwrap().num_rows()).sum()
}

#[test]
fn what_a_reader_captured_never_changes() {
    let mut memtable = Memtable::default();
    let mut captures = Vec::new();
    let mut rows = 0;
    // Around the sizes at which a held chunk is copied, left, and full.
    for n in [1, COPY_ROWS - 2, 1, 1, 10, CHUNK_ROWS, 3, 2 * CHUNK_ROWS + 1] {
        memtable.insert(&batch(&format!("d{rows}"), rows as i64..(rows + n) as i64));
        rows += n;
        captures.push((memtable.capture(), rows));
    }
    for (captured, rows) in captures {
        assert_eq!(rows_of(&captured), rows);
    }
}

#[test]
fn bytes_and_rows_are_counted_until_their_table_is_dropped() {
    let mut memtable = Memtable::default();
    memtable.insert(&batch("d1", 0..100));
    let bytes = memtable.bytes();
    // Series number, time and one value.
    assert!((100 * 20..100 * 20 + 2 * TABLE_BYTES).contains(&bytes), "{bytes}");
    memtable.insert(&batch("d1", 100..200));
    assert_eq!((memtable.bytes(), memtable.rows()), (bytes + 100 * 20, 200));
    memtable.drop_table(TableId(1));
    assert_eq!((memtable.bytes(), memtable.rows()), (0, 0));
    memtable.insert(&batch("d1", 0..1));
    assert_eq!(rows_of(&memtable.capture()), 1);
}

#[test]
fn days_are_counted_and_series_come_in_order_of_key() {
    let mut memtable = Memtable::default();
    for device in ["b", "a\0", "a", "ab", ""] {
        memtable.insert(&batch(device, -1..2));
    }
    let captured = memtable.capture();
    assert_eq!(captured[&TableId(1)].days(), [(-1, 5), (0, 10)].into());
    let request = request(4);
    let devices: Vec<String> = captured[&TableId(1)]
        .sorted(&request)
        .read(&request)
        .flat_map(|batch| {
            let batch = batch.unwrap();
            let column = arrow::array::AsArray::as_string_view(batch.column(1));
            column.iter().map(|d| d.unwrap().to_owned()).collect::<Vec<_>>()
        })
        .collect();
    let expected: Vec<&str> = ["", "a", "a\0", "ab", "b"].into_iter().flat_map(|d| [d; 3]).collect();
    assert_eq!(devices, expected);
}
