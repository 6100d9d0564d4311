//! From which partition this machine runs.

use std::collections::BTreeSet;
use std::io;

use super::cmdline;
use super::kernel::{Kernel, Node};
use crate::device::DeviceNumber;
use crate::gpt::Partition;

/// The index among `candidates`, which lie on the block device `disk`; `None` where nothing says so.
///
/// What is mounted at `/` rules: through device mapper (verity, crypt) and loop devices, down to partitions.
/// A root that lies on no device (overlay, tmpfs) tells nothing; then the command line is asked, first for
/// `qstage.partuuid=`, which the initramfs of such a system should carry, then for `root=`. A root on
/// another device refutes `root=` (a rescue system that was told of it), but not the explicit word.
pub(crate) fn index(kernel: &Kernel, disk: &Node, candidates: &[Partition]) -> io::Result<Option<usize>> {
    let nodes = kernel.partitions(disk.number)?;
    let place = |wanted: &dyn Fn(&Node) -> bool| {
        let node = nodes.iter().find(|node| wanted(node))?;
        let (number, _) = node.partition?;
        candidates.iter().position(|candidate| candidate.number == number)
    };
    let root = root_device(kernel)?;
    if let Some(root) = &root
        && let Some(found) = place(&|node| root.contains(&node.number))
    {
        return Ok(Some(found));
    }
    let line = kernel.cmdline();
    let by_guid = |text: &str| {
        let guid = text.parse().ok()?;
        let index = candidates.iter().position(|candidate| candidate.guid == guid)?;
        // A cloned disk carries the same GUIDs: then the word does not tell the two apart.
        alone(kernel, "PARTUUID", text, &nodes).then_some(index)
    };
    if let Some(found) = cmdline::last(&line, "qstage.partuuid").and_then(by_guid) {
        return Ok(Some(found));
    }
    let Some(word) = cmdline::last(&line, "root").filter(|_| root.is_none()) else { return Ok(None) };
    Ok(if let Some(guid) = word.strip_prefix("PARTUUID=") {
        by_guid(guid)
    } else if let Some(label) = word.strip_prefix("PARTLABEL=") {
        let mut named = (0..candidates.len()).filter(|&i| candidates[i].name == label);
        // A name is unique on one disk at best, so the kernel must know of no second one elsewhere.
        named.next().filter(|_| named.next().is_none() && alone(kernel, "PARTNAME", label, &nodes))
    } else if let Ok(number) = word.parse::<DeviceNumber>() {
        place(&|node| node.number == number)
    } else if word.starts_with('/') {
        place(&|node| kernel.is_same(word.as_ref(), node))
    } else {
        None
    })
}

/// Whether no partition outside `nodes` carries the value.
fn alone(kernel: &Kernel, key: &str, wanted: &str, nodes: &[Node]) -> bool {
    kernel.with_uevent(key, wanted).iter().all(|found| nodes.iter().any(|node| node.number == *found))
}

/// The device that is mounted at `/` and all devices below it; `None` where it lies on none.
fn root_device(kernel: &Kernel) -> io::Result<Option<BTreeSet<DeviceNumber>>> {
    let mounts = kernel.mounts()?;
    // The last mount hides those before it.
    let Some(root) = mounts.iter().rev().find(|mount| mount.target == "/") else { return Ok(None) };
    let mut open = Vec::new();
    if root.number.major != 0 {
        open.push(root.number);
    } else if root.source.starts_with("/dev/") {
        // btrfs: the number is no device's, but the source is one.
        open.extend(kernel.number_of(root.source.as_ref()));
    }
    if open.is_empty() {
        return Ok(None);
    }
    let mut seen = BTreeSet::new();
    while let Some(number) = open.pop() {
        if seen.insert(number) {
            open.extend(kernel.slaves(number));
            let backing = kernel.loops().into_iter().find(|l| l.node.number == number).map(|l| l.backing);
            open.extend(backing.and_then(|path| kernel.number_of(&path)));
        }
    }
    Ok(Some(seen))
}

#[cfg(test)]
mod tests {
    use super::super::fake_kernel::FakeKernel;
    use super::*;
    use crate::units::{ByteOffset, Extent};

    const A: &str = "aaaaaaaa-0000-4000-8000-000000000001";
    const B: &str = "bbbbbbbb-0000-4000-8000-000000000002";

    fn machine() -> FakeKernel {
        let fake = FakeKernel::new();
        fake.device("8:0", "sda", None, "");
        fake.device(
            "8:2",
            "sda/sda2",
            Some((2, 2048, 2048)),
            &format!("PARTUUID={A}\nPARTNAME=platform_a\n"),
        );
        fake.device(
            "8:3",
            "sda/sda3",
            Some((3, 4096, 2048)),
            &format!("PARTUUID={B}\nPARTNAME=platform_b\n"),
        );
        fake.device("8:16", "sdb", None, "");
        fake.device("253:0", "dm-0", None, "");
        fake.device("253:1", "dm-1", None, "");
        fake
    }

    fn ask(fake: &FakeKernel, root: &str, cmdline: &str) -> Option<usize> {
        let candidate = |number, name: &str, guid: &str, at| Partition {
            number,
            name: name.to_owned(),
            guid: guid.parse().unwrap(),
            extent: Extent { at: ByteOffset(at), len: 1 << 20 },
        };
        let candidates = [candidate(2, "platform_a", A, 1 << 20), candidate(3, "platform_b", B, 2 << 20)];
        fake.mounted(root);
        fake.cmdline(cmdline);
        let disk = fake.kernel.node("8:0".parse().unwrap()).unwrap();
        index(&fake.kernel, &disk, &candidates).unwrap()
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
            (format!("root=PARTUUID={A}/PARTNROFF=1"), None),
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
        fake.device(
            "8:17",
            "sdb/sdb1",
            Some((1, 2048, 2048)),
            &format!("PARTUUID={B}\nPARTNAME=platform_a\n"),
        );
        assert_eq!(ask(&fake, OVERLAY, "root=PARTLABEL=platform_a"), None);
        assert_eq!(ask(&fake, OVERLAY, "root=PARTLABEL=platform_b"), Some(1));
        assert_eq!(ask(&fake, OVERLAY, &format!("root=PARTUUID={B}")), None);
        assert_eq!(ask(&fake, OVERLAY, &format!("root=PARTUUID={A}")), Some(0));
    }
}
