//! What must not run, must not end the process, and must not touch the server's files; and the status of each error.

use crate::node::Node;
use std::time::{Duration, Instant};

use axum::body::Body;
use http::{Request, StatusCode};
use query::{Error, QueryOptions, RunOptions, Verbs};
use tower::ServiceExt;

async fn error(node: &Node, sql: &str) -> Error {
    match node.csv(sql, RunOptions::default()).await {
        Ok(answer) => panic!("{}: answered {answer}", &sql[..sql.len().min(100)]),
        Err(e) => e,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_writes_or_touches_the_servers_files() {
    let node = Node::start().await;
    node.write("phone,device_id=p1 v=1 1000").await;
    let canary = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(canary.path(), "a,b\n1,2\n").unwrap();
    let path = canary.path().to_str().unwrap();
    for sql in [
        format!("COPY phone TO '{path}'"),
        format!("COPY (SELECT 1) TO '{path}.csv' STORED AS CSV"),
        format!("EXPLAIN ANALYZE COPY phone TO '{path}'"),
        format!("EXPLAIN COPY phone TO '{path}'"),
        format!("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{path}'"),
        format!("SELECT * FROM '{path}'"),
        format!("SELECT * FROM \"{path}\""),
        format!("SELECT * FROM 'file://{path}'"),
        format!("SELECT * FROM read_csv('{path}')"),
        format!("SELECT * FROM read_parquet('{path}')"),
        "SELECT * FROM '/etc/passwd'".to_owned(),
        "INSERT INTO phone VALUES (now(), 'x', 1)".to_owned(),
        "INSERT INTO phone SELECT * FROM phone".to_owned(),
        "EXPLAIN INSERT INTO phone SELECT * FROM phone".to_owned(),
        "EXPLAIN ANALYZE INSERT INTO phone SELECT * FROM phone".to_owned(),
        "UPDATE phone SET v = 2".to_owned(),
        "EXPLAIN ANALYZE DELETE FROM phone".to_owned(),
        "CREATE TABLE t AS SELECT 1".to_owned(),
        "CREATE TABLE t (a INT)".to_owned(),
        "CREATE VIEW v AS SELECT * FROM phone".to_owned(),
        "CREATE OR REPLACE VIEW v AS SELECT * FROM phone".to_owned(),
        "CREATE SCHEMA s".to_owned(),
        "CREATE FUNCTION f(x INT) RETURNS INT RETURN x".to_owned(),
        "DROP VIEW phone".to_owned(),
        "DROP SCHEMA default".to_owned(),
        "SET datafusion.execution.batch_size = 1".to_owned(),
        "SET datafusion.runtime.memory_limit = '100G'".to_owned(),
        "RESET datafusion.execution.batch_size".to_owned(),
        "PREPARE p AS SELECT 1".to_owned(),
        format!("PREPARE p AS COPY phone TO '{path}'"),
        "EXECUTE p".to_owned(),
        "BEGIN".to_owned(),
        "SELECT 1; DROP TABLE phone".to_owned(),
        "SELECT 1; SELECT 2".to_owned(),
        "FLUSH; SELECT 1".to_owned(),
        "(INSERT INTO phone VALUES (now(), 'x', 1))".to_owned(),
        "WITH x AS (SELECT 1) INSERT INTO phone SELECT * FROM x".to_owned(),
        "TRUNCATE TABLE phone".to_owned(),
        "SELECT 1 INTO t".to_owned(),
        String::new(),
        "-- nothing".to_owned(),
        "nonsense".to_owned(),
    ] {
        let e = error(&node, &sql).await;
        assert_eq!(e.kind(), model::ErrorKind::YourRequest, "{sql}: {e}");
    }
    assert_eq!(std::fs::read_to_string(canary.path()).unwrap(), "a,b\n1,2\n");
    assert_eq!(node.ask("SELECT v FROM phone").await, "v\n1.0\n");
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_and_huge_statements_are_refused_and_never_end_the_process() {
    let node = Node::with(|o| o.max_sql_bytes = 2 << 20).await;
    let doubled = (1..40).map(|i| format!("c{i} AS (SELECT a.x FROM c{0} a, c{0} b)", i - 1)).collect::<Vec<_>>().join(", ");
    for sql in [
        format!("SELECT 1{}", "+1".repeat(2_000)),
        format!("SELECT 1{}", "+1".repeat(100_000)),
        format!("SELECT 1 WHERE 1=1{}", " OR 1=2".repeat(5_000)),
        format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(20_000)),
        format!("SELECT {}1{}", "(".repeat(10_000), ")".repeat(10_000)),
        format!("SELECT {}1{}", "(".repeat(90), ")".repeat(90)),
        format!("SELECT {}1", "-".repeat(90)),
        format!("SELECT {}true", "NOT ".repeat(500)),
        format!("SELECT {}1{}", "abs(".repeat(90), ")".repeat(90)),
        format!("{}SELECT 1{}", "SELECT * FROM (".repeat(90), ")".repeat(90)),
        format!("SELECT 1{}", "::int".repeat(5_000)),
        format!("SELECT {}1{}", "CASE WHEN true THEN ".repeat(500), " END".repeat(500)),
        format!("WITH c0 AS (SELECT 1 AS x), {doubled} SELECT count(*) FROM c39"),
        format!("SELECT v{} FROM phone", "['a']".repeat(300_000)),
        format!("SELECT (v){} FROM phone", ".a".repeat(300_000)),
        format!("SELECT 1{}", " IN (1)".repeat(100_000)),
        format!("SELECT true{}", " XOR true".repeat(100_000)),
        format!("SELECT {}'1'", "INTERVAL ".repeat(100_000)),
        format!("{}SELECT 1", "EXPLAIN ".repeat(100_000)),
        format!("SELECT 1 FROM {}", (0..10_000).map(|i| format!("phone a{i}")).collect::<Vec<_>>().join(", ")),
        format!("SELECT '{}'", "x".repeat(3 << 20)),
    ] {
        let started = Instant::now();
        let e = error(&node, &sql).await;
        assert_eq!(e.kind(), model::ErrorKind::YourRequest, "{}: {e}", &sql[..60]);
        assert!(started.elapsed() < Duration::from_secs(10), "{}: {:?}", &sql[..60], started.elapsed());
    }
    // What is long but flat is fine.
    let ids = (0..10_000).map(|i| format!("'p{i}'")).collect::<Vec<_>>().join(",");
    node.write("phone,device_id=p77 v=1 1000").await;
    assert_eq!(node.ask(&format!("SELECT count(*) AS n FROM phone WHERE device_id IN ({ids})")).await, "n\n1\n");
    let or = (0..100).map(|i| format!("device_id = 'p{i}'")).collect::<Vec<_>>().join(" OR ");
    assert_eq!(node.ask(&format!("SELECT count(*) AS n FROM phone WHERE {or}")).await, "n\n1\n");

    let tables = (0..20).map(|i| format!("phone a{i}")).collect::<Vec<_>>().join(", ");
    assert_eq!(node.ask(&format!("SELECT count(*) AS n FROM {tables}")).await, "n\n1\n");

    assert_eq!(node.ask(&format!("SELECT 1{} AS n", "+1".repeat(200))).await, "n\n201\n");
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_names_line_and_column() {
    let node = Node::start().await;
    node.write("phone,device_id=p1 v=1 1000").await;
    for (sql, line, column) in [
        ("SELECT\n  FROM WHERE", 2, 8),
        ("SELECT *\nFROM phone\nWHERE missing = 1", 3, 7),
        ("SELECT 'abc", 1, 8),
        ("SELECT *\nFROM nothing", 2, 6),
    ] {
        let e = error(&node, sql).await;
        let place = e.place().unwrap_or_else(|| panic!("{sql}: {e}"));
        assert_eq!((place.line, place.column), (line, column), "{sql}: {e}");
    }
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_only_reads_changes_nothing() {
    let node = Node::start().await;
    node.write("phone,device_id=p1 v=1 1000").await;
    for sql in [
        "FLUSH",
        "COMPACT",
        "DROP TABLE phone",
        "DROP DATABASE default",
        "CREATE DATABASE x",
        "ALTER DATABASE default SET retention='1d'",
        "KILL QUERY 1",
    ] {
        let options = RunOptions { verbs: Verbs::Ask, ..RunOptions::default() };
        assert!(matches!(node.csv(sql, options).await, Err(Error::ReadOnly { .. })), "{sql}");
    }
    assert_eq!(node.ask("SHOW DATABASES").await, "database\ndefault\n");
    assert_eq!(node.ask("SELECT count(*) AS n FROM phone").await, "n\n1\n");
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_error_has_its_status() {
    let node = Node::with(|o: &mut QueryOptions| o.memory_bytes = 4 << 20).await;
    node.write("phone,device_id=p1 v=1 1000").await;
    let router = query::http::router(node.engine.clone());
    let slow = "SELECT count(*) FROM generate_series(1, 1000000000000) WHERE value < 0";
    let hungry = "SELECT a.value, array_agg(b.value) FROM generate_series(1, 3000) a, generate_series(1, 3000) b GROUP BY a.value";
    let encode = |sql: &str| form_urlencoded::byte_serialize(sql.as_bytes()).collect::<String>();
    for (method, uri, body, status) in [
        ("POST", "/sql".to_owned(), "SELECT 1", StatusCode::OK),
        ("POST", "/sql".to_owned(), "SELECT", StatusCode::BAD_REQUEST),
        ("POST", "/sql".to_owned(), "", StatusCode::BAD_REQUEST),
        ("GET", "/sql".to_owned(), "", StatusCode::BAD_REQUEST),
        ("POST", "/sql".to_owned(), "COPY phone TO '/tmp/x'", StatusCode::BAD_REQUEST),
        ("POST", "/sql".to_owned(), "SELECT 1/0", StatusCode::BAD_REQUEST),
        ("POST", "/sql".to_owned(), "SELECT CAST('x' AS INT)", StatusCode::BAD_REQUEST),
        ("POST", "/sql?format=xml".to_owned(), "SELECT 1", StatusCode::BAD_REQUEST),
        ("POST", "/sql?timeout=soon".to_owned(), "SELECT 1", StatusCode::BAD_REQUEST),
        ("POST", "/sql?db=nowhere".to_owned(), "SELECT 1", StatusCode::NOT_FOUND),
        ("POST", "/sql".to_owned(), "DROP DATABASE nowhere", StatusCode::NOT_FOUND),
        ("POST", "/sql".to_owned(), "KILL QUERY 4711", StatusCode::NOT_FOUND),
        ("GET", format!("/sql?q={}", encode("FLUSH")), "", StatusCode::METHOD_NOT_ALLOWED),
        ("GET", format!("/sql?q={}", encode("SELECT 1")), "", StatusCode::OK),
        ("PUT", "/sql".to_owned(), "SELECT 1", StatusCode::METHOD_NOT_ALLOWED),
        ("POST", "/sql".to_owned(), "DELETE FROM phone WHERE device_id = 'x'", StatusCode::NOT_IMPLEMENTED),
        ("POST", "/sql".to_owned(), "SELECT rate(v, time) FROM phone", StatusCode::NOT_IMPLEMENTED),
        (
            "POST",
            "/sql".to_owned(),
            "SELECT time_bucket_gapfill('1m', time), locf(avg(v)) FROM phone GROUP BY 1",
            StatusCode::NOT_IMPLEMENTED,
        ),
        ("POST", "/sql".to_owned(), "SELECT no_function_at_all(v) FROM phone", StatusCode::BAD_REQUEST),
        ("POST", "/sql".to_owned(), "SELECT * FROM system.ledger", StatusCode::NOT_IMPLEMENTED),
        ("POST", "/sql".to_owned(), "EXPLAIN FLUSH", StatusCode::BAD_REQUEST),
        ("POST", "/sql?timeout=50ms".to_owned(), slow, StatusCode::REQUEST_TIMEOUT),
        ("POST", "/sql".to_owned(), hungry, StatusCode::INSUFFICIENT_STORAGE),
    ] {
        let request = Request::builder().method(method).uri(&uri).body(Body::from(body)).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), status, "{method} {uri} {body}");
        let media_type = response.headers()["content-type"].clone();
        assert_eq!(media_type, "application/json", "{method} {uri} {body}");
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        if status != StatusCode::OK {
            assert!(json["message"].as_str().is_some_and(|m| !m.is_empty()), "{json}");
            assert_eq!(json["error"], json["message"]);
            assert!(json["code"].is_string() && json["data"].is_array(), "{json}");
            assert!(json["line"].is_u64() && json["errorId"].is_string(), "{json}");
            assert_eq!(json.get("column").is_some(), json["line"] != 0, "{json}");
        }
    }
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_function_of_a_later_version_is_told_apart_from_a_wrong_one() {
    let node = Node::start().await;
    node.write("phone,device_id=p1 v=1 1000").await;
    for call in [
        "time_bucket_gapfill('1m', time)",
        "locf(v)",
        "interpolate(v)",
        "first(v, time)",
        "LAST(v, time)",
        "rate(v, time)",
        "Delta(v, time)",
    ] {
        let e = error(&node, &format!("SELECT {call} FROM phone")).await;
        let name = call.split('(').next().unwrap().to_ascii_lowercase();
        assert!(matches!(e, Error::NotYet { .. }), "{call}: {e}");
        assert_eq!(e.to_string(), format!("the function {name} is not available yet"));
    }
    // They are names like any other.
    assert_eq!(node.ask("WITH rate AS (SELECT v AS first FROM phone) SELECT first AS last FROM rate").await, "last\n1.0\n");
    node.cluster.shutdown().await;
}
