//! `/v1/upgrade`: the API of a single node. The client sets a target state, and the node works towards it.

use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use crate::error::{Error, Remedy};
use crate::service::api::reply::{Body, Detail, Json, Reply, overrides};
use crate::service::api::v2::PrepareBody;
use crate::service::api::{Shared, UPGRADE_ALL};
use crate::service::owner::order::Order;
use crate::service::owner::upgrade::Phase;
use crate::service::view::{SettingsV1, StatusV1};
use crate::source::address::shown;

/// Body of `PUT /v1/upgrade/settings`.
#[derive(Debug, Deserialize)]
pub(super) struct SettingsBody {
    #[serde(default)]
    install_path: String,
    target: Target,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Target {
    #[serde(rename = "UPGRADE_TARGET_IDLE")]
    Idle,
    #[serde(rename = "UPGRADE_TARGET_PREPARE")]
    Prepare,
    #[serde(rename = "UPGRADE_TARGET_ARM")]
    Arm,
}

pub(super) async fn settings(State(api): Shared) -> Json<SettingsV1> {
    Json(api.snapshot().settings_v1())
}

pub(super) async fn status(State(api): Shared) -> Json<StatusV1> {
    Json(api.snapshot().v1())
}

/// Prepares, commits the prepared bundle, or cancels. A target that is already reached changes nothing.
pub(super) async fn put_settings(
    State(api): Shared,
    RawQuery(query): RawQuery,
    Body(body): Body<SettingsBody>,
) -> Reply<Response> {
    let overrides = overrides(query.as_deref())?;
    let named = shown(&body.install_path).into_owned();
    let detail = Detail(format!("{:?} {named}", body.target));
    api.alone("/v1/upgrade/settings", UPGRADE_ALL)?;
    match body.target {
        Target::Idle => match api.cancel().await {
            Ok(_) | Err(Error::NothingToCancel { .. }) => {}
            Err(error) => return Err(error.into()),
        },
        Target::Prepare => {
            api.prepare(PrepareBody::of_path(body.install_path), overrides, false).await?;
        }
        Target::Arm => {
            let snapshot = api.snapshot();
            let settings =
                snapshot.upgrade.settings.as_ref().filter(|_| snapshot.upgrade.phase == Phase::Prepared);
            let other = settings.map(|settings| &settings.install_path).filter(|path| **path != named);
            // A commit of another bundle than the named one would be worse than an error.
            if let Some(other) = other.filter(|_| !named.is_empty()) {
                let problem = format!("'{other}' is prepared, not this bundle");
                return Err(Error::NotPrepared { problem, remedy: Remedy::CommitOther }.into());
            }
            api.owner.order(Order::Commit { dry_run: false }).await?;
        }
    }
    let mut response = Json(api.snapshot().settings_v1()).into_response();
    response.extensions_mut().insert(detail);
    Ok(response)
}
