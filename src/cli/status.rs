//! `qstage status`.

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::answers::look_within_limit;
use super::args::MachineArgs;
use super::machine::{Host, find_disk};
use super::output::{self, Palette};
use super::remote::ServiceArgs;
use super::table;
use crate::error::{Error, NO_ERROR, Result};
use crate::host::journal::Event;
use crate::state::SlotsReport;
use crate::units::Group;

/// Print the state of the upgrade as one line of JSON
///
/// Seven keys in a fixed order: install_path, state, details, error_message,
/// error_state, is_blocked, blocked_reason. States: UPGRADE_IDLE, UPGRADE_PREPARING,
/// UPGRADE_PREPARED, UPGRADE_TRIAL; with --service also UPGRADE_COMMITTING and
/// UPGRADE_REBOOTING.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Print a table for people, with what runs and the last swap of the container
    #[arg(long)]
    human: bool,

    #[command(flatten)]
    service: ServiceArgs,

    #[command(flatten)]
    pub(super) machine: MachineArgs,
}

/// The table for people: the seven keys, and facts beyond them.
#[derive(Debug, Serialize, Deserialize)]
struct Shown {
    install_path: String,
    state: String,
    details: String,
    error_message: String,
    error_state: String,
    is_blocked: bool,
    blocked_reason: String,
    #[serde(default)]
    last_swap: Option<Event>,
    /// What runs, from the service only its version; `None`: unknown.
    #[serde(default)]
    version: Option<String>,
}

impl StatusArgs {
    pub(super) fn run(&self) -> Result<()> {
        let mut settings = self.machine.settings()?;
        if self.service.is_given() {
            let path = if self.human { "/v1/qstage/status" } else { "/v1/upgrade/status" };
            let text = self.service.client(&settings)?.get(path)?;
            if self.human {
                return self.table(serde_json::from_str(&text).unwrap_or_default(), None, None);
            }
            return output::json(&text);
        }
        find_disk(&mut settings)?;
        let human = self.human;
        let (status, last_swap, runs) = look_within_limit(&settings, move |settings| {
            let host = Host::open_to_look(settings)?;
            let engine = host.engine(settings.policy());
            let (swap, runs) =
                if human { (engine.last_swap()?, running(&engine.slots()?)) } else { (None, None) };
            Ok((engine.status()?, swap, runs))
        })?;
        if human {
            return self.table(serde_json::to_value(&status).unwrap_or_default(), last_swap, runs);
        }
        output::print(&output::json_line(&status)?)
    }

    fn table(&self, status: Value, swap: Option<Event>, runs: Option<String>) -> Result<()> {
        let what = |problem| Error::Internal { what: format!("a status that is none: {problem}") };
        let mut shown: Shown = serde_json::from_value(status).map_err(what)?;
        shown.last_swap = shown.last_swap.or(swap);
        shown.version = shown.version.or(runs);
        output::people(|palette| human(&shown, palette))
    }
}

/// The running release with its slots; `None`: unknown, as for an image file.
fn running(report: &SlotsReport) -> Option<String> {
    let newest = report.newest_running()?;
    let name = [newest.product.as_deref()?, newest.version.as_deref()?].join(" ");
    let slots = Group::BOTH.into_iter().filter_map(|group| report.running(group));
    let slots: Vec<String> = slots.map(|slot| format!("{}_{}", slot.group, slot.slot)).collect();
    Some(format!("{name} ({})", slots.join(", ")))
}

fn human(shown: &Shown, palette: Palette) -> String {
    let state = shown.state.trim_start_matches("UPGRADE_").to_lowercase();
    let mut facts = vec![("state", state)];
    if let Some(version) = shown.version.as_ref().filter(|version| *version != "unknown") {
        facts.insert(0, ("runs", version.clone()));
    }
    let mut fact = |name: &'static str, text: String| {
        if !text.is_empty() {
            facts.push((name, text));
        }
    };
    fact("details", shown.details.clone());
    fact("bundle", shown.install_path.clone());
    if shown.error_state != NO_ERROR {
        fact("error", palette.bad(&format!("{} [{}]", shown.error_message, shown.error_state)));
    }
    if shown.is_blocked {
        fact("blocked", palette.warn(&shown.blocked_reason));
    }
    if let Some(swap) = &shown.last_swap {
        let message = if swap.code == NO_ERROR { swap.message.clone() } else { palette.bad(&swap.message) };
        fact("last swap", format!("{message} ({})", swap.time));
        fact("downtime", swap.downtime_ms.map(|ms| format!("{ms:.0} ms")).unwrap_or_default());
    }
    table::facts(&facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_shown_what_there_is_and_no_empty_lines() {
        let text = r#"{"install_path":"","state":"UPGRADE_IDLE","details":"","error_message":"",
            "error_state":"UPGRADE_ERROR_NO_ERROR","is_blocked":false,"blocked_reason":""}"#;
        let mut shown: Shown = serde_json::from_str(text).unwrap();
        assert_eq!(human(&shown, Palette::PLAIN), "state  idle\n");
        shown.version = Some("Demo 1.0 (platform_a)".into());
        assert_eq!(human(&shown, Palette::PLAIN), "runs   Demo 1.0 (platform_a)\nstate  idle\n");
        shown.version = None;
        shown.error_state = "UPGRADE_ERROR_READ".into();
        shown.error_message = "m".into();
        let swap = Event::new("swap", NO_ERROR, "1.1 runs".into());
        shown.last_swap = Some(Event { time: "t".into(), downtime_ms: Some(127.4), ..swap });
        assert_eq!(
            human(&shown, Palette::PLAIN),
            "state      idle\nerror      m [UPGRADE_ERROR_READ]\nlast swap  1.1 runs (t)\ndowntime   127 ms\n"
        );
    }
}
