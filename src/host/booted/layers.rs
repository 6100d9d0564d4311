//! The devices below a mount.

use std::collections::BTreeSet;

use super::Facts;
use crate::device::{DeviceNumber, Identity};
use crate::host::mountinfo::Mount;
use crate::units::Extent;

/// Maximum depth of overlays on overlays that is followed; the kernel allows two.
const MAX_OVERLAYS: u32 = 8;

/// Devices, and the parts of the disk that loop devices expose.
#[derive(Debug, Default)]
pub(super) struct Layers {
    devices: BTreeSet<DeviceNumber>,
    windows: Vec<Extent>,
}

impl Layers {
    /// Devices below a mount, through every layer that the kernel reports: none for overlay, tmpfs, network.
    pub(super) fn below(facts: &Facts, system: &[Mount], mount: &Mount) -> Self {
        let mut found = Self::default();
        found.follow(facts, system, devices(facts, mount));
        found
    }

    /// Devices below one device, itself included.
    pub(super) fn below_device(facts: &Facts, number: DeviceNumber) -> Self {
        let mut found = Self::default();
        found.follow(facts, &[], vec![number]);
        found
    }

    /// Devices below the lower layers of an overlay, the last of `mounts`. Each layer is resolved among the mounts before it
    /// only: a path that now leads to the overlay itself, or to a later mount, is not what the overlay was made of.
    pub(super) fn below_overlay(facts: &Facts, mounts: &[Mount], depth: &mut u32) -> Self {
        let mut found = Self::default();
        let Some((overlay, earlier)) = mounts.split_last() else { return found };
        *depth += 1;
        if overlay.fs_type != "overlay" || *depth > MAX_OVERLAYS {
            return found;
        }
        for path in overlay.lower_directories() {
            let holds = |mount: &Mount| std::path::Path::new(&path).starts_with(&mount.target);
            let deepest = earlier.iter().enumerate().filter(|(_, mount)| holds(mount));
            let Some((at, mount)) = deepest.max_by_key(|(at, mount)| (mount.target.len(), *at)) else {
                continue;
            };
            found.follow(facts, earlier, devices(facts, mount));
            let inner = Self::below_overlay(facts, &earlier[..=at], depth);
            found.devices.extend(inner.devices);
            found.windows.extend(inner.windows);
        }
        found
    }

    fn follow(&mut self, facts: &Facts, system: &[Mount], mut open: Vec<DeviceNumber>) {
        let kernel = facts.kernel;
        let loops = kernel.loops();
        while let Some(number) = open.pop() {
            if !self.devices.insert(number) {
                continue;
            }
            open.extend(kernel.slaves(number));
            let Some(l) = loops.iter().find(|l| l.node.number == number) else { continue };
            // By path only where the loop device does not report its backing file: here the path may mean another file.
            let named = || kernel.number_of(&l.backing).map(Identity::Block);
            let below = facts.ask.below(&l.node.path).ok().or_else(named);
            match below.or_else(|| Identity::of(&l.backing).ok()) {
                Some(Identity::Block(below)) => {
                    self.windows.extend((below == facts.disk.number).then_some(l.extent));
                    open.push(below);
                }
                // A file: continue with the file system that holds it.
                Some(Identity::File(device, _)) if device.major != 0 => open.push(device),
                Some(Identity::File(device, _)) => {
                    let mount = system.iter().find(|mount| mount.number == device);
                    open.extend(mount.into_iter().flat_map(|mount| devices(facts, mount)));
                }
                None => {}
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// Indices of the slots among them.
    pub(super) fn slots(&self, facts: &Facts) -> Vec<usize> {
        let disk = facts.disk.number;
        let own = facts.kernel.partitions(disk).unwrap_or_default();
        let own = own.into_iter().filter_map(|node| Some((node.partition?.0, node.number)));
        let mapped = facts.kernel.mapped_partitions(disk).into_iter();
        let nodes: Vec<_> = own.chain(mapped.map(|(index, node)| (index, node.number))).collect();
        let is_below =
            |number: u32| nodes.iter().any(|(own, device)| *own == number && self.devices.contains(device));
        let end = |e: Extent| e.at.0.saturating_add(e.len);
        let inside = |slot: Extent| {
            self.windows.iter().any(|w| w.len > 0 && w.at.0 >= slot.at.0 && end(*w) <= end(slot))
        };
        let candidates = facts.candidates.iter().enumerate();
        let found = candidates.filter(|(_, slot)| is_below(slot.number) || inside(slot.extent));
        found.map(|(index, _)| index).collect()
    }
}

/// Devices that the mount entry itself names.
fn devices(facts: &Facts, mount: &Mount) -> Vec<DeviceNumber> {
    if mount.number.major != 0 {
        return vec![mount.number];
    }
    // btrfs, bcachefs: the number is anonymous, but the source is a device, or a list of devices.
    let named = mount.source.split(':').filter(|source| source.starts_with("/dev/"));
    named.filter_map(|source| facts.kernel.number_of(source.as_ref())).collect()
}
