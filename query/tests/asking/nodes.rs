//! Several nodes must answer as one does: every shape of plan, whoever is asked, with quick ways and without; and when a
//! node is lost, a schema is new or nobody wants the answer any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use model::point::routing_hash_of_tag;
use model::schema::NewColumn;
use model::{ColumnType, ShardId};
use prometheus_client::registry::Registry;
use query::{Consistency, Error, Partial, RunOptions, Shortcuts};
use tower::ServiceExt;

use crate::fleet::Fleet;
use crate::node::{Node, stale};

const HOUR: i64 = 3_600_000_000_000;

/// Every shape of plan that is cut in another way.
const QUESTIONS: [&str; 38] = [
    "SELECT count(*), sum(steps), min(time), max(celsius) FROM phone",
    "SELECT device_id, count(*) AS n, avg(celsius) AS c FROM phone GROUP BY device_id ORDER BY device_id",
    "SELECT os, time_bucket('6h', time) AS t, count(*) AS n, sum(steps) AS s FROM phone GROUP BY os, t ORDER BY os, t",
    "SELECT device_id, time, celsius FROM phone ORDER BY celsius DESC, device_id, time LIMIT 7",
    "SELECT device_id, time, celsius FROM phone ORDER BY time DESC, device_id LIMIT 5",
    "SELECT DISTINCT os FROM phone ORDER BY os",
    "SELECT count(*) FROM (SELECT * FROM phone LIMIT 13)",
    "SELECT count(*) AS n FROM phone a JOIN phone b ON a.device_id = b.device_id AND a.time = b.time WHERE a.steps > b.steps - 1",
    "SELECT device_id, count(*) AS n FROM phone WHERE device_id IN (SELECT device_id FROM watch WHERE pulse > 70) GROUP BY device_id ORDER BY device_id",
    "SELECT count(*) AS n FROM phone WHERE celsius > (SELECT avg(celsius) FROM phone)",
    "SELECT count(*) AS n, sum(a.steps * b.pulse) AS s FROM phone a, watch b WHERE a.steps < 3 AND b.pulse < 75",
    "SELECT device_id, time, steps, sum(steps) OVER (PARTITION BY device_id ORDER BY time) AS total FROM phone ORDER BY device_id, time LIMIT 20",
    "SELECT kind, count(*) AS n FROM (SELECT 'phone' AS kind, device_id FROM phone UNION ALL SELECT 'watch', device_id FROM watch) GROUP BY kind ORDER BY kind",
    "SELECT device_id, last_value(celsius ORDER BY time) AS newest FROM phone GROUP BY device_id ORDER BY device_id",
    "SELECT approx_percentile_cont(celsius, 0.5) > 0 AS p, approx_distinct(device_id) AS d FROM phone",
    "SELECT date_bin(INTERVAL '1 day', time) AS day, max(celsius) AS c FROM phone WHERE os = 'a' GROUP BY day ORDER BY day",
    "SELECT device_id, time, celsius, steps FROM latest(phone) ORDER BY device_id",
    "SELECT p.device_id, p.steps, w.pulse FROM latest(phone) p LEFT JOIN latest(watch) w ON p.device_id = w.device_id ORDER BY p.device_id",
    "SELECT p.device_id FROM (SELECT DISTINCT device_id FROM phone) p FULL JOIN (SELECT DISTINCT device_id FROM watch) w ON p.device_id = w.device_id ORDER BY p.device_id",
    "SELECT device_id FROM phone WHERE device_id NOT IN (SELECT device_id FROM watch) GROUP BY device_id ORDER BY device_id",
    "SELECT device_id, time FROM phone WHERE time >= '1970-01-01T10:00:00Z' AND celsius IS NOT NULL ORDER BY time, device_id LIMIT 9",
    "SELECT max(time) FROM phone WHERE os = 'b'",
    "SELECT p.n + w.n + one.x AS n FROM (SELECT count(*) AS n FROM phone) p, (SELECT count(*) AS n FROM watch) w, (SELECT 1 AS x) one",
    "SELECT count(*) AS n FROM phone a JOIN watch b ON a.celsius < b.pulse AND a.time > b.time",
    "SELECT device_id, time, lag(steps) OVER (PARTITION BY device_id ORDER BY time DESC) AS next FROM phone ORDER BY device_id, time LIMIT 40",
    "SELECT device_id, os, time, lead(steps) OVER (PARTITION BY device_id, os ORDER BY time DESC) AS before FROM phone ORDER BY device_id, os, time LIMIT 40",
    "SELECT device_id, time, count(*) FILTER (WHERE steps > 4) OVER (PARTITION BY device_id) AS n FROM phone ORDER BY device_id, time LIMIT 40",
    "SELECT device_id, time, last_value(nullif(steps, 3)) IGNORE NULLS OVER (PARTITION BY device_id ORDER BY time) AS s FROM phone ORDER BY device_id, time LIMIT 40",
    "SELECT device_id, time, sum(steps) OVER (PARTITION BY os) AS s FROM phone WHERE os = 'a' ORDER BY device_id, time LIMIT 20",
    "SELECT device_id, time, row_number() OVER (PARTITION BY os ORDER BY time, device_id) AS n FROM phone WHERE os = 'a' ORDER BY n LIMIT 20",
    "SELECT device_id, sum(steps) * 1.0 / (SELECT sum(steps) FROM phone) AS part FROM phone GROUP BY device_id ORDER BY device_id",
    "SELECT steps > (SELECT avg(steps) FROM phone) AS above, count(*) AS n FROM phone GROUP BY above ORDER BY above",
    "SELECT sum(steps - (SELECT min(steps) FROM phone)) AS s, count(*) FILTER (WHERE steps > (SELECT avg(steps) FROM phone)) AS n FROM phone",
    "SELECT time_bucket('6h', time, (SELECT min(time) FROM phone)) AS t, count(*) AS n FROM phone GROUP BY t ORDER BY t",
    "SELECT device_id, time FROM phone ORDER BY abs(steps - (SELECT max(steps) FROM phone)), device_id, time LIMIT 9",
    "SELECT count(*) AS n FROM phone WHERE celsius > (SELECT avg(celsius) FROM phone WHERE steps > (SELECT avg(pulse) - 70 FROM watch))",
    "SELECT count(*) AS n FROM phone WHERE steps > (SELECT pulse FROM watch WHERE device_id = 'nobody')",
    "SELECT time, device_id FROM phone WHERE CAST(time AS DATE) = DATE '1970-01-02' ORDER BY time, device_id LIMIT 9",
];

const OF_ONE_DEVICE: [&str; 4] = [
    "SELECT time, device_id, os, celsius, steps FROM phone WHERE device_id = 'p7' ORDER BY time",
    "SELECT time, celsius FROM phone WHERE device_id = 'p7' ORDER BY time DESC LIMIT 1",
    "SELECT count(*) AS n, avg(steps) AS s FROM phone WHERE device_id = 'p11' AND time > '1970-01-01T03:00:00Z'",
    // Columns and no rows.
    "SELECT time, celsius FROM phone WHERE device_id = 'nobody' ORDER BY time",
];

fn phones() -> String {
    let line = |i: i64| {
        let device = i % 20;
        let os = ["a", "b"][(device % 2) as usize];
        format!("phone,device_id=p{device},os={os} celsius={}.25,steps={}i {}", (i * 37) % 50, i % 9, (i / 20) * HOUR + device)
    };
    (0..600).map(line).collect::<Vec<_>>().join("\n")
}

fn watches() -> String {
    (0..160).map(|i| format!("watch,device_id=p{} pulse={}i {}", 2 * (i % 16), 60 + i % 30, i / 16 * HOUR)).collect::<Vec<_>>().join("\n")
}

/// Rows in files and in memory, some written twice.
async fn fill(node: &Node) {
    node.write(&stale(&phones())).await;
    node.ask("FLUSH").await;
    node.write(&phones()).await;
    node.write(&watches()).await;
}

/// One of a node's metrics.
fn figure(node: &Node, name: &str) -> u64 {
    let mut registry = Registry::default();
    node.engine.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let line = text.lines().find(|l| l.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn ways() -> [RunOptions; 2] {
    [Shortcuts::On, Shortcuts::Off].map(|shortcuts| RunOptions { shortcuts, ..RunOptions::default() })
}

async fn plan(node: &Node, sql: &str) -> String {
    node.ask(&format!("EXPLAIN {sql}")).await.replace("\"\"", "\"")
}

/// These nodes of a fleet answer as one node alone does, with quick ways and without.
async fn answer_as_one_does(alone: &Node, fleet: &Fleet, nodes: impl IntoIterator<Item = usize>, sql: &str) {
    let expected = alone.ask(sql).await;
    for i in nodes {
        for options in ways() {
            let way = options.shortcuts;
            let answer = fleet.node(i).csv(sql, options).await.unwrap_or_else(|e| panic!("node {i}, {way:?}, {sql}: {e:?}"));
            assert_eq!(answer, expected, "node {i}, {way:?}: {sql}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_answers_as_a_single_one_does() {
    let alone = Node::start().await;
    fill(&alone).await;
    let fleet = Fleet::start(&["ingest,storage,query", "ingest,storage,query", "storage", "query"], 6, 1).await;
    fill(fleet.node(3)).await;
    for sql in QUESTIONS.iter().chain(&OF_ONE_DEVICE) {
        answer_as_one_does(&alone, &fleet, [0, 3], sql).await;
    }
    fleet.end().await;
    alone.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subquery_of_several_rows_stands_for_no_value() {
    let fleet = Fleet::start(&["storage", "storage", "storage", "query"], 3, 1).await;
    fleet.node(3).write(&phones()).await;
    for i in [0, 3] {
        for options in ways() {
            let e = fleet.node(i).csv("SELECT count(*) FROM phone WHERE steps > (SELECT steps FROM phone WHERE steps < 3)", options).await;
            let e = e.unwrap_err();
            assert_eq!(e.kind(), model::ErrorKind::YourRequest, "{e:?}");
            assert!(e.to_string().contains("gives several rows"), "{e}");
        }
    }
    fleet.end().await;
}

/// Each node leads one shard, so each stage scans one partition, and groups have rows in all of them.
#[tokio::test(flavor = "multi_thread")]
async fn groups_whose_rows_lie_in_all_shards_are_told_once_whoever_is_asked() {
    let lines = |hosts: i64| {
        let line = |i: i64| {
            format!("cpu,host=h{:03},cpu=c{} usage={}i,ok={} {}", i / 12, i % 12, i % 7, ["t", "f"][(i % 2) as usize], (i % 5) * HOUR)
        };
        (0..hosts * 12).map(line).collect::<Vec<_>>().join("\n")
    };
    let alone = Node::start().await;
    let fleet = Fleet::start(&["ingest,storage,query", "ingest,storage,query", "ingest,storage,query", "query"], 3, 1).await;
    for node in [&alone, fleet.node(0)] {
        node.write(&lines(100)).await;
        node.ask("FLUSH").await;
        node.write(&lines(40)).await;
        node.write("m,room=a v=1i 1\nm,room=b v=2i 2\nm,device_id=d,room=a v=3i 3").await;
    }
    for sql in [
        "SELECT host, count(*) AS n FROM cpu GROUP BY host ORDER BY host",
        "SELECT count(*) AS n FROM (SELECT DISTINCT host FROM cpu)",
        "SELECT host, ok, count(*) AS n, sum(usage) AS s FROM cpu GROUP BY host, ok ORDER BY host, ok",
        "SELECT time_bucket('1h', time) AS t, host, avg(usage) AS u FROM cpu GROUP BY t, host ORDER BY t, host",
        "SELECT device_id, count(*) AS n FROM m GROUP BY device_id ORDER BY device_id",
        "SELECT host, cpu, last_value(usage ORDER BY time) AS u FROM cpu GROUP BY host, cpu ORDER BY host, cpu",
        "SELECT count(*) AS n FROM (SELECT DISTINCT a.host FROM cpu a JOIN cpu b ON a.host = b.host AND a.cpu = b.cpu)",
    ] {
        answer_as_one_does(&alone, &fleet, 0..4, sql).await;
    }
    fleet.end().await;
    alone.cluster.shutdown().await;
}

/// From the second device on the node asked does not plan: it knows by the form where the statement goes.
#[tokio::test(flavor = "multi_thread")]
async fn statements_of_one_form_find_the_node_of_each_device() {
    let alone = Node::start().await;
    fill(&alone).await;
    let fleet = Fleet::start(&["storage", "storage", "query"], 6, 1).await;
    fill(fleet.node(2)).await;
    let forms: [fn(i64) -> String; 5] = [
        |d| {
            format!("SELECT count(*) AS n, max(steps) AS s FROM phone WHERE device_id = 'p{d}' AND os = '{}'", ["a", "b"][(d % 2) as usize])
        },
        |d| format!("SELECT time, celsius FROM phone WHERE os = 'a' AND device_id = 'p{d}' ORDER BY time DESC LIMIT 3"),
        |d| format!("SELECT device_id, celsius FROM latest(phone) WHERE device_id = 'p{d}'"),
        |d| format!("SELECT time, celsius FROM phone WHERE device_id = 'p{d}' AND device_id != 'p3' ORDER BY time LIMIT 3"),
        // About all devices, whatever the form of the others has shown.
        |d| format!("SELECT count(*) AS n FROM phone WHERE os = '{}'", ["a", "b", "p3"][(d % 3) as usize]),
    ];
    for d in (0..22).chain(0..4) {
        for form in forms {
            let sql = form(d);
            assert_eq!(fleet.node(2).ask(&sql).await, alone.ask(&sql).await, "{sql}");
        }
    }
    fleet.end().await;
    alone.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_tells_nodes_and_a_single_device_goes_whole_to_its_node() {
    let fleet = Fleet::start(&["storage", "storage", "query"], 4, 1).await;
    let asked = fleet.node(2);
    fill(asked).await;
    let spread = plan(asked, "SELECT os, count(*) FROM phone GROUP BY os").await;
    assert!(
        spread.contains("Stage 1") && spread.contains("nodes=[n1]") && spread.contains("nodes=[n2]") && spread.contains("(2 of 4 shards"),
        "{spread}"
    );
    // The order of a scan is lost between nodes; the groups are still made where the rows are.
    let by_device = plan(asked, "SELECT device_id, count(*) FROM phone GROUP BY device_id").await;
    assert!(by_device.contains("NetworkShuffleExec") && !by_device.contains("ordering_mode=Sorted"), "{by_device}");
    let whole = plan(asked, OF_ONE_DEVICE[0]).await;
    assert!(whole.contains("sent whole to node n"), "{whole}");
    let analyzed = asked.ask("EXPLAIN ANALYZE SELECT os, count(*) FROM phone GROUP BY os").await;
    assert!(analyzed.contains("rows_scanned") && analyzed.contains("nodes=[n1]") && analyzed.contains("nodes=[n2]"), "{analyzed}");
    let mut answer = asked.engine.run("default", "SELECT os, count(*) FROM phone GROUP BY os", RunOptions::default()).await.unwrap();
    while let Some(batch) = answer.next().await {
        batch.unwrap();
    }
    let summary = answer.summary();
    assert_eq!((summary.rows, summary.rows_scanned, summary.shards), (2, 600, 4));
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_scans_agree_wherever_they_run() {
    let fleet = Arc::new(Fleet::start(&["storage", "storage", "query"], 4, 1).await);
    fleet.node(2).write(&phones()).await;
    let over = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let (fleet, over) = (fleet.clone(), over.clone());
        async move {
            let mut i = 0;
            while !over.load(Ordering::Relaxed) {
                i += 1;
                fleet.node(2).write(&format!("phone,device_id=p{},os=a celsius=1,steps=1i {}", i % 20, 1_000 * HOUR + i)).await;
            }
            i
        }
    });
    let whole = "SELECT a.n = b.n AS same FROM (SELECT count(*) AS n FROM phone) a, (SELECT count(*) AS n FROM phone) b";
    let joined = "SELECT count(*) = max(n) AS same FROM phone, (SELECT count(*) AS n FROM phone)";
    let device = "SELECT a.n = b.n AS same FROM (SELECT count(*) AS n FROM phone WHERE device_id = 'p3') a, \
                  (SELECT count(*) AS n FROM phone WHERE device_id = 'p3') b";
    for _ in 0..8 {
        for sql in [whole, joined, device] {
            for options in ways() {
                for i in 0..3 {
                    assert_eq!(fleet.node(i).csv(sql, options.clone()).await.unwrap(), "same\ntrue\n", "{sql}");
                }
            }
        }
    }
    over.store(true, Ordering::Relaxed);
    assert!(writing.await.unwrap() > 0);
    Arc::into_inner(fleet).unwrap().end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_seen_by_every_node_asked_afterwards_even_with_new_tables_and_tags() {
    let fleet = Fleet::start(&["ingest,storage,query", "storage,query", "query"], 4, 1).await;
    for round in 0..12 {
        let (to, from) = (fleet.node(round % 3), fleet.node((round + 1) % 3));
        to.write(&format!(
            "car,device_id=c1,tag{round}=x speed={round} {round}\ncar,device_id=c{round},tag{round}=y speed={round} {round}"
        ))
        .await;
        to.write(&format!("table{round},device_id=c1 v={round} 1")).await;
        assert_eq!(from.ask(&format!("SELECT v FROM table{round}")).await, format!("v\n{round}.0\n"));
        assert_eq!(from.ask("SELECT count(*) AS n FROM car").await, format!("n\n{}\n", 2 * (round + 1)), "round {round}");
        assert_eq!(from.ask(&format!("SELECT count(*) AS n FROM car WHERE tag{round} = 'x'")).await, "n\n1\n");
        if round % 4 == 3 {
            to.ask("FLUSH").await;
        }
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_field_is_in_every_row_that_is_asked_for_whole_even_where_the_catalog_lags() {
    let fleet = Fleet::start(&["ingest,storage,query", "storage,query", "query"], 4, 1).await;
    let devices = 0..8;
    for round in 0..12 {
        let (to, from) = (fleet.node(round % 3), fleet.node((round + 1) % 3));
        let table = format!("car{}", round / 6);
        to.write(&devices.clone().map(|d| format!("{table},device_id=c{d} f{round}={round} 1\n")).collect::<String>()).await;
        for of in [table.clone(), format!("latest({table})")] {
            let answer = from.ask(&format!("SELECT * FROM {of}")).await;
            assert!(answer.lines().next().unwrap().ends_with(&format!(",f{round}")), "{of}, round {round}: {answer}");
            assert_eq!(answer.matches(&format!(",{round}.0\n")).count(), 8, "{of}, round {round}: {answer}");
        }
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_was_planned_before_a_field_came_is_planned_anew() {
    let fleet = Fleet::start(&["ingest,storage,query", "query"], 2, 1).await;
    let asked = fleet.node(1);
    for round in 0.. {
        let table = format!("car{round}");
        fleet.node(0).write(&format!("{table},device_id=c1 v=1 1\n{table},device_id=c2 v=1 1")).await;
        assert_eq!(asked.ask(&format!("SELECT count(*) AS n FROM {table}")).await, "n\n2\n");
        // Rows of a version that is agreed on while they are asked for.
        let before = figure(asked, "alluvium_queries_begun_anew_total");
        fleet.node(0).write_ahead(&format!("{table},device_id=c1 v=2 1"), 1).await;
        let sql = format!("SELECT * FROM {table} ORDER BY device_id");
        let column = NewColumn { name: "w".into(), field: Some(ColumnType::F64) };
        let agreed = fleet.node(0).cluster.add_columns("default", [(table.as_str().into(), vec![column])].into());
        let (answer, agreed) = futures::join!(asked.csv(&sql, RunOptions::default()), agreed);
        agreed.unwrap();
        match answer {
            Ok(answer) => {
                let time = "1970-01-01T00:00:00.000000001Z";
                assert_eq!(answer, format!("time,device_id,v,w\n{time},c1,2.0,\n{time},c2,1.0,\n"));
                if figure(asked, "alluvium_queries_begun_anew_total") > before {
                    break;
                }
            }
            // The field took longer than all attempts.
            Err(e) => assert!(matches!(e, Error::StaleSchema { .. }), "{e:?}"),
        }
        assert!(round < 100, "no question was begun anew");
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_done_in_part_is_not_begun_anew() {
    let mut fleet = Fleet::start(&["storage", "storage", "storage", "query"], 3, 1).await;
    fleet.node(3).write(&phones()).await;
    fleet.kill(fleet.place(fleet.node(3).cluster.find_leader(ShardId(1)).await.unwrap())).await;
    let options = RunOptions { timeout: Some(Duration::from_secs(30)), ..RunOptions::default() };
    let e = fleet.node(3).csv("DROP TABLE phone", options).await.unwrap_err();
    assert!(e.kind() == model::ErrorKind::TryAgain || matches!(e, Error::Deadline { .. }), "{e:?}");
    assert_eq!(figure(fleet.node(3), "alluvium_queries_begun_anew_total"), 0);
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_leader_costs_one_more_attempt_and_no_row() {
    let mut fleet = Fleet::start(&["storage", "storage", "storage", "query"], 3, 3).await;
    fill(fleet.node(3)).await;
    let sql = "SELECT os, count(*) AS n, sum(steps) AS s FROM phone GROUP BY os ORDER BY os";
    let expected = fleet.node(3).ask(sql).await;
    let led = fleet.node(3).cluster.find_leader(ShardId(0)).await.unwrap();
    fleet.kill(fleet.place(led)).await;
    let answer = fleet.node(3).csv(sql, RunOptions::default()).await.unwrap();
    assert!(figure(fleet.node(3), "alluvium_queries_begun_anew_total") > 0, "it was asked of the lost one first");
    assert_eq!(answer, expected);
    let stale = RunOptions { consistency: Consistency::Stale, ..RunOptions::default() };
    assert_eq!(fleet.node(3).csv(sql, stale).await.unwrap(), expected);
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_lost_after_the_first_row_ends_the_answer_with_an_error() {
    let mut fleet = Fleet::start(&["storage", "storage", "storage", "query"], 3, 1).await;
    fleet.node(3).write(&(0..3_000).map(|i| format!("phone,device_id=p1 v={i} {i}\n")).collect::<String>()).await;
    let pairs = "SELECT a.v, b.v AS w FROM phone a, phone b WHERE a.device_id = 'p1' AND b.device_id = 'p1'";
    let cluster = fleet.node(3).cluster.clone();
    let database = cluster.catalog().database("default").unwrap().id;
    let shard = cluster.shard_map().range_of(routing_hash_of_tag(database, "p1")).shard;
    let gone = fleet.place(cluster.find_leader(shard).await.unwrap());
    let mut answer = fleet.node(3).engine.run("default", pairs, RunOptions::default()).await.unwrap();
    let mut rows = answer.next().await.unwrap().unwrap().num_rows();
    fleet.kill(gone).await;
    let e = loop {
        match answer.next().await {
            Some(Ok(batch)) => rows += batch.num_rows(),
            Some(Err(e)) => break e,
            None => panic!("{rows} of 9000000 rows were taken for the whole answer"),
        }
    };
    assert_eq!(e.kind(), model::ErrorKind::TryAgain, "{e:?}");
    assert!(answer.next().await.is_none());
    drop(answer);
    drop(cluster);
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_gone_is_named_or_left_out_as_asked_and_never_missed() {
    let mut fleet = Fleet::start(&["storage", "storage", "storage", "query"], 3, 1).await;
    fleet.node(3).write(&phones()).await;
    // The metadata group goes on without a node that only has shards; any will do here, of three.
    let gone = fleet.place(fleet.node(3).cluster.find_leader(ShardId(1)).await.unwrap());
    let shards = fleet.led_by(gone).await;
    fleet.kill(gone).await;
    let sql = "SELECT count(*) AS n FROM phone";
    for options in ways() {
        let e = fleet.node(3).csv(sql, options).await.unwrap_err();
        assert_eq!(e.kind(), model::ErrorKind::TryAgain, "{e:?}");
        assert!(shards.iter().any(|shard| e.to_string().contains(&shard.to_string())), "{e}: {shards:?}");
    }
    let allow = RunOptions { partial: Partial::Allow, ..RunOptions::default() };
    let mut answer = fleet.node(3).engine.run("default", sql, allow).await.unwrap();
    while let Some(batch) = answer.next().await {
        batch.unwrap();
    }
    assert_eq!(answer.summary().missing, shards);
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_of_three_answers_stale_questions_and_those_that_may_be_answered_in_part() {
    let mut fleet = Fleet::start(&["storage", "storage", "storage", "query"], 3, 3).await;
    fleet.node(3).write(&phones()).await;
    let sql = "SELECT count(*) AS n FROM phone";
    let stale = RunOptions { consistency: Consistency::Stale, ..RunOptions::default() };
    fleet
        .until("the one that stays has all rows", || async { fleet.node(0).csv(sql, stale.clone()).await.is_ok_and(|n| n == "n\n600\n") })
        .await;
    // As new as can be is what leaders have.
    let new = RunOptions { max_lag: Some(Duration::ZERO), ..stale.clone() };
    for i in [3, 0] {
        assert_eq!(fleet.node(i).csv(sql, new.clone()).await.unwrap(), "n\n600\n", "node {i}");
    }
    fleet.kill(1).await;
    fleet.kill(2).await;
    for i in [3, 0] {
        assert_eq!(fleet.node(i).csv(sql, stale.clone()).await.unwrap(), "n\n600\n", "node {i}");
        let too_old = || async {
            let e = fleet.node(i).csv(sql, RunOptions { max_lag: Some(Duration::from_millis(1)), ..stale.clone() }).await.err()?;
            (e.kind() == model::ErrorKind::TryAgain && e.to_string().contains("older than max_lag=0.001s allows")).then_some(())
        };
        fleet.until("what is left is known to be old", || async { too_old().await.is_some() }).await;
        // Nobody can say that these rows are the newest.
        let allow = RunOptions { partial: Partial::Allow, ..RunOptions::default() };
        let mut answer = fleet.node(i).engine.run("default", sql, allow).await.unwrap_or_else(|e| panic!("node {i}: {e:?}"));
        while let Some(batch) = answer.next().await {
            batch.unwrap();
        }
        assert_eq!(answer.summary().missing.len(), 3, "node {i}");
    }
    fleet.end().await;
}

/// The head and the bytes of an answer over HTTP.
async fn over_http(node: &Node, options: &str, sql: &str) -> (http::response::Parts, Vec<u8>) {
    let router = query::http::router(node.engine.clone());
    let request = http::Request::post(format!("/sql?{options}")).body(axum::body::Body::from(sql.to_owned())).unwrap();
    let (head, body) = router.oneshot(request).await.unwrap().into_parts();
    (head, axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_an_answer_may_be_on_one_other_node_and_says_what_it_lacks_whatever_its_size() {
    let mut fleet = Fleet::start(&["storage", "storage", "storage", "query"], 3, 1).await;
    fleet.node(3).write(&phones()).await;
    let cluster = fleet.node(3).cluster.clone();
    let database = cluster.catalog().database("default").unwrap().id;
    let device_of = |shard: ShardId| {
        let device = (0..20).map(|d| format!("p{d}"));
        device.into_iter().find(|d| cluster.shard_map().range_of(routing_hash_of_tag(database, d)).shard == shard).unwrap()
    };
    let (dead, alive) = (ShardId(1), ShardId(2));
    let [gone, stays] = [cluster.find_leader(dead).await.unwrap(), cluster.find_leader(alive).await.unwrap()];
    assert_ne!(gone, stays, "each node has a shard");
    fleet.kill(fleet.place(gone)).await;
    let of_both = format!("FROM phone WHERE device_id IN ('{}', '{}')", device_of(dead), device_of(alive));
    let (head, body) = over_http(fleet.node(3), "partial=allow&format=csv", &format!("SELECT count(*) AS n {of_both}")).await;
    assert_eq!((head.status, String::from_utf8(body).unwrap()), (http::StatusCode::OK, "n\n30\n".to_owned()));
    assert_eq!(head.headers["alluvium-partial"], "1");
    let large = format!("SELECT repeat('x', 10000) AS x, time {of_both}");
    let (head, body) = over_http(fleet.node(3), "partial=allow&format=csv", &large).await;
    assert_eq!((head.status, &head.headers["alluvium-partial"]), (http::StatusCode::OK, &http::HeaderValue::from_static("1")));
    assert!(body.len() > 300_000 && head.headers.contains_key("trailer"), "{}", body.len());
    let (head, _) = over_http(fleet.node(3), "consistency=stale&partial=allow", &large).await;
    let lag = head.headers["alluvium-lag"].to_str().unwrap();
    assert!(lag == "unknown" || lag.parse::<f64>().is_ok(), "the node that reads may not have told yet: {lag}");
    let small = format!("SELECT count(*) {of_both}");
    let (head, _) = over_http(fleet.node(3), "consistency=stale&partial=allow", &small).await;
    assert!(head.headers["alluvium-lag"].to_str().unwrap().parse::<f64>().is_ok(), "{:?}", head.headers);
    drop(cluster);
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_whose_leader_has_lost_its_majority_are_left_out_as_asked() {
    let mut fleet = Fleet::start(&["storage", "storage", "storage", "query"], 3, 3).await;
    fleet.node(3).write(&phones()).await;
    let led = fleet.node(3).cluster.find_leader(ShardId(0)).await.unwrap();
    let stays = fleet.place(led);
    for i in (0..3).filter(|i| *i != stays) {
        fleet.kill(i).await;
    }
    let allow = RunOptions { partial: Partial::Allow, ..RunOptions::default() };
    let mut answer = fleet.node(3).engine.run("default", "SELECT count(*) AS n FROM phone", allow).await.unwrap();
    while let Some(batch) = answer.next().await {
        assert_eq!(format!("{:?}", batch.unwrap().column(0)).matches('0').count(), 1);
    }
    assert_eq!(answer.summary().missing, fleet.node(3).cluster.shards());
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_nobody_wants_ends_on_all_nodes() {
    let fleet = Arc::new(Fleet::with(&["storage", "storage", "query"], 4, 1, |o| o.threads = 1).await);
    fill(fleet.node(2)).await;
    let busy = "SELECT count(*) FROM phone a JOIN phone b ON a.steps + b.steps < 0 JOIN phone c ON b.steps + c.steps + a.steps < 0 \
                JOIN phone d ON sin(a.celsius + b.celsius) > c.celsius + d.celsius + 1e9";
    let endless = "SELECT count(*) FROM (SELECT a.celsius AS x FROM phone a, phone b, phone c) WHERE sin(x) > 2";
    for sql in [busy, endless] {
        let started = Instant::now();
        let options = RunOptions { timeout: Some(Duration::from_millis(700)), ..RunOptions::default() };
        let ended = fleet.node(2).csv(sql, options).await;
        if ended.is_ok() {
            continue;
        }
        assert!(matches!(ended, Err(Error::Deadline { .. } | Error::Ended { .. })), "{ended:?}");
        assert!(started.elapsed() < Duration::from_millis(2_200), "{:?}", started.elapsed());
        // Every node has its one thread back.
        for node in fleet.living() {
            let asked = Instant::now();
            assert_eq!(node.ask("SELECT count(*) AS n FROM watch").await, "n\n160\n");
            assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        }
    }
    let asking = tokio::spawn({
        let fleet = fleet.clone();
        async move { fleet.node(2).csv(endless, RunOptions::default()).await }
    });
    let running = "SELECT query_id FROM system.queries WHERE state = 'running' AND sql LIKE '%sin(x)%' AND sql NOT LIKE '%system%'";
    let started = Instant::now();
    let id = loop {
        match fleet.node(0).ask(running).await.trim_start_matches("query_id\n").trim() {
            "" => assert!(started.elapsed() < Duration::from_secs(20)),
            id => break id.to_owned(),
        }
    };
    fleet.node(0).ask(&format!("KILL QUERY {id}")).await;
    assert!(matches!(asking.await.unwrap(), Err(Error::Killed { .. })));
    Arc::into_inner(fleet).unwrap().end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn system_tables_tell_of_all_nodes() {
    let fleet = Fleet::start(&["ingest,storage,query", "storage", "query"], 4, 1).await;
    fill(fleet.node(2)).await;
    fleet.node(2).ask("FLUSH").await;
    let tables = [
        "SELECT node_id, roles, state FROM system.nodes ORDER BY node_id",
        "SELECT shard_id, leader, replicas, applied_index > 0 AS applied FROM system.shards ORDER BY shard_id",
        "SELECT shard_id, \"table\", rows FROM system.files ORDER BY shard_id, \"table\", first_index, rows",
        "SELECT sum(rows) AS rows FROM system.devices",
    ];
    for sql in tables {
        let answers: Vec<String> = futures::future::join_all(fleet.living().map(|node| node.ask(sql))).await;
        assert!(answers.iter().all(|a| *a == answers[0]), "{answers:?}");
        assert!(answers[0].lines().count() > 1 && !answers[0].contains("false") && !answers[0].contains("down"), "{}", answers[0]);
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_rows_are_found_on_other_nodes_without_reading_history() {
    let fleet = Fleet::start(&["storage", "storage", "query"], 4, 1).await;
    let asked = fleet.node(2);
    for day in 0..10 {
        let lines: Vec<String> =
            (0..200).map(|i| format!("phone,device_id=p{},os=a v={i} {}", i % 20, day * 24 * HOUR + i * HOUR / 100)).collect();
        asked.write(&lines.join("\n")).await;
        if day % 3 == 0 {
            asked.ask("FLUSH").await;
        }
    }
    for (sql, at_most) in [
        ("SELECT time, device_id, v FROM phone ORDER BY time DESC LIMIT 3", 500),
        ("SELECT time, v FROM phone WHERE device_id = 'p7' ORDER BY time DESC LIMIT 1", 20),
        ("SELECT max(time) FROM phone", 500),
    ] {
        let mut answer = asked.engine.run("default", sql, RunOptions::default()).await.unwrap();
        while let Some(batch) = answer.next().await {
            batch.unwrap();
        }
        let scanned = answer.summary().rows_scanned;
        assert!(scanned > 0 && scanned <= at_most, "{sql}: {scanned} rows\n{}", asked.ask(&format!("EXPLAIN ANALYZE {sql}")).await);
        let [quick, slow] = ways().map(|options| asked.csv(sql, options));
        assert_eq!(quick.await.unwrap(), slow.await.unwrap());
    }
    fleet.end().await;
}
