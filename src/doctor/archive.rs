//! The support archive: a tar with the state of the machine, for support from afar, without secrets. Left out are tokens,
//! private keys, passwords of servers, values of the container's environment, queries of URLs.

use std::io::{self, Write};

use serde_json::Value;

use super::{Diagnosis, DiskContent, Places, Setup};
use crate::config;

/// Files of kernel and system: name in the archive, path.
const FILES: [(&str, &str); 9] = [
    ("kernel/version", "/proc/version"),
    ("kernel/partitions", "/proc/partitions"),
    ("kernel/mountinfo", "/proc/self/mountinfo"),
    ("kernel/filesystems", "/proc/filesystems"),
    ("kernel/swaps", "/proc/swaps"),
    ("kernel/panic", "/proc/sys/kernel/panic"),
    ("kernel/lsm", "/sys/kernel/security/lsm"),
    ("os-release", "/etc/os-release"),
    ("qstage-select.log", "/run/qstage-select.log"),
];

/// Parts of names whose values are left out.
const SECRET: [&str; 7] = ["pass", "secret", "token", "key", "credential", "auth", "pin"];
/// Replacement of a value that was left out.
const REMOVED: &str = "(removed)";

/// Writes the archive. `out` is complete only when this returns.
///
/// # Errors
/// Of the writer.
pub(crate) fn write(
    out: impl Write,
    places: &Places,
    setup: &Setup,
    seen: Option<&DiskContent>,
    report: &Diagnosis,
) -> io::Result<()> {
    let mut archive = tar::Builder::new(out);
    let mut add = |name: &str, bytes: &[u8]| {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(0);
        archive.append_data(&mut header, format!("qstage-support/{name}"), bytes)
    };
    add("report.json", &json(report)?)?;
    if let Ok(Some(config)) = config::value(&setup.file) {
        add("config.json", &json(&redacted("", config))?)?;
    }
    // Public keys: they say whose bundles this machine takes.
    add("allowed_signers", places.text(&setup.settings.trust.path).as_bytes())?;
    if let Some(seen) = seen {
        for (name, bytes) in &seen.ends {
            add(&format!("disk/{name}.bin"), bytes)?;
        }
        if let Ok(slots) = &seen.slots {
            add("disk/slots.json", &json(slots)?)?;
        }
        if let Ok(status) = &seen.status {
            add("disk/status.json", &json(status)?)?;
        }
        add("disk/history.json", &json(&redacted("", serde_json::to_value(&seen.history)?))?)?;
    }
    let line: Vec<String> = places.text("/proc/cmdline").split_whitespace().map(word).collect();
    add("kernel/cmdline", line.join(" ").as_bytes())?;
    for (name, path) in FILES {
        add(name, lines(&places.text(path)).as_bytes())?;
    }
    let units = ["-u", "qstage*", "-u", "qstage-container-*", "-n", "2000", "-o", "short-iso", "--no-pager"];
    add("log.txt", lines(&places.ask("journalctl", &units).unwrap_or_default()).as_bytes())?;
    archive.finish()
}

fn json(value: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec_pretty(value)?)
}

/// A value without secrets. `name`: its key.
fn redacted(name: &str, value: Value) -> Value {
    match value {
        // A value of the environment may be a secret; paths of keys are none.
        Value::String(text) if name == "environment" => {
            let name = text.split('=').next().unwrap_or_default();
            format!("{name}={REMOVED}").into()
        }
        Value::String(text) => lines(&text).into(),
        Value::Array(all) => all.into_iter().map(|one| redacted(name, one)).collect(),
        Value::Object(all) => all
            .into_iter()
            .map(|(name, value)| {
                let value = redacted(&name, value);
                (name, value)
            })
            .collect(),
        other => other,
    }
}

/// Text with each [`word`] without secrets; white space stays.
fn lines(text: &str) -> String {
    text.split_inclusive(char::is_whitespace).map(word).collect()
}

/// A word of a command line or a log without secrets: `--password=x` without its value, a URL without password and query.
fn word(word: impl AsRef<str>) -> String {
    let word = word.as_ref();
    let end = word.len() - word.trim_end().len();
    let (word, space) = word.split_at(word.len() - end);
    if let Some((scheme, rest)) = word.split_once("://") {
        let (host, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
        let host =
            host.rsplit_once('@').map_or_else(|| host.to_owned(), |(_, host)| format!("{REMOVED}@{host}"));
        let path = path.map(|path| match path.split_once('?') {
            Some((path, _)) => format!("/{path}?{REMOVED}"),
            None => format!("/{path}"),
        });
        return format!("{scheme}://{host}{}{space}", path.unwrap_or_default());
    }
    match word.split_once('=') {
        Some((name, value))
            if !value.starts_with('/')
                && SECRET.iter().any(|secret| name.to_lowercase().contains(secret)) =>
        {
            format!("{name}={REMOVED}{space}")
        }
        _ => format!("{word}{space}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_that_may_be_secret_is_left() {
        for (text, kept) in [
            ("root=/dev/sda1 rd.luks.key=abc ro\n", "root=/dev/sda1 rd.luks.key=(removed) ro\n"),
            ("--password=x\t--user=me", "--password=(removed)\t--user=me"),
            ("https://me:pw@host/a/b.qimg?sig=1 is\n", "https://(removed)@host/a/b.qimg?(removed) is\n"),
            ("http://host", "http://host"),
            ("key=/etc/key.pem", "key=/etc/key.pem"),
            ("", ""),
        ] {
            assert_eq!(lines(text), kept);
        }
        let config = json!({
            "container": {"environment": ["TZ=UTC", "API=s3cret"], "command": ["/app", "--token=s3cret"]},
            "network": {"proxy": "http://u:s3cret@proxy:3128", "mirrors": ["https://m/x?s3cret"]},
            "tries": 3,
        });
        let left = redacted("", config);
        assert!(!left.to_string().contains("s3cret"), "{left}");
        assert_eq!(left["container"]["environment"][0], "TZ=(removed)");
        assert_eq!(left["tries"], 3);
    }
}
