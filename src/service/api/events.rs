//! Server-sent events: the v3 status at the start, and at each change.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::Stream;
use futures_util::stream::unfold;

use crate::error::Error;
use crate::service::api::reply::Reply;
use crate::service::api::{Shared, audit};
use crate::service::http::origin::{Origin, Peer};
use crate::units::text;

/// Shortest time between two events of one stream. Faster changes are left out, but never the last state.
const PACE: Duration = Duration::from_millis(200);

/// Longest time until a change of the cluster is sent.
const CLUSTER: Duration = Duration::from_secs(1);

/// Opens a stream of events. A member of a cluster sends the state of the cluster, as in the status. A client that does not read only occupies its place: there is no queue, only the newest state.
pub(super) async fn events(
    State(api): Shared,
    Extension(origin): Extension<Origin>,
) -> Reply<Sse<impl Stream<Item = std::result::Result<Event, Infallible>>>> {
    let full = |_| Error::ServiceBusy { problem: "too many event streams are open".to_owned() };
    let place = Arc::clone(&api.streams).try_acquire_owned().map_err(full)?;
    let theirs = || Error::ServiceBusy { problem: "too many event streams are open from there".to_owned() };
    let place = (place, api.streams_of.take(Peer::of(origin)).ok_or_else(theirs)?);
    let mut shown = api.owner.shown.clone();
    let informed = audit::informed();
    shown.mark_changed();
    let cluster = api.cluster.clone();
    let stream = unfold((shown, place, String::new()), move |(mut shown, place, last)| {
        let cluster = cluster.clone();
        async move {
            loop {
                // The state of a cluster changes without this node's own.
                match &cluster {
                    Some(_) => tokio::time::timeout(CLUSTER, shown.changed()).await.unwrap_or(Ok(())).ok()?,
                    None => shown.changed().await.ok()?,
                }
                let own = Arc::clone(&shown.borrow_and_update());
                let snapshot =
                    cluster.as_ref().map_or(own.clone(), |cluster| Arc::new(cluster.overlay(&own)));
                let status = if informed { snapshot.v3() } else { snapshot.for_readers().v3() };
                let text = text::json(&serde_json::to_string(&status).ok()?).into_owned();
                tokio::time::sleep(PACE).await;
                if text != last {
                    let event = Event::default().event("status").data(&text);
                    return Some((Ok(event), (shown, place, text)));
                }
            }
        }
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(10))))
}
