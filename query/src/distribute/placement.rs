//! Which node reads which shard: fixed for one run of a query, so that planning and running see the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cluster::{Cluster, NodeState};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::placeholder_row::PlaceholderRowExec;
use futures::future::join_all;
use model::{NodeId, ShardId};

use crate::engine::Consistency;
use crate::shard_scan::ShardScanExec;

/// What has just failed the query, so that another attempt does without.
#[derive(Clone, Debug, Default)]
pub(crate) struct Avoid {
    /// Nodes that were lost.
    pub nodes: BTreeSet<NodeId>,
    /// Shards that their leaders could not read, where the asker is content with a part.
    pub shards: BTreeSet<ShardId>,
}

/// Where shards are read.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    me: NodeId,
    /// Whether this node has no others.
    alone: bool,
    avoid: Avoid,
    /// Shards whose node is known.
    of: BTreeMap<ShardId, NodeId>,
}

/// What to do with a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// Run it here.
    Here,
    /// Send the statement to the node that reads all of it.
    There(NodeId),
    /// Cut it into stages.
    Spread,
}

impl Placement {
    /// Where this node knows the shards to be; cheap.
    pub(crate) fn take(cluster: &Cluster, consistency: Consistency, max_lag: Duration, avoid: &Avoid) -> Placement {
        let me = cluster.node_id();
        let shards = cluster.shards().into_iter();
        if cluster.peers().is_none() {
            return Placement { me, alone: true, avoid: Avoid::default(), of: shards.map(|shard| (shard, me)).collect() };
        }
        let of = |shard: ShardId| match consistency {
            Consistency::Linearizable => cluster.leader(shard),
            Consistency::Stale => any_replica(cluster, shard, max_lag, &avoid.nodes),
        };
        let wanted = shards.filter(|shard| !avoid.shards.contains(shard));
        let of = wanted.filter_map(|shard| Some((shard, of(shard)?))).filter(|(_, node)| !avoid.nodes.contains(node)).collect();
        Placement { me, alone: false, avoid: avoid.clone(), of }
    }

    /// Of a node that is told with each scan.
    pub(crate) fn nowhere(me: NodeId) -> Placement {
        Placement { me, alone: false, avoid: Avoid::default(), of: BTreeMap::new() }
    }

    /// The same with shards whose node was not known, as far as others know it; `None`: nothing was missing.
    pub(crate) async fn find(&self, cluster: &Cluster, shards: &BTreeSet<ShardId>) -> Option<Placement> {
        let unknown = |shard: &ShardId| !self.of.contains_key(shard) && !self.avoid.shards.contains(shard);
        let unknown: Vec<ShardId> = shards.iter().copied().filter(unknown).collect();
        if unknown.is_empty() {
            return None;
        }
        let found = join_all(unknown.into_iter().map(|shard| async move { Some((shard, cluster.find_leader(shard).await?)) })).await;
        let found = found.into_iter().flatten().filter(|(_, node)| !self.avoid.nodes.contains(node));
        Some(Placement { of: self.of.iter().map(|(s, n)| (*s, *n)).chain(found).collect(), ..self.clone() })
    }

    /// Whether this node has no others.
    pub(crate) fn is_alone(&self) -> bool {
        self.alone
    }

    /// This node.
    pub(crate) fn me(&self) -> NodeId {
        self.me
    }

    /// Who reads a shard, if that is known.
    pub(crate) fn node_of(&self, shard: ShardId) -> Option<NodeId> {
        self.of.get(&shard).copied()
    }

    /// All shards and their nodes.
    pub(crate) fn nodes(&self) -> &BTreeMap<ShardId, NodeId> {
        &self.of
    }

    /// The nodes that read these shards, this one first if it does.
    pub(crate) fn nodes_of(&self, shards: &BTreeSet<ShardId>) -> Vec<NodeId> {
        let nodes: BTreeSet<NodeId> = shards.iter().filter_map(|shard| self.node_of(*shard)).collect();
        let here = nodes.contains(&self.me).then_some(self.me);
        here.into_iter().chain(nodes.iter().copied().filter(|node| *node != self.me)).collect()
    }

    /// What to do with a plan that reads these shards.
    pub(crate) fn course(&self, shards: &BTreeSet<ShardId>) -> Course {
        match self.nodes_of(shards)[..] {
            [] => Course::Here,
            [node] if node == self.me => Course::Here,
            [node] => Course::There(node),
            _ => Course::Spread,
        }
    }
}

/// A node with a replica: this one if it has one that is new enough, else the leader, else any that is not gone, else this one
/// all the same, which then says how old it is.
pub(crate) fn any_replica(cluster: &Cluster, shard: ShardId, max_lag: Duration, avoid: &BTreeSet<NodeId>) -> Option<NodeId> {
    let me = cluster.node_id();
    let age = cluster.read_stale(shard).ok().and_then(|(_, age)| age);
    let here = age.map(|_| me).filter(|me| !avoid.contains(me));
    if age.is_some_and(|age| age <= max_lag) {
        return Some(me);
    }
    let usable = |node: &NodeId| *node != me && !avoid.contains(node);
    if let Some(leader) = cluster.leader(shard).filter(usable) {
        return Some(leader);
    }
    let gone = |node: NodeId| cluster.node(node).is_none_or(|n| n.state == NodeState::Gone);
    cluster.replicas(shard).into_iter().filter(usable).find(|node| !gone(*node)).or(here)
}

/// The shards that a plan's scans read.
pub(crate) fn shards_of(plan: &Arc<dyn ExecutionPlan>) -> BTreeSet<ShardId> {
    let mut shards = BTreeSet::new();
    let seen = plan.apply(|step| {
        if let Some(scan) = step.downcast_ref::<ShardScanExec>() {
            shards.extend(scan.shards());
        }
        Ok(TreeNodeRecursion::Continue)
    });
    seen.expect("nothing fails here");
    shards
}

/// Whether a plan reads nothing but shards, so that it means the same on every node.
pub(crate) fn only_scans(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.exists(|step| {
        Ok(step.children().is_empty() && !step.is::<ShardScanExec>() && !step.is::<EmptyExec>() && !step.is::<PlaceholderRowExec>())
    })
    .is_ok_and(|other| !other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_goes_where_its_shards_are() {
        let of = [(0, 1), (1, 1), (2, 2), (3, 3)].map(|(s, n)| (ShardId(s), NodeId(n)));
        let placement = Placement { of: of.into(), ..Placement::nowhere(NodeId(1)) };
        let shards = |of: &[u32]| of.iter().map(|s| ShardId(*s)).collect::<BTreeSet<_>>();
        let cases: [(&[u32], Course); 6] = [
            (&[], Course::Here),
            (&[0, 1], Course::Here),
            (&[2], Course::There(NodeId(2))),
            (&[0, 3], Course::Spread),
            (&[2, 3], Course::Spread),
            (&[9], Course::Here),
        ];
        for (read, expected) in cases {
            assert_eq!(placement.course(&shards(read)), expected, "{read:?}");
        }
        assert_eq!(placement.nodes_of(&shards(&[3, 2, 0])), [NodeId(1), NodeId(2), NodeId(3)]);
    }
}
