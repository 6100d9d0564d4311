//! The endpoints: a function for each, and a table of all.

mod audit;
mod bundle;
mod cluster;
mod events;
mod members;
mod metrics;
mod own;
mod page;
mod reply;
mod session;
mod v1;
mod v2;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::error::{Class, Error, Result};
use crate::service::Service;
use crate::service::cluster::{Cluster, PATH};
use crate::service::http::attempts::DELAY;
use crate::service::http::auth::{Authentication, Caller};
use crate::service::http::hosts::Hosts;
use crate::service::http::origin::{Certified, Origin, Peer};
use crate::service::http::shares::Shares;
use crate::service::http::tokens::Privilege;
use crate::service::owner::blocking::{SILENCE, unless_silent};
use crate::service::owner::order::{Handle, Order, OrderResult};
use crate::service::owner::upgrade::{Failure, UpgradeSettings};
use crate::service::owner::worker::{self, Begun, Overrides, Planned};
use crate::service::view::ServiceSnapshot;
use crate::source::address;
use crate::state::UpgradeType;
use reply::{Answer, Code, Detail, ErrorReply, Reply};

/// Longest request body in bytes: a path and a few flags.
const BODY_LIMIT: usize = 64 << 10;
/// The request for all members of a cluster instead of one for a single node.
const UPGRADE_ALL: &str = "use /v2/upgrade, which is for all of them";
/// Maximum of bundles that are planned at the same time.
const LOOKS: usize = 2;
/// Maximum of histories that are read at the same time: each takes a thread, and the upgrade needs threads too.
const HISTORIES: usize = 4;
/// Longest wait of a request for its turn, and for the check of a path.
const TURN: Duration = Duration::from_secs(60);
/// Maximum of event streams at the same time: each occupies a connection until the client closes it.
const STREAMS: usize = 64;
/// The same per address or user.
const STREAMS_OF_ONE: usize = STREAMS / 4;

/// The state that handlers share.
pub(super) struct Api {
    service: Arc<Service>,
    owner: Handle,
    /// The cluster, if the configuration has `[cluster]`; else `None`.
    cluster: Option<Arc<Cluster>>,
    gate: Authentication,
    hosts: Hosts,
    looks: Semaphore,
    histories: Semaphore,
    streams: Arc<Semaphore>,
    /// The share of each caller in them.
    streams_of: Shares,
    /// Number of prepares that plan their bundle.
    begins: AtomicUsize,
    /// Ends these.
    cancelled: Notify,
    /// Number of answers by the first digit of their status: 1xx to 5xx.
    answers: [AtomicU64; 5],
}

type Shared = State<Arc<Api>>;

/// Every path and its handlers by method. A test compares the OpenAPI document with it.
fn routes() -> Vec<(&'static str, MethodRouter<Arc<Api>>)> {
    vec![
        ("/v1/upgrade/settings", get(v1::settings).put(v1::put_settings)),
        ("/v1/upgrade/status", get(v1::status)),
        ("/v1/upgrade/verify-image", post(v2::verify_image)),
        ("/v2/upgrade/blocked", get(v2::blocked)),
        ("/v2/upgrade/verify-image", post(v2::verify_image)),
        ("/v2/upgrade/prepare", post(v2::prepare)),
        ("/v2/upgrade/commit", post(v2::commit)),
        ("/v2/upgrade/status", get(v2::status_v2)),
        ("/v3/upgrade/status", get(v2::status)),
        ("/v1/shutdown/reboot/start", post(cluster::reboot_start)),
        ("/v1/shutdown/reboot/pause", post(cluster::reboot_pause)),
        ("/v1/shutdown/reboot/resume", post(cluster::reboot_resume)),
        ("/v1/shutdown/reboot/status", get(cluster::reboot_status)),
        ("/v1/shutdown/node/container-restart", post(cluster::container_restart)),
        ("/v1/shutdown/container-restart", post(cluster::container_restart_all)),
        ("/v1/shutdown/container-restart/{node_id}", post(cluster::container_restart_node)),
        ("/v1/shutdown/reboot/{node_id}", post(cluster::reboot_node)),
        ("/v1/shutdown/halt", post(cluster::halt_all)),
        ("/v1/shutdown/halt/{node_id}", post(cluster::halt_node)),
        // Paths from before /v1/shutdown.
        ("/v1/cluster/reboot", post(cluster::reboot_all)),
        ("/v1/node/reboot", post(cluster::reboot)),
        ("/v1/cluster/halt", post(cluster::halt_all)),
        ("/v1/node/halt", post(cluster::halt)),
        ("/v1/cluster/settings", get(members::settings)),
        ("/v1/cluster/nodes/", get(members::nodes)),
        ("/v1/cluster/nodes/{node_id}", get(members::node)),
        ("/v1/cluster/protection/status", get(members::protection)),
        ("/v1/cluster/protection/restriper/status", get(members::restriper)),
        ("/v1/cluster/restriper/status", get(members::restriper)),
        ("/v1/unconfigured/nodes/", get(cluster::unconfigured)),
        ("/v1/session/login", post(session::login)),
        ("/v1/session/who-am-i", get(session::who_am_i)),
        ("/v1/session/roles", get(session::roles)),
        ("/v1/users/{id}/groups/", get(session::identities)),
        ("/v1/version", get(cluster::version)),
        ("/v1/node/state", get(cluster::node_state)),
        ("/v1/qstage/status", get(own::status)),
        ("/v1/qstage/slots", get(own::slots)),
        ("/v1/qstage/plan", post(own::plan)),
        ("/v1/qstage/history", get(own::history)),
        ("/v1/qstage/mark-good", post(own::mark_good)),
        ("/v1/qstage/roll-back", post(own::roll_back)),
        ("/v1/qstage/cancel", post(own::cancel)),
        ("/v1/qstage/cluster", get(members::status)),
        ("/v1/qstage/cluster/join", post(members::join)),
        ("/v1/qstage/cluster/leave", post(members::leave)),
        ("/v1/qstage/cluster/leave/{node_id}", post(members::leave_node)),
        ("/v1/qstage/cluster/abandon", post(members::abandon)),
        ("/v1/qstage/cluster/take-back/{node_id}", post(members::take_back)),
        ("/v1/qstage/cluster/bundle/{digest}", get(bundle::bundle)),
        ("/v1/qstage/events", get(events::events)),
        ("/v1/qstage/metrics", get(metrics::metrics)),
        ("/v1/qstage/openapi.json", get(own::openapi)),
    ]
}

/// All endpoints, with authentication, limits and the audit log.
pub(super) fn router(
    service: Arc<Service>,
    owner: Handle,
    gate: Authentication,
    hosts: Hosts,
    cluster: Option<Arc<Cluster>>,
) -> Router {
    let api = Arc::new(Api {
        service,
        owner,
        cluster,
        gate,
        hosts,
        looks: Semaphore::new(LOOKS),
        histories: Semaphore::new(HISTORIES),
        streams: Arc::new(Semaphore::new(STREAMS)),
        streams_of: Shares::new(STREAMS_OF_ONE),
        begins: AtomicUsize::new(0),
        cancelled: Notify::new(),
        answers: Default::default(),
    });
    let routed = routes().into_iter().fold(Router::new(), |router, (path, at)| router.route(path, at));
    routed
        .fallback(reply::nothing_here)
        .method_not_allowed_fallback(reply::not_this_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        // Outermost: an unauthenticated caller cannot even find out which endpoints exist.
        .layer(middleware::from_fn_with_state(Arc::clone(&api), admit))
        .with_state(api)
}

/// Authenticates a request, counts it, and writes the audit log: caller, request, time (that of the log), outcome.
async fn admit(State(api): Shared, mut request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let reads = matches!(method, Method::GET | Method::HEAD);
    let needed = if reads { Privilege::Read } else { Privilege::Write };
    let header = request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap_or_default());
    let Some(origin) = request.extensions().get::<Origin>().copied() else {
        let what = "a connection without an origin".to_owned();
        return ErrorReply::from(Error::Internal { what }).into_response();
    };
    // Other nodes of the cluster are known by their certificates, and may fetch the bundle only.
    let certified = request.extensions().get::<Certified>().is_some_and(|certified| certified.0);
    let fetches = certified && reads && header.is_none() && path.starts_with(PATH);
    let named = fetches || !matches!(origin, Origin::Network(_)) || api.hosts.permit(&request);
    if let Some(file) = page::file(&path).filter(|_| reads && named) {
        api.count(file.status());
        return unstored(file);
    }
    let who = if fetches {
        Ok(Caller { name: format!("node, {origin}"), informed: false, privilege: Privilege::Read })
    } else if named {
        api.gate.admit(origin, header, needed).map_err(ErrorReply::from)
    } else {
        Err(ErrorReply::misdirected())
    };
    let (who, (response, record)) = match who {
        Ok(who) => {
            let (name, informed) = (who.name.clone(), who.informed);
            request.extensions_mut().insert(who);
            let unanswered = (!reads).then(|| audit::Unanswered::new(&name, &format!("{method} {path}")));
            // A refusal becomes an answer in here: its content depends on the caller.
            let answered = audit::within(informed, next.run(request)).await;
            unanswered.into_iter().for_each(audit::Unanswered::end);
            (name, answered)
        }
        Err(failed) => {
            let who = failed.who().map_or_else(|| format!("unknown, {origin}"), str::to_owned);
            (who, audit::within(false, async { failed.into_response() }).await)
        }
    };
    let response = unstored(response);
    let mut unrecorded = 0;
    if response.status() == StatusCode::UNAUTHORIZED {
        match api.gate.attempts.failed(Peer::of(origin), Instant::now()) {
            Some(before) => unrecorded = before,
            None => {
                tokio::time::sleep(DELAY).await;
                api.count(StatusCode::TOO_MANY_REQUESTS);
                return too_many(response);
            }
        }
    }
    let status = response.status();
    api.count(status);
    if !reads || matches!(status, StatusCode::UNAUTHORIZED | StatusCode::MISDIRECTED_REQUEST) {
        let detail = response.extensions().get::<Detail>().map_or("", |detail| detail.0.as_str());
        let code = response.extensions().get::<Code>().map_or(crate::error::NO_ERROR, |code| code.0);
        tracing::info!(target: "audit", who = &*audit::field(&who), what = &*audit::field(&format!("{method} {path}")),
            path = &*audit::field(&record.path), digest = record.digest, detail = &*audit::field(detail),
            status = status.as_u16(), outcome = code, unrecorded, "request");
    }
    response
}

/// The answer, which is valid for a moment only, and has the declared type even if it looks like another format.
fn unstored(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The answer to a failed authentication beyond the rate. It ends the connection.
fn too_many(response: Response) -> Response {
    let mut response = response;
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    let headers = response.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

impl Api {
    /// Counts an answer.
    fn count(&self, status: StatusCode) {
        if let Some(counter) = self.answers.get(usize::from(status.as_u16() / 100).saturating_sub(1)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The current snapshot for every caller; that of a cluster's member includes the cluster's part.
    fn snapshot(&self) -> Arc<ServiceSnapshot> {
        let own = self.owner.snapshot();
        let snapshot = match &self.cluster {
            Some(cluster) => Arc::new(cluster.overlay(&own)),
            None => own,
        };
        let waits = self.service.fleet.as_ref().and_then(|fleet| fleet.waits());
        let snapshot = match waits {
            Some(_) => Arc::new(ServiceSnapshot { waits, ..ServiceSnapshot::clone(&snapshot) }),
            None => snapshot,
        };
        if audit::informed() { snapshot } else { Arc::new(snapshot.for_readers()) }
    }

    /// Plans a bundle; only a few are planned at a time.
    async fn plan(&self, path: &str, overrides: Overrides) -> Result<Planned> {
        audit::path(path);
        let _place = turn(&self.looks, "bundles").await?;
        self.check_path(path).await?;
        let planned = worker::plan(&self.service.arguments, path, overrides);
        let planned = self.owner.unless_ended("plan", planned).await?;
        audit::digest(&planned.manifest);
        Ok(planned)
    }

    /// The same as the first part of a prepare, which a cancel ends.
    async fn begin(&self, path: &str, overrides: Overrides) -> Result<(Planned, Begun)> {
        audit::path(path);
        let _counted = Counted::new(&self.begins);
        let cancelled = self.cancelled.notified();
        let begin = async {
            let _place = turn(&self.looks, "bundles").await?;
            self.check_path(path).await?;
            let begun = worker::begin(&self.service.arguments, path, overrides).await?;
            audit::digest(&begun.0.manifest);
            Ok(begun)
        };
        tokio::select! {
            begun = self.owner.unless_ended("prepare", begin) => begun,
            () = cancelled => Err(Error::Cancelled),
        }
    }

    /// Stops a prepare, also in its first part, or discards the prepared bundle.
    async fn cancel(&self) -> OrderResult {
        let begun = self.begins.load(Ordering::Relaxed) > 0;
        self.cancelled.notify_waiters();
        match self.owner.order(Order::Cancel).await {
            Err(Error::NothingToCancel { .. }) if begun => Ok(None),
            answer => answer,
        }
    }

    /// Checks that a path is allowed and exists. On a thread for blocking work: a network file system may hang.
    async fn check_path(&self, path: &str) -> Result<()> {
        let named = path.to_owned();
        let allowed = self.service.allowed.clone();
        let lost = |problem| Error::Internal { what: format!("a thread was lost: {problem}") };
        let checked = tokio::task::spawn_blocking(move || allowed.open(&named).map(drop));
        let named = address::shown(path).into_owned();
        let slow = |_| Error::Open { path: named.into(), source: std::io::ErrorKind::TimedOut.into() };
        tokio::time::timeout(TURN, checked).await.map_err(slow)?.map_err(lost)?
    }

    /// The cluster; `None` if this node is not a member of one.
    fn member(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref().filter(|cluster| cluster.is_member())
    }

    /// Refuses an action that a member must not take alone. `remedy`: the request for all members.
    fn alone(&self, what: &str, remedy: &'static str) -> Result<()> {
        match self.member() {
            Some(_) => Err(Error::ClusterMember { what: what.to_owned(), remedy }),
            None => Ok(()),
        }
    }

    /// Plans a bundle and orders its prepare. The plan comes first: clients need version and type in the first status that they
    /// read, and an immediate refusal is better than an error in a later status.
    /// As a dry run it only answers with what would be ordered, or with the refusal.
    async fn prepare(&self, order: v2::PrepareBody, overrides: Overrides, dry_run: bool) -> Reply<Answer> {
        let settings = order.settings()?;
        if let Some(cluster) = self.member() {
            return members::prepare(self, cluster, &order.image_path, settings, overrides, dry_run).await;
        }
        if dry_run {
            let planned = self.plan(&order.image_path, overrides).await?;
            let settings = planned_for_one(settings, &planned)?;
            let UpgradeSettings { target_version, install_path, upgrade_type, .. } = &settings;
            let would = format!("prepare {target_version} from {install_path}: {}", upgrade_type.word());
            let plan = planned.steps();
            self.owner.order(Order::Prepare { settings, planned, overrides, begun: None }).await?;
            return Ok(Answer::DryRun(would, plan));
        }
        let (planned, begun) = match self.begin(&order.image_path, overrides).await {
            Ok(begun) => begun,
            Err(error) => {
                // A fault of the bundle is shown in the status as well, a fault of the request is not.
                if !matches!(error.class(), Class::Usage | Class::Refused | Class::Interrupted) {
                    let failure = Failure::from(&error);
                    let _ = self.owner.order(Order::Refused { settings, failure }).await;
                }
                return Err(error.into());
            }
        };
        let settings = planned_for_one(settings, &planned)?;
        let detail = Detail(format!(
            "{} {}{}",
            settings.target_version,
            settings.install_path,
            if overrides == Overrides::default() {
                String::new()
            } else {
                format!(", rules are overridden: {overrides:?}")
            }
        ));
        if overrides != Overrides::default() {
            tracing::warn!("rules are overridden: {}", detail.0);
        }
        let begun = Some(Box::new(begun));
        self.owner.order(Order::Prepare { settings, planned, overrides, begun }).await?;
        Ok(Answer::Accepted(detail))
    }

    /// What a commit on a single node would write.
    async fn commit_dry_run(&self) -> Reply<Answer> {
        self.owner.order(Order::Commit { dry_run: true }).await?;
        let planned = |service: &Service| service.place.commit_dry_run();
        let report = unless_silent(&self.service, SILENCE, planned).await?;
        Ok(Answer::DryRun(report.done, report.plan))
    }
}

/// The settings of a prepare on a single node, with what its plan says.
///
/// # Errors
/// [`Error::NotACluster`].
fn planned_for_one(settings: UpgradeSettings, planned: &Planned) -> Result<UpgradeSettings> {
    let (target_version, upgrade_type) = (planned.target_version.clone(), planned.upgrade_type);
    // Software is swapped on all nodes at once, so the settings for reboots do not apply.
    if settings.do_rolling_reboot && upgrade_type == UpgradeType::SoftwareAndPlatform {
        return Err(Error::NotACluster { what: "a rolling reboot".to_owned() });
    }
    Ok(UpgradeSettings { target_version, upgrade_type, ..settings })
}

/// Counts the running ones; the drop counts down.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits for a turn, so that no number of clients can occupy all threads.
async fn turn<'a>(places: &'a Semaphore, what: &str) -> Result<SemaphorePermit<'a>> {
    let busy = || Error::ServiceBusy { problem: format!("too many requests for {what}") };
    tokio::time::timeout(TURN, places.acquire()).await.map_err(|_| busy())?.map_err(|_| busy())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The methods of a route as axum prints them.
    fn methods(route: &MethodRouter<Arc<Api>>) -> Vec<&'static str> {
        let shown = format!("{route:?}");
        let at = shown.find("allow_header").map_or("", |at| &shown[at..]);
        ["GET", "PUT", "POST", "PATCH", "DELETE"].into_iter().filter(|method| at.contains(method)).collect()
    }

    #[test]
    fn the_document_describes_the_handlers_and_nothing_else() {
        let document: serde_json::Value = serde_json::from_str(own::OPENAPI).unwrap();
        let mut described = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                described.insert(format!("{} {path}", method.to_uppercase()));
                let needed = if method == "get" { "read" } else { "write" };
                assert_eq!(operation["x-privilege"], needed, "{method} {path}");
                assert!(
                    operation["summary"].is_string() && operation["responses"].is_object(),
                    "{method} {path}"
                );
            }
        }
        let served: BTreeSet<_> = routes()
            .iter()
            .flat_map(|(path, route)| {
                methods(route).into_iter().map(move |method| format!("{method} {path}"))
            })
            .collect();
        assert!(served.contains("PUT /v1/upgrade/settings") && served.len() > 25, "{served:?}");
        assert_eq!(described, served);
    }
}
