//! `GET /v1/qstage/cluster/bundle/{digest}`: the ordered bundle, for the other nodes of the cluster. The only answer that is no
//! JSON, with ranges (RFC 9110, 14).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use crate::bundle::manifest_digest;
use crate::error::{Error, Result};
use crate::service::api::members::{member, waiting};
use crate::service::api::reply::Reply;
use crate::service::api::{Api, Shared};
use crate::service::http::origin::Certified;
use crate::source::allowed::Permitted;
use crate::units::Blake3;

/// Bytes per read, which are held in memory for each connection.
const CHUNK: u64 = 256 << 10;

pub(super) async fn bundle(
    State(api): Shared,
    Path(digest): Path<String>,
    request: Request,
) -> Reply<Response> {
    let cluster = member(&api, request.uri().path())?;
    let certified = request.extensions().get::<Certified>().is_some_and(|certified| certified.0);
    if !certified {
        // A token is for a person; a bundle is for machines that are known by their certificates.
        return Err(
            Error::Forbidden { who: "a client without a certificate of the cluster".to_owned() }.into()
        );
    }
    let named = digest.parse::<Blake3>();
    let digest = named.map_err(|_| Error::BadRequest { problem: format!("'{digest}' is no digest") })?;
    let offered = Arc::clone(&api);
    let (file, len) = waiting(move || open(&offered, &cluster.offered(digest)?, digest)).await?;
    Ok(answer(file, len, digest, request.headers()))
}

/// Opens the bundle, which may be another one by now.
fn open(api: &Api, path: &str, digest: Blake3) -> Result<(File, u64)> {
    let Permitted::File(file) = api.service.allowed.open(path)? else {
        return Err(Error::BadRequest { problem: "it is at a URL".to_owned() });
    };
    let failed = |source| Error::Open { path: path.into(), source };
    if manifest_digest(file.try_clone().map_err(failed)?)? != digest {
        let problem = format!("the bundle at {path} is not the one that was ordered");
        return Err(Error::ClusterUpgrade { problem });
    }
    let len = file.metadata().map_err(failed)?.len();
    Ok((file, len))
}

fn answer(file: File, len: u64, digest: Blake3, headers: &HeaderMap) -> Response {
    let tag = format!("\"{digest}\"");
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if text(header::IF_MATCH).is_some_and(|wanted| wanted != "*" && wanted != tag) {
        return StatusCode::PRECONDITION_FAILED.into_response();
    }
    let same = text(header::IF_RANGE).is_none_or(|wanted| wanted == tag);
    let range = text(header::RANGE).filter(|_| same).and_then(|range| parse(range, len));
    let common = [
        (header::ETAG, tag),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
    ];
    let (status, from, to) = match range {
        None => (StatusCode::OK, 0, len),
        Some(Some((from, to))) => (StatusCode::PARTIAL_CONTENT, from, to),
        Some(None) => {
            let size = [(header::CONTENT_RANGE, format!("bytes */{len}"))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, common, size).into_response();
        }
    };
    let size = [(header::CONTENT_LENGTH, (to - from).to_string())];
    let mut response = (status, common, size, body(Arc::new(file), from, to)).into_response();
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(range) = format!("bytes {from}-{}/{len}", to.saturating_sub(1)).parse()
    {
        response.headers_mut().insert(header::CONTENT_RANGE, range);
    }
    response
}

/// Bounds of one range, with the end excluded. `None`: no range of bytes, or several, so that all is sent; `Some(None)`: it lies
/// after the end.
fn parse(range: &str, len: u64) -> Option<Option<(u64, u64)>> {
    let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
    if from.is_empty() {
        let last: u64 = to.parse().ok()?;
        return Some((last > 0 && len > 0).then(|| (len.saturating_sub(last), len)));
    }
    let from: u64 = from.parse().ok()?;
    let to = if to.is_empty() { len } else { to.parse::<u64>().ok()?.saturating_add(1).min(len) };
    Some((from < len && from < to).then_some((from, to)))
}

/// Bytes of the file, read as fast as the client takes them.
fn body(file: Arc<File>, from: u64, to: u64) -> Body {
    Body::from_stream(stream::unfold(from, move |at| {
        let file = Arc::clone(&file);
        async move {
            if at >= to {
                return None;
            }
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; CHUNK.min(to - at) as usize];
                file.read_exact_at(&mut bytes, at).map(|()| Bytes::from(bytes))
            });
            let read = read.await.unwrap_or_else(|_| Err(io::Error::other("the thread of a read is gone")));
            // After an error the connection is closed, and the client sees that bytes are missing.
            let next = if read.is_ok() { at + CHUNK } else { to };
            Some((read, next))
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, wanted) in [
            ("bytes=0-0", Some(Some((0, 1)))),
            ("bytes=5-", Some(Some((5, 10)))),
            ("bytes=5-99", Some(Some((5, 10)))),
            ("bytes=-3", Some(Some((7, 10)))),
            ("bytes=-30", Some(Some((0, 10)))),
            ("bytes=-0", Some(None)),
            ("bytes=10-", Some(None)),
            ("bytes=6-5", Some(None)),
            ("bytes=18446744073709551615-18446744073709551615", Some(None)),
            ("bytes=0-1,3-4", None),
            ("lines=0-1", None),
            ("bytes=x-", None),
        ] {
            assert_eq!(parse(text, 10), wanted, "{text}");
        }
        assert_eq!(parse("bytes=0-", 0), Some(None));
    }
}
