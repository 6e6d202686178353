//! Any body: the fast path and the general parser agree, every line is a row or refused or nothing, a refused line wants
//! no column; and where the `influxdb-line-protocol` crate takes a plain line that we take, it reads the same.
//!
//! The first byte chooses the options, a byte 0xfe cuts the rest into bodies for one parser, the last of which is checked.

use std::collections::BTreeMap;
use std::sync::Arc;

use influxdb_line_protocol::{FieldValue, parse_lines};
use ingest::line_protocol::{LineLimits, ParseOptions, Parsed, Parser, Precision};
use model::schema::NewColumn;
use model::{DatabaseId, DatabaseSchema, PointBatch, TableId, TableSchema, Timestamp, Values, routing_hash};

const PRECISIONS: [Precision; 4] = [Precision::Nanosecond, Precision::Auto, Precision::Millisecond, Precision::Hour];

struct Database {
    schema: Option<Arc<DatabaseSchema>>,
    precision: Precision,
    cutoff: Option<Timestamp>,
    limits: LineLimits,
}

impl Database {
    fn parse(&mut self, parser: &mut Parser, body: &[u8]) -> Parsed {
        let first = self.pass(parser, body);
        if first.needs.is_empty() {
            return first;
        }
        assert!(first.batches.is_empty() && first.rows == 0);
        self.agree(&first.needs);
        let second = self.pass(parser, body);
        assert_eq!(second.needs, [], "the schema has what the first pass wanted");
        let numbers = |parsed: &Parsed| parsed.refused.iter().map(|r| r.line_number).collect::<Vec<_>>();
        assert!(second.refused_lines >= first.refused_lines);
        if second.refused_lines == first.refused_lines {
            assert_eq!(numbers(&second), numbers(&first), "both passes refuse the same lines");
        }
        second
    }

    fn pass(&self, parser: &mut Parser, body: &[u8]) -> Parsed {
        parser.parse(
            body,
            &ParseOptions {
                precision: self.precision,
                arrival: Timestamp(1_700_000_000_000_000_000),
                schema: self.schema.as_ref(),
                cutoff: self.cutoff,
                limits: self.limits,
                map: None,
            },
        )
    }

    fn agree(&mut self, needs: &[(Arc<str>, Vec<NewColumn>)]) {
        let mut schema = self.schema.as_deref().cloned().unwrap_or(DatabaseSchema {
            id: DatabaseId(3),
            name: "d".into(),
            routing_tag: "d".into(),
            retention_ns: None,
            tables: BTreeMap::new(),
        });
        for (name, columns) in needs {
            let next = TableId(10 + schema.tables.len() as u32);
            let table = schema.tables.entry(name.clone()).or_insert_with(|| Arc::new(TableSchema::new(next, schema.id, name.clone())));
            for column in columns {
                let added = Arc::make_mut(table).add(column, &schema.routing_tag, self.limits.columns_per_table);
                assert_eq!(added, Ok(true), "only what can be added is wanted");
            }
        }
        assert!(schema.tables.len() <= self.limits.tables_per_database);
        self.schema = Some(Arc::new(schema));
    }
}

pub(crate) fn check(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else { return };
    let limits =
        if choice & 16 == 0 { LineLimits::default() } else { LineLimits { line_bytes: 40, columns_per_table: 4, tables_per_database: 3 } };
    let mut database = Database {
        schema: None,
        precision: PRECISIONS[usize::from(choice & 3)],
        cutoff: (choice & 4 != 0).then_some(Timestamp(0)),
        limits,
    };
    let mut parser = Parser::new();
    let mut bodies: Vec<&[u8]> = rest.split(|&b| b == 0xfe).collect();
    let body = bodies.pop().expect("there is one, if empty");
    for body in bodies {
        database.parse(&mut parser, body);
    }
    let before = database.schema.clone();
    let parsed = database.parse(&mut parser, body);
    let after = std::mem::replace(&mut database.schema, before);
    let general = database.parse(&mut Parser::without_fast_path(), body);
    assert_eq!(parsed, general, "the fast path reads what the general parser reads");
    assert_eq!(after, database.schema);
    assert_eq!(parsed, database.parse(&mut parser, body), "known series are read like new ones");
    assert_eq!(parsed.rows, parsed.batches.iter().map(|b| b.batch.rows()).sum::<usize>());
    for parsed in &parsed.batches {
        let mut bytes = Vec::new();
        parsed.batch.encode(&mut bytes);
        assert_eq!(PointBatch::decode(&bytes), Ok((parsed.batch.clone(), bytes.len())));
        for (i, &hash) in parsed.hashes.iter().enumerate() {
            assert_eq!(hash, routing_hash(DatabaseId(3), parsed.batch.key(i)));
        }
        let mut keys: Vec<&[u8]> = (0..parsed.batch.series()).map(|i| parsed.batch.key(i)).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), parsed.batch.series(), "a key stands once");
    }
    if choice == 0 {
        compare(body);
    }
}

/// One plain line, read by the other crate too. What they are known to read differently is left out.
fn compare(line: &[u8]) {
    let Ok(line) = std::str::from_utf8(line) else { return };
    if line.len() > 1_000 || line.contains(['\\', '"', '\n', '\r', '\t', '\0']) {
        return;
    }
    let mut database = Database { schema: None, precision: Precision::Nanosecond, cutoff: None, limits: LineLimits::default() };
    let ours = database.parse(&mut Parser::new(), line.as_bytes());
    let theirs: Vec<_> = parse_lines(line).collect();
    let [Ok(theirs)] = &theirs[..] else { return };
    if ours.rows == 0 {
        return;
    }
    let batch = &ours.batches[0].batch;
    let schema = database.schema.expect("a row is of a table");
    let table = &schema.tables[theirs.series.measurement.as_str()];
    assert_eq!(batch.table, table.id);
    assert_eq!(batch.times[0], theirs.timestamp.unwrap_or(1_700_000_000_000_000_001));
    assert_eq!(table.tags().len(), theirs.series.tag_set.as_ref().map_or(0, |tags| tags.len()));
    let last: BTreeMap<String, &FieldValue<'_>> = theirs.field_set.iter().map(|(name, value)| (name.to_string(), value)).collect();
    assert_eq!(batch.columns.len(), last.len());
    for (name, value) in last {
        let id = table.column(&name).expect("a field is a column").id;
        let column = batch.columns.iter().find(|c| c.id == id).expect("a field has a value");
        let same = match (&column.values, value) {
            (Values::F64(ours), FieldValue::F64(theirs)) => ours[0].to_bits() == theirs.to_bits(),
            (Values::I64(ours), FieldValue::I64(theirs)) => ours[0] == *theirs,
            (Values::U64(ours), FieldValue::U64(theirs)) => ours[0] == *theirs,
            (Values::Bool(ours), FieldValue::Boolean(theirs)) => ours.get(0) == *theirs,
            _ => false,
        };
        assert!(same, "field {name} is {:?} here and {value:?} there", column.values);
    }
}
