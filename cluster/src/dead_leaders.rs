//! Notices that the node of a leader has ended, sooner than the leader's silence would tell.
//!
//! A process that ends closes its connections, and its port refuses new ones until it starts again; it then leads nothing
//! (`group.rs`). A broken connection is a hint of this and no proof, so it is acted on by a pre-vote only: whoever still
//! hears from the leader says no, and nothing has changed. The followers ask in
//! turn, the first by number at once and the others later, so that they do not split the votes. A leader that falls silent
//! without a word is noticed by the members' own timers.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::Duration;

use model::NodeId;
use openraft::Raft;
use openraft::async_runtime::WatchReceiver;
use openraft::storage::RaftStateMachine;
use tokio::time::Instant;

use crate::group::{LEASE, Types};
use crate::log_store::Log;
use crate::node::Cluster;
use crate::peer::{Lane, Peers};

/// Between two looks. Each asks for votes where a leader's node has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A port that answers nothing for so long is no port that refuses.
const REFUSED_WITHIN: Duration = Duration::from_millis(100);
/// A leader that is reached again and not replaced by then has not ended: the network has stumbled.
const STILL_THERE: Duration = Duration::from_millis(2 * LEASE.as_millis() as u64);
/// The followers after the first ask so much later, each.
const TURN: Duration = Duration::from_millis(150);

/// Watches the leaders of the groups that this node follows, until it is gone.
pub(crate) async fn watch(cluster: Weak<Cluster>) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut seen: BTreeMap<NodeId, Seen> = BTreeMap::new();
    loop {
        looks.tick().await;
        let Some(cluster) = cluster.upgrade() else { return };
        let Some(peers) = cluster.peers() else { return };
        let leaders = cluster.followed();
        seen.retain(|node, _| leaders.contains(node));
        let looked = leaders.into_iter().map(|node| async move { (node, look(peers, node).await) });
        for (node, looked) in futures::future::join_all(looked).await {
            let seen = seen.entry(node).or_default();
            seen.note(looked, Instant::now());
            if let Some(broken) = seen.broken {
                cluster.replace_leader(node, broken.elapsed()).await;
            }
        }
    }
}

/// What a look at a leader's node shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// There is a connection, of this number.
    Connected(u64),
    /// Its port refuses connections.
    Refused,
    /// Nothing is known.
    Unknown,
}

/// What earlier looks have shown.
#[derive(Debug, Default)]
struct Seen {
    connection: Option<u64>,
    /// When a connection was first seen to have broken.
    broken: Option<Instant>,
}

impl Seen {
    fn note(&mut self, look: Look, now: Instant) {
        match look {
            Look::Refused => _ = self.broken.get_or_insert(now),
            Look::Connected(number) => {
                if self.connection.replace(number).is_some_and(|before| before != number) {
                    self.broken.get_or_insert(now);
                } else if self.broken.is_some_and(|since| now - since > STILL_THERE) {
                    self.broken = None;
                }
            }
            Look::Unknown => {}
        }
    }
}

async fn look(peers: &Peers, node: NodeId) -> Look {
    if peers.address(node).is_none() {
        return Look::Unknown;
    }
    match tokio::time::timeout(REFUSED_WITHIN, peers.reach(node, Lane::Votes)).await {
        Ok(Ok(connection)) => Look::Connected(connection),
        Ok(Err(_)) => Look::Refused,
        Err(_) => Look::Unknown,
    }
}

impl Cluster {
    /// The nodes that lead groups which this node follows.
    fn followed(&self) -> Vec<NodeId> {
        let shards = self.residents.running();
        let leaders = shards.iter().filter_map(|replica| follows(replica.raft(), replica.log()));
        let mut leaders: Vec<NodeId> = leaders.chain(self.metadata.own().and_then(|own| follows(&own.raft, &own.log))).collect();
        leaders.sort_unstable();
        leaders.dedup();
        leaders
    }

    /// Asks for votes in each group that the node led, if it is this node's turn.
    async fn replace_leader(&self, node: NodeId, since: Duration) {
        for replica in self.residents.running() {
            ask_for_votes(replica.raft(), replica.log(), node, since).await;
        }
        if let Some(own) = self.metadata.own() {
            ask_for_votes(&own.raft, &own.log, node, since).await;
        }
    }
}

/// The other member that leads a group, if this one votes.
fn follows<SM: RaftStateMachine<Types>>(raft: &Raft<Types, SM>, log: &Log) -> Option<NodeId> {
    let me = *raft.node_id();
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let leader = metrics.current_leader.filter(|leader| *leader != me)?;
    let votes = metrics.membership_config.voter_ids().any(|voter| voter == me) && log.is_named(metrics.membership_config.membership());
    votes.then_some(NodeId(leader))
}

async fn ask_for_votes<SM: RaftStateMachine<Types>>(raft: &Raft<Types, SM>, log: &Log, dead: NodeId, since: Duration) {
    if follows(raft, log) != Some(dead) {
        return;
    }
    let me = *raft.node_id();
    let before = raft.voter_ids().filter(|voter| *voter < me && *voter != dead.0).count();
    if since >= turn(before as u32) {
        // A group that has stopped says so elsewhere.
        let _ = raft.trigger().elect(true).await;
    }
}

/// How long after a leader's end a follower asks that has so many before it. Nobody votes before the lease has passed.
fn turn(before: u32) -> Duration {
    if before == 0 { Duration::ZERO } else { LEASE + before * TURN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_follower_asks_at_once_and_the_others_when_it_has_had_its_turn() {
        assert_eq!(turn(0), Duration::ZERO);
        assert!(turn(1) >= LEASE + 2 * LOOK_EVERY);
        assert_eq!(turn(2) - turn(1), TURN);
        assert!(turn(4) < STILL_THERE, "five voters each have their turn");
    }

    #[tokio::test]
    async fn a_connection_that_was_opened_anew_is_a_hint_for_a_while() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        seen.note(Look::Connected(1), start);
        seen.note(Look::Unknown, start);
        seen.note(Look::Connected(1), start);
        assert_eq!(seen.broken, None);
        seen.note(Look::Connected(2), start);
        seen.note(Look::Connected(2), start + STILL_THERE);
        assert_eq!(seen.broken, Some(start));
        seen.note(Look::Connected(2), start + STILL_THERE + LOOK_EVERY);
        assert_eq!(seen.broken, None);
        seen.note(Look::Refused, start + 3 * STILL_THERE);
        seen.note(Look::Refused, start + 9 * STILL_THERE);
        assert_eq!(seen.broken, Some(start + 3 * STILL_THERE));
    }
}
