//! `/v1/shutdown`, `/v1/version`, `/v1/node`: the truth of a single node.

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};

use super::Shared;
use super::reply::{Accepted, Body, Detail, Reply};
use super::v2::check_rolling;
use crate::error::Error;
use crate::service::order::Order;
use crate::service::view::{RebootStatus, Version};

/// The number of the only node.
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

pub(super) async fn reboot_start(State(api): Shared, Body(body): Body<RebootBody>) -> Reply<Accepted> {
    check_rolling(body.is_rolling.unwrap_or(false), body.num_nodes_to_reboot)?;
    api.owner.order(Order::Reboot).await?;
    Ok(Accepted(Detail("reboot".to_owned())))
}

/// Pause and resume are for rolling reboots, which one node has not.
pub(super) async fn reboot_pause() -> Reply<()> {
    Err(Error::NoReboot.into())
}

pub(super) async fn reboot_status(State(api): Shared) -> Json<RebootStatus> {
    Json(api.owner.snapshot().reboot())
}

pub(super) async fn container_restart(State(api): Shared) -> Reply<Accepted> {
    api.owner.order(Order::RestartContainer).await?;
    Ok(Accepted(Detail("software restarted".to_owned())))
}

pub(super) async fn container_restart_node(State(api): Shared, Path(node): Path<String>) -> Reply<Accepted> {
    if node.parse() != Ok(NODE) {
        return Err(Error::BadRequest { problem: format!("there is no node '{node}', only {NODE}") }.into());
    }
    container_restart(State(api)).await
}

pub(super) async fn version(State(api): Shared) -> Json<Version> {
    Json(api.owner.snapshot().version())
}

pub(super) async fn node_state() -> Json<NodeState> {
    // A single node is a member of nothing, and works.
    Json(NodeState { node_id: NODE, state: "ACTIVE", cluster_id: String::new() })
}
