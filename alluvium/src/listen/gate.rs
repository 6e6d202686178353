//! Who may come in.
//!
//! While there are no tokens, whoever names no foreign host may do everything, on loopback and nowhere else. As soon
//! as there is one, every request but a probe's shows a token: `Authorization: Bearer T`, `Token T` or `Basic any:T`, or
//! `?p=T` where InfluxDB 1's clients put it, which then counts whatever the header says. What a token allows is checked by whoever knows the request's database; the
//! gate leaves an [`Access`] among the request's extensions.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cluster::{Access, Cluster, Forbidden, Permission, Token};
use http::{HeaderMap, Request, header};
use thiserror::Error;

use super::hosts::{Foreign, Hosts};
use super::routes::{self, Needs};

/// Why a request does not come in.
#[derive(Debug, Error)]
pub enum Refusal {
    /// It names its host twice.
    #[error("a request has one Host header, this one has {count}")]
    Hosts {
        /// How often.
        count: usize,
    },
    /// It names a foreign host or page.
    #[error(transparent)]
    Foreign(#[from] Foreign),
    /// It shows no token.
    #[error("this server wants an access token: send 'Authorization: Bearer TOKEN' (or Token TOKEN, or Basic with it as the password)")]
    NoToken,
    /// It shows a token that nobody made, or that was revoked.
    #[error("the access token is unknown")]
    UnknownToken,
    /// Its token is known and not enough.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// There is nothing at its path.
    #[error("there is nothing at {path}")]
    Nowhere {
        /// The path.
        path: String,
    },
}

/// What a node asks of those who come in.
pub struct Gate {
    cluster: Arc<Cluster>,
    /// Tokens given to this node alone, beside those that the cluster knows.
    outside: Vec<Arc<Token>>,
    hosts: Hosts,
    /// Whether nobody but this machine reaches the port: only then may there be no tokens.
    is_loopback: bool,
}

impl Gate {
    /// A gate for the cluster's tokens and those given to this node from outside; `hosts` are this node's names.
    pub fn new(cluster: Arc<Cluster>, outside: Vec<Arc<Token>>, hosts: Hosts, is_loopback: bool) -> Gate {
        Gate { cluster, outside, hosts, is_loopback }
    }

    /// What the request's sender may do, or why it is not answered.
    pub(super) fn admit<B>(&self, request: &Request<B>) -> Result<Access, Refusal> {
        let path = request.uri().path();
        let count = request.headers().get_all(header::HOST).iter().count();
        if count > 1 {
            return Err(Refusal::Hosts { count });
        }
        let open = self.is_loopback && self.outside.is_empty() && !self.cluster.has_tokens();
        if open {
            self.hosts.check(request)?;
        }
        let Some((_, needs)) = routes::find(path) else { return Err(Refusal::Nowhere { path: path.to_owned() }) };
        if open || needs == Needs::Nothing {
            return Ok(Access::Everything);
        }
        let secret = shown(request.headers(), path, request.uri().query().unwrap_or_default()).ok_or(Refusal::NoToken)?;
        let access = Access::Token(self.find(&secret).ok_or(Refusal::UnknownToken)?);
        if needs == Needs::AdminOfAll {
            access.check(Permission::Admin, None)?;
        }
        Ok(access)
    }

    fn find(&self, secret: &str) -> Option<Arc<Token>> {
        let hash = cluster::TokenHash::of(secret);
        let outside = self.outside.iter().fold(None, |found, token| if token.hash.matches(&hash) { Some(token) } else { found });
        outside.cloned().or_else(|| self.cluster.authorize(secret))
    }
}

/// The token that a request shows, wherever it does.
fn shown<'a>(headers: &'a HeaderMap, path: &str, query: &'a str) -> Option<Cow<'a, str>> {
    if matches!(path, "/write" | "/query") {
        let mut pairs = form_urlencoded::parse(query.as_bytes());
        if let Some((_, password)) = pairs.find(|(name, value)| name == "p" && !value.is_empty()) {
            return Some(password);
        }
    }
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, rest) = value.to_str().ok()?.trim().split_once(' ')?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("token") {
            // InfluxDB 1's clients send `Token user:password`.
            return Some(rest.rsplit_once(':').map_or(rest, |(_, password)| password).into());
        }
        if scheme.eq_ignore_ascii_case("basic") {
            let pair = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
            return pair.rsplit_once(':').map(|(_, password)| password.to_owned().into());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn by_header(value: &'static str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
        shown(&headers, "/sql", "").map(Cow::into_owned)
    }

    #[test]
    fn a_token_is_found_wherever_clients_put_it() {
        for value in ["Bearer T1", "bearer  T1", "Token T1", "token T1", "Token user:T1", "Basic YW55OlQx", "BASIC OlQx", "Basic YTpiOlQx"]
        {
            assert_eq!(by_header(value).as_deref(), Some("T1"), "{value}");
        }
        for value in ["T1", "Digest T1", "Basic T1", "Basic YW55", ""] {
            assert_eq!(by_header(value), None, "{value}");
        }
        let none = HeaderMap::new();
        for path in ["/write", "/query"] {
            assert_eq!(shown(&none, path, "db=d&u=any&p=T%2B1").as_deref(), Some("T+1"));
            assert_eq!(shown(&none, path, "db=d&u=any&p="), None);
        }
        assert_eq!(shown(&none, "/sql", "p=T1"), None);
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer other"));
        for (path, query, token) in
            [("/write", "u=any&p=T1", "T1"), ("/query", "p=T1", "T1"), ("/write", "p=", "other"), ("/api/v2/write", "p=T1", "other")]
        {
            assert_eq!(shown(&headers, path, query).as_deref(), Some(token), "{path}?{query}");
        }
    }
}
