//! `/api/v3/configure/token`: makes, lists and revokes access tokens. The listener lets in admins of all databases only.
//!
//! ```text
//! POST   {"name": "gate", "permissions": ["write"], "database": "home"}   201, the same with "token": the secret, once
//! GET                                                                     200, all of them, without secrets
//! DELETE ?name=gate                                                       204
//! ```

use std::sync::Arc;

use axum::extract::{Extension, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use cluster::{Clock, Cluster, Permission, Token, TokenHash};
use http::StatusCode;
use ingest::RequestId;
use model::schema::check_name;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::listen::{refusal, status_of};

/// Bytes of a body.
const MAX_BODY_BYTES: usize = 64 << 10;

struct Desk {
    cluster: Arc<Cluster>,
    clock: Clock,
    /// Whether this node was given an admin from outside.
    has_admin: bool,
}

/// The route; `has_admin` tells whether this node was given an admin token from outside.
pub fn router(cluster: Arc<Cluster>, clock: Clock, has_admin: bool) -> Router {
    let desk = Arc::new(Desk { cluster, clock, has_admin });
    Router::new().route("/api/v3/configure/token", get(list).post(create).delete(revoke)).with_state(desk)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct New {
    name: String,
    permissions: Vec<Permission>,
    #[serde(default)]
    database: Option<String>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

async fn list(State(desk): State<Arc<Desk>>) -> Response {
    let tokens: Vec<Value> = desk.cluster.tokens().iter().map(|token| shown(token)).collect();
    Json(tokens).into_response()
}

async fn create(State(desk): State<Arc<Desk>>, Extension(id): Extension<RequestId>, request: Request) -> Response {
    let bad = |why: String| refusal(StatusCode::BAD_REQUEST, &why, id);
    let body = match axum::body::to_bytes(request.into_body(), MAX_BODY_BYTES).await {
        Ok(body) => body,
        Err(error) => return bad(format!("the body could not be read: {error}")),
    };
    let new: New = match serde_json::from_slice(&body) {
        Ok(new) => new,
        Err(error) => return bad(format!("expected {{\"name\", \"permissions\": [\"read\"|\"write\"|\"admin\"], \"database\"}}: {error}")),
    };
    let mut permissions = new.permissions;
    permissions.sort();
    permissions.dedup();
    if permissions.is_empty() {
        return bad("a token without permissions is good for nothing: read, write or admin".to_owned());
    }
    if let Some(Err(error)) = new.database.as_deref().map(|name| check_name("database", name)) {
        return bad(error.to_string());
    }
    let secret = super::draw();
    let token = Token {
        name: new.name.into(),
        hash: TokenHash::of(&secret),
        permissions,
        database: new.database.map(Into::into),
        created: (desk.clock)(),
    };
    // From the first token on everybody needs one: somebody must be able to make more.
    if !token.is_admin_of_all() && !desk.has_admin && !desk.cluster.tokens().iter().any(|t| t.is_admin_of_all()) {
        return failed(&cluster::Error::NoAdminLeft, id);
    }
    let mut answer = shown(&token);
    answer["token"] = secret.into();
    match desk.cluster.create_token(token).await {
        Ok(()) => (StatusCode::CREATED, Json(answer)).into_response(),
        Err(error) => failed(&error, id),
    }
}

async fn revoke(State(desk): State<Arc<Desk>>, Query(named): Query<Named>, Extension(id): Extension<RequestId>) -> Response {
    match desk.cluster.revoke_token(&named.name).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => failed(&error, id),
    }
}

fn failed(error: &cluster::Error, id: RequestId) -> Response {
    let status = match error {
        cluster::Error::NoToken { .. } => StatusCode::NOT_FOUND,
        cluster::Error::TokenExists { .. } | cluster::Error::NoAdminLeft => StatusCode::CONFLICT,
        other => status_of(other.kind()),
    };
    refusal(status, &error.to_string(), id)
}

/// A token without its hash, which would be no secret but nobody's business either.
fn shown(token: &Token) -> Value {
    json!({
        "name": token.name,
        "permissions": token.permissions,
        "database": token.database,
        "created": humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(token.created.0.max(0) as u64)).to_string(),
    })
}
