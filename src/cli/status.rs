//! `qstage status`.

use clap::Args;

use super::args::MachineArgs;
use super::machine::Host;
use super::output;
use super::remote::ServiceArgs;
use crate::error::Result;

/// Print the state of the upgrade as one line of JSON
///
/// Seven keys in a fixed order: install_path, state, details, error_message,
/// error_state, is_blocked, blocked_reason. States: UPGRADE_IDLE, UPGRADE_PREPARING,
/// UPGRADE_PREPARED, UPGRADE_TRIAL; with --service also UPGRADE_COMMITTING and
/// UPGRADE_REBOOTING.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    service: ServiceArgs,

    #[command(flatten)]
    pub(super) machine: MachineArgs,
}

impl StatusArgs {
    pub(super) fn run(&self) -> Result<()> {
        let settings = self.machine.settings()?;
        if self.service.is_given() {
            let text = self.service.client(&settings)?.get("/v1/upgrade/status")?;
            return output::print(&format!("{text}\n"));
        }
        let status = Host::open_to_look(&settings)?.engine(settings.policy()).status()?;
        output::print(&output::json_line(&status)?)
    }
}
