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
        has_all(node, &table, &rows).await;
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
async fn a_member_whose_place_is_elsewhere_serves_after_a_restart_until_it_is_let_go() {
    let mut world = World::new(&["storage"; 4], 1);
    world.start(&[0, 1, 2], Some(3)).await;
    world.start(&[3], None).await;
    let table = world.table().await;
    let mut rows = Rows::new();
    write(world.node(0), &table, 0, 0..40, &mut rows).await;
    let shard = ShardId(0);
    let ids: Vec<_> = (0..4).map(|i| world.node(i).node_id()).collect();

    // The one that is to get the replica is away: the move begins and cannot go on.
    world.kill(3);
    world.node(1).place(shard, world.node(1).replicas(shard), vec![ids[1], ids[2], ids[3]]).await.unwrap();
    wait("the one that must give its replica away to know it", || async {
        (!world.node(0).replicas(shard).contains(&ids[0])).then_some(())
    })
    .await;
    for i in 0..3 {
        world.kill(i);
        world.hosts[i].disk = world.hosts[i].disk.power_loss(i as u64);
    }
    // Two of the three voters: one of them has its place elsewhere.
    world.start(&[0, 1], None).await;
    write(world.node(1), &table, 1, 0..40, &mut rows).await;
    assert_eq!(world.rows(&table).await, rows);
    world.start(&[2, 3], None).await;
    wait("the move to end", || async {
        let moved = world.node(1).moves().iter().any(|line| line.shard == shard && line.state == cluster::MoveState::Done);
        (moved && world.node(0).read_stale(shard).is_err()).then_some(())
    })
    .await;
    write(world.node(2), &table, 2, 0..40, &mut rows).await;
    for i in 1..4 {
        has_all(world.node(i), &table, &rows).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_comes_back_to_the_node_that_founded_it_is_not_founded_again() {
    let mut world = World::new(&["storage", "storage"], 1);
    world.replicas = Some(1);
    world.start(&[0], Some(1)).await;
    world.start(&[1], None).await;
    let table = world.table().await;
    let mut rows = Rows::new();
    let (shard, ids) = (ShardId(0), [world.node(0).node_id(), world.node(1).node_id()]);
    write(world.node(0), &table, 0, 0..40, &mut rows).await;
    for (round, (from, to)) in [(0, 1), (1, 0), (0, 1), (1, 0)].into_iter().enumerate() {
        world.node(0).place(shard, vec![ids[from]], vec![ids[to]]).await.unwrap();
        // Whoever is asked meanwhile, what is acknowledged is there in the end, and nobody who leads lacks rows.
        let mut tries = 0;
        while world.node(from).read_stale(shard).is_ok() {
            write(world.node(to), &table, 1 + round as i64 * 10_000 + tries, 0..4, &mut rows).await;
            if let Ok(view) = world.node(to).read(shard).await {
                let here = rows_of(&view, &table);
                assert!(here == rows, "round {round}: {} of {} rows", here.len(), rows.len());
            }
            tries += 1;
            assert!(tries < 10_000, "it never ends");
        }
        assert!(world.rows(&table).await == rows, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_node_that_was_away_for_too_long_takes_part_again_when_it_comes_back() {
    let mut world = World::new(&["storage"; 4], 2);
    world.gone_after = Duration::from_secs(1);
    world.start(&[0, 1, 2, 3], Some(4)).await;
    let table = world.table().await;
    let mut rows = Rows::new();
    write(world.node(0), &table, 0, 0..40, &mut rows).await;
    let away = world.node(3).node_id();
    world.kill(3);
    let state = |world: &World| world.node(0).node(away).map(|node| node.state);
    wait("it is taken to be gone", || async { (state(&world) == Some(cluster::NodeState::Gone)).then_some(()) }).await;
    wait("its replicas are made anew elsewhere", || async {
        world.node(0).shards().iter().all(|shard| !world.node(0).replicas(*shard).contains(&away)).then_some(())
    })
    .await;
    write(world.node(0), &table, 1, 0..40, &mut rows).await;
    world.start(&[3], None).await;
    wait("it takes part again", || async { (state(&world) == Some(cluster::NodeState::Active)).then_some(()) }).await;
    // The others hear it: a shard can be led by it.
    let shard = world.node(0).shards()[0];
    let were = world.node(0).replicas(shard);
    let to: Vec<_> = [away].into_iter().chain(were.iter().copied().take(2)).collect();
    wait("nothing else is decided meanwhile", || async {
        world.node(0).place(shard, world.node(0).replicas(shard), to.clone()).await.ok()
    })
    .await;
    wait("it leads", || async { (world.node(0).leader(shard) == Some(away) || world.node(1).leader(shard) == Some(away)).then_some(()) })
        .await;
    write(world.node(1), &table, 2, 0..40, &mut rows).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_whose_majority_is_gone_goes_on_with_what_is_left_or_begins_empty() {
    let mut world = World::new(&["storage"; 7], 7);
    world.start(&[0, 1, 2, 3, 4, 5, 6], Some(7)).await;
    let table = world.table().await;
    let mut rows = Rows::new();
    write(world.node(0), &table, 0, 0..200, &mut rows).await;
    let ids: Vec<_> = (0..7).map(|i| world.node(i).node_id()).collect();
    let placed =
        |world: &World, shard| world.node(0).replicas(shard).iter().map(|id| ids.iter().position(|i| i == id).unwrap()).collect::<Vec<_>>();
    let shards = world.node(0).shards();
    let error = world.node(0).recover(shards[0]).await.unwrap_err();
    assert!(matches!(error, cluster::Error::NotLost { .. }), "{error}");

    // Three nodes go, of which two at most vote in the metadata group: a shard dies with them, others keep one replica.
    let voters: Vec<_> = {
        let mut all: Vec<usize> = (0..7).collect();
        all.sort_by_key(|i| ids[*i]);
        all[..5].to_vec()
    };
    let lost = *shards.iter().find(|s| placed(&world, **s).iter().filter(|i| voters.contains(i)).count() <= 2).expect("one of seven");
    let dead = placed(&world, lost);
    let here = (0..7).find(|i| !dead.contains(i)).unwrap();
    let left = |world: &World, shard| placed(world, shard).into_iter().filter(|i| !dead.contains(i)).collect::<Vec<_>>();
    let minority: Vec<ShardId> = shards.iter().copied().filter(|s| left(&world, *s).len() == 1).collect();
    assert!(!minority.is_empty());
    for &shard in &minority {
        let survivor = world.node(left(&world, shard)[0]).clone();
        let leader = world.node(world.leader(shard).await).clone();
        let all = rows_of(&leader.read(shard).await.unwrap(), &table);
        wait("the one that will be left has everything", || async {
            (rows_of(&survivor.read_stale(shard).unwrap().0, &table) == all).then_some(())
        })
        .await;
    }
    for &i in &dead {
        world.kill(i);
    }
    let node = world.node(here).clone();
    wait("the metadata group is led again", || async { node.refresh().await.ok() }).await;
    let range = |shard| node.shard_map().ranges.iter().find(|r| r.shard == shard).cloned().unwrap();
    for shard in minority.iter().copied().chain([lost]) {
        let survivors = left(&world, shard);
        let recovered = node.recover(shard).await.unwrap();
        assert_eq!((recovered.hash_start, recovered.hash_last), (range(shard).start, range(shard).last));
        assert_eq!(recovered.lost.len(), 3 - survivors.len());
        assert_eq!(recovered.held.is_some(), shard != lost, "{recovered:?}");
        if let Some(survivor) = survivors.first() {
            assert_eq!(recovered.node, format!("n{}", survivor + 1));
            assert_eq!(recovered.held.unwrap().arrived_ns, Some(NOW.0));
        }
    }
    // Exactly the rows of the shard that had no replica left are lost.
    let database = node.catalog().database(DATABASE).unwrap().id;
    rows.retain(|(device, _), _| node.shard_map().range_of(routing_hash_of_tag(database, device)).shard != lost);
    assert!(rows.len() < 200 && rows.len() > 100);
    assert_eq!(world.rows(&table).await, rows);
    write(&node, &table, 1, 0..200, &mut rows).await;
    assert_eq!(world.rows(&table).await, rows);
    wait("every shard has three replicas that vote", || async {
        let whole = |shard: &ShardId| {
            node.replicas(*shard).len() == 3
                && node.replicas(*shard).iter().all(|id| ids.iter().position(|i| i == id).is_some_and(|i| !dead.contains(&i)))
        };
        node.shards().iter().all(whole).then_some(())
    })
    .await;
    assert_eq!(world.rows(&table).await, rows);
}

/// The folder of one replica is lost, and the node's other folders are not: first the leader's, then a follower's.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_folder_is_gone_is_taken_in_anew_with_a_number_of_its_own() {
    let mut world = World::new(&["storage", "storage", "storage"], 1);
    world.start(&[0, 1, 2], Some(3)).await;
    let (table, mut rows) = (world.table().await, Rows::new());
    write(world.node(0), &table, 0, 0..40, &mut rows).await;
    for round in 1..3 {
        let leader = world.leader(ShardId(0)).await;
        let who = if round == 1 { leader } else { (leader + 1) % 3 };
        let others: Vec<usize> = (0..3).filter(|i| *i != who).collect();
        world.kill(who);
        world.hosts[who].disk.remove_dir_all(&PathBuf::from("/data/shards/0")).unwrap();
        write(world.node(others[0]), &table, 2 * round, 0..40, &mut rows).await;
        // Twice: what it begins with is not taken for the old one by the next start either.
        world.start(&[who], None).await;
        world.kill(who);
        world.start(&[who], None).await;
        let node = world.node(who).clone();
        wait("it has everything", || async { (rows_of(&node.read_stale(ShardId(0)).ok()?.0, &table) == rows).then_some(()) }).await;
        let (asker, id) = (world.node(others[0]).clone(), node.node_id());
        wait("its group names it, and it votes", || async {
            let peers = asker.peers().expect("it has peers");
            let told = peers.call(id, cluster::peer::Lane::Asks, "/peer/v1/shards/0/leader", "").await.ok()?;
            let told: serde_json::Value = serde_json::from_slice(&told).ok()?;
            let votes = told["voters"].as_array()?.iter().any(|voter| voter.as_u64() == Some(id.0));
            (told["is_named"] == true && votes).then_some(())
        })
        .await;
        drop((asker, node));
        // With one of the others gone nothing is acknowledged without it.
        world.kill(others[0]);
        write(world.node(others[1]), &table, 2 * round + 1, 0..40, &mut rows).await;
        world.start(&[others[0]], None).await;
        assert_eq!(world.rows(&table).await, rows);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_replica_of_a_shard_is_missed_and_never_begun_anew() {
    let mut world = World::new(&["storage", "storage", "storage"], 1);
    world.replicas = Some(1);
    world.start(&[0, 1, 2], Some(3)).await;
    let (table, mut rows) = (world.table().await, Rows::new());
    write(world.node(0), &table, 0, 0..40, &mut rows).await;
    let who = world.leader(ShardId(0)).await;
    world.kill(who);
    world.hosts[who].disk.remove_dir_all(&PathBuf::from("/data/shards/0")).unwrap();
    for _ in 0..2 {
        world.start(&[who], None).await;
        assert!(world.node(who).read(ShardId(0)).await.is_err(), "nobody answers for what is not there");
        world.kill(who);
    }
}
