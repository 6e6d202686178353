//! Shards that become two.

use cluster::{MoveKind, MoveState};
use model::Epoch;

use super::*;

impl World {
    /// Returns when both halves have three replicas that hold them and nothing is left over of the split.
    async fn split_is_done(&self, shard: ShardId, child: ShardId) {
        wait("the end of the split", || async {
            let running: Vec<_> = self.hosts.iter().filter_map(|host| host.running.as_ref().map(|r| &r.node)).collect();
            let held = running.iter().filter(|node| node.read_stale(child).is_ok() && node.read_stale(shard).is_ok()).count();
            let done = running[0].moves().iter().any(|m| m.kind == MoveKind::Split && m.child == Some(child) && m.state == MoveState::Done);
            (done && held == running.len()).then_some(())
        })
        .await;
    }
}

/// Three nodes with one shard, and rows of it in files and in memory.
async fn one_shard_on_three() -> (World, Arc<TableSchema>, Rows) {
    let mut world = World::new(&["storage", "storage", "storage"], 1);
    world.start(&[0, 1, 2], Some(3)).await;
    let table = world.table().await;
    let mut rows = Rows::new();
    write(world.node(0), &table, 0, 0..40, &mut rows).await;
    world.node(0).flush(None).await.unwrap();
    write(world.node(0), &table, 1, 0..40, &mut rows).await;
    (world, table, rows)
}

/// A step of a split at which its leader dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Dies {
    /// It was asked for.
    Asked,
    /// The leader has applied the entry.
    Split,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_is_split_twice_while_writes_go_on_and_power_fails_afterwards() {
    let (mut world, table, mut rows) = one_shard_on_three().await;
    let mut round = 2;
    for (shard, expected) in [(0, 1), (1, 2)] {
        let child = world.node(1).split(ShardId(shard), None).await.unwrap();
        assert_eq!(child, ShardId(expected));
        while world.node(2).shard_map().range_of_shard(child).is_none() {
            write(world.node(2), &table, round, 0..40, &mut rows).await;
            round += 1;
            assert!(round < 5_000, "it never ends");
        }
        write(world.node(0), &table, round, 0..40, &mut rows).await;
        round += 1;
        world.split_is_done(ShardId(shard), child).await;
    }
    let map = world.node(0).shard_map();
    assert_eq!(map.ranges.iter().map(|r| (r.shard.0, r.version.0)).collect::<Vec<_>>(), [(0, 2), (1, 3), (2, 3)]);
    assert_eq!(world.rows(&table).await, rows);
    wait("each half to be left alone by the others", || async { world.node(0).compact(None).await.ok() }).await;
    assert_eq!(world.rows(&table).await, rows);
    let files: u64 = world.node(0).figures().await.1.iter().map(|(_, file)| file.rows).sum();
    assert_eq!(files, rows.len() as u64, "after a compaction each row stands once, in the shard that it belongs to");
    for i in 0..3 {
        world.kill(i);
        world.hosts[i].disk = world.hosts[i].disk.power_loss(i as u64);
    }
    world.start(&[0, 1, 2], None).await;
    assert_eq!(world.rows(&table).await, rows);
    write(world.node(1), &table, round, 0..40, &mut rows).await;
    assert_eq!(world.rows(&table).await, rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_goes_on_when_its_leader_dies_and_whoever_was_away_gets_both_halves() {
    for (turn, dies) in [Dies::Asked, Dies::Split].into_iter().enumerate() {
        let (mut world, table, mut rows) = one_shard_on_three().await;
        let shard = ShardId(0);
        let leader = world.leader(shard).await;
        let other = (leader + 1) % 3;
        let child = world.node(other).split(shard, None).await.unwrap();
        if dies == Dies::Split {
            let narrower = || async { (world.node(leader).read_stale(shard).ok()?.0.range_version() == Epoch(2)).then_some(()) };
            wait("the leader to have split its range", narrower).await;
        }
        world.kill(leader);
        world.hosts[leader].disk = world.hosts[leader].disk.power_loss(turn as u64);
        write(world.node(other), &table, 2, 0..40, &mut rows).await;
        world.split_is_done(shard, child).await;
        wait("the others to forget what the halves were", || async { world.node(other).compact(None).await.ok() }).await;
        write(world.node(other), &table, 3, 0..40, &mut rows).await;
        assert_eq!(world.rows(&table).await, rows, "it died at {dies:?}");
        world.start(&[leader], None).await;
        world.split_is_done(shard, child).await;
        has_all(world.node(leader), &table, &rows).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_split_is_refused_and_one_node_alone_splits_too() {
    let mut world = World::new(&["ingest,storage,query"], 1);
    world.start(&[0], Some(1)).await;
    let table = world.table().await;
    let mut rows = Rows::new();
    write(world.node(0), &table, 0, 0..40, &mut rows).await;
    let node = world.node(0).clone();
    for (shard, at) in [(7, None), (0, Some(0))] {
        let error = node.split(ShardId(shard), at).await.unwrap_err();
        assert_eq!(error.kind(), model::ErrorKind::YourRequest, "{error}");
    }
    let child = node.split(ShardId(0), Some(1 << 62)).await.unwrap();
    world.split_is_done(ShardId(0), child).await;
    assert_eq!(node.shard_map().range_of_shard(child).unwrap().start, 1 << 62);
    write(&node, &table, 1, 0..40, &mut rows).await;
    assert_eq!(world.rows(&table).await, rows);
}
