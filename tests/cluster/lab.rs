//! Three nodes on one machine: each is a service with its own disk image, state directory and boot ID. The reboot command
//! ends the service, and starts it again from the slot that `qstage-select` names, which counts the try.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::etcd::Etcd;
use crate::harness::clock::HANG;
use crate::harness::loops::LEAVE_MOUNTS;
use crate::harness::ports::free_port;
use crate::harness::server::client::program;
use crate::harness::server::{Bench, QSTAGE, run};

/// Time for which a node is down while it reboots.
const BOOT: Duration = Duration::from_millis(700);

/// Restart of the software of a node, in its directory: it waits while there is a file `slow`, and fails if there is `sick`.
const RESTART: &str = "date +%s.%N >> restarts; if test -e slow; then while test -e slow; do sleep 0.05; done; touch restarted; fi; \
     ! rm sick 2>/dev/null";

/// Node of the test.
pub(crate) struct Node {
    pub(crate) number: usize,
    dir: PathBuf,
    port: u16,
    /// Port of its software, if that is a container.
    pub(crate) app: u16,
    shared: Arc<Shared>,
    machine: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    end: AtomicBool,
    /// Whether the node has no power.
    off: AtomicBool,
    /// Whether slot b fails to come up, until its tries are used up.
    broken: AtomicBool,
    /// Whether it does not come up after its next reboot.
    stays_down: AtomicBool,
    down: AtomicBool,
    /// Times at which it went down and came up again.
    downs: Mutex<Vec<(Instant, Instant)>>,
    boots: Mutex<u32>,
    slot: Mutex<String>,
    /// Whether a unit marks each boot good by itself.
    marks: AtomicBool,
    /// Output of that unit.
    marked: Mutex<String>,
}

pub(crate) struct Lab {
    pub(crate) bench: Bench,
    pub(crate) etcd: Etcd,
    pub(crate) nodes: Vec<Node>,
}

impl Lab {
    /// Starts nodes that are members already.
    pub(crate) fn new(count: usize) -> Option<Self> {
        Self::with(count, "", None)
    }

    pub(crate) fn with(count: usize, cluster: &str, rate: Option<&str>) -> Option<Self> {
        let etcd = Etcd::start(false)?;
        Some(Self::on(etcd, Bench::new(None), count, cluster, rate))
    }

    /// Starts nodes on a bench that contains the files that the configuration names.
    pub(crate) fn on(etcd: Etcd, bench: Bench, count: usize, cluster: &str, rate: Option<&str>) -> Self {
        fs::write(bench.path("secret"), "secret").unwrap();
        let hash = run(Command::new("sha256sum").arg(bench.path("secret")));
        fs::write(bench.path("tokens"), format!("qq write {}\n", &hash[..64])).unwrap();
        let credentials = json!({"version": 1, "bearer_token": "secret"});
        fs::write(bench.path("credentials"), credentials.to_string()).unwrap();
        let mut lab = Self { bench, etcd, nodes: Vec::new() };
        for number in 1..=count {
            lab.add(number, number, cluster, rate);
        }
        for node in &lab.nodes {
            node.until("it answers", |node| node.try_get("/v1/version").is_some());
            node.until("it sees etcd", |node| node.get("/v1/qstage/cluster")["connected"] == true);
            assert_eq!(node.post("/v1/qstage/cluster/join", &Value::Null), 202);
        }
        for node in &lab.nodes {
            node.until("all are there", |node| {
                let status = node.get("/v1/qstage/cluster");
                let nodes = status["nodes"].as_array().unwrap();
                nodes.len() == count
                    && nodes.iter().all(|node| node["standing"] == "good")
                    && !status["leader"].is_null()
            });
        }
        lab
    }

    /// Starts a machine with this number in its configuration, which is no member yet.
    pub(crate) fn add(&mut self, number: usize, id: usize, cluster: &str, rate: Option<&str>) {
        self.add_with(number, id, cluster, rate, None);
    }

    /// As [`Self::add`], with a copy of the disk of another node, as a fleet has that was flashed with one image.
    pub(crate) fn add_copy(&mut self, number: usize, id: usize, of: usize) {
        let disk = self.node(of).path("disk");
        self.add_with(number, id, "", None, Some(&disk));
    }

    fn add_with(&mut self, number: usize, id: usize, cluster: &str, rate: Option<&str>, disk: Option<&Path>) {
        let dir = self.bench.path(&format!("node{number}"));
        fs::create_dir_all(&dir).unwrap();
        fs::create_dir(dir.join("health.d")).unwrap();
        let path = |name: &str| dir.join(name).display().to_string();
        let app = free_port();
        let cluster =
            cluster.replace("{DIR}", &dir.display().to_string()).replace("{PORT}", &app.to_string());
        // Lines of a node of its own, which a test has stored before.
        let own = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
        let (service, last) = (own("service.toml"), own("last.toml"));
        let rate = rate.map(|rate| format!("max_rate = \"{rate}\"\n")).unwrap_or_default();
        let text = format!(
            "disk = {:?}\ntrust = {:?}\nstate_dir = {:?}\n{rate}[service]\nimage_paths = [{:?}]\nsocket = {:?}\ntokens = {:?}\n\
             reboot_command = [\"touch\", {:?}]\nsoftware_restart_command = [\"sh\", \"-c\", {:?}]\n{service}[cluster]\nendpoints = [{:?}]\nnode = {id}\nprefix = \"/lab\"\n\
             health_checks = {:?}\n{cluster}{last}",
            path("disk"),
            self.bench.text("signers"),
            path("state"),
            self.bench.dir.path(),
            path("socket"),
            self.bench.text("tokens"),
            path("reboot"),
            format!("cd {} && {RESTART}", dir.display()),
            self.etcd.url(),
            path("health.d"),
        );
        fs::write(dir.join("config"), text).unwrap();
        if let Some(disk) = disk {
            fs::copy(disk, dir.join("disk")).unwrap();
        } else {
            let mut init = Command::new(QSTAGE);
            init.arg("init").arg(dir.join("disk")).args(["--slot-size", "12M", "--software-size", "8M"]);
            run(init.arg("--bundle").arg(self.bench.path("v1.qimg")).arg("--config").arg(dir.join("config")));
        }
        let shared = Arc::new(Shared::default());
        let (port, at, seen) = (free_port(), dir.clone(), Arc::clone(&shared));
        let machine = std::thread::spawn(move || machine(&at, port, &seen));
        self.nodes.push(Node { number, dir, port, app, shared, machine: Some(machine) });
    }

    pub(crate) fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// Command of the newest official client, for a node.
    pub(crate) fn client(&self, number: usize, args: &[&str]) -> Option<Command> {
        self.client_of(None, number, args)
    }

    /// Command of a version of the official client, for a node. `None`: it is not there.
    pub(crate) fn client_of(&self, version: Option<&str>, number: usize, args: &[&str]) -> Option<Command> {
        let client = program(version)?;
        let mut command = Command::new(client);
        let port = self.node(number).port.to_string();
        command.args(["--host", "127.0.0.1", "--port", &port, "--credentials-store"]);
        command.arg(self.bench.path("credentials")).args(args);
        command.stdin(Stdio::null()).env("HOME", self.bench.dir.path());
        Some(command)
    }

    /// Time at which the first node went down; `None`: none has.
    pub(crate) fn first_down(&self) -> Option<Instant> {
        let downs = |node: &Node| node.shared.downs.lock().unwrap().first().map(|(from, _)| *from);
        self.nodes.iter().filter_map(downs).min()
    }

    /// Maximum number of nodes that were down at the same time.
    pub(crate) fn most_down(&self) -> usize {
        let all: Vec<(Instant, Instant)> =
            self.nodes.iter().flat_map(|node| node.shared.downs.lock().unwrap().clone()).collect();
        let at = |time: &Instant| all.iter().filter(|(from, to)| from <= time && time < to).count();
        all.iter().map(|(from, _)| at(from)).max().unwrap_or(0)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for node in &self.nodes {
            node.shared.end.store(true, Ordering::Relaxed);
        }
        for node in &mut self.nodes {
            let _ = node.machine.take().map(JoinHandle::join);
            node.stop_container();
            if std::thread::panicking() {
                let log = fs::read_to_string(node.dir.join("log")).unwrap_or_default();
                eprintln!("---- node {}\n{log}", node.number);
            }
        }
    }
}

/// Simulates power, boot loader and kernel of a node.
fn machine(dir: &Path, port: u16, shared: &Shared) {
    let mut down = None;
    while !shared.end.load(Ordering::Relaxed) {
        if shared.off.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        let slot = select(dir, shared);
        shared.slot.lock().unwrap().clone_from(&slot);
        let boot = {
            let mut boots = shared.boots.lock().unwrap();
            *boots += 1;
            *boots
        };
        let mut child = start(dir, port, &slot, boot);
        if let Some(from) = down.take() {
            shared.downs.lock().unwrap().push((from, Instant::now()));
        }
        if shared.marks.load(Ordering::Relaxed) {
            let mut mark = Command::new(QSTAGE);
            mark.args(["mark-good", "--json", "--booted", &slot, "--config"]).arg(dir.join("config"));
            let output = mark.stdin(Stdio::null()).output().unwrap();
            shared.marked.lock().unwrap().push_str(&String::from_utf8_lossy(&output.stdout));
        }
        let reboot = dir.join("reboot");
        while !reboot.exists() && !shared.end.load(Ordering::Relaxed) && !shared.off.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        down = Some(Instant::now());
        // As in a power failure: the service does not shut down cleanly.
        let _ = child.kill();
        let _ = child.wait();
        let _ = fs::remove_file(&reboot);
        shared.down.store(true, Ordering::Relaxed);
        std::thread::sleep(if shared.end.load(Ordering::Relaxed) { Duration::ZERO } else { BOOT });
        while shared.stays_down.load(Ordering::Relaxed) && !shared.end.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        shared.down.store(false, Ordering::Relaxed);
    }
}

/// Slot that comes up. A slot that fails to is tried until its tries are used up.
fn select(dir: &Path, shared: &Shared) -> String {
    loop {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qstage-select"));
        command.args(["--json", "--disk"]).arg(dir.join("disk"));
        let told: Value = serde_json::from_str(&run(&mut command)).unwrap();
        let slot = told["slot"].as_str().unwrap().to_owned();
        if !(shared.broken.load(Ordering::Relaxed) && told["reason"] == "trial") {
            return slot;
        }
    }
}

/// Starts the service in a mount namespace of its own, with the boot ID of a new boot.
fn start(dir: &Path, port: u16, slot: &str, boot: u32) -> Child {
    let identity = dir.join("boot_id");
    // No two nodes have the same one.
    fs::write(&identity, format!("00000000-0000-4000-{port:04x}-{boot:012x}\n")).unwrap();
    // A directory that the file names is empty for this node, or the node has another one in its place.
    let script = "mount --bind \"$1\" /proc/sys/kernel/random/boot_id && shift && \
        if test -e \"$own/instead\" -a -e \"$1\"; then mount --bind \"$own/instead\" \"$(cat \"$1\")\"; \
        elif test -e \"$1\"; then mount -t tmpfs none \"$(cat \"$1\")\"; fi && shift && exec \"$@\"";
    let script = format!("{LEAVE_MOUNTS}{script}");
    let mut command = Command::new("unshare");
    let clock = dir.join("clock.so");
    if clock.exists() {
        command.env("LD_PRELOAD", clock);
    }
    command
        .env("own", dir)
        .args(["--mount", "sh", "-c", &script, "sh"])
        .arg(&identity)
        .arg(dir.join("hidden"))
        .arg(QSTAGE);
    command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--booted", slot, "--config"]);
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
    command.arg(dir.join("config")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

/// Sends one request to the socket of a service; `None`: none is listening, or it does not answer within `limit`.
pub(crate) fn call(
    socket: &Path,
    method: &str,
    path: &str,
    body: &str,
    limit: Duration,
) -> Option<(u16, String)> {
    use std::io::{Read, Write};
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(limit)).unwrap();
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

impl Node {
    pub(crate) fn power(&self, on: bool) {
        self.shared.off.store(!on, Ordering::Relaxed);
    }

    /// Sets whether it does not come up again once it has gone down.
    pub(crate) fn stays_down(&self, stays: bool) {
        self.shared.stays_down.store(stays, Ordering::Relaxed);
    }

    /// Whether it is between two boots.
    pub(crate) fn is_down(&self) -> bool {
        self.shared.down.load(Ordering::Relaxed)
    }

    /// Sets whether slot b fails to come up.
    pub(crate) fn breaks(&self, broken: bool) {
        self.shared.broken.store(broken, Ordering::Relaxed);
    }

    /// Makes a unit mark each boot good by itself from now on. Returns its output so far.
    pub(crate) fn marks_at_boot(&self) -> String {
        self.shared.marks.store(true, Ordering::Relaxed);
        self.shared.marked.lock().unwrap().clone()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Address of its service in the network.
    pub(crate) fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Ends the container of its software, if it has one, and removes its mounts.
    pub(crate) fn stop_container(&self) {
        if !self.dir.join("run").exists() {
            return;
        }
        let _ = self.qstage(&["container", "stop"]);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let targets = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let own: Vec<&str> = targets.filter(|target| Path::new(target).starts_with(&self.dir)).collect();
        for target in own.into_iter().rev() {
            let _ = Command::new("umount").args(["--lazy", target]).output();
        }
    }

    pub(crate) fn boots(&self) -> u32 {
        *self.shared.boots.lock().unwrap()
    }

    pub(crate) fn slot(&self) -> String {
        self.shared.slot.lock().unwrap().clone()
    }

    /// Sends one request over the Unix socket; `None`: no service is listening.
    pub(crate) fn try_call(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        call(&self.dir.join("socket"), method, path, body, Duration::from_secs(60))
    }

    pub(crate) fn try_get(&self, path: &str) -> Option<Value> {
        let (status, text) = self.try_call("GET", path, "")?;
        assert_eq!(status, 200, "GET {path}: {text}");
        Some(serde_json::from_str(&text).unwrap())
    }

    /// Sends a request, and repeats it until there is an answer: the node may be rebooting.
    pub(crate) fn get(&self, path: &str) -> Value {
        let mut answer = None;
        self.until(path, |node| {
            answer = node.try_get(path);
            answer.is_some()
        });
        answer.unwrap()
    }

    pub(crate) fn call(&self, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, text) = self.try_call("POST", path, &body).expect("the node answers");
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> u16 {
        let (status, answer) = self.call(path, body);
        assert!(status < 300, "{path}: {status} {answer}");
        status
    }

    pub(crate) fn prepare(&self, path: &str, auto_commit: bool, rolling: bool) -> (u16, Value) {
        let order = json!({"image_path": path, "auto_commit": auto_commit, "do_rolling_reboot": rolling,
            "num_nodes_to_reboot": null});
        self.call("/v2/upgrade/prepare", &order)
    }

    pub(crate) fn state(&self) -> String {
        self.get("/v3/upgrade/status")["state"]
            .as_str()
            .unwrap()
            .trim_start_matches("UPGRADE_STATE_")
            .to_owned()
    }

    pub(crate) fn version(&self) -> String {
        self.get("/v1/version")["revision_id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < HANG, "node {}: not within {HANG:?}: {what}", self.number);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs a command of `qstage` at this node.
    pub(crate) fn qstage(&self, args: &[&str]) -> Output {
        let mut command = Command::new(QSTAGE);
        command.args(args).arg("--config").arg(self.dir.join("config")).stdin(Stdio::null()).output().unwrap()
    }
}
