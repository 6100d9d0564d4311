//! Machines that start by the selector: Debian's kernel with an initramfs that initramfs-tools or dracut made with the hooks
//! of this repository; slots that panic, hang, or are not healthy; and the trial by kexec for loaders with a single flag.

use std::fs;
use std::path::{Path, PathBuf};

use crate::guests::slots::{self, Loader};
use crate::guests::{Appliance, Bus, Inputs, Machine, Vm, ready, tool, which};
use crate::harness::loops::LEAVE_MOUNTS;
use crate::harness::machine::Bench;

/// The repository.
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const CONFIG: &str = "disk = \"/dev/nvme0n1\"\nstate_dir = \"/run/qstage\"\n";

/// What a maker of initramfs makes with our hook, which notes the disk with this GUID if any.
fn initramfs(maker: &str, inputs: &Inputs, dir: &Path, disk: &str) -> PathBuf {
    let kernel = inputs.kernel.parent().unwrap().parent().unwrap();
    let select = dir.join("qstage-select");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    tool("strip", &["-o", &text(&select), env!("CARGO_BIN_EXE_qstage-select")]);
    let made = format!(
        "{LEAVE_MOUNTS}QSTAGE_DISK_GUID='{disk}' exec sh '{ROOT}/scripts/guests/initramfs.sh' \"$@\""
    );
    let place = ["--mount", "--propagation", "private", "sh", "-c", &made, "sh"];
    tool("unshare", &[&place[..], &[maker, &text(kernel), &text(&select), &text(dir)]].concat());
    dir.join("initrd")
}

/// By mkinitramfs.
fn by_initramfs_tools(inputs: &Inputs, dir: &Path, disk: &str) -> PathBuf {
    initramfs("initramfs-tools", inputs, dir, disk)
}

/// By dracut.
fn by_dracut(inputs: &Inputs, dir: &Path, disk: &str) -> PathBuf {
    initramfs("dracut", inputs, dir, disk)
}

/// A disk with 1.0 in slot a and 2.0 committed into slot b with the given number of tries. `start` is what the system of 2.0 runs.
fn committed(inputs: &Inputs, start: &str, tries: u8, with_kernel: bool) -> Bench {
    let bench = Bench::new();
    for (version, start) in [("1.0", ""), ("2.0", start)] {
        let mut tree = slots::system(inputs, version, start)
            .file("etc/qstage/config.toml", CONFIG)
            .script("etc/health.d/20-disk", "echo the disk is full; exit 1")
            .modules(inputs, &["softdog"]);
        if !with_kernel {
            tree = tree.without("vmlinuz").without("initrd");
        }
        let image = bench.path(&format!("{version}.ext4"));
        tree.ext4(&image, slots::IMAGE);
        bench.pack(version, version, &["--platform", image.to_str().unwrap(), "--level", "1"]);
        fs::remove_file(image).unwrap();
    }
    bench.at(&["init", "disk.img", "--slot-size", "60M", "--bundle", "1.0.qimg"]).good();
    bench.config(&format!("tries = {tries}\n"));
    bench.at(&["prepare", "2.0.qimg", "--booted", "a"]).good();
    bench.at(&["commit", "--booted", "a"]).good();
    bench
}

fn start(inputs: &Inputs, bench: &Bench, initrd: &Path, words: &str) -> Vm {
    machine(inputs, initrd, words).drive(&bench.disk(), Bus::Nvme).start()
}

fn machine(inputs: &Inputs, initrd: &Path, words: &str) -> Machine {
    // NVMe and ext4 are built into this kernel: the initramfs needs no modules.
    Machine::new().kernel(&inputs.kernel, initrd, &format!("gpt quiet panic=-1 {words}"))
}

/// The GUID of a disk, as others read it.
fn guid(bench: &Bench) -> String {
    tool("blkid", &["-p", "-s", "PTUUID", "-o", "value", bench.disk().to_str().unwrap()]).trim().to_owned()
}

/// Root is needed to make an initramfs; where a tool is missing, that is said.
fn maker(program: &str) -> Option<&'static Inputs> {
    let inputs = ready().filter(|_| crate::harness::machine::is_root())?;
    if which(program).is_some() {
        return Some(inputs);
    }
    assert!(std::env::var_os("CI").is_none(), "CI makes initramfs; {program} is missing");
    eprintln!("SKIPPED: {program} is not installed");
    None
}

/// The console of slot a says so in the end, and its status why.
fn fell_back(vm: &mut Vm, why: &str) {
    fell_back_on(vm, "/dev/nvme0n1", why);
}

fn fell_back_on(vm: &mut Vm, disk: &str, why: &str) {
    assert_eq!(vm.wait("runs from"), format!("system 1.0 runs from {disk}p1, platform_a"));
    println!("back after {:?}", vm.age());
    let status = vm.run(&format!("qstage status --disk {disk}"));
    assert!(status.contains("UPGRADE_ERROR_FELL_BACK") && status.contains(why), "{status}");
    assert!(vm.run(&format!("qstage slots --disk {disk}")).contains(why));
}

/// Debian's initramfs with our hook: a slot whose kernel panics takes its try, and the old one is back by itself.
#[test]
fn a_slot_that_panics_falls_back() {
    let Some(inputs) = maker("mkinitramfs") else { return };
    let bench = committed(inputs, "echo it panics; echo c > /proc/sysrq-trigger", 1, false);
    let initrd = by_initramfs_tools(inputs, &bench.path("."), "");
    let mut vm = start(inputs, &bench, &initrd, "");
    vm.wait("it panics");
    fell_back(&mut vm, "tries are used up");
    // What boots next has settled it, and is the same.
    vm.run("qstage mark-good");
    assert!(vm.run("qstage slots").contains("platform b: its tries are used up"));
}

#[test]
#[ignore = "full: 60 s; the quick set has the panic"]
fn a_slot_that_is_not_healthy_or_hangs_falls_back() {
    let Some(inputs) = maker("mkinitramfs") else { return };
    let bench = committed(inputs, "", 2, false);
    let initrd = by_initramfs_tools(inputs, &bench.path("."), "");
    let mut vm = start(inputs, &bench, &initrd, "qstage.disk=/dev/nvme0n1");
    assert_eq!(vm.wait("runs from"), "system 2.0 runs from /dev/nvme0n1p2, platform_b");
    let (code, text) = vm.try_run("qstage health --dir /etc/health.d");
    assert!(code == 9 && text.contains("the disk is full"), "{text}");
    vm.run("qstage health --trial-failed");
    vm.send("reboot -f");
    assert_eq!(vm.wait("runs from"), "system 2.0 runs from /dev/nvme0n1p2, platform_b");
    // The process that feeds the watchdog hangs.
    vm.send("modprobe softdog soft_margin=5; exec 3> /dev/watchdog; sleep 100000");
    fell_back(&mut vm, "the disk is full");
}

/// The primary table is gone: the kernel finds its partitions in the backup, the selector repairs it and counts. Another disk
/// with slots comes first; the initramfs has the right one's name since it was built.
#[test]
#[ignore = "full: 30 s; cli_select repairs the same without a boot"]
fn a_damaged_table_is_repaired_on_the_way() {
    let Some(inputs) = maker("mkinitramfs") else { return };
    let bench = committed(inputs, "", 3, false);
    let other = Bench::installed();
    let before = other.hash();
    let initrd = by_initramfs_tools(inputs, &bench.path("."), &guid(&bench));
    bench.poke(512, &[0; 512]);
    let drives = machine(inputs, &initrd, "").drive(&other.disk(), Bus::Nvme).drive(&bench.disk(), Bus::Nvme);
    let mut vm = drives.start();
    assert_eq!(vm.wait("runs from"), "system 2.0 runs from /dev/nvme0n2p2, platform_b");
    drop(vm);
    assert_eq!(other.hash().0, before.0, "the other disk is left alone");
    let verified = tool("sgdisk", &["--verify", bench.disk().to_str().unwrap()]);
    assert!(verified.contains("No problems found"), "{verified}");
    assert_eq!(bench.slot("platform_b", &["--booted", "b"])["tries"], 2);
}

/// The kernel that the loader starts only chooses; the slot runs its own.
#[test]
#[ignore = "full: 60 s"]
fn the_slot_may_run_its_own_kernel() {
    let Some(inputs) = maker("mkinitramfs").filter(|_| which("kexec").is_some()) else { return };
    let bench = committed(inputs, "", 1, true);
    let initrd = by_initramfs_tools(inputs, &bench.path("."), "");
    let mut vm = start(inputs, &bench, &initrd, "qstage.mode=kexec");
    assert_eq!(vm.wait("runs from"), "system 2.0 runs from /dev/nvme0n1p2, platform_b");
    assert!(vm.run("cat /proc/cmdline").contains("qstage.selected=b"));
    assert_eq!(bench.slot("platform_b", &["--booted", "b"])["tries"], 0, "one try for both kernels");
    vm.send("echo c > /proc/sysrq-trigger");
    fell_back(&mut vm, "tries are used up");
}

#[test]
#[ignore = "full: 60 s; the quick set boots by initramfs-tools"]
fn dracut_starts_the_slot_and_falls_back() {
    let Some(inputs) = maker("dracut") else { return };
    let bench = committed(inputs, "echo it panics; echo c > /proc/sysrq-trigger", 1, false);
    // Another disk with slots comes first; the initramfs has the right one's name since it was built.
    let other = Bench::installed();
    let initrd = by_dracut(inputs, &bench.path("."), &guid(&bench));
    let drives = machine(inputs, &initrd, "root=qstage");
    let mut vm = drives.drive(&other.disk(), Bus::Nvme).drive(&bench.disk(), Bus::Nvme).start();
    vm.wait("it panics");
    fell_back_on(&mut vm, "/dev/nvme0n2", "tries are used up");
}

/// U-Boot knows bit 2 and counts nothing. The flag stays on slot a until the new slot is good, so a crash ends in slot a.
#[test]
#[ignore = "full: 80 s; power::cuts has all cuts of it"]
fn a_trial_by_kexec_falls_back_to_the_flag() {
    let Some(inputs) = ready().filter(|_| which("kexec").is_some()) else { return };
    let appliance = Appliance::new(inputs, Loader::UBoot, &[("1.0", ""), ("2.0", "")]);
    let mut vm = appliance.machine().u_boot().start();
    assert_eq!(vm.wait("runs from"), "system 1.0 runs from /dev/vda1, platform_a");
    vm.run("qstage prepare /mnt/2.0.qimg");
    for retry in ["", "--retry"] {
        vm.send(&format!("qstage commit --trial kexec {retry}"));
        assert_eq!(vm.wait("runs from"), "system 2.0 runs from /dev/vda2, platform_b");
        println!("kexec after {:?}", vm.age());
        let status = vm.run("qstage status");
        assert!(status.contains("UPGRADE_TRIAL") && status.contains("UPGRADE_ERROR_NO_ERROR"), "{status}");
        if retry.is_empty() {
            vm.send("echo c > /proc/sysrq-trigger");
            assert_eq!(vm.wait("runs from"), "system 1.0 runs from /dev/vda1, platform_a");
            let status = vm.run("qstage status");
            assert!(status.contains("UPGRADE_ERROR_FELL_BACK") && status.contains("by kexec"), "{status}");
            let (_, text) = vm.try_run("qstage prepare /mnt/2.0.qimg");
            assert!(text.contains("FAILED_BEFORE"), "{text}");
        }
    }
    vm.run("qstage mark-good");
    vm.send("reboot -f");
    assert_eq!(vm.wait("runs from"), "system 2.0 runs from /dev/vda2, platform_b");
    println!("good after {:?}\n{}", vm.age(), vm.run("qstage slots"));
}
