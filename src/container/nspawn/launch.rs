//! The command line of systemd-nspawn(1), and the supervision of its process.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::exit;
use super::gate::{CONSOLE, INSIDE, Tools};
use super::idmap;
use super::process::Process;
use crate::container::{Config, Network};
use crate::host::program::{End, PATH, Program};

/// Time limit of systemd to start a unit.
const UNIT_LIMIT: Duration = Duration::from_secs(10);

/// Settings for the environment in which nspawn is started.
pub(super) struct Outside<'a> {
    /// Devices that the closed device policy permits.
    pub(super) devices: &'a [PathBuf],
    /// The network namespace that nspawn is started in; `None`: this one.
    pub(super) network: Option<&'a Path>,
}

impl<'a> Outside<'a> {
    pub(super) fn of(config: &'a Config, private: bool) -> Self {
        let network = match &config.network {
            Network::Path(path) if private => Some(path.as_path()),
            _ => None,
        };
        Self { devices: &config.devices, network }
    }
}

/// Name of the gate's directory, within that of the container.
pub(super) const GATE_DIR: &str = "gate";

/// A container that was launched and has not reached its gate yet.
pub(super) struct Launched {
    /// The process of systemd-nspawn.
    pub(super) process: Process,
    /// Its transient unit; `None` if systemd does not run.
    pub(super) unit: Option<String>,
}

/// Options and command of systemd-nspawn for the container in `dir`.
///
/// `--keep-unit --register=no`: qstage supervises it, and machined would need a bus. `--as-pid2`: process 1 ignores every
/// signal without a handler, so a program that is process 1 and does not handle SIGTERM would have to be killed each time;
/// as process 2 it ends.
pub(super) fn arguments(
    config: &Config,
    dir: &Path,
    id: &str,
    tools: &Tools,
    private: bool,
) -> Vec<OsString> {
    let mut args: Vec<OsString> =
        ["--quiet", "--settings=no", "--register=no", "--keep-unit", "--console=pipe"]
            .map(OsString::from)
            .to_vec();
    let mut option = |name: &str, value: &str| args.push(format!("--{name}={value}").into());
    option("directory", &dir.join("root").display().to_string());
    option("machine", &format!("qstage-{id}"));
    if let Ok(host) = std::fs::read_to_string("/proc/sys/kernel/hostname") {
        option("hostname", host.trim_end());
    }
    option("link-journal", "no");
    if config.overlay {
        option("volatile", "overlay");
    }
    match &config.network {
        Network::Host => {}
        Network::Private => args.push("--private-network".into()),
        // From its user namespace nspawn may not enter a network namespace of the host: nspawn is started in it instead.
        Network::Path(_) if private => {}
        Network::Path(path) => option("network-namespace-path", &path.display().to_string()),
    }
    let mut option = |name: &str, value: &str| args.push(format!("--{name}={value}").into());
    // Read-only: a socket still accepts connections, and the program must not change anything here.
    option("bind-ro", &format!("{}:{INSIDE}", escaped(&dir.join(GATE_DIR))));
    let mapped = |bind: &str| if private { idmap::mapped(bind) } else { bind.to_owned() };
    if let Some(console) = &config.console {
        option("bind", &mapped(&format!("{}:{CONSOLE}", escaped(console))));
    }
    config.state.iter().chain(&config.bind).for_each(|bind| option("bind", &mapped(bind)));
    config.bind_ro.iter().for_each(|bind| option("bind-ro", &mapped(bind)));
    config.environment.iter().for_each(|pair| option("setenv", pair));
    if config.pid1 {
        option("kill-signal", config.stop_signal.as_deref().unwrap_or("SIGRTMIN+3"));
    } else {
        args.push("--as-pid2".into());
    }
    if !config.overlay {
        args.push("--read-only".into());
    }
    args.extend(config.boundary(private).into_iter().map(OsString::from));
    args.extend(config.options.iter().map(OsString::from));
    args.push("--".into());
    args.extend(tools.prefix.iter().map(OsString::from));
    args.extend(["container", "gate"].map(OsString::from));
    args
}

/// Escapes colons, which separate the parts of a bind for nspawn.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace('\\', "\\\\").replace(':', "\\:")
}

/// Arguments that start it as a transient unit: it must not end with the session or the service that started it.
fn unit_arguments(unit: &str, dir: &Path, outside: &Outside<'_>, nspawn: &[OsString]) -> Vec<OsString> {
    // As in systemd-nspawn@.service, except for its devices: no loop devices, no tunnels.
    let mut args: Vec<OsString> = [
        "--quiet",
        "--collect",
        "--service-type=exec",
        "--slice=machine.slice",
        "--property=KillMode=mixed",
        "--property=Delegate=yes",
        "--property=TasksMax=16384",
        "--property=DevicePolicy=closed",
        "--property=DeviceAllow=char-pts rw",
    ]
    .map(OsString::from)
    .to_vec();
    args.push(exit::property(dir));
    let property = |name: &str, value: &str| format!("--property={name}={value}").into();
    let devices = outside.devices.iter().map(|node| format!("{} rw", node.display()));
    args.extend(devices.map(|device| property("DeviceAllow", &device)));
    args.extend(outside.network.map(|path| property("NetworkNamespacePath", &path.display().to_string())));
    args.extend([OsString::from(format!("--unit={unit}")), "--".into(), "systemd-nspawn".into()]);
    args.extend(nspawn.iter().cloned());
    args
}

/// Starts nspawn for the container with this name and run directory: as a unit if systemd runs, else as a new session. `log`
/// takes the messages of nspawn if there is no journal.
pub(super) fn launch(
    (id, dir): (&str, &Path),
    outside: &Outside<'_>,
    nspawn: &[OsString],
    systemd: bool,
    log: File,
) -> io::Result<Launched> {
    if !systemd {
        // setsid(1) without --fork and nsenter(1) become nspawn by execve, so the process ID is that of nspawn.
        let enter = outside.network.map(|path| format!("--net={}", path.display()));
        let enter = enter.iter().flat_map(|network| ["nsenter", network.as_str(), "--"]);
        let mut child = Command::new("setsid")
            .env("PATH", PATH)
            .args(enter)
            .arg("systemd-nspawn")
            .args(nspawn)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let process = Process::of(child.id()).ok_or_else(|| io::Error::other("it ended at once"))?;
        // While this process lives, nothing else reaps nspawn. If no thread can be started, it stays a zombie until this
        // process ends.
        let dir = dir.to_owned();
        let _ = crate::workers::spawn("waiting for nspawn", move || {
            child.wait().and_then(|status| exit::store(&dir, status))
        });
        return Ok(Launched { process, unit: None });
    }
    let unit = format!("qstage-container-{id}.service");
    run("systemd-run", &unit_arguments(&unit, dir, outside, nspawn))?;
    let until = std::time::Instant::now() + UNIT_LIMIT;
    loop {
        let shown = run("systemctl", &["show", "--property=MainPID", "--value", &unit].map(OsString::from))?;
        let pid = shown.trim().parse().ok().filter(|pid| *pid != 0);
        if let Some(process) = pid.and_then(Process::of) {
            return Ok(Launched { process, unit: Some(unit) });
        }
        if std::time::Instant::now() >= until {
            return Err(io::Error::other(format!("{unit} has no main process; see journalctl -u {unit}")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn run(program: &str, args: &[OsString]) -> io::Result<String> {
    let outcome = Program::new(program, UNIT_LIMIT * 3).args(args).answer().run()?;
    match outcome.end {
        end if end.success() => Ok(String::from_utf8_lossy(&outcome.answer).into_owned()),
        End::Exited(_) => Err(io::Error::other(format!("{program}: {}", outcome.last_words))),
        End::TimedOut(_) => Err(io::Error::other(format!("{program} {}", outcome.end))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(config: &Config) -> Vec<String> {
        let tools = Tools { files: Vec::new(), prefix: vec!["Q".into()] };
        arguments(config, Path::new("/run/q:s/x"), "b-1", &tools, true)
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect()
    }

    #[test]
    fn every_key_reaches_nspawn() {
        let mut config = Config::new(vec!["/app".to_owned()]);
        let plain = line(&config);
        for word in
            ["--directory=/run/q:s/x/root", "--as-pid2", "--read-only", "--settings=no", "--private-network"]
        {
            assert!(plain.iter().any(|one| one == word), "{word}: {plain:?}");
        }
        assert!(plain.contains(&"--bind-ro=/run/q\\:s/x/gate:/run/qstage-gate".to_owned()), "{plain:?}");
        assert_eq!(plain[plain.len() - 4..], ["--", "Q", "container", "gate"]);
        config.pid1 = true;
        config.overlay = true;
        config.network = Network::Path("/run/netns/x".into());
        config.state = Some("/var/lib/app:/state".to_owned());
        config.bind_ro = vec!["/etc/x:/etc/x".to_owned()];
        config.environment = vec!["A=b c".to_owned()];
        config.options = vec!["--capability=CAP_NET_ADMIN".to_owned()];
        config.console = Some("/var/log/app".into());
        let full = line(&config);
        for word in [
            "--volatile=overlay",
            "--bind=/var/lib/app:/state:idmap",
            "--bind-ro=/etc/x:/etc/x:idmap",
            "--setenv=A=b c",
            "--capability=CAP_NET_ADMIN",
            "--kill-signal=SIGRTMIN+3",
            "--bind=/var/log/app:/run/qstage-console:idmap",
        ] {
            assert!(full.iter().any(|one| one == word), "{word}: {full:?}");
        }
        assert!(!full.iter().any(|word| word == "--as-pid2" || word == "--read-only"), "{full:?}");
        let outside = Outside::of(&config, true);
        assert_eq!(outside.network, Some(Path::new("/run/netns/x")));
        assert!(Outside::of(&config, false).network.is_none());
        config.network = Network::Host;
        assert!(!line(&config).iter().any(|word| word.contains("network")));
    }

    #[test]
    fn under_systemd_it_is_a_unit_of_its_own() {
        let outside = Outside { devices: &["/dev/ttyS0".into()], network: Some(Path::new("/run/netns/x")) };
        let words = unit_arguments("x.service", Path::new("/run/q/x"), &outside, &["--quiet".into()]);
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        let split = words.iter().position(|word| *word == "--").unwrap();
        for word in [
            "--unit=x.service",
            "--collect",
            "--property=DevicePolicy=closed",
            "--property=DeviceAllow=/dev/ttyS0 rw",
            "--property=NetworkNamespacePath=/run/netns/x",
        ] {
            assert!(words[..split].contains(&word), "{word}: {words:?}");
        }
        assert_eq!(words[split + 1..], ["systemd-nspawn", "--quiet"]);
    }
}
