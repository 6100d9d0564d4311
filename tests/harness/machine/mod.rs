//! A machine for runs of the program: a directory with keys, images, bundles, a disk image and a configuration.
pub mod forge;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use qstage::Error;
use serde_json::Value;

pub const MIB: u64 = 1 << 20;
/// Principal that signs in these tests.
pub const SIGNER: &str = "release@example.org";

/// Whether the test runs as root. Prints SKIPPED if not; in CI that is a failure.
pub fn is_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "CI runs the tests of real devices as root");
    eprintln!("SKIPPED: needs root");
    false
}

/// Runs a tool that must succeed; returns its output.
pub fn tool(program: &str, args: &[&str]) -> String {
    String::from_utf8(tool_bytes(program, args)).unwrap()
}

/// The same for binary output.
pub fn tool_bytes(program: &str, args: &[&str]) -> Vec<u8> {
    // On Debian sbin is not in the PATH of ordinary users.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(args).env("PATH", path).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?}: {errors}{}",
        String::from_utf8_lossy(&output.stdout)
    );
    output.stdout
}

/// Exit code and output of a run of the program.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Run {
    /// Asserts success; returns the standard output.
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out
    }

    /// Asserts success; returns the one JSON object, or the last of the JSON lines.
    #[track_caller]
    pub fn json(self) -> Value {
        let out = self.good();
        let last = out.lines().last().unwrap_or_else(|| panic!("it printed nothing"));
        serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {last}"))
    }

    /// The JSON object of a plan; asserts that its exit code says whether it has obstacles.
    #[track_caller]
    pub fn plan(self) -> Value {
        let plan: Value = serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.err));
        let blocked = !plan["blocked_by"].as_array().unwrap().is_empty();
        assert_eq!(self.code, Some(if blocked { 5 } else { 0 }), "{plan}");
        assert!(!self.err.contains("UPGRADE_ERROR_"), "an obstacle is no error: {}", self.err);
        plan
    }

    /// Asserts that a plan, shown to people, forbids the upgrade; returns the standard output.
    #[track_caller]
    pub fn forbidden(self) -> String {
        assert_eq!(self.code, Some(5), "{}{}", self.out, self.err);
        assert!(self.out.contains("Forbidden: "), "{}", self.out);
        self.out
    }

    /// Asserts failure with this code (without the common prefix), printed once, and the exit code of its class; returns the
    /// message.
    #[track_caller]
    pub fn bad(self, code: &str) -> String {
        let full = format!("UPGRADE_ERROR_{code}");
        let known = Error::ALL.iter().find(|(name, _)| *name == full);
        let (_, class) = known.unwrap_or_else(|| panic!("there is no code {full}"));
        let line = self.err.lines().last().unwrap_or_default();
        assert!(line.ends_with(&format!("[{full}]")), "expected {full}: {}{}", self.out, self.err);
        assert_eq!(self.code, Some(i32::from(class.exit_code())), "{}", self.err);
        assert_eq!(self.err.matches("UPGRADE_ERROR_").count(), 1, "told once: {}", self.err);
        line.to_owned()
    }
}

/// The directory of a machine. By default it has `key`, `allowed_signers`, and `config.toml` for `disk.img`.
pub struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// A directory on a real file system: on tmpfs the page cache *is* the medium.
    pub fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() };
        bench.key("key", "ed25519");
        bench.trust("allowed_signers", &["key"]);
        bench.config("");
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn disk(&self) -> PathBuf {
        self.path("disk.img")
    }

    /// Writes `config.toml` with additional lines.
    pub fn config(&self, more: &str) {
        let line = |key: &str, name: &str| format!("{key} = \"{}\"\n", self.text(name));
        let own: String = [("disk", "disk.img"), ("trust", "allowed_signers"), ("state_dir", "state")]
            .into_iter()
            .filter(|(key, _)| !more.contains(&format!("{key} =")))
            .map(|(key, name)| line(key, name))
            .collect();
        fs::write(self.path("config.toml"), own + more).unwrap();
    }

    /// Makes a key pair with ssh-keygen.
    pub fn key(&self, name: &str, kind: &str) {
        self.locked_key(name, kind, "");
    }

    pub fn locked_key(&self, name: &str, kind: &str, phrase: &str) {
        tool("ssh-keygen", &["-q", "-t", kind, "-N", phrase, "-C", SIGNER, "-f", &self.text(name)]);
    }

    /// Writes an `allowed_signers` file with these keys.
    pub fn trust(&self, name: &str, keys: &[&str]) {
        let line = |key: &&str| {
            let public = fs::read_to_string(self.path(&format!("{key}.pub"))).unwrap();
            let words: Vec<&str> = public.split_whitespace().take(2).collect();
            format!("{SIGNER} namespaces=\"qimg\" {}\n", words.join(" "))
        };
        fs::write(self.path(name), keys.iter().map(line).collect::<String>()).unwrap();
    }

    /// Writes a file like an image: noise, text that compresses, a hole, and an unaligned end. The content depends on the
    /// seed.
    pub fn image(&self, name: &str, len: u64, seed: u64) -> PathBuf {
        let path = self.path(name);
        let mut file = File::create(&path).unwrap();
        file.set_len(len).unwrap();
        let mut noise = Noise(seed);
        let mut at = 0;
        for block in 0.. {
            let part = (len - at).min(256 << 10);
            if part == 0 {
                break;
            }
            let bytes = match block % 4 {
                0 | 1 => noise.bytes(part as usize),
                2 => format!("{seed} and {block} ").into_bytes().repeat(part as usize / 4)[..part as usize]
                    .to_vec(),
                _ => Vec::new(),
            };
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(&bytes).unwrap();
            at += part;
        }
        path
    }

    /// A command in the directory, not started yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qstage"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null()).env_remove("SOURCE_DATE_EPOCH");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Run {
        self.command(args).output().unwrap().into()
    }

    /// Runs with the configuration: for all verbs that have a machine.
    pub fn at(&self, args: &[&str]) -> Run {
        self.run(&[args, &["--config", "config.toml"]].concat())
    }

    /// Runs with these bytes on standard input, a pipe.
    pub fn piped(&self, args: &[&str], bytes: &[u8]) -> Run {
        let args = [args, &["--config", "config.toml"]].concat();
        let mut child = self.command(&args).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            // The write may fail: some tests check that the program stops reading.
            scope.spawn(move || drop(stdin.write_all(bytes)));
            child.wait_with_output().unwrap().into()
        })
    }

    /// Starts a run and does not wait for it.
    pub fn start(&self, args: &[&str], stdin: Stdio) -> Running {
        let args = [args, &["--config", "config.toml"]].concat();
        Running(Some(self.command(&args).stdin(stdin).spawn().unwrap()))
    }

    /// Packs `NAME.qimg` for product "demo".
    pub fn pack(&self, name: &str, version: &str, more: &[&str]) -> PathBuf {
        let out = format!("{name}.qimg");
        let args =
            ["pack", "--force", "--product", "demo", "--version", version, "--output", &out, "--key", "key"];
        self.run(&[&args, more].concat()).good();
        self.path(&out)
    }

    /// The machine of most tests: v1 and v2 of a platform, and v1 installed in slot a.
    pub fn installed() -> Self {
        let bench = Self::new();
        for (name, version, seed) in [("v1", "1.0", 1), ("v2", "2.0", 2)] {
            bench.image(&format!("{name}.img"), 3 * MIB + 4321, seed);
            bench.pack(name, version, &["--platform", &format!("{name}.img"), "--frame-size", "256K"]);
        }
        bench.at(&["init", "disk.img", "--slot-size", "8M", "--bundle", "v1.qimg"]).good();
        bench
    }

    /// The same with software: s1 = platform 1 + software 1, s2 = platform 1 + software 2, s3 = platform 2 + software 2.
    pub fn installed_with_software() -> Self {
        let bench = Self::new();
        for seed in [1, 2] {
            bench.image(&format!("p{seed}.img"), 2 * MIB + 1000, seed);
            bench.image(&format!("s{seed}.img"), MIB + 3333, 10 + seed);
        }
        for (name, version, platform, software) in [
            ("s1", "1.0", "p1.img", "s1.img"),
            ("s2", "1.1", "p1.img", "s2.img"),
            ("s3", "2.0", "p2.img", "s2.img"),
        ] {
            let files = ["--platform", platform, "--software", software, "--frame-size", "256K"];
            bench.pack(name, version, &files);
        }
        let sizes = ["--slot-size", "5M", "--software-size", "4M"];
        bench.at(&[&["init", "disk.img", "--bundle", "s1.qimg"], &sizes[..]].concat()).good();
        bench
    }

    /// The row of a slot such as "platform_b" in `slots --json`.
    pub fn slot(&self, name: &str, more: &[&str]) -> Value {
        let report = self.at(&[&["slots", "--json"], more].concat()).json();
        let (group, slot) = name.split_once('_').unwrap();
        let rows = report["slots"].as_array().unwrap();
        rows.iter().find(|row| row["group"] == group && row["slot"] == slot).unwrap().clone()
    }

    /// State of a slot such as "platform_b".
    pub fn state(&self, name: &str, more: &[&str]) -> String {
        self.slot(name, more)["state"].as_str().unwrap().to_owned()
    }

    /// Offset and size of a partition in bytes, by an independent program.
    pub fn extent(&self, name: &str) -> (u64, u64) {
        let table = sfdisk(&self.disk());
        let sector = table["sectorsize"].as_u64().unwrap();
        let rows = table["partitions"].as_array().unwrap();
        let row = rows.iter().find(|row| row["name"] == name).unwrap();
        (row["start"].as_u64().unwrap() * sector, row["size"].as_u64().unwrap() * sector)
    }

    /// BLAKE3 of `len` bytes of the disk from `at`.
    pub fn hash_of(&self, at: u64, len: u64) -> blake3::Hash {
        let mut file = File::open(self.disk()).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        let mut hasher = blake3::Hasher::new();
        std::io::copy(&mut file.take(len), &mut hasher).unwrap();
        hasher.finalize()
    }

    /// BLAKE3 of the whole disk and its modification time: equal only if nothing was written, not even the same bytes.
    pub fn hash(&self) -> (blake3::Hash, std::time::SystemTime) {
        (self.hash_of(0, u64::MAX), fs::metadata(self.disk()).unwrap().modified().unwrap())
    }

    /// State that must survive every failure: the bytes of the running slot, and the slot that boots.
    pub fn vital(&self) -> (blake3::Hash, Value) {
        let (at, len) = self.extent("platform_a");
        let row = self.slot("platform_a", &[]);
        (self.hash_of(at, len), serde_json::json!([row["priority"], row["successful"], row["boots_next"]]))
    }

    /// Changes bytes of the disk through the page cache.
    pub fn poke(&self, at: u64, bytes: &[u8]) {
        let mut file = File::options().write(true).open(self.disk()).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(bytes).unwrap();
        file.sync_all().unwrap();
    }

    /// Fills a slot with zeroes.
    pub fn blank(&self, partition: &str) {
        let (at, len) = self.extent(partition);
        self.poke(at, &vec![0; len as usize]);
    }

    /// Whether a slot begins with the bytes of a file.
    pub fn holds(&self, partition: &str, image: &str) -> bool {
        let image = fs::read(self.path(image)).unwrap();
        let (at, _) = self.extent(partition);
        self.hash_of(at, image.len() as u64) == blake3::hash(&image)
    }
}

/// The table as sfdisk reads it.
pub fn sfdisk(disk: &Path) -> Value {
    let text = tool("sfdisk", &["--json", disk.to_str().unwrap()]);
    serde_json::from_str::<Value>(&text).unwrap()["partitiontable"].clone()
}

/// A process of the test; the drop kills it.
pub struct Running(Option<Child>);

impl Running {
    pub fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    pub fn id(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.0.as_ref().unwrap().id().try_into().unwrap())
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.id(), signal).unwrap();
    }

    pub fn end(mut self) -> Run {
        let mut child = self.0.take().unwrap();
        drop(child.stdin.take());
        child.wait_with_output().unwrap().into()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// splitmix64 (Steele, Lea, Flood 2014): noise that is the same in every run.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}
