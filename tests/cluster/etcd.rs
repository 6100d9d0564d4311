//! A real etcd: one member, with or without certificates and users, or three. Its `Drop` ends it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use qstage::cluster::etcd::EtcdConfig;

use crate::harness::clock::HANG;
use crate::harness::load::bound;
use crate::harness::ports::free_port;

/// Processor time that a process has used, in the unit of /proc/stat.
pub(crate) fn used(process: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let after = text.rsplit(')').next().unwrap_or_default();
    after.split_whitespace().skip(11).take(2).filter_map(|time| time.parse::<u64>().ok()).sum()
}

/// Certificates of a cluster: one authority, and one certificate for 127.0.0.1 for both server and client.
pub(crate) struct Certificates {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificates {
    pub(crate) fn new(dir: &Path) -> Self {
        let script = "set -e
            openssl ecparam -name prime256v1 -genkey -noout -out ca.key
            openssl req -x509 -new -key ca.key -subj /CN=test -days 2 -out ca.pem \
                -addext basicConstraints=critical,CA:TRUE
            openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out node.key
            openssl req -new -key node.key -subj /O=node -out node.csr
            printf 'subjectAltName=IP:127.0.0.1\\nextendedKeyUsage=serverAuth,clientAuth\\n' > ext
            openssl x509 -req -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out node.pem";
        let done = Command::new("sh").args(["-c", script]).current_dir(dir).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let path = |name: &str| dir.join(name);
        Self { ca: path("ca.pem"), cert: path("node.pem"), key: path("node.key") }
    }
}

/// Member of etcd.
struct Member {
    name: &'static str,
    client: u16,
    peer: u16,
    /// Directory of its data, below that of the etcd.
    data: String,
    child: Option<Child>,
}

impl Member {
    fn new(name: &'static str) -> Self {
        Self { name, client: free_port(), peer: free_port(), data: name.to_owned(), child: None }
    }

    fn peer(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer)
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) struct Etcd {
    /// The first is the one that clients are directed to.
    members: Vec<Member>,
    dir: tempfile::TempDir,
    certificates: Option<Certificates>,
    /// Maximum size of its database in bytes; `None`: that of etcd.
    pub(crate) quota: Option<u32>,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Etcd {
    /// Starts one member; `None`, with a message, if there is no etcd outside of CI.
    pub(crate) fn start(tls: bool) -> Option<Self> {
        if Command::new("etcd").arg("--version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "CI runs etcd");
            eprintln!("SKIPPED: needs etcd (package etcd-server)");
            return None;
        }
        Some(Self::of(&["one"], tls))
    }

    /// Starts three members without certificates; `None`: as in [`Self::start`].
    pub(crate) fn three() -> Option<Self> {
        let one = Self::start(false)?;
        drop(one);
        Some(Self::of(&["one", "two", "three"], false))
    }

    fn of(names: &[&'static str], tls: bool) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let certificates = tls.then(|| Certificates::new(dir.path()));
        let members = names.iter().map(|name| Member::new(name)).collect();
        let mut etcd = Self { members, dir, certificates, quota: None };
        etcd.again();
        etcd
    }

    /// Starts the members that do not run, with their previous data.
    pub(crate) fn again(&mut self) {
        let all: Vec<String> =
            self.members.iter().map(|member| format!("{}={}", member.name, member.peer())).collect();
        let scheme = self.scheme();
        for member in &mut self.members {
            if member.child.is_some() {
                continue;
            }
            let (client, peer) = (format!("{scheme}://127.0.0.1:{}", member.client), member.peer());
            let mut command = bound("etcd");
            command.arg("--data-dir").arg(self.dir.path().join(&member.data));
            command.args(["--name", member.name, "--logger", "zap"]);
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.args(["--initial-cluster", &all.join(","), "--unsafe-no-fsync"]);
            if let Some(Certificates { ca, cert, key }) = &self.certificates {
                command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
                command.arg("--cert-file").arg(cert).arg("--key-file").arg(key);
            }
            if let Some(quota) = self.quota {
                command.args(["--quota-backend-bytes", &quota.to_string()]);
            }
            let log = std::fs::File::create(self.dir.path().join(format!("{}.log", member.name))).unwrap();
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
            member.child = Some(child);
        }
        let begun = Instant::now();
        while !self.ctl(&["endpoint", "health"]).status.success() {
            assert!(begun.elapsed() < HANG, "etcd does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Starts it again with certificates of another authority.
    pub(crate) fn certified_by(&mut self, certificates: Certificates) {
        self.stop();
        self.certificates = Some(certificates);
        self.again();
    }

    /// Processor time that its first member has used.
    pub(crate) fn used(&self) -> u64 {
        self.members[0].child.as_ref().map_or(0, |child| used(&child.id().to_string()))
    }

    pub(crate) fn stop(&mut self) {
        self.members.iter_mut().for_each(Member::stop);
    }

    /// Stops all members but the first.
    pub(crate) fn stop_others(&mut self) {
        self.members.iter_mut().skip(1).for_each(Member::stop);
    }

    /// Starts the first member from a snapshot, which `snapshot save` made. For an etcd of one member.
    pub(crate) fn restore(&mut self, snapshot: &Path) {
        self.stop();
        let member = &mut self.members[0];
        member.data = "restored".to_owned();
        let data = self.dir.path().join(&member.data);
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["snapshot", "restore"])
            .arg(snapshot)
            .arg("--data-dir")
            .arg(data);
        command.args([
            "--name",
            member.name,
            "--initial-cluster",
            &format!("{}={}", member.name, member.peer()),
        ]);
        let output = command.args(["--initial-advertise-peer-urls", &member.peer()]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        self.again();
    }

    fn scheme(&self) -> &'static str {
        if self.certificates.is_some() { "https" } else { "http" }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme(), self.members[0].client)
    }

    pub(crate) fn access(&self, prefix: &str) -> EtcdConfig {
        let mut access =
            EtcdConfig { endpoints: vec![self.url()], prefix: prefix.to_owned(), ..EtcdConfig::default() };
        if let Some(Certificates { ca, cert, key }) = &self.certificates {
            access.ca = Some(ca.clone());
            access.identity = Some((cert.clone(), key.clone()));
        }
        access
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs etcdctl, which shares no code with this program.
    pub(crate) fn ctl(&self, args: &[&str]) -> Output {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url(), "--command-timeout", "2s"]);
        if let Some(Certificates { ca, cert, key }) = &self.certificates {
            command.arg("--cacert").arg(ca).arg("--cert").arg(cert).arg("--key").arg(key);
        }
        command.args(args).stdin(Stdio::null()).output().unwrap()
    }

    pub(crate) fn says(&self, args: &[&str]) -> String {
        let output = self.ctl(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Every key, and the revision that changed it last.
    pub(crate) fn keys(&self) -> BTreeMap<String, i64> {
        let text = self.says(&["get", "", "--from-key", "--keys-only", "-w", "fields"]);
        let field = |name: &str| {
            let start = format!("\"{name}\" : ");
            text.lines().filter_map(|line| line.strip_prefix(&start)).map(str::to_owned).collect::<Vec<_>>()
        };
        let revisions = field("ModRevision").into_iter().map(|revision| revision.parse().unwrap());
        field("Key").into_iter().map(|key| key.trim_matches('"').to_owned()).zip(revisions).collect()
    }

    /// Keys that were written or deleted since `before`, an earlier [`Self::keys`].
    pub(crate) fn changed(&self, before: &BTreeMap<String, i64>) -> BTreeSet<String> {
        let now = self.keys();
        let keys = before.keys().chain(now.keys());
        keys.filter(|key| before.get(*key) != now.get(*key)).cloned().collect()
    }

    /// Present revision, that is the number of changes.
    pub(crate) fn revision(&self) -> i64 {
        let status: serde_json::Value =
            serde_json::from_str(&self.says(&["endpoint", "status", "-w", "json"])).unwrap();
        status[0]["Status"]["header"]["revision"].as_i64().unwrap()
    }
}
