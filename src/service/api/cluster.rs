//! `/v1/shutdown`, `/v1/version`, `/v1/node`, `/v1/cluster`: the truth of a single node.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use serde::{Deserialize, Serialize};

use crate::cluster::orders;
use crate::cluster::state::NodeId;
use crate::error::{Error, Result, sentence};
use crate::service::api::reply::{Accepted, Answer, Body, Detail, Json, Reply};
use crate::service::api::v2::check_rolling;
use crate::service::api::{Api, Shared, members};
use crate::service::owner::order::Order;
use crate::service::view::{RebootStatus, Version};

/// Number of the only node.
const NODE: u64 = 1;

/// Body of `POST /v1/shutdown/reboot/start`.
#[derive(Debug, Deserialize)]
pub(super) struct RebootBody {
    #[serde(default)]
    is_rolling: Option<bool>,
    #[serde(default)]
    num_nodes_to_reboot: Option<i64>,
}

/// Answer of `GET /v1/node/state`.
#[derive(Debug, Serialize)]
pub(super) struct NodeState {
    node_id: u64,
    state: &'static str,
    cluster_id: String,
}

/// Answer of `GET /v1/unconfigured/nodes/`.
#[derive(Debug, Serialize)]
pub(super) struct UnconfiguredNodes {
    nodes: Vec<UnconfiguredNode>,
}

#[derive(Debug, Serialize)]
struct UnconfiguredNode {
    /// The host's name.
    label: String,
    model_number: String,
    node_version: Version,
    /// The machine's identity; empty if it has none.
    uuid: String,
    disk_info: DiskInfo,
}

#[derive(Debug, Serialize)]
struct DiskInfo {
    slot_counts: SlotCounts,
    ssd_partition_size: &'static str,
    hdd_partition_size: &'static str,
}

#[derive(Debug, Serialize)]
struct SlotCounts {
    ssds: u32,
    hdds: u32,
}

pub(super) async fn reboot_start(State(api): Shared, Body(body): Body<RebootBody>) -> Reply<Accepted> {
    let rolling = body.is_rolling.unwrap_or(false);
    let nodes = check_rolling(rolling, body.num_nodes_to_reboot)?;
    start(api, rolling, nodes).await
}

/// `POST /v1/cluster/reboot`: the complete reboot, by its old name.
pub(super) async fn reboot_all(State(api): Shared) -> Reply<Accepted> {
    start(api, false, None).await
}

/// Begins a reboot of all nodes: of the members of the cluster, or of the single node.
async fn start(api: Arc<Api>, rolling: bool, nodes: Option<u64>) -> Reply<Accepted> {
    if let Some(cluster) = api.member() {
        let (cluster, nodes) = (Arc::clone(cluster), nodes.and_then(|nodes| u32::try_from(nodes).ok()));
        members::waiting(move || cluster.order(|view| orders::reboot(view, rolling, nodes))).await?;
        return Ok(Accepted(Detail("reboot of the cluster".to_owned())));
    }
    if rolling {
        return Err(Error::NotACluster { what: "a rolling reboot".to_owned() }.into());
    }
    reboot(State(api)).await
}

pub(super) async fn reboot(State(api): Shared) -> Reply<Accepted> {
    api.alone("a reboot of one node", "use /v1/shutdown/reboot/start, which is for all of them")?;
    api.owner.order(Order::Reboot).await?;
    Ok(Accepted(Detail("reboot".to_owned())))
}

pub(super) async fn reboot_node(State(api): Shared, Path(node): Path<String>) -> Reply<Accepted> {
    // On a member it is refused for every node, so that no caller tries each of them in turn.
    if !node.parse().is_ok_and(|number| members::address_of(&api, number).is_some()) {
        this(&api, &node)?;
    }
    reboot(State(api)).await
}

/// Halts the single node. A member would halt alone, although the request is for all nodes.
pub(super) async fn halt_all(State(api): Shared) -> Reply<Accepted> {
    api.alone(
        "a halt of all nodes",
        "halt them one by one, each by /v1/shutdown/halt/NODE at its own address",
    )?;
    halt(State(api)).await
}

pub(super) async fn halt(State(api): Shared) -> Reply<Accepted> {
    api.owner.order(Order::Halt).await?;
    Ok(Accepted(Detail("halt".to_owned())))
}

pub(super) async fn halt_node(State(api): Shared, Path(node): Path<String>) -> Reply<Accepted> {
    this(&api, &node)?;
    halt(State(api)).await
}

/// Refuses the number of another node, or of no node.
fn this(api: &Api, node: &str) -> Result<()> {
    let own = api.cluster.as_ref().map_or(NODE, |cluster| cluster.node().0.into());
    match node.parse() {
        Ok(number) if number == own => Ok(()),
        Ok(number) => Err(match members::address_of(api, number) {
            Some(address) => Error::ElsewhereNode { node: number, address },
            None => Error::NoSuchNode { node: node.to_owned() },
        }),
        Err(_) => Err(Error::NoSuchNode { node: node.to_owned() }),
    }
}

/// `POST /v1/shutdown/reboot/pause`. Pause and resume are for rolling reboots, which a single node does not have.
pub(super) async fn reboot_pause(State(api): Shared, RawQuery(query): RawQuery) -> Reply<Answer> {
    members::reboot(&api, query.as_deref(), "pause after the group under way", orders::pause).await
}

pub(super) async fn reboot_resume(State(api): Shared, RawQuery(query): RawQuery) -> Reply<Answer> {
    members::reboot(&api, query.as_deref(), "go on", orders::resume).await
}

pub(super) async fn reboot_status(State(api): Shared) -> Json<RebootStatus> {
    Json(api.snapshot().reboot())
}

pub(super) async fn container_restart(State(api): Shared) -> Reply<Accepted> {
    api.owner.order(Order::RestartContainer).await?;
    Ok(Accepted(Detail("software restarted".to_owned())))
}

/// Restarts the software on all nodes.
pub(super) async fn container_restart_all(State(api): Shared) -> Reply<Accepted> {
    let Some(cluster) = api.member().cloned() else { return container_restart(State(api)).await };
    // On a task of its own: if the client closes the connection, the results of the others must still be read, or their orders
    // would remain.
    let restarts = tokio::spawn(async move {
        let others = Arc::clone(&cluster);
        let others = members::waiting(move || others.restart_others()).await?;
        let own = api.owner.order(Order::RestartContainer).await.map(|_| ());
        let restarted = members::waiting(move || cluster.restarted(own, others)).await;
        restarted.inspect_err(|error| tracing::warn!(code = error.code(), "{}", sentence(error)))
    });
    restarts.await.map_err(|problem| Error::Internal { what: format!("a task was lost: {problem}") })??;
    Ok(Accepted(Detail("software of all nodes restarted".to_owned())))
}

pub(super) async fn container_restart_node(State(api): Shared, Path(node): Path<String>) -> Reply<Accepted> {
    let other = api.member().filter(|cluster| node != cluster.node().0.to_string()).cloned();
    if let Some(cluster) = other {
        let number = node.parse().map(NodeId).map_err(|_| Error::NoSuchNode { node })?;
        members::waiting(move || cluster.restart(number)).await?;
        return Ok(Accepted(Detail(format!("software of {number} restarted"))));
    }
    this(&api, &node)?;
    container_restart(State(api)).await
}

/// The nodes without a cluster: this one, unless it is a member. The service knows nothing of its disks that clients would
/// print.
pub(super) async fn unconfigured(State(api): Shared) -> Json<UnconfiguredNodes> {
    if api.member().is_some() {
        return Json(UnconfiguredNodes { nodes: Vec::new() });
    }
    let snapshot = api.snapshot();
    let label = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let uuid = crate::host::machine_id();
    let disk_info = DiskInfo {
        slot_counts: SlotCounts { ssds: 0, hdds: 0 },
        ssd_partition_size: "0",
        hdd_partition_size: "0",
    };
    let node_version = snapshot.version();
    let model_number = node_version.product().to_owned();
    Json(UnconfiguredNodes {
        nodes: vec![UnconfiguredNode { label, model_number, node_version, uuid, disk_info }],
    })
}

pub(super) async fn version(State(api): Shared) -> Json<Version> {
    Json(api.snapshot().version())
}

pub(super) async fn node_state(State(api): Shared) -> Json<NodeState> {
    let state = api.cluster.as_ref().map(|cluster| cluster.node_state());
    let (node_id, state, cluster_id) = state.unwrap_or((1, "UNCONFIGURED", String::new()));
    Json(NodeState { node_id: node_id.into(), state, cluster_id })
}
