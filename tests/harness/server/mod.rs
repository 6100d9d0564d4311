//! A real service on a disk image: its own process, an ephemeral port, a Unix socket.
pub(crate) mod client;

use crate::harness::clock::HANG;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(crate) const QSTAGE: &str = env!("CARGO_BIN_EXE_qstage");
pub(crate) const MIB: usize = 1 << 20;

/// Images, bundles, keys and a disk with 1.0 in slot a.
pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
}

/// Incompressible bytes, different for each seed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub(crate) fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {told}");
    String::from_utf8(output.stdout).unwrap()
}

impl Bench {
    /// `rate` limits the write rate of prepare, so that there is time to observe it.
    pub(crate) fn new(rate: Option<&str>) -> Self {
        Self::sized(rate, 4)
    }

    /// The same with platform images of this size in MiB.
    pub(crate) fn sized(rate: Option<&str>, platform: usize) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let bench = Self { dir };
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(bench.path("key")));
        let key = fs::read_to_string(bench.path("key.pub")).unwrap();
        fs::write(bench.path("signers"), format!("r@example.org namespaces=\"qimg\" {key}")).unwrap();
        for (name, seed) in [("p1", 1), ("p2", 2), ("p3", 7), ("s1", 3), ("s2", 4)] {
            fs::write(bench.path(name), noise(if name.starts_with('p') { platform } else { 2 } * MIB, seed))
                .unwrap();
        }
        for (bundle, version, platform, software) in [
            ("v1.qimg", "1.0", "p1", "s1"),
            ("v2.qimg", "2.0", "p2", "s2"),
            ("v3.qimg", "3.0", "p2", "s1"),
            ("soft.qimg", "1.5", "p1", "s2"),
            ("old.qimg", "0.9", "p2", "s2"),
            ("bad.qimg", "3.5", "p3", "s1"),
        ] {
            bench.pack(bundle, version, platform, software);
        }
        // A frame in its middle is damaged, which no inspection finds.
        let mut bad = fs::read(bench.path("bad.qimg")).unwrap();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        fs::write(bench.path("bad.qimg"), bad).unwrap();
        bench.configure(rate, "");
        let mut init = Command::new(QSTAGE);
        let slot = format!("{}M", platform + 8);
        init.arg("init").arg(bench.path("disk")).args(["--slot-size", &slot, "--software-size", "8M"]);
        run(init.arg("--bundle").arg(bench.path("v1.qimg")).arg("--config").arg(bench.path("config")));
        bench
    }

    /// Packs and signs a bundle.
    pub(crate) fn pack(&self, bundle: &str, version: &str, platform: &str, software: &str) {
        self.pack_with(bundle, version, platform, software, &[]);
    }

    /// The same with additional options.
    pub(crate) fn pack_with(
        &self,
        bundle: &str,
        version: &str,
        platform: &str,
        software: &str,
        options: &[&str],
    ) {
        let path = |name: &str| self.path(name);
        let mut pack = Command::new(QSTAGE);
        pack.args(["pack", "--force", "--product", "Demo", "--level", "1", "--version", version, "--key"])
            .arg(path("key"));
        pack.arg("--platform").arg(path(platform)).arg("--software").arg(path(software));
        run(pack.args(options).arg("-o").arg(path(bundle)));
    }

    /// Writes the configuration; `service` goes into the table of that name.
    pub(crate) fn configure(&self, rate: Option<&str>, service: &str) {
        let path = |name: &str| self.path(name).display().to_string();
        let rate = rate.map(|rate| format!("max_rate = \"{rate}\"\n")).unwrap_or_default();
        let allowed = format!("image_paths = [{:?}]\n", self.dir.path());
        let allowed = if service.contains("image_paths") { "" } else { &allowed };
        let text = format!(
            "disk = {:?}\ntrust = {:?}\nstate_dir = {:?}\n{rate}[service]\nsocket = {:?}\n{allowed}{service}",
            path("disk"),
            path("signers"),
            path("state"),
            path("socket")
        );
        fs::write(self.path("config"), text).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A verb on the disk, without the service.
    pub(crate) fn qstage(&self, args: &[&str]) -> Output {
        let mut command = Command::new(QSTAGE);
        command.args(args).arg("--config").arg(self.path("config")).stdin(Stdio::null());
        command.output().unwrap()
    }

    pub(crate) fn serve(&self) -> Server {
        self.serve_with(&["--booted", "a"])
    }

    /// Starts a service and waits until it is ready.
    pub(crate) fn serve_with(&self, more: &[&str]) -> Server {
        self.serve_in(more, &[])
    }

    /// The same with additional environment variables.
    pub(crate) fn serve_in(&self, more: &[&str], environment: &[(&str, &str)]) -> Server {
        let mut command = Command::new(QSTAGE);
        command.envs(environment.iter().copied());
        self.serve_by(command, more)
    }

    /// The same by a command that executes the program with the arguments that are appended.
    pub(crate) fn serve_by(&self, mut command: Command, more: &[&str]) -> Server {
        let log = self.path("log");
        let out = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let begin = fs::metadata(&log).unwrap().len() as usize;
        command.args(["serve", "--listen", "127.0.0.1:0", "--config"]).arg(self.path("config")).args(more);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(out).spawn().unwrap();
        let mut server = Server { child, log, begin, address: String::new(), socket: self.path("socket") };
        server.address = server.logged("listening", "address");
        server.until("it answers", |server| server.try_call("GET", "/v1/version", "").is_some());
        server
    }
}

/// A running service; the drop ends it.
pub(crate) struct Server {
    child: Child,
    log: PathBuf,
    begin: usize,
    /// Address of the HTTPS listener.
    pub(crate) address: String,
    pub(crate) socket: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("---- log of the service\n{}", self.log());
        }
    }
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGKILL, as a crash or the OOM killer does.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends SIGTERM, and waits.
    pub(crate) fn end(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let begun = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < HANG, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The log of this service so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default().split_off(self.begin)
    }

    /// A field of the first log line with this message.
    fn logged(&mut self, message: &str, field: &str) -> String {
        let begun = Instant::now();
        loop {
            let log = self.log();
            let found = log
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .find(|line| line["message"] == message);
            if let Some(line) = found {
                return line[field].as_str().unwrap().to_owned();
            }
            assert!(self.child.try_wait().unwrap().is_none(), "the service ended: {log}");
            assert!(begun.elapsed() < HANG, "no '{message}' in the log: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends one request over the Unix socket, without an HTTP library, which would repair malformed input.
    pub(crate) fn try_call(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    pub(crate) fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, text) = self.try_call(method, path, &body).expect("the service answers");
        let value = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect(&text) };
        (status, value)
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        let (status, value) = self.call("GET", path, &Value::Null);
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.call("POST", path, body)
    }

    pub(crate) fn status(&self) -> Value {
        self.get("/v3/upgrade/status")
    }

    /// The state without its prefix.
    pub(crate) fn state(&self) -> String {
        self.status()["state"].as_str().unwrap().trim_start_matches("UPGRADE_STATE_").to_owned()
    }

    /// Requests a prepare, which must be accepted.
    pub(crate) fn prepare(&self, path: &str, auto_commit: bool) {
        let (status, answer) = self.try_prepare(path, auto_commit);
        assert_eq!(status, 202, "{answer}");
    }

    pub(crate) fn try_prepare(&self, path: &str, auto_commit: bool) -> (u16, Value) {
        let order = json!({"image_path": path, "auto_commit": auto_commit, "do_rolling_reboot": false,
            "num_nodes_to_reboot": null});
        self.post("/v2/upgrade/prepare", &order)
    }

    /// The same with overrides, such as `retry=true`.
    pub(crate) fn prepare_with(&self, path: &str, query: &str) -> (u16, Value) {
        let order = json!({"image_path": path, "auto_commit": false, "do_rolling_reboot": false,
            "num_nodes_to_reboot": null});
        self.post(&format!("/v2/upgrade/prepare?{query}"), &order)
    }

    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < HANG, "not within {HANG:?}: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for a state, and fails at once if the service shows an error.
    pub(crate) fn reach(&self, state: &str) {
        self.until(state, |server| {
            let status = server.status();
            assert!(status["error_info"].is_null(), "{status}");
            status["state"] == format!("UPGRADE_STATE_{state}")
        });
    }

    /// The slots, as (group, slot) → state.
    pub(crate) fn slot(&self, group: &str, slot: &str) -> Value {
        let slots = self.get("/v1/qstage/slots");
        let found =
            slots["slots"].as_array().unwrap().iter().find(|s| s["group"] == group && s["slot"] == slot);
        found.unwrap().clone()
    }

    /// Child processes of this service, by /proc.
    pub(crate) fn children(&self) -> Vec<u32> {
        let pid = self.child.id();
        let mut all = Vec::new();
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(text.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        }
        all
    }
}

/// Checks a value against a schema of the document: keys, types, enumerations.
pub(crate) fn check(document: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return check(document, &document["components"]["schemas"][name], value, at);
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let part = any.iter().find(|part| (part["type"] == "null") == value.is_null());
        return check(document, part.unwrap(), value, at);
    }
    if let Some(words) = schema["enum"].as_array() {
        assert!(words.contains(value), "{at}: {value} is none of {words:?}");
        return;
    }
    match schema["type"].as_str().unwrap() {
        "object" => {
            let object = value.as_object().unwrap_or_else(|| panic!("{at}: {value}"));
            let Some(properties) = schema["properties"].as_object() else { return };
            // If the document requires some keys, the others may be missing; else all must be present.
            for key in properties.keys() {
                let required =
                    schema["required"].as_array().is_none_or(|keys| keys.contains(&key.as_str().into()));
                assert!(!required || object.contains_key(key), "{at}: no {key} in {value}");
            }
            for (key, value) in object {
                assert!(properties.contains_key(key), "{at}: the document has no {key}");
                check(document, &properties[key], value, &format!("{at}.{key}"));
            }
        }
        "array" => {
            for value in value.as_array().unwrap() {
                check(document, &schema["items"], value, at);
            }
        }
        "string" => assert!(value.is_string(), "{at}: {value}"),
        "boolean" => assert!(value.is_boolean(), "{at}: {value}"),
        "integer" => assert!(value.is_u64(), "{at}: {value}"),
        "number" => assert!(value.is_number(), "{at}: {value}"),
        "null" => assert!(value.is_null(), "{at}: {value}"),
        other => panic!("{at}: {other}"),
    }
}

/// Checks an answer against the example of its response: what the example has, the answer has with the same type.
pub(crate) fn check_example(document: &Value, content: &Value, answer: &Value, at: &str) {
    let name = content["examples"]["usual"]["$ref"].as_str().unwrap_or_else(|| panic!("{at}: no example"));
    let example = &document["components"]["examples"][name.rsplit('/').next().unwrap()]["value"];
    assert!(!example.is_null(), "{at}: no {name}");
    check(document, &content["schema"], example, &format!("example of {at}"));
    alike(example, answer, &format!("example of {at}"));
}

/// A null of either side says nothing of the type, and of an array its first elements are compared.
fn alike(example: &Value, answer: &Value, at: &str) {
    match (example, answer) {
        (Value::Null, _) | (_, Value::Null) => {}
        (Value::Object(example), Value::Object(answer)) => {
            for (key, value) in example {
                let found = answer.get(key).unwrap_or_else(|| panic!("{at}: the answer has no {key}"));
                alike(value, found, &format!("{at}.{key}"));
            }
        }
        (Value::Array(example), Value::Array(answer)) => {
            if let (Some(example), Some(answer)) = (example.first(), answer.first()) {
                alike(example, answer, at);
            }
        }
        _ => assert_eq!(
            std::mem::discriminant(example),
            std::mem::discriminant(answer),
            "{at}: {example} {answer}"
        ),
    }
}

/// Whether a process exists and is no zombie.
pub(crate) fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('Z')))
}
