//! The columns of each system table. Counts are signed, as SQL's own are; only hashes need all 64 bits.

use std::sync::Arc;

use cluster::{Move, ShardStatus};
use datafusion::arrow::array::{ArrayRef, BooleanArray, Date32Array, Int64Array, StringBuilder, TimestampNanosecondArray, UInt64Array};
use model::schema::TIME_COLUMN;
use model::{Catalog, ColumnKind, NodeId, ShardId};
use storage::manifest::FileMeta;

use crate::running::Seen;
use crate::sources::{Node, RefusedLine, Setting};

type Columns = Vec<(&'static str, ArrayRef)>;

fn texts<T: AsRef<str>>(values: impl Iterator<Item = T>) -> ArrayRef {
    let mut builder = StringBuilder::new();
    for value in values {
        builder.append_value(value);
    }
    Arc::new(builder.finish())
}

fn perhaps_texts<T: AsRef<str>>(values: impl Iterator<Item = Option<T>>) -> ArrayRef {
    let mut builder = StringBuilder::new();
    for value in values {
        builder.append_option(value);
    }
    Arc::new(builder.finish())
}

fn counts(values: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(values.map(|v| v as i64).collect::<Int64Array>())
}

fn perhaps_counts(values: impl Iterator<Item = Option<u64>>) -> ArrayRef {
    Arc::new(values.map(|v| v.map(|v| v as i64)).collect::<Int64Array>())
}

fn hashes(values: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(values.collect::<UInt64Array>())
}

fn times(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampNanosecondArray::from_iter_values(values))
}

fn perhaps_times(values: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(TimestampNanosecondArray::from_iter(values))
}

pub(crate) fn nodes(nodes: &[Node]) -> Columns {
    vec![
        ("node_id", texts(nodes.iter().map(|n| &n.node_id))),
        ("roles", texts(nodes.iter().map(|n| &n.roles))),
        ("http", texts(nodes.iter().map(|n| &n.http))),
        ("rpc", perhaps_texts(nodes.iter().map(|n| n.rpc.as_ref()))),
        ("version", texts(nodes.iter().map(|n| &n.version))),
        ("state", texts(nodes.iter().map(|n| &n.state))),
        ("started", perhaps_times(nodes.iter().map(|n| n.started.map(|t| t.0)))),
    ]
}

pub(crate) fn shards(shards: &[ShardStatus]) -> Columns {
    vec![
        ("shard_id", counts(shards.iter().map(|s| s.shard.0.into()))),
        ("hash_start", hashes(shards.iter().map(|s| s.hash_start))),
        ("hash_end", hashes(shards.iter().map(|s| s.hash_last))),
        ("leader", perhaps_texts(shards.iter().map(|s| s.leader.as_ref()))),
        ("replicas", texts(shards.iter().map(|s| s.replicas.join(",")))),
        ("term", counts(shards.iter().map(|s| s.term.0))),
        ("applied_index", perhaps_counts(shards.iter().map(|s| s.applied.map(|i| i.0)))),
        ("durable_index", perhaps_counts(shards.iter().map(|s| s.durable.map(|i| i.0)))),
        ("rows_in_memory", counts(shards.iter().map(|s| s.rows_in_memory))),
        ("wal_bytes", counts(shards.iter().map(|s| s.wal_bytes))),
        ("stopped", perhaps_texts(shards.iter().map(|s| s.stopped.as_ref()))),
    ]
}

pub(crate) fn files(files: &[(ShardId, FileMeta)], catalog: &Catalog) -> Columns {
    let names: Vec<_> = files.iter().map(|(_, f)| catalog.table(f.table)).collect();
    vec![
        ("shard_id", counts(files.iter().map(|(shard, _)| shard.0.into()))),
        ("database", perhaps_texts(names.iter().map(|n| n.map(|(database, _)| &*database.name)))),
        ("table", perhaps_texts(names.iter().map(|n| n.map(|(_, table)| &*table.name)))),
        ("path", texts(files.iter().map(|(_, f)| &f.path))),
        ("day", Arc::new(files.iter().map(|(_, f)| f.day).collect::<Date32Array>())),
        ("level", counts(files.iter().map(|(_, f)| f.level.into()))),
        ("rows", counts(files.iter().map(|(_, f)| f.rows))),
        ("bytes", counts(files.iter().map(|(_, f)| f.bytes))),
        ("min_time", times(files.iter().map(|(_, f)| f.min_time))),
        ("max_time", times(files.iter().map(|(_, f)| f.max_time))),
        ("first_index", counts(files.iter().map(|(_, f)| f.from.0))),
        ("last_index", counts(files.iter().map(|(_, f)| f.to.0))),
        ("checksum", texts(files.iter().map(|(_, f)| format!("{:016x}", f.checksum)))),
    ]
}

pub(crate) fn databases(catalog: &Catalog) -> Columns {
    let all = || catalog.databases.values();
    vec![
        ("database", texts(all().map(|d| &*d.name))),
        ("routing_tag", texts(all().map(|d| &*d.routing_tag))),
        ("retention_ns", Arc::new(all().map(|d| d.retention_ns).collect::<Int64Array>())),
        ("tables", counts(all().map(|d| d.tables.len() as u64))),
    ]
}

pub(crate) fn tables(catalog: &Catalog) -> Columns {
    let all: Vec<_> = catalog.databases.values().flat_map(|d| d.tables.values().map(move |t| (d, t))).collect();
    vec![
        ("database", texts(all.iter().map(|(d, _)| &*d.name))),
        ("table", texts(all.iter().map(|(_, t)| &*t.name))),
        ("tags", counts(all.iter().map(|(_, t)| t.tags().len() as u64))),
        ("fields", counts(all.iter().map(|(_, t)| t.fields().count() as u64))),
        ("schema_version", counts(all.iter().map(|(_, t)| t.version.into()))),
    ]
}

pub(crate) fn columns(catalog: &Catalog) -> Columns {
    struct Line<'a> {
        database: &'a str,
        table: &'a str,
        column: &'a str,
        position: u64,
        kind: &'static str,
        of: &'static str,
    }
    let mut lines = Vec::new();
    for database in catalog.databases.values() {
        for table in database.tables.values() {
            let time = (TIME_COLUMN, "time", "timestamp");
            let tags = table.tags().into_iter().map(|c| (&*c.name, "tag", "string"));
            let fields = table.fields().map(|c| match c.kind {
                ColumnKind::Field(of) => (&*c.name, "field", of.name()),
                ColumnKind::Tag { .. } => unreachable!("a field is no tag"),
            });
            for (position, (column, kind, of)) in std::iter::once(time).chain(tags).chain(fields).enumerate() {
                lines.push(Line { database: &database.name, table: &table.name, column, position: position as u64, kind, of });
            }
        }
    }
    vec![
        ("database", texts(lines.iter().map(|l| l.database))),
        ("table", texts(lines.iter().map(|l| l.table))),
        ("column", texts(lines.iter().map(|l| l.column))),
        ("position", counts(lines.iter().map(|l| l.position))),
        ("kind", texts(lines.iter().map(|l| l.kind))),
        ("type", texts(lines.iter().map(|l| l.of))),
        ("nullable", Arc::new(lines.iter().map(|l| Some(l.kind != "time")).collect::<BooleanArray>())),
    ]
}

/// Queries by the node that coordinates them.
pub(crate) fn queries(of: &[(String, Vec<Seen>)]) -> Columns {
    let all: Vec<(&str, &Seen)> = of.iter().flat_map(|(node, queries)| queries.iter().map(move |q| (node.as_str(), q))).collect();
    let queries = || all.iter().map(|(_, query)| query);
    vec![
        ("query_id", counts(queries().map(|q| q.id))),
        ("node_id", texts(all.iter().map(|(node, _)| node))),
        ("database", texts(queries().map(|q| &q.database))),
        ("state", texts(queries().map(|q| &q.state))),
        ("started", times(queries().map(|q| q.started.0))),
        ("elapsed_us", counts(queries().map(|q| q.elapsed.as_micros() as u64))),
        ("rows", counts(queries().map(|q| q.rows))),
        ("rows_scanned", counts(queries().map(|q| q.rows_scanned))),
        ("shards", counts(queries().map(|q| q.shards))),
        ("sql", texts(queries().map(|q| &q.sql))),
        ("error", perhaps_texts(queries().map(|q| q.error.as_ref()))),
    ]
}

/// What is and was on its way; nodes by name.
pub(crate) fn moves(moves: &[Move], name: impl Fn(NodeId) -> String) -> Columns {
    let names = |nodes: &[NodeId]| nodes.iter().map(|node| name(*node)).collect::<Vec<_>>().join(",");
    vec![
        ("move_id", counts(moves.iter().map(|m| m.id))),
        ("kind", texts(moves.iter().map(|m| m.kind.to_string()))),
        ("shard_id", counts(moves.iter().map(|m| m.shard.0.into()))),
        ("new_shard_id", perhaps_counts(moves.iter().map(|m| m.child.map(|child| child.0.into())))),
        ("from_nodes", texts(moves.iter().map(|m| names(&m.from)))),
        ("to_nodes", texts(moves.iter().map(|m| names(&m.to)))),
        ("state", texts(moves.iter().map(|m| m.state.to_string()))),
        ("started", perhaps_times(moves.iter().map(|m| m.started.map(|t| t.0)))),
        ("finished", perhaps_times(moves.iter().map(|m| m.finished.map(|t| t.0)))),
    ]
}

pub(crate) fn refused_lines(lines: &[RefusedLine]) -> Columns {
    vec![
        ("time", times(lines.iter().map(|l| l.time.0))),
        ("database", texts(lines.iter().map(|l| &l.database))),
        ("line_number", counts(lines.iter().map(|l| l.line_number))),
        ("original_line", texts(lines.iter().map(|l| &l.original_line))),
        ("error_message", texts(lines.iter().map(|l| &l.error_message))),
    ]
}

pub(crate) fn settings(settings: &[Setting]) -> Columns {
    vec![
        ("name", texts(settings.iter().map(|s| &s.name))),
        ("value", texts(settings.iter().map(|s| &s.value))),
        ("origin", texts(settings.iter().map(|s| &s.origin))),
    ]
}
