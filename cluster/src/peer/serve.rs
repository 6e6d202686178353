//! The port that peers reach: HTTP/2, with or without TLS, each request handed to one function.
//!
//! A connection whose other side shows no sign of life is closed within two seconds. There are as many connections as
//! there are nodes and lanes; beyond a bound new ones wait in the kernel's queue, and a handshake that takes too long
//! is given up.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::peer::client::{CONNECTION_WINDOW_BYTES, FRAME_BYTES, PING_EVERY, PING_TIMEOUT, PeerBody, STREAM_WINDOW_BYTES};

/// Connections at once.
const MAX_CONNECTIONS: usize = 10_000;
/// Requests of one connection at once.
const MAX_STREAMS: u32 = 10_000;
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failed `accept` (no file descriptors left, say) the loop waits so long.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What the next connection is encrypted with: asked each time, so that renewed files take effect.
pub type ServerTls = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;

/// Answers on `listener` until `closed` is true; what is under way then is cut off, and whoever asked asks another.
pub async fn serve<F, Fut>(listener: TcpListener, tls: Option<ServerTls>, answer: F, mut closed: watch::Receiver<bool>)
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<PeerBody>> + Send + 'static,
{
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => return,
            accepted = async {
                let place = free.clone().acquire_owned().await.expect("the semaphore is never closed");
                listener.accept().await.map(|(stream, peer)| (place, stream, peer))
            } => accepted,
        };
        match accepted {
            Ok((place, stream, peer)) => {
                let (answer, tls, mut closed) = (answer.clone(), tls.clone(), closed.clone());
                tokio::spawn(async move {
                    let served = tokio::select! {
                        _ = closed.wait_for(|closed| *closed) => Ok(()),
                        served = connection(stream, tls, answer) => served,
                    };
                    if let Err(error) = served {
                        tracing::debug!(%peer, %error, "a peer's connection broke");
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

async fn connection<F, Fut>(stream: TcpStream, tls: Option<ServerTls>, answer: F) -> io::Result<()>
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<PeerBody>> + Send + 'static,
{
    stream.set_nodelay(true)?;
    match tls {
        None => talk(stream, answer).await,
        Some(tls) => {
            let accepting = tokio_rustls::TlsAcceptor::from(tls()).accept(stream);
            let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, accepting).await.map_err(|_| io::ErrorKind::TimedOut)??;
            talk(stream, answer).await
        }
    }
}

async fn talk<T, F, Fut>(stream: T, answer: F) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<PeerBody>> + Send + 'static,
{
    let service = service_fn(move |request| {
        let answering = answer(request);
        async move { Ok::<_, Infallible>(answering.await) }
    });
    http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_send_buf_size(STREAM_WINDOW_BYTES as usize)
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}
