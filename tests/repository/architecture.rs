//! The map in `src/lib.rs`, checked against the sources: which module may use which resource, and which other module. To
//! extend a list is a decision: add the line with its reason, or find a better place for the code.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::fs;
use std::path::Path;

use super::files::files;
use std::collections::BTreeSet;

/// Longest file in lines.
const LONGEST: usize = 500;

/// A file or a folder (with a slash at its end), and why it is on the list.
type Allowed = &'static [(&'static str, &'static str)];

/// Who opens disks: past the page cache, and for locking.
const DISKS: Allowed = &[("device/direct.rs", "the only opener of disks, partitions and image files")];

/// Who uses files that are no disks.
const FILES: Allowed = &[
    ("bench/sample.rs", "makes and removes scratch files"),
    ("cli/bench.rs", "makes the scratch slot"),
    ("cli/remote/", "reads the token"),
    ("cluster/etcd/tls.rs", "reads certificates, keys and the password of etcd"),
    ("container/", "mount points, sockets of the gate, what is remembered of a running container"),
    ("device/", "opens disks; asks sysfs for their sectors"),
    ("doctor/places.rs", "looks at files of the machine"),
    ("host/efivars.rs", "the variables of the firmware are files"),
    ("host/files/", "how lock files, output and files that are trusted are opened"),
    ("host/load/", "pressure figures and the autogroup"),
    ("host/health.rs", "lists the directory of health checks"),
    ("host/kernel/", "reads /proc and /sys"),
    ("host/usage/aliases.rs", "the size of an image file; whether a path leads anywhere"),
    ("host/kexec.rs", "its mount point; /proc/cmdline"),
    ("host/lock.rs", "reads /proc/locks for the name of the holder"),
    ("host/journal.rs", "the state file"),
    ("host/mod.rs", "reads the machine id"),
    ("host/outside.rs", "opens the mount namespace of the machine"),
    ("host/signer.rs", "reads the private key"),
    ("host/signals.rs", "asks which signals are ignored"),
    ("init/mod.rs", "makes the image file that it lays out"),
    ("delta/", "reads and writes bundles and deltas, unpacks the base to a file without a name"),
    ("pack/mod.rs", "reads images and bundles"),
    ("pack/destination.rs", "tells inputs and special files from the file to be written"),
    ("sandbox/", "asks whose the files are that are kept"),
    ("reloaded.rs", "looks whether certificates, keys and tokens were replaced"),
    ("source/file.rs", "opens bundles"),
    ("source/allowed.rs", "opens bundles below configured directories"),
    ("source/mapped.rs", "maps images that are packed"),
    ("source/http/", "reads certificates, keys, and passwords by host"),
    ("workers/memory.rs", "asks for the limits of memory"),
    ("service/", "its socket, certificate, tokens and state; the identity of the boot"),
];

/// Who starts processes.
const PROCESSES: Allowed = &[
    ("cli/answers.rs", "asks whether a disk answers, without waiting for it"),
    ("container/nspawn/gate.rs", "becomes the program of the container; starts the prober, which stays"),
    ("container/nspawn/launch.rs", "systemd-nspawn, which stays"),
    ("host/program.rs", "the one runner of programs that are waited for"),
    ("service/owner/worker.rs", "prepare, as a process of its own that cannot take the service down"),
];

/// Who opens sockets.
const SOCKETS: Allowed = &[
    ("cli/", "the client of the service"),
    ("config/", "the address that the service listens at"),
    ("container/nspawn/gate.rs", "the gate that a new container waits at"),
    ("container/nspawn/prober.rs", "asks a process inside a container to run the command of its probe"),
    ("container/probe.rs", "asks a container over TCP or HTTP whether it is well"),
    ("service/", "it serves"),
    ("source/http/", "the client of web servers"),
];

/// Who asks for the date. No decision depends on it but one that its user wrote down.
const DATES: Allowed = &[
    ("bundle/trust/", "valid-after and valid-before of allowed_signers, where they are given"),
    ("cli/pack.rs", "creation time of a bundle, where SOURCE_DATE_EPOCH does not say it"),
    ("host/journal.rs", "the history, for people"),
    ("reloaded.rs", "when a file was changed last"),
];

/// Who measures how long something takes.
const STOPWATCHES: Allowed = &[
    ("bench/", "it is what it is for"),
    ("bundle/verify.rs", "seconds in its report"),
    ("cli/answers.rs", "how long a disk may take to answer"),
    ("cli/progress.rs", "rate and remaining time"),
    ("delta/", "seconds in its reports"),
    ("cli/remote/", "how often the service is asked"),
    ("container/", "downtime, deadlines"),
    ("device/watch.rs", "how long a device has not answered"),
    ("engine/content.rs", "seconds in the report of a scrub"),
    ("engine/prepare.rs", "seconds in its report"),
    ("host/health.rs", "seconds in its report"),
    ("host/load/throttle.rs", "how long to work and to listen"),
    ("host/lock.rs", "the time limit of a wait for a lock"),
    ("host/program.rs", "the limit of a program"),
    ("host/load/rate_limit.rs", "the maximum rate"),
    ("pack/mod.rs", "seconds in its report"),
    ("service/", "deadlines, how often is looked"),
    ("source/http/", "for how long nothing came, and how fast it comes"),
];

/// Who lets tokio start threads: it panics if the system refuses the first one.
const BLOCKING: Allowed =
    &[("service/", "some threads are started before the first request, see mod.rs there")];

/// Who starts threads: one place, where a refusal is an error or fewer workers, and never a panic.
const THREADS: Allowed = &[("workers/mod.rs", "makes all of them")];

/// Who writes to the standard streams: what is done must wait for no reader and end by none.
const STREAMS: Allowed = &[
    ("cli/outlet.rs", "the only writer"),
    ("cli/output.rs", "asks whether it is a terminal"),
    ("cli/progress.rs", "asks whether it is a terminal"),
    ("cli/remote/view.rs", "asks whether it is a terminal"),
];

/// Files that may have unsafe code, with a SAFETY paragraph.
const UNSAFE: Allowed = &[
    ("device/backing.rs", "LOOP_GET_STATUS64: one ioctl that fills 232 bytes"),
    ("source/mapped.rs", "memmap2: a map is only as safe as the file is still; pages given back"),
];

/// How many unsafe blocks each of them has; one more is a decision.
const UNSAFE_BLOCKS: [usize; UNSAFE.len()] = [1, 2];

/// The home of each dependency.
const HOMES: &[(&str, &[&str])] = &[
    ("axum", &["cli/remote/", "service/"]),
    ("futures_util", &["service/api/bundle.rs", "service/api/events.rs"]),
    ("hyper", &["cli/remote/", "service/http/listen.rs"]),
    ("hyper_util", &["cli/remote/", "service/http/listen.rs"]),
    ("rcgen", &["service/http/tls.rs"]),
    ("bytes", &["source/http/"]),
    ("rustls_native_certs", &["source/http/tls.rs", "cluster/etcd/tls.rs"]),
    ("webpki_roots", &["source/http/tls.rs"]),
    ("reqwest", &["source/"]),
    ("rustix", &["cli/", "container/nspawn/gate.rs", "host/efivars.rs", "host/load/mod.rs", "sandbox/"]),
    ("subtle", &["service/http/auth.rs"]),
    ("tokio", &["cli/remote/", "service/", "source/http/"]),
    ("tokio_rustls", &["cluster/etcd/tls.rs", "service/", "source/http/"]),
    ("strsim", &["units/text.rs"]),
    (
        "tracing",
        &[
            "cli/serve.rs",
            "cli/verbose.rs",
            "commit/mod.rs",
            "config/mod.rs",
            "host/local.rs",
            "host/program.rs",
            "host/trust.rs",
            "service/",
            "source/http/",
        ],
    ),
    ("tracing_subscriber", &["cli/serve.rs", "cli/verbose.rs"]),
    ("ureq", &["cli/remote/", "cluster/etcd/", "service/fleet.rs"]),
    ("base64ct", &["bundle/", "cluster/etcd/"]),
    ("blake3", &["bundle/", "slot/"]),
    ("clap", &["cli/", "boot/mod.rs"]),
    ("clap_complete", &["cli/manual.rs"]),
    ("clap_mangen", &["cli/man_page.rs"]),
    ("roff", &["cli/config_page.rs", "cli/man_page.rs"]),
    ("crc32fast", &["gpt/", "slot/"]),
    ("gpt", &["gpt/layout.rs", "gpt/second.rs"]),
    ("indicatif", &["cli/progress.rs", "cli/remote/view.rs", "cli/terminal.rs"]),
    ("jiff", &["bundle/trust/", "cli/inspect.rs", "host/journal.rs", "source/http/header.rs"]),
    ("memmap2", &["device/buffer.rs", "source/mapped.rs"]),
    (
        "nix",
        &["cli/outlet.rs", "container/", "device/", "host/", "sandbox/", "service/", "source/", "workers/"],
    ),
    ("landlock", &["sandbox/"]),
    ("seccompiler", &["sandbox/"]),
    (
        "serde_json",
        &[
            "bundle/manifest.rs",
            "cli/history.rs",
            "cli/output.rs",
            "cli/remote/",
            "cli/status.rs",
            "cli/token.rs",
            "cluster/codec.rs",
            "config/mod.rs",
            "doctor/archive.rs",
            "cluster/etcd/",
            "container/nspawn/",
            "host/journal.rs",
            "selector/report.rs",
            "service/",
        ],
    ),
    // The last two by the module of rustls that has its name.
    ("ring", &["bundle/sha256.rs", "cluster/etcd/tls.rs", "service/http/", "source/http/tls.rs"]),
    ("sha2", &["service/http/auth.rs", "service/http/tokens.rs"]),
    ("signal_hook", &["host/signals.rs"]),
    ("ssh_key", &["bundle/", "host/signer.rs"]),
    ("tar", &["bundle/archive.rs", "doctor/archive.rs"]),
    ("toml", &["config/"]),
    ("zstd", &["bundle/"]),
    // Derives: wherever a type is shown, or an error defined.
    ("serde", &[""]),
    ("thiserror", &[""]),
];

/// Who writes marks, records, tables and variables: one interpreter of acts, and what is no verb.
const WRITERS: Allowed = &[
    ("bench/mod.rs", "measures a switch, on a disk of its own"),
    ("engine/transition/run.rs", "the interpreter"),
    ("engine/repair.rs", "the repair of the table that somebody asks for"),
    ("init/mod.rs", "the layout of a blank disk"),
    (
        "selector/mod.rs",
        "one act, the try of one slot, on disks that the interpreter refuses: a slot is missing, a name is doubled, a write \
         fails; a machine must boot all the same, and the program for an initramfs stays small",
    ),
    ("slot/", "defines what a mark and a record are"),
    ("stage/", "footers torn and whole, around the images"),
];

/// What is decided without a machine: bytes and values in, values out.
const PURE: &[&str] = &[
    "bundle/",
    "cluster/",
    "efi/",
    "gpt/",
    "slot/",
    "slot.rs",
    "boot/mod.rs",
    "state/mod.rs",
    "units/mod.rs",
    "units/",
    "version.rs",
];

/// What of it is not, and why.
const IMPURE: Allowed = &[
    ("bundle/delta/index.rs", "runs workers"),
    ("bundle/delta/maker.rs", "runs workers, writes a delta"),
    ("bundle/delta/survey.rs", "runs workers"),
    ("bundle/feed.rs", "hands frames of a source to workers"),
    ("bundle/pick.rs", "one worker opens the bundle and the others wait for it"),
    ("bundle/reader.rs", "reads a source"),
    ("bundle/unpack.rs", "runs workers"),
    ("bundle/verify.rs", "runs workers"),
    ("cluster/etcd/", "talks to etcd"),
    ("bundle/writer.rs", "runs workers, writes a bundle"),
    ("slot/frame.rs", "reads a frame at its place through the device trait"),
    ("slot/record.rs", "reads and writes a record through the device trait"),
];

/// What each layer must not know, by the map in `src/lib.rs`.
const LAYERS: &[(&[&str], &[&str])] = &[
    (PURE, &["cli", "engine", "init", "pack", "stage", "commit", "host", "source"]),
    (
        &["device/"],
        &[
            "cli", "engine", "init", "pack", "stage", "commit", "host", "source", "bundle", "gpt", "slot",
            "boot",
        ],
    ),
    (&["stage/", "host/", "source/"], &["cli", "engine", "init", "pack", "commit"]),
    (&["commit/"], &["cli", "engine", "init", "pack", "stage"]),
    (&["engine/", "selector/", "init/", "pack/", "delta/"], &["cli", "bench", "container", "service"]),
    (&["bench/", "config/", "container/", "doctor/", "service/"], &["cli"]),
    (
        &["error/", "units/", "version.rs", "progress.rs", "workers/mod.rs"],
        &["cli", "engine", "host", "device", "source"],
    ),
];

/// A file of `src/` without its tests and comments.
pub(super) struct Source {
    pub(super) path: String,
    pub(super) code: String,
}

pub(super) fn sources() -> Vec<Source> {
    let in_src = |(path, text): (String, String)| Some((path.strip_prefix("src/")?.to_owned(), text));
    let all: Vec<(String, String)> = files().into_iter().filter_map(in_src).collect();
    // Modules that exist in tests only: "#[cfg(test)]\nmod name;".
    let mut tests = BTreeSet::new();
    for (path, text) in &all {
        let own = path.strip_suffix("mod.rs").map_or_else(|| path.replace(".rs", "/"), str::to_owned);
        for rest in text.split("#[cfg(test)]\n").skip(1) {
            let line = rest.lines().next().unwrap_or_default();
            let name = line.trim_end_matches(';').rsplit(' ').next().unwrap_or_default();
            if line.contains("mod ") && line.ends_with(';') {
                tests.insert(format!("{own}{name}.rs"));
            }
        }
    }
    let kept = all.into_iter().filter(|(path, _)| !tests.contains(path));
    kept.map(|(path, text)| Source { code: code_of(&text), path }).collect()
}

/// Up to the unit tests, which stand at the end, and without comments.
fn code_of(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

fn within(path: &str, place: &str) -> bool {
    path == place || (place.is_empty() || place.ends_with('/')) && path.starts_with(place)
}

/// Whether `word` stands in the code as a whole word (or path).
fn says(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        !code[..at].ends_with(part) && (word.ends_with(':') || !code[at + word.len()..].starts_with(part))
    })
}

/// Only the listed files use any of the words, and every listed one does: a stale permission is removed.
#[track_caller]
fn only(allowed: Allowed, words: &[&str]) {
    let sources = sources();
    let uses = |source: &&Source| words.iter().any(|word| says(&source.code, word));
    let users: Vec<&str> = sources.iter().filter(uses).map(|source| source.path.as_str()).collect();
    let stray: Vec<_> =
        users.iter().filter(|path| !allowed.iter().any(|(place, _)| within(path, place))).collect();
    assert!(stray.is_empty(), "{words:?} in {stray:?}: not on the list");
    for (place, why) in allowed {
        assert!(!why.is_empty());
        assert!(users.iter().any(|path| within(path, place)), "{place} uses none of {words:?} any more");
    }
}

#[test]
fn disks_are_opened_in_one_place() {
    only(DISKS, &["libc::O_DIRECT", "libc::O_EXCL", "OFlag::O_DIRECT", "OFlag::O_EXCL"]);
    only(FILES, &["std::fs", "fs::", "File::", "OpenOptions"]);
}

#[test]
fn processes_sockets_and_clocks_have_their_places() {
    only(PROCESSES, &["Command::", "process::Command", "process::Stdio"]);
    only(
        SOCKETS,
        &["std::net", "TcpStream", "TcpListener", "UdpSocket", "UnixStream", "UnixListener", "tokio"],
    );
    only(DATES, &["SystemTime", "Timestamp::now", "Zoned::now"]);
    only(STOPWATCHES, &["Instant::now"]);
}

#[test]
fn threads_and_standard_streams_have_one_place() {
    // `scope.spawn` and `thread::spawn` panic where the system refuses; tokio's tasks are no threads.
    only(THREADS, &["thread::Builder", "Builder::new().name", "spawn_scoped", "thread::scope"]);
    only(BLOCKING, &["spawn_blocking", "block_in_place"]);
    only(STREAMS, &["io::stdout", "io::stderr", "ProgressDrawTarget::stderr"]);
    for source in sources() {
        for word in ["thread::spawn", "scope.spawn", "println!", "eprintln!", "print!", "eprint!", "dbg!"] {
            assert!(!source.code.contains(word), "{} says {word}", source.path);
        }
        // Blocking calls of flock(2): without a limit but for a signal.
        for word in ["FlockArg::LockExclusive", "FlockArg::LockShared"] {
            let nonblocking = source.code.matches(&format!("{word}Nonblock")).count();
            assert_eq!(source.code.matches(word).count(), nonblocking, "{} waits for a lock", source.path);
        }
    }
}

#[test]
fn what_is_written_is_an_act() {
    only(
        WRITERS,
        &[
            "commit::switch",
            "commit::repair",
            "commit::lay_out",
            "write_mark",
            "record.write_torn",
            "record.write_whole",
        ],
    );
    only(&WRITERS[1..2], &["slot::discard", "slot::write_mark", "efivars::run"]);
}

#[test]
fn unsafe_code_has_one_place_and_arguments() {
    only(UNSAFE, &["unsafe"]);
    only(UNSAFE, &["unsafe_code"]);
    for ((path, _), blocks) in UNSAFE.iter().zip(UNSAFE_BLOCKS) {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(path)).unwrap();
        let before: Vec<&str> = text.split("unsafe {").collect();
        assert_eq!(
            before.len() - 1,
            code_of(&text).matches("unsafe {").count(),
            "{path}: only code may say so"
        );
        assert_eq!(before.len() - 1, blocks, "{path}: one more is a decision");
        // Each has its own, between it and the one before.
        for before in &before[..before.len() - 1] {
            let safety = before.rfind("SAFETY").unwrap_or_else(|| panic!("{path}: no SAFETY paragraph"));
            assert!(
                before[safety..].lines().count() < 12,
                "{path}: the SAFETY paragraph is not at the place"
            );
        }
    }
}

#[test]
fn every_dependency_has_a_home() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let section = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let names: BTreeSet<String> = section
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name.trim_start_matches("# ").replace('-', "_"))
        .collect();
    let listed: BTreeSet<String> = HOMES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names, listed, "Cargo.toml and the table of homes differ");
    for (name, homes) in HOMES {
        let mut used = BTreeSet::new();
        for source in sources() {
            // "crate::gpt::" and "super::gpt::" are ours.
            let own = ["crate::", "super::", "self::"].map(|prefix| format!("{prefix}{name}::"));
            let code = own.iter().fold(source.code.clone(), |code, own| code.replace(own, ""));
            if !says(&code, &format!("{name}::")) {
                continue;
            }
            let home = homes.iter().find(|home| within(&source.path, home));
            used.insert(
                *home.unwrap_or_else(|| panic!("{name} is used in {}, its home is {homes:?}", source.path)),
            );
        }
        assert_eq!(used.len(), homes.len(), "{name} is used in {used:?} only, its home is {homes:?}");
    }
}

#[test]
fn the_pure_core_knows_no_machine() {
    let machine =
        ["std::fs", "fs::", "std::process", "std::net", "std::thread", "std::env", "std::time", "nix::"];
    for source in sources() {
        let pure = PURE.iter().any(|place| within(&source.path, place))
            && !IMPURE.iter().any(|(place, _)| within(&source.path, place));
        if !pure {
            continue;
        }
        for word in machine {
            assert!(!says(&source.code, word), "{} is pure, but uses {word}", source.path);
        }
        for word in ["crate::workers", "crate::device"] {
            assert!(!says(&source.code, word), "{} is pure, but uses {word}", source.path);
        }
    }
}

#[test]
fn layers_know_those_below_only() {
    let mut seen = 0;
    for source in sources() {
        for (places, above) in LAYERS {
            if !places.iter().any(|place| within(&source.path, place)) {
                continue;
            }
            seen += 1;
            for module in *above {
                let word = format!("crate::{module}");
                assert!(!says(&source.code, &word), "{} must not know {module}", source.path);
            }
        }
    }
    assert!(seen > 30, "the layers are not found any more");
}

#[test]
fn no_file_is_long() {
    for (path, text) in files() {
        let lines = text.lines().count();
        assert!(lines <= LONGEST, "{path} has {lines} lines; divide it by ideas");
    }
}

/// The checks themselves: words are whole, comments and tests are not code.
#[test]
fn the_reader_of_sources_reads() {
    assert!(says("use std::fs;", "std::fs") && says("fs::read(x)", "fs::"));
    assert!(!says("use nix_fs::x;", "fs::") && !says("Instantly", "Instant"));
    let code = code_of("a(); // fs::read\n#[cfg(test)]\nmod tests {\n    fs::read();\n}\n");
    assert!(!says(&code, "fs::") && says(&code, "a"));
    let paths: Vec<String> = sources().into_iter().map(|source| source.path).collect();
    for (path, there) in [
        ("lib.rs", true),
        ("gpt/plan/mod.rs", true),
        ("boot/tests.rs", false),
        ("host/fake_kernel.rs", false),
    ] {
        assert_eq!(paths.iter().any(|found| found == path), there, "{path}");
    }
}
