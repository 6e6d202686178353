//! A node to ask: a cluster of one in a temporary folder, with an engine, and points in a line each.
//!
//! ```text
//! phone device_id=p1,os=a celsius=1.5,steps=3i,on=t,note="x" 1000
//! ```
//!
//! The line language is line protocol without escapes; `query` does not know the real one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use cluster::{Cluster, ClusterOptions, PeerOptions, Roles};
use model::batch::{Bitmap, FieldColumn, PointBatch, Values};
use model::schema::{DEFAULT_DATABASE, NewColumn};
use model::{ColumnType, DatabaseSchema, FieldValue, ShardId, TableId, Timestamp, routing_hash};
use query::{Engine, Format, QueryOptions, RunOptions, Sources};
use storage::WritePart;
use storage::disk::RealDisk;
use storage::entry::RetryWindow;
use tempfile::TempDir;

/// Bytes of memtable at which a shard flushes by itself: never, here.
const FLUSH_BYTES: usize = 1 << 30;

/// What a node is made with.
pub(crate) struct Made {
    pub(crate) name: String,
    pub(crate) shards: u32,
    pub(crate) peers: Option<PeerOptions>,
    pub(crate) seed: u64,
}

/// One node.
pub(crate) struct Node {
    pub(crate) engine: Arc<Engine>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) now: Arc<AtomicI64>,
    origin: u128,
    sequence: AtomicU64,
    dir: TempDir,
}

impl Node {
    /// A node with three shards.
    pub(crate) async fn start() -> Node {
        Node::with(|_| {}).await
    }

    /// A node whose queries are bounded otherwise.
    pub(crate) async fn with(bound: impl FnOnce(&mut QueryOptions)) -> Node {
        Node::made(Made { name: "n1".to_owned(), shards: 3, peers: None, seed: 7 }, bound).await
    }

    /// A node that is made so.
    pub(crate) async fn made(made: Made, bound: impl FnOnce(&mut QueryOptions)) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let roles = made.peers.as_ref().map_or(Roles::ALL, |peers| peers.roles);
        let now = Arc::new(AtomicI64::new(1_780_000_000_000_000_000));
        let clock: cluster::Clock = {
            let now = now.clone();
            Arc::new(move || Timestamp(now.load(Ordering::Relaxed)))
        };
        let cluster = Cluster::start(ClusterOptions {
            node: made.name.clone(),
            data_dir: dir.path().join("data"),
            disk: Arc::new(RealDisk),
            shards: made.shards,
            clock: clock.clone(),
            seed: made.seed,
            flush_bytes: FLUSH_BYTES,
            last_rows_bytes: 1 << 20,
            max_waiting_bytes: 64 << 20,
            peers: made.peers,
        })
        .await
        .unwrap();
        let mut options = QueryOptions::new(dir.path().join("spill"), clock);
        bound(&mut options);
        let sources = Sources {
            settings: Box::new(|| {
                vec![query::Setting { name: "listen".to_owned(), value: "127.0.0.1:2558".to_owned(), origin: "default".to_owned() }]
            }),
            refused_lines: Box::new(|| {
                vec![query::RefusedLine {
                    time: Timestamp(1_000),
                    database: "default".to_owned(),
                    line_number: 3,
                    original_line: "phone".to_owned(),
                    error_message: "no field".to_owned(),
                }]
            }),
            nodes: Box::new(move || {
                vec![query::Node {
                    node_id: made.name.clone(),
                    roles: roles.to_string(),
                    http: "127.0.0.1:2558".to_owned(),
                    rpc: None,
                    version: "0.1.0".to_owned(),
                    state: "ready".to_owned(),
                    started: Some(Timestamp(0)),
                }]
            }),
        };
        let engine = Engine::new(cluster.clone(), options, sources).unwrap();
        Node { engine, cluster, now, origin: made.seed.into(), sequence: AtomicU64::new(0), dir }
    }

    /// The Parquet files of a table on its disk, live or not.
    pub(crate) fn files_of(&self, table: &str) -> usize {
        fn count(dir: &Path, table: &str, within: bool) -> usize {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            let of = |entry: std::fs::DirEntry| match entry.path() {
                path if path.is_dir() => count(&path, table, within || entry.file_name() == table),
                path => usize::from(within && path.extension().is_some_and(|kind| kind == "parquet")),
            };
            entries.map(of).sum()
        }
        count(&self.dir.path().join("data"), table, false)
    }

    /// Writes points into the default database.
    pub(crate) async fn write(&self, lines: &str) {
        self.write_to(DEFAULT_DATABASE, lines).await;
    }

    /// Writes points.
    pub(crate) async fn write_to(&self, database: &str, lines: &str) {
        if self.cluster.catalog().database(database).is_none() {
            self.cluster.create_database(database, None, None).await.unwrap();
        }
        let points: Vec<Point> = lines.lines().filter(|l| !l.trim().is_empty()).map(Point::read).collect();
        let mut tables: BTreeMap<&str, Vec<NewColumn>> = BTreeMap::new();
        for point in &points {
            let columns = tables.entry(&point.table).or_default();
            columns.extend(point.tags.iter().map(|(name, _)| NewColumn { name: name.as_str().into(), field: None }));
            columns.extend(point.fields.iter().map(|(name, v)| NewColumn { name: name.as_str().into(), field: Some(kind(v)) }));
        }
        let tables = tables.into_iter().map(|(name, columns)| (name.into(), columns)).collect();
        let agreed = self.cluster.add_columns(database, tables).await.unwrap();
        assert!(agreed.refused.is_empty(), "{:?}", agreed.refused);
        self.store(agreed.catalog.database(database).unwrap(), &points, 0).await;
    }

    /// Writes points of known columns into the default database as if by a node that knows so many more versions of their
    /// tables.
    pub(crate) async fn write_ahead(&self, lines: &str, versions: u32) {
        let points: Vec<Point> = lines.lines().map(Point::read).collect();
        self.store(self.cluster.catalog().database(DEFAULT_DATABASE).unwrap(), &points, versions).await;
    }

    async fn store(&self, schema: &DatabaseSchema, points: &[Point], ahead: u32) {
        let mut parts: BTreeMap<ShardId, Vec<PointBatch>> = BTreeMap::new();
        for point in points {
            let table = &schema.tables[point.table.as_str()];
            let (key, mut batch) = point.batch(table);
            batch.schema_version += ahead;
            let shard = self.cluster.shard_map().range_of(routing_hash(schema.id, &key)).shard;
            parts.entry(shard).or_default().push(batch);
        }
        for (shard, batches) in parts {
            let range_version = self.cluster.shard_map().ranges.iter().find(|r| r.shard == shard).unwrap().version;
            let part = WritePart {
                origin: self.origin,
                sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
                arrived: Timestamp(self.now.load(Ordering::Relaxed)),
                range_version,
                retry_window: RetryWindow::Recent,
                batches,
            };
            self.cluster.write(shard, part).await.unwrap();
        }
    }

    /// The answer as CSV.
    pub(crate) async fn csv(&self, sql: &str, options: RunOptions) -> query::Result<String> {
        let answer = self.engine.run(DEFAULT_DATABASE, sql, options).await?;
        let schema = answer.schema().clone();
        let batches = answer.collect().await?;
        let bytes = Format::Csv.write(&schema, &batches)?;
        Ok(String::from_utf8(bytes).unwrap())
    }

    /// The answer as CSV, which there must be.
    pub(crate) async fn ask(&self, sql: &str) -> String {
        self.csv(sql, RunOptions::default()).await.unwrap_or_else(|e| panic!("{sql}: {e}"))
    }
}

fn kind(value: &FieldValue) -> ColumnType {
    match value {
        FieldValue::F64(_) => ColumnType::F64,
        FieldValue::I64(_) => ColumnType::I64,
        FieldValue::U64(_) => ColumnType::U64,
        FieldValue::Bool(_) => ColumnType::Bool,
        FieldValue::Str(_) => ColumnType::Str,
    }
}

/// One line.
pub(crate) struct Point {
    table: String,
    tags: Vec<(String, String)>,
    fields: Vec<(String, FieldValue)>,
    time: i64,
}

impl Point {
    fn read(line: &str) -> Point {
        let [series, fields, time] =
            line.split_whitespace().collect::<Vec<_>>().try_into().unwrap_or_else(|_| panic!("three parts: {line}"));
        let mut series = series.split(',');
        let pair = |text: &str| text.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())).unwrap_or_else(|| panic!("no =: {text}"));
        Point {
            table: series.next().unwrap().to_owned(),
            tags: series.map(pair).collect(),
            fields: fields.split(',').map(pair).map(|(name, v)| (name, value(&v))).collect(),
            time: time.parse().unwrap(),
        }
    }

    fn batch(&self, table: &model::TableSchema) -> (Vec<u8>, PointBatch) {
        let tag = |name: &str| self.tags.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        // A table may lack the routing tag; its position in the key is then absent.
        let mut by_position: BTreeMap<u16, &str> = BTreeMap::new();
        for column in table.tags() {
            if let (model::ColumnKind::Tag { position }, Some(value)) = (column.kind, tag(&column.name)) {
                by_position.insert(position, value);
            }
        }
        let last = by_position.keys().last().copied();
        let key = model::SeriesKey::new(last.into_iter().flat_map(|last| 0..=last).map(|p| by_position.get(&p).copied()));
        let mut batch = PointBatch::new(TableId(table.id.0), table.version);
        batch.push_series(key.as_bytes());
        batch.row_series.push(0);
        batch.times.push(self.time);
        for (name, value) in &self.fields {
            let values = match value {
                FieldValue::F64(v) => Values::F64(vec![*v]),
                FieldValue::I64(v) => Values::I64(vec![*v]),
                FieldValue::U64(v) => Values::U64(vec![*v]),
                FieldValue::Bool(v) => Values::Bool(Bitmap::filled(1, *v)),
                FieldValue::Str(v) => {
                    let mut texts = model::batch::Strings::default();
                    texts.push(v);
                    Values::Str(texts)
                }
            };
            batch.columns.push(FieldColumn { id: table.column(name).unwrap().id, values, valid: None });
        }
        (key.as_bytes().to_vec(), batch)
    }
}

fn value(text: &str) -> FieldValue {
    match text {
        "t" => FieldValue::Bool(true),
        "f" => FieldValue::Bool(false),
        _ if text.starts_with('"') => FieldValue::Str(text.trim_matches('"').to_owned()),
        _ if text.ends_with('i') => FieldValue::I64(text[..text.len() - 1].parse().unwrap()),
        _ if text.ends_with('u') => FieldValue::U64(text[..text.len() - 1].parse().unwrap()),
        _ => FieldValue::F64(text.parse().unwrap()),
    }
}

/// The same points with other values: what the real ones overwrite.
pub(crate) fn stale(lines: &str) -> String {
    let line = |line: &str| {
        let parts: Vec<&str> = line.split_whitespace().collect();
        let fields: Vec<String> = parts[1]
            .split(',')
            .map(|f| {
                let (name, text) = f.split_once('=').unwrap();
                let old = match value(text) {
                    FieldValue::F64(v) => (v - 1_000.5).to_string(),
                    FieldValue::I64(v) => format!("{}i", v.wrapping_sub(77)),
                    FieldValue::U64(v) => format!("{}u", v.wrapping_add(77)),
                    FieldValue::Bool(v) => if v { "f" } else { "t" }.to_owned(),
                    FieldValue::Str(_) => "\"stale\"".to_owned(),
                };
                format!("{name}={old}")
            })
            .collect();
        format!("{} {} {}", parts[0], fields.join(","), parts[2])
    };
    lines.lines().filter(|l| !l.trim().is_empty()).map(line).collect::<Vec<_>>().join("\n")
}
