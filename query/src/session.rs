//! DataFusion's settings for our queries.
//!
//! Making a session registers some 300 functions and rules, so one is made per database and copied for each query.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::DateTime;
use datafusion::catalog::Session;
use datafusion::common::Result;
use datafusion::execution::config::SessionConfig;
use datafusion::execution::context::QueryPlanner;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::session_state::SessionState;
use datafusion::execution::{SessionStateBuilder, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
use model::Timestamp;
use parking_lot::Mutex;

use crate::catalog::{CATALOG, Catalogs};
use crate::engine::{Inner, Shortcuts};
use crate::functions;
use crate::latest::Latest;
use crate::opaque::HideManyToOne;
use crate::scope::Scope;
use crate::stop::stoppable;
use crate::sweep::Sweeping;

/// Sessions kept ready; a node with more databases makes them anew.
const KEPT: usize = 64;

/// Ready made sessions by database.
pub(crate) struct Sessions {
    env: Arc<RuntimeEnv>,
    threads: usize,
    /// Whether plans may run on several nodes.
    spreads: bool,
    bare: SessionConfig,
    made: Mutex<HashMap<(Arc<str>, Shortcuts), SessionState>>,
}

impl Sessions {
    pub(crate) fn new(env: Arc<RuntimeEnv>, threads: usize, spreads: bool) -> Sessions {
        Sessions { env, threads, spreads, bare: SessionConfig::new().with_target_partitions(threads), made: Mutex::default() }
    }

    /// The session of one query.
    pub(crate) fn session(&self, scope: &Arc<Scope>, engine: &Arc<Inner>, now: Timestamp) -> SessionState {
        let mut state = self.base(&scope.database, scope.shortcuts);
        state.config_mut().set_extension(scope.clone());
        state.register_catalog_list(Arc::new(Catalogs { scope: scope.clone(), engine: engine.clone() }));
        state.execution_props_mut().query_execution_start_time = Some(DateTime::from_timestamp_nanos(now.0));
        state
    }

    /// What a plan that is made already needs to run: the scope and the bounds, but no functions.
    pub(crate) fn bare_context(&self, scope: &Arc<Scope>) -> Arc<TaskContext> {
        let config = self.bare.clone().with_extension(scope.clone());
        let (scalar, higher, aggregate, window) = Default::default();
        Arc::new(TaskContext::new(None, String::new(), config, scalar, higher, aggregate, window, self.env.clone()))
    }

    fn base(&self, database: &Arc<str>, shortcuts: Shortcuts) -> SessionState {
        let key = (database.clone(), shortcuts);
        if let Some(made) = self.made.lock().get(&key) {
            return made.clone();
        }
        let state = self.make(database, shortcuts);
        let mut made = self.made.lock();
        if made.len() >= KEPT {
            made.clear();
        }
        made.insert(key, state.clone());
        state
    }

    fn make(&self, database: &str, shortcuts: Shortcuts) -> SessionState {
        let mut config = SessionConfig::new()
            .with_create_default_catalog_and_schema(false)
            .with_default_catalog_and_schema(CATALOG, database)
            .with_information_schema(true)
            .with_target_partitions(self.threads);
        let options = config.options_mut();
        options.sql_parser.enable_ident_normalization = false;
        options.sql_parser.collect_spans = true;
        if self.spreads {
            // A subquery that is a step beside the plan cannot be cut into stages.
            options.optimizer.enable_physical_uncorrelated_scalar_subquery = false;
        }
        if shortcuts == Shortcuts::Off {
            options.optimizer.enable_dynamic_filter_pushdown = false;
            options.optimizer.enable_sort_pushdown = false;
            options.optimizer.enable_topk_aggregation = false;
            options.optimizer.repartition_aggregations = false;
        }
        let mut state = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(self.env.clone())
            .with_default_features()
            .with_query_planner(Arc::new(Planner))
            .with_optimizer_rule(Arc::new(HideManyToOne::new()))
            .with_physical_optimizer_rules(rules(shortcuts))
            .build();
        functions::register(&mut state);
        for name in ["latest", "LATEST", "Latest"] {
            state.register_udtf(name, Arc::new(Latest));
        }
        state
    }
}

/// DataFusion's rules for plans, and ours among them.
fn rules(shortcuts: Shortcuts) -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    let mut rules = PhysicalOptimizer::new().rules;
    if shortcuts == Shortcuts::On {
        let place = rules.iter().position(|r| r.name() == "PushdownSort").expect("DataFusion has this rule");
        rules.insert(place + 1, Arc::new(Sweeping));
    }
    rules
}

/// DataFusion's planner, and what our plans have besides.
#[derive(Debug)]
struct Planner;

#[async_trait]
impl QueryPlanner for Planner {
    async fn create_physical_plan(&self, logical: &LogicalPlan, session: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = DefaultPhysicalPlanner::default().create_physical_plan(logical, session).await?;
        stoppable(plan, &Scope::of(session.config())?.stop)
    }
}
