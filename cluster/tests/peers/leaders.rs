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
