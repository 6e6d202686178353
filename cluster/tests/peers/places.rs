//! Shards that move.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn one_node_grows_into_three() {
    let mut world = World::new(&["storage", "storage", "storage"], 3);
    world.start(&[0], Some(1)).await;
    let table = world.table().await;
    let mut rows = Rows::new();
    write(world.node(0), &table, 0, 0..40, &mut rows).await;
    world.node(0).flush(None).await.unwrap();
    world.start(&[1, 2], None).await;
    write(world.node(1), &table, 1, 0..40, &mut rows).await;
    let nodes: Vec<_> = (0..3).map(|i| world.node(i).clone()).collect();
    wait("three replicas of every shard, one leader on each node", || async {
        let shards = nodes[0].shards();
        let whole = shards.iter().all(|shard| nodes[0].replicas(*shard).len() == 3);
        let mut leaders: Vec<_> = shards.iter().filter_map(|shard| nodes[0].leader(*shard)).collect();
        leaders.sort();
        leaders.dedup();
        (whole && leaders.len() == 3).then_some(())
    })
    .await;
    assert_eq!(world.rows(&table).await, rows);
    for node in &nodes {
        wait("each has all rows", || async {
            let mut here = Rows::new();
            for shard in node.shards() {
                here.extend(rows_of(&node.read_stale(shard).ok()?.0, &table));
            }
            (here == rows).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_gives_its_shards_away_while_writes_go_on() {
    let mut world = World::new(&["storage", "storage", "storage", "storage"], 2);
    world.start(&[0, 1, 2, 3], Some(3)).await;
    let table = world.table().await;
    let mut rows = Rows::new();
    write(world.node(0), &table, 0, 0..40, &mut rows).await;
    let drained = world.node(0).node_id();
    world.node(1).set_node_state(drained, cluster::NodeState::Draining).await.unwrap();
    let mut round = 1;
    loop {
        write(world.node(1), &table, round, 0..40, &mut rows).await;
        round += 1;
        let node = world.node(0);
        if node.shards().iter().all(|shard| node.read_stale(*shard).is_err()) {
            break;
        }
        assert!(round < 10_000, "it never ends");
    }
    assert!(world.node(1).shards().iter().all(|shard| !world.node(1).replicas(*shard).contains(&drained)));
    assert_eq!(world.rows(&table).await, rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_keeps_nothing_is_forgotten_when_it_stays_away_and_known_again_when_it_comes() {
    let mut world = World::new(&["storage", "storage", "storage", "ingest", "query"], 1);
    world.gone_after = Duration::from_secs(1);
    world.start(&[0, 1, 2, 3, 4], Some(3)).await;
    let names = |node: &Arc<Cluster>| node.nodes().into_iter().map(|n| n.name).collect::<Vec<_>>();
    let all = wait("all are known", || async { Some(names(world.node(0))).filter(|names| names.len() == 5) }).await;
    world.kill(4);
    wait("the dead node is forgotten", || async { (names(world.node(0)).len() == 4).then_some(()) }).await;
    assert!(!names(world.node(0)).contains(&"n5".to_owned()));
    world.start(&[4], None).await;
    assert_eq!(names(world.node(4)), all);
    wait("it is known again", || async { (names(world.node(3)) == all).then_some(()) }).await;

    // Somebody else says that it is gone while it is there: it does not stay so.
    let forgotten = world.node(4).node_id();
    world.node(0).set_node_state(forgotten, cluster::NodeState::Gone).await.unwrap();
    wait("it has said that it is there", || async { (names(world.node(0)) == all).then_some(()) }).await;
}
