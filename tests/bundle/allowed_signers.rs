//! `allowed_signers` has the same meaning as for ssh-keygen: both read a generated table of lines and files.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::num::NonZeroUsize;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use qstage::Trust;
use qstage::bundle::trust::Demand;
use tempfile::TempDir;

/// What is signed here: nothing looks into it.
const MESSAGE: &[u8] = b"manifest";
/// The time at which signatures are judged, 2020-07-01 12:00:00 UTC, and as ssh-keygen takes it.
const NOW: i64 = 1_593_604_800;
const VERIFY_TIME: &str = "20200701120000Z";

struct Bench {
    dir: TempDir,
    key: String,
    other: String,
    signature: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let key = generate(dir.path(), "key");
        let other = generate(dir.path(), "other");
        let signature = sign(dir.path(), "key");
        std::fs::write(dir.path().join("sig"), &signature).unwrap();
        Self { dir, key, other, signature }
    }

    /// Whether ssh-keygen takes the signature by this file. `name` keeps files of threads apart.
    fn judge(&self, name: &str, file: &[u8], principal: &str) -> bool {
        let path = self.dir.path().join(name);
        std::fs::write(&path, file).unwrap();
        let time = format!("verify-time={VERIFY_TIME}");
        let mut child = Command::new("ssh-keygen")
            .current_dir(self.dir.path())
            .args(["-Y", "verify", "-n", "qimg", "-s", "sig", "-I", principal, "-O", &time, "-f", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It may end before it reads.
        let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), MESSAGE);
        child.wait().unwrap().success()
    }

    fn qstage(&self, file: &[u8], principal: &str) -> bool {
        let demand = Demand { principal: Some(principal.to_owned()), ..Demand::default() };
        let trust = Trust::parse(Path::new("file"), file).map(|trust| trust.demanding(demand));
        trust.is_ok_and(|trust| trust.judge_at(MESSAGE, &self.signature, NOW).is_ok())
    }

    /// Puts each file before both, on two threads; returns how many were accepted.
    fn compare(&self, files: &[(Vec<u8>, &str)]) -> usize {
        let (next, accepted) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (next, accepted) = (&next, &accepted);
                scope.spawn(move || {
                    while let Some((file, principal)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let expected = self.judge(&format!("file{thread}"), file, principal);
                        assert_eq!(
                            self.qstage(file, principal),
                            expected,
                            "ssh-keygen says {expected} to {principal}: {}",
                            file.escape_ascii()
                        );
                        accepted.fetch_add(usize::from(expected), Ordering::Relaxed);
                    }
                });
            }
        });
        accepted.into_inner()
    }
}

/// Makes a key pair; returns type and base64 of the public one.
fn generate(dir: &Path, name: &str) -> String {
    let made = Command::new("ssh-keygen")
        .current_dir(dir)
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", name])
        .status();
    assert!(made.unwrap().success());
    let text = std::fs::read_to_string(dir.join(format!("{name}.pub"))).unwrap();
    text.trim_end().to_owned()
}

fn sign(dir: &Path, key: &str) -> Vec<u8> {
    std::fs::write(dir.join("m"), MESSAGE).unwrap();
    let _ = std::fs::remove_file(dir.join("m.sig"));
    let signed = Command::new("ssh-keygen")
        .current_dir(dir)
        .args(["-q", "-Y", "sign", "-n", "qimg", "-f", key, "m"])
        .stderr(Stdio::null())
        .status();
    assert!(signed.unwrap().success());
    std::fs::read(dir.join("m.sig")).unwrap()
}

/// Pieces of options; what ssh-keygen makes of them is its business.
const OPTIONS: &[&str] = &[
    "",
    "namespaces=\"qimg\"",
    "namespaces=\"!qimg,*\"",
    "namespaces=\"*,!qimg\"",
    "namespaces=\"q*\"",
    "namespaces=\"qim?\"",
    "namespaces=\"qimg?\"",
    "namespaces=\"git,qimg\"",
    "namespaces=\"git, qimg\"",
    "namespaces=\"\"",
    "namespaces=\"git,,qimg\"",
    "namespaces=\"QIMG\"",
    "namespaces=\"qimg\",",
    "namespaces=qimg",
    "namespaces=\"qimg",
    "namespaces=\"q\\\"img\"",
    "NameSpaces=\"qimg\"",
    ",namespaces=\"qimg\"",
    ",,",
    "namespaces",
    "namespaces=\"a b\",valid-after=\"20200101\"",
    "cert-authority",
    "Cert-Authority,namespaces=\"qimg\"",
    "verify-required",
    "no-touch-required",
    "valid-after=\"20200101Z\"",
    "valid-after=\"20200701120000Z\"",
    "valid-after=\"20200701120001Z\"",
    "valid-before=\"20200701120000Z\"",
    "valid-before=\"20200701115959Z\"",
    "valid-before=\"20210101\"",
    "valid-before=\"202101010000UTC\"",
    "valid-before=\"20210101z\"",
    "valid-before=\"20210231\"",
    "valid-before=\"20210132\"",
    "valid-before=\"20211301\"",
    "valid-before=\"2021010100\"",
    "valid-before=\"soon\"",
    "valid-before=\"2021 1 1\"",
    "valid-before=\"20210101235960Z\"",
    "valid-before=\"20210101235962Z\"",
    "valid-before=\"19700101Z\"",
    "valid-after=\"20200101\",valid-before=\"20200101\"",
    "valid-after=\"20200101\",valid-before=\"20210101\"",
    "valid-after=\"20210101\",valid-before=\"20200101\"",
    "valid-after=\"20200101\",valid-after=\"20200101\"",
    "x\u{fc}",
];

const PRINCIPALS: &[&str] = &[
    "me",
    "*",
    "m?",
    "m??",
    "you",
    "you,me",
    "!me,*",
    "*,!me",
    "!you",
    "\"me\"",
    "\"me,you\"",
    "\"me you\"",
    "m\"e\"",
    "me\"x\"",
    "\"me",
    "ME",
    "me,",
    ",me",
    "\"\"",
    "\u{fc},me",
    "#me",
    "m*e*",
];

/// Each option alone and in pairs with each other, each principal, and each way to write the rest of the line.
#[test]
fn every_line_means_what_it_means_to_ssh_keygen() {
    let bench = Bench::new();
    let key = bench.key.as_str();
    let (kind, blob) = key.split_once(' ').unwrap();
    let mut files: Vec<(Vec<u8>, &str)> = Vec::new();
    let mut add = |text: String| files.push((text.into_bytes(), "me"));
    for one in OPTIONS {
        add(format!("me {one} {key}\n"));
        for other in OPTIONS.iter().step_by(3) {
            add(format!("me {one},{other} {key}\n"));
        }
    }
    for principals in PRINCIPALS {
        for options in ["", "namespaces=\"qimg\" ", "namespaces=\"git\" "] {
            add(format!("{principals} {options}{key}\n"));
        }
    }
    let half = blob.len() / 2;
    for line in [
        format!("me {key}"),
        format!("me {key} a comment \"with a quote"),
        format!("me\t{kind}\t{blob}\tcomment"),
        format!("  \tme  {kind}   {blob}"),
        format!("me {key}\r"),
        format!("me {key}\0junk"),
        format!("me \0{key}"),
        format!("me{key}"),
        format!("me {kind}"),
        format!("me {kind} {}", &blob[..half]),
        format!("me {kind} {}={}", &blob[..half], &blob[half..]),
        format!("me {kind} {}\x0b{}", &blob[..half], &blob[half..]),
        format!("me {kind} {}\r{}", &blob[..half], &blob[half..]),
        format!("me {kind} {blob}=="),
        format!("me {kind} {blob}A"),
        format!("me ssh-rsa {blob}"),
        format!("me ssh-ED25519 {blob}"),
        format!("me rsa-sha2-256 {blob}"),
        format!("me ssh-ed25519-cert-v01@openssh.com {blob}"),
        format!("me {blob}"),
        format!("# me {key}"),
        format!("me # {key}"),
        format!("me namespaces=\"qimg\"\t{key}"),
        format!("me namespaces=\"qimg\"\x0b{key}"),
        format!("me namespaces=\"qimg\"{key}"),
        format!("\"me\"{key}"),
        format!("me namespaces=\"qimg\"  \t {key}"),
        String::new(),
        "me".to_owned(),
    ] {
        add(line.clone() + "\n");
        add(line);
    }
    // Bytes that are no UTF-8, in each part of a line.
    for (before, after) in
        [("me ", " \u{e9}"), ("m\u{e9},me ", ""), ("me namespaces=\"\u{e9},qimg\" ", ""), ("m\u{e9} ", "")]
    {
        let latin = |text: &str| text.chars().map(|c| c as u8).collect::<Vec<u8>>();
        files.push(([latin(before), key.as_bytes().to_vec(), latin(after), b"\n".to_vec()].concat(), "me"));
    }
    for principal in ["", "you", "m*", "me,you"] {
        files.push((format!("me,\"\" {key}\n").into_bytes(), principal));
        files.push((format!("* {key}\n").into_bytes(), principal));
    }
    let accepted = bench.compare(&files);
    // The table has something to say: both answers are given often.
    assert!(accepted > 80 && files.len() - accepted > 200, "{accepted} of {}", files.len());
}

/// One line decides nothing about another: any of them may hold, in any order.
#[test]
fn every_file_of_two_lines_too() {
    let bench = Bench::new();
    let (key, other) = (&bench.key, &bench.other);
    let lines = [
        format!("me {key}"),
        format!("me namespaces=\"git\" {key}"),
        format!("me {other}"),
        format!("me namespaces=qimg {key}"),
        format!("me cert-authority {key}"),
        format!("you {key}"),
        format!("me valid-before=\"20200101Z\" {key}"),
        "rubbish".to_owned(),
        "\0".to_owned(),
        "# comment".to_owned(),
    ];
    let mut files = Vec::new();
    for one in &lines {
        for two in &lines {
            files.push((format!("{one}\n{two}\n").into_bytes(), "me"));
            files.push((format!("{one}\r\n\n{two}").into_bytes(), "me"));
        }
    }
    let accepted = bench.compare(&files);
    assert!(accepted == 2 * (2 * lines.len() - 1), "{accepted}");
}

/// In zones with daylight saving time, north, south and none: the time zone is the process's, so each has one of its own.
#[test]
fn local_times_are_those_of_ssh_keygen() {
    for zone in ["Europe/Berlin", "America/Santiago", "Asia/Kolkata", "AAA5BBB,M3.2.0,M11.1.0", "UTC0"] {
        let this = std::env::current_exe().unwrap();
        let run = Command::new(this)
            .args(["--exact", "allowed_signers::times_of_one_zone", "--ignored"])
            .env("TZ", zone)
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success() && output.contains("1 passed"), "{zone}: {output}");
    }
}

#[test]
#[ignore = "run by the test above, once per zone"]
fn times_of_one_zone() {
    let bench = Bench::new();
    let mut files = Vec::new();
    // Every half hour around the time at which is judged, by both limits.
    for half_hour in 0..48 {
        let time = format!("20200701{:02}{:02}00", half_hour / 2, half_hour % 2 * 30);
        for limit in ["valid-after", "valid-before"] {
            files.push((format!("me {limit}=\"{time}\" {}\n", bench.key).into_bytes(), "me"));
        }
    }
    let accepted = bench.compare(&files);
    assert!((48..=49).contains(&accepted), "{accepted}");
}

/// The number of different keys counts: one that signed twice counts once, one whose line is listed twice as well.
#[test]
fn a_threshold_counts_different_keys() {
    let bench = Bench::new();
    let (key, other) = (&bench.key, &bench.other);
    let second = sign(bench.dir.path(), "other");
    let (once, twice) =
        (bench.signature.clone(), [bench.signature.clone(), bench.signature.clone()].concat());
    let both = [bench.signature.clone(), second].concat();
    let both_keys = format!("me {key}\nyou {other}\nme {key}\n");
    for (file, signature, threshold, expected) in [
        (&both_keys, &once, 1, "1"),
        (&both_keys, &once, 2, "UPGRADE_ERROR_TOO_FEW_SIGNERS"),
        (&both_keys, &twice, 2, "UPGRADE_ERROR_TOO_FEW_SIGNERS"),
        (&both_keys, &both, 2, "2"),
        (&both_keys, &both, 3, "UPGRADE_ERROR_TOO_FEW_SIGNERS"),
        (&format!("me {key}\n"), &both, 2, "UPGRADE_ERROR_TOO_FEW_SIGNERS"),
        (&format!("me {key}\n"), &both, 1, "1"),
    ] {
        let threshold = NonZeroUsize::new(threshold).unwrap();
        let trust = Trust::parse(Path::new("file"), file.as_bytes()).unwrap();
        let trust = trust.demanding(Demand { threshold, principal: None });
        match trust.judge_at(MESSAGE, signature, NOW) {
            Ok(names) => assert_eq!(names.matches("SHA256:").count().to_string(), expected, "{names}"),
            Err(error) => assert_eq!(error.code(), expected, "{error}"),
        }
    }
}

/// Issue: one signature by a certificate beside one that holds kept the bundle from being used at all.
#[test]
fn a_signature_of_an_unknown_kind_is_passed_over() {
    let bench = Bench::new();
    let dir = bench.dir.path();
    generate(dir, "ca");
    let certified = Command::new("ssh-keygen")
        .current_dir(dir)
        .args(["-q", "-s", "ca", "-I", "id", "-n", "me", "key.pub"])
        .status();
    assert!(certified.unwrap().success());
    let by_certificate = sign(dir, "key-cert.pub");
    let trust = Trust::parse(Path::new("file"), format!("me {}\n", bench.key).as_bytes()).unwrap();
    for signatures in [
        [by_certificate.clone(), bench.signature.clone()].concat(),
        [bench.signature.clone(), by_certificate.clone()].concat(),
    ] {
        trust.judge_at(MESSAGE, &signatures, NOW).unwrap();
        let other = trust.judge_at(b"other bytes", &signatures, NOW).unwrap_err();
        assert_eq!(other.code(), "UPGRADE_ERROR_BAD_SIGNATURE");
    }
    let alone = trust.judge_at(MESSAGE, &by_certificate, NOW).unwrap_err();
    assert_eq!(alone.code(), "UPGRADE_ERROR_UNTRUSTED", "{alone}");
}
