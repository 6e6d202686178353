//! Moves the cutoffs of databases with a retention: first for those who ask this node, then in each shard's log.
//!
//! A cutoff is decided by the metadata group, so that it is the same after a restart, and has effect on rows by an
//! entry in each shard's log (DESIGN rule 12). It never moves back, never runs faster than time (`clock.rs`), and never goes beyond
//! what the clocks of a majority of the storage nodes say: one wrong clock drops nothing.
//!
//! ```text
//! POST /peer/v1/clock   -> the node's time, nanoseconds since 1970
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use model::{DatabaseId, NodeId, Timestamp};
use storage::entry::Entry;

use crate::clock::SteadyClock;
use crate::metadata::command::Command;
use crate::node::Cluster;
use crate::nodes::NodeState;
use crate::peer::Lane;
use crate::{Error, Result};

/// How often cutoffs move by themselves.
const EVERY: Duration = Duration::from_secs(60);

/// How long a node may take to tell its time.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

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
        let state = cluster.metadata.state().clone();
        if state.cutoffs.is_empty() && state.catalog.databases.values().all(|database| database.retention_ns.is_none()) {
            return Ok(());
        }
        let now = self.now(&cluster).await?;
        for database in state.catalog.databases.values() {
            let Some(retention_ns) = database.retention_ns else { continue };
            let cutoff = Timestamp(now.0.saturating_sub(retention_ns));
            if state.cutoffs.get(&database.id).is_none_or(|&before| before < cutoff) {
                cluster.metadata.decide(Command::Cutoff { database: database.id, cutoff }).await?;
            }
        }
        let cutoffs = cluster.metadata.state().cutoffs.clone();
        let mut failed = Ok(());
        for (&database, &cutoff) in cutoffs.iter() {
            if told.get(&database).is_some_and(|&before| before >= cutoff) {
                continue;
            }
            // One that has stopped is told when it starts again.
            let shards = cluster.shards_that_run();
            let telling = shards.into_iter().map(|shard| cluster.propose(shard, Entry::Retention { database, cutoff }));
            match join_all(telling).await.into_iter().find_map(Result::err) {
                None => drop(told.insert(database, cutoff)),
                // A shard that nobody leads holds up neither the other shards nor the other databases.
                Some(error) => failed = Err(error),
            }
        }
        told.retain(|database, _| cutoffs.contains_key(database));
        failed
    }

    /// This node's time.
    pub(crate) fn own_time(&self) -> Timestamp {
        self.clock.now()
    }

    /// The newest instant that the clocks of a majority of the storage nodes have reached.
    async fn now(&self, cluster: &Cluster) -> Result<Timestamp> {
        let Some(peers) = &cluster.peers else { return Ok(self.own_time()) };
        let nodes = cluster.nodes().into_iter().filter(|node| node.roles.storage && node.state != NodeState::Gone);
        let storage: Vec<NodeId> = nodes.map(|node| node.id).collect();
        let clocks = join_all(storage.iter().map(|&node| async move {
            if node == peers.me() {
                return Some(self.own_time());
            }
            let call = peers.call(node, Lane::Asks, "/peer/v1/clock", Bytes::new());
            let answer = tokio::time::timeout(ASK_TIMEOUT, call).await.ok()?.ok()?;
            std::str::from_utf8(&answer).ok()?.parse().ok().map(Timestamp)
        }));
        let clocks: Vec<Timestamp> = clocks.await.into_iter().flatten().collect();
        let told = clocks.len();
        reached(clocks, storage.len()).ok_or_else(|| Error::Unreachable {
            node: "the clocks of a majority of the storage nodes".to_owned(),
            why: format!("{told} of {} told their time", storage.len()),
        })
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

/// The newest instant that a majority of so many clocks have reached, by those that were told.
fn reached(mut clocks: Vec<Timestamp>, of: usize) -> Option<Timestamp> {
    clocks.sort_unstable_by(|a, b| b.cmp(a));
    clocks.get(of / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_clock_moves_nothing() {
        let of = |clocks: &[i64], of| reached(clocks.iter().copied().map(Timestamp).collect(), of).map(|t| t.0);
        assert_eq!(of(&[10], 1), Some(10));
        assert_eq!(of(&[10, 11, 9_999], 3), Some(11));
        assert_eq!(of(&[10, 9_999], 3), Some(10));
        assert_eq!(of(&[-5, 10, 11], 3), Some(10));
        assert_eq!(of(&[9_999], 3), None, "one of three says nothing");
        assert_eq!(of(&[10, 11], 4), None);
    }
}
