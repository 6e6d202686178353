//! What peers ask of this node's queries, on the port of peers. Whoever owns that port has checked who asks.
//!
//! ```text
//! POST /query/v1/run       a statement                  -> its rows
//! POST /query/v1/scan      one shard of a scan          -> its rows
//! POST /query/v1/visit                                  -> nothing, until the query is over
//! POST /query/v1/queries                                -> the queries that are under way here, and the last ones
//! POST /query/v1/kill      a query's number             -> `killed`, or nothing
//! POST /worker.WorkerService/…                             stages of plans (gRPC)
//! ```
//!
//! All work is done on the query threads: heartbeats come in at the same port and never wait for it.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::Bytes;
use cluster::peer::{PeerBody, whole};
use datafusion::physical_plan::ExecutionPlan;
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, BodyStream, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::de::DeserializeOwned;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use crate::Result;
use crate::distribute::calls::{KILL, QUERIES, RUN, SCAN, Statement, VISIT};
use crate::distribute::head::Head;
use crate::distribute::leaf::Leaf;
use crate::distribute::rows::{self, End};
use crate::engine::{Engine, Inner, RunOptions, Verbs};
use crate::error::Error;
use crate::panics::Until;
use crate::scope::Scope;
use crate::shard_scan::ShardScanExec;
use crate::sweep::Wanted;
use crate::told::Told;

/// Stages of plans.
const STAGES: &str = "/worker.WorkerService/";
/// The request that a stage's task lives as long as.
const TASK: &str = "/worker.WorkerService/CoordinatorChannel";
/// Bytes of a request that is read whole: a statement, or a scan with a long list of tag values.
const MAX_BODY_BYTES: usize = 64 << 20;

type Stages = BoxCloneSyncService<Request<Incoming>, Response<tonic::body::Body>, Infallible>;

/// Answers what other nodes ask of this one's queries. Cheap to copy.
#[derive(Clone)]
pub struct PeerService {
    engine: Arc<Engine>,
    stages: Stages,
}

impl fmt::Debug for PeerService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerService").finish_non_exhaustive()
    }
}

impl PeerService {
    pub(crate) fn new(engine: Arc<Engine>) -> PeerService {
        let worker = engine.inner().worker.clone();
        PeerService { engine, stages: BoxCloneSyncService::new(worker.into_worker_server()) }
    }

    /// Whether a request for this path is for here.
    pub fn answers(path: &str) -> bool {
        path.starts_with("/query/v1/") || path.starts_with(STAGES)
    }

    /// Answers one request of a peer that was admitted.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<PeerBody> {
        let this = self.clone();
        // What it spawns is spawned where it runs.
        let answering = self.engine.handle().spawn(async move {
            match request.uri().path().starts_with(STAGES) {
                true => this.stage(request).await,
                false => this.ask(request).await.unwrap_or_else(|e| refused(&e)),
            }
        });
        answering.await.unwrap_or_else(|_| refused(&Error::ShuttingDown))
    }

    fn inner(&self) -> &Arc<Inner> {
        self.engine.inner()
    }

    async fn stage(&self, request: Request<Incoming>) -> Response<PeerBody> {
        // A task's channel is open for as long as its query goes on.
        let guest = match request.uri().path() {
            TASK => self.enter(request.headers()).await.map(Some),
            _ => Ok(None),
        };
        let guest = match guest {
            Ok(guest) => guest,
            Err(e) => {
                return tonic::Status::internal(Told::of(&e).text())
                    .into_http()
                    .map(|body: tonic::body::Body| peer_body(body, None, Until::now()));
            }
        };
        let panics = Until::now();
        let Ok(response) = self.stages.clone().oneshot(request).await;
        response.map(|body| peer_body(body, guest, panics))
    }

    async fn enter(&self, headers: &HeaderMap) -> Result<Guest> {
        let scope = self.inner().visits.enter(self.inner(), Head::read(headers)?).await?;
        scope.come();
        Ok(Guest { engine: self.inner().clone(), scope })
    }

    async fn ask(&self, request: Request<Incoming>) -> Result<Response<PeerBody>> {
        let (head, body) = request.into_parts();
        match head.uri.path() {
            RUN => self.run(Head::read(&head.headers)?, read(body).await?).await,
            SCAN => self.scan(self.enter(&head.headers).await?, read(body).await?).await,
            VISIT => {
                let guest = self.enter(&head.headers).await?;
                let silence = futures::stream::poll_fn(move |_| {
                    let _here = &guest;
                    Poll::<Option<io::Result<Frame<Bytes>>>>::Pending
                });
                Ok(Response::new(StreamBody::new(silence).boxed_unsync()))
            }
            QUERIES => done(serde_json::to_vec(&self.inner().running.seen()).expect("writing to memory")),
            KILL => {
                let id: u64 = read(body).await?;
                done(if self.inner().running.kill(id).is_ok() { "killed" } else { "" })
            }
            _ => Ok(Response::builder()
                .status(StatusCode::NOT_FOUND)
                .body(whole("queries are not asked that"))
                .expect("a status and a body")),
        }
    }

    async fn run(&self, head: Head, statement: Statement) -> Result<Response<PeerBody>> {
        head.wait_for_catalog(&self.inner().cluster).await?;
        let options = RunOptions {
            timeout: Some(head.left),
            parameters: statement.parameters,
            shortcuts: head.shortcuts,
            consistency: head.consistency,
            max_lag: Some(head.max_lag),
            verbs: Verbs::Ask,
            ..RunOptions::default()
        };
        let answer = self.engine.run_here(&head.database, &statement.sql, options, head.now).await?;
        let schema = answer.schema().clone();
        let scope = answer.scope().clone();
        let batches = futures::stream::unfold(answer, async |mut answer| answer.next().await.map(|batch| (batch, answer)));
        rows::body(self.engine.handle(), &schema, Box::pin(batches), move || figures(&scope)).map(Response::new)
    }

    async fn scan(&self, guest: Guest, leaf: Leaf) -> Result<Response<PeerBody>> {
        let parts = leaf.parts(&guest.scope, Wanted::default())?;
        let me = self.inner().cluster.node_id();
        if let Some((shard, node)) = parts.nodes.iter().find(|(_, node)| **node != me) {
            return Err(Error::Elsewhere { shard: *shard, why: format!("shard {shard} was asked of another node than {node}") });
        }
        let scan = ShardScanExec::of(parts, self.inner().cluster.clone());
        let schema = scan.parts().schema.clone();
        let rows = scan.execute(0, self.inner().sessions.bare_context(&guest.scope))?;
        let end = move || figures(&guest.scope);
        rows::body(self.engine.handle(), &schema, Box::pin(rows.map_err(Error::from)), end).map(Response::new)
    }
}

fn figures(scope: &Scope) -> End {
    End { rows_scanned: scope.figures.rows_scanned.load(Ordering::Relaxed), shards: scope.touched(), lag_ms: scope.lag_ms() }
}

/// Somebody for whom a query works here. When the last one leaves, the query is over here.
struct Guest {
    engine: Arc<Inner>,
    scope: Arc<Scope>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.scope.leave() {
            self.engine.visits.over(&self.scope);
        }
    }
}

/// Passes an answer on, but for its end where one of the steps behind it may have ended before its rows did.
fn peer_body(body: tonic::body::Body, guest: Option<Guest>, panics: Until) -> PeerBody {
    let frames = BodyStream::new(body.map_err(io::Error::other)).map(move |frame| {
        let _here = &guest;
        match frame {
            // Only trailers say that an answer is whole.
            Ok(frame) if frame.is_trailers() => panics.none_since().map(|()| frame).map_err(io::Error::other),
            other => other,
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T> {
    let unreadable = |e: &dyn fmt::Display| Error::Engine { message: format!("a peer's request cannot be read: {e}") };
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(|e| unreadable(&e))?.to_bytes();
    serde_json::from_slice(&body).map_err(|e| unreadable(&e))
}

fn done(body: impl Into<Bytes>) -> Result<Response<PeerBody>> {
    Ok(Response::new(whole(body)))
}

fn refused(e: &Error) -> Response<PeerBody> {
    let told = serde_json::to_vec(&Told::of(e)).expect("writing to memory");
    Response::builder().status(StatusCode::SERVICE_UNAVAILABLE).body(whole(told)).expect("a status and a body")
}
