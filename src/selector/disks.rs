//! Finds the disk to boot from if no path is given. The machine must boot in any case: of several disks with slots
//! (a clone, an installer's stick, the disk before a replacement) one is taken, and the others are reported.

use std::path::{Path, PathBuf};

use crate::commit;
use crate::device::{Direct, Mode};
use crate::error::{Error, Result};
use crate::host::efivars::{Directory, EFIVARS, Variables};
use crate::host::kernel::{Drive, Kernel};
use crate::units::{BlockSize, Group, Guid, Slot};

/// What the machine knows of the disk that it booted from.
#[derive(Debug, Clone, Default)]
pub struct BootOrigin {
    /// The partitions from which boot loader and kernel image were loaded, by EFI variables.
    pub loaded_from: Vec<Guid>,
    /// GUID of the disk, from the configuration of the initramfs or the kernel command line; `None` if neither
    /// names one.
    pub disk: Option<Guid>,
}

/// A disk with a partition that has the name of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FoundDisk {
    path: PathBuf,
    guid: Guid,
    partitions: Vec<Guid>,
    /// PARTUUIDs of its platform slots: one or two.
    slots: Vec<Guid>,
    is_removable: bool,
    /// Where it is attached; independent of the order in which disks appear.
    place: PathBuf,
}

/// Finds the disk whose partitions have the names of slots, by evidence of where the machine booted from. Each disk
/// of the kernel is read, because Linux shows no partitions if the primary copy of the table is damaged. `note`
/// receives each other finding as a sentence.
///
/// # Errors
/// [`Error::NoDisk`].
pub fn find_disk(kernel: &Kernel, origin: &BootOrigin, note: &dyn Fn(&str)) -> Result<PathBuf> {
    let drives = kernel.drives();
    // A drive without medium, a disk without table: not ours.
    let seen: Vec<FoundDisk> = drives.iter().filter_map(|drive| look(drive).ok().flatten()).collect();
    let Some((taken, notes)) = decide(&seen, origin) else {
        let read: Vec<String> = drives.iter().map(|drive| drive.path.display().to_string()).collect();
        return Err(Error::NoDisk { read: read.join(", ") });
    };
    notes.iter().for_each(|text| note(text));
    Ok(taken.path.clone())
}

/// The disk for a path, a GUID, or `None`: by the rules of [`find_disk`] unless it is a path.
///
/// # Errors
/// [`Error::NoDisk`].
pub fn locate(named: Option<&Path>, note: &dyn Fn(&str)) -> Result<PathBuf> {
    let guid = named.and_then(|disk| disk.to_str()?.parse::<Guid>().ok());
    match named {
        Some(path) if guid.is_none() => Ok(path.to_owned()),
        // A GUID is a hint for the rules of the selector: that disk may have been replaced.
        _ => {
            let variables = Directory::new(EFIVARS.into()).read().unwrap_or_default();
            let loaded_from = variables.loaded_from().into_iter().chain(variables.stub()).collect();
            find_disk(&Kernel::default(), &BootOrigin { loaded_from, disk: guid }, note)
        }
    }
}

fn look(drive: &Drive) -> Result<Option<FoundDisk>> {
    let device = Direct::open(&drive.path, Mode::Read, BlockSize::B512)?;
    let loaded = commit::load(&device, "")?;
    let table = loaded.table()?;
    let named = |slot: Slot| table.find(Group::Platform.partition_name(slot)).into_iter().next();
    let slots: Vec<Guid> = Slot::BOTH.into_iter().filter_map(named).map(|p| p.guid).collect();
    Ok((!slots.is_empty()).then(|| FoundDisk {
        path: drive.path.clone(),
        guid: table.header().disk_guid,
        partitions: table.partitions().into_iter().map(|p| p.guid).collect(),
        slots,
        is_removable: drive.is_removable,
        place: drive.place.clone(),
    }))
}

type Rule<'a> = (&'a str, &'a dyn Fn(&FoundDisk) -> bool);

/// The disk to take and the findings; `None` if there is no disk. Each rule narrows down the candidates; a rule
/// that matches no disk, or all, decides nothing.
fn decide<'s>(seen: &'s [FoundDisk], origin: &BootOrigin) -> Option<(&'s FoundDisk, Vec<String>)> {
    let rules: [Rule<'_>; 4] = [
        ("the boot loader was loaded from it", &|disk| {
            origin.loaded_from.iter().any(|guid| disk.partitions.contains(guid))
        }),
        ("qstage.disk names it", &|disk| Some(disk.guid) == origin.disk),
        ("it is not removable", &|disk| !disk.is_removable),
        ("it has both slots", &|disk| disk.slots.len() == 2),
    ];
    let mut left: Vec<&FoundDisk> = seen.iter().collect();
    let mut why = Vec::new();
    for (reason, rule) in rules {
        let kept: Vec<&FoundDisk> = left.iter().copied().filter(|disk| rule(disk)).collect();
        if !kept.is_empty() && kept.len() < left.len() {
            left = kept;
            why.push(reason);
        }
    }
    let taken = left.iter().copied().min_by(|a, b| a.place.cmp(&b.place))?;
    if left.len() > 1 {
        why.push("they differ only in where they are attached");
    }
    let mut notes = Vec::new();
    if let Some(guid) = origin.disk.filter(|guid| seen.iter().all(|disk| disk.guid != *guid)) {
        notes.push(format!("no disk with slots has the GUID {guid} that qstage.disk names"));
    }
    if seen.len() > 1 {
        let list: Vec<String> = seen.iter().map(|disk| name(&disk.path)).collect();
        let (list, path) = (list.join(", "), name(&taken.path));
        notes.push(format!("{list} all hold slots; {path} is taken: {}", why.join(", ")));
    }
    for other in seen.iter().filter(|other| other.path != taken.path) {
        if other.slots.iter().any(|guid| taken.slots.contains(guid)) {
            notes.push(format!(
                "{} has slots with the same PARTUUID as {}, a copy: mount by the node, not by PARTUUID",
                name(&other.path),
                name(&taken.path)
            ));
        }
    }
    Some((taken, notes))
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guid(n: u8) -> Guid {
        Guid([n; 16])
    }

    /// A disk: its number determines path, GUID and those of its partitions (number + 1 is its boot partition).
    fn disk(n: u8, slots: u8, is_removable: bool) -> FoundDisk {
        let slots: Vec<Guid> = (0..slots).map(|slot| guid(n + 2 + slot)).collect();
        FoundDisk {
            path: format!("/dev/{n}").into(),
            guid: guid(n),
            partitions: [vec![guid(n + 1)], slots.clone()].concat(),
            slots,
            is_removable,
            place: format!("/sys/{n}").into(),
        }
    }

    #[test]
    fn the_disk_that_the_machine_booted_from_is_taken() {
        let origin = |loaded: &[u8], disk: Option<u8>| BootOrigin {
            loaded_from: loaded.iter().map(|n| guid(*n)).collect(),
            disk: disk.map(guid),
        };
        let (stick, inner, other) = (disk(10, 2, true), disk(20, 2, false), disk(30, 2, false));
        let (half, stick2) = (disk(40, 1, false), disk(50, 2, true));
        let nothing = origin(&[], None);
        let cases = [
            (vec![&inner], &nothing, 20, 0),
            (vec![&stick], &nothing, 10, 0),
            // A stick never wins by its name, not even over half of a pair.
            (vec![&stick, &inner], &nothing, 20, 1),
            (vec![&stick, &half], &nothing, 40, 1),
            (vec![&half, &other], &nothing, 30, 1),
            // No difference between them: always the same one, whatever the order.
            (vec![&other, &inner], &nothing, 20, 1),
            (vec![&stick2, &stick], &nothing, 10, 1),
            (vec![&inner, &other], &origin(&[31], None), 30, 1),
            (vec![&inner, &other], &origin(&[99, 22], Some(30)), 20, 1),
            (vec![&inner, &other], &origin(&[99], Some(30)), 30, 1),
            (vec![&inner, &stick], &origin(&[11], None), 10, 1),
            // The disk was replaced: it boots, and that is reported.
            (vec![&inner], &origin(&[], Some(99)), 20, 1),
            (vec![&inner, &stick], &origin(&[], Some(99)), 20, 2),
        ];
        for (seen, origin, expected, notes) in cases {
            let seen: Vec<FoundDisk> = seen.into_iter().cloned().collect();
            let (taken, found) = decide(&seen, origin).unwrap();
            assert_eq!((taken.guid, found.len()), (guid(expected), notes), "{seen:?} {origin:?} {found:?}");
        }
        assert!(decide(&[], &nothing).is_none());
    }

    /// What a copy has in common with the original does not identify either.
    #[test]
    fn a_copy_on_a_stick_is_not_taken_but_reported() {
        let inner = disk(20, 2, false);
        let copy = FoundDisk {
            path: "/dev/copy".into(),
            is_removable: true,
            place: "/sys/1".into(),
            ..inner.clone()
        };
        for disk in [None, Some(guid(20))] {
            let origin = BootOrigin { loaded_from: vec![guid(21)], disk };
            let both = [copy.clone(), inner.clone()];
            let (taken, found) = decide(&both, &origin).unwrap();
            assert_eq!(taken.path, inner.path);
            assert!(found[0].contains("/dev/20 is taken: it is not removable"), "{found:?}");
            assert!(found[1].contains("/dev/copy has slots with the same PARTUUID as /dev/20"), "{found:?}");
        }
    }
}
