//! Certificates and users for etcd, read again when their files are replaced: a node runs for years, a certificate for days.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::sign::CertifiedKey;
use ureq::Agent;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::EtcdConfig;
use crate::error::{Error, Result};
use crate::reloaded::Reloaded;

/// Time limit for an answer of etcd. Without a quorum etcd itself abandons a request after some 7 s; an answer after that is
/// of no use to a node with a lease of 10 s.
const LIMIT: Duration = Duration::from_secs(4);
/// Time limit for a connection, so that a host that is down leaves time for the next one.
const CONNECT: Duration = Duration::from_millis(1500);
/// Time without data after which a watch is started again: a connection that broke without notice looks like that.
const SILENCE: Duration = Duration::from_secs(30);

/// HTTP clients and user for requests to etcd.
#[derive(Debug, Clone)]
pub(super) struct EtcdClient {
    /// Client for requests.
    pub(super) agent: Agent,
    /// Client for watches.
    pub(super) watcher: Agent,
    /// User and password; `None`: etcd has no users.
    pub(super) user: Option<(String, String)>,
}

impl EtcdClient {
    /// They are made again when a file of certificates or of the password is replaced.
    ///
    /// # Errors
    /// [`Error::Config`]: certificates or password cannot be used.
    pub(super) fn reloaded(config: &EtcdConfig) -> Result<Reloaded<Self>> {
        let identity = config.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        let password = config.user.as_ref().map(|(_, file)| file);
        let files: Vec<PathBuf> = config.ca.iter().chain(identity).chain(password).cloned().collect();
        let config = config.clone();
        Reloaded::new(files, move || Self::new(&config))
    }

    fn new(config: &EtcdConfig) -> Result<Self> {
        let tls = tls(config)?;
        let agent = |global, per_read: Option<Duration>| {
            let agent = Agent::config_builder().tls_config(tls.clone()).http_status_as_error(false);
            let agent =
                agent.timeout_connect(Some(CONNECT)).timeout_global(global).timeout_per_read(per_read);
            Agent::new_with_config(agent.proxy(None).build())
        };
        let user = config.user.as_ref().map(|(name, file)| Ok((name.clone(), text(file)?.trim().to_owned())));
        Ok(Self {
            agent: agent(Some(LIMIT), None),
            watcher: agent(None, Some(SILENCE)),
            user: user.transpose()?,
        })
    }
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path)
        .map_err(|error| Error::Config { path: path.to_owned(), problem: error.to_string() })
}

fn tls(access: &EtcdConfig) -> Result<TlsConfig> {
    let failed = |path: &Path, problem: String| Error::Config { path: path.to_owned(), problem };
    let chain = |path: &Path| -> Result<Vec<Certificate<'static>>> {
        let text = text(path)?;
        let certificates = parse_pem(text.as_bytes()).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        });
        let certificates: Vec<_> = certificates.collect();
        if certificates.is_empty() {
            return Err(failed(path, "there is no certificate in it".to_owned()));
        }
        Ok(certificates)
    };
    // The library's default is Mozilla's list, with which no etcd has a certificate; an organisation's own authority is among
    // those of the system.
    let authorities = match &access.ca {
        Some(ca) => chain(ca)?,
        None => system_authorities(),
    };
    let mut config = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&authorities));
    if let Some((certificate, key)) = &access.identity {
        let (chain, secret) = (chain(certificate)?, text(key)?);
        let private =
            PrivateKey::from_pem(secret.as_bytes()).map_err(|problem| failed(key, problem.to_string()))?;
        // ureq would panic at the first connection.
        let checked = PrivateKeyDer::from_pem_slice(secret.as_bytes()).map_err(|problem| problem.to_string());
        let checked = checked.and_then(|secret| {
            let chain = chain.iter().map(|certificate| certificate.der().to_vec().into()).collect();
            CertifiedKey::from_der(chain, secret, &ring::default_provider())
                .map_err(|problem| problem.to_string())
        });
        checked.map_err(|problem| {
            failed(key, format!("it is no key for the certificate {}: {problem}", certificate.display()))
        })?;
        config = config.client_cert(Some(ClientCert::new_with_certs(&chain, private)));
    }
    Ok(config.build())
}

/// Authorities that the system trusts. A system without any shows at the first connection, as an unknown issuer.
fn system_authorities() -> Vec<Certificate<'static>> {
    let found = rustls_native_certs::load_native_certs().certs;
    found.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect()
}
