//! The actions after a commit if qstage runs the software image as a container: an upgrade of software alone is a swap.

use crate::cluster::state::NodeId;
use crate::container::{self, Config, Judge, Nspawn, Rendezvous, StartReport};
use crate::device::Mode;
use crate::error::Result;
use crate::progress::Silent;
use crate::service::cluster::awaits_verdict;
use crate::service::owner::disk::Place;
use crate::service::owner::hooks::{AfterCommit, Commands, ContainerRestart};
use crate::state::UpgradeType;

/// Swaps and restarts the container; actions on the machine are left to commands.
#[derive(Debug, Clone)]
pub struct Software {
    /// The disk.
    pub place: Place,
    /// The configuration of the container.
    pub config: Config,
    /// The commands that reboot the machine or power it off.
    pub commands: Commands,
    /// Number in the cluster that this node takes part in; `None`: a single node.
    pub node: Option<NodeId>,
}

impl Software {
    /// Which process decides on software on trial.
    fn judge(&self) -> Judge {
        match self.node {
            Some(node) if awaits_verdict(&self.place.state_dir, node) => Judge::Elsewhere,
            _ => Judge::Start,
        }
    }
}

impl ContainerRestart for Software {
    fn restart(&self) -> Result<()> {
        let runtime = Nspawn::new(self.config.clone())?;
        self.place
            .with(Mode::Write, |engine| {
                container::restart(engine, &runtime, &self.config, &Silent, self.judge())
            })
            .map(|_| ())
    }

    fn swap_together(&self, place: &Place, others: &dyn Rendezvous) -> Result<String> {
        let runtime = Nspawn::new(self.config.clone())?;
        place
            .with(Mode::Write, |engine| {
                container::swap_together(engine, &runtime, &self.config, &Silent, others)
            })
            .map(|report| report.done)
    }

    fn starts(&self) -> bool {
        true
    }

    fn start(&self) -> Result<StartReport> {
        let runtime = Nspawn::new(self.config.clone())?;
        self.place.with(Mode::Write, |engine| {
            container::start(engine, &runtime, &self.config, &Silent, self.judge())
        })
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
                self.place
                    .with(Mode::Write, |engine| container::swap(engine, &runtime, &self.config, &Silent))
                    .map(|report| report.done)
            }
        }
    }
}
