//! Who uses a partition: mounts, swap, layers of the kernel, loop devices over the same bytes.

use std::io;

use super::kernel::{Kernel, Loop, Node, same_file};
use crate::units::Extent;

/// The disk whose partitions are asked about.
#[derive(Debug, Clone)]
pub(crate) enum Disk {
    /// An image file.
    File(std::path::PathBuf),
    /// A block device.
    Block(Node),
}

/// By whom the part `extent` of `disk` is in use, as far as this mount namespace shows. A mount in another
/// one is seen by the kernel alone: it refuses the exclusive open.
pub(crate) fn user(kernel: &Kernel, disk: &Disk, extent: Extent) -> io::Result<Option<String>> {
    let mut nodes = Vec::new();
    if let Disk::Block(node) = disk {
        nodes.push(node.clone());
        nodes.extend(overlapping(kernel, node, extent)?);
    }
    // Loop devices over the disk, over its image file, or over a partition that is already on the list.
    for l in kernel.loops() {
        let over_disk = match disk {
            Disk::File(path) => same_file(&l.backing, path),
            Disk::Block(node) => kernel.is_same(&l.backing, node),
        };
        if over_disk {
            let Some(inside) = shifted(&l, extent) else { continue };
            nodes.push(l.node.clone());
            nodes.extend(overlapping(kernel, &l.node, inside)?);
        } else if nodes.iter().any(|node| kernel.is_same(&l.backing, node)) {
            nodes.extend(kernel.partitions(l.node.number)?);
            nodes.push(l.node);
        }
    }
    let (mounts, swaps) = (kernel.mounts()?, kernel.swaps());
    for node in &nodes {
        let named = node.path.display();
        // By number, and by name for btrfs, whose mounts carry a number that is no device's.
        let mount = mounts.iter().find(|m| {
            m.number == node.number || (m.source.starts_with('/') && kernel.is_same(m.source.as_ref(), node))
        });
        if let Some(mount) = mount {
            return Ok(Some(format!("{named} is mounted at {}", mount.target)));
        }
        if swaps.iter().any(|swap| kernel.is_same(swap, node)) {
            return Ok(Some(format!("{named} is swap space")));
        }
        if let Some(holder) = kernel.holders(node.number).first() {
            return Ok(Some(format!("{named} is claimed by {holder}")));
        }
    }
    Ok(None)
}

fn overlapping(kernel: &Kernel, disk: &Node, extent: Extent) -> io::Result<Vec<Node>> {
    let mut nodes = kernel.partitions(disk.number)?;
    nodes.retain(|node| node.partition.is_some_and(|(_, own)| overlap(own, extent)));
    Ok(nodes)
}

/// Where `extent` of the backing file lies in the loop device; `None` where it shows nothing of it.
fn shifted(l: &Loop, extent: Extent) -> Option<Extent> {
    let shown = Extent { at: l.extent.at, len: if l.extent.len == 0 { u64::MAX } else { l.extent.len } };
    if !overlap(shown, extent) {
        return None;
    }
    let cut = shown.at.0.saturating_sub(extent.at.0);
    let at = extent.at.0.saturating_sub(shown.at.0);
    Some(Extent { at: crate::units::ByteOffset(at), len: extent.len - cut })
}

fn overlap(a: Extent, b: Extent) -> bool {
    let end = |e: Extent| e.at.0.saturating_add(e.len);
    a.at.0 < end(b) && b.at.0 < end(a)
}

#[cfg(test)]
mod tests {
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

    /// Who uses the first and who the second partition.
    fn users(fake: &FakeKernel, disk: &Disk) -> [String; 2] {
        [ONE, TWO].map(|extent| user(&fake.kernel, disk, extent).unwrap().unwrap_or_default())
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
        // (offset and limit of the loop device, what of it is mounted) -> is partition 1, 2 in use?
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
        // Over a file that is gone, or another one.
        fake.attach("loop0", &format!("{backing} (deleted)"), 0, 0);
        assert_eq!(users(&fake, &file), ["", ""]);
    }
}
