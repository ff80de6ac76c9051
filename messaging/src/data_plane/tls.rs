//! TLS for connections over TCP: whom a server shows itself to, and whom a client believes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// PEM files. Servers show `certificate`; with `authority`, both sides must show a certificate that
/// it signed. Without, servers ask for none, and clients believe whom the system believes.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// This component's certificate chain and private key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Certificates of the authority that signs those of this cluster.
    pub authority: Option<PathBuf>,
}

/// A TLS file cannot be used. `Display` is a sentence.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the TLS file {}: {reason}; give PEM files that belong together", path.display())]
pub struct TlsError {
    path: PathBuf,
    reason: String,
}

/// Both ends' settings.
pub struct Tls {
    /// For a listener. Absent without a certificate: such a component cannot listen.
    pub acceptor: Option<TlsAcceptor>,
    /// For whoever connects.
    pub connector: TlsConnector,
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Tls {
    pub(super) fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let authority = files.authority.as_deref().map(load_authority).transpose()?;
        let identity = files.certificate.as_ref().map(|(chain, key)| load_identity(chain, key));
        let identity = identity.transpose()?;
        // What is wrong with a chain and a key that can be read lies between the two.
        let unusable = |error: rustls::Error| {
            let path = files.certificate.as_ref().map(|(_, key)| key.clone()).unwrap_or_default();
            TlsError { path, reason: error.to_string() }
        };
        let acceptor = identity.as_ref().map(|identity| server(identity, authority.as_ref()));
        Ok(Self {
            acceptor: acceptor.transpose().map_err(unusable)?,
            connector: client(identity, authority).map_err(unusable)?,
        })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn server(
    (chain, key): &Identity,
    authority: Option<&RootCertStore>,
) -> Result<TlsAcceptor, rustls::Error> {
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match authority {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let roots = Arc::new(roots.clone());
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain.clone(), key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config).into())
}

fn client(
    identity: Option<Identity>,
    authority: Option<RootCertStore>,
) -> Result<TlsConnector, rustls::Error> {
    let builder =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(authority.unwrap_or_else(system_authorities));
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config).into())
}

fn system_authorities() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn load_authority(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in load_certificates(path)? {
        let unusable = |error: rustls::Error| unreadable(path, error.to_string());
        roots.add(certificate).map_err(unusable)?;
    }
    Ok(roots)
}

fn load_identity(chain: &Path, key: &Path) -> Result<Identity, TlsError> {
    let private_key = PrivateKeyDer::from_pem_file(key).map_err(|error| not_pem(key, &error))?;
    Ok((load_certificates(chain)?, private_key))
}

fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates: Vec<_> = certificates.map_err(|error| not_pem(path, &error))?;
    match certificates.is_empty() {
        true => Err(unreadable(path, "it contains no certificate".into())),
        false => Ok(certificates),
    }
}

fn not_pem(path: &Path, error: &pem::Error) -> TlsError {
    unreadable(
        path,
        match error {
            pem::Error::Io(error) => error.to_string(),
            pem::Error::NoItemsFound => "it does not contain what is looked for in it".into(),
            other => other.to_string(),
        },
    )
}

fn unreadable(path: &Path, reason: String) -> TlsError {
    TlsError { path: path.to_path_buf(), reason }
}
