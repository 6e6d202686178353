//! What the scans of one query share: one read point per shard, one catalog, one set of figures (DESIGN rule 9).
//!
//! A shard's view is taken when the first scan of the query asks for it and is the same for all others, so two scans of
//! a table in one query agree; on another node that reads shards for the query, the same holds there. A shard that cannot
//! be read is an error, never empty, unless the asker said `partial=allow`; then it is named in the answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use cluster::{Cluster, ShardMap};
use datafusion::common::DataFusionError;
use datafusion::execution::config::SessionConfig;
use http::Response;
use hyper::body::Incoming;
use model::{Catalog, Epoch, NodeId, ShardId, Timestamp};
use parking_lot::Mutex;
use storage::View;
use tokio::sync::OnceCell;

use crate::distribute::head::Head;
use crate::distribute::{Placement, calls};
use crate::engine::{Consistency, DEFAULT_MAX_LAG, Partial, RunOptions, Shortcuts};
use crate::error::Error;
use crate::running::Ticket;
use crate::stop::Stop;
use crate::told::Told;

/// Counted while a query runs, read by its answer, `system.queries` and the metrics.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub rows_scanned: AtomicU64,
    pub rows_answered: AtomicU64,
    pub shards: AtomicU64,
}

impl Figures {
    pub(crate) fn scanned(&self, rows: usize) {
        self.rows_scanned.fetch_add(rows as u64, Ordering::Relaxed);
    }
}

/// What a query is run with.
pub(crate) struct Setting {
    pub database: Arc<str>,
    /// The run's name among all of the cluster.
    pub run: Arc<str>,
    /// The time that `now()` gives.
    pub now: Timestamp,
    pub placement: Placement,
    /// The shards as they are when the run begins.
    pub map: Arc<ShardMap>,
}

/// One run of a query: its view of the world.
pub(crate) struct Scope {
    pub cluster: Arc<Cluster>,
    /// The catalog that the query is planned against: what its asker may not see is not in it.
    pub catalog: Arc<Catalog>,
    /// The shards that the query is planned with.
    pub map: Arc<ShardMap>,
    /// The one database that the asker may see, if it is not all of them.
    pub only: Option<Arc<str>>,
    /// The asker's token's name; empty where there is none.
    pub asker: Arc<str>,
    /// The database of names that name none.
    pub database: Arc<str>,
    pub shortcuts: Shortcuts,
    pub partial: Partial,
    pub consistency: Consistency,
    /// How old stale rows may be.
    pub max_lag: Duration,
    pub figures: Arc<Figures>,
    /// When it must end.
    pub stop: Arc<Stop>,
    pub run: Arc<str>,
    pub now: Timestamp,
    /// Whether scans say in which order their rows come. Not below window functions: DataFusion turns those round that want the
    /// opposite order, and of some gives the values of the order that they then have.
    pub declares_order: AtomicBool,
    /// Which node reads which shard.
    placement: ArcSwap<Placement>,
    /// Whether another node coordinates it.
    visiting: bool,
    /// For how many it works here: the query that it belongs to, or the requests of others.
    guests: AtomicUsize,
    views: Mutex<BTreeMap<ShardId, Arc<OnceCell<Arc<View>>>>>,
    visits: Mutex<BTreeMap<NodeId, Arc<OnceCell<Response<Incoming>>>>>,
    touched: Mutex<BTreeSet<ShardId>>,
    missing: Mutex<Missing>,
    /// The greatest age of what was read, in milliseconds and one more; 0: nothing stale was read.
    lag: AtomicU64,
    /// Other nodes that read something and have not told yet how old it is.
    lags_awaited: AtomicUsize,
}

/// The shards that an answer lacks.
#[derive(Default)]
struct Missing {
    shards: BTreeSet<ShardId>,
    /// They were named already: there can be no more.
    told: bool,
}

/// How old an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lag {
    /// The age of the oldest thing that was read.
    Known(Duration),
    /// Another node has not told yet.
    Unknown,
}

impl Scope {
    /// Of a query that this node coordinates.
    pub(crate) fn new(cluster: Arc<Cluster>, setting: Setting, options: &RunOptions, ticket: &Ticket) -> Scope {
        let only = options.access.only_database().cloned();
        let mut catalog = cluster.catalog();
        if let Some(only) = &only {
            let databases = catalog.database(only).map(|database| (only.clone(), database.clone())).into_iter().collect();
            catalog = Arc::new(Catalog { databases, ..(*catalog).clone() });
        }
        Scope {
            cluster,
            catalog,
            map: setting.map,
            only,
            asker: options.access.name().into(),
            database: setting.database,
            shortcuts: options.shortcuts,
            partial: options.partial,
            consistency: options.consistency,
            max_lag: options.max_lag.unwrap_or(DEFAULT_MAX_LAG),
            figures: ticket.figures.clone(),
            stop: ticket.stop.clone(),
            run: setting.run,
            now: setting.now,
            declares_order: AtomicBool::new(true),
            placement: ArcSwap::from_pointee(setting.placement),
            visiting: false,
            guests: AtomicUsize::new(1),
            views: Mutex::default(),
            visits: Mutex::default(),
            touched: Mutex::default(),
            missing: Mutex::default(),
            lag: AtomicU64::new(0),
            lags_awaited: AtomicUsize::new(0),
        }
    }

    /// Of a query that another node coordinates: what it reads here is named in its plans.
    pub(crate) fn visiting(cluster: Arc<Cluster>, head: &Head) -> Scope {
        Scope {
            catalog: cluster.catalog(),
            map: cluster.shard_map(),
            only: None,
            asker: "".into(),
            database: head.database.clone(),
            shortcuts: head.shortcuts,
            partial: Partial::Refuse,
            consistency: head.consistency,
            max_lag: head.max_lag,
            figures: Arc::default(),
            stop: Stop::after(0, head.left),
            run: head.run.clone(),
            now: head.now,
            declares_order: AtomicBool::new(true),
            placement: ArcSwap::from_pointee(Placement::nowhere(cluster.node_id())),
            cluster,
            visiting: true,
            guests: AtomicUsize::new(0),
            views: Mutex::default(),
            visits: Mutex::default(),
            touched: Mutex::default(),
            missing: Mutex::default(),
            lag: AtomicU64::new(0),
            lags_awaited: AtomicUsize::new(0),
        }
    }

    /// Which node reads which shard, as far as that is known.
    pub(crate) fn placement(&self) -> Arc<Placement> {
        self.placement.load_full()
    }

    /// Asks around for shards whose node is not known.
    pub(crate) async fn find(&self, shards: &BTreeSet<ShardId>) {
        if let Some(found) = self.placement().find(&self.cluster, shards).await {
            self.placement.store(Arc::new(found));
        }
    }

    /// Whether the asker may see what belongs to a database.
    pub(crate) fn sees(&self, database: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == database)
    }

    /// The scope that a plan runs in.
    pub(crate) fn of(config: &SessionConfig) -> Result<Arc<Scope>, DataFusionError> {
        config.get_extension::<Scope>().ok_or_else(|| DataFusionError::Internal("a scan ran outside of a query".to_owned()))
    }

    /// Carries an error through DataFusion, and to the node that coordinates the query.
    pub(crate) fn fail(&self, e: Error) -> DataFusionError {
        match self.visiting {
            true => DataFusionError::Execution(Told::of(&e).text()),
            false => e.inside(),
        }
    }

    /// The versions of shards' ranges that the query is planned with.
    pub(crate) fn versions(&self, shards: &[ShardId]) -> BTreeMap<ShardId, Epoch> {
        shards.iter().filter_map(|&shard| Some((shard, self.map.range_of_shard(shard)?.version))).collect()
    }

    /// The query's view of a shard of this node, if its range has the version that the scan was planned with: of another
    /// range it would hold other rows than are asked for. `None` where it cannot be read and the asker is content with a part.
    pub(crate) async fn view(&self, shard: ShardId, version: Option<Epoch>) -> Result<Option<Arc<View>>, Error> {
        let cell = self.views.lock().entry(shard).or_default().clone();
        let view = cell.get_or_try_init(|| self.take_view(shard)).await;
        let fits = |view: &&Arc<View>| version.is_none_or(|version| view.range_version() == version);
        let view = view.and_then(|view| Some(view).filter(fits).ok_or(cluster::Error::RangeChanged { shard }.into()));
        match (view, self.partial) {
            (Err(e @ Error::Cluster(cluster::Error::RangeChanged { .. })), _) => Err(e),
            (Ok(view), _) => Ok(Some(view.clone())),
            (Err(e), Partial::Refuse) => Err(e),
            (Err(e), Partial::Allow) => {
                tracing::warn!(%shard, error = %e, "answering without a shard, as the query allows");
                self.leave_out(shard)?;
                Ok(None)
            }
        }
    }

    async fn take_view(&self, shard: ShardId) -> Result<Arc<View>, Error> {
        let view = match self.consistency {
            Consistency::Linearizable => self.cluster.read(shard).await?,
            Consistency::Stale => {
                let (view, age) = self.cluster.read_stale(shard)?;
                let age = age.ok_or(cluster::Error::NoLeader { shard })?;
                if age > self.max_lag {
                    return Err(Error::too_old(shard, age, self.max_lag));
                }
                self.aged(Some(age.as_millis() as u64));
                view
            }
        };
        self.touch(shard);
        Ok(Arc::new(view))
    }

    /// Has a node keep its read points until this run is over.
    pub(crate) async fn visit(&self, node: NodeId) -> Result<(), Error> {
        let cell = self.visits.lock().entry(node).or_default().clone();
        cell.get_or_try_init(|| calls::visit(self, node)).await.map(|_| ())
    }

    /// Lets go of what was read, here and on other nodes; whoever holds the scope for longer holds little.
    pub(crate) fn release(&self) {
        self.views.lock().clear();
        self.visits.lock().clear();
    }

    /// A shard is read.
    pub(crate) fn touch(&self, shard: ShardId) {
        let mut touched = self.touched.lock();
        touched.insert(shard);
        self.figures.shards.store(touched.len() as u64, Ordering::Relaxed);
    }

    /// The shards that were read.
    pub(crate) fn touched(&self) -> Vec<ShardId> {
        self.touched.lock().iter().copied().collect()
    }

    /// The answer lacks a shard. An error if it has begun and does not say so.
    pub(crate) fn leave_out(&self, shard: ShardId) -> Result<(), Error> {
        let mut missing = self.missing.lock();
        if missing.told && !missing.shards.contains(&shard) {
            return Err(cluster::Error::NoLeader { shard }.into());
        }
        missing.shards.insert(shard);
        Ok(())
    }

    /// Shards that were left out.
    pub(crate) fn missing(&self) -> Vec<ShardId> {
        self.missing.lock().shards.iter().copied().collect()
    }

    /// The same, for an answer that begins now: from here on no other shard may be missing.
    pub(crate) fn tell_missing(&self) -> Vec<ShardId> {
        self.missing.lock().told = true;
        self.missing()
    }

    /// Something of this age was read.
    pub(crate) fn aged(&self, lag_ms: Option<u64>) {
        if let Some(lag_ms) = lag_ms {
            self.lag.fetch_max(lag_ms.saturating_add(1), Ordering::Relaxed);
        }
    }

    /// How old the oldest thing is that was read, where that was asked for.
    pub(crate) fn lag_ms(&self) -> Option<u64> {
        (self.consistency == Consistency::Stale).then(|| self.lag.load(Ordering::Relaxed).saturating_sub(1))
    }

    /// The same, as the answer says it.
    pub(crate) fn lag(&self) -> Option<Lag> {
        let lag = self.lag_ms()?;
        Some(match self.lags_awaited.load(Ordering::Relaxed) {
            0 => Lag::Known(Duration::from_millis(lag)),
            _ => Lag::Unknown,
        })
    }

    /// Another node reads something, whose age it tells at its end.
    pub(crate) fn await_lag(&self) {
        self.lags_awaited.fetch_add(1, Ordering::Relaxed);
    }

    /// It told.
    pub(crate) fn lag_told(&self, lag_ms: Option<u64>) {
        self.aged(lag_ms);
        self.lags_awaited.fetch_sub(1, Ordering::Relaxed);
    }

    /// Another request wants it to work here.
    pub(crate) fn come(&self) {
        self.guests.fetch_add(1, Ordering::Relaxed);
    }

    /// A request does not any more; whether it was the last.
    pub(crate) fn leave(&self) -> bool {
        self.guests.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("run", &self.run)
            .field("database", &self.database)
            .field("catalog", &self.catalog.version)
            .finish_non_exhaustive()
    }
}
