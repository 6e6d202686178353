//! Plans of point questions, kept by their text: planning costs more than looking one device up (DESIGN decision 9).
//!
//! A plan is kept only if it says the same whenever it runs: no function that reads the clock, no parameter, no system
//! table, and only steps without memory of an earlier run (scans, filters, projections, limits). It holds no view: read
//! points are taken when it runs. It is good for one catalog version and one shard map; the pruned time span and shards
//! in it depend on nothing else.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::physical_plan::ExecutionPlan;
use model::Epoch;
use parking_lot::Mutex;

use crate::scope::Scope;
use crate::table::Table;

/// Plans kept; beyond that all are forgotten, which costs each one planning.
const KEPT: usize = 1_024;
/// Bytes of a text that is worth keeping.
const MAX_TEXT_BYTES: usize = 4_096;
/// Steps without memory of an earlier run, or that forget it when their state is reset.
const STATELESS: [&str; 11] = [
    "ShardScanExec",
    "FilterExec",
    "ProjectionExec",
    "RepartitionExec",
    "CoalesceBatchesExec",
    "CoalescePartitionsExec",
    "CooperativeExec",
    "GlobalLimitExec",
    "LocalLimitExec",
    "SortPreservingMergeExec",
    "EmptyExec",
];

#[derive(PartialEq, Eq, Hash)]
struct Key {
    database: Arc<str>,
    /// A plan over other databases must not answer one who may see this one only.
    only: Option<Arc<str>>,
    sql: String,
}

impl Key {
    fn of(scope: &Scope, sql: &str) -> Key {
        Key { database: scope.database.clone(), only: scope.only.clone(), sql: sql.to_owned() }
    }
}

struct Kept {
    plan: Arc<dyn ExecutionPlan>,
    catalog: u64,
    shard_map: Epoch,
}

/// The plans.
#[derive(Default)]
pub(crate) struct PlanCache {
    plans: Mutex<HashMap<Key, Kept>>,
}

impl PlanCache {
    /// The plan of this text, if it still holds.
    pub(crate) fn get(&self, scope: &Scope, sql: &str) -> Option<Arc<dyn ExecutionPlan>> {
        let key = Key::of(scope, sql);
        let plans = self.plans.lock();
        let kept = plans.get(&key)?;
        let holds = kept.catalog == scope.catalog.version && kept.shard_map == scope.cluster.shard_map().epoch;
        holds.then(|| kept.plan.clone())
    }

    /// Keeps a plan, if it is one that can be run again.
    pub(crate) fn keep(&self, scope: &Scope, sql: &str, logical: &LogicalPlan, plan: &Arc<dyn ExecutionPlan>) {
        if sql.len() > MAX_TEXT_BYTES || !timeless(logical) || !stateless(plan) {
            return;
        }
        let mut plans = self.plans.lock();
        if plans.len() >= KEPT {
            plans.clear();
        }
        let key = Key::of(scope, sql);
        let kept = Kept { plan: plan.clone(), catalog: scope.catalog.version, shard_map: scope.cluster.shard_map().epoch };
        plans.insert(key, kept);
    }
}

/// Whether the plan reads our tables only and calls no function that answers differently another time.
fn timeless(plan: &LogicalPlan) -> bool {
    let mut timeless = true;
    let seen = plan.apply_with_subqueries(|node| {
        timeless &= match node {
            LogicalPlan::TableScan(scan) => {
                source_as_provider(&scan.source).is_ok_and(|p| (p.as_ref() as &dyn std::any::Any).is::<Table>())
            }
            LogicalPlan::Explain(_) | LogicalPlan::Analyze(_) | LogicalPlan::DescribeTable(_) => false,
            _ => true,
        };
        node.apply_expressions(|expr| {
            timeless &=
                !expr.exists(|e| Ok(matches!(e, Expr::ScalarFunction(f) if f.func.signature().volatility != Volatility::Immutable)))?;
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(if timeless { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    timeless && seen.is_ok()
}

fn stateless(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.exists(|step| Ok(!STATELESS.contains(&step.name()))).is_ok_and(|other| !other)
}
