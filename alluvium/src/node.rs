//! A running node: what it is made of, in which order it starts, and how it stops.
//!
//! Start: lock the data directory, take the ports, answer peers, find the cluster, open the shards (which replays their
//! logs), open the doors, then say `ready` and leave `node.json`. Stop: let others lead what this node leads, close the
//! doors, let requests under way be answered, stop the shards, then the port for peers. A node that
//! is killed at any point starts again from what is on disk; `node.json` may then be stale, its `pid` tells.
//!
//! `DIR/node.json` = `{"node_id", "pid", "http", "rpc"}`; `http` is `host:port`; `rpc` is null where a node is
//! alone. `DIR/peers` is there once the node has had any: from then on it opens its port for them however it is started.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::DataType;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::any;
use axum::{Extension, Router};
use cluster::peer::{PeerDoor, PeerSecurity};
use cluster::{Clock, Cluster, ClusterOptions, PeerOptions, Token};
use http::StatusCode;
use ingest::{Ingest, IngestOptions, RequestId};
use model::Timestamp;
use prometheus_client::registry::Registry;
use query::{Engine, QueryOptions, RunOptions, Sources};
use storage::disk::{DirLock, Disk, RealDisk};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::{self, Loaded, Settings};
use crate::listen::peers::PeerPort;
use crate::listen::routes::FLIGHT;
use crate::listen::{self, Doors, Gate, Hosts, Limits};
use crate::shards::ShardFigures;
use crate::tls::{self, Tls};
use crate::{operate, telemetry, tokens};

/// Letters of the cluster's secret: fewer can be guessed.
const SHORTEST_SECRET: usize = 16;
/// How long a node waits for others: that stops, to lead what it leads; that starts, to know its new token.
const HAND_OVER: Duration = Duration::from_secs(5);
/// How long a node that stops may take to settle what it was given and to close its logs, once requests have had their time.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(15);
/// Says that the node has had peers.
const PEERS_FILE: &str = "peers";

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address that is none.
    #[error("--{flag} {listen} is no address: {why}; write it like {like}")]
    BadListen {
        /// The setting.
        flag: &'static str,
        /// One that is.
        like: &'static str,
        /// The text.
        listen: String,
        /// Why.
        why: io::Error,
    },
    /// An address that others can reach, and nothing that keeps them out.
    #[error(
        "refusing to listen on {listen}: there are no access tokens yet, so whoever reaches that address could read, write and drop \
         everything\n  ways out: an admin token from outside (ALLUVIUM_ADMIN_TOKEN or --admin-token-file FILE); or start with \
         --listen 127.0.0.1:{port} first and run 'alluvium token create admin --can admin'; or stay on loopback (the default)"
    )]
    Exposed {
        /// The address.
        listen: String,
        /// Its port.
        port: u16,
    },
    /// An address for peers that others can reach, and nothing that keeps them out.
    #[error(
        "refusing to listen on {listen} for other nodes: without a secret whoever reaches that address could take part in the cluster\n  \
         ways out: --cluster-secret-file FILE, the same on all nodes; or mutual TLS (--rpc-tls-cert, --rpc-tls-key, --rpc-ca); or \
         --rpc-listen 127.0.0.1:2559 (the default is loopback)"
    )]
    ExposedPeers {
        /// The address.
        listen: String,
    },
    /// The cluster's secret cannot be used.
    #[error("could not read the cluster secret from {}: {why}", path.display())]
    Secret {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The port is somebody else's.
    #[error(
        "could not listen on {listen}: {why}\n  is another alluvium running? --{flag} HOST:PORT chooses another address, port 0 any free one"
    )]
    Listen {
        /// The setting.
        flag: &'static str,
        /// The address.
        listen: String,
        /// Why.
        why: io::Error,
    },
    /// The data directory cannot be used.
    #[error("could not {doing} {}: {source}\n  --data-dir DIR chooses another place", path.display())]
    DataDir {
        /// What was tried.
        doing: &'static str,
        /// The folder or file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The admin token from outside cannot be used.
    #[error(transparent)]
    Token(#[from] tokens::Error),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// What storage said.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// What the shards said.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// What the SQL engine said.
    #[error(transparent)]
    Query(#[from] query::Error),
}

/// What there is to say about a node that has become ready.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Where it speaks HTTP.
    pub http: SocketAddr,
    /// The same as a URL.
    pub url: String,
    /// Whether requests need an access token.
    pub needs_token: bool,
    /// Its shards.
    pub shards: usize,
    /// Whether its data directory was empty.
    pub is_new: bool,
    /// Room on its disk, where that is known.
    pub free_bytes: Option<u64>,
    /// How long it took.
    pub took: Duration,
}

/// A node that answers.
pub struct Node {
    ready: Ready,
    cluster: Arc<Cluster>,
    ingest: Arc<Ingest>,
    closing: watch::Sender<bool>,
    doors: JoinHandle<()>,
    peers: Option<PeerPort>,
    drain_timeout: Duration,
    node_file: PathBuf,
    _lock: DirLock,
}

impl Node {
    /// Starts a node; it is ready when this returns.
    pub async fn start(loaded: &Loaded) -> Result<Node, Error> {
        let started = Instant::now();
        let settings = &loaded.settings;
        let address = address_of("listen", &settings.listen).await?;
        let has_peers = settings.is_clustered() || settings.data_dir.join(PEERS_FILE).exists();
        let outside = tokens::from_outside(settings, now())?;
        let exposed = || Error::Exposed { listen: settings.listen.clone(), port: address.port() };
        let is_guarded = outside.is_some() || address.ip().is_loopback();
        if !is_guarded && !has_peers && !settings.data_dir.join("meta").exists() {
            return Err(exposed());
        }
        let tls = tls_of(settings)?;
        let is_new = make_data_dir(&settings.data_dir)?;
        let lock = DirLock::take(&settings.data_dir)?;
        let node_file = settings.data_dir.join("node.json");
        remove_if_there(&node_file)?;
        let no_port = |why| Error::Listen { flag: "listen", listen: settings.listen.clone(), why };
        let listener = TcpListener::bind(address).await.map_err(no_port)?;
        let http = listener.local_addr().map_err(no_port)?;
        let (peers, met) = match has_peers {
            false => (None, None),
            true => {
                let (port, door) = open_peer_port(settings).await?;
                let met = peer_options(settings, http, port.address(), door);
                (Some(port), Some(met))
            }
        };
        let rpc = met.as_ref().map(|met| met.rpc.clone());
        let reached = met.as_ref().map_or_else(|| http.to_string(), |met| met.http.clone());

        let clock: Clock = Arc::new(now);
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let cluster = Cluster::start(ClusterOptions { peers: met, ..cluster_options(settings, disk.clone(), clock.clone()) }).await?;
        if has_peers {
            leave_peers_file(&settings.data_dir)?;
        }
        let reset = tokens::reset_left(&settings.data_dir)?;
        if !is_guarded && reset.is_none() && !cluster.has_tokens() {
            cluster.shutdown().await;
            return Err(exposed());
        }
        let mut outside: Vec<Arc<Token>> = outside.into_iter().map(Arc::new).collect();
        if let Some(token) = reset {
            let handing_over = tokio::spawn(tokens::hand_over(cluster.clone(), token.clone(), settings.data_dir.clone()));
            // Where the cluster cannot decide yet, whoever made the token gets in here all the same.
            if !matches!(tokio::time::timeout(HAND_OVER, handing_over).await, Ok(Ok(true))) {
                outside.push(Arc::new(token));
            }
        }
        let needs_token = !outside.is_empty() || cluster.has_tokens();
        let shards = cluster.shards().len();
        let url = format!("{}://{http}", if tls.is_some() { "https" } else { "http" });
        let (closing, closed) = watch::channel(false);
        let (ingest, doors) =
            open_doors(loaded, cluster.clone(), clock, Door { listener, http, reached, rpc, tls, outside }, peers.as_ref(), closed)?;

        write_node_file(&node_file, &settings.node_id, http, peers.as_ref().map(PeerPort::address))?;
        let free_bytes = disk.free_bytes(&settings.data_dir).ok();
        let ready = Ready { http, url, needs_token, shards, is_new, free_bytes, took: started.elapsed() };
        Ok(Node { ready, cluster, ingest, closing, doors, peers, drain_timeout: settings.drain_timeout.0, node_file, _lock: lock })
    }

    /// How it became ready.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Returns, with the reason, when the node can no longer keep what it is given; pends for ever otherwise.
    pub async fn failed(&self) -> String {
        self.cluster.stopped().await
    }

    /// Answers what is under way, for the drain timeout at most, and stops. Everything acknowledged is on disk already:
    /// nothing is lost by stopping early.
    pub async fn stop(self) {
        // While it still answers: whoever asks meanwhile is sent on by it.
        if tokio::time::timeout(HAND_OVER, self.cluster.hand_over()).await.is_err() {
            tracing::warn!("not every shard found another leader in time: they elect one");
        }
        self.ingest.drain();
        let _ = self.closing.send(true);
        let mut doors = self.doors;
        match tokio::time::timeout(self.drain_timeout, &mut doors).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the accept loop ended badly"),
            Err(_) => {
                tracing::warn!(seconds = self.drain_timeout.as_secs_f64(), "some requests were not answered in time");
                doors.abort();
            }
        }
        // Whatever requests are left: the log is left as it should be.
        if tokio::time::timeout(CLOSE_TIMEOUT, self.cluster.shutdown()).await.is_err() {
            tracing::warn!("not all of the node could be closed in time: the next start reads the log again");
        }
        drop(self.peers);
        if let Err(error) = std::fs::remove_file(&self.node_file) {
            tracing::warn!(%error, "could not remove node.json");
        }
    }

    /// Leaves without a word: after a failed sync nothing may be written any more.
    pub fn abandon(self) {
        self.doors.abort();
    }
}

/// The address of a name; of several the one that others can reach, so that none is exposed by chance.
async fn address_of(flag: &'static str, listen: &str) -> Result<SocketAddr, Error> {
    let like = if flag == "listen" { "127.0.0.1:2558" } else { "127.0.0.1:2559" };
    let wrong = |why| Error::BadListen { flag, like, listen: listen.to_owned(), why };
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(listen).await.map_err(wrong)?.collect();
    let reachable = addresses.iter().find(|a| !a.ip().is_loopback()).or(addresses.first());
    reachable.copied().ok_or_else(|| wrong(io::Error::other("the name has no address")))
}

/// What clients' connections are encrypted with, kept fresh.
fn tls_of(settings: &Settings) -> Result<Option<Arc<Tls>>, Error> {
    let (Some(cert), Some(key)) = (settings.tls_cert.0.clone(), settings.tls_key.0.clone()) else { return Ok(None) };
    let tls = Tls::load(tls::Files { cert, key, authority: None })?;
    tokio::spawn(tls.clone().keep_fresh());
    Ok(Some(tls))
}

/// Opens the port for peers, which must find each other before any of them is ready.
async fn open_peer_port(settings: &Settings) -> Result<(PeerPort, Arc<PeerDoor>), Error> {
    let listen = &settings.rpc_listen;
    let address = address_of("rpc-listen", listen).await?;
    let secret = settings.cluster_secret_file.0.as_deref().map(read_secret).transpose()?;
    let tls = match (&settings.rpc_tls_cert.0, &settings.rpc_tls_key.0, &settings.rpc_ca.0) {
        (Some(cert), Some(key), Some(ca)) => {
            let tls = Tls::load(tls::Files { cert: cert.clone(), key: key.clone(), authority: Some(ca.clone()) })?;
            tokio::spawn(tls.clone().keep_fresh());
            Some(tls)
        }
        _ => None,
    };
    if !address.ip().is_loopback() && secret.is_none() && tls.is_none() {
        return Err(Error::ExposedPeers { listen: listen.clone() });
    }
    let no_port = |why| Error::Listen { flag: "rpc-listen", listen: listen.clone(), why };
    let listener = std::net::TcpListener::bind(address).map_err(no_port)?;
    let door = PeerDoor::new(PeerSecurity { secret, tls: tls.as_ref().and_then(|tls| tls.client()) });
    Ok((PeerPort::open(listener, door.clone(), tls).map_err(no_port)?, door))
}

/// The secret that all nodes of the cluster share.
fn read_secret(path: &Path) -> Result<Arc<str>, Error> {
    let failed = |why: String| Error::Secret { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    let secret = text.trim();
    match secret.len() >= SHORTEST_SECRET && secret.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(secret.into()),
        false => Err(failed(format!(
            "it must have {SHORTEST_SECRET} letters, digits and signs at least ('openssl rand -hex 32' makes a good one)"
        ))),
    }
}

/// How this node and its peers find each other.
fn peer_options(settings: &Settings, http: SocketAddr, rpc: SocketAddr, door: Arc<PeerDoor>) -> PeerOptions {
    let reached = |given: &Option<String>, bound: SocketAddr| match given {
        Some(address) => address.clone(),
        // Listening everywhere is no address: the machine's name is the best guess.
        None if bound.ip().is_unspecified() => format!("{}:{}", config::machine_name(), bound.port()),
        None => bound.to_string(),
    };
    PeerOptions {
        roles: settings.roles,
        http: reached(&settings.advertise.0, http),
        rpc: reached(&settings.rpc_advertise.0, rpc),
        join: settings.join.0.clone(),
        bootstrap_expect: settings.bootstrap_expect.0.map(NonZeroU32::get),
        replicas: settings.replicas.0.map(NonZeroU32::get),
        gone_after: cluster::GONE_AFTER,
        door,
    }
}

fn leave_peers_file(data_dir: &Path) -> Result<(), Error> {
    let path = data_dir.join(PEERS_FILE);
    let text = "This node belongs to a cluster of several: it opens its port for peers however it is started.\n";
    if path.exists() {
        return Ok(());
    }
    std::fs::write(&path, text).map_err(|source| Error::DataDir { doing: "write", path, source })
}

/// Makes the folder, readable by its owner only; `true` if there was nothing in it.
fn make_data_dir(path: &Path) -> Result<bool, Error> {
    let failed = |doing| move |source| Error::DataDir { doing, path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make the data directory"))?;
    let mut entries = std::fs::read_dir(path).map_err(failed("read the data directory"))?;
    Ok(entries.next().is_none())
}

fn remove_if_there(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::DataDir { doing: "remove", path: path.to_owned(), source }),
        _ => Ok(()),
    }
}

fn cluster_options(settings: &Settings, disk: Arc<dyn Disk>, clock: Clock) -> ClusterOptions {
    ClusterOptions {
        node: settings.node_id.clone(),
        data_dir: settings.data_dir.clone(),
        disk,
        shards: settings.shards,
        clock,
        seed: seed(),
        flush_bytes: settings.flush_bytes.0 as usize,
        last_rows_bytes: settings.last_rows_bytes.0 as usize,
        max_waiting_bytes: settings.max_waiting_bytes.0 as usize,
        peers: None,
    }
}

/// Where clients come in, and what they are asked.
struct Door {
    listener: TcpListener,
    http: SocketAddr,
    /// How others reach it.
    reached: String,
    rpc: Option<String>,
    tls: Option<Arc<Tls>>,
    outside: Vec<Arc<Token>>,
}

/// All that is answered beside the writes.
pub fn router(
    ingest: Arc<Ingest>,
    engine: Arc<Engine>,
    cluster: Arc<Cluster>,
    clock: Clock,
    has_admin: bool,
    registry: Registry,
    http: String,
) -> Router {
    ingest::http::router(ingest)
        .merge(query::http::router(engine))
        .merge(telemetry::router(registry))
        .merge(tokens::http::router(cluster.clone(), clock, has_admin))
        .merge(operate::http::router(cluster, http))
        .route("/", any(later))
        .route(&format!("{FLIGHT}{{call}}"), any(later))
        .method_not_allowed_fallback(other_method)
        .fallback(nowhere)
}

async fn later(Extension(id): Extension<RequestId>, request: Request) -> Response {
    listen::refusal(StatusCode::NOT_IMPLEMENTED, &format!("{} is not available yet", request.uri().path()), id)
}

async fn other_method(Extension(id): Extension<RequestId>, request: Request) -> Response {
    listen::refusal(StatusCode::METHOD_NOT_ALLOWED, &format!("{} does not answer {}", request.uri().path(), request.method()), id)
}

async fn nowhere(Extension(id): Extension<RequestId>, request: Request) -> Response {
    listen::refusal(StatusCode::NOT_FOUND, &format!("there is nothing at {}", request.uri().path()), id)
}

/// Wires ingest and query to the shards and to the accept loop.
fn open_doors(
    loaded: &Loaded,
    cluster: Arc<Cluster>,
    clock: Clock,
    door: Door,
    peers: Option<&PeerPort>,
    closed: watch::Receiver<bool>,
) -> Result<(Arc<Ingest>, JoinHandle<()>), Error> {
    let settings = &loaded.settings;
    let ingest = Ingest::new(
        cluster.clone(),
        IngestOptions {
            auto_create_databases: settings.auto_create_databases,
            max_body_bytes: settings.max_body_bytes.0,
            max_line_bytes: settings.max_line_bytes.0 as usize,
            max_in_flight_bytes: settings.max_in_flight_bytes.0,
            clock: clock.clone(),
            origin: u128::from(seed()) << 64 | u128::from(seed()),
        },
    );
    let options = QueryOptions {
        memory_bytes: settings.query_memory_bytes.0 as usize,
        spill_bytes: settings.query_spill_bytes.0,
        default_timeout: settings.query_timeout.0,
        max_concurrent: settings.query_max_concurrent as usize,
        max_concurrent_per_token: settings.query_max_concurrent_per_token as usize,
        max_sql_bytes: settings.query_max_sql_bytes.0 as usize,
        ..QueryOptions::new(settings.data_dir.join("spill"), clock.clone())
    };
    let sources = sources(loaded, &door, clock(), ingest.clone());
    let engine = Engine::new(cluster.clone(), options, sources)?;
    ingest.ask_tag_values(tag_values(engine.clone()));
    if let Some(peers) = peers {
        peers.connect(engine.peer_service());
    }

    let mut registry = telemetry::registry();
    let listen_metrics = listen::Metrics::default();
    cluster.metrics().register(&mut registry);
    ingest.metrics().register(&mut registry);
    engine.metrics().register(&mut registry);
    listen_metrics.register(&mut registry);
    registry.register_collector(Box::new(ShardFigures::new(cluster.clone())));

    let router = router(ingest.clone(), engine, cluster.clone(), clock, !door.outside.is_empty(), registry, door.reached.clone());
    let hosts = Hosts::new([&settings.listen, &settings.node_id].into_iter().chain(&settings.advertise.0).map(String::as_str));
    let limits = Limits { connections: settings.max_connections, drain: settings.drain_timeout.0, ..Limits::default() };
    let gate = Gate::new(cluster, door.outside, hosts, door.http.ip().is_loopback());
    let doors = Doors { ingest: ingest.clone(), router, gate, tls: door.tls, metrics: listen_metrics };
    Ok((ingest, tokio::spawn(listen::serve(door.listener, doors, limits, closed))))
}

/// What SQL shows of this process.
fn sources(loaded: &Loaded, door: &Door, started: Timestamp, ingest: Arc<Ingest>) -> Sources {
    let settings: Vec<query::Setting> = loaded
        .effective
        .iter()
        .map(|s| query::Setting { name: s.key.clone(), value: s.value.clone(), origin: s.origin.to_string() })
        .collect();
    let this_node = query::Node {
        node_id: loaded.settings.node_id.clone(),
        roles: loaded.settings.roles.to_string(),
        http: door.reached.clone(),
        rpc: door.rpc.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: "ready".to_owned(),
        started: Some(started),
    };
    let refused = move || {
        let lines = ingest.refused_lines().into_iter().map(|line| query::RefusedLine {
            time: line.time,
            database: line.database.to_string(),
            line_number: line.line_number,
            original_line: line.line.into(),
            error_message: line.reason.into(),
        });
        lines.collect()
    };
    Sources {
        settings: Box::new(move || settings.clone()),
        refused_lines: Box::new(refused),
        nodes: Box::new(move || vec![this_node.clone()]),
    }
}

/// Answers `SHOW TAG VALUES`, which ingest is asked and only query can read.
fn tag_values(engine: Arc<Engine>) -> ingest::influx_compat::TagValues {
    Arc::new(move |database, table, tag| {
        let engine = engine.clone();
        Box::pin(async move {
            let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
            let (table, tag) = (quoted(&table), quoted(&tag));
            let sql = format!("SELECT DISTINCT {tag} FROM {table} WHERE {tag} IS NOT NULL ORDER BY {tag}");
            let answer = engine.run(&database, &sql, RunOptions::default()).await.map_err(|e| e.to_string())?;
            let batches = answer.collect().await.map_err(|e| e.to_string())?;
            let mut values = Vec::new();
            for batch in batches {
                let column = cast(batch.column(0), &DataType::Utf8).map_err(|e| e.to_string())?;
                values.extend(column.as_string::<i32>().iter().flatten().map(str::to_owned));
            }
            Ok(values)
        })
    })
}

/// The time of day; the only place where a node reads it.
#[expect(clippy::disallowed_methods, reason = "the clock's one place")]
fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// Where the randomness of a node begins.
#[expect(clippy::disallowed_methods, reason = "chance's one place")]
fn seed() -> u64 {
    rand::random()
}

/// Leaves the file whole or not at all: whoever waits for it must never read half of it.
fn write_node_file(path: &Path, node_id: &str, http: SocketAddr, rpc: Option<SocketAddr>) -> Result<(), Error> {
    let rpc = rpc.map(|rpc| rpc.to_string());
    let content = serde_json::json!({"node_id": node_id, "pid": std::process::id(), "http": http.to_string(), "rpc": rpc});
    let beside = path.with_extension("json.new");
    let written = File::create(&beside).and_then(|mut file| writeln!(file, "{content}")).and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|source| Error::DataDir { doing: "write", path: path.to_owned(), source })
}
