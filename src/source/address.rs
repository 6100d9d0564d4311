//! Addresses of bundles: a path, `-`, or a URL; and the form in which a URL is shown, without secrets.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

pub use reqwest::Url;

use crate::error::{Error, Result};

/// Address of a bundle. Its `Display` is [`shown`]: without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Standard input, `-`.
    Stdin,
    /// A file, given by its path or by a `file://` URL.
    File(PathBuf),
    /// A web server, http or https.
    Web(Url),
}

impl Address {
    /// Parses an address.
    ///
    /// # Errors
    /// [`Error::Argument`] for a URL that is malformed, or whose scheme is not supported.
    pub fn parse(text: &Path) -> Result<Self> {
        if text == Path::new("-") {
            return Ok(Self::Stdin);
        }
        let Some(url) = text.to_str().filter(|text| scheme(text).is_some()) else {
            return Ok(Self::File(text.to_owned()));
        };
        let failed = |problem: String| Error::Argument { what: shown(url).into_owned(), problem };
        let parsed = Url::parse(url).map_err(|error| failed(format!("not a URL: {error}")))?;
        match parsed.scheme() {
            "http" | "https" => Ok(Self::Web(parsed)),
            "file" => parsed
                .to_file_path()
                .map(Self::File)
                .map_err(|()| failed("names a file of another machine; write file:///PATH".to_owned())),
            other => Err(failed(format!("'{other}' is none of http, https and file"))),
        }
    }

    /// The origin of an installed bundle, as stored and shown. It is read later and elsewhere, so a path is absolute;
    /// everybody may read it, so a URL is [`shown`].
    pub fn origin(&self) -> String {
        match self {
            Self::File(path) => {
                std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string()
            }
            Self::Stdin | Self::Web(_) => self.to_string(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => f.write_str("-"),
            Self::File(path) => path.display().fmt(f),
            Self::Web(url) => f.write_str(&shown(url.as_str())),
        }
    }
}

/// Whether this is an http or https URL, in upper or lower case.
pub fn is_web(text: &str) -> bool {
    scheme(text).is_some_and(|scheme| ["http", "https"].iter().any(|web| scheme.eq_ignore_ascii_case(web)))
}

/// The scheme, if the text looks like a URL. A path does not: it would need a directory `NAME:` with an empty name below it.
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let named = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    named.then_some(scheme)
}

/// A URL in the form that may be shown, logged and stored: without user, password, query and fragment, any of which may be a
/// secret (a presigned URL has its signature in the query). Other text is returned unchanged.
///
/// It works on the text, without a parser: a URL that no parser accepts may contain a secret too.
pub fn shown(text: &str) -> Cow<'_, str> {
    let Some(scheme) = scheme(text) else { return Cow::Borrowed(text) };
    let rest = text.get(scheme.len() + 3..).unwrap_or_default();
    // The parser skips extra slashes and white space.
    let skipped = |c: char| {
        !scheme.eq_ignore_ascii_case("file") && (matches!(c, '/' | '\\') || c.is_ascii_whitespace())
    };
    let rest = rest.trim_start_matches(skipped);
    let path_end = rest.find(['?', '#']).unwrap_or(rest.len());
    // The parser of URLs treats '\' as '/', so both end the host. Of two '@' the last one counts.
    let host_end = rest.find(['/', '\\', '?', '#']).unwrap_or(rest.len());
    let host_at = rest.get(..host_end).and_then(|host| host.rfind('@')).map_or(0, |at| at + 1);
    if host_at == 0 && text.len() == scheme.len() + 3 + path_end {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{scheme}://{}", rest.get(host_at..path_end.max(host_at)).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_is_shown() {
        for (url, expected) in [
            ("http://h/x.qimg", "http://h/x.qimg"),
            ("http://u:hunter2@h:81/x?sig=hunter2#hunter2", "http://h:81/x"),
            ("HTTPS://u:hunter2@h", "HTTPS://h"),
            ("https://u:a@hunter2@h/y@z", "https://h/y@z"),
            ("https://u:hunter2@", "https://"),
            ("https://h?hunter2", "https://h"),
            ("http://h#hunter2@x/", "http://h"),
            ("http://h\\hunter2", "http://h\\hunter2"),
            ("http:///u:hunter2@h/x", "http://h/x"),
            ("file:///a/b", "file:///a/b"),
            ("/a/b?c@d", "/a/b?c@d"),
            ("", ""),
        ] {
            assert_eq!(shown(url), expected, "{url}");
        }
    }

    /// The parser decides: whatever it returns as user, password or query is not shown.
    #[test]
    fn secrets_by_the_judgement_of_a_parser_are_not_shown() {
        let parts = ["http", "://", ":", "@", "/", "\\", "?", "#", "hunter2", "h", "[::1]", " ", "%40", "\t"];
        let mut seen = 0;
        for number in 0..parts.len().pow(4) {
            let (mut rest, mut text) = (number, "http://".to_owned());
            for _ in 0..4 {
                text.push_str(parts[rest % parts.len()]);
                rest /= parts.len();
            }
            let Ok(url) = Url::parse(&text) else { continue };
            let secret = |part: Option<&str>| part.is_some_and(|part| part.contains("hunter2"));
            if secret(Some(url.username())) || secret(url.password()) || secret(url.query()) {
                seen += 1;
                let open = secret(url.host_str()) || url.path().contains("hunter2");
                assert!(!shown(url.as_str()).contains("hunter2") || open, "{text}: {}", shown(url.as_str()));
                assert!(open || !shown(&text).contains("hunter2"), "{text}: {}", shown(&text));
            }
        }
        assert!(seen > 200, "{seen}");
    }

    #[test]
    fn addresses_are_distinguished() {
        let parse = |text: &str| Address::parse(Path::new(text));
        assert_eq!(parse("-").unwrap(), Address::Stdin);
        assert_eq!(parse("x.qimg").unwrap(), Address::File("x.qimg".into()));
        assert_eq!(parse("file:///a%20b").unwrap(), Address::File("/a b".into()));
        assert_eq!(parse("FILE://localhost/a").unwrap(), Address::File("/a".into()));
        assert_eq!(parse("HTTP://u:hunter2@H/x?hunter2").unwrap().to_string(), "http://h/x");
        assert_eq!(parse("x.qimg").unwrap().origin().chars().next(), Some('/'));
        for bad in ["ftp://u:hunter2@h/x", "http://", "http://u:hunter2@:x/", "file://other/x"] {
            let error = parse(bad).unwrap_err();
            assert_eq!(error.code(), "UPGRADE_ERROR_ARGUMENT");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        assert!(is_web("HtTps://x") && !is_web("file:///x") && !is_web("/http://x"));
    }
}
