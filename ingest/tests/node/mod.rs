//! A node in a temporary directory, spoken to over a real socket, and its rows read back without SQL.

// Each test program uses its own part of this.
#![allow(dead_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use arrow::util::pretty::pretty_format_batches;
use cluster::{Clock, Cluster, ClusterOptions};
use ingest::{Ingest, IngestOptions};
use model::Timestamp;
use serde_json::Value;
use storage::disk::RealDisk;
use storage::scan::arrow_schema;
use storage::{ScanColumn, ScanRequest};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The node's clock says this, until a test moves it.
pub(crate) const NOW: i64 = 1_700_000_000_000_000_000;

pub(crate) struct Node {
    pub ingest: Arc<Ingest>,
    pub cluster: Arc<Cluster>,
    pub clock: Arc<AtomicI64>,
    address: String,
    _dir: TempDir,
}

pub(crate) struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The body without `errorId`, which is another one each time.
    pub(crate) fn error(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{}", self.head);
        let mut body = self.json();
        let id = body.as_object_mut().expect("an object").remove("errorId").expect("an errorId");
        assert_eq!(id.as_str().map(str::len), Some(32), "{id}");
        body
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().filter_map(|line| line.split_once(": ")).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

impl Node {
    pub(crate) async fn start() -> Node {
        Node::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut IngestOptions)) -> Node {
        let dir = TempDir::new().expect("a temporary directory");
        let time = Arc::new(AtomicI64::new(NOW));
        let clock: Clock = {
            let time = time.clone();
            Arc::new(move || Timestamp(time.load(Relaxed)))
        };
        let cluster = Cluster::start(ClusterOptions {
            node: "test".into(),
            data_dir: dir.path().to_owned(),
            disk: Arc::new(RealDisk),
            shards: 2,
            clock: clock.clone(),
            seed: 7,
            flush_bytes: 64 << 20,
            last_rows_bytes: 1 << 20,
            max_waiting_bytes: 64 << 20,
            peers: None,
        })
        .await
        .expect("the node starts");
        let mut options = IngestOptions {
            auto_create_databases: true,
            max_body_bytes: 64 << 20,
            max_line_bytes: 1 << 20,
            max_in_flight_bytes: 256 << 20,
            clock,
            origin: 1,
        };
        change(&mut options);
        let ingest = Ingest::new(cluster.clone(), options);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let router = ingest::http::router(ingest.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Node { ingest, cluster, clock: time, address, _dir: dir }
    }

    /// Sends a request with these header lines and body.
    pub(crate) async fn send(&self, line: &str, headers: &[&str], body: &[u8]) -> Answer {
        let mut request = format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        for header in headers {
            request.push_str(header);
            request.push_str("\r\n");
        }
        if !headers.iter().any(|h| h.starts_with("Transfer-Encoding")) {
            request.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        let mut bytes = request.into_bytes();
        bytes.extend_from_slice(body);
        self.exchange(&bytes).await
    }

    /// Sends bytes as they are and reads the answer to its end.
    pub(crate) async fn exchange(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(&self.address).await.expect("a connection");
        stream.write_all(bytes).await.expect("the server reads the whole request");
        Node::answer(stream).await
    }

    /// Sends bytes, then nothing more, and reads the answer to its end.
    pub(crate) async fn broken_off(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(&self.address).await.expect("a connection");
        stream.write_all(bytes).await.expect("the server reads the whole request");
        stream.shutdown().await.expect("it is open");
        Node::answer(stream).await
    }

    async fn answer(mut stream: TcpStream) -> Answer {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer");
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(answer[..end].to_vec()).expect("a head is text");
        let status = head[9..12].parse().expect("a status");
        Answer { status, head, body: answer[end + 4..].to_vec() }
    }

    pub(crate) async fn write(&self, line: &str, body: &str) -> Answer {
        self.send(&format!("POST {line}"), &[], body.as_bytes()).await
    }

    /// Writes what must be taken.
    pub(crate) async fn stored(&self, line: &str, body: &str) {
        let answer = self.write(line, body).await;
        assert_eq!((answer.status, answer.text().as_str()), (204, ""), "{line}: {body}");
    }

    /// A table's rows as text, one line each, in order; empty where there is no such table.
    pub(crate) async fn rows(&self, database: &str, table: &str) -> Vec<String> {
        let catalog = self.cluster.catalog();
        let Some(table) = catalog.database(database).and_then(|d| d.tables.get(table)) else { return Vec::new() };
        let schema = arrow_schema(table);
        let named = |name: &str| match table.column(name) {
            Some(column) => ScanColumn::Column(column.id),
            None => ScanColumn::Time,
        };
        let request = ScanRequest {
            table: table.clone(),
            projection: schema.fields().iter().map(|f| named(f.name())).collect(),
            times: i64::MIN..=i64::MAX,
            tags: Vec::new(),
            batch_rows: 1_000,
        };
        let mut rows = Vec::new();
        for shard in self.cluster.shards() {
            let view = self.cluster.read(shard).await.expect("a view");
            for batch in view.scan(&request).expect("a scan") {
                let text = pretty_format_batches(&[batch.expect("a batch")]).expect("a table").to_string();
                let cells = |line: &str| {
                    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
                    cells.join(" ").trim_end().to_owned()
                };
                rows.extend(text.lines().skip(3).filter(|line| line.starts_with('|')).map(cells));
            }
        }
        rows.sort();
        rows
    }
}
