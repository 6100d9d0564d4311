//! `qstage container`: the software image as a container; and the swap for `commit`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::args::MachineArgs;
use super::machine::Host;
use super::output::{self, Format, Palette};
use super::progress::Reporter;
use super::table;
use crate::container::{self, Config, ContainerStatus, Judge, Nspawn, StartReport, SwapReport};
use crate::engine::Engine;
use crate::error::Result;
use crate::state::SwitchReport;

/// Start, stop or show the container of the software slot
///
/// Needs [container] in the configuration, systemd-nspawn, and root.
#[derive(Debug, Args)]
pub(super) struct ContainerArgs {
    #[command(subcommand)]
    verb: ContainerVerb,
}

#[derive(Debug, Subcommand)]
enum ContainerVerb {
    /// Start the container of the selected software slot
    ///
    /// For boot, and after a crash: afterwards the selected slot runs, whatever runs now. A
    /// slot on trial is marked good when it is healthy; if it is not, the other one is
    /// started and selected. Does nothing if the selected slot already runs.
    Start(Changing),

    /// Stop the container
    ///
    /// First by the stop signal, after the stop timeout by SIGKILL.
    Stop(Changing),

    /// Restart the container from the same slot
    Restart(Changing),

    /// Show which container runs and whether it is healthy
    ///
    /// Exits with 0 whatever it finds.
    Status(Common),

    Gate(GateArgs),

    /// Inside a container: run the commands of the health probe
    #[command(hide = true)]
    Prober,
}

impl ContainerArgs {
    pub(super) fn run(&self) -> Result<()> {
        match &self.verb {
            ContainerVerb::Start(args) => {
                args.may_start().and_then(|()| args.started(container::start, container::start_dry_run))
            }
            ContainerVerb::Restart(args) => args.started(container::restart, container::restart_dry_run),
            ContainerVerb::Stop(args) => args.stop(),
            ContainerVerb::Status(args) => args.status(),
            ContainerVerb::Gate(args) => {
                container::nspawn::gate::wait_inside(&container::nspawn::gate::GateArgs {
                    console: args.console.as_deref(),
                    prober: args.prober,
                    no_user_namespaces: args.no_user_namespaces,
                    command: &args.command,
                })
            }
            ContainerVerb::Prober => container::nspawn::prober::serve(),
        }
    }

    pub(super) const fn wants_json(&self) -> bool {
        match &self.verb {
            ContainerVerb::Start(args) | ContainerVerb::Restart(args) | ContainerVerb::Stop(args) => {
                args.common.json
            }
            ContainerVerb::Status(common) => common.json,
            ContainerVerb::Gate(_) | ContainerVerb::Prober => false,
        }
    }
}

#[derive(Debug, Args)]
struct Changing {
    /// Print what is started, stopped and written, and do nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    machine: MachineArgs,
}

/// Inside a container: wait for a message, then execute the command
#[derive(Debug, Args)]
#[command(hide = true)]
struct GateArgs {
    /// File that takes the output
    #[arg(long)]
    console: Option<PathBuf>,

    /// Start the process that runs the commands of the health probe
    #[arg(long)]
    prober: bool,

    /// Forbid user namespaces
    #[arg(long)]
    no_user_namespaces: bool,

    /// The command
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

type Start = fn(
    &Engine<'_>,
    &dyn container::Runtime,
    &Config,
    &dyn crate::progress::Progress,
    Judge,
) -> Result<StartReport>;

type DryRun = fn(&Engine<'_>, &dyn container::Runtime, &Config, Judge) -> Result<SwitchReport>;

impl Changing {
    /// Checks that the cluster, if there is one, permits a start. It waits for etcd, and holds no lock.
    fn may_start(&self) -> Result<()> {
        let settings = self.common.machine.settings()?;
        let Some(cluster) = settings.software_start()? else { return Ok(()) };
        let host = Host::open_to_look(&settings)?;
        cluster.check(&host.engine(settings.policy()).slots()?)
    }

    fn started(&self, start: Start, dry_run: DryRun) -> Result<()> {
        let settings = self.common.machine.settings()?;
        let config = settings.container()?;
        let format = Format::object_if(self.common.json);
        let runtime = Nspawn::new(config.clone())?;
        // What all nodes of a cluster decide on together is not decided by a start.
        let judge = if settings.awaits_verdict() { Judge::Elsewhere } else { Judge::Start };
        if self.dry_run {
            let host = Host::open_to_look(&settings)?;
            let report = dry_run(&host.engine(settings.policy()), &runtime, config, judge)?;
            return output::dry_run(format, &report);
        }
        let host = Host::open_to_change(&settings)?;
        let report = start(&host.engine(settings.policy()), &runtime, config, &Reporter::new(format), judge)?;
        output::outcome(format, &report, |report, palette| match (&report.went_back, report.downtime_ms) {
            (Some(_), _) => format!("{}\n", palette.warn(&report.done)),
            (None, Some(ms)) => format!("{}, downtime {ms:.0} ms\n", report.done),
            (None, None) => format!("{}\n", report.done),
        })
    }

    fn stop(&self) -> Result<()> {
        let settings = self.common.machine.settings()?;
        let runtime = Nspawn::new(settings.container()?.clone())?;
        let host = Host::open_to_look(&settings)?;
        let (engine, format) = (host.engine(settings.policy()), Format::object_if(self.common.json));
        if self.dry_run {
            return output::dry_run(format, &container::stop_dry_run(&engine, &runtime)?);
        }
        let stopped = container::stop(&engine, &runtime)?;
        output::outcome(format, &stopped, |stopped, _| match stopped.as_slice() {
            [] => "no container ran\n".to_owned(),
            all => all
                .iter()
                .map(|one| format!("{} (software slot {}) was stopped\n", one.version, one.slot))
                .collect(),
        })
    }
}

impl Common {
    fn status(&self) -> Result<()> {
        let settings = self.machine.settings()?;
        let runtime = Nspawn::new(settings.container()?.clone())?;
        let host = Host::open_to_look(&settings)?;
        let status = container::status(&host.engine(settings.policy()), &runtime)?;
        output::result(Format::object_if(self.json), &status, human)
    }
}

fn human(status: &ContainerStatus, palette: Palette) -> String {
    let runs = match &status.running {
        Some(one) => format!("{} from software slot {} ({})", one.version, one.slot, one.id),
        None => palette.bad("nothing"),
    };
    let health =
        if status.healthy { palette.good("yes") } else { palette.bad(&format!("no: {}", status.problem)) };
    let selected = match (status.selected, status.state) {
        (Some(slot), Some(state)) => format!("slot {slot}, {}", state.word()),
        _ => "nothing".to_owned(),
    };
    let open = if status.open.is_empty() {
        palette.good("nothing of the host")
    } else {
        palette.warn(&status.open.join("\n          "))
    };
    table::facts(&[("runs", runs), ("healthy", health), ("selected", selected), ("open", open)])
}

/// What the swap of a commit would do.
pub(super) fn swap_dry_run(engine: &Engine<'_>, config: &Config) -> Result<SwitchReport> {
    container::swap_dry_run(engine, &Nspawn::new(config.clone())?, config)
}

/// The swap of a commit.
pub(super) fn swap(engine: &Engine<'_>, config: &Config, json: bool) -> Result<()> {
    let format = Format::object_if(json);
    let runtime = Nspawn::new(config.clone())?;
    let report = container::swap(engine, &runtime, config, &Reporter::new(format))?;
    output::outcome(format, &report, |report: &SwapReport, palette| {
        let killed =
            if report.killed { palette.warn("; the old one had to be killed") } else { String::new() };
        format!("{}{killed}\n", report.done)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_running_is_said_plainly() {
        let status = ContainerStatus {
            running: None,
            healthy: false,
            problem: "no container runs".to_owned(),
            selected: None,
            state: None,
            open: Vec::new(),
        };
        assert_eq!(
            human(&status, Palette::PLAIN),
            "runs      nothing\nhealthy   no: no container runs\nselected  nothing\nopen      nothing of the host\n"
        );
    }
}
