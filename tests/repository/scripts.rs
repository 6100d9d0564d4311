//! The scripts are the first thing that a newcomer runs: they parse, are executable, and name missing tools.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const SCRIPTS: [&str; 15] = [
    "scripts/quickstart",
    "scripts/test",
    "scripts/proof",
    "scripts/fuzz",
    "scripts/make-image",
    "scripts/bench-swap",
    "scripts/build-deb",
    "scripts/test-api",
    "scripts/test-deb",
    "scripts/test-recipes",
    "scripts/demo-vm",
    "scripts/demo-cluster",
    "scripts/first-week",
    "examples/mkosi/build",
    ".ci/run",
];

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn scripts_are_executable_strict_and_parse() {
    for name in SCRIPTS {
        let path = script(name);
        assert!(path.metadata().unwrap().permissions().mode() & 0o111 == 0o111, "{name} is not executable");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("#!/usr/bin/env bash\n") && text.contains("\nset -euo pipefail\n"),
            "{name}"
        );
        let parsed = Command::new("bash").arg("-n").arg(&path).output().unwrap();
        assert!(parsed.status.success(), "{name}: {}", String::from_utf8_lossy(&parsed.stderr));
    }
}

/// All programs of `scripts/`, those in Python too, and the scripts of other directories.
fn all_scripts() -> Vec<PathBuf> {
    let own = std::fs::read_dir(script("scripts")).unwrap().map(|entry| entry.unwrap().path());
    let own = own.filter(|path| path.is_file() && path.extension().is_none());
    let mut all: Vec<_> = own.chain([script("examples/mkosi/build"), script(".ci/run")]).collect();
    all.sort();
    all
}

/// The options of a script that take a value, by its help: `--name VALUE`, as each kind of help writes it.
fn options_with_values(help: &str) -> Vec<String> {
    let words: Vec<&str> = help.split_whitespace().map(|word| word.trim_start_matches('[')).collect();
    let capital = |word: &str| word.starts_with(|first: char| first.is_ascii_uppercase());
    let mut found: Vec<String> = words
        .windows(2)
        .filter(|pair| pair[0].starts_with("--") && capital(pair[1].trim_end_matches(']')))
        .map(|pair| pair[0].to_owned())
        .collect();
    found.sort();
    found.dedup();
    found
}

/// A mistyped option of `scripts/proof` once began its hours of work, and a missing value ended with 1, as a failure does. The
/// PATH has what reading arguments needs and no more: a script that goes on can start nothing, and ends with another code.
#[test]
fn a_mistake_of_the_command_line_ends_with_2_and_begins_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (tools, empty) = (dir.path().join("bin"), dir.path().join("empty"));
    std::fs::create_dir(&tools).unwrap();
    std::fs::create_dir(&empty).unwrap();
    // Not what the PATH has, which may be a script that looks for the program.
    let python = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
    symlink(String::from_utf8(python.stdout).unwrap().trim(), tools.join("python3")).unwrap();
    for tool in ["bash", "dirname", "realpath", "sed", "grep"] {
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|dir| dir.join(tool))
            .find(|path| path.is_file());
        symlink(found.unwrap_or_else(|| panic!("{tool} is missing")), tools.join(tool)).unwrap();
    }
    let run = |path: &Path, args: &[&str]| {
        let mut command = Command::new(path);
        command.args(args).current_dir(&empty).env_clear().env("PATH", &tools);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text)
    };
    let mut bare = 0;
    for path in all_scripts() {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let refused = |args: &[&str]| {
            let (code, text) = run(&path, args);
            assert_eq!(code, Some(2), "{name} {args:?}: {text}");
            assert!(text.contains(&format!("{name}: ")), "{name} {args:?}: {text}");
            assert!(text.contains(args[args.len() - 1]), "{name} {args:?} is not named: {text}");
        };
        refused(&["--bogus"]);
        let (code, help) = run(&path, &["--help"]);
        assert_eq!(code, Some(0), "{name} --help: {help}");
        for option in options_with_values(&help) {
            refused(&[&option]);
            bare += 1;
        }
        if name == "demo-vm" {
            refused(&["--loader", "nonesuch"]);
        }
    }
    assert!(bare >= 40, "{bare} options with a value were found");
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
}

/// A PATH with bash and little else: the script must name the packages, all at once, and create nothing.
#[test]
fn the_quickstart_names_missing_packages() {
    let dir = tempfile::tempdir().unwrap();
    let tools = dir.path().join("bin");
    std::fs::create_dir(&tools).unwrap();
    for tool in ["bash", "dirname"] {
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|dir| dir.join(tool))
            .find(|path| path.is_file())
            .unwrap();
        symlink(found, tools.join(tool)).unwrap();
    }
    let keep = dir.path().join("keep");
    let output = Command::new(tools.join("bash"))
        .arg(script("scripts/quickstart"))
        .arg("--keep")
        .arg(&keep)
        .env_clear()
        .env("PATH", &tools)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    for package in ["openssh-client", "findutils", "cargo"] {
        assert!(text.contains(&format!("(apt-get install {package}")), "{package}: {text}");
    }
    assert!(!keep.exists());
}

/// The units, with the program of this build in place of the installed one, by the judgement of systemd.
#[test]
fn systemd_accepts_the_units() {
    let dir = tempfile::tempdir().unwrap();
    let mut units = Vec::new();
    for entry in std::fs::read_dir(script("fixtures/packaging")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "service") {
            let text = std::fs::read_to_string(&path).unwrap();
            let unit = dir.path().join(path.file_name().unwrap());
            std::fs::write(&unit, text.replace("/usr/bin/qstage", env!("CARGO_BIN_EXE_qstage"))).unwrap();
            units.push(unit);
        }
    }
    assert_eq!(units.len(), 4, "{units:?}");
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&units).output();
    let Ok(verified) = verified else {
        assert!(std::env::var_os("CI").is_none(), "CI has systemd-analyze");
        eprintln!("SKIPPED: needs systemd-analyze");
        return;
    };
    // It complains of units of the machine too.
    let text = String::from_utf8_lossy(&verified.stderr);
    let ours: Vec<&str> = text.lines().filter(|line| line.contains("qstage")).collect();
    assert!(ours.is_empty(), "{ours:?}");
}

/// Exposure of the units as judged by systemd; the units have the reasons for the rest. Ten times the number that it shows.
/// The service may reach 4.0, the others stay below 5.0, and none may grow.
#[test]
fn the_units_are_closed() {
    for (unit, most) in
        [("qstage", 40), ("qstage-container", 40), ("qstage-mark-good", 42), ("qstage-trial-failed", 40)]
    {
        let path = script(&format!("fixtures/packaging/{unit}.service"));
        // Under it systemd answers openat2(2) with ENOSYS: no bundle could be opened below image_paths.
        let opens_beneath = unit == "qstage" || unit == "qstage-container";
        let text = std::fs::read_to_string(&path).unwrap();
        assert_ne!(opens_beneath, text.contains("\nRestrictSUIDSGID=yes"), "{unit}");
        let threshold = format!("--threshold={most}");
        let mut analyze = Command::new("systemd-analyze");
        let judged =
            analyze.args(["security", "--offline=true", "--no-pager", &threshold]).arg(path).output();
        let Ok(judged) = judged else {
            assert!(std::env::var_os("CI").is_none(), "CI has systemd-analyze");
            eprintln!("SKIPPED: needs systemd-analyze");
            return;
        };
        let text = String::from_utf8_lossy(&judged.stdout);
        assert!(judged.status.success(), "{unit}: {}", text.lines().last().unwrap_or_default());
    }
}

/// The scripts of the initramfs run unobserved, and so do those of guests: shellcheck reads them as the shells do that run them.
#[test]
fn the_hooks_are_clean() {
    let hooks = [
        "initramfs-tools/hooks/qstage",
        "initramfs-tools/scripts/local-top/qstage",
        "dracut/90qstage/module-setup.sh",
        "dracut/90qstage/parse-qstage.sh",
        "dracut/90qstage/qstage-select-slot.sh",
        "dracut/90qstage/mount-qstage.sh",
    ];
    let guests = std::fs::read_dir(script("scripts/guests")).unwrap();
    let guests = guests.map(|entry| entry.unwrap().path().to_str().unwrap().to_owned());
    for name in hooks.map(|hook| format!("fixtures/packaging/{hook}")).into_iter().chain(guests) {
        let path = script(&name);
        assert!(path.metadata().unwrap().permissions().mode() & 0o111 == 0o111, "{name} is not executable");
        match Command::new("shellcheck").arg(&path).output() {
            Ok(output) => {
                assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout))
            }
            Err(error) => {
                assert!(
                    std::env::var_os("CI").is_none(),
                    "shellcheck: {error}; see scripts/test for its package"
                );
                eprintln!("SKIPPED: shellcheck is not installed");
            }
        }
    }
}

/// A machine with slots that built an image for others, with an empty QSTAGE_DISK_GUID as the manual has it, recorded its own
/// disk in the initramfs of all of them: the empty string counted as none.
#[test]
fn a_build_for_other_machines_records_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    let block = std::fs::read_dir("/dev").unwrap().map(|entry| entry.unwrap().path()).find(|path| {
        use std::os::unix::fs::FileTypeExt;
        path.metadata().is_ok_and(|meta| meta.file_type().is_block_device())
    });
    let Some(block) = block else { return eprintln!("SKIPPED: needs a block device to name") };
    let tool = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    tool("findmnt", &format!("echo {}", block.display()));
    tool("lsblk", "echo disk");
    tool("blkid", "case $* in *NAME*) echo platform_a ;; *) echo own-guid ;; esac");
    // Each hook, with what its tool would bring, and the file that has the name of the disk.
    let initramfs_tools = "sed 's/^\\. .*hook-functions$/copy_exec() { :; }/' \"$HOOK\" | DESTDIR=$OUT sh";
    let dracut = ". \"$HOOK\"; hostonly=yes initdir=$OUT; qstage_disk";
    let hooks = [
        ("initramfs-tools/hooks/qstage", initramfs_tools, "conf/qstage-disk"),
        ("dracut/90qstage/module-setup.sh", dracut, "etc/cmdline.d"),
    ];
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    for (hook, run, records) in hooks {
        for (guid, recorded) in [(None, true), (Some(""), false), (Some("other-guid"), true)] {
            let out = dir.path().join("out");
            let mut command = Command::new("bash");
            command.args(["-c", run]).env("PATH", &path).env("OUT", &out).env_remove("QSTAGE_DISK_GUID");
            command.env("HOOK", script(&format!("fixtures/packaging/{hook}")));
            if let Some(guid) = guid {
                command.env("QSTAGE_DISK_GUID", guid);
            }
            let output = command.output().unwrap();
            assert!(output.stderr.is_empty(), "{hook}: {}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(out.join(records).exists(), recorded, "{hook} with {guid:?}");
            let _ = std::fs::remove_dir_all(out);
        }
    }
}

fn bench_peers() -> Command {
    Command::new(script("scripts/bench-peers"))
}

#[test]
fn bench_peers_explains_itself_and_knows_its_peers() {
    let help = bench_peers().arg("--help").output().unwrap();
    assert!(help.status.success(), "{}", String::from_utf8_lossy(&help.stderr));
    let text = String::from_utf8(help.stdout).unwrap();
    for word in ["--image", "--updates", "--json", "--svg", "rauc", "swupdate", "casync", "bita", "bmaptool"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
    let refused = bench_peers().args(["--peers", "zstd-dd,nobody"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no such peer: 'nobody'"));
}

#[test]
fn bench_delta_explains_itself_and_knows_its_pairs() {
    let run = |args: &[&str]| Command::new(script("scripts/bench-delta")).args(args).output().unwrap();
    let help = run(&["--help"]);
    assert!(help.status.success(), "{}", String::from_utf8_lossy(&help.stderr));
    let text = String::from_utf8(help.stdout).unwrap();
    for word in
        ["--size", "--pairs", "--apply", "--svg", "in-place", "squashfs", "xdelta3", "bsdiff", "casync"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
    for (args, name) in
        [(["--pairs", "one,none"], "pair: 'none'"), (["--peers", "nobody"], "method: 'nobody'")]
    {
        let refused = run(&args);
        assert_eq!(refused.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&refused.stderr).contains(name));
    }
}

/// Runs a small comparison in `dir`; what it measured, or what it said when it failed.
fn compare(dir: &Path, binary: &Path) -> Result<serde_json::Value, String> {
    let output = bench_peers()
        .args(["--peers", "qstage,zstd-dd", "--rounds", "1", "--json", "-"])
        .args(["--image".as_ref(), dir.join("image").as_os_str(), "--binary".as_ref(), binary.as_os_str()])
        .args(["--dir".as_ref(), dir.as_os_str(), "--svg".as_ref(), dir.join("chart").as_os_str()])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(serde_json::from_slice(&output.stdout).unwrap()) } else { Err(stderr) }
}

/// One round with a small image; and once more with a program that says it is done and has written nothing, since a
/// comparison that does not look would find it the fastest.
#[test]
fn bench_peers_measures_and_checks_what_was_written() {
    const SIZE: usize = 16 << 20;
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "CI runs the tests of real devices as root");
        eprintln!("SKIPPED: needs root");
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image: Vec<u8> =
        (0..SIZE as u32 / 4).flat_map(|word| (word.wrapping_mul(word) >> 7).to_le_bytes()).collect();
    std::fs::write(dir.path().join("image"), image).unwrap();

    let qstage = Path::new(env!("CARGO_BIN_EXE_qstage"));
    let result = compare(dir.path(), qstage).unwrap();
    for key in ["qstage", "zstd-dd"] {
        let sample = &result["targets"][0]["rows"][key][0];
        assert!(sample["seconds"].as_f64().unwrap() > 0.0, "{key}: {sample}");
        assert!(sample["written"].as_u64().unwrap() >= SIZE as u64, "{key}: {sample}");
        assert!(sample["flushes"].as_u64().unwrap() >= 1 && sample["left_dirty"] == 0, "{key}: {sample}");
    }
    let chart = std::fs::read_to_string(dir.path().join("chart")).unwrap();
    assert!(chart.starts_with("<svg ") && chart.contains("qstage prepare"), "{chart}");

    let idle = dir.path().join("idle");
    let script = format!("#!/bin/sh\n[ \"$1\" = prepare ] || exec '{}' \"$@\"\n", qstage.display());
    std::fs::write(&idle, script).unwrap();
    std::fs::set_permissions(&idle, std::fs::Permissions::from_mode(0o755)).unwrap();
    let said = compare(dir.path(), &idle).unwrap_err();
    assert!(said.contains("16777216 bytes of the slot are not as in the image"), "{said}");

    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "image, chart, idle: {left:?}");
    let loops = Command::new("losetup").arg("--list").output().unwrap();
    let loops = String::from_utf8_lossy(&loops.stdout).into_owned();
    assert!(!loops.contains(dir.path().to_str().unwrap()), "{loops}");
}
