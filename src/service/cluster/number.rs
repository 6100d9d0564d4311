//! The number of a node belongs to one machine: two that publish under one number would each count as a reboot of the other.

use crate::cluster::state::{BootId, Member, NodeId};
use crate::cluster::store::{Entry, Key, Revision, Value};
use crate::error::{Error, Result};
use crate::service::cluster::cache::Seen;

/// Checks that this machine is the member with its number, and that no other one publishes under it. `published`: the boot in
/// which it has published its state, and the revision that its state had before; `None`: it has not yet.
///
/// # Errors
/// [`Error::Membership`], with the remedy.
pub(super) fn check(
    seen: &Seen,
    node: NodeId,
    member: &Member,
    identity: &str,
    published: Option<(BootId, Revision)>,
) -> Result<()> {
    let refused = |problem: String| Err(Error::Membership { problem });
    if member.uuid != identity {
        return refused(format!(
            "{node} is another machine, at {}; set another 'node' in [cluster], or another 'prefix' for another cluster",
            member.address
        ));
    }
    let Some(Entry { value: Value::Alive(alive), modified, lease, .. }) = seen.entry(Key::Alive(node)) else {
        return Ok(());
    };
    match published {
        // Disks that are copies of one image have the same identity; boots never have. A state that is as old as the first
        // one of this boot is left from the boot before.
        Some((boot, before)) if alive.boot != boot && *modified > before && *lease != seen.lease => {
            refused(format!("another machine is {node} too; give each machine its own 'node' in [cluster]"))
        }
        _ => Ok(()),
    }
}
