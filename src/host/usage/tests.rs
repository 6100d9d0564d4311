use std::collections::{BTreeMap, BTreeSet};

use super::super::fake_kernel::FakeKernel;
use super::*;
use crate::units::ByteOffset;

const MIB: u64 = 1 << 20;
const ONE: Extent = Extent { at: ByteOffset(MIB), len: MIB };
const TWO: Extent = Extent { at: ByteOffset(2 * MIB), len: MIB };

fn machine() -> (FakeKernel, Disk) {
    let fake = FakeKernel::new();
    fake.device("8:0", "sda", None, "");
    fake.device("8:1", "sda/sda1", Some((1, 2048, 2048)), "");
    fake.device("8:2", "sda/sda2", Some((2, 4096, 2048)), "");
    fake.device("7:0", "loop0", None, "");
    fake.device("259:7", "loop0/loop0p1", Some((1, 2048, 2048)), "");
    let disk = Disk::Block(fake.kernel.node("8:0".parse().unwrap()).unwrap());
    (fake, disk)
}

/// What the kernel answers, by the names of devices.
#[derive(Default)]
struct Answers {
    /// Backing file of a loop device; one that is missing here does not report it.
    below: BTreeMap<&'static str, Identity>,
    claimed: BTreeSet<&'static str>,
    closed: BTreeSet<&'static str>,
    /// What asking for what lies below fails with; EACCES where this is not set.
    problem: Option<nix::errno::Errno>,
}

impl KernelQuery for Answers {
    fn below(&self, node: &Path) -> io::Result<Identity> {
        let name = node.file_name().unwrap().to_str().unwrap();
        self.below.get(name).copied().ok_or_else(|| self.problem.unwrap_or(nix::errno::Errno::EACCES).into())
    }

    fn is_claimed(&self, node: &Path) -> io::Result<bool> {
        let name = node.file_name().unwrap().to_str().unwrap();
        if self.closed.contains(name) {
            Err(nix::errno::Errno::EACCES.into())
        } else {
            Ok(self.claimed.contains(name))
        }
    }

    fn partuuids(&self, _: &Path) -> io::Result<Vec<Guid>> {
        Err(nix::errno::Errno::EACCES.into())
    }
}

fn asked(fake: &FakeKernel, ask: &Answers, disk: &Disk) -> [Usage; 2] {
    [(1, ONE), (2, TWO)].map(|(number, extent)| of(&fake.kernel, ask, disk, number, extent))
}

/// The users of the first and of the second partition.
fn users(fake: &FakeKernel, disk: &Disk) -> [String; 2] {
    asked(fake, &Answers::default(), disk).map(|usage| match usage {
        Usage::Idle => String::new(),
        Usage::By(by) => by,
        Usage::Unknown(problem) => panic!("{problem}"),
    })
}

fn at(path: &str, fake: &FakeKernel, by: &str) -> String {
    format!("{} {by}", fake.kernel.dev.join(path).display())
}

#[test]
fn idle_partitions_have_no_user() {
    let (fake, disk) = machine();
    fake.mounted("1 1 8:16 / / rw - ext4 /dev/sdb rw\n");
    assert_eq!(users(&fake, &disk), ["", ""]);
}

#[test]
fn mounts_by_number_and_by_name() {
    let (fake, disk) = machine();
    fake.mounted("1 1 8:2 / /mnt\\040x rw - ext4 /dev/root rw\n");
    assert_eq!(users(&fake, &disk), [String::new(), at("sda2", &fake, "is mounted at /mnt x")]);
    fake.link("disk/by-label/data", "sda1");
    fake.mounted("1 1 0:44 /@ /b rw - btrfs /dev/disk/by-label/data rw\n");
    assert_eq!(users(&fake, &disk), [at("sda1", &fake, "is mounted at /b"), String::new()]);
    fake.mounted("1 1 8:0 / /whole rw - ext4 /dev/sda rw\n");
    assert!(users(&fake, &disk).iter().all(|user| user.contains("/whole")));
}

#[test]
fn swap_and_layers() {
    let (fake, disk) = machine();
    fake.swapped("/dev/sda1");
    assert_eq!(users(&fake, &disk), [at("sda1", &fake, "is swap space"), String::new()]);
    fake.device("253:0", "dm-0", None, "");
    fake.stack("dm-0", "sda2");
    assert_eq!(users(&fake, &disk)[1], at("sda2", &fake, "is claimed by dm-0"));
}

#[test]
fn loop_devices_over_the_same_bytes() {
    let (fake, disk) = machine();
    let image = fake.file("disk.img");
    let file = Disk::File(image.clone());
    let backing = image.display().to_string();
    let part = "1 1 259:7 / /p rw - ext4 /dev/loop0p1 rw\n";
    let whole = "1 1 7:0 / /w rw - ext4 /dev/loop0 rw\n";
    // (offset and limit of the loop device, its mounted part) -> is partition 1, 2 in use?
    let cases = [
        ((0, 0), "", [false, false]),
        ((0, 0), part, [true, false]),
        ((MIB, 0), part, [false, true]),
        ((0, 0), whole, [true, true]),
        ((2 * MIB, 0), whole, [false, true]),
        ((0, 2 * MIB), whole, [true, false]),
        ((MIB + 4096, 512), whole, [true, false]),
        ((3 * MIB, 0), whole, [false, false]),
    ];
    for ((offset, limit), mounted, expected) in cases {
        fake.mounted(mounted);
        for (name, disk) in [(backing.as_str(), &file), ("/dev/sda", &disk)] {
            fake.attach("loop0", name, offset, limit);
            let found = users(&fake, disk).map(|user| !user.is_empty());
            assert_eq!(found, expected, "{name} {offset} {limit} {mounted}");
        }
    }
    // Over the node of a partition.
    fake.attach("loop0", "/dev/sda2", 0, 0);
    fake.mounted(whole);
    assert_eq!(users(&fake, &disk), [String::new(), at("loop0", &fake, "is mounted at /w")]);
}

/// Under another name, from another namespace, deleted: the kernel's device and inode numbers count.
#[test]
fn loop_devices_are_known_by_device_and_inode() {
    let (fake, disk) = machine();
    let image = fake.file("disk.img");
    let file = Disk::File(image.clone());
    fake.mounted("1 1 7:0 / /w rw - ext4 /dev/loop0 rw\n");
    let identity = Identity::of(&image).unwrap();
    let other = Identity::of(&fake.file("other.img")).unwrap();
    let sda = Identity::Block("8:0".parse().unwrap());
    for name in ["/elsewhere/x.img", "/gone.img (deleted)", "/", "/dev/sda"] {
        fake.attach("loop0", name, MIB, MIB);
        for (below, disk, expected) in
            [(identity, &file, true), (other, &file, false), (sda, &disk, true), (identity, &disk, false)]
        {
            let ask = Answers { below: [("loop0", below)].into(), ..Answers::default() };
            let used = asked(&fake, &ask, disk).map(|usage| usage != Usage::Idle);
            assert_eq!(used, [expected, false], "{name} {below:?}");
        }
    }
    // A loop device over a loop device.
    fake.device("7:1", "loop1", None, "");
    fake.attach("loop0", "/x", MIB, 0);
    fake.attach("loop1", "/y", MIB, MIB);
    fake.mounted("1 1 7:1 / /deep rw - ext4 /dev/loop1 rw\n");
    let below = [("loop0", identity), ("loop1", Identity::Block("7:0".parse().unwrap()))].into();
    let ask = Answers { below, ..Answers::default() };
    let deep = Usage::By(at("loop1", &fake, "is mounted at /deep"));
    assert_eq!(asked(&fake, &ask, &file), [Usage::Idle, deep.clone()]);
    // The disk is a loop device itself, and another one lies over its backing file, or over the layer below that.
    fake.device("7:2", "loop2", None, "");
    let disk = Disk::Block(fake.kernel.node("7:2".parse().unwrap()).unwrap());
    for (below, offset, expected) in [
        (identity, 0, [Usage::Idle, deep.clone()]),
        (identity, MIB, [deep.clone(), Usage::Idle]),
        (Identity::Block("7:0".parse().unwrap()), 0, [deep.clone(), Usage::Idle]),
        (other, 0, [Usage::Idle, Usage::Idle]),
    ] {
        fake.attach("loop2", "/z", offset, 0);
        let below = ask.below.iter().map(|(k, v)| (*k, *v)).chain([("loop2", below)]).collect();
        let ask = Answers { below, ..Answers::default() };
        assert_eq!(asked(&fake, &ask, &disk), expected, "{offset}");
    }
}

/// A loop device with an unknown backing file: the use is unknown, unless its size rules it out.
#[test]
fn a_loop_device_with_an_unknown_backing_file_is_a_doubt() {
    let (fake, _) = machine();
    let image = fake.file("disk.img");
    std::fs::File::create(&image).unwrap().set_len(4 * MIB).unwrap();
    let file = Disk::File(image);
    // (offset, limit, size of the loop device) -> is it a doubt for partition 1, 2?
    let cases = [
        ((0, 0, 4 * MIB), [true, true]),
        ((0, 0, 4 * MIB - 512), [false, false]),
        ((2 * MIB, 0, 2 * MIB), [false, true]),
        ((MIB, MIB, MIB), [true, false]),
        ((3 * MIB, 0, MIB), [false, false]),
    ];
    for ((offset, limit, size), expected) in cases {
        fake.attach("loop0", "/not/here.img", offset, limit);
        fake.sized("loop0", size);
        let found = asked(&fake, &Answers::default(), &file);
        assert_eq!(
            found.map(|usage| matches!(usage, Usage::Unknown(_))),
            expected,
            "{offset} {limit} {size}"
        );
        // The server of the file system that the file lies on is gone.
        let gone = Answers { problem: Some(nix::errno::Errno::ENOTCONN), ..Answers::default() };
        assert_eq!(asked(&fake, &gone, &file), [Usage::Idle, Usage::Idle]);
    }
    fake.attach("loop0", "/etc/passwd", 0, 0);
    fake.sized("loop0", 4 * MIB);
    assert_eq!(users(&fake, &file), ["", ""], "it is attached to another file");
}

/// The kernel refuses an exclusive open although no table shows a user.
#[test]
fn an_exclusive_open_decides_where_no_table_has_an_entry() {
    let (fake, disk) = machine();
    let image = fake.file("disk.img");
    let file = Disk::File(image.clone());
    let below: BTreeMap<_, _> = [("loop0", Identity::of(&image).unwrap())].into();
    fake.attach("loop0", "/x", 0, 0);
    // Whether partition 1, 2 is in use where one device is claimed.
    for (claimed, disk, expected) in [
        ("sda2", &disk, [false, true]),
        // Held as the disk of a partition that is in use.
        ("sda", &disk, [false, false]),
        ("loop0p1", &file, [true, false]),
        ("loop0", &file, [false, false]),
    ] {
        let ask = Answers { below: below.clone(), claimed: [claimed].into(), ..Answers::default() };
        let found = asked(&fake, &ask, disk);
        assert_eq!(found.clone().map(|usage| matches!(usage, Usage::By(_))), expected, "{claimed} {found:?}");
        // An open that fails for another reason does not mean idle.
        let ask = Answers { below: below.clone(), closed: [claimed].into(), ..Answers::default() };
        let found = asked(&fake, &ask, disk);
        assert_eq!(found.map(|usage| matches!(usage, Usage::Unknown(_))), expected, "{claimed}");
    }
    // A device without partitions exposes all of its bytes.
    fake.device("7:1", "loop1", None, "");
    fake.attach("loop1", "/x", MIB, MIB);
    let ask = Answers {
        below: [("loop1", Identity::of(&image).unwrap())].into(),
        claimed: ["loop1"].into(),
        ..Answers::default()
    };
    assert_eq!(asked(&fake, &ask, &file).map(|usage| matches!(usage, Usage::By(_))), [true, false]);
}

#[test]
fn other_namespaces_are_looked_into() {
    let (fake, disk) = machine();
    let b = "1 1 8:2 / /inner rw - ext4 /dev/sda2 rw\n";
    fake.process(7, "mnt:[2]", "sleep", b);
    assert_eq!(
        users(&fake, &disk),
        [
            String::new(),
            at("sda2", &fake, "is mounted at /inner in the mount namespace of process 7 (sleep)")
        ]
    );
    // Another process of this namespace sees no more; process 1 may, if this process has another root directory.
    fake.process(7, "mnt:[1]", "sleep", b);
    fake.process(1, "mnt:[1]", "init", "");
    assert_eq!(users(&fake, &disk), ["", ""]);
    fake.process(1, "mnt:[1]", "init", b);
    assert!(users(&fake, &disk)[1].contains("process 1 (init)"));
}

#[test]
fn partitions_by_kpartx_are_no_foreign_claim() {
    let (fake, disk) = machine();
    for (number, name, uuid) in [("253:1", "dm-1", "part1-mpath-x\n"), ("253:2", "dm-2", "part2-mpath-x\n")] {
        fake.device(number, name, None, "");
        fake.dm_uuid(name, uuid);
        fake.stack(name, "sda");
    }
    assert_eq!(users(&fake, &disk), ["", ""]);
    // Their disk is held, and with it the kernel's own nodes: the mappings of kpartx are examined.
    let ask = Answers { claimed: ["sda", "sda1", "sda2"].into(), ..Answers::default() };
    assert_eq!(asked(&fake, &ask, &disk), [Usage::Idle, Usage::Idle]);
    let ask = Answers { claimed: ["dm-2"].into(), ..Answers::default() };
    assert!(matches!(&asked(&fake, &ask, &disk), [Usage::Idle, Usage::By(by)] if by.contains("dm-2")));
    fake.mounted("1 1 253:1 / /m rw - ext4 /dev/mapper/x1 rw\n");
    assert_eq!(users(&fake, &disk), [at("dm-1", &fake, "is mounted at /m"), String::new()]);
    fake.mounted("");
    // A device stacked on one of them, or on the disk beside them, counts as a user.
    fake.device("253:3", "dm-3", None, "");
    fake.dm_uuid("dm-3", "CRYPT-LUKS2-x\n");
    fake.stack("dm-3", "dm-2");
    assert_eq!(users(&fake, &disk), [String::new(), at("dm-2", &fake, "is claimed by dm-3")]);
    fake.stack("dm-3", "sda");
    assert!(users(&fake, &disk).iter().all(|user| *user == at("sda", &fake, "is claimed by dm-3")));
}

#[test]
fn without_sysfs_or_proc_the_use_is_unknown() {
    let (fake, disk) = machine();
    let unknown = |what: &str| {
        for usage in asked(&fake, &Answers::default(), &disk) {
            assert!(matches!(&usage, Usage::Unknown(problem) if problem.contains(what)), "{usage:?}");
        }
    };
    std::fs::remove_file(fake.kernel.proc.join("self/mountinfo")).unwrap();
    unknown("/proc: ");
    std::fs::remove_dir_all(&fake.kernel.sys).unwrap();
    unknown("/sys shows no block devices");
}
