//! Obstacles to an upgrade, and its extent. Decided before anything is written.

use std::cmp::Ordering;

use super::remedy::remedy;
use super::view::{SlotView, View};
use super::{Engine, Policy};
use crate::bundle::Bundle;
use crate::bundle::manifest::{Kind, Manifest, ManifestFields};
use crate::error::{Error, Remedy, Result};
use crate::slot::Layout;
use crate::state::{SlotState, UpgradeType};
use crate::units::{Group, Slot};
use crate::version;

/// The effect of a bundle on this machine.
pub(super) struct CheckedUpgrade {
    pub(super) kind: UpgradeType,
    pub(super) booted: Slot,
    /// The slots that it writes: group, slot, layout.
    pub(super) targets: Vec<(Group, Slot, Layout)>,
}

impl CheckedUpgrade {
    /// By content, not by version. A platform that runs already is not staged, nor is a software
    /// image that runs already.
    pub(super) fn new(view: &View, claims: &ManifestFields, body_len: u64) -> Result<Self> {
        let booted = view.booted()?;
        let mut targets = Vec::new();
        for group in needed(view, claims) {
            let slot = view.target(group)?;
            let partition = view.slots.require(group, slot)?;
            let layout = Layout::new(claims, group, body_len, partition.extent.len, &partition.name)?;
            targets.push((group, slot, layout));
        }
        let platform = targets.iter().any(|(group, ..)| *group == Group::Platform);
        let kind = if platform { UpgradeType::SoftwareAndPlatform } else { UpgradeType::SoftwareOnly };
        Ok(Self { kind, booted, targets })
    }

    /// The groups that it writes.
    pub(super) fn groups(&self) -> Vec<Group> {
        self.targets.iter().map(|(group, ..)| *group).collect()
    }

    /// Whether it writes a group.
    pub(super) fn writes(&self, group: Group) -> bool {
        self.targets.iter().any(|(target, ..)| *target == group)
    }
}

/// The groups in which the bundle differs from what runs.
pub(super) fn needed(view: &View, claims: &ManifestFields) -> Vec<Group> {
    let running = view.record_in_service(Group::Platform);
    let platform_runs = claims.payload(Kind::Platform).is_none()
        || running.is_some_and(|record| record.manifest.same_platform(claims));
    let software = claims.payload(Kind::Software);
    let running =
        view.record_in_service(Group::Software).and_then(|record| record.manifest.payload(Kind::Software));
    let software_runs = match (software, running) {
        (Some(new), Some(old)) => (new.size, new.blake3) == (old.size, old.blake3),
        (Some(_), None) => false,
        (None, _) => true,
    };
    let needed = [(Group::Platform, !platform_runs), (Group::Software, !software_runs)];
    needed.into_iter().filter(|(_, needed)| *needed).map(|(group, _)| group).collect()
}

/// Refuses software beside a platform that it is not made for: a software-only bundle beside the running platform, and the
/// running software beside a platform that comes without another software.
pub(super) fn platform_needed(view: &View, claims: &ManifestFields) -> Option<Error> {
    let refused = |software: &ManifestFields, platform: Option<&ManifestFields>, whose: &str| {
        let needed = software.needs_platform.as_ref()?;
        if platform.is_some_and(|platform| software.runs_on(platform)) {
            return None;
        }
        let image = platform.and_then(|platform| platform.payload(Kind::Platform));
        let found = image.map_or_else(
            || format!("{whose} is unknown"),
            |image| format!("{whose} is {} with BLAKE3 {}", image.version, image.blake3),
        );
        let version = software.version.clone();
        Some(Error::PlatformNeeded { version, needed: needed.to_string(), problem: found })
    };
    let running = |group| view.record_in_service(group).map(|record| &*record.manifest);
    if claims.needs_platform.is_some() {
        return refused(claims, running(Group::Platform), "the running platform");
    }
    let stays = running(Group::Software).filter(|_| claims.payload(Kind::Software).is_none())?;
    refused(stays, Some(claims), "the new platform")
}

fn names<'v>(slots: impl Iterator<Item = &'v SlotView>) -> String {
    slots.map(|held| held.partition.name.as_str()).collect::<Vec<_>>().join(" and ")
}

/// The obstacle to any upgrade now, whatever the bundle; `None`: there is none. The slot that it would write is the only
/// good fallback of a trial, or boots next.
pub(super) fn blocked(view: &View) -> Option<Error> {
    let remedy = remedy(view);
    let trials: Vec<&SlotView> = view.on_trial().collect();
    if !trials.is_empty() {
        let fallback = names(trials.iter().filter_map(|held| view.held(held.group, !held.slot)));
        return Some(Error::OnTrial { partitions: names(trials.iter().copied()), fallback, remedy });
    }
    match remedy {
        Remedy::Reboot { slot, .. } => Some(Error::SwitchPending { slot, remedy }),
        _ => None,
    }
}

impl Engine<'_> {
    /// Another release with the version of the running one: a client that queries the version could not distinguish them.
    fn same_version(&self, view: &View, claims: &Manifest) -> Option<Error> {
        let same = |group| {
            view.record_in_service(group).is_some_and(|record| {
                record.manifest.version == claims.version && record.manifest.bytes() != claims.bytes()
            })
        };
        let refused = !self.policy.allow_downgrade && Group::BOTH.into_iter().any(same);
        refused.then(|| Error::SameVersion { version: claims.version.clone() })
    }

    /// All obstacles to preparing this bundle now, the most serious first.
    pub(super) fn obstacles(&self, view: &View, bundle: &Bundle) -> Result<Vec<Error>> {
        let mut found = release_obstacles(view, bundle.manifest(), &self.policy);
        found.extend(blocked(view));
        found.extend(view.check_foreign_flags().err());
        let body_len = bundle.release().record_len();
        match CheckedUpgrade::new(view, bundle.manifest(), body_len) {
            Ok(upgrade) if upgrade.targets.is_empty() => {
                found.push(Error::AlreadyInstalled { version: bundle.manifest().version.clone() });
            }
            Ok(upgrade) => {
                found.extend(self.same_version(view, bundle.manifest()));
                for (group, slot, _) in upgrade.targets {
                    let held = view.held(group, slot).filter(|_| !self.policy.retry);
                    found.extend(held.and_then(|held| failed_before(view, held, bundle.manifest())));
                    let partition = view.slots.require(group, slot)?;
                    match self.machine.in_use(partition) {
                        Ok(by) => found
                            .extend(by.map(|by| Error::SlotInUse { partition: partition.name.clone(), by })),
                        Err(error @ Error::UseUnknown { .. }) => found.push(error),
                        Err(error) => return Err(error),
                    }
                }
            }
            Err(error) => found.push(error),
        }
        Ok(found)
    }
}

/// Whether the slot holds this very bundle, and its trial has failed.
fn failed_before(view: &View, held: &SlotView, manifest: &Manifest) -> Option<Error> {
    let record = held.record().filter(|record| record.manifest.bytes() == manifest.bytes())?;
    view.failure(held).map(|why| Error::FailedBefore {
        version: record.manifest.version.clone(),
        partition: held.partition.name.clone(),
        why,
    })
}

/// Product, version and epoch against what runs.
fn release_obstacles(view: &View, claims: &ManifestFields, policy: &Policy) -> Vec<Error> {
    let running = view.record_in_service(Group::Platform).map(|record| &*record.manifest);
    let software = view.record_in_service(Group::Software).map(|record| &*record.manifest);
    let mut found = Vec::new();
    let product = policy.product.as_deref().or_else(|| running.map(|claims| claims.product.as_str()));
    if let Some(machine) = product.filter(|machine| *machine != claims.product && !policy.override_product) {
        found.push(Error::Product { bundle: claims.product.clone(), machine: machine.to_owned() });
    }
    // The software of an instant upgrade may be newer than the platform: the newest of both is what runs.
    let newest =
        [running, software].into_iter().flatten().max_by(|a, b| version::compare(&a.version, &b.version));
    if let Some(newest) = newest.map(|claims| claims.version.as_str()) {
        if version::compare(&claims.version, newest) == Ordering::Less && !policy.allow_downgrade {
            found.push(Error::Downgrade { bundle: claims.version.clone(), running: newest.to_owned() });
        }
        let too_old =
            |min: &&String| version::compare(newest, min) == Ordering::Less && !policy.override_product;
        if let Some(min) = claims.min_version.as_ref().filter(too_old) {
            found.push(Error::MinVersion { running: newest.to_owned(), needed: min.clone() });
        }
    }
    // What is on trial has not been good, but runs.
    let epoch = [running, software].into_iter().flatten().map(|claims| claims.epoch).max();
    let below = epoch.filter(|epoch| claims.epoch < *epoch && !policy.allow_epoch_rollback);
    let below =
        below.map(|floor| Error::Epoch { version: claims.version.clone(), epoch: claims.epoch, floor });
    found.extend(view.above_floor(claims).err().or(below));
    found.extend(platform_needed(view, claims));
    found.extend(view.running_unknown());
    found
}

/// Whether the slots that a bundle needs are prepared from exactly this manifest.
pub(super) fn is_prepared(view: &View, upgrade: &CheckedUpgrade, manifest: &[u8]) -> bool {
    !upgrade.targets.is_empty()
        && upgrade.targets.iter().all(|(group, slot, _)| {
            view.held(*group, *slot).is_some_and(|held| {
                held.state == SlotState::Prepared
                    && held.record().is_some_and(|record| record.manifest.bytes() == manifest)
            })
        })
}
