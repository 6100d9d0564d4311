//! Credentials by host: a file that only its owner may read, one entry a line.
//!
//! | line | sent to that host |
//! |---|---|
//! | `HOST basic USER PASSWORD` | `Authorization: Basic` |
//! | `HOST bearer TOKEN` | `Authorization: Bearer` |
//! | `HOST header NAME VALUE` | that header |
//!
//! `HOST` is `name` (the port of the scheme) or `name:port`. An entry is sent to its host and to no other, wherever a
//! redirect or a request of the service leads.

use std::fmt;
use std::path::Path;

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};

use crate::error::{Error, Result};

/// Entries of a credentials file. `Debug` shows only their number.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Credentials(Vec<Entry>);

#[derive(Clone, PartialEq, Eq)]
struct Entry {
    host: String,
    port: Option<u16>,
    what: What,
}

#[derive(Clone, PartialEq, Eq)]
enum What {
    Basic(String, String),
    Header(HeaderName, HeaderValue),
}

/// Credential that is sent with a request.
pub(super) enum Proof<'a> {
    /// User and password, for `Authorization: Basic`.
    Basic(&'a str, &'a str),
    /// Name and value of a header.
    Header(&'a HeaderName, &'a HeaderValue),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({} hosts)", self.0.len())
    }
}

impl Credentials {
    /// Reads a file that only its owner may read.
    ///
    /// # Errors
    /// [`Error::Config`]; it names the number of the line, never its text.
    pub(super) fn load(path: &Path) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let failed = |problem: String| Error::Config { path: path.to_owned(), problem };
        let meta = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
        if meta.permissions().mode() & 0o077 != 0 {
            return Err(failed("others may read it; chmod 600".to_owned()));
        }
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        Self::parse(&text).map_err(failed)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut entries = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let entry = Entry::parse(line).ok_or_else(|| {
                format!(
                    "line {} is none of: HOST basic USER PASSWORD, HOST bearer TOKEN, HOST header NAME VALUE",
                    number + 1
                )
            })?;
            entries.push(entry);
        }
        Ok(Self(entries))
    }

    /// Credentials for the host and port of a URL.
    pub(super) fn of<'a>(&'a self, url: &'a Url) -> impl Iterator<Item = Proof<'a>> {
        let default = if url.scheme() == "https" { 443 } else { 80 };
        let fits = move |entry: &&Entry| {
            url.host_str().is_some_and(|host| host.eq_ignore_ascii_case(&entry.host))
                && url.port_or_known_default() == Some(entry.port.unwrap_or(default))
        };
        self.0.iter().filter(fits).map(|entry| match &entry.what {
            What::Basic(user, password) => Proof::Basic(user, password),
            What::Header(name, value) => Proof::Header(name, value),
        })
    }
}

impl Entry {
    fn parse(line: &str) -> Option<Self> {
        let (host, rest) = line.split_once(char::is_whitespace)?;
        let (kind, rest) = rest.trim_start().split_once(char::is_whitespace)?;
        let value = rest.trim_start();
        let secret = |text: &str| {
            let mut value = HeaderValue::from_str(text).ok()?;
            value.set_sensitive(true);
            Some(value)
        };
        let what = match kind {
            "basic" => {
                let (user, password) = value.split_once(char::is_whitespace)?;
                What::Basic(user.to_owned(), password.trim_start().to_owned())
            }
            "bearer" => What::Header(AUTHORIZATION, secret(&format!("Bearer {value}"))?),
            "header" => {
                let (name, value) = value.split_once(char::is_whitespace)?;
                What::Header(name.trim_end_matches(':').parse().ok()?, secret(value.trim_start())?)
            }
            _ => return None,
        };
        // The port follows the last colon, unless that colon is part of an IPv6 address.
        let (host, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, Some(port.parse().ok()?)),
            _ => (host, None),
        };
        Some(Self { host: host.to_owned(), port, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_for_its_host_alone() {
        let text = "# ours\n\na.example basic me pass word\nb.example:8443 bearer T\n[::1] header X-Key: K\n";
        let credentials = Credentials::parse(text).unwrap();
        let sent = |url: &str| {
            let url: Url = url.parse().unwrap();
            let text = |proof: Proof<'_>| match proof {
                Proof::Basic(user, password) => format!("{user}:{password}"),
                Proof::Header(name, value) => format!("{name}: {}", value.to_str().unwrap()),
            };
            credentials.of(&url).map(text).collect::<Vec<_>>()
        };
        assert_eq!(sent("https://A.example/x"), ["me:pass word"]);
        assert_eq!(sent("https://b.example:8443/x"), ["authorization: Bearer T"]);
        assert_eq!(sent("http://[::1]/"), ["x-key: K"]);
        for other in ["https://b.example/", "https://a.example:444/", "https://a.example.org/", "http://x/"] {
            assert!(sent(other).is_empty(), "{other}");
        }
        assert_eq!(format!("{credentials:?}"), "Credentials(3 hosts)");
    }

    #[test]
    fn a_problem_names_its_line_and_no_secret() {
        for text in ["hunter2", "h hunter2 x", "h basic hunter2", "h:x bearer hunter2", "h header : hunter2"]
        {
            let problem = Credentials::parse(&format!("\n{text}")).unwrap_err();
            assert!(problem.starts_with("line 2 ") && !problem.contains("hunter2"), "{problem}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "h bearer T\n").unwrap();
        Credentials::load(file.path()).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Credentials::load(file.path()).unwrap_err().to_string().contains("chmod 600"));
    }
}
