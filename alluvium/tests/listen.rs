//! The accept loop, over real sockets: who is answered, who is cut off, and what every answer says.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use alluvium::listen::{self, Doors, Gate, Hosts, Limits};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::get;
use cluster::{Clock, Cluster, ClusterOptions};
use futures::stream;
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ingest::{Ingest, IngestOptions};
use model::Timestamp;
use storage::disk::RealDisk;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

/// Longer than anything that is waited for here.
const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    address: String,
    close: watch::Sender<bool>,
    ended: JoinHandle<()>,
    /// Lets `/sql` answer.
    go: Arc<Notify>,
    /// Says when `/sql` has begun and when `/api/v3/query_sql` was given up.
    events: mpsc::Receiver<&'static str>,
    _dir: TempDir,
}

/// Says so when it is dropped.
struct Farewell(mpsc::Sender<&'static str>);

impl Drop for Farewell {
    fn drop(&mut self) {
        let _ = self.0.try_send("endless was given up");
    }
}

impl Server {
    async fn start(limits: Limits) -> Server {
        let dir = TempDir::new().expect("a temporary directory");
        let clock: Clock = Arc::new(|| Timestamp(1_700_000_000_000_000_000));
        let cluster = Cluster::start(ClusterOptions {
            node: "test".into(),
            data_dir: dir.path().to_owned(),
            disk: Arc::new(RealDisk),
            shards: 1,
            clock: clock.clone(),
            seed: 7,
            flush_bytes: 64 << 20,
            last_rows_bytes: 1 << 20,
            max_waiting_bytes: 64 << 20,
            peers: None,
        })
        .await
        .expect("the node starts");
        let ingest = Ingest::new(
            cluster.clone(),
            IngestOptions {
                auto_create_databases: true,
                max_body_bytes: 1 << 20,
                max_line_bytes: 1 << 20,
                max_in_flight_bytes: 64 << 20,
                clock,
                origin: 1,
            },
        );
        let (say, events) = mpsc::channel(16);
        let go = Arc::new(Notify::new());
        let router = ingest::http::router(ingest.clone()).merge(test_routes(go.clone(), say));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let (close, closed) = watch::channel(false);
        let gate = Gate::new(cluster, Vec::new(), Hosts::new(["node.example"]), true);
        let doors = Doors { ingest, router, gate, tls: None, metrics: listen::Metrics::default() };
        let ended = tokio::spawn(listen::serve(listener, doors, limits, closed));
        Server { address, close, ended, go, events, _dir: dir }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.expect("a connection")
    }

    /// Sends a request and reads the answer until the connection ends.
    async fn ask(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.expect("the request is read");
        rest_of(&mut stream).await
    }

    async fn event(&mut self) -> &'static str {
        in_time(self.events.recv()).await.expect("the routes are there")
    }
}

/// `/sql` answers when told to; `/api/v3/query_sql` sends for ever: query, which has these paths, is not here.
fn test_routes(go: Arc<Notify>, say: mpsc::Sender<&'static str>) -> Router {
    let begun = say.clone();
    let slow = move || {
        let (go, begun) = (go.clone(), begun.clone());
        async move {
            let _ = begun.try_send("slow has begun");
            go.notified().await;
            "done"
        }
    };
    let endless = move || {
        let farewell = Farewell(say.clone());
        let pieces = stream::repeat_with(move || {
            let _ = &farewell;
            Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 65_536]))
        });
        async move { Body::from_stream(pieces) }
    };
    Router::new().route("/sql", get(slow)).route("/api/v3/query_sql", get(endless))
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it happens in time")
}

async fn rest_of(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    in_time(stream.read_to_end(&mut bytes)).await.expect("the answer ends properly");
    String::from_utf8(bytes).expect("answers here are text")
}

/// Reads one answer's head.
async fn head_of(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(in_time(stream.read_u8()).await.expect("more of the head"));
    }
    String::from_utf8(head).expect("a head is text")
}

fn short(change: impl FnOnce(&mut Limits)) -> Limits {
    let mut limits = Limits::default();
    change(&mut limits);
    limits
}

const WRITE: &str = "POST /write?db=d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\ncpu v=1 1";

#[tokio::test]
async fn every_answer_says_who_answers_and_which_request_it_was() {
    let server = Server::start(Limits::default()).await;
    for (request, status) in [
        ("POST /write?db=d HTTP/1.1\r\nHost: node.example:1\r\nContent-Length: 9\r\nConnection: close\r\n\r\ncpu v=1 1", "204"),
        ("GET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", "204"),
        ("GET /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", "404"),
        ("GET /write HTTP/1.1\r\nHost: [::1]:2558\r\nConnection: close\r\n\r\n", "405"),
        ("GET /ping HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", "403"),
    ] {
        let answer = server.ask(request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}{answer}");
        for header in ["x-influxdb-version: ", "x-influxdb-build: alluvium", "x-request-id: ", "request-id: "] {
            assert_eq!(answer.matches(&format!("\r\n{header}")).count(), 1, "{header} in {answer}");
        }
    }
}

#[tokio::test]
async fn what_is_no_request_is_refused_in_the_words_of_every_other_error() {
    let server = Server::start(Limits::default()).await;
    let headers: String = (0..200).map(|i| format!("h{i}: x\r\n")).collect();
    for (text, status, code) in [
        ("nonsense\r\n\r\n".to_owned(), 400, "invalid"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(70_000)), 414, "uri too long"),
        (format!("GET / HTTP/1.1\r\n{headers}\r\n"), 431, "headers too large"),
    ] {
        let answer = server.ask(&text).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        for header in ["x-influxdb-version: ", "x-request-id: "] {
            assert_eq!(answer.matches(&format!("\r\n{header}")).count(), 1, "{header} in {answer}");
        }
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.contains("\r\ncontent-type: application/json"), "{answer}");
        let length = head.lines().filter_map(|line| line.strip_prefix("content-length: "));
        assert_eq!(length.collect::<Vec<_>>(), [body.len().to_string()], "{answer}");
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!((body["code"].as_str(), body["line"].as_u64()), (Some(code), Some(0)), "{answer}");
        assert!(head.contains(&format!("\r\nx-request-id: {}\r\n", body["errorId"].as_str().expect("a number"))), "{answer}");
        assert!(body["message"].is_string() && body["error"] == body["message"] && body["data"].is_array(), "{answer}");
    }
    let mut stream = server.connect().await;
    stream.write_all(WRITE.as_bytes()).await.expect("the request is read");
    assert!(head_of(&mut stream).await.starts_with("HTTP/1.1 204 "));
    stream.write_all(b"nonsense\r\n\r\n").await.expect("the kernel takes it");
    let answer = rest_of(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("\r\nx-request-id: "), "{answer}");
}

#[tokio::test]
async fn a_foreign_host_or_origin_is_refused_in_the_words_of_its_endpoint() {
    let server = Server::start(Limits::default()).await;
    let answer = server.ask("POST /write HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    let body = answer.split("\r\n\r\n").nth(1).expect("a body");
    let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let keys: Vec<&String> = body.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["code", "errorId", "line", "message"]);
    assert_eq!(body["code"], "forbidden");
    let request = WRITE.replace("Host: localhost", "Host: localhost\r\nConnection: close\r\nOrigin: http://evil.example");
    let answer = server.ask(&request).await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("Origin 'http://evil.example' is foreign"), "{answer}");
}

#[tokio::test]
async fn a_host_hidden_behind_another_does_not_get_in() {
    let server = Server::start(Limits::default()).await;
    for (request, status) in [
        (WRITE.replace("POST /write", "POST http://evil.example/write"), 403),
        (WRITE.replace("POST /write", "POST http://localhost/write").replace("Host: localhost", "Host: evil.example"), 204),
        (WRITE.replace("Host: localhost", "Host: localhost\r\nHost: evil.example"), 400),
        (WRITE.replace("Host: localhost", "Host: localhost\r\nHost: localhost"), 400),
    ] {
        let request = request.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
        let answer = server.ask(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}\n{answer}");
    }
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let server = Server::start(Limits::default()).await;
    let mut stream = server.connect().await;
    for _ in 0..3 {
        stream.write_all(WRITE.as_bytes()).await.expect("the request is read");
        assert!(head_of(&mut stream).await.starts_with("HTTP/1.1 204 "));
    }
    stream.write_all(WRITE.repeat(3).as_bytes()).await.expect("requests may come together");
    for _ in 0..3 {
        assert!(head_of(&mut stream).await.starts_with("HTTP/1.1 204 "));
    }
}

#[tokio::test]
async fn http2_without_tls_shares_the_port() {
    let server = Server::start(Limits::default()).await;
    let socket = TokioIo::new(server.connect().await);
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), socket).await.expect("a handshake");
    let driven = tokio::spawn(connection);
    let request = |body: &'static str| {
        let uri = format!("http://{}/api/v2/write?bucket=d", server.address);
        Request::post(uri).version(Version::HTTP_2).body(Full::new(Bytes::from_static(body.as_bytes()))).expect("a request")
    };
    let answer = client.send_request(request("cpu v=1 1")).await.expect("an answer");
    assert_eq!((answer.status().as_u16(), answer.headers().contains_key("x-request-id")), (204, true));
    let answer = client.send_request(request("cpu")).await.expect("an answer");
    assert_eq!(answer.status(), 400);
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    assert!(body.starts_with(b"{\"code\":\"invalid\""), "{body:?}");
    driven.abort();
}

#[tokio::test]
async fn an_offer_to_upgrade_is_answered_as_http_1() {
    let server = Server::start(Limits::default()).await;
    let offer = "Host: localhost\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk";
    let answer = server.ask(&WRITE.replace("Host: localhost", offer)).await;
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
}

#[tokio::test]
async fn a_head_that_trickles_is_cut() {
    let server = Server::start(short(|limits| limits.head = Duration::from_millis(100))).await;
    let mut stream = server.connect().await;
    stream.write_all(b"POST /write?db=d HTTP/1.1\r\nHost: lo").await.expect("the start is read");
    assert_eq!(rest_of(&mut stream).await, "");
}

#[tokio::test]
async fn a_connection_that_asks_nothing_for_long_is_closed() {
    let server = Server::start(short(|limits| limits.idle = Duration::from_millis(100))).await;
    let mut silent = server.connect().await;
    assert_eq!(rest_of(&mut silent).await, "");
    let mut used = server.connect().await;
    used.write_all(WRITE.as_bytes()).await.expect("the request is read");
    assert!(rest_of(&mut used).await.starts_with("HTTP/1.1 204 "));
}

#[tokio::test]
async fn a_body_that_trickles_is_to_be_sent_again() {
    let server = Server::start(short(|limits| limits.body_window = Duration::from_millis(100))).await;
    let mut stream = server.connect().await;
    let start = b"POST /write?db=d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\ncpu v=";
    stream.write_all(start).await.expect("the start is read");
    let answer = rest_of(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("the body arrived too slowly"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("\r\nretry-after: 1\r\n"), "{answer}");
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_and_its_answer_given_up() {
    let mut server = Server::start(short(|limits| limits.stalled = Duration::from_millis(100))).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /api/v3/query_sql HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("the request is read");
    assert_eq!(server.event().await, "endless was given up");
}

#[tokio::test]
async fn connections_beyond_the_cap_wait_for_one_to_end() {
    let server = Server::start(short(|limits| limits.connections = 1)).await;
    let mut first = server.connect().await;
    first.write_all(WRITE.as_bytes()).await.expect("the request is read");
    assert!(head_of(&mut first).await.starts_with("HTTP/1.1 204 "));
    let mut second = server.connect().await;
    second.write_all(WRITE.as_bytes()).await.expect("the kernel takes it");
    let early = tokio::time::timeout(Duration::from_millis(100), second.read_u8()).await;
    assert!(early.is_err(), "the second connection was answered while the first was open");
    drop(first);
    assert!(head_of(&mut second).await.starts_with("HTTP/1.1 204 "));
}

#[tokio::test]
async fn requests_under_way_are_finished_when_the_node_stops() {
    let mut server = Server::start(Limits::default()).await;
    let mut idle = server.connect().await;
    idle.write_all(WRITE.as_bytes()).await.expect("the request is read");
    assert!(head_of(&mut idle).await.starts_with("HTTP/1.1 204 "));
    let mut busy = server.connect().await;
    busy.write_all(b"GET /sql HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("the request is read");
    assert_eq!(server.event().await, "slow has begun");
    server.close.send(true).expect("the server is there");
    assert_eq!(rest_of(&mut idle).await, "");
    server.go.notify_one();
    let answer = rest_of(&mut busy).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("done"), "{answer}");
    in_time(&mut server.ended).await.expect("the loop ends");
    assert!(TcpStream::connect(&server.address).await.is_err());
}

#[tokio::test]
async fn a_request_that_does_not_end_does_not_hold_up_the_stop_for_ever() {
    let mut server = Server::start(short(|limits| limits.drain = Duration::from_millis(100))).await;
    let mut busy = server.connect().await;
    busy.write_all(b"GET /sql HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("the request is read");
    assert_eq!(server.event().await, "slow has begun");
    server.close.send(true).expect("the server is there");
    in_time(&mut server.ended).await.expect("the loop ends");
}

#[tokio::test]
async fn a_body_too_large_is_answered_while_it_is_still_sent_and_the_connection_stays() {
    let server = Server::start(Limits::default()).await;
    let mut stream = server.connect().await;
    let large = vec![b'x'; 20 << 20];
    let head = format!("POST /write?db=d HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", large.len());
    stream.write_all(head.as_bytes()).await.expect("the head is read");
    in_time(stream.write_all(&large)).await.expect("the body is read");
    let head = head_of(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    in_time(stream.read_exact(&mut body)).await.expect("a body");
    stream.write_all(WRITE.as_bytes()).await.expect("the request is read");
    assert!(head_of(&mut stream).await.starts_with("HTTP/1.1 204 "));
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_spared_the_body() {
    let server = Server::start(Limits::default()).await;
    let request = "POST /write?db=d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n";
    let mut stream = server.connect().await;
    stream.write_all(request.as_bytes()).await.expect("the head is read");
    let head = head_of(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
    let mut stream = server.connect().await;
    let request = WRITE.replace("Host: localhost", "Host: localhost\r\nExpect: 100-continue");
    let (head, body) = request.split_at(request.len() - 9);
    stream.write_all(head.as_bytes()).await.expect("the head is read");
    assert!(head_of(&mut stream).await.starts_with("HTTP/1.1 100 "));
    stream.write_all(body.as_bytes()).await.expect("the body is read");
    assert!(head_of(&mut stream).await.starts_with("HTTP/1.1 204 "));
}
