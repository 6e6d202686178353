//! One statement's journey: placed, planned, run where its shards are, answered.
//!
//! The first rows are awaited before the asker hears anything, because until then a query can begin anew: once, when a
//! node was lost or the schema is newer than the plan; a few times, when shards have moved or were split. After the first rows an error ends the
//! answer (DESIGN rule 10). The steps are [`Question::begin`] and [`Question::execute`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::Permission;
use datafusion::arrow::array::{RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, ParamValues, ScalarValue};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::tokenizer::TokenWithSpan;
use futures::{StreamExt, TryStreamExt, stream};
use model::schema::DEFAULT_DATABASE;
use model::{ErrorKind, NodeId, ShardId, Timestamp};
use tokio::sync::{mpsc, oneshot};

use crate::answer::{Part, overdue};
use crate::carry_out::carry_out;
use crate::command::Command;
use crate::dialect::Statements;
use crate::distribute::placement::{any_replica, only_scans, shards_of};
use crate::distribute::{Avoid, Course, Placement, calls, explained, gathered, spread};
use crate::engine::{Consistency, DEFAULT_MAX_LAG, Inner, Parameter, Partial, RunOptions, Shortcuts, Verbs};
use crate::error::Error;
use crate::panics::Until;
use crate::plan_cache::{Form, Values};
use crate::running::Ticket;
use crate::scope::{Scope, Setting};
use crate::stop::Stop;
use crate::subqueries::{Answers, subqueries};
use crate::{Result, allowed, command, limits};

/// How long a query waits for shards to have a leader again before it begins anew.
const LEADER_PATIENCE: Duration = Duration::from_secs(3);
/// How long a query waits until a split shard's halves can be read; one that is content with older rows waits for a replica.
const SPLIT_PATIENCE: Duration = Duration::from_secs(10);
const STALE_PATIENCE: Duration = Duration::from_millis(300);
/// Between two looks at who leads.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Which nodes may work on a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All that have a shard of it.
    Cluster,
    /// This one: another sent it here.
    Here,
}

/// One statement on its way.
pub(crate) struct Question {
    pub engine: Arc<Inner>,
    pub database: Arc<str>,
    pub sql: String,
    pub options: RunOptions,
    pub now: Timestamp,
    pub reach: Reach,
}

/// What is known of an answer once its first rows are there.
pub(crate) struct Begun {
    pub schema: SchemaRef,
    pub scope: Arc<Scope>,
}

/// A run's scope while the run goes on. Stages that have ended may be remembered for a while, and their scope with them:
/// what it holds is let go here.
struct Held(Arc<Scope>);

impl Deref for Held {
    type Target = Arc<Scope>;

    fn deref(&self) -> &Arc<Scope> {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Rows of a run.
struct Rows {
    stream: SendableRecordBatchStream,
    /// The plan, if several nodes work on it: it knows their figures at the end.
    spread: Option<Arc<dyn ExecutionPlan>>,
}

impl From<SendableRecordBatchStream> for Rows {
    fn from(stream: SendableRecordBatchStream) -> Rows {
        Rows { stream, spread: None }
    }
}

/// Begins the query, then passes its rows on until they end, the deadline passes, somebody kills it, or nobody wants it.
pub(crate) async fn drive(question: Question, mut ticket: Ticket, ready: oneshot::Sender<Result<Begun>>, parts: mpsc::Sender<Part>) {
    let bound = Bound(ticket.stop.clone());
    let panics = Until::now();
    let mut killed = ticket.killed.clone();
    let (scope, mut rows, first) = match question.begin_or_begin_anew(&bound, &mut ticket).await {
        Ok(begun) => begun,
        Err(e) => {
            log(&e);
            ticket.ended(Err(&e));
            let _ = ready.send(Err(e)); // Nobody waits if the asker has left.
            return;
        }
    };
    if ready.send(Ok(Begun { schema: rows.stream.schema(), scope: scope.0.clone() })).is_err() {
        return;
    }
    let figures = ticket.figures.clone();
    let mut next = first;
    let failed = loop {
        let Some(batch) = next else { break panics.none_since().err() };
        figures.rows_answered.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
        match bound.run(&mut ticket, parts.send(Part::Rows(batch))).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(e) => break Some(e),
        }
        match bound.run(&mut ticket, rows.stream.next()).await {
            Ok(batch) => match batch.transpose() {
                Ok(batch) => next = batch,
                Err(e) => break Some(name_shards(&scope, e.into())),
            },
            Err(e) => break Some(e),
        }
    };
    drop(rows.stream);
    if let (None, Some(plan)) = (&failed, rows.spread) {
        gathered(plan, &scope).await;
    }
    // Whoever reads the answer slowly, or not at all, holds no file and no memtable.
    scope.release();
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
    // The same: nobody may be there, or be there and not read. The answer then says by itself why it is not whole.
    tokio::select! {
        biased;
        _ = parts.send(last) => {}
        _ = overdue(&bound.0, &mut killed) => {}
    }
}

fn log(e: &Error) {
    match e.kind() {
        ErrorKind::YourRequest => tracing::debug!(error = %e, "query failed"),
        ErrorKind::TryAgain => tracing::info!(error = %e, "query failed"),
        ErrorKind::Broken => tracing::error!(error = %e, "query failed"),
    }
}

/// Says which shards a lost node was to read.
fn name_shards(scope: &Scope, e: Error) -> Error {
    let Error::Lost { node: Some(node), why } = e else { return e };
    let placement = scope.placement();
    let shards: Vec<String> = placement.nodes().iter().filter(|(_, n)| **n == node).map(|(shard, _)| shard.to_string()).collect();
    match shards.is_empty() {
        true => Error::Lost { node: Some(node), why },
        false => Error::Lost { node: None, why: format!("could not read shard {}: {why}", shards.join(", ")) },
    }
}

/// How often a query may begin anew after this error. Shards that move or are split have other leaders several times in a
/// row, each of which is known a moment later; a node that was lost has taken its time already.
fn attempts_after(e: &Error) -> u32 {
    match e {
        // Others may keep adding to the table meanwhile.
        Error::StaleSchema { .. } | Error::Storage(storage::Error::StaleSchema { .. }) => 5,
        Error::Elsewhere { .. }
        | Error::Cluster(cluster::Error::NotHere { .. } | cluster::Error::NoLeader { .. } | cluster::Error::RangeChanged { .. }) => 5,
        _ => 1,
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
    /// The run whose first rows are there: the first, or another where that can help.
    async fn begin_or_begin_anew(&self, bound: &Bound, ticket: &mut Ticket) -> Result<(Held, Rows, Option<RecordBatch>)> {
        let mut avoid = Avoid::default();
        let acts = AtomicBool::new(false);
        let mut too_old = None;
        for attempt in 0.. {
            let scope = Held(Arc::new(self.scope(ticket, attempt, &avoid)));
            let begun = async {
                let mut rows = self.begin(&scope, attempt, &acts).await?;
                let first = rows.stream.try_next().await?;
                Ok((rows, first))
            };
            let e = match bound.run(ticket, begun).await.and_then(|begun| begun) {
                Ok((rows, first)) => return Ok((scope, rows, first)),
                Err(e) => e,
            };
            // Each node or shard that is left out is a step forward.
            let left_out = (avoid.nodes.len() + avoid.shards.len()) as u32;
            let may = attempt < attempts_after(&e) + left_out && self.reach == Reach::Cluster && !acts.load(Ordering::Relaxed);
            let again = may && bound.run(ticket, self.can_begin_anew(&scope, attempt, &e, &mut avoid)).await?;
            if let Error::TooOld { shard, why } = &e {
                too_old.get_or_insert((*shard, why.clone()));
            }
            if !again {
                // That a replica answers and is too old says more than that the others do not.
                return Err(too_old.map_or_else(|| name_shards(&scope, e), |(shard, why)| Error::TooOld { shard, why }));
            }
            tracing::info!(error = %e, "the query begins anew");
            self.engine.metrics.begun_anew.inc();
        }
        unreachable!("some attempt is the last")
    }

    /// The world of one attempt.
    fn scope(&self, ticket: &Ticket, attempt: u32, avoid: &Avoid) -> Scope {
        let cluster = &self.engine.cluster;
        let max_lag = match self.reach {
            Reach::Cluster => self.options.max_lag.unwrap_or(DEFAULT_MAX_LAG),
            // It is here that it should be read: one that is too old says so.
            Reach::Here => Duration::MAX,
        };
        let setting = Setting {
            database: self.database.clone(),
            run: format!("{}-{}-{}-{attempt}", cluster.node_id(), cluster.this_node().incarnation, ticket.id).into(),
            now: self.now,
            placement: Placement::take(cluster, self.options.consistency, max_lag, avoid),
            map: cluster.shard_map(),
        };
        Scope::new(cluster.clone(), setting, &self.options, ticket)
    }

    /// Whether another attempt may go better. Waits for that, within bounds.
    async fn can_begin_anew(&self, scope: &Scope, attempt: u32, e: &Error, avoid: &mut Avoid) -> bool {
        let cluster = &self.engine.cluster;
        match e {
            Error::StaleSchema { .. } | Error::Storage(storage::Error::StaleSchema { .. }) => cluster.refresh().await.is_ok(),
            // It is split; a replica that does not lead hears of it a little later than the map shows it.
            Error::Cluster(cluster::Error::RangeChanged { shard }) => {
                let ranges: Vec<_> = scope.map.range_of_shard(*shard).cloned().into_iter().collect();
                let patience = if self.options.consistency == Consistency::Stale { STALE_PATIENCE } else { SPLIT_PATIENCE };
                cluster.wait_for_other_ranges(&ranges, patience).await || self.options.consistency == Consistency::Stale
            }
            // Another node may have agreed on it just now.
            Error::Sql { .. } | Error::NoDatabase { .. } if cluster.peers().is_some() => {
                cluster.refresh().await.is_ok() && cluster.catalog().version > scope.catalog.version
            }
            Error::Elsewhere { shard, .. } | Error::Cluster(cluster::Error::NotHere { shard, .. } | cluster::Error::NoLeader { shard }) => {
                match self.options.partial {
                    // It may have moved just now. If it has not, its leader has lost its majority.
                    Partial::Allow => attempt == 0 || avoid.shards.insert(*shard),
                    Partial::Refuse => self.wait_for_leaders(&[*shard].into(), None).await,
                }
            }
            // Another replica may be newer.
            Error::TooOld { shard, .. } => match scope.placement().node_of(*shard) {
                Some(node) => {
                    avoid.nodes.insert(node);
                    any_replica(cluster, *shard, scope.max_lag, &avoid.nodes).is_some()
                }
                None => false,
            },
            // Any other replica will do.
            Error::Lost { node: Some(node), .. } if self.options.consistency == Consistency::Stale => avoid.nodes.insert(*node),
            Error::Lost { node: Some(node), .. } => match self.options.partial {
                Partial::Allow => avoid.nodes.insert(*node),
                Partial::Refuse => {
                    let placement = scope.placement();
                    let shards = placement.nodes().iter().filter(|(_, n)| *n == node).map(|(shard, _)| *shard).collect();
                    self.wait_for_leaders(&shards, Some(*node)).await
                }
            },
            Error::Lost { node: None, .. } => true,
            _ => false,
        }
    }

    /// Returns when each of these shards is led, by another node than `lost` unless that answers again.
    async fn wait_for_leaders(&self, shards: &BTreeSet<ShardId>, lost: Option<NodeId>) -> bool {
        let cluster = &self.engine.cluster;
        let all_led = async {
            for &shard in shards {
                loop {
                    if cluster.leader(shard).is_none_or(|leader| leader != cluster.node_id()) {
                        cluster.led_by(shard, None);
                    }
                    match cluster.find_leader(shard).await {
                        Some(leader) if Some(leader) != lost || cluster.is_alive(leader).await => break,
                        _ => tokio::time::sleep(LOOK_AGAIN).await,
                    }
                }
            }
        };
        tokio::time::timeout(LEADER_PATIENCE, all_led).await.is_ok()
    }

    /// The steps of every statement: bounds, command or plan, execution. A command `acts`: it is not begun anew, because part
    /// of it may be done.
    async fn begin(&self, scope: &Arc<Scope>, attempt: u32, acts: &AtomicBool) -> Result<Rows> {
        let refused = |_: &Error| {
            self.engine.metrics.refused.inc();
        };
        let tokens = limits::tokens(&self.sql, self.engine.options.max_sql_bytes).inspect_err(refused)?;
        let access = &self.options.access;
        match command::parse(&tokens, &self.database).inspect_err(refused)? {
            None => {
                access.check(Permission::Read, Some(&self.database))?;
                self.execute(scope, attempt, &self.sql, &tokens).await
            }
            Some(Command::Show { sql, of }) => {
                access.check(Permission::Read, Some(&self.database))?;
                of.map_or(Ok(()), |of| of.check(&scope.catalog))?;
                let tokens = limits::tokens(&sql, self.engine.options.max_sql_bytes)?;
                self.execute(scope, attempt, &sql, &tokens).await
            }
            Some(command) if self.options.verbs == Verbs::Ask => Err(Error::ReadOnly { what: command.name().to_owned() }),
            Some(command) => {
                let (permission, database) = command.needs(&self.database);
                access.check(permission, database)?;
                acts.store(true, Ordering::Relaxed);
                said(carry_out(command, &self.database, access.only_database(), &self.engine).await?).map(Rows::from)
            }
        }
    }

    /// The steps of every question: a plan, the nodes of its shards, the rows.
    async fn execute(&self, scope: &Arc<Scope>, attempt: u32, sql: &str, tokens: &[TokenWithSpan]) -> Result<Rows> {
        // A new node has no database yet; the default one is there for whoever asks.
        if scope.catalog.database(&self.database).is_none() && *self.database != *DEFAULT_DATABASE {
            return Err(Error::NoDatabase { name: self.database.to_string() });
        }
        let keeps = scope.shortcuts == Shortcuts::On && self.options.parameters.is_empty();
        let form = keeps.then(|| Form::of(scope, tokens, sql)).flatten();
        if attempt == 0
            && let Some((form, values)) = &form
            && let Some(node) = self.node_by_form(scope, form, values).await?
        {
            return self.send_whole(scope, node, sql).await;
        }
        let planned = form.clone();
        let mut has_answers = false;
        let mut made_of = None;
        let kept = form.as_ref().and_then(|(form, values)| self.engine.plans.get(scope, form, values));
        let (plan, session) = match kept {
            Some(plan) => {
                self.engine.metrics.plans_reused.inc();
                (reset_plan_states(plan)?, None)
            }
            None => {
                let session = self.engine.sessions.session(scope, &self.engine, self.now);
                let (logical, plan, answered) = self.plan(scope, &session, sql).await?;
                // What stands in the place of a subquery is of this run.
                has_answers = answered;
                if let Some((form, values)) = form.filter(|_| !has_answers) {
                    self.engine.plans.keep(scope, form, values, &logical, &plan);
                }
                let plan = match &logical {
                    LogicalPlan::Explain(explain) if !scope.placement().is_alone() => {
                        explained(&self.engine, scope, &session, explain, plan).await?
                    }
                    _ => plan,
                };
                made_of = Some(logical);
                (plan, Some(session))
            }
        };
        let shards = shards_of(&plan);
        let course = self.course(scope, &shards).await?;
        // Whoever gets a whole statement knows nothing of shards that may be left out.
        let whole = scope.partial == Partial::Refuse;
        let goes_whole = whole && !has_answers && matches!(course, Course::There(_)) && scope.only.is_none() && only_scans(&plan);
        if let (Reach::Cluster, true, Some((form, values))) = (self.reach, whole, planned) {
            let one = shards.first().copied().filter(|_| goes_whole && shards.len() == 1);
            self.engine.went_whole.note(scope, form, &values, one);
        }
        match course {
            Course::There(node) if goes_whole => self.send_whole(scope, node, sql).await,
            course => self.run_plan(scope, session, plan, made_of.as_ref(), &shards, course).await,
        }
    }

    /// The rows of a plan that is not sent whole.
    async fn run_plan(
        &self,
        scope: &Arc<Scope>,
        session: Option<SessionState>,
        plan: Arc<dyn ExecutionPlan>,
        made_of: Option<&LogicalPlan>,
        shards: &BTreeSet<ShardId>,
        course: Course,
    ) -> Result<Rows> {
        match course {
            Course::Spread => {
                let session = session.unwrap_or_else(|| self.engine.sessions.session(scope, &self.engine, self.now));
                let (plan, session) = spread(&self.engine, scope, session, plan, made_of).await?;
                scope.await_lag();
                shards.iter().for_each(|shard| scope.touch(*shard));
                Ok(Rows { stream: execute_stream(plan.clone(), session.task_ctx())?, spread: Some(plan) })
            }
            // What is elsewhere is read from there, row by row.
            Course::Here | Course::There(_) => {
                let context = session.map_or_else(|| self.engine.sessions.bare_context(scope), |session| session.task_ctx());
                execute_stream(plan, context).map(Rows::from).map_err(Error::from)
            }
        }
    }

    /// The other node that has all of what a statement of this form is about, if that is known without a plan.
    async fn node_by_form(&self, scope: &Scope, form: &Form, values: &Values) -> Result<Option<NodeId>> {
        if self.reach != Reach::Cluster || scope.only.is_some() || scope.partial != Partial::Refuse {
            return Ok(None);
        }
        let Some(shard) = self.engine.went_whole.shard(scope, form, values) else { return Ok(None) };
        match self.course(scope, &BTreeSet::from([shard])).await? {
            Course::There(node) => Ok(Some(node)),
            _ => Ok(None),
        }
    }

    /// Where a plan that reads these shards is run.
    async fn course(&self, scope: &Scope, shards: &BTreeSet<ShardId>) -> Result<Course> {
        scope.find(shards).await;
        let placement = scope.placement();
        for &shard in shards.iter().filter(|shard| placement.node_of(**shard).is_none()) {
            match scope.partial {
                Partial::Allow => scope.leave_out(shard)?,
                Partial::Refuse => return Err(cluster::Error::NoLeader { shard }.into()),
            }
        }
        let course = placement.course(shards);
        match (self.reach, course) {
            (Reach::Cluster, _) | (_, Course::Here) => Ok(course),
            (Reach::Here, _) => {
                let shard = shards.iter().find(|shard| placement.node_of(**shard) != Some(placement.me())).copied().unwrap_or(ShardId(0));
                Err(Error::Elsewhere { shard, why: format!("shard {shard} is not led by the node that was asked for it") })
            }
        }
    }

    async fn send_whole(&self, scope: &Arc<Scope>, node: NodeId, sql: &str) -> Result<Rows> {
        let statement = calls::Statement { sql: sql.to_owned(), parameters: self.options.parameters.clone() };
        let (schema, rows) = calls::run(scope.clone(), node, &statement).await?;
        let stream: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema, rows.map_err(Error::inside)));
        Ok(stream.into())
    }

    /// The plan of a statement, and whether values stand in it that were asked for first.
    async fn plan(&self, scope: &Arc<Scope>, session: &SessionState, sql: &str) -> Result<(LogicalPlan, Arc<dyn ExecutionPlan>, bool)> {
        let plan = session.statement_to_plan(parse(session, sql)?).await?;
        limits::check_plan(&plan)?;
        allowed::check(&plan)?;
        scope.declares_order.store(!has_windows(&plan)?, Ordering::Relaxed);
        let plan = match self.options.parameters.is_empty() {
            true => plan,
            false => plan.with_param_values(values(&self.options.parameters))?,
        };
        let (plan, answered) = match scope.placement().is_alone() {
            // DataFusion runs such a subquery as a step beside the plan, which cannot be cut into stages.
            false => self.with_answers(scope, session, plan).await?,
            true => (plan, false),
        };
        let steps = session.create_physical_plan(&plan).await?;
        Ok((plan, steps, answered))
    }

    /// The plan with values in the place of subqueries that give one and depend on nothing around them; inner ones first.
    async fn with_answers(&self, scope: &Arc<Scope>, session: &SessionState, plan: LogicalPlan) -> Result<(LogicalPlan, bool)> {
        let mut answers = Answers::default();
        for subquery in subqueries(&plan)?.into_iter().rev() {
            if !answers.have(&subquery) {
                let asked = answers.put_into(subquery.subquery.as_ref().clone())?;
                let value = self.answer(scope, session, asked).await?;
                answers.add(subquery, value);
            }
        }
        match answers.is_empty() {
            true => Ok((plan, false)),
            false => Ok((answers.put_into(plan)?, true)),
        }
    }

    /// The one value that a plan gives.
    async fn answer(&self, scope: &Arc<Scope>, session: &SessionState, plan: LogicalPlan) -> Result<ScalarValue> {
        // Two are enough to know that it is not one.
        let plan = LogicalPlanBuilder::from(plan).limit(0, Some(2))?.build()?;
        let steps = session.create_physical_plan(&plan).await?;
        let shards = shards_of(&steps);
        let course = self.course(scope, &shards).await?;
        let mut rows = self.run_plan(scope, Some(session.clone()), steps, Some(&plan), &shards, course).await?;
        let mut value = ScalarValue::try_from(rows.stream.schema().field(0).data_type())?;
        let mut count = 0;
        while let Some(batch) = rows.stream.try_next().await? {
            count += batch.num_rows();
            if count > 1 {
                return Err(Error::sql(
                    "a subquery that stands for one value gives several rows: choose one, with LIMIT 1 or an aggregate",
                ));
            }
            if batch.num_rows() == 1 {
                value = ScalarValue::try_from_array(batch.column(0), 0)?;
            }
        }
        drop(rows.stream);
        if let Some(plan) = rows.spread {
            gathered(plan, scope).await;
        }
        Ok(value)
    }
}

/// Whether a plan, or a subquery in it, has window functions.
fn has_windows(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|step| {
        found |= matches!(step, LogicalPlan::Window(_));
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// The one statement of the text.
fn parse(session: &SessionState, sql: &str) -> Result<Statement> {
    let mut statements = DFParserBuilder::new(sql)
        .with_dialect(&Statements)
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
