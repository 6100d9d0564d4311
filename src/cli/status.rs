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

/// Print the state of the upgrade as one line of JSON
///
/// Seven keys in a fixed order: install_path, state, details, error_message,
/// error_state, is_blocked, blocked_reason. States: UPGRADE_IDLE, UPGRADE_PREPARING,
/// UPGRADE_PREPARED, UPGRADE_TRIAL; with --service also UPGRADE_COMMITTING and
/// UPGRADE_REBOOTING.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Print a table for people, with the last swap of the container
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
}

impl StatusArgs {
    pub(super) fn run(&self) -> Result<()> {
        let mut settings = self.machine.settings()?;
        if self.service.is_given() {
            let path = if self.human { "/v1/qstage/status" } else { "/v1/upgrade/status" };
            let text = self.service.client(&settings)?.get(path)?;
            if self.human {
                return self.table(serde_json::from_str(&text).unwrap_or_default(), None);
            }
            return output::json(&text);
        }
        find_disk(&mut settings)?;
        let human = self.human;
        let (status, last_swap) = look_within_limit(&settings, move |settings| {
            let host = Host::open_to_look(settings)?;
            let engine = host.engine(settings.policy());
            Ok((engine.status()?, if human { engine.last_swap()? } else { None }))
        })?;
        if human {
            return self.table(serde_json::to_value(&status).unwrap_or_default(), last_swap);
        }
        output::print(&output::json_line(&status)?)
    }

    fn table(&self, status: Value, swap: Option<Event>) -> Result<()> {
        let what = |problem| Error::Internal { what: format!("a status that is none: {problem}") };
        let mut shown: Shown = serde_json::from_value(status).map_err(what)?;
        shown.last_swap = shown.last_swap.or(swap);
        output::people(|palette| human(&shown, palette))
    }
}

fn human(shown: &Shown, palette: Palette) -> String {
    let state = shown.state.trim_start_matches("UPGRADE_").to_lowercase();
    let mut facts = vec![("state", state)];
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
