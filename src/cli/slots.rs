//! `qstage slots`.

use clap::Args;

use super::args::MachineArgs;
use super::machine::Host;
use super::output::{self, Format, Palette};
use super::size;
use super::table::{self, Cell};
use crate::boot::BootFlag;
use crate::error::Result;
use crate::state::{SlotReport, SlotState, SlotsReport};

/// Show what the slots hold, which one runs and which boots next
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
        let settings = self.machine.settings()?;
        let report = Host::open_to_look(&settings)?.engine(settings.policy()).slots()?;
        output::result(Format::object_if(self.json), &report, human)
    }
}

fn human(report: &SlotsReport, palette: Palette) -> String {
    let mut text = table::facts(&[
        ("disk", report.disk.clone()),
        ("table", report.table.clone()),
        ("switch", report.switch_method.clone()),
    ]);
    text.push('\n');
    // Only the bits that rule are shown; --json has all.
    let flags: &[&str] = match report.boot_flag {
        BootFlag::Priority => &[">PRIO", ">TRIES", "OK"],
        BootFlag::Legacy => &["BIT 2"],
    };
    let headings = [&["SLOT", ">PART", ">SIZE", "STATE", "VERSION", "BOOT"], flags].concat();
    let rows = report.slots.iter().map(|slot| row(slot, report.boot_flag)).collect();
    text += &table::render(&headings, rows, palette);
    // Sentences, which would spoil the table.
    let reasons = report.slots.iter().filter_map(|slot| Some((slot, slot.reason.as_ref()?)));
    for (i, (slot, reason)) in reasons.enumerate() {
        let gap = if i == 0 { "\n" } else { "" };
        text += &format!("{gap}{} {}: {reason}\n", slot.group, slot.slot);
    }
    text
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
        slot.version.as_deref().unwrap_or("-").into(),
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
    }
    row
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
    use crate::units::{Group, Slot};

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
            product: None,
            created: None,
            blake3: None,
            firmware: Vec::new(),
            priority: 15,
            tries: 0,
            successful: true,
            legacy_bootable: false,
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
            disk: "disk.img".into(),
            boot_flag,
            table: "sound".into(),
            switch_method: "second array".into(),
            slots: vec![slot(Slot::A), b],
        }
    }

    #[test]
    fn priority_flags() {
        assert_eq!(
            human(&report(BootFlag::Priority), Palette::PLAIN),
            "disk    disk.img\n\
             table   sound\n\
             switch  second array\n\
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
}
