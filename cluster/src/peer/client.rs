//! The way to other nodes: one HTTP/2 connection per node and lane, opened when needed and again when it has broken.
//!
//! Lanes keep what must not wait apart from what is large: votes and heartbeats, the log, files, what ingest and query
//! ask, and plans each have a connection of their own to every node. A connection on which the other side shows no sign
//! of life for a second is closed, and whatever waits on it is told. Nothing is sent twice from here: who asked decides.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use model::NodeId;
use parking_lot::{Mutex, RwLock};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use crate::peer::{CLUSTER_HEADER, FORMAT_HEADER, NODE_HEADER, PEER_FORMAT, PeerSecurity, TO_HEADER};
use crate::{Error, Result, trace};

/// A body between nodes.
pub type PeerBody = UnsyncBoxBody<Bytes, io::Error>;

/// A body of these bytes.
pub fn whole(bytes: impl Into<Bytes>) -> PeerBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// How long opening a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(800);
/// A peer is asked for a sign of life so often, and must give it in so long.
pub(crate) const PING_EVERY: Duration = Duration::from_millis(500);
pub(crate) const PING_TIMEOUT: Duration = Duration::from_millis(1_000);
/// What may be on its way and not yet read: of one stream, of one connection.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 8 << 20;
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// Bytes of one frame.
pub(crate) const FRAME_BYTES: u32 = 256 << 10;
/// Answers that are read whole are at most so long.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Votes and heartbeats: small, never late.
    Votes,
    /// The log.
    Log,
    /// Files and snapshots.
    Files,
    /// What one node asks of another on behalf of a client.
    Asks,
    /// Plans of queries and their rows.
    Plans,
}

/// The way to the other nodes; shared by all of a node.
pub struct Peers {
    me: NodeId,
    runtime: Handle,
    security: PeerSecurity,
    cluster: ArcSwapOption<HeaderValue>,
    addresses: RwLock<HashMap<NodeId, String>>,
    lines: Mutex<HashMap<(String, Lane), Arc<Line>>>,
}

#[derive(Default)]
struct Line {
    /// Connections opened so far.
    opened: AtomicU64,
    /// Tries in vain so far.
    failed: AtomicU64,
    sender: tokio::sync::Mutex<Option<SendRequest<PeerBody>>>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("me", &self.me).field("addresses", &*self.addresses.read()).finish_non_exhaustive()
    }
}

impl Peers {
    pub(crate) fn new(me: NodeId, security: PeerSecurity, runtime: Handle) -> Arc<Peers> {
        Arc::new(Peers { me, runtime, security, cluster: ArcSwapOption::empty(), addresses: RwLock::default(), lines: Mutex::default() })
    }

    /// This node.
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// Every request names this cluster from now on.
    pub(crate) fn belong_to(&self, cluster: u128) {
        let value = HeaderValue::from_str(&format!("{cluster:032x}")).expect("digits");
        self.cluster.store(Some(Arc::new(value)));
    }

    /// Where a node is.
    pub fn address(&self, node: NodeId) -> Option<String> {
        self.addresses.read().get(&node).cloned()
    }

    /// All nodes whose address is known.
    pub(crate) fn known(&self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = self.addresses.read().keys().copied().collect();
        nodes.sort_unstable();
        nodes
    }

    /// Takes note of where a node is.
    pub(crate) fn found_at(&self, node: NodeId, address: &str) {
        if node != self.me && !address.is_empty() && self.addresses.read().get(&node).is_none_or(|known| known != address) {
            self.addresses.write().insert(node, address.to_owned());
        }
    }

    /// Sends a request to a node; gives the head of the answer and its body as it comes.
    ///
    /// The URI needs a path only. An error means that no answer came; whether the request arrived is then unknown,
    /// except for [`Error::Unreachable`], where it was never sent.
    pub async fn send(&self, node: NodeId, lane: Lane, mut request: Request<PeerBody>) -> Result<Response<Incoming>> {
        let unknown = || Error::Unreachable { node: node.to_string(), why: "its address is not known".to_owned() };
        let address = self.address(node).ok_or_else(unknown)?;
        request.headers_mut().insert(TO_HEADER, HeaderValue::from_str(&node.to_string()).expect("digits"));
        self.send_to(&address, lane, request).await
    }

    /// The same, to an address.
    pub(crate) async fn send_to(&self, address: &str, lane: Lane, mut request: Request<PeerBody>) -> Result<Response<Incoming>> {
        let line = self.lines.lock().entry((address.to_owned(), lane)).or_default().clone();
        let mut sender = self.connected(&line, address).await?;
        let scheme = if self.security.tls.is_some() { "https" } else { "http" };
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        let uri = Uri::builder().scheme(scheme).authority(address).path_and_query(path).build();
        *request.uri_mut() = uri.map_err(|e| Error::Unreachable { node: address.to_owned(), why: e.to_string() })?;
        let headers = request.headers_mut();
        headers.insert(NODE_HEADER, HeaderValue::from_str(&self.me.to_string()).expect("digits"));
        headers.insert(FORMAT_HEADER, HeaderValue::from_static(PEER_FORMAT));
        if let Some(cluster) = self.cluster.load_full() {
            headers.insert(CLUSTER_HEADER, (*cluster).clone());
        }
        if let Some(trace) = trace::current() {
            headers.insert(trace::TRACEPARENT, trace);
        }
        if let Some(secret) = &self.security.secret {
            let mut value = HeaderValue::from_str(&format!("Bearer {secret}")).expect("checked when it was read");
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        sender.send_request(request).await.map_err(|e| Error::PeerFailed { node: address.to_owned(), why: explain(&e) })
    }

    /// Sends a body and reads the whole answer; an answer that is no success is an error with its text.
    pub async fn call(&self, node: NodeId, lane: Lane, path: &str, body: impl Into<Bytes>) -> Result<Bytes> {
        let request = Request::post(path).body(whole(body)).expect("a path of ours is a path");
        let response = self.send(node, lane, request).await?;
        read_whole(&node.to_string(), response).await
    }

    /// The same, to an address.
    pub(crate) async fn call_at(&self, address: &str, lane: Lane, path: &str, body: impl Into<Bytes>) -> Result<Bytes> {
        let request = Request::post(path).body(whole(body)).expect("a path of ours is a path");
        let response = self.send_to(address, lane, request).await?;
        read_whole(address, response).await
    }

    /// Returns when there is an open connection to a node, with its number: another one than before if that has broken.
    pub(crate) async fn reach(&self, node: NodeId, lane: Lane) -> Result<u64> {
        let unknown = || Error::Unreachable { node: node.to_string(), why: "its address is not known".to_owned() };
        let address = self.address(node).ok_or_else(unknown)?;
        let line = self.lines.lock().entry((address.clone(), lane)).or_default().clone();
        self.connected(&line, &address).await.map(|_| line.opened.load(Ordering::Relaxed))
    }

    /// A sender of the line, connected anew if it has broken.
    async fn connected(&self, line: &Arc<Line>, address: &str) -> Result<SendRequest<PeerBody>> {
        let failed_before = line.failed.load(Ordering::Relaxed);
        let mut sender = line.sender.lock().await;
        if let Some(open) = sender.as_mut().filter(|open| !open.is_closed())
            && open.ready().await.is_ok()
        {
            return Ok(open.clone());
        }
        *sender = None;
        let unreachable = |why: String| Error::Unreachable { node: address.to_owned(), why };
        // Who waited while another tried in vain does not try again: with a node that is silent each try takes its time.
        if line.failed.load(Ordering::Relaxed) != failed_before {
            return Err(unreachable("it could not be reached a moment ago".to_owned()));
        }
        // On the groups' runtime: the connection must outlive the task, and the runtime, of the one who asked first.
        let connecting = self.runtime.spawn(tokio::time::timeout(CONNECT_TIMEOUT, connect(address.to_owned(), self.security.clone())));
        let opened = match connecting.await {
            Ok(Ok(opened)) => opened.map_err(|e| unreachable(e.to_string())),
            Ok(Err(_)) => Err(unreachable(format!("no connection within {} ms", CONNECT_TIMEOUT.as_millis()))),
            Err(_) => return Err(Error::ShuttingDown),
        };
        let opened = opened.inspect_err(|_| {
            line.failed.fetch_add(1, Ordering::Relaxed);
        })?;
        line.opened.fetch_add(1, Ordering::Relaxed);
        *sender = Some(opened.clone());
        Ok(opened)
    }
}

async fn connect(address: String, security: PeerSecurity) -> io::Result<SendRequest<PeerBody>> {
    let stream = TcpStream::connect(&address).await?;
    stream.set_nodelay(true)?;
    match &security.tls {
        None => talk(TokioIo::new(stream), address).await,
        Some(tls) => {
            let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host).trim_matches(['[', ']']).to_owned();
            let name = rustls::pki_types::ServerName::try_from(host).map_err(io::Error::other)?;
            let stream = tokio_rustls::TlsConnector::from(tls.load_full()).connect(name, stream).await?;
            talk(TokioIo::new(stream), address).await
        }
    }
}

async fn talk<T>(io: TokioIo<T>, address: String) -> io::Result<SendRequest<PeerBody>>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_send_buf_size(STREAM_WINDOW_BYTES as usize)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(io)
        .await
        .map_err(io::Error::other)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(peer = address, %error, "a connection to a peer broke");
        }
    });
    Ok(sender)
}

/// The whole body of a successful answer, else an error with the answer's text.
pub(crate) async fn read_whole(address: &str, response: Response<Incoming>) -> Result<Bytes> {
    let status = response.status();
    let failed = |why: String| Error::PeerFailed { node: address.to_owned(), why };
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(|e| failed(e.to_string()))?.to_bytes();
    match status {
        StatusCode::OK => Ok(body),
        _ => Err(crate::peer::refusal::decode(&body)
            .unwrap_or_else(|| failed(format!("it answered {status}: {}", String::from_utf8_lossy(&body))))),
    }
}

/// The innermost reason of an error of hyper, whose own words tell little.
fn explain(error: &hyper::Error) -> String {
    let mut reason: &dyn std::error::Error = error;
    while let Some(source) = reason.source() {
        reason = source;
    }
    reason.to_string()
}
