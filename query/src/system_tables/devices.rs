//! `system.devices`: every device of the database, when it was first and last seen, and how many rows it has over all
//! tables. It reads them all: on large databases filter by `device_id`, which then reads that device's shard only.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::catalog::view::ViewTable;
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::{Column, Result};
use datafusion::datasource::provider_as_source;
use datafusion::functions_aggregate::expr_fn::{count, max, min, sum};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, lit};
use model::schema::TIME_COLUMN;

use crate::scope::Scope;
use crate::table::{Table, Which};

/// The tables' devices, put together.
pub(crate) fn view(scope: &Scope) -> Result<Arc<dyn TableProvider>> {
    let Some(database) = scope.catalog.database(&scope.database) else { return empty() };
    let named = |name: &str| Expr::Column(Column::new_unqualified(name));
    let mut all: Option<LogicalPlanBuilder> = None;
    for (i, table) in database.tables.values().enumerate() {
        if !table.column(&database.routing_tag).is_some_and(|c| matches!(c.kind, model::ColumnKind::Tag { .. })) {
            continue;
        }
        let source = provider_as_source(Arc::new(Table::new(database.clone(), table.clone(), Which::Every)));
        // Each table is counted by itself, in the order in which its rows lie, before they are put together.
        let one = LogicalPlanBuilder::scan(format!("t{i}"), source, None)?
            .aggregate(
                vec![named(&database.routing_tag).alias("device_id")],
                vec![min(named(TIME_COLUMN)).alias("first_seen"), max(named(TIME_COLUMN)).alias("last_seen"), count(lit(1)).alias("rows")],
            )?
            .project(["device_id", "first_seen", "last_seen", "rows"].map(named))?;
        all = Some(match all {
            None => one,
            Some(before) => before.union(one.build()?)?,
        });
    }
    let Some(all) = all else { return empty() };
    let plan = all
        .filter(named("device_id").is_not_null())?
        .aggregate(
            vec![named("device_id")],
            vec![
                min(named("first_seen")).alias("first_seen"),
                max(named("last_seen")).alias("last_seen"),
                sum(named("rows")).alias("rows"),
            ],
        )?
        .build()?;
    Ok(Arc::new(ViewTable::new(plan, None)))
}

fn empty() -> Result<Arc<dyn TableProvider>> {
    let time = DataType::Timestamp(TimeUnit::Nanosecond, None);
    let schema = Schema::new(vec![
        Field::new("device_id", DataType::Utf8View, true),
        Field::new("first_seen", time.clone(), true),
        Field::new("last_seen", time, true),
        Field::new("rows", DataType::Int64, true),
    ]);
    Ok(Arc::new(MemTable::try_new(Arc::new(schema), vec![vec![]])?))
}
