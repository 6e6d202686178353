//! Files give back what was written: to us, pruned or not, and to a stock Parquet reader.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit};
use bytes::Bytes;
use model::schema::NewColumn;
use model::{ColumnId, ColumnType, TableSchema};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{ConvertedType, Encoding};
use parquet::file::metadata::SortingColumn;
use proptest::prelude::*;
use storage::Result;
use storage::disk::FaultyDisk;
use storage::manifest::FileMeta;
use storage::parquet_file::{Effort, inspect};
use storage::scan::{ScanColumn, ScanRequest, TagFilter, arrow_schema};

use crate::support::*;

#[test]
fn a_stock_reader_sees_names_types_order_and_rows_as_declared() {
    for effort in [Effort::Cheap, Effort::Rich] {
        let disk = FaultyDisk::new(1);
        let rows = random_rows(5, 2_000, today());
        let meta = write(&files_on(&disk), &rows, Some(TODAY), effort).unwrap();
        let builder = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes(&disk, &meta))).unwrap();
        let types: Vec<(String, DataType)> = builder.schema().fields().iter().map(|f| (f.name().clone(), f.data_type().clone())).collect();
        let expected = [
            ("time", DataType::Timestamp(TimeUnit::Nanosecond, None)),
            ("device_id", DataType::Utf8),
            ("region", DataType::Utf8),
            ("celsius", DataType::Float64),
            ("steps", DataType::Int64),
            ("total", DataType::UInt64),
            ("on", DataType::Boolean),
            ("note", DataType::Utf8),
        ];
        assert_eq!(types, expected.map(|(name, kind)| (name.to_owned(), kind)));
        let group = builder.metadata().row_group(0);
        let sorting: Vec<(i32, bool, bool)> = (group.sorting_columns().unwrap().iter())
            .map(|SortingColumn { column_idx, descending, nulls_first }| (*column_idx, *descending, *nulls_first))
            .collect();
        assert_eq!(sorting, [(1, false, true), (2, false, true), (0, false, true)]);
        assert_eq!(builder.metadata().file_metadata().schema_descr().column(1).converted_type(), ConvertedType::UTF8);
        assert!(group.columns().iter().all(|c| c.statistics().is_some() && c.offset_index_offset().is_some()));
        // Read as it stands, and only then turned into the types of this program.
        let ours = arrow_schema(&table());
        let batches = builder.build().unwrap().map(|batch| {
            let batch = batch.unwrap();
            let columns = batch.columns().iter().zip(ours.fields()).map(|(c, f)| cast(c, f.data_type()).unwrap());
            RecordBatch::try_new(ours.clone(), columns.collect()).unwrap()
        });
        assert_eq!(rows_of(&batches.collect::<Vec<_>>()), rows);
    }
}

#[test]
fn the_manifest_entry_tells_what_is_in_the_file() {
    let disk = FaultyDisk::new(1);
    let rows = random_rows(6, 500, today());
    let files = files_on(&disk);
    let meta = write(&files, &rows, Some(TODAY), Effort::Cheap).unwrap();
    assert_eq!(meta.rows, rows.len() as u64);
    assert_eq!(meta.bytes, bytes(&disk, &meta).len() as u64);
    assert_eq!(meta.min_time, rows.keys().map(|k| k.1).min().unwrap());
    assert_eq!(meta.max_time, rows.keys().map(|k| k.1).max().unwrap());
    assert_eq!(meta.min_key, key_of(&rows.first_key_value().unwrap().0.0));
    assert_eq!(meta.max_key, key_of(&rows.last_key_value().unwrap().0.0));
    assert!(meta.path.starts_with("parquet/default/phone%2F%CE%B1/day=2026-11-23/0-0-9-"), "{}", meta.path);
    assert_eq!(files.list().unwrap(), std::slice::from_ref(&meta.path));
    assert_eq!(files.verify(&meta).map_err(|e| e.to_string()), Ok(()));
}

#[test]
fn a_late_file_knows_its_days() {
    let disk = FaultyDisk::new(1);
    let mut rows = random_rows(1, 50, 0..=DAY - 1);
    rows.extend(random_rows(2, 50, -3 * DAY..=-2 * DAY - 1));
    let meta = write(&files_on(&disk), &rows, None, Effort::Cheap).unwrap();
    assert_eq!((meta.day, meta.days()), (None, &[-3, 0][..]));
    assert!(meta.has_day(0) && meta.has_day(-3) && !meta.has_day(-1));
    assert!(meta.path.contains("/late/"), "{}", meta.path);
}

#[test]
fn inspecting_a_file_tells_its_columns_and_that_it_is_whole() {
    let disk = FaultyDisk::new(1);
    let rows = random_rows(6, 500, today());
    let meta = write(&files_on(&disk), &rows, Some(TODAY), Effort::Rich).unwrap();
    let report = inspect(&disk, &std::path::Path::new(DIR).join(&meta.path)).unwrap();
    assert_eq!((report.rows, report.bytes, report.checksum), (meta.rows, meta.bytes, meta.checksum));
    assert_eq!(report.times, Some((meta.min_time, meta.max_time)));
    assert_eq!(report.named, None);
    let names: Vec<&str> = report.columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["time", "device_id", "region", "celsius", "steps", "total", "on", "note"]);
    assert_eq!(report.columns[3].nulls, rows.values().filter(|f| f.celsius.is_none()).count() as u64);
    let notes: std::collections::HashMap<_, _> = report.notes.into_iter().collect();
    assert_eq!((notes["alluvium.database"].as_str(), notes["alluvium.table"].as_str()), ("default", "phone/α"));
}

fn scan(files: &storage::parquet_file::ParquetFiles, meta: &FileMeta, request: &ScanRequest) -> Vec<RecordBatch> {
    files.open(meta).unwrap().scan(request).unwrap().collect::<Result<Vec<_>>>().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_file_gives_back_what_was_written(rows in any_rows(), rich: bool) {
        let disk = FaultyDisk::new(1);
        let files = files_on(&disk);
        let effort = if rich { Effort::Rich } else { Effort::Cheap };
        let meta = write(&files, &rows, Some(TODAY), effort).unwrap();
        prop_assert_eq!(read(&files, &meta).unwrap(), rows);
    }

    #[test]
    fn a_filtered_scan_equals_the_filtered_rows(
        seed: u64,
        from in 0..60i64,
        len in 0..60i64,
        devices in prop::option::of(prop::collection::vec(prop::option::of(0..25u32), 0..3)),
        region in prop::option::of(prop::option::of("eu|us|xx")),
    ) {
        let rows = random_rows(seed, 400, today());
        let disk = FaultyDisk::new(1);
        let files = files_on(&disk);
        let meta = write(&files, &rows, Some(TODAY), Effort::Cheap).unwrap();
        let start = today().start() + from * (DAY / 60);
        let mut request = ScanRequest { times: start..=start + len * (DAY / 60), ..everything() };
        let devices: Option<Vec<Option<String>>> =
            devices.map(|d| d.into_iter().map(|d| d.map(|d| format!("device-{d:03}"))).collect());
        if let Some(values) = &devices {
            request.tags.push(TagFilter { column: ColumnId(0), values: values.clone() });
        }
        if let Some(value) = &region {
            request.tags.push(TagFilter { column: table().column("region").unwrap().id, values: vec![value.clone()] });
        }
        let mut expected = rows;
        expected.retain(|((device, area), time), _| {
            request.times.contains(time)
                && devices.as_ref().is_none_or(|d| d.contains(device))
                && region.as_ref().is_none_or(|r| r == area)
        });
        prop_assert_eq!(rows_of(&scan(&files, &meta, &request)), expected);
    }
}

#[test]
fn many_row_groups_are_pruned_without_losing_a_row() {
    let disk = FaultyDisk::new(1);
    let files = files_on(&disk);
    let mut rows = Model::new();
    for device in 0..300 {
        for i in 0..1_000 {
            let key = ((Some(format!("device-{device:03}")), Some("eu".to_owned())), today().start() + i * 80_000_000_000);
            rows.insert(key, Fields { steps: Some(device * 1_000 + i), ..Fields::default() });
        }
    }
    for effort in [Effort::Cheap, Effort::Rich] {
        let meta = write(&files, &rows, Some(TODAY), effort).unwrap();
        let report = inspect(&disk, &std::path::Path::new(DIR).join(&meta.path)).unwrap();
        assert_eq!(report.row_groups, 3);
        let values = vec![Some("device-170".to_owned()), Some("device-299".to_owned())];
        let tags = vec![TagFilter { column: ColumnId(0), values: values.clone() }];
        let request =
            ScanRequest { times: today().start() + 5 * 80_000_000_000..=today().start() + 900 * 80_000_000_000, tags, ..everything() };
        let before = disk.ios();
        let found = rows_of(&scan(&files, &meta, &request));
        // Of about 8 columns x 20 pages only those of two devices are read.
        assert!(disk.ios() - before < 60, "{} reads", disk.ios() - before);
        let mut expected = rows.clone();
        expected.retain(|((device, _), time), _| request.times.contains(time) && values.contains(device));
        assert_eq!(found.len(), 2 * 896);
        assert_eq!(found, expected);
    }
}

#[test]
fn a_column_that_the_file_lacks_is_null_and_filters_like_an_absent_tag() {
    let disk = FaultyDisk::new(1);
    let files = files_on(&disk);
    let rows = random_rows(3, 100, today());
    let meta = write(&files, &rows, Some(TODAY), Effort::Cheap).unwrap();
    let mut newer: TableSchema = (*table()).clone();
    newer.add(&NewColumn { name: "model".into(), field: None }, "device_id", 100).unwrap();
    newer.add(&NewColumn { name: "humidity".into(), field: Some(ColumnType::F64) }, "device_id", 100).unwrap();
    let (model, humidity) = (newer.column("model").unwrap().id, newer.column("humidity").unwrap().id);
    let request = |values: Vec<Option<String>>| ScanRequest {
        table: Arc::new(newer.clone()),
        projection: vec![ScanColumn::Column(humidity), ScanColumn::Column(model), ScanColumn::Time],
        tags: vec![TagFilter { column: model, values }],
        ..everything()
    };
    let absent = scan(&files, &meta, &request(vec![None]));
    assert_eq!(absent.iter().map(RecordBatch::num_rows).sum::<usize>(), rows.len());
    for batch in &absent {
        assert_eq!(batch.schema().fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>(), ["humidity", "model", "time"]);
        assert_eq!(batch.column(0).null_count(), batch.num_rows());
        assert_eq!(batch.column(1).as_string_view().null_count(), batch.num_rows());
    }
    assert!(scan(&files, &meta, &request(vec![Some("x".to_owned())])).is_empty());
}

#[test]
fn no_column_at_all_still_counts_rows() {
    let disk = FaultyDisk::new(1);
    let files = files_on(&disk);
    let rows = random_rows(3, 2_500, today());
    let meta = write(&files, &rows, Some(TODAY), Effort::Cheap).unwrap();
    let request = ScanRequest { projection: Vec::new(), ..everything() };
    assert_eq!(scan(&files, &meta, &request).iter().map(RecordBatch::num_rows).sum::<usize>(), rows.len());
}

#[test]
fn a_compacted_file_is_smaller_and_encoded_by_what_its_columns_hold() {
    let disk = FaultyDisk::new(1);
    let files = files_on(&disk);
    let mut rows = Model::new();
    for i in 0..5_000i64 {
        let fields = Fields { steps: Some(i * 7), celsius: Some(f64::from(i as i32 % 300) / 10.0), ..Fields::default() };
        rows.insert(((Some("a".to_owned()), None), today().start() + i), fields);
    }
    let cheap = write(&files, &rows, Some(TODAY), Effort::Cheap).unwrap();
    let rich = write(&files, &rows, Some(TODAY), Effort::Rich).unwrap();
    assert!(rich.bytes < cheap.bytes, "{} of {}", rich.bytes, cheap.bytes);
    let encodings = |meta: &FileMeta, column: usize| {
        let builder = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes(&disk, meta))).unwrap();
        builder.metadata().row_group(0).column(column).encodings().collect::<Vec<_>>()
    };
    assert!(encodings(&cheap, 3).contains(&Encoding::PLAIN));
    assert!(!encodings(&rich, 3).contains(&Encoding::PLAIN) || encodings(&rich, 3).contains(&Encoding::RLE_DICTIONARY));
    assert!(encodings(&rich, 4).contains(&Encoding::DELTA_BINARY_PACKED));
}
