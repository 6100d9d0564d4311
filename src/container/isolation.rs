//! What a key of `[container]` may open: users, cgroups, capabilities, system calls, devices; as values, with their parsers.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// Mapping of the container's users to users of the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Users {
    /// `Private` if the kernel can map the owners of its files, else `Host`.
    #[default]
    Auto,
    /// A separate range, in a user namespace; an idmapped mount preserves the owners of files.
    Private,
    /// The host's users: root is root.
    Host,
}

/// Access of a container to its control groups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cgroups {
    /// Read only.
    #[default]
    ReadOnly,
    /// Change the groups below its own, as systemd in a container must.
    Writable,
}

/// Capabilities of a program by default: to own files, to become another user, to listen on low ports.
pub(super) const CAPABILITIES: [&str; 8] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETUID",
];

/// The default capabilities.
pub(super) fn capabilities() -> Vec<String> {
    CAPABILITIES.map(str::to_owned).to_vec()
}

/// Names as in capabilities(7); nspawn checks whether they exist.
pub(super) fn named<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    let good = |name: &String| {
        name.strip_prefix("CAP_").is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
        })
    };
    match names.iter().find(|name| !good(name)) {
        None => Ok(names),
        Some(wrong) => Err(D::Error::custom(format!("'{wrong}' is no capability such as CAP_NET_RAW"))),
    }
}

/// Names of system calls or of groups: they become words of a single argument.
pub(super) fn calls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    let part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    let good = |name: &String| {
        let rest = name.strip_prefix('@').unwrap_or(name);
        !rest.is_empty() && rest.bytes().all(part)
    };
    match names.iter().find(|name| !good(name)) {
        None => Ok(names),
        Some(wrong) => Err(D::Error::custom(format!("'{wrong}' is no system call such as ptrace or @mount"))),
    }
}

/// Device nodes of the host.
pub(super) fn nodes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    let nodes = Vec::<PathBuf>::deserialize(deserializer)?;
    match nodes.iter().find(|node| !node.starts_with("/dev/")) {
        None => Ok(nodes),
        Some(wrong) => Err(D::Error::custom(format!("'{}' does not lie below /dev", wrong.display()))),
    }
}
