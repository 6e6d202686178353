//! What the plan looks like where it matters, and that a plan kept from an earlier question still answers the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::registry::Registry;
use query::{RunOptions, Shortcuts};

use crate::node::Node;

async fn filled() -> Node {
    let node = Node::start().await;
    let lines: Vec<String> = (0..300).map(|i| format!("phone,device_id=p{},os=a v={i} {}", i % 30, i * 1_000)).collect();
    node.write(&lines.join("\n")).await;
    node
}

async fn plan(node: &Node, sql: &str) -> String {
    node.ask(sql).await.replace("\"\"", "\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_tells_shards_nodes_and_what_is_left_out() {
    let node = filled().await;
    let all = plan(&node, "EXPLAIN SELECT v FROM phone").await;
    assert!(all.contains("shards=[0, 1, 2] (3 of 3 shards, nodes=[n1])"), "{all}");
    let one = plan(&node, "EXPLAIN SELECT v FROM phone WHERE device_id = 'p7' AND time >= '1970-01-01T00:00:00.000005Z'").await;
    assert!(one.contains("(1 of 3 shards, nodes=[n1])"), "{one}");
    assert!(one.contains("device_id in ('p7')"), "{one}");
    assert!(one.contains("time=1970-01-01T00:00:00.000005Z..=end"), "{one}");
    let off = RunOptions { shortcuts: Shortcuts::Off, ..RunOptions::default() };
    let off = node.csv("EXPLAIN SELECT v FROM phone WHERE device_id = 'p7'", off).await.unwrap();
    assert!(off.contains("(3 of 3 shards") && !off.contains("device_id in ("), "{off}");
    let analyzed = plan(&node, "EXPLAIN ANALYZE SELECT v FROM phone WHERE device_id = 'p7'").await;
    assert!(analyzed.contains("rows_scanned=10"), "{analyzed}");
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_of_series_and_buckets_follow_the_order_of_the_rows() {
    let node = filled().await;
    for bucket in ["date_bin(INTERVAL '1 minute', time)", "time_bucket('1m', time)"] {
        let plan = plan(&node, &format!("EXPLAIN SELECT device_id, os, {bucket} AS t, avg(v) FROM phone GROUP BY device_id, os, t")).await;
        assert!(plan.contains("ordering_mode=Sorted"), "{plan}");
    }
    let plan = plan(&node, "EXPLAIN SELECT device_id, count(*) FROM phone GROUP BY device_id").await;
    assert!(plan.contains("ordering_mode=Sorted"), "{plan}");
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_stops_the_scan() {
    let node = filled().await;
    let limited = plan(&node, "EXPLAIN SELECT v FROM phone LIMIT 5").await;
    assert!(limited.contains("limit=5"), "{limited}");
    assert_eq!(node.ask("SELECT count(*) AS n FROM (SELECT v FROM phone LIMIT 5)").await, "n\n5\n");
    node.cluster.shutdown().await;
}

fn reused(node: &Node) -> u64 {
    let mut registry = Registry::default();
    node.engine.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let line = text.lines().find(|l| l.starts_with("alluvium_query_plans_reused_total ")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_plan_sees_new_rows_new_columns_and_the_clock() {
    let node = filled().await;
    let sql = "SELECT * FROM latest(phone) WHERE device_id = 'p7'";
    assert_eq!(node.ask(sql).await, "time,device_id,os,v\n1970-01-01T00:00:00.000277Z,p7,a,277.0\n");
    assert_eq!(reused(&node), 0);
    node.write("phone,device_id=p7,os=a v=1 999000").await;
    assert_eq!(node.ask(sql).await, "time,device_id,os,v\n1970-01-01T00:00:00.000999Z,p7,a,1.0\n");
    assert_eq!(reused(&node), 1);
    node.write("phone,device_id=p7,os=a w=2 999000").await;
    assert_eq!(node.ask(sql).await, "time,device_id,os,v,w\n1970-01-01T00:00:00.000999Z,p7,a,1.0,2.0\n");
    assert_eq!(reused(&node), 1, "a new column means a new plan");
    node.ask("FLUSH").await;
    assert_eq!(node.ask(sql).await, "time,device_id,os,v,w\n1970-01-01T00:00:00.000999Z,p7,a,1.0,2.0\n");
    assert_eq!(reused(&node), 2);

    let clock = "SELECT count(*) AS n FROM phone WHERE time > now()";
    assert_eq!(node.ask(clock).await, "n\n0\n");
    node.now.store(0, Ordering::Relaxed);
    assert_ne!(node.ask(clock).await, "n\n0\n", "a plan with a clock in it is never kept");
    assert_eq!(reused(&node), 2);
    node.ask("DROP TABLE phone").await;
    assert!(node.csv(sql, RunOptions::default()).await.is_err());
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_scans_of_one_query_agree_while_points_come_in() {
    let node = Arc::new(filled().await);
    let over = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let (node, over) = (node.clone(), over.clone());
        async move {
            let mut i = 0;
            while !over.load(Ordering::Relaxed) {
                i += 1;
                node.write(&format!("phone,device_id=p{},os=a v=1 {}", i % 30, 1_000_000 + i)).await;
            }
            i
        }
    });
    let sql = "SELECT a.n = b.n AS same, a.s = b.s AS sums FROM (SELECT count(*) AS n, sum(v) AS s FROM phone) a, \
               (SELECT count(*) AS n, sum(v) AS s FROM phone) b";
    for _ in 0..20 {
        assert_eq!(node.ask(sql).await, "same,sums\ntrue,true\n");
    }
    over.store(true, Ordering::Relaxed);
    assert!(writing.await.unwrap() > 0);
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_rows_are_found_without_reading_history() {
    let node = Node::start().await;
    let day = 86_400_000_000_000i64;
    for d in 0..20 {
        let lines: Vec<String> =
            (0..200).map(|i| format!("phone,device_id=p{},os=a v={i} {}", i % 20, d * day + i * 60_000_000_000)).collect();
        node.write(&lines.join("\n")).await;
        if d % 3 == 0 {
            node.ask("FLUSH").await;
        }
    }
    for (sql, at_most) in [
        ("SELECT time, v FROM phone ORDER BY time DESC LIMIT 3", 300),
        ("SELECT time, v FROM phone WHERE device_id = 'p7' ORDER BY time DESC LIMIT 1", 10),
        ("SELECT time, v FROM phone WHERE device_id = 'p7' AND v > 100 ORDER BY time LIMIT 1", 20),
        ("SELECT time, device_id, v FROM phone WHERE v = 7 ORDER BY time DESC, device_id LIMIT 4", 4_000),
        ("SELECT max(time) FROM phone", 300),
        ("SELECT min(time) FROM phone WHERE v > 150", 300),
    ] {
        let quick = node.engine.run("default", sql, RunOptions::default()).await.unwrap();
        let schema = quick.schema().clone();
        let mut quick = quick;
        let mut rows = Vec::new();
        while let Some(batch) = quick.next().await {
            rows.push(batch.unwrap());
        }
        let scanned = quick.summary().rows_scanned;
        let rows = String::from_utf8(query::Format::Csv.write(&schema, &rows).unwrap()).unwrap();
        let slow = node.csv(sql, RunOptions { shortcuts: Shortcuts::Off, ..RunOptions::default() }).await.unwrap();
        assert_eq!(rows, slow, "{sql}");
        assert!(scanned <= at_most, "{sql}: {scanned} rows\n{}", plan(&node, &format!("EXPLAIN ANALYZE {sql}")).await);
    }
    let shown = plan(&node, "EXPLAIN SELECT v FROM phone ORDER BY time DESC LIMIT 3").await;
    assert!(shown.contains("newest first"), "{shown}");
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_made_for_two_devices_serves_all_others_and_no_other_question() {
    let node = filled().await;
    node.write("phone,device_id=o'brien,os=a v=7 1\nphone,device_id=p%,os=b v=8 1\nphone,os=p1 v=9 1").await;
    let off = || RunOptions { shortcuts: Shortcuts::Off, ..RunOptions::default() };
    let devices = ["p1", "p2", "p3", "p29", "o''brien", "p%", "nobody", "", "a"];
    for (form, kept) in [
        ("SELECT * FROM latest(phone) WHERE device_id = '{}'", true),
        ("SELECT time, v FROM phone WHERE device_id = '{}' AND os = 'a' AND time >= '1970-01-01T00:00:00.00005Z'", true),
        ("SELECT v FROM phone WHERE device_id LIKE '{}'", false),
        ("SELECT v FROM phone WHERE device_id = '{}' OR os = 'b'", false),
        ("SELECT '{}' AS d, v FROM phone WHERE device_id = '{}'", false),
        ("SELECT count(*) AS n FROM phone WHERE NOT device_id = '{}'", false),
        ("SELECT v FROM phone WHERE os = '{}' AND device_id = 'p1'", true),
        // Planning decides by the value here, and the first two devices do not show it.
        ("SELECT v FROM phone WHERE device_id = '{}' AND device_id != 'p3'", false),
        ("SELECT v FROM phone WHERE device_id = '{}' AND device_id != 'p' || '3'", false),
        ("SELECT v FROM phone WHERE device_id IN ('p1', 'p2') AND device_id = '{}'", false),
        ("SELECT v FROM (SELECT v, device_id, device_id AS d FROM phone) WHERE d != $$p3$$ AND device_id = '{}'", false),
    ] {
        let before = reused(&node);
        for device in devices {
            let sql = form.replace("{}", device);
            let sorted = |answer: String| {
                let mut lines: Vec<String> = answer.lines().map(str::to_owned).collect();
                lines.sort();
                lines
            };
            assert_eq!(sorted(node.ask(&sql).await), sorted(node.csv(&sql, off()).await.unwrap()), "{sql}");
        }
        let times = reused(&node) - before;
        assert!(if kept { times >= 5 } else { times == 0 }, "{form}: {times}");
    }
    node.cluster.shutdown().await;
}
