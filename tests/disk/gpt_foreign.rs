//! Tables and disks made by other tools: without a backup, with the backup of another table, with boot loaders outside of
//! partitions, made for other disks. On such disks the engine once failed: a repair overwrote a boot loader in the unused end
//! of the entry array, and a medium's old backup replaced the table of the image that was written over it.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use crate::harness::tables;

use std::collections::BTreeMap;

use qstage::commit;
use qstage::gpt::{Copy, CopyState, Method};
use qstage::units::Slot;
use tables::cuts::{Cut, NEW, OLD, bad_states, both_to, each_state, lock, roomy, switch};
use tables::{A_GOOD, Op, Reader, Spec, selection};

/// The spec's image with another alternate LBA in the primary.
fn with_alternate(spec: &Spec, alternate: u64) -> Vec<u8> {
    let mut image = spec.image();
    let block = spec.block as usize;
    image[block + 32..block + 40].copy_from_slice(&alternate.to_le_bytes());
    image[block + 16..block + 20].fill(0);
    let crc = crc32fast::hash(&image[block..block + 92]);
    image[block + 16..block + 20].copy_from_slice(&crc.to_le_bytes());
    image
}

/// Some image tools write alternate LBA 1, and media are smaller than the image was made for: the primary rules, has no
/// backup, and is switched by its one sector all the same. What lies where a backup could be is not touched.
#[test]
fn a_primary_without_backup_works_and_its_commit_is_one_sector_all_the_same() {
    for (name, spec) in roomy() {
        for alternate in [0, 1, 2, spec.blocks, u64::MAX] {
            let mut image = with_alternate(&spec, alternate);
            let rear = (spec.blocks - 1 - spec.array_blocks()) as usize * spec.block as usize;
            image[rear..].fill(0x77);
            let (after, ops, method) = switch(&spec, &image, Slot::B);
            assert_eq!(method, Method::SecondArray, "{name}");
            assert!(after[rear..] == image[rear..], "{name}: behind the usable area");
            let readers = [Reader::Fallback, Reader::Strict, Reader::Lenient, Reader::Blind];
            assert!(
                readers.iter().all(|reader| selection(&after, spec.block, *reader) == Some(NEW)),
                "{name}"
            );
            let (_, bad) = bad_whole_states(&spec, &image, &ops);
            assert!(bad.values().all(|&n| n == 0), "{name}, alternate {alternate}: {bad:?}");
            let device = spec.device(image.clone());
            let loaded = commit::load(&device, "disk").unwrap();
            assert_eq!(loaded.state(), CopyState::NoBackup);
            assert!(loaded.describe().contains("qstage repair --from primary"), "{}", loaded.describe());
            assert!(commit::repair(&device, &lock(), &loaded).unwrap().is_none());
            // By order the backup is made, at the end of the disk, and the primary names it.
            commit::restore(&device, &lock(), &loaded, Copy::Primary).unwrap();
            assert!(device.memory.snapshot() == spec.image(), "{name}, alternate {alternate}");
        }
    }
}

/// As [`bad_states`] for a table without backup: a torn sector is beyond what it promises.
fn bad_whole_states(spec: &Spec, image: &[u8], ops: &[Op]) -> (usize, BTreeMap<&'static str, usize>) {
    let mut bad = BTreeMap::from([("strict", 0), ("lenient", 0)]);
    let states = each_state(image, spec.block as usize, ops, |state, cut| {
        for (name, reader) in [("strict", Reader::Strict), ("lenient", Reader::Lenient)] {
            let found = [Some(OLD), Some(NEW)].contains(&selection(state, spec.block, reader));
            *bad.get_mut(name).unwrap() += usize::from(cut == Cut::Whole && !found);
        }
    });
    (states, bad)
}

/// The medium of a former life keeps its backup at the end; the new image did not reach so far.
#[test]
fn the_backup_of_another_disk_never_speaks() {
    let spec = Spec::slots(512, 512, 128, 16);
    let mut stranger = spec.clone();
    stranger.parts.iter_mut().for_each(|part| part.4 = if part.1.ends_with("_b") { A_GOOD } else { 0 });
    let rear = (spec.blocks - 1 - spec.array_blocks()) as usize * 512;
    // A disk GUID of its own.
    let foreign: Vec<u8> = {
        let mut bytes = stranger.image()[rear..].to_vec();
        let header = bytes.len() - 512;
        bytes[header + 56..header + 72].fill(0x99);
        bytes[header + 16..header + 20].fill(0);
        let crc = crc32fast::hash(&bytes[header..header + 92]);
        bytes[header + 16..header + 20].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    for alternate in [1, spec.blocks - 1] {
        let mut image = with_alternate(&spec, alternate);
        image[rear..].copy_from_slice(&foreign);
        let device = spec.device(image.clone());
        let loaded = commit::load(&device, "disk").unwrap();
        assert_eq!(loaded.state(), CopyState::NoBackup, "alternate {alternate}");
        assert!(commit::repair(&device, &lock(), &loaded).unwrap().is_none());
        let (after, _, _) = switch(&spec, &image, Slot::B);
        assert!(after[rear..] == image[rear..], "alternate {alternate}");
        assert_eq!(selection(&after, 512, Reader::Strict), Some(NEW));
        // The header lost, with the array gone too: the foreign table is read, and nothing is written on its evidence.
        image[512..128 * 512].fill(0);
        let device = spec.device(image);
        let loaded = commit::load(&device, "disk").unwrap();
        assert_eq!(loaded.state(), CopyState::Doubtful);
        let refusals = [
            commit::repair(&device, &lock(), &loaded).unwrap_err(),
            commit::switch(&device, &lock(), &loaded, &both_to(loaded.table().unwrap(), Slot::A))
                .unwrap_err(),
        ];
        assert!(refusals.iter().all(|error| error.code() == "UPGRADE_ERROR_TABLE_DOUBTFUL"));
        assert!(refusals[0].to_string().contains("qstage repair --from backup"));
        assert!(device.ops().is_empty(), "a refusal has written nothing");
        commit::restore(&device, &lock(), &loaded, Copy::Backup).unwrap();
        assert_eq!(commit::load(&device, "disk").unwrap().state(), CopyState::Equal);
    }
}

/// What shows that a lone backup is this disk's: the GUID in what is left of the header, a block of the array.
#[test]
fn a_lone_backup_needs_evidence() {
    let spec = Spec::slots(512, 512, 128, 16);
    let state = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut image = spec.image();
        edit(&mut image);
        commit::load(&spec.device(image), "disk").unwrap().state()
    };
    assert_eq!(state(&|image| image[512 + 20] ^= 1), CopyState::BackupOnly, "a flipped bit");
    assert_eq!(state(&|image| image[512..1024].fill(0)), CopyState::BackupOnly, "the array is there");
    let lost = |image: &mut Vec<u8>| image[512..128 * 512].fill(0);
    assert_eq!(state(&lost), CopyState::Doubtful);
    let other_guid = |image: &mut Vec<u8>| {
        lost(image);
        image[512..520].copy_from_slice(b"EFI PART");
        image[568..584].fill(0x11);
    };
    assert_eq!(state(&other_guid), CopyState::Doubtful);
    // One block of the array, moved: still not foreign.
    let moved = |image: &mut Vec<u8>| {
        let block = image[1024..1536].to_vec();
        lost(image);
        image[90 * 512..91 * 512].copy_from_slice(&block);
    };
    assert_eq!(state(&moved), CopyState::BackupOnly);
    // A whole header whose array is torn may name a place without a backup: the last block has it.
    let mut elsewhere = with_alternate(&spec, 300);
    elsewhere[1024] ^= 1;
    assert_eq!(commit::load(&spec.device(elsewhere), "disk").unwrap().state(), CopyState::BackupOnly);
    let ignored = |image: &mut Vec<u8>| image[512..520].copy_from_slice(b"IGNOREME");
    assert_eq!(state(&ignored), CopyState::Ignored);
    let mut image = spec.image();
    ignored(&mut image);
    let device = spec.device(image);
    let loaded = commit::load(&device, "disk").unwrap();
    let refusal = commit::repair(&device, &lock(), &loaded).unwrap_err();
    assert_eq!(refusal.code(), "UPGRADE_ERROR_TABLE_IGNORED");
    assert!(device.ops().is_empty());
}

/// An image of a larger disk, or of one with other sectors: said as what it is.
#[test]
fn tables_for_other_disks_are_refused_by_what_they_are() {
    let spec = Spec::slots(512, 512, 128, 16);
    let mut image = Spec { blocks: 900, ..spec.clone() }.image();
    image.truncate(512 * 512);
    let device = spec.device(image);
    let loaded = commit::load(&device, "disk").unwrap();
    let refusal =
        commit::switch(&device, &lock(), &loaded, &both_to(loaded.table().unwrap(), Slot::B)).unwrap_err();
    assert_eq!(refusal.code(), "UPGRADE_ERROR_TABLE_LARGER_DISK");
    assert!(refusal.to_string().contains("sgdisk -e"), "{refusal}");
    assert!(device.ops().is_empty());
    for (made_for, here) in [(512u32, 4096u32), (4096, 512)] {
        let image = Spec::slots(made_for, 512, 128, 16).image();
        let device = Spec { block: here, physical: here, ..spec.clone() }.device(image);
        let refusal = commit::load(&device, "disk").unwrap_err();
        assert_eq!(refusal.code(), "UPGRADE_ERROR_TABLE_SECTOR_SIZE");
        assert!(refusal.to_string().contains(&format!("made for {made_for}")), "{refusal}");
    }
}

/// A boot loader in the unused end of the entry array: the array's CRC is wrong then, and repair must not put the array
/// back over the loader.
#[test]
fn a_loader_in_the_array_survives_repair_and_every_switch() {
    let spec = Spec::slots(512, 512, 128, 16);
    for from in [16usize, 20, 33] {
        let mut image = spec.image();
        image[from * 512..34 * 512].fill(0x5b);
        let device = spec.device(image.clone());
        let loaded = commit::load(&device, "disk").unwrap();
        assert_eq!(loaded.state(), CopyState::BackupOnly);
        commit::repair(&device, &lock(), &loaded).unwrap().unwrap();
        let mut repaired = device.memory.snapshot();
        for slot in [Slot::B, Slot::A] {
            let (after, ops, method) = switch(&spec, &repaired, slot);
            assert_eq!(method, Method::SecondArray);
            let (_, bad) = bad_states(&Spec { entries_lba: 96, ..spec.clone() }, &repaired, &ops);
            assert!(bad.values().all(|&n| n == 0), "{bad:?}");
            repaired = after;
        }
        assert!(repaired[from * 512..34 * 512].iter().all(|byte| *byte == 0x5b), "LBA {from}");
        // No room elsewhere: nothing is written.
        image[512..1024].fill(0);
        image[34 * 512..128 * 512].fill(0x5b);
        let device = spec.device(image);
        let loaded = commit::load(&device, "disk").unwrap();
        let refusal = commit::repair(&device, &lock(), &loaded).unwrap_err();
        assert_eq!(refusal.code(), "UPGRADE_ERROR_TABLE_UNSAFE", "{refusal}");
        assert!(device.ops().is_empty());
    }
}

/// What version 0.1 left: the array at one of its two places, former copies at the others.
#[test]
fn an_array_that_was_left_elsewhere_comes_home() {
    for (name, spec) in roomy() {
        let unit = u64::from(4096 / spec.block);
        let len = spec.array_blocks().next_multiple_of(unit);
        let first = 2u64.next_multiple_of(unit);
        for named in [first, first + len].into_iter().filter(|named| *named != 2) {
            let mut image = spec.image();
            let block = spec.block as usize;
            let array = image[2 * block..][..spec.array_blocks() as usize * block].to_vec();
            for place in [first + len, first] {
                // The one in use was written last.
                if place <= named {
                    image[place as usize * block..][..array.len()].copy_from_slice(&array);
                }
            }
            image[named as usize * block..][..array.len()].copy_from_slice(&array);
            image[block + 72..block + 80].copy_from_slice(&named.to_le_bytes());
            image[block + 16..block + 20].fill(0);
            let crc = crc32fast::hash(&image[block..block + 92]);
            image[block + 16..block + 20].copy_from_slice(&crc.to_le_bytes());
            let (after, ops, _) = switch(&spec, &image, Slot::B);
            let (_, bad) = bad_states(&Spec { entries_lba: named, ..spec.clone() }, &image, &ops);
            assert!(bad.iter().all(|(what, n)| *n == 0 || *what == "foreign"), "{name}: {bad:?}");
            let wanted = switch(&spec, &spec.image(), Slot::B).0;
            assert!(after == wanted, "{name}, from LBA {named}: as if it had always lain at home");
        }
    }
}

/// `sgdisk -j` moves the array for a loader and leaves a copy where it was: that is no home to come back to.
#[test]
fn an_array_that_its_maker_moved_stays_there() {
    let spec = Spec { entries_lba: 64, first_usable: 96, ..Spec::slots(512, 1024, 512, 16) };
    let mut image = spec.image();
    let array = image[64 * 512..96 * 512].to_vec();
    image[2 * 512..34 * 512].copy_from_slice(&array);
    for slot in [Slot::B, Slot::A] {
        let (after, ops, _) = switch(&spec, &image, slot);
        assert_eq!(u64::from_le_bytes(after[512 + 72..512 + 80].try_into().unwrap()), 64);
        assert!(after[2 * 512..34 * 512] == array, "what sgdisk left is none of our business");
        let mut cut = spec.image();
        // Every cut comes home to 64 as well.
        each_state(&image, 512, &ops, |state, how| {
            if how == Cut::Whole {
                cut.copy_from_slice(state);
                let (end, _, _) = switch(&spec, &cut, Slot::B);
                let (end, _, _) = switch(&spec, &end, Slot::A);
                assert_eq!(u64::from_le_bytes(end[512 + 72..512 + 80].try_into().unwrap()), 64);
            }
        });
        image = after;
    }
}

/// By order a backup goes where the primary says, but not over a partition, nor where there is no room for it.
#[test]
fn a_backup_place_that_is_taken_is_refused() {
    let mut spec = Spec::slots(512, 512, 128, 16);
    // A partition that reaches beyond the usable area, over the place of the backup array.
    spec.parts.push((9, "long", 300, 490, 0));
    let mut image = spec.image();
    image[511 * 512..].fill(0);
    let device = spec.device(image);
    let loaded = commit::load(&device, "disk").unwrap();
    assert_eq!(loaded.state(), CopyState::NoBackup);
    let refusal = commit::restore(&device, &lock(), &loaded, Copy::Primary).unwrap_err();
    assert_eq!(refusal.code(), "UPGRADE_ERROR_TABLE_OCCUPIED", "{refusal}");
    assert!(refusal.to_string().contains("LBA 479"), "{refusal}");
    assert!(device.ops().is_empty());
}
