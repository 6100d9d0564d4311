//! Checks of the disk: its table, its slots, what runs and what boots next.

use std::path::Path;

use super::Finding;
use crate::boot::BootFlag;
use crate::config::Settings;
use crate::device::{AlignedBuf, Mode};
use crate::engine::Engine;
use crate::error::Result;
use crate::host::journal::{Event, Journal};
use crate::host::{LocalDisk, Machine};
use crate::state::{SlotReport, SlotState, SlotsReport, Status};
use crate::units::{ByteOffset, Group};

/// Number of bytes of each end of the disk in the archive: the table and its backup, nothing of a partition.
const END: u64 = 17 << 10;

/// Content of a disk, as far as it could be read.
pub(crate) struct DiskContent {
    /// Whether it is an image, or the disk of another machine.
    pub(crate) is_image: bool,
    /// Its slots.
    pub(crate) slots: Result<SlotsReport>,
    /// The state of the upgrade.
    pub(crate) status: Result<Status>,
    /// The events of its journal.
    pub(crate) history: Vec<Event>,
    /// The first and the last bytes: MBR, table, backup of the table.
    pub(crate) ends: Vec<(&'static str, Vec<u8>)>,
}

impl DiskContent {
    /// Reads a disk.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(crate) fn look(path: &Path, settings: &Settings, journal: &dyn Journal) -> Result<Self> {
        let disk = LocalDisk::open(path, Mode::Read, settings.sector_size)?
            .with_efivars(settings.efivars.clone())
            .assuming_unused(settings.assume_unused);
        let engine = Engine::new(&disk, journal, settings.policy());
        let (slots, status) = (engine.slots(), engine.status());
        let history = engine.history().unwrap_or_default();
        Ok(Self { is_image: disk.is_image(), slots, status, history, ends: ends(&disk) })
    }

    /// The findings.
    pub(super) fn findings(&self, settings: &Settings) -> Vec<Finding> {
        let slots = match &self.slots {
            Ok(slots) => slots,
            Err(error) => return vec![Finding::of("disk", error)],
        };
        let mut findings = vec![Finding::good(
            "disk",
            format!("{}, copies of the partition table: {}", slots.disk, slots.table),
        )];
        findings.extend(layout(slots, settings));
        findings.extend(contents(slots));
        findings.extend(running(slots));
        if let Ok(status) = &self.status
            && status.is_blocked
        {
            let message = format!("no upgrade may begin now: {}", status.blocked_reason);
            findings.push(Finding::warning("disk", message, "see 'qstage status --human'"));
        }
        findings
    }
}

fn ends(disk: &LocalDisk) -> Vec<(&'static str, Vec<u8>)> {
    let disk = disk.disk();
    let len = END.min(disk.len()) / 4096 * 4096;
    let read = |at: u64| {
        let mut buf = AlignedBuf::zeroed(usize::try_from(len).ok()?);
        disk.read_at(&mut buf, ByteOffset(at)).ok()?;
        Some(buf.to_vec())
    };
    let last = disk.len().saturating_sub(len) / 4096 * 4096;
    [("first", 0), ("last", last)].into_iter().filter_map(|(name, at)| Some((name, read(at)?))).collect()
}

fn of(slots: &SlotsReport, group: Group) -> Vec<&SlotReport> {
    slots.slots.iter().filter(|slot| slot.group == group).collect()
}

fn name(slot: &SlotReport) -> &'static str {
    slot.group.partition_name(slot.slot)
}

fn layout(slots: &SlotsReport, settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if slots.switch_method.contains("in place") && settings.table != crate::gpt::TableMethod::InPlace {
        let message = format!(
            "a switch is written {}: a power cut in it can leave a table that some boot loaders do not read",
            slots.switch_method
        );
        let remedy =
            "leave 1 MiB free before the first partition ('qstage init' does), or say 'table = \"in-place\"'";
        findings.push(Finding::warning("disk", message, remedy));
    }
    for group in Group::BOTH {
        let pair = of(slots, group);
        if let [a, b] = pair[..]
            && a.size != b.size
        {
            let message = format!(
                "{} has {} bytes, {} has {}: what fits one may not fit the other",
                name(a),
                a.size,
                name(b),
                b.size
            );
            findings.push(Finding::warning("disk", message, "make both as large as the larger one"));
        }
        if let (Group::Software, 0 | 1, Some(_)) = (group, pair.len(), &settings.container) {
            let message =
                "[container] is configured, but the disk has no two partitions software_a and software_b";
            findings.push(Finding::problem(
                "disk",
                message,
                "make them, of the size of the software image, or take [container] out",
            ));
        }
    }
    findings
}

fn contents(slots: &SlotsReport) -> Vec<Finding> {
    let mut findings = Vec::new();
    for slot in &slots.slots {
        if slot.state == SlotState::Torn {
            let message = format!("{} was not prepared to the end", name(slot));
            findings.push(Finding::warning(
                "disk",
                message,
                "'qstage prepare' the same bundle again; it goes on",
            ));
        }
    }
    let platform = of(slots, Group::Platform);
    let selected = platform.iter().find(|slot| slot.boots_next);
    match selected {
        None => {
            let disk = slots.disk.clone();
            findings.push(Finding::of("boot", &crate::error::Error::NothingBoots { disk }));
        }
        Some(next) => {
            let (version, state) =
                (next.version.as_deref().unwrap_or("of unknown version"), next.state.word());
            findings.push(Finding::good("boot", format!("{} boots next: {version}, {state}", name(next))));
            let other = platform.iter().find(|slot| slot.slot != next.slot);
            let fallback = other.is_some_and(|other| other.state == SlotState::Good);
            if !fallback && next.state != SlotState::Trial {
                let found = other.map_or("missing", |other| other.state.word());
                let message = format!("there is no fallback: the other platform slot is {found}");
                let remedy =
                    "the next upgrade makes one; at the factory: 'qstage init --keep-table --slot both'";
                findings.push(Finding::warning("fallback", message, remedy));
            }
        }
    }
    findings
}

fn running(slots: &SlotsReport) -> Option<Finding> {
    if let Some(why) = &slots.booted_unknown {
        let remedy = "have the boot loader or the initramfs put qstage.partuuid=GUID of the slot on the kernel command line";
        let code = Some("UPGRADE_ERROR_BOOTED_UNKNOWN");
        let message = format!("it is not known which slot runs: {why}");
        return Some(Finding { code, ..Finding::problem("boot", message, remedy) });
    }
    let runs = slots.slots.iter().find(|slot| slot.booted)?;
    match (slots.boot_flag, &slots.boot_before[..]) {
        (BootFlag::Efi, [_, ..]) => Some(Finding::warning(
            "boot",
            format!("the firmware takes {} before the slots", slots.boot_before.join(", ")),
            "move these entries behind with efibootmgr -o, unless they are meant to come first",
        )),
        _ => Some(Finding::good("boot", format!("{} runs", name(runs)))),
    }
}
