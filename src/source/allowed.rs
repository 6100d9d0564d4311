//! Bundles that remote callers may have read: files below directories, and URLs below prefixes, that the configuration names.
//! The service reads with the rights of root, on this machine and in its network, for callers without these rights.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::libc;
use reqwest::Url;

use super::address::{self, Address};
use crate::error::{Error, Result};

/// The directories and URL prefixes of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Files below them may be read.
    pub directories: Vec<PathBuf>,
    /// URLs below them may be read: same scheme, host and port, and a path that begins with theirs.
    pub prefixes: Vec<Url>,
}

/// A bundle that may be read.
#[derive(Debug)]
pub enum Permitted {
    /// A plain file, open.
    File(File),
    /// A web server.
    Web(Url),
}

impl Allowed {
    /// Opens a file, or returns a URL, if it may be read. Whether another file exists is not even looked up.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a name that may not be read, or is no plain file; [`Error::Open`], [`Error::Argument`].
    pub fn open(&self, named: &str) -> Result<Permitted> {
        let name = address::shown(named);
        let refused =
            |problem: &str| Err(Error::BadRequest { problem: format!("image path '{name}' {problem}") });
        if named.contains('\0') {
            return refused("contains a zero byte");
        }
        if address::is_web(named) {
            return match Address::parse(Path::new(named))? {
                Address::Web(url) if self.prefixes.iter().any(|prefix| below(&url, prefix)) => {
                    Ok(Permitted::Web(url))
                }
                _ => refused(
                    "is below none of the addresses of 'image_urls' in the configuration of the service",
                ),
            };
        }
        let path = Path::new(named);
        if !path.is_absolute() {
            return refused("is neither absolute nor an http(s) URL");
        }
        let Some((directory, rest)) = self.directory_of(path) else {
            return refused(
                "is below none of the directories of 'image_paths' in the configuration of the service",
            );
        };
        match open_beneath(directory, rest) {
            Ok(file) if file.metadata().is_ok_and(|meta| meta.is_file()) => Ok(Permitted::File(file)),
            // A FIFO, for example, could be read only once, and a bundle is read twice.
            Ok(_) => refused("is not a file"),
            // By '..', by a link, or by a link of /proc (openat2(2)).
            Err(Errno::EXDEV) => refused("leads out of the directories of 'image_paths'"),
            // A socket, or a device without a driver.
            Err(Errno::ENXIO) => refused("is not a file"),
            Err(error) => Err(Error::Open { path: path.into(), source: error.into() }),
        }
    }

    /// Addresses of the hosts that a redirect may lead to.
    pub fn hosts(&self, mirrors: &[String]) -> Vec<Url> {
        self.prefixes.iter().cloned().chain(mirrors.iter().filter_map(|mirror| mirror.parse().ok())).collect()
    }

    fn directory_of<'a>(&'a self, path: &'a Path) -> Option<(&'a Path, &'a Path)> {
        self.directories.iter().find_map(|directory| {
            let rest = path.strip_prefix(directory).ok().filter(|rest| *rest != Path::new(""))?;
            Some((directory.as_path(), rest))
        })
    }
}

/// Opens a file such that no component of its path leads out of the directory, even if its content changes concurrently.
/// Without O_NONBLOCK the open of a FIFO would wait for a writer.
fn open_beneath(directory: &Path, rest: &Path) -> nix::Result<File> {
    let of_io = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let root = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(directory);
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root.map_err(of_io)?, rest, how).map(File::from)
}

/// Whether a URL lies below a prefix. A parser has resolved the dots in both paths; percent-encoded dots and slashes, which a
/// server would decode first, are refused.
fn below(url: &Url, prefix: &Url) -> bool {
    let path = url.path();
    let coded = path.to_ascii_lowercase();
    let hidden = ["%2f", "%5c", "%2e", "%00"].iter().any(|code| coded.contains(code));
    let same = url.scheme() == prefix.scheme() && same_host(url, prefix);
    let rest = path.strip_prefix(prefix.path().trim_end_matches('/'));
    same && !hidden && rest.is_some_and(|rest| rest.starts_with('/'))
}

/// Whether both URLs name the same server; https may replace http, each on its default port.
pub(super) fn same_host(a: &Url, b: &Url) -> bool {
    let ports = |url: &Url| (url.port().is_none(), url.port());
    a.host_str().is_some() && a.host_str() == b.host_str() && ports(a) == ports(b)
}

/// Parses a prefix of the configuration.
///
/// # Errors
/// The problem, for a message.
pub fn prefix(text: &str) -> Result<Url, String> {
    let shown = address::shown(text);
    let url = Url::parse(text).map_err(|error| format!("'{shown}' is no URL: {error}"))?;
    let bare = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    if !matches!(url.scheme(), "http" | "https") || !bare || url.password().is_some() {
        return Err(format!("'{shown}' is no http(s) URL without user and query"));
    }
    Ok(url)
}

/// Checks a directory of the configuration.
///
/// # Errors
/// The problem, for a message.
pub fn directory(path: &Path) -> Result<(), String> {
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let good = path.is_absolute() && plain;
    if good { Ok(()) } else { Err(format!("'{}' is not an absolute path without '..'", path.display())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_below_the_directories_only() {
        let dir = tempfile::tempdir().unwrap();
        let (upgrade, outside) = (dir.path().join("upgrade"), dir.path().join("secret"));
        std::fs::create_dir_all(upgrade.join("sub")).unwrap();
        std::fs::write(&outside, "s").unwrap();
        std::fs::write(upgrade.join("sub/x"), "x").unwrap();
        std::fs::create_dir(dir.path().join("upgrade2")).unwrap();
        std::fs::write(dir.path().join("upgrade2/x"), "x").unwrap();
        let link = |to: &Path, name: &str| std::os::unix::fs::symlink(to, upgrade.join(name)).unwrap();
        link(Path::new("sub/x"), "inside");
        link(&outside, "out");
        link(Path::new("../secret"), "up");
        link(Path::new("/proc/self/exe"), "magic");
        link(dir.path(), "dir");
        nix::unistd::mkfifo(&upgrade.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let allowed = Allowed { directories: vec![upgrade.clone()], prefixes: Vec::new() };
        let open = |path: &str| match allowed.open(path) {
            Ok(_) => "open",
            Err(error) => error.code().trim_start_matches("UPGRADE_ERROR_"),
        };
        let base = upgrade.to_str().unwrap();
        for (path, expected) in [
            (format!("{base}/sub/x"), "open"),
            (format!("{base}//sub/./x"), "open"),
            (format!("{base}/inside"), "open"),
            (format!("{base}/none"), "OPEN"),
            (format!("{base}/out"), "BAD_REQUEST"),
            (format!("{base}/up"), "BAD_REQUEST"),
            (format!("{base}/magic"), "BAD_REQUEST"),
            (format!("{base}/dir/secret"), "BAD_REQUEST"),
            (format!("{base}/../secret"), "BAD_REQUEST"),
            (format!("{base}/sub/../../secret"), "BAD_REQUEST"),
            (format!("{base}2/x"), "BAD_REQUEST"),
            (format!("{base}/fifo"), "BAD_REQUEST"),
            (format!("{base}/sub"), "BAD_REQUEST"),
            (base.to_owned(), "BAD_REQUEST"),
            (format!("{base}/sub/x\0y"), "BAD_REQUEST"),
            ("/etc/passwd".to_owned(), "BAD_REQUEST"),
            ("/nowhere/at/all".to_owned(), "BAD_REQUEST"),
            ("sub/x".to_owned(), "BAD_REQUEST"),
            ("-".to_owned(), "BAD_REQUEST"),
            (String::new(), "BAD_REQUEST"),
            (format!("file://{base}/sub/x"), "BAD_REQUEST"),
            ("http://h/x".to_owned(), "BAD_REQUEST"),
        ] {
            assert_eq!(open(&path), expected, "{path}");
        }
    }

    #[test]
    fn urls_are_read_below_the_prefixes_only() {
        let prefixes = vec![prefix("https://h/releases").unwrap(), prefix("http://127.0.0.1:81/").unwrap()];
        let allowed = Allowed { directories: Vec::new(), prefixes };
        for (url, good) in [
            ("https://h/releases/x.qimg?sig=1", true),
            ("HTTPS://u:p@H:443/releases/a/b", true),
            ("https://h/releases", false),
            ("https://h/releases2/x", false),
            ("https://h/releases/../x", false),
            ("https://h/releases/%2e%2e/x", false),
            ("https://h/releases/..%2fx", false),
            ("https://h/releases\\..\\x", false),
            ("http://h/releases/x", false),
            ("https://h:444/releases/x", false),
            ("https://h.evil/releases/x", false),
            ("https://h@evil/releases/x", false),
            ("http://127.0.0.1:81/anything", true),
            ("http://127.1:81/anything", true),
            ("http://127.0.0.1/x", false),
            ("ftp://h/releases/x", false),
        ] {
            assert_eq!(allowed.open(url).is_ok(), good, "{url}");
        }
        let refused = allowed.open("https://u:hunter2@evil/x?hunter2").unwrap_err().to_string();
        assert!(!refused.contains("hunter2"), "{refused}");
    }

    #[test]
    fn a_configuration_that_means_something_else_is_refused() {
        for bad in ["h/x", "file:///x", "https://u:p@h/", "https://h/?x"] {
            assert!(prefix(bad).is_err(), "{bad}");
        }
        for (path, good) in [("/upgrade", true), ("/", true), ("upgrade", false), ("/a/../b", false)] {
            assert_eq!(directory(Path::new(path)).is_ok(), good, "{path}");
        }
    }
}
