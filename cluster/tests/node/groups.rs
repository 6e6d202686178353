//! Writes that are ready together become one entry of the log.

use futures::FutureExt;
use futures::future::join_all;
use model::LogIndex;

use super::*;

fn applied(node: &Cluster) -> u64 {
    node.shard_status()[0].applied.map_or(0, |LogIndex(index)| index)
}

#[tokio::test]
async fn writes_that_are_ready_together_are_one_entry() {
    let disk = FaultyDisk::new(5);
    let (node, table) = start_with_table(&disk).await;
    let before = applied(&node);
    for written in join_all((0..20).map(|i| node.write(SHARD, part(&table, i, "d", &[(i as i64, 1.0)])))).await {
        written.unwrap();
    }
    assert_eq!(applied(&node), before + 1);
    assert_eq!(rows(&node, &table).await.len(), 20);
}

#[tokio::test]
async fn a_writer_that_goes_away_leaves_the_others_of_its_group_answered() {
    let disk = FaultyDisk::new(6);
    let (node, table) = start_with_table(&disk).await;
    let mut first = Box::pin(node.write(SHARD, part(&table, 1, "d", &[(1, 1.0)])));
    let mut second = Box::pin(node.write(SHARD, part(&table, 2, "d", &[(2, 2.0)])));
    assert!((&mut first).now_or_never().is_none());
    assert!((&mut second).now_or_never().is_none());
    drop(first);
    second.await.unwrap();
    assert_eq!(rows(&node, &table).await.len(), 2, "what had been taken in is stored all the same");
}
