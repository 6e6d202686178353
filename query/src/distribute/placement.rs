//! Which node reads which shard: fixed for one run of a query, so that planning and running see the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cluster::{Cluster, NodeState};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::physical_plan::ExecutionPlan;
use model::{NodeId, ShardId};

use crate::engine::Consistency;
use crate::shard_scan::ShardScanExec;

/// Where shards are read.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    me: NodeId,
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
    /// Where this node knows the shards to be; cheap. Nodes to `avoid` have just failed this query.
    pub(crate) fn take(cluster: &Cluster, consistency: Consistency, avoid: &BTreeSet<NodeId>) -> Placement {
        let me = cluster.node_id();
        let shards = cluster.shards().into_iter();
        if cluster.peers().is_none() {
            return Placement { me, of: shards.map(|shard| (shard, me)).collect() };
        }
        let of = |shard: ShardId| match consistency {
            Consistency::Linearizable => cluster.leader(shard),
            Consistency::Stale => any_replica(cluster, shard, avoid),
        };
        Placement { me, of: shards.filter_map(|shard| of(shard).map(|node| (shard, node))).filter(|(_, n)| !avoid.contains(n)).collect() }
    }

    /// Asks around for shards whose node is not known.
    pub(crate) async fn find(&mut self, cluster: &Cluster, shards: &BTreeSet<ShardId>, avoid: &BTreeSet<NodeId>) {
        let unknown = shards.iter().filter(|shard| !self.of.contains_key(shard));
        let found = futures::future::join_all(unknown.map(|shard| async move { (*shard, cluster.find_leader(*shard).await) })).await;
        for (shard, node) in found {
            if let Some(node) = node.filter(|node| !avoid.contains(node)) {
                self.of.insert(shard, node);
            }
        }
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

/// A node with a replica: this one if it has one, else the leader, else any that is not gone.
fn any_replica(cluster: &Cluster, shard: ShardId, avoid: &BTreeSet<NodeId>) -> Option<NodeId> {
    let here = cluster.node_id();
    if cluster.read_stale(shard).is_ok_and(|(_, age)| age.is_some()) {
        return Some(here);
    }
    let usable = |node: &NodeId| *node != here && !avoid.contains(node);
    if let Some(leader) = cluster.leader(shard).filter(usable) {
        return Some(leader);
    }
    let gone = |node: NodeId| cluster.node(node).is_none_or(|n| n.state == NodeState::Gone);
    cluster.replicas(shard).into_iter().filter(usable).find(|node| !gone(*node))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_goes_where_its_shards_are() {
        let of = [(0, 1), (1, 1), (2, 2), (3, 3)].map(|(s, n)| (ShardId(s), NodeId(n)));
        let placement = Placement { me: NodeId(1), of: of.into() };
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
