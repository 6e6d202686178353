//! The door for points: the three write endpoints and what InfluxDB's and QuestDB's clients ask around them.
//!
//! Nothing but translation: a request becomes a call of [`Ingest::write`], its result a status and a body
//! ([`crate::answer`] has the words). 204 is answered only for points that are durable and visible; 503 always carries
//! `Retry-After`. [`write`] takes any body, so that the accept loop can call it without a router in between.
//!
//! Who sends a request is known already: the listener leaves an [`Access`] among its extensions, and what it allows is
//! checked here, where the database is known. A request without one comes from this process itself.

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use cluster::{Access, Permission};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Body as HttpBody;
use model::ErrorKind;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Ingest;
use crate::answer;
use crate::body::{self, Encoding};
use crate::error::{Error, cut};
use crate::influx_compat::{self, Show, Statement};
use crate::request::{Dialect, WriteRequest, check_database_name, check_encoding};
use crate::request_id::RequestId;
use crate::write::Written;

/// The header of a client that wants its retries to store nothing twice.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Bytes of a body that is refused before its end which are read and thrown away, so that the client, still sending, gets
/// to see the answer instead of a broken connection.
const DISCARDED_BYTES: usize = 512 << 20;
/// For how long.
const DISCARDING: Duration = Duration::from_secs(30);

/// Bytes of a body that asks for something (a statement, a database) rather than bringing points.
const SMALL_BODY_BYTES: u64 = 1 << 20;

/// All routes of this crate.
pub fn router(ingest: Arc<Ingest>) -> Router {
    Router::new()
        .route("/write", post(write_route))
        .route("/api/v2/write", post(write_route))
        .route("/api/v3/write_lp", post(write_route))
        .route("/ping", get(ping).post(ping))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/settings", get(settings))
        .route("/query", get(query).post(query))
        .route("/api/v3/configure/database", get(list_databases).post(create_database).delete(drop_database))
        .with_state(ingest)
}

/// Whether [`write`] answers this request.
pub fn is_write(method: &Method, path: &str) -> bool {
    *method == Method::POST && matches!(path, "/write" | "/api/v2/write" | "/api/v3/write_lp")
}

async fn write_route(State(ingest): State<Arc<Ingest>>, request: Request) -> Response {
    let id = request.extensions().get().copied().unwrap_or_else(|| ingest.request_ids.next());
    write(&ingest, request, id).await
}

/// Answers a write request; [`is_write`] has said that it is one.
pub async fn write<B>(ingest: &Arc<Ingest>, request: http::Request<B>, id: RequestId) -> Response
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let (head, mut body) = request.into_parts();
    let asked = match WriteRequest::read(head.uri.path(), head.uri.query().unwrap_or_default()) {
        Some(Ok(asked)) => asked,
        Some(Err((dialect, error))) => {
            discard(body, &head.headers, false);
            return refusal(dialect, &error, id);
        }
        None => return StatusCode::NOT_FOUND.into_response(),
    };
    if let Some(Err(forbidden)) = head.extensions.get().map(|a: &Access| a.check(Permission::Write, Some(&asked.database))) {
        discard(body, &head.headers, false);
        return refusal(asked.dialect, &forbidden.into(), id);
    }
    let mut started = false;
    match answer_write(ingest, &asked, &head.headers, &mut body, &mut started, id).await {
        Ok(response) => response,
        Err(error) => {
            if !body.is_end_stream() {
                discard(body, &head.headers, started);
            }
            if matches!(error, Error::Overloaded { .. }) {
                ingest.metrics.overloaded.inc();
            }
            refusal(asked.dialect, &error, id)
        }
    }
}

/// `started` tells, when it fails, whether any of the body was asked for.
async fn answer_write<B>(
    ingest: &Arc<Ingest>,
    asked: &WriteRequest,
    headers: &HeaderMap,
    body: &mut B,
    started: &mut bool,
    id: RequestId,
) -> Result<Response, Error>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    if ingest.draining.load(Relaxed) {
        return Err(Error::ShuttingDown);
    }
    refuse_other_types(headers)?;
    let encoding = Encoding::named(text_of(headers, &header::CONTENT_ENCODING))?;
    let key = key_of(headers)?;
    let mut admitted = ingest.admission.admit(body.size_hint().lower())?;
    *started = true;
    let text = body::read(body, encoding, ingest.options.max_body_bytes, &mut admitted).await?;
    if text.is_empty() && matches!(asked.dialect, Dialect::InfluxV2 | Dialect::InfluxV3) {
        // As InfluxDB 2 and 3 do; InfluxDB 1 and QuestDB find nothing wrong with nothing.
        return Err(Error::EmptyBody);
    }
    refuse_json(&text)?;
    ingest.metrics.bytes.inc_by(text.len() as u64);
    let written = ingest.write(asked, text, key, &mut admitted).await?;
    ingest.metrics.lines.inc_by(written.lines);
    if written.refused_lines == 0 {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    ingest.metrics.refused_lines.inc_by(written.refused_lines);
    ingest.keep_refused(&asked.database, &written, id);
    Ok(refused(asked, &written, id))
}

fn refused(asked: &WriteRequest, written: &Written, id: RequestId) -> Response {
    tracing::debug!(request_id = %id, lines = written.lines, refused = written.refused_lines, database = asked.database, "lines were refused");
    let body = answer::refused_lines(asked.dialect, asked.accept_partial, written, id);
    json_answer(StatusCode::BAD_REQUEST, body)
}

/// The answer to a request that was not carried out.
fn refusal(dialect: Dialect, error: &Error, id: RequestId) -> Response {
    let (status, code) = status_of(error);
    match error.kind() {
        ErrorKind::Broken => tracing::error!(request_id = %id, %error, "a write failed"),
        // Saying much about each refusal is no way out of an overload.
        ErrorKind::TryAgain if !matches!(error, Error::Overloaded { .. }) => {
            tracing::warn!(request_id = %id, %error, "a write must be sent again")
        }
        _ => tracing::debug!(request_id = %id, %error, "a write was refused"),
    }
    let mut response = json_answer(status, answer::whole_request(dialect, code, &error.to_string(), id));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let seconds = if matches!(error, Error::Cluster(cluster::Error::DiskFull(_))) { "10" } else { "1" };
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
    }
    response
}

fn status_of(error: &Error) -> (StatusCode, &'static str) {
    match (error, error.kind()) {
        (Error::TooLarge { .. }, _) => (StatusCode::PAYLOAD_TOO_LARGE, "request too large"),
        (Error::Encoding { .. } | Error::Charset { .. } | Error::NotLineProtocol { .. }, _) => {
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported media type")
        }
        (Error::Forbidden(_), _) => (StatusCode::FORBIDDEN, "forbidden"),
        (Error::Cluster(cluster::Error::NoDatabase { .. }), _) => (StatusCode::NOT_FOUND, "not found"),
        (Error::Cluster(cluster::Error::DatabaseExists { .. }), _) => (StatusCode::CONFLICT, "conflict"),
        (_, ErrorKind::YourRequest) => (StatusCode::BAD_REQUEST, "invalid"),
        (_, ErrorKind::TryAgain) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        (_, ErrorKind::Broken) => (StatusCode::INTERNAL_SERVER_ERROR, "internal error"),
    }
}

fn json_answer(status: StatusCode, body: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.into()).into_response()
}

fn json_value(status: StatusCode, value: &Value) -> Response {
    json_answer(status, value.to_string())
}

/// The header's text; empty where it is absent or no text.
fn text_of<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// The request's key. One that is no text is refused: a repeat without it might undo a newer write.
fn key_of(headers: &HeaderMap) -> Result<Option<&str>, Error> {
    let Some(value) = headers.get(&IDEMPOTENCY_KEY) else { return Ok(None) };
    match value.to_str() {
        Ok(key) => Ok(Some(key).filter(|key| !key.is_empty())),
        Err(_) => Err(Error::BadParameter {
            name: "Idempotency-Key",
            value: cut(&String::from_utf8_lossy(value.as_bytes()), 64).to_owned(),
            allowed: "visible ASCII",
        }),
    }
}

/// Refuses bodies that say they are something else. Most clients say nothing or something that means nothing
/// (`application/x-www-form-urlencoded` is what curl says of any body), so only those that cannot be lines are named.
fn refuse_other_types(headers: &HeaderMap) -> Result<(), Error> {
    let text = text_of(headers, &header::CONTENT_TYPE);
    if text.is_empty() {
        return Ok(());
    }
    let kind = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let foreign = ["json", "protobuf", "grpc", "msgpack", "xml", "multipart/", "image/", "parquet", "avro"];
    if foreign.iter().any(|word| kind.contains(word)) {
        return Err(Error::NotLineProtocol { what: format!("a body of type '{}'", cut(&kind, 64)) });
    }
    let charset = text
        .split(';')
        .skip(1)
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
    let charset = charset.map_or("utf-8", |(_, value)| value.trim().trim_matches(['"', '\'']).trim());
    match ["utf-8", "utf8", "us-ascii", "ascii", ""].iter().any(|known| charset.eq_ignore_ascii_case(known)) {
        true => Ok(()),
        false => Err(Error::Charset { charset: cut(charset, 64).to_owned() }),
    }
}

/// Refuses a body that is JSON whatever it says: a list of parse errors would not tell its sender what is wrong.
fn refuse_json(body: &[u8]) -> Result<(), Error> {
    let start = body.trim_ascii_start();
    if !matches!(start.first(), Some(b'{' | b'[')) {
        return Ok(());
    }
    // A table may be called `{`: only a whole JSON value with nothing but JSON behind it is surely no line.
    let mut values = serde_json::Deserializer::from_slice(start).into_iter::<serde::de::IgnoredAny>();
    let first_is_json = matches!(values.next(), Some(Ok(_)));
    let rest = start[values.byte_offset().min(start.len())..].trim_ascii_start();
    if first_is_json && matches!(rest.first(), None | Some(b'{' | b'[')) {
        return Err(Error::NotLineProtocol { what: "JSON".to_owned() });
    }
    Ok(())
}

/// Reads the rest of a refused body and forgets it, beside the answer. Not where the client waits to be told to send.
fn discard<B>(mut body: B, headers: &HeaderMap, started: bool)
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
{
    if !started && headers.contains_key(header::EXPECT) {
        return;
    }
    tokio::spawn(tokio::time::timeout(DISCARDING, async move {
        let mut left = DISCARDED_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    }));
}

/// The last value of a parameter; empty where it is absent.
fn parameter(query: Option<&str>, name: &str) -> String {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.filter(|(n, _)| n == name).last().map_or_else(String::new, |(_, value)| value.into_owned())
}

async fn ping(RawQuery(query): RawQuery) -> Response {
    match parameter(query.as_deref(), "verbose").as_str() {
        "" | "0" | "false" => StatusCode::NO_CONTENT.into_response(),
        _ => json_value(StatusCode::OK, &json!({"version": env!("CARGO_PKG_VERSION")})),
    }
}

async fn health(headers: HeaderMap) -> Response {
    let accept = text_of(&headers, &header::ACCEPT);
    if accept.contains("text/plain") && !accept.contains("application/json") {
        return "OK".into_response();
    }
    json_value(
        StatusCode::OK,
        &json!({
            "name": "alluvium",
            "message": "ready for queries and writes",
            "status": "pass",
            "version": env!("CARGO_PKG_VERSION"),
            "checks": [],
        }),
    )
}

async fn ready(State(ingest): State<Arc<Ingest>>) -> Response {
    if ingest.draining.load(Relaxed) {
        return json_value(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "draining"}));
    }
    let seconds = ingest.started.elapsed().as_secs();
    let up = format!("{}h{}m{}s", seconds / 3600, seconds / 60 % 60, seconds % 60);
    json_value(StatusCode::OK, &json!({"status": "ready", "up": up}))
}

/// Tells QuestDB's clients to speak version 1 of their protocol: plain text, no binary numbers.
async fn settings() -> Response {
    let config = json!({
        "release.type": "OSS",
        "release.version": env!("CARGO_PKG_VERSION"),
        "line.proto.support.versions": [1],
        "line.proto.transports": ["http"],
        "cairo.max.file.name.length": model::schema::MAX_NAME_BYTES,
    });
    json_value(StatusCode::OK, &json!({"config": config}))
}

/// InfluxDB 1's `/query`: parameters from the URL, and from a form in the body.
async fn query(State(ingest): State<Arc<Ingest>>, request: Request) -> Response {
    let id = request.extensions().get().copied().unwrap_or_else(|| ingest.request_ids.next());
    let (head, mut body) = request.into_parts();
    let mut form = Bytes::new();
    if text_of(&head.headers, &header::CONTENT_TYPE).starts_with("application/x-www-form-urlencoded") {
        form = match read_small(&ingest, &mut body).await {
            Ok(form) => form,
            Err(error) => return refusal(Dialect::InfluxV1, &error, id),
        };
    }
    let (mut q, mut database) = (String::new(), String::new());
    for source in [head.uri.query().unwrap_or_default().as_bytes(), &form] {
        if let Err(error) = check_encoding(source) {
            return refusal(Dialect::InfluxV1, &error, id);
        }
        for (name, value) in form_urlencoded::parse(source).filter(|(_, value)| !value.is_empty()) {
            match &*name {
                "q" => q = value.into_owned(),
                "db" => database = value.into_owned(),
                _ => {}
            }
        }
    }
    if q.is_empty() {
        return bad_query("missing required parameter \"q\"", id);
    }
    if database.is_empty() {
        database = model::schema::DEFAULT_DATABASE.to_owned();
    }
    let statements = match Statement::read(&q) {
        Ok(statements) => statements,
        Err(why) => return bad_query(&why, id),
    };
    let access: Access = head.extensions.get().cloned().unwrap_or_default();
    for statement in &statements {
        if let Some((permission, database)) = statement.needs(&database)
            && let Err(forbidden) = access.check(permission, Some(database))
        {
            return refusal(Dialect::InfluxV1, &forbidden.into(), id);
        }
    }
    let mut results = Vec::with_capacity(statements.len());
    for (number, statement) in statements.into_iter().enumerate() {
        let mut result = json!({"statement_id": number});
        match run(&ingest, statement, &database, &access).await {
            Ok(series) if series.is_empty() => {}
            Ok(series) => result["series"] = Value::Array(series),
            Err(Failed::Statement(why)) => result["error"] = Value::String(why),
            Err(Failed::Request(error)) => return refusal(Dialect::InfluxV1, &error, id),
        }
        results.push(result);
    }
    json_value(StatusCode::OK, &json!({"results": results}))
}

fn bad_query(why: &str, id: RequestId) -> Response {
    json_answer(StatusCode::BAD_REQUEST, answer::whole_request(Dialect::InfluxV1, "invalid", why, id))
}

/// Why a statement has no series.
enum Failed {
    /// It says something that cannot be; the others are still answered.
    Statement(String),
    /// The request as a whole must be sent again or is wrong.
    Request(Error),
}

async fn run(ingest: &Ingest, statement: Statement, database: &str, access: &Access) -> Result<Vec<Value>, Failed> {
    match statement {
        Statement::CreateDatabase { name, retention_ns } => {
            check_database_name(&name).map_err(|error| Failed::Statement(error.to_string()))?;
            if ingest.cluster.catalog().database(&name).is_none() {
                ingest.cluster.create_database(&name, None, retention_ns).await.map_err(|error| Failed::Request(error.into()))?;
            }
            Ok(Vec::new())
        }
        Statement::ShowDatabases => Ok(influx_compat::databases(&ingest.cluster.catalog(), access)),
        Statement::Show { what, database: on, tables, limit, offset } => {
            let database = on.as_deref().unwrap_or(database);
            let catalog = ingest.cluster.catalog();
            let tag_values = matches!(what, Show::TagValues(_)).then(|| ingest.tag_values.get()).flatten();
            influx_compat::show(&catalog, database, &what, &tables, limit, offset, tag_values).await.map_err(Failed::Statement)
        }
    }
}

async fn read_small(ingest: &Ingest, body: &mut Body) -> Result<Bytes, Error> {
    let mut admitted = ingest.admission.admit(0)?;
    body::read(body, Encoding::Identity, SMALL_BODY_BYTES, &mut admitted).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewDatabase {
    db: String,
    retention_period: Option<String>,
}

impl NewDatabase {
    fn read(body: &[u8]) -> Result<NewDatabase, Error> {
        serde_json::from_slice(body).map_err(|error| {
            let what = if error.is_data() { format!("{error}; ") } else { String::new() };
            Error::BadBody { why: format!("{what}expected {{\"db\": \"name\"}}, with \"retention_period\": \"7d\" where rows expire") }
        })
    }

    /// How long rows are kept; `None` is for ever.
    fn retention_ns(&self) -> Result<Option<i64>, Error> {
        let Some(text) = self.retention_period.as_deref().filter(|text| !text.eq_ignore_ascii_case("none")) else { return Ok(None) };
        let span = humantime::parse_duration(text).ok().and_then(|span| i64::try_from(span.as_nanos()).ok());
        let span = span.filter(|ns| *ns > 0).ok_or_else(|| Error::BadParameter {
            name: "retention_period",
            value: cut(text, 64).to_owned(),
            allowed: "write a span of time such as 7d, 12h or 1month, or none",
        })?;
        Ok(Some(span))
    }
}

async fn create_database(State(ingest): State<Arc<Ingest>>, request: Request) -> Response {
    let id = request.extensions().get().copied().unwrap_or_else(|| ingest.request_ids.next());
    let access: Access = request.extensions().get().cloned().unwrap_or_default();
    let created = async {
        let body = read_small(&ingest, &mut request.into_body()).await?;
        let new = NewDatabase::read(&body)?;
        access.check(Permission::Write, Some(&new.db))?;
        check_database_name(&new.db)?;
        let retention_ns = new.retention_ns()?;
        match ingest.cluster.catalog().database(&new.db) {
            Some(there) => Err(cluster::Error::DatabaseExists { name: new.db, routing_tag: there.routing_tag.to_string() })?,
            None => Ok(ingest.cluster.create_database(&new.db, None, retention_ns).await?),
        }
    };
    match created.await {
        Ok(_) => StatusCode::OK.into_response(),
        Err(error) => refusal(Dialect::InfluxV3, &error, id),
    }
}

/// Those that its asker may do something with.
async fn list_databases(State(ingest): State<Arc<Ingest>>, request: Request) -> Response {
    let access: Access = request.extensions().get().cloned().unwrap_or_default();
    let catalog = ingest.cluster.catalog();
    let seen = catalog.databases.keys().filter(|name| access.only_database().is_none_or(|only| only == *name));
    let names: Vec<Value> = seen.map(|name| json!({"iox::database": name})).collect();
    json_value(StatusCode::OK, &Value::Array(names))
}

async fn drop_database(State(ingest): State<Arc<Ingest>>, request: Request) -> Response {
    let id = request.extensions().get().copied().unwrap_or_else(|| ingest.request_ids.next());
    if let Err(error) = check_encoding(request.uri().query().unwrap_or_default().as_bytes()) {
        return refusal(Dialect::InfluxV3, &error, id);
    }
    let old = parameter(request.uri().query(), "db");
    if old.is_empty() {
        let error = Error::BadParameter { name: "db", value: old, allowed: "name the database to drop" };
        return refusal(Dialect::InfluxV3, &error, id);
    }
    if let Some(Err(forbidden)) = request.extensions().get().map(|a: &Access| a.check(Permission::Admin, Some(&old))) {
        return refusal(Dialect::InfluxV3, &forbidden.into(), id);
    }
    match ingest.cluster.drop_database(&old).await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(error) => refusal(Dialect::InfluxV3, &error.into(), id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_told_from_lines() {
        for json in ["{}", "[]", " \n{\"a\":1}", "[{\"values\":[1]}]", "{\"a\":1}\n{\"b\":2}\n"] {
            assert!(refuse_json(json.as_bytes()).is_err(), "{json}");
        }
        for lines in ["", "cpu v=1", "{} v=1", "{\"a\":1} v=1", "[1],host=a v=1", "{", "\"{}\" v=1"] {
            assert!(refuse_json(lines.as_bytes()).is_ok(), "{lines}");
        }
    }

    #[test]
    fn types_that_cannot_be_lines_are_named() {
        let with = |kind: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            refuse_other_types(&headers)
        };
        for kind in ["text/plain; charset=utf-8", "application/octet-stream", "application/x-www-form-urlencoded", ""] {
            assert!(with(kind).is_ok(), "{kind}");
        }
        for kind in [
            "text/plain; charset=UTF-8",
            "text/plain;charset=\"utf-8\"",
            "text/plain; format=flowed; Charset=us-ascii",
            "text/plain; charset=",
        ] {
            assert!(with(kind).is_ok(), "{kind}");
        }
        for kind in ["text/plain; charset=utf-16", "text/plain;format=flowed;charset=\"UTF-16\"", "text/plain; CHARSET=iso-8859-1"] {
            assert!(matches!(with(kind), Err(Error::Charset { .. })), "{kind}");
        }
        for kind in ["application/grpc", "application/grpc-web+proto"] {
            assert!(matches!(with(kind), Err(Error::NotLineProtocol { .. })), "{kind}");
        }
        let error = with("Application/JSON; charset=utf-8").unwrap_err();
        assert_eq!(
            error.to_string(),
            "a body of type 'application/json' is not line protocol: send lines like table,tag=value field=1.5 1700000000000000000"
        );
    }
}
