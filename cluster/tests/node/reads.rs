//! A view holds everything acknowledged before it was asked for.

use futures::future::join_all;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_view_holds_every_write_acknowledged_before_it() {
    let disk = FaultyDisk::new(1);
    let (node, table) = start_with_table(&disk).await;
    let writers = (0..8).map(|writer| {
        let (node, table) = (node.clone(), table.clone());
        tokio::spawn(async move {
            let device = format!("d{writer}");
            for i in 0..60 {
                node.write(SHARD, part(&table, writer * 1_000 + i, &device, &[(i as i64, i as f64)])).await.unwrap();
                let seen = rows(&node, &table).await;
                let mine = seen.keys().filter(|(d, _)| *d == device).count() as u64;
                assert_eq!(mine, i + 1, "{device} does not see its own write");
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    // Flushes and compactions in between change nothing.
    for _ in 0..5 {
        node.flush(None).await.unwrap();
        node.compact(None).await.unwrap();
    }
    for writer in join_all(writers).await {
        writer.unwrap();
    }
    assert_eq!(rows(&node, &table).await.len(), 480);
}

#[tokio::test]
async fn a_view_does_not_change_under_its_reader() {
    let disk = FaultyDisk::new(2);
    let (node, table) = start_with_table(&disk).await;
    node.write(SHARD, part(&table, 1, "d", &[(1, 1.0)])).await.unwrap();
    let view = node.read(SHARD).await.unwrap();
    node.write(SHARD, part(&table, 2, "d", &[(1, 10.0), (2, 2.0)])).await.unwrap();
    node.flush(None).await.unwrap();
    node.compact(None).await.unwrap();
    let request =
        ScanRequest { table: table.clone(), projection: Vec::new(), times: i64::MIN..=i64::MAX, tags: Vec::new(), batch_rows: 100 };
    let count: usize = view.scan(&request).unwrap().map(|batch| batch.unwrap().num_rows()).sum();
    assert_eq!(count, 1);
}
