//! Leaders that die, members that were away.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_leader_is_replaced_and_nothing_is_lost() {
    let mut world = World::new(&["storage", "storage", "storage", "ingest"], 2);
    world.start(&[0, 1, 2, 3], Some(3)).await;
    let table = world.table().await;
    let mut rows = Rows::new();
    write(world.node(3), &table, 0, 0..40, &mut rows).await;
    for round in 1..4 {
        let dead = world.leader(ShardId(0)).await;
        world.kill(dead);
        write(world.node(3), &table, round, 0..40, &mut rows).await;
        assert_eq!(world.rows(&table).await, rows);
        world.start(&[dead], None).await;
    }
    assert_eq!(world.rows(&table).await, rows);
}

/// A leader that took up its term again would not know what it had committed, and read less than it has acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_killed_and_starts_again_at_once_reads_all_that_it_has_acknowledged() {
    let mut world = World::new(&["storage", "storage", "storage", "ingest"], 1);
    world.start(&[0, 1, 2, 3], Some(3)).await;
    let (shard, table, mut rows) = (ShardId(0), world.table().await, Rows::new());
    for round in 0..5 {
        write(world.node(3), &table, round, 0..40, &mut rows).await;
        let leader = world.leader(shard).await;
        world.kill(leader);
        world.start(&[leader], None).await;
        let nodes: Vec<_> = (0..3).map(|i| world.node(i).clone()).collect();
        let view = wait("somebody who reads", || async {
            let mut reads: Vec<_> = nodes.iter().map(|node| Box::pin(node.read(shard))).collect();
            while !reads.is_empty() {
                let (read, _, others) = futures::future::select_all(reads).await;
                match read {
                    Ok(view) => return Some(view),
                    Err(_) => reads = others,
                }
            }
            None
        })
        .await;
        assert_eq!(rows_of(&view, &table), rows, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_disk_is_full_waits_and_goes_on_when_there_is_room() {
    let mut world = World::new(&["storage", "storage", "storage"], 1);
    world.start(&[0, 1, 2], Some(3)).await;
    let table = world.table().await;
    let mut rows = Rows::new();
    write(world.node(0), &table, 0, 0..40, &mut rows).await;
    let leader = world.leader(ShardId(0)).await;
    let full = (leader + 1) % 3;
    let used: u64 = world.hosts[full].disk.files().iter().map(|(_, bytes)| bytes).sum();
    world.hosts[full].disk.set_capacity(used);
    // More than its log's segments hold.
    let (mut round, node) = (1, world.node(leader).clone());
    let behind = |world: &World| rows_of(&world.node(full).read_stale(ShardId(0)).unwrap().0, &table).len();
    loop {
        for _ in 0..20 {
            write(&node, &table, round, 0..400, &mut rows).await;
            round += 1;
        }
        node.flush(None).await.unwrap();
        if behind(&world) + 4_000 < rows.len() {
            break;
        }
        assert!(round < 10_000, "its disk is never full");
    }
    assert_eq!(world.rows(&table).await.len(), rows.len());
    world.hosts[full].disk.set_capacity(u64::MAX);
    has_all(world.node(full), &table, &rows).await;
    write(&node, &table, round, 0..40, &mut rows).await;
    has_all(world.node(full), &table, &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_for_longer_than_the_log_gets_the_files() {
    let mut world = World::new(&["storage", "storage", "storage"], 1);
    world.start(&[0, 1, 2], Some(3)).await;
    let table = world.table().await;
    let shard = ShardId(0);
    let mut rows = Rows::new();
    write(world.node(0), &table, 0, 0..40, &mut rows).await;
    let away = (0..3).find(|i| Some(world.node(*i).node_id()) != world.node(0).leader(shard)).unwrap();
    world.kill(away);
    let here = (away + 1) % 3;
    for round in 1..4 {
        write(world.node(here), &table, round, 0..40, &mut rows).await;
        world.node(here).flush(None).await.unwrap();
    }
    world.node(here).compact(None).await.unwrap();
    write(world.node(here), &table, 9, 0..40, &mut rows).await;
    world.start(&[away], None).await;
    let node = world.node(away).clone();
    wait("it has everything", || async {
        let (view, _) = node.read_stale(shard).ok()?;
        (rows_of(&view, &table) == rows && !node.files().is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minority_acknowledges_nothing_and_a_majority_goes_on() {
    let mut world = World::new(&["storage", "storage", "storage", "ingest", "ingest"], 1);
    world.start(&[0, 1, 2, 3, 4], Some(3)).await;
    let (shard, table, mut rows) = (ShardId(0), world.table().await, Rows::new());
    write(world.node(3), &table, 0, 0..40, &mut rows).await;

    // The leader is alone with an ingest node that does not know it yet.
    let lonely = world.leader(shard).await;
    let others: Vec<usize> = [0, 1, 2, 4].into_iter().filter(|i| *i != lonely).collect();
    world.partition(&[&others, &[lonely, 3]]);
    let late = part(world.node(3), &table, 77_000, "phone-77", &[(77, 1.5)]).1;
    let (at_leader, at_ingest) = tokio::join!(world.node(lonely).write(shard, late.clone()), world.node(3).write(shard, late.clone()));
    assert!(at_leader.is_err() && at_ingest.is_err(), "a minority has acknowledged");
    assert!(world.node(lonely).read(shard).await.is_err(), "a minority says that it knows the newest");
    for round in 1..4 {
        write(world.node(4), &table, round, 0..40, &mut rows).await;
    }

    // Nobody has a majority.
    world.partition(&[&[0, 3], &[1, 4], &[2]]);
    let writes = [3, 4].map(|i| world.node(i).write(shard, late.clone()));
    assert!(futures::future::join_all(writes).await.iter().all(Result::is_err));

    world.heal();
    wait("the same is sent until it is kept", || async { world.node(3).write(shard, late.clone()).await.ok() }).await;
    rows.insert(("phone-77".to_owned(), NOW.0 + 77), 1.5);
    write(world.node(3), &table, 4, 0..40, &mut rows).await;
    assert_eq!(world.rows(&table).await, rows);
}

/// The others still know the old one by its address: what they send it must not be answered by the new one.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_disk_under_an_old_name_is_a_new_replica_and_never_answers_for_the_old_one() {
    let mut world = World::new(&["storage", "storage", "storage"], 2);
    world.start(&[0, 1, 2], Some(3)).await;
    let (table, mut rows) = (world.table().await, Rows::new());
    for round in 0..3 {
        write(world.node(0), &table, round, 0..40, &mut rows).await;
        let old = world.node(2).node_id();
        world.kill(2);
        world.hosts[2].disk = FaultyDisk::new(100 + round as u64);
        world.start(&[2], None).await;
        let new = world.node(2).node_id();
        assert_ne!(new, old);
        let node = world.node(2).clone();
        wait("the new replicas have everything", || async {
            let mut here = Rows::new();
            for shard in node.shards() {
                if !node.replicas(shard).contains(&new) || node.replicas(shard).contains(&old) {
                    return None;
                }
                here.extend(rows_of(&node.read_stale(shard).ok()?.0, &table));
            }
            (here == rows).then_some(())
        })
        .await;
    }
    write(world.node(2), &table, 9, 0..40, &mut rows).await;
    assert_eq!(world.rows(&table).await, rows);
}
