use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::super::fake_kernel::FakeKernel;
use super::*;
use crate::device::Identity;
use crate::units::{ByteOffset, Extent};

const A: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const KERNEL: &str = "aaaaaaaa-0000-4000-8000-00000000000f";
const B: &str = "bbbbbbbb-0000-4000-8000-000000000002";

fn machine() -> FakeKernel {
    let fake = FakeKernel::new();
    fake.device("8:0", "sda", None, "");
    fake.device("8:2", "sda/sda2", Some((2, 2048, 2048)), &format!("PARTUUID={A}\nPARTNAME=platform_a\n"));
    fake.device("8:3", "sda/sda3", Some((3, 4096, 2048)), &format!("PARTUUID={B}\nPARTNAME=platform_b\n"));
    fake.device("8:1", "sda/sda1", Some((1, 1024, 1024)), &format!("PARTUUID={KERNEL}\nPARTNAME=kernel\n"));
    fake.device("8:16", "sdb", None, "");
    fake.device("253:0", "dm-0", None, "");
    fake.device("253:1", "dm-1", None, "");
    fake
}

#[derive(Default)]
struct Machine {
    below: BTreeMap<&'static str, Identity>,
    claimed: BTreeSet<&'static str>,
    loaded_from: Vec<Guid>,
    /// PARTUUIDs by the table of a disk; a disk that is missing here cannot be read.
    tables: BTreeMap<&'static str, Vec<Guid>>,
}

impl KernelQuery for Machine {
    fn below(&self, node: &Path) -> io::Result<Identity> {
        let name = node.file_name().unwrap().to_str().unwrap();
        self.below.get(name).copied().ok_or_else(|| nix::errno::Errno::ENOENT.into())
    }

    fn is_claimed(&self, node: &Path) -> io::Result<bool> {
        Ok(self.claimed.contains(node.file_name().unwrap().to_str().unwrap()))
    }

    fn partuuids(&self, node: &Path) -> io::Result<Vec<Guid>> {
        let name = node.file_name().unwrap().to_str().unwrap();
        self.tables.get(name).cloned().ok_or_else(|| nix::errno::Errno::EACCES.into())
    }
}

fn found(fake: &FakeKernel, machine: &Machine, mounts: &str, cmdline: &str) -> Booted {
    let candidate = |number, name: &str, guid: &str, at| Partition {
        number,
        name: name.to_owned(),
        guid: guid.parse().unwrap(),
        extent: Extent { at: ByteOffset(at), len: 1 << 20 },
    };
    let candidates = [candidate(2, "platform_a", A, 1 << 20), candidate(3, "platform_b", B, 2 << 20)];
    let table = [&[candidate(1, "kernel", KERNEL, 1 << 19)][..], &candidates].concat();
    fake.mounted(mounts);
    fake.cmdline(cmdline);
    let disk = fake.kernel.node("8:0".parse().unwrap()).unwrap();
    find(&Facts {
        kernel: &fake.kernel,
        ask: machine,
        disk: &disk,
        candidates: &candidates,
        table: &table,
        loaded_from: &machine.loaded_from,
    })
}

fn with(fake: &FakeKernel, machine: &Machine, mounts: &str, cmdline: &str) -> Option<usize> {
    match found(fake, machine, mounts, cmdline) {
        Booted::Known { index, by } => {
            assert!(!by.is_empty());
            Some(index)
        }
        Booted::Unknown { why } => {
            assert!(!why.is_empty());
            None
        }
    }
}

fn ask(fake: &FakeKernel, mounts: &str, cmdline: &str) -> Option<usize> {
    with(fake, &Machine::default(), mounts, cmdline)
}

const OVERLAY: &str = "1 1 0:20 / / rw - overlay overlay rw\n";

#[test]
fn the_mount_of_the_root_rules() {
    let fake = machine();
    let b = "1 1 8:3 / / rw - ext4 /dev/root rw\n";
    assert_eq!(ask(&fake, b, ""), Some(1));
    assert_eq!(ask(&fake, b, &format!("root=PARTUUID={A} qstage.partuuid={A}")), Some(1));
    // The initramfs's own root comes first in the file; the last mount hides it.
    let over = format!("0 0 0:2 / / rw - rootfs rootfs rw\n{b}2 1 8:2 / /mnt rw - ext4 /dev/sda2 rw\n");
    assert_eq!(ask(&fake, &over, ""), Some(1));
    assert_eq!(ask(&fake, "1 1 0:44 /@ / rw - btrfs /dev/sda2 rw\n", ""), Some(0));
    assert_eq!(ask(&fake, "", ""), None);
}

#[test]
fn layers_are_followed_down() {
    let fake = machine();
    fake.stack("dm-1", "dm-0");
    fake.stack("dm-0", "sda3");
    assert_eq!(ask(&fake, "1 1 253:1 / / ro - erofs /dev/dm-1 ro\n", ""), Some(1));
    fake.device("7:0", "loop0", None, "");
    fake.attach("loop0", "/dev/sda2", 0, 0);
    assert_eq!(ask(&fake, "1 1 7:0 / / ro - squashfs /dev/loop0 ro\n", ""), Some(0));
}

#[test]
fn the_command_line_speaks_for_roots_without_a_device() {
    let fake = machine();
    fake.link("disk/by-partlabel/platform_b", "sda3");
    fake.link("disk/by-path/pci-0000:00:17.0-ata-1-part2", "sda2");
    fake.link("disk/by-uuid/1234", "sda2");
    fake.link("disk/by-label/root", "sda2");
    fake.stack("dm-1", "dm-0");
    fake.stack("dm-0", "sda3");
    fake.link("mapper/vroot", "dm-1");
    let upper = B.to_uppercase();
    let cases = [
        (format!("root=PARTUUID={upper}"), Some(1)),
        (format!("root=PARTUUID={A} root=PARTUUID={B} -- root=PARTUUID={A}"), Some(1)),
        (format!("root=overlay qstage.partuuid={A}"), Some(0)),
        (format!("qstage.partuuid={A} root=PARTUUID={B}"), Some(0)),
        ("root=/dev/sda3".to_owned(), Some(1)),
        ("root=/dev/disk/by-partlabel/platform_b".to_owned(), Some(1)),
        ("root=8:2".to_owned(), Some(0)),
        ("root=PARTLABEL=platform_a".to_owned(), Some(0)),
        ("root=/dev/sda".to_owned(), None),
        ("root=/dev/sda33".to_owned(), None),
        ("root=PARTLABEL=platform".to_owned(), None),
        (format!("root=UUID={A}"), None),
        (format!("root=PARTUUID={A}/PARTNROFF=1"), Some(1)),
        (format!("root=PARTUUID={B}/PARTNROFF=-1"), Some(0)),
        (format!("root=PARTUUID={KERNEL}/PARTNROFF=1"), Some(0)),
        (format!("root=PARTUUID={KERNEL}/PARTNROFF=2"), Some(1)),
        (format!("root=PARTUUID={KERNEL}/PARTNROFF=3"), None),
        (format!("root=PARTUUID={A}/PARTNROFF=x"), None),
        (format!("root=/dev/disk/by-partuuid/{B}"), Some(1)),
        ("root=/dev/disk/by-path/pci-0000:00:17.0-ata-1-part2".to_owned(), Some(0)),
        // Both slots may hold one and the same file system.
        ("root=/dev/disk/by-uuid/1234".to_owned(), None),
        ("root=/dev/disk/by-label/root".to_owned(), None),
        ("root=/dev/mapper/vroot".to_owned(), Some(1)),
        (format!("mount.usr=PARTUUID={B}"), Some(1)),
        (format!("mount.usr=/dev/mapper/usr verity.usr=PARTUUID={A} root=LABEL=ROOT"), Some(0)),
        (format!("root=PARTUUID={A} mount.usr=PARTUUID={B}"), None),
        (format!("root=PARTUUID={A} mount.usr=PARTUUID={A}"), Some(0)),
        (format!("systemd.verity_root_data=PARTUUID={B}"), Some(1)),
        (format!("roothash={}{}", B.replace('-', ""), "0".repeat(32)), Some(1)),
        (format!("usrhash={}{}", A.replace('-', "").to_uppercase(), "f".repeat(32)), Some(0)),
        (format!("usrhash={}", &A[..20]), None),
        (
            format!(
                "root=/dev/dm-9 dm-mod.create=\"root,,,ro,0 9 verity 1 PARTUUID={KERNEL}/PARTNROFF=2 PARTUUID={KERNEL}/PARTNROFF=2 4096 4096 1 1 sha256 0 0\""
            ),
            Some(1),
        ),
        (
            format!(
                "dm=\"1 vroot none ro 1,0 9 verity payload=PARTUUID={A} hashtree=PARTUUID={A} hashstart=9\""
            ),
            Some(0),
        ),
        (format!("dm=\"x payload=PARTUUID={A} hashtree=PARTUUID={B}\""), None),
        ("root=PARTUUID=nonsense".to_owned(), None),
        ("quiet".to_owned(), None),
    ];
    for (line, expected) in cases {
        assert_eq!(ask(&fake, OVERLAY, &line), expected, "{line}");
    }
}

#[test]
fn a_root_elsewhere_refutes_root_but_not_the_explicit_word() {
    let fake = machine();
    let rescue = "1 1 8:16 / / rw - ext4 /dev/sdb rw\n";
    assert_eq!(ask(&fake, rescue, &format!("root=PARTUUID={A}")), None);
    assert_eq!(ask(&fake, rescue, "root=/dev/sda2"), None);
    assert_eq!(ask(&fake, rescue, &format!("qstage.partuuid={A}")), Some(0));
}

#[test]
fn a_twin_of_the_disk_makes_names_worthless() {
    let fake = machine();
    fake.device("8:17", "sdb/sdb1", Some((1, 2048, 2048)), &format!("PARTUUID={B}\nPARTNAME=platform_a\n"));
    assert_eq!(ask(&fake, OVERLAY, "root=PARTLABEL=platform_a"), None);
    assert_eq!(ask(&fake, OVERLAY, "root=PARTLABEL=platform_b"), Some(1));
    assert_eq!(ask(&fake, OVERLAY, &format!("root=PARTUUID={B}")), None);
    assert_eq!(ask(&fake, OVERLAY, &format!("root=PARTUUID={A}")), Some(0));
}

/// Kernels before 6.10 do not report PARTUUID: the table of the disk says which partition has it, and the tables of disks
/// with partitions of the same names say whether one is a copy.
#[test]
fn a_kernel_that_reports_no_partuuid() {
    let bare = || {
        let fake = FakeKernel::new();
        fake.device("8:0", "sda", None, "");
        fake.device("8:1", "sda/sda1", Some((1, 1024, 1024)), "PARTNAME=kernel\n");
        fake.device("8:2", "sda/sda2", Some((2, 2048, 2048)), "PARTNAME=platform_a\n");
        fake.device("8:3", "sda/sda3", Some((3, 4096, 2048)), "PARTNAME=platform_b\n");
        fake.device("8:16", "sdb", None, "");
        fake
    };
    let fake = bare();
    let words = [
        (format!("root=PARTUUID={B}"), Some(1)),
        (format!("root=PARTUUID={KERNEL}/PARTNROFF=1"), Some(0)),
        (format!("root=PARTUUID={KERNEL}/PARTNROFF=2"), Some(1)),
        (format!("root=PARTUUID={KERNEL}/PARTNROFF=3"), None),
        (format!("qstage.partuuid={A}"), Some(0)),
    ];
    for (line, expected) in &words {
        assert_eq!(ask(&fake, OVERLAY, line), *expected, "{line}");
    }
    // Another disk with the same slot names: a copy, an independent disk, an unreadable one.
    let fake = bare();
    for (number, name, label) in
        [(17, "sdb/sdb1", "kernel"), (18, "sdb/sdb2", "platform_a"), (19, "sdb/sdb3", "platform_b")]
    {
        let place = Some((number - 16, u64::from(number) << 10, 1024));
        fake.device(&format!("8:{number}"), name, place, &format!("PARTNAME={label}\n"));
    }
    let guids = |all: &[&str]| all.iter().map(|guid| guid.parse().unwrap()).collect::<Vec<Guid>>();
    let other = "cccccccc-0000-4000-8000-000000000003";
    let machine = |guids: Option<Vec<Guid>>| Machine {
        tables: guids.map(|guids| ("sdb", guids)).into_iter().collect(),
        ..Machine::default()
    };
    for (line, expected) in &words {
        assert_eq!(with(&fake, &machine(Some(guids(&[other]))), OVERLAY, line), *expected, "{line}");
        assert_eq!(with(&fake, &machine(Some(guids(&[KERNEL, A, B]))), OVERLAY, line), None, "{line}");
        assert_eq!(with(&fake, &machine(None), OVERLAY, line), None, "{line}");
    }
}

#[test]
fn usr_may_be_the_slot() {
    let fake = machine();
    let root = "1 0 8:16 / / rw - ext4 /dev/sdb rw\n";
    assert_eq!(ask(&fake, &format!("{root}2 1 8:3 / /usr ro - erofs /dev/sda3 ro\n"), ""), Some(1));
    // A /usr on another device refutes the words for /usr, as it is for the root.
    let word = format!("mount.usr=PARTUUID={A}");
    assert_eq!(ask(&fake, &format!("{root}2 1 8:16 / /usr ro - ext4 /dev/sdb ro\n"), &word), None);
    assert_eq!(ask(&fake, root, &word), None);
    assert_eq!(ask(&fake, &format!("{root}2 1 0:9 / /usr ro - overlay o ro\n"), &word), Some(0));
}

/// A layer is named by a path, which is believed only if the other slot is idle: a slot below an overlay is in use.
#[test]
fn an_overlay_is_followed_to_its_lower_layers() {
    let fake = machine();
    let lower = "1 0 8:3 / /run/lower ro - ext4 /dev/sda3 ro\n";
    let overlay =
        |path: &str| format!("{lower}2 1 0:40 / / rw - overlay o rw,lowerdir=/none:{path},upperdir=/u\n");
    assert_eq!(ask(&fake, &overlay("/run/lower"), ""), Some(1));
    assert_eq!(ask(&fake, &overlay("/run/lower/deep/er"), ""), Some(1));
    assert_eq!(ask(&fake, &overlay("/run/lowers"), ""), None);
    assert_eq!(ask(&fake, &overlay("/"), ""), None, "it leads to itself");
    let claimed = Machine { claimed: ["sda2"].into(), ..Machine::default() };
    assert_eq!(with(&fake, &claimed, &overlay("/run/lower"), ""), None);
    // A later mount is not what the overlay was made of.
    let later = format!("2 1 0:40 / / rw - overlay o rw,lowerdir=/run/lower\n{lower}");
    assert_eq!(ask(&fake, &later, ""), None);
    // An overlay over /usr at /usr, as of system extensions, and one over an overlay.
    let usr = "1 0 8:2 / /usr ro - ext4 /dev/sda2 ro\n2 1 0:41 / /usr ro - overlay o ro,lowerdir=/ext:/usr\n";
    assert_eq!(ask(&fake, usr, ""), Some(0));
    let twice = format!("{usr}3 1 0:42 / / rw - overlay o rw,lowerdir=/usr/x\n");
    assert_eq!(ask(&fake, &twice, ""), Some(0));
}

#[test]
fn loop_devices_are_followed_by_identity_and_place() {
    let fake = machine();
    fake.device("7:0", "loop0", None, "");
    let root = "1 1 7:0 / / ro - squashfs /dev/loop0 ro\n";
    let sda = Identity::Block("8:0".parse().unwrap());
    let on = |below| Machine { below: [("loop0", below)].into(), ..Machine::default() };
    // A loop device over a part of the disk, whose partitions the kernel may not show.
    let mib = 1 << 20;
    for (offset, limit, expected) in [
        (mib, mib, Some(0)),
        (2 * mib, mib, Some(1)),
        (2 * mib, 4096, Some(1)),
        (mib, 2 * mib, None),
        (0, 0, None),
    ] {
        fake.attach("loop0", "/other/name", offset, limit);
        assert_eq!(with(&fake, &on(sda), root, ""), expected, "{offset} {limit}");
    }
    // A file in the file system of a slot; of btrfs by its anonymous number.
    let file = |device: &str| on(Identity::File(device.parse().unwrap(), 12));
    assert_eq!(with(&fake, &file("8:3"), root, ""), Some(1));
    let btrfs = format!("1 1 0:50 /@ /live ro - btrfs /dev/sda2 ro\n{root}");
    assert_eq!(with(&fake, &file("0:50"), &btrfs, ""), Some(0));
    assert_eq!(with(&fake, &file("0:51"), &btrfs, ""), None);
}

#[test]
fn partitions_by_kpartx_are_slots() {
    let fake = machine();
    fake.dm_uuid("dm-0", "part3-mpath-x\n");
    fake.stack("dm-0", "sda");
    assert_eq!(ask(&fake, "1 1 253:0 / / ro - ext4 /dev/mapper/x3 ro\n", ""), Some(1));
}

#[test]
fn process_1_sees_the_root_of_the_machine() {
    let fake = machine();
    fake.process(1, "mnt:[1]", "init", "1 1 8:3 / / rw - ext4 /dev/root rw\n");
    // A chroot into the other slot.
    assert_eq!(ask(&fake, "1 1 8:2 / / rw - ext4 /dev/sda2 rw\n", ""), Some(1));
}

#[test]
fn the_partition_of_the_boot_loader_is_the_last_evidence() {
    let fake = machine();
    let loaded = |guids: &[&str]| Machine {
        loaded_from: guids.iter().map(|guid| guid.parse().unwrap()).collect(),
        ..Machine::default()
    };
    assert_eq!(with(&fake, &loaded(&[B]), OVERLAY, ""), Some(1));
    assert_eq!(with(&fake, &loaded(&[KERNEL, A]), OVERLAY, ""), Some(0));
    assert_eq!(with(&fake, &loaded(&[KERNEL]), OVERLAY, ""), None);
    assert_eq!(with(&fake, &loaded(&[A, B]), OVERLAY, ""), None);
    // A kernel started by kexec has another command line, but the EFI variables of the previous boot.
    assert_eq!(with(&fake, &loaded(&[A]), OVERLAY, &format!("root=PARTUUID={B}")), Some(1));
}

#[test]
fn the_examined_evidence_is_reported() {
    let fake = machine();
    let why = |mounts: &str, line: &str| match found(&fake, &Machine::default(), mounts, line) {
        Booted::Unknown { why } => why,
        known => panic!("{known:?}"),
    };
    let text = why(OVERLAY, "quiet");
    assert_eq!(
        text,
        "/ is of type overlay and shows no device, the kernel command line names none of its slots"
    );
    let text = why("1 1 8:16 / / rw - ext4 /dev/sdb rw\n", "");
    assert!(text.contains("/ lies on /dev/sdb, which is on none of its slots"), "{text}");
    let text = why(OVERLAY, &format!("root=PARTUUID={A} usr=PARTUUID={B}"));
    assert!(text.contains("root and usr of the kernel command line contradict"), "{text}");
}
