//! The port for peers: HTTP/2 only, with mutual TLS where there are certificates, for who knows the cluster's secret.
//!
//! It has a small runtime of its own, so that heartbeats never queue behind a client's request or a query. Who may speak
//! and what is answered is `cluster`'s business ([`PeerDoor`]), but for what queries ask of other nodes, which goes to
//! [`PeerService`] once it is there. Nothing here is reachable on the port for clients.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cluster::peer::{PeerBody, PeerDoor, whole};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use query::PeerService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::tls::Tls;

/// Threads of the port: they move bytes and wait, what is asked is done elsewhere.
const THREADS: usize = 2;
/// Connections at once: a few for each peer. Others wait.
const CONNECTIONS: usize = 10_000;
/// Requests at once on one connection: the log of each shard is one.
const STREAMS: u32 = 4_096;
/// Bytes that may be under way on one connection, and of one request: files and logs are long.
const CONNECTION_WINDOW: u32 = 32 << 20;
const STREAM_WINDOW: u32 = 8 << 20;
const FRAME: u32 = 256 << 10;
/// A peer that does not answer a ping is gone.
const PING: Duration = Duration::from_secs(5);
/// In which a connection must have become one.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// After a failed `accept` (no file descriptors left, say) the loop waits so long.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What is answered.
struct Port {
    door: Arc<PeerDoor>,
    queries: Arc<OnceLock<PeerService>>,
    tls: Option<Arc<Tls>>,
}

/// The open port; closed when it is dropped.
pub struct PeerPort {
    address: SocketAddr,
    queries: Arc<OnceLock<PeerService>>,
    runtime: Option<Runtime>,
}

impl PeerPort {
    /// Answers peers on `listener` from now on.
    pub fn open(listener: std::net::TcpListener, door: Arc<PeerDoor>, tls: Option<Arc<Tls>>) -> io::Result<PeerPort> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).thread_name("peers").enable_all().build()?;
        let queries = Arc::new(OnceLock::new());
        let port = Arc::new(Port { door, queries: queries.clone(), tls });
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        runtime.spawn(port.accept(listener));
        Ok(PeerPort { address, queries, runtime: Some(runtime) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says who answers what queries ask; once.
    pub fn connect(&self, queries: PeerService) {
        assert!(self.queries.set(queries).is_ok(), "the port is connected once");
    }
}

impl Drop for PeerPort {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Port {
    async fn accept(self: Arc<Port>, listener: TcpListener) {
        let free = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let place = free.clone().acquire_owned().await.expect("the semaphore is never closed");
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let port = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = port.serve(stream).await {
                            tracing::debug!(%peer, error, "a peer's connection ended badly");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept a peer's connection");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    async fn serve(self: Arc<Port>, stream: TcpStream) -> Result<(), String> {
        // Votes and acknowledgements are small and somebody waits for each.
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let Some(tls) = self.tls.clone() else { return self.talk(stream).await };
        let encrypted = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls.server()).accept(stream)).await;
        self.talk(encrypted.map_err(|_| "the TLS handshake took too long")?.map_err(|e| e.to_string())?).await
    }

    async fn talk<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self: Arc<Port>, stream: S) -> Result<(), String> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_stream_window_size(STREAM_WINDOW)
            .max_frame_size(FRAME)
            .max_send_buf_size(STREAM_WINDOW as usize)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING);
        let answer = service_fn(move |request| {
            let port = self.clone();
            async move { Ok::<_, Infallible>(port.answer(request).await) }
        });
        builder.serve_connection(TokioIo::new(stream), answer).await.map_err(|e| e.to_string())
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<PeerBody> {
        if !PeerService::answers(request.uri().path()) {
            return self.door.answer(request).await;
        }
        if let Err(refusal) = self.door.admit(request.headers()) {
            return refusal;
        }
        match self.queries.get() {
            Some(queries) => queries.answer(request).await,
            None => {
                let mut response = Response::new(whole("this node is still starting"));
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                response
            }
        }
    }
}
