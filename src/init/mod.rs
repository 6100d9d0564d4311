//! Layout of a blank disk or image file, and the factory install: onto the new layout, or into the slots of an existing
//! table.

mod install;
mod onto;

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use install::install;
pub use onto::{OntoSpec, onto};

use crate::boot::{BootFlag, Slots};
use crate::bundle::Bundle;
use crate::bundle::manifest::Kind;
use crate::commit;
use crate::device::{self, AlignedBuf, BlockDevice, Mode, Region};
use crate::engine::transition::{self, Site};
use crate::error::{Error, Result};
use crate::gpt::layout::{self, NewPartition};
use crate::gpt::{Attributes, Partition, Table, TableMethod};
use crate::host::{DiskLock, LocalDisk, Machine, reread};
use crate::progress::{Cancel, Progress};
use crate::slot::Layout;
use crate::units::{BlockSize, ByteOffset, Extent, Group, Guid, MIB, Slot};

/// Partition type "Linux filesystem data": no tool mounts or boots it automatically. The slots are found by name.
const LINUX_DATA: Guid =
    Guid([0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4]);

/// Parameters of [`init`].
pub struct InitSpec {
    /// The disk, or the image file, which is created if it does not exist.
    pub disk: PathBuf,
    /// Size of a new image file in bytes; `None`: as large as the slots need.
    pub size: Option<u64>,
    /// Size of each platform slot in bytes.
    pub slot_size: u64,
    /// Size of each software slot in bytes; `None`: no software slots.
    pub software_size: Option<u64>,
    /// Bytes before the first partition, for boot loaders; rounded up to 1 MiB.
    pub reserve: u64,
    /// Sector size of an image file.
    pub sector_size: BlockSize,
    /// The boot flag that will decide which slot boots.
    pub boot_flag: BootFlag,
    /// Whether to destroy what the disk holds.
    pub force: bool,
    /// The bundle to install; `None`: the slots stay empty.
    pub bundle: Option<Bundle>,
    /// The slots to install it into; the first one boots.
    pub into: Vec<Slot>,
    /// Whether to check everything and write nothing.
    pub dry_run: bool,
}

/// Result of [`init`] or [`onto`](fn@onto); of a dry run, the result that it would have.
#[derive(Debug, Clone, Serialize)]
pub struct InitReport {
    /// The disk.
    pub disk: String,
    /// Its size in bytes.
    pub size: u64,
    /// Names of the partitions, by number.
    pub partitions: Vec<String>,
    /// Extents of the partitions, in the same order.
    pub extents: Vec<Extent>,
    /// Version of the installed bundle; `None`: none was installed.
    pub installed: Option<String>,
    /// The slots that hold it. The first one boots, the other is its fallback.
    pub slots: Vec<Slot>,
    /// Whether the existing partition table was used.
    pub table_kept: bool,
    /// Former contents that are destroyed, as far as they are recognised; empty: none.
    pub destroyed: Vec<String>,
    /// Whether nothing was written.
    pub dry_run: bool,
}

/// Lays out the disk. Installs the bundle, if there is one, marks it good and selects it.
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
        install::check_source(bundle, &spec.into)?;
        check_fit(bundle, &slots)?;
    }
    let sum = slots.iter().map(|(_, _, size)| size).sum();
    let new = new_len(&spec, sum)?;
    if spec.dry_run {
        return dry_run(&spec, new, &slots);
    }
    let created = new.is_some();
    if let Some(len) = new {
        make_file(&spec.disk, len)?;
    }
    let result = lay_out(&spec, &slots, progress, cancel);
    if result.is_err() && created {
        // A file that this run created, and that holds nothing complete, is of no use.
        let _ = std::fs::remove_file(&spec.disk);
    }
    let report = result?;
    reread_table(&spec.disk, progress);
    Ok(report)
}

/// Makes the kernel read the new table, after the disk has been released. If that fails, the layout has not failed: the disk
/// is correct, and later verbs are refused by [`Error::KernelTable`] while the kernel has the old table.
fn reread_table(disk: &Path, progress: &dyn Progress) {
    let is_device = std::fs::metadata(disk).is_ok_and(|found| found.file_type().is_block_device());
    let Some(problem) = is_device.then(|| reread::partitions(disk)).and_then(Result::err) else { return };
    progress.notice(&format!(
        "the kernel has not read the new partition table of {disk} ({problem}): close what uses it, then \
         'partx -d {disk}' and 'partx -a {disk}', or reboot",
        disk = disk.display()
    ));
}

/// Checks that the bundle fits the slots, before anything is destroyed for it.
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
    for (group, slot, size) in slots {
        let body_len = bundle.release().record_len();
        Layout::new(manifest, *group, body_len, *size, group.partition_name(*slot))?;
    }
    Ok(())
}

/// Size in bytes of the image file that has to be created; `None`: the disk exists.
fn new_len(spec: &InitSpec, slots: u64) -> Result<Option<u64>> {
    let len = match std::fs::metadata(&spec.disk) {
        Ok(found) if !found.is_file() => {
            return match spec.size {
                None => Ok(None),
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
            _ => Ok(None),
        };
    }
    // The reserve before the slots, and 1 MiB after them for the backup.
    let before = spec.reserve.max(1).checked_next_multiple_of(MIB).unwrap_or(u64::MAX);
    let needed = slots.saturating_add(before).saturating_add(MIB);
    let size = spec.size.unwrap_or(needed).next_multiple_of(u64::from(spec.sector_size.bytes()));
    if size < needed {
        return Err(Error::DiskTooSmall { disk: spec.disk.display().to_string(), needed, size });
    }
    Ok(Some(size))
}

/// Creates an image file of `len` bytes.
fn make_file(path: &Path, len: u64) -> Result<()> {
    let output = |source| Error::Output { path: path.to_owned(), source };
    let file = File::options().write(true).create(true).truncate(false).open(path).map_err(output)?;
    file.set_len(len).map_err(output)
}

/// A dry run: all checks, and the layout that would result. `new` is the size of a file that would be created.
fn dry_run(spec: &InitSpec, new: Option<u64>, slots: &[(Group, Slot, u64)]) -> Result<InitReport> {
    let name = spec.disk.display().to_string();
    let (len, block, found) = match new {
        Some(len) => (len, spec.sector_size, None),
        None => {
            let machine = LocalDisk::open(&spec.disk, Mode::Read, Some(spec.sector_size))?;
            machine.check_idle()?;
            let disk = machine.disk();
            (disk.len(), disk.block_size(), blank(&*disk, &name, spec.force)?)
        }
    };
    let partitions = new_partitions(slots);
    let plan = layout::create_after(spec.reserve, &name, len, block, &partitions, None)?;
    Ok(report(spec, len, &plan.primary, found))
}

/// Description of what the disk holds, if it may be destroyed; `None`: nothing.
fn blank(disk: &dyn BlockDevice, name: &str, force: bool) -> Result<Option<String>> {
    match found_on(disk, name)? {
        Some(found) if !force => Err(Error::NotBlank { disk: name.to_owned(), found }),
        found => Ok(found),
    }
}

fn new_partitions(slots: &[(Group, Slot, u64)]) -> Vec<NewPartition> {
    slots
        .iter()
        .map(|(group, slot, size)| NewPartition {
            name: group.partition_name(*slot).to_owned(),
            type_guid: LINUX_DATA,
            guid: None,
            size: *size,
            attributes: Attributes::default(),
        })
        .collect()
}

/// The report on a new layout.
fn report(spec: &InitSpec, size: u64, table: &Table, found: Option<String>) -> InitReport {
    let partitions = table.partitions();
    InitReport {
        disk: spec.disk.display().to_string(),
        size,
        extents: partitions.iter().map(|partition| partition.extent).collect(),
        partitions: partitions.into_iter().map(|partition| partition.name).collect(),
        installed: spec.bundle.as_ref().map(|bundle| bundle.manifest().version.clone()),
        slots: if spec.bundle.is_some() { spec.into.clone() } else { Vec::new() },
        table_kept: false,
        destroyed: found.into_iter().collect(),
        dry_run: spec.dry_run,
    }
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
    let found = blank(&*disk, machine.name(), spec.force)?;
    let partitions = new_partitions(slots);
    let plan =
        layout::create_after(spec.reserve, machine.name(), disk.len(), disk.block_size(), &partitions, None)?;
    commit::lay_out(&*disk, machine.name(), &lock, &plan)?;
    void_records(&machine, &lock)?;
    if let Some(bundle) = &spec.bundle {
        let method = TableMethod::default();
        let job = install::Install { bundle, into: &spec.into, boot_flag: spec.boot_flag, method, floor: 0 };
        job.run(&machine, &lock, progress, cancel)?;
    }
    Ok(report(spec, disk.len(), &plan.primary, found))
}

/// Voids records that slots of an earlier layout left at the same places: else a slot would appear as prepared although
/// nothing was prepared on this disk.
fn void_records(machine: &LocalDisk, lock: &DiskLock) -> Result<()> {
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

/// A new partition as a part of the disk. Not by the kernel's node: the disk is held exclusively, so nothing can open the
/// nodes, not even this process, and they belong to the old table.
fn window(machine: &dyn Machine, partition: &Partition) -> Result<Region> {
    Region::new(machine.disk(), partition.extent)
        .ok_or_else(|| Error::Internal { what: format!("{} was laid out beyond the disk", partition.name) })
}

/// Description of the content at both ends of a disk or slot, where partition tables and most file systems begin; `None`:
/// zeroes.
fn found_on(disk: &dyn BlockDevice, name: &str) -> Result<Option<String>> {
    let len = disk.len().min(MIB);
    let mut bytes = AlignedBuf::zeroed(len as usize);
    device::read(disk, name, &mut bytes, ByteOffset(0))?;
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
    device::read(disk, name, &mut bytes, ByteOffset(disk.len() - len))?;
    Ok(bytes.iter().any(|byte| *byte != 0).then(|| "data in its last MiB".to_owned()))
}
