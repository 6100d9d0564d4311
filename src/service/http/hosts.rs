//! Names that are accepted in the header `Host`. A page in a browser can let its own name resolve to this machine, and then
//! access the service as the same origin (DNS rebinding); that name is in the header.

use std::net::{IpAddr, Ipv6Addr};

use axum::extract::Request;
use axum::http::header;

use crate::service::Listener;

/// The accepted names of this machine.
#[derive(Debug, Clone)]
pub(in crate::service) struct Hosts(Vec<String>);

impl Hosts {
    pub(in crate::service) fn new(access: &Listener) -> Self {
        let node = nix::sys::utsname::uname().map(|name| name.nodename().to_string_lossy().into_owned());
        let names = ["localhost".to_owned()].into_iter().chain(node).chain(access.hosts.iter().cloned());
        Self(names.filter(|name| !name.is_empty()).map(|name| name.to_ascii_lowercase()).collect())
    }

    /// Whether a request has an accepted name. Addresses cannot be rebound, and every browser sends a name.
    pub(in crate::service) fn permit(&self, request: &Request) -> bool {
        let sent = request.headers().get(header::HOST).map(|value| value.to_str());
        match (request.uri().authority(), sent) {
            (Some(authority), _) => self.named(authority.as_str()),
            (None, Some(Ok(host))) => self.named(host),
            (None, Some(Err(_))) => false,
            (None, None) => true,
        }
    }

    fn named(&self, host: &str) -> bool {
        let ends = |rest: &str| rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
        if let Some(v6) = host.strip_prefix('[') {
            return v6.split_once(']').is_some_and(|(v6, rest)| v6.parse::<Ipv6Addr>().is_ok() && ends(rest));
        }
        let at = host.find(':').unwrap_or(host.len());
        let (name, rest) = host.split_at(at);
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        ends(rest) && (name.parse::<IpAddr>().is_ok() || self.0.contains(&name))
    }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_names_and_addresses_are_permitted() {
        let hosts = Hosts(vec!["localhost".into(), "node7.example.org".into()]);
        for (host, good) in [
            ("localhost", true),
            ("LOCALHOST:8000", true),
            ("node7.example.org.", true),
            ("127.0.0.1:8000", true),
            ("[::1]:8000", true),
            ("[fe80::1]", true),
            ("evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example:8000", false),
            ("localhost:8000@evil", false),
            ("[::1].evil", false),
            ("[evil]", false),
            ("", false),
        ] {
            assert_eq!(hosts.named(host), good, "{host}");
            let request =
                Request::builder().uri("/").header("host", host).body(axum::body::Body::empty()).unwrap();
            assert_eq!(hosts.permit(&request), good, "{host}");
        }
        let absolute = Request::builder().uri("http://evil.example/").header("host", "localhost");
        assert!(!hosts.permit(&absolute.body(axum::body::Body::empty()).unwrap()));
        assert!(hosts.permit(&Request::builder().uri("/").body(axum::body::Body::empty()).unwrap()));
    }
}
