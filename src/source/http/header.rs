//! Headers of a response as values: position of a range, version of the file, time to wait.

use std::time::Duration;

use reqwest::header::{CONTENT_RANGE, DATE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED, RETRY_AFTER};

/// `Content-Range: bytes FIRST-LAST/TOTAL` (RFC 9110, 14.4). An unknown total (`*`) is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentRange {
    /// Offset of the first byte.
    pub(super) start: u64,
    /// Offset after the last byte.
    pub(super) end: u64,
    /// Size of the whole file in bytes.
    pub(super) total: u64,
}

impl ContentRange {
    /// Parses the value of a header; `None` if it is malformed or contradicts itself.
    pub(super) fn parse(value: &str) -> Option<Self> {
        let (unit, rest) = value.trim().split_once(' ')?;
        let (range, total) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u64>().ok()).flatten()
        };
        let (start, end, total) = (number(first)?, number(last)?.checked_add(1)?, number(total)?);
        let sound = unit.eq_ignore_ascii_case("bytes") && start < end && end <= total;
        sound.then_some(Self { start, end, total })
    }

    /// Range of a response; `None` if it has none that is valid.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        Self::parse(text(headers, &CONTENT_RANGE)?)
    }
}

/// Size of the file in a refusal of a range, `Content-Range: bytes */TOTAL`; `None` if it does not name one.
pub(super) fn unsatisfied(headers: &HeaderMap) -> Option<u64> {
    text(headers, &CONTENT_RANGE)?.trim().strip_prefix("bytes */")?.parse().ok()
}

/// Version of the file that a response is of (RFC 9110, 8.8).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Validator {
    etag: Option<String>,
    modified: Option<String>,
}

impl Validator {
    /// Version in the headers of a response.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let get = |name: &HeaderName| text(headers, name).map(str::to_owned);
        Self { etag: get(&ETAG), modified: get(&LAST_MODIFIED) }
    }

    /// Value for `If-Range`: a strong entity tag, else the date. A weak tag must not be used (RFC 9110, 13.1.5).
    pub(super) fn if_range(&self) -> Option<&str> {
        let strong = self.etag.as_deref().filter(|etag| !etag.starts_with("W/"));
        strong.or(self.modified.as_deref())
    }

    /// Describes the difference; `None` if there is none, or nothing that both have can be compared.
    pub(super) fn differs(&self, other: &Self) -> Option<String> {
        let differs = |what: &str, a: &Option<String>, b: &Option<String>| match (a, b) {
            (Some(a), Some(b)) if a != b => Some(format!("{what} was {a}, is {b}")),
            _ => None,
        };
        match (&self.etag, &other.etag) {
            (Some(_), Some(_)) => differs("its ETag", &self.etag, &other.etag),
            _ => differs("Last-Modified", &self.modified, &other.modified),
        }
    }
}

/// Time that the server requests the client to wait. A date is compared with the `Date` of the same response, not with the
/// clock of this machine, which may be wrong.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = text(headers, &RETRY_AFTER)?.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let second =
        |value: &str| jiff::fmt::rfc2822::parse(value.trim()).ok().map(|time| time.timestamp().as_second());
    let wait = second(value)?.checked_sub(second(text(headers, &DATE)?)?)?;
    Some(Duration::from_secs(u64::try_from(wait).unwrap_or(0)))
}

/// Value of a header; `None` if it is missing or not plain text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn ranges_that_lie_are_none() {
        let range = |start, end, total| Some(ContentRange { start, end, total });
        for (value, expected) in [
            ("bytes 0-0/1", range(0, 1, 1)),
            ("Bytes 5-9/10", range(5, 10, 10)),
            (
                "bytes 18446744073709551614-18446744073709551614/18446744073709551615",
                range(u64::MAX - 1, u64::MAX, u64::MAX),
            ),
            ("bytes 0-18446744073709551615/18446744073709551615", None),
            ("bytes 5-4/10", None),
            ("bytes 5-10/10", None),
            ("bytes 0-1/*", None),
            ("bytes */10", None),
            ("bytes +0-1/10", None),
            ("lines 0-1/10", None),
            ("bytes=0-1/10", None),
            ("", None),
        ] {
            assert_eq!(ContentRange::parse(value), expected, "{value}");
        }
    }

    #[test]
    fn versions_are_compared_by_what_both_say() {
        let of = |pairs: &[(HeaderName, &'static str)]| Validator::of(&headers(pairs));
        let (a, b) =
            (of(&[(ETAG, "\"a\""), (LAST_MODIFIED, "x")]), of(&[(ETAG, "\"b\""), (LAST_MODIFIED, "x")]));
        assert_eq!(a.differs(&b).as_deref(), Some("its ETag was \"a\", is \"b\""));
        assert_eq!(a.differs(&of(&[(ETAG, "\"a\""), (LAST_MODIFIED, "y")])), None, "the tag decides");
        assert!(a.differs(&of(&[(LAST_MODIFIED, "y")])).is_some());
        assert_eq!(a.differs(&of(&[])), None);
        assert_eq!(a.if_range(), Some("\"a\""));
        assert_eq!(of(&[(ETAG, "W/\"a\""), (LAST_MODIFIED, "x")]).if_range(), Some("x"));
        assert_eq!(of(&[(ETAG, "W/\"a\"")]).if_range(), None);
    }

    #[test]
    fn servers_ask_for_time_in_two_ways() {
        const NOW: (HeaderName, &str) = (DATE, "Sun, 06 Nov 1994 08:49:37 GMT");
        let wait =
            |pairs: &[(HeaderName, &'static str)]| retry_after(&headers(pairs)).map(|wait| wait.as_secs());
        assert_eq!(wait(&[(RETRY_AFTER, "120")]), Some(120));
        assert_eq!(wait(&[(RETRY_AFTER, "Sun, 06 Nov 1994 08:50:37 GMT"), NOW]), Some(60));
        assert_eq!(wait(&[(RETRY_AFTER, "Sun, 06 Nov 1994 08:40:37 GMT"), NOW]), Some(0));
        assert_eq!(wait(&[(RETRY_AFTER, "Sun, 06 Nov 1994 08:50:37 GMT")]), None);
        assert_eq!(wait(&[(RETRY_AFTER, "soon"), NOW]), None);
        assert_eq!(wait(&[]), None);
    }
}
