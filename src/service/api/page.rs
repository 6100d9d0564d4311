//! The page that the service gives a browser at `/`, embedded in the program. It is the same for every caller and shows nothing
//! by itself: its script calls the endpoints, with a token if its user has one. So it needs no authentication, without which
//! a browser on another machine could not get the form for the token.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// What the page may do: load its own files, and call the service that it came from. No script or style within the HTML, no
/// other site, no frame around it; text never becomes HTML or script (Trusted Types without any policy).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// Path, content type and content of each file.
const FILES: [(&str, &str, &str); 8] = [
    ("/", "text/html; charset=utf-8", include_str!("../page/index.html")),
    ("/page/style.css", "text/css; charset=utf-8", include_str!("../page/style.css")),
    ("/page/main.js", "text/javascript; charset=utf-8", include_str!("../page/main.js")),
    ("/page/actions.js", "text/javascript; charset=utf-8", include_str!("../page/actions.js")),
    ("/page/client.js", "text/javascript; charset=utf-8", include_str!("../page/client.js")),
    ("/page/dialog.js", "text/javascript; charset=utf-8", include_str!("../page/dialog.js")),
    ("/page/view.js", "text/javascript; charset=utf-8", include_str!("../page/view.js")),
    ("/page/icon.svg", "image/svg+xml", include_str!("../page/icon.svg")),
];

/// The file of the page at `path`; `None`: the path belongs to an endpoint, or to nothing.
pub(super) fn file(path: &str) -> Option<Response> {
    let (_, kind, content) = FILES.iter().find(|(known, ..)| *known == path)?;
    let mut response = (StatusCode::OK, *content).into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, *kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reference of the page leads to one of its files, and each file is referred to.
    #[test]
    fn the_page_needs_its_own_files_and_no_others() {
        let mut referred = vec!["/"];
        for (path, _, content) in FILES {
            for part in content.split('"').skip(1).step_by(2).filter(|part| part.starts_with("/page/")) {
                assert!(file(part).is_some(), "{path} refers to {part}");
                referred.push(part);
            }
            let foreign = content.replace("http://www.w3.org/2000/svg", "");
            for scheme in ["http:", "https:", "data:", "blob:", "//cdn"] {
                // "data:" and "data: ..." are the field of an event.
                let used = |open: &str| {
                    foreign
                        .split(&format!("{open}{scheme}"))
                        .skip(1)
                        .any(|rest| !rest.starts_with(['"', ' ']))
                };
                assert!(!used("\"") && !used("("), "{path}: {scheme}");
            }
        }
        for (path, ..) in FILES {
            assert!(referred.contains(&path), "{path} is not used");
        }
        assert!(file("/page").is_none() && file("/v1/version").is_none());
    }

    /// The policy forbids it, and a browser without one would run it.
    #[test]
    fn no_script_within_html_and_no_text_as_html() {
        for (path, _, content) in FILES {
            for sink in [
                "innerHTML",
                "outerHTML",
                "insertAdjacent",
                "document.write",
                "eval(",
                "Function(",
                " style=",
                " onclick=",
            ] {
                assert!(!content.contains(sink), "{path}: {sink}");
            }
        }
        let html = FILES[0].2;
        assert_eq!(html.matches("<script").count(), html.matches("<script type=\"module\" src=").count());
        assert!(!html.contains("<style"), "a style sheet within the HTML");
    }
}
