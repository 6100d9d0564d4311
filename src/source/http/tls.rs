//! Which servers are believed, and who we say that we are.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::{Roots, Web};
use crate::error::{Error, Result};

/// The configuration of TLS for these settings.
///
/// # Errors
/// [`Error::Config`] for files that cannot be used.
pub(super) fn config(web: &Web) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let internal = |error: rustls::Error| Error::Internal { what: format!("TLS: {error}") };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(internal)?;
    let mut roots = RootCertStore::empty();
    // Certificates of our own take the place of the roots unless somebody asked for both.
    let kinds: &[Roots] = match (&web.roots[..], &web.ca) {
        ([], None) => &[Roots::Mozilla],
        (named, _) => named,
    };
    for kind in kinds {
        match kind {
            Roots::Mozilla => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Roots::System => {
                // What of it cannot be parsed is not trusted; that there is none shows at the first server.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
    }
    let mut pinned = Vec::new();
    if let Some(path) = &web.ca {
        for certificate in certificates(path)? {
            // One that is no authority is believed as it is, below.
            let _ = roots.add(certificate.clone());
            pinned.push(certificate);
        }
    }
    let inner = if roots.is_empty() {
        None
    } else {
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
        Some(verifier.map_err(|error| Error::Internal { what: format!("TLS: {error}") })?)
    };
    let verifier = Verifier { inner, pinned, insecure: web.insecure, provider };
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let (Some(chain), Some(key_path)) = (&web.client_certificate, &web.client_key) else {
        return Ok(builder.with_no_client_auth());
    };
    let failed = |error: String| Error::Config { path: key_path.clone(), problem: error };
    let key = PrivateKeyDer::from_pem_file(key_path).map_err(|error| failed(error.to_string()))?;
    builder.with_client_auth_cert(certificates(chain)?, key).map_err(|error| failed(error.to_string()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let failed = |problem: String| Error::Config { path: path.to_owned(), problem };
    let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let all = all.map_err(|error| failed(error.to_string()))?;
    if all.is_empty() { Err(failed("it holds no certificate".to_owned())) } else { Ok(all) }
}

/// webpki, and what it does not know: a certificate that was given to us is its own proof. A self-signed one of a server is
/// no authority by the book (`CaUsedAsEndEntity`), yet it is what small appliances have, and curl takes it. Its name and its
/// dates say nothing more than its bytes do.
#[derive(Debug)]
struct Verifier {
    inner: Option<Arc<WebPkiServerVerifier>>,
    pinned: Vec<CertificateDer<'static>>,
    insecure: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.insecure || self.pinned.iter().any(|pinned| pinned == end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let inner = self.inner.as_ref().ok_or(unknown)?;
        inner.verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
