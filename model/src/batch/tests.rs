//! Batches keep what is put into them, as they are and as bytes.

use proptest::prelude::*;

use super::*;
use crate::ids::ColumnId;
use crate::point::SeriesKey;

fn any_values(rows: usize) -> impl Strategy<Value = Values> {
    prop_oneof![
        prop::collection::vec(-1e300f64..1e300, rows).prop_map(Values::F64),
        prop::collection::vec(any::<i64>(), rows).prop_map(Values::I64),
        prop::collection::vec(-100i64..100, rows).prop_map(Values::I64),
        prop::collection::vec(any::<u64>(), rows).prop_map(Values::U64),
        prop::collection::vec(0u64..70_000, rows).prop_map(Values::U64),
        prop::collection::vec(any::<bool>(), rows).prop_map(|bits| {
            let mut bitmap = Bitmap::default();
            bits.into_iter().for_each(|b| bitmap.push(b));
            Values::Bool(bitmap)
        }),
        prop::collection::vec("[aé\u{0}]{0,6}", rows).prop_map(|texts| {
            let mut strings = Strings::default();
            texts.iter().for_each(|t| strings.push(t));
            Values::Str(strings)
        }),
    ]
}

fn any_batch() -> impl Strategy<Value = PointBatch> {
    (1usize..200, 1usize..40).prop_flat_map(|(rows, series)| {
        let series = series.min(rows);
        let columns = prop::collection::vec((any_values(rows), prop::option::of(prop::collection::vec(any::<bool>(), rows))), 0..5);
        let times = prop_oneof![prop::collection::vec(any::<i64>(), rows), prop::collection::vec(0i64..1_000_000, rows)];
        (times, prop::collection::vec(0..series as u32, rows), columns).prop_map(move |(times, mut row_series, columns)| {
            let mut batch = PointBatch::new(TableId(3), 9);
            if series == rows {
                row_series = (0..rows as u32).collect();
            }
            for s in 0..series {
                batch.push_series(SeriesKey::new([Some(format!("device-{s}").as_str())]).as_bytes());
            }
            batch.times = times;
            batch.row_series = row_series;
            for (i, (values, valid)) in columns.into_iter().enumerate() {
                let valid = valid.map(|bits| {
                    let mut bitmap = Bitmap::default();
                    bits.into_iter().for_each(|b| bitmap.push(b));
                    bitmap
                });
                batch.columns.push(FieldColumn { id: ColumnId(i as u16 + 1), values, valid });
            }
            batch
        })
    })
}

proptest! {
    #[test]
    fn decode_gives_back_what_was_encoded(batch in any_batch(), tail in prop::collection::vec(any::<u8>(), 0..9)) {
        let mut bytes = Vec::new();
        batch.encode(&mut bytes);
        prop_assert!(bytes.len() <= batch.encoded_len_bound());
        let len = bytes.len();
        bytes.extend(tail);
        prop_assert_eq!(PointBatch::decode(&bytes), Ok((batch, len)));
    }

    #[test]
    fn a_range_appended_equals_its_rows_appended(
        values in (1usize..200).prop_flat_map(any_values),
        before in 0usize..70,
        cut in any::<(prop::sample::Index, prop::sample::Index)>(),
    ) {
        let (a, b) = (cut.0.index(values.len() + 1), cut.1.index(values.len() + 1));
        let (start, end) = (a.min(b), a.max(b));
        let mut by_range = Values::new(values.kind());
        by_range.extend_empty(before);
        let mut by_row = by_range.clone();
        by_range.extend_range(&values, start, end);
        by_row.extend_from(&values, &(start as u32..end as u32).collect::<Vec<_>>());
        prop_assert_eq!(by_range, by_row);
    }

    #[test]
    fn a_cut_batch_is_an_error(batch in any_batch(), cut in any::<prop::sample::Index>()) {
        let mut bytes = Vec::new();
        batch.encode(&mut bytes);
        bytes.truncate(cut.index(bytes.len()));
        prop_assert!(PointBatch::decode(&bytes).is_err());
    }

    #[test]
    fn damaged_bytes_never_panic(batch in any_batch(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = Vec::new();
        batch.encode(&mut bytes);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = PointBatch::decode(&bytes);
    }

    #[test]
    fn parts_hold_every_row_once(batch in any_batch()) {
        let owners: Vec<u32> = (0..batch.series() as u32).map(|s| s % 3).collect();
        let parts = batch.split(&owners);
        prop_assert_eq!(parts.iter().map(|(_, part)| part.rows()).sum::<usize>(), batch.rows());
        for (owner, part) in &parts {
            let of_owner = |row: &usize| owners[batch.row_series[*row] as usize] == *owner;
            for (new, old) in (0..batch.rows()).filter(of_owner).enumerate() {
                prop_assert_eq!(part.times[new], batch.times[old]);
                prop_assert_eq!(part.key(part.row_series[new] as usize), batch.key(batch.row_series[old] as usize));
            }
            let mut bytes = Vec::new();
            part.encode(&mut bytes);
            let (decoded, _) = PointBatch::decode(&bytes).unwrap();
            prop_assert_eq!(&decoded, part);
        }
        let whole = batch.slice(0, batch.rows());
        prop_assert_eq!(&whole.times, &batch.times);
    }
}
