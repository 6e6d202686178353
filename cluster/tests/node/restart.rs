//! What was acknowledged is there again, however the node went away.

use cluster::Outcome;
use futures::future::join_all;

use super::*;

#[tokio::test]
async fn a_kill_loses_nothing_that_was_acknowledged() {
    let disk = FaultyDisk::new(1);
    let (node, table) = start_with_table(&disk).await;
    let parts = (0..200).map(|i| part(&table, i, &format!("d{}", i % 7), &[(i as i64, i as f64)]));
    for applied in join_all(parts.map(|part| node.write(SHARD, part))).await {
        assert_eq!(applied.unwrap().outcome(), &Outcome::Stored { rows: 1 });
    }
    let expected: Rows = (0..200).map(|i| row(&format!("d{}", i % 7), i, i as f64)).collect();
    assert_eq!(rows(&node, &table).await, expected);
    let killed = disk.kill();
    drop(node);
    assert_eq!(rows(&*start(&killed).await, &table).await, expected);
}

#[tokio::test]
async fn a_power_loss_loses_nothing_that_was_acknowledged() {
    for seed in 0..8 {
        let disk = FaultyDisk::new(seed);
        let (node, table) = start_with_table(&disk).await;
        let mut expected = Rows::new();
        for i in 0..30 {
            node.write(SHARD, part(&table, i, "d", &[(i as i64, i as f64)])).await.unwrap();
            expected.extend([row("d", i as i64, i as f64)]);
            if i == 10 {
                node.flush(None).await.unwrap();
            }
        }
        let found = disk.power_loss(seed);
        drop(node);
        assert_eq!(rows(&*start(&found).await, &table).await, expected, "seed {seed}");
    }
}

#[tokio::test]
async fn files_and_log_together_give_each_row_once() {
    let disk = FaultyDisk::new(2);
    let (node, table) = start_with_table(&disk).await;
    node.write(SHARD, part(&table, 1, "d", &[(1, 1.0), (2, 2.0)])).await.unwrap();
    node.flush(None).await.unwrap();
    assert!(!node.files().is_empty());
    node.write(SHARD, part(&table, 2, "d", &[(2, 20.0), (3, 3.0)])).await.unwrap();
    let expected: Rows = [row("d", 1, 1.0), row("d", 2, 20.0), row("d", 3, 3.0)].into();
    assert_eq!(rows(&node, &table).await, expected);
    node.shutdown().await;
    let node = start(&disk).await;
    assert_eq!(rows(&node, &table).await, expected);
    node.compact(None).await.unwrap();
    assert_eq!(node.files().len(), 1);
    assert_eq!(rows(&node, &table).await, expected);
}

#[tokio::test]
async fn a_flush_lets_go_of_the_log() {
    let disk = FaultyDisk::new(3);
    let (node, table) = start_with_table(&disk).await;
    let points: Vec<(i64, f64)> = (0..20_000).map(|i| (i, i as f64)).collect();
    for sequence in 0..20 {
        node.write(SHARD, part(&table, sequence, &format!("d{sequence}"), &points)).await.unwrap();
    }
    let before = node.shard_status()[0].wal_bytes;
    node.flush(None).await.unwrap();
    // The log is let go of behind the flush; another entry has to come before a look at it means something.
    node.write(SHARD, part(&table, 99, "d", &[(0, 0.0)])).await.unwrap();
    let after = node.shard_status()[0].wal_bytes;
    assert!(after < before, "{after} bytes of {before} are left");
    let node = {
        node.shutdown().await;
        start(&disk).await
    };
    assert_eq!(rows(&node, &table).await.len(), 20 * 20_000 + 1);
}

#[tokio::test]
async fn a_retry_is_answered_with_its_first_outcome_also_after_a_restart() {
    let mut disk = FaultyDisk::new(4);
    let (mut node, table) = start_with_table(&disk).await;
    let first = part(&table, 1, "d", &[(5, 1.0)]);
    node.write(SHARD, first.clone()).await.unwrap();
    node.write(SHARD, part(&table, 2, "d", &[(5, 2.0)])).await.unwrap();
    for flushes in [false, true, false] {
        let again = node.write(SHARD, first.clone()).await.unwrap();
        assert_eq!(again.outcome(), &Outcome::Stored { rows: 1 });
        assert_eq!(rows(&node, &table).await, Rows::from([row("d", 5, 2.0)]), "an old retry undoes nothing");
        if flushes {
            node.flush(None).await.unwrap();
        }
        let killed = disk.kill();
        drop(node);
        disk = killed;
        node = start(&disk).await;
    }
    assert_eq!(rows(&node, &table).await, Rows::from([row("d", 5, 2.0)]));
}

#[tokio::test]
async fn a_part_larger_than_an_entry_is_stored_whole_and_a_retry_of_it_is_known() {
    let disk = FaultyDisk::new(5);
    let (node, table) = start_with_table(&disk).await;
    let points: Vec<(i64, f64)> = (0..150_000).map(|i| (i, i as f64)).collect();
    let large = part(&table, 1, "d", &points);
    let stored = Outcome::Stored { rows: 150_000 };
    assert_eq!(node.write(SHARD, large.clone()).await.unwrap().outcome(), &stored);
    let newer: Vec<(i64, f64)> = points.iter().map(|&(t, v)| (t, v + 1.0)).collect();
    node.write(SHARD, part(&table, 2, "d", &newer)).await.unwrap();
    assert_eq!(node.write(SHARD, large).await.unwrap().outcome(), &stored);
    let rows = rows(&node, &table).await;
    assert_eq!(rows.len(), 150_000);
    assert!(rows.iter().all(|((_, time), value)| *value == *time as f64 + 1.0));
}

#[tokio::test]
async fn a_stopped_node_takes_no_more_writes_and_answers_those_it_took() {
    let disk = FaultyDisk::new(6);
    let (node, table) = start_with_table(&disk).await;
    let writes = (0..50).map(|i| node.write(SHARD, part(&table, i, "d", &[(i as i64, 0.0)])));
    let (written, ()) = tokio::join!(join_all(writes), node.shutdown());
    assert!(written.iter().all(Result::is_ok), "taken before the end, answered before the end");
    let late = node.write(SHARD, part(&table, 99, "d", &[(0, 0.0)])).await.unwrap_err();
    assert_eq!(late.kind(), model::ErrorKind::TryAgain);
    drop(node);
    assert_eq!(rows(&*start(&disk).await, &table).await.len(), 50);
}

/// A disk that was not mounted, a folder that somebody removed: what was acknowledged is not here, and nothing says otherwise.
#[tokio::test]
async fn a_folder_that_is_gone_is_told_and_never_taken_for_a_new_one() {
    for (gone, says) in [("shards/0", "the folder of this shard is gone"), ("shards/0/wal", "the log of this shard is gone")] {
        let disk = FaultyDisk::new(7);
        let (node, table) = start_with_table(&disk).await;
        node.write(SHARD, part(&table, 1, "d", &[(1, 1.0)])).await.unwrap();
        node.flush(None).await.unwrap();
        node.write(SHARD, part(&table, 2, "d", &[(2, 2.0)])).await.unwrap();
        node.shutdown().await;
        drop(node);
        disk.remove_dir_all(&options(&disk).data_dir.join(gone)).unwrap();
        let node = start(&disk).await;
        let Err(error) = node.read(SHARD).await else { panic!("nothing of it is served") };
        assert_eq!(error.kind(), model::ErrorKind::Broken);
        assert!(error.to_string().contains(says), "{error}");
        assert!(node.write(SHARD, part(&table, 3, "d", &[(3, 3.0)])).await.is_err());
    }
    let disk = FaultyDisk::new(8);
    let (node, _) = start_with_table(&disk).await;
    node.shutdown().await;
    drop(node);
    disk.remove_dir_all(&options(&disk).data_dir.join("meta")).unwrap();
    let Err(error) = Cluster::start(options(&disk)).await else { panic!("a node without its metadata does not begin with an empty one") };
    assert!(error.to_string().contains("the metadata (databases, schemas, where shards are) is gone"), "{error}");
}
