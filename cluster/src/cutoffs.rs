//! Moves the cutoffs of databases with a retention: first for those who ask this node, then in each shard's log.
//!
//! A cutoff is decided by the metadata group, so that it is the same after a restart, and has effect on rows by an
//! entry in each shard's log (DESIGN rule 12). It never moves back and never runs faster than time (`clock.rs`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use model::{DatabaseId, Timestamp};
use storage::entry::Entry;

use crate::Result;
use crate::clock::SteadyClock;
use crate::metadata::Metadata;
use crate::metadata::command::Command;
use crate::replica::Replica;

/// How often cutoffs move by themselves.
const EVERY: Duration = Duration::from_secs(60);

/// The cutoffs of this node's shards.
pub(crate) struct Cutoffs {
    metadata: Arc<Metadata>,
    replicas: Vec<Arc<Replica>>,
    clock: SteadyClock,
    /// What every shard has been told since the start; its lock keeps them in order.
    told: tokio::sync::Mutex<HashMap<DatabaseId, Timestamp>>,
}

impl Cutoffs {
    pub(crate) fn new(metadata: Arc<Metadata>, replicas: Vec<Arc<Replica>>, clock: SteadyClock) -> Arc<Cutoffs> {
        Arc::new(Cutoffs { metadata, replicas, clock, told: tokio::sync::Mutex::default() })
    }

    /// Moves them up to now; returns when every shard that runs has applied them.
    pub(crate) async fn advance(&self) -> Result<()> {
        let mut told = self.told.lock().await;
        let now = self.clock.now();
        let state = self.metadata.state().clone();
        for database in state.catalog.databases.values() {
            let Some(retention_ns) = database.retention_ns else { continue };
            let cutoff = Timestamp(now.0.saturating_sub(retention_ns));
            if state.cutoffs.get(&database.id).is_none_or(|&before| before < cutoff) {
                self.metadata.decide(Command::Cutoff { database: database.id, cutoff }).await?;
            }
        }
        let cutoffs = self.metadata.state().cutoffs.clone();
        for (&database, &cutoff) in cutoffs.iter() {
            if told.get(&database).is_some_and(|&before| before >= cutoff) {
                continue;
            }
            // One that has stopped is told when it starts again.
            let running = self.replicas.iter().filter(|replica| replica.stopped().is_none());
            try_join_all(running.map(|replica| replica.propose(Entry::Retention { database, cutoff }))).await?;
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
            if let Err(error) = self.advance().await {
                tracing::warn!(%error, "cutoffs did not move; tried again in a minute");
            }
        }
    }
}
