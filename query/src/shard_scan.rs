//! The leaf of every plan: reads some columns of one table from each of its shards, one partition a shard.
//!
//! The view of a shard is taken when the plan runs and is shared by all scans of the query ([`Scope`]). Storage's
//! iterator blocks on the disk, so it is pulled on blocking threads, a few batches at a time, at most one pull ahead of
//! the reader: a thread is never held while the reader is slow, and dropping the stream ends the work after the batch
//! in hand. Rows come out in order of tags and time, which the plan is told so that it need not sort.

use std::collections::VecDeque;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cluster::Cluster;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::config::ConfigOptions;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::{Column, DynamicFilterTracking};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::filter_pushdown::{ChildPushdownResult, FilterPushdownPhase, FilterPushdownPropagation, PushedDown};
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::stream::{self, TryStreamExt};
use model::{ShardId, TableSchema, Timestamp};
use storage::scan::{Rows, Sweep};
use storage::{ScanColumn, ScanRequest, View};
use tokio::task::JoinHandle;

use crate::engine::Shortcuts;
use crate::error::Error;
use crate::latest;
use crate::scope::Scope;
use crate::sweep::Wanted;
use crate::table::Which;

/// Batches that one visit to a blocking thread reads; the first visit reads one, so that a short answer is quick.
const BATCHES_PER_PULL: usize = 4;

/// Reads one table from some shards.
#[derive(Clone)]
pub(crate) struct ShardScanExec {
    name: String,
    which: Which,
    request: ScanRequest,
    shards: Vec<ShardId>,
    /// Asked for the shards' nodes when the plan is shown.
    cluster: Arc<Cluster>,
    /// An upper bound of each shard's rows, where it could be told.
    rows: Vec<Option<u64>>,
    limit: Option<usize>,
    /// From which end of time the rows are read, if not in order of tags and time.
    sweep: Option<Sweep>,
    /// What the steps above can still use; only a sweep asks.
    wanted: Wanted,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ShardScanExec {
    pub(crate) async fn new(
        scope: Arc<Scope>,
        name: String,
        which: Which,
        request: ScanRequest,
        schema: SchemaRef,
        shards: Vec<ShardId>,
    ) -> Result<ShardScanExec> {
        let mut rows = Vec::with_capacity(shards.len());
        for &shard in &shards {
            rows.push(match scope.shortcuts {
                Shortcuts::Off => None,
                Shortcuts::On => scope.view(shard).await.map_err(Error::inside)?.map(|v| v.estimate(&request)),
            });
        }
        let equivalence = match (scope.shortcuts, which) {
            (Shortcuts::On, Which::Every) => EquivalenceProperties::new_with_orderings(schema.clone(), ordering(&request, &schema)),
            _ => EquivalenceProperties::new(schema),
        };
        let properties = PlanProperties::new(
            equivalence,
            Partitioning::UnknownPartitioning(shards.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(ShardScanExec {
            name,
            which,
            request,
            cluster: scope.cluster.clone(),
            shards,
            rows,
            limit: None,
            sweep: None,
            wanted: Wanted::default(),
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }

    /// The scan may stop after so many rows of each shard.
    pub(crate) fn with_limit(mut self, limit: Option<usize>) -> ShardScanExec {
        self.limit = limit;
        self
    }

    /// The scan span by span from one end of time, in no other order, if `column` is its time. It does so only once it
    /// knows of a filter that can make it end early.
    pub(crate) fn sweeping(&self, column: usize, sweep: Sweep) -> Option<ShardScanExec> {
        if self.which != Which::Every || self.time_column() != Some(column) {
            return None;
        }
        let properties = PlanProperties::clone(&self.properties).with_eq_properties(EquivalenceProperties::new(self.schema()));
        Some(ShardScanExec { sweep: Some(sweep), properties: Arc::new(properties), ..self.clone() })
    }

    /// From which end of time to read, where the time stands among the columns, which times are wanted.
    fn sweep(&self) -> Option<(Sweep, usize, Wanted)> {
        let (sweep, time) = (self.sweep?, self.time_column()?);
        self.wanted.looks_at(time).then(|| (sweep, time, self.wanted.clone()))
    }

    fn time_column(&self) -> Option<usize> {
        self.request.projection.iter().position(|c| *c == ScanColumn::Time)
    }
}

/// Whether a filter changes while the query runs.
fn changes(filter: &Arc<dyn PhysicalExpr>) -> bool {
    DynamicFilterTracking::classify(filter).contains_dynamic_filter()
}

/// Where a scan's shards are, in the words of EXPLAIN.
fn place(cluster: &Cluster, shards: &[ShardId]) -> String {
    let mut nodes: Vec<String> =
        cluster.shard_status().into_iter().filter(|s| shards.contains(&s.shard)).filter_map(|s| s.leader).collect();
    nodes.sort();
    nodes.dedup();
    format!("{} of {} shards, nodes=[{}]", shards.len(), cluster.shards().len(), nodes.join(", "))
}

/// The order that rows come out in, as far as the projection has its columns: tags in key order, absent first, then time.
fn ordering(request: &ScanRequest, schema: &SchemaRef) -> Option<Vec<PhysicalSortExpr>> {
    let key = request.table.tags().into_iter().map(|c| ScanColumn::Column(c.id)).chain([ScanColumn::Time]);
    let options = SortOptions { descending: false, nulls_first: true };
    let order: Vec<PhysicalSortExpr> = key
        .map_while(|column| request.projection.iter().position(|p| *p == column))
        .map(|i| PhysicalSortExpr { expr: Arc::new(Column::new(schema.field(i).name(), i)), options })
        .collect();
    (!order.is_empty()).then_some(order)
}

impl ExecutionPlan for ShardScanExec {
    fn name(&self) -> &str {
        "ShardScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(&self, _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    #[allow(deprecated)] // The trait still demands it; DataFusion calls `replace_children`.
    fn with_new_children(self: Arc<Self>, _children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(ShardScanExec { metrics: ExecutionPlanMetricsSet::new(), ..(*self).clone() }))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn statistics_from_inputs(&self, _inputs: &[Arc<Statistics>], args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.schema());
        let rows: Option<u64> = match args.partition() {
            Some(i) => self.rows.get(i).copied().flatten(),
            None => self.rows.iter().copied().sum(),
        };
        if let Some(rows) = rows {
            statistics.num_rows = Precision::Inexact(rows as usize);
        }
        Ok(Arc::new(statistics))
    }

    /// Notes the filters that change while the query runs; the rows that they leave out stay in the answer.
    fn handle_child_pushdown_result(
        &self,
        phase: FilterPushdownPhase,
        filters: ChildPushdownResult,
        _config: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn ExecutionPlan>>> {
        let changing: Vec<_> = filters.parent_filters.iter().map(|f| f.filter.clone()).filter(changes).collect();
        let answer = FilterPushdownPropagation::with_parent_pushdown_result(vec![PushedDown::No; filters.parent_filters.len()]);
        Ok(match phase {
            FilterPushdownPhase::Post if !changing.is_empty() => {
                answer.with_updated_node(Arc::new(ShardScanExec { wanted: Wanted::new(changing), ..self.clone() }))
            }
            _ => answer,
        })
    }

    fn supports_limit_pushdown(&self) -> bool {
        false
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        Some(Arc::new(self.clone().with_limit(limit)))
    }

    fn fetch(&self) -> Option<usize> {
        self.limit
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let scope = Scope::of(context.session_config())?;
        let read = Read {
            scope,
            shard: self.shards[partition],
            which: self.which,
            request: self.request.clone(),
            sweep: self.sweep(),
            left: self.limit.unwrap_or(usize::MAX),
            baseline: BaselineMetrics::new(&self.metrics, partition),
            scanned: MetricBuilder::new(&self.metrics).counter("rows_scanned", partition),
        };
        let schema = self.schema();
        let rows = stream::once(read.begin()).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

impl DisplayAs for ShardScanExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let which = match self.which {
            Which::Every => "rows",
            Which::Latest => "latest row of each series",
        };
        let shards: Vec<String> = self.shards.iter().map(ToString::to_string).collect();
        let names: Vec<String> = self.schema().fields().iter().map(|c| c.name().clone()).collect();
        write!(f, "ShardScanExec: table={}, {which}, shards=[{}] ({})", self.name, shards.join(", "), place(&self.cluster, &self.shards))?;
        write!(f, ", columns=[{}]", names.join(", "))?;
        let (start, last) = (*self.request.times.start(), *self.request.times.end());
        if (start, last) != (i64::MIN, i64::MAX) {
            write!(f, ", time={}..={}", instant(start), instant(last))?;
        }
        for tag in &self.request.tags {
            write!(f, ", {}", tag_values(&self.request.table, tag))?;
        }
        match self.sweep().map(|(sweep, ..)| sweep) {
            Some(Sweep::Newest) => write!(f, ", newest first")?,
            Some(Sweep::Oldest) => write!(f, ", oldest first")?,
            None => {}
        }
        match self.limit {
            Some(limit) => write!(f, ", limit={limit}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for ShardScanExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_as(DisplayFormatType::Default, f)
    }
}

fn instant(at: i64) -> String {
    match at {
        i64::MIN => "beginning".to_owned(),
        i64::MAX => "end".to_owned(),
        _ => rfc3339(Timestamp(at)),
    }
}

fn rfc3339(at: Timestamp) -> String {
    chrono::DateTime::from_timestamp_nanos(at.0).to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}

/// `device_id in ('a', 'b', … 40 more)`.
fn tag_values(table: &TableSchema, filter: &storage::TagFilter) -> String {
    const SHOWN: usize = 3;
    let name = table.column_by_id(filter.column).map_or("?", |c| &c.name);
    let shown: Vec<String> =
        filter.values.iter().take(SHOWN).map(|v| v.as_ref().map_or("null".to_owned(), |v| format!("'{}'", v.escape_default()))).collect();
    let more = match filter.values.len().saturating_sub(SHOWN) {
        0 => String::new(),
        n => format!(", … {n} more"),
    };
    format!("{name} in ({}{more})", shown.join(", "))
}

/// One shard about to be read.
struct Read {
    scope: Arc<Scope>,
    shard: ShardId,
    which: Which,
    request: ScanRequest,
    /// From which end of time, where the time stands among the columns, which times are still wanted.
    sweep: Option<(Sweep, usize, Wanted)>,
    left: usize,
    baseline: BaselineMetrics,
    scanned: Count,
}

impl Read {
    /// Takes the view and gives the stream of its rows.
    async fn begin(self) -> Result<impl stream::Stream<Item = Result<RecordBatch>>> {
        let view = self.scope.view(self.shard).await.map_err(Error::inside)?;
        let stopped = Arc::new(AtomicBool::new(false));
        let pull = view.map(|view| {
            let (which, shortcuts, request, stopped) = (self.which, self.scope.shortcuts, self.request.clone(), stopped.clone());
            let sweep = self.sweep.clone();
            tokio::task::spawn_blocking(move || {
                let opened = match sweep {
                    None => open(&view, which, shortcuts, &request),
                    Some((sweep, time, wanted)) => spans(view, request, sweep, time, wanted),
                };
                match opened {
                    Ok(rows) => pull(rows, 1, &stopped),
                    Err(e) => Pulled { batches: VecDeque::new(), rest: Rest::Failed(e) },
                }
            })
        });
        let reading = Reading { read: self, ready: VecDeque::new(), pull, paused: None, stopped };
        Ok(stream::try_unfold(reading, |mut reading| async move {
            let batch = reading.next().await?;
            Ok(batch.map(|batch| (batch, reading)))
        }))
    }
}

fn open(view: &View, which: Which, shortcuts: Shortcuts, request: &ScanRequest) -> storage::Result<Rows> {
    match which {
        Which::Every => view.scan(request),
        Which::Latest => latest::rows(view, shortcuts, request),
    }
}

/// The rows of one span after the other, without the spans that nobody wants by the time they are reached.
fn spans(view: Arc<View>, request: ScanRequest, sweep: Sweep, time: usize, wanted: Wanted) -> storage::Result<Rows> {
    let spans = view.spans(&request, sweep)?;
    let scan = move |span: RangeInclusive<i64>| {
        // A filter that cannot be looked at bounds nothing.
        let wanted = wanted.times(time).unwrap_or(i64::MIN..=i64::MAX);
        let times = *span.start().max(wanted.start())..=*span.end().min(wanted.end());
        match times.is_empty() {
            true => Ok(Box::new(std::iter::empty()) as Rows),
            false => view.scan(&ScanRequest { times, ..request.clone() }),
        }
    };
    Ok(Box::new(spans.into_iter().flat_map(move |span| scan(span).unwrap_or_else(|e| Box::new(std::iter::once(Err(e)))))))
}

/// What one visit to a blocking thread brought.
struct Pulled {
    batches: VecDeque<RecordBatch>,
    rest: Rest,
}

enum Rest {
    More(Rows),
    End,
    Failed(storage::Error),
}

/// Reads up to `n` batches; returns early once nobody wants them.
fn pull(mut rows: Rows, n: usize, stopped: &AtomicBool) -> Pulled {
    let mut batches = VecDeque::with_capacity(n);
    while batches.len() < n && !stopped.load(Ordering::Relaxed) {
        match rows.next() {
            Some(Ok(batch)) => batches.push_back(batch),
            Some(Err(e)) => return Pulled { batches, rest: Rest::Failed(e) },
            None => return Pulled { batches, rest: Rest::End },
        }
    }
    Pulled { batches, rest: Rest::More(rows) }
}

/// One shard being read. Dropping it tells the blocking thread to stop after its batch.
struct Reading {
    read: Read,
    ready: VecDeque<RecordBatch>,
    pull: Option<JoinHandle<Pulled>>,
    /// What is left of a sweep, while the steps above look at what they got: it may be all they want.
    paused: Option<Rows>,
    stopped: Arc<AtomicBool>,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        while self.read.left > 0 {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some(self.give(batch)));
            }
            if let Some(rows) = self.paused.take() {
                self.pull(rows, 1);
            }
            let Some(pulling) = self.pull.take() else { break };
            let pulled = pulling.await.map_err(|e| DataFusionError::ExecutionJoin(Box::new(e)))?;
            self.ready = pulled.batches;
            match pulled.rest {
                Rest::End => {}
                Rest::Failed(e) => return Err(Error::from(e).inside()),
                Rest::More(rows) if self.read.sweep.is_some() => self.paused = Some(rows),
                Rest::More(rows) => self.pull(rows, BATCHES_PER_PULL),
            }
        }
        self.read.baseline.done();
        Ok(None)
    }

    fn pull(&mut self, rows: Rows, n: usize) {
        let stopped = self.stopped.clone();
        self.pull = Some(tokio::task::spawn_blocking(move || pull(rows, n, &stopped)));
    }

    fn give(&mut self, batch: RecordBatch) -> RecordBatch {
        self.read.scope.figures.scanned(batch.num_rows());
        self.read.scanned.add(batch.num_rows());
        let batch = match batch.num_rows() > self.read.left {
            true => batch.slice(0, self.read.left),
            false => batch,
        };
        self.read.left -= batch.num_rows();
        self.read.baseline.record_output(batch.num_rows());
        batch
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}
