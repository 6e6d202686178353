//! Text to batches: our parser beside the `influxdb-line-protocol` crate, on the same lines in the same run.
//!
//! `cargo bench -p ingest --bench parse` prints rows per second. The other crate stops at its own structures (borrowed
//! names and values of one line); ours builds the columns that the log takes.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use ingest::line_protocol::{LineLimits, ParseOptions, Parser, Precision};
use model::schema::MAX_COLUMNS_PER_TABLE;
use model::{DatabaseId, DatabaseSchema, TableId, TableSchema, Timestamp};
use simulator::{Fleet, FleetOptions, KindName};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const DEVICES: u32 = 10_000;
const LINES: usize = 5_000;
const BODIES: usize = 20;

fn main() {
    divan::main();
}

/// Phones and watches, some reports of each device.
fn bodies(lines: usize, count: usize) -> Vec<Vec<u8>> {
    let mut fleet = Fleet::new(FleetOptions {
        devices: DEVICES,
        kinds: vec![KindName::Phone, KindName::Watch],
        points: None,
        interval_ns: 10_000_000_000,
        start_ns: 1_772_323_200_000_000_000,
        seed: 7,
        late_pct: 0.0,
        duplicate_pct: 0.0,
        offline_pct: 0.0,
    });
    let body = |_| {
        let mut body = Vec::new();
        (0..lines).for_each(|_| assert!(fleet.next_line(&mut body).is_some(), "the fleet goes on for ever"));
        body
    };
    (0..count).map(body).collect()
}

/// The schema that these lines agree on.
fn schema(parser: &mut Parser, bodies: &[Vec<u8>]) -> Arc<DatabaseSchema> {
    let mut schema = DatabaseSchema {
        id: DatabaseId(1),
        name: "default".into(),
        routing_tag: "device_id".into(),
        retention_ns: None,
        tables: BTreeMap::new(),
    };
    for body in bodies {
        for (name, columns) in parser.parse(body, &options(None)).needs {
            let id = TableId(1 + schema.tables.len() as u32);
            let table = schema.tables.entry(name.clone()).or_insert_with(|| Arc::new(TableSchema::new(id, DatabaseId(1), name)));
            let table = Arc::make_mut(table);
            for column in columns {
                table.add(&column, "device_id", MAX_COLUMNS_PER_TABLE).expect("the fleet agrees with itself");
            }
        }
    }
    Arc::new(schema)
}

fn options(schema: Option<&Arc<DatabaseSchema>>) -> ParseOptions<'_> {
    ParseOptions {
        precision: Precision::Nanosecond,
        arrival: Timestamp(1_772_323_200_000_000_000),
        schema,
        cutoff: None,
        limits: LineLimits::default(),
        map: None,
    }
}

fn parse(bencher: Bencher<'_, '_>, mut parser: Parser, bodies: &[Vec<u8>], lines: usize) {
    let schema = schema(&mut parser, bodies);
    let options = options(Some(&schema));
    for body in bodies {
        assert_eq!(parser.parse(body, &options).rows, lines);
    }
    let next = Cell::new(0);
    let body = || {
        next.set((next.get() + 1) % bodies.len());
        parser.parse(&bodies[next.get()], &options).rows
    };
    bencher
        .counter(ItemsCount::new(lines))
        .counter(BytesCount::new(bodies.iter().map(Vec::len).sum::<usize>() / bodies.len()))
        .bench_local(body);
}

/// Bodies of 5,000 lines, every series known: the fleet's every day.
#[divan::bench]
fn bulk(bencher: Bencher<'_, '_>) {
    parse(bencher, Parser::new(), &bodies(LINES, BODIES), LINES);
}

/// The same without the fast path: every line as if it were the first of its kind.
#[divan::bench]
fn bulk_general(bencher: Bencher<'_, '_>) {
    parse(bencher, Parser::without_fast_path(), &bodies(LINES, BODIES), LINES);
}

/// The same lines with the other crate, down to its fields.
#[divan::bench]
fn bulk_influxdb_line_protocol(bencher: Bencher<'_, '_>) {
    let bodies: Vec<String> = bodies(LINES, BODIES).into_iter().map(|body| String::from_utf8(body).expect("lines are text")).collect();
    let next = Cell::new(0);
    let body = || {
        next.set((next.get() + 1) % bodies.len());
        let lines = influxdb_line_protocol::parse_lines(&bodies[next.get()]);
        lines.map(|line| line.expect("lines are well formed").field_set.len()).sum::<usize>()
    };
    bencher
        .counter(ItemsCount::new(LINES))
        .counter(BytesCount::new(bodies.iter().map(String::len).sum::<usize>() / bodies.len()))
        .bench_local(body);
}

/// One line a body, as bare devices send them: what a call costs.
#[divan::bench]
fn one_line(bencher: Bencher<'_, '_>) {
    parse(bencher, Parser::new(), &bodies(1, 2_000), 1);
}
