//! Factory install of a bundle into slots that do not run: staged, marked good, selected.

use super::window;
use crate::boot::{BootFlag, Slots};
use crate::bundle::Bundle;
use crate::bundle::manifest::Provenance;
use crate::commit::{self, Loaded};
use crate::device::BlockDevice;
use crate::engine::transition::{self, Site};
use crate::error::{Error, Result};
use crate::gpt::TableMethod;
use crate::host::{DiskLock, Machine};
use crate::progress::{Cancel, Progress};
use crate::slot::{Content, Layout, Record};
use crate::stage::{self, Target};
use crate::units::{Group, Slot};

/// A factory install.
pub(super) struct Install<'a> {
    pub(super) bundle: &'a Bundle,
    /// The slots to install into, not empty. The first one boots.
    pub(super) into: &'a [Slot],
    pub(super) boot_flag: BootFlag,
    pub(super) method: TableMethod,
    /// The epoch that the slots remember at least.
    pub(super) floor: u64,
}

/// Stages the bundle into slot a of each group, then marks the slots good and selects them in one switch. Returns the
/// version.
///
/// # Errors
/// Those of staging and of the switch.
pub fn install(
    machine: &dyn Machine,
    lock: &DiskLock,
    bundle: &Bundle,
    boot_flag: BootFlag,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<String> {
    let install = Install { bundle, into: &[Slot::A], boot_flag, method: TableMethod::default(), floor: 0 };
    install.run(machine, lock, progress, cancel)?;
    Ok(bundle.manifest().version.clone())
}

/// Refuses a stream if there are several slots, since the bundle is read once per slot.
/// Refuses a bundle without a platform.
pub(super) fn check_source(bundle: &Bundle, into: &[Slot]) -> Result<()> {
    if let Some(needed) = &bundle.manifest().needs_platform {
        return Err(Error::PlatformNeeded {
            version: bundle.manifest().version.clone(),
            needed: needed.to_string(),
            problem: "a factory install brings the first one".to_owned(),
        });
    }
    if into.len() < 2 || bundle.is_seekable() {
        return Ok(());
    }
    Err(Error::Argument {
        what: "--slot both".to_owned(),
        problem: "the bundle is read once for each slot, and a stream can be read once only; give a file"
            .to_owned(),
    })
}

impl Install<'_> {
    /// The slots that are written, with their groups.
    pub(super) fn places(&self) -> Vec<(Group, Slot)> {
        let manifest = self.bundle.manifest();
        let groups = || Group::BOTH.into_iter().filter(|group| manifest.group(*group).next().is_some());
        self.into.iter().flat_map(|slot| groups().map(|group| (group, *slot))).collect()
    }

    /// Durably voids what the slots hold, then stages slot after slot. One switch at the end marks all of them good and
    /// selects the first one.
    ///
    /// # Errors
    /// Those of staging and of the switch.
    pub(super) fn run(
        &self,
        machine: &dyn Machine,
        lock: &DiskLock,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        let (mut loaded, slots) = self.load(machine)?;
        let targets = self.targets(machine, &slots)?;
        let opened: Vec<(Group, Slot, &dyn BlockDevice)> =
            targets.iter().map(|(slot, target)| (target.group, *slot, &*target.device)).collect();
        let mut held = Vec::new();
        for (group, slot, device) in &opened {
            held.push((*group, *slot, Content::read(*device, *group, group.partition_name(*slot))?));
        }
        let vacate = transition::vacate(loaded.table()?, &slots, &held)?;
        if !vacate.acts().is_empty() {
            Site { machine, loaded: &loaded, slots: &slots, opened: &opened }.run(lock, &vacate)?;
            (loaded, _) = self.load(machine)?;
        }
        let places: Vec<(Group, Slot)> = opened.iter().map(|(group, slot, _)| (*group, *slot)).collect();
        let install = transition::install(
            loaded.table()?,
            &slots,
            &places,
            self.boot_flag,
            self.bundle.manifest().epoch.max(self.floor),
        )?;
        let options = stage::StageOptions {
            jobs: stage::default_jobs(&self.bundle.manifest().payloads, false),
            read_back: true,
            sha256: true,
            cancel,
            sources: None,
            look: false,
            pace: &|_| Ok(()),
        };
        drop(opened);
        let mut staged: Vec<(Slot, Vec<Target>)> = self.into.iter().map(|slot| (*slot, Vec::new())).collect();
        for (slot, target) in targets {
            if let Some((_, of)) = staged.iter_mut().find(|(s, _)| *s == slot) {
                of.push(target);
            }
        }
        for (_, targets) in &staged {
            stage::stage(self.bundle, targets, &options, progress)?;
        }
        let opened: Vec<(Group, Slot, &dyn BlockDevice)> = staged
            .iter()
            .flat_map(|(slot, targets)| targets.iter().map(|target| (target.group, *slot, &*target.device)))
            .collect();
        Site { machine, loaded: &loaded, slots: &slots, opened: &opened }.run(lock, &install)
    }

    fn load(&self, machine: &dyn Machine) -> Result<(Loaded, Slots)> {
        let loaded = commit::load(&*machine.disk(), machine.name())?.with_method(self.method);
        let slots = Slots::resolve(loaded.table()?, machine.name())?;
        Ok((loaded, slots))
    }

    fn targets(&self, machine: &dyn Machine, slots: &Slots) -> Result<Vec<(Slot, Target)>> {
        let manifest = self.bundle.manifest();
        let body_len = self.bundle.release().record_len();
        let mut targets = Vec::new();
        for (group, slot) in self.places() {
            let partition = slots.require(group, slot)?;
            let layout = Layout::new(manifest, group, body_len, partition.extent.len, &partition.name)?;
            let record = Record {
                release: self.bundle.release().clone(),
                layout,
                origin: "factory".to_owned(),
                unsigned: *manifest.provenance() == Provenance::Unsigned,
            };
            let device = Box::new(window(machine, partition)?);
            targets.push((slot, Target { group, partition: partition.name.clone(), device, record }));
        }
        Ok(targets)
    }
}
