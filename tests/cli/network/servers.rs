use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::harness::clock::Clock;
use crate::harness::machine::Bench;
use crate::harness::ports::free_port;
use crate::harness::web::{Daemon, Server, ranges, status};

/// Prepares from `url` with these settings of the network, and leaves the slot as it was.
fn prepare(bench: &Bench, network: &str, url: &str) {
    bench.config(network);
    bench.at(&["prepare", url]).good();
    assert!(bench.holds("platform_b", "v2.img"), "{url} {network}");
    bench.at(&["cancel"]).good();
    bench.blank("platform_b");
}

fn refused(bench: &Bench, network: &str, url: &str, code: &str) -> String {
    bench.config(network);
    bench.at(&["prepare", url]).bad(code)
}

/// A self-signed certificate of loopback and its key, as files; the settings that name them.
fn certificate(bench: &Bench, name: &str) -> (String, String) {
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let (chain, key) = (bench.text(&format!("{name}.pem")), bench.text(&format!("{name}.key")));
    std::fs::write(&chain, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (chain, key)
}

fn secrets(bench: &Bench, lines: &str) -> String {
    let path = bench.text("secrets");
    std::fs::write(&path, lines).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    format!("[network]\ncredentials = \"{path}\"\n")
}

#[test]
fn nginx_with_tls_certificates_and_passwords() {
    let bench = Bench::installed();
    let (chain, key) = certificate(&bench, "server");
    let (ours, our_key) = certificate(&bench, "client");
    let (other, _) = certificate(&bench, "other");
    let (port, tls, v6) = (free_port(), free_port(), free_port());
    // me:pa ss
    let password = tool("openssl", &["passwd", "-apr1", "pa ss"]);
    std::fs::write(bench.path("htpasswd"), format!("me:{password}")).unwrap();
    let more = format!(
        "listen 127.0.0.1:{tls} ssl; listen [::1]:{v6};
         ssl_certificate {chain}; ssl_certificate_key {key}; ssl_client_certificate {ours}; ssl_verify_client optional;
         location /private/ {{ alias {root}; auth_basic x; auth_basic_user_file {root}htpasswd; }}
         location /ours/ {{ alias {root}; if ($ssl_client_verify != SUCCESS) {{ return 403; }} }}
         location /moved/ {{ rewrite ^/moved/(.*)$ http://127.0.0.1:{port}/private/$1 redirect; }}
         location /away/ {{ rewrite ^/away/(.*)$ http://localhost:{port}/private/$1 redirect; }}",
        root = bench.text("")
    );
    let nginx = Daemon::nginx(&bench, port, "", &more);
    let http = format!("127.0.0.1:{port}");
    let https = format!("https://127.0.0.1:{tls}");

    prepare(&bench, "", &format!("HTTP://{http}/v2.qimg"));
    prepare(&bench, "", &format!("http://[::1]:{v6}/v2.qimg"));
    prepare(&bench, "", &format!("http://localhost:{port}/v2.qimg"));
    prepare(&bench, "", &format!("FILE://{}", bench.text("v2.qimg")));

    // Certificates: an unknown one, one that is pinned, besides the roots and instead of them, and another one.
    refused(&bench, "", &format!("{https}/v2.qimg"), "NETWORK_TLS");
    let pinned = format!("web_ca = \"{chain}\"\n");
    prepare(&bench, &pinned, &format!("HttpS://127.0.0.1:{tls}/v2.qimg"));
    prepare(
        &bench,
        &format!("{pinned}[network]\nroots = [\"mozilla\", \"system\"]\n"),
        &format!("{https}/v2.qimg"),
    );
    refused(&bench, &format!("web_ca = \"{other}\"\n"), &format!("{https}/v2.qimg"), "NETWORK_TLS");

    // We show a certificate of our own.
    refused(&bench, &pinned, &format!("{https}/ours/v2.qimg"), "HTTP");
    let client = format!("{pinned}[network]\nclient_certificate = \"{ours}\"\nclient_key = \"{our_key}\"\n");
    prepare(&bench, &client, &format!("{https}/ours/v2.qimg"));

    // Passwords: in the URL, percent-encoded; from a file; along with a redirect to the same host, and to no other.
    assert!(refused(&bench, "", &format!("http://{http}/private/v2.qimg"), "HTTP").contains("401"));
    prepare(&bench, "", &format!("http://me:pa%20ss@{http}/private/v2.qimg"));
    let network = secrets(&bench, &format!("{http} basic me pa ss\n"));
    prepare(&bench, &network, &format!("http://{http}/private/v2.qimg"));
    prepare(&bench, &network, &format!("http://{http}/moved/v2.qimg"));
    prepare(&bench, "", &format!("http://me:pa%20ss@{http}/moved/v2.qimg"));
    refused(&bench, "", &format!("http://me:pa%20ss@{http}/away/v2.qimg"), "HTTP");
    refused(&bench, &network, &format!("http://{http}/away/v2.qimg"), "HTTP");
    assert!(nginx.log(10).iter().all(|line| line.starts_with("206") || line.starts_with(['3', '4'])));
}

/// A server whose certificate an authority signed that only the store of the system has. `web_ca` is instead of all roots,
/// and besides those that are named.
#[test]
fn authorities_of_the_system_are_trusted_where_they_are_named() {
    let bench = Bench::installed();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let (authority_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root = authority.self_signed(&authority_key).unwrap();
    let names = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let signed = names.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap();
    for (name, text) in [("root.pem", root.pem()), ("chain", signed.pem()), ("key.pem", key.serialize_pem())]
    {
        std::fs::write(bench.path(name), text).unwrap();
    }
    let (other, _) = certificate(&bench, "other");
    let (port, tls) = (free_port(), free_port());
    let (chain, key) = (bench.text("chain"), bench.text("key.pem"));
    let more = format!("listen 127.0.0.1:{tls} ssl; ssl_certificate {chain}; ssl_certificate_key {key};");
    let _nginx = Daemon::nginx(&bench, port, "", &more);
    let url = format!("https://127.0.0.1:{tls}/v2.qimg");
    let (system, mozilla) = ("[network]\nroots = [\"system\"]\n", "[network]\nroots = [\"mozilla\"]\n");
    let ca = |name: &str| format!("web_ca = \"{name}\"\n");
    for (network, trusted) in [
        (String::new(), false),
        (system.to_owned(), true),
        (mozilla.to_owned(), false),
        (ca(&other), false),
        (ca(&other) + system, true),
        (ca(&other) + mozilla, false),
        (ca(&bench.text("root.pem")), true),
        (ca(&bench.text("root.pem")) + mozilla, true),
    ] {
        bench.config(&network);
        let mut command = bench.command(&["plan", &url, "--no-delta", "--config", "config.toml"]);
        // The store of the system, for the library that reads it as for OpenSSL.
        let output = command.env("SSL_CERT_FILE", bench.path("root.pem")).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), trusted, "{network}: {text}");
        assert!(trusted || text.contains("NETWORK_TLS"), "{network}: {text}");
    }
}

fn tool(program: &str, args: &[&str]) -> String {
    crate::harness::machine::tool(program, args)
}

#[test]
fn lighttpd_serves_ranges() {
    let bench = Bench::installed();
    let port = free_port();
    let server = Daemon::lighttpd(&bench, port);
    prepare(&bench, "", &format!("http://127.0.0.1:{port}/v2.qimg"));
    refused(&bench, "", &format!("http://127.0.0.1:{port}/none.qimg"), "HTTP");
    drop(server);
    refused(&bench, "", &format!("http://127.0.0.1:{port}/v2.qimg"), "NETWORK_CONNECT");
}

/// http by the whole address, https by CONNECT; what the proxy says no to is an answer.
#[test]
fn squid_carries_http_and_https() {
    let bench = Bench::installed();
    let (chain, key) = certificate(&bench, "server");
    let (port, tls, proxy) = (free_port(), free_port(), free_port());
    let more = format!("listen 127.0.0.1:{tls} ssl; ssl_certificate {chain}; ssl_certificate_key {key};");
    let _nginx = Daemon::nginx(&bench, port, "", &more);
    let squid = Daemon::squid(&bench, proxy);
    let network = format!("web_ca = \"{chain}\"\n[network]\nproxy = \"http://127.0.0.1:{proxy}\"\n");
    prepare(&bench, &network, &format!("http://127.0.0.1:{port}/v2.qimg"));
    prepare(&bench, &network, &format!("https://127.0.0.1:{tls}/v2.qimg"));
    let log = squid.log(2).join("\n");
    assert!(log.contains(&format!("GET http://127.0.0.1:{port}/v2.qimg 206")), "{log}");
    assert!(log.contains(&format!("CONNECT 127.0.0.1:{tls}")), "{log}");
    // From the environment, as curl has it; what no_proxy names goes past it.
    bench.config("");
    let run = |no_proxy: &str| {
        let url = format!("http://127.0.0.1:{port}/v2.qimg");
        let mut command = bench.command(&["plan", &url, "--no-delta", "--config", "config.toml"]);
        let proxy = format!("127.0.0.1:{proxy}");
        let output = command.env("http_proxy", proxy).env("no_proxy", no_proxy).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let before = squid.log(3).len();
    run("127.0.0.0/8");
    assert_eq!(squid.log(before).len(), before);
    run("example.org");
    assert_eq!(squid.log(before + 1).len(), before + 1);
    // A server that the proxy cannot reach: it says so, and what may pass is tried again.
    let nobody = free_port();
    let once = format!("[network]\nproxy = \"http://127.0.0.1:{proxy}\"\nretries = 1\n");
    let message = refused(&bench, &once, &format!("http://127.0.0.1:{nobody}/v2.qimg"), "NETWORK_BROKEN");
    assert!(message.contains("503"), "{message}");
}

/// A SOCKS proxy, versions 4 and 5; the name is looked up there or here.
fn socks() -> (u16, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = std::sync::Arc::clone(&seen);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let log = std::sync::Arc::clone(&log);
            std::thread::spawn(move || serve_socks(client?, &log));
        }
        std::io::Result::Ok(())
    });
    (port, seen)
}

fn serve_socks(mut client: TcpStream, log: &std::sync::Mutex<Vec<String>>) -> std::io::Result<()> {
    let byte = |stream: &mut TcpStream| {
        let mut byte = [0];
        stream.read_exact(&mut byte).map(|()| byte[0])
    };
    let bytes = |stream: &mut TcpStream, len: usize| {
        let mut bytes = vec![0; len];
        stream.read_exact(&mut bytes).map(|()| bytes)
    };
    let (to, answer) = if byte(&mut client)? == 4 {
        let head = bytes(&mut client, 7)?;
        while byte(&mut client)? != 0 {}
        let port = u16::from_be_bytes([head[1], head[2]]);
        (format!("{}.{}.{}.{}:{port}", head[3], head[4], head[5], head[6]), vec![0, 90, 0, 0, 0, 0, 0, 0])
    } else {
        let methods = byte(&mut client)?;
        bytes(&mut client, methods.into())?;
        client.write_all(&[5, 0])?;
        let kind = bytes(&mut client, 4)?[3];
        let host = match kind {
            1 => bytes(&mut client, 4)?.iter().map(u8::to_string).collect::<Vec<_>>().join("."),
            _ => {
                let len = byte(&mut client)?;
                String::from_utf8(bytes(&mut client, len.into())?).unwrap()
            }
        };
        let port = bytes(&mut client, 2)?;
        let port = u16::from_be_bytes([port[0], port[1]]);
        (format!("{host}:{port}"), vec![5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
    };
    log.lock().unwrap().push(to.clone());
    let mut server = TcpStream::connect(&to)?;
    client.write_all(&answer)?;
    let (mut up, mut down) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || std::io::copy(&mut up, &mut down));
    std::io::copy(&mut server, &mut client)?;
    client.shutdown(std::net::Shutdown::Both)
}

#[test]
fn socks_proxies_carry_it() {
    let bench = Bench::installed();
    let server = Server::new(std::fs::read(bench.path("v2.qimg")).unwrap(), ranges);
    let (port, seen) = socks();
    let named = server.url.replace("127.0.0.1", "localhost");
    for (scheme, url, expected) in [
        ("socks5", &server.url, server.host().to_owned()),
        ("socks5h", &named, server.host().replace("127.0.0.1", "localhost")),
        ("socks4", &server.url, server.host().to_owned()),
        ("SOCKS5H", &server.url, server.host().to_owned()),
    ] {
        let network = format!("[network]\nproxy = \"{scheme}://127.0.0.1:{port}\"\n");
        prepare(&bench, &network, url);
        assert_eq!(seen.lock().unwrap().drain(..).next(), Some(expected), "{scheme}");
    }
    // No server: reported at once, as is an unknown scheme.
    let nobody = free_port();
    let begun = Clock::start();
    for scheme in ["socks4", "socks5", "socks5h", "http"] {
        let network = format!("[network]\nproxy = \"{scheme}://u:hunter2@127.0.0.1:{nobody}\"\n");
        let message = refused(&bench, &network, &server.url, "NETWORK_CONNECT");
        // The proxy is named, for it is what does not answer; its password is not.
        let named = message.contains(&format!("by the proxy {scheme}://127.0.0.1:{nobody}"));
        assert!(named && !message.contains("hunter2"), "{message}");
    }
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    refused(&bench, "[network]\nproxy = \"quic://127.0.0.1:1\"\n", &server.url, "NETWORK_CONNECT");
}

/// Credentials of the file in a redirect: those of the new host are sent there, those of the old one are not.
#[test]
fn a_redirect_takes_no_header_to_another_host() {
    let bench = Bench::installed();
    let target = Server::new(std::fs::read(bench.path("v2.qimg")).unwrap(), ranges);
    let to = format!("Location: {}\r\n", target.url);
    let first = Server::new(Vec::new(), move |_, _, stream| status("307 Elsewhere", &to, stream));
    let lines = format!("{} header X-Key one\n{} header X-Key two\n", first.host(), target.host());
    let network = secrets(&bench, &lines);
    prepare(&bench, &network, &first.url);
    let asked = |server: &Server| server.asked.lock().unwrap()[0].to_lowercase();
    assert!(asked(&first).contains("x-key: one") && asked(&target).contains("x-key: two"));
    assert!(!asked(&target).contains("x-key: one"));
}
