//! The slot that this machine runs from: known by evidence, or unknown. Boot flags are no evidence.
//!
//! | rank | evidence | refuted by |
//! |---|---|---|
//! | 1 | the mount of `/`, through device mapper, verity, md, loop devices down to a slot | |
//! | 2 | the mount of `/usr`, likewise | |
//! | 3 | the lower layers of an overlay at `/` or `/usr` | a user of the other slot |
//! | 4 | `qstage.partuuid=` of the kernel command line | its twin on another disk |
//! | 5 | `root=`, `mount.usr=`, verity words of the command line | a root (`/usr`) on another device; contradiction; twins |
//! | 6 | the partition from which systemd-stub or systemd-boot was loaded, by EFI variables | its twin on another disk |
//!
//! A root on another device is a rescue system, which may have been started with the command line of a slot.

mod layers;
mod words;

use std::collections::BTreeSet;

use super::cmdline;
use super::kernel::{Kernel, Node};
use super::mountinfo::Mount;
use super::usage::{self, Disk, KernelQuery, Usage};
use crate::gpt::Partition;
use crate::units::Guid;
use layers::Layers;

/// The slot that this machine runs from, if there is evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Booted {
    /// The machine runs from the candidate of this index.
    Known {
        /// Index among the candidates.
        index: usize,
        /// The evidence, for messages.
        by: String,
    },
    /// No evidence.
    Unknown {
        /// What was examined, for messages.
        why: String,
    },
}

/// The evidence that is examined.
pub(super) struct Facts<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) ask: &'a dyn KernelQuery,
    /// The disk with the slots.
    pub(super) disk: &'a Node,
    /// The platform slots.
    pub(super) candidates: &'a [Partition],
    /// All partitions of the disk, by its table.
    pub(super) table: &'a [Partition],
    /// The partitions from which boot loader and kernel image were loaded, by EFI variables.
    pub(super) loaded_from: &'a [Guid],
}

/// The slot that this machine runs from.
pub(super) fn find(facts: &Facts) -> Booted {
    let system = match facts.kernel.namespaces() {
        Ok(mut all) => {
            // Process 1 sees the machine's root, even if this process was started in another root directory.
            let first = all.iter().position(|namespace| namespace.process == Some(1)).unwrap_or(0);
            all.swap_remove(first).mounts
        }
        Err(e) => return Booted::Unknown { why: format!("{}: {e}", facts.kernel.proc.display()) },
    };
    let root = Place::of(facts, &system, "/");
    let usr = Place::of(facts, &system, "/usr");
    let mut why = Vec::new();
    for place in [&root, &usr].into_iter().flatten() {
        match place.slots.as_slice() {
            [index] => return known(*index, format!("the mount of {}", place.target)),
            [] => why.push(place.describe()),
            _ => why.push(format!("what is mounted at {} lies on both slots", place.target)),
        }
    }
    for place in [&root, &usr].into_iter().flatten() {
        if let [index] = place.lower.as_slice()
            && facts.others_are_idle(*index)
        {
            return known(*index, format!("the layers of the overlay at {}", place.target));
        }
    }
    let elsewhere = |place: &Option<Place>| place.as_ref().is_some_and(|place| place.is_elsewhere);
    let line = facts.kernel.cmdline();
    if let Some(index) = cmdline::last(&line, "qstage.partuuid").and_then(|text| words::by_guid(facts, text))
    {
        return known(index, "qstage.partuuid of the kernel command line".to_owned());
    }
    // A separate /usr is judged by itself; else it lies where / does.
    let usr_elsewhere = if usr.is_some() { elsewhere(&usr) } else { elsewhere(&root) };
    let named = words::named(facts, &line, elsewhere(&root), usr_elsewhere);
    match named.iter().map(|(index, _)| *index).collect::<BTreeSet<_>>().len() {
        0 => why.push("the kernel command line names none of its slots".to_owned()),
        1 => return known(named[0].0, format!("{} of the kernel command line", named[0].1)),
        _ => {
            let words: Vec<&str> = named.iter().map(|(_, word)| word.as_str()).collect();
            why.push(format!("{} of the kernel command line contradict each other", words.join(" and ")));
        }
    }
    let loaded: BTreeSet<usize> =
        facts.loaded_from.iter().filter_map(|guid| words::by_guid(facts, &guid.to_string())).collect();
    match loaded.first() {
        Some(index) if loaded.len() == 1 && named.is_empty() => {
            known(*index, "the partition that the boot loader was loaded from".to_owned())
        }
        _ => Booted::Unknown { why: why.join(", ") },
    }
}

const fn known(index: usize, by: String) -> Booted {
    Booted::Known { index, by }
}

impl Facts<'_> {
    /// Whether all other slots are idle. An overlay names its layers by the paths of the time when it was mounted, perhaps
    /// in an initramfs, so the paths prove little; but a file system below it stays in use, so an idle slot is not below it.
    fn others_are_idle(&self, index: usize) -> bool {
        let disk = Disk::Block(self.disk.clone());
        let others = self.candidates.iter().enumerate().filter(|(other, _)| *other != index);
        others.into_iter().all(|(_, other)| {
            usage::of(self.kernel, self.ask, &disk, other.number, other.extent) == Usage::Idle
        })
    }
}

/// The mount at one mount point.
struct Place {
    target: &'static str,
    fs_type: String,
    source: String,
    /// The slots that it lies on.
    slots: Vec<usize>,
    /// The slots below it, where it is an overlay.
    lower: Vec<usize>,
    /// Whether it lies on devices of which none is a slot.
    is_elsewhere: bool,
}

impl Place {
    /// `None` if the target is not a mount point.
    fn of(facts: &Facts, system: &[Mount], target: &'static str) -> Option<Self> {
        // The last mount hides those before.
        let at = system.iter().rposition(|mount| mount.target == target)?;
        let mount = &system[at];
        let layers = Layers::below(facts, system, mount);
        let slots = layers.slots(facts);
        Some(Self {
            target,
            fs_type: mount.fs_type.clone(),
            source: mount.source.clone(),
            is_elsewhere: slots.is_empty() && !layers.is_empty(),
            slots,
            lower: Layers::below_overlay(facts, &system[..=at], &mut 0).slots(facts),
        })
    }

    fn describe(&self) -> String {
        let Self { target, fs_type, source, .. } = self;
        if self.is_elsewhere {
            format!("{target} lies on {source}, which is on none of its slots")
        } else {
            format!("{target} is of type {fs_type} and shows no device")
        }
    }
}

#[cfg(test)]
mod tests;
