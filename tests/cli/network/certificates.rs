use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::harness::machine::Bench;
use crate::harness::web::{self, ranges};

/// A certificate authority, and the certificates of servers that it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: rcgen::Certificate,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.distinguished_name.push(DnType::CommonName, name);
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = authority.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(authority, key), root }
    }

    /// Configuration of a server for `name`, whose certificate is changed by `change`; `of_clients`: it requires certificates
    /// of clients, which this authority has signed.
    fn server(
        &self,
        name: &str,
        of_clients: bool,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Arc<ServerConfig> {
        let mut leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut leaf);
        let key = KeyPair::generate().unwrap();
        let chain = vec![leaf.signed_by(&key, &self.issuer).unwrap().der().clone()];
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = if of_clients {
            let mut roots = RootCertStore::empty();
            roots.add(self.root.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        Arc::new(builder.with_single_cert(chain, key).unwrap())
    }
}

/// A server that answers 410, and counts the connections that it accepts.
struct Counted {
    url: String,
    connections: Arc<AtomicUsize>,
}

impl Counted {
    /// `tls`: `None` for a server that speaks HTTP without TLS at an address of https.
    fn new(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}/v2.qimg", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                let tls = tls.clone();
                std::thread::spawn(move || match (stream, tls) {
                    (Ok(stream), Some(tls)) => {
                        let connection = ServerConnection::new(tls).unwrap();
                        gone(&mut StreamOwned::new(connection, stream))
                    }
                    (Ok(mut stream), None) => gone::<TcpStream>(&mut stream),
                    (Err(error), _) => Err(error),
                });
            }
        });
        Self { url, connections }
    }

    /// Number of connections since the last call.
    fn connections(&self) -> usize {
        self.connections.swap(0, Ordering::SeqCst)
    }
}

fn gone<S: Read + Write>(stream: &mut S) -> std::io::Result<()> {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request)?;
    stream.write_all(b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    stream.flush()
}

/// A retry changes no certificate: each mirror is connected to once, and the error is one of the network.
#[test]
fn a_server_without_proof_of_its_identity_is_asked_once() {
    let bench = Bench::installed();
    let (trusted, unknown) = (Authority::new("trusted"), Authority::new("unknown"));
    std::fs::write(bench.path("root.pem"), trusted.root.pem()).unwrap();
    let network = format!("web_ca = \"{}\"\n", bench.text("root.pem"));
    bench.config(&network);
    let sound = |_: &mut CertificateParams| {};
    let here = "127.0.0.1";
    let good = web::Server::new(std::fs::read(bench.path("v2.qimg")).unwrap(), ranges);

    // But for their certificates these servers are like the bad ones.
    let control = Counted::new(Some(trusted.server(here, false, sound)));
    let message = bench.at(&["prepare", &control.url]).bad("HTTP");
    assert!(message.contains("410") && control.connections() > 0, "{message}");

    let expired = |leaf: &mut CertificateParams| leaf.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let early = |leaf: &mut CertificateParams| leaf.not_before = rcgen::date_time_ymd(4000, 1, 1);
    for (what, tls) in [
        ("UnknownIssuer", Some(unknown.server(here, false, sound))),
        ("not valid for name", Some(trusted.server("example.org", false, sound))),
        ("expired", Some(trusted.server(here, false, expired))),
        ("not valid yet", Some(trusted.server(here, false, early))),
        ("CertificateRequired", Some(trusted.server(here, true, sound))),
        ("corrupt message", None),
    ] {
        let before = bench.hash();
        let [one, two] = [(); 2].map(|()| Counted::new(tls.clone()));
        for verb in ["prepare", "plan", "verify"] {
            let run = bench.at(&[verb, &one.url, "--mirror", &two.url]);
            assert!(!run.err.contains("retry"), "{what}, {verb}: {}", run.err);
            let message = run.bad("NETWORK_TLS");
            assert!(message.contains(what), "{what}, {verb}: {message}");
            // Not the delta that was looked for beside it.
            assert!(message.contains("/v2.qimg: "), "{what}, {verb}: {message}");
            assert_eq!([&one, &two].map(Counted::connections), [1, 1], "{what}, {verb}");
        }
        assert_eq!(bench.hash(), before, "{what}: the disk was written");
        // Beside a good one it is left as soon.
        // So it is if a delta is looked for first, which the good one has not.
        for more in [&["--no-delta"][..], &[]] {
            let run = bench.at(&[&["prepare", &one.url, "--mirror", &good.url], more].concat());
            assert!(!run.err.contains("qdelta"), "{what}: {}", run.err);
            run.good();
            assert!(bench.holds("platform_b", "v2.img"), "{what}");
            assert_eq!(one.connections(), 1, "{what}, {more:?}");
            bench.at(&["cancel"]).good();
            bench.blank("platform_b");
        }
        // A good one that is asked first has no delta, and the bad one cannot say more.
        bench.at(&["prepare", &good.url, "--mirror", &one.url]).good();
        assert!(bench.holds("platform_b", "v2.img"), "{what}");
        assert_eq!(one.connections(), 1, "{what}");
        bench.at(&["cancel"]).good();
        bench.blank("platform_b");
    }
}
