//! Plans of point questions, kept by their form: planning costs more than looking one device up (DESIGN decision 9).
//!
//! The form of a statement is its tokens without the values that tags are compared with (`device_id = '…'`), so that a
//! plan made for one device serves the next: the values are put into its filter and into what its scan prunes by. That
//! is done only once it was seen to give what planning gives: when a form comes with other values, it is planned once more,
//! and the two plans must be the same. Two examples do not prove it for a third value where planning decides by the value,
//! as for `device_id = '…' AND device_id != 'p3'`; so nothing else may be said about the tag that it is compared with.
//!
//! A plan is kept only if it says the same whenever it runs: no function that reads the clock, no parameter, no system
//! table, and only steps without memory of an earlier run (scans, filters, projections, limits). It holds no view: read
//! points are taken when it runs. It is good for one catalog version and one shard map; the pruned time span and shards
//! in it depend on nothing else.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Schema};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator, Volatility};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Literal;
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};
use datafusion::physical_plan::{ExecutionPlan, displayable};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use model::Epoch;
use parking_lot::Mutex;

use crate::prune;
use crate::scope::Scope;
use crate::shard_scan::ShardScanExec;
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

/// A statement without its device: what `tag = 'value'` compares with is taken out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    database: Arc<str>,
    /// A plan over other databases must not answer one who may see this one only.
    only: Option<Arc<str>>,
    tokens: Vec<Token>,
}

/// The values that were taken out, in their order.
pub(crate) type Values = Vec<String>;

/// Stands for a value that was taken out; no text has it.
const TAKEN_OUT: &str = "\0";

impl Form {
    /// The form of a statement and its values; `None`: it is not worth keeping.
    pub(crate) fn of(scope: &Scope, tokens: &[TokenWithSpan], sql: &str) -> Option<(Form, Values)> {
        if sql.len() > MAX_TEXT_BYTES {
            return None;
        }
        let mut form = Form { database: scope.database.clone(), only: scope.only.clone(), tokens: Vec::with_capacity(tokens.len()) };
        let mut values = Values::new();
        for token in tokens {
            let token = match (&form.tokens[..], &token.token) {
                ([.., Token::Word(_), Token::Eq], Token::SingleQuotedString(value)) => {
                    values.push(value.clone());
                    Token::Placeholder(TAKEN_OUT.to_owned())
                }
                (_, token) => token.clone(),
            };
            form.tokens.push(token);
        }
        Some((form, values))
    }
}

struct Kept {
    plan: Arc<dyn ExecutionPlan>,
    values: Values,
    /// Whether the plan of other values was found to be this one with those put in.
    proven: bool,
    catalog: u64,
    shard_map: Epoch,
}

impl Kept {
    fn holds(&self, scope: &Scope) -> bool {
        self.catalog == scope.catalog.version && self.shard_map == scope.map.epoch
    }
}

/// The plans.
#[derive(Default)]
pub(crate) struct PlanCache {
    plans: Mutex<HashMap<Form, Kept>>,
}

impl PlanCache {
    /// The plan of a form with these values, if it still holds.
    pub(crate) fn get(&self, scope: &Scope, form: &Form, values: &Values) -> Option<Arc<dyn ExecutionPlan>> {
        let (plan, from) = {
            let plans = self.plans.lock();
            let kept = plans.get(form).filter(|kept| kept.holds(scope))?;
            if kept.values == *values {
                return Some(kept.plan.clone());
            }
            if !kept.proven {
                return None;
            }
            (kept.plan.clone(), kept.values.clone())
        };
        with_values(scope, plan, &from, values)
    }

    /// Keeps a plan, if it is one that can be run again.
    pub(crate) fn keep(&self, scope: &Scope, form: Form, values: Values, logical: &LogicalPlan, plan: &Arc<dyn ExecutionPlan>) {
        if !timeless(logical) || !stateless(plan) {
            return;
        }
        let mut plans = self.plans.lock();
        if plans.len() >= KEPT {
            plans.clear();
        }
        let before = plans.get(&form).filter(|kept| kept.holds(scope) && kept.values != values);
        let proven = before.is_some_and(|kept| {
            if !compared_once(logical, &values) {
                return false;
            }
            let put_in = with_values(scope, kept.plan.clone(), &kept.values, &values);
            put_in.is_some_and(|put_in| shown(&put_in) == shown(plan))
        });
        let kept = Kept { plan: plan.clone(), values, proven, catalog: scope.catalog.version, shard_map: scope.map.epoch };
        plans.insert(form, kept);
    }
}

fn shown(plan: &Arc<dyn ExecutionPlan>) -> String {
    displayable(plan.as_ref()).indent(true).to_string()
}

/// The plan with other values, where each is compared with one tag, once in a filter and once in what its scan prunes by.
fn with_values(scope: &Scope, plan: Arc<dyn ExecutionPlan>, from: &Values, to: &Values) -> Option<Arc<dyn ExecutionPlan>> {
    // Equal values may have been simplified into each other.
    let distinct = |values: &Values| values.iter().collect::<HashSet<_>>().len() == values.len();
    if from.is_empty() || from.len() != to.len() || !distinct(from) || !distinct(to) {
        return None;
    }
    let mut put_in = PutIn { scope, from, to, filtered: vec![0; from.len()], pruned: vec![0; from.len()] };
    let plan = plan.transform_up(|step| put_in.step(step)).ok()?.data;
    (put_in.filtered.iter().all(|n| *n == 1) && put_in.pruned.iter().all(|n| *n == 1)).then_some(plan)
}

struct PutIn<'a> {
    scope: &'a Scope,
    from: &'a Values,
    to: &'a Values,
    /// How often each value was found in a filter.
    filtered: Vec<usize>,
    /// How often in what a scan prunes by.
    pruned: Vec<usize>,
}

impl PutIn<'_> {
    fn step(&mut self, step: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
        if let Some(filter) = step.downcast_ref::<FilterExec>() {
            let predicate = self.predicate(filter.predicate().clone())?;
            return Ok(Transformed::yes(Arc::new(FilterExecBuilder::from(filter).with_predicate(predicate).build()?)));
        }
        if let Some(scan) = step.downcast_ref::<ShardScanExec>() {
            return Ok(Transformed::yes(Arc::new(self.scan(scan)?)));
        }
        let mut found = false;
        step.apply_expressions(&mut |expression| {
            found |= expression.exists(|e| Ok(self.place(e).is_some()))?;
            Ok(TreeNodeRecursion::Continue)
        })?;
        match found {
            true => Err(cannot()),
            false => Ok(Transformed::no(step)),
        }
    }

    /// Which of the values an expression is.
    fn place(&self, expression: &Arc<dyn PhysicalExpr>) -> Option<usize> {
        let value = expression.downcast_ref::<Literal>()?.value().try_as_str()??;
        self.from.iter().position(|from| from == value)
    }

    fn predicate(&mut self, predicate: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        let put_in = predicate.transform_up(|expression| {
            let Some(at) = self.place(&expression) else { return Ok(Transformed::no(expression)) };
            self.filtered[at] += 1;
            let text = Some(self.to[at].clone());
            let value = match expression.data_type(&Schema::empty())? {
                DataType::Utf8 => ScalarValue::Utf8(text),
                DataType::Utf8View => ScalarValue::Utf8View(text),
                DataType::LargeUtf8 => ScalarValue::LargeUtf8(text),
                _ => return Err(cannot()),
            };
            Ok(Transformed::yes(Arc::new(Literal::new(value)) as Arc<dyn PhysicalExpr>))
        })?;
        Ok(put_in.data)
    }

    fn scan(&mut self, scan: &ShardScanExec) -> Result<ShardScanExec> {
        let mut parts = scan.parts().clone();
        for tag in &mut parts.request.tags {
            let places: Vec<usize> =
                tag.values.iter().flatten().filter_map(|value| self.from.iter().position(|from| from == value)).collect();
            match (&places[..], &mut tag.values[..]) {
                ([], _) => {}
                ([at], [value]) => {
                    self.pruned[*at] += 1;
                    *value = Some(self.to[*at].clone());
                }
                _ => return Err(cannot()),
            }
        }
        let table = &parts.request.table;
        let database = self.scope.catalog.databases.values().find(|d| d.id == table.database).ok_or_else(cannot)?;
        let all = self.scope.map.ranges.iter().map(|range| range.shard).collect();
        let shards = prune::shards_of_tags(database, table, &parts.request.tags, &self.scope.map, all);
        if shards.len() != parts.shards.len() {
            return Err(cannot());
        }
        parts.versions = self.scope.versions(&shards);
        parts.shards = shards;
        parts.rows = Vec::new();
        Ok(ShardScanExec::of(parts, self.scope.cluster.clone()))
    }
}

/// Ends an attempt to put values in; the statement is then planned.
fn cannot() -> DataFusionError {
    DataFusionError::Plan("the values cannot be put into the plan".to_owned())
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

/// Whether each value is compared with one tag, in the one filter of the one scan, and nothing else is said of that tag: then
/// nothing in the statement can decide by the value. Columns that are only shown or sorted by say nothing.
fn compared_once(plan: &LogicalPlan, values: &Values) -> bool {
    let (mut filters, mut scans) = (0, 0);
    let mut compared = Vec::new();
    let mut said: HashMap<String, usize> = HashMap::new();
    let seen = plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::TableScan(_) => scans += 1,
            LogicalPlan::Filter(filter) => {
                // Below a projection the tag may have another name.
                filters += if is_scan(&filter.input) { 1 } else { 2 };
                compared.extend(split_conjunction(&filter.predicate).into_iter().filter_map(|part| tag_of(part, values)));
            }
            _ => {}
        }
        node.apply_expressions(|expr| {
            let expr = expr.clone().unalias_nested().data;
            if !matches!(expr, Expr::Column(_)) {
                expr.apply(|part| {
                    if let Expr::Column(column) = part {
                        *said.entry(column.name.clone()).or_default() += 1;
                    }
                    Ok(TreeNodeRecursion::Continue)
                })?;
            }
            Ok(TreeNodeRecursion::Continue)
        })
    });
    seen.is_ok() && filters == 1 && scans == 1 && compared.len() == values.len() && compared.iter().all(|tag| said[tag] == 1)
}

fn is_scan(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::TableScan(_) => true,
        LogicalPlan::SubqueryAlias(alias) => is_scan(&alias.input),
        _ => false,
    }
}

/// The column of `column = 'value'`.
fn tag_of(expr: &Expr, values: &Values) -> Option<String> {
    let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) = expr else { return None };
    let (Expr::Column(column), Expr::Literal(value, _)) = (left.as_ref(), right.as_ref()) else { return None };
    values.iter().any(|v| Some(v.as_str()) == value.try_as_str().flatten()).then(|| column.name.clone())
}

fn stateless(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.exists(|step| Ok(!STATELESS.contains(&step.name()))).is_ok_and(|other| !other)
}
