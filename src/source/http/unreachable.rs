//! Servers to which no connection could be made, and whether another one answered, remembered from one transfer to the next: a
//! delta and its bundle have the same servers, and a certificate does not become valid in between.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::Url;

/// Servers that showed no acceptable certificate, refused the connection, or have an unknown name.
#[derive(Debug, Clone, Default)]
pub struct Unreachable {
    servers: Arc<Mutex<Vec<String>>>,
    /// Whether any server has answered, if only that it does not have the file.
    answered: Arc<AtomicBool>,
}

/// Scheme, host and port of a URL.
fn server(url: &Url) -> String {
    url.origin().ascii_serialization()
}

impl Unreachable {
    /// Records the server of `url`.
    pub(super) fn add(&self, url: &Url) {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if !servers.contains(&server(url)) {
            servers.push(server(url));
        }
    }

    /// Records that a server has answered.
    pub(super) fn answer(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Whether any server has answered so far.
    pub(in crate::source) fn any_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// The URLs with other servers; all of them if there is no other server, so that a transfer reports the reason again.
    pub(super) fn leave(&self, urls: Vec<Url>) -> Vec<Url> {
        let servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let others: Vec<Url> = urls.iter().filter(|url| !servers.contains(&server(url))).cloned().collect();
        if others.is_empty() { urls } else { others }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_servers_are_used_while_there_are_any() {
        let parse = |urls: &[&str]| urls.iter().map(|url| url.parse().unwrap()).collect::<Vec<Url>>();
        let unreachable = Unreachable::default();
        let all = parse(&["https://a/x", "https://a:8443/x", "http://a/x"]);
        assert_eq!(unreachable.leave(all.clone()), all);
        unreachable.add(&"https://a:443/other".parse().unwrap());
        assert_eq!(unreachable.leave(all.clone()), all[1..]);
        assert_eq!(unreachable.leave(parse(&["https://a/x"])), parse(&["https://a/x"]));
    }
}
