//! Bad days: syncs that fail, disks that are full, bytes that rot, queues that are full.

use std::io::ErrorKind;
use std::time::Duration;

use cluster::Error;
use futures::FutureExt;
use futures::future::join_all;

use super::*;

/// Fails the n-th I/O after the node is up, for every third n until none is left to fail. Log and shard try each of their
/// own (`storage/tests`); here it is about what the node makes of it.
#[tokio::test]
async fn whichever_io_fails_what_was_acknowledged_is_there_and_nothing_is_invented() {
    let mut fired = 0;
    for n in (1..).step_by(3) {
        let disk = FaultyDisk::new(n);
        let (node, table) = start_with_table(&disk).await;
        let before = disk.ios();
        disk.fail_once(n, ErrorKind::Other);
        let mut acknowledged = Rows::new();
        let mut attempted = Rows::new();
        for i in 0..3 {
            attempted.extend([row("d", i, i as f64)]);
            let written = node.write(SHARD, part(&table, i as u64, "d", &[(i, i as f64)])).await;
            if written.is_ok() {
                acknowledged.extend([row("d", i, i as f64)]);
            }
            if i == 1 {
                // It may fail; then it is tried again, or the node stops.
                let _ = node.flush(None).await;
            }
        }
        let reached = disk.ios() - before >= n;
        disk.heal();
        let found = disk.power_loss(n);
        drop(node);
        // A failed sync of the log leaves holes that only a replica could fill, so a start may be refused; what must
        // not happen is a start that has forgotten something.
        if let Ok(node) = Cluster::start(options(&found)).await
            && node.shard_status()[0].stopped.is_none()
        {
            let found = rows(&node, &table).await;
            assert!(acknowledged.iter().all(|(key, value)| found.get(key) == Some(value)), "I/O {n}: something was lost");
            assert!(found.iter().all(|(key, value)| attempted.get(key) == Some(value)), "I/O {n}: something was invented");
        } else {
            assert!(acknowledged.len() < attempted.len(), "I/O {n}: every write succeeded and yet the node does not start");
        }
        if !reached {
            break;
        }
        fired += 1;
    }
    assert!(fired > 10, "only {fired} I/Os were made to fail");
}

#[tokio::test]
async fn a_failed_sync_of_the_log_stops_the_node_and_is_never_tried_again() {
    let mut stopped = 0;
    // A write is a store, a sync and little else: one of these I/Os is the sync.
    for n in 1..=4 {
        let disk = FaultyDisk::new(n);
        let (node, table) = start_with_table(&disk).await;
        node.write(SHARD, part(&table, 1, "d", &[(1, 1.0)])).await.unwrap();
        disk.fail_once(n, ErrorKind::Other);
        let Err(error) = node.write(SHARD, part(&table, 2, "d", &[(2, 2.0)])).await else { continue };
        let Some(why) = node.stopped().now_or_never() else { continue };
        stopped += 1;
        assert!(matches!(error, Error::Unknown { .. }), "it may be stored or not: {error}");
        assert!(why.contains("could not sync"), "{why}");
        assert!(node.shard_status()[0].stopped.is_some());
        let refused = node.write(SHARD, part(&table, 3, "d", &[(3, 3.0)])).await.unwrap_err();
        assert_eq!(refused.kind(), model::ErrorKind::Broken, "the disk works again, and nobody tries it");
    }
    assert!(stopped > 0, "no sync was made to fail");
}

#[tokio::test]
async fn a_full_disk_refuses_writes_serves_reads_and_goes_on_by_itself() {
    let disk = FaultyDisk::new(2);
    let (node, table) = start_with_table(&disk).await;
    let used = |disk: &FaultyDisk| disk.files().iter().map(|(_, bytes)| bytes).sum::<u64>();
    disk.set_capacity(used(&disk) + (36 << 20));
    let points: Vec<(i64, f64)> = (0..10_000).map(|i| (i, i as f64)).collect();
    let mut written = 0;
    let refused = loop {
        match node.write(SHARD, part(&table, written, &format!("d{written}"), &points)).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1_000, "the disk is never full");
    };
    assert_eq!(refused.kind(), model::ErrorKind::TryAgain, "{refused}");
    assert!(matches!(refused, Error::DiskFull(_) | Error::Overloaded { .. }), "{refused}");
    assert_eq!(rows(&node, &table).await.len() as u64, written * 10_000);
    disk.set_capacity(u64::MAX);
    let again = async {
        while let Err(error) = node.write(SHARD, part(&table, written, "late", &points)).await {
            assert_eq!(error.kind(), model::ErrorKind::TryAgain, "{error}");
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), again).await.expect("writes go on by themselves");
    assert_eq!(rows(&node, &table).await.len() as u64, (written + 1) * 10_000);
}

#[tokio::test]
async fn a_damaged_shard_stops_alone_and_says_why() {
    let disk = FaultyDisk::new(3);
    let mut two = options(&disk);
    two.shards = 2;
    let node = Cluster::start(two.clone()).await.unwrap();
    node.create_database(DATABASE, None, None).await.unwrap();
    let columns =
        vec![NewColumn { name: "device_id".into(), field: None }, NewColumn { name: "celsius".into(), field: Some(ColumnType::F64) }];
    node.add_columns(DATABASE, vec![(TABLE.into(), columns)]).await.unwrap();
    let table = table(&node);
    for shard in node.shards() {
        node.write(shard, part(&table, 1, "d", &[(1, 1.0)])).await.unwrap();
    }
    node.shutdown().await;
    drop(node);
    let replica = PathBuf::from("/data/shards/1/replica");
    disk.flip_bit(&replica, 30, 3);
    let node = Cluster::start(two).await.unwrap();
    let status = node.shard_status();
    assert_eq!(status[0].stopped, None);
    assert!(status[1].stopped.as_ref().unwrap().contains("damaged"), "{:?}", status[1].stopped);
    node.write(ShardId(0), part(&table, 2, "d", &[(2, 2.0)])).await.unwrap();
    assert!(matches!(node.write(ShardId(1), part(&table, 2, "d", &[(2, 2.0)])).await, Err(Error::Stopped { .. })));
    assert!(matches!(node.read(ShardId(1)).await, Err(Error::Stopped { .. })), "its rows are an error, never missing");
}

#[tokio::test]
async fn beyond_the_bound_writes_are_refused_at_once_and_nothing_of_them_is_stored() {
    let disk = FaultyDisk::new(4);
    let (node, table) = start_with_table(&disk).await;
    node.shutdown().await;
    drop(node);
    let mut small = options(&disk);
    small.max_waiting_bytes = 2_000;
    let node = Cluster::start(small).await.unwrap();
    let writes = (0..3_000).map(|i| node.write(SHARD, part(&table, i, "d", &[(i as i64, i as f64)])));
    let mut expected = Rows::new();
    let mut refused = 0;
    for (i, written) in join_all(writes).await.into_iter().enumerate() {
        match written {
            Ok(_) => expected.extend([row("d", i as i64, i as f64)]),
            Err(error) => {
                assert!(matches!(error, Error::Overloaded { .. }), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "3,000 writes at once fit 2,000 bytes");
    assert_eq!(rows(&node, &table).await, expected);
}
