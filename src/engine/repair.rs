//! Making both copies of the partition table sound: where it is beyond doubt, or from the copy that the caller names.

use serde::Serialize;

use super::Engine;
use crate::commit;
use crate::error::Result;
use crate::gpt::Copy;

/// What a repair did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// How sound the table was.
    pub found: String,
    /// One sentence.
    pub done: String,
    /// Writes and barriers, one line each; empty where nothing was due.
    pub plan: Vec<String>,
    /// Whether nothing was written.
    pub dry_run: bool,
}

impl Engine<'_> {
    /// Makes the copy of the partition table that is not sound from the other one. `from`: the copy to start from, where
    /// the engine would not dare to choose; `None`: only what is beyond doubt.
    ///
    /// # Errors
    /// As [`commit::repair`] and [`commit::restore`]; then nothing was written.
    pub fn repair_table(&self, from: Option<Copy>, dry_run: bool) -> Result<RepairReport> {
        let load = || commit::load(&*self.machine.disk(), self.machine.name());
        if dry_run {
            let loaded = load()?;
            let plan = match from {
                Some(from) => Some(commit::restore_plan(&loaded, from)?),
                None => commit::repair_plan(&loaded)?,
            };
            return Ok(report(&loaded, plan, true));
        }
        let act = |lock: &crate::host::DiskLock| {
            let (disk, loaded) = (self.machine.disk(), load()?);
            let plan = match from {
                Some(from) => Some(commit::restore(&*disk, lock, &loaded, from)?),
                None => commit::repair(&*disk, lock, &loaded)?,
            };
            Ok(report(&loaded, plan, false))
        };
        self.change("repair", act, |report| report.done.clone())
    }
}

fn report(loaded: &commit::Loaded, plan: Option<crate::gpt::Plan>, dry_run: bool) -> RepairReport {
    let found = loaded.describe();
    let plan = plan.map(|plan| plan.describe()).unwrap_or_default();
    let done = if plan.is_empty() {
        format!("nothing to repair (copies of the partition table: {found})")
    } else {
        format!("both copies of the partition table are sound (found: {})", loaded.state())
    };
    RepairReport { found, done, plan, dry_run }
}
