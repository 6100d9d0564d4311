//! `qstage watch`.

use std::io::{self, IsTerminal};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::super::args::MachineArgs;
use super::super::machine;
use super::super::output::{self, Format, json_line, print, result};
use super::super::terminal;
use super::connection::{Client, ServiceArgs};
use crate::error::{Error, NO_ERROR, Result};
use crate::host::journal::Event;
use crate::progress::Cancel;
use crate::service::owner::upgrade::UpgradeSettings;
use crate::state::UpgradeType;
use crate::units::text;

/// Interval of requests to the service.
const EVERY: Duration = Duration::from_millis(500);
/// Longest absence of a service that responded before: its supervisor may restart it.
const AWAY: Duration = Duration::from_secs(20);

/// Follow the upgrade of a service until it ends or waits
///
/// Ends when the upgrade is prepared, committed, or has failed; the exit code is then
/// that of the failure. Ctrl-C ends the view, not the upgrade.
#[derive(Debug, Args)]
pub(in crate::cli) struct WatchArgs {
    /// Print each change as one line of JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,

    #[command(flatten)]
    service: ServiceArgs,

    #[command(flatten)]
    machine: MachineArgs,
}

/// The v3 status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct V3Status {
    pub(super) state: String,
    progress: Option<u64>,
    settings: Option<UpgradeSettings>,
    error_info: Option<String>,
}

/// The part of the v1 status that v3 lacks.
#[derive(Deserialize)]
struct Code {
    error_state: String,
}

/// The part that both lack.
#[derive(Deserialize)]
struct Detail {
    last_swap: Option<Event>,
}

/// Outcome of the upgrade.
#[derive(Debug, Serialize)]
pub(super) struct WatchedUpgrade {
    state: String,
    settings: Option<UpgradeSettings>,
}

impl WatchArgs {
    pub(in crate::cli) fn run(&self) -> Result<()> {
        let client = self.service.client(&self.machine.settings()?)?;
        let outcome = watch(&client, self.json, &machine::cancel_on_signals()?)?;
        finish(&client, self.json, &outcome)
    }
}

/// Prints the outcome.
pub(super) fn finish(client: &Client, json: bool, outcome: &WatchedUpgrade) -> Result<()> {
    result(Format::lines_if(json), outcome, |outcome, palette| {
        let version = outcome.settings.as_ref().map_or("", |settings| settings.target_version.as_str());
        match outcome.word() {
            "IDLE" => "no upgrade is under way\n".to_owned(),
            "PREPARED" => {
                format!("{version} {}; 'qstage upgrade --commit' switches to it\n", palette.good("prepared"))
            }
            "REBOOTING" => format!("{version} {}, the machine is rebooting\n", palette.good("committed")),
            _ => format!("{version} {}{}\n", palette.good("committed"), downtime(client, outcome)),
        }
    })
}

/// Downtime of the software after a swap, as a sentence; empty if the service does not report it.
fn downtime(client: &Client, outcome: &WatchedUpgrade) -> String {
    let software =
        outcome.settings.as_ref().is_some_and(|settings| settings.upgrade_type == UpgradeType::SoftwareOnly);
    let asked = software.then(|| client.get("/v1/qstage/status").ok()).flatten();
    let detail = asked.and_then(|text| serde_json::from_str::<Detail>(&text).ok());
    let downtime = detail.and_then(|detail| detail.last_swap?.downtime_ms);
    downtime.map_or_else(String::new, |ms| format!(", downtime {ms:.0} ms"))
}

impl WatchedUpgrade {
    pub(super) fn word(&self) -> &str {
        self.state.trim_start_matches("UPGRADE_STATE_")
    }
}

/// Shows the upgrade until it ends or waits.
pub(super) fn watch(client: &Client, json: bool, cancel: &Cancel) -> Result<WatchedUpgrade> {
    let mut view = View::new(json);
    let (mut last, mut lost): (Option<V3Status>, Option<Instant>) = (None, None);
    loop {
        cancel.check("watching (the upgrade itself goes on; 'qstage watch' shows it again)")?;
        match status(client) {
            Ok(status) => {
                lost = None;
                if last.as_ref() != Some(&status) {
                    view.show(&status)?;
                }
                let moves = ["UPGRADE_STATE_PREPARING", "UPGRADE_STATE_COMMITTING"];
                if status.error_info.is_some() {
                    return Err(failure(client, &status));
                }
                if !moves.contains(&status.state.as_str()) {
                    return Ok(WatchedUpgrade { state: status.state, settings: status.settings });
                }
                last = Some(status);
            }
            // During a reboot of the machine or a restart of the service there is no connection for a while.
            Err(error @ Error::ServiceUnreachable { .. }) if last.is_some() => {
                if lost.get_or_insert_with(Instant::now).elapsed() > AWAY {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
        thread::sleep(EVERY);
    }
}

fn status(client: &Client) -> Result<V3Status> {
    let text = client.get("/v3/upgrade/status")?;
    serde_json::from_str(&text).map_err(|problem| Error::ServiceUnreachable {
        service: client.name().to_owned(),
        problem: format!("its status cannot be read: {problem}"),
    })
}

/// The error of a status, with the code from v1.
fn failure(client: &Client, status: &V3Status) -> Error {
    let code = client
        .get("/v1/upgrade/status")
        .ok()
        .and_then(|text| serde_json::from_str::<Code>(&text).ok())
        .map_or_else(|| NO_ERROR.to_owned(), |code| code.error_state);
    Error::remote(&code, status.error_info.as_deref().unwrap_or_default())
}

enum View {
    Json,
    Bar(ProgressBar),
    Lines(Option<u64>),
}

impl View {
    fn new(json: bool) -> Self {
        if json {
            return Self::Json;
        }
        if !io::stderr().is_terminal() {
            return Self::Lines(None);
        }
        let bar = ProgressBar::with_draw_target(Some(100), terminal::target());
        let style = ProgressStyle::with_template("{prefix:>12} [{bar:30}] {pos} % {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        Self::Bar(bar)
    }

    fn show(&mut self, status: &V3Status) -> Result<()> {
        let word = status.state.trim_start_matches("UPGRADE_STATE_").to_lowercase();
        match self {
            Self::Json => print(&json_line(&output::JsonEvent::new("status", status))?)?,
            Self::Bar(bar) => {
                bar.set_prefix(text::shown(&word).into_owned());
                bar.set_position(status.progress.unwrap_or_default());
            }
            Self::Lines(last) => {
                // Ten lines are acceptable in a journal.
                let tens = status.progress.map(|percent| percent / 10);
                if *last != tens || word != "preparing" {
                    *last = tens;
                    super::super::output::note(&format!("{word} {} %", status.progress.unwrap_or_default()));
                }
            }
        }
        Ok(())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
