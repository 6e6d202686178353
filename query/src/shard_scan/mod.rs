//! The leaf of every plan: reads some columns of one table from each of its shards, one partition a shard.
//!
//! A shard of this node is read here (`read`), one of another node there ([`calls::scan`]): a plan runs anywhere. Rows come
//! out in order of tags and time, which the plan is told so that it need not sort.

mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use cluster::Cluster;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::config::ConfigOptions;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::{Column, DynamicFilterTracking};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::filter_pushdown::{ChildPushdownResult, FilterPushdownPhase, FilterPushdownPropagation, PushedDown};
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::{EmptyRecordBatchStream, RecordBatchStreamAdapter};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt;
use futures::stream::{self, BoxStream, TryStreamExt};
use model::{Epoch, NodeId, ShardId, TableSchema, Timestamp};
use storage::scan::Sweep;
use storage::{ScanColumn, ScanRequest};

use crate::distribute::calls;
use crate::distribute::leaf::Leaf;
use crate::engine::{Partial, Shortcuts};
use crate::error::Error;
use crate::scope::Scope;
use crate::sweep::Wanted;
use crate::table::Which;

use self::read::Read;

/// Rows read, as the plan's figures name them.
pub(crate) const ROWS_SCANNED: &str = "rows_scanned";
/// How old the rows of a stale read may be.
pub(crate) const LAG_MS: &str = "lag_ms";

/// What a scan is made of.
#[derive(Clone)]
pub(crate) struct ScanParts {
    /// Database and table, for people.
    pub name: String,
    pub which: Which,
    pub request: ScanRequest,
    pub schema: SchemaRef,
    /// One partition each; the partitions beyond them are empty.
    pub shards: Vec<ShardId>,
    /// The versions of the shards' ranges that the scan was planned with.
    pub versions: BTreeMap<ShardId, Epoch>,
    pub partitions: usize,
    /// Where shards are read; those that are not named here are where the query's placement says.
    pub nodes: BTreeMap<ShardId, NodeId>,
    /// An upper bound of each shard's rows, where it could be told.
    pub rows: Vec<Option<u64>>,
    pub limit: Option<usize>,
    /// Whether rows come out in order of tags and time, as long as it does not sweep.
    pub ordered: bool,
    /// From which end of time the rows are read, if not in order of tags and time.
    pub sweep: Option<Sweep>,
    /// What the steps above can still use; only a sweep asks.
    pub wanted: Wanted,
}

/// Reads one table from some shards.
#[derive(Clone)]
pub(crate) struct ShardScanExec {
    parts: ScanParts,
    /// Asked for the shards' nodes when the plan is shown.
    cluster: Arc<Cluster>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ShardScanExec {
    /// The scan of a query that is being planned here.
    pub(crate) async fn plan(
        scope: &Scope,
        name: String,
        which: Which,
        request: ScanRequest,
        schema: SchemaRef,
        shards: Vec<ShardId>,
    ) -> Result<ShardScanExec> {
        let versions = scope.versions(&shards);
        let mut rows = Vec::with_capacity(shards.len());
        for &shard in &shards {
            let here = scope.placement().node_of(shard) == Some(scope.placement().me());
            rows.push(match scope.shortcuts {
                Shortcuts::On if here => {
                    let view = scope.view(shard, versions.get(&shard).copied()).await.map_err(Error::inside)?;
                    view.map(|view| view.estimate(&request)).filter(|rows| *rows < u64::MAX)
                }
                _ => None,
            });
        }
        let parts = ScanParts {
            name,
            which,
            request,
            schema,
            partitions: shards.len(),
            shards,
            versions,
            nodes: BTreeMap::new(),
            rows,
            limit: None,
            ordered: scope.shortcuts == Shortcuts::On && which == Which::Every && scope.declares_order.load(Relaxed),
            sweep: None,
            wanted: Wanted::default(),
        };
        Ok(ShardScanExec::of(parts, scope.cluster.clone()))
    }

    /// The scan of these parts.
    pub(crate) fn of(parts: ScanParts, cluster: Arc<Cluster>) -> ShardScanExec {
        assert!(parts.shards.len() <= parts.partitions, "each shard has a partition");
        let equivalence = match parts.ordered && parts.sweep.is_none() {
            true => EquivalenceProperties::new_with_orderings(parts.schema.clone(), ordering(&parts.request, &parts.schema)),
            false => EquivalenceProperties::new(parts.schema.clone()),
        };
        let partitioning = Partitioning::UnknownPartitioning(parts.partitions);
        let properties = PlanProperties::new(equivalence, partitioning, EmissionType::Incremental, Boundedness::Bounded);
        ShardScanExec { parts, cluster, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() }
    }

    pub(crate) fn parts(&self) -> &ScanParts {
        &self.parts
    }

    /// The shards that it reads.
    pub(crate) fn shards(&self) -> &[ShardId] {
        &self.parts.shards
    }

    /// The scan may stop after so many rows of each shard.
    pub(crate) fn with_limit(mut self, limit: Option<usize>) -> ShardScanExec {
        self.parts.limit = limit;
        self
    }

    /// The scan span by span from one end of time, in no other order, if `column` is its time. It does so only once it
    /// knows of a filter that can make it end early.
    pub(crate) fn sweeping(&self, column: usize, sweep: Sweep) -> Option<ShardScanExec> {
        if self.parts.which != Which::Every || self.time_column() != Some(column) {
            return None;
        }
        Some(ShardScanExec::of(ScanParts { sweep: Some(sweep), ..self.parts.clone() }, self.cluster.clone()))
    }

    /// From which end of time to read, where the time stands among the columns, which times are wanted.
    fn sweep(&self) -> Option<(Sweep, usize, Wanted)> {
        let (sweep, time) = (self.parts.sweep?, self.time_column()?);
        self.parts.wanted.looks_at(time).then(|| (sweep, time, self.parts.wanted.clone()))
    }

    /// Where its shards are, in the words of EXPLAIN.
    fn place(&self) -> String {
        let shards = self.parts.shards.iter();
        let nodes: BTreeSet<Option<NodeId>> =
            shards.map(|shard| self.parts.nodes.get(shard).copied().or_else(|| self.cluster.leader(*shard))).collect();
        let name = |node: NodeId| self.cluster.node(node).map_or_else(|| node.to_string(), |n| n.name);
        let mut names: Vec<String> = nodes.into_iter().map(|node| node.map_or_else(|| "nobody".to_owned(), name)).collect();
        names.sort();
        format!("{} of {} shards, nodes=[{}]", self.parts.shards.len(), self.cluster.shards().len(), names.join(", "))
    }

    fn time_column(&self) -> Option<usize> {
        self.parts.request.projection.iter().position(|c| *c == ScanColumn::Time)
    }
}

/// Whether a filter changes while the query runs.
fn changes(filter: &Arc<dyn PhysicalExpr>) -> bool {
    DynamicFilterTracking::classify(filter).contains_dynamic_filter()
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

    /// The filters that it looks at: whoever makes them gives them up where nobody does.
    fn apply_expressions(&self, f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>) -> Result<TreeNodeRecursion> {
        for filter in self.parts.wanted.filters() {
            if f(filter)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
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
            Some(i) => self.parts.rows.get(i).copied().flatten(),
            None if self.parts.rows.len() == self.parts.shards.len() => self.parts.rows.iter().copied().sum(),
            None => None,
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
        if phase != FilterPushdownPhase::Post || changing.is_empty() {
            return Ok(answer);
        }
        let mut linked = self.clone();
        linked.parts.wanted = Wanted::new(changing);
        Ok(answer.with_updated_node(Arc::new(linked)))
    }

    fn supports_limit_pushdown(&self) -> bool {
        false
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        Some(Arc::new(self.clone().with_limit(limit)))
    }

    fn fetch(&self) -> Option<usize> {
        self.parts.limit
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let scope = Scope::of(context.session_config())?;
        let schema = self.schema();
        let Some(&shard) = self.parts.shards.get(partition) else {
            return Ok(Box::pin(EmptyRecordBatchStream::new(schema)));
        };
        let baseline = BaselineMetrics::new(&self.metrics, partition);
        let scanned = MetricBuilder::new(&self.metrics).counter(ROWS_SCANNED, partition);
        let counted = Counted { scope: scope.clone(), left: self.parts.limit.unwrap_or(usize::MAX), baseline, scanned };
        let node = self.parts.nodes.get(&shard).copied().or_else(|| scope.placement().node_of(shard));
        let rows: BoxStream<'static, Result<RecordBatch>> = match node {
            Some(node) if node == scope.placement().me() => {
                let lag = MetricBuilder::new(&self.metrics).gauge(LAG_MS, partition);
                let version = self.parts.versions.get(&shard).copied();
                let read = Read {
                    scope,
                    shard,
                    version,
                    which: self.parts.which,
                    request: self.parts.request.clone(),
                    sweep: self.sweep(),
                    counted,
                    lag,
                    memory: MemoryConsumer::new(format!("ShardScan[{shard}]")).register(context.memory_pool()),
                };
                stream::once(read.begin()).try_flatten().boxed()
            }
            Some(node) => {
                let leaf = Leaf::of_one(&self.parts, shard, node);
                stream::once(far(scope, shard, node, leaf, counted)).try_flatten().boxed()
            }
            None if scope.partial == Partial::Allow => {
                scope.leave_out(shard).map_err(|e| scope.fail(e))?;
                stream::empty().boxed()
            }
            None => return Err(scope.fail(cluster::Error::NoLeader { shard }.into())),
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

/// The rows of a shard that another node reads.
async fn far(
    scope: Arc<Scope>,
    shard: ShardId,
    node: NodeId,
    leaf: Leaf,
    counted: Counted,
) -> Result<BoxStream<'static, Result<RecordBatch>>> {
    let failed = scope.clone();
    let rows = calls::scan(scope.clone(), node, leaf).await.map_err(|e| failed.fail(e))?;
    scope.touch(shard);
    let rows = rows.map_err(move |e| failed.fail(e));
    Ok(stream::try_unfold((rows, counted), |(mut rows, mut counted)| async move {
        if counted.left > 0
            && let Some(batch) = rows.try_next().await?
        {
            return Ok(Some((counted.give(batch), (rows, counted))));
        }
        counted.baseline.done();
        Ok(None)
    })
    .boxed())
}

/// Rows on their way out of a scan: counted, and no more than are wanted.
struct Counted {
    scope: Arc<Scope>,
    left: usize,
    baseline: BaselineMetrics,
    scanned: Count,
}

impl Counted {
    fn give(&mut self, batch: RecordBatch) -> RecordBatch {
        self.scope.figures.scanned(batch.num_rows());
        self.scanned.add(batch.num_rows());
        let batch = match batch.num_rows() > self.left {
            true => batch.slice(0, self.left),
            false => batch,
        };
        self.left -= batch.num_rows();
        self.baseline.record_output(batch.num_rows());
        batch
    }
}

impl DisplayAs for ShardScanExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let which = match self.parts.which {
            Which::Every => "rows",
            Which::Latest => "latest row of each series",
        };
        let shards: Vec<String> = self.parts.shards.iter().map(ToString::to_string).collect();
        let names: Vec<String> = self.schema().fields().iter().map(|c| c.name().clone()).collect();
        write!(f, "ShardScanExec: table={}, {which}, shards=[{}] ({})", self.parts.name, shards.join(", "), self.place())?;
        write!(f, ", columns=[{}]", names.join(", "))?;
        let (start, last) = (*self.parts.request.times.start(), *self.parts.request.times.end());
        if (start, last) != (i64::MIN, i64::MAX) {
            write!(f, ", time={}..={}", instant(start), instant(last))?;
        }
        for tag in &self.parts.request.tags {
            write!(f, ", {}", tag_values(&self.parts.request.table, tag))?;
        }
        match self.sweep().map(|(sweep, ..)| sweep) {
            Some(Sweep::Newest) => write!(f, ", newest first")?,
            Some(Sweep::Oldest) => write!(f, ", oldest first")?,
            None => {}
        }
        match self.parts.limit {
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
