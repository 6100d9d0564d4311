//! Requests that concern all nodes of a cluster together.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::http::Uri;
use serde::Serialize;

use crate::cluster::orders;
use crate::cluster::state::{NodeId, Ordered};
use crate::cluster::store::Txn;
use crate::cluster::view::View;
use crate::error::{Error, Result};
use crate::service::api::reply::{Answer, Detail, Json, Reply, is_dry_run};
use crate::service::api::{Api, Shared, audit};
use crate::service::cluster::{Cluster, ClusterNode, ClusterStatus};
use crate::service::owner::upgrade::UpgradeSettings;
use crate::service::owner::worker::Overrides;
use crate::source::address;

/// `GET /v1/cluster/protection/status`. Clients only read the fields of the type for erasure codes.
#[derive(Debug, Serialize)]
pub(super) struct ProtectionReply {
    protection_system_type: &'static str,
    max_drive_failures: u32,
    max_node_failures: u32,
    remaining_drive_failures: u32,
    remaining_node_failures: u32,
    blocks_per_stripe: u32,
    data_blocks_per_stripe: u32,
}

/// `GET /v1/cluster/protection/restriper/status`.
#[derive(Debug, Serialize)]
pub(super) struct Restriper {
    status: &'static str,
    phase: &'static str,
}

/// `GET /v1/cluster/settings`.
#[derive(Debug, Serialize)]
pub(super) struct ClusterSettings {
    /// Prefix of its keys in etcd, without the slashes around it.
    cluster_name: String,
}

/// Waits for etcd on a thread for blocking work.
pub(super) async fn waiting<T: Send + 'static>(
    act: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let lost = |problem| Error::Internal { what: format!("a thread was lost: {problem}") };
    tokio::task::spawn_blocking(act).await.map_err(lost)?
}

/// The cluster; a refusal on a single node.
fn cluster(api: &Api, what: &str) -> Result<Arc<Cluster>> {
    api.cluster.clone().ok_or_else(|| Error::NotACluster { what: what.to_owned() })
}

pub(super) fn member(api: &Api, what: &str) -> Result<Arc<Cluster>> {
    api.member().cloned().ok_or_else(|| Error::NotACluster { what: what.to_owned() })
}

/// Address of the service of a member; `None`: `node` is no member.
pub(super) fn address_of(api: &Api, node: u64) -> Option<String> {
    api.member()?.address_of(NodeId(u32::try_from(node).ok()?))
}

/// Plans a bundle, and orders all nodes to prepare it. `path` is as the caller sent it.
///
/// # Errors
/// [`Error::BadRequest`] for a URL with a secret: the order is in etcd, where all nodes and their operators can read it.
pub(super) async fn prepare(
    api: &Api,
    cluster: &Arc<Cluster>,
    path: &str,
    settings: UpgradeSettings,
    overrides: Overrides,
    dry_run: bool,
) -> Reply<Answer> {
    if address::shown(path) != path {
        let problem = format!(
            "the URL {} has a user, a password, a query or a fragment, which etcd would show to all; use one without",
            settings.install_path
        );
        return Err(Error::BadRequest { problem }.into());
    }
    let (asked, wanted) = (Arc::clone(cluster), settings.install_path.clone());
    waiting(move || asked.admits(&wanted)).await?;
    let planned = api.plan(path, overrides).await?;
    if let Some(obstacle) = planned.blocked_by.first() {
        return Err(Error::remote(&obstacle.code, &obstacle.message).into());
    }
    let digest = planned.manifest.parse();
    let digest = digest.map_err(|_| Error::Internal { what: "a plan without a manifest".to_owned() })?;
    let order = Ordered {
        digest,
        source: (!address::is_web(path)).then(|| cluster.node()),
        install_path: settings.install_path,
        target_version: planned.target_version,
        upgrade_type: planned.upgrade_type,
        auto_commit: settings.auto_commit,
        rolling: settings.do_rolling_reboot,
        nodes: settings.num_nodes_to_reboot.map(|nodes| u32::try_from(nodes).unwrap_or(u32::MAX)),
        overridden: overrides.compatibility,
        retry: overrides.retry,
    };
    let (version, path) = (&order.target_version, &order.install_path);
    let detail = format!("{version} {path} on all nodes");
    let would = format!("prepare {version} on all nodes from {path}: {}", order.upgrade_type.word());
    let ordered = Arc::clone(cluster);
    if dry_run {
        let plan = waiting(move || ordered.prepare_dry_run(&order)).await?;
        return Ok(Answer::DryRun(would, plan));
    }
    waiting(move || ordered.prepare(&order)).await?;
    Ok(Answer::Accepted(Detail(detail)))
}

/// Writes an order of an operator to etcd and gives `done` as the answer; as a dry run, only what it would write.
async fn ordered(
    cluster: Arc<Cluster>,
    query: Option<&str>,
    would: &str,
    done: Answer,
    decide: impl Fn(&View) -> Result<Txn> + Send + 'static,
) -> Reply<Answer> {
    if is_dry_run(query)? {
        let plan = waiting(move || cluster.dry_run(decide)).await?;
        return Ok(Answer::DryRun(would.to_owned(), plan));
    }
    waiting(move || cluster.order(decide)).await?;
    Ok(done)
}

/// The commit that is dry-run.
pub(super) async fn commit_dry_run(cluster: &Arc<Cluster>) -> Reply<Answer> {
    let cluster = Arc::clone(cluster);
    let plan = waiting(move || cluster.dry_run(orders::commit)).await?;
    Ok(Answer::DryRun("commit the prepared bundle on all nodes".to_owned(), plan))
}

/// Handles pause and resume, `would` in words.
pub(super) async fn reboot(
    api: &Api,
    query: Option<&str>,
    would: &str,
    decide: fn(&View) -> Result<Txn>,
) -> Reply<Answer> {
    let Some(cluster) = api.member().cloned() else { return Err(Error::NoReboot.into()) };
    ordered(cluster, query, would, Answer::Done, decide).await
}

pub(super) async fn nodes(State(api): Shared, uri: Uri) -> Reply<Json<Vec<ClusterNode>>> {
    let nodes = member(&api, uri.path())?.nodes();
    Ok(Json(if audit::informed() {
        nodes
    } else {
        nodes.into_iter().map(ClusterNode::for_readers).collect()
    }))
}

pub(super) async fn node(State(api): Shared, uri: Uri, Path(node): Path<String>) -> Reply<Json<ClusterNode>> {
    let cluster = member(&api, uri.path())?;
    let id = number(&node)?;
    let found = cluster.nodes().into_iter().find(|node| node.is(id));
    let found = found.ok_or(Error::NoSuchNode { node })?;
    Ok(Json(if audit::informed() { found } else { found.for_readers() }))
}

pub(super) async fn settings(State(api): Shared, uri: Uri) -> Reply<Json<ClusterSettings>> {
    Ok(Json(ClusterSettings { cluster_name: member(&api, uri.path())?.name() }))
}

pub(super) async fn protection(State(api): Shared, uri: Uri) -> Reply<Json<ProtectionReply>> {
    let (remaining, maximum) = member(&api, uri.path())?.protection();
    Ok(Json(ProtectionReply {
        protection_system_type: "PROTECTION_SYSTEM_TYPE_EC",
        max_drive_failures: 0,
        max_node_failures: maximum,
        remaining_drive_failures: 0,
        remaining_node_failures: remaining,
        blocks_per_stripe: 0,
        data_blocks_per_stripe: 0,
    }))
}

pub(super) async fn restriper(State(api): Shared, uri: Uri) -> Reply<Json<Restriper>> {
    let status = if member(&api, uri.path())?.is_rebuilding() { "RUNNING" } else { "NOT_RUNNING" };
    Ok(Json(Restriper { status, phase: "" }))
}

pub(super) async fn status(State(api): Shared, uri: Uri) -> Reply<Json<ClusterStatus>> {
    let status = cluster(&api, uri.path())?.status();
    Ok(Json(if audit::informed() { status } else { status.for_readers() }))
}

pub(super) async fn join(State(api): Shared, uri: Uri, RawQuery(query): RawQuery) -> Reply<Answer> {
    let cluster = cluster(&api, uri.path())?;
    let service = Arc::clone(&api.service);
    let node = cluster.node();
    if is_dry_run(query.as_deref())? {
        let plan = waiting(move || cluster.join_dry_run(&service.place.look()?)).await?;
        return Ok(Answer::DryRun(format!("{node} joins"), plan));
    }
    waiting(move || cluster.join(&service.place.look()?)).await?;
    Ok(Answer::Accepted(Detail(format!("{node} joins"))))
}

pub(super) async fn leave(State(api): Shared, uri: Uri, RawQuery(query): RawQuery) -> Reply<Answer> {
    let cluster = member(&api, uri.path())?;
    let node = cluster.node();
    remove(cluster, query.as_deref(), node).await
}

pub(super) async fn leave_node(
    State(api): Shared,
    uri: Uri,
    RawQuery(query): RawQuery,
    Path(node): Path<String>,
) -> Reply<Answer> {
    let cluster = member(&api, uri.path())?;
    remove(cluster, query.as_deref(), number(&node)?).await
}

async fn remove(cluster: Arc<Cluster>, query: Option<&str>, node: NodeId) -> Reply<Answer> {
    let (would, leaves) = (format!("{node} leaves"), Arc::clone(&cluster));
    let done = Answer::Accepted(Detail(would.clone()));
    ordered(cluster, query, &would, done, move |view| leaves.leave(view, node)).await
}

pub(super) async fn abandon(State(api): Shared, uri: Uri, RawQuery(query): RawQuery) -> Reply<Answer> {
    let cluster = member(&api, uri.path())?;
    let would = "abandon the upgrade: the nodes return to the previous release";
    let done = Answer::Accepted(Detail("the upgrade is abandoned".to_owned()));
    ordered(cluster, query.as_deref(), would, done, orders::abandon).await
}

pub(super) async fn take_back(
    State(api): Shared,
    uri: Uri,
    RawQuery(query): RawQuery,
    Path(node): Path<String>,
) -> Reply<Answer> {
    let cluster = member(&api, uri.path())?;
    let node = number(&node)?;
    let done = Answer::Accepted(Detail(format!("the turn of {node} is withdrawn")));
    let would = format!("withdraw the turn of {node}");
    ordered(cluster, query.as_deref(), &would, done, move |view| orders::take_back(view, node)).await
}

fn number(node: &str) -> Result<NodeId> {
    node.parse().map(NodeId).map_err(|_| Error::NoSuchNode { node: node.to_owned() })
}
