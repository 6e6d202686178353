//! The doors `/sql` and `/api/v3/query_sql`: a request becomes a question, an answer becomes bytes, an error becomes a status.
//!
//! Nothing is sent before the first rows are there, so that most errors have their status. After the first byte an error
//! aborts the transfer (the body ends in an error, hyper resets the stream): an answer that ended properly is whole. A
//! small answer is sent in one piece with its figures in headers; a large one carries them as trailers for whoever asked
//! for trailers (`TE: trailers`), and in `system.queries`. What it lacks and how old it is, as far as that is known, stand in
//! its headers whatever its size; if another shard turns out to be missing later, the transfer is aborted.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use flate2::read::MultiGzDecoder;
use http::header::{ACCEPT, ALLOW, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, TRAILER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::StreamBody;
use hyper::body::Frame;
use model::schema::DEFAULT_DATABASE;
use model::{ErrorKind, ShardId};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::answer::{Answer, Summary, Task, overdue};
use crate::engine::{Consistency, Engine, Parameter, Partial, RunOptions, Verbs};
use crate::error::Error;
use crate::formats::{Encoder, Format, preferred};
use crate::scope::Lag;

/// Bytes of an answer that are held back for its figures; a larger one is sent while it is made.
const WHOLE_BYTES: usize = 64 << 10;
/// Bytes of one piece of a large answer.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces that wait for a slow reader.
const WAITING_PIECES: usize = 4;

const QUERY_ID: HeaderName = HeaderName::from_static("alluvium-query-id");
const ROWS: HeaderName = HeaderName::from_static("alluvium-rows");
const ROWS_SCANNED: HeaderName = HeaderName::from_static("alluvium-rows-scanned");
const SHARDS: HeaderName = HeaderName::from_static("alluvium-shards");
const ELAPSED: HeaderName = HeaderName::from_static("alluvium-elapsed-us");
const PARTIAL: HeaderName = HeaderName::from_static("alluvium-partial");
const LAG: HeaderName = HeaderName::from_static("alluvium-lag");

/// The routes of this crate.
pub fn router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/sql", get(sql).post(sql).fallback(other_method))
        .route("/api/v3/query_sql", get(query_sql).post(query_sql).fallback(other_method))
        .with_state(engine)
}

async fn other_method(headers: HeaderMap) -> Response {
    let message = "send SQL with POST, or a question with GET";
    let mut response = error_response(StatusCode::METHOD_NOT_ALLOWED, message, None, request_id(&headers));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
    response
}

/// What a request says, wherever it says it.
#[derive(Default)]
struct Asked {
    database: Option<String>,
    sql: Option<String>,
    format: Option<String>,
    timeout: Option<String>,
    partial: Option<String>,
    consistency: Option<String>,
    max_lag: Option<String>,
    parameters: Option<Value>,
}

/// A request that cannot be understood.
struct Bad(StatusCode, String);

impl Asked {
    /// From `a=b&c=d`. Empty values count as absent, unknown names are somebody else's.
    fn pairs(&mut self, text: &[u8]) -> Result<(), Bad> {
        for (name, value) in form_urlencoded::parse(text) {
            if value.is_empty() {
                continue;
            }
            match &*name {
                "db" | "database" | "bucket" => self.database = Some(value.into_owned()),
                "q" | "sql" | "query" => self.sql = Some(value.into_owned()),
                "format" => self.format = Some(value.into_owned()),
                "timeout" => self.timeout = Some(value.into_owned()),
                "partial" => self.partial = Some(value.into_owned()),
                "consistency" => self.consistency = Some(value.into_owned()),
                "max_lag" => self.max_lag = Some(value.into_owned()),
                "params" => {
                    let params =
                        serde_json::from_str(&value).map_err(|e| Bad(StatusCode::BAD_REQUEST, format!("params is no JSON object: {e}")))?;
                    self.parameters = Some(params);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// From InfluxDB 3's JSON body.
    fn json(&mut self, body: &[u8]) -> Result<(), Bad> {
        let bad = |what: String| Bad(StatusCode::BAD_REQUEST, what);
        let value: Value = serde_json::from_slice(body).map_err(|e| bad(format!("the body is no JSON: {e}")))?;
        let Value::Object(fields) = value else { return Err(bad("the body is no JSON object".to_owned())) };
        for (name, value) in fields {
            match (name.as_str(), value) {
                (_, Value::Null) => {}
                ("params", value) => self.parameters = Some(value),
                ("db" | "database", Value::String(s)) => self.database = Some(s),
                ("q" | "query", Value::String(s)) => self.sql = Some(s),
                ("format", Value::String(s)) => self.format = Some(s),
                ("timeout", Value::String(s)) => self.timeout = Some(s),
                ("partial", Value::String(s)) => self.partial = Some(s),
                ("consistency", Value::String(s)) => self.consistency = Some(s),
                ("max_lag", Value::String(s)) => self.max_lag = Some(s),
                ("db" | "database" | "q" | "query" | "format" | "timeout" | "partial" | "consistency" | "max_lag", other) => {
                    return Err(bad(format!("{name} must be a string, not {other}")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn format(&self, headers: &HeaderMap) -> Result<Format, Bad> {
        if let Some(name) = &self.format {
            return Format::named(name)
                .ok_or_else(|| Bad(StatusCode::BAD_REQUEST, format!("unknown format {name}: json, jsonl, csv, parquet, arrow, table")));
        }
        let accepted: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
        Ok(preferred(&accepted.join(",")))
    }

    fn options(&self, method: &Method) -> Result<RunOptions, Bad> {
        let bad = |what: String| Bad(StatusCode::BAD_REQUEST, what);
        let timeout = match &self.timeout {
            None => None,
            Some(text) => Some(span(text).ok_or_else(|| bad(format!("timeout {text} is no span of time such as 5s or 500ms")))?),
        };
        let max_lag = match &self.max_lag {
            None => None,
            Some(text) => Some(span(text).ok_or_else(|| bad(format!("max_lag {text} is no span of time such as 5s or 2h")))?),
        };
        let partial = match self.partial.as_deref() {
            None | Some("refuse") => Partial::Refuse,
            Some("allow") => Partial::Allow,
            Some(other) => return Err(bad(format!("partial={other} is neither allow nor refuse"))),
        };
        if let Some(other) = self.consistency.as_deref().filter(|c| !matches!(*c, "stale" | "strong")) {
            return Err(bad(format!("consistency={other} is neither stale nor strong")));
        }
        if max_lag.is_some() && self.consistency.as_deref() != Some("stale") {
            return Err(bad("max_lag is for consistency=stale: what is read otherwise is never old".to_owned()));
        }
        let parameters = match &self.parameters {
            None => BTreeMap::new(),
            Some(Value::Object(fields)) => fields
                .iter()
                .map(|(name, value)| Ok((name.trim_start_matches('$').to_owned(), parameter(name, value)?)))
                .collect::<Result<_, Bad>>()?,
            Some(_) => return Err(bad("params is no JSON object".to_owned())),
        };
        let verbs = if method == Method::POST { Verbs::AskAndChange } else { Verbs::Ask };
        let consistency = match self.consistency.as_deref() {
            Some("stale") => Consistency::Stale,
            _ => Consistency::Linearizable,
        };
        Ok(RunOptions { timeout, parameters, partial, verbs, consistency, max_lag, ..RunOptions::default() })
    }
}

/// `5s`, `500ms`, or a number of seconds.
fn span(text: &str) -> Option<Duration> {
    if let Some(nanoseconds) = crate::time_bucket::nanoseconds(text) {
        return Some(Duration::from_nanos(nanoseconds as u64));
    }
    text.parse().ok().filter(|s: &f64| *s > 0.0).and_then(|s| Duration::try_from_secs_f64(s).ok())
}

fn parameter(name: &str, value: &Value) -> Result<Parameter, Bad> {
    Ok(match value {
        Value::Null => Parameter::Null,
        Value::Bool(b) => Parameter::Bool(*b),
        Value::String(s) => Parameter::Text(s.clone()),
        Value::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(i), _, _) => Parameter::Int(i),
            (None, Some(u), _) => Parameter::UInt(u),
            (None, None, Some(f)) => Parameter::Float(f),
            (None, None, None) => return Err(Bad(StatusCode::BAD_REQUEST, format!("parameter {name} is no number that SQL has"))),
        },
        Value::Array(_) | Value::Object(_) => {
            return Err(Bad(StatusCode::BAD_REQUEST, format!("parameter {name} must be a string, number, boolean or null")));
        }
    })
}

/// `GET /sql?q=`, `POST /sql` with the statement as body, whatever its content type.
async fn sql(State(engine): State<Arc<Engine>>, RawQuery(query): RawQuery, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let asked = async {
        let mut asked = Asked::default();
        asked.pairs(query.unwrap_or_default().as_bytes())?;
        let body = read(&engine, &head.headers, body).await?;
        // curl sends a form by default; a statement never begins with `q=`.
        if body.starts_with(b"q=") {
            asked.pairs(&body)?;
        } else if !body.is_empty() {
            asked.sql = Some(utf8(&body)?);
        }
        Ok(asked)
    };
    answer(&engine, &head, asked.await).await
}

/// InfluxDB 3's door: parameters in the query string, a JSON body or a form.
async fn query_sql(State(engine): State<Arc<Engine>>, RawQuery(query): RawQuery, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let asked = async {
        let mut asked = Asked::default();
        asked.pairs(query.unwrap_or_default().as_bytes())?;
        let body = read(&engine, &head.headers, body).await?;
        let kind = head.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        if kind.starts_with("application/x-www-form-urlencoded") && !body.trim_ascii_start().starts_with(b"{") {
            asked.pairs(&body)?;
        } else if !body.is_empty() {
            asked.json(&body)?;
        }
        Ok(asked)
    };
    answer(&engine, &head, asked.await).await
}

/// The whole body, inflated, as far as a statement may be long (a JSON body may need twice that for its escapes).
async fn read(engine: &Engine, headers: &HeaderMap, body: Body) -> Result<Bytes, Bad> {
    let is_gzip = is_gzip(headers)?;
    let limit = engine.max_sql_bytes();
    let most = 2 * limit + (64 << 10);
    let too_long =
        || Bad(StatusCode::BAD_REQUEST, format!("the statement is too long, the limit is {limit} bytes (setting query_max_sql_bytes)"));
    let sent = axum::body::to_bytes(body, most).await.map_err(|e| {
        let mut source: &dyn std::error::Error = &e;
        while let Some(inner) = source.source() {
            source = inner;
        }
        match source.is::<http_body_util::LengthLimitError>() {
            true => too_long(),
            false => Bad(StatusCode::BAD_REQUEST, format!("the body could not be read: {source}")),
        }
    })?;
    if !is_gzip || sent.is_empty() {
        return Ok(sent);
    }
    let mut inflated = Vec::new();
    let read = MultiGzDecoder::new(&sent[..]).take(most as u64 + 1).read_to_end(&mut inflated);
    read.map_err(|e| Bad(StatusCode::BAD_REQUEST, format!("the body could not be read: gzip: {e}")))?;
    if inflated.len() > most { Err(too_long()) } else { Ok(inflated.into()) }
}

/// Whether the body is compressed; by gzip or not at all, as that of a write.
fn is_gzip(headers: &HeaderMap) -> Result<bool, Bad> {
    let encoding = headers.get(CONTENT_ENCODING).map(|v| String::from_utf8_lossy(v.as_bytes()).trim().to_ascii_lowercase());
    match encoding.as_deref() {
        None | Some("" | "identity") => Ok(false),
        Some("gzip" | "x-gzip") => Ok(true),
        Some(other) => {
            let other: String = other.chars().take(64).collect();
            let message = format!("content encoding '{other}' is not supported: send gzip or no encoding");
            Err(Bad(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
        }
    }
}

fn utf8(body: &[u8]) -> Result<String, Bad> {
    let text = std::str::from_utf8(body).map_err(|e| Bad(StatusCode::BAD_REQUEST, format!("the statement is no UTF-8: {e}")))?;
    Ok(text.to_owned())
}

/// The number that the listener gave the request; empty where none did.
fn request_id(headers: &HeaderMap) -> &str {
    headers.get("x-request-id").and_then(|v| v.to_str().ok()).unwrap_or_default()
}

/// Runs what was asked and sends its first bytes, or its error.
async fn answer(engine: &Engine, head: &http::request::Parts, asked: Result<Asked, Bad>) -> Response {
    let error_id = request_id(&head.headers);
    match begin(engine, head, asked).await {
        Ok(response) => response,
        Err(Failed::Bad(Bad(status, message))) => error_response(status, &message, None, error_id),
        Err(Failed::Query(e)) => query_error(&e, error_id),
    }
}

enum Failed {
    Bad(Bad),
    Query(Error),
}

impl From<Bad> for Failed {
    fn from(bad: Bad) -> Failed {
        Failed::Bad(bad)
    }
}

impl From<Error> for Failed {
    fn from(e: Error) -> Failed {
        Failed::Query(e)
    }
}

async fn begin(engine: &Engine, head: &http::request::Parts, asked: Result<Asked, Bad>) -> Result<Response, Failed> {
    let asked = asked?;
    let format = asked.format(&head.headers)?;
    let access = head.extensions.get().cloned().unwrap_or_default();
    let options = RunOptions { access, ..asked.options(&head.method)? };
    let database = asked.database.as_deref().unwrap_or(DEFAULT_DATABASE);
    let Some(sql) = &asked.sql else {
        let how = "no statement: POST it as the body of /sql, or give it as ?q=";
        return Err(Bad(StatusCode::BAD_REQUEST, how.to_owned()).into());
    };
    let answer = engine.run(database, sql, options).await?;
    let encoder = format.encoder(answer.schema())?;
    let (pieces, mut receiver) = mpsc::channel(WAITING_PIECES);
    let (id, scope) = (answer.id(), answer.scope().clone());
    let writer = Task(engine.handle().spawn(write(answer, encoder, pieces)));
    let mut first = Vec::new();
    let mut response = loop {
        match receiver.recv().await {
            Some(Piece::Bytes(bytes)) => {
                first.extend(bytes);
                if first.len() > WHOLE_BYTES {
                    let mut response = Response::new(streamed(first, receiver, writer));
                    say_missing(&scope.tell_missing(), response.headers_mut());
                    say_lag(scope.lag(), response.headers_mut());
                    break response;
                }
            }
            Some(Piece::End(summary)) => {
                let mut response = Response::new(Body::from(first));
                figures(&summary, response.headers_mut());
                break response;
            }
            Some(Piece::Failed(e)) => return Err(e.into()),
            None => return Err(Error::Engine { message: "the answer broke off".to_owned() }.into()),
        }
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    headers.insert(QUERY_ID, id.into());
    if !headers.contains_key(ROWS_SCANNED) {
        headers.insert(
            TRAILER,
            HeaderValue::from_static(
                "alluvium-rows, alluvium-rows-scanned, alluvium-shards, alluvium-elapsed-us, alluvium-partial, alluvium-lag",
            ),
        );
    }
    Ok(response)
}

/// What the writing task sends. Without `End` the answer is not whole.
enum Piece {
    Bytes(Vec<u8>),
    End(Summary),
    Failed(Error),
}

/// Encodes an answer, on the query threads. Whoever reads it has until the query's deadline, or until it is killed.
async fn write(mut answer: Answer, mut encoder: Box<dyn Encoder>, pieces: mpsc::Sender<Piece>) {
    let (scope, mut killed) = (answer.scope().clone(), answer.killed.clone());
    let mut send = async |piece: Piece| {
        tokio::select! {
            biased;
            sent = pieces.send(piece) => sent.is_ok(),
            _ = overdue(&scope.stop, &mut killed) => false,
        }
    };
    let mut waiting = Vec::new();
    let last = loop {
        let rows = match answer.next().await {
            Some(Ok(batch)) => encoder.rows(&batch),
            Some(Err(e)) => break Piece::Failed(e),
            None => match encoder.finish() {
                Ok(bytes) => {
                    waiting.extend(bytes);
                    if !send(Piece::Bytes(waiting)).await {
                        return;
                    }
                    break Piece::End(answer.summary());
                }
                Err(e) => break Piece::Failed(e),
            },
        };
        match rows {
            Ok(bytes) => waiting.extend(bytes),
            Err(e) => break Piece::Failed(e),
        }
        if waiting.len() >= PIECE_BYTES && !send(Piece::Bytes(std::mem::take(&mut waiting))).await {
            return;
        }
    };
    send(last).await; // Nobody may be there any more.
}

/// A body that is sent while it is made, and that ends in an error if the query does.
fn streamed(first: Vec<u8>, receiver: mpsc::Receiver<Piece>, writer: Task<()>) -> Body {
    let frames = futures::stream::unfold((Some(first), receiver, Some(writer)), |(first, mut receiver, writer)| async move {
        if let Some(first) = first {
            return Some((Ok(Frame::data(Bytes::from(first))), (None, receiver, writer)));
        }
        writer.as_ref()?;
        let broken = |message: String| Some(Err(std::io::Error::other(message)));
        let (frame, rest) = match receiver.recv().await {
            Some(Piece::Bytes(bytes)) => (Some(Ok(Frame::data(Bytes::from(bytes)))), writer),
            Some(Piece::End(summary)) => {
                let mut trailers = HeaderMap::new();
                figures(&summary, &mut trailers);
                (Some(Ok(Frame::trailers(trailers))), None)
            }
            Some(Piece::Failed(e)) => {
                sent_first().await;
                (broken(e.to_string()), None)
            }
            None => {
                sent_first().await;
                (broken("the answer broke off".to_owned()), None)
            }
        };
        frame.map(|frame| (frame, (None, receiver, rest)))
    });
    Body::new(StreamBody::new(frames))
}

/// Lets the connection send what it was given: it closes at an error, and must not do so before the head is sent.
async fn sent_first() {
    tokio::task::yield_now().await;
}

fn figures(summary: &Summary, headers: &mut HeaderMap) {
    headers.insert(ROWS, summary.rows.into());
    headers.insert(ROWS_SCANNED, summary.rows_scanned.into());
    headers.insert(SHARDS, summary.shards.into());
    headers.insert(ELAPSED, (summary.elapsed.as_micros() as u64).into());
    say_lag(summary.lag, headers);
    say_missing(&summary.missing, headers);
}

/// How old the answer is, in seconds.
fn say_lag(lag: Option<Lag>, headers: &mut HeaderMap) {
    let value = match lag {
        None => return,
        Some(Lag::Known(lag)) => HeaderValue::try_from(lag.as_secs_f64().to_string()).expect("digits"),
        Some(Lag::Unknown) => HeaderValue::from_static("unknown"),
    };
    headers.insert(LAG, value);
}

/// Which shards the answer lacks.
fn say_missing(missing: &[ShardId], headers: &mut HeaderMap) {
    if missing.is_empty() {
        return;
    }
    let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
    headers.insert(PARTIAL, HeaderValue::try_from(missing.join(",")).expect("digits and commas"));
}

fn query_error(e: &Error, error_id: &str) -> Response {
    let status = match e {
        Error::NoDatabase { .. } | Error::Cluster(cluster::Error::NoDatabase { .. }) => StatusCode::NOT_FOUND,
        Error::NoQuery { .. } => StatusCode::NOT_FOUND,
        Error::ReadOnly { .. } => StatusCode::METHOD_NOT_ALLOWED,
        Error::NotYet { .. } => StatusCode::NOT_IMPLEMENTED,
        Error::Deadline { .. } => StatusCode::REQUEST_TIMEOUT,
        Error::Forbidden(_) => StatusCode::FORBIDDEN,
        Error::TooMany { .. } | Error::TooManyOfToken { .. } => StatusCode::TOO_MANY_REQUESTS,
        Error::OverMemory { .. } => StatusCode::INSUFFICIENT_STORAGE,
        _ => match e.kind() {
            ErrorKind::YourRequest => StatusCode::BAD_REQUEST,
            ErrorKind::TryAgain => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Broken => StatusCode::INTERNAL_SERVER_ERROR,
        },
    };
    let mut response = error_response(status, &e.to_string(), e.place(), error_id);
    match status {
        StatusCode::METHOD_NOT_ALLOWED => drop(response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"))),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            drop(response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1")));
        }
        _ => {}
    }
    response
}

fn error_response(status: StatusCode, message: &str, place: Option<crate::error::Place>, error_id: &str) -> Response {
    let code = match status {
        StatusCode::FORBIDDEN => "forbidden",
        StatusCode::NOT_FOUND => "not found",
        StatusCode::METHOD_NOT_ALLOWED => "method not allowed",
        StatusCode::NOT_IMPLEMENTED => "not implemented",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported media type",
        StatusCode::REQUEST_TIMEOUT => "timeout",
        StatusCode::TOO_MANY_REQUESTS => "too many requests",
        StatusCode::SERVICE_UNAVAILABLE => "unavailable",
        StatusCode::INSUFFICIENT_STORAGE => "out of memory",
        StatusCode::INTERNAL_SERVER_ERROR => "internal error",
        _ => "invalid",
    };
    // The same body as at every other door: no line is 0. Only a place in a statement has a column.
    let mut body = json!({
        "code": code,
        "message": message,
        "error": message,
        "line": place.map_or(0, |p| p.line),
        "errorId": error_id,
        "data": [],
    });
    if let Some(place) = place {
        body["column"] = place.column.into();
    }
    (status, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
