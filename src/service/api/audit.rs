//! The audit record of a request, and the parts of an answer that its caller may see. Handlers record both as they learn
//! them.

use std::borrow::Cow;
use std::cell::RefCell;

use crate::error::{Class, Error};
use crate::source::address;
use crate::units::text;

/// Longest field of a record in characters: a request may have 64 KiB, and logs are stored.
const FIELD_MAX: usize = 512;

/// Facts of a request besides its address.
#[derive(Debug, Clone, Default)]
pub(super) struct AuditRecord {
    /// Path or URL of the bundle that it names, without secrets.
    pub(super) path: String,
    /// BLAKE3 of the manifest of that bundle.
    pub(super) digest: String,
    /// Whether the caller may see more than codes.
    informed: bool,
}

tokio::task_local! {
    static RECORD: RefCell<AuditRecord>;
}

/// Request that has no answer yet. Its drop records that the client closed the connection before: what the request orders may be
/// carried out all the same.
pub(super) struct Unanswered {
    who: String,
    /// Method and path; empty: it has its answer.
    what: String,
}

impl Unanswered {
    pub(super) fn new(who: &str, what: &str) -> Self {
        Self { who: field(who).into_owned(), what: field(what).into_owned() }
    }

    /// The request has its answer, which has a record of its own.
    pub(super) fn end(mut self) {
        self.what.clear();
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let (who, what) = (&*self.who, &*self.what);
        if what.is_empty() {
            return;
        }
        tracing::info!(target: "audit", who, what, "request whose client closed the connection before the answer");
    }
}

/// Runs the handlers of a request. `informed`: its caller may see messages.
pub(super) async fn within<T>(informed: bool, work: impl Future<Output = T>) -> (T, AuditRecord) {
    let record = RefCell::new(AuditRecord { informed, ..AuditRecord::default() });
    RECORD.scope(record, async { (work.await, RECORD.with(|record| record.borrow().clone())) }).await
}

/// Records the bundle that a request names.
pub(super) fn path(named: &str) {
    let named = address::shown(named).into_owned();
    let _ = RECORD.try_with(|record| record.borrow_mut().path = named);
}

/// Records the digest of that bundle's manifest.
pub(super) fn digest(manifest: &str) {
    let _ = RECORD.try_with(|record| record.borrow_mut().digest = manifest.to_owned());
}

/// Whether the caller may see messages; false outside of a request.
pub(super) fn informed() -> bool {
    RECORD.try_with(|record| record.borrow().informed).unwrap_or(true)
}

/// The message of an error as this caller may see it. Refusals of the request itself only name facts that the caller has sent
/// or may see; internal failures name paths, devices and untrusted input.
pub(super) fn sentence(error: &Error) -> String {
    let own = matches!(error.class(), Class::Usage | Class::Refused)
        || matches!(error, Error::Unauthenticated { .. });
    let own = own || matches!(error, Error::Forbidden { .. } | Error::NoSuchEndpoint { .. });
    if own || informed() { crate::error::sentence(error) } else { error.for_readers() }
}

/// A field as it is logged: of limited length, and without control characters for a terminal.
pub(super) fn field(value: &str) -> Cow<'_, str> {
    match value.char_indices().nth(FIELD_MAX) {
        Some((end, _)) => {
            let kept = value.get(..end).unwrap_or_default();
            format!("{}... ({} bytes)", text::shown(kept), value.len()).into()
        }
        None => text::shown(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_short_and_plain() {
        assert_eq!(field("short"), "short");
        let long = "\u{e9}".repeat(40_000);
        assert!(field(&long).len() < 3 * FIELD_MAX && field(&long).ends_with("... (80000 bytes)"));
        assert_eq!(field("a\u{202e}b\u{9b}"), "a\\u{202e}b\\u{9b}");
    }

    #[test]
    fn readers_see_code_and_class() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let error = || Error::remote("UPGRADE_ERROR_UNTRUSTED", "the key of /secret/place");
        let shown = |informed| runtime.block_on(within(informed, async { sentence(&error()) })).0;
        assert_eq!(shown(true), "the key of /secret/place");
        assert_eq!(shown(false), "UPGRADE_ERROR_UNTRUSTED (trust)");
    }
}
