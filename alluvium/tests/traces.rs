//! Traces as a collector gets them: the real program, a collector that only listens.

mod program;

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use program::{RunningNode, alluvium};
use tokio::net::TcpListener;

const TRACE: [u8; 16] = [0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36];

/// Answers every export with an empty message, and passes on what came.
async fn collect(listener: TcpListener, exports: std::sync::mpsc::SyncSender<(String, Bytes)>) {
    while let Ok((stream, _)) = listener.accept().await {
        let exports = exports.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let exports = exports.clone();
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await.expect("a whole export").to_bytes();
                let _ = exports.try_send((path, body));
                let trailers = HeaderMap::from_iter([("grpc-status".parse().expect("a name"), HeaderValue::from_static("0"))]);
                let frames = [Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[0; 5]))), Ok(Frame::trailers(trailers))];
                let body = StreamBody::new(stream::iter(frames));
                Ok::<_, Infallible>(Response::builder().header("content-type", "application/grpc").body(body).expect("a response"))
            }
        });
        tokio::spawn(hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer));
    }
}

#[test]
fn a_requests_span_reaches_the_collector_under_its_clients_trace() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let (exports, exported) = sync_channel(64);
    runtime.spawn(collect(listener, exports));

    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command =
        alluvium(&["serve", "--data-dir", dir.path().to_str().expect("a plain name"), "--listen", "127.0.0.1:0", "--shards", "1"]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
    let node = RunningNode::of(command, dir.path());
    let trace: String = TRACE.iter().map(|byte| format!("{byte:02x}")).collect();
    let request = format!(
        "POST /write?db=d HTTP/1.1\r\nHost: localhost\r\ntraceparent: 00-{trace}-00f067aa0ba902b7-01\r\nContent-Length: 5\r\nConnection: close\r\n\r\nm v=1"
    );
    let mut stream = TcpStream::connect(node.url.trim_start_matches("http://")).expect("the node listens");
    stream.write_all(request.as_bytes()).expect("the request is read");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    // What is not sent yet is sent at the end.
    assert!(node.terminate().0.success());
    let has = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    while let Ok((path, body)) = exported.recv_timeout(Duration::from_secs(10)) {
        assert_eq!(path, "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
        if has(&body, &TRACE) && has(&body, b"request") && has(&body, b"alluvium") {
            return;
        }
    }
    panic!("no span of the client's trace has come");
}
