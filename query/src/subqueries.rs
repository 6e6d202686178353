//! Subqueries that stand for one value and depend on nothing around them: `v > (SELECT avg(v) FROM t)`.
//!
//! A node of a cluster asks them first and plans the statement with their values. DataFusion would run them as steps beside
//! the plan, which cannot be cut into stages, or as joins, which answer several rows where there may be one.

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, LogicalPlan, Subquery};

/// All of them in a plan, those within others after these.
pub(crate) fn subqueries(plan: &LogicalPlan) -> Result<Vec<Subquery>> {
    let mut found = Vec::new();
    plan.apply_with_subqueries(|step| {
        step.apply_expressions(|expression| {
            expression.apply(|e| {
                if let Expr::ScalarSubquery(subquery) = e
                    && subquery.outer_ref_columns.is_empty()
                {
                    found.push(subquery.clone());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(found)
}

/// Their values, as far as they are known.
#[derive(Default)]
pub(crate) struct Answers(Vec<(Subquery, ScalarValue)>);

impl Answers {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn have(&self, subquery: &Subquery) -> bool {
        self.0.iter().any(|(known, _)| known == subquery)
    }

    pub(crate) fn add(&mut self, subquery: Subquery, value: ScalarValue) {
        self.0.push((subquery, value));
    }

    /// The plan with values where they were asked for; columns keep their names.
    pub(crate) fn put_into(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        if self.is_empty() {
            return Ok(plan);
        }
        let value = |e: Expr| {
            let Expr::ScalarSubquery(subquery) = &e else { return Ok(Transformed::no(e)) };
            Ok(match self.0.iter().find(|(known, _)| known == subquery) {
                Some((_, value)) => Transformed::new(Expr::Literal(value.clone(), None), true, TreeNodeRecursion::Jump),
                None => Transformed::no(e),
            })
        };
        let plan = plan.transform_down_with_subqueries(|step| {
            let names = NamePreserver::new(&step);
            step.map_expressions(|expression| {
                let name = names.save(&expression);
                Ok(expression.transform_down(value)?.update_data(|changed| name.restore(changed)))
            })
        })?;
        // A value is never NULL where a subquery may have been.
        let plan = plan.data.transform_up_with_subqueries(|step| Ok(Transformed::yes(step.recompute_schema()?)))?;
        Ok(plan.data)
    }
}
