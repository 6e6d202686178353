//! Where replicas should be: pure choices, nodes and placements in, placements out.
//!
//! A shard's replicas are on different nodes; the first of them should lead. Both are spread evenly: no node has two more
//! replicas, or two more first places, than another that could take one. As little moves as possible.

use std::collections::{BTreeMap, BTreeSet};

use model::{NodeId, ShardId};

use crate::metadata::Placement;
use crate::nodes::{NodeInfo, NodeState};
use crate::shard_map::ShardMap;

/// The placements of a cluster that comes into being: round the nodes.
pub(crate) fn found(shards: &ShardMap, storage: &[NodeId], replication: u32) -> BTreeMap<ShardId, Placement> {
    if storage.is_empty() {
        return BTreeMap::new();
    }
    let count = (replication.max(1) as usize).min(storage.len());
    let place = |(i, shard): (usize, ShardId)| {
        let replicas: Vec<NodeId> = (0..count).map(|r| storage[(i + r) % storage.len()]).collect();
        (shard, Placement { founders: replicas.clone(), replicas, ..Placement::default() })
    };
    shards.ranges.iter().map(|range| range.shard).enumerate().map(place).collect()
}

/// The next change that brings the placements nearer to what they should be, if any: one shard at a time.
///
/// `may_move` are the shards that a leader can move now. `may_hold` are the storage nodes that can take replicas now; a node
/// that is not among them but has replicas keeps them, unless it is draining or gone.
pub(crate) fn next(
    placements: &BTreeMap<ShardId, Placement>,
    may_move: &BTreeSet<ShardId>,
    nodes: &BTreeMap<NodeId, NodeInfo>,
    may_hold: &[NodeId],
    replication: u32,
) -> Option<(ShardId, Vec<NodeId>)> {
    let leaves = |node: &NodeId| nodes.get(node).is_none_or(|n| n.state != NodeState::Active);
    let mut held: BTreeMap<NodeId, usize> = may_hold.iter().map(|&node| (node, 0)).collect();
    for placement in placements.values() {
        for node in &placement.replicas {
            *held.entry(*node).or_default() += 1;
        }
    }
    let least = |without: &[NodeId]| may_hold.iter().filter(|n| !without.contains(n)).min_by_key(|n| (held[n], **n)).copied();
    let wanted = (replication.max(1) as usize).min(may_hold.len().max(1));
    // A replica too few, or on a node that leaves.
    for (&shard, placement) in placements.iter().filter(|(shard, _)| may_move.contains(shard)) {
        if let Some(at) = placement.replicas.iter().position(leaves) {
            let mut replicas = placement.replicas.clone();
            match least(&replicas) {
                Some(node) => replicas[at] = node,
                // Nowhere to go: fewer replicas only where enough are left.
                None if replicas.len() > wanted => {
                    replicas.remove(at);
                }
                None => continue,
            }
            return Some((shard, replicas));
        }
        if placement.replicas.len() < wanted
            && let Some(node) = least(&placement.replicas)
        {
            let mut replicas = placement.replicas.clone();
            replicas.push(node);
            return Some((shard, replicas));
        }
        if placement.replicas.len() > wanted && wanted >= replication as usize {
            let mut replicas = placement.replicas.clone();
            let most = (0..replicas.len()).rev().max_by_key(|&i| held[&replicas[i]]).expect("it has replicas");
            replicas.remove(most);
            return Some((shard, replicas));
        }
    }
    // The fullest node gives one to the emptiest.
    let fullest = held.iter().filter(|(node, _)| may_hold.contains(node)).max_by_key(|(_, count)| **count)?;
    let emptiest = may_hold.iter().min_by_key(|n| held[n])?;
    if *fullest.1 >= held[emptiest] + 2 {
        let gives = |p: &Placement| p.replicas.contains(fullest.0) && !p.replicas.contains(emptiest);
        let (&shard, placement) = placements.iter().find(|(shard, p)| may_move.contains(shard) && gives(p))?;
        let replicas = placement.replicas.iter().map(|n| if n == fullest.0 { *emptiest } else { *n }).collect();
        return Some((shard, replicas));
    }
    next_order(placements, may_move, may_hold)
}

/// Which nodes should vote in the metadata group: three, or five where there are five; those that vote already stay
/// unless they leave, and nobody new is taken in who cannot be reached.
pub(crate) fn metadata_voters(nodes: &BTreeMap<NodeId, NodeInfo>, voters: &BTreeSet<NodeId>, may_hold: &[NodeId]) -> Vec<NodeId> {
    let active = |node: &NodeId| nodes.get(node).is_some_and(|n| n.state == NodeState::Active);
    let storage = nodes.values().filter(|n| n.roles.storage && n.state == NodeState::Active).count();
    let wanted = match storage {
        0..=2 => storage.max(1),
        3..=4 => 3,
        _ => 5,
    };
    let mut chosen: Vec<NodeId> = voters.iter().copied().filter(active).take(wanted.max(voters.len().min(5))).collect();
    let new: Vec<NodeId> = may_hold.iter().copied().filter(|node| !chosen.contains(node)).collect();
    chosen.extend(new.into_iter().take(wanted.saturating_sub(chosen.len())));
    if chosen.is_empty() {
        // Everybody leaves: those who vote go on until somebody else can.
        return voters.iter().copied().collect();
    }
    chosen
}

/// The next change of who should lead a shard, if one node should lead two more than another that holds a replica.
fn next_order(
    placements: &BTreeMap<ShardId, Placement>,
    may_move: &BTreeSet<ShardId>,
    may_hold: &[NodeId],
) -> Option<(ShardId, Vec<NodeId>)> {
    let mut leads: BTreeMap<NodeId, usize> = may_hold.iter().map(|&node| (node, 0)).collect();
    for first in placements.values().filter_map(|p| p.replicas.first()) {
        *leads.entry(*first).or_default() += 1;
    }
    for (&shard, placement) in placements.iter().filter(|(shard, _)| may_move.contains(shard)) {
        let Some(first) = placement.replicas.first() else { continue };
        let able = |i: &usize| may_hold.contains(&placement.replicas[*i]);
        let Some(least) = (1..placement.replicas.len()).filter(able).min_by_key(|&i| leads[&placement.replicas[i]]) else { continue };
        if leads[first] >= leads[&placement.replicas[least]] + 2 {
            let mut replicas = placement.replicas.clone();
            replicas.swap(0, least);
            return Some((shard, replicas));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::Roles;

    fn node(id: u64, state: NodeState) -> (NodeId, NodeInfo) {
        let info = NodeInfo {
            given_up: false,
            id: NodeId(id),
            name: format!("n{id}"),
            roles: Roles::ALL,
            http: String::new(),
            rpc: String::new(),
            incarnation: 1,
            version: String::new(),
            state,
        };
        (NodeId(id), info)
    }

    fn ids(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    /// Applies changes until there is none; how many there were.
    fn settle(
        placements: &mut BTreeMap<ShardId, Placement>,
        nodes: &BTreeMap<NodeId, NodeInfo>,
        may_hold: &[NodeId],
        replication: u32,
    ) -> usize {
        for changes in 0..1_000 {
            let all = placements.keys().copied().collect();
            let Some((shard, replicas)) = next(placements, &all, nodes, may_hold, replication) else { return changes };
            let mut distinct = replicas.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), replicas.len(), "replicas are on different nodes");
            placements.get_mut(&shard).unwrap().replicas = replicas;
        }
        panic!("it never settles: {placements:?}");
    }

    fn spread(placements: &BTreeMap<ShardId, Placement>, of: impl Fn(&Placement) -> Vec<NodeId>) -> (usize, usize) {
        let mut counts: BTreeMap<NodeId, usize> = BTreeMap::new();
        placements.values().flat_map(of).for_each(|n| *counts.entry(n).or_default() += 1);
        (*counts.values().min().unwrap(), *counts.values().max().unwrap())
    }

    #[test]
    fn the_metadata_group_has_three_voters_or_five_and_replaces_those_that_leave() {
        let mut nodes: BTreeMap<_, _> = (1..=4).map(|id| node(id, NodeState::Active)).collect();
        let voters = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        assert_eq!(metadata_voters(&nodes, &voters(&[1]), &ids(&[1, 2, 3, 4])), ids(&[1, 2, 3]));
        assert_eq!(metadata_voters(&nodes, &voters(&[1, 2, 3]), &ids(&[1, 2, 4])), ids(&[1, 2, 3]));
        nodes.get_mut(&NodeId(2)).unwrap().state = NodeState::Gone;
        assert_eq!(metadata_voters(&nodes, &voters(&[1, 2, 3]), &ids(&[1, 3, 4])), ids(&[1, 3, 4]));
        nodes.extend((5..=6).map(|id| node(id, NodeState::Active)));
        assert_eq!(metadata_voters(&nodes, &voters(&[1, 3, 4]), &ids(&[1, 3, 4, 5, 6])), ids(&[1, 3, 4, 5, 6]));
    }

    #[test]
    fn a_new_cluster_is_spread_and_stays_as_it_is() {
        for (shards, count) in [(1, 1), (6, 3), (16, 5)] {
            let storage: Vec<NodeId> = (1..=count).map(NodeId).collect();
            let nodes: BTreeMap<_, _> = (1..=count).map(|id| node(id, NodeState::Active)).collect();
            let mut placements = found(&ShardMap::even(shards), &storage, 3);
            let (least, most) = spread(&placements, |p| p.replicas.clone());
            assert!(most - least <= 3);
            assert!(settle(&mut placements, &nodes, &storage, 3) <= 2);
        }
    }

    #[test]
    fn one_node_grows_into_three_and_each_leads_its_share() {
        let storage = ids(&[1, 2, 3]);
        let nodes: BTreeMap<_, _> = (1..=3).map(|id| node(id, NodeState::Active)).collect();
        let mut placements = found(&ShardMap::even(6), &ids(&[1]), 1);
        settle(&mut placements, &nodes, &storage, 3);
        assert!(placements.values().all(|p| p.replicas.len() == 3));
        assert_eq!(spread(&placements, |p| vec![p.replicas[0]]), (2, 2));
    }

    #[test]
    fn a_draining_or_lost_node_gives_all_its_replicas_to_others() {
        let nodes: BTreeMap<_, _> = [(1, NodeState::Active), (2, NodeState::Gone), (3, NodeState::Active), (4, NodeState::Active)]
            .map(|(id, state)| node(id, state))
            .into();
        let mut placements = found(&ShardMap::even(6), &ids(&[1, 2, 3]), 3);
        settle(&mut placements, &nodes, &ids(&[1, 3, 4]), 3);
        assert!(placements.values().all(|p| p.replicas.len() == 3 && !p.replicas.contains(&NodeId(2))));
    }

    #[test]
    fn nothing_moves_off_a_node_that_is_only_out_of_reach() {
        let nodes: BTreeMap<_, _> = (1..=3).map(|id| node(id, NodeState::Active)).collect();
        let mut placements = found(&ShardMap::even(4), &ids(&[1, 2, 3]), 3);
        let before = placements.clone();
        settle(&mut placements, &nodes, &ids(&[1, 3]), 3);
        assert!(before.iter().all(|(shard, p)| p.replicas.iter().all(|n| placements[shard].replicas.contains(n))));
    }

    #[test]
    fn a_shard_that_cannot_move_holds_up_no_other() {
        let nodes: BTreeMap<_, _> = [(1, NodeState::Active), (2, NodeState::Gone), (3, NodeState::Active), (4, NodeState::Active)]
            .map(|(id, state)| node(id, state))
            .into();
        let placements = found(&ShardMap::even(2), &ids(&[1, 2, 3]), 3);
        let next = |may_move: &[u32]| {
            let may_move = may_move.iter().copied().map(ShardId).collect();
            next(&placements, &may_move, &nodes, &ids(&[1, 3, 4]), 3).map(|(shard, _)| shard)
        };
        assert_eq!((next(&[0, 1]), next(&[1]), next(&[])), (Some(ShardId(0)), Some(ShardId(1)), None));
    }

    #[test]
    fn with_nowhere_to_go_a_draining_node_keeps_what_nobody_else_has() {
        let nodes: BTreeMap<_, _> = [(1, NodeState::Draining), (2, NodeState::Active)].map(|(id, state)| node(id, state)).into();
        let mut placements = found(&ShardMap::even(2), &ids(&[1]), 1);
        settle(&mut placements, &nodes, &ids(&[2]), 1);
        assert!(placements.values().all(|p| p.replicas == ids(&[2])));
    }
}
