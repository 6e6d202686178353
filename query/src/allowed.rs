//! May this plan run? Only what reads: every kind of plan that is not listed here is refused.
//!
//! Nothing that writes, changes settings or touches the server's files gets through (`COPY`, `CREATE EXTERNAL TABLE`,
//! `INSERT`, `SET`, `PREPARE`), alone or inside of EXPLAIN. Tables named by a path do not exist: no url tables are
//! enabled and no file system is registered.

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;

use crate::Result;
use crate::error::Error;

/// Refuses a plan with anything in it that is not allowed.
pub(crate) fn check(plan: &LogicalPlan) -> Result<()> {
    let mut refused = None;
    plan.apply_with_subqueries(|node| {
        let what = match node {
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::Window(_)
            | LogicalPlan::Aggregate(_)
            | LogicalPlan::Sort(_)
            | LogicalPlan::Join(_)
            | LogicalPlan::Repartition(_)
            | LogicalPlan::Union(_)
            | LogicalPlan::TableScan(_)
            | LogicalPlan::EmptyRelation(_)
            | LogicalPlan::Subquery(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Limit(_)
            | LogicalPlan::Values(_)
            | LogicalPlan::Explain(_)
            | LogicalPlan::Analyze(_)
            | LogicalPlan::Distinct(_)
            | LogicalPlan::DescribeTable(_)
            | LogicalPlan::Unnest(_)
            | LogicalPlan::RecursiveQuery(_) => return Ok(TreeNodeRecursion::Continue),
            LogicalPlan::Statement(statement) => statement.name().to_owned(),
            LogicalPlan::Dml(dml) => dml.op.to_string(),
            LogicalPlan::Ddl(ddl) => ddl.name().to_owned(),
            LogicalPlan::Copy(_) => "COPY".to_owned(),
            LogicalPlan::Extension(extension) => extension.node.name().to_owned(),
        };
        refused = Some(what);
        Ok(TreeNodeRecursion::Stop)
    })?;
    match refused {
        Some(what) => Err(refuse(&what)),
        None => Ok(()),
    }
}

/// The error for a statement that is not allowed.
pub(crate) fn refuse(what: &str) -> Error {
    Error::Refused {
        what: what.to_owned(),
        instead: "SQL reads here; points are written as line protocol to /write, /api/v2/write or /api/v3/write_lp".to_owned(),
    }
}
