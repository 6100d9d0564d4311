//! The verbs of the proofs.

use std::path::Path;
use std::sync::Arc;

use qstage::device::{self, AlignedBuf};
use qstage::engine::{Change, Engine, PrepareOptions};
use qstage::error::{Error, Result};
use qstage::host::kexec::SlotKernel;
use qstage::progress::Silent;
use qstage::units::{ByteOffset, Slot};

use super::{FRAME, open};

/// A verb that changes a disk.
#[derive(Clone, Debug)]
pub enum Verb {
    Prepare(Arc<Vec<u8>>),
    Commit,
    MarkGood,
    /// `mark-good SLOT`: made good and selected whatever its flags say.
    MakeGood(Slot),
    RollBack,
    Cancel,
    /// The selector of an initramfs starts a slot and counts its try.
    Select,
    /// A health check fails on trial.
    TrialFailed,
    /// Commit by kexec.
    Kexec,
    /// Commit by kexec of a slot whose kernel cannot be loaded.
    KexecRefused,
    /// A start of the container: its image, and the count of its try.
    Start,
    /// The container of a software slot is healthy.
    SoftwareGood(Slot),
    /// The container of a software slot is not healthy.
    SoftwareBack(Slot),
    /// A benchmark writes to the inactive slot, whose content is lost.
    Lend,
}

impl Verb {
    /// The verb as a `Change`; `None` if it is none. A prepare begins with one.
    pub fn change(&self) -> Option<Change<'_>> {
        Some(match self {
            Self::Commit => Change::Commit,
            Self::MarkGood => Change::MarkGood(None),
            Self::MakeGood(slot) => Change::MarkGood(Some(*slot)),
            Self::RollBack => Change::RollBack(None),
            Self::Cancel => Change::Cancel,
            Self::TrialFailed => Change::TrialFailed(None),
            Self::Kexec | Self::KexecRefused => Change::CommitByKexec,
            Self::Start => Change::SoftwareTry(Slot::A),
            Self::SoftwareGood(slot) => Change::SoftwareGood(*slot),
            Self::SoftwareBack(slot) => Change::SoftwareBack(*slot, "its probe failed"),
            Self::Lend => Change::Lend,
            Self::Prepare(_) | Self::Select => return None,
        })
    }

    /// Runs the verb. `prepare` opens a bundle; `Select` does not belong to the engine.
    pub fn run(&self, engine: &Engine<'_>, options: &PrepareOptions) -> Result<()> {
        match self {
            Self::Prepare(bundle) => engine.prepare(open(bundle)?, options, &Silent).map(drop),
            Self::Commit => engine.commit(false).map(drop),
            Self::MarkGood => engine.mark_good(None).map(drop),
            Self::MakeGood(slot) => engine.mark_good(Some(*slot)).map(drop),
            Self::RollBack => engine.roll_back().map(drop),
            Self::Cancel => engine.cancel().map(drop),
            Self::TrialFailed => {
                engine.trial_failed(Some("health check 'disk': it is full"))?;
                engine.trial_failed(None).map(drop)
            }
            Self::Kexec => engine.commit_by_kexec(&Kernel { loads: true }).map(drop),
            Self::KexecRefused => engine.commit_by_kexec(&Kernel { loads: false }).map(drop),
            Self::Start => engine.software_try(engine.software_selected()?.slot).map(drop),
            Self::SoftwareGood(slot) => engine.software_good(*slot).map(drop),
            Self::SoftwareBack(slot) => engine.software_back(*slot, "its probe failed").map(drop),
            Self::Lend => engine.lend_target(|name, device| {
                let what = format!("a measurement in {name}");
                device::write(&*device, &what, &AlignedBuf::zeroed(8192), ByteOffset(FRAME.into()))?;
                device::sync(&*device, &what)
            }),
            Self::Select => Err(Error::NoTrial),
        }
    }
}

/// A kernel whose start succeeds, and whose load succeeds if `loads`.
struct Kernel {
    loads: bool,
}

impl SlotKernel for Kernel {
    fn load(&self, _: Slot, _: &Path, _: &str) -> Result<()> {
        match self.loads {
            true => Ok(()),
            false => Err(Error::Kexec { problem: "its signature is bad".to_owned() }),
        }
    }
    fn start(&self) -> Result<()> {
        Ok(())
    }
}
