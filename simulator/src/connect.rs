//! How a device reaches a server: over plain TCP or TLS, as the address says.
//!
//! Whom TLS trusts is the caller's business; without anyone to trust an `https` address is an error, never a plain
//! connection. Why there is no connection is told in the words of whoever knows: the system, or TLS.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::Service;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Makes connections for hyper's client.
#[derive(Clone)]
pub struct Connector {
    tcp: HttpConnector,
    tls: Option<TlsConnector>,
}

impl Connector {
    /// Connections over TLS trust whom `tls` does.
    pub fn new(tls: Option<Arc<ClientConfig>>) -> Connector {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        Connector { tcp, tls: tls.map(TlsConnector::from) }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let is_tls = to.scheme_str() == Some("https");
        let (tls, host) = (self.tls.clone(), to.host().unwrap_or_default().trim_matches(['[', ']']).to_owned());
        let connecting = self.tcp.call(to);
        Box::pin(async move {
            let plain = connecting.await?;
            if !is_tls {
                return Ok(Stream::Plain(plain));
            }
            let tls = tls.ok_or("no certificate authority is trusted here")?;
            let encrypted = tokio::time::timeout(CONNECT_TIMEOUT, tls.connect(ServerName::try_from(host)?, plain.into_inner()));
            Ok(Stream::Tls(Box::new(TokioIo::new(encrypted.await.map_err(|_| "the TLS handshake took too long")??))))
        })
    }
}

/// The innermost reason of a failure: what is around it says only that there was one.
pub fn reason(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map_or_else(String::new, ToString::to_string)
}

/// What helps where a server's certificate is not accepted; `None` where something else went wrong.
pub fn certificate_advice(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let tls = causes(error).find_map(|cause| match cause.downcast_ref::<io::Error>() {
        Some(io) => io.get_ref()?.downcast_ref::<rustls::Error>(),
        None => cause.downcast_ref(),
    })?;
    let rustls::Error::InvalidCertificate(wrong) = tls else { return None };
    Some(match wrong {
        // webpki's word, which rustls hands on.
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "the server shows an authority's own certificate (CA:TRUE), which is good for vouching only; one that vouches for itself alone is \
             fine:\n  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -keyout tls.key -out tls.crt -subj \
             /CN=alluvium -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:localhost,IP:127.0.0.1\n  with the \
             server's own names and addresses; tls.crt is then --tls-cert there and --ca-file here"
        }
        CertificateError::UnknownIssuer => "nobody trusted here vouches for it: --ca-file FILE names the authority that does",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is made out to other names: --url must have one of them, or the certificate this one (subjectAltName)"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired: the server needs a new one",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not good yet: are the clocks right?",
        _ => "the server needs another certificate",
    })
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// One connection.
pub enum Stream {
    /// Plain TCP.
    Plain(TokioIo<TcpStream>),
    /// TLS.
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Stream::Plain(stream) => stream.connected(),
            Stream::Tls(stream) => stream.inner().get_ref().0.connected(),
        }
    }
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
