//! `/v1/session`: who asks. There are no passwords and no sessions; a token says who somebody is with every request.

use axum::Extension;
use serde::Serialize;

use crate::error::Error;
use crate::service::api::reply::{Json, Reply};
use crate::service::http::auth::{Caller, Privilege};

/// Answer of `GET /v1/session/who-am-i`.
#[derive(Debug, Serialize)]
pub(super) struct User {
    /// A number, since clients make one of it; tokens have none.
    id: &'static str,
    /// As in the audit log: there is nothing else that somebody is known by.
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

/// Groups and other identities of a user, which the client asks for next: it goes on where it may not know them.
pub(super) async fn identities(Extension(who): Extension<Caller>) -> Reply<()> {
    Err(Error::Forbidden { who: who.name }.into())
}

/// Names the way that there is: the body is not even read.
pub(super) async fn login() -> Reply<()> {
    let problem = "there are no passwords; a token is needed".to_owned();
    Err(Error::Unauthenticated { problem }.into())
}
