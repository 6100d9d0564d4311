//! Laying out a blank disk or image file, and the factory install of slot a.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::boot::{BootFlag, Slots};
use crate::bundle::Bundle;
use crate::bundle::manifest::{Kind, Vouched};
use crate::commit;
use crate::device::{self, AlignedBuf, BlockDevice, Mode, Region};
use crate::engine::transition::{self, Site};
use crate::error::{Error, Result};
use crate::gpt::layout::{self, NewPartition};
use crate::gpt::{Attributes, Partition};
use crate::host::{DiskLock, LocalDisk, Machine};
use crate::progress::{Cancel, Progress};
use crate::slot::{Layout, Record};
use crate::stage::{self, Target};
use crate::units::{BlockSize, ByteOffset, Group, Guid, MIB, Slot};

/// "Linux filesystem data": the type that no tool mounts or boots by itself. The slots are found by name.
const LINUX_DATA: Guid =
    Guid([0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4]);

/// How to lay out a disk.
pub struct InitSpec {
    /// The disk, or the image file, which is made where it does not exist.
    pub disk: PathBuf,
    /// Size of a new image file in bytes; `None`: what the slots need.
    pub size: Option<u64>,
    /// Size of each platform slot in bytes.
    pub slot_size: u64,
    /// Size of each software slot in bytes; `None`: none.
    pub software_size: Option<u64>,
    /// Bytes before the first partition, for boot loaders; rounded up to 1 MiB.
    pub reserve: u64,
    /// Sector size of an image file.
    pub sector_size: BlockSize,
    /// Which bits will say what boots.
    pub boot_flag: BootFlag,
    /// Destroy what is there.
    pub force: bool,
    /// What to install into slot a.
    pub bundle: Option<Bundle>,
}

/// What was laid out.
#[derive(Debug, Clone, Serialize)]
pub struct InitReport {
    /// The disk.
    pub disk: String,
    /// Its size in bytes.
    pub size: u64,
    /// Names of the partitions, by number.
    pub partitions: Vec<String>,
    /// Version of what slot a holds.
    pub installed: Option<String>,
}

/// Lays out the disk and installs the bundle, if there is one, marked good and selected.
///
/// # Errors
/// [`Error::NotBlank`], [`Error::DiskTooSmall`], [`Error::SlotTooSmall`], [`Error::Argument`]; then those of
/// staging. A disk is not touched before the sizes have been checked.
pub fn init(spec: InitSpec, progress: &dyn Progress, cancel: &Cancel) -> Result<InitReport> {
    let slots: Vec<(Group, Slot, u64)> = Group::BOTH
        .into_iter()
        .zip([Some(spec.slot_size), spec.software_size])
        .filter_map(|(group, size)| Some((group, size?)))
        .flat_map(|(group, size)| Slot::BOTH.map(|slot| (group, slot, size.next_multiple_of(MIB))))
        .collect();
    if let Some(bundle) = &spec.bundle {
        check_fit(bundle, &slots)?;
    }
    let created = make_file(&spec, slots.iter().map(|(_, _, size)| size).sum())?;
    let result = lay_out(&spec, &slots, progress, cancel);
    if result.is_err() && created {
        // A file that this run made and that holds nothing whole is of no use to anybody.
        let _ = std::fs::remove_file(&spec.disk);
    }
    result
}

/// What the bundle needs, before anything is destroyed for it.
fn check_fit(bundle: &Bundle, slots: &[(Group, Slot, u64)]) -> Result<()> {
    let manifest = bundle.manifest();
    if manifest.payload(Kind::Software).is_some()
        && !slots.iter().any(|(group, ..)| *group == Group::Software)
    {
        return Err(Error::Argument {
            what: "software slots".to_owned(),
            problem: "the bundle holds a software image; give --software-size".to_owned(),
        });
    }
    for (group, slot, size) in slots.iter().filter(|(_, slot, _)| *slot == Slot::A) {
        let body_len = bundle.release().record_len();
        Layout::new(manifest, *group, body_len, *size, group.partition_name(*slot))?;
    }
    Ok(())
}

/// Makes the image file where there is none; whether it did.
fn make_file(spec: &InitSpec, slots: u64) -> Result<bool> {
    let output = |source| Error::Output { path: spec.disk.clone(), source };
    let len = match std::fs::metadata(&spec.disk) {
        Ok(found) if !found.is_file() => {
            return match spec.size {
                None => Ok(false),
                Some(_) => Err(Error::Argument {
                    what: "--size".to_owned(),
                    problem: format!("{} is no file; a device has its own size", spec.disk.display()),
                }),
            };
        }
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    if len > 0 {
        return match spec.size {
            Some(size) if size != len => Err(Error::Argument {
                what: "--size".to_owned(),
                problem: format!(
                    "{} exists with {len} bytes; remove it or leave --size out",
                    spec.disk.display()
                ),
            }),
            _ => Ok(false),
        };
    }
    // What is reserved before the slots, and 1 MiB behind them for the backup.
    let before = spec.reserve.max(1).checked_next_multiple_of(MIB).unwrap_or(u64::MAX);
    let needed = slots.saturating_add(before).saturating_add(MIB);
    let size = spec.size.unwrap_or(needed).next_multiple_of(u64::from(spec.sector_size.bytes()));
    if size < needed {
        return Err(Error::DiskTooSmall { disk: spec.disk.display().to_string(), needed, size });
    }
    let file = File::options().write(true).create(true).truncate(false).open(&spec.disk).map_err(output)?;
    file.set_len(size).map_err(output)?;
    Ok(true)
}

fn lay_out(
    spec: &InitSpec,
    slots: &[(Group, Slot, u64)],
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<InitReport> {
    let machine = LocalDisk::open(&spec.disk, Mode::Claim, Some(spec.sector_size))?;
    machine.check_idle()?;
    let disk = machine.disk();
    let lock = machine.lock()?;
    if let (Some(found), false) = (found_on(&*disk, &spec.disk)?, spec.force) {
        return Err(Error::NotBlank { disk: machine.name().to_owned(), found });
    }
    let partitions: Vec<NewPartition> = slots
        .iter()
        .map(|(group, slot, size)| NewPartition {
            name: group.partition_name(*slot).to_owned(),
            type_guid: LINUX_DATA,
            guid: None,
            size: *size,
            attributes: Attributes::default(),
        })
        .collect();
    let plan =
        layout::create_after(spec.reserve, machine.name(), disk.len(), disk.block_size(), &partitions, None)?;
    commit::lay_out(&*disk, machine.name(), &lock, &plan)?;
    forget(&machine, &lock)?;
    let installed = match &spec.bundle {
        Some(bundle) => Some(install(&machine, &lock, bundle, spec.boot_flag, progress, cancel)?),
        None => None,
    };
    Ok(InitReport {
        disk: machine.name().to_owned(),
        size: disk.len(),
        partitions: partitions.into_iter().map(|partition| partition.name).collect(),
        installed,
    })
}

/// Voids the records that slots of an earlier layout left at the same places: they would say "prepared" of what nobody
/// prepared on this disk.
fn forget(machine: &LocalDisk, lock: &DiskLock) -> Result<()> {
    let disk = machine.disk();
    let loaded = commit::load(&*disk, machine.name())?;
    let slots = Slots::resolve(loaded.table()?, machine.name())?;
    let mut windows = Vec::new();
    for (group, slot) in Group::BOTH.into_iter().flat_map(|group| Slot::BOTH.map(|slot| (group, slot))) {
        let Some(partition) = slots.get(group, slot) else { continue };
        windows.push((group, slot, window(machine, partition)?));
    }
    let opened: Vec<(Group, Slot, &dyn BlockDevice)> =
        windows.iter().map(|(group, slot, window)| (*group, *slot, window as &dyn BlockDevice)).collect();
    Site { machine, loaded: &loaded, slots: &slots, opened: &opened }.run(lock, &transition::forget(&slots))
}

/// A new partition as a part of the disk. Not by the kernel's node: the disk is claimed as a whole, which shuts
/// everybody out of the nodes, this process included, and they are those of the old table.
fn window(machine: &dyn Machine, partition: &Partition) -> Result<Region> {
    Region::new(machine.disk(), partition.extent)
        .ok_or_else(|| Error::Internal { what: format!("{} was laid out beyond the disk", partition.name) })
}

/// What is at both ends of the disk, where partition tables and most file systems begin; `None`: zeroes.
fn found_on(disk: &dyn BlockDevice, path: &Path) -> Result<Option<String>> {
    let name = path.display().to_string();
    let len = disk.len().min(MIB);
    let mut bytes = AlignedBuf::zeroed(len as usize);
    device::read(disk, &name, &mut bytes, ByteOffset(0))?;
    let gpt = |at: usize| bytes.get(at..at + 8) == Some(b"EFI PART".as_slice());
    if gpt(512) || gpt(4096) {
        return Ok(Some("a GUID partition table".to_owned()));
    }
    if bytes.get(510..512) == Some(&[0x55, 0xaa]) {
        return Ok(Some("a boot record or an MBR partition table".to_owned()));
    }
    if let Some(at) = bytes.iter().position(|byte| *byte != 0) {
        return Ok(Some(format!("data, from byte {at} on")));
    }
    device::read(disk, &name, &mut bytes, ByteOffset(disk.len() - len))?;
    Ok(bytes.iter().any(|byte| *byte != 0).then(|| "data in its last MiB".to_owned()))
}

/// Stages the bundle into the slots a, then marks them good and selects them in one switch. Returns its version.
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
    let disk = machine.disk();
    let loaded = commit::load(&*disk, machine.name())?;
    let slots = Slots::resolve(loaded.table()?, machine.name())?;
    let manifest = bundle.manifest();
    let body_len = bundle.release().record_len();
    let mut targets = Vec::new();
    for group in Group::BOTH.into_iter().filter(|group| manifest.group(*group).next().is_some()) {
        let partition = slots.require(group, Slot::A)?;
        let layout = Layout::new(manifest, group, body_len, partition.extent.len, &partition.name)?;
        targets.push(Target {
            group,
            partition: partition.name.clone(),
            device: Box::new(window(machine, partition)?),
            record: Record {
                release: bundle.release().clone(),
                layout,
                origin: "factory".to_owned(),
                unsigned: *manifest.voucher() == Vouched::Unsigned,
            },
        });
    }
    let options = stage::Options {
        jobs: stage::default_jobs(&bundle.manifest().payloads),
        read_back: true,
        sha256: true,
        cancel,
        delta: None,
        pace: &|_| Ok(()),
    };
    stage::stage(bundle, &targets, &options, progress)?;
    let groups: Vec<Group> = targets.iter().map(|target| target.group).collect();
    let opened: Vec<(Group, Slot, &dyn BlockDevice)> =
        targets.iter().map(|target| (target.group, Slot::A, &*target.device)).collect();
    let install = transition::install(loaded.table()?, &slots, &groups, boot_flag, manifest.epoch)?;
    Site { machine, loaded: &loaded, slots: &slots, opened: &opened }.run(lock, &install)?;
    Ok(manifest.version.clone())
}
