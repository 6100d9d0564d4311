//! `qstage watch`.

use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::super::args::PlacesArgs;
use super::super::machine;
use super::super::output::{Format, note, result};
use super::cluster::{self, ClusterSummary};
use super::connection::{Client, ServiceArgs};
use super::status::{COMMITTED, V3Status};
use super::view::UpgradeView;
use crate::error::{Error, NO_ERROR, Result};
use crate::host::journal::Event;
use crate::progress::Cancel;
use crate::service::owner::upgrade::UpgradeSettings;
use crate::state::UpgradeType;

/// Interval of requests to the service.
const EVERY: Duration = Duration::from_millis(500);
/// Longest absence of a service that responded before: its supervisor may restart it.
const AWAY: Duration = Duration::from_secs(20);
/// The same while the nodes of a cluster reboot: the machine of the service is one of them.
const BOOTS: Duration = Duration::from_secs(15 * 60);

/// Follow the upgrade of a service until it ends or waits
///
/// Ends when the upgrade is prepared, committed, or has failed; the exit code is then
/// that of the failure. On a member of a cluster it has a line per node, and goes on
/// until all nodes have rebooted. Ctrl-C ends the view, not the upgrade.
#[derive(Debug, Args)]
pub(in crate::cli) struct WatchArgs {
    /// Print each change as one line of JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,

    #[command(flatten)]
    service: ServiceArgs,

    #[command(flatten)]
    places: PlacesArgs,
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
        let client = self.service.client(&self.places.settings()?)?;
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
    let mut view = UpgradeView::new(json);
    let (mut last, mut lost): (Option<V3Status>, Option<Instant>) = (None, None);
    let mut nodes = members(client);
    loop {
        cancel.check("watching (the upgrade itself goes on; 'qstage watch' shows it again)")?;
        match status(client) {
            Ok(status) => {
                lost = None;
                // Its status says the same on a single node: only that of a cluster outlives the reboots.
                if nodes.is_some() {
                    nodes = members(client).or(nodes);
                }
                if last.as_ref() != Some(&status) {
                    view.show(&status)?;
                }
                if let Some(nodes) = &nodes {
                    view.show_nodes(nodes)?;
                }
                if status.error_info.is_some() {
                    return Err(failure(client, &status));
                }
                let ends = !status.moves(nodes.is_some());
                match last.filter(|last| ends && last.committed() && status.is_idle()) {
                    Some(last) => {
                        return Ok(WatchedUpgrade { state: COMMITTED.to_owned(), settings: last.settings });
                    }
                    None if ends => {
                        return Ok(WatchedUpgrade { state: status.state, settings: status.settings });
                    }
                    None => {}
                }
                last = Some(status);
            }
            // During a reboot of the machine or a restart of the service there is no connection for a while.
            Err(error @ Error::ServiceUnreachable { .. }) => {
                let Some(last) = &last else { return Err(error) };
                let limit = if nodes.is_some() && last.committed() { BOOTS } else { AWAY };
                if lost.is_none() && limit == BOOTS {
                    note("the service does not answer; its machine may be rebooting");
                }
                if lost.get_or_insert_with(Instant::now).elapsed() > limit {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
        thread::sleep(EVERY);
    }
}

/// The nodes of the cluster; `None`: the service is not one of a member, or does not answer.
fn members(client: &Client) -> Option<ClusterSummary> {
    cluster::status(client).ok().filter(ClusterSummary::is_member)
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
