//! The HTTP doors: where a request may say what, what comes back, and that an answer which ended properly is whole.

use crate::node::Node;
use axum::Router;
use axum::body::Body;
use datafusion::arrow::ipc::reader::StreamReader;
use http::{HeaderMap, Request, StatusCode};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

async fn send(router: &Router, request: http::request::Builder, body: impl Into<Body>) -> (StatusCode, HeaderMap, Vec<u8>) {
    let response = router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    (head.status, head.headers, axum::body::to_bytes(body, 1 << 30).await.unwrap().to_vec())
}

async fn ok(router: &Router, request: http::request::Builder, body: impl Into<Body>) -> Vec<u8> {
    let (status, _, bytes) = send(router, request, body).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&bytes));
    bytes
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(bytes)))
}

async fn node() -> (Node, Router) {
    let node = Node::start().await;
    node.write("phone,device_id=p1,os=a celsius=71.5,steps=3i 1000\nphone,device_id=p2 celsius=-1 2000").await;
    let router = query::http::router(node.engine.clone());
    (node, router)
}

const BOTH: &str = "SELECT device_id, time, celsius, steps FROM phone ORDER BY device_id";

fn both() -> Value {
    json!([
        {"device_id": "p1", "time": "1970-01-01T00:00:00.000001Z", "celsius": 71.5, "steps": 3},
        {"device_id": "p2", "time": "1970-01-01T00:00:00.000002Z", "celsius": -1.0, "steps": null},
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_may_come_in_every_way_that_clients_send_it() {
    let (node, router) = node().await;
    let q: String = form_urlencoded::byte_serialize(BOTH.as_bytes()).collect();
    let get = |uri: String| Request::builder().uri(uri);
    let post = |uri: &str, kind: &str| Request::builder().method("POST").uri(uri).header("content-type", kind);
    let form = "application/x-www-form-urlencoded";
    for (request, body) in [
        (post("/sql", "text/plain"), BOTH.to_owned()),
        (post("/sql", form), BOTH.to_owned()),
        (post("/sql?db=default&format=json&unknown=1", "application/sql"), format!("{BOTH};\n")),
        (post("/sql?db=&format=", "text/plain"), BOTH.to_owned()),
        (post("/sql", form), format!("q={q}")),
        (post(&format!("/sql?q={q}"), "text/plain"), String::new()),
        (get(format!("/sql?q={q}")), String::new()),
        (get(format!("/api/v3/query_sql?db=default&q={q}")), String::new()),
        (get(format!("/api/v3/query_sql?db=default&q={q}&format=json")), String::new()),
        (post("/api/v3/query_sql", "application/json"), json!({"db": "default", "q": BOTH}).to_string()),
        (post("/api/v3/query_sql", form), json!({"db": "default", "q": BOTH, "format": "json"}).to_string()),
        (post("/api/v3/query_sql", form), format!("db=default&q={q}")),
    ] {
        let uri = format!("{request:?}");
        assert_eq!(json(&ok(&router, request, body).await), both(), "{uri}");
    }
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_values_and_never_sql() {
    let (node, router) = node().await;
    let post = || Request::builder().method("POST").uri("/api/v3/query_sql").header("content-type", "application/json");
    for (sql, params, expected) in [
        ("SELECT celsius FROM phone WHERE device_id = $device", json!({"device": "p1"}), json!([{"celsius": 71.5}])),
        ("SELECT celsius FROM phone WHERE device_id = $device", json!({"device": "' OR 1=1 --"}), json!([])),
        ("SELECT device_id FROM phone WHERE time > $start", json!({"start": "1970-01-01T00:00:00.000001Z"}), json!([{"device_id": "p2"}])),
        ("SELECT device_id FROM phone WHERE celsius < $limit", json!({"limit": 3}), json!([{"device_id": "p2"}])),
        ("SELECT device_id FROM phone WHERE steps = $1", json!({"1": 3}), json!([{"device_id": "p1"}])),
        (
            "SELECT $a AS a, $b AS b, $c AS c, $d AS d",
            json!({"a": 18446744073709551615u64, "b": true, "c": 0.5, "d": null}),
            json!([{"a": 18446744073709551615u64, "b": true, "c": 0.5, "d": null}]),
        ),
    ] {
        let body = json!({"db": "default", "q": sql, "params": params}).to_string();
        assert_eq!(json(&ok(&router, post(), body).await), expected, "{sql}");
        let query: String =
            form_urlencoded::Serializer::new(String::new()).append_pair("q", sql).append_pair("params", &params.to_string()).finish();
        assert_eq!(
            json(&ok(&router, Request::builder().uri(format!("/api/v3/query_sql?db=default&{query}")), "").await),
            expected,
            "{sql}"
        );
    }
    let body = json!({"db": "default", "q": "SELECT $x", "params": {"y": 1}}).to_string();
    assert_eq!(send(&router, post(), body).await.0, StatusCode::BAD_REQUEST);
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_format_is_chosen_by_name_or_by_accept() {
    let (node, router) = node().await;
    let post = |uri: &str, accept: &str| Request::builder().method("POST").uri(uri).header("accept", accept);
    let csv = "device_id,celsius\np1,71.5\np2,-1.0\n";
    let jsonl = "{\"device_id\":\"p1\",\"celsius\":71.5}\n{\"device_id\":\"p2\",\"celsius\":-1.0}\n";
    let drawn = "┌───────────┬─────────┐\n│ device_id │ celsius │\n├───────────┼─────────┤\n│ p1        │    71.5 │\n│ p2        │    -1.0 │\n└───────────┴─────────┘\n";
    let sql = "SELECT device_id, celsius FROM phone ORDER BY device_id";
    for (uri, accept, media_type, text) in [
        ("/sql?format=csv", "*/*", "text/csv; charset=utf-8", csv),
        ("/sql", "text/csv", "text/csv; charset=utf-8", csv),
        ("/sql", "application/x-unknown, text/csv;q=0.5", "text/csv; charset=utf-8", csv),
        ("/sql", "application/json;q=0.4, text/csv;q=0.5", "text/csv; charset=utf-8", csv),
        ("/sql", "application/json;q=0, application/jsonl;q=0.1", "application/jsonl", jsonl),
        ("/sql?format=jsonl", "text/csv", "application/jsonl", jsonl),
        ("/sql?format=table", "*/*", "text/plain; charset=utf-8", drawn),
        ("/sql?format=pretty", "*/*", "text/plain; charset=utf-8", drawn),
        ("/sql", "text/plain", "text/plain; charset=utf-8", drawn),
    ] {
        let (status, headers, bytes) = send(&router, post(uri, accept), sql).await;
        assert_eq!((status, headers["content-type"].to_str().unwrap()), (StatusCode::OK, media_type), "{uri} {accept}");
        assert_eq!(String::from_utf8(bytes).unwrap(), text, "{uri} {accept}");
    }
    let arrow = ok(&router, post("/sql?format=arrow", "*/*"), sql).await;
    let rows: usize = StreamReader::try_new(std::io::Cursor::new(arrow), None).unwrap().map(|b| b.unwrap().num_rows()).sum();
    assert_eq!(rows, 2);
    let parquet = bytes::Bytes::from(ok(&router, post("/sql?format=parquet", "*/*"), sql).await);
    let rows: usize = ParquetRecordBatchReaderBuilder::try_new(parquet).unwrap().build().unwrap().map(|b| b.unwrap().num_rows()).sum();
    assert_eq!(rows, 2);
    node.cluster.shutdown().await;
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, text).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_may_be_compressed_by_gzip_and_by_nothing_else() {
    let node = Node::with(|options| options.max_sql_bytes = 100_000).await;
    let router = query::http::router(node.engine.clone());
    let post = |uri: &str, encoding: &str| Request::builder().method("POST").uri(uri).header("content-encoding", encoding);
    let question = json!({"db": "default", "q": "SELECT 1 AS one"}).to_string();
    for (request, body) in [
        (post("/sql", "gzip"), gzip(b"SELECT 1 AS one")),
        (post("/sql", "X-GZip"), [gzip(b"SELECT 1 "), gzip(b"AS one")].concat()),
        (post("/sql", "identity"), b"SELECT 1 AS one".to_vec()),
        (post("/api/v3/query_sql", "gzip").header("content-type", "application/json"), gzip(question.as_bytes())),
    ] {
        let shown = format!("{request:?}");
        assert_eq!(json(&ok(&router, request, body).await), json!([{"one": 1}]), "{shown}");
    }
    let bomb = gzip(&vec![b' '; 50_000_000]);
    assert!(bomb.len() < 100_000);
    for (encoding, body, status, says) in [
        ("br", b"SELECT 1".to_vec(), 415, "content encoding 'br' is not supported: send gzip or no encoding"),
        ("gzip, gzip", gzip(&gzip(b"SELECT 1")), 415, "send gzip or no encoding"),
        ("gzip", b"SELECT 1".to_vec(), 400, "the body could not be read: gzip: "),
        ("gzip", bomb, 400, "the statement is too long, the limit is 100000 bytes"),
    ] {
        for uri in ["/sql", "/api/v3/query_sql"] {
            let (answered, _, bytes) = send(&router, post(uri, encoding), body.clone()).await;
            let told = json(&bytes);
            assert_eq!(answered.as_u16(), status, "{uri} {encoding}: {told}");
            assert!(told["message"].as_str().unwrap().contains(says), "{uri} {encoding}: {told}");
        }
    }
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_answer_tells_its_figures() {
    let (node, router) = node().await;
    let post = |uri: &str| Request::builder().method("POST").uri(uri.to_owned());
    let (_, headers, _) = send(&router, post("/sql"), "SELECT * FROM phone WHERE device_id = 'p1'").await;
    assert_eq!(headers["alluvium-rows"], "1");
    assert_eq!(headers["alluvium-rows-scanned"], "1");
    assert_eq!(headers["alluvium-shards"], "1");
    let (_, headers, _) = send(&router, post("/sql?consistency=stale&partial=allow"), "SELECT * FROM phone").await;
    assert_eq!(headers["alluvium-rows"], "2");
    assert_eq!(headers["alluvium-shards"], "3");
    assert_eq!(headers["alluvium-lag"], "0");
    assert!(!headers.contains_key("alluvium-partial"));
    node.cluster.shutdown().await;
}

/// The raw bytes of an answer over a real connection.
async fn raw(node: &Node, sql: &str, format: &str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(axum::serve(listener, query::http::router(node.engine.clone())).into_future());
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /sql?format={format} HTTP/1.1\r\nhost: localhost\r\nte: trailers\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        sql.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(sql.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let mut piece = vec![0; 64 << 10];
    // A reset instead of an end is as good a sign of an aborted transfer.
    while let Ok(n) = stream.read(&mut piece).await {
        if n == 0 {
            break;
        }
        bytes.extend_from_slice(&piece[..n]);
    }
    server.abort();
    String::from_utf8(bytes).unwrap()
}

/// The pieces of a chunked body put together, and whether its last chunk was there.
fn unchunked(answer: &str) -> (String, bool) {
    let (_, mut rest) = answer.split_once("\r\n\r\n").unwrap();
    let mut body = String::new();
    while let Some((size, tail)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (body, true);
        }
        let Some(piece) = tail.get(..size) else { break };
        body.push_str(piece);
        rest = tail[size..].trim_start_matches("\r\n");
    }
    (body, false)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_after_the_first_byte_aborts_the_transfer() {
    let (node, _) = node().await;
    for (format, last) in [("json", "}]"), ("csv", "\n"), ("jsonl", "}\n")] {
        let whole = raw(&node, "SELECT value, 1 / value AS x FROM generate_series(1, 90000)", format).await;
        assert!(whole.starts_with("HTTP/1.1 200"), "{}", &whole[..100]);
        let (body, ended) = unchunked(&whole);
        assert!(ended && body.ends_with(last), "{format}: {}", &body[body.len() - 100..]);
        assert!(whole.contains("alluvium-rows: 90000\r\n"), "{}", &whole[whole.len() - 300..]);

        let broken = raw(&node, "SELECT value, 1 / (value - 90000) AS x FROM generate_series(1, 1000000)", format).await;
        assert!(broken.starts_with("HTTP/1.1 200"), "{}", &broken[..100]);
        let (body, ended) = unchunked(&broken);
        assert!(!ended, "an answer that broke off has no last chunk");
        assert!(format != "json" || !body.ends_with(']'), "nor a closing bracket");
    }
    let early = raw(&node, "SELECT 1 / 0", "json").await;
    assert!(early.starts_with("HTTP/1.1 400"), "{early}");
    node.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_body_of_every_door_and_the_requests_number() {
    let (node, router) = node().await;
    for (sql, status, line, column) in [
        ("SELECT *\nFROM phone JOIN phone AS b USING (device_id)", 400, 0, None),
        ("SELECT 1\nFROM phone x y", 400, 2, Some(14)),
        ("SELECT delta(celsius, time) FROM phone", 501, 0, None),
    ] {
        let request = Request::builder().method("POST").uri("/sql").header("x-request-id", "4711");
        let (answered, _, bytes) = send(&router, request, sql).await;
        let body = json(&bytes);
        assert_eq!((answered.as_u16(), &body["errorId"], &body["data"]), (status, &json!("4711"), &json!([])), "{body}");
        assert_eq!((body["line"].as_u64(), body["column"].as_u64()), (Some(line), column), "{body}");
    }
    let both = "SELECT * FROM phone JOIN phone AS b USING (device_id) ORDER BY device_id";
    let csv = ok(&router, Request::builder().method("POST").uri("/sql?format=csv"), both).await;
    assert_eq!(String::from_utf8_lossy(&csv).lines().next().unwrap().matches("time").count(), 2);
    node.cluster.shutdown().await;
}
