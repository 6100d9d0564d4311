//! Reports of the verbs, printed as text and with `--json`, and sent by the service.

use serde::Serialize;

use super::{Runs, SlotState, UpgradeState, UpgradeType};
use crate::error::{NO_ERROR, Remedy};
use crate::units::{Blake3, Group, Slot};
use crate::version;

/// The status: exactly these seven keys in this order (the wire contract of `GET /v1/upgrade/status`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Origin of the bundle.
    pub install_path: String,
    /// The state.
    pub state: UpgradeState,
    /// A sentence for people.
    pub details: String,
    /// The last error as a sentence, or empty.
    pub error_message: String,
    /// The last error's stable code, or [`NO_ERROR`].
    pub error_state: String,
    /// Whether an upgrade is blocked now.
    pub is_blocked: bool,
    /// The reason, or empty.
    pub blocked_reason: String,
}

impl Status {
    /// Nothing is under way, and nothing has failed.
    pub(crate) fn idle() -> Self {
        Self {
            install_path: String::new(),
            state: UpgradeState::UpgradeIdle,
            details: String::new(),
            error_message: String::new(),
            error_state: NO_ERROR.to_owned(),
            is_blocked: false,
            blocked_reason: String::new(),
        }
    }
}

/// One slot in `slots`.
#[derive(Debug, Clone, Serialize)]
pub struct SlotReport {
    /// Platform or software.
    pub group: Group,
    /// a or b.
    pub slot: Slot,
    /// Number of the partition in the table.
    pub partition: u32,
    /// Unique GUID of the partition.
    pub partuuid: String,
    /// Size in bytes.
    pub size: u64,
    /// Its state.
    pub state: SlotState,
    /// Whether this machine runs from it now. For an image file only if a user states it.
    pub booted: bool,
    /// Whether the next boot takes it: software goes with the platform that boots next.
    pub boots_next: bool,
    /// Why a slot is bad, or the progress of its trial; else `None`.
    pub reason: Option<String>,
    /// Version of its content, from its record; `None` without a record.
    pub version: Option<String>,
    /// Whether it was installed without verifying a signature; omitted if it was verified.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unsigned: bool,
    /// Product of its content; `None` without a record.
    pub product: Option<String>,
    /// Time of creation of its bundle in seconds since 1970, from the manifest; `None` without a record.
    pub created: Option<u64>,
    /// BLAKE3 of its image; `None` without a record.
    pub blake3: Option<Blake3>,
    /// BLAKE3 of the manifest that it was installed from; `None` without a record.
    #[serde(skip)]
    pub manifest: Option<Blake3>,
    /// Names of its firmware blobs.
    pub firmware: Vec<String>,
    /// Boot priority (bits 48-51).
    pub priority: u8,
    /// Tries left (bits 52-55).
    pub tries: u8,
    /// Marked successful (bit 56).
    pub successful: bool,
    /// Legacy BIOS bootable (bit 2).
    pub legacy_bootable: bool,
    /// The boot entry of a platform slot; `None` without EFI variables or without an entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_entry: Option<BootEntry>,
}

/// The `Boot####` variable of a slot.
#[derive(Debug, Clone, Serialize)]
pub struct BootEntry {
    /// Its name, `Boot0001`.
    pub name: String,
    /// Its description, as shown by firmware.
    pub description: String,
    /// The file that it starts; `None` if it names none.
    pub file: Option<String>,
    /// Whether it is active: firmware may boot it.
    pub active: bool,
    /// Its place in BootOrder, from 1; `None` if it is not listed.
    pub place: Option<usize>,
    /// Whether BootNext names it.
    pub next: bool,
}

/// `slots`: the slots of a disk.
#[derive(Debug, Clone, Serialize)]
pub struct SlotsReport {
    /// The disk.
    pub disk: String,
    /// The boot flag that applies.
    pub boot_flag: crate::boot::BootFlag,
    /// State of the two copies of the partition table, as a word.
    pub table: String,
    /// How the next switch will be written (by second array, or in place if there is no room).
    pub switch_method: String,
    /// Foreign boot entries that the firmware tries before those of the slots, if EFI variables apply.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub boot_before: Vec<String>,
    /// Why the running slot is unknown; `None` if it is known, and for image files.
    #[serde(skip)]
    pub booted_unknown: Option<String>,
    /// What runs, and by what that is known.
    #[serde(skip)]
    pub runs: Runs,
    /// What an operator can do now, whatever the bundle.
    #[serde(skip)]
    pub remedy: Remedy,
    /// The slots: platform a, b, then software a, b if they exist.
    pub slots: Vec<SlotReport>,
}

impl SlotsReport {
    /// The slot of a group that runs, where its version may be shown as what runs.
    pub fn running(&self, group: Group) -> Option<&SlotReport> {
        let slot = self.runs.of(group).slot()?;
        let found = self.slots.iter().find(|found| (found.group, found.slot) == (group, slot));
        found.filter(|found| found.state.may_be_shown_running())
    }

    /// What runs of the newer version: the platform, or the software of an instant upgrade.
    pub fn newest_running(&self) -> Option<&SlotReport> {
        let version = |slot: &SlotReport| slot.version.clone().unwrap_or_default();
        let running = Group::BOTH.into_iter().filter_map(|group| self.running(group));
        running
            .filter(|slot| slot.version.is_some())
            .max_by(|a, b| version::compare(&version(a), &version(b)))
    }
}

/// One payload in a plan.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedPayload {
    /// `platform`, `software` or `firmware/<name>`.
    pub name: String,
    /// Version.
    pub version: String,
    /// Uncompressed size in bytes.
    pub size: u64,
    /// Target partition, for instance `platform_b`; `None` if it is already installed and is left as it is.
    pub target: Option<String>,
}

/// `plan BUNDLE`: type and steps of an upgrade, and what blocks it.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    /// The disk.
    pub disk: String,
    /// Product of the bundle.
    pub product: String,
    /// Version of the running platform slot; `None` if unknown.
    pub running_version: Option<String>,
    /// Version of the bundle.
    pub target_version: String,
    /// The type of the upgrade.
    pub upgrade_type: UpgradeType,
    /// The running slot; for an image file the one that boots next.
    pub booted: Slot,
    /// Whether it runs, and is not only the one that boots next.
    #[serde(skip)]
    pub is_running: bool,
    /// The platform that a software-only bundle needs, for people; `None`: the bundle carries one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needs_platform: Option<String>,
    /// The payloads, in the order of the bundle.
    pub payloads: Vec<PlannedPayload>,
    /// Maximum bytes to be read of a delta, or of a bundle on a server; `None` for a local bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transfer_bytes: Option<u64>,
    /// How the switch will be written.
    pub switch_method: String,
    /// The trial of the new platform, for people; `None`: the platform stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trial: Option<String>,
    /// BLAKE3 of the bundle's `manifest.json`: `prepare --manifest` accepts no other bundle.
    pub manifest: Blake3,
    /// Whether the same bundle is already prepared.
    pub already_prepared: bool,
    /// Code and message of each obstacle to the upgrade now; empty if there is none.
    pub blocked_by: Vec<UpgradeObstacle>,
    /// The parts of the host that the software's container has access to; `None` if no container is configured
    /// here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_open: Option<Vec<String>>,
}

/// Statistics of a delta.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct AppliedDelta {
    /// Bytes that were read of the delta and, for frames taken from it, of the whole bundle.
    pub downloaded_bytes: u64,
    /// Bytes of images copied from the running slot.
    pub copied_bytes: u64,
    /// Bytes of images made of ranges of the running slot and of the delta.
    pub patched_bytes: u64,
    /// Bytes of images taken from the whole bundle in the end.
    pub fallen_back_bytes: u64,
    /// Offset in bytes in the running slot at which it differs from its record; `None` if no difference was met.
    pub base_damaged: Option<u64>,
}

/// An obstacle to an upgrade.
#[derive(Debug, Clone, Serialize)]
pub struct UpgradeObstacle {
    /// Its stable code.
    pub code: String,
    /// Message with the remedy.
    pub message: String,
}

/// The result of `prepare`.
#[derive(Debug, Clone, Serialize)]
pub struct PrepareReport {
    /// The type of the upgrade.
    pub upgrade_type: UpgradeType,
    /// The version that is now prepared.
    pub version: String,
    /// Names of the partitions that now hold it.
    pub targets: Vec<String>,
    /// Bytes of images that the slots now hold.
    pub image_bytes: u64,
    /// Of these, bytes written as data.
    pub written_bytes: u64,
    /// Of these, bytes zeroed by means of the device.
    pub zeroed_bytes: u64,
    /// Of these, bytes that were already in place.
    pub reused_bytes: u64,
    /// Bytes read from a server; `None` for a local file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downloaded_bytes: Option<u64>,
    /// Bytes of images copied from the running slot instead of downloaded; `None` unless a bundle came from a server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copied_bytes: Option<u64>,
    /// Statistics of a delta; `None` for a bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<AppliedDelta>,
    /// Whether the slot was read back past the page cache and verified.
    pub read_back: bool,
    /// Wall time in seconds.
    pub seconds: f64,
}

/// The result of `commit`, `mark-good`, `roll-back` or `cancel`.
#[derive(Debug, Clone, Serialize)]
pub struct SwitchReport {
    /// What was done, as a sentence.
    pub done: String,
    /// The platform slot that boots next.
    pub boots_next: Slot,
    /// The step that makes it take effect (`reboot`, `kexec`, `restart-software`, `nothing`).
    pub next_step: String,
    /// How it was written.
    pub switch_method: String,
    /// The writes and barriers, in order, one line each.
    pub plan: Vec<String>,
    /// Whether it was only planned.
    pub dry_run: bool,
}
