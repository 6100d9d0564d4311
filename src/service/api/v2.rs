//! `/v2/upgrade` and `/v3/upgrade`: prepare and commit.

use axum::extract::{RawQuery, State};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::service::api::reply::{Answer, Body, Detail, Json, Reply, is_dry_run, overrides};
use crate::service::api::{Shared, audit, members};
use crate::service::owner::order::Order;
use crate::service::owner::upgrade::UpgradeSettings;
use crate::service::view::{Blocked, StatusV3};
use crate::service::wording::by_api;
use crate::source::address::shown;
use crate::state::UpgradeType;

/// Body of `POST /v2/upgrade/prepare`. A field that a client leaves out or sends as null is false.
#[derive(Debug, Deserialize)]
pub(super) struct PrepareBody {
    pub(super) image_path: String,
    #[serde(default)]
    auto_commit: Option<bool>,
    #[serde(default)]
    do_rolling_reboot: Option<bool>,
    #[serde(default)]
    num_nodes_to_reboot: Option<i64>,
}

/// Body of `POST /v2/upgrade/verify-image`.
#[derive(Debug, Deserialize)]
pub(super) struct ImageBody {
    pub(super) image_path: String,
}

/// Answer of `POST /v2/upgrade/verify-image`.
#[derive(Debug, Serialize)]
pub(super) struct Verified {
    target_version: Option<String>,
    upgrade_type: Option<UpgradeType>,
    error: Option<String>,
}

/// Number of nodes that may reboot at a time; `None`: the cluster decides.
///
/// # Errors
/// [`Error::BadRequest`] if the figures contradict each other.
pub(super) fn check_rolling(rolling: bool, nodes: Option<i64>) -> Result<Option<u64>> {
    let bad = |problem: String| Err(Error::BadRequest { problem });
    match nodes {
        Some(_) if !rolling => bad("num_nodes_to_reboot needs a rolling reboot".to_owned()),
        Some(n) => match u64::try_from(n) {
            Ok(n) if n > 0 => Ok(Some(n)),
            _ => bad(format!("num_nodes_to_reboot is {n}, the minimum is 1")),
        },
        None => Ok(None),
    }
}

impl PrepareBody {
    /// A prepare without commit.
    pub(super) fn of_path(image_path: String) -> Self {
        Self { image_path, auto_commit: None, do_rolling_reboot: None, num_nodes_to_reboot: None }
    }

    /// The settings, as far as they are known before the plan of the bundle.
    pub(super) fn settings(&self) -> Result<UpgradeSettings> {
        let rolling = self.do_rolling_reboot.unwrap_or(false);
        let num_nodes_to_reboot = check_rolling(rolling, self.num_nodes_to_reboot)?;
        Ok(UpgradeSettings {
            install_path: shown(&self.image_path).into_owned(),
            target_version: String::new(),
            upgrade_type: UpgradeType::SoftwareAndPlatform,
            auto_commit: self.auto_commit.unwrap_or(false),
            do_rolling_reboot: rolling,
            num_nodes_to_reboot,
        })
    }
}

pub(super) async fn status(State(api): Shared) -> Json<StatusV3> {
    Json(api.snapshot().v3())
}

/// The same under its old path, for clients that do not know REBOOTING.
pub(super) async fn status_v2(State(api): Shared) -> Json<StatusV3> {
    Json(api.snapshot().v3().before_rebooting())
}

pub(super) async fn blocked(State(api): Shared) -> Json<Blocked> {
    Json(api.snapshot().blocked())
}

/// Reports a fault of the bundle in the body of the answer, not by its status, as clients expect.
pub(super) async fn verify_image(
    State(api): Shared,
    RawQuery(query): RawQuery,
    Body(body): Body<ImageBody>,
) -> Reply<Json<Verified>> {
    let overrides = overrides(query.as_deref())?;
    Ok(Json(match api.plan(&body.image_path, overrides).await {
        Ok(planned) => Verified {
            target_version: Some(planned.target_version.clone()),
            upgrade_type: Some(planned.upgrade_type),
            error: planned.blocked_by.into_iter().next().map(|obstacle| by_api(&obstacle.message)),
        },
        Err(error) => Verified {
            target_version: None,
            upgrade_type: None,
            error: Some(by_api(&audit::sentence(&error))),
        },
    }))
}

pub(super) async fn prepare(
    State(api): Shared,
    RawQuery(query): RawQuery,
    Body(body): Body<PrepareBody>,
) -> Reply<Answer> {
    let query = query.as_deref();
    api.prepare(body, overrides(query)?, is_dry_run(query)?).await
}

pub(super) async fn commit(State(api): Shared, RawQuery(query): RawQuery) -> Reply<Answer> {
    if is_dry_run(query.as_deref())? {
        return match api.member() {
            Some(cluster) => members::commit_dry_run(cluster).await,
            None => api.commit_dry_run().await,
        };
    }
    match api.member() {
        Some(cluster) => cluster.commit()?,
        None => api.owner.order(Order::Commit { dry_run: false }).await.map(|_| ())?,
    }
    let settings = api.snapshot().upgrade.settings.clone();
    Ok(Answer::Accepted(Detail(settings.map(|settings| settings.target_version).unwrap_or_default())))
}
