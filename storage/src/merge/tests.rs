use std::collections::BTreeMap;

use arrow::array::{Array, BooleanArray, Float64Array, StringViewArray, TimestampNanosecondArray};
use model::schema::NewColumn;
use model::{ColumnType, DatabaseId, TableId};
use proptest::prelude::*;

use super::*;

fn table() -> TableSchema {
    let mut table = TableSchema::new(TableId(1), DatabaseId(1), "t".into());
    for (name, field) in
        [("device_id", None), ("os", None), ("a", Some(ColumnType::F64)), ("b", Some(ColumnType::Bool)), ("c", Some(ColumnType::Str))]
    {
        table.add(&NewColumn { name: name.into(), field }, "device_id", 10).unwrap();
    }
    table
}

type Identity = (Option<String>, Option<String>, i64);
type Fields = (Option<i32>, Option<bool>, Option<String>);

fn batches(rows: &BTreeMap<Identity, Fields>, cut: usize) -> Rows {
    let table = table();
    let rows: Vec<(Identity, Fields)> = rows.iter().map(|(i, f)| (i.clone(), f.clone())).collect();
    let batches: Vec<Result<RecordBatch>> = rows
        .chunks(cut)
        .map(|rows| {
            let columns: Vec<Arc<dyn Array>> = vec![
                Arc::new(TimestampNanosecondArray::from_iter_values(rows.iter().map(|r| r.0.2))),
                Arc::new(StringViewArray::from_iter(rows.iter().map(|r| r.0.0.clone()))),
                Arc::new(StringViewArray::from_iter(rows.iter().map(|r| r.0.1.clone()))),
                Arc::new(Float64Array::from_iter(rows.iter().map(|r| r.1.0.map(f64::from)))),
                Arc::new(BooleanArray::from_iter(rows.iter().map(|r| r.1.1))),
                Arc::new(StringViewArray::from_iter(rows.iter().map(|r| r.1.2.clone()))),
            ];
            Ok(RecordBatch::try_new(scan::arrow_schema(&table), columns).unwrap())
        })
        .collect();
    Box::new(batches.into_iter())
}

fn read(rows: Rows, batch_rows: usize) -> Vec<(Identity, Fields)> {
    let mut all = Vec::new();
    for batch in rows {
        let batch = batch.unwrap();
        assert!(batch.num_rows() <= batch_rows);
        let text = |c: usize, r: usize| {
            let column = batch.column(c).as_string_view();
            column.is_valid(r).then(|| column.value(r).to_owned())
        };
        for r in 0..batch.num_rows() {
            let time = batch.column(0).as_primitive::<TimestampNanosecondType>().value(r);
            let a = batch.column(3).as_primitive::<arrow::datatypes::Float64Type>();
            let b = batch.column(4).as_boolean();
            let fields = (a.is_valid(r).then(|| a.value(r) as i32), b.is_valid(r).then(|| b.value(r)), text(5, r));
            all.push(((text(1, r), text(2, r), time), fields));
        }
    }
    all
}

fn any_source() -> impl Strategy<Value = BTreeMap<Identity, Fields>> {
    let device = prop::option::of(prop::sample::select(vec!["d1", "d2", "device-with-a-long-name-1", "device-with-a-long-name-2"]));
    let identity = (device, prop::option::of(prop::sample::select(vec!["x", "an operating system"])), 0i64..40);
    let fields = (prop::option::of(0..9), prop::option::of(any::<bool>()), prop::option::of("[a-z]{0,20}"));
    let row = (identity, fields).prop_map(|((device, os, time), f)| ((device.map(str::to_owned), os.map(str::to_owned), time), f));
    prop::collection::vec(row, 0..120).prop_map(|rows| rows.into_iter().collect())
}

proptest! {
    #[test]
    fn sources_merge_like_writes_to_a_map(
        sources in prop::collection::vec((any_source(), 1usize..50), 0..5),
        batch_rows in 1usize..70,
    ) {
        let mut expected: BTreeMap<Identity, Fields> = BTreeMap::new();
        for (source, _) in &sources {
            for (identity, new) in source {
                let row = expected.entry(identity.clone()).or_default();
                row.0 = new.0.or(row.0);
                row.1 = new.1.or(row.1);
                row.2 = new.2.clone().or(row.2.take());
            }
        }
        let table = table();
        let one = sources.len() == 1;
        let rows = sources.iter().map(|(source, cut)| batches(source, *cut)).collect();
        let merged = read(merge(&table, &whole_layout(&table), rows, batch_rows), if one { usize::MAX } else { batch_rows });
        prop_assert_eq!(merged, expected.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn after_an_error_a_merge_ends() {
    let table = table();
    let broken =
        || -> Rows { Box::new(std::iter::once(Err(crate::Error::Stopped { what: "the file".to_owned(), why: "a test".to_owned() }))) };
    let mut rows = merge(&table, &whole_layout(&table), vec![broken(), broken()], 10);
    assert!(rows.next().is_some_and(|batch| batch.is_err()));
    assert!(rows.next().is_none());
}

#[test]
fn an_output_batch_holds_on_to_few_large_batches() {
    const ROWS: i64 = 40;
    const TEXT_BYTES: usize = BATCH_BYTES / 4;
    let source = |n: i64| -> Rows {
        let rows = (0..ROWS).map(|i| ((Some("camera".to_owned()), None, 2 * i + n), (None, None, Some("x".repeat(TEXT_BYTES)))));
        batches(&rows.collect(), 4)
    };
    let table = table();
    let merged = merge(&table, &whole_layout(&table), vec![source(0), source(1)], 8_192);
    let rows: Vec<usize> = merged.map(|batch| batch.unwrap().num_rows()).collect();
    assert_eq!(rows.iter().sum::<usize>(), 2 * ROWS as usize);
    // Of each source the batch in hand and one more, of four rows each.
    assert!(rows.len() > 1 && rows.iter().all(|&rows| rows <= 16), "{rows:?}");
}
