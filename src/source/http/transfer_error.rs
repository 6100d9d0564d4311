//! Failures of a transfer: which are retried, and how long to wait before each retry.

use std::time::Duration;

use reqwest::StatusCode;

use crate::error::Error;

/// Failure of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TransferError {
    /// No connection was made: the problem, and whether to retry.
    Connect(String, RetryDecision),
    /// A certificate or a handshake is not accepted.
    Tls(String),
    /// No data arrived for this long.
    Stalled(Duration),
    /// Data arrived too slowly.
    Slow {
        /// Rate in bytes per second.
        rate: u64,
        /// Minimum rate in bytes per second.
        least: u64,
        /// Time over which the rate is measured.
        over: Duration,
    },
    /// The connection broke, or the body ended early.
    Broken(String),
    /// The server cannot answer now: its status, and the wait that it requests.
    Busy(StatusCode, Option<Duration>),
    /// A response that a retry would not change.
    Answer(String),
    /// The file is another one than before.
    Changed(String),
    /// A further request was refused while an earlier response was open: the file is given out only once.
    Once,
}

/// Whether a failed connection is retried although the server has never answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RetryDecision {
    /// Only if the server has answered before: else a refused connection or an unknown name is a mistyped address.
    OnceItAnswered,
    /// In any case, such as after silence on the network.
    Always,
}

/// See [`TransferError::Once`].
const ONCE: &str = "a further request was refused";

impl TransferError {
    /// The same, naming the proxy by which a connection was tried: it may be the proxy that does not answer.
    pub(super) fn by_proxy(self, proxy: Option<String>) -> Self {
        match (self, proxy) {
            (Self::Connect(problem, hope), Some(proxy)) => {
                Self::Connect(format!("by the proxy {proxy}: {problem}"), hope)
            }
            (other, _) => other,
        }
    }

    /// Whether a retry may succeed; `answered`: the server has answered before.
    pub(super) fn may_pass(&self, answered: bool) -> bool {
        match self {
            Self::Connect(_, hope) => answered || *hope == RetryDecision::Always,
            Self::Stalled(_) | Self::Slow { .. } | Self::Broken(_) | Self::Busy(..) => true,
            Self::Tls(_) | Self::Answer(_) | Self::Changed(_) | Self::Once => false,
        }
    }

    /// Whether it concerns all files of the server.
    pub(super) fn is_of_server(&self) -> bool {
        matches!(self, Self::Connect(..) | Self::Tls(_))
    }

    /// Description for the notice of a retry.
    pub(super) fn problem(&self) -> String {
        match self {
            Self::Connect(problem, _) | Self::Tls(problem) | Self::Broken(problem) => problem.clone(),
            Self::Answer(problem) | Self::Changed(problem) => problem.clone(),
            Self::Stalled(time) => format!("nothing came for {} s", time.as_secs()),
            Self::Slow { rate, .. } => format!("only {rate} bytes a second came"),
            Self::Busy(status, _) => format!("the server answered {status}"),
            Self::Once => ONCE.to_owned(),
        }
    }

    /// Error that ends the transfer at byte `at`; `url` is the address in a form that may be shown.
    pub(super) fn error(self, url: &str, at: u64, retries: u32) -> Error {
        let url = url.to_owned();
        match self {
            Self::Connect(problem, _) => Error::NetworkConnect { url, problem },
            Self::Tls(problem) => Error::NetworkTls { url, problem },
            Self::Stalled(time) => Error::NetworkStalled { url, at, seconds: time.as_secs() },
            Self::Slow { rate, least, over } => {
                Error::NetworkSlow { url, at, rate, least, seconds: over.as_secs() }
            }
            Self::Broken(problem) => Error::NetworkBroken { url, at, problem, retries },
            Self::Busy(status, _) => {
                Error::NetworkBroken { url, at, problem: format!("the server answered {status}"), retries }
            }
            Self::Answer(problem) => Error::Http { url, problem },
            Self::Changed(problem) => Error::SourceChanged { url, problem },
            Self::Once => Error::Http { url, problem: ONCE.to_owned() },
        }
    }
}

/// Failure for an unexpected status. 501 and 505 are about the request, not about the moment, so they are not retried.
pub(super) fn of_status(status: StatusCode, retry_after: Option<Duration>) -> TransferError {
    let passes = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
        || status.is_server_error()
            && !matches!(status, StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED);
    if passes {
        TransferError::Busy(status, retry_after)
    } else {
        TransferError::Answer(format!("the server answered {status}"))
    }
}

/// Pause before the first retry: most connections that break can be resumed at once.
const AT_ONCE: Duration = Duration::from_millis(100);
/// Pause before the second retry.
const FIRST: Duration = Duration::from_millis(500);
/// Maximum pause without a request of the server.
const LONGEST: Duration = Duration::from_secs(30);
/// Maximum pause on request of the server: beyond it the user should know.
const LONGEST_ASKED: Duration = Duration::from_secs(600);

/// Pause before retry number `retry` (from 1). Its maximum doubles each time. It is a random value between half of the
/// maximum and all of it, so that a fleet that lost its server together does not come back together. It is at least what
/// the server requested, up to [`LONGEST_ASKED`].
pub(super) fn pause(retry: u32, chance: u64, asked: Option<Duration>) -> Duration {
    let most = match retry {
        0 | 1 => AT_ONCE,
        retry => FIRST.saturating_mul(1 << (retry - 2).min(16)).min(LONGEST),
    };
    let part = u32::try_from(chance % 1024).unwrap_or(0);
    let pause = most / 2 + most / 2 * part / 1024;
    asked.map_or(pause, |asked| asked.min(LONGEST_ASKED).max(pause))
}

/// Measures the rate of a transfer. Only time spent waiting for data counts: a slow disk is no slow link.
#[derive(Debug, Default)]
pub(super) struct RateMeter {
    bytes: u64,
    waited: Duration,
}

impl RateMeter {
    /// Counts bytes that arrived after a wait. Once the waits reach `over`, returns the rate in bytes per second if it
    /// is below `least`.
    pub(super) fn too_slow(
        &mut self,
        bytes: u64,
        waited: Duration,
        least: u64,
        over: Duration,
    ) -> Option<u64> {
        self.bytes = self.bytes.saturating_add(bytes);
        self.waited = self.waited.saturating_add(waited);
        if self.waited < over || over.is_zero() {
            return None;
        }
        let rate = u128::from(self.bytes) * 1000 / self.waited.as_millis().max(1);
        *self = Self::default();
        u64::try_from(rate).ok().filter(|rate| *rate < least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_nothing_else() {
        for (status, passes) in [
            (401, false),
            (403, false),
            (404, false),
            (407, false),
            (408, true),
            (410, false),
            (416, false),
            (429, true),
            (500, true),
            (501, false),
            (502, true),
            (503, true),
            (504, true),
            (505, false),
            (418, false),
        ] {
            let trouble = of_status(StatusCode::from_u16(status).unwrap(), None);
            assert_eq!(trouble.may_pass(true), passes, "{status}");
        }
        let refused = TransferError::Connect("refused".into(), RetryDecision::OnceItAnswered);
        assert!(!refused.may_pass(false) && refused.may_pass(true));
        assert!(TransferError::Connect("silence".into(), RetryDecision::Always).may_pass(false));
        assert!(
            !TransferError::Tls("no".into()).may_pass(true)
                && !TransferError::Changed("x".into()).may_pass(true)
        );
    }

    #[test]
    fn pauses_grow_differ_and_respect_the_server() {
        for retry in 1..40 {
            for chance in [0, 1, 511, 1023, u64::MAX] {
                let pause = pause(retry, chance, None);
                let most =
                    if retry == 1 { AT_ONCE } else { (FIRST * 2u32.pow((retry - 2).min(10))).min(LONGEST) };
                assert!(pause >= most / 2 && pause <= most, "{retry} {chance}: {pause:?}");
            }
        }
        assert_ne!(pause(3, 0, None), pause(3, 1023, None));
        assert_eq!(pause(1, 0, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(pause(1, 0, Some(Duration::from_secs(1 << 40))), LONGEST_ASKED);
    }

    #[test]
    fn a_rate_counts_over_its_time_only() {
        let (second, over) = (Duration::from_secs(1), Duration::from_secs(10));
        let mut meter = RateMeter::default();
        for _ in 0..9 {
            assert_eq!(meter.too_slow(1, second, 100, over), None);
        }
        assert_eq!(meter.too_slow(1, second, 100, over), Some(1));
        assert_eq!(meter.too_slow(10_000, Duration::ZERO, 100, over), None, "begins anew");
        assert_eq!(meter.too_slow(0, over, 100, over), None, "1000 a second");
        assert_eq!(meter.too_slow(0, second * 1000, 100, Duration::ZERO), None, "turned off");
    }
}
