//! What the interface says of line protocol, sentence by sentence.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::point::KeyTags;
use model::{DatabaseId, DatabaseSchema, TableId, TableSchema, Timestamp, Values, routing_hash};

use super::*;

const ARRIVAL: Timestamp = Timestamp(1_700_000_000_000_000_000);

/// A database that agrees with everything.
pub(super) struct Database {
    pub(super) schema: Option<Arc<DatabaseSchema>>,
    pub(super) precision: Precision,
    pub(super) cutoff: Option<Timestamp>,
    pub(super) limits: LineLimits,
}

impl Default for Database {
    fn default() -> Database {
        Database { schema: None, precision: Precision::Nanosecond, cutoff: None, limits: LineLimits::default() }
    }
}

impl Database {
    pub(super) fn options(&self) -> ParseOptions<'_> {
        ParseOptions { precision: self.precision, arrival: ARRIVAL, schema: self.schema.as_ref(), cutoff: self.cutoff, limits: self.limits }
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
        assert_eq!((&second.refused, second.refused_lines), (&first.refused, first.refused_lines), "both passes refuse alike");
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
