//! Bundles by stock tools: tar, zstd, b3sum, sha256sum and ssh-keygen agree with every byte, and the same input gives
//! the same bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::machine;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use machine::forge::Parts;
use machine::{Bench, MIB, SIGNER, tool, tool_bytes};

/// Member, its image, by the names that are used here.
const IMAGES: [(&str, &str); 4] = [
    ("platform.img.zst", "platform.img"),
    ("software.img.zst", "software.img"),
    ("firmware/bios.zst", "bios.bin"),
    ("firmware/nic.zst", "nic.bin"),
];

/// Images of odd sizes: one ends in a hole, one is a single byte, one is exactly a frame, one holds zeroes only.
fn images(bench: &Bench) {
    bench.image("platform.img", 3 * MIB + 12_345, 1);
    let file = fs::File::options().write(true).open(bench.path("platform.img")).unwrap();
    file.set_len(7 * MIB + 1).unwrap();
    bench.image("software.img", MIB, 2);
    fs::write(bench.path("bios.bin"), "x").unwrap();
    fs::File::create(bench.path("nic.bin")).unwrap().set_len(100_003).unwrap();
}

const FILES: [&str; 8] = [
    "--platform",
    "platform.img",
    "--software",
    "software.img",
    "--firmware",
    "nic=nic.bin",
    "--firmware",
    "bios=bios.bin",
];

/// Takes the bundle apart with tar(1) into a directory of this name.
fn unpack(bench: &Bench, bundle: &str) -> String {
    let dir = bench.text(&format!("{bundle}.d"));
    fs::create_dir_all(&dir).unwrap();
    tool("tar", &["xf", &bench.text(bundle), "-C", &dir]);
    dir
}

/// `ssh-keygen -Y verify` of one signature over the manifest.
fn ssh_verify(bench: &Bench, dir: &str, signature: &Path, trust: &str) -> bool {
    let mut command = Command::new("ssh-keygen");
    command.args(["-Y", "verify", "-f", &bench.text(trust), "-I", SIGNER, "-n", "qimg", "-s"]).arg(signature);
    command.stdin(fs::File::open(format!("{dir}/manifest.json")).unwrap());
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

#[test]
fn stock_tools_agree_with_every_byte() {
    let bench = Bench::new();
    images(&bench);
    bench.pack("x", "1.2.3", &FILES);
    let listed: Vec<String> =
        tool("tar", &["tf", &bench.text("x.qimg")]).lines().map(str::to_owned).collect();
    let front = ["manifest.json", "manifest.json.sig", "index.bin"];
    assert_eq!(listed, [&front[..], &IMAGES.map(|(member, _)| member)].concat());
    // Nothing after the end-of-archive mark, and nothing that tar would warn of.
    let blocks = tool("tar", &["tRf", &bench.text("x.qimg")]);
    assert!(blocks.contains("Block of NULs"), "{blocks}");
    let parts = Parts::of(&bench, "x.qimg");
    assert_eq!(parts.bytes(), fs::read(bench.path("x.qimg")).unwrap());

    let dir = unpack(&bench, "x.qimg");
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(format!("{dir}/manifest.json")).unwrap()).unwrap();
    for ((member, image), payload) in IMAGES.iter().zip(manifest["payloads"].as_array().unwrap()) {
        let (original, packed) = (bench.text(image), format!("{dir}/{member}"));
        assert_eq!(tool_bytes("zstd", &["-dcq", &packed]), fs::read(&original).unwrap(), "{member}");
        tool("zstd", &["-tq", &packed]);
        assert_eq!(tool("b3sum", &["--no-names", &original]).trim(), payload["blake3"], "{member}");
        assert!(tool("sha256sum", &[&original]).starts_with(payload["sha256"].as_str().unwrap()), "{member}");
        assert_eq!(payload["size"], fs::metadata(&original).unwrap().len(), "{member}");
    }
    let index = tool("b3sum", &["--no-names", &format!("{dir}/index.bin")]);
    assert_eq!(index.trim(), manifest["index"]["blake3"]);
    // The index is 36 bytes for each frame, and zstd counts as many.
    let lines: u64 = IMAGES
        .iter()
        .map(|(member, _)| {
            let info = tool("zstd", &["-lv", &format!("{dir}/{member}")]);
            let line = info.lines().find(|line| line.contains("Frames:")).unwrap();
            line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
        })
        .sum();
    assert_eq!(fs::metadata(format!("{dir}/index.bin")).unwrap().len(), lines * 36);
    assert!(ssh_verify(&bench, &dir, Path::new(&format!("{dir}/manifest.json.sig")), "allowed_signers"));
    bench.run(&["verify", "x.qimg", "--trust", "allowed_signers"]).good();
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let bench = Bench::new();
    images(&bench);
    let pack = |name: &str, epoch: &str, more: &[&str]| {
        let out = format!("{name}.qimg");
        let args = ["pack", "--product", "demo", "--version", "1", "--key", "key", "-o", &out];
        let run = bench.command(&[&args, &FILES[..], more].concat()).env("SOURCE_DATE_EPOCH", epoch).output();
        machine::Run::from(run.unwrap()).good();
        fs::read(bench.path(&out)).unwrap()
    };
    let one = pack("one", "1700000000", &["--jobs", "1"]);
    assert!(one == pack("eight", "1700000000", &["--jobs", "8"]), "it depends on the number of workers");
    assert!(one == pack("again", "1700000000", &[]), "it depends on the run");
    // A file without holes and a sparse one are the same image.
    let full = fs::read(bench.path("nic.bin")).unwrap();
    fs::write(bench.path("nic.bin"), full).unwrap();
    assert!(one == pack("full", "1700000000", &[]), "it depends on the holes");
    let later = pack("later", "1700000001", &[]);
    assert!(one != later);
    let created = |name: &str| Parts::of(&bench, name).manifest()["created"].clone();
    assert_eq!((created("one.qimg"), created("later.qimg")), (1_700_000_000.into(), 1_700_000_001.into()));
    let listing = tool("tar", &["tvf", &bench.text("one.qimg"), "--full-time", "--utc"]);
    assert_eq!(listing.matches("2023-11-14 22:13:20").count(), 7, "{listing}");
    let bad = ["pack", "--product", "demo", "--version", "1", "-o", "bad.qimg"];
    let run =
        bench.command(&[&bad, &FILES[..]].concat()).env("SOURCE_DATE_EPOCH", "yesterday").output().unwrap();
    machine::Run::from(run).bad("ARGUMENT");
}

#[test]
fn level_and_frame_size_are_the_packers_choice() {
    let bench = Bench::new();
    images(&bench);
    let mut sizes = Vec::new();
    for (name, options, frame) in [
        ("fast", &["--level", "1"][..], 1 << 20),
        ("small", &["--level", "19"], 1 << 20),
        ("fine", &["--frame-size", "64K"], 64 << 10),
        ("coarse", &["--frame-size", "8M"], 8 << 20),
    ] {
        bench.pack(name, "1", &[&FILES[..], options].concat());
        let bundle = format!("{name}.qimg");
        bench.run(&["verify", &bundle, "--trust", "allowed_signers"]).good();
        let manifest = Parts::of(&bench, &bundle).manifest();
        for payload in manifest["payloads"].as_array().unwrap() {
            assert_eq!(payload["frame_size"], frame, "{name}");
        }
        let dir = unpack(&bench, &bundle);
        for (member, image) in IMAGES {
            let back = tool_bytes("zstd", &["-dcq", &format!("{dir}/{member}")]);
            assert_eq!(back, fs::read(bench.path(image)).unwrap(), "{name} {member}");
        }
        sizes.push(fs::metadata(bench.path(&bundle)).unwrap().len());
    }
    assert!(sizes[0] >= sizes[1], "{sizes:?}");
    for (option, value) in
        [("--level", "0"), ("--level", "20"), ("--frame-size", "16M"), ("--frame-size", "100000")]
    {
        let args = ["pack", "--product", "demo", "--version", "1", "-o", "bad.qimg", option, value];
        assert_eq!(bench.run(&[&args, &FILES[..]].concat()).code, Some(2), "{option} {value}");
    }
}

/// Each kind of key, by us and by ssh-keygen: both sign, both verify, and a bundle may carry all of them.
#[test]
fn keys_of_every_kind_sign_and_are_believed() {
    let bench = Bench::new();
    images(&bench);
    let kinds = ["ed25519", "ecdsa", "rsa"];
    for kind in kinds {
        bench.key(kind, kind);
        bench.trust(&format!("{kind}_signers"), &[kind]);
        // By us.
        let (own, foreign) = (format!("{kind}.qimg"), format!("{kind}-foreign.qimg"));
        let args = ["pack", "--product", "demo", "--version", "1", "-o", &own, "--key", kind];
        bench.run(&[&args, &FILES[..]].concat()).good();
        let trust = format!("{kind}_signers");
        bench.run(&["verify", &own, "--trust", &trust]).good();
        let dir = unpack(&bench, &own);
        let signature = format!("{dir}/manifest.json.sig");
        assert!(ssh_verify(&bench, &dir, Path::new(&signature), &trust), "{kind}: ssh-keygen disagrees");
        // By ssh-keygen, attached.
        fs::remove_file(&signature).unwrap();
        let manifest = format!("{dir}/manifest.json");
        tool("ssh-keygen", &["-q", "-Y", "sign", "-n", "qimg", "-f", &bench.text(kind), &manifest]);
        let mut bare = Parts::of(&bench, &own);
        bare.member("manifest.json.sig").clear();
        bare.save(&bench, &foreign);
        bench.run(&["verify", &foreign, "--trust", &trust]).bad("UNSIGNED");
        bench.run(&["sign", &foreign, "--signature", &signature]).good();
        bench.run(&["verify", &foreign, "--trust", &trust]).good();
        assert!(ssh_verify(&bench, &dir, Path::new(&signature), &trust));
    }
    fs::copy(bench.path("ed25519.qimg"), bench.path("all.qimg")).unwrap();
    for kind in &kinds[1..] {
        bench.run(&["sign", "all.qimg", "--key", kind]).good();
    }
    for kind in kinds {
        bench.run(&["verify", "all.qimg", "--trust", &format!("{kind}_signers")]).good();
    }
    bench.run(&["verify", "all.qimg", "--trust", "allowed_signers"]).bad("UNTRUSTED");
    // ssh-keygen reads one at a time: each block by itself, as the manual says.
    let dir = unpack(&bench, "all.qimg");
    let all = fs::read_to_string(format!("{dir}/manifest.json.sig")).unwrap();
    let blocks: BTreeSet<&str> = all.split_inclusive("-----END SSH SIGNATURE-----\n").collect();
    assert_eq!(blocks.len(), 3);
    let believed = |kind: &str| {
        let one = bench.path("one.sig");
        blocks.iter().any(|block| {
            fs::write(&one, block).unwrap();
            ssh_verify(&bench, &dir, &one, &format!("{kind}_signers"))
        })
    };
    assert!(kinds.iter().all(|kind| believed(kind)));
    // Nothing but the signature changed.
    let (mut before, mut after) = (Parts::of(&bench, "ed25519.qimg"), Parts::of(&bench, "all.qimg"));
    before.member("manifest.json.sig").clear();
    after.member("manifest.json.sig").clear();
    assert_eq!(before.members, after.members);
}

/// Ends the agent that it started.
struct Agent(u32, String);

impl Agent {
    fn start(bench: &Bench) -> Self {
        let socket = bench.text("agent");
        let told = tool("ssh-agent", &["-s", "-a", &socket]);
        let pid = told.split("SSH_AGENT_PID=").nth(1).and_then(|rest| rest.split(';').next()).unwrap();
        Self(pid.parse().unwrap(), socket)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.0 as i32),
            nix::sys::signal::Signal::SIGTERM,
        );
    }
}

/// The private half is where no file shows it: in an agent, as with a hardware token.
#[test]
fn a_key_in_an_agent_signs_through_its_public_half() {
    let bench = Bench::new();
    images(&bench);
    let agent = Agent::start(&bench);
    let add =
        Command::new("ssh-add").args(["-q", &bench.text("key")]).env("SSH_AUTH_SOCK", &agent.1).status();
    assert!(add.unwrap().success());
    fs::remove_file(bench.path("key")).unwrap();
    let args = ["pack", "--product", "demo", "--version", "1", "-o", "x.qimg", "--key", "key.pub"];
    let pack = |socket: &str| -> machine::Run {
        let mut command = bench.command(&[&args, &FILES[..]].concat());
        command.env("SSH_AUTH_SOCK", socket).output().unwrap().into()
    };
    pack("/nonexistent").bad("SIGNING");
    assert!(!bench.path("x.qimg").exists());
    pack(&agent.1).good();
    bench.run(&["verify", "x.qimg", "--trust", "allowed_signers"]).good();
}

/// Without a terminal there is no prompt for a passphrase; the message must not be about a broken key.
#[test]
fn an_encrypted_key_is_called_so() {
    let bench = Bench::new();
    images(&bench);
    bench.locked_key("locked", "ed25519", "correct horse");
    let args = ["pack", "--product", "demo", "--version", "1", "-o", "x.qimg", "--key", "locked"];
    // A session of its own, so that ssh-keygen finds no terminal to ask on.
    let mut command = Command::new("setsid");
    command.args(["-w", env!("CARGO_BIN_EXE_qstage")]).args(args).args(FILES).current_dir(bench.path(""));
    command.env_remove("SSH_ASKPASS").env_remove("DISPLAY").stdin(Stdio::null());
    let run = machine::Run::from(command.output().unwrap());
    assert!(run.err.contains("passphrase") || run.err.contains("encrypted"), "{}", run.err);
    run.bad("SIGNING");
    assert!(!bench.path("x.qimg").exists());
}
