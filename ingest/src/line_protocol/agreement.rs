//! The fast path and the general parser agree on every input.
//!
//! A parser that has been warmed by lines like the ones to come is compared with one whose fast path is off, on lines
//! that are well formed, nearly well formed, and damaged.

use proptest::prelude::*;

use super::tests::Database;
use super::*;

/// Pieces of text that lines are made of, the frequent ones first.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => prop::sample::select(&["f", "g", "h", "temperature", "a_name_longer_than_twenty_four_bytes"][..]).prop_map(str::to_owned),
        1 => prop::sample::select(&[r"a\,b", r"c\=d", r"e\ f", r"g\h", "ä", "\"q\"", "time", "", "x\\", "t"][..]).prop_map(str::to_owned),
    ]
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "-?[0-9]{1,4}\\.[0-9]{1,6}",
        1 => "-?[0-9]{1,20}(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?",
        3 => "-?[0-9]{1,20}i",
        2 => "[0-9]{1,21}u",
        2 => prop::sample::select(&["t", "T", "true", "True", "TRUE", "f", "F", "false", "False", "FALSE"][..]).prop_map(str::to_owned),
        2 => "\"[a-z, =#é]{0,12}\"",
        1 => prop::sample::select(&[r#""a\"b\\""#, r#""a\b""#, "\"x\ny\"", "\"\"", "\"open", "tr", "nan", ".5", "5.", "", "1i2", "-", "-i", "u", "i"][..])
            .prop_map(str::to_owned),
    ]
}

fn tags() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::sample::select(&["", ",device_id=d1", ",device_id=d2,site=n", ",site=n,device_id=d2", ",device_id=d\\ 3"][..]).prop_map(str::to_owned),
        1 => prop::collection::vec(("[a-c]|t|device_id", "[a-zé=\\\\ ]{0,3}"), 0..4)
            .prop_map(|tags| tags.iter().map(|(name, value)| format!(",{name}={value}")).collect()),
    ]
}

fn time() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (1_600_000_000_000_000_000i64..1_700_000_000_000_000_000).prop_map(|t| format!(" {t}")),
        1 => prop::sample::select(
            &["", " ", " 1", " -1", "  5", " 9223372036854775806", " 9223372036854775807", " 9223372036854775808", " 00000000000000000000001", " 1x", " 1 2", " 5 "][..]
        )
        .prop_map(str::to_owned),
    ]
}

fn line() -> impl Strategy<Value = Vec<u8>> {
    let table = prop_oneof![8 => Just("m".to_owned()), 2 => Just("n".to_owned()), 1 => prop::sample::select(&["#m", " m", "a=b", r"m\ n", "", "\tm"][..]).prop_map(str::to_owned)];
    let fields = prop::collection::vec((name(), value()), 1..5);
    let end = prop_oneof![8 => Just("\n"), 1 => Just("\r\n"), 1 => Just("\n\n"), 1 => Just(""), 1 => Just(" \r\n"), 1 => Just("\r")];
    let damage = prop::option::weighted(
        0.1,
        (any::<prop::sample::Index>(), prop_oneof![any::<u8>(), prop::sample::select(&b"\\\"\n\r ,=#"[..])], 0..3u8),
    );
    (table, tags(), fields, time(), end, damage).prop_map(|(table, tags, fields, time, end, damage)| {
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut line = format!("{table}{tags} {}{time}{end}", fields.join(",")).into_bytes();
        if let Some((at, byte, how)) = damage {
            let at = at.index(line.len());
            match how {
                0 => line[at] = byte,
                1 => line.insert(at, byte),
                _ => line.truncate(at),
            }
        }
        line
    })
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(line(), 1..20).prop_map(|lines| lines.concat())
}

fn precision() -> impl Strategy<Value = Precision> {
    prop::sample::select(&[Precision::Nanosecond, Precision::Auto, Precision::Millisecond, Precision::Hour][..])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn both_ways_agree(warm in prop::collection::vec(body(), 0..3), body in body(), precision in precision(), cutoff in prop::option::of(Just(Timestamp(0))), shards in prop::option::of(1..4u32)) {
        let mut database = Database { precision, cutoff, map: shards.map(ShardMap::even), ..Database::default() };
        let mut parser = Parser::new();
        for body in &warm {
            database.parse(&mut parser, body);
        }
        let before = database.schema.clone();
        let parsed = database.parse(&mut parser, &body);
        let mut general = Parser::without_fast_path();
        let now = std::mem::replace(&mut database.schema, before);
        prop_assert_eq!(&parsed, &database.parse(&mut general, &body));
        prop_assert_eq!(now, database.schema.clone());
        // And once more, when every series of the body is known.
        prop_assert_eq!(&parsed, &database.parse(&mut parser, &body));
        if parsed.rows > 0 {
            prop_assert_eq!(database.rows(&parsed).len(), parsed.rows);
        }
        if let Some(map) = database.map.take() {
            for batch in &parsed.batches {
                let owners: Vec<usize> = batch.hashes.iter().map(|&hash| map.position(hash)).collect();
                prop_assert!(owners.windows(2).all(|w| w[0] == w[1]), "a batch goes to one shard");
            }
            // What is told apart is the same rows.
            let together = database.parse(&mut parser, &body);
            let sorted = |parsed: &Parsed| {
                let mut rows = if parsed.rows > 0 { database.rows(parsed) } else { Vec::new() };
                rows.sort();
                rows
            };
            prop_assert_eq!(sorted(&parsed), sorted(&together));
            prop_assert_eq!(&parsed.refused, &together.refused);
        }
    }

    #[test]
    fn every_line_is_a_row_or_refused(lines in prop::collection::vec("[a-z]{1,3}(,[a-z]{1,2}=[a-z]{1,2})? [a-z]{1,3}=[0-9]{1,3}[iu]?( [0-9]{1,9})?|[a-z ,=\"0-9]{0,12}|#.{0,9}", 0..20)) {
        let body = lines.iter().map(|l| l.replace('"', "'") + "\n").collect::<String>();
        let mut database = Database::default();
        let parsed = database.parse(&mut Parser::new(), body.as_bytes());
        let written = body.lines().filter(|l| !l.trim_matches(' ').is_empty() && !l.trim_start_matches(' ').starts_with('#')).count();
        prop_assert_eq!(parsed.rows + parsed.refused_lines, written);
    }
}
