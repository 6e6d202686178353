//! What the interface says of line protocol, sentence by sentence.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::point::KeyTags;
use model::{ColumnKind, ColumnType, DatabaseId, DatabaseSchema, TableId, TableSchema, Timestamp, Values, routing_hash};

use super::*;
use crate::admission::Admission;

const ARRIVAL: Timestamp = Timestamp(1_700_000_000_000_000_000);

/// A database that agrees with everything.
pub(super) struct Database {
    pub(super) schema: Option<Arc<DatabaseSchema>>,
    pub(super) precision: Precision,
    pub(super) cutoff: Option<Timestamp>,
    pub(super) limits: LineLimits,
    pub(super) map: Option<ShardMap>,
}

impl Default for Database {
    fn default() -> Database {
        Database { schema: None, precision: Precision::Nanosecond, cutoff: None, limits: LineLimits::default(), map: None }
    }
}

impl Database {
    pub(super) fn options(&self) -> ParseOptions<'_> {
        ParseOptions {
            precision: self.precision,
            arrival: ARRIVAL,
            schema: self.schema.as_ref(),
            cutoff: self.cutoff,
            limits: self.limits,
            map: self.map.as_ref(),
        }
    }

    pub(super) fn agree(&mut self, needs: &[(Arc<str>, Vec<NewColumn>)]) {
        let mut schema = self.schema.as_deref().cloned().unwrap_or(DatabaseSchema {
            id: DatabaseId(3),
            name: "d".into(),
            routing_tag: "device_id".into(),
            retention_ns: None,
            tables: BTreeMap::new(),
        });
        for (name, columns) in needs {
            let next = TableId(10 + schema.tables.len() as u32);
            let table = schema.tables.entry(name.clone()).or_insert_with(|| Arc::new(TableSchema::new(next, schema.id, name.clone())));
            let mut grown = TableSchema::clone(table);
            for column in columns {
                assert_eq!(grown.add(column, &schema.routing_tag, self.limits.columns_per_table), Ok(true), "{column:?}");
            }
            *table = Arc::new(grown);
        }
        self.schema = Some(Arc::new(schema));
    }

    /// Parses as ingest does: until nothing is needed any more.
    pub(super) fn parse(&mut self, parser: &mut Parser, body: &[u8]) -> Parsed {
        let first = parser.parse(body, &self.options());
        if first.needs.is_empty() {
            return first;
        }
        assert!(first.batches.is_empty() && first.rows == 0);
        self.agree(&first.needs);
        let second = parser.parse(body, &self.options());
        assert_eq!(second.needs, [], "the schema has what the first pass wanted");
        // The reasons may differ: by then a later line has given a type to a column that an earlier, refused one named.
        let which = |parsed: &Parsed| parsed.refused.iter().map(|r| r.line_number).collect::<Vec<_>>();
        assert_eq!(which(&second), which(&first), "both passes refuse the same lines");
        second
    }

    /// All rows as `table,tag=value field=value,… time`, in order of batch and row, tags and fields by name.
    pub(super) fn rows(&self, parsed: &Parsed) -> Vec<String> {
        let schema = self.schema.as_deref().expect("rows are of a database");
        let mut rows = Vec::new();
        for ParsedBatch { batch, hashes } in &parsed.batches {
            let table = schema.tables.values().find(|t| t.id == batch.table).expect("a batch is of a table");
            assert_eq!(batch.schema_version, table.version);
            assert_eq!(hashes.len(), batch.series());
            for (i, &hash) in hashes.iter().enumerate() {
                assert_eq!(hash, routing_hash(schema.id, batch.key(i)));
            }
            let mut bytes = Vec::new();
            batch.encode(&mut bytes);
            assert_eq!(PointBatch::decode(&bytes), Ok((batch.clone(), bytes.len())));
            let tag_columns = table.tags();
            for row in 0..batch.rows() {
                let values: Vec<_> = KeyTags::new(batch.key(batch.row_series[row] as usize)).map(|t| t.unwrap()).collect();
                let has_routing_column = tag_columns.first().is_some_and(|c| c.kind == ColumnKind::Tag { position: 0 });
                let names = (!has_routing_column).then_some("?").into_iter().chain(tag_columns.iter().map(|c| &*c.name));
                let mut tags: Vec<String> = names.zip(values).filter_map(|(name, value)| value.map(|v| format!("{name}={v}"))).collect();
                tags.sort();
                let mut fields: Vec<String> = Vec::new();
                for column in &batch.columns {
                    if column.is_valid(row) {
                        let name = &table.column_by_id(column.id).expect("a column is of its table").name;
                        fields.push(format!("{name}={}", value_text(&column.values, row)));
                    }
                }
                fields.sort();
                let series = std::iter::once(table.name.to_string()).chain(tags).collect::<Vec<_>>().join(",");
                rows.push(format!("{series} {} {}", fields.join(","), batch.times[row]));
            }
        }
        rows
    }
}

fn value_text(values: &Values, row: usize) -> String {
    match values {
        Values::F64(v) => format!("{:?}", v[row]),
        Values::I64(v) => format!("{}i", v[row]),
        Values::U64(v) => format!("{}u", v[row]),
        Values::Bool(v) => format!("{}", v.get(row)),
        Values::Str(v) => format!("{:?}", v.get(row)),
    }
}

/// The rows and the refused lines' numbers and reasons of a body alone in its database.
fn read(body: impl AsRef<[u8]>) -> (Vec<String>, Vec<(usize, String)>) {
    let mut database = Database::default();
    let parsed = database.parse(&mut Parser::new(), body.as_ref());
    let rows = if parsed.rows == 0 { Vec::new() } else { database.rows(&parsed) };
    (rows, parsed.refused.into_iter().map(|r| (r.line_number, r.reason)).collect())
}

#[track_caller]
fn accepts(body: impl AsRef<[u8]>, rows: &[&str]) {
    let (got, refused) = read(body);
    assert_eq!(refused, []);
    assert_eq!(got, rows);
}

#[track_caller]
fn refuses(body: impl AsRef<[u8]>, reason: &str) {
    let (rows, refused) = read(body);
    assert_eq!(rows, Vec::<String>::new());
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0], (1, reason.to_owned()));
}

#[test]
fn a_line_is_table_tags_fields_time() {
    accepts(
        "engine,device_id=pump-17,site=north celsius=71.5,rpm=900i 1700",
        &["engine,device_id=pump-17,site=north celsius=71.5,rpm=900i 1700"],
    );
    accepts("m f=1 5", &["m f=1.0 5"]);
    accepts("m,site=a f=1 -5", &["m,site=a f=1.0 -5"]);
}

#[test]
fn tables_and_columns_keep_their_case_and_order() {
    accepts("M,Tag=A,tag=b F=1,f=2i 1", &["M,Tag=A,tag=b F=1.0,f=2i 1"]);
    accepts(
        "m,b=2,a=1,device_id=d f=1 1\nm,device_id=d,a=1,b=2 f=2 2",
        &["m,a=1,b=2,device_id=d f=1.0 1", "m,a=1,b=2,device_id=d f=2.0 2"],
    );
}

#[test]
fn the_same_tags_in_any_order_and_spelling_are_one_series() {
    let mut database = Database::default();
    let parsed = database.parse(&mut Parser::new(), b"m,a=1,b=x\\,y f=1 1\nm,b=x\\,y,a=1 f=1 2\nm,a=1,b=z f=1 3\nm,a=1,b=x\\,y f=1 4\n");
    let batch = &parsed.batches[0].batch;
    assert_eq!(batch.row_series, [0, 0, 1, 0]);
    assert_eq!(batch.series(), 2);
}

#[test]
fn names_and_tag_values_have_three_escapes() {
    accepts(r"m\,a\ b,t\,1=v\,1,t\=2=v\=2,t\ 3=v\ 3 f\,1=1,f\=2=2,f\ 3=3 1", &["m,a b,t 3=v 3,t,1=v,1,t=2=v=2 f 3=3.0,f,1=1.0,f=2=2.0 1"]);
}

#[test]
fn any_other_backslash_is_itself() {
    accepts(r"a\b,c\d=e\f g\h=1 1", &[r"a\b,c\d=e\f g\h=1.0 1"]);
    accepts(r"m,t=a\\b f=1 1", &[r"m,t=a\\b f=1.0 1"]);
    accepts(r"m,t=a\\,b f=1 1", &[r"m,t=a\,b f=1.0 1"]);
    accepts(r"m,t=\n f=1 1", &[r"m,t=\n f=1.0 1"]);
}

#[test]
fn equals_is_a_letter_in_a_table_name() {
    accepts("a=b f=1 1", &["a=b f=1.0 1"]);
    accepts(r"a\=b f=1 1", &[r"a\=b f=1.0 1"]);
}

#[test]
fn quotes_are_letters_outside_of_field_values() {
    accepts("\"m\",\"t\"=\"v\" \"f\"=1 1", &["\"m\",\"t\"=\"v\" \"f\"=1.0 1"]);
    accepts("m,t=\"a\\ b\" f=1 1", &["m,t=\"a b\" f=1.0 1"]);
}

#[test]
fn strings_have_two_escapes_and_may_hold_newlines() {
    accepts(r#"m f="" 1"#, &[r#"m f="" 1"#]);
    accepts(r#"m f="a,b=c d" 1"#, &[r#"m f="a,b=c d" 1"#]);
    accepts(r#"m f="say \"hi\" \\ \n \,",g=1 1"#, &[r#"m f="say \"hi\" \\ \\n \\,",g=1.0 1"#]);
    accepts("m f=\"one\ntwo\r\n\",g=1 1\nm f=\"x\",g=2 2", &["m f=\"one\\ntwo\\r\\n\",g=1.0 1", "m f=\"x\",g=2.0 2"]);
    accepts("m f=\"äöü → 🦀\" 1", &["m f=\"äöü → 🦀\" 1"]);
    accepts("m f=\"#no comment\n#nor this\" 1", &["m f=\"#no comment\\n#nor this\" 1"]);
}

#[test]
fn newlines_inside_strings_count_for_line_numbers() {
    let (rows, refused) = read("m f=\"a\nb\nc\" 1\nbad\nm f=\"d\" 2\nm f=\"a\nb\" x\nbad\n");
    assert_eq!(rows.len(), 2);
    assert_eq!(refused.iter().map(|r| r.0).collect::<Vec<_>>(), [4, 6, 8]);
}

#[test]
fn numbers_have_four_types() {
    accepts("m a=1,b=-2.5,c=1e3,d=2.5E-1 1", &["m a=1.0,b=-2.5,c=1000.0,d=0.25 1"]);
    accepts(
        "m a=9223372036854775807i,b=-9223372036854775808i,c=18446744073709551615u 1",
        &["m a=9223372036854775807i,b=-9223372036854775808i,c=18446744073709551615u 1"],
    );
    for bad in ["nan", "NaN", "inf", "-inf", "Infinity", "0x10", "+1", ".5", "5.", "1e", "1.2.3", "1_000", "12x", "--1", "-", "1e999"] {
        let (rows, refused) = read(format!("m f={bad} 1"));
        assert_eq!((rows.len(), refused.len()), (0, 1), "{bad}");
    }
    refuses("m f=9223372036854775808i 1", "integer '9223372036854775808i' is out of range at column 5");
    refuses("m f=18446744073709551616u", "unsigned integer '18446744073709551616u' is out of range at column 5");
    refuses("m f=-1u", "invalid unsigned integer '-1u' at column 5");
    refuses("m f=1.5i", "invalid integer '1.5i' at column 5");
    refuses("m f=1e400 1", "float '1e400' is out of range at column 5");
}

#[test]
fn booleans_have_ten_spellings() {
    for (spelling, value) in
        ["t", "T", "true", "True", "TRUE"].map(|s| (s, true)).into_iter().chain(["f", "F", "false", "False", "FALSE"].map(|s| (s, false)))
    {
        accepts(format!("m f={spelling} 1"), &[&format!("m f={value} 1")]);
    }
    for bad in ["tRUE", "tr", "TRue", "yes", "fALSE", "true\""] {
        refuses(format!("m f={bad} 1"), &format!("invalid field value '{bad}' at column 5"));
    }
    refuses("m f=truei 1", "invalid integer 'truei' at column 5");
}

#[test]
fn what_the_interface_refuses_is_refused() {
    for (line, reason) in [
        ("m", "no field: expected ' field=value' at column 2"),
        ("m ", "no field: expected ' field=value' at column 2"),
        ("m,t=v", "no field: expected ' field=value' at column 6"),
        ("m 5", "field '5' has no value: expected '=' at column 4"),
        (",t=v f=1", "empty table name at column 1"),
        ("m,=v f=1", "empty tag name at column 3"),
        ("m,t= f=1", "empty tag value at column 5"),
        ("m,t=,u=1 f=1", "empty tag value at column 5"),
        ("m, f=1", "empty tag name at column 3"),
        ("m,t f=1", "tag 't' has no value: expected '=' at column 4"),
        ("m,t=a=b f=1", "unescaped '=' in a tag value: write '\\=' at column 6"),
        ("m =1", "empty field name at column 3"),
        ("m f=", "empty field value at column 5"),
        ("m f=,g=1", "empty field value at column 5"),
        ("m f=1,", "empty field name at column 7"),
        ("m f=1, g=2", "empty field name at column 7"),
        ("m f=1,,g=2", "empty field name at column 7"),
        ("m a,b=1", "field 'a' has no value: expected '=' at column 4"),
        ("m,t=a,t=b f=1", "tag 't' stands twice"),
        ("m,t=a,t=a f=1", "tag 't' stands twice"),
        ("m,t=a t=1", "column 't' of table 'm' is type tag, not float"),
        ("m,time=a f=1", "'time' is every table's time and cannot be a tag or field"),
        ("m time=1", "'time' is every table's time and cannot be a tag or field"),
        ("m f=\"abc 1", "unfinished string: no closing quote at column 5"),
        ("m f=\"abc\\\" 1", "unfinished string: no closing quote at column 5"),
        ("m f=\"a\"b 1", "unexpected text after a string: expected ',' or a space at column 8"),
        ("m\\", "unfinished escape: the line ends with a backslash at column 2"),
        ("m,t=v\\", "unfinished escape: the line ends with a backslash at column 6"),
        ("m f=1 x", "invalid time 'x': expected an integer at column 7"),
        ("m f=1 1.5", "invalid time '1.5': expected an integer at column 7"),
        ("m f=1 1e3", "invalid time '1e3': expected an integer at column 7"),
        ("m f=1 +5", "invalid time '+5': expected an integer at column 7"),
        ("m f=1 99999999999999999999", "time '99999999999999999999' is out of range at column 7"),
        ("m f=1 9223372036854775807", "time 9223372036854775807 is out of range of nanoseconds in 64 bits"),
        ("m f=1 1 2", "unexpected text after the time at column 9"),
        ("m f=1 g=2 5", "invalid time 'g=2': expected an integer at column 7"),
        ("a\tb f=1", "table name 'a\tb' has a control character"),
        ("  m f=x", "invalid field value 'x' at column 7"),
    ] {
        let (rows, refused) = read(line);
        assert_eq!((rows.len(), &refused[..]), (0, &[(1, reason.to_owned())][..]), "{line:?}");
    }
}

#[test]
fn invalid_utf8_refuses_its_line_alone() {
    let (rows, refused) = read(b"m f=1 1\nm,t=\xff f=2 2\nm f=3 3\nm f=\"\xc3\n\x28\" 4\nm f=5 5\n");
    assert_eq!(rows, ["m f=1.0 1", "m f=3.0 3", "m f=5.0 5"]);
    assert_eq!(refused, [(2, "invalid UTF-8 at column 5".to_owned()), (4, "invalid UTF-8 at column 6".to_owned())]);
}

#[test]
fn the_later_of_two_fields_of_one_name_counts() {
    accepts("m f=1,g=5i,f=2 1", &["m f=2.0,g=5i 1"]);
    accepts("m s=\"long\",b=t,s=\"x\",b=f 1\nm s=\"y\",b=t,b=f,b=t 2", &["m b=false,s=\"x\" 1", "m b=true,s=\"y\" 2"]);
    refuses("m f=1,f=2i 1", "column 'f' of table 'm' is type float, not integer");
}

#[test]
fn first_kind_and_type_win_table_wide() {
    let (rows, refused) = read("m f=1 1\nm f=2i 2\nm,f=x g=1 3\nn f=2i 4\nm,g=x f=1 5\nm,t=y f=3 6\nm t=1,f=2 7\n");
    assert_eq!(rows, ["m f=1.0 1", "m,g=x f=1.0 5", "m,t=y f=3.0 6", "n f=2i 4"]);
    let reason = |column: &str, is: &str, not: &str| format!("column '{column}' of table 'm' is type {is}, not {not}");
    assert_eq!(refused, [(2, reason("f", "float", "integer")), (3, reason("f", "float", "tag")), (7, reason("t", "tag", "float"))]);
}

#[test]
fn a_refused_line_wants_no_column() {
    let (rows, refused) = read("m a=1,b=2,b=3i 1\nm b=5i 2\nn,time=x c=1 3\nn c=t 4\nm,a=x a=1 5\nm a=t 6");
    assert_eq!(rows, ["m b=5i 2", "m a=true 6", "n c=true 4"]);
    assert_eq!(refused.iter().map(|r| r.0).collect::<Vec<_>>(), [1, 3, 5]);
}

#[test]
fn blank_lines_comments_blanks_and_line_ends_are_free() {
    accepts(
        "\n\r\n  \n\t\n# comment f=\"\n   # another\n  m f=1 1  \n\tm f=2   2\t\r\nm   f=3 3\r\nm f=4\t\n#m f=5 5\n\nm f=6 6",
        &["m f=1.0 1", "m f=2.0 2", "m f=3.0 3", "m f=4.0 1700000000000000010", "m f=6.0 6"],
    );
    accepts("m f=1 1\r", &["m f=1.0 1"]);
    let (rows, refused) = read("\n\n# c\nbad\n");
    assert_eq!((rows.len(), refused[0].0), (0, 4));
    let parsed = Parser::new().parse(b"", &Database::default().options());
    assert_eq!(parsed, Parsed::default());
}

#[test]
fn a_point_without_time_gets_arrival_and_line_number() {
    accepts(
        "m f=1\n\nm f=2\nm g=\"a\nb\"\nm f=3\n",
        &["m f=1.0 1700000000000000001", "m f=2.0 1700000000000000003", "m g=\"a\\nb\" 1700000000000000004", "m f=3.0 1700000000000000006"],
    );
}

#[test]
fn written_times_are_scaled_or_their_line_is_refused() {
    let mut database = Database { precision: Precision::Millisecond, ..Database::default() };
    let parsed = database.parse(&mut Parser::new(), b"m f=1 1700000000000\nm f=2 9999999999999999\nm f=3\nm f=4 -1\n");
    assert_eq!(database.rows(&parsed), ["m f=1.0 1700000000000000000", "m f=3.0 1700000000000000003", "m f=4.0 -1000000"]);
    assert_eq!(parsed.refused[0].line_number, 2);
    assert_eq!(parsed.refused[0].kind, RefusedKind::Parse);
}

#[test]
fn a_line_older_than_the_cutoff_is_refused_and_wants_nothing() {
    let mut database = Database { cutoff: Some(Timestamp(100)), ..Database::default() };
    let mut parser = Parser::new();
    let parsed = database.parse(&mut parser, b"m f=1i 99\nm f=2 100\nm f=3\n");
    assert_eq!(database.rows(&parsed), ["m f=2.0 100", "m f=3.0 1700000000000000003"]);
    assert_eq!((parsed.refused[0].line_number, parsed.refused[0].kind), (1, RefusedKind::Retention));
    let again = database.parse(&mut parser, b"m f=1 99\nm f=2 100\n");
    assert_eq!((again.rows, again.refused.len()), (1, 1));
}

#[test]
fn limits_tell_their_setting() {
    let mut database =
        Database { limits: LineLimits { line_bytes: 40, columns_per_table: 3, tables_per_database: 2 }, ..Database::default() };
    let long = format!("m f=\"{}\" 1", "x".repeat(40));
    let name = "n".repeat(256);
    let body = format!("{long}\nm,t=a f=1,g=2 1\nm h=1 2\nm f=2 2\nn f=1 3\no f=1 4\n");
    let parsed = database.parse(&mut Parser::new(), body.as_bytes());
    assert_eq!(parsed.rows, 3);
    let told: Vec<_> = parsed.refused.iter().map(|r| (r.line_number, r.kind, r.reason.as_str())).collect();
    assert_eq!(
        told,
        [
            (1, RefusedKind::Limit, "line of 48 bytes is longer than 40 bytes (setting max_line_bytes)"),
            (3, RefusedKind::Limit, "table 'm' would have more than 3 columns (limit max_columns_per_table, fixed)"),
            (6, RefusedKind::Limit, "database 'd' would have more than 2 tables (limit max_tables_per_database, fixed)"),
        ]
    );
    for body in [format!("{name} f=1 1"), format!("m,{name}=1 f=1 1"), format!("m {name}=1 1")] {
        let mut database = Database::default();
        let parsed = database.parse(&mut Parser::new(), body.as_bytes());
        assert_eq!((parsed.rows, parsed.refused[0].kind), (0, RefusedKind::Limit));
        assert!(parsed.refused[0].reason.contains("max_name_bytes"), "{}", parsed.refused[0].reason);
    }
}

#[test]
fn a_body_cannot_fill_memory_with_absent_values() {
    let mut database = Database::default();
    let mut parser = Parser::new();
    let columns: String = (0..1000).map(|i| format!("m c{i}=1 1\n")).collect();
    assert_eq!(database.parse(&mut parser, columns.as_bytes()).rows, 1000);
    let body = columns.repeat(20);
    let parsed = database.parse(&mut parser, body.as_bytes());
    let cells: usize = parsed.batches.iter().map(|b| b.batch.rows() * b.batch.columns.len()).sum();
    assert!(cells <= FREE_CELLS + CELLS_PER_BYTE * body.len());
    assert_eq!(parsed.rows + parsed.refused_lines, 20_000);
    assert!(parsed.refused_lines > 0 && parsed.refused.iter().all(|r| r.kind == RefusedKind::Limit));
}

#[test]
fn values_beyond_the_free_ones_count_among_what_is_in_flight() {
    const LINES: usize = 1_200;
    let mut database = Database::default();
    let mut parser = Parser::new();
    let columns: String = (0..1000).map(|i| format!("m c{i}=1 1\n")).collect();
    let few = database.parse(&mut parser, columns.as_bytes());
    let sparse: String = (0..LINES).map(|i| format!("m c{}=1 1\n", i % 1000)).collect();
    let expected = database.parse(&mut parser, sparse.as_bytes());
    assert_eq!((expected.rows, expected.refused_lines), (LINES, 0));
    for mut parser in [parser, Parser::without_fast_path()] {
        let admission = Admission::new(200_000);
        let mut share = admission.admit(0).unwrap();
        assert_eq!(parser.parse_admitted(columns.as_bytes(), &database.options(), &mut share).unwrap(), few);
        assert_eq!(admission.in_flight(), 0, "the first million values are free");
        // Alone, a body is taken whatever its values take.
        for _ in 0..2 {
            assert_eq!(parser.parse_admitted(sparse.as_bytes(), &database.options(), &mut share).unwrap(), expected);
            let held = (LINES * 1000 - FREE_CELLS) * CELL_BYTES..(LINES * 1000 - FREE_CELLS + 2 * CELLS_AT_ONCE) * CELL_BYTES;
            assert!(held.contains(&(admission.in_flight() as usize)), "{} bytes", admission.in_flight());
        }
        drop(share);
        assert_eq!(admission.in_flight(), 0);
        let mut other = admission.admit(0).unwrap();
        other.hold(1).unwrap();
        let mut share = admission.admit(0).unwrap();
        let refused = parser.parse_admitted(sparse.as_bytes(), &database.options(), &mut share).unwrap_err();
        assert!(matches!(refused, Error::Overloaded { limit: 200_000 }), "{refused}");
        assert_eq!(parser.parse_admitted(columns.as_bytes(), &database.options(), &mut share).unwrap(), few);
        drop(share);
        assert_eq!(admission.in_flight(), 1);
    }
}

#[test]
fn a_series_key_beyond_its_limit_refuses_its_line_on_both_ways() {
    let line = |tag: &str| format!("m,a={tag},device_id=d f=1 1\n");
    // The tag and the device take three bytes each besides their values, a NUL two.
    let most = MAX_SERIES_KEY_BYTES - 3 - 4;
    let limits = LineLimits { line_bytes: 2 * MAX_SERIES_KEY_BYTES, ..LineLimits::default() };
    let nuls = "\0".repeat(most / 2);
    for (tag, rows) in [("x".repeat(most), 1), ("x".repeat(most + 1), 0), (nuls.clone() + "x", 1), (nuls + "\0", 0)] {
        let body = line("small") + &line(&tag).repeat(2);
        for mut parser in [Parser::new(), Parser::without_fast_path()] {
            let mut database = Database::default();
            database.parse(&mut parser, line("small").as_bytes());
            let parsed = parser.parse(body.as_bytes(), &ParseOptions { limits, ..database.options() });
            assert_eq!((parsed.rows, parsed.refused_lines), (1 + 2 * rows, 2 - 2 * rows));
            for line in parsed.refused {
                assert_eq!(line.kind, RefusedKind::Limit);
                assert!(line.reason.contains("is longer than 1048576 bytes (limit max_series_key_bytes, fixed)"), "{}", line.reason);
            }
        }
    }
}

#[test]
fn refused_lines_are_told_within_bounds() {
    let body = "x\n".repeat(MAX_REFUSED_TOLD + 7) + &"ä".repeat(2_000);
    let parsed = Parser::new().parse(body.as_bytes(), &Database::default().options());
    assert_eq!((parsed.refused.len(), parsed.refused_lines), (MAX_REFUSED_TOLD, MAX_REFUSED_TOLD + 8));
    let parsed = Parser::new().parse("ä".repeat(2_000).as_bytes(), &Database::default().options());
    assert_eq!(parsed.refused[0].original_line, "ä".repeat(MAX_ORIGINAL_LINE_BYTES / 2));
    let parsed = Parser::new().parse(b"  m f=x \r\n", &Database::default().options());
    assert_eq!(parsed.refused[0].original_line, "  m f=x ");
}

#[test]
fn an_unknown_database_needs_everything_and_a_known_one_only_what_is_new() {
    let mut database = Database::default();
    let mut parser = Parser::new();
    let body = b"m,device_id=d f=1 1\nn f=1i 2\nm,device_id=d g=\"x\",f=2 3\n";
    let needs = parser.parse(body, &database.options()).needs;
    let column = |name: &str, field| NewColumn { name: name.into(), field };
    assert_eq!(
        needs,
        [
            ("m".into(), vec![column("device_id", None), column("f", Some(ColumnType::F64)), column("g", Some(ColumnType::Str))]),
            ("n".into(), vec![column("f", Some(ColumnType::I64))]),
        ]
    );
    database.agree(&needs);
    assert_eq!(parser.parse(body, &database.options()).rows, 3);
    let needs = parser.parse(b"m,device_id=d f=1 1\nm,device_id=d,site=n f=1 1\n", &database.options()).needs;
    assert_eq!(needs, [("m".into(), vec![column("site", None)])]);
}

#[test]
fn a_series_keeps_its_key_when_its_table_grows() {
    let mut database = Database::default();
    let mut parser = Parser::new();
    let key = |parsed: &Parsed| parsed.batches[0].batch.key(0).to_vec();
    let before = key(&database.parse(&mut parser, b"m,b=1 f=1 1"));
    database.parse(&mut parser, b"m,a=1,b=1,device_id=x f=1,g=2 1");
    assert_eq!(key(&database.parse(&mut parser, b"m,b=1 f=1 1")), before);
}

#[test]
fn a_table_made_anew_has_forgotten_its_past() {
    let mut database = Database::default();
    let mut parser = Parser::new();
    database.parse(&mut parser, b"m,b=1 f=1 1");
    database.schema = None;
    let parsed = database.parse(&mut parser, b"k f=1 1\nm,b=1 f=1i 1\n");
    assert_eq!(parsed.refused, []);
    assert_eq!(database.rows(&parsed), ["k f=1.0 1", "m,b=1 f=1i 1"]);
}

#[test]
fn lines_without_a_space_cost_no_search_of_the_rest_of_the_body() {
    // Searched to its end for every line, this body would be 34 GB to read.
    let body = "x\n".repeat(1 << 18);
    let parsed = Parser::new().parse(body.as_bytes(), &Database::default().options());
    assert_eq!(parsed.refused_lines, 1 << 18);
}

#[test]
fn a_malformed_line_ends_where_its_text_says() {
    // A quote that opens no string does not swallow the next line; one that does, does.
    let (rows, refused) = read("m f=1\"a\nm f=2 2\n\"m f=\n m\",t=\"x f=1 3\n");
    assert_eq!(rows, ["m f=2.0 2", "m\",t=\"x f=1.0 3"]);
    assert_eq!(refused.iter().map(|r| r.0).collect::<Vec<_>>(), [1, 3]);
    let (rows, refused) = read("m f=1 1\nm f=\"open 2\nm f=3 3\n");
    assert_eq!((rows.len(), refused.len(), refused[0].0), (1, 1, 2));
    let (rows, _) = read("m\\\nm f=1 1\n");
    assert_eq!(rows, ["m f=1.0 1"]);
}
