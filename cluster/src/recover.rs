//! Gives up the replicas of a shard whose majority is gone for ever, on an operator's word.
//!
//! No protocol can do this by itself: who is gone and who is only cut off look alike. The operator says that they are
//! gone. Of the replicas that are left the one with the most of the log goes on alone; where none is left the shard
//! begins empty. Then it is replicated anew, like any shard that has too few replicas. What was given up can never come
//! back: its nodes are marked as gone, and a node that is gone is not heard by any group (`peer/door.rs`).
//!
//! ```text
//! POST /peer/v1/shards/N/recover   -> JSON Held: to the one node whose replica goes on, or begins
//! ```
//!
//! A replica is made to go on by a message as if from a leader of the next term, which appends a membership of this replica
//! alone: from then on it is the only voter, elects itself, and commits what it has. Each step may be done twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use model::{LogIndex, NodeId, ShardId, Term, Timestamp};
use openraft::EntryPayload;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use serde::{Deserialize, Serialize};
use storage::HashRange;
use storage::entry::Entry;

use crate::forward::Leading;
use crate::group::{Member, Membership, RaftEntry, Vote, log_id};
use crate::metadata::command::Command;
use crate::node::Cluster;
use crate::nodes::NodeState;
use crate::peer::Lane;
use crate::replica::Replica;
use crate::{Error, Result};

/// Who led the term in which a replica was told to go on alone: no node has this number.
const OPERATOR: u64 = u64::MAX;
/// How long a node may take to open the replica that begins, and to lead it.
const PATIENCE: Duration = Duration::from_secs(30);
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// What giving up a shard's lost replicas has cost, as far as anybody can still know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovered {
    /// The shard.
    pub shard: u32,
    /// Its routing hashes: the first,
    pub hash_start: u64,
    /// and the last.
    pub hash_last: u64,
    /// The nodes whose replicas were given up.
    pub lost: Vec<String>,
    /// The node whose replica goes on, or begins empty.
    pub node: String,
    /// What the replica that goes on has; `None`: no replica was left, and all rows of the shard are lost.
    pub held: Option<Held>,
}

/// How far a replica's log reaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its last entry; what came after it is lost.
    pub index: u64,
    /// When the last write of its log arrived, in nanoseconds since 1970; `None`: all of it is in files.
    pub arrived_ns: Option<i64>,
}

impl Cluster {
    /// Gives up the replicas of a shard that are out of reach, where so few are left that they can decide nothing.
    pub async fn recover(&self, shard: ShardId) -> Result<Recovered> {
        let state = self.metadata.state().clone();
        let unknown = || Error::NoShard { shard };
        // A shard that is being split off has no place of its own yet: it is where the other half is.
        let splitting = state.splits.iter().find(|(_, going)| going.child == shard);
        let placement = state.placements.get(splitting.map_or(&shard, |(parent, _)| parent)).ok_or_else(unknown)?;
        let (hash_start, hash_last) = match splitting {
            Some((_, going)) => (going.at, going.last),
            None => self.shard_map().range_of_shard(shard).map(|range| (range.start, range.last)).ok_or_else(unknown)?,
        };
        let storage = state.nodes.values().filter(|node| node.roles.storage && !node.given_up);
        let asked = storage.map(|node| async move { (node.id, self.leading_at(shard, node.id).await) });
        let answers: BTreeMap<NodeId, Leading> =
            futures::future::join_all(asked).await.into_iter().filter_map(|(node, answer)| Some((node, answer?))).collect();
        let choice = choose(&answers, &placement.replicas);
        if choice.electable * 2 > choice.voters.len() {
            return Err(Error::NotLost { shard, left: choice.left.len(), of: choice.voters.len() });
        }
        let lost: BTreeSet<NodeId> = choice.voters.iter().filter(|node| !choice.left.contains(node)).copied().collect();
        let node = match choice.goes_on {
            Some(node) => node,
            None => self.emptiest(&answers, &placement.replicas).ok_or(Error::NoLeader { shard })?,
        };
        let name = |id: &NodeId| state.nodes.get(id).map_or_else(|| id.to_string(), |node| node.name.clone());
        tracing::warn!(%shard, lost = ?lost.iter().map(name).collect::<Vec<_>>(), node = name(&node), "lost replicas are given up");
        for &gone in lost.iter().filter(|node| !answers.contains_key(node) && state.nodes.contains_key(node)) {
            self.metadata.decide(Command::GiveUp { node: gone }).await?;
        }
        if splitting.is_none() && placement.replicas != [node] {
            self.place(shard, placement.replicas.clone(), vec![node]).await?;
        }
        let held = self.go_on_at(shard, node).await?;
        self.led_by(shard, Some(node));
        Ok(Recovered {
            shard: shard.0,
            hash_start,
            hash_last,
            lost: lost.iter().map(name).collect(),
            node: name(&node),
            held: held.filter(|_| choice.goes_on.is_some()),
        })
    }

    /// Of the nodes that answer and have nothing of the shard, the one with the fewest replicas; first the one that was
    /// chosen before, when this is tried again.
    fn emptiest(&self, answers: &BTreeMap<NodeId, Leading>, placed: &[NodeId]) -> Option<NodeId> {
        let state = self.metadata.state();
        let holds = |node: NodeId| state.placements.values().filter(|p| p.replicas.contains(&node)).count();
        let may = answers.keys().copied().filter(|node| state.nodes.get(node).is_some_and(|n| n.state == NodeState::Active));
        may.min_by_key(|node| (placed != [*node], holds(*node), *node))
    }

    async fn go_on_at(&self, shard: ShardId, node: NodeId) -> Result<Option<Held>> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = match &self.peers {
                Some(peers) if node != self.node_id() => {
                    peers.call(node, Lane::Asks, &format!("/peer/v1/shards/{shard}/recover"), Bytes::new()).await
                }
                _ => self.recover_for_peer(shard).await,
            };
            match answer {
                Ok(held) => {
                    let unreadable = |e| Error::PeerFailed { node: node.to_string(), why: format!("its answer is none: {e}") };
                    return serde_json::from_slice(&held).map_err(unreadable);
                }
                Err(error) if tokio::time::Instant::now() > deadline => return Err(error),
                // It opens a replica that begins as soon as it hears that it should.
                Err(error) => tracing::debug!(%shard, %node, %error, "the replica does not go on yet"),
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    /// Makes this node's replica the only one of its shard.
    pub(crate) async fn recover_for_peer(&self, shard: ShardId) -> Result<Bytes> {
        let slot = self.residents.served(shard)?;
        let replica = slot.replica()?;
        let me = &self.shared.me;
        let member = Member { name: me.name.clone(), replica: replica.store().replica(), rpc: me.rpc.clone() };
        let held = replica.go_on_alone(member).await?;
        // A split that it has lost, or that was before all of it was lost, has still taken place.
        let range = self.shard_map().range_of_shard(shard).map(|r| HashRange { start: r.start, last: r.last, version: r.version });
        if let Some(range) = range.filter(|range| range.version > replica.store().range().version) {
            replica.propose(Entry::Range(range)).await?;
        }
        Ok(serde_json::to_vec(&held).expect("writing to memory").into())
    }
}

/// Who is left of a shard's replicas.
#[derive(Debug, PartialEq, Eq)]
struct Choice {
    voters: BTreeSet<NodeId>,
    /// Those of them that answer and have a replica.
    left: BTreeSet<NodeId>,
    /// How many of these may lead.
    electable: usize,
    /// The one with the most of the log.
    goes_on: Option<NodeId>,
}

fn choose(answers: &BTreeMap<NodeId, Leading>, placed: &[NodeId]) -> Choice {
    // A replica that was never told of a group has no entry.
    let has = |node: &NodeId| answers.get(node).and_then(|a| a.last);
    let newest = answers.values().filter(|a| a.last.is_some() && !a.voters.is_empty()).max_by_key(|a| a.last);
    let voters: BTreeSet<NodeId> = newest.map_or(placed, |a| &a.voters).iter().copied().collect();
    let left: BTreeSet<NodeId> = voters.iter().filter(|node| has(node).is_some()).copied().collect();
    let goes_on = left.iter().copied().max_by_key(|node| has(node));
    let electable = left.iter().filter(|node| answers[node].is_named).count();
    Choice { voters, left, electable, goes_on }
}

impl Replica {
    /// Makes this replica its group's only voter, whatever the others were; returns how far its log reached, if it had one.
    async fn go_on_alone(&self, member: Member) -> Result<Option<Held>> {
        self.refuse_if_stopped()?;
        let raft = self.raft();
        let me = *raft.node_id();
        let failed = |why: String| Error::Stopped { what: self.name().to_owned(), why };
        raft.runtime_config().elect(true);
        let last = self.log().last();
        let held = last.map(|last| Held { index: last.index, arrived_ns: self.log().last_arrival().map(|at: Timestamp| at.0) });
        match last {
            _ if raft.voter_ids().eq([me]) && self.log().is_named(&crate::group::membership(raft)) => {}
            // The membership that it gets names it.
            None => raft.initialize(BTreeMap::from([(me, member)])).await.map_err(|e| failed(e.to_string()))?,
            Some(last) => {
                let term = raft.metrics().borrow_watched().current_term + 1;
                let membership =
                    Membership::new(vec![BTreeSet::from([me])], BTreeMap::from([(me, member)])).map_err(|e| failed(e.to_string()))?;
                let id = log_id(Term(term), LogIndex(last.index + 1));
                let request = AppendEntriesRequest {
                    vote: Vote::new_committed(term, OPERATOR),
                    prev_log_id: Some(last),
                    leader_commit: None,
                    entries: vec![RaftEntry { log_id: id, payload: EntryPayload::Membership(membership) }],
                };
                match raft.append_entries(request).await.map_err(|e| failed(e.to_string()))? {
                    AppendEntriesResponse::Success => {}
                    other => return Err(failed(format!("its group still goes on: {other}"))),
                }
            }
        }
        let leads = raft.wait(Some(PATIENCE)).metrics(|m| m.current_leader == Some(me), "it leads alone").await;
        leads.map_err(|e| failed(e.to_string()))?;
        Ok(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(last: Option<(u64, u64)>, voters: &[u64]) -> Leading {
        let voters = voters.iter().map(|v| NodeId(*v)).collect();
        Leading { term: Term(3), voters, is_named: true, last, ..Leading::default() }
    }

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().map(|id| NodeId(*id)).collect()
    }

    #[test]
    fn the_replica_with_the_most_of_the_log_goes_on() {
        let placed = [NodeId(1), NodeId(2), NodeId(3)];
        let of = |answers: &[(u64, Leading)]| choose(&answers.iter().map(|(id, a)| (NodeId(*id), a.clone())).collect(), &placed);
        let none = answer(None, &[]);
        assert_eq!(of(&[(4, none.clone())]), Choice { voters: ids(&[1, 2, 3]), left: ids(&[]), electable: 0, goes_on: None });
        let one = answer(Some((2, 9)), &[1, 2, 3]);
        assert_eq!(of(&[(2, one.clone()), (4, none.clone())]).goes_on, Some(NodeId(2)));
        let ahead = answer(Some((3, 7)), &[1, 2, 3]);
        assert_eq!(of(&[(2, one.clone()), (3, ahead)]).goes_on, Some(NodeId(3)));
        // The log knows better than the metadata who votes.
        let elsewhere = of(&[(5, answer(Some((1, 1)), &[5, 6, 7]))]);
        assert_eq!(elsewhere, Choice { voters: ids(&[5, 6, 7]), left: ids(&[5]), electable: 1, goes_on: Some(NodeId(5)) });
        // An empty disk has nothing to go on with.
        assert_eq!(of(&[(1, none)]).left, ids(&[]));
        // Two follow, and neither can lead: the membership has other replicas of their nodes.
        let unnamed = Leading { is_named: false, ..one };
        let stuck = of(&[(2, unnamed.clone()), (3, unnamed)]);
        assert_eq!((stuck.left, stuck.electable), (ids(&[2, 3]), 0));
    }
}
