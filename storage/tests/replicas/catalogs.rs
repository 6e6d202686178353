//! Upkeep by a catalog that is older than the rows: it waits, and drops nothing.

use std::sync::Arc;

use model::schema::{MAX_TABLES_PER_DATABASE, NewColumn};
use model::{
    Catalog, ColumnType, DatabaseSchema, Epoch, FieldColumn, LogIndex, PointBatch, ReplicaId, SeriesKey, ShardId, TableId, TableSchema,
    Term, Timestamp, Values,
};
use storage::disk::FaultyDisk;
use storage::entry::{MAX_ENTRY_BYTES, RetryWindow};
use storage::{Entry, Shard, ShardOptions, WritePart};

use crate::support::{DATABASE, DIR, Rows, apply, catalog, open_on, read, rows, write, write_over};

/// The catalog as it was before the watch was known and before the phone had its second field.
fn older() -> Catalog {
    let mut catalog = catalog();
    let mut database = DatabaseSchema::clone(catalog.database("fleet").unwrap());
    database.tables.remove("watch");
    let mut phone = TableSchema::new(TableId(1), DATABASE, "phone".into());
    for (name, field) in [("device_id", None), ("a", Some(ColumnType::I64))] {
        phone.add(&NewColumn { name: name.into(), field }, "device_id", 100).unwrap();
    }
    database.tables.insert("phone".into(), Arc::new(phone));
    catalog.databases.insert("fleet".into(), Arc::new(database));
    catalog.next_table = 2;
    catalog
}

#[test]
fn rows_of_a_table_that_the_catalog_does_not_know_yet_are_not_flushed_away() {
    let shard = open_on(&FaultyDisk::new(1), 1).unwrap();
    let (phone, watch) = (rows("p", 0..10, 1), rows("w", 0..10, 2));
    apply(&shard, 1, &write(1, 2, &watch));
    apply(&shard, 2, &Entry::Seal);
    assert!(matches!(shard.flush(&older()), Err(storage::Error::StaleSchema { .. })));
    apply(&shard, 3, &write(2, 1, &phone));
    apply(&shard, 4, &Entry::Seal);
    let mut index = 5;
    while let Some(edit) = shard.flush(&catalog()).unwrap() {
        apply(&shard, index, &Entry::Manifest(edit));
        index += 1;
    }
    assert!(!shard.has_unflushed(None));
    assert_eq!((read(&shard.view(), 1), read(&shard.view(), 2)), (phone, watch));
}

#[test]
fn files_with_columns_that_the_catalog_does_not_know_yet_are_not_merged() {
    let shard = open_on(&FaultyDisk::new(2), 1).unwrap();
    let mut all = Rows::new();
    for round in 0..3 {
        let some = rows("p", round..round + 10, round);
        write_over(&mut all, &some);
        apply(&shard, round as u64 * 3 + 1, &write(round as u64, 1, &some));
        apply(&shard, round as u64 * 3 + 2, &Entry::Seal);
        let edit = shard.flush(&catalog()).unwrap().expect("it is sealed");
        apply(&shard, round as u64 * 3 + 3, &Entry::Manifest(edit));
    }
    assert!(shard.compact(&older(), None, true).unwrap().is_none());
    assert_eq!(read(&shard.view(), 1), all);
    let mut index = 20;
    while let Some(edit) = shard.compact(&catalog(), None, true).unwrap() {
        apply(&shard, index, &Entry::Manifest(edit));
        index += 1;
    }
    assert!(index > 20);
    assert_eq!(read(&shard.view(), 1), all);
}

#[test]
fn rows_of_a_table_that_was_dropped_leave_with_the_flush() {
    let shard = open_on(&FaultyDisk::new(3), 1).unwrap();
    apply(&shard, 1, &write(1, 2, &rows("w", 0..10, 2)));
    apply(&shard, 2, &Entry::Seal);
    let dropped = Catalog { next_table: 100, ..older() };
    let edit = shard.flush(&dropped).unwrap().expect("it is sealed");
    assert!(edit.files().is_empty());
}

#[test]
fn tags_of_a_megabyte_do_not_make_manifests_of_megabytes() {
    let shard = open_on(&FaultyDisk::new(4), 1).unwrap();
    let mut all = Rows::new();
    for round in 0..4 {
        let device = format!("{round}{}", "x".repeat(900_000));
        let some = rows(&device, 0..2, round);
        all.extend(some.clone());
        apply(&shard, round as u64 + 1, &write(round as u64, 1, &some));
    }
    apply(&shard, 5, &Entry::Seal);
    let edit = shard.flush(&catalog()).unwrap().expect("it is sealed");
    assert!(!edit.files().is_empty());
    let entry = Entry::Manifest(edit);
    let mut bytes = Vec::new();
    entry.encode(&mut bytes);
    assert!(bytes.len() < 100_000, "{} bytes", bytes.len());
    apply(&shard, 6, &entry);
    assert_eq!(read(&shard.view(), 1), all);
}

/// So many tables of one database, with long names, and a row of a long key for each.
fn many_tables(tables: u32) -> (Catalog, Vec<PointBatch>) {
    let mut catalog = catalog();
    let mut database = DatabaseSchema::clone(catalog.database("fleet").unwrap());
    database.tables.clear();
    let batches = (1..=tables).map(|id| {
        let name = format!("table-{id:05}-").repeat(15);
        let mut table = TableSchema::new(TableId(id), DATABASE, name.as_str().into());
        for (name, field) in [("device_id", None), ("a", Some(ColumnType::I64))] {
            table.add(&NewColumn { name: name.into(), field }, "device_id", 100).unwrap();
        }
        let mut batch = PointBatch::new(TableId(id), table.version);
        let series = batch.push_series(SeriesKey::new([Some(format!("device-{id}").repeat(40).as_str())]).as_bytes());
        batch.row_series.push(series);
        batch.times.push(i64::from(id));
        let a = table.fields().next().unwrap().id;
        batch.columns.push(FieldColumn { id: a, values: Values::I64(vec![i64::from(id)]), valid: None });
        database.tables.insert(name.into(), Arc::new(table));
        batch
    });
    let batches = batches.collect();
    catalog.databases.insert("fleet".into(), Arc::new(database));
    catalog.next_table = tables + 1;
    (catalog, batches)
}

/// Opens a shard that never asks to be sealed for its memtable's bytes.
fn open_with_room() -> Shard {
    let options = ShardOptions {
        disk: Arc::new(FaultyDisk::new(3)),
        dir: DIR.into(),
        shard: ShardId(3),
        replica: ReplicaId(1),
        flush_bytes: usize::MAX,
        last_rows_bytes: 1 << 20,
    };
    Shard::open(options).unwrap()
}

fn write_all(sequence: u64, batches: &[PointBatch]) -> Entry {
    Entry::Write(vec![WritePart {
        origin: 5,
        sequence,
        arrived: Timestamp(0),
        range_version: Epoch(1),
        retry_window: RetryWindow::Recent,
        batches: batches.to_vec(),
    }])
}

#[test]
fn a_memtable_of_very_many_tables_asks_to_be_sealed() {
    let shard = open_with_room();
    let (_, batches) = many_tables(MAX_TABLES_PER_DATABASE as u32);
    let (last, rest) = batches.split_last().unwrap();
    apply(&shard, 1, &write_all(1, rest));
    apply(&shard, 2, &write_all(2, rest));
    assert!(!shard.wants_seal());
    apply(&shard, 3, &write_all(3, std::slice::from_ref(last)));
    assert!(shard.wants_seal());
    apply(&shard, 4, &Entry::Seal);
    assert!(!shard.wants_seal());
}

#[test]
fn a_flush_of_many_tables_is_applied_as_the_log_gives_it_back() {
    const TABLES: usize = 700;
    let shard = open_with_room();
    let (catalog, batches) = many_tables(TABLES as u32);
    apply(&shard, 1, &write_all(1, &batches));
    apply(&shard, 2, &Entry::Seal);
    let edit = shard.flush(&catalog).unwrap().expect("it is sealed");
    let json = serde_json::to_vec(&edit).unwrap().len();
    let mut bytes = Vec::new();
    Entry::Manifest(edit).encode(&mut bytes);
    assert!(json > MAX_ENTRY_BYTES, "{json} bytes are no more than an entry of writes has");
    apply(&shard, 3, &Entry::decode(&bytes.into()).unwrap());
    assert!(!shard.has_unflushed(None));
    assert_eq!(shard.files().len(), TABLES);
    assert_eq!(shard.flushed().0, Some((Term(1), LogIndex(2))));
}
