//! Acts as text: in one word each, and as sectors and variables.

use super::super::view::View;
use super::{Act, Transition};
use crate::commit;
use crate::error::Result;
use crate::slot::{Layout, UNIT};
use crate::stage::StageStep;
use crate::units::{ByteOffset, Extent, Group, Slot};

/// How the platform is switched where EFI variables rule.
pub(in crate::engine) const EFI_METHOD: &str = "EFI variables BootNext and BootOrder";

/// A transition as its writes, barriers and variables, one line each.
#[derive(Debug, Default)]
pub(in crate::engine) struct Printed {
    pub(in crate::engine) lines: Vec<String>,
    /// How the table is written, where it is.
    table: Option<String>,
    /// Whether variables are set.
    variables: bool,
}

impl Printed {
    /// What a transition writes to the disk that `view` shows, a repair that is due included. Changes nothing.
    ///
    /// # Errors
    /// As [`commit::plan`].
    pub(in crate::engine) fn new(view: &View, transition: &Transition) -> Result<Self> {
        let mut printed = Self::default();
        let mut loaded = view.loaded.clone();
        let mut switch = |printed: &mut Self, table: Option<&crate::gpt::Table>| -> Result<()> {
            let plan = match table {
                Some(table) => Some(commit::plan(&loaded, table)?),
                None => commit::repair_plan(&loaded)?,
            };
            if let Some(plan) = plan.filter(|plan| !plan.is_empty()) {
                printed.lines.extend(plan.describe());
                printed.table = Some(plan.method.to_string());
                loaded = loaded.after(&plan);
            }
            Ok(())
        };
        switch(&mut printed, None)?;
        for act in &transition.acts {
            match act {
                Act::Table(table) => switch(&mut printed, Some(table))?,
                Act::Variables(turn) => {
                    printed.variables = true;
                    printed.lines.extend(turn.steps.iter().map(ToString::to_string));
                }
                Act::Mark(group, slot, mark) => {
                    let text = match mark {
                        Some(mark) => format!("{}, {}", mark.verdict.word(), mark.reason),
                        None => "void".to_owned(),
                    };
                    let name = group.partition_name(*slot);
                    printed.block(view, *group, *slot, UNIT, &format!("the mark of {name}: {text}"))?;
                }
                Act::Void(group, slot) => {
                    let name = group.partition_name(*slot);
                    printed.block(view, *group, *slot, 0, &format!("the footer of {name}: void"))?;
                }
            }
        }
        Ok(printed)
    }

    /// A block `before` the footer of a slot.
    fn block(&mut self, view: &View, group: Group, slot: Slot, before: u64, what: &str) -> Result<()> {
        let len = view.slots.require(group, slot)?.extent.len;
        let Some(footer) = Layout::footer_at(len) else { return Ok(()) };
        let extent = Extent { at: ByteOffset(footer - before), len: UNIT };
        let write = range(view, group, slot, "write", extent, what)?;
        let read = range(view, group, slot, "read back", extent, what)?;
        self.lines.extend([write, "barrier".to_owned(), read]);
        Ok(())
    }

    /// The steps of a staging into these slots.
    ///
    /// # Errors
    /// [`Error::SlotMissing`](crate::Error::SlotMissing).
    pub(in crate::engine) fn stage(
        &mut self,
        view: &View,
        slots: &[(Group, Slot)],
        steps: &[StageStep],
    ) -> Result<()> {
        for step in steps {
            let (verb, group, extent, what) = match step {
                StageStep::Barrier => {
                    self.lines.push("barrier".to_owned());
                    continue;
                }
                StageStep::Write(group, extent, what) => ("write", group, extent, what),
                StageStep::ReadBack(group, extent, what) => ("read back", group, extent, what),
            };
            let Some((group, slot)) = slots.iter().find(|(target, _)| target == group) else { continue };
            let what = format!("{}, {what}", group.partition_name(*slot));
            self.lines.push(range(view, *group, *slot, verb, *extent, &what)?);
        }
        Ok(())
    }

    /// What was printed before it, and this.
    pub(in crate::engine) fn behind(self, mut before: Self) -> Self {
        before.lines.extend(self.lines);
        Self {
            table: self.table.or(before.table),
            variables: self.variables || before.variables,
            lines: before.lines,
        }
    }

    /// How it is written, for people.
    pub(in crate::engine) fn method(&self) -> String {
        match (&self.table, self.variables) {
            (None, false) => "nothing to write".to_owned(),
            (Some(table), false) => table.clone(),
            (None, true) => EFI_METHOD.to_owned(),
            (Some(table), true) => format!("{EFI_METHOD}; {table}"),
        }
    }
}

/// A range of a slot, in bytes from its start, as blocks of the disk.
fn range(view: &View, group: Group, slot: Slot, verb: &str, extent: Extent, what: &str) -> Result<String> {
    let block = view.table.header().block().bytes();
    let start = view.slots.require(group, slot)?.extent.at.0 + extent.at.0;
    let (first, blocks) = (start / u64::from(block), extent.len / u64::from(block));
    Ok(format!("{verb} LBA {first}-{} ({blocks} x {block} bytes): {what}", first + blocks - 1))
}
