//! Moves the cutoffs of databases with a retention: first for those who ask this node, then in each shard's log.
//!
//! A cutoff is decided by the metadata group, so that it is the same after a restart, and has effect on rows by an
//! entry in each shard's log (DESIGN rule 12). It never moves back and never runs faster than time (`clock.rs`).

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::try_join_all;
use model::{DatabaseId, Timestamp};
use storage::entry::Entry;

use crate::clock::SteadyClock;
use crate::metadata::command::Command;
use crate::node::Cluster;
use crate::{Error, Result};

/// How often cutoffs move by themselves.
const EVERY: Duration = Duration::from_secs(60);

/// The cutoffs of all shards.
pub(crate) struct Cutoffs {
    cluster: Weak<Cluster>,
    clock: SteadyClock,
    /// What every shard has been told since the start; its lock keeps them in order.
    told: tokio::sync::Mutex<HashMap<DatabaseId, Timestamp>>,
}

impl Cutoffs {
    pub(crate) fn new(cluster: Weak<Cluster>, clock: SteadyClock) -> Arc<Cutoffs> {
        Arc::new(Cutoffs { cluster, clock, told: tokio::sync::Mutex::default() })
    }

    /// Moves them up to now; returns when every shard that runs has applied them.
    pub(crate) async fn advance(&self) -> Result<()> {
        let mut told = self.told.lock().await;
        let cluster = self.cluster.upgrade().ok_or(Error::ShuttingDown)?;
        let now = self.clock.now();
        let state = cluster.metadata.state().clone();
        for database in state.catalog.databases.values() {
            let Some(retention_ns) = database.retention_ns else { continue };
            let cutoff = Timestamp(now.0.saturating_sub(retention_ns));
            if state.cutoffs.get(&database.id).is_none_or(|&before| before < cutoff) {
                cluster.metadata.decide(Command::Cutoff { database: database.id, cutoff }).await?;
            }
        }
        let cutoffs = cluster.metadata.state().cutoffs.clone();
        for (&database, &cutoff) in cutoffs.iter() {
            if told.get(&database).is_some_and(|&before| before >= cutoff) {
                continue;
            }
            // One that has stopped is told when it starts again.
            let shards = cluster.shards_that_run();
            try_join_all(shards.into_iter().map(|shard| cluster.propose(shard, Entry::Retention { database, cutoff }))).await?;
            told.insert(database, cutoff);
        }
        told.retain(|database, _| cutoffs.contains_key(database));
        Ok(())
    }

    /// Moves them once a minute, until the runtime ends.
    pub(crate) async fn keep_moving(self: Arc<Cutoffs>) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            // One node of the cluster is enough: the one that leads the metadata group.
            match self.cluster.upgrade() {
                None => return,
                Some(cluster) if !cluster.metadata.leads() => continue,
                Some(_) => {}
            }
            if let Err(error) = self.advance().await {
                tracing::warn!(%error, "cutoffs did not move; tried again in a minute");
            }
        }
    }
}
