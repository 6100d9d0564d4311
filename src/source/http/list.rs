//! Further addresses of a file: mirrors in the settings, and lists of mirrors on servers.
//!
//! A list is a text file beside the bundle whose name ends with `.mirrors`: one URL a line, absolute or relative to the
//! list, the preferred one first. Lines that begin with `#` are comments. It is not signed and needs no trust: the
//! bundle is signed.

use std::io::Read;

use reqwest::Url;

use crate::bundle::source::{Source, read_failed};
use crate::error::{Error, Result};
use crate::source::address::shown;

/// Maximum size of a list in bytes.
const MOST_BYTES: u64 = 64 << 10;
/// Maximum number of addresses in a list.
const MOST_ADDRESSES: usize = 32;

/// Whether a URL is the address of a list.
pub(super) fn is_one(url: &Url) -> bool {
    url.path().ends_with(".mirrors")
}

/// URL of the file at `mirror`, an entry of the settings: `mirror` itself, or, if it ends with a slash, the name of
/// `file` in that directory.
///
/// # Errors
/// [`Error::Argument`] if `mirror` is not an http or https URL.
pub(super) fn mirror_of(mirror: &str, file: &Url) -> Result<Url> {
    let refused = |problem: &str| {
        let problem = format!("'{}' {problem}", shown(mirror));
        Error::Argument { what: "mirror".to_owned(), problem }
    };
    let url = Url::parse(mirror).map_err(|error| refused(&format!("is no URL: {error}")))?;
    if !["http", "https"].contains(&url.scheme()) {
        return Err(refused("is neither http nor https"));
    }
    if !url.path().ends_with('/') {
        return Ok(url);
    }
    let name = file.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default();
    url.join(&format!("./{name}")).map_err(|error| refused(&format!("and '{name}' make no URL: {error}")))
}

/// Reads a list from `source`, the file at `url`.
///
/// # Errors
/// [`Error::Http`] if it is not a valid list; those of the transfer.
pub(super) fn read(source: Source, url: &Url) -> Result<Vec<Url>> {
    let refused = |problem: String| Error::Http { url: shown(url.as_str()).into_owned(), problem };
    let too_long = || refused(format!("a list of mirrors has {MOST_BYTES} bytes at most"));
    let mut bytes = Vec::new();
    match source {
        Source::File(file) => {
            let len = usize::try_from(file.len()).ok().filter(|len| *len as u64 <= MOST_BYTES);
            bytes.resize(len.ok_or_else(too_long)?, 0);
            file.read_exact_at(&mut bytes, 0).map_err(|error| read_failed("the list", 0, error))?;
        }
        Source::Stream(stream) | Source::Response(stream, _) => {
            let mut stream = stream.take(MOST_BYTES + 1);
            stream.read_to_end(&mut bytes).map_err(|error| read_failed("the list", 0, error))?;
            if bytes.len() as u64 > MOST_BYTES {
                return Err(too_long());
            }
        }
    }
    parse(&bytes, url).map_err(refused)
}

/// Parses the list that came from `base`. A list that came by https must not lead to http: a transfer that was requested
/// as private must not become an open one because a list says so.
fn parse(bytes: &[u8], base: &Url) -> Result<Vec<Url>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "a list of mirrors is UTF-8".to_owned())?;
    let mut urls = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let refused = |problem: &str| format!("line {} of the list of mirrors {problem}", number + 1);
        let url = base.join(line).map_err(|_| refused("is no URL"))?;
        match (base.scheme(), url.scheme()) {
            _ if is_one(&url) => return Err(refused("leads to another list")),
            (_, "https") | ("http", "http") => {}
            ("https", "http") => return Err(refused("leads from https to http")),
            _ => return Err(refused("is neither http nor https")),
        }
        if urls.len() == MOST_ADDRESSES {
            return Err(refused(&format!("is one too many: {MOST_ADDRESSES} are allowed")));
        }
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    if urls.is_empty() { Err("the list of mirrors is empty".to_owned()) } else { Ok(urls) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn a_mirror_is_a_file_or_what_it_lies_below() {
        let file = url("https://a/releases/x.qimg?signature=1");
        let of = |mirror: &str| mirror_of(mirror, &file).map(|url| url.to_string());
        assert_eq!(of("http://b/r/").unwrap(), "http://b/r/x.qimg");
        assert_eq!(of("HTTPS://b").unwrap(), "https://b/x.qimg");
        assert_eq!(of("http://b/other.qimg?q").unwrap(), "http://b/other.qimg?q");
        assert_eq!(mirror_of("http://b/r/", &url("http://a/c:d")).unwrap().path(), "/r/c:d");
        for bad in ["b/r/", "ftp://b/", "file:///b/", "http://", ""] {
            assert_eq!(of(bad).unwrap_err().code(), "UPGRADE_ERROR_ARGUMENT", "{bad}");
        }
        assert!(!of("ftp://u:hunter2@b/").unwrap_err().to_string().contains("hunter2"));
    }

    #[test]
    fn a_list_names_addresses_and_nothing_else() {
        let at = url("https://a/r/x.qimg.mirrors");
        assert!(is_one(&at) && is_one(&url("http://a/x.mirrors?q")) && !is_one(&url("http://a/x?.mirrors")));
        let of =
            |text: &str| parse(text.as_bytes(), &at).map(|urls| urls.iter().map(Url::to_string).collect());
        let good: Vec<String> = of("# ours\nx.qimg\r\n\n https://b/y.qimg \nx.qimg\n").unwrap();
        assert_eq!(good, ["https://a/r/x.qimg", "https://b/y.qimg"]);
        let many = (0..40).map(|n| format!("https://m{n}/x\n")).collect::<String>();
        for (bad, word) in [
            ("", "empty"),
            ("http://b/x", "line 1"),
            ("x\nfile:///etc/shadow", "line 2"),
            ("x\nhttps://", "no URL"),
            ("y.mirrors", "another list"),
            (many.as_str(), "line 33"),
        ] {
            let problem: Result<Vec<String>, String> = of(bad);
            assert!(problem.unwrap_err().contains(word), "{bad}");
        }
        assert!(parse(b"\xff", &at).is_err());
        assert!(parse(b"http://b/x", &url("http://a/x.mirrors")).is_ok());
    }

    #[test]
    fn a_list_is_bounded() {
        let at = url("http://a/x.mirrors");
        let long = vec![b'#'; 70_000];
        for source in [
            Source::File(std::sync::Arc::new(long.clone())),
            Source::Stream(Box::new(std::io::Cursor::new(long))),
        ] {
            assert!(read(source, &at).unwrap_err().to_string().contains("65536 bytes at most"));
        }
        let good = Source::Stream(Box::new(&b"y.qimg"[..]));
        assert_eq!(read(good, &at).unwrap()[0].as_str(), "http://a/y.qimg");
    }
}
