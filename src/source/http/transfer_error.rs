//! What goes wrong with a transfer, whether it may pass, and how long to wait before the next try.

use std::time::Duration;

use reqwest::StatusCode;

use crate::error::Error;

/// A transfer that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TransferError {
    /// No connection came about; whether it can with another try.
    Connect(String, RetryDecision),
    /// A certificate or a handshake that is not accepted.
    Tls(String),
    /// Nothing came for so long.
    Stalled(Duration),
    /// It came too slowly.
    Slow {
        /// Bytes per second that came.
        rate: u64,
        /// Bytes per second that were asked for.
        least: u64,
        /// Over which time.
        over: Duration,
    },
    /// The connection broke, or the body ended early.
    Broken(String),
    /// The server asks to come back later.
    Busy(StatusCode, Option<Duration>),
    /// An answer that will not change.
    Answer(String),
    /// Another file than before.
    Changed(String),
    /// A further request was refused while an earlier answer goes on: the file is given out once.
    Once,
}

/// Whether another try makes sense although nothing ever answered there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RetryDecision {
    /// Nobody listens, or nobody has the name: before the first answer that is a mistyped address.
    OnceItAnswered,
    /// Silence on the way.
    Always,
}

/// See [`TransferError::Once`].
const ONCE: &str = "a further request was refused";

impl TransferError {
    /// Whether it may pass; `answered`: the server has answered before.
    pub(super) fn may_pass(&self, answered: bool) -> bool {
        match self {
            Self::Connect(_, hope) => answered || *hope == RetryDecision::Always,
            Self::Stalled(_) | Self::Slow { .. } | Self::Broken(_) | Self::Busy(..) => true,
            Self::Tls(_) | Self::Answer(_) | Self::Changed(_) | Self::Once => false,
        }
    }

    /// What happened, for the notice of a retry.
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

    /// The failure that ends the transfer from `url`, as it is shown, at byte `at`.
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

/// A status that is not the one hoped for. 501 and 505 are answers about the request, not about the moment.
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

/// The pause before the first retry: most connections that break are taken up again at once.
const AT_ONCE: Duration = Duration::from_millis(100);
/// The pause before the second one.
const FIRST: Duration = Duration::from_millis(500);
/// The longest pause that nobody asked for.
const LONGEST: Duration = Duration::from_secs(30);
/// The longest pause at a server's wish: beyond it a person should know.
const LONGEST_ASKED: Duration = Duration::from_secs(600);

/// How long to wait before retry number `retry` (from 1): twice as long each time, between a half and the whole of it by
/// chance, so that a fleet that lost its server together does not come back together. At least what the server asked for.
pub(super) fn pause(retry: u32, chance: u64, asked: Option<Duration>) -> Duration {
    let most = match retry {
        0 | 1 => AT_ONCE,
        retry => FIRST.saturating_mul(1 << (retry - 2).min(16)).min(LONGEST),
    };
    let part = u32::try_from(chance % 1024).unwrap_or(0);
    let pause = most / 2 + most / 2 * part / 1024;
    asked.map_or(pause, |asked| asked.min(LONGEST_ASKED).max(pause))
}

/// Watches the rate of a transfer. Only time in which something was waited for counts: a slow disk is no slow link.
#[derive(Debug, Default)]
pub(super) struct RateMeter {
    bytes: u64,
    waited: Duration,
}

impl RateMeter {
    /// Takes what came after so long a wait; the rate in bytes per second once `over` is full and it was below `least`.
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
