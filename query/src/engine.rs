//! The journey of one query, and what bounds it: memory, disk, time, number.
//!
//! Queries have a runtime of their own, so that raft and heartbeats never queue behind them; its threads have large
//! stacks, because planning recurses over the statement. A query stops within a batch's time of its deadline, of
//! `KILL QUERY`, or of its asker going away ([`crate::stop`]).

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cluster::{Access, Clock, Cluster, Permission};
use datafusion::arrow::array::{RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{DataFusionError, ParamValues, ScalarValue};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use futures::{StreamExt, stream};
use model::schema::DEFAULT_DATABASE;
use model::{ErrorKind, Timestamp};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use crate::Result;
use crate::answer::{Answer, Part, Task, WAITING_BATCHES};
use crate::carry_out::carry_out;
use crate::command::Command;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::plan_cache::PlanCache;
use crate::running::{Asked, Running, Ticket};
use crate::scope::Scope;
use crate::session::Sessions;
use crate::sources::Sources;
use crate::stop::Stop;
use crate::{allowed, command, limits};

/// Planning recurses over the statement; what `limits` lets through fits well into this.
const STACK_BYTES: usize = 32 << 20;
/// Threads that wait for disks at most; scans queue for them and never hold one while their reader is slow.
const BLOCKING_THREADS: usize = 64;

/// What bounds queries.
#[derive(Clone)]
pub struct QueryOptions {
    /// Bytes that all queries together may hold; beyond that they spill, then fail.
    pub memory_bytes: usize,
    /// Where they spill; emptied when the engine starts.
    pub spill_dir: PathBuf,
    /// Bytes that may be spilled.
    pub spill_bytes: u64,
    /// Time that a query has if it does not say.
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
#[derive(Clone, Debug, PartialEq)]
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
    sessions: Sessions,
    plans: PlanCache,
    metrics: Metrics,
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
            .thread_name("query")
            .enable_time()
            .build()
            .map_err(|e| failed("start the query threads", &e))?;
        let metrics = Metrics::default();
        let inner = Inner {
            sessions: Sessions::new(env, options.threads),
            running: Running::new(options.max_concurrent, options.max_concurrent_per_token, metrics.clone()),
            plans: PlanCache::default(),
            cluster,
            options,
            sources,
            metrics,
        };
        Ok(Arc::new(Engine { inner: Arc::new(inner), runtime: Some(runtime) }))
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

    /// Runs one statement. Returns once it is planned and begun, with the rows to come.
    pub async fn run(&self, database: &str, sql: &str, options: RunOptions) -> Result<Answer> {
        let engine = self.inner.clone();
        let (started, now) = (Instant::now(), (engine.options.clock)());
        let timeout = options.timeout.unwrap_or(engine.options.default_timeout).min(engine.options.max_timeout);
        let asked = Asked { database, sql, token: options.access.name(), started: now, timeout };
        let ticket = engine.running.admit(asked).inspect_err(|_| self.count_refused())?;
        let (id, killed) = (ticket.id, ticket.killed.clone());
        let scope = Scope::new(engine.cluster.clone(), database.into(), &options, &ticket);
        let question = Question { engine, scope: scope.clone(), sql: sql.to_owned(), options, now };
        let (parts, receiver) = mpsc::channel(WAITING_BATCHES);
        let (ready, begun) = oneshot::channel();
        let span = tracing::info_span!("query", id, database);
        let driver = Task(self.handle().spawn(drive(question, ticket, ready, parts).instrument(span)));
        // The task keeps the deadline by itself, except while it plans, which it does in one go.
        let schema = match tokio::time::timeout_at(scope.stop.deadline().into(), begun).await {
            Ok(Ok(begun)) => begun?,
            Ok(Err(_)) => return Err(Error::Engine { message: "the query ended without an answer".to_owned() }),
            Err(_) => return Err(Error::Deadline { after: timeout }),
        };
        Ok(Answer { id, schema, parts: receiver, scope, killed, started, over: false, _driver: driver })
    }

    fn count_refused(&self) {
        self.inner.metrics.refused.inc();
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

/// One statement on its way.
struct Question {
    engine: Arc<Inner>,
    scope: Arc<Scope>,
    sql: String,
    options: RunOptions,
    now: Timestamp,
}

/// Begins the query, then passes its rows on until they end, the deadline passes, somebody kills it, or nobody wants it.
async fn drive(question: Question, mut ticket: Ticket, ready: oneshot::Sender<Result<SchemaRef>>, parts: mpsc::Sender<Part>) {
    let bound = Bound(ticket.stop.clone());
    let mut rows = match bound.run(&mut ticket, question.begin()).await.and_then(|begun| begun) {
        Ok(rows) => rows,
        Err(e) => {
            log(&e);
            ticket.ended(Err(&e));
            let _ = ready.send(Err(e)); // Nobody waits if the asker has left.
            return;
        }
    };
    if ready.send(Ok(rows.schema())).is_err() {
        return;
    }
    let figures = ticket.figures.clone();
    let failed = loop {
        match bound.run(&mut ticket, rows.next()).await {
            Ok(Some(Ok(batch))) => {
                figures.rows_answered.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
                match bound.run(&mut ticket, parts.send(Part::Rows(batch))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return,
                    Err(e) => break Some(e),
                }
            }
            Ok(Some(Err(e))) => break Some(e.into()),
            Ok(None) => break None,
            Err(e) => break Some(e),
        }
    };
    drop(rows);
    let last = match failed {
        None => {
            ticket.ended(Ok(()));
            Part::End
        }
        Some(e) => {
            log(&e);
            ticket.ended(Err(&e));
            Part::Failed(e)
        }
    };
    let _ = parts.send(last).await; // The same: nobody may be there.
}

fn log(e: &Error) {
    match e.kind() {
        ErrorKind::YourRequest => tracing::debug!(error = %e, "query failed"),
        ErrorKind::TryAgain => tracing::info!(error = %e, "query failed"),
        ErrorKind::Broken => tracing::error!(error = %e, "query failed"),
    }
}

/// Until when a query may run.
struct Bound(Arc<Stop>);

impl Bound {
    async fn run<T>(&self, ticket: &mut Ticket, work: impl Future<Output = T>) -> Result<T> {
        tokio::select! {
            biased;
            () = ticket.wait_killed() => Err(self.0.killed()),
            done = tokio::time::timeout_at(self.0.deadline().into(), work) => done.map_err(|_| self.0.overdue()),
        }
    }
}

impl Question {
    /// The steps of every statement: bounds, command or plan, execution.
    async fn begin(&self) -> Result<SendableRecordBatchStream> {
        let refused = |_: &Error| {
            self.engine.metrics.refused.inc();
        };
        let tokens = limits::tokens(&self.sql, self.engine.options.max_sql_bytes).inspect_err(refused)?;
        let access = &self.options.access;
        match command::parse(&tokens, &self.scope.database).inspect_err(refused)? {
            None => {
                access.check(Permission::Read, Some(&self.scope.database))?;
                self.execute(&self.sql).await
            }
            Some(Command::Show { sql }) => {
                access.check(Permission::Read, Some(&self.scope.database))?;
                self.execute(&sql).await
            }
            Some(command) if self.options.verbs == Verbs::Ask => Err(Error::ReadOnly { what: command.name().to_owned() }),
            Some(command) => {
                let (permission, database) = command.needs(&self.scope.database);
                access.check(permission, database)?;
                said(carry_out(command, &self.scope.database, &self.engine).await?)
            }
        }
    }

    async fn execute(&self, sql: &str) -> Result<SendableRecordBatchStream> {
        let database = &self.scope.database;
        // A new node has no database yet; the default one is there for whoever asks.
        if self.scope.catalog.database(database).is_none() && **database != *DEFAULT_DATABASE {
            return Err(Error::NoDatabase { name: database.to_string() });
        }
        let keeps = self.scope.shortcuts == Shortcuts::On && self.options.parameters.is_empty();
        if keeps && let Some(plan) = self.engine.plans.get(&self.scope, sql) {
            self.engine.metrics.plans_reused.inc();
            let context = self.engine.sessions.bare_context(&self.scope);
            return Ok(execute_stream(reset_plan_states(plan)?, context)?);
        }
        let session = self.engine.sessions.session(&self.scope, &self.engine, self.now);
        let (logical, plan) = self.plan(&session, sql).await?;
        if keeps {
            self.engine.plans.keep(&self.scope, sql, &logical, &plan);
        }
        Ok(execute_stream(plan, session.task_ctx())?)
    }

    async fn plan(&self, session: &SessionState, sql: &str) -> Result<(LogicalPlan, Arc<dyn ExecutionPlan>)> {
        let plan = session.statement_to_plan(parse(session, sql)?).await?;
        limits::check_plan(&plan)?;
        allowed::check(&plan)?;
        let plan = match self.options.parameters.is_empty() {
            true => plan,
            false => plan.with_param_values(values(&self.options.parameters))?,
        };
        let steps = session.create_physical_plan(&plan).await?;
        Ok((plan, steps))
    }
}

/// The one statement of the text.
fn parse(session: &SessionState, sql: &str) -> Result<Statement> {
    let mut statements = DFParserBuilder::new(sql)
        .with_dialect(&GenericDialect {})
        .with_recursion_limit(session.config_options().sql_parser.recursion_limit.get())
        .build()?
        .parse_statements()?;
    match (statements.pop_front(), statements.is_empty()) {
        (Some(statement), true) => Ok(statement),
        (Some(_), false) => Err(Error::sql("one statement at a time: the text has several")),
        (None, _) => Err(Error::sql("the text has no statement")),
    }
}

fn values(parameters: &BTreeMap<String, Parameter>) -> ParamValues {
    let value = |p: &Parameter| match p {
        Parameter::Null => ScalarValue::Null,
        Parameter::Bool(b) => ScalarValue::Boolean(Some(*b)),
        Parameter::Int(i) => ScalarValue::Int64(Some(*i)),
        Parameter::UInt(u) => ScalarValue::UInt64(Some(*u)),
        Parameter::Float(f) => ScalarValue::Float64(Some(*f)),
        Parameter::Text(t) => ScalarValue::Utf8View(Some(t.clone())),
    };
    parameters.iter().map(|(name, p)| (name.clone(), value(p))).collect::<HashMap<String, ScalarValue>>().into()
}

/// A command's answer: one row that says what was done.
fn said(what: String) -> Result<SendableRecordBatchStream> {
    let schema = Arc::new(Schema::new(vec![Field::new("result", DataType::Utf8, false)]));
    let row = RecordBatch::try_new(schema.clone(), vec![Arc::new(StringArray::from(vec![what]))]).map_err(DataFusionError::from)?;
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter([Ok(row)]))))
}
