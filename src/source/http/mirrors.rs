//! Addresses of one file: which one is in use, what is known of each, and when another one is used instead.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::Url;
use tokio::sync::watch;

use super::client::FileResponse;
use super::header::Validator;
use crate::source::address::shown;
use crate::units::size;

/// Time spent waiting for bytes of an address before its rate is meaningful.
const TRIAL: Duration = Duration::from_secs(2);
/// Factor by which another address must have been faster to be used instead.
const FASTER: u64 = 2;

/// One address and what is known of it.
#[derive(Debug)]
struct Mirror {
    /// URL as given, before redirects.
    url: Url,
    /// URL that redirects led to last; requested first.
    led: Option<Url>,
    /// Whether `url` is requested next all the same, since the last request to `led` failed.
    again: bool,
    /// Version of the file there; `None`: no response yet.
    validator: Option<Validator>,
    /// Whether it is no longer used.
    left: bool,
    /// Bytes received, and the time spent waiting for them, since the address was last switched to or measured.
    came: (u64, Duration),
    /// Bytes per second when it was last measured; `None`: never measured.
    rate: Option<u64>,
}

/// Address for the next request.
pub(super) struct NextRequest {
    /// Number of the address.
    pub(super) mirror: usize,
    /// URL to request.
    pub(super) url: Url,
    /// Whether `url` is where a redirect led.
    pub(super) led: bool,
    /// Version of the file there; `None`: no response yet.
    pub(super) validator: Option<Validator>,
}

/// State that decides how a failure is handled.
pub(super) struct MirrorState {
    /// Number of the address in use.
    pub(super) current: usize,
    /// Its URL, as it may be shown.
    pub(super) shown: String,
    /// Its host, with the port if the URL names one.
    pub(super) host: String,
    /// Whether it has ever answered.
    pub(super) answered: bool,
    /// Number of addresses that are still used.
    pub(super) alive: u32,
}

/// All addresses of a file.
pub(super) struct Mirrors {
    list: Mutex<(Vec<Mirror>, usize)>,
    again: watch::Sender<bool>,
}

impl Mirrors {
    pub(super) fn new(urls: Vec<Url>) -> Self {
        let mirror = |url| Mirror {
            url,
            led: None,
            again: false,
            validator: None,
            left: false,
            came: (0, Duration::ZERO),
            rate: None,
        };
        Self {
            list: Mutex::new((urls.into_iter().map(mirror).collect(), 0)),
            again: watch::Sender::new(false),
        }
    }

    fn list(&self) -> MutexGuard<'_, (Vec<Mirror>, usize)> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Address for a request now.
    pub(super) fn current(&self) -> NextRequest {
        let list = self.list();
        let (mirrors, current) = &*list;
        let mirror = &mirrors[*current];
        let led = mirror.led.as_ref().filter(|_| !mirror.again);
        NextRequest {
            mirror: *current,
            url: led.unwrap_or(&mirror.url).clone(),
            led: led.is_some(),
            validator: mirror.validator.clone(),
        }
    }

    /// State of the address in use, and the number of those still used.
    pub(super) fn state(&self) -> MirrorState {
        let list = self.list();
        let (mirrors, current) = &*list;
        let mirror = &mirrors[*current];
        let alive = mirrors.iter().filter(|mirror| !mirror.left).count();
        MirrorState {
            current: *current,
            shown: shown(mirror.url.as_str()).into_owned(),
            host: host(&mirror.url),
            answered: mirror.validator.is_some(),
            alive: u32::try_from(alive).unwrap_or(u32::MAX),
        }
    }

    /// Records the version of the file and the redirect of a response.
    pub(super) fn answered(&self, which: usize, answer: &FileResponse) {
        let mut list = self.list();
        let Some(mirror) = list.0.get_mut(which) else { return };
        mirror.validator = Some(answer.validator.clone());
        mirror.led = (answer.url != mirror.url).then(|| answer.url.clone());
        mirror.again = false;
    }

    /// Records that a request was answered after an earlier one had been: the file is not given out only once.
    pub(super) fn answered_again(&self) {
        self.again.send_replace(true);
    }

    /// Waits for [`answered_again`](Self::answered_again).
    pub(super) async fn known_to_answer_again(&self) {
        // It cannot fail: the sender lives as long as `self`.
        let _ = self.again.subscribe().wait_for(|again| *again).await;
    }

    /// Records that a request failed; `refused`: by an answer that a retry would not change. Returns whether the address has
    /// another URL. Where a redirect led elsewhere, both URLs are used in turn: the redirect may lead to another server by now,
    /// or it may have been given only once.
    pub(super) fn failed(&self, asked: &NextRequest, refused: bool) -> bool {
        let mut list = self.list();
        let Some(mirror) = list.0.get_mut(asked.mirror).filter(|mirror| mirror.led.is_some()) else {
            return false;
        };
        if asked.led && refused {
            mirror.led = None;
        }
        mirror.again = asked.led && !refused;
        true
    }

    /// Switches to the next address that is still used.
    pub(super) fn go_on(&self) {
        let mut list = self.list();
        let (mirrors, current) = &mut *list;
        let count = mirrors.len();
        let next = (1..=count).map(|step| (*current + step) % count.max(1)).find(|at| !mirrors[*at].left);
        if let Some(next) = next {
            turn_to(mirrors, current, next);
        }
    }

    /// Stops using an address. Returns its URL as it may be shown; `None` if its use had ended before.
    pub(super) fn leave(&self, which: usize) -> Option<String> {
        let shown = {
            let mut list = self.list();
            let mirror = list.0.get_mut(which).filter(|mirror| !mirror.left)?;
            mirror.left = true;
            shown(mirror.url.as_str()).into_owned()
        };
        if self.list().1 == which {
            self.go_on();
        }
        Some(shown)
    }

    /// Counts bytes received from an address and the time spent waiting for them.
    pub(super) fn took(&self, which: usize, bytes: u64, waited: Duration) {
        if let Some(mirror) = self.list().0.get_mut(which) {
            mirror.came.0 = mirror.came.0.saturating_add(bytes);
            mirror.came.1 = mirror.came.1.saturating_add(waited);
        }
    }

    /// Switches from `which` to another address that is faster or was never measured. So each is measured once, and the
    /// fastest is used until its rate is below half of another's. Returns texts about the old and the new address;
    /// `None`: no switch.
    ///
    /// Only time spent waiting for bytes counts, so no other address is tried where the disk is slower than the link.
    pub(super) fn compare(&self, which: usize) -> Option<(String, String)> {
        let mut list = self.list();
        let (mirrors, current) = &mut *list;
        if *current != which {
            return None;
        }
        let mirror = mirrors.get_mut(which).filter(|mirror| mirror.came.1 >= TRIAL)?;
        let rate = u128::from(mirror.came.0) * 1000 / mirror.came.1.as_millis().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        (mirror.rate, mirror.came) = (Some(rate), (0, Duration::ZERO));
        let others = || mirrors.iter().enumerate().filter(|(at, mirror)| *at != which && !mirror.left);
        let untried = others().find(|(_, mirror)| mirror.rate.is_none());
        let faster = || {
            let best = others().max_by_key(|(_, mirror)| mirror.rate);
            best.filter(|(_, mirror)| mirror.rate.is_some_and(|best| best / FASTER > rate))
        };
        let (next, other) = untried.or_else(faster)?;
        let texts = (
            format!("{} sends {}/s", host(&mirrors[which].url), size::human(rate)),
            match other.rate {
                None => host(&other.url),
                Some(rate) => format!("{}, which sent {}/s,", host(&other.url), size::human(rate)),
            },
        );
        turn_to(mirrors, current, next);
        Some(texts)
    }
}

fn turn_to(mirrors: &mut [Mirror], current: &mut usize, next: usize) {
    *current = next;
    if let Some(mirror) = mirrors.get_mut(next) {
        mirror.came = (0, Duration::ZERO);
    }
}

/// Host of a URL for messages, with its port if the URL names one.
pub(super) fn host(url: &Url) -> String {
    let port = url.port().map_or(String::new(), |port| format!(":{port}"));
    format!("{}{port}", url.host_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Mirrors {
        Mirrors::new(["http://a/x", "http://b/x", "http://c/x"].map(|url| url.parse().unwrap()).to_vec())
    }

    #[test]
    fn each_is_tried_and_the_fastest_kept() {
        let mirrors = three();
        let second = Duration::from_secs(1);
        let mut asked = Vec::new();
        for _ in 0..40 {
            let current = mirrors.current().mirror;
            asked.push(current);
            mirrors.took(current, [100_000, 5_000_000, 20_000][current], second);
            mirrors.compare(current);
        }
        assert_eq!(asked[..6], [0, 0, 1, 1, 2, 2]);
        assert!(asked[6..].iter().all(|at| *at == 1), "{asked:?}");
        // The fastest one fails: the next one is used, and left once its rate has been measured again.
        mirrors.leave(1);
        let current = mirrors.current().mirror;
        assert_eq!(current, 2);
        mirrors.took(current, 20_000, second * 2);
        assert!(mirrors.compare(current).unwrap().1.contains("a, which sent"));
        assert_eq!(mirrors.current().mirror, 0);
    }

    /// A change of the server costs a request: it has to be worth it.
    #[test]
    fn one_that_is_not_twice_as_fast_is_no_reason_to_leave() {
        for (other, next) in [(1_900_000, 0), (2_000_000, 0), (2_100_000, 1)] {
            let urls = ["http://a/x", "http://b/x"].map(|url| url.parse().unwrap());
            let mirrors = Mirrors::new(urls.to_vec());
            for rate in [1_000_000, other, 1_000_000] {
                let current = mirrors.current().mirror;
                mirrors.took(current, rate * 2, TRIAL);
                mirrors.compare(current);
                if rate == other && current == 1 {
                    mirrors.go_on();
                }
            }
            assert_eq!(mirrors.current().mirror, next, "{other} bytes a second");
        }
    }

    #[test]
    fn one_that_is_left_is_never_asked() {
        let mirrors = three();
        assert!(mirrors.leave(1).is_some() && mirrors.leave(1).is_none());
        mirrors.go_on();
        assert_eq!(mirrors.current().mirror, 2);
        mirrors.go_on();
        assert_eq!(mirrors.current().mirror, 0);
        mirrors.leave(0);
        mirrors.leave(2);
        assert_eq!(mirrors.state().alive, 0);
    }
}
