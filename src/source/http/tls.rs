//! TLS: which servers are trusted, and the certificate that this client presents.

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

/// TLS configuration for these settings.
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
    // Configured certificates replace the default roots unless roots are configured too.
    let kinds: &[Roots] = match (&web.roots[..], &web.ca) {
        ([], None) => &[Roots::Mozilla],
        (named, _) => named,
    };
    for kind in kinds {
        match kind {
            Roots::Mozilla => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Roots::System => {
                // Certificates that cannot be parsed are not trusted; that there is none shows at the first server.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
    }
    let mut pinned = Vec::new();
    if let Some(path) = &web.ca {
        for certificate in certificates(path)? {
            // A certificate that is no authority is trusted by its bytes, through `pinned`, so an error here does not
            // matter.
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

/// webpki, with an exception: a configured certificate is trusted by its bytes. The self-signed certificate of a server
/// is no authority by the standard (`CaUsedAsEndEntity`), yet small appliances have such certificates, and curl accepts
/// them. Its name and its dates prove nothing more than its bytes do.
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
