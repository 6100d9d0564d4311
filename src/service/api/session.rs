//! `/v1/session`: the identity of the caller. There are no passwords and no sessions; each request has a token.

use axum::Extension;
use serde::Serialize;

use crate::error::Error;
use crate::service::api::reply::{Json, Reply};
use crate::service::http::auth::Caller;
use crate::service::http::tokens::Privilege;

/// Answer of `GET /v1/session/who-am-i`.
#[derive(Debug, Serialize)]
pub(super) struct User {
    /// A number, since clients parse one; tokens have none.
    id: &'static str,
    /// The name in the audit log; a caller has no other.
    name: String,
}

/// Answer of `GET /v1/session/roles`.
#[derive(Debug, Serialize)]
pub(super) struct Roles {
    /// `read`, or `read` and `write`.
    roles: Vec<&'static str>,
}

pub(super) async fn who_am_i(Extension(who): Extension<Caller>) -> Json<User> {
    Json(User { id: "0", name: who.name })
}

pub(super) async fn roles(Extension(who): Extension<Caller>) -> Json<Roles> {
    let all = [("read", Privilege::Read), ("write", Privilege::Write)];
    Json(Roles {
        roles: all.into_iter().filter(|(_, role)| *role <= who.privilege).map(|(word, _)| word).collect(),
    })
}

/// Groups and other identities of a user. The client requests them next, and continues after a refusal.
pub(super) async fn identities(Extension(who): Extension<Caller>) -> Reply<()> {
    Err(Error::Forbidden { who: who.name }.into())
}

/// Refuses a login and names the remedy, a token. The body is not read.
pub(super) async fn login() -> Reply<()> {
    let problem = "there are no passwords; a token is needed".to_owned();
    Err(Error::Unauthenticated { problem }.into())
}
