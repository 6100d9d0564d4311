//! The running slot as the kernel command line names it.

use super::Facts;
use super::layers::Layers;
use crate::device::DeviceNumber;
use crate::host::cmdline;
use crate::host::kernel::Node;

/// Words that name the partition of the root.
const ROOT: &[&str] = &["root", "systemd.verity_root_data"];
/// Words that name the partition of `/usr`: systemd, Container Linux and its heirs.
const USR: &[&str] = &["mount.usr", "verity.usr", "systemd.verity_usr_data", "usr"];
/// Root hashes of verity: the GUID of the data partition is their first half (systemd-veritysetup-generator(8)).
const ROOT_HASH: &[&str] = &["roothash"];
const USR_HASH: &[&str] = &["usrhash", "mount.usrhash"];
/// Device-mapper tables that the kernel itself sets up: ChromeOS, Bottlerocket (admin-guide/device-mapper/dm-init.rst).
const TABLES: &[&str] = &["dm-mod.create", "dm"];

/// The slots that the command line names, each with its word. If the root (or `/usr`) lies on another device, its words
/// were evidently not followed, and are left out.
pub(super) fn named(
    facts: &Facts,
    line: &str,
    root_elsewhere: bool,
    usr_elsewhere: bool,
) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut ask = |keys: &[&str], index: &dyn Fn(&str) -> Option<usize>| {
        for key in keys {
            let value = cmdline::last(line, key);
            found.extend(value.and_then(index).map(|index| (index, (*key).to_owned())));
        }
    };
    if !root_elsewhere {
        ask(ROOT, &|value| by_name(facts, value));
        ask(ROOT_HASH, &|value| by_hash(facts, value));
        ask(TABLES, &|value| by_table(facts, value));
    }
    if !usr_elsewhere {
        ask(USR, &|value| by_name(facts, value));
        ask(USR_HASH, &|value| by_hash(facts, value));
    }
    found
}

/// The slot with this PARTUUID; `None` if a partition of another disk has it too.
pub(super) fn by_guid(facts: &Facts, text: &str) -> Option<usize> {
    let guid = text.parse().ok()?;
    let index = only(facts.candidates.iter().enumerate().filter(|(_, slot)| slot.guid == guid))?.0;
    alone(facts, "PARTUUID", "disk/by-partuuid", text).then_some(index)
}

/// The slot that a word names, in the syntax of `root=` (block/early-lookup.c of the kernel) and of udev's links. Labels and
/// UUIDs of file systems do not name a slot: both slots may hold the same image.
fn by_name(facts: &Facts, word: &str) -> Option<usize> {
    let link = |dir: &str| word.strip_prefix("/dev/disk/").and_then(|rest| rest.strip_prefix(dir));
    if let Some(text) = word.strip_prefix("PARTUUID=").or_else(|| link("by-partuuid/")) {
        match text.split_once("/PARTNROFF=") {
            None => by_guid(facts, text),
            Some((text, offset)) => by_offset(facts, text, offset.parse().ok()?),
        }
    } else if let Some(label) = word.strip_prefix("PARTLABEL=").or_else(|| link("by-partlabel/")) {
        let index = only(facts.candidates.iter().enumerate().filter(|(_, slot)| slot.name == label))?.0;
        // A name is at best unique on one disk; no other disk may have a partition of that name.
        alone(facts, "PARTNAME", "disk/by-partlabel", label).then_some(index)
    } else if link("by-uuid/").or_else(|| link("by-label/")).is_some() {
        None
    } else if let Ok(number) = word.parse::<DeviceNumber>() {
        by_device(facts, number)
    } else if word.starts_with('/') {
        by_device(facts, facts.kernel.number_of(word.as_ref())?)
    } else {
        None
    }
}

/// The slot below a device: a partition, or a mapping over it.
fn by_device(facts: &Facts, number: DeviceNumber) -> Option<usize> {
    only(Layers::below_device(facts, number).slots(facts).into_iter())
}

/// The slot whose partition number is `offset` after that of the PARTUUID (`root=PARTUUID=…/PARTNROFF=`).
fn by_offset(facts: &Facts, text: &str, offset: i64) -> Option<usize> {
    let guid = text.parse().ok()?;
    let number = only(facts.table.iter().filter(|partition| partition.guid == guid))?.number;
    let wanted = u32::try_from(i64::from(number).checked_add(offset)?).ok()?;
    let index = facts.candidates.iter().position(|slot| slot.number == wanted)?;
    alone(facts, "PARTUUID", "disk/by-partuuid", text).then_some(index)
}

fn by_hash(facts: &Facts, hash: &str) -> Option<usize> {
    let half = hash.get(..32).filter(|half| half.bytes().all(|c| c.is_ascii_hexdigit()))?;
    let group = |from: usize, to: usize| &half[from..to];
    let text =
        [group(0, 8), group(8, 12), group(12, 16), group(16, 20), group(20, 32)].join("-").to_lowercase();
    by_guid(facts, &text)
}

/// The only slot that a device-mapper table names, once or more; `None` if it names both or none.
fn by_table(facts: &Facts, table: &str) -> Option<usize> {
    let words = table.split([' ', ',', ';']);
    let values =
        words.map(|word| word.split_once("=PARTUUID=").map_or(word, |(key, _)| &word[key.len() + 1..]));
    let mut found: Vec<usize> = values.filter_map(|value| by_name(facts, value)).collect();
    found.dedup();
    only(found.into_iter())
}

/// Whether no partition of another disk carries the value: a cloned disk has the same names and GUIDs. Kernels before 6.10
/// do not report PARTUUID. Then udev's link is used, which leads to one of several, and the tables of the disks that have
/// partitions of the same names.
fn alone(facts: &Facts, key: &str, links: &str, wanted: &str) -> bool {
    let own = partitions(facts);
    let ours = |number: &DeviceNumber| own.iter().any(|node| node.number == *number);
    let link = facts.kernel.dev.join(links).join(wanted.to_lowercase());
    let linked = link.exists().then(|| facts.kernel.number_of(&link)).flatten();
    facts.kernel.with_uevent(key, wanted).iter().all(ours)
        && linked.iter().all(ours)
        && (key != "PARTUUID" || facts.kernel.reports_partuuid() || !has_copy(facts, wanted))
}

/// Whether another disk has, or may have, a partition with this PARTUUID; an unreadable disk counts as one that has.
fn has_copy(facts: &Facts, text: &str) -> bool {
    let Ok(guid) = text.parse() else { return false };
    let own = facts.table.iter().filter(|partition| partition.guid == guid);
    let others =
        own.flat_map(|partition| facts.kernel.others_with_partition(&partition.name, facts.disk.number));
    others.into_iter().any(|disk| facts.ask.partuuids(&disk.path).map_or(true, |found| found.contains(&guid)))
}

fn partitions(facts: &Facts) -> Vec<Node> {
    let mut own = facts.kernel.partitions(facts.disk.number).unwrap_or_default();
    own.extend(facts.kernel.mapped_partitions(facts.disk.number).into_iter().map(|(_, node)| node));
    own
}

/// The only item; `None` if there is none, or more than one.
fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    items.next().filter(|_| items.next().is_none())
}
