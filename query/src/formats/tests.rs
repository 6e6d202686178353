use std::io::Cursor;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, NullArray, StringViewArray, StructArray, TimestampNanosecondArray,
    UInt64Array,
};
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, Schema};
use datafusion::arrow::ipc::reader::StreamReader;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::*;

fn batch() -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable([
        ("time", Arc::new(TimestampNanosecondArray::from(vec![1_700_000_000_000_000_001, -1, 0])) as _, false),
        ("device_id", Arc::new(StringViewArray::from(vec![Some("a\"b"), None, Some("c,d")])) as _, true),
        ("i", Arc::new(Int64Array::from(vec![Some(i64::MIN), Some(i64::MAX), None])) as _, true),
        ("u", Arc::new(UInt64Array::from(vec![Some(u64::MAX), None, Some(0)])) as _, true),
        ("f", Arc::new(Float64Array::from(vec![Some(0.1), Some(1e300), Some(72.0)])) as _, true),
        ("b", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None])) as _, true),
    ])
    .unwrap()
}

fn encoded(format: Format, batches: &[RecordBatch]) -> Vec<u8> {
    let mut encoder = format.encoder(&batch().schema()).unwrap();
    let mut bytes = Vec::new();
    for batch in batches {
        bytes.extend(encoder.rows(batch).unwrap());
    }
    bytes.extend(encoder.finish().unwrap());
    bytes
}

fn text(format: Format, batches: &[RecordBatch]) -> String {
    String::from_utf8(encoded(format, batches)).unwrap()
}

const ROWS: [&str; 3] = [
    r#"{"time":"2023-11-14T22:13:20.000000001Z","device_id":"a\"b","i":-9223372036854775808,"u":18446744073709551615,"f":0.1,"b":true}"#,
    r#"{"time":"1969-12-31T23:59:59.999999999Z","device_id":null,"i":9223372036854775807,"u":null,"f":1.0e300,"b":false}"#,
    r#"{"time":"1970-01-01T00:00:00Z","device_id":"c,d","i":null,"u":0,"f":72.0,"b":null}"#,
];

#[test]
fn json_is_one_array_however_many_batches() {
    assert_eq!(text(Format::Json, &[]), "[]");
    assert_eq!(text(Format::Json, &[batch()]), format!("[{}]", ROWS.join(",")));
    let halves = [batch().slice(0, 1), batch().slice(1, 0), batch().slice(1, 2)];
    assert_eq!(text(Format::Json, &halves), format!("[{}]", ROWS.join(",")));
}

#[test]
fn json_lines_are_a_row_each() {
    assert_eq!(text(Format::JsonLines, &[]), "");
    let halves = [batch().slice(0, 1), batch().slice(1, 2)];
    assert_eq!(text(Format::JsonLines, &halves), ROWS.map(|r| format!("{r}\n")).concat());
}

#[test]
fn csv_has_its_header_once_even_without_rows() {
    assert_eq!(text(Format::Csv, &[]), "time,device_id,i,u,f,b\n");
    let halves = [batch().slice(0, 1), batch().slice(1, 2)];
    let expected = "time,device_id,i,u,f,b\n\
        2023-11-14T22:13:20.000000001Z,\"a\"\"b\",-9223372036854775808,18446744073709551615,0.1,true\n\
        1969-12-31T23:59:59.999999999Z,,9223372036854775807,,1e300,false\n\
        1970-01-01T00:00:00Z,\"c,d\",,0,72.0,\n";
    assert_eq!(text(Format::Csv, &halves), expected);
}

#[test]
fn csv_writes_lists_as_text() {
    let list = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), Some(2)]), None]);
    let batch = RecordBatch::try_from_iter([("l", Arc::new(list) as _)]).unwrap();
    let mut encoder = Format::Csv.encoder(&batch.schema()).unwrap();
    assert_eq!(String::from_utf8(encoder.rows(&batch).unwrap()).unwrap(), "l\n\"[1, 2]\"\n\n");
}

#[test]
fn csv_tells_an_empty_text_from_none() {
    let texts = || Arc::new(StringViewArray::from(vec![Some(""), None, Some("a b"), Some("\""), Some("x\ry")])) as ArrayRef;
    let nothing = Arc::new(NullArray::new(5)) as ArrayRef;
    for (columns, expected) in [
        (vec![("s", texts())], "s\n\"\"\n\na b\n\"\"\"\"\n\"x\ry\"\n"),
        (vec![("s", texts()), ("", nothing)], "s,\"\"\n\"\",\n,\na b,\n\"\"\"\",\n\"x\ry\",\n"),
    ] {
        let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap();
        assert_eq!(String::from_utf8(Format::Csv.write(&batch.schema(), &[batch]).unwrap()).unwrap(), expected);
    }
}

#[test]
fn arrow_and_parquet_give_the_rows_back() {
    let halves = [batch().slice(0, 1), batch().slice(1, 2)];
    let stream = StreamReader::try_new(Cursor::new(encoded(Format::Arrow, &halves)), None).unwrap();
    let read: Vec<RecordBatch> = stream.map(|b| b.unwrap()).collect();
    assert_eq!(concat_batches(&batch().schema(), &read).unwrap(), batch());

    let file = Bytes::from(encoded(Format::Parquet, &halves));
    let read: Vec<RecordBatch> = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap().map(|b| b.unwrap()).collect();
    assert_eq!(concat_batches(&batch().schema(), &read).unwrap(), batch());
}

#[test]
fn a_table_is_drawn_with_numbers_to_the_right() {
    let batch = RecordBatch::try_from_iter([
        ("device_id", Arc::new(StringViewArray::from(vec!["pump-17", "p"])) as _),
        ("celsius", Arc::new(Float64Array::from(vec![71.5, -3.25])) as _),
    ])
    .unwrap();
    let mut encoder = Format::Table.encoder(&batch.schema()).unwrap();
    let mut drawn = encoder.rows(&batch).unwrap();
    drawn.extend(encoder.finish().unwrap());
    let expected = "\
┌───────────┬─────────┐
│ device_id │ celsius │
├───────────┼─────────┤
│ pump-17   │    71.5 │
│ p         │   -3.25 │
└───────────┴─────────┘
";
    assert_eq!(String::from_utf8(drawn).unwrap(), expected);
}

#[test]
fn times_of_any_zone_are_written_in_utc() {
    let instant = 1_700_000_000_000_000_001;
    let berlin = || TimestampNanosecondArray::from(vec![instant]).with_timezone("Europe/Berlin");
    let inside = StructArray::from(vec![(Arc::new(Field::new("at", berlin().data_type().clone(), false)), Arc::new(berlin()) as ArrayRef)]);
    let batch = RecordBatch::try_from_iter([("time", Arc::new(berlin()) as ArrayRef), ("inside", Arc::new(inside) as _)]).unwrap();
    let text = |format: Format| String::from_utf8(format.write(&batch.schema(), std::slice::from_ref(&batch)).unwrap()).unwrap();
    let utc = "2023-11-14T22:13:20.000000001Z";
    assert_eq!(text(Format::Json), format!("[{{\"time\":\"{utc}\",\"inside\":{{\"at\":\"{utc}\"}}}}]"));
    assert_eq!(text(Format::Csv), format!("time,inside\n{utc},{{at: {utc}}}\n"));
    assert!(text(Format::Table).contains("+01:00"), "{}", text(Format::Table));
}

#[test]
fn a_name_of_two_columns_is_refused_where_a_reader_would_lose_one() {
    let fields = ["a", "b", "a"].map(|name| Field::new(name, DataType::Int64, true));
    let schema = Arc::new(Schema::new(fields.to_vec()));
    let columns = (0..3).map(|i| Arc::new(Int64Array::from(vec![i])) as ArrayRef).collect();
    let batch = RecordBatch::try_new(schema.clone(), columns).unwrap();
    for format in [Format::Json, Format::JsonLines, Format::Parquet] {
        let error = format.write(&schema, std::slice::from_ref(&batch)).unwrap_err();
        assert_eq!(error.kind(), model::ErrorKind::YourRequest);
        assert!(error.to_string().contains("two columns called 'a'") && error.to_string().contains("AS"), "{format:?}: {error}");
    }
    assert_eq!(Format::Csv.write(&schema, std::slice::from_ref(&batch)).unwrap(), b"a,b,a\n0,1,2\n");
    for format in [Format::Arrow, Format::Table] {
        assert!(format.write(&schema, std::slice::from_ref(&batch)).is_ok(), "{format:?}");
    }
}
