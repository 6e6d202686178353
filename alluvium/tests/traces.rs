//! Traces as a collector gets them: the real program, a collector that only listens.

mod program;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, sync_channel};

use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use program::{RunningNode, alluvium};
use prost::Message;
use tokio::net::TcpListener;

const CLIENTS_SPAN: [u8; 8] = [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7];
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

/// A collector, what has come to it, and the runtime that it lives in.
fn collector() -> (String, Receiver<(String, Bytes)>, tokio::runtime::Runtime) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let (exports, exported) = sync_channel(1024);
    runtime.spawn(collect(listener, exports));
    (endpoint, exported, runtime)
}

/// A write of one point as part of the trace; it must be kept.
fn write_as_part_of_the_trace(url: &str) {
    let trace: String = TRACE.iter().map(|byte| format!("{byte:02x}")).collect();
    let request = format!(
        "POST /write?db=d HTTP/1.1\r\nHost: localhost\r\ntraceparent: 00-{trace}-00f067aa0ba902b7-01\r\nContent-Length: 5\r\nConnection: close\r\n\r\nm v=1"
    );
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).expect("the node listens");
    stream.write_all(request.as_bytes()).expect("the request is read");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
}

/// The spans of the trace that have come, in the order of their beginnings, with the service that each is of.
fn spans_of_the_trace(exported: &Receiver<(String, Bytes)>) -> Vec<(String, Span)> {
    let mut spans = Vec::new();
    while let Ok((path, body)) = exported.try_recv() {
        assert_eq!(path, "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
        // One message of gRPC: not compressed, its length, itself.
        let request = ExportTraceServiceRequest::decode(&body[5..]).expect("spans");
        for of in request.resource_spans {
            let attributes = of.resource.expect("who sent it").attributes;
            let service = attributes.iter().find(|a| a.key == "service.name").and_then(|a| a.value.as_ref()?.value.as_ref());
            let Some(Value::StringValue(service)) = service else { panic!("no service in {attributes:?}") };
            let all = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(all.filter(|span| span.trace_id == TRACE).map(|span| (service.clone(), span)));
        }
    }
    spans.sort_by_key(|(_, span)| span.start_time_unix_nano);
    spans
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address").port()
}

#[test]
fn a_write_is_one_trace_from_the_client_to_the_sync_of_a_follower() {
    let (endpoint, exported, _runtime) = collector();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
    let join = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(",");
    let start = |name: &str, rpc: &str, more: &[&str]| {
        let data_dir = dir.path().join(name);
        let mut arguments = vec!["serve", "--data-dir", data_dir.to_str().expect("a plain name"), "--listen", "127.0.0.1:0"];
        arguments.extend(["--rpc-listen", rpc, "--node-id", name, "--join", &join]);
        arguments.extend(more);
        let mut command = alluvium(&arguments);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint).env("OTEL_SERVICE_NAME", name);
        RunningNode::of(command, &data_dir)
    };
    let storage = ["--roles", "storage", "--bootstrap-expect", "3", "--shards", "1"];
    let names = ["storage-one", "storage-two", "storage-three"];
    let nodes: Vec<RunningNode> = std::thread::scope(|scope| {
        let starting: Vec<_> = (names.iter().zip(&ports))
            .map(|(name, port)| scope.spawn(move || start(name, &format!("127.0.0.1:{port}"), &storage)))
            .collect();
        starting.into_iter().map(|node| node.join().expect("it starts")).collect()
    });
    let ingest = start("ingest", "127.0.0.1:0", &["--roles", "ingest"]);
    write_as_part_of_the_trace(&ingest.url);
    // What is not sent yet is sent at the end.
    for node in nodes.into_iter().chain([ingest]) {
        assert!(node.terminate().0.success());
    }
    let spans = spans_of_the_trace(&exported);
    let of = |node: &str, name: &str| spans.iter().filter(|(of, span)| of == node && span.name == name).map(|(_, s)| s).collect::<Vec<_>>();
    let told = || spans.iter().map(|(node, span)| format!("{node}: {}", span.name)).collect::<Vec<_>>();
    // The client's request, what the leader did with it, and when each member had synced it.
    let [request] = of("ingest", "request")[..] else { panic!("{:?}", told()) };
    assert_eq!(request.parent_span_id, CLIENTS_SPAN);
    let synced: Vec<(&str, &Span)> = names.iter().flat_map(|name| of(name, "log sync").into_iter().map(|span| (*name, span))).collect();
    let Some((_, first)) = synced.first() else { panic!("{:?}", told()) };
    let asked = names.iter().flat_map(|name| of(name, "peer request")).find(|span| span.span_id == first.parent_span_id);
    let carried = asked.unwrap_or_else(|| panic!("{:?}", told()));
    assert_eq!(carried.parent_span_id, request.span_id);
    for (_, sync) in &synced {
        assert_eq!(sync.parent_span_id, carried.span_id, "{:?}", told());
        assert!(sync.end_time_unix_nano >= sync.start_time_unix_nano);
    }
    let nodes: BTreeSet<&str> = synced.iter().map(|(node, _)| *node).collect();
    assert!(nodes.len() >= 2 && nodes.len() == synced.len(), "a majority synced it, each once: {:?}", told());
}

#[test]
fn a_requests_span_reaches_the_collector_under_its_clients_trace() {
    let (endpoint, exported, _runtime) = collector();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command =
        alluvium(&["serve", "--data-dir", dir.path().to_str().expect("a plain name"), "--listen", "127.0.0.1:0", "--shards", "1"]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
    let node = RunningNode::of(command, dir.path());
    write_as_part_of_the_trace(&node.url);
    // What is not sent yet is sent at the end.
    assert!(node.terminate().0.success());
    let spans = spans_of_the_trace(&exported);
    let [(service, request), (_, sync)] = &spans[..] else { panic!("one request and its sync: {spans:?}") };
    assert_eq!((service.as_str(), request.name.as_str()), ("alluvium", "request"));
    assert_eq!(request.parent_span_id, CLIENTS_SPAN);
    assert_eq!((sync.name.as_str(), &sync.parent_span_id), ("log sync", &request.span_id));
}
