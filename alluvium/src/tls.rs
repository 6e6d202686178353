//! TLS from files: certificates and keys, taken anew when the files change.
//!
//! Whoever renews a certificate replaces two files, one after the other: while they do not fit together the old pair
//! stays in use, and is tried again. Connections that are open keep what they began with. Between nodes both sides show
//! a certificate of the same authority (`--rpc-ca`); how a node is called in it does not matter, as nodes move between
//! addresses: whoever the authority vouches for is a node.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, ServerConfig, SignatureScheme, version,
};

/// The files are looked at so often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Where systems keep the authorities that everyone trusts.
const BUNDLES: [&str; 4] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"];

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read as what it should be.
    #[error("could not read {what} from {}: {why}", path.display())]
    File {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// What the files hold does not fit together.
    #[error("the certificate in {} cannot be used: {why}", path.display())]
    Unfit {
        /// The certificate's file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// There is nobody to trust.
    #[error("no certificate authorities found on this machine: name them with --ca-file FILE")]
    NoAuthorities,
}

/// The files of one side.
#[derive(Clone, Debug)]
pub struct Files {
    /// Its certificate and those that vouch for it.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority of the other side, where it must show a certificate too.
    pub authority: Option<PathBuf>,
}

impl Files {
    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.cert, &self.key].into_iter().chain(&self.authority)
    }
}

/// What a listener, and for nodes a connection too, shows and wants to be shown.
pub struct Tls {
    files: Files,
    server: ArcSwap<ServerConfig>,
    client: Option<Arc<ArcSwap<ClientConfig>>>,
    seen: Mutex<Vec<Stamp>>,
}

/// What changes when a file does.
type Stamp = Option<(u64, i64, i64, u64)>;

impl Tls {
    /// Reads the files.
    pub fn load(files: Files) -> Result<Arc<Tls>, Error> {
        // Before they are read: what changes meanwhile is seen by the next look.
        let seen = stamps(&files);
        let server = ArcSwap::new(server(&files)?);
        let client = node_client(&files)?.map(|config| Arc::new(ArcSwap::new(config)));
        Ok(Arc::new(Tls { files, server, client, seen: Mutex::new(seen) }))
    }

    /// What a listener uses for the next connection.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.server.load_full()
    }

    /// What a node uses for connections to its peers, always the newest; `None` where the other side shows nothing.
    pub fn client(&self) -> Option<Arc<ArcSwap<ClientConfig>>> {
        self.client.clone()
    }

    /// Takes the files anew if they have changed; whether they had.
    pub fn look(&self) -> Result<bool, Error> {
        let now = stamps(&self.files);
        if *self.seen.lock() == now {
            return Ok(false);
        }
        let (server, client) = (server(&self.files)?, node_client(&self.files)?);
        self.server.store(server);
        if let (Some(kept), Some(client)) = (&self.client, client) {
            kept.store(client);
        }
        *self.seen.lock() = now;
        Ok(true)
    }

    /// Looks again and again.
    pub async fn keep_fresh(self: Arc<Tls>) {
        let mut told = String::new();
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            match self.look() {
                Ok(true) => {
                    tracing::info!(cert = %self.files.cert.display(), "the certificate was taken anew");
                    told.clear();
                }
                Ok(false) => told.clear(),
                Err(error) if error.to_string() != told => {
                    tracing::warn!(%error, "the old certificate stays in use");
                    told = error.to_string();
                }
                Err(_) => {}
            }
        }
    }
}

fn stamps(files: &Files) -> Vec<Stamp> {
    files.all().map(|path| std::fs::metadata(path).ok().map(|m| (m.ino(), m.mtime(), m.mtime_nsec(), m.len()))).collect()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let failed = |why: String| Error::File { what: "certificates", path: path.to_owned(), why };
    let read = CertificateDer::pem_file_iter(path).map_err(|e| failed(e.to_string()))?;
    let read: Vec<_> = read.collect::<Result<_, _>>().map_err(|e| failed(e.to_string()))?;
    if read.is_empty() { Err(failed("there is none in it (PEM is expected)".to_owned())) } else { Ok(read) }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| Error::File { what: "a private key", path: path.to_owned(), why: e.to_string() })
}

fn authorities(path: &Path) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(path)?);
    match roots.is_empty() {
        true => Err(Error::File { what: "certificate authorities", path: path.to_owned(), why: "none of them can be used".to_owned() }),
        false => Ok(Arc::new(roots)),
    }
}

fn server(files: &Files) -> Result<Arc<ServerConfig>, Error> {
    let unfit = |e: &dyn std::fmt::Display| Error::Unfit { path: files.cert.clone(), why: e.to_string() };
    let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(|e| unfit(&e))?;
    let config = match &files.authority {
        None => config.with_no_client_auth(),
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(authorities(path)?, provider()).build();
            config.with_client_cert_verifier(verifier.map_err(|e| unfit(&e))?)
        }
    };
    let mut config = config.with_single_cert(certificates(&files.cert)?, key(&files.key)?).map_err(|e| unfit(&e))?;
    config.alpn_protocols = match files.authority {
        None => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        Some(_) => vec![b"h2".to_vec()],
    };
    Ok(Arc::new(config))
}

fn node_client(files: &Files) -> Result<Option<Arc<ClientConfig>>, Error> {
    let Some(path) = &files.authority else { return Ok(None) };
    let unfit = |e: &dyn std::fmt::Display| Error::Unfit { path: files.cert.clone(), why: e.to_string() };
    let inner = WebPkiServerVerifier::builder_with_provider(authorities(path)?, provider()).build().map_err(|e| unfit(&e))?;
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(|e| unfit(&e))?;
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(AnyNode { inner }));
    let mut config = config.with_client_auth_cert(certificates(&files.cert)?, key(&files.key)?).map_err(|e| unfit(&e))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Some(Arc::new(config)))
}

/// Whom a command of the command line trusts: the file's authorities, or everyone's.
pub fn trust(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
    let given = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let found = || given.into_iter().chain(BUNDLES.iter().map(PathBuf::from)).find(|path| path.is_file());
    let path = ca_file.map(Path::to_owned).or_else(found).ok_or(Error::NoAuthorities)?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(|e| Error::Unfit { path: path.clone(), why: e.to_string() })?
        .with_root_certificates(authorities(&path)?)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Trusts a certificate of the cluster's authority whatever name is in it.
#[derive(Debug)]
struct AnyNode {
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for AnyNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        match self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The chain was found good before the name was looked at.
            Err(TlsError::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })) => {
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
