//! Answers: JSON always, errors in the shape that clients parse.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Class, Error};
use crate::service::api::audit;
use crate::service::owner::worker::Overrides;
use crate::service::wording::by_api;
use crate::units::text;

/// Time limit for the body of a request: it is one packet.
const BODY_TIME: Duration = Duration::from_secs(10);

/// The answer of a handler.
pub(super) type Reply<T> = Result<T, ErrorReply>;

/// A report as JSON; the service has no other way to send one. It has no control characters for a terminal, and its meaning
/// is unchanged (see [`text::json`]).
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_string(&self.0) {
            Ok(report) => ([(header::CONTENT_TYPE, "application/json")], text::json(&report).into_owned())
                .into_response(),
            Err(problem) => {
                tracing::error!("a report cannot be written as JSON: {problem}");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}

/// Detail of a request for the audit log.
#[derive(Debug, Clone)]
pub(super) struct Detail(pub(super) String);

/// The code of an error, for the audit log.
#[derive(Debug, Clone)]
pub(super) struct Code(pub(super) &'static str);

/// An error as an answer.
#[derive(Debug)]
pub(super) struct ErrorReply {
    status: StatusCode,
    error: Error,
}

/// Body of an error.
#[derive(Serialize)]
struct ErrorBody {
    module: &'static str,
    error_class: &'static str,
    description: String,
    stack: [&'static str; 0],
    user_visible: bool,
}

impl From<Error> for ErrorReply {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Unauthenticated { .. } => StatusCode::UNAUTHORIZED,
            Error::Forbidden { .. } => StatusCode::FORBIDDEN,
            Error::NoSuchEndpoint { .. } | Error::NoSuchNode { .. } => StatusCode::NOT_FOUND,
            Error::ClusterStore { .. } => StatusCode::SERVICE_UNAVAILABLE,
            // Nothing is wrong with the request; the machine is not in a state to do it.
            Error::NotACluster { .. } | Error::ClusterMember { .. } => StatusCode::CONFLICT,
            // The path came with the request, so a missing file is the fault of the request.
            Error::Open { .. } => StatusCode::BAD_REQUEST,
            error => match error.class() {
                Class::Usage | Class::Bundle | Class::Trust => StatusCode::BAD_REQUEST,
                Class::Refused | Class::Interrupted => StatusCode::CONFLICT,
                Class::Access => StatusCode::FORBIDDEN,
                // The fault is at the server of the bundle.
                Class::Network => StatusCode::BAD_GATEWAY,
                Class::Internal | Class::Report | Class::Disk | Class::Io | Class::Service => {
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            },
        };
        Self { status, error }
    }
}

impl ErrorReply {
    /// The answer to a request under a name that is not this machine's.
    pub(super) fn misdirected() -> Self {
        let problem =
            "the name in the header Host is not one of this machine; add it to 'hosts' in its configuration";
        Self {
            status: StatusCode::MISDIRECTED_REQUEST,
            error: Error::BadRequest { problem: problem.to_owned() },
        }
    }

    /// Name of the refused caller; `None`: unknown.
    pub(super) fn who(&self) -> Option<&str> {
        match &self.error {
            Error::Forbidden { who } => Some(who),
            _ => None,
        }
    }
}

impl IntoResponse for ErrorReply {
    fn into_response(self) -> Response {
        let code = self.error.code();
        let body = ErrorBody {
            module: "qstage",
            error_class: code,
            description: by_api(&audit::sentence(&self.error)),
            stack: [],
            user_visible: true,
        };
        let mut response = (self.status, Json(body)).into_response();
        response.extensions_mut().insert(Code(code));
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = axum::http::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(axum::http::header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

/// 202: accepted, and begun.
pub(super) struct Accepted(pub(super) Detail);

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        let mut response = StatusCode::ACCEPTED.into_response();
        response.extensions_mut().insert(self.0);
        response
    }
}

/// Answer to an order that may be a dry run.
pub(super) enum Answer {
    /// 200: done.
    Done,
    /// 202: accepted, and begun.
    Accepted(Detail),
    /// 200: what would be done, in words, and the writes, one line each.
    DryRun(String, Vec<String>),
}

/// Body of the answer to a dry run.
#[derive(Debug, Serialize)]
struct DryRun {
    dry_run: bool,
    done: String,
    plan: Vec<String>,
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        match self {
            Self::Done => StatusCode::OK.into_response(),
            Self::Accepted(detail) => Accepted(detail).into_response(),
            Self::DryRun(done, plan) => {
                let detail = Detail(format!("dry run: {done}"));
                let mut response = Json(DryRun { dry_run: true, done, plan }).into_response();
                response.extensions_mut().insert(detail);
                response
            }
        }
    }
}

/// Whether a request is only to be answered with what it would do.
///
/// # Errors
/// See [`is_set`].
pub(super) fn is_dry_run(query: Option<&str>) -> Result<bool, Error> {
    is_set(query, "dry_run")
}

/// The body of a request as JSON. Its content type is ignored: curl's default is another one.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ErrorReply;

    async fn from_request(request: Request, state: &S) -> Result<Self, ErrorReply> {
        let bad = |status, problem: String| ErrorReply { status, error: Error::BadRequest { problem } };
        let read = tokio::time::timeout(BODY_TIME, Bytes::from_request(request, state)).await;
        let bytes = read
            .map_err(|_| {
                bad(StatusCode::REQUEST_TIMEOUT, "the body of the request did not arrive".to_owned())
            })?
            .map_err(|rejection| bad(rejection.status(), rejection.body_text()))?;
        // serde would take a list too, each of its values for the next field.
        if bytes.trim_ascii_start().starts_with(b"[") {
            return Err(bad(
                StatusCode::BAD_REQUEST,
                "the body of the request is a list, an object is needed".into(),
            ));
        }
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|problem| bad(StatusCode::BAD_REQUEST, format!("the body of the request: {problem}")))
    }
}

/// The answer for an unknown path.
pub(super) async fn nothing_here(request: Request) -> ErrorReply {
    Error::NoSuchEndpoint { what: format!("there is no endpoint {}", request.uri().path()) }.into()
}

/// The answer for a known path with another method.
pub(super) async fn not_this_method(request: Request) -> ErrorReply {
    let what = format!("{} does not take {}", request.uri().path(), request.method());
    ErrorReply { status: StatusCode::METHOD_NOT_ALLOWED, error: Error::NoSuchEndpoint { what } }
}

/// Whether the query sets a parameter. Every spelling of true and false that clients use is accepted.
///
/// # Errors
/// [`Error::BadRequest`] for another value: a caller who thinks that a rule is overridden, or kept, must not be wrong.
pub(super) fn is_set(query: Option<&str>, wanted: &str) -> Result<bool, Error> {
    let pairs = query.into_iter().flat_map(|query| query.split('&'));
    let mut set = false;
    for (_, value) in
        pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).filter(|(key, _)| *key == wanted)
    {
        set |= match value.to_ascii_lowercase().as_str() {
            "true" | "1" => true,
            "false" | "0" => false,
            _ => {
                return Err(Error::BadRequest {
                    problem: format!("{wanted} in the query is neither true nor false"),
                });
            }
        };
    }
    Ok(set)
}

/// The rules that the query overrides.
///
/// # Errors
/// See [`is_set`].
pub(super) fn overrides(query: Option<&str>) -> Result<Overrides, Error> {
    Ok(Overrides {
        compatibility: is_set(query, "override_compatibility_check")?,
        retry: is_set(query, "retry")?,
        replace: is_set(query, "replace")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_yes_lifts_a_rule() {
        let (compatibility, retry, replace) = (true, true, true);
        for (key, wanted) in [
            ("override_compatibility_check", Overrides { compatibility, ..Overrides::default() }),
            ("retry", Overrides { retry, ..Overrides::default() }),
            ("replace", Overrides { replace, ..Overrides::default() }),
        ] {
            for yes in ["true", "True", "1"] {
                assert_eq!(overrides(Some(&format!("a=b&{key}={yes}"))).unwrap(), wanted, "{yes}");
            }
            for query in
                [format!("{key}=False"), format!("{key}=0"), format!("x{key}=true"), format!("x{key}=no")]
            {
                assert_eq!(overrides(Some(&query)).unwrap(), Overrides::default(), "{query}");
            }
            for query in [format!("{key}=yes"), key.to_owned(), format!("{key}=true&{key}=null")] {
                assert!(overrides(Some(&query)).is_err(), "{query}");
            }
        }
        assert_eq!(
            overrides(Some("retry=1&replace=1")).unwrap(),
            Overrides { retry, replace, compatibility: false }
        );
        assert_eq!(overrides(None).unwrap(), Overrides::default());
    }
}
