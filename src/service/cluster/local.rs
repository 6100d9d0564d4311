//! State of this node, read from its disk and its kernel.

use crate::cluster::state::{Alive, BootId, PROTOCOL, Protection, Standing};
use crate::cluster::turn::Local;
use crate::cluster::view::View;
use crate::service::cluster::protection::Known;
use crate::service::owner::disk::DiskView;
use crate::service::view::ServiceSnapshot;
use crate::state::{SlotState, SlotsReport};
use crate::units::{Blake3, Group};

/// State of this node by a view of its disk. `unhealthy` is the message of a health check that failed in this boot; `drained`:
/// the node is out of service.
pub(super) fn local(look: &DiskView, view: &View, unhealthy: Option<&str>, drained: bool) -> Local {
    let slots = || look.slots.slots.iter();
    let prepared = slots().find(|slot| slot.state == SlotState::Prepared);
    let standing = match (unhealthy, &look.disk.trial, &look.disk.fallen) {
        (Some(why), ..) => Standing::Unhealthy(why.to_owned()),
        (None, Some(_), _) if !look.disk.pending => Standing::Trial,
        (None, None, Some(fallen)) => Standing::FellBack(fallen.failure.message.clone()),
        _ => Standing::Good,
    };
    Local {
        boot: boot(&look.disk.boot.id),
        runs: runs(look, view),
        standing,
        staged: prepared.filter(|_| look.disk.prepared.is_some()).and_then(|slot| slot.manifest),
        selected: look.disk.pending,
        gated: false,
        drained,
    }
}

/// Digest of the manifest of the release that is selected and has not booted yet; `None`: none is.
pub(super) fn selected(look: &DiskView) -> Option<Blake3> {
    let trial =
        look.slots.slots.iter().find(|slot| slot.group == Group::Platform && slot.state == SlotState::Trial);
    trial.filter(|_| look.disk.pending).and_then(|slot| slot.manifest)
}

/// Digest of the running release: the ordered one if platform or software belongs to it, otherwise the newer of both.
fn runs(look: &DiskView, view: &View) -> Blake3 {
    let target = view.upgrade.order.as_ref().map(|order| order.digest);
    let mut manifests = Group::BOTH.into_iter().filter_map(|group| look.slots.running(group)?.manifest);
    let target = target.filter(|target| manifests.any(|manifest| manifest == *target));
    // A release that was installed by other means has no manifest.
    target.or_else(|| look.slots.newest_running()?.manifest).unwrap_or(Blake3([0; 32]))
}

/// Digest and name, "Product 1.0", of the release that a node runs before it is a member.
pub(super) fn runs_alone(look: &DiskView, view: &View) -> (Blake3, String) {
    let (product, version) = release(look);
    (runs(look, view), format!("{product} {version}").trim().to_owned())
}

/// BLAKE3 of the image of the running platform; `None`: it is not known.
pub(super) fn platform(look: &DiskView) -> Option<Blake3> {
    look.slots.running(Group::Platform)?.blake3
}

/// Product and version of the running release.
fn release(look: &DiskView) -> (String, String) {
    let shown = ServiceSnapshot { slots: Some(look.slots.clone()), ..ServiceSnapshot::default() };
    let version = shown.version();
    (version.product().to_owned(), version.number().to_owned())
}

/// State that this node publishes. `known` is the protection of data, `hook` the message of a failed `undrain`.
pub(super) fn alive(
    look: &DiskView,
    local: &Local,
    view: &View,
    (progress, leaving): (u8, bool),
    (known, hook): (Known, Option<String>),
) -> Alive {
    let spare = || Protection { remaining: view.spare(), maximum: view.spare(), rebuilding: false };
    let none = Protection { remaining: 0, maximum: 1, rebuilding: false };
    let (protection, unknown, failed) = match known {
        Known::Quorum => (spare(), None, None),
        Known::Is(protection) => (protection, None, None),
        Known::Unknown(why) => (none, Some(why), None),
        Known::Failed(why) => (none, Some(why.clone()), Some(why)),
    };
    let standing = match (&local.standing, hook.or(failed)) {
        (Standing::Good, Some(why)) => Standing::Unhealthy(why),
        (standing, _) => standing.clone(),
    };
    let blocked = look.status.is_blocked.then(|| look.status.blocked_reason.clone());
    let (product, version) = release(look);
    Alive {
        boot: local.boot,
        runs: local.runs,
        platform: platform(look),
        version,
        product,
        protocol: PROTOCOL,
        standing,
        protection,
        progress,
        blocked,
        leaving,
        drained: local.drained,
        unknown,
        failed_in: None,
        staging: None,
    }
}

/// The kernel's boot ID as a number; 0 if it is missing or invalid.
fn boot(id: &str) -> BootId {
    BootId(u128::from_str_radix(&id.replace('-', ""), 16).unwrap_or_default())
}

/// Identity that distinguishes this machine from others: the GUID of a partition, which moves with the disk.
pub(super) fn identity(look: &DiskView) -> String {
    machine(&look.slots)
}

/// As [`identity`], by the slots.
pub(super) fn machine(slots: &SlotsReport) -> String {
    slots.slots.first().map(|slot| slot.partuuid.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_a_number() {
        assert_eq!(boot("00000000-0000-0000-0000-00000000002a"), BootId(42));
        assert_eq!(boot(""), BootId(0));
    }
}
