//! The interpreter: acts to a disk, under its lock.

use super::{Act, Transition};
use crate::boot::Slots;
use crate::commit::{self, Loaded};
use crate::device::BlockDevice;
use crate::error::Result;
use crate::gpt::CopyState;
use crate::host::{Access, DiskLock, Machine, efivars};
use crate::slot;
use crate::units::{Group, Slot};

/// Where acts are run.
pub(crate) struct Site<'a> {
    pub(crate) machine: &'a dyn Machine,
    /// The table that the acts were decided by. Where it is another one by now, nothing is written.
    pub(crate) loaded: &'a Loaded,
    pub(crate) slots: &'a Slots,
    /// Slots that the caller holds open already, and nobody else can open.
    pub(crate) opened: &'a [(Group, Slot, &'a dyn BlockDevice)],
}

impl Site<'_> {
    /// Runs the acts one after another. Each is durable, and was read again, before the next one begins; the first failure
    /// ends it. All slots are opened before the first act: one that is in use refuses the verb as a whole.
    ///
    /// # Errors
    /// Class Disk and Io.
    pub(crate) fn run(&self, lock: &DiskLock, transition: &Transition) -> Result<()> {
        let devices: Vec<Option<Device<'_>>> =
            transition.acts.iter().map(|act| self.open(act)).collect::<Result<_>>()?;
        let disk = self.machine.disk();
        let mut loaded = None;
        for (act, device) in transition.acts.iter().zip(&devices) {
            match (act, device) {
                (Act::Mark(_, _, mark), Some((device, name))) => {
                    slot::write_mark(device.get(), mark.as_ref(), name)?;
                }
                (Act::Void(..), Some((device, name))) => slot::discard(device.get(), name)?,
                (Act::Variables(turn), _) => efivars::run(self.machine.firmware()?, &turn.steps)?,
                (Act::Table(table), _) => {
                    commit::switch(&*disk, lock, loaded.as_ref().unwrap_or(self.loaded), table)?;
                    let read = commit::load(&*disk, self.machine.name())?;
                    loaded = Some(read.with_method(self.loaded.method()));
                }
                // Whatever writes to a slot has opened it.
                (Act::Mark(..) | Act::Void(..), None) => {}
            }
        }
        Ok(())
    }

    fn open(&self, act: &Act) -> Result<Option<Device<'_>>> {
        let (group, slot, access) = match act {
            // It may be the slot that runs: its mark lies behind the file system.
            Act::Mark(group, slot, _) => (*group, *slot, Access::Record),
            Act::Void(group, slot) => (*group, *slot, Access::Exclusive),
            Act::Variables(_) | Act::Table(_) => return Ok(None),
        };
        let partition = self.slots.require(group, slot)?;
        let found = self.opened.iter().find(|(g, s, _)| (*g, *s) == (group, slot));
        let device = match found {
            Some((_, _, device)) => Handle::Lent(*device),
            None => Handle::Own(self.machine.open_partition(partition, access)?),
        };
        Ok(Some((device, partition.name.as_str())))
    }
}

/// A slot and its name.
type Device<'a> = (Handle<'a>, &'a str);

enum Handle<'a> {
    Lent(&'a dyn BlockDevice),
    Own(Box<dyn BlockDevice>),
}

impl Handle<'_> {
    fn get(&self) -> &dyn BlockDevice {
        match self {
            Self::Lent(device) => *device,
            Self::Own(device) => &**device,
        }
    }
}

/// Makes both copies of the table equal before anything else is changed: redundancy is repaired before it is spent.
/// Returns the state that was found, where that was not sound.
///
/// # Errors
/// Class Disk and Io.
pub(crate) fn repair(machine: &dyn Machine, lock: &DiskLock) -> Result<Option<CopyState>> {
    let disk = machine.disk();
    let loaded = commit::load(&*disk, machine.name())?;
    let state = loaded.state();
    Ok(match state {
        CopyState::Equal => None,
        _ => commit::repair(&*disk, lock, &loaded)?.map(|_| state),
    })
}
