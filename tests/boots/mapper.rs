//! The device mapper of a real kernel: partitions by kpartx, a disk by multipath, a foreign mapping. The tests of
//! `host::usage` see the same by files of a sysfs that was written for them.

use crate::guests::{Bus, Inputs, Machine, Tree, Vm, ready, which};
use crate::harness::machine::Bench;

/// Without udev the tools make the nodes themselves.
const INIT: &str = r#"
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run
exec < /dev/console > /dev/console 2>&1
stty -echo
export DM_DISABLE_UDEV=1
while [ ! -b /dev/nvme0n1p2 ]; do blockdev --rereadpt /dev/nvme0n1; sleep 1; done
modprobe dm_mod; modprobe dm_multipath; modprobe dm_round_robin
echo "ready"
while read -r line; do eval "$line"; done
"#;

const CONFIG: &str = "trust = \"/signers\"\nstate_dir = \"/run/qstage\"\n";

fn start(inputs: &Inputs, bench: &Bench) -> Vm {
    let tree = Tree::system(inputs)
        .program("sbin/dmsetup", &which("dmsetup").unwrap())
        .program("sbin/kpartx", &which("kpartx").unwrap())
        .modules(inputs, &["dm_mod", "dm_multipath", "dm_round_robin"])
        .copy("v2.qimg", &bench.path("v2.qimg"))
        .copy("signers", &bench.path("allowed_signers"))
        .file("etc/qstage/config.toml", CONFIG)
        .script("init", INIT);
    let initrd = bench.path("initrd");
    std::fs::write(&initrd, tree.cpio()).unwrap();
    let machine = Machine::new().kernel(&inputs.kernel, &initrd, "gpt quiet panic=-1");
    let mut vm = machine.drive(&bench.disk(), Bus::Nvme).start();
    vm.wait("ready");
    vm
}

/// What a verb must say on its way out.
fn says(vm: &mut Vm, command: &str, wanted: (i32, &str)) {
    let (code, text) = vm.try_run(&format!("qstage {command}"));
    assert!(code == wanted.0 && text.contains(wanted.1), "'{command}' ended with {code}: {text}");
}

#[test]
fn mapped_disks_are_upgraded_and_foreign_mappings_refused() {
    let Some(inputs) = ready() else { return };
    for (program, package) in [("dmsetup", "dmsetup"), ("kpartx", "kpartx")] {
        assert!(which(program).is_some(), "real mappings need the package {package}");
    }
    let bench = Bench::installed();
    let mut vm = start(inputs, &bench);
    let prepare = |disk: &str| format!("prepare /v2.qimg --booted a --disk {disk}");
    let verb = |verb: &str, disk: &str| format!("{verb} --booted a --disk {disk}");

    // Partitions of the very disk by kpartx: no foreign claim, and the device that the kernel lets be opened is written.
    let disk = "/dev/nvme0n1";
    vm.run(&format!("kpartx -a -s {disk}"));
    says(&mut vm, &prepare(disk), (0, ""));
    says(&mut vm, &verb("commit", disk), (0, "slot b boots next"));
    says(&mut vm, &verb("cancel", disk), (0, "slot a boots next"));
    // A foreign mapping over that of kpartx, and then over the partition itself.
    vm.run("S=$(cat /sys/class/block/nvme0n1p2/size)");
    for below in ["/dev/mapper/nvme0n1p2", "/dev/nvme0n1p2"] {
        if !below.contains("mapper") {
            vm.run(&format!("kpartx -d {disk}"));
        }
        vm.run(&format!("dmsetup create thing --table \"0 $S linear {below} 0\""));
        says(&mut vm, &prepare(disk), (5, "is claimed by dm-"));
        vm.run("dmsetup remove thing");
    }

    // A disk by multipath, its partitions by kpartx. By its path it belongs to the mapping.
    vm.run("N=$(cat /sys/class/block/nvme0n1/size); M=$(cat /sys/class/block/nvme0n1/dev)");
    vm.run("dmsetup create mp --table \"0 $N multipath 0 0 1 1 round-robin 0 1 1 $M 1000\"");
    vm.run("kpartx -a -s /dev/mapper/mp");
    says(&mut vm, &prepare(disk), (5, "is claimed by dm-"));
    let disk = "/dev/mapper/mp";
    says(&mut vm, &prepare(disk), (0, ""));
    says(&mut vm, &verb("commit", disk), (0, "slot b boots next"));
    vm.run("sync; kpartx -d /dev/mapper/mp; dmsetup remove mp");
    says(&mut vm, &verb("slots", "/dev/nvme0n1"), (0, "trial  2.0"));
    vm.send("poweroff -f");
    vm.end();
    // Others read the same on the host.
    assert_eq!(bench.slot("platform_b", &["--booted", "a"])["state"], "trial");
    bench.at(&["verify", "--slot", "b", "--booted", "a"]).good();
}
