//! Our reading of lines compared with that of the `influxdb-line-protocol` crate, the one InfluxDB 3 grew from.
//!
//! Where both take a line, they must read the same from it. They part ways on purpose (`docs/line-protocol.md` tells users):
//!
//! | input | that crate | here, and why |
//! |---|---|---|
//! | `\\` in a name or tag value | one backslash | two: only `\,` `\=` `\ ` are escapes (InfluxDB 1 and 2 write them so) |
//! | `\=` in a table name | the same: `=` is a letter there | |
//! | `a,b=1` as a tag or field name | the name `a,b` | refused: an unescaped comma separates |
//! | unescaped `=` in a tag value | a letter | refused, as InfluxDB 1 and 2 do |
//! | a name that ends in a backslash before `=`, `,` or a space | refused or ended | an escape |
//! | a backslash before a newline, outside strings | continues the line | the line ends and is refused |
//! | a tab or NUL inside a line | a tab separates, NUL ends a table name | letters in tag values, refused in names |
//! | blanks before a line with quotes in its names | may hide a newline | nothing |
//! | a quote not right behind `=` in the fields | may hide a newline | a letter; the newline ends the line |
//! | the same tag twice | taken | refused |
//! | an empty string of digits, `1e999` | infinity | refused: out of range |
//! | a value or time followed by something else | refused | refused |
//! | CRLF | refused | the CR belongs to the line end |
//! | blanks behind the fields of a line without time | refused | nothing |
//! | the last nanosecond of 64 bits as time | taken | refused: no half-open range could hold it |
//! | a tag and a field of one name, the name `time`, control characters in names | taken | refused |

use proptest::prelude::*;

use influxdb_line_protocol::{FieldValue, parse_lines};

use super::tests::Database;
use super::*;

/// What the other crate makes of a body, a text a line; `None` for a line it refuses.
fn other(body: &str) -> Vec<Option<String>> {
    parse_lines(body)
        .map(|line| {
            let line = line.ok()?;
            let mut tags: Vec<String> = line.series.tag_set.iter().flatten().map(|(k, v)| format!("{k}={v}")).collect();
            tags.sort();
            let tags: String = tags.iter().map(|tag| format!(",{tag}")).collect();
            let mut fields: Vec<(String, String)> = Vec::new();
            for (name, value) in &line.field_set {
                let value = match value {
                    FieldValue::I64(v) => format!("{v}i"),
                    FieldValue::U64(v) => format!("{v}u"),
                    FieldValue::F64(v) => format!("{v:?}"),
                    FieldValue::String(v) => format!("{:?}", v.as_str()),
                    FieldValue::Boolean(v) => format!("{v}"),
                };
                fields.retain(|(n, _)| n != name.as_str());
                fields.push((name.to_string(), value));
            }
            let mut fields: Vec<String> = fields.iter().map(|(k, v)| format!("{k}={v}")).collect();
            fields.sort();
            Some(format!("{}{tags} {} {}", line.series.measurement, fields.join(","), line.timestamp.unwrap_or(ARRIVED)))
        })
        .collect()
}

/// What a single line without time gets.
const ARRIVED: i64 = 1_700_000_000_000_000_001;

/// What we make of a single line.
fn ours(line: &str) -> Option<String> {
    let mut database = Database::default();
    let parsed = database.parse(&mut Parser::new(), line.as_bytes());
    (parsed.rows == 1).then(|| database.rows(&parsed).remove(0))
}

#[test]
fn the_differences_are_the_listed_ones() {
    for (line, theirs, here) in [
        (r"m,t=a\\b f=1 1", Some(r"m,t=a\b f=1.0 1"), Some(r"m,t=a\\b f=1.0 1")),
        ("m a,b=1 1", Some("m a,b=1.0 1"), None),
        ("m,a,b=1 f=1 1", Some("m,a,b=1 f=1.0 1"), None),
        ("m,t=a=b f=1 1", Some("m,t=a=b f=1.0 1"), None),
        ("m,t=a\tb f=1 1", None, Some("m,t=a\tb f=1.0 1")),
        ("m,t=a,t=b f=1 1", Some("m,t=a,t=b f=1.0 1"), None),
        ("m f=1e999 1", Some("m f=inf 1"), None),
        ("m f=1 1\r", None, Some("m f=1.0 1")),
        ("m,t=a t=1 1", Some("m,t=a t=1.0 1"), None),
        ("m time=1 1", Some("m time=1.0 1"), None),
        ("m f=1 ", None, Some("m f=1.0 1700000000000000001")),
        ("m f=1 9223372036854775807", Some("m f=1.0 9223372036854775807"), None),
        (r"a\=b f=1 1", Some(r"a\=b f=1.0 1"), Some(r"a\=b f=1.0 1")),
    ] {
        assert_eq!(other(line), [theirs.map(str::to_owned)], "theirs: {line}");
        assert_eq!(ours(line).as_deref(), here, "ours: {line}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn beyond_the_list_both_read_the_same(
        table in "[a-c=\"é]{1,3}|a\\\\,b|a\\\\ b",
        tags in prop::collection::btree_map("[k-m][\"k]?|k\\\\,l|k\\\\=l|k\\\\ l", "[a-z\"é]{1,3}|a\\\\,b|a\\\\=b|a\\\\ b|a\\\\b", 0..4),
        fields in prop::collection::vec(
            (
                "[x-z][\"x]?|x\\\\,y|x\\\\=y|x\\\\ y",
                "-?[0-9]{1,22}(\\.[0-9]{1,22})?([eE][+-]?[0-9]{1,2})?|-?[0-9]{1,20}i|-?[0-9]{1,21}u|[tTfF]|true|True|FALSE|\"[a-c ,=\n#é]{0,6}(\\\\\"|\\\\\\\\|\\\\a)?[a-c]{0,3}\"|[a-z.+-]{0,4}",
            ),
            0..4,
        ),
        time in "( {1,3}-?[0-9]{1,20})?",
        blanks in " {0,2}",
    ) {
        let tags: String = tags.iter().map(|(k, v)| format!(",{k}={v}")).collect();
        // Different types under one name are a conflict here and two fields there: each name once.
        let mut named = std::collections::BTreeMap::new();
        named.extend(fields);
        let fields: Vec<String> = named.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let behind = if time.is_empty() { "" } else { &blanks };
        let line = format!("{table}{tags} {}{time}{behind}", fields.join(","));
        // Their search for line ends takes blanks before a line for the end of its tags, and then counts quotes there.
        let line = if line.contains('"') { line } else { format!("{blanks}{line}") };
        let theirs = other(&line).pop().flatten();
        let last_nanosecond = line.trim_end().ends_with(" 9223372036854775807");
        if !last_nanosecond {
            prop_assert_eq!(ours(&line), theirs, "{}", line);
        }
    }
}
