//! The accept loop: what a connection may take, how long, and who may speak.
//!
//! HTTP/1.1 and HTTP/2 share one port, with TLS or without. A connection is cut when a request's head does not arrive in time, when
//! nothing is asked for long, or when its client stops reading answers; a body, when it trickles. So whoever holds sockets
//! without using them holds few and not for long. Beyond the cap, new connections wait in the kernel's queue.
//!
//! Writes go straight to [`ingest`], as devices send tens of thousands of small ones a second; all else goes through the
//! router. Every answer gets the headers that clients of InfluxDB look for. Who may come in is asked in one place,
//! `Doors::answer`, before anything else: `gate.rs` and `routes.rs` say what.

mod activity;
mod body;
mod gate;
mod hosts;
mod metrics;
pub mod peers;
pub mod routes;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use cluster::{Access, trace};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use ingest::request::Dialect;
use ingest::{Ingest, RequestId};
use model::ErrorKind;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tracing::{Instrument, Span};

use self::activity::{Activity, Timed, Verdict};
use self::body::{Counted, Paced};
pub use self::gate::{Gate, Refusal};
pub use self::hosts::Hosts;
pub use self::metrics::Metrics;
use crate::tls::Tls;

/// What a connection may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections.
    pub connections: u32,
    /// From a request's first byte to the end of its head.
    pub head: Duration,
    /// Without a request.
    pub idle: Duration,
    /// In which a body must bring [`body_bytes`](Limits::body_bytes) or end.
    pub body_window: Duration,
    /// See [`body_window`](Limits::body_window).
    pub body_bytes: usize,
    /// In which a client must take something of what is written to it.
    pub stalled: Duration,
    /// For requests under way once the node stops.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 10_000,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            body_window: Duration::from_secs(30),
            body_bytes: 4 << 10,
            stalled: Duration::from_secs(60),
            drain: Duration::from_secs(15),
        }
    }
}

/// Where requests go.
pub struct Doors {
    /// Takes the writes.
    pub ingest: Arc<Ingest>,
    /// Takes all else.
    pub router: Router,
    /// Says who may come in.
    pub gate: Gate,
    /// What connections are encrypted with, if they are.
    pub tls: Option<Arc<Tls>>,
    /// Counts what is answered.
    pub metrics: Metrics,
}

/// After a failed `accept` (no file descriptors left, say) the loop waits so long.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Streams of one HTTP/2 connection at a time, and the bytes that wait for each to be sent.
const HTTP2_STREAMS: u32 = 128;
const HTTP2_SEND_BYTES: usize = 64 << 10;
/// An HTTP/2 connection is asked for a sign of life so often.
const HTTP2_PING: Duration = Duration::from_secs(30);

/// Answers on `listener` until `closed` is true, then finishes what is under way.
pub async fn serve(listener: TcpListener, doors: Doors, limits: Limits, mut closed: watch::Receiver<bool>) {
    let doors = Arc::new(doors);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // hyper's own timer for heads also runs while a connection is idle: `Activity` tells the two apart.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_send_buf_size(HTTP2_SEND_BYTES)
        .keep_alive_interval(HTTP2_PING);
    let builder = Arc::new(builder);
    let free = Arc::new(Semaphore::new(limits.connections as usize));
    loop {
        let accepted = tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => break,
            accepted = async {
                let place = free.clone().acquire_owned().await.expect("the semaphore is never closed");
                listener.accept().await.map(|(stream, peer)| (place, stream, peer))
            } => accepted,
        };
        match accepted {
            Ok((place, stream, peer)) => {
                let connection =
                    Connection { doors: doors.clone(), limits: limits.clone(), builder: builder.clone(), closed: closed.clone() };
                tokio::spawn(async move {
                    connection.serve(stream, peer).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
    drop(listener);
    doors.ingest.drain();
    let all = free.acquire_many(limits.connections);
    if tokio::time::timeout(limits.drain, all).await.is_err() {
        tracing::warn!(seconds = limits.drain.as_secs_f64(), "some requests were not answered in time");
    }
}

struct Connection {
    doors: Arc<Doors>,
    limits: Limits,
    builder: Arc<auto::Builder<TokioExecutor>>,
    closed: watch::Receiver<bool>,
}

impl Connection {
    async fn serve(self, stream: TcpStream, peer: SocketAddr) {
        // Answers are small and somebody waits for each.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, %peer, "could not switch off Nagle's algorithm");
        }
        let Some(tls) = self.doors.tls.clone() else { return self.talk(stream, peer).await };
        match tokio::time::timeout(self.limits.head, TlsAcceptor::from(tls.server()).accept(stream)).await {
            Ok(Ok(stream)) => self.talk(stream, peer).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
        }
    }

    async fn talk<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, stream: S, peer: SocketAddr) {
        self.doors.metrics.opened();
        let activity = Arc::new(Activity::new(Instant::now()));
        let answer = service_fn(|request| {
            let (doors, activity) = (self.doors.clone(), activity.clone());
            activity.began(request_is_http2(&request));
            let paced = (self.limits.body_window, self.limits.body_bytes);
            async move { Ok::<_, Infallible>(doors.answer(request, paced, activity).await) }
        });
        let mut served = pin!(self.builder.serve_connection(Timed::new(stream, activity.clone(), self.doors.clone()), answer));
        let mut check = pin!(tokio::time::sleep_until(activity.next_check(&self.limits)));
        // Made once: the loop turns twice a request.
        let mut closed = self.closed.clone();
        let mut closed = pin!(closed.wait_for(|closed| *closed));
        let mut closing = false;
        loop {
            tokio::select! {
                biased;
                done = served.as_mut() => {
                    if let Err(error) = done {
                        tracing::debug!(%peer, %error, "a connection ended badly");
                    }
                    break;
                }
                _ = closed.as_mut(), if !closing => {
                    closing = true;
                    served.as_mut().graceful_shutdown();
                }
                () = check.as_mut() => match activity.verdict(Instant::now(), &self.limits) {
                    Verdict::Again(at) => check.as_mut().reset(at),
                    Verdict::Idle if !closing => {
                        closing = true;
                        served.as_mut().graceful_shutdown();
                        check.as_mut().reset(Instant::now() + self.limits.head);
                    }
                    Verdict::Idle => break,
                    Verdict::Cut(why) => {
                        tracing::debug!(%peer, why, "a connection was cut");
                        break;
                    }
                },
            }
        }
        self.doors.metrics.closed();
    }
}

fn request_is_http2(request: &Request<Incoming>) -> bool {
    request.version() == http::Version::HTTP_2
}

impl Doors {
    async fn answer(&self, request: Request<Incoming>, (window, bytes): (Duration, usize), activity: Arc<Activity>) -> Response<Counted> {
        let path = request.uri().path();
        let is_write = ingest::http::is_write(request.method(), path);
        let mut counted = self.metrics.begin(path, activity);
        let id = self.ingest.next_request_id();
        let span = span(&request, is_write, id);
        let traced = trace::continue_at(&span, request.headers().get(trace::TRACEPARENT).cloned());
        let mut response = match self.gate.admit(&request) {
            Err(refusal) => turned_away(&request, &refusal, id),
            Ok(access) => {
                let mut request = request.map(|body| Paced::new(body, window, bytes));
                request.extensions_mut().insert::<Access>(access);
                if is_write {
                    trace::within(traced, ingest::http::write(&self.ingest, request, id)).instrument(span).await
                } else {
                    let mut request = request.map(Body::new);
                    request.extensions_mut().insert(id);
                    // Query knows no type of ingest's: it finds the number where proxies put theirs.
                    request.headers_mut().insert(X_REQUEST_ID, header_of(id));
                    let answered = trace::within(traced, self.router.clone().oneshot(request)).instrument(span).await;
                    answered.unwrap_or_else(|never| match never {})
                }
            }
        };
        name_answer(&mut response, id);
        counted.answered(response.status().as_u16());
        response.map(|body| Counted::new(body, counted))
    }
}

/// The answer to a request that does not come in.
fn turned_away<B>(request: &Request<B>, refusal: &Refusal, id: RequestId) -> Response<Body> {
    let uri = request.uri();
    let dialect = Dialect::of(uri.path(), uri.query().unwrap_or_default()).unwrap_or(Dialect::InfluxV3);
    let status = match refusal {
        Refusal::NoToken | Refusal::UnknownToken => StatusCode::UNAUTHORIZED,
        Refusal::Hosts { .. } => StatusCode::BAD_REQUEST,
        Refusal::Foreign(_) | Refusal::Forbidden(_) => StatusCode::FORBIDDEN,
        Refusal::Nowhere { .. } => StatusCode::NOT_FOUND,
    };
    let mut response = said(status, dialect, &refusal.to_string(), id);
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"alluvium\""));
    }
    response
}

/// The answer to a request that is not carried out, as all endpoints but the write ones give it.
pub(crate) fn refusal(status: StatusCode, message: &str, id: RequestId) -> Response<Body> {
    let mut response = said(status, Dialect::InfluxV3, message, id);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn said(status: StatusCode, dialect: Dialect, message: &str, id: RequestId) -> Response<Body> {
    let code = match status {
        StatusCode::UNAUTHORIZED => "unauthorized",
        StatusCode::FORBIDDEN => "forbidden",
        StatusCode::NOT_FOUND => "not found",
        StatusCode::METHOD_NOT_ALLOWED => "method not allowed",
        StatusCode::CONFLICT => "conflict",
        StatusCode::NOT_IMPLEMENTED => "not implemented",
        StatusCode::SERVICE_UNAVAILABLE => "unavailable",
        StatusCode::INTERNAL_SERVER_ERROR => "internal error",
        _ => "invalid",
    };
    let text = ingest::answer::whole_request(dialect, code, message, id);
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// The status of an error of this kind.
pub(crate) fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::YourRequest => StatusCode::BAD_REQUEST,
        ErrorKind::TryAgain => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Broken => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The request's span. Small writes are too many for one each at the usual level, but for those that somebody traces.
fn span(request: &Request<Incoming>, is_write: bool, id: RequestId) -> Span {
    let (method, path) = (request.method(), request.uri().path());
    let traced = trace_id(request);
    let trace_id = traced.unwrap_or(id.as_str());
    if is_write && traced.is_none() {
        tracing::debug_span!("request", %method, path, request_id = %id, trace_id)
    } else {
        tracing::info_span!("request", %method, path, request_id = %id, trace_id)
    }
}

/// The trace that the request belongs to.
fn trace_id(request: &Request<Incoming>) -> Option<&str> {
    request.headers().get(trace::TRACEPARENT).and_then(trace::number)
}

const INFLUXDB_VERSION: HeaderName = HeaderName::from_static("x-influxdb-version");
const INFLUXDB_BUILD: HeaderName = HeaderName::from_static("x-influxdb-build");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

fn header_of(id: RequestId) -> HeaderValue {
    HeaderValue::from_str(id.as_str()).expect("digits are fine in a header")
}

/// What every answer tells: clients of InfluxDB find out by it whom they talk to, people which request went wrong.
fn name_answer<B>(response: &mut Response<B>, id: RequestId) {
    let headers = response.headers_mut();
    let id = header_of(id);
    headers.insert(INFLUXDB_VERSION, HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
    headers.insert(INFLUXDB_BUILD, HeaderValue::from_static("alluvium"));
    headers.insert(X_REQUEST_ID, id.clone());
    headers.insert(REQUEST_ID, id);
}

impl Doors {
    /// An answer that hyper gives by itself to what is no request, with what every refusal of ours has: names and a body.
    fn explained(&self, head: &str) -> String {
        let (version, id) = (env!("CARGO_PKG_VERSION"), self.ingest.next_request_id());
        let (line, rest) = head.split_once("\r\n").unwrap_or((head, ""));
        let (code, message) = match line.get(9..12) {
            Some("414") => ("uri too long", "path and parameters are too long: send a long statement as the body of a POST"),
            Some("431") => ("headers too large", "the request's headers are too many or too long"),
            _ => ("invalid", "this is no request of HTTP/1.1 or HTTP/2: its first line or one of its headers cannot be read"),
        };
        let body = ingest::answer::whole_request(Dialect::InfluxV3, code, message, id);
        let body = String::from_utf8_lossy(&body);
        let kept = rest.split("\r\n").filter(|line| !line.is_empty() && !line.to_ascii_lowercase().starts_with("content-length:"));
        let kept: String = kept.flat_map(|line| [line, "\r\n"]).collect();
        format!(
            "{line}\r\n{INFLUXDB_VERSION}: {version}\r\n{INFLUXDB_BUILD}: alluvium\r\n{X_REQUEST_ID}: {id}\r\n{REQUEST_ID}: {id}\r\n{kept}\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}
