//! Cuts a plan into stages over several nodes.
//!
//! Every scan asks for as many tasks as the query has nodes, and task `i` of such a stage runs on node `i`: so a scan's
//! variant `i` has the shards that node `i` leads, padded with empty partitions because all variants must have as many. A
//! stage that got another number of tasks has scans that read from afar. The nodes are those of the query's
//! placement, the same when the plan is made and when it runs.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use cluster::peer::Lane;
use datafusion::catalog::Session;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::context::QueryPlanner;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::{Explain, LogicalPlan, LogicalPlanBuilder, PlanType, StringifiedPlan};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::explain::ExplainExec;
use datafusion::physical_plan::metrics::{MetricValue, MetricsSet};
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion_distributed::{
    ChannelResolver, DesiredTaskCountEvent, DesiredTaskCountEventResponse, DistributedCodec, DistributedExec, DistributedExt,
    DistributedLeafExec, DistributedMetricsFormat, NetworkBoundaryExt, NetworkShuffleExec, RouteTasksEvent, RouteTasksEventResponse,
    ScaleUpLeafNodeEvent, ScaleUpLeafNodeEventResponse, SessionStateBuilderExt, Worker, WorkerChannel, WorkerPlanRewriteEvent,
    WorkerPlanRewriteEventResponse, WorkerQueryContext, WorkerResolver, display_plan_ascii, grpc, rewrite_distributed_plan_with_metrics,
};
use datafusion_proto::bytes::physical_plan_to_bytes_with_proto_converter;
use datafusion_proto::physical_plan::DeduplicatingProtoConverter;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use model::{NodeId, ShardId};
use tonic::body::Body;
use tower::Service;
use url::Url;

use crate::distribute::calls::{lost, name_of};
use crate::distribute::head::Head;
use crate::distribute::leaf::Codec;
use crate::distribute::{Course, allowed_steps, placement};
use crate::engine::{Consistency, Inner};
use crate::error::Error;
use crate::functions;
use crate::scope::Scope;
use crate::shard_scan::{LAG_MS, ROWS_SCANNED, ScanParts, ShardScanExec};
use crate::stop::checked;
use crate::told::Told;

/// How long the end of an answer waits for other nodes' figures; longer where they say how old the answer is.
const FIGURES_PATIENCE: Duration = Duration::from_millis(200);
const LAG_PATIENCE: Duration = Duration::from_secs(2);
/// Bytes that may have arrived from one node's stage and not been used yet.
const WAITING_BYTES: usize = 16 << 20;

/// A plan for several nodes, and the session that it runs in; the plan itself if it has a step that cannot travel. `logical`: what it
/// was made of, if it may be made anew.
pub(crate) async fn spread(
    engine: &Inner,
    scope: &Arc<Scope>,
    session: SessionState,
    plan: Arc<dyn ExecutionPlan>,
    logical: Option<&LogicalPlan>,
) -> std::result::Result<(Arc<dyn ExecutionPlan>, SessionState), Error> {
    let (cut, state) = cut(engine, scope, session.clone(), plan.clone()).await?;
    let mut refused = travels(&cut, &state).and_then(|()| sends_windows(&cut));
    if refused.is_ok() {
        match (mixes_without_order(&cut), logical) {
            (Ok(()), _) => return Ok((cut, state)),
            (Err(e), None) => refused = Err(e),
            (Err(_), Some(logical)) => {
                // The same without the order that its scans have: on one node it saves a sort or a hash table, between nodes it is lost.
                let declared = scope.declares_order.swap(false, Ordering::Relaxed);
                let unordered = session.create_physical_plan(logical).await;
                scope.declares_order.store(declared, Ordering::Relaxed);
                let (cut, state) = self::cut(engine, scope, session.clone(), unordered?).await?;
                refused = travels(&cut, &state).and_then(|()| sends_windows(&cut)).and_then(|()| mixes_without_order(&cut));
                if refused.is_ok() {
                    return Ok((cut, state));
                }
            }
        }
    }
    if let Err(e) = refused {
        tracing::debug!(error = %e, "the plan cannot travel; its shards are read from afar");
    }
    Ok((plan, session))
}

/// A plan in stages, and the session that it runs in.
async fn cut(
    engine: &Inner,
    scope: &Arc<Scope>,
    session: SessionState,
    plan: Arc<dyn ExecutionPlan>,
) -> std::result::Result<(Arc<dyn ExecutionPlan>, SessionState), Error> {
    let nodes: Arc<[NodeId]> = scope.placement().nodes_of(&placement::shards_of(&plan)).into();
    let me = scope.placement().me();
    let tasks = nodes.len();
    let desired =
        move |event: DesiredTaskCountEvent<'_>| event.plan.is::<ShardScanExec>().then(|| Ok(DesiredTaskCountEventResponse::desired(tasks)));
    let pinned = {
        let (nodes, scope) = (nodes.clone(), scope.clone());
        move |event: ScaleUpLeafNodeEvent<'_>| {
            let scan = event.plan.downcast_ref::<ShardScanExec>()?;
            Some(pin(scan, event.task_count, &nodes, &scope).map(ScaleUpLeafNodeEventResponse::new))
        }
    };
    let routed = {
        let nodes = nodes.clone();
        move |event: RouteTasksEvent<'_>| {
            let to = match event.task_count {
                1 => vec![me],
                n => nodes[..n.min(nodes.len())].to_vec(),
            };
            Some(Ok(RouteTasksEventResponse::new(to.into_iter().map(url).collect())))
        }
    };
    let local = engine.worker.to_local_worker_context(url(me));
    let state = SessionStateBuilder::new_from_existing(session)
        .with_query_planner(Arc::new(Made(plan.clone())))
        .with_distributed_planner()
        .with_distributed_worker_resolver(Urls(nodes))
        .with_distributed_channel_resolver(Channels { scope: scope.clone() })
        .with_distributed_user_codec(Codec { scope: scope.clone() })
        .with_distributed_desired_task_count_handler(desired)
        .with_distributed_scale_up_leaf_node_handler(pinned)
        .with_distributed_route_tasks_handler(routed)
        .with_distributed_passthrough_headers(Head::of(scope).headers())?
        .with_distributed_children_isolator_unions(false)?
        .with_distributed_worker_connection_buffer_budget_bytes(WAITING_BYTES)?
        .with_distributed_local_worker_context(local)
        .build();
    engine.visits.host(scope);
    // The planner gives what is made already, whatever the logical plan is.
    let logical = LogicalPlanBuilder::empty(false).build()?;
    let cut = state.query_planner().create_physical_plan(&logical, &state).await?;
    Ok((cut, state))
}

/// Whether all of a plan can be sent. Without this it would be found out by a peer that waits for its stage in vain.
fn travels(plan: &Arc<dyn ExecutionPlan>, session: &SessionState) -> Result<()> {
    let Some(cut) = plan.downcast_ref::<DistributedExec>() else { return Ok(()) };
    let specialized = cut.children()[0].clone().transform_up(|step| {
        let variant = step.downcast_ref::<DistributedLeafExec>().map(|leaf| leaf.variants()[0].clone());
        Ok(variant.map_or_else(|| Transformed::no(step), Transformed::yes))
    })?;
    let codec = DistributedCodec::new_combined_with_user(session.config());
    physical_plan_to_bytes_with_proto_converter(specialized.data, &codec, &DeduplicatingProtoConverter::default()).map(|_| ())
}

/// Refuses a plan in which rows of several nodes are mixed by their hash and said to be in order all the same: an aggregate
/// above would give the same group several times. A step keeps the order of what it hashes where that comes from one
/// partition, and a shuffle claims it although it mixes what several nodes send.
fn mixes_without_order(plan: &Arc<dyn ExecutionPlan>) -> Result<()> {
    let Some(cut) = plan.downcast_ref::<DistributedExec>() else { return Ok(()) };
    let claims = |step: &Arc<dyn ExecutionPlan>| Ok(step.is::<NetworkShuffleExec>() && step.properties().output_ordering().is_some());
    match cut.children()[0].exists(claims)? {
        true => Err(DataFusionError::Internal("a shuffle of the plan claims an order".to_owned())),
        false => Ok(()),
    }
}

/// Refuses a plan that has window functions in a stage that is sent. Of these only the names arrive: not that one was
/// reversed, nor its FILTER, nor IGNORE NULLS; and a stage that is read has forgotten which columns a filter makes constant,
/// on which the order of a window may rest (datafusion-proto 55.2, `to_proto.rs`). Above all that is sent they are as planned.
fn sends_windows(plan: &Arc<dyn ExecutionPlan>) -> Result<()> {
    let Some(cut) = plan.downcast_ref::<DistributedExec>() else { return Ok(()) };
    let is_window = |step: &Arc<dyn ExecutionPlan>| Ok(step.is::<WindowAggExec>() || step.is::<BoundedWindowAggExec>());
    let sends = |step: &Arc<dyn ExecutionPlan>| Ok(step.is_network_boundary() && step.exists(is_window)?);
    match cut.children()[0].exists(sends)? {
        true => Err(DataFusionError::Internal("a stage of the plan has a window function".to_owned())),
        false => Ok(()),
    }
}

/// The scan for so many tasks.
fn pin(scan: &ShardScanExec, tasks: usize, nodes: &[NodeId], scope: &Scope) -> Result<Arc<dyn ExecutionPlan>> {
    let parts = scan.parts();
    let readable: Vec<ShardId> = parts.shards.iter().copied().filter(|shard| scope.placement().node_of(*shard).is_some()).collect();
    let task_of = |at: usize, shard: ShardId| match tasks == nodes.len() {
        true => scope.placement().node_of(shard).and_then(|node| nodes.iter().position(|n| *n == node)).unwrap_or(0),
        false => at % tasks,
    };
    let mut shards: Vec<Vec<ShardId>> = vec![Vec::new(); tasks];
    readable.iter().enumerate().for_each(|(at, shard)| shards[task_of(at, *shard)].push(*shard));
    // Two at least: see `mixes_without_order`.
    let partitions = shards.iter().map(Vec::len).max().unwrap_or(0).max(2);
    let variant = |shards: Vec<ShardId>| {
        let nodes = shards.iter().filter_map(|shard| Some((*shard, scope.placement().node_of(*shard)?))).collect();
        let parts = ScanParts { shards, partitions, nodes, rows: Vec::new(), ..parts.clone() };
        Arc::new(ShardScanExec::of(parts, scope.cluster.clone())) as Arc<dyn ExecutionPlan>
    };
    let mut variants: Vec<Arc<dyn ExecutionPlan>> = shards.into_iter().map(variant).collect();
    match variants.len() {
        1 => Ok(variants.swap_remove(0)),
        _ => Ok(Arc::new(DistributedLeafExec::try_new(Arc::new(scan.clone()), variants)?)),
    }
}

/// The "planner" of a plan that is made already.
#[derive(Debug)]
struct Made(Arc<dyn ExecutionPlan>);

#[async_trait]
impl QueryPlanner for Made {
    async fn create_physical_plan(&self, _logical: &LogicalPlan, _session: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self.0.clone())
    }
}

/// A node's name among stages.
fn url(node: NodeId) -> Url {
    Url::parse(&format!("http://node-{node}/")).expect("a number is a host name")
}

fn node_of(url: &Url) -> Option<NodeId> {
    url.host_str()?.strip_prefix("node-")?.parse().ok().map(NodeId)
}

struct Urls(Arc<[NodeId]>);

impl WorkerResolver for Urls {
    fn get_urls(&self) -> Result<Vec<Url>> {
        Ok(self.0.iter().map(|node| url(*node)).collect())
    }
}

/// The way to the nodes that work on a query.
struct Channels {
    scope: Arc<Scope>,
}

#[async_trait]
impl ChannelResolver for Channels {
    async fn get_worker_client_for_url(&self, url: &Url) -> Result<Box<dyn WorkerChannel>> {
        let node = node_of(url).ok_or_else(|| DataFusionError::Internal(format!("{url} is no node of this cluster")))?;
        Ok(grpc::create_worker_client(grpc::BoxCloneSyncChannel::new(Channel { node, scope: self.scope.clone() })))
    }
}

/// Requests of stages to one node. It never fails: what fails is an answer that says so and names the node.
#[derive(Clone)]
struct Channel {
    node: NodeId,
    scope: Arc<Scope>,
}

impl Channel {
    fn lost(&self, why: &dyn std::fmt::Display) -> tonic::Status {
        tonic::Status::unavailable(Told::of(&lost(&self.scope.cluster, self.node, why)).text())
    }

    async fn send(self, request: Request<Body>) -> Response<Body> {
        let Some(peers) = self.scope.cluster.peers() else { return self.lost(&"this node is alone").into_http() };
        let request = request.map(|body| body.map_err(std::io::Error::other).boxed_unsync());
        match peers.send(self.node, Lane::Plans, request).await {
            // Answers of stages say 200 whatever they say. Anything else is no answer of a stage: the node starts or stops.
            Ok(response) if response.status() != StatusCode::OK => self.lost(&format!("it answered {}", response.status())).into_http(),
            Ok(response) => response.map(|body| {
                let this = self.clone();
                Body::new(body.map_err(move |e| this.lost(&e)))
            }),
            Err(e) => self.lost(&e).into_http(),
        }
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Response<Body>, tonic::transport::Error>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<std::result::Result<(), tonic::transport::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.send(request).await) })
    }
}

/// What runs stages for others: plans are decoded in the scope of their query, and run only if all their steps may.
pub(crate) fn worker(engine: Weak<Inner>, env: Arc<RuntimeEnv>) -> Worker {
    let session = move |context: WorkerQueryContext| {
        let engine = engine.clone();
        async move {
            let engine = engine.upgrade().ok_or_else(|| Error::ShuttingDown.inside())?;
            let told = |e: Error| DataFusionError::Execution(Told::of(&e).text());
            let head = Head::read(&context.headers).map_err(told)?;
            let scope = engine.visits.enter(&engine, head).await.map_err(told)?;
            visiting(context.builder, &scope, &context.headers)
        }
    };
    Worker::from_session_builder(session).with_runtime_env(env)
}

/// The session of a query that another node coordinates.
fn visiting(builder: SessionStateBuilder, scope: &Arc<Scope>, headers: &HeaderMap) -> Result<SessionState> {
    let passed = Head::read(headers).map_err(Error::inside)?.headers();
    let stop = scope.stop.clone();
    let checked = move |event: WorkerPlanRewriteEvent<'_>| {
        allowed_steps::check(&event.plan)?;
        checked(event.plan, &stop).map(WorkerPlanRewriteEventResponse::new)
    };
    let mut state = builder
        .with_distributed_channel_resolver(Channels { scope: scope.clone() })
        .with_distributed_user_codec(Codec { scope: scope.clone() })
        .with_distributed_passthrough_headers(passed)?
        .with_distributed_worker_plan_rewrite_handler(checked)
        .build();
    state.config_mut().set_extension(scope.clone());
    functions::register(&mut state);
    Ok(state)
}

/// An EXPLAIN whose plan says how it runs over the nodes.
pub(crate) async fn explained(
    engine: &Inner,
    scope: &Arc<Scope>,
    session: &SessionState,
    explain: &Explain,
    made: Arc<dyn ExecutionPlan>,
) -> std::result::Result<Arc<dyn ExecutionPlan>, Error> {
    let Some(shown) = made.downcast_ref::<ExplainExec>() else { return Ok(made) };
    let plan = session.create_physical_plan(&explain.plan).await?;
    let shards = placement::shards_of(&plan);
    scope.find(&shards).await;
    let text = match scope.placement().course(&shards) {
        Course::Here => return Ok(made),
        Course::There(node) => format!("sent whole to {}\n{}", name_of(&scope.cluster, node), display_plan_ascii(plan.as_ref(), false)),
        Course::Spread => {
            let (plan, _) = spread(engine, scope, session.clone(), plan, Some(&explain.plan)).await?;
            display_plan_ascii(plan.as_ref(), false)
        }
    };
    let mut plans = shown.stringified_plans().to_vec();
    plans.retain(|plan| plan.plan_type != PlanType::FinalPhysicalPlan);
    plans.push(StringifiedPlan::new(PlanType::FinalPhysicalPlan, text));
    Ok(Arc::new(ExplainExec::new(made.schema(), plans, shown.verbose())))
}

/// Adds what other nodes have counted to the query's figures, if they tell it soon.
pub(crate) async fn gathered(plan: Arc<dyn ExecutionPlan>, scope: &Scope) {
    let told = rewrite_distributed_plan_with_metrics(plan, DistributedMetricsFormat::PerTask);
    let patience = if scope.consistency == Consistency::Stale { LAG_PATIENCE } else { FIGURES_PATIENCE };
    let Ok(Ok(plan)) = tokio::time::timeout(patience, told).await else { return };
    let (mut rows, mut lag) = (0, 0);
    let seen = plan.apply(|step| {
        for metric in step.metrics().iter().flat_map(MetricsSet::iter) {
            match metric.value() {
                MetricValue::Count { name, count } if name == ROWS_SCANNED => rows += count.value(),
                MetricValue::Gauge { name, gauge } if name == LAG_MS => lag = lag.max(gauge.value()),
                _ => {}
            }
        }
        Ok(TreeNodeRecursion::Continue)
    });
    seen.expect("nothing fails here");
    scope.figures.rows_scanned.fetch_max(rows as u64, Ordering::Relaxed);
    scope.lag_told(Some(lag as u64));
}
