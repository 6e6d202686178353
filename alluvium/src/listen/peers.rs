//! The port for peers: HTTP/2 only, with mutual TLS where there are certificates, for who knows the cluster's secret.
//!
//! It has a small runtime of its own, so that heartbeats never queue behind a client's request or a query. Who may speak
//! and what is answered is `cluster`'s business ([`PeerDoor`]), but for what queries ask of other nodes, which goes to
//! [`PeerService`] once it is there. Nothing here is reachable on the port for clients.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use cluster::peer::serve::{ServerTls, serve};
use cluster::peer::{PeerBody, PeerDoor, whole};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use query::PeerService;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::tls::Tls;

/// Threads of the port: they move bytes and wait, what is asked is done elsewhere.
const THREADS: usize = 2;

/// What is answered.
struct Port {
    door: Arc<PeerDoor>,
    queries: Arc<OnceLock<PeerService>>,
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
        let port = Arc::new(Port { door, queries: queries.clone() });
        let tls = tls.map(|tls| Arc::new(move || tls.server()) as ServerTls);
        // Nobody closes it but by ending the runtime.
        let (closing, closed) = watch::channel(false);
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let answer = move |request| {
            let port = port.clone();
            async move { port.answer(request).await }
        };
        runtime.spawn(async move {
            let _open = closing;
            serve(listener, tls, answer, closed).await;
        });
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
