//! Table `[container]` of the configuration; `fixtures/config.toml` explains every key.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::isolation::{self, Cgroups, Users};

/// How the software image is run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The program in the image and its arguments.
    #[serde(deserialize_with = "words")]
    pub command: Vec<String>,
    /// Whether the program is process 1 (a full init); else process 1 is a stub that reaps, and ends with the program.
    #[serde(default)]
    pub pid1: bool,
    /// Signal that requests its end; `None`: SIGTERM, or SIGRTMIN+3 with `pid1`.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// Time after the stop signal until it is killed.
    #[serde(default = "stop_timeout", deserialize_with = "seconds")]
    pub stop_timeout: Duration,
    /// Environment variables, as `NAME=value`.
    #[serde(default)]
    pub environment: Vec<String>,
    /// Writable directory, as `HOST:INSIDE`; created on the host if it is missing. `None`: no such directory.
    #[serde(default)]
    pub state: Option<String>,
    /// Further directories or files, writable: `HOST:INSIDE`.
    #[serde(default)]
    pub bind: Vec<String>,
    /// The same, read-only.
    #[serde(default)]
    pub bind_ro: Vec<String>,
    /// Whether the root file system is writable; writes are in memory and lost at the stop.
    #[serde(default)]
    pub overlay: bool,
    /// Network of the container.
    #[serde(default)]
    pub network: Network,
    /// Mapping of its users to users of the host.
    #[serde(default)]
    pub users: Users,
    /// Whether set-user-ID programs and file capabilities work.
    #[serde(default)]
    pub new_privileges: bool,
    /// Capabilities that it has; all others are dropped for ever.
    #[serde(default = "isolation::capabilities", deserialize_with = "isolation::named")]
    pub capabilities: Vec<String>,
    /// System calls that are permitted beyond the default, as in systemd.exec(5), `SystemCallFilter=`.
    #[serde(default, deserialize_with = "isolation::calls")]
    pub system_calls: Vec<String>,
    /// Device nodes of the host that it may open.
    #[serde(default, deserialize_with = "isolation::nodes")]
    pub devices: Vec<PathBuf>,
    /// Access to its control groups.
    #[serde(default)]
    pub cgroups: Cgroups,
    /// File systems that an image may have, by their names in mount(8).
    #[serde(default = "file_systems")]
    pub file_systems: Vec<String>,
    /// Paths of the image that are read into memory before the old container is stopped; `None`: its program.
    #[serde(default)]
    pub preread: Option<Vec<String>>,
    /// Health probe.
    #[serde(default)]
    pub probe: Probe,
    /// Pause between two attempts of the probe.
    #[serde(default = "probe_interval", deserialize_with = "seconds")]
    pub probe_interval: Duration,
    /// Time limit of one attempt.
    #[serde(default = "probe_timeout", deserialize_with = "seconds")]
    pub probe_timeout: Duration,
    /// Time limit for a container to become healthy.
    #[serde(default = "deadline", deserialize_with = "seconds")]
    pub deadline: Duration,
    /// Further options of systemd-nspawn(1).
    #[serde(default)]
    pub options: Vec<String>,
    /// File that takes the output on machines without systemd; `None`: it is discarded.
    #[serde(default)]
    pub console: Option<PathBuf>,
    /// Directory of mounts and run files; it must not survive a reboot.
    #[serde(default = "run_dir")]
    pub run_dir: PathBuf,
}

/// The network of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Network {
    /// The host's network namespace.
    Host,
    /// Its own namespace, with no interface but `lo`.
    #[default]
    Private,
    /// The namespace at this path, such as `/run/netns/NAME`.
    Path(PathBuf),
}

/// Health probe of a container: the condition under which it is healthy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Probe {
    /// Its program still runs after half a second.
    #[default]
    Alive,
    /// A TCP connection is accepted at `host:port`, in the network of the container.
    Tcp(String),
    /// A GET of this path at `host:port` is answered by a status from 200 to 399.
    Http(String, String),
    /// A command inside the container ends with 0.
    Command(Vec<String>),
}

impl Config {
    /// The configuration with this command and defaults for everything else.
    pub fn new(command: Vec<String>) -> Self {
        Self {
            command,
            pid1: false,
            stop_signal: None,
            stop_timeout: stop_timeout(),
            environment: Vec::new(),
            state: None,
            bind: Vec::new(),
            bind_ro: Vec::new(),
            overlay: false,
            network: Network::default(),
            users: Users::default(),
            new_privileges: false,
            capabilities: isolation::capabilities(),
            system_calls: Vec::new(),
            devices: Vec::new(),
            cgroups: Cgroups::default(),
            file_systems: file_systems(),
            preread: None,
            probe: Probe::default(),
            probe_interval: probe_interval(),
            probe_timeout: probe_timeout(),
            deadline: deadline(),
            options: Vec::new(),
            console: None,
            run_dir: run_dir(),
        }
    }
}

fn stop_timeout() -> Duration {
    Duration::from_secs(5)
}

fn probe_interval() -> Duration {
    Duration::from_millis(10)
}

fn probe_timeout() -> Duration {
    Duration::from_secs(1)
}

fn deadline() -> Duration {
    Duration::from_secs(10)
}

fn file_systems() -> Vec<String> {
    ["squashfs", "erofs", "ext4"].map(str::to_owned).to_vec()
}

fn run_dir() -> PathBuf {
    "/run/qstage".into()
}

/// Seconds, with fractions; more than an hour is refused as a mistake.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let seconds = f64::deserialize(deserializer)?;
    if (0.001..=3600.0).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(D::Error::custom(format!("{seconds} is not between 0.001 and 3600 seconds")))
}

fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let words = Vec::<String>::deserialize(deserializer)?;
    match words.first() {
        Some(program) if program.starts_with('/') => Ok(words),
        _ => Err(D::Error::custom("the first word of a command must be an absolute path in the image")),
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "host" => Ok(Self::Host),
            "private" => Ok(Self::Private),
            path if path.starts_with('/') => Ok(Self::Path(path.into())),
            other => Err(D::Error::custom(format!("network is '{other}': write host, private or a path"))),
        }
    }
}

impl<'de> Deserialize<'de> for Probe {
    /// `"alive"`, `"tcp://host:port"`, `"http://host:port/path"`, or a list of words: a command.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Text(String),
            Words(Vec<String>),
        }
        let wrong = |text: &str| {
            D::Error::custom(format!(
                "probe is '{text}': write alive, tcp://host:port, http://host:port/path or a list of words"
            ))
        };
        match Raw::deserialize(deserializer)? {
            Raw::Words(words) if words.is_empty() => Err(wrong("[]")),
            Raw::Words(words) => Ok(Self::Command(words)),
            Raw::Text(text) if text == "alive" => Ok(Self::Alive),
            Raw::Text(text) => {
                let (kind, rest) = text.split_once("://").ok_or_else(|| wrong(&text))?;
                let (address, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
                let port = address.rsplit_once(':').and_then(|(host, port)| {
                    (!host.is_empty()).then_some(())?;
                    port.parse::<u16>().ok()
                });
                // A line break would let the path add further headers.
                let clean = path.bytes().all(|byte| byte.is_ascii_graphic());
                match (kind, port) {
                    ("tcp", Some(_)) if path == "/" => Ok(Self::Tcp(address.to_owned())),
                    ("http", Some(_)) if clean => Ok(Self::Http(address.to_owned(), path.to_owned())),
                    _ => Err(wrong(&text)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        toml::from_str(&format!("command = [\"/app\"]\n{text}")).map_err(|e| e.message().to_owned())
    }

    #[test]
    fn an_empty_section_is_all_defaults() {
        assert_eq!(parse("").unwrap(), Config::new(vec!["/app".to_owned()]));
        assert!(toml::from_str::<Config>("").is_err(), "without a command there is nothing to run");
        assert!(toml::from_str::<Config>("command = [\"app\"]").is_err());
        assert!(parse("comand = 1").unwrap_err().contains("unknown field"));
    }

    #[test]
    fn probes_and_networks() {
        let probe = |text: &str| parse(&format!("probe = {text}")).map(|config| config.probe);
        assert_eq!(probe("\"alive\""), Ok(Probe::Alive));
        assert_eq!(probe("\"tcp://localhost:80\""), Ok(Probe::Tcp("localhost:80".to_owned())));
        let http = |path: &str| Ok(Probe::Http("[::1]:8080".to_owned(), path.to_owned()));
        assert_eq!(probe("\"http://[::1]:8080\""), http("/"));
        assert_eq!(probe("\"http://[::1]:8080/a?b\""), http("/a?b"));
        assert_eq!(probe("[\"/bin/ok\"]"), Ok(Probe::Command(vec!["/bin/ok".to_owned()])));
        for wrong in [
            "\"\"",
            "[]",
            "\"http://host\"",
            "\"tcp://:1\"",
            "\"tcp://h:1/x\"",
            "\"http://h:1/\\r\\nx\"",
            "\"ftp://h:1\"",
        ] {
            assert!(probe(wrong).is_err(), "{wrong}");
        }
        let network = |text: &str| parse(&format!("network = \"{text}\"")).map(|config| config.network);
        assert_eq!(network("private"), Ok(Network::Private));
        assert_eq!(network("/run/netns/x"), Ok(Network::Path("/run/netns/x".into())));
        assert!(network("bridge").is_err());
    }

    #[test]
    fn times_are_seconds_within_reason() {
        assert_eq!(parse("deadline = 0.5").unwrap().deadline, Duration::from_millis(500));
        assert_eq!(parse("deadline = 7").unwrap().deadline, Duration::from_secs(7));
        for wrong in ["0", "-1", "nan", "inf", "3601", "1e300"] {
            assert!(parse(&format!("deadline = {wrong}")).is_err(), "{wrong}");
        }
    }
}
