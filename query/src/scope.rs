//! What the scans of one query share: one read point per shard, one catalog, one set of figures (DESIGN rule 9).
//!
//! A shard's view is taken when the first scan of the query asks for it and is the same for all others, so two scans of
//! a table in one query agree. A shard that cannot be read is an error, never empty, unless the asker said
//! `partial=allow`; then it is named in the answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cluster::Cluster;
use datafusion::common::DataFusionError;
use datafusion::execution::config::SessionConfig;
use model::{Catalog, ShardId};
use parking_lot::Mutex;
use storage::View;
use tokio::sync::OnceCell;

use crate::engine::{Partial, RunOptions, Shortcuts};
use crate::error::Error;
use crate::running::Ticket;
use crate::stop::Stop;

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

/// One query's view of the world.
pub(crate) struct Scope {
    pub cluster: Arc<Cluster>,
    /// The catalog that the query is planned against: what its asker may not see is not in it.
    pub catalog: Arc<Catalog>,
    /// The one database that the asker may see, if it is not all of them.
    pub only: Option<Arc<str>>,
    /// The database of names that name none.
    pub database: Arc<str>,
    pub shortcuts: Shortcuts,
    pub partial: Partial,
    pub figures: Arc<Figures>,
    /// When it must end.
    pub stop: Arc<Stop>,
    views: Mutex<BTreeMap<ShardId, Arc<OnceCell<Arc<View>>>>>,
    missing: Mutex<BTreeSet<ShardId>>,
}

impl Scope {
    pub(crate) fn new(cluster: Arc<Cluster>, database: Arc<str>, options: &RunOptions, ticket: &Ticket) -> Arc<Scope> {
        let only = options.access.only_database().cloned();
        let mut catalog = cluster.catalog();
        if let Some(only) = &only {
            let databases = catalog.database(only).map(|database| (only.clone(), database.clone())).into_iter().collect();
            catalog = Arc::new(Catalog { version: catalog.version, databases });
        }
        let (shortcuts, partial) = (options.shortcuts, options.partial);
        Arc::new(Scope {
            cluster,
            catalog,
            only,
            database,
            shortcuts,
            partial,
            figures: ticket.figures.clone(),
            stop: ticket.stop.clone(),
            views: Mutex::default(),
            missing: Mutex::default(),
        })
    }

    /// Whether the asker may see what belongs to a database.
    pub(crate) fn sees(&self, database: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == database)
    }

    /// The scope that a plan runs in.
    pub(crate) fn of(config: &SessionConfig) -> Result<Arc<Scope>, DataFusionError> {
        config.get_extension::<Scope>().ok_or_else(|| DataFusionError::Internal("a scan ran outside of a query".to_owned()))
    }

    /// The query's view of a shard; `None` where it cannot be read and the asker is content with a part.
    pub(crate) async fn view(&self, shard: ShardId) -> Result<Option<Arc<View>>, Error> {
        let cell = self.views.lock().entry(shard).or_default().clone();
        let taken = cell
            .get_or_try_init(|| async {
                let view = self.cluster.read(shard).await?;
                self.figures.shards.fetch_add(1, Ordering::Relaxed);
                Ok::<_, cluster::Error>(Arc::new(view))
            })
            .await;
        match (taken, self.partial) {
            (Ok(view), _) => Ok(Some(view.clone())),
            (Err(e), Partial::Refuse) => Err(e.into()),
            (Err(e), Partial::Allow) => {
                tracing::warn!(%shard, error = %e, "answering without a shard, as the query allows");
                self.missing.lock().insert(shard);
                Ok(None)
            }
        }
    }

    /// Shards that were left out.
    pub(crate) fn missing(&self) -> Vec<ShardId> {
        self.missing.lock().iter().copied().collect()
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("database", &self.database).field("catalog", &self.catalog.version).finish_non_exhaustive()
    }
}
