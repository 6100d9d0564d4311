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

/// How long the body of a request may take: it is one packet.
const BODY_TIME: Duration = Duration::from_secs(10);

/// The answer of a handler.
pub(super) type Reply<T> = Result<T, ErrorReply>;

/// A report as JSON: the one way out of the service for what it reports. Nothing in it acts on a terminal, and it means what it
/// meant (see [`text::json`]).
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_string(&self.0) {
            Ok(report) => ([(header::CONTENT_TYPE, "application/json")], text::json(&report).into_owned())
                .into_response(),
            Err(problem) => {
                tracing::error!("a report is no JSON: {problem}");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}

/// What the audit log says of a request beside its address.
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
            // The path came with the request; that nothing is there is its fault.
            Error::Open { .. } => StatusCode::BAD_REQUEST,
            error => match error.class() {
                Class::Usage | Class::Bundle | Class::Trust => StatusCode::BAD_REQUEST,
                Class::Refused | Class::Interrupted => StatusCode::CONFLICT,
                Class::Access => StatusCode::FORBIDDEN,
                // The fault is behind us, where the bundle was to come from.
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
    /// By a name that is not this machine's.
    pub(super) fn misdirected() -> Self {
        let problem =
            "the host that was asked for is none of this machine; 'hosts' in its configuration names others";
        Self {
            status: StatusCode::MISDIRECTED_REQUEST,
            error: Error::BadRequest { problem: problem.to_owned() },
        }
    }

    /// Who was refused, where that is known.
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

/// The body of a request as JSON, whatever its content type says: curl's default is another one.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ErrorReply;

    async fn from_request(request: Request, state: &S) -> Result<Self, ErrorReply> {
        let bad = |status, problem: String| ErrorReply { status, error: Error::BadRequest { problem } };
        let read = tokio::time::timeout(BODY_TIME, Bytes::from_request(request, state)).await;
        let bytes = read
            .map_err(|_| bad(StatusCode::REQUEST_TIMEOUT, "the body of the request did not come".to_owned()))?
            .map_err(|rejection| bad(rejection.status(), rejection.body_text()))?;
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|problem| bad(StatusCode::BAD_REQUEST, format!("the body of the request: {problem}")))
    }
}

/// No such address.
pub(super) async fn nothing_here(request: Request) -> ErrorReply {
    Error::NoSuchEndpoint { what: format!("nothing is at {}", request.uri().path()) }.into()
}

/// The address is right, the method is not.
pub(super) async fn not_this_method(request: Request) -> ErrorReply {
    let what = format!("{} does not take {}", request.uri().path(), request.method());
    ErrorReply { status: StatusCode::METHOD_NOT_ALLOWED, error: Error::NoSuchEndpoint { what } }
}

/// The rules that the query lifts, in any spelling of true that clients have.
pub(super) fn overrides(query: Option<&str>) -> Overrides {
    let says = |wanted: &str| {
        query
            .into_iter()
            .flat_map(|query| query.split('&'))
            .filter_map(|pair| pair.split_once('='))
            .any(|(key, value)| key == wanted && (value.eq_ignore_ascii_case("true") || value == "1"))
    };
    Overrides {
        compatibility: says("override_compatibility_check"),
        retry: says("retry"),
        replace: says("replace"),
    }
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
                assert_eq!(overrides(Some(&format!("a=b&{key}={yes}"))), wanted, "{yes}");
            }
            for query in [format!("{key}=false"), key.to_owned(), format!("x{key}=true")] {
                assert_eq!(overrides(Some(&query)), Overrides::default(), "{query}");
            }
        }
        assert_eq!(overrides(Some("retry=1&replace=1")), Overrides { retry, replace, compatibility: false });
        assert_eq!(overrides(None), Overrides::default());
    }
}
