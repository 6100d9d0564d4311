//! The official client of the upgrade API, unchanged, and a service for it; scripts/test installs its versions.

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::{Bench, Server, run};

/// The client; `None` prints SKIPPED, and is a failure in CI. `QSTAGE_TEST_CLIENT` names the newest, and
/// `QSTAGE_TEST_CLIENTS` the directory with the other versions.
pub(crate) fn program(version: Option<&str>) -> Option<String> {
    let client = match version {
        None => std::env::var("QSTAGE_TEST_CLIENT").ok(),
        Some(version) => {
            std::env::var("QSTAGE_TEST_CLIENTS").ok().map(|dir| format!("{dir}/{version}/bin/qq"))
        }
    };
    if client.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI runs the official client");
        eprintln!("SKIPPED: needs the official client, see scripts/test");
    }
    client
}

/// A client with a token for writing, and the service that accepts it.
pub(crate) struct Pair {
    pub(crate) bench: Bench,
    pub(crate) server: Server,
    client: String,
}

impl Pair {
    /// With the newest client.
    pub(crate) fn new(rate: Option<&str>, service: &str) -> Option<Self> {
        Self::of(None, rate, service)
    }

    /// With the client of another version; `None`: the newest.
    pub(crate) fn of(version: Option<&str>, rate: Option<&str>, service: &str) -> Option<Self> {
        let client = program(version)?;
        let bench = Bench::new(rate);
        let credentials = json!({"version": 1, "bearer_token": "secret"});
        std::fs::write(bench.path("credentials"), credentials.to_string()).unwrap();
        std::fs::write(bench.path("secret"), "secret").unwrap();
        let hash = run(Command::new("sha256sum").arg(bench.path("secret")));
        std::fs::write(bench.path("tokens"), format!("qq write {}\n", &hash[..64])).unwrap();
        bench.configure(rate, &format!("tokens = {:?}\n{service}", bench.path("tokens")));
        let server = bench.serve();
        Some(Self { bench, server, client })
    }

    /// Restarts the service with another table `[service]`.
    pub(crate) fn restart(&mut self, service: &str) {
        self.server.end();
        self.bench.configure(None, &format!("tokens = {:?}\n{service}", self.bench.path("tokens")));
        self.server = self.bench.serve();
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let (host, port) = self.server.address.split_once(':').unwrap();
        let mut command = Command::new(&self.client);
        command
            .args(["--host", host, "--port", port, "--credentials-store"])
            .arg(self.bench.path("credentials"));
        command.args(args).stdin(Stdio::null()).env("HOME", self.bench.dir.path());
        command
    }

    pub(crate) fn qq(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs the client; returns its output. It must neither fail nor stop with an assertion of its own.
    pub(crate) fn says(&self, args: &[&str]) -> String {
        let output = self.qq(args);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !told.contains("Traceback"), "{args:?}: {told}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.says(args)).unwrap()
    }
}
