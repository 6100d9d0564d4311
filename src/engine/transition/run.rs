//! The interpreter: acts to a disk, under its lock.

use super::{Act, Transition};
use crate::boot::Slots;
use crate::commit::{self, Loaded};
use crate::device::BlockDevice;
use crate::error::Result;
use crate::host::{Access, DiskLock, Machine, efivars};
use crate::slot;
use crate::units::{Group, Slot};

/// Where acts are run.
pub(crate) struct Site<'a> {
    pub(crate) machine: &'a dyn Machine,
    /// The table that the acts were decided by. Where it is another one by now, nothing is written.
    pub(crate) loaded: &'a Loaded,
    pub(crate) slots: &'a Slots,
    /// Slots that the caller has open exclusively.
    pub(crate) opened: &'a [(Group, Slot, &'a dyn BlockDevice)],
}

impl Site<'_> {
    /// Runs the acts one after another. Each is durable, and was read again, before the next one begins; the first failure
    /// ends it. A refusal writes nothing: before the first write all slots are opened (one that is in use refuses the verb
    /// as a whole), all changes of the table are planned, the EFI variables are there, and the table is compared with the one
    /// that the acts were decided by. Then a repair of the table that is due comes first: redundancy is repaired before it
    /// is spent.
    ///
    /// # Errors
    /// Class Disk and Io.
    pub(crate) fn run(&self, lock: &DiskLock, transition: &Transition) -> Result<()> {
        let devices: Vec<Option<Device<'_>>> =
            transition.acts.iter().map(|act| self.open(act)).collect::<Result<_>>()?;
        self.check_tables(transition)?;
        if transition.acts.iter().any(|act| matches!(act, Act::Variables(_))) {
            self.machine.firmware()?;
        }
        let disk = self.machine.disk();
        let load =
            || commit::load(&*disk, self.machine.name()).map(|read| read.with_method(self.loaded.method()));
        let mut loaded = match commit::repair(&*disk, lock, self.loaded)? {
            Some(_) => Some(load()?),
            None => None,
        };
        for (act, device) in transition.acts.iter().zip(&devices) {
            match (act, device) {
                (Act::Mark(_, _, mark), Some((device, name))) => {
                    slot::write_mark(device.get(), mark.as_ref(), name)?;
                }
                (Act::Void(..), Some((device, name))) => slot::discard(device.get(), name)?,
                (Act::Variables(turn), _) => efivars::run(self.machine.firmware()?, &turn.steps)?,
                (Act::Table(table), _) => {
                    commit::switch(&*disk, lock, loaded.as_ref().unwrap_or(self.loaded), table)?;
                    loaded = Some(load()?);
                }
                // Every act that writes to a slot has opened it.
                (Act::Mark(..) | Act::Void(..), None) => {}
            }
        }
        Ok(())
    }

    /// Plans each change of the table in its turn.
    fn check_tables(&self, transition: &Transition) -> Result<()> {
        let tables = transition.acts.iter().filter_map(|act| match act {
            Act::Table(table) => Some(table),
            Act::Mark(..) | Act::Void(..) | Act::Variables(_) => None,
        });
        let mut expected = self.loaded.clone();
        for table in tables {
            expected = expected.after(&commit::plan(&expected, table)?);
        }
        Ok(())
    }

    fn open(&self, act: &Act) -> Result<Option<Device<'_>>> {
        let (group, slot, access) = match act {
            // It may be the running slot: its mark lies after the file system.
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
