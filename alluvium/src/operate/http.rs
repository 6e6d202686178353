//! The routes under `/cluster/v1`; the listener lets in admins of all databases only.
//!
//! ```text
//! GET  status
//! POST move       {"shard": 3, "to": "storage-2", "from": "storage-1"?}
//! POST drain      {"node": "storage-3", "stop": false}
//! POST hand_over  {"timeout_ms": 60000}
//! POST split      {"shard": 3, "at": "9223372036854775808"?}    the first hash of the new shard, as a text or a number
//! POST recover    {"shard": 3, "accept_loss": true}
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use cluster::{Cluster, NodeState};
use futures::future::join_all;
use http::StatusCode;
use ingest::RequestId;
use model::{NodeId, ShardId};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{NodeStatus, ShardStatus, Status};
use crate::listen::{refusal, status_of};

/// Bytes of a body.
const MAX_BODY_BYTES: usize = 64 << 10;
/// How long handing over may take at most.
const LONGEST_HAND_OVER: Duration = Duration::from_secs(600);

/// The routes; `http` is where this node is reached, which no cluster knows of a node that is alone.
pub fn router(cluster: Arc<Cluster>, http: String) -> Router {
    Router::new()
        .route("/cluster/v1/status", get(move |cluster| status(cluster, http)))
        .route("/cluster/v1/move", post(move_shard))
        .route("/cluster/v1/drain", post(drain))
        .route("/cluster/v1/hand_over", post(hand_over))
        .route("/cluster/v1/split", post(split))
        .route("/cluster/v1/recover", post(recover))
        .with_state(cluster)
}

/// What was asked cannot be done, and the answer to it.
struct Refused(StatusCode, String);

impl From<cluster::Error> for Refused {
    fn from(error: cluster::Error) -> Refused {
        Refused(status_of(error.kind()), error.to_string())
    }
}

impl Refused {
    fn wrong(why: String) -> Refused {
        Refused(StatusCode::BAD_REQUEST, why)
    }

    fn answer(self, id: RequestId) -> Response {
        refusal(self.0, &self.1, id)
    }
}

async fn status(State(cluster): State<Arc<Cluster>>, http: String) -> Response {
    let mut status = status_of_cluster(&cluster).await;
    if let [alone] = &mut status.nodes[..]
        && alone.http.is_empty()
    {
        alone.http = http;
    }
    Json(status).into_response()
}

async fn status_of_cluster(cluster: &Cluster) -> Status {
    let infos = cluster.nodes();
    let names: BTreeMap<NodeId, &str> = infos.iter().map(|info| (info.id, info.name.as_str())).collect();
    let answers = join_all(infos.iter().map(|info| async { info.state != NodeState::Gone && cluster.is_alive(info.id).await }));
    let (answers, (shards, _)) = tokio::join!(answers, cluster.figures());
    let mut nodes: Vec<NodeStatus> = infos
        .iter()
        .zip(answers)
        .map(|(info, answers)| NodeStatus {
            name: info.name.clone(),
            id: format!("{:016x}", info.id.0),
            roles: info.roles.to_string(),
            http: info.http.clone(),
            rpc: info.rpc.clone(),
            state: info.state.to_string(),
            answers,
            incarnation: info.incarnation,
            version: info.version.clone(),
        })
        .collect();
    nodes.sort_by(|a, b| (a.state == "gone", &a.name).cmp(&(b.state == "gone", &b.name)));
    let shards = shards
        .into_iter()
        .map(|s| ShardStatus {
            shard: s.shard.0,
            placed: cluster
                .replicas(s.shard)
                .iter()
                .map(|node| names.get(node).map_or_else(|| node.to_string(), |n| (*n).to_owned()))
                .collect(),
            leader: s.leader,
            silent_leader: None,
            replicas: s.replicas,
            term: s.term.0,
            applied: s.applied.map(|index| index.0),
            rows_in_memory: s.rows_in_memory,
            wal_bytes: s.wal_bytes,
            stopped: s.stopped,
        })
        .collect();
    let mut status = Status { cluster: format!("{:032x}", cluster.cluster_id()), nodes, shards };
    status.unseat_silent_leaders();
    status
}

async fn read<T: DeserializeOwned>(request: Request) -> Result<T, Refused> {
    let body = axum::body::to_bytes(request.into_body(), MAX_BODY_BYTES).await.map_err(|e| Refused::wrong(e.to_string()))?;
    serde_json::from_slice(&body).map_err(|e| Refused::wrong(format!("the body is not what is expected here: {e}")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Move {
    shard: u32,
    to: String,
    #[serde(default)]
    from: Option<String>,
}

async fn move_shard(State(cluster): State<Arc<Cluster>>, Extension(id): Extension<RequestId>, request: Request) -> Response {
    let moved = async {
        let asked: Move = read(request).await?;
        let placed = status_of_cluster(&cluster).await.moved(asked.shard, &asked.to, asked.from.as_deref()).map_err(Refused::wrong)?;
        let shard = ShardId(asked.shard);
        let ids = placed.iter().map(|name| node_named(&cluster, name)).collect::<Result<Vec<_>, _>>()?;
        cluster.place(shard, cluster.replicas(shard), ids).await?;
        Ok::<_, Refused>(placed)
    };
    match moved.await {
        Ok(placed) => (StatusCode::ACCEPTED, Json(serde_json::json!({"placed": placed}))).into_response(),
        Err(refused) => refused.answer(id),
    }
}

fn node_named(cluster: &Cluster, name: &str) -> Result<NodeId, Refused> {
    let found = cluster.nodes().into_iter().find(|info| info.name == name && info.state != NodeState::Gone);
    found.map(|info| info.id).ok_or_else(|| Refused::wrong(format!("there is no node '{name}'")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Drain {
    node: String,
    #[serde(default)]
    stop: bool,
}

async fn drain(State(cluster): State<Arc<Cluster>>, Extension(id): Extension<RequestId>, request: Request) -> Response {
    let drained = async {
        let asked: Drain = read(request).await?;
        if !asked.stop {
            status_of_cluster(&cluster).await.may_drain(&asked.node).map_err(Refused::wrong)?;
        }
        let state = if asked.stop { NodeState::Active } else { NodeState::Draining };
        cluster.set_node_state(node_named(&cluster, &asked.node)?, state).await?;
        Ok::<_, Refused>(())
    };
    match drained.await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(refused) => refused.answer(id),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SplitShard {
    shard: u32,
    #[serde(default)]
    at: Option<Hash>,
}

/// A routing hash: more than a number in JSON can hold everywhere, so also as text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Hash {
    Number(u64),
    Text(String),
}

async fn split(State(cluster): State<Arc<Cluster>>, Extension(id): Extension<RequestId>, request: Request) -> Response {
    let split = async {
        let asked: SplitShard = read(request).await?;
        let at = match asked.at {
            None => None,
            Some(Hash::Number(at)) => Some(at),
            Some(Hash::Text(at)) => Some(at.parse().map_err(|_| Refused::wrong(format!("\"{at}\" is no routing hash")))?),
        };
        Ok::<_, Refused>(cluster.split(ShardId(asked.shard), at).await?)
    };
    match split.await {
        Ok(child) => (StatusCode::ACCEPTED, Json(serde_json::json!({"new_shard": child.0}))).into_response(),
        Err(refused) => refused.answer(id),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HandOver {
    timeout_ms: u64,
}

async fn hand_over(State(cluster): State<Arc<Cluster>>, Extension(id): Extension<RequestId>, request: Request) -> Response {
    let asked: HandOver = match read(request).await {
        Ok(asked) => asked,
        Err(refused) => return refused.answer(id),
    };
    let within = Duration::from_millis(asked.timeout_ms).min(LONGEST_HAND_OVER);
    match tokio::time::timeout(within, cluster.hand_over()).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(_) => refusal(StatusCode::SERVICE_UNAVAILABLE, "not every shard found another leader in time", id),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recover {
    shard: u32,
    accept_loss: bool,
}

async fn recover(State(cluster): State<Arc<Cluster>>, Extension(id): Extension<RequestId>, request: Request) -> Response {
    let recovered = async {
        let asked: Recover = read(request).await?;
        if !asked.accept_loss {
            return Err(Refused::wrong("rows may be lost by this: it is done with \"accept_loss\": true only".to_owned()));
        }
        Ok::<_, Refused>(cluster.recover(ShardId(asked.shard)).await?)
    };
    match recovered.await {
        Ok(recovered) => Json(recovered).into_response(),
        Err(refused) => refused.answer(id),
    }
}
