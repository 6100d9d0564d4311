//! The partition table on a device: read both copies, repair, switch, and prove it by reading again.
//!
//! All decisions are pure and lie in [`gpt`](crate::gpt) and [`boot`](crate::boot); here steps are run.
//!
//! ```no_run
//! # use qstage::{boot::{self, BootFlag, Flags}, commit, device::BlockDevice, error::Result, host::DiskLock, units::{Group, Slot}};
//! # fn f(disk: &dyn BlockDevice, lock: &DiskLock) -> Result<()> {
//! let loaded = commit::load(disk, "/dev/sda")?;
//! let slots = boot::Slots::resolve(loaded.table()?, "/dev/sda")?;
//! let flags = Flags::new(loaded.table()?.clone(), &slots, BootFlag::Priority);
//! let new = flags.select_trial(Group::Platform, Slot::B, 3)?.into_table();
//! for line in commit::plan(&loaded, &new)?.describe() { println!("{line}") } // --dry-run
//! commit::switch(disk, lock, &loaded, &new)?;
//! # Ok(()) }
//! ```

mod cursor;
mod load;

use cursor::Cursor;

use crate::device::{self, AlignedBuf, BlockDevice};
use crate::error::{Error, Result};
use crate::gpt::plan::{plan_repair, plan_restore};
use crate::gpt::reading::NoBackup;
use crate::gpt::second::{self, Scope};
use crate::gpt::{
    Copies, Copy, CopyState, Damaged, Geometry, Obstacle, Plan, Reading, Step, Table, TableMethod,
};
use crate::host::DiskLock;
use crate::units::Lba;

/// Everything read of a disk: both copies of the table and the blocks around them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    name: String,
    reading: Reading,
    how: TableMethod,
}

impl Loaded {
    /// The table in use: the primary if it is valid, else the backup. An error if neither is.
    pub fn table(&self) -> Result<&Table> {
        self.reading.in_use().ok_or_else(|| damaged(&self.name, &self.reading.copies))
    }

    /// The state of the copies.
    pub fn state(&self) -> CopyState {
        self.reading.state()
    }

    /// The expected reading after a plan for this table was run.
    #[must_use]
    pub fn after(&self, plan: &Plan) -> Self {
        let backup = plan.backup.clone().map_or_else(|| self.reading.copies.backup.clone(), Ok);
        let copies = Copies { primary: Ok(plan.primary.clone()), backup };
        let sectors = plan.apply(self.reading.sectors.clone());
        Self { reading: self.reading.after(copies, sectors), name: self.name.clone(), how: self.how }
    }

    /// How the table is to be changed.
    pub const fn method(&self) -> TableMethod {
        self.how
    }

    /// Both copies.
    pub const fn copies(&self) -> &Copies {
        &self.reading.copies
    }

    /// Block sizes and size of the disk.
    pub const fn geometry(&self) -> &Geometry {
        &self.reading.geometry
    }

    /// Everything that was read.
    pub const fn reading(&self) -> &Reading {
        &self.reading
    }

    /// The state of the table for people: state of the copies, what is wrong, and the remedy.
    pub fn describe(&self) -> String {
        let mut text = self.state().to_string();
        if let Some(why) = self.no_backup() {
            text += &format!(": {why}; 'qstage repair --from primary' makes one");
        }
        if let Err(error) = writable(self).and_then(|()| repair_plan(self)) {
            text += &format!("; {error}");
        }
        if let Some((named, home)) = self.away_from_home() {
            text +=
                &format!("; the array lies at LBA {named} and comes home to LBA {home} with the next change");
        }
        text
    }

    /// Why the table has no backup; `None` if it has one.
    pub fn no_backup(&self) -> Option<NoBackup> {
        self.reading.no_backup()
    }

    /// Where the primary array lies and where it belongs; `None` if it is at home.
    pub fn away_from_home(&self) -> Option<(Lba, Lba)> {
        let named = self.reading.copies.primary.as_ref().ok()?.header().entries_lba;
        self.reading.home().filter(|home| *home != named).map(|home| (named, home))
    }

    /// The same reading, to be changed by this method.
    #[must_use]
    pub fn with_method(self, how: TableMethod) -> Self {
        Self { how, ..self }
    }

    /// How much of this table the independent second reader can judge after a change.
    pub fn second_reader(&self) -> Result<Scope> {
        Ok(second::scope(self.table()?, self.no_backup().is_none(), &self.reading.geometry))
    }
}

/// Reads both copies of the table of a disk called `name` in errors. A damaged or unreadable copy is not an error
/// here.
///
/// # Errors
/// [`Error::NotGpt`], [`Error::MbrDisk`]: a disk without protective MBR, whatever an older table left on it;
/// [`Error::TableSectorSize`]; [`Error::Read`].
pub fn load(disk: &dyn BlockDevice, name: &str) -> Result<Loaded> {
    let reading = load::reading(disk, name)?;
    let loaded = Loaded { name: name.to_owned(), reading, how: TableMethod::default() };
    tracing::debug!("partition table of {name}: {}", loaded.describe());
    Ok(loaded)
}

/// The plan by which [`switch`] brings `new` onto the disk, including a pending repair. Writes nothing.
///
/// # Errors
/// The reason against it: [`Error::TableDoubtful`], [`Error::TableIgnored`], [`Error::TableLargerDisk`],
/// [`Error::TableOccupied`], [`Error::TableUnsafe`], [`Error::GptDamaged`].
pub fn plan(loaded: &Loaded, new: &Table) -> Result<Plan> {
    if !loaded.table()?.same_partitions(new) {
        let what = "a switch that would change more than attributes".to_owned();
        return Err(Error::Internal { what });
    }
    writable(loaded)?;
    crate::gpt::plan::plan(&loaded.reading, new, loaded.how).map_err(|obstacle| refusal(loaded, obstacle))
}

/// The plan of [`repair`]; `None` if nothing is to be repaired.
///
/// # Errors
/// Same as [`plan`].
pub fn repair_plan(loaded: &Loaded) -> Result<Option<Plan>> {
    loaded.table()?;
    writable(loaded)?;
    plan_repair(&loaded.reading).map_err(|obstacle| refusal(loaded, obstacle))
}

/// Repairs the copy that is beyond doubt, see [`plan_repair`]. Returns `None` and writes nothing if there is
/// nothing to repair.
///
/// # Errors
/// Same as [`plan`]; then nothing was written.
pub fn repair(disk: &dyn BlockDevice, _lock: &DiskLock, loaded: &Loaded) -> Result<Option<Plan>> {
    unchanged(disk, loaded)?;
    let plan = repair_plan(loaded)?;
    if let Some(plan) = &plan {
        run(disk, &loaded.name, plan)?;
    }
    Ok(plan)
}

/// The plan of [`restore`].
///
/// # Errors
/// [`Error::TableLargerDisk`], [`Error::TableOccupied`]; [`Error::GptDamaged`]: the source copy is not whole.
pub fn restore_plan(loaded: &Loaded, from: Copy) -> Result<Plan> {
    loaded.table()?;
    if from == Copy::Primary {
        writable(loaded)?;
    }
    plan_restore(&loaded.reading, from).map_err(|obstacle| refusal(loaded, obstacle))
}

/// Makes the other copy from the named one, whatever the other holds: on explicit request.
///
/// # Errors
/// Same as [`restore_plan`]; then nothing was written.
pub fn restore(disk: &dyn BlockDevice, _lock: &DiskLock, loaded: &Loaded, from: Copy) -> Result<Plan> {
    unchanged(disk, loaded)?;
    let plan = restore_plan(loaded, from)?;
    run(disk, &loaded.name, &plan)?;
    Ok(plan)
}

/// Brings `new` onto the disk: the loaded table with other attributes. Returns the plan that was run; it is empty,
/// and nothing was written, if the disk already has these attributes. On return the table has been re-read from the
/// device, also by the second reader. After an error the disk holds the old table or the new one (except in place,
/// see [`Method`](crate::gpt::Method)), and the next [`load()`] shows which.
pub fn switch(disk: &dyn BlockDevice, _lock: &DiskLock, loaded: &Loaded, new: &Table) -> Result<Plan> {
    unchanged(disk, loaded)?;
    let plan = plan(loaded, new)?;
    if !plan.is_empty() {
        run(disk, &loaded.name, &plan)?;
    }
    Ok(plan)
}

/// Writes the table of [`layout::create`](crate::gpt::layout::create) and reads it back. Destroys the previous
/// table.
pub fn lay_out(disk: &dyn BlockDevice, name: &str, _lock: &DiskLock, layout: &Plan) -> Result<()> {
    run(disk, name, layout)
}

/// Another program may have written between reading and locking: acting on a stale table would undo its change.
fn unchanged(disk: &dyn BlockDevice, loaded: &Loaded) -> Result<()> {
    if load::reading(disk, &loaded.name)? == loaded.reading {
        return Ok(());
    }
    let problem = "another program changed the partition table meanwhile; run it again".to_owned();
    Err(Error::GptUnsupported { disk: loaded.name.clone(), problem })
}

/// Refuses a table that describes a larger disk: it may overlap what another table describes. It is read, not
/// written.
fn writable(loaded: &Loaded) -> Result<()> {
    match loaded.reading.describes_larger() {
        None => Ok(()),
        Some(usable) => Err(Error::TableLargerDisk {
            disk: loaded.name.clone(),
            usable: usable.0,
            last: loaded.reading.geometry.last_lba().0,
        }),
    }
}

fn refusal(loaded: &Loaded, obstacle: Obstacle) -> Error {
    let disk = loaded.name.clone();
    match obstacle {
        Obstacle::Doubtful => Error::TableDoubtful { disk },
        Obstacle::Ignored => Error::TableIgnored { disk },
        Obstacle::Foreign { what, at } => Error::TableOccupied { disk, what: what.to_owned(), at: at.0 },
        Obstacle::NoPlace(why) => {
            let remedy = "move that, or 'qstage repair --from backup', which overwrites what the damaged header names as its array";
            Error::TableUnsafe { disk, why: format!("the primary array is damaged and {why}; {remedy}") }
        }
        Obstacle::Unsafe { why } => {
            let remedy =
                "make room before the first partition, or a backup with 'qstage repair --from primary'";
            Error::TableUnsafe {
                disk,
                why: format!("{why}, and there is no backup to fall back to; {remedy}"),
            }
        }
        Obstacle::Fault(_) if loaded.state() == CopyState::None => {
            damaged(&loaded.name, &loaded.reading.copies)
        }
        Obstacle::Fault(fault) => Error::GptUnsupported { disk, problem: fault.to_string() },
    }
}

fn damaged(name: &str, copies: &Copies) -> Error {
    let text = |copy: &Result<Table, Box<Damaged>>| {
        copy.as_ref().map_or_else(|damaged| damaged.fault.to_string(), |_| "valid".to_owned())
    };
    Error::GptDamaged { disk: name.to_owned(), primary: text(&copies.primary), backup: text(&copies.backup) }
}

/// Runs the steps, then reads everything again. Stops at the first failure: after a failed sync no later write can
/// be trusted to be durable, so there is no second try.
fn run(disk: &dyn BlockDevice, name: &str, plan: &Plan) -> Result<()> {
    let verify = |problem: String| Error::GptVerify { disk: name.to_owned(), problem };
    for step in &plan.steps {
        match step {
            Step::Write(write) => {
                let buf = AlignedBuf::padded(write.bytes(), disk.block_size().bytes() as usize);
                device::write(disk, write.what(), &buf, write.at())?;
            }
            Step::Barrier => device::sync(disk, "the partition table")?,
            Step::ReadBack { at, bytes, what } => {
                let mut buf = AlignedBuf::zeroed(bytes.len());
                device::read(disk, what, &mut buf, *at)?;
                if let Some(off) = buf.iter().zip(bytes).position(|(got, expected)| got != expected) {
                    return Err(verify(format!("{what} differs at byte {}", at.0 + off as u64)));
                }
            }
        }
    }
    let after = load::reading(disk, name)?;
    let primary = Some(("primary", &after.copies.primary, &plan.primary));
    let backup = plan.backup.as_ref().map(|backup| ("backup", &after.copies.backup, backup));
    for (copy, got, expected) in primary.into_iter().chain(backup) {
        match got {
            Ok(table) if table == expected => {}
            Ok(_) => return Err(verify(format!("the {copy} is valid but not the one intended"))),
            Err(damaged) => return Err(verify(format!("{copy}: {}", damaged.fault))),
        }
    }
    second::check(Cursor::new(disk), &plan.primary, plan.backup.is_some(), &after.geometry)
        .map_err(verify)?;
    Ok(())
}
