//! Isolation of root in a container: a program in the image tries all known ways to escape, and reports. Each key that opens
//! something is tested too: the program must find the opening.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::clock::HANG;
use crate::harness::containers;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use containers::{Disk, Machine, can_run};

/// Bits of the capabilities that a program keeps by default (capability.h): CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, FSETID 4,
/// KILL 5, SETGID 6, SETUID 7, NET_BIND_SERVICE 10.
const CAPABILITIES: u64 = 0b100_1111_1011;

/// Device nodes that every container has.
const DEVICES: [&str; 8] = ["console", "full", "null", "ptmx", "random", "tty", "urandom", "zero"];

struct Report(String);

impl Report {
    /// What `name` is: a fact of /proc.
    fn is(&self, name: &str) -> &str {
        let start = format!("is {name} ");
        self.0.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or("missing")
    }

    /// The rests of the lines that begin with a word.
    fn all<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.lines().filter_map(move |line| line.strip_prefix(word)?.strip_prefix(' '))
    }

    /// All that is open, by name; `host`: numbers of the devices that hold files of the host.
    fn open(&self, host: &BTreeSet<String>) -> BTreeSet<String> {
        let tries: Vec<&str> = self.all("try").collect();
        assert!(tries.len() > 30, "{}", self.0);
        let mut open: BTreeSet<String> =
            tries.iter().filter_map(|one| one.strip_suffix(" done")).map(str::to_owned).collect();
        let mut expect = |name: &str, holds: bool| {
            if !holds {
                open.insert(name.to_owned());
            }
        };
        let number = |name: &str, radix| u64::from_str_radix(self.is(name), radix);
        expect("users", number("uid_outside", 10).is_ok_and(|uid| uid >= 65536));
        expect("users", number("uid_count", 10) == Ok(65536));
        for name in ["CapBnd", "CapEff", "CapPrm", "CapInh"] {
            expect("capabilities", number(name, 16).is_ok_and(|bits| bits & !CAPABILITIES == 0));
        }
        expect("new_privileges", self.is("NoNewPrivs") == "1");
        expect("filter", self.is("Seccomp") == "2");
        expect("cgroups", self.is("cgroup_read_only") == "1");
        expect("network", self.all("interface").all(|name| name == "lo"));
        expect("devices", self.all("device").all(|name| DEVICES.contains(&name)));
        for mount in self.all("mount") {
            let mut words = mount.split(' ');
            let (numbers, target) = (words.next().unwrap(), words.next().unwrap());
            // What the configuration names; and what nspawn binds into each container, which is tried to be written.
            let given = ["/state", "/run/host/incoming", "/run/host/os-release"].contains(&target);
            expect(&format!("host inode {target}"), given || !host.contains(numbers));
        }
        open
    }
}

/// The file systems that the host's own programs, configuration and run files are on.
fn of_host(machine: &Machine) -> BTreeSet<String> {
    let program = env!("CARGO_BIN_EXE_qstage");
    let paths = ["/", "/usr", "/etc", "/run", program, machine.dir.path().to_str().unwrap()];
    let number = |path: &str| {
        let dev = fs::metadata(path).unwrap().dev();
        format!("{}:{}", nix::sys::stat::major(dev), nix::sys::stat::minor(dev))
    };
    paths.map(number).into_iter().collect()
}

/// Starts the container with these lines more, and gives what `file` of its state directory then holds.
fn report(machine: &Machine, file: &str, more: &str) -> Report {
    let config = machine.dir.path().join("config.toml");
    let before = fs::read_to_string(&config).unwrap();
    let replaced = |key: &str| more.lines().any(|line| line.starts_with(key));
    let kept = before.lines().filter(|line| line.split_once(" =").is_none_or(|(key, _)| !replaced(key)));
    let text = kept.chain([more]).collect::<Vec<_>>().join("\n") + "\n";
    fs::write(&config, text).unwrap();
    let path = machine.dir.path().join("state").join(file);
    let _ = fs::remove_file(&path);
    machine.good(&["container", "stop"]);
    machine.good(&["container", "start"]);
    let until = Instant::now() + HANG;
    while !path.exists() {
        assert!(Instant::now() < until, "{more}: no report");
        std::thread::sleep(Duration::from_millis(10));
    }
    fs::write(&config, before).unwrap();
    Report(fs::read_to_string(path).unwrap())
}

fn machine() -> Machine {
    let more = format!(
        "network = \"private\"\nprobe = \"http://127.0.0.1:PORT/\"\nenvironment = [\"TRY_DISK=DISK\", \"TRY_PID={}\"]",
        std::process::id()
    );
    let machine = Machine::new(Disk::Nodes, "hostile", &more);
    let config = machine.dir.path().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let disk = text.lines().next().unwrap().split('"').nth(1).unwrap();
    let number = fs::metadata(disk).unwrap().rdev();
    let number = format!("{}:{}", nix::sys::stat::major(number), nix::sys::stat::minor(number));
    fs::write(config, text.replace("TRY_DISK=DISK", &format!("TRY_DISK={number}"))).unwrap();
    machine
}

#[test]
fn root_of_a_container_is_nobody() {
    if !can_run() {
        return;
    }
    let machine = machine();
    let host = of_host(&machine);
    let found = report(&machine, "report", "");
    let none = BTreeSet::new();
    assert_eq!(found.open(&host), none, "{}", found.0);
    let status = machine.json(&["container", "status"]);
    assert_eq!(
        status["open"],
        serde_json::json!(["options of nspawn, not judged here: --resolv-conf=off, --timezone=off"])
    );
    // A probe that is a command has no more than the program has.
    let found = report(&machine, "probe.report", "probe = [\"/app\", \"--tries\"]");
    assert_eq!(found.open(&host), none, "{}", found.0);
}

#[test]
fn what_is_opened_is_seen_and_said() {
    if !can_run() {
        return;
    }
    let machine = machine();
    let host = of_host(&machine);
    for (key, open, said) in [
        ("users = \"host\"", "users", "users: root"),
        ("new_privileges = true", "new_privileges", "privileges: "),
        ("capabilities = [\"CAP_SYS_ADMIN\"]\nsystem_calls = [\"@mount\"]", "mount_tmpfs", "capabilities: "),
        ("system_calls = [\"@debug\"]", "ptrace_child", "system calls: @debug"),
        ("system_calls = [\"@namespaces\"]", "clone_user_namespace", "system calls: @namespaces"),
        ("cgroups = \"writable\"", "cgroups", "cgroups: "),
        ("network = \"host\"", "network", "network: "),
        ("devices = [\"/dev/kmsg\"]", "devices", "devices: /dev/kmsg"),
        ("bind_ro = [\"/usr:/usr\"]", "host inode /usr", "readable paths of the host: /usr"),
    ] {
        let found = report(&machine, "report", key);
        let all = found.open(&host);
        assert!(all.contains(open), "{key}: {all:?}");
        let status = machine.json(&["container", "status"]);
        let told = status["open"].as_array().unwrap();
        assert!(told.iter().any(|one| one.as_str().unwrap().starts_with(said)), "{key}: {status}");
    }
}
