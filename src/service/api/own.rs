//! `/v1/qstage`: requests that the upgrade API of the official client lacks.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use crate::error::{Class, Error, NO_ERROR};
use crate::host::journal::Event;
use crate::service::Service;
use crate::service::api::reply::{Body, Detail, Json, Reply, is_set, overrides};
use crate::service::api::v2::ImageBody;
use crate::service::api::{Api, Shared, UPGRADE_ALL, audit, members, turn};
use crate::service::owner::blocking::{SILENCE, unless_silent};
use crate::service::owner::order::Order;
use crate::service::view::Detailed;
use crate::state::{SlotsReport, SwitchReport};
use crate::units::Slot;

/// The description of all endpoints.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

/// Maximum of shown entries of the history, the newest ones.
const HISTORY: usize = 500;

/// Body of `POST /v1/qstage/mark-good`.
#[derive(Debug, Deserialize)]
pub(super) struct MarkBody {
    /// Platform slot to repair; `None`: the running one is marked.
    #[serde(default)]
    slot: Option<String>,
}

pub(super) async fn status(State(api): Shared) -> Json<Detailed> {
    Json(api.snapshot().detailed())
}

pub(super) async fn slots(State(api): Shared) -> Reply<Json<SlotsReport>> {
    let snapshot = api.snapshot();
    match (&snapshot.slots, &snapshot.disk_error) {
        (Some(slots), None) => Ok(Json(slots.clone())),
        // A silent disk has not changed: its slots are shown as of the last look, and the status names the disk.
        (Some(slots), Some(failure)) if failure.code == "UPGRADE_ERROR_NO_ANSWER" => Ok(Json(slots.clone())),
        (_, error) => {
            let unread = || ("UPGRADE_ERROR_NO_ANSWER", "the disk has not been read yet");
            let (code, message) = error
                .as_ref()
                .map_or_else(unread, |failure| (failure.code.as_str(), failure.message.as_str()));
            Err(Error::Remote { code: code.to_owned(), class: Class::Disk, message: message.to_owned() }
                .into())
        }
    }
}

pub(super) async fn plan(
    State(api): Shared,
    RawQuery(query): RawQuery,
    Body(body): Body<ImageBody>,
) -> Reply<Json<serde_json::Value>> {
    Ok(Json(api.plan(&body.image_path, overrides(query.as_deref())?).await?.report))
}

pub(super) async fn history(State(api): Shared) -> Reply<Json<Vec<Event>>> {
    let _place = turn(&api.histories, "the history").await?;
    let mut events = match unless_silent(&api.service, SILENCE, |service| service.place.history()).await {
        // Only the disk identifies its history; if the journal has a single one, there is no doubt.
        Err(error @ Error::NoAnswer { .. }) => {
            let known = api.service.place.only_history();
            if known.is_empty() {
                return Err(error.into());
            }
            known
        }
        other => other?,
    };
    if !audit::informed() {
        let failed = events.iter_mut().filter(|event| event.code != NO_ERROR);
        failed.for_each(|event| event.message = Error::remote(&event.code, "").for_readers());
    }
    events.drain(..events.len().saturating_sub(HISTORY));
    Ok(Json(events))
}

pub(super) async fn mark_good(State(api): Shared, Body(body): Body<MarkBody>) -> Reply<Response> {
    api.alone("a mark", UPGRADE_ALL)?;
    let slot = match body.slot.as_deref() {
        None => None,
        Some("a") => Some(Slot::A),
        Some("b") => Some(Slot::B),
        Some(other) => {
            return Err(Error::BadRequest { problem: format!("slot is '{other}', not 'a' or 'b'") }.into());
        }
    };
    switch(&api, Order::MarkGood(slot)).await
}

/// Rolls back. With `?dry_run=true` it answers which slots would be selected, for a dialog that asks first.
pub(super) async fn roll_back(State(api): Shared, RawQuery(query): RawQuery) -> Reply<Response> {
    api.alone("a roll-back", UPGRADE_ALL)?;
    if is_set(query.as_deref(), "dry_run")? {
        let planned = |service: &Service| service.place.roll_back_dry_run();
        return switched(Some(unless_silent(&api.service, SILENCE, planned).await?));
    }
    switch(&api, Order::RollBack).await
}

/// Stops a prepare, or discards the prepared bundle; answers when that is done. A stopped prepare has no report of a
/// switch: null.
pub(super) async fn cancel(State(api): Shared) -> Reply<Response> {
    if let Some(cluster) = api.member() {
        let cluster = Arc::clone(cluster);
        members::waiting(move || cluster.order(crate::cluster::orders::cancel)).await?;
        return switched(None);
    }
    switched(api.cancel().await?)
}

async fn switch(api: &Api, order: Order) -> Reply<Response> {
    switched(api.owner.order(order).await?)
}

fn switched(report: Option<SwitchReport>) -> Reply<Response> {
    let dry = report.as_ref().is_some_and(|report| report.dry_run);
    let done = report.as_ref().map(|report| report.done.clone()).unwrap_or_default();
    let detail = Detail(if dry { format!("dry run: {done}") } else { done });
    let mut response = Json(report).into_response();
    response.extensions_mut().insert(detail);
    Ok(response)
}

pub(super) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}
