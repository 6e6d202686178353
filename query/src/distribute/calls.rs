//! Asking another node: to run a statement, to read a shard, to tell its queries, to end one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cluster::peer::{Lane, whole};
use cluster::{Cluster, NodeState};
use datafusion::arrow::datatypes::SchemaRef;
use futures::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use model::NodeId;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::distribute::head::Head;
use crate::distribute::leaf::Leaf;
use crate::distribute::rows::{self, Arriving, Batches};
use crate::engine::Parameter;
use crate::error::Error;
use crate::running::Seen;
use crate::scope::Scope;
use crate::told::Told;

/// Runs a statement and answers its rows.
pub(crate) const RUN: &str = "/query/v1/run";
/// Reads a shard and answers its rows.
pub(crate) const SCAN: &str = "/query/v1/scan";
/// Keeps a query's read points while the answer, which has nothing in it, is not over.
pub(crate) const VISIT: &str = "/query/v1/visit";
/// Tells the queries of a node.
pub(crate) const QUERIES: &str = "/query/v1/queries";
/// Ends a query.
pub(crate) const KILL: &str = "/query/v1/kill";

/// How long a node may take to tell its queries.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of an answer that is not rows.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// A statement for another node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Statement {
    pub sql: String,
    pub parameters: BTreeMap<String, Parameter>,
}

/// A node's name, for messages.
pub(crate) fn name_of(cluster: &Cluster, node: NodeId) -> String {
    cluster.node(node).map_or_else(|| format!("node {node}"), |n| format!("node {}", n.name))
}

/// An error that says which node was lost.
pub(crate) fn lost(cluster: &Cluster, node: NodeId, why: &dyn std::fmt::Display) -> Error {
    Error::Lost { node: Some(node), why: format!("{} was lost: {why}", name_of(cluster, node)) }
}

async fn post(scope: &Scope, node: NodeId, lane: Lane, path: &str, body: Bytes) -> Result<Response<Incoming>> {
    let peers = scope.cluster.peers().ok_or_else(|| lost(&scope.cluster, node, &"this node is alone"))?;
    let mut request = Request::post(path).body(whole(body)).expect("a path of ours is a path");
    *request.headers_mut() = Head::of(scope).headers();
    let response = peers.send(node, lane, request).await.map_err(|e| lost(&scope.cluster, node, &e))?;
    if response.status() == StatusCode::OK {
        return Ok(response);
    }
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
    let body = body.map_err(|e| lost(&scope.cluster, node, &e))?.to_bytes();
    match serde_json::from_slice::<Told>(&body) {
        Ok(told) => Err(match told.error() {
            Error::Lost { node: None, why } => lost(&scope.cluster, node, &why),
            other => other,
        }),
        Err(_) => Err(lost(&scope.cluster, node, &format!("it answered {status}"))),
    }
}

/// Keeps the read points of this query on a node until the answer is dropped.
pub(crate) async fn visit(scope: &Scope, node: NodeId) -> Result<Response<Incoming>> {
    post(scope, node, Lane::Plans, VISIT, Bytes::new()).await
}

/// The rows of one shard, read by another node.
pub(crate) async fn scan(scope: Arc<Scope>, node: NodeId, leaf: Leaf) -> Result<Batches> {
    scope.visit(node).await?;
    let leaf = serde_json::to_vec(&leaf).expect("writing to memory");
    let response = post(&scope, node, Lane::Plans, SCAN, leaf.into()).await?;
    let arriving = Arriving::new(node, name_of(&scope.cluster, node), response.into_body());
    scope.await_lag();
    Ok(rows::stream(arriving, Arc::new(move |end| scope.lag_told(end.lag_ms))))
}

/// The answer of a statement, run whole by another node.
pub(crate) async fn run(scope: Arc<Scope>, node: NodeId, statement: &Statement) -> Result<(SchemaRef, Batches)> {
    let statement = serde_json::to_vec(statement).expect("writing to memory");
    let response = post(&scope, node, Lane::Asks, RUN, statement.into()).await?;
    let mut arriving = Arriving::new(node, name_of(&scope.cluster, node), response.into_body());
    let schema = arriving.schema().await?;
    scope.await_lag();
    let end = move |end: &rows::End| {
        scope.lag_told(end.lag_ms);
        scope.figures.scanned(end.rows_scanned as usize);
        end.shards.iter().for_each(|shard| scope.touch(*shard));
    };
    Ok((schema, rows::stream(arriving, Arc::new(end))))
}

/// The other nodes' queries, by node; a node that does not answer in time has none.
pub(crate) async fn queries(cluster: &Cluster) -> Vec<(String, Vec<Seen>)> {
    let Some(peers) = cluster.peers() else { return Vec::new() };
    let others = cluster.nodes().into_iter().filter(|n| n.id != peers.me() && n.state != NodeState::Gone);
    let asked = others.map(|node| async move {
        let call = peers.call(node.id, Lane::Asks, QUERIES, Bytes::new());
        let answer = tokio::time::timeout(TELL_TIMEOUT, call).await.ok()?.ok()?;
        Some((node.name, serde_json::from_slice(&answer).ok()?))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Ends a query on whichever other node it runs; whether one had it.
pub(crate) async fn kill(cluster: &Cluster, id: u64) -> bool {
    let Some(peers) = cluster.peers() else { return false };
    let others = cluster.nodes().into_iter().filter(|n| n.id != peers.me() && n.state != NodeState::Gone);
    let asked = others.map(|node| async move {
        let call = peers.call(node.id, Lane::Asks, KILL, id.to_string());
        tokio::time::timeout(TELL_TIMEOUT, call).await.is_ok_and(|answer| answer.is_ok_and(|body| body == "killed"))
    });
    join_all(asked).await.contains(&true)
}
