//! The little HTTP client of the commands: one server, with TLS or without, answers as streams.
//!
//! It retries nothing; who may send again, and what, is the command's business. An answer that breaks off in the middle
//! is an error, never a shorter answer.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use simulator::connect::{Connector, certificate_advice, reason};

use crate::tls;

/// Where the server is, and who asks.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// The server
    #[arg(long, env = "ALLUVIUM_URL", value_name = "URL", default_value = "http://127.0.0.1:2558")]
    pub url: String,

    /// The database
    #[arg(long, env = "ALLUVIUM_DB", value_name = "NAME", default_value = "default")]
    pub db: String,

    /// Access token, where the server wants one
    #[arg(long, env = "ALLUVIUM_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// Authorities that may vouch for an https server, PEM [default: the system's]
    #[arg(long, env = "ALLUVIUM_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

/// Errors and small answers are read whole, up to this.
const SMALL_ANSWER_BYTES: usize = 16 << 20;

/// A server that can be asked; connections are kept and used again.
#[derive(Clone)]
pub struct Client {
    http: HyperClient<Connector, Full<Bytes>>,
    base: String,
    /// The database that requests are about.
    pub db: String,
    /// How long SQL may take, if not as long as the server gives it.
    pub timeout: Option<Duration>,
    token: Option<String>,
}

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text that names no server.
    #[error("'{url}' is no address of a server: {why}; write it like http://127.0.0.1:2558")]
    BadAddress {
        /// The text.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// An https address, and nobody to trust.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// Nobody answers there.
    #[error("could not reach {url}: {why}\n  is a server running there? 'alluvium serve' starts one; --url or ALLUVIUM_URL names another")]
    Unreachable {
        /// The server's address.
        url: String,
        /// The system's reason.
        why: String,
    },
    /// Its certificate is not accepted.
    #[error("could not trust {url}: {why}\n  {advice}")]
    Untrusted {
        /// The server's address.
        url: String,
        /// What is wrong with the certificate.
        why: String,
        /// What helps.
        advice: &'static str,
    },
    /// The connection ended before there was an answer: what became of the request is not known.
    #[error("the connection to {url} broke: {why}")]
    Broke {
        /// The server's address.
        url: String,
        /// The reason.
        why: String,
    },
    /// The answer ended in the middle.
    #[error("the answer broke off: {0}")]
    BrokeOff(String),
    /// The server did not do it.
    #[error(transparent)]
    Refused(Refused),
}

/// What the server said when it did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{message}{}", what_to_do(*status))]
pub struct Refused {
    /// The status.
    pub status: StatusCode,
    /// `Retry-After`, if it was sent.
    pub retry_after: Option<Duration>,
    /// The server's sentence.
    pub message: String,
    /// The whole body, as the server sent it.
    pub body: Bytes,
}

/// The status behind the server's sentence, and what helps against it here.
fn what_to_do(status: StatusCode) -> String {
    match status {
        StatusCode::BAD_REQUEST => String::new(),
        StatusCode::UNAUTHORIZED => " (HTTP 401)\n  here: --token TOKEN or ALLUVIUM_TOKEN".to_owned(),
        other => format!(" (HTTP {})", other.as_u16()),
    }
}

impl Client {
    /// A client of the server at `args.url`; connects on the first request.
    pub fn new(args: &ServerArgs) -> Result<Client, Error> {
        let base = base_of(&args.url)?;
        let trusted = if base.starts_with("https:") { Some(tls::trust(args.ca_file.as_deref())?) } else { None };
        let http = HyperClient::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(Connector::new(trusted));
        Ok(Client { http, base, db: args.db.clone(), timeout: None, token: args.token.clone() })
    }

    /// The server's address, as shown to people.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// Sends a request and gives the answer if it is a success, as it begins.
    ///
    /// `parameters` are encoded into the URL.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        parameters: &[(&str, &str)],
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Response<Incoming>, Error> {
        let query: String = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        let uri = if query.is_empty() { format!("{}{path}", self.base) } else { format!("{}{path}?{query}", self.base) };
        let mut request =
            Request::builder().method(method).uri(&uri).header(header::USER_AGENT, concat!("alluvium/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let wrong = |e: http::Error| Error::BadAddress { url: uri.clone(), why: e.to_string() };
        let request = request.body(Full::new(body.into())).map_err(wrong)?;
        let answer = self.http.request(request).await.map_err(|e| self.not_sent(e))?;
        if answer.status().is_success() { Ok(answer) } else { Err(Error::Refused(refusal(answer).await?)) }
    }

    /// Sends SQL; the answer's body is the rows in `format`.
    pub async fn sql(&self, sql: &str, format: &str) -> Result<Response<Incoming>, Error> {
        // What is empty counts as absent.
        let timeout = self.timeout.map(|timeout| format!("{}ms", timeout.as_millis().max(1))).unwrap_or_default();
        let parameters = [("db", self.db.as_str()), ("format", format), ("timeout", &timeout)];
        // Figures of a long answer come after its rows, to those who say that they read them.
        let headers = [("content-type", "application/sql"), ("te", "trailers")];
        self.send(Method::POST, "/sql", &parameters, &headers, sql.to_owned()).await
    }

    fn not_sent(&self, error: hyper_util::client::legacy::Error) -> Error {
        let (url, why) = (self.base.clone(), reason(&error));
        match certificate_advice(&error) {
            Some(advice) => Error::Untrusted { url, why, advice },
            None if error.is_connect() => Error::Unreachable { url, why },
            None => Error::Broke { url, why },
        }
    }
}

/// The small body of an answer, whole.
pub async fn whole(answer: Response<Incoming>) -> Result<Bytes, Error> {
    let body = Limited::new(answer.into_body(), SMALL_ANSWER_BYTES).collect().await;
    body.map(|b| b.to_bytes()).map_err(|e| Error::BrokeOff(e.to_string()))
}

async fn refusal(answer: Response<Incoming>) -> Result<Refused, Error> {
    let status = answer.status();
    let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let body = whole(answer).await?;
    Ok(Refused { status, retry_after: retry_after.map(Duration::from_secs), message: sentence(status, &body), body })
}

/// The server's sentence: `message` or `error` of a JSON body, or a plain body, or the status' name.
fn sentence(status: StatusCode, body: &[u8]) -> String {
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let field = |name| json.as_ref().and_then(|j| j.get(name)).and_then(|v| v.as_str()).filter(|s| !s.is_empty());
    if let Some(words) = field("message").or_else(|| field("error")) {
        return words.to_owned();
    }
    match std::str::from_utf8(body).map(str::trim) {
        Ok(text) if !text.is_empty() => text.to_owned(),
        _ => status.canonical_reason().unwrap_or("refused").to_owned(),
    }
}

/// `http://host:port` of what people type: with or without the scheme, with or without a slash at the end.
fn base_of(url: &str) -> Result<String, Error> {
    let wrong = |why: &str| Error::BadAddress { url: url.to_owned(), why: why.to_owned() };
    let with_scheme = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let uri: Uri = with_scheme.parse().map_err(|e| wrong(&format!("{e}")))?;
    let scheme = uri.scheme_str().filter(|s| matches!(*s, "http" | "https")).ok_or_else(|| wrong("only http and https are spoken"))?;
    let authority = uri.authority().filter(|a| !a.host().is_empty()).ok_or_else(|| wrong("it names no host"))?;
    Ok(format!("{scheme}://{authority}{}", uri.path().trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_people_type_them() {
        for (typed, base) in [
            ("http://127.0.0.1:2558", "http://127.0.0.1:2558"),
            ("localhost:2558/", "http://localhost:2558"),
            ("[::1]:2558", "http://[::1]:2558"),
            ("http://gate/alluvium/", "http://gate/alluvium"),
            ("https://gate:443", "https://gate:443"),
        ] {
            assert_eq!(base_of(typed).unwrap(), base);
        }
        for wrong in ["", "http://", "ftp://x", "a b"] {
            assert!(base_of(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_servers_sentence_is_found_in_every_shape() {
        let of = |body: &str| sentence(StatusCode::BAD_REQUEST, body.as_bytes());
        assert_eq!(of(r#"{"code":"invalid","message":"no such table","error":"x"}"#), "no such table");
        assert_eq!(of(r#"{"error":"database is required"}"#), "database is required");
        assert_eq!(of("plain words\n"), "plain words");
        assert_eq!(of(""), "Bad Request");
    }
}
