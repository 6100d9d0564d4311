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
    let installed = of(slots, Group::Platform).into_iter().find(|slot| slot.booted || slot.boots_next);
    if let (Some(product), Some(theirs)) =
        (&settings.product, installed.and_then(|slot| slot.product.as_ref()))
        && product != theirs
    {
        let message = format!(
            "'product' is '{product}', the installed platform is for '{theirs}': its next release is refused"
        );
        let remedy =
            "correct 'product', or take it out: the default is the product of the installed platform";
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

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;
    use crate::config::Config;
    use crate::state::{KnownBy, RunningSlot, Runs};
    use crate::units::Slot;

    const SIZE: u64 = 1 << 30;

    fn slot(group: Group, slot: Slot) -> SlotReport {
        SlotReport {
            group,
            slot,
            partition: 1,
            partuuid: String::new(),
            size: SIZE,
            state: SlotState::Good,
            booted: (group, slot) == (Group::Platform, Slot::A),
            boots_next: slot == Slot::A,
            reason: None,
            version: Some("1.0".into()),
            unsigned: false,
            product: Some("demo".into()),
            created: None,
            blake3: None,
            manifest: None,
            firmware: Vec::new(),
            priority: 1,
            tries: 0,
            successful: true,
            legacy_bootable: false,
            boot_entry: None,
        }
    }

    /// A disk without a fault: two slots of each group, as large as each other, both good.
    fn sound() -> SlotsReport {
        let runs = || RunningSlot::Known(Slot::A, KnownBy::Kernel);
        SlotsReport {
            remedy: crate::error::Remedy::Prepare,
            disk: "/dev/x".into(),
            boot_flag: BootFlag::Priority,
            table: "equal".into(),
            switch_method: "by second array".into(),
            boot_before: Vec::new(),
            booted_unknown: None,
            runs: Runs { platform: runs(), software: runs() },
            slots: Group::BOTH
                .into_iter()
                .flat_map(|group| Slot::BOTH.map(|found| slot(group, found)))
                .collect(),
        }
    }

    /// What is not good about a disk with a configuration: severity, message and remedy in one line each.
    fn found(slots: SlotsReport, config: &str) -> Vec<String> {
        let settings = toml::from_str::<Config>(config).unwrap().into_settings();
        let content = DiskContent {
            is_image: false,
            slots: Ok(slots),
            status: Ok(Status::idle()),
            history: Vec::new(),
            ends: Vec::new(),
        };
        let all = content.findings(&settings).into_iter().filter(|one| one.verdict != Severity::Good);
        all.map(|one| format!("{:?}: {}; {}", one.verdict, one.message, one.remedy.unwrap())).collect()
    }

    type Fault = fn(&mut SlotsReport);

    #[test]
    fn each_fault_of_the_layout_is_named_with_its_remedy() {
        const CONTAINER: &str = "[container]\ncommand = [\"/app\"]\n";
        assert_eq!(found(sound(), CONTAINER), [""; 0]);
        let faults: [(&str, Fault, &str, &[&str]); 12] = [
            (
                "another product",
                |_| {},
                "product = \"other\"\n",
                &["Warning: 'product' is 'other', the installed platform is for 'demo'", "or take it out"],
            ),
            (
                "no room for a second array",
                |disk| disk.switch_method = "in place".into(),
                "",
                &["Warning: a switch is written in place: ", "leave 1 MiB free before the first partition"],
            ),
            (
                "in place, as configured",
                |disk| disk.switch_method = "in place".into(),
                "table = \"in-place\"\n",
                &[],
            ),
            (
                "unequal platform slots",
                |disk| disk.slots[1].size = SIZE / 2,
                "",
                &["Warning: platform_a has 1073741824 bytes, platform_b has 536870912", "make both as large"],
            ),
            (
                "unequal software slots",
                |disk| disk.slots[2].size = 4096,
                "",
                &["Warning: software_a has 4096 bytes, software_b has 1073741824", "make both as large"],
            ),
            (
                "no software slots",
                |disk| disk.slots.truncate(2),
                CONTAINER,
                &["Problem: [container] is configured, but the disk has no two partitions", "make them, "],
            ),
            (
                "one software slot",
                |disk| disk.slots.truncate(3),
                CONTAINER,
                &["Problem: [container] is configured", "or take [container] out"],
            ),
            ("no software slots and no container", |disk| disk.slots.truncate(2), "", &[]),
            (
                "torn software",
                |disk| disk.slots[3].state = SlotState::Torn,
                "",
                &["Warning: software_b was not prepared to the end; ", "'qstage prepare' the same bundle"],
            ),
            (
                "a platform slot that is missing",
                |disk| drop(disk.slots.remove(1)),
                "",
                &["Warning: there is no fallback: the other platform slot is missing", "--slot both"],
            ),
            (
                "nothing boots",
                |disk| disk.slots.iter_mut().for_each(|slot| slot.boots_next = false),
                "",
                &["Problem: /dev/x: no platform slot is bootable", "qstage"],
            ),
            (
                "nothing says what runs",
                |disk| disk.booted_unknown = Some("no word of the kernel names it".into()),
                "",
                &["Problem: it is not known which slot runs: no word", "qstage.partuuid=GUID"],
            ),
        ];
        for (name, fault, config, parts) in faults {
            let mut disk = sound();
            fault(&mut disk);
            let said = found(disk, config);
            assert_eq!(said.len(), usize::from(!parts.is_empty()), "{name}: {said:#?}");
            for part in parts {
                assert!(said[0].contains(part), "{name}: no '{part}': {said:?}");
            }
        }
    }

    /// A torn platform slot is no fallback either, and what boots before the slots is named.
    #[test]
    fn a_torn_platform_and_a_foreign_boot_entry_are_named() {
        let mut disk = sound();
        disk.slots[1].state = SlotState::Torn;
        (disk.boot_flag, disk.boot_before) = (BootFlag::Efi, vec!["Boot0003".into()]);
        let said = found(disk, "boot_flag = \"efi\"\n");
        assert_eq!(said.len(), 3, "{said:#?}");
        assert!(said[0].contains("platform_b was not prepared to the end"), "{said:?}");
        assert!(said[1].contains("the other platform slot is torn"), "{said:?}");
        assert!(said[2].contains("Boot0003 before the slots; move these entries"), "{said:?}");
    }
}
