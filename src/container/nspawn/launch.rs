//! The command line of systemd-nspawn(1), and who looks after the process.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::gate::{CONSOLE, INSIDE, IO, Tools};
use super::process::Process;
use crate::container::{Config, Network};

/// How long systemd may take to start a unit.
const UNIT_LIMIT: Duration = Duration::from_secs(10);

/// A container on its way to its gate.
pub(super) struct Launched {
    /// The process of systemd-nspawn.
    pub(super) process: Process,
    /// The transient unit that it is in, where systemd runs.
    pub(super) unit: Option<String>,
}

/// Options and command of systemd-nspawn for the container in `dir`.
///
/// `--keep-unit --register=no`: who starts it looks after it, and machined would want a bus. `--as-pid2`: process 1
/// ignores every signal that it has no handler for, so a program that is 1 and knows no SIGTERM would have to be killed
/// each time; as 2 it dies of it.
pub(super) fn arguments(config: &Config, dir: &Path, id: &str, tools: &Tools) -> Vec<OsString> {
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
        Network::Path(path) => option("network-namespace-path", &path.display().to_string()),
    }
    let mut option = |name: &str, value: &str| args.push(format!("--{name}={value}").into());
    for (file, name) in &tools.files {
        option("bind-ro", &format!("{}:{INSIDE}/{name}", escaped(file)));
    }
    // Read-only: a socket can be connected to all the same, and the program must not fill the host's /run.
    option("bind-ro", &format!("{}:{INSIDE}/{IO}", escaped(&dir.join(IO))));
    if let Some(console) = &config.console {
        option("bind", &format!("{}:{INSIDE}/{CONSOLE}", escaped(console)));
    }
    config.state.iter().chain(&config.bind).for_each(|bind| option("bind", bind));
    config.bind_ro.iter().for_each(|bind| option("bind-ro", bind));
    config.environment.iter().for_each(|pair| option("setenv", pair));
    if config.pid1 {
        option("kill-signal", config.stop_signal.as_deref().unwrap_or("SIGRTMIN+3"));
    } else {
        args.push("--as-pid2".into());
    }
    if !config.overlay {
        args.push("--read-only".into());
    }
    args.extend(config.options.iter().map(OsString::from));
    args.push("--".into());
    args.extend(tools.prefix.iter().map(OsString::from));
    args.extend(["container", "gate"].map(OsString::from));
    args
}

/// nspawn separates the parts of a bind by colons.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace('\\', "\\\\").replace(':', "\\:")
}

/// The words that start it as a transient unit: it must not end with the session or the service that started it.
fn unit_arguments(unit: &str, nspawn: &[OsString]) -> Vec<OsString> {
    // As systemd-nspawn@.service has them.
    let mut args: Vec<OsString> = [
        "--quiet",
        "--collect",
        "--service-type=exec",
        "--slice=machine.slice",
        "--property=KillMode=mixed",
        "--property=Delegate=yes",
        "--property=TasksMax=16384",
    ]
    .map(OsString::from)
    .to_vec();
    args.extend([OsString::from(format!("--unit={unit}")), "--".into(), "systemd-nspawn".into()]);
    args.extend(nspawn.iter().cloned());
    args
}

/// Starts nspawn: where systemd runs as a unit, else as a session of its own. `log` takes what nspawn itself has to
/// say where there is no journal.
pub(super) fn launch(id: &str, nspawn: &[OsString], systemd: bool, log: File) -> io::Result<Launched> {
    if !systemd {
        // setsid(1): without --fork it becomes nspawn, so the number is nspawn's.
        let mut child = Command::new("setsid")
            .arg("systemd-nspawn")
            .args(nspawn)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let process = Process::of(child.id()).ok_or_else(|| io::Error::other("it ended at once"))?;
        // Nobody else takes the exit status as long as this process lives.
        // Without a thread it stays a zombie until then, and nobody waits for it.
        let _ = crate::workers::spawn("waiting for nspawn", move || child.wait());
        return Ok(Launched { process, unit: None });
    }
    let unit = format!("qstage-container-{id}.service");
    run("systemd-run", &unit_arguments(&unit, nspawn))?;
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
    let output = Command::new(program).args(args).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(io::Error::other(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(config: &Config) -> Vec<String> {
        let tools =
            Tools { files: vec![("/usr/bin/qstage".into(), "qstage".into())], prefix: vec!["Q".into()] };
        arguments(config, Path::new("/run/q:s/x"), "b-1", &tools)
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect()
    }

    #[test]
    fn every_key_reaches_nspawn() {
        let mut config = Config::new(vec!["/app".to_owned()]);
        let plain = line(&config);
        for word in
            ["--directory=/run/q:s/x/root", "--as-pid2", "--read-only", "--settings=no", "--keep-unit"]
        {
            assert!(plain.iter().any(|one| one == word), "{word}: {plain:?}");
        }
        assert!(plain.contains(&"--bind-ro=/run/q\\:s/x/io:/run/qstage-gate/io".to_owned()), "{plain:?}");
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
            "--network-namespace-path=/run/netns/x",
            "--bind=/var/lib/app:/state",
            "--bind-ro=/etc/x:/etc/x",
            "--setenv=A=b c",
            "--capability=CAP_NET_ADMIN",
            "--kill-signal=SIGRTMIN+3",
            "--bind=/var/log/app:/run/qstage-gate/console",
        ] {
            assert!(full.iter().any(|one| one == word), "{word}: {full:?}");
        }
        assert!(!full.iter().any(|word| word == "--as-pid2" || word == "--read-only"), "{full:?}");
        config.network = Network::Private;
        assert!(line(&config).contains(&"--private-network".to_owned()));
    }

    #[test]
    fn under_systemd_it_is_a_unit_of_its_own() {
        let words = unit_arguments("x.service", &["--quiet".into()]);
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        let split = words.iter().position(|word| *word == "--").unwrap();
        assert!(words[..split].contains(&"--unit=x.service") && words[..split].contains(&"--collect"));
        assert_eq!(words[split + 1..], ["systemd-nspawn", "--quiet"]);
    }
}
