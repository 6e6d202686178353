//! Decides which shards, which span of time and which tag values a scan must read.
//!
//! Given the filters of a scan, returns bounds that every row which can pass them lies in. It may return too much, which
//! costs time; it must never return too little, which would lose rows. The filters themselves stay above the scan, and
//! those that are not understood are ignored: new SQL functions are slow before they are fast. No IO here.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use cluster::ShardMap;
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{Between, BinaryExpr, Expr, Operator};
use model::schema::TIME_COLUMN;
use model::{ColumnId, ColumnKind, DatabaseSchema, ShardId, TableSchema, point};
use storage::TagFilter;

const DAY_NS: i128 = 86_400_000_000_000;

/// Bounds that contain every row which can pass some filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// First and last instant, both inclusive; empty if first > last.
    times: (i128, i128),
    /// Tags that must have one of these values (`None`: absent).
    tags: BTreeMap<ColumnId, BTreeSet<Option<String>>>,
}

impl Bounds {
    /// No bounds at all.
    pub(crate) fn all() -> Bounds {
        Bounds { times: (i64::MIN.into(), i64::MAX.into()), tags: BTreeMap::new() }
    }

    /// The bounds of rows that pass all of `filters`.
    pub(crate) fn of(filters: &[Expr], table: &TableSchema) -> Bounds {
        filters.iter().map(|f| bounds(f, table)).fold(Bounds::all(), Bounds::and)
    }

    /// Whether they leave anything out.
    pub(crate) fn is_all(&self) -> bool {
        *self == Bounds::all()
    }

    /// Whether no row can pass.
    pub(crate) fn is_empty(&self) -> bool {
        self.times.0 > self.times.1 || self.tags.values().any(BTreeSet::is_empty)
    }

    /// The span of time in storage's words.
    pub(crate) fn times(&self) -> RangeInclusive<i64> {
        let clamp = |t: i128| t.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        clamp(self.times.0)..=clamp(self.times.1)
    }

    /// The tag values in storage's words.
    pub(crate) fn tags(&self) -> Vec<TagFilter> {
        self.tags.iter().map(|(column, values)| TagFilter { column: *column, values: values.iter().cloned().collect() }).collect()
    }

    /// The shards among `shards` that can hold such rows.
    pub(crate) fn shards(&self, database: &DatabaseSchema, table: &TableSchema, map: &ShardMap, shards: Vec<ShardId>) -> Vec<ShardId> {
        if self.is_empty() {
            return Vec::new();
        }
        let Some(values) = table.column(&database.routing_tag).and_then(|c| self.tags.get(&c.id)) else {
            return shards;
        };
        // A series without the routing tag lies wherever the hash of its whole key says.
        let Some(values) = values.iter().map(|v| v.as_deref()).collect::<Option<Vec<&str>>>() else {
            return shards;
        };
        let owners: BTreeSet<ShardId> =
            values.into_iter().map(|v| map.range_of(point::routing_hash_of_tag(database.id, v)).shard).collect();
        shards.into_iter().filter(|s| owners.contains(s)).collect()
    }

    fn of_times(first: i128, last: i128) -> Bounds {
        Bounds { times: (first, last), ..Bounds::all() }
    }

    fn of_tag(column: ColumnId, values: impl IntoIterator<Item = Option<String>>) -> Bounds {
        Bounds { tags: BTreeMap::from([(column, values.into_iter().collect())]), ..Bounds::all() }
    }

    fn and(mut self, other: Bounds) -> Bounds {
        self.times = (self.times.0.max(other.times.0), self.times.1.min(other.times.1));
        for (column, values) in other.tags {
            match self.tags.get_mut(&column) {
                Some(mine) => mine.retain(|v| values.contains(v)),
                None => {
                    self.tags.insert(column, values);
                }
            }
        }
        self
    }

    fn or(mut self, other: Bounds) -> Bounds {
        if self.is_empty() {
            return other;
        }
        if other.is_empty() {
            return self;
        }
        self.times = (self.times.0.min(other.times.0), self.times.1.max(other.times.1));
        self.tags.retain(|column, _| other.tags.contains_key(column));
        for (column, values) in &mut self.tags {
            values.extend(other.tags[column].iter().cloned());
        }
        self
    }
}

/// The shards that can hold rows with these tag values.
pub(crate) fn shards_of_tags(
    database: &DatabaseSchema,
    table: &TableSchema,
    tags: &[TagFilter],
    map: &ShardMap,
    shards: Vec<ShardId>,
) -> Vec<ShardId> {
    let tags = tags.iter().map(|tag| (tag.column, tag.values.iter().cloned().collect())).collect();
    Bounds { tags, ..Bounds::all() }.shards(database, table, map, shards)
}

/// Whether a filter bounds anything, so that it is worth giving to the scan.
pub(crate) fn understands(filter: &Expr, table: &TableSchema) -> bool {
    !bounds(filter, table).is_all()
}

fn bounds(filter: &Expr, table: &TableSchema) -> Bounds {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match op {
            Operator::And => bounds(left, table).and(bounds(right, table)),
            Operator::Or => bounds(left, table).or(bounds(right, table)),
            _ => comparison(left, *op, right, table).or_else(|| comparison(right, op.swap()?, left, table)).unwrap_or_else(Bounds::all),
        },
        Expr::Between(Between { expr, negated: false, low, high }) => {
            let low = comparison(expr, Operator::GtEq, low, table).unwrap_or_else(Bounds::all);
            low.and(comparison(expr, Operator::LtEq, high, table).unwrap_or_else(Bounds::all))
        }
        Expr::InList(InList { expr, list, negated: false }) => {
            // One value that is not understood may be any value.
            let each = list.iter().map(|v| comparison(expr, Operator::Eq, v, table));
            match each.collect::<Option<Vec<Bounds>>>() {
                Some(each) if !each.is_empty() => each.into_iter().reduce(Bounds::or).unwrap_or_else(Bounds::all),
                _ => Bounds::all(),
            }
        }
        Expr::IsNull(expr) => match tag(expr, table) {
            Some(column) => Bounds::of_tag(column, [None]),
            None => Bounds::all(),
        },
        Expr::Alias(alias) => bounds(&alias.expr, table),
        Expr::Literal(ScalarValue::Boolean(Some(false)), _) => Bounds::of_times(1, 0),
        _ => Bounds::all(),
    }
}

/// `column op literal`, if it is one that bounds something.
fn comparison(column: &Expr, op: Operator, value: &Expr, table: &TableSchema) -> Option<Bounds> {
    let value = literal(value)?;
    if value.is_null() {
        // A comparison with null is never true; but `IS NOT DISTINCT FROM` is, and comes here too.
        return (op == Operator::Eq).then(|| Bounds::of_times(1, 0));
    }
    if let Some(column) = tag(column, table) {
        return match op {
            Operator::Eq => Some(Bounds::of_tag(column, [Some(text(value)?)])),
            _ => None,
        };
    }
    let grain = time_grain(column)?;
    let at = instant(value)?;
    // With a coarser grain the column's value stands for instants up to one grain away, on either side of 1970.
    let (first, last) = (at - grain, at + grain);
    Some(match op {
        Operator::Eq => Bounds::of_times(first, last),
        Operator::Gt if grain == 0 => Bounds::of_times(last + 1, i64::MAX.into()),
        Operator::Lt if grain == 0 => Bounds::of_times(i64::MIN.into(), first - 1),
        Operator::Gt | Operator::GtEq => Bounds::of_times(first, i64::MAX.into()),
        Operator::Lt | Operator::LtEq => Bounds::of_times(i64::MIN.into(), last),
        _ => return None,
    })
}

/// The tag that an expression is, casts between text types aside.
fn tag(expr: &Expr, table: &TableSchema) -> Option<ColumnId> {
    match expr {
        Expr::Column(column) => table.column(&column.name).filter(|c| matches!(c.kind, ColumnKind::Tag { .. })).map(|c| c.id),
        Expr::Cast(cast) if is_text(cast.field.data_type()) => tag(&cast.expr, table),
        Expr::Alias(alias) => tag(&alias.expr, table),
        _ => None,
    }
}

/// The nanoseconds that one value of an expression over the time column stands for (0: exact), if it is such an expression.
fn time_grain(expr: &Expr) -> Option<i128> {
    match expr {
        Expr::Column(column) => (column.name == TIME_COLUMN).then_some(0),
        Expr::Cast(cast) => {
            let inner = time_grain(&cast.expr)?;
            let outer = match cast.field.data_type() {
                DataType::Timestamp(unit, zone) if zone.as_deref().is_none_or(is_utc) => match unit {
                    TimeUnit::Nanosecond => 0,
                    TimeUnit::Microsecond => 1_000,
                    TimeUnit::Millisecond => 1_000_000,
                    TimeUnit::Second => 1_000_000_000,
                },
                DataType::Date32 | DataType::Date64 => DAY_NS,
                _ => return None,
            };
            Some(inner.max(outer))
        }
        Expr::Alias(alias) => time_grain(&alias.expr),
        _ => None,
    }
}

fn literal(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::Literal(value, _) => Some(value),
        Expr::Alias(alias) => literal(&alias.expr),
        _ => None,
    }
}

fn text(value: &ScalarValue) -> Option<String> {
    match value {
        ScalarValue::Utf8(Some(s)) | ScalarValue::Utf8View(Some(s)) | ScalarValue::LargeUtf8(Some(s)) => Some(s.clone()),
        ScalarValue::Dictionary(_, inner) => text(inner),
        _ => None,
    }
}

/// The nanosecond that a literal stands for.
fn instant(value: &ScalarValue) -> Option<i128> {
    let (zone, at) = match value {
        ScalarValue::TimestampNanosecond(Some(t), zone) => (zone, i128::from(*t)),
        ScalarValue::TimestampMicrosecond(Some(t), zone) => (zone, i128::from(*t) * 1_000),
        ScalarValue::TimestampMillisecond(Some(t), zone) => (zone, i128::from(*t) * 1_000_000),
        ScalarValue::TimestampSecond(Some(t), zone) => (zone, i128::from(*t) * 1_000_000_000),
        ScalarValue::Date32(Some(days)) => (&None, i128::from(*days) * DAY_NS),
        ScalarValue::Date64(Some(ms)) => (&None, i128::from(*ms) * 1_000_000),
        _ => return None,
    };
    zone.as_deref().is_none_or(is_utc).then_some(at)
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_utc(zone: &str) -> bool {
    matches!(zone, "+00:00" | "UTC" | "Z" | "+00" | "Etc/UTC")
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::datatypes::DataType;
    use datafusion::logical_expr::{cast, col, in_list, lit};
    use model::schema::NewColumn;
    use model::{ColumnType, DatabaseId, TableId};

    use super::*;

    fn table() -> TableSchema {
        let mut table = TableSchema::new(TableId(1), DatabaseId(1), "phone".into());
        for (name, field) in [("device_id", None), ("os", None), ("v", Some(ColumnType::F64))] {
            table.add(&NewColumn { name: name.into(), field }, "device_id", 100).unwrap();
        }
        table
    }

    fn at(t: i64) -> Expr {
        lit(ScalarValue::TimestampNanosecond(Some(t), None))
    }

    fn times(filter: Expr) -> RangeInclusive<i64> {
        Bounds::of(&[filter], &table()).times()
    }

    fn devices(filter: Expr) -> Option<Vec<Option<String>>> {
        let bounds = Bounds::of(&[filter], &table());
        bounds.tags().into_iter().find(|t| t.column == ColumnId(0)).map(|t| t.values)
    }

    fn some(names: &[&str]) -> Option<Vec<Option<String>>> {
        Some(names.iter().map(|n| Some((*n).to_owned())).collect())
    }

    #[test]
    fn comparisons_with_time_bound_it_exactly() {
        let (min, max) = (i64::MIN, i64::MAX);
        for (filter, span) in [
            (col("time").eq(at(5)), 5..=5),
            (col("time").gt(at(5)), 6..=max),
            (col("time").gt_eq(at(5)), 5..=max),
            (col("time").lt(at(5)), min..=4),
            (col("time").lt_eq(at(5)), min..=5),
            (at(5).lt(col("time")), 6..=max),
            (at(5).gt_eq(col("time")), min..=5),
            (col("time").between(at(3), at(7)), 3..=7),
            (col("time").not_between(at(3), at(7)), min..=max),
            (col("time").not_eq(at(3)), min..=max),
            (in_list(col("time"), vec![at(9), at(3), at(5)], false), 3..=9),
            (in_list(col("time"), vec![at(9)], true), min..=max),
            (col("time").gt(at(3)).and(col("time").lt(at(9))), 4..=8),
            (col("time").eq(at(3)).or(col("time").eq(at(9))), 3..=9),
            (col("time").eq(at(3)).or(col("v").eq(lit(1.0))), min..=max),
            (col("time").lt(at(i64::MIN)).or(col("time").eq(at(9))), 9..=9),
        ] {
            assert_eq!(times(filter.clone()), span, "{filter}");
        }
    }

    #[test]
    fn coarser_times_bound_it_with_a_margin() {
        let second = 1_000_000_000;
        let seconds = || cast(col("time"), DataType::Timestamp(TimeUnit::Second, None));
        let value = lit(ScalarValue::TimestampSecond(Some(100), None));
        assert_eq!(times(seconds().eq(value.clone())), 99 * second..=101 * second);
        assert_eq!(times(seconds().gt(value.clone())), 99 * second..=i64::MAX);
        assert_eq!(times(seconds().lt_eq(value)), i64::MIN..=101 * second);
        let day = 86_400 * second;
        let date = cast(col("time"), DataType::Date32);
        assert_eq!(times(date.eq(lit(ScalarValue::Date32(Some(10))))), 9 * day..=11 * day);
    }

    #[test]
    fn a_time_in_another_zone_bounds_nothing() {
        let berlin = || Some("Europe/Berlin".into());
        let cast = cast(col("time"), DataType::Timestamp(TimeUnit::Nanosecond, berlin()));
        assert_eq!(times(cast.eq(lit(ScalarValue::TimestampNanosecond(Some(5), berlin())))), i64::MIN..=i64::MAX);
        let utc = lit(ScalarValue::TimestampNanosecond(Some(5), Some("+00:00".into())));
        assert_eq!(times(col("time").eq(utc)), 5..=5);
    }

    #[test]
    fn tags_are_bound_by_equality_only() {
        for (filter, values) in [
            (col("device_id").eq(lit("a")), some(&["a"])),
            (lit("a").eq(col("device_id")), some(&["a"])),
            (in_list(col("device_id"), vec![lit("b"), lit("a")], false), some(&["a", "b"])),
            (in_list(col("device_id"), vec![lit("b"), lit(ScalarValue::Utf8(None))], false), some(&["b"])),
            (in_list(col("device_id"), vec![lit("b"), col("os")], false), None),
            (in_list(col("device_id"), vec![lit("a")], true), None),
            (col("device_id").is_null(), Some(vec![None])),
            (col("device_id").is_not_null(), None),
            (col("device_id").not_eq(lit("a")), None),
            (col("device_id").gt(lit("a")), None),
            (col("device_id").eq(lit("a")).or(col("device_id").eq(lit("b"))), some(&["a", "b"])),
            (col("device_id").eq(lit("a")).or(col("os").eq(lit("b"))), None),
            (col("device_id").eq(lit("a")).and(col("v").gt(lit(1.0))), some(&["a"])),
            (col("device_id").eq(lit("a")).and(col("device_id").eq(lit("b"))), some(&[])),
            (cast(col("device_id"), DataType::Utf8).eq(lit("a")), some(&["a"])),
            (col("v").eq(lit(1.0)), None),
        ] {
            assert_eq!(devices(filter.clone()), values, "{filter}");
        }
    }

    #[test]
    fn keeps_every_shard_that_matches() {
        let table = table();
        let database = DatabaseSchema {
            id: DatabaseId(1),
            name: "home".into(),
            routing_tag: "device_id".into(),
            retention_ns: None,
            tables: Default::default(),
        };
        let map = ShardMap::even(8);
        let all: Vec<ShardId> = (0..8).map(ShardId).collect();
        let shards = |filter: Expr| Bounds::of(&[filter], &table).shards(&database, &table, &map, all.clone());
        for device in ["a", "b", "pump-17", "é"] {
            let owner = map.range_of(point::routing_hash_of_tag(database.id, device)).shard;
            assert_eq!(shards(col("device_id").eq(lit(device))), [owner]);
        }
        assert_eq!(shards(col("device_id").is_null()), all, "a series without device may be anywhere");
        assert_eq!(shards(col("device_id").is_null().or(col("device_id").eq(lit("a")))), all);
        assert_eq!(shards(col("os").eq(lit("a"))), all);
        assert_eq!(shards(col("time").gt(at(5))), all);
        assert!(shards(col("device_id").eq(lit("a")).and(col("device_id").eq(lit("b")))).is_empty());
        assert!(shards(col("time").gt(at(5)).and(col("time").lt(at(5)))).is_empty());
    }
}
