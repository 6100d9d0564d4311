//! The program with `--boot-flag efi` on a disk image and a directory of variables, as OVMF 2022.11 leaves them on a new
//! machine; the judge is efibootmgr, which reads the same format.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use crate::harness::machine;

use std::fs;
use std::process::Command;

use machine::{Bench, Run};

const VENDOR: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
const LOADER: &str = "LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Name and content, attributes first.
const OVMF: &[(&str, &str)] = &[
    (
        "Boot0000",
        "07000000090100002c0055006900410070007000000004071400c9bdb87cebf8344faaea3ee4af6516a10406140021aa2c4614760345836e8ab6f46623317fff0400",
    ),
    (
        "Boot0001",
        "0700000001000000260055004500460049002000510045004d00550020004e0056004d00650020004300740072006c00200062006f006f007400730020003100000002010c00d041030a00000000010106000001031710000100000000000000000000007fff04004eac0881119f594d850ee21a522c59b2",
    ),
    (
        "Boot0002",
        "07000000010000002c00450046004900200049006e007400650072006e0061006c0020005300680065006c006c00000004071400c9bdb87cebf8344faaea3ee4af6516a10406140083a5047c3e9e1c4fad65e05268d0b4d17fff0400",
    ),
    ("BootOrder", "07000000000001000200"),
    ("BootCurrent", "060000000100"),
];

struct Machine(Bench);

impl Machine {
    fn new() -> Self {
        let bench = Bench::installed();
        bench.config("boot_flag = \"efi\"\nefivars = \"vars\"\n");
        fs::create_dir(bench.path("vars")).unwrap();
        let machine = Self(bench);
        for (name, hex) in OVMF {
            let bytes = (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap());
            machine.set(&format!("{name}-{VENDOR}"), &bytes.collect::<Vec<u8>>());
        }
        machine.boots("platform_a");
        machine
    }

    fn set(&self, name: &str, bytes: &[u8]) {
        fs::write(self.0.path("vars").join(name), bytes).unwrap();
    }

    /// What systemd-stub says when the kernel image came from that slot.
    fn boots(&self, partition: &str) {
        let text = self.partuuid(partition).to_uppercase();
        let text = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
        self.set(LOADER, &[6, 0, 0, 0].into_iter().chain(text).collect::<Vec<u8>>());
    }

    fn partuuid(&self, partition: &str) -> String {
        let rows = machine::sfdisk(&self.0.disk());
        let row = rows["partitions"].as_array().unwrap().iter().find(|row| row["name"] == partition).unwrap();
        row["uuid"].as_str().unwrap().to_lowercase()
    }

    fn at(&self, args: &[&str]) -> Run {
        self.0.at(args)
    }

    /// What efibootmgr prints of the variables.
    fn judge(&self, args: &[&str]) -> String {
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let output = Command::new("efibootmgr")
            .args(args)
            .env("PATH", path)
            .env("EFIVARFS_PATH", format!("{}/", self.0.text("vars")))
            .output();
        let output = output.unwrap_or_else(|error| panic!("efibootmgr: {error}; see scripts/test"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn file(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.0.path("vars").join(format!("{name}-{VENDOR}"))).ok()
    }

    /// The reboot: the firmware forgets BootNext.
    fn reboot(&self, into: &str) {
        let _ = fs::remove_file(self.0.path("vars").join(format!("BootNext-{VENDOR}")));
        self.boots(into);
    }
}

#[test]
fn a_whole_upgrade_as_efibootmgr_sees_it() {
    let machine = Machine::new();
    let table = fs::read(machine.0.disk()).unwrap()[..1 << 20].to_vec();
    // The health check of a machine that the firmware knows nothing of: the slot gets its entry, once.
    assert!(machine.at(&["mark-good"]).good().contains("now in BootOrder"));
    assert!(machine.at(&["mark-good"]).good().contains("nothing to do"));
    machine.at(&["prepare", "v2.qimg"]).good();
    // It leads; the target has none yet.
    let told = machine.judge(&["-v"]);
    assert!(told.contains("BootOrder: 0003,0000,0001,0002"), "{told}");
    let a = machine.partuuid("platform_a");
    assert!(told.contains("Boot0003* qstage a") && told.contains(&a), "{told}");
    assert!(told.contains("HD(1,GPT,") && told.contains("/File(\\EFI\\BOOT\\BOOTX64.EFI)"), "{told}");

    let plan = machine.at(&["commit", "--dry-run"]).good();
    assert!(plan.contains("set EFI variable BootNext: slot b boots once"), "{plan}");
    assert!(machine.file("BootNext").is_none());
    machine.at(&["commit"]).good();
    let told = machine.judge(&["-v"]);
    assert!(told.contains("BootNext: 0004") && told.contains("BootOrder: 0003,0000,0001,0002"), "{told}");
    let b = machine.partuuid("platform_b");
    assert!(told.contains("Boot0004* qstage b") && told.contains("HD(2,GPT,") && told.contains(&b), "{told}");
    assert_eq!(machine.0.state("platform_b", &[]), "trial");
    let slots = machine.at(&["slots"]).good();
    assert!(slots.contains("Boot0003      1  -") && slots.contains("Boot0004      -  next"), "{slots}");
    let text = machine.at(&["commit"]).bad("NOT_PREPARED");
    assert!(text.contains("already committed"), "{text}");

    // It fell back.
    machine.reboot("platform_a");
    assert_eq!(machine.0.state("platform_b", &[]), "bad");
    let status = machine.at(&["status"]).good();
    assert!(status.contains("FELL_BACK") && status.contains("its one boot is over"), "{status}");
    let text = machine.at(&["commit"]).bad("NOT_PREPARED");
    assert!(text.contains("--retry"), "{text}");

    // Again, and good.
    machine.at(&["prepare", "v2.qimg"]).bad("FAILED_BEFORE");
    machine.at(&["prepare", "v2.qimg", "--retry"]).good();
    assert!(machine.judge(&[]).contains("Boot0004  qstage b"), "not active while it was written");
    machine.at(&["commit"]).good();
    assert!(machine.judge(&[]).contains("Boot0004* qstage b"));
    machine.reboot("platform_b");
    assert_eq!(machine.0.state("platform_b", &[]), "trial");
    machine.at(&["prepare", "v1.qimg", "--allow-downgrade"]).bad("ON_TRIAL");
    machine.at(&["mark-good"]).good();
    assert!(machine.judge(&[]).contains("BootOrder: 0004,0003,0000,0001,0002"));
    machine.at(&["mark-good"]).good();
    machine.at(&["roll-back"]).good();
    assert!(machine.judge(&[]).contains("BootOrder: 0003,0004,0000,0001,0002"));
    assert_eq!(fs::read(machine.0.disk()).unwrap()[..1 << 20], table, "the partition table is left as found");
    for (name, hex) in &OVMF[..3] {
        let now: String = machine.file(name).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(now, *hex, "a foreign entry");
    }
}

/// What people do with efibootmgr is respected, and a foreign entry that comes first is shown.
#[test]
fn other_hands_are_seen() {
    let machine = Machine::new();
    machine.at(&["prepare", "v2.qimg"]).good();
    machine.at(&["commit"]).good();
    machine.judge(&["-o", "0002,0003"]);
    let slots = machine.at(&["slots"]).good();
    assert!(slots.contains("before  Boot0002 EFI Internal Shell"), "{slots}");
    machine.judge(&["-N"]);
    assert_eq!(machine.0.state("platform_b", &[]), "bad", "the trial is off");
    machine.judge(&["-n", "0004"]);
    assert_eq!(machine.0.state("platform_b", &[]), "trial");
    machine.at(&["cancel"]).good();
    let told = machine.judge(&[]);
    assert!(!told.contains("BootNext") && told.contains("Boot0004  qstage b"), "{told}");
    assert!(told.contains("BootOrder: 0002,0003"), "{told}");
    // The variables are lost, as by a reset of the firmware's settings: entries are made anew.
    for name in ["Boot0003", "Boot0004", "BootOrder"] {
        fs::remove_file(machine.0.path("vars").join(format!("{name}-{VENDOR}"))).unwrap();
    }
    machine.at(&["prepare", "v2.qimg"]).good();
    machine.at(&["commit"]).good();
    let told = machine.judge(&[]);
    assert!(told.contains("BootNext: 0004") && told.contains("BootOrder: 0003"), "{told}");
}

#[test]
fn variables_that_are_not_there_or_fail() {
    let machine = Machine::new();
    let vars = machine.0.path("vars");
    machine.0.config("boot_flag = \"efi\"\n");
    let text = machine.at(&["slots"]).bad("ARGUMENT");
    assert!(text.contains("--efivars DIR"), "{text}");
    let text = machine.at(&["slots", "--efivars", "nowhere"]).bad("NO_EFI");
    assert!(text.contains("nowhere") && text.contains("efivarfs"), "{text}");
    fs::create_dir(machine.0.path("empty")).unwrap();
    machine.at(&["prepare", "v2.qimg", "--efivars", "empty"]).bad("NO_EFI");
    machine.0.config("boot_flag = \"efi\"\nefivars = \"vars\"\n");
    // Not to be read: nothing is decided, nothing is written.
    let order = vars.join(format!("BootOrder-{VENDOR}"));
    let before = machine.0.hash();
    fs::rename(&order, vars.join("kept")).unwrap();
    fs::create_dir(&order).unwrap();
    for verb in ["prepare", "status", "commit"] {
        let args: &[&str] = if verb == "prepare" { &["prepare", "v2.qimg"] } else { &[verb] };
        let text = machine.at(args).bad("EFI_READ");
        assert!(text.contains("BootOrder"), "{text}");
    }
    fs::remove_dir(&order).unwrap();
    fs::rename(vars.join("kept"), &order).unwrap();
    // Not to be written: the target is not touched while the firmware could start it.
    let way = vars.join(format!("BootOrder-{VENDOR}.new"));
    fs::create_dir(&way).unwrap();
    let text = machine.at(&["prepare", "v2.qimg"]).bad("EFI_WRITE");
    assert!(text.contains("BootOrder"), "{text}");
    assert_eq!(machine.0.hash(), before);
    fs::remove_dir(&way).unwrap();
    machine.at(&["prepare", "v2.qimg"]).good();
    machine.at(&["commit"]).good();
}

/// Not even a new installation of the disk takes the epoch floor back, and firmware's tools see nothing odd.
#[test]
fn the_epoch_floor_outlives_the_disk() {
    const FLOOR: &str = "QstageEpoch-0d1e5bd3-6a6c-4b55-8f6e-6a0a2f7c2b19";
    let machine = Machine::new();
    let variable = || fs::read(machine.0.path("vars").join(FLOOR)).ok();
    machine.0.pack("high", "2.0", &["--platform", "v2.img", "--epoch", "7"]);
    machine.at(&["mark-good"]).good();
    assert_eq!(variable(), None, "epoch 0 is no floor");
    machine.at(&["prepare", "high.qimg"]).good();
    machine.at(&["commit"]).good();
    assert_eq!(variable(), None, "not before it is good");
    machine.reboot("platform_b");
    machine.at(&["mark-good"]).good();
    assert_eq!(variable().unwrap(), [&[7, 0, 0, 0][..], &7_u64.to_le_bytes()].concat());
    machine.judge(&["-v"]);

    let init = [
        "init",
        "disk.img",
        "--force",
        "--slot-size",
        "8M",
        "--bundle",
        "v1.qimg",
        "--trust",
        "allowed_signers",
    ];
    machine.0.run(&init).good();
    machine.boots("platform_a");
    let text = machine.at(&["prepare", "v2.qimg"]).bad("EPOCH");
    assert!(text.contains("lower than 7"), "{text}");
    machine.at(&["prepare", "high.qimg"]).good();
}
