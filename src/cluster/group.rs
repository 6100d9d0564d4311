//! Number of nodes that may be away at the same time.

use super::view::View;
use crate::error::{Error, Result};

/// Number of nodes that reboot at a time: the requested number, or one less than may fail, but at least one.
///
/// # Errors
/// [`Error::Blocked`]: no node may reboot. [`Error::BadRequest`]: the requested number is 0 or larger than permitted.
pub(super) fn group(view: &View, asked: Option<u32>) -> Result<u32> {
    let (may_fail, spare) = (view.protection().remaining, view.spare());
    let permitted = may_fail.min(spare);
    if permitted == 0 {
        let count = view.members.len();
        let reason = match spare {
            0 => format!(
                "{count} nodes cannot reboot one after the other: without one of them the store has no quorum"
            ),
            _ => "the protection of data lets no node go".to_owned(),
        };
        return Err(Error::Blocked { reason });
    }
    match asked {
        None => Ok(permitted.saturating_sub(1).max(1)),
        Some(n) if (1..=permitted).contains(&n) => Ok(n),
        Some(n) => {
            let count = view.members.len();
            let range = if permitted == 1 { "1".to_owned() } else { format!("1 to {permitted}") };
            Err(Error::BadRequest {
                problem: format!("{n} of {count} nodes cannot reboot at a time, only {range}"),
            })
        }
    }
}
