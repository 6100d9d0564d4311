//! `qstage slots`.

use clap::Args;

use super::answers::look_within_limit;
use super::args::MachineArgs;
use super::machine::{Host, find_disk};
use super::output::{self, Format, Palette};
use super::table::{self, Cell};
use crate::boot::BootFlag;
use crate::error::Result;
use crate::state::{RunningSlot, SlotReport, SlotState, SlotsReport};
use crate::units::{Group, size};

/// Show the releases in the slots, which one runs and which boots next
#[derive(Debug, Args)]
pub(super) struct SlotsArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    machine: MachineArgs,
}

impl SlotsArgs {
    pub(super) fn run(&self) -> Result<()> {
        let mut settings = self.machine.settings()?;
        find_disk(&mut settings)?;
        let report = look_within_limit(&settings, |settings| {
            Host::open_to_look(settings)?.engine(settings.policy()).slots()
        })?;
        output::result(Format::object_if(self.json), &report, human)
    }
}

fn human(report: &SlotsReport, palette: Palette) -> String {
    let mut facts = vec![
        ("disk", report.disk.clone()),
        ("table", format!("copies: {}", report.table)),
        ("switch", report.switch_method.clone()),
    ];
    facts.extend(runs(report).map(|runs| ("runs", runs)));
    if !report.boot_before.is_empty() {
        facts.push(("before", format!("{} (the firmware takes it first)", report.boot_before.join(", "))));
    }
    let mut text = table::facts(&facts);
    text.push('\n');
    // Only the bits of the configured boot flag are shown; --json has all.
    let flags: &[&str] = match report.boot_flag {
        BootFlag::Priority => &[">PRIO", ">TRIES", "OK"],
        BootFlag::Legacy => &["BIT 2"],
        BootFlag::Efi => &["ENTRY", ">ORDER", "ONCE"],
    };
    let headings = [&["SLOT", ">PART", ">SIZE", "STATE", "VERSION", "BOOT"], flags].concat();
    let rows = report.slots.iter().map(|slot| row(slot, report.boot_flag)).collect();
    text += &table::render(&headings, rows, palette);
    // Sentences, which do not fit the table.
    let reasons = report.slots.iter().filter_map(|slot| Some((slot, slot.reason.as_ref()?)));
    for (i, (slot, reason)) in reasons.enumerate() {
        let gap = if i == 0 { "\n" } else { "" };
        text += &format!("{gap}{} {}: {reason}\n", slot.group, slot.slot);
    }
    text
}

/// What runs and by what that is known; `None` of a disk image, from which nothing runs.
fn runs(report: &SlotsReport) -> Option<String> {
    if let Some(why) = &report.booted_unknown {
        return Some(format!("unknown: {why}; --booted a or b says it"));
    }
    let says = |group: Group| match report.runs.of(group) {
        RunningSlot::Known(slot, by) => format!("{group} {slot}, {}", by.words()),
        RunningSlot::Unknown(why) => format!("{group} unknown: {why}"),
    };
    report.runs.platform.slot().filter(|_| !report.runs.is_image())?;
    let has_software = report.slots.iter().any(|slot| slot.group == Group::Software);
    let groups = Group::BOTH.into_iter().filter(|group| *group == Group::Platform || has_software);
    Some(groups.map(says).collect::<Vec<_>>().join("; "))
}

fn row(slot: &SlotReport, flag: BootFlag) -> Vec<Cell> {
    let boot = match (slot.booted, slot.boots_next) {
        (true, true) => "runs, next",
        (true, false) => "runs",
        (false, true) => "next",
        (false, false) => "-",
    };
    let yes = |bit: bool| if bit { "yes" } else { "no" };
    let mut row = vec![
        format!("{} {}", slot.group, slot.slot).into(),
        slot.partition.to_string().into(),
        size::human(slot.size).into(),
        state(slot.state),
        format!(
            "{}{}",
            slot.version.as_deref().unwrap_or("-"),
            if slot.unsigned { " (unsigned)" } else { "" }
        )
        .into(),
        boot.into(),
    ];
    match flag {
        BootFlag::Priority => {
            row.extend([
                slot.priority.to_string().into(),
                slot.tries.to_string().into(),
                yes(slot.successful).into(),
            ]);
        }
        BootFlag::Legacy => row.push(yes(slot.legacy_bootable).into()),
        BootFlag::Efi => row.extend(entry(slot).map(Cell::from)),
    }
    row
}

/// Name of the boot entry, its position in BootOrder, whether BootNext names it.
fn entry(slot: &SlotReport) -> [String; 3] {
    let Some(entry) = &slot.boot_entry else { return ["-"; 3].map(str::to_owned) };
    let off = if entry.active { "" } else { " (off)" };
    let place = entry.place.map_or_else(|| "-".to_owned(), |place| place.to_string());
    [format!("{}{off}", entry.name), place, if entry.next { "next" } else { "-" }.to_owned()]
}

fn state(state: SlotState) -> Cell {
    match state {
        SlotState::Good => Cell::painted("good", Palette::good),
        SlotState::Prepared => Cell::painted("prepared", Palette::warn),
        SlotState::Trial => Cell::painted("trial", Palette::warn),
        SlotState::Torn => Cell::painted("torn", Palette::bad),
        SlotState::Bad => Cell::painted("bad", Palette::bad),
        SlotState::Empty => "empty".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{KnownBy, Runs};
    use crate::units::Slot;

    fn slot(slot: Slot) -> SlotReport {
        SlotReport {
            group: Group::Platform,
            slot,
            partition: 1,
            partuuid: String::new(),
            size: 1 << 30,
            state: SlotState::Good,
            booted: true,
            boots_next: true,
            reason: None,
            version: Some("1.0".into()),
            unsigned: false,
            product: None,
            created: None,
            manifest: None,
            blake3: None,
            firmware: Vec::new(),
            priority: 15,
            tries: 0,
            successful: true,
            legacy_bootable: false,
            boot_entry: None,
        }
    }

    fn report(boot_flag: BootFlag) -> SlotsReport {
        let b = SlotReport {
            partition: 12,
            state: SlotState::Empty,
            booted: false,
            boots_next: false,
            version: None,
            priority: 0,
            successful: false,
            ..slot(Slot::B)
        };
        SlotsReport {
            remedy: crate::error::Remedy::Prepare,
            disk: "disk.img".into(),
            boot_flag,
            table: "equal".into(),
            switch_method: "second array".into(),
            boot_before: Vec::new(),
            booted_unknown: None,
            runs: Runs {
                platform: RunningSlot::Known(Slot::A, KnownBy::Kernel),
                software: RunningSlot::Unknown("no software slot is selected".into()),
            },
            slots: vec![slot(Slot::A), b],
        }
    }

    #[test]
    fn priority_flags() {
        assert_eq!(
            human(&report(BootFlag::Priority), Palette::PLAIN),
            "disk    disk.img\n\
             table   copies: equal\n\
             switch  second array\n\
             runs    platform a, by the kernel\n\
             \n\
             SLOT        PART     SIZE  STATE  VERSION  BOOT        PRIO  TRIES  OK\n\
             platform a     1  1.0 GiB  good   1.0      runs, next    15      0  yes\n\
             platform b    12  1.0 GiB  empty  -        -              0      0  no\n"
        );
    }

    #[test]
    fn reasons_stand_below_the_table() {
        let mut report = report(BootFlag::Priority);
        report.slots[1].reason = Some("its tries are used up".into());
        assert!(human(&report, Palette::PLAIN).ends_with("  no\n\nplatform b: its tries are used up\n"));
    }

    #[test]
    fn legacy_flag() {
        let text = human(&report(BootFlag::Legacy), Palette::PLAIN);
        assert!(text.contains("BOOT        BIT 2\n"), "{text}");
        assert!(!text.contains("PRIO"), "{text}");
    }

    #[test]
    fn efi_variables() {
        let entry = |name: &str, active, place, next| {
            let (name, description) = (name.to_owned(), String::new());
            Some(crate::state::BootEntry { name, description, file: None, active, place, next })
        };
        let mut report = report(BootFlag::Efi);
        report.boot_before = vec!["Boot0007 Network".to_owned()];
        report.slots[0].boot_entry = entry("Boot0001", true, Some(2), false);
        let text = human(&report, Palette::PLAIN);
        assert!(text.contains("before  Boot0007 Network (the firmware takes it first)"), "{text}");
        assert!(text.contains("runs, next  Boot0001      2  -\n"), "{text}");
        report.slots[1].boot_entry = entry("Boot0002", false, None, true);
        let text = human(&report, Palette::PLAIN);
        assert!(text.contains("Boot0002 (off)      -  next\n"), "{text}");
    }
}
