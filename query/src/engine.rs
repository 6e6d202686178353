//! What bounds queries: memory, disk, time, number; and the threads that they run on. One query's journey is [`crate::run`].
//!
//! Queries have a runtime of their own, so that raft and heartbeats never queue behind them; its threads have large
//! stacks, because planning recurses over the statement. A query stops within a batch's time of its deadline, of
//! `KILL QUERY`, or of its asker going away ([`crate::stop`]).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::{Access, Clock, Cluster};
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use model::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use crate::Result;
use crate::answer::{Answer, Task, WAITING_BATCHES, overdue};
use crate::distribute::visits::Visits;
use crate::distribute::whole::WentWhole;
use crate::distribute::{self, PeerService, Worker};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::plan_cache::PlanCache;
use crate::run::{Begun, Question, Reach, drive};
use crate::running::{Asked, Running};
use crate::session::Sessions;
use crate::sources::Sources;
use crate::stop::Stop;
use crate::{command, panics};

/// Planning recurses over the statement; what `limits` lets through fits well into this.
const STACK_BYTES: usize = 32 << 20;
/// Threads that wait for disks at most; scans queue for them and never hold one while their reader is slow.
const BLOCKING_THREADS: usize = 64;

/// How old what a query reads with [`Consistency::Stale`] may be if it does not say.
pub const DEFAULT_MAX_LAG: Duration = Duration::from_secs(600);

/// What bounds queries.
#[derive(Clone)]
pub struct QueryOptions {
    /// Bytes that all queries together may hold; beyond that they spill, then fail.
    pub memory_bytes: usize,
    /// Where they spill; emptied when the engine starts.
    pub spill_dir: PathBuf,
    /// Bytes that may be spilled.
    pub spill_bytes: u64,
    /// Time that a query has if it does not say; `FLUSH` and `COMPACT` have `max_timeout` then.
    pub default_timeout: Duration,
    /// Time that a query may ask for at most.
    pub max_timeout: Duration,
    /// Queries under way at once.
    pub max_concurrent: usize,
    /// Of those, queries with one token.
    pub max_concurrent_per_token: usize,
    /// Bytes of a statement.
    pub max_sql_bytes: usize,
    /// Threads that compute.
    pub threads: usize,
    /// The time of day.
    pub clock: Clock,
}

impl QueryOptions {
    /// Moderate bounds for a node that spills into `spill_dir`.
    pub fn new(spill_dir: PathBuf, clock: Clock) -> QueryOptions {
        QueryOptions {
            memory_bytes: 512 << 20,
            spill_dir,
            spill_bytes: 10 << 30,
            default_timeout: Duration::from_secs(60),
            max_timeout: Duration::from_secs(24 * 3_600),
            max_concurrent: 256,
            max_concurrent_per_token: 128,
            max_sql_bytes: 1 << 20,
            threads: std::thread::available_parallelism().map_or(2, usize::from),
            clock,
        }
    }
}

/// Whether a query may take the quick ways: pruning, last rows, declared order, statistics. The answer must not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Shortcuts {
    /// As fast as it goes.
    #[default]
    On,
    /// Everything is read and computed; for tests.
    Off,
}

/// What happens when a shard cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Partial {
    /// The query fails and names it.
    #[default]
    Refuse,
    /// The answer lacks its rows and names it.
    Allow,
}

/// What the door lets through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verbs {
    /// Questions only.
    Ask,
    /// Questions, and commands that change something.
    #[default]
    AskAndChange,
}

/// The value of a `$name` in a statement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Parameter {
    /// NULL.
    Null,
    /// A boolean.
    Bool(bool),
    /// A signed integer.
    Int(i64),
    /// An integer that only fits unsigned.
    UInt(u64),
    /// A float.
    Float(f64),
    /// A text; compared with a time it is read as one.
    Text(String),
}

/// How one query wants to be run.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Its deadline, instead of the default.
    pub timeout: Option<Duration>,
    /// Values for `$name`.
    pub parameters: BTreeMap<String, Parameter>,
    /// Quick ways.
    pub shortcuts: Shortcuts,
    /// Missing shards.
    pub partial: Partial,
    /// Commands.
    pub verbs: Verbs,
    /// What the asker may see and do.
    pub access: Access,
    /// How fresh.
    pub consistency: Consistency,
    /// How old stale rows may be, instead of [`DEFAULT_MAX_LAG`].
    pub max_lag: Option<Duration>,
}

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// It holds every write that was acknowledged before.
    #[default]
    Linearizable,
    /// Any replica may be read whose rows are not older than the query allows; the answer says how old they are.
    Stale,
}

/// Runs SQL. One per node.
pub struct Engine {
    inner: Arc<Inner>,
    runtime: Option<Runtime>,
}

pub(crate) struct Inner {
    pub cluster: Arc<Cluster>,
    pub options: QueryOptions,
    pub sources: Sources,
    pub running: Arc<Running>,
    pub sessions: Sessions,
    pub plans: PlanCache,
    pub went_whole: WentWhole,
    pub metrics: Metrics,
    /// Runs of queries that have work here.
    pub visits: Visits,
    /// Runs stages of plans.
    pub worker: Worker,
}

impl Engine {
    /// An engine with a runtime of its own. Empties the spill folder.
    pub fn new(cluster: Arc<Cluster>, options: QueryOptions, sources: Sources) -> Result<Arc<Engine>> {
        let failed = |what: &str, e: &dyn std::fmt::Display| Error::Engine { message: format!("could not {what}: {e}") };
        match std::fs::remove_dir_all(&options.spill_dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(&format!("empty the spill folder {}", options.spill_dir.display()), &e));
            }
            _ => {}
        }
        std::fs::create_dir_all(&options.spill_dir)
            .map_err(|e| failed(&format!("create the spill folder {}", options.spill_dir.display()), &e))?;
        let consumers = std::num::NonZeroUsize::new(5).expect("5 is not 0");
        let env = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(TrackConsumersPool::new(FairSpillPool::new(options.memory_bytes), consumers)))
            .with_disk_manager_builder(
                DiskManagerBuilder::default()
                    .with_mode(DiskManagerMode::Directories(vec![options.spill_dir.clone()]))
                    .with_max_temp_directory_size(options.spill_bytes),
            )
            .build_arc()?;
        // The one store that DataFusion registers by itself: the server's own files.
        env.deregister_object_store(ObjectStoreUrl::local_filesystem().as_ref())?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(options.threads)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_stack_size(STACK_BYTES)
            .thread_name(panics::THREAD)
            .on_thread_start(|| storage::urgency::Urgency::OneAtATime.take())
            .enable_time()
            .build()
            .map_err(|e| failed("start the query threads", &e))?;
        panics::count();
        let metrics = Metrics::default();
        let ids = first_id(&cluster);
        let inner = Arc::new_cyclic(|engine| Inner {
            worker: distribute::worker(engine.clone(), env.clone()),
            sessions: Sessions::new(env, options.threads, cluster.peers().is_some()),
            running: Running::new(ids, options.max_concurrent, options.max_concurrent_per_token, metrics.clone()),
            plans: PlanCache::default(),
            went_whole: WentWhole::default(),
            visits: Visits::default(),
            cluster,
            options,
            sources,
            metrics,
        });
        Ok(Arc::new(Engine { inner, runtime: Some(runtime) }))
    }

    /// Figures over all queries.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Where queries run.
    pub(crate) fn handle(&self) -> &Handle {
        self.runtime.as_ref().expect("the runtime goes with the engine").handle()
    }

    /// The longest statement that is read, for doors that must not read more.
    pub fn max_sql_bytes(&self) -> usize {
        self.inner.options.max_sql_bytes
    }

    /// Runs one statement, on this node and on those that it needs. Returns once its first rows are there.
    pub async fn run(&self, database: &str, sql: &str, options: RunOptions) -> Result<Answer> {
        self.start(database, sql, options, (self.inner.options.clock)(), Reach::Cluster).await
    }

    /// Runs a statement for another node that found all of it to be here.
    pub(crate) async fn run_here(&self, database: &str, sql: &str, options: RunOptions, now: Timestamp) -> Result<Answer> {
        self.start(database, sql, options, now, Reach::Here).await
    }

    async fn start(&self, database: &str, sql: &str, options: RunOptions, now: Timestamp, reach: Reach) -> Result<Answer> {
        let engine = self.inner.clone();
        let started = Instant::now();
        let timeout = match options.timeout {
            Some(asked) => asked.min(engine.options.max_timeout),
            None if command::is_upkeep(sql) => engine.options.max_timeout,
            None => engine.options.default_timeout,
        };
        let asked = Asked { database, sql, token: options.access.name(), started: now, timeout };
        let ticket = engine.running.admit(asked).inspect_err(|_| {
            self.inner.metrics.refused.inc();
        })?;
        let (id, stop, mut killed) = (ticket.id, ticket.stop.clone(), ticket.killed.clone());
        let question = Question { engine, database: database.into(), sql: sql.to_owned(), options, now, reach };
        let (parts, receiver) = mpsc::channel(WAITING_BATCHES);
        let (ready, begun) = oneshot::channel();
        let span = tracing::info_span!("query", id, database);
        let driver = Task(self.handle().spawn(drive(question, ticket, ready, parts).instrument(span)));
        let abandoned = Abandon(stop.clone());
        let begun = tokio::select! {
            biased;
            begun = begun => begun.unwrap_or_else(|_| Err(Error::Engine { message: "the query ended without an answer".to_owned() }))?,
            e = overdue(&stop, &mut killed) => return Err(e),
        };
        let Begun { schema, scope } = begun;
        Ok(Answer { id, schema, parts: receiver, scope, killed, started, over: false, _abandoned: abandoned, _driver: driver })
    }

    /// Answers what other nodes ask of this one's queries.
    pub fn peer_service(self: &Arc<Engine>) -> PeerService {
        PeerService::new(self.clone())
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Waiting for the threads here would block whoever drops the engine; queries under way just end.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Where the numbers of a node's queries begin: they are the cluster's, so that `KILL QUERY` means one.
fn first_id(cluster: &Cluster) -> u64 {
    const OF_ONE_NODE: u32 = 32;
    const NODES: u64 = 1 << 20;
    match cluster.peers() {
        None => 0,
        Some(_) => (cluster.node_id().0 % NODES) << OF_ONE_NODE,
    }
}

/// Ends a query that nobody waits for.
pub(crate) struct Abandon(Arc<Stop>);

impl Drop for Abandon {
    fn drop(&mut self) {
        // The task is ended when it yields; a step that does not asks this.
        self.0.abandon();
    }
}
