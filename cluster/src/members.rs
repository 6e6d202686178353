//! Makes each group's members what the metadata says they should be: new ones first learn, then vote, then the others go.
//!
//! Whoever leads a group does this for it, one step at a time, and looks again: a step that fails is not undone, the next
//! look finds what is left to do. A leader that should not lead hands over to the one that should, once that one has the
//! whole log. The metadata group's leader also decides, one shard at a time, what should move (`placement.rs`), and which
//! nodes vote in its own group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;
use std::time::Duration;

use model::{NodeId, ShardId};
use openraft::async_runtime::WatchReceiver;
use openraft::storage::RaftStateMachine;
use openraft::{ChangeMembers, Raft, RaftMetrics};
use tokio::time::Instant;

use crate::forward::Leading;
use crate::group::{GroupId, Member, Types};
use crate::metadata::State;
use crate::metadata::command::Command;
use crate::moves::MoveKind;
use crate::node::{Cluster, GONE_AFTER};
use crate::nodes::NodeState;
use crate::peer::Lane;
use crate::placement;
use crate::replica::Replica;
use crate::{Error, Result};

/// How often a leader looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Shards on their way at once. More than one, so that one that cannot get on does not keep all others where they are.
const MAX_MOVING: usize = 2;
/// A member this near to the end of the log may vote, or lead: the rest is a moment's work.
const NEAR_ENTRIES: u64 = 64;
/// A shard stays with the leader that it has for so long before it is handed to the one that should lead it.
const SETTLED: Duration = Duration::from_secs(3);
/// How long a node may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a step of one shard may hold up the others; what was begun goes on.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Members that vote are asked for their replica's number at every so manieth look.
const LOOKS_PER_NUMBER: u64 = 20;
/// Nodes that keep nothing are asked whether they are there at every so manieth look.
const LOOKS_PER_ROLL_CALL: u64 = 10;

/// Looks after the groups that this node leads, until it is gone.
pub(crate) async fn keep(cluster: Weak<Cluster>) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut seen = Seen::default();
    loop {
        looks.tick().await;
        let Some(cluster) = cluster.upgrade() else { return };
        cluster.look_after_shards(&mut seen).await;
        cluster.register_if_forgotten().await;
        // Who leads does so when it decides; a member that only follows has a log as well.
        cluster.metadata.save_if_long().await;
        if !cluster.metadata.leads() {
            // What it saw when it led last may be long ago.
            seen.reached.clear();
        } else if let Err(error) = cluster.look_after_metadata(&mut seen).await {
            tracing::debug!(%error, "the placement of shards is looked at again");
        }
    }
}

/// What earlier looks saw.
#[derive(Default)]
struct Seen {
    /// Since when this node leads a shard.
    leads: BTreeMap<ShardId, Instant>,
    /// When a node was last in reach, while this one leads the metadata group.
    reached: BTreeMap<NodeId, Instant>,
    /// Looks at the metadata.
    looks: u64,
    /// Looks at the shards.
    shard_looks: u64,
}

impl Cluster {
    async fn look_after_shards(&self, seen: &mut Seen) {
        let state = self.metadata.state().clone();
        seen.shard_looks += 1;
        for slot in self.residents.all() {
            let Ok(served) = &slot.served else { continue };
            let (shard, replica) = (slot.shard, &served.replica);
            if !replica.raft().is_leader() {
                seen.leads.remove(&shard);
                continue;
            }
            // Whoever has stopped answers nothing, and who is led by it answers nothing either.
            if replica.stopped().is_some() || !replica.is_named() {
                replica.raft().runtime_config().elect(false);
                crate::group::hand_over(replica.raft()).await;
                continue;
            }
            let asks_all = seen.shard_looks.is_multiple_of(LOOKS_PER_NUMBER) || !seen.leads.contains_key(&shard);
            let since = *seen.leads.entry(shard).or_insert_with(Instant::now);
            let Some(placement) = state.placements.get(&shard) else { continue };
            let lead = (since.elapsed() >= SETTLED).then(|| placement.replicas.first().copied()).flatten();
            let step = async {
                match self.correct_numbers(replica, &placement.replicas, asks_all).await? {
                    true => Ok(()),
                    false => self.step(replica.raft(), GroupId::Shard(shard), &placement.replicas, lead, &state).await,
                }
            };
            let late = || Err(Error::NoLeader { shard });
            let step = tokio::time::timeout(STEP_TIMEOUT, step).await.unwrap_or_else(|_| late());
            if let Err(error) = step {
                tracing::warn!(%shard, %error, "its members are not yet where they should be; it is tried again");
            }
        }
    }

    /// Lets a member go whose replica is not the one that the membership names; the next look takes it in anew, with its own
    /// number. Such a replica follows, and neither votes nor leads: its log does not name it. What it is thought to have acknowledged may be
    /// what an earlier replica of its node did, so it is never renamed in place. `true`: something is being done about it.
    async fn correct_numbers(&self, replica: &Replica, should: &[NodeId], asks_all: bool) -> Result<bool> {
        let (raft, group, me) = (replica.raft(), GroupId::Shard(replica.shard()), self.node_id());
        let metrics = raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership().clone();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        if membership.get_joint_config().len() > 1 {
            return Ok(false);
        }
        for &node in should.iter().filter(|node| **node != me && (asks_all || !voters.contains(&node.0))) {
            let Some(member) = membership.get_node(&node.0) else { continue };
            // One that does not answer may be what it was.
            let Some(number) = self.replica_at(group, node).await else { continue };
            if number == member.replica {
                continue;
            }
            let rest: BTreeSet<u64> = voters.iter().copied().filter(|id| *id != node.0).collect();
            if !rest.iter().all(|id| *id == me.0 || near(&metrics, *id)) {
                continue;
            }
            // Those that are left decide this, and everything after it.
            let reached = futures::future::join_all(rest.iter().map(|id| self.in_reach(NodeId(*id)))).await;
            if reached.contains(&false) {
                continue;
            }
            tracing::warn!(%group, node = member.name, "a member has another replica than its group thinks: it is taken in anew");
            let change = match voters.contains(&node.0) {
                true => ChangeMembers::ReplaceAllVoters(rest),
                false => ChangeMembers::RemoveNodes(BTreeSet::from([node.0])),
            };
            let failed = |why: String| Error::Stopped { what: format!("a change of members of group {group}"), why };
            raft.change_membership(change, false).await.map_err(|e| failed(e.to_string()))?;
            return Ok(true);
        }
        Ok(false)
    }

    /// One step of a group towards the members that it should have.
    async fn step<SM>(&self, raft: &Raft<Types, SM>, group: GroupId, should: &[NodeId], lead: Option<NodeId>, state: &State) -> Result<()>
    where
        SM: RaftStateMachine<Types>,
    {
        let me = self.node_id();
        let failed = |what: &str, why: String| Error::Stopped { what: format!("{what} of group {group}"), why };
        let metrics = raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership().clone();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let known: BTreeSet<u64> = membership.nodes().map(|(id, _)| *id).collect();
        let should_ids: BTreeSet<u64> = should.iter().map(|node| node.0).collect();
        if let Some(&new) = should.iter().find(|node| !known.contains(&node.0)) {
            let Some(info) = state.nodes.get(&new) else { return Ok(()) };
            // It must have opened its replica: the membership carries the replica's own number.
            let Some(replica) = self.replica_at(group, new).await else { return Ok(()) };
            let member = Member { name: info.name.clone(), replica, rpc: info.rpc.clone() };
            tracing::info!(%group, node = info.name, "a new member learns the log");
            raft.add_learner(new.0, member, false).await.map_err(|e| failed("a learner", e.to_string()))?;
            return Ok(());
        }
        let ready = should_ids.iter().all(|id| voters.contains(id) || near(&metrics, *id));
        // The one who leads votes to the end: it first hands over.
        let wanted: BTreeSet<u64> = should_ids.iter().copied().chain((!should_ids.contains(&me.0)).then_some(me.0)).collect();
        if ready && (voters != wanted || membership.get_joint_config().len() > 1) {
            tracing::info!(%group, ?wanted, "the members that vote change");
            raft.change_membership(ChangeMembers::ReplaceAllVoters(wanted), false)
                .await
                .map_err(|e| failed("a change of members", e.to_string()))?;
            return Ok(());
        }
        if let Some(stranger) = known.iter().find(|id| !wanted.contains(id) && !voters.contains(id)) {
            raft.change_membership(ChangeMembers::RemoveNodes(BTreeSet::from([*stranger])), false)
                .await
                .map_err(|e| failed("the end of a member", e.to_string()))?;
            return Ok(());
        }
        let to = match should_ids.contains(&me.0) {
            true => lead.filter(|node| *node != me),
            false => should.first().copied(),
        };
        if let Some(to) = to
            && voters.contains(&to.0)
            && near(&metrics, to.0)
            && self.in_reach(to).await
        {
            tracing::info!(%group, node = %to, "leadership is handed over");
            raft.trigger().transfer_leader(to.0).await.map_err(|e| failed("a change of leader", e.to_string()))?;
        }
        Ok(())
    }

    /// The number of a node's replica, once it is open there.
    async fn replica_at(&self, group: GroupId, node: NodeId) -> Option<model::ReplicaId> {
        match group {
            GroupId::Metadata => Some(self.shared.founding_replica(group, node)),
            GroupId::Shard(shard) => self.leading_at(shard, node).await?.replica,
        }
    }

    pub(crate) async fn leading_at(&self, shard: ShardId, node: NodeId) -> Option<Leading> {
        if node == self.node_id() {
            return Some(self.leading(shard));
        }
        let peers = self.peers.as_ref()?;
        let path = format!("/peer/v1/shards/{shard}/leader");
        let answer = tokio::time::timeout(ASK_TIMEOUT, peers.call(node, Lane::Asks, &path, "")).await.ok()?.ok()?;
        serde_json::from_slice(&answer).ok()
    }

    /// Whether a node answers.
    pub(crate) async fn in_reach(&self, node: NodeId) -> bool {
        match &self.peers {
            _ if node == self.node_id() => true,
            None => false,
            Some(peers) => {
                let call = peers.call(node, Lane::Votes, "/peer/v1/alive", "");
                matches!(tokio::time::timeout(ASK_TIMEOUT, call).await, Ok(Ok(_)))
            }
        }
    }

    /// A node that was out of reach for too long and has nothing was forgotten: it says that it is there. Another that has
    /// its name meanwhile keeps it.
    async fn register_if_forgotten(&self) {
        let state = self.metadata.state().clone();
        let me = &self.shared.me;
        if state.cluster.is_none() || state.nodes.values().any(|node| node.id == me.id || node.name == me.name) {
            return;
        }
        if let Err(error) = self.metadata.decide(Command::Register(me.clone())).await {
            tracing::debug!(%error, "the cluster has forgotten this node; it is told again");
        }
    }

    fn gone_after(&self) -> Duration {
        self.shared.options.peers.as_ref().map_or(GONE_AFTER, |with| with.gone_after)
    }

    /// What the leader of the metadata group decides about nodes and places.
    async fn look_after_metadata(&self, seen: &mut Seen) -> Result<()> {
        let state = self.metadata.state().clone();
        seen.looks += 1;
        let all = seen.looks.is_multiple_of(LOOKS_PER_ROLL_CALL);
        let asked: Vec<NodeId> = state.nodes.values().filter(|n| n.roles.storage || all).map(|n| n.id).collect();
        let reached = futures::future::join_all(asked.iter().map(|&node| async move { (node, self.in_reach(node).await) })).await;
        let now = Instant::now();
        let mut may_hold = Vec::new();
        for (node, reached) in reached {
            let last = seen.reached.entry(node).or_insert(now);
            let info = &state.nodes[&node];
            if reached {
                *last = now;
                if info.roles.storage && info.state == NodeState::Active {
                    may_hold.push(node);
                }
                if info.state == NodeState::Gone && !info.given_up {
                    tracing::info!(node = info.name, "a node that was taken to be gone is back");
                    self.metadata.decide(Command::SetNodeState { node, state: NodeState::Active }).await?;
                    return Ok(());
                }
            } else if info.state == NodeState::Active && last.elapsed() >= self.gone_after() {
                tracing::warn!(node = info.name, roles = %info.roles, "a node is taken to be gone: it was out of reach for too long");
                self.metadata.decide(Command::SetNodeState { node, state: NodeState::Gone }).await?;
                return Ok(());
            }
        }
        if let Some(own) = self.metadata.own() {
            let voters: BTreeSet<NodeId> = own.raft.voter_ids().map(NodeId).collect();
            let should = placement::metadata_voters(&state.nodes, &voters, &may_hold);
            self.step(&own.raft, GroupId::Metadata, &should, None, &state).await?;
        }
        // Few shards at a time: the next move begins when earlier ones' members are where they should be. A shard that nobody
        // leads cannot move, and holds up no other.
        let (mut may_move, mut moving) = (BTreeSet::new(), 0);
        for (&shard, placement) in state.placements.iter() {
            let Some(leader) = self.find_leader(shard).await else { continue };
            let Some(leading) = self.leading_at(shard, leader).await.filter(|leading| leading.leader == Some(leader)) else {
                // Whom this node takes for the leader leads no more, and no write through this node has told it so.
                self.led_by(shard, None);
                continue;
            };
            let voters: BTreeSet<NodeId> = leading.voters.into_iter().collect();
            if voters != placement.replicas.iter().copied().collect() {
                // Where it was to go, somebody may have left meanwhile.
                match placement.replicas.iter().all(|node| state.nodes.get(node).is_some_and(|n| n.state == NodeState::Active)) {
                    true => moving += 1,
                    false => drop(may_move.insert(shard)),
                }
                continue;
            }
            may_move.insert(shard);
            if state.moves.running(MoveKind::Move, shard).is_some() {
                let (replicas, at) = (placement.replicas.clone(), (self.shared.options.clock)());
                self.metadata.decide(Command::Placed { shard, replicas, at }).await?;
            }
        }
        if moving < MAX_MOVING
            && let Some((shard, replicas)) = placement::next(&state.placements, &may_move, &state.nodes, &may_hold, state.replication)
        {
            tracing::info!(%shard, ?replicas, "a shard's replicas get other places");
            let were = state.placements[&shard].replicas.clone();
            let asked = Some((self.shared.options.clock)());
            self.metadata.decide(Command::Place { shard, were, replicas, asked }).await?;
        }
        Ok(())
    }
}

/// Whether a member has nearly the whole log.
fn near(metrics: &RaftMetrics<Types>, id: u64) -> bool {
    let Some(replication) = &metrics.replication else { return false };
    let last = metrics.last_log_index.unwrap_or(0);
    match replication.get(&id) {
        Some(Some(matched)) => matched.index + NEAR_ENTRIES >= last,
        _ => false,
    }
}
