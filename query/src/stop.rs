//! When a query must end, and that it does: even a step that computes without ever yielding.
//!
//! DataFusion's steps yield between batches, and a query that yields is ended by whoever polls it. Two kinds of step do
//! not: one that makes many batches from one (a join) feeding one that keeps them all (an aggregate), and a join whose
//! filter lets nothing through. [`stoppable`] has joins take part in cooperative scheduling, and puts a [`Checked`]
//! around their filters, which asks before every evaluation. A filter that keeps its thread for long hands the other
//! tasks of that thread to another one, so that queries beside it go on.
//!
//! Not stopped before it is done: one call of one function on one batch, and a window function over one long frame.

use std::cell::Cell;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr_common::physical_expr::proto_encode::PhysicalExprEncodeCtx;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, NestedLoopJoinExecBuilder, PiecewiseMergeJoinExec, SortMergeJoinExec,
};
use datafusion_proto::protobuf::PhysicalExprNode;

use crate::error::Error;

/// How long a filter may keep a thread before the thread's other tasks go elsewhere.
const THREAD_HELD: Duration = Duration::from_millis(10);

const RUNNING: u8 = 0;
const KILLED: u8 = 1;
const UNWANTED: u8 = 2;

/// Until when a query may run; asked from any thread.
#[derive(Debug)]
pub(crate) struct Stop {
    id: u64,
    state: AtomicU8,
    at: Instant,
    after: Duration,
}

impl Stop {
    /// The end of query `id`, which begins now.
    pub(crate) fn after(id: u64, after: Duration) -> Arc<Stop> {
        Arc::new(Stop { id, state: AtomicU8::new(RUNNING), at: Instant::now() + after, after })
    }

    /// When its deadline passes.
    pub(crate) fn deadline(&self) -> Instant {
        self.at
    }

    /// How long it may still run.
    pub(crate) fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// The error of a query that is past its deadline.
    pub(crate) fn overdue(&self) -> Error {
        Error::Deadline { after: self.after }
    }

    /// The error of a query that was killed.
    pub(crate) fn killed(&self) -> Error {
        Error::Killed { id: self.id }
    }

    /// Somebody killed it.
    pub(crate) fn kill(&self) {
        self.state.store(KILLED, Ordering::Relaxed);
    }

    /// Nobody waits for it any more.
    pub(crate) fn abandon(&self) {
        let _ = self.state.compare_exchange(RUNNING, UNWANTED, Ordering::Relaxed, Ordering::Relaxed); // A kill stays a kill.
    }

    /// Whether it may go on.
    pub(crate) fn check(&self) -> std::result::Result<(), Error> {
        match self.state.load(Ordering::Relaxed) {
            KILLED => Err(self.killed()),
            UNWANTED => Err(Error::ShuttingDown),
            _ if Instant::now() >= self.at => Err(self.overdue()),
            _ => Ok(()),
        }
    }
}

/// The plan with steps that can be stopped.
pub(crate) fn stoppable(plan: Arc<dyn ExecutionPlan>, stop: &Arc<Stop>) -> Result<Arc<dyn ExecutionPlan>> {
    let plan = checked(plan, stop)?.transform_up(|step| {
        let joins = step.is::<NestedLoopJoinExec>()
            || step.is::<HashJoinExec>()
            || step.is::<SortMergeJoinExec>()
            || step.is::<CrossJoinExec>()
            || step.is::<PiecewiseMergeJoinExec>();
        Ok(match joins {
            true => Transformed::yes(Arc::new(CooperativeExec::new(step)) as Arc<dyn ExecutionPlan>),
            false => Transformed::no(step),
        })
    })?;
    Ok(plan.data)
}

/// The same steps, with filters of joins that ask whether the query may go on. They lose that on their way to another
/// node, which gives it to them anew.
pub(crate) fn checked(plan: Arc<dyn ExecutionPlan>, stop: &Arc<Stop>) -> Result<Arc<dyn ExecutionPlan>> {
    let checked = |filter: &JoinFilter| {
        let expression = Arc::new(Checked { inner: filter.expression().clone(), stop: stop.clone() });
        JoinFilter::new(expression, filter.column_indices().to_vec(), filter.schema().clone())
    };
    let plan = plan.transform_up(|step| {
        let join: Arc<dyn ExecutionPlan> = if let Some(join) = step.downcast_ref::<NestedLoopJoinExec>() {
            let Some(filter) = join.filter() else { return Ok(Transformed::no(step)) };
            Arc::new(NestedLoopJoinExecBuilder::from(join).with_filter(Some(checked(filter))).build()?)
        } else if let Some(join) = step.downcast_ref::<HashJoinExec>() {
            let Some(filter) = join.filter() else { return Ok(Transformed::no(step)) };
            join.builder().with_filter(Some(checked(filter))).build_exec()?
        } else if let Some(join) = step.downcast_ref::<SortMergeJoinExec>() {
            let Some(filter) = join.filter() else { return Ok(Transformed::no(step)) };
            Arc::new(SortMergeJoinExec::try_new(
                join.left().clone(),
                join.right().clone(),
                join.on().to_vec(),
                Some(checked(filter)),
                join.join_type(),
                join.sort_options().to_vec(),
                join.null_equality(),
            )?)
        } else {
            return Ok(Transformed::no(step));
        };
        Ok(Transformed::yes(join))
    })?;
    Ok(plan.data)
}

/// A filter that asks whether the query may go on before it looks at a batch.
#[derive(Debug)]
struct Checked {
    inner: Arc<dyn PhysicalExpr>,
    stop: Arc<Stop>,
}

thread_local! {
    /// When a filter on this thread last gave the thread's other tasks away.
    static HANDED_ON: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Gives this thread's other tasks to another thread, if that was not done just now.
fn hand_on() {
    let now = Instant::now();
    if HANDED_ON.get().is_none_or(|at| now - at >= THREAD_HELD) {
        HANDED_ON.set(Some(now));
        tokio::task::block_in_place(|| ());
    }
}

impl PhysicalExpr for Checked {
    fn data_type(&self, input: &Schema) -> Result<DataType> {
        self.inner.data_type(input)
    }

    fn nullable(&self, input: &Schema) -> Result<bool> {
        self.inner.nullable(input)
    }

    fn return_field(&self, input: &Schema) -> Result<FieldRef> {
        self.inner.return_field(input)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        self.stop.check().map_err(Error::inside)?;
        hand_on();
        self.inner.evaluate(batch)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.inner]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        Ok(Arc::new(Checked { inner: children.swap_remove(0), stop: self.stop.clone() }))
    }

    fn try_to_proto(&self, context: &PhysicalExprEncodeCtx<'_>) -> Result<Option<PhysicalExprNode>> {
        context.encode_child(&self.inner).map(Some)
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt_sql(f)
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl PartialEq for Checked {
    fn eq(&self, other: &Checked) -> bool {
        self.inner.eq(&other.inner)
    }
}

impl Eq for Checked {}

impl Hash for Checked {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}
