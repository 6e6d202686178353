//! Deadline, kill, number and memory: a query stops, and soon; the others go on.

use std::time::{Duration, Instant};

use axum::body::Body;
use http::Request;
use query::{Error, RunOptions};
use tower::ServiceExt;

use crate::node::Node;

/// Counts a trillion rows if nobody stops it.
const ENDLESS: &str = "SELECT count(*) FROM generate_series(1, 1000000000000) WHERE value < 0";

async fn running(node: &Node) -> String {
    node.ask("SELECT query_id FROM system.queries WHERE state = 'running' AND sql LIKE '%generate_series(1, 1000000000000)%' AND sql NOT LIKE '%system.queries%'").await
}

async fn until(node: &Node, wanted: impl Fn(&str) -> bool) -> String {
    let started = Instant::now();
    loop {
        let now = running(node).await;
        if wanted(&now) {
            return now;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "still {now}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_stops_at_its_deadline() {
    let node = Node::start().await;
    let options = RunOptions { timeout: Some(Duration::from_millis(100)), ..RunOptions::default() };
    let started = Instant::now();
    assert!(matches!(node.csv(ENDLESS, options).await, Err(Error::Deadline { .. })));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    until(&node, |now| now == "query_id\n").await;
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_query_stops_and_says_so() {
    let node = std::sync::Arc::new(Node::start().await);
    let asking = tokio::spawn({
        let node = node.clone();
        async move { node.csv(ENDLESS, RunOptions::default()).await }
    });
    let id = until(&node, |now| now != "query_id\n").await;
    let id = id.trim_start_matches("query_id\n").trim();
    assert_eq!(node.ask(&format!("KILL QUERY {id}")).await, format!("result\nkilled query {id}\n"));
    assert!(matches!(asking.await.unwrap(), Err(Error::Killed { .. })));
    assert!(matches!(node.csv(&format!("KILL QUERY {id}"), RunOptions::default()).await, Err(Error::NoQuery { .. })));
    let seen = node.ask(&format!("SELECT state, error FROM system.queries WHERE query_id = {id}")).await;
    assert_eq!(seen, format!("state,error\nfailed,query {id} was killed\n"));
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_stops_when_nobody_wants_it_any_more() {
    let node = std::sync::Arc::new(Node::start().await);
    let asking = tokio::spawn({
        let node = node.clone();
        async move { node.csv(ENDLESS, RunOptions::default()).await }
    });
    until(&node, |now| now != "query_id\n").await;
    asking.abort();
    until(&node, |now| now == "query_id\n").await;
    node.cluster.shutdown().await;
}

/// Compute without ever giving a row: pairs that the filter refuses, pairs that are only counted, pairs of one key.
const BUSY: [&str; 5] = [
    "SELECT count(*) FROM generate_series(1, 1000000) a JOIN generate_series(1, 1000000) b ON a.value + b.value < 0",
    "SELECT max(a.value), max(b.value) FROM generate_series(1, 1000000) a LEFT JOIN generate_series(1, 1000000) b ON a.value * b.value < 0",
    "SELECT sum(a.value * b.value) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b",
    "SELECT count(*) FROM (SELECT 1 AS k, value FROM generate_series(1, 1000000)) a JOIN (SELECT 1 AS k, value FROM \
     generate_series(1, 1000000)) b ON a.k = b.k WHERE a.value + b.value < 0",
    "WITH RECURSIVE n AS (SELECT 1 AS x UNION ALL SELECT x % 7 FROM n) SELECT count(*) FROM n",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_never_yields_stops_at_its_deadline_and_lets_others_go_on() {
    let node = std::sync::Arc::new(Node::with(|o| o.threads = 2).await);
    for busy in BUSY {
        let started = Instant::now();
        let stopping = [(); 3].map(|()| {
            let node = node.clone();
            tokio::spawn(async move {
                let options = RunOptions { timeout: Some(Duration::from_millis(1_500)), ..RunOptions::default() };
                node.csv(busy, options).await.map(drop)
            })
        });
        let asked = Instant::now();
        assert_eq!(node.ask("SELECT 1 AS one").await, "one\n1\n");
        assert!(asked.elapsed() < Duration::from_secs(1), "{busy}: {:?}", asked.elapsed());
        for stopped in stopping {
            let stopped = stopped.await.unwrap();
            assert!(matches!(stopped, Err(Error::Deadline { .. })), "{busy}: {stopped:?}");
        }
        assert!(started.elapsed() < Duration::from_millis(2_900), "{busy}: {:?}", started.elapsed());
    }
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_never_yields_can_be_killed_and_left() {
    let node = std::sync::Arc::new(Node::with(|o| o.threads = 1).await);
    let under_way = || async {
        node.ask("SELECT query_id FROM system.queries WHERE state = 'running' AND sql LIKE '%+ b.value%' AND sql NOT LIKE '%system%'").await
    };
    for kill in [true, false] {
        let asking = tokio::spawn({
            let node = node.clone();
            async move { node.csv(BUSY[0], RunOptions::default()).await }
        });
        let started = Instant::now();
        let id = loop {
            match under_way().await.trim_start_matches("query_id\n").trim() {
                "" => assert!(started.elapsed() < Duration::from_secs(20)),
                id => break id.to_owned(),
            }
        };
        let ended = Instant::now();
        match kill {
            true => {
                node.ask(&format!("KILL QUERY {id}")).await;
                assert!(matches!(asking.await.unwrap(), Err(Error::Killed { .. })));
            }
            false => asking.abort(),
        }
        while under_way().await != "query_id\n" {
            assert!(ended.elapsed() < Duration::from_secs(2), "still running after {:?}", ended.elapsed());
        }
    }
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_query_too_many_is_told_to_come_again() {
    let node = std::sync::Arc::new(Node::with(|o| o.max_concurrent = 2).await);
    let asking = tokio::spawn({
        let node = node.clone();
        async move { node.csv(ENDLESS, RunOptions::default()).await }
    });
    until(&node, |now| now != "query_id\n").await;
    let held = node.engine.run("default", "SELECT value FROM generate_series(1, 10000000)", RunOptions::default()).await.unwrap();
    assert!(matches!(node.csv("SELECT 1", RunOptions::default()).await, Err(Error::TooMany { limit: 2 })));
    drop(held);
    asking.abort();
    let started = Instant::now();
    while node.csv("SELECT 1", RunOptions::default()).await.is_err() {
        assert!(started.elapsed() < Duration::from_secs(20));
        tokio::task::yield_now().await;
    }
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_over_the_memory_bound_fails_alone() {
    let node = Node::with(|o| {
        o.memory_bytes = 8 << 20;
        o.spill_bytes = 1 << 20;
    })
    .await;
    for hungry in [
        "SELECT a.value, array_agg(b.value) FROM generate_series(1, 3000) a, generate_series(1, 3000) b GROUP BY a.value",
        "SELECT a.value * 3000 + b.value AS x FROM generate_series(1, 3000) a, generate_series(1, 3000) b ORDER BY x DESC",
    ] {
        let e = node.csv(hungry, RunOptions::default()).await.unwrap_err();
        assert!(matches!(e, Error::OverMemory { .. }), "{hungry}: {e}");
    }
    assert_eq!(node.ask("SELECT 1 AS one").await, "one\n1\n");
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_storage_holds_for_a_scan_counts_and_is_given_back() {
    let node = Node::with(|o| o.memory_bytes = 2 << 20).await;
    let lines: Vec<String> = (0..150_000).map(|i| format!("phone,device_id=p{} v={i} {i}", i % 50)).collect();
    node.write(&lines.join("\n")).await;
    for _ in 0..3 {
        let e = node.csv("SELECT * FROM phone", RunOptions::default()).await.unwrap_err();
        assert!(matches!(e, Error::OverMemory { .. }), "{e:?}");
        assert_eq!(node.ask("SELECT v FROM phone WHERE device_id = 'p7' ORDER BY time DESC LIMIT 1").await, "v\n149957.0\n");
    }
    assert!(node.ask("SELECT * FROM phone WHERE time < '1970-01-01T00:00:00.000000001Z'").await.lines().count() == 2);
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_gives_no_more_than_it_may_and_large_lists_are_not_made() {
    let node = Node::start().await;
    node.write("phone,device_id=p1 v=3,n=2000000000i,note=\"ab\" 1000").await;
    for sql in [
        "SELECT repeat('x', 2147483647)",
        "SELECT lpad('x', 2147483647)",
        "SELECT rpad('x', 2147483647, 'ab')",
        "SELECT repeat(note, n) FROM phone",
        "SELECT lpad(note, n, 'x') FROM phone",
        "SELECT count(*) AS n FROM phone WHERE length(repeat(device_id, 100000000)) > 0",
        "SELECT length(replace(repeat('a', 1000), 'a', repeat('b', 60000000)))",
        "SELECT length(replace(repeat('a', 100000), 'a', repeat('b', 100000)))",
        "SELECT length(regexp_replace(repeat('a', 100000), '', repeat('b', 100000), 'g'))",
        "SELECT length(replace(repeat(note, 100000), 'b', repeat('c', 100000))) FROM phone",
        "SELECT length(regexp_replace(repeat(note, 100000), 'b', repeat('c', 100000), 'g')) FROM phone",
        "WITH a AS (SELECT repeat(note, 30000000) AS x FROM phone), b AS (SELECT concat(x, x, x, x) AS x FROM a) SELECT length(concat(x, x, x)) FROM b",
        "SELECT string_agg(repeat('x', 1000000), ',') FROM generate_series(1, 5000)",
    ] {
        let e = node.csv(sql, RunOptions::default()).await.unwrap_err();
        assert!(matches!(e, Error::OverMemory { .. }), "{sql}: {e:?}");
    }
    for sql in [
        "SELECT range(0, 400000000)",
        "SELECT generate_series(0, 400000000)",
        "SELECT array_repeat(1, 400000000)",
        "SELECT list_resize([1], 400000000)",
    ] {
        let e = node.csv(sql, RunOptions::default()).await.unwrap_err();
        assert!(matches!(e, Error::Sql { .. }), "{sql}: {e:?}");
    }
    let replaced = "SELECT replace(note, 'b', 'cc') AS r, replace(note, '', '-') AS e, regexp_replace(note, '(a|b)', '<\\1>', 'g') AS m, concat(note, 1, NULL) AS c, concat_ws('-', note, device_id) AS w FROM phone";
    assert_eq!(node.ask(replaced).await, "r,e,m,c,w\nacc,ab,<a><b>,ab1,ab-p1\n");
    // What the worst case would be does not matter where it can be told.
    node.write(&(0..8_192).map(|i| format!("long,device_id=p1 note=\"{}\" {i}", "x".repeat(400))).collect::<Vec<_>>().join("\n")).await;
    let commas = "SELECT sum(length(replace(note, ',', '12345678901234567890'))) AS n, sum(length(concat(note, note, '!'))) AS m FROM long";
    assert_eq!(node.ask(commas).await, "n,m\n3276800,6561792\n");
    let small = "SELECT repeat(note, 2) AS r, lpad(note, 4) AS l, rpad(note, 4, 'x') AS p FROM phone";
    assert_eq!(node.ask(small).await, "r,l,p\nabab,  ab,abxx\n");
    assert_eq!(node.ask("SELECT count(*) AS n FROM generate_series(1, 9)").await, "n\n9\n");
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_no_thread() {
    let node = Node::with(|o| o.max_concurrent = 200).await;
    let lines: Vec<String> = (0..50_000).map(|i| format!("phone,device_id=p{} v={i} {i}", i % 50)).collect();
    node.write(&lines.join("\n")).await;
    let mut unread = Vec::new();
    for _ in 0..100 {
        let mut answer = node.engine.run("default", "SELECT * FROM phone", RunOptions::default()).await.unwrap();
        let first = answer.next().await.unwrap().unwrap().num_rows();
        unread.push((first, answer));
    }
    assert_eq!(node.ask("SELECT count(*) AS n FROM phone").await, "n\n50000\n");
    for (first, answer) in unread {
        let rest: usize = answer.collect().await.unwrap().iter().map(|b| b.num_rows()).sum();
        assert_eq!(first + rest, 50_000);
    }
    node.cluster.shutdown().await;
}

/// A client that has opened no window, or whose socket is full, is a body that nobody polls.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_reads_holds_no_file_past_its_deadline_or_a_kill() {
    let node = Node::start().await;
    let router = query::http::router(node.engine.clone());
    let lines = |v: i32| (0..5_000).map(|i| format!("phone,device_id=p{} v={v} {i}", i % 50)).collect::<Vec<_>>().join("\n");
    for (round, kill) in [false, true].into_iter().enumerate() {
        node.write(&lines(1)).await;
        node.ask("COMPACT").await;
        let files = node.files_of("phone");
        let timeout = if kill { "60s" } else { "4s" };
        let uri = format!("/sql?timeout={timeout}");
        let request =
            Request::builder().method("POST").uri(uri).body(Body::from("SELECT a.v AS v, b.v AS w FROM phone a, phone b")).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let id = response.headers()["alluvium-query-id"].to_str().unwrap().to_owned();
        let unread = response.into_body();
        // Its files become others, and a flush removes those that nobody holds.
        let flush = async |time: usize| {
            node.write(&(0..9).map(|i| format!("watch,device_id=p{i} v={round} {time}\n")).collect::<String>()).await;
            node.ask("FLUSH").await;
        };
        node.write(&lines(2)).await;
        node.ask("COMPACT").await;
        flush(0).await;
        assert_eq!(node.files_of("phone"), 2 * files, "the answer still holds them");
        if kill {
            node.ask(&format!("KILL QUERY {id}")).await;
        }
        let started = Instant::now();
        for time in 1.. {
            flush(time).await;
            if node.files_of("phone") == files {
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "{} files are held", node.files_of("phone"));
        }
        let e = axum::body::to_bytes(unread, usize::MAX).await.unwrap_err();
        assert!(std::error::Error::source(&e).is_some(), "it is not whole: {e}");
    }
    node.cluster.shutdown().await;
}
