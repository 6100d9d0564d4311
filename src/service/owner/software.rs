//! The actions after a commit if qstage runs the software image as a container: an upgrade of software alone is a swap.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::container::{self, Config, Judge, Nspawn, Rendezvous, StartReport};
use crate::device::Mode;
use crate::error::Result;
use crate::progress::Silent;
use crate::service::cluster::{SoftwareStart, awaits_verdict};
use crate::service::owner::disk::Place;
use crate::service::owner::hooks::{AfterCommit, Commands, ContainerRestart};
use crate::state::UpgradeType;

/// Swaps and restarts the container; actions on the machine are left to commands.
#[derive(Debug)]
pub struct Software {
    /// The disk.
    pub place: Place,
    /// The configuration of the container.
    pub config: Config,
    /// The commands that reboot the machine or power it off.
    pub commands: Commands,
    /// The cluster that this node takes part in; `None`: a single node.
    pub cluster: Option<SoftwareStart>,
    /// See [`ContainerRestart::is_held`].
    pub held: AtomicBool,
}

impl Software {
    /// Which process decides on software on trial.
    fn judge(&self) -> Judge {
        match &self.cluster {
            Some(cluster) if awaits_verdict(&self.place.state_dir, cluster.node) => Judge::Elsewhere,
            _ => Judge::Start,
        }
    }

    /// Stores whether the software was started.
    fn started<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_ok() {
            self.held.store(false, Ordering::Relaxed);
        }
        result
    }
}

impl ContainerRestart for Software {
    fn restart(&self) -> Result<()> {
        let runtime = Nspawn::new(self.config.clone())?;
        let restarted = self.place.with(Mode::Write, |engine| {
            container::restart(engine, &runtime, &self.config, &Silent, self.judge())
        });
        self.started(restarted).map(|_| ())
    }

    fn swap_together(&self, place: &Place, others: &dyn Rendezvous) -> Result<String> {
        let runtime = Nspawn::new(self.config.clone())?;
        let swapped = place.with(Mode::Write, |engine| {
            container::swap_together(engine, &runtime, &self.config, &Silent, others)
        });
        self.started(swapped).map(|report| report.done)
    }

    fn starts(&self) -> bool {
        true
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    fn start(&self) -> Result<StartReport> {
        if let Some(cluster) = &self.cluster {
            let slots = self.place.with(Mode::Read, |engine| engine.slots())?;
            cluster.check(&slots).inspect_err(|_| self.held.store(true, Ordering::Relaxed))?;
        }
        let runtime = Nspawn::new(self.config.clone())?;
        let started = self.place.with(Mode::Write, |engine| {
            container::start(engine, &runtime, &self.config, &Silent, self.judge())
        });
        self.started(started)
    }
}

impl AfterCommit for Software {
    fn reboots(&self, kind: UpgradeType) -> bool {
        self.commands.reboots(kind)
    }

    fn reboot_words(&self) -> String {
        self.commands.reboot_words()
    }

    fn halts(&self) -> bool {
        self.commands.halts()
    }

    fn halt(&self) -> Result<()> {
        self.commands.halt()
    }

    fn swaps(&self) -> bool {
        true
    }

    fn run(&self, kind: UpgradeType) -> Result<String> {
        match kind {
            UpgradeType::SoftwareAndPlatform => self.commands.run(kind),
            UpgradeType::SoftwareOnly => {
                let runtime = Nspawn::new(self.config.clone())?;
                let swapped = self
                    .place
                    .with(Mode::Write, |engine| container::swap(engine, &runtime, &self.config, &Silent));
                self.started(swapped).map(|report| report.done)
            }
        }
    }
}
