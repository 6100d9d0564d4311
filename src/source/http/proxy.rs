//! Selection of the proxy for a URL: the configured one, else that of the variables that curl reads.

use std::net::IpAddr;

use reqwest::Url;

use crate::source::address::shown;

/// Proxy for `url`, as it was written; `None`: no proxy. `configured` is a proxy for all URLs that `no_proxy` does not
/// name, or `none`; `variable` reads the environment. As with curl, `HTTP_PROXY` in capitals is ignored: CGI sets it
/// from a header.
pub(super) fn select(
    url: &Url,
    configured: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Option<String> {
    let get = |names: &[&str]| names.iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
    let proxy = match configured {
        Some("none") => return None,
        Some(proxy) => proxy.to_owned(),
        None if url.scheme() == "https" => get(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])?,
        None => get(&["http_proxy", "all_proxy", "ALL_PROXY"])?,
    };
    let bypassed = get(&["no_proxy", "NO_PROXY"]).is_some_and(|list| bypasses(&list, url));
    (!bypassed).then_some(proxy)
}

/// A proxy in the form that may be shown: without user and password, also if it is written without a scheme.
pub(super) fn name(proxy: &str) -> String {
    if proxy.contains("://") {
        return shown(proxy).into_owned();
    }
    shown(&format!("http://{proxy}")).trim_start_matches("http://").to_owned()
}

/// Whether `no_proxy` names the host: `*`, a domain and all below it, an address, or a network such as `10.0.0.0/8`,
/// each with `:PORT` if it is meant for one port only.
fn bypasses(list: &str, url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let host = host.trim_matches(['[', ']']).trim_end_matches('.');
    list.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        let (name, port) = split_port(entry);
        port.is_none_or(|port| url.port_or_known_default() == Some(port)) && matches(name, host)
    })
}

/// Splits `NAME:PORT`; an IPv6 address with a port is in brackets, as in a URL.
fn split_port(entry: &str) -> (&str, Option<u16>) {
    let (name, port) = match entry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, rest)) => (name, rest.strip_prefix(':')),
        None if entry.matches(':').count() == 1 => {
            entry.split_once(':').map_or((entry, None), |(name, port)| (name, Some(port)))
        }
        None => (entry, None),
    };
    (name, port.and_then(|port| port.parse().ok()))
}

fn matches(name: &str, host: &str) -> bool {
    if name == "*" {
        return true;
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        let (network, bits) = match name.split_once('/') {
            Some((network, bits)) => (network, bits.parse::<u32>().ok()),
            None => (name, Some(128)),
        };
        let (Ok(network), Some(bits)) = (network.parse::<IpAddr>(), bits) else { return false };
        let value = |address: IpAddr| match address {
            IpAddr::V4(address) => (32, u128::from(address.to_bits()) << 96),
            IpAddr::V6(address) => (128, address.to_bits()),
        };
        let ((size, a), (other, b)) = (value(address), value(network));
        let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits.min(size)) };
        return size == other && (a ^ b) & mask == 0;
    }
    let name = name.trim_start_matches('.').trim_end_matches('.').to_ascii_lowercase();
    let host = host.to_ascii_lowercase();
    host == name || host.strip_suffix(&name).is_some_and(|rest| rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn variables_are_read_as_curl_reads_them() {
        let all = |name: &str| Some(name.to_owned());
        assert_eq!(select(&url("http://h/"), None, all), Some("http_proxy".into()));
        assert_eq!(select(&url("https://h/"), None, all), Some("https_proxy".into()));
        let only = |wanted: &'static str| move |name: &str| (name == wanted).then(|| "p".to_owned());
        assert_eq!(select(&url("http://h/"), None, only("HTTP_PROXY")), None, "a header of CGI");
        assert_eq!(select(&url("https://h/"), None, only("HTTPS_PROXY")), Some("p".into()));
        assert_eq!(select(&url("http://h/"), None, only("ALL_PROXY")), Some("p".into()));
        assert_eq!(select(&url("http://h/"), Some("none"), all), None);
        assert_eq!(select(&url("http://h/"), Some("x:1"), |_| None), Some("x:1".into()));
        let local = |name: &str| (name == "no_proxy").then(|| "h".to_owned());
        assert_eq!(select(&url("http://h/"), Some("x:1"), local), None);
    }

    #[test]
    fn a_name_shows_no_password() {
        assert_eq!(name("user:hunter2@h:3128"), "h:3128");
        assert_eq!(name("socks5h://user:hunter2@[::1]:9/"), "socks5h://[::1]:9/");
        assert_eq!(name("h"), "h");
    }

    #[test]
    fn hosts_networks_and_ports_go_past_the_proxy() {
        for (list, address, expected) in [
            ("*", "http://h/", true),
            ("example.org", "http://example.org/", true),
            ("example.org", "http://a.Example.org./", true),
            (".example.org", "http://example.org/", true),
            ("ample.org", "http://example.org/", false),
            ("a, example.org:8080", "http://example.org:8080/", true),
            ("example.org:8080", "http://example.org/", false),
            ("example.org:443", "https://example.org/", true),
            ("10.0.0.0/8", "http://10.200.3.4/", true),
            ("10.0.0.0/8", "http://11.0.0.1/", false),
            ("10.0.0.1", "http://10.0.0.1:81/", true),
            ("10.0.0.1:80", "http://10.0.0.1:81/", false),
            ("0.0.0.0/0", "http://1.2.3.4/", true),
            ("fd00::/8", "http://[fd12::1]/", true),
            ("fd00::/8", "http://10.0.0.1/", false),
            ("[::1]:80", "http://[::1]/", true),
            ("[::1]:81", "http://[::1]/", false),
            ("::1", "http://[::1]/", true),
            ("10.0.0.0/x", "http://10.0.0.1/", false),
            ("", "http://h/", false),
        ] {
            assert_eq!(bypasses(list, &url(address)), expected, "{list} {address}");
        }
    }
}
