//! How a cluster comes into being, and who is taken in.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_found_one_cluster_and_agree() {
    let mut world = World::new(&["storage", "storage", "storage"], 3);
    world.start(&[0, 1, 2], Some(3)).await;
    let ids: Vec<u128> = (0..3).map(|i| world.node(i).cluster_id()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
    let table = world.table().await;
    for i in 0..3 {
        let node = world.node(i).clone();
        wait("all nodes know the table", || async { node.catalog().database(DATABASE)?.tables.get(TABLE).cloned() }).await;
        assert_eq!(node.nodes().len(), 3);
    }
    let mut rows = Rows::new();
    for i in 0..3 {
        write(world.node(i), &table, i as i64, 0..20, &mut rows).await;
    }
    assert_eq!(world.rows(&table).await, rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_storage_write_and_know_what_was_decided() {
    let mut world = World::new(&["storage", "ingest", "query"], 2);
    world.start(&[0], Some(1)).await;
    world.start(&[1, 2], None).await;
    let table = world.table().await;
    let mut rows = Rows::new();
    let ingest = world.node(1).clone();
    ingest.refresh().await.unwrap();
    assert!(ingest.catalog().database(DATABASE).unwrap().tables.contains_key(TABLE));
    write(&ingest, &table, 0, 0..50, &mut rows).await;
    assert_eq!(world.rows(&table).await, rows);
    let shard = ingest.shards()[0];
    assert!(matches!(ingest.read(shard).await, Err(cluster::Error::NotHere { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_cluster_that_was_killed_comes_back_with_all_its_rows() {
    let mut world = World::new(&["storage", "storage", "storage", "ingest"], 2);
    world.start(&[0, 1, 2, 3], Some(3)).await;
    let table = world.table().await;
    let mut rows = Rows::new();
    write(world.node(3), &table, 0, 0..40, &mut rows).await;
    for i in 0..4 {
        world.kill(i);
    }
    for (i, host) in world.hosts.iter_mut().enumerate() {
        host.disk = host.disk.power_loss(i as u64);
    }
    world.start(&[3, 2, 1, 0], Some(3)).await;
    assert_eq!(world.rows(&table).await, rows);
    write(world.node(3), &table, 1, 0..40, &mut rows).await;
    assert_eq!(world.rows(&table).await, rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_one_living_nodes_and_who_was_given_up_takes_nobodys_place() {
    let mut world = World::new(&["storage", "storage", "storage", "storage"], 2);
    world.start(&[0, 1, 2], Some(3)).await;
    let refused = |world: &World| {
        let options = world.options(3, None);
        async move {
            let Err(error) = Cluster::start(options).await else { panic!("it is refused") };
            error.to_string()
        }
    };
    world.hosts[3].name = "n2".to_owned();
    let error = refused(&world).await;
    assert!(error.contains("there is a node n2"), "{error}");
    // The disk of a node is lost, another takes its place, and then the disk is found again.
    world.kill(2);
    let old = std::mem::replace(&mut world.hosts[2].disk, FaultyDisk::new(50));
    world.start(&[2], None).await;
    let new = world.node(2).node_id();
    world.hosts[3].name = "n3".to_owned();
    world.hosts[3].disk = old;
    let error = refused(&world).await;
    assert!(error.contains("there is a node n3"), "{error}");
    world.kill(2);
    let error = refused(&world).await;
    assert!(error.contains("has given up the node whose data directory this is"), "{error}");
    let known = world.node(0).node(new).expect("it is known");
    assert_eq!((known.name.as_str(), known.given_up), ("n3", false));
}
