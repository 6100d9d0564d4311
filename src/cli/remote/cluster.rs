//! `qstage cluster`.

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::args::PlacesArgs;
use super::super::output::{Format, Palette, print, result};
use super::super::table::{self, Cell};
use super::super::values;
use super::connection::{Client, ServiceArgs};
use crate::error::{Error, Result};

/// Manage the cluster that this node belongs to
///
/// Upgrades of all nodes are requested by 'qstage upgrade' and the upgrade API at any of
/// them; these verbs manage the membership, and control a rolling reboot. They connect to
/// the service of this machine, or to the one that --service names.
#[derive(Debug, Args)]
pub(in crate::cli) struct ClusterArgs {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Show the nodes, the step of each, and what the cluster waits for
    Status(StatusArgs),
    /// Make this node a member, by its number in the configuration
    ///
    /// The first node that joins creates the cluster. A node that runs another release
    /// than the members is refused.
    Join(OrderArgs),
    /// End the membership of this node, or of one that is gone for good
    Leave(LeaveArgs),
    /// Finish the current group of a rolling reboot, and start no other one
    Pause(OrderArgs),
    /// Continue a rolling reboot that was paused or has failed
    ///
    /// The node that failed is tried again.
    Resume(OrderArgs),
    /// Abandon a rolling upgrade that is paused or has failed
    ///
    /// The nodes that run the new release return to the previous one in a rolling reboot,
    /// one group after the other.
    Abandon(OrderArgs),
    /// Withdraw the reboot permission of a node that does not come back
    ///
    /// Check the node first: after 'resume' another one may reboot.
    TakeBack(TakeBackArgs),
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    plain: PlainArgs,
}

#[derive(Debug, Args)]
struct PlainArgs {
    #[command(flatten)]
    service: ServiceArgs,

    #[command(flatten)]
    places: PlacesArgs,
}

#[derive(Debug, Args)]
struct OrderArgs {
    /// Show what would be written to etcd, or the refusal; write nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    plain: PlainArgs,
}

#[derive(Debug, Args)]
struct LeaveArgs {
    /// Number of the node [default: this one]
    #[arg(value_parser = values::whole::<u32>)]
    node: Option<u32>,

    #[command(flatten)]
    order: OrderArgs,
}

#[derive(Debug, Args)]
struct TakeBackArgs {
    /// Number of the node
    #[arg(value_parser = values::whole::<u32>)]
    node: u32,

    #[command(flatten)]
    order: OrderArgs,
}

/// The fields of `GET /v1/qstage/cluster` that are shown to people.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ClusterSummary {
    node_id: u32,
    state: String,
    cluster_id: String,
    connected: bool,
    problem: String,
    leader: Option<u32>,
    stage: String,
    /// Version that all nodes ran when the upgrade was ordered; empty: none is in progress, or an older service answered.
    #[serde(default)]
    starting_version: String,
    /// Version of the upgrade in progress; as above.
    #[serde(default)]
    target_version: String,
    pub(super) waits_for: String,
    pub(super) nodes: Vec<MemberSummary>,
}

/// A node in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MemberSummary {
    pub(super) id: u32,
    pub(super) address: String,
    pub(super) version: String,
    pub(super) standing: String,
    pub(super) reason: String,
    pub(super) doing: String,
    pub(super) progress: Option<u64>,
}

impl ClusterSummary {
    /// Whether the node that answered belongs to the cluster.
    pub(super) fn is_member(&self) -> bool {
        !["UNCONFIGURED", "UNKNOWN"].contains(&self.state.as_str())
    }
}

impl PlainArgs {
    fn client(&self) -> Result<Client> {
        self.service.client(&self.places.settings()?)
    }
}

impl OrderArgs {
    fn order(&self, path: &str, done: &str) -> Result<()> {
        let client = self.plain.client()?;
        if self.dry_run {
            let planned = client.dry_run(path, &json!({}))?;
            return print(&planned.for_people());
        }
        client.post(path, &json!({}))?;
        print(&format!("{done}\n"))
    }
}

impl ClusterArgs {
    pub(in crate::cli) fn run(&self) -> Result<()> {
        match &self.act {
            Act::Status(args) => {
                let status = status(&args.plain.client()?)?;
                result(Format::object_if(args.json), &status, shown)
            }
            Act::Join(args) => args.order("/v1/qstage/cluster/join", "joined"),
            Act::Leave(args) => match args.node {
                Some(node) => args.order.order(&format!("/v1/qstage/cluster/leave/{node}"), "left"),
                None => args.order.order("/v1/qstage/cluster/leave", "left"),
            },
            Act::Pause(args) => args.order("/v1/shutdown/reboot/pause", "paused after the group under way"),
            Act::Resume(args) => args.order("/v1/shutdown/reboot/resume", "going on"),
            Act::Abandon(args) => {
                args.order("/v1/qstage/cluster/abandon", "nodes return to the previous release")
            }
            Act::TakeBack(args) => {
                let path = format!("/v1/qstage/cluster/take-back/{}", args.node);
                args.order.order(&path, "taken back; 'qstage cluster resume' goes on")
            }
        }
    }

    pub(in crate::cli) const fn wants_json(&self) -> bool {
        matches!(&self.act, Act::Status(args) if args.json)
    }
}

/// The status of the cluster, from the service.
pub(super) fn status(client: &Client) -> Result<ClusterSummary> {
    let text = client.get("/v1/qstage/cluster")?;
    serde_json::from_str(&text).map_err(|problem| Error::ServiceUnreachable {
        service: client.name().to_owned(),
        problem: format!("answers strangely: {problem}"),
    })
}

fn shown(status: &ClusterSummary, palette: Palette) -> String {
    let mut text = match (status.state.as_str(), status.leader) {
        ("UNCONFIGURED", _) if !status.problem.is_empty() => "this machine is no member\n".to_owned(),
        ("UNCONFIGURED", _) => {
            format!("node {} is no member; 'qstage cluster join' makes it one\n", status.node_id)
        }
        (_, Some(leader)) => format!("cluster {}, led by node {leader}\n", status.cluster_id),
        (_, None) => format!("cluster {}, without a leader\n", status.cluster_id),
    };
    if !status.problem.is_empty() {
        let word = if status.connected { "this machine takes no part" } else { "what follows is old" };
        text.push_str(&format!("{}: {}\n", palette.bad(word), status.problem));
    }
    let versions = match (status.starting_version.as_str(), status.target_version.as_str()) {
        (_, "") => String::new(),
        ("", target) => format!(" to {target}"),
        (starting, target) => format!(" from {starting} to {target}"),
    };
    if !status.waits_for.is_empty() {
        text.push_str(&format!("{}{versions}, waits for {}\n", status.stage, status.waits_for));
    } else if !versions.is_empty() {
        text.push_str(&format!("{}{versions}\n", status.stage));
    }
    let mut rows = Vec::new();
    for node in &status.nodes {
        let is = if node.reason.is_empty() {
            node.standing.clone()
        } else {
            format!("{}: {}", node.standing, node.reason)
        };
        let percent = node.progress.map(|percent| format!(" {percent} %")).unwrap_or_default();
        let does = format!("{}{percent}", node.doing);
        let paint = match node.standing.as_str() {
            "good" => Palette::good,
            "trial" => Palette::warn,
            _ => Palette::bad,
        };
        rows.push(vec![
            format!("node {}", node.id).into(),
            node.version.clone().into(),
            Cell::painted(is, paint),
            does.into(),
            node.address.clone().into(),
        ]);
    }
    text.push_str(&table::render(&["NODE", "VERSION", "STATE", "DOES", "ADDRESS"], rows, palette));
    text
}
