//! By which names this node may be called while it has no access tokens.
//!
//! A browser on this machine can be made to send requests here by any web page, under a name that the page's owner points
//! at 127.0.0.1. Such a request carries that name as `Host`, or the page as `Origin`. Neither has a loopback name.

use std::net::IpAddr;

use http::{Request, header};
use thiserror::Error;

/// A request that names something foreign.
#[derive(Debug, Error)]
#[error(
    "{header} '{value}' is foreign: without access tokens this node only answers to its own name; call it http://127.0.0.1:PORT or http://localhost:PORT"
)]
pub struct Foreign {
    header: &'static str,
    value: String,
}

/// The names besides those of loopback.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    names: Vec<String>,
}

impl Hosts {
    /// `names` are hosts or `host:port`; the port does not matter.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Hosts {
        Hosts { names: names.into_iter().map(|name| host_of(name).to_ascii_lowercase()).filter(|name| !name.is_empty()).collect() }
    }

    /// Whether whoever sent the request may be answered.
    pub fn check<B>(&self, request: &Request<B>) -> Result<(), Foreign> {
        let headers = request.headers();
        if let Some(origin) = headers.get(header::ORIGIN) {
            let origin = origin.to_str().unwrap_or("?");
            // `null` is a page without an address: a file, a sandbox.
            if !origin.split_once("://").is_some_and(|(_, host)| self.is_own(host)) {
                return Err(Foreign { header: "Origin", value: origin.to_owned() });
            }
        }
        // HTTP/2 names the host in the address; where HTTP/1.1 does too, the header does not count (RFC 9112, 3.2.2).
        // HTTP/1.0 need not name it, but browsers do not speak that.
        let host = || headers.get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
        match request.uri().authority().map(|a| a.as_str()).or_else(host) {
            Some(host) if !self.is_own(host) => Err(Foreign { header: "Host", value: host.to_owned() }),
            _ => Ok(()),
        }
    }

    fn is_own(&self, authority: &str) -> bool {
        // An address may name a user before its host.
        let host = host_of(authority.rsplit_once('@').map_or(authority, |(_, host)| host));
        if host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) {
            return true;
        }
        self.names.iter().any(|name| name.eq_ignore_ascii_case(host))
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port` without port and brackets.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split_once(']').map_or("", |(host, _)| host);
    }
    match authority.rsplit_once(':') {
        // More than one colon: a bare IPv6 address.
        Some((host, _)) if !host.contains(':') => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(headers: &[(&str, &str)]) -> Result<(), String> {
        let mut request = Request::builder().uri("/write");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let hosts = Hosts::new(["telemetry.example:2558", ""]);
        hosts.check(&request.body(()).unwrap()).map_err(|foreign| foreign.header.to_owned())
    }

    #[test]
    fn own_names_are_answered() {
        for host in [
            "localhost",
            "LOCALHOST:2558",
            "127.0.0.1:2558",
            "127.8.8.8",
            "[::1]:2558",
            "[::1]",
            "telemetry.example",
            "Telemetry.example:1",
        ] {
            assert_eq!(checked(&[("host", host)]), Ok(()), "{host}");
        }
        assert_eq!(checked(&[]), Ok(()));
        assert_eq!(checked(&[("host", "localhost"), ("origin", "http://localhost:3000")]), Ok(()));
    }

    #[test]
    fn foreign_names_are_refused() {
        for host in ["evil.example", "evil.example:2558", "localhost.evil.example", "10.0.0.1", "[::2]:1", "", "127.0.0.1.evil.example"] {
            assert_eq!(checked(&[("host", host)]), Err("Host".to_owned()), "{host}");
        }
        for origin in ["http://evil.example", "null", "", "https://localhost.evil.example:1"] {
            assert_eq!(checked(&[("host", "localhost"), ("origin", origin)]), Err("Origin".to_owned()), "{origin}");
        }
    }

    #[test]
    fn http2_names_the_host_in_the_address() {
        let request = |uri: &str| Request::builder().uri(uri).body(()).unwrap();
        assert!(Hosts::default().check(&request("http://localhost:1/write")).is_ok());
        assert!(Hosts::default().check(&request("http://evil.example/write")).is_err());
        assert!(Hosts::default().check(&request("http://localhost@evil.example/write")).is_err());
    }

    #[test]
    fn the_address_counts_where_both_name_a_host() {
        let request = |uri: &str, host: &str| Request::builder().uri(uri).header("host", host).body(()).unwrap();
        assert!(Hosts::default().check(&request("http://evil.example/write", "localhost")).is_err());
        assert!(Hosts::default().check(&request("http://localhost/write", "evil.example")).is_ok());
    }
}
