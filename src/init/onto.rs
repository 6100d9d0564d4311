//! Factory install into the slots of an existing table: a disk with an ESP, a data partition, whatever a board or an image
//! builder laid out. Only those slots and the table's boot flags are written.

use std::path::PathBuf;

use super::install::{self, Install};
use super::{InitReport, found_on, window};
use crate::boot::{BootFlag, Slots};
use crate::bundle::Bundle;
use crate::commit;
use crate::device::Mode;
use crate::error::{Error, Result};
use crate::gpt::{CopyState, Table, TableMethod};
use crate::host::{LocalDisk, Machine};
use crate::progress::{Cancel, Progress};
use crate::slot::{Content, Layout};
use crate::units::{BlockSize, Group, Slot};

/// Parameters of [`onto`](fn@onto).
pub struct OntoSpec {
    /// The disk or image file.
    pub disk: PathBuf,
    /// Sector size of an image file; `None`: the size at which a table is found.
    pub sector_size: Option<BlockSize>,
    /// The boot flag that will decide which slot boots.
    pub boot_flag: BootFlag,
    /// Method by which the table is changed.
    pub method: TableMethod,
    /// The bundle to install.
    pub bundle: Bundle,
    /// The slots to install it into; the first one boots.
    pub into: Vec<Slot>,
    /// Whether to destroy what these slots hold.
    pub force: bool,
    /// Whether an epoch below the highest that was ever good on this disk is accepted.
    pub allow_epoch_rollback: bool,
    /// Whether to check everything and write nothing.
    pub dry_run: bool,
}

/// Installs the bundle into the existing slots, marks them good and selects the first. Every obstacle is found before the
/// first write.
///
/// # Errors
/// [`Error::SlotInUse`]: a part of the disk is in use; class Disk: it has no such slots, or they are too small;
/// [`Error::NotBlank`]: a slot holds something; [`Error::Epoch`]: the disk had a release of a higher epoch; [`Error::ForeignBootFlag`]; then those of staging and of the switch.
pub fn onto(spec: &OntoSpec, progress: &dyn Progress, cancel: &Cancel) -> Result<InitReport> {
    install::check_source(&spec.bundle, &spec.into)?;
    let mode = if spec.dry_run { Mode::Read } else { Mode::Claim };
    let machine = LocalDisk::open(&spec.disk, mode, spec.sector_size)?;
    machine.check_idle()?;
    let lock = if spec.dry_run { None } else { Some(machine.lock()?) };
    let disk = machine.disk();
    let loaded = commit::load(&*disk, machine.name())?.with_method(spec.method);
    let table = loaded.table()?;
    let slots = Slots::resolve(table, machine.name())?;
    slots.check_foreign_flags(table, spec.boot_flag, machine.name())?;
    let floor = epoch_floor(&machine, table, &slots)?;
    let manifest = spec.bundle.manifest();
    if manifest.epoch < floor && !spec.allow_epoch_rollback {
        return Err(Error::Epoch { version: manifest.version.clone(), epoch: manifest.epoch, floor });
    }
    let job = Install {
        bundle: &spec.bundle,
        into: &spec.into,
        boot_flag: spec.boot_flag,
        method: spec.method,
        floor,
    };
    let places = job.places();
    let destroyed = check_slots(spec, &machine, &slots, &places)?;
    let partitions = table.partitions();
    if let Some(lock) = &lock {
        job.run(&machine, lock, progress, cancel)?;
        // The interpreter of acts has repaired it before its first write.
        let (name, state) = (machine.name(), loaded.state());
        if state != CopyState::Equal {
            progress.notice(&format!(
                "{name}: the copies of the partition table were not both sound ({state}); repaired"
            ));
        }
    }
    Ok(InitReport {
        disk: machine.name().to_owned(),
        size: disk.len(),
        extents: partitions.iter().map(|partition| partition.extent).collect(),
        partitions: partitions.into_iter().map(|partition| partition.name).collect(),
        installed: Some(spec.bundle.manifest().version.clone()),
        slots: spec.into.clone(),
        table_kept: true,
        destroyed,
        dry_run: spec.dry_run,
    })
}

/// The highest epoch that was ever good on this disk, as far as its slots remember: in their marks, and in the record of a
/// slot that is good by its flags. The EFI variables of this machine are not about a disk that it does not run from.
fn epoch_floor(machine: &LocalDisk, table: &Table, slots: &Slots) -> Result<u64> {
    let mut floor = 0;
    for (group, slot) in Group::BOTH.into_iter().flat_map(|group| Slot::BOTH.map(|slot| (group, slot))) {
        let Some(partition) = slots.get(group, slot) else { continue };
        let content = Content::read(&window(machine, partition)?, group, &partition.name)?;
        let good = table.attributes(partition.number).successful();
        let own = content.record().filter(|_| good).map_or(0, |record| record.manifest.epoch);
        floor = floor.max(content.epoch()).max(own);
    }
    Ok(floor)
}

/// Refuses slots that are too small, and without `force` those that hold something. Returns what will be destroyed.
fn check_slots(
    spec: &OntoSpec,
    machine: &LocalDisk,
    slots: &Slots,
    places: &[(Group, Slot)],
) -> Result<Vec<String>> {
    let (manifest, body_len) = (spec.bundle.manifest(), spec.bundle.release().record_len());
    let mut destroyed = Vec::new();
    for (group, slot) in places {
        let partition = slots.require(*group, *slot)?;
        Layout::new(manifest, *group, body_len, partition.extent.len, &partition.name)?;
        let window = window(machine, partition)?;
        let found = match Content::read(&window, *group, &partition.name)? {
            Content::Whole(record, _) => Some(format!("release {}", record.manifest.version)),
            // A torn slot is the result of an interrupted install, which is continued.
            Content::Torn { .. } => None,
            Content::Nothing { .. } => found_on(&window, &partition.name)?,
        };
        let Some(found) = found else { continue };
        if !spec.force {
            let disk = format!("{} of {}", partition.name, machine.name());
            return Err(Error::NotBlank { disk, found });
        }
        destroyed.push(format!("{}: {found}", partition.name));
    }
    Ok(destroyed)
}
