//! An attacker has taken over a process that parses a bundle: what can it still do? The exploit is planted here, after the
//! call that drops rights, in a separate process; with and without a web source.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use qstage::sandbox::{Kept, enter};

/// RecordState to the process that it is the one taken over: the directory with what it may and may not use.
const PLACE: &str = "QSTAGE_TEST_SANDBOX";
const WEB: &str = "QSTAGE_TEST_SANDBOX_WEB";

/// What the exploit tries, with what came of it.
fn tries(dir: &Path, port: u16) -> Vec<(&'static str, io::Result<()>)> {
    let path = |name: &str| dir.join(name);
    let nix = |done: nix::Result<()>| done.map_err(io::Error::from);
    let own = CString::new("/bin/true").unwrap();
    vec![
        ("read what is kept", fs::read(path("kept/file")).map(drop)),
        ("write what is kept", fs::write(path("kept/new"), "x")),
        ("replace what is kept", fs::rename(path("kept/new"), path("kept/file"))),
        ("thread", std::thread::Builder::new().spawn(|| ()).map(|thread| thread.join().unwrap())),
        ("read", File::open(path("secret")).map(drop)),
        ("read of the system", File::open("/etc/passwd").map(drop)),
        ("list", fs::read_dir(dir).map(drop)),
        ("write", OpenOptions::new().write(true).open(path("secret")).map(drop)),
        ("create", File::create(path("new")).map(drop)),
        ("remove", fs::remove_file(path("secret"))),
        ("rename out", fs::rename(path("kept/file"), path("out"))),
        ("link in", fs::hard_link(path("secret"), path("kept/link"))),
        ("symlink", std::os::unix::fs::symlink("/", path("kept/link"))),
        (
            "memory of another",
            File::open(format!("/proc/{}/mem", std::os::unix::process::parent_id())).map(drop),
        ),
        (
            "environment of another",
            fs::read(format!("/proc/{}/environ", std::os::unix::process::parent_id())).map(drop),
        ),
        ("device", File::open("/dev/tty").and(File::open("/dev/null")).map(drop)),
        ("program", Command::new("/bin/true").status().map(drop)),
        ("exec", nix(nix::unistd::execv(&own, &[&own]).map(|_| ()))),
        ("signal", nix(nix::sys::signal::kill(nix::unistd::getppid(), None))),
        ("TCP", TcpStream::connect(("127.0.0.1", port)).map(drop)),
        ("listen", TcpListener::bind("127.0.0.1:0").map(drop)),
        ("UDP", UdpSocket::bind("127.0.0.1:0").map(drop)),
        ("socket of a service", UnixStream::connect(path("socket")).map(drop)),
        ("own socket", UnixListener::bind(path("kept/socket")).map(drop)),
        ("socket pair", UnixStream::pair().map(drop)),
        (
            "node",
            nix(nix::sys::stat::mknod(
                &path("kept/node"),
                nix::sys::stat::SFlag::S_IFBLK,
                nix::sys::stat::Mode::S_IRUSR,
                nix::sys::stat::makedev(7, 0),
            )),
        ),
        ("owner", nix(nix::unistd::chown(&path("kept/file"), Some(1.into()), None))),
        (
            "mount",
            nix(nix::mount::mount(
                Some("x"),
                &path("kept"),
                Some("tmpfs"),
                nix::mount::MsFlags::empty(),
                None::<&str>,
            )),
        ),
        ("namespace", nix(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER))),
        ("root", nix(nix::unistd::chroot("/"))),
        ("user", nix(nix::unistd::setuid(1.into()))),
        ("session", nix(nix::unistd::setsid().map(drop))),
    ]
}

/// In a process of its own: drops its rights, tries, reports.
#[test]
#[ignore = "started by the other tests"]
fn exploit() {
    let Some(dir) = std::env::var_os(PLACE).map(PathBuf::from) else { return };
    let port = fs::read_to_string(dir.join("port")).unwrap().parse().unwrap();
    let network = std::env::var_os(WEB).is_some();
    let kept = Kept { write: vec![dir.join("kept")], network, ..Kept::default() };
    let begun = Instant::now();
    let confined = enter(&kept).unwrap();
    println!("\n=cost {} us", begun.elapsed().as_micros());
    println!("=missing {:?}", confined.missing);
    for (what, got) in tries(&dir, port) {
        println!("={what}: {}", got.map_or_else(|e| e.to_string(), |()| "done".to_owned()));
    }
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    for line in status.lines().filter(|line| {
        ["CapEff", "CapPrm", "NoNewPrivs", "Seccomp:"].iter().any(|name| line.starts_with(name))
    }) {
        println!("={line}");
    }
}

fn taken_over(web: bool) -> BTreeMap<String, String> {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("kept")).unwrap();
    fs::write(dir.path().join("kept/file"), "kept").unwrap();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    fs::write(dir.path().join("port"), tcp.local_addr().unwrap().port().to_string()).unwrap();
    let _service = UnixListener::bind(dir.path().join("socket")).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "sandbox::exploit", "--include-ignored", "--nocapture", "--test-threads=1"]);
    child.env(PLACE, dir.path());
    if web {
        child.env(WEB, "1");
    }
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{text}{}", String::from_utf8_lossy(&output.stderr));
    let lines = text.lines().filter_map(|line| line.strip_prefix('=')?.split_once(':'));
    let found = lines.map(|(what, got)| (what.to_owned(), got.trim().to_owned())).collect();
    // What was tried left no trace.
    assert_eq!(fs::read_to_string(dir.path().join("secret")).unwrap(), "secret");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
    found
}

#[test]
fn an_exploit_finds_nothing_open() {
    let work = ["read what is kept", "write what is kept", "replace what is kept", "thread"];
    for (web, open) in [(false, &[][..]), (true, &["TCP", "UDP", "read of the system", "socket pair"])] {
        let found = taken_over(web);
        assert!(found.len() > 30, "it did not come to its end: {found:?}");
        // UDP is for asking name servers, the socket pair is one of the runtime with itself; and what it reads below /etc is what the configuration of those is.
        let done: Vec<&str> =
            found.iter().filter(|(_, got)| *got == "done").map(|(what, _)| what.as_str()).collect();
        let mut expected = [&work[..], open].concat();
        expected.sort_unstable();
        assert_eq!(done, expected, "web: {web}");
        assert_eq!((found["NoNewPrivs"].as_str(), found["Seccomp"].as_str()), ("1", "2"));
        for set in ["CapEff", "CapPrm"] {
            assert_eq!(found[set], "0000000000000000", "{set}");
        }
    }
}
