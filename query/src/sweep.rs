//! `ORDER BY time DESC LIMIT n` and `max(time)` without reading all history.
//!
//! DataFusion's TopK tells the scans below it, through a filter that changes while it runs, which times can still be
//! among its rows. [`Sweeping`] finds scans whose reader does not care about their order and has them read time span by
//! time span from the wanted end ([`storage::scan::Sweep`]); before each span [`Wanted`] asks the filter whether anything of it can
//! still count. Time prunes below the merge, nothing else does (DESIGN rule 1). A filter that is not understood
//! prunes nothing.

use std::ops::RangeInclusive;
use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, IsNullExpr, Literal};
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr_common::physical_expr::snapshot_physical_expr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ChildrenPropertiesMode, ExecutionPlan, Partitioning, ReplaceChildrenOptions};
use storage::scan::Sweep;

use crate::shard_scan::ShardScanExec;

/// The optimizer rule. It must run before DataFusion links changing filters to the scans, which a change of the plan would cut.
#[derive(Debug)]
pub(crate) struct Sweeping;

impl PhysicalOptimizerRule for Sweeping {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = plan.transform_up(|step| {
            let Some((column, sweep)) = wanted_end(&step) else { return Ok(Transformed::no(step)) };
            let input = step.children()[0].clone();
            match swept(&input, column, sweep)? {
                Some(input) => with_input(step, input).map(Transformed::yes),
                None => Ok(Transformed::no(step)),
            }
        })?;
        Ok(plan.data)
    }

    fn name(&self) -> &str {
        "Sweeping"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn with_input(step: Arc<dyn ExecutionPlan>, input: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    step.replace_children(vec![input], ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
}

/// The input column whose first or last values are all that a step wants, and which.
fn wanted_end(step: &Arc<dyn ExecutionPlan>) -> Option<(usize, Sweep)> {
    if let Some(sort) = step.downcast_ref::<SortExec>() {
        sort.fetch()?;
        let first = sort.expr().first();
        let column = first.expr.downcast_ref::<Column>()?;
        return Some((column.index(), if first.options.descending { Sweep::Newest } else { Sweep::Oldest }));
    }
    let aggregate = step.downcast_ref::<AggregateExec>()?;
    let [only] = aggregate.aggr_expr() else { return None };
    if !aggregate.group_expr().is_empty() {
        return None;
    }
    let [argument] = &only.expressions()[..] else { return None };
    let column = argument.downcast_ref::<Column>()?.index();
    match only.fun().name() {
        "max" => Some((column, Sweep::Newest)),
        "min" => Some((column, Sweep::Oldest)),
        _ => None,
    }
}

/// The input with a sweeping scan, if the column is the time of one and no step between depends on the scan's order.
fn swept(step: &Arc<dyn ExecutionPlan>, column: usize, sweep: Sweep) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    if let Some(scan) = step.downcast_ref::<ShardScanExec>() {
        return Ok(scan.sweeping(column, sweep).map(|scan| Arc::new(scan) as Arc<dyn ExecutionPlan>));
    }
    let column = if let Some(projection) = step.downcast_ref::<ProjectionExec>() {
        match projection.expr()[column].expr.downcast_ref::<Column>() {
            Some(column) => column.index(),
            None => return Ok(None),
        }
    } else if let Some(filter) = step.downcast_ref::<FilterExec>() {
        filter.projection().as_ref().map_or(column, |p| p[column])
    } else if step.downcast_ref::<RepartitionExec>().is_some_and(|r| matches!(r.partitioning(), Partitioning::RoundRobinBatch(_))) {
        // It would read ahead of a reader who may have enough.
        return swept(step.children()[0], column, sweep);
    } else if step.is::<CooperativeExec>() || step.downcast_ref::<CoalescePartitionsExec>().is_some_and(|c| c.fetch().is_none()) {
        column
    } else {
        return Ok(None);
    };
    let Some(input) = swept(step.children()[0], column, sweep)? else { return Ok(None) };
    Ok(Some(match step.downcast_ref::<FilterExec>() {
        // It gives what passed at once, instead of waiting for a whole batch of it.
        Some(filter) => Arc::new(FilterExecBuilder::from(filter).with_input(input).with_batch_size(1).build()?),
        None => with_input(step.clone(), input)?,
    }))
}

/// Which times the steps above a scan can still use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// Filters over the scan's columns that change while the query runs.
    filters: Vec<Arc<dyn PhysicalExpr>>,
}

impl Wanted {
    pub(crate) fn new(filters: Vec<Arc<dyn PhysicalExpr>>) -> Wanted {
        Wanted { filters }
    }

    pub(crate) fn filters(&self) -> &[Arc<dyn PhysicalExpr>] {
        &self.filters
    }

    /// Whether a filter looks at the column, so that it may leave out times some day.
    pub(crate) fn looks_at(&self, column: usize) -> bool {
        self.filters.iter().any(|f| collect_columns(f).iter().any(|c| c.index() == column))
    }

    /// Every time outside is of no use any more, where the time is this column.
    pub(crate) fn times(&self, column: usize) -> Result<RangeInclusive<i64>> {
        let mut bounds = ALL;
        for filter in &self.filters {
            bounds = and(bounds, times(&snapshot_physical_expr(filter.clone())?, column));
        }
        Ok(bounds.0..=bounds.1)
    }
}

/// First and last instant; empty if first > last.
type Times = (i64, i64);
const ALL: Times = (i64::MIN, i64::MAX);
const NONE: Times = (i64::MAX, i64::MIN);

fn and(a: Times, b: Times) -> Times {
    (a.0.max(b.0), a.1.min(b.1))
}

fn or(a: Times, b: Times) -> Times {
    match (a.0 > a.1, b.0 > b.1) {
        (true, _) => b,
        (_, true) => a,
        _ => (a.0.min(b.0), a.1.max(b.1)),
    }
}

/// Bounds of the times for which the filter can be true.
fn times(filter: &Arc<dyn PhysicalExpr>, column: usize) -> Times {
    let is_time = |e: &Arc<dyn PhysicalExpr>| e.downcast_ref::<Column>().is_some_and(|c| c.index() == column);
    if let Some(binary) = filter.downcast_ref::<BinaryExpr>() {
        let (left, right) = (binary.left(), binary.right());
        return match binary.op() {
            Operator::And => and(times(left, column), times(right, column)),
            Operator::Or => or(times(left, column), times(right, column)),
            op if is_time(left) => instant(right).map_or(ALL, |at| compared(*op, at)),
            op if is_time(right) => instant(left).zip(op.swap()).map_or(ALL, |(at, op)| compared(op, at)),
            _ => ALL,
        };
    }
    if let Some(literal) = filter.downcast_ref::<Literal>()
        && *literal.value() == ScalarValue::Boolean(Some(false))
    {
        return NONE;
    }
    // A row's time is never null.
    if filter.downcast_ref::<IsNullExpr>().is_some_and(|e| is_time(e.arg())) {
        return NONE;
    }
    ALL
}

fn compared(op: Operator, at: i64) -> Times {
    match op {
        Operator::Eq => (at, at),
        Operator::Gt => at.checked_add(1).map_or(NONE, |first| (first, i64::MAX)),
        Operator::GtEq => (at, i64::MAX),
        Operator::Lt => at.checked_sub(1).map_or(NONE, |last| (i64::MIN, last)),
        Operator::LtEq => (i64::MIN, at),
        _ => ALL,
    }
}

fn instant(literal: &Arc<dyn PhysicalExpr>) -> Option<i64> {
    match literal.downcast_ref::<Literal>()?.value() {
        ScalarValue::TimestampNanosecond(at, _) => *at,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::physical_expr::expressions::{binary, col, is_null, lit};
    use storage::scan::arrow_schema;

    use super::*;

    #[test]
    fn a_filter_bounds_times_only_where_it_is_understood() {
        let table = model::TableSchema::new(model::TableId(1), model::DatabaseId(1), "phone".into());
        let schema = arrow_schema(&table);
        let time = || col("time", &schema).unwrap();
        let at = |t: i64| lit(ScalarValue::TimestampNanosecond(Some(t), None));
        let compare = |op, t| binary(time(), op, at(t), &schema).unwrap();
        let cases: Vec<(Arc<dyn PhysicalExpr>, Times)> = vec![
            (lit(true), ALL),
            (lit(false), NONE),
            (compare(Operator::Gt, 5), (6, i64::MAX)),
            (compare(Operator::LtEq, 5), (i64::MIN, 5)),
            (binary(at(5), Operator::Lt, time(), &schema).unwrap(), (6, i64::MAX)),
            (compare(Operator::Gt, i64::MAX), NONE),
            (compare(Operator::NotEq, 5), ALL),
            (binary(compare(Operator::Gt, 5), Operator::Or, is_null(time()).unwrap(), &schema).unwrap(), (6, i64::MAX)),
            (binary(compare(Operator::Gt, 5), Operator::Or, compare(Operator::Eq, 5), &schema).unwrap(), (5, i64::MAX)),
            (binary(compare(Operator::Gt, 5), Operator::And, compare(Operator::Lt, 9), &schema).unwrap(), (6, 8)),
            (binary(compare(Operator::Gt, 5), Operator::Or, lit(true), &schema).unwrap(), ALL),
        ];
        for (filter, expected) in cases {
            assert_eq!(times(&filter, 0), expected, "{filter}");
            assert_eq!(times(&filter, 1), if expected == NONE && filter.is::<Literal>() { NONE } else { ALL }, "another column: {filter}");
        }
    }
}
