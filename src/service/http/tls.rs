//! The certificate: configured, or self-signed at the first start and stored, so that clients can pin it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertifiedKey, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};

use crate::error::{Error, Result};
use crate::host::files::replace;
use crate::reloaded::Reloaded;

/// Path of the self-signed certificate below the state directory.
pub const CERTIFICATE: &str = "tls/certificate.pem";
const KEY: &str = "tls/key.pem";

/// The server side of TLS, as the configured files are at each connection. See [`acceptor`].
pub(in crate::service) type ServerTls = Reloaded<TlsAcceptor>;

/// Creates the server side of TLS from configured files, or from those that this program has made.
///
/// # Errors
/// See [`acceptor`].
pub(in crate::service) fn server_tls(
    given: Option<(PathBuf, PathBuf)>,
    state_dir: PathBuf,
    members: Option<PathBuf>,
) -> Result<ServerTls> {
    // One that this program has made is not watched: no user replaces it, and its loss must not change it.
    let files = given.iter().flat_map(|(certificate, key)| [certificate, key]).chain(&members);
    let files = files.cloned().collect();
    Reloaded::new(files, move || acceptor(given.as_ref(), &state_dir, members.as_deref()))
}

/// The server side of TLS. Clients may present a certificate of one of the authorities in the file `members`: the other nodes of
/// the cluster. `None`: no certificate of a client is requested.
///
/// # Errors
/// [`Error::Config`]: certificate or key cannot be read or generated, or do not match.
fn acceptor(
    given: Option<&(PathBuf, PathBuf)>,
    state_dir: &Path,
    members: Option<&Path>,
) -> Result<TlsAcceptor> {
    let (certificate, key) = match given {
        Some((certificate, key)) => (certificate.clone(), key.clone()),
        None => (state_dir.join(CERTIFICATE), state_dir.join(KEY)),
    };
    let failed = |path: &Path, problem: String| Error::Config { path: path.to_owned(), problem };
    let made = if given.is_none() && (!certificate.exists() || !key.exists()) {
        let made = make().map_err(|problem| failed(&certificate, problem))?;
        // A full or read-only /var must not prevent the service. After the next start, clients that pin the certificate find
        // another one.
        keep(&made, &certificate, &key).err().map(|error| {
            tracing::warn!("{}: the certificate is not kept: {error}", certificate.display());
            made
        })
    } else {
        None
    };
    let (chain, secret) = match made {
        Some(made) => {
            let secret = made.signing_key.serialize_pem();
            let secret = PrivateKeyDer::from_pem_slice(secret.as_bytes());
            (vec![made.cert.der().clone()], secret.map_err(|problem| failed(&key, problem.to_string()))?)
        }
        None => {
            let chain = CertificateDer::pem_file_iter(&certificate)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|problem| failed(&certificate, problem.to_string()))?;
            let secret = PrivateKeyDer::from_pem_file(&key);
            (chain, secret.map_err(|problem| failed(&key, problem.to_string()))?)
        }
    };
    let verifier = match members {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(path) => {
            let mut authorities = RootCertStore::empty();
            let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let found = found.map_err(|problem| failed(path, problem.to_string()))?;
            authorities.add_parsable_certificates(found);
            let provider = Arc::new(crypto::ring::default_provider());
            // Other clients have tokens, and no certificate.
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider)
                .allow_unauthenticated()
                .build();
            verifier.map_err(|problem| failed(path, problem.to_string()))?
        }
    };
    let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_client_cert_verifier(verifier).with_single_cert(chain, secret))
        .map_err(|problem| failed(&certificate, problem.to_string()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Generates a self-signed certificate for this host. It is valid from 1975 to 4096: appliances boot without a clock.
fn make() -> Result<CertifiedKey<KeyPair>, String> {
    let host = nix::sys::utsname::uname().map(|name| name.nodename().to_string_lossy().into_owned());
    let mut names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    // A name that no certificate can contain is left out; the addresses remain.
    names.extend(host.ok().filter(|name| {
        !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-.".contains(&c))
    }));
    rcgen::generate_simple_self_signed(names).map_err(|error| error.to_string())
}

/// Stores certificate and key for the next start.
fn keep(made: &CertifiedKey<KeyPair>, certificate: &Path, key: &Path) -> io::Result<()> {
    if let Some(dir) = certificate.parent() {
        fs::create_dir_all(dir)?;
    }
    // The key first, and durably: half of the pair, or a truncated file, would prevent the next start.
    let mut secret = secret_file(key)?;
    secret.write_all(made.signing_key.serialize_pem().as_bytes())?;
    secret.sync_all()?;
    let whole = certificate.parent().zip(certificate.file_name().and_then(|name| name.to_str()));
    let (dir, name) = whole.ok_or(io::ErrorKind::InvalidFilename)?;
    // Clients may read it: they pin it.
    replace(dir, name, made.cert.pem().as_bytes(), 0o644)
}

/// A new file that only its owner may read, from its first byte on.
fn secret_file(path: &Path) -> io::Result<fs::File> {
    let _ = fs::remove_file(path);
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn where_it_cannot_be_kept_one_is_served_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(acceptor(None, &dir.path().join("file"), None).is_ok());
        // A configured one that cannot be read is a mistake.
        let given = (dir.path().join("none"), dir.path().join("none"));
        assert!(acceptor(Some(&given), dir.path(), None).is_err());
    }

    #[test]
    fn a_certificate_is_made_once_and_its_key_is_secret() {
        let dir = tempfile::tempdir().unwrap();
        acceptor(None, dir.path(), None).unwrap();
        let (certificate, key) = (dir.path().join(CERTIFICATE), dir.path().join(KEY));
        let first = fs::read(&certificate).unwrap();
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        acceptor(None, dir.path(), None).unwrap();
        assert_eq!(fs::read(&certificate).unwrap(), first);
        // After a power cut between the two files, both are generated again.
        fs::remove_file(&certificate).unwrap();
        acceptor(None, dir.path(), None).unwrap();
        assert_ne!(fs::read(&certificate).unwrap(), first);
        fs::write(&key, "garbage").unwrap();
        let Err(error) = acceptor(None, dir.path(), None) else { panic!("garbage was taken") };
        assert!(error.to_string().contains("key.pem"), "{error}");
    }
}
