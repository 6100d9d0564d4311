//! What verbs print, as text and with `--json`, and what the service sends.

use serde::Serialize;

use super::{SlotState, UpgradeState, UpgradeType};
use crate::units::{Blake3, Group, Slot};

/// The status: exactly these seven keys in this order (the wire contract of `GET /v1/upgrade/status`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Where the bundle came from.
    pub install_path: String,
    /// The state.
    pub state: UpgradeState,
    /// A sentence for people.
    pub details: String,
    /// The last error as a sentence, or empty.
    pub error_message: String,
    /// The last error's stable code, or [`NO_ERROR`](crate::error::NO_ERROR).
    pub error_state: String,
    /// Whether an upgrade may not begin or go on now.
    pub is_blocked: bool,
    /// Why, or empty.
    pub blocked_reason: String,
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
    /// Its unique GUID.
    pub partuuid: String,
    /// Its size in bytes.
    pub size: u64,
    /// What it is.
    pub state: SlotState,
    /// Whether this machine runs from it now. Of an image file that is so only where somebody says it.
    pub booted: bool,
    /// Whether the verbs take it as the platform that runs: of an image file the one that boots next.
    #[serde(skip)]
    pub is_current: bool,
    /// Whether the next boot takes it.
    pub boots_next: bool,
    /// Why a slot is bad, or what its trial has brought so far.
    pub reason: Option<String>,
    /// Version of what it holds, from its record.
    pub version: Option<String>,
    /// Whether it was installed without a look at its signature; left out where it was not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unsigned: bool,
    /// Product of what it holds.
    pub product: Option<String>,
    /// Seconds from 1970 to the making of the bundle that it came with, by its manifest.
    pub created: Option<u64>,
    /// BLAKE3 of the image that it holds.
    pub blake3: Option<Blake3>,
    /// BLAKE3 of the manifest that it was installed from.
    #[serde(skip)]
    pub manifest: Option<Blake3>,
    /// Names of the firmware blobs that it holds.
    pub firmware: Vec<String>,
    /// Boot priority (bits 48-51).
    pub priority: u8,
    /// Tries left (bits 52-55).
    pub tries: u8,
    /// Marked successful (bit 56).
    pub successful: bool,
    /// Legacy BIOS bootable (bit 2).
    pub legacy_bootable: bool,
    /// The boot entry of a platform slot, where EFI variables rule and it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_entry: Option<BootEntry>,
}

/// The `Boot####` variable of a slot.
#[derive(Debug, Clone, Serialize)]
pub struct BootEntry {
    /// Its name, `Boot0001`.
    pub name: String,
    /// What firmware and people call it.
    pub description: String,
    /// The file that it starts.
    pub file: Option<String>,
    /// Whether firmware may take it.
    pub active: bool,
    /// Its place in BootOrder, from 1.
    pub place: Option<usize>,
    /// Whether BootNext names it.
    pub next: bool,
}

/// `slots`: what the disk holds.
#[derive(Debug, Clone, Serialize)]
pub struct SlotsReport {
    /// The disk.
    pub disk: String,
    /// Which bits rule.
    pub boot_flag: crate::boot::BootFlag,
    /// How sound the two copies of the partition table are, as a word.
    pub table: String,
    /// How the next switch will be written (by second array, or in place where there is no room).
    pub switch_method: String,
    /// Foreign boot entries that the firmware takes before those of the slots, where EFI variables rule.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub boot_before: Vec<String>,
    /// Why it is not known which slot runs; `None` where it is, and for image files.
    #[serde(skip)]
    pub booted_unknown: Option<String>,
    /// The slots: platform a, b, then software a, b where they exist.
    pub slots: Vec<SlotReport>,
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
    /// Where it goes: `platform_b`, say; `None` where it is already installed and is left alone.
    pub target: Option<String>,
}

/// `plan BUNDLE`: what an upgrade would be and do, and what blocks it.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    /// The disk.
    pub disk: String,
    /// Product of the bundle.
    pub product: String,
    /// Version of the running platform slot, if it is known.
    pub running_version: Option<String>,
    /// Version of the bundle.
    pub target_version: String,
    /// The type of the upgrade.
    pub upgrade_type: UpgradeType,
    /// The slot that runs; of an image file the one that boots next.
    pub booted: Slot,
    /// Whether it runs, and is not only what boots next.
    #[serde(skip)]
    pub is_running: bool,
    /// The payloads, in the order of the bundle.
    pub payloads: Vec<PlannedPayload>,
    /// Of a delta: bytes that will be read of it at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transfer_bytes: Option<u64>,
    /// How the switch will be written.
    pub switch_method: String,
    /// BLAKE3 of the bundle's `manifest.json`: `prepare --manifest` takes no other bundle.
    pub manifest: Blake3,
    /// Whether the very bundle is already prepared.
    pub already_prepared: bool,
    /// Code and sentence of each thing that forbids the upgrade now; empty when it may go ahead.
    pub blocked_by: Vec<Obstacle>,
    /// What of the host is open to the container of the software; `None`: nothing here runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_open: Option<Vec<String>>,
}

/// What a delta was worth.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct DeltaReport {
    /// Bytes that were read of the delta and, where frames were taken from it, of the whole bundle.
    pub downloaded_bytes: u64,
    /// Bytes of images copied from the slot that runs.
    pub copied_bytes: u64,
    /// Bytes of images made of ranges of it and of the delta.
    pub patched_bytes: u64,
    /// Bytes of images taken from the whole bundle after all.
    pub fallen_back_bytes: u64,
    /// Offset in bytes in the slot that runs at which it is not what its record says, where that was met.
    pub base_damaged: Option<u64>,
}

/// Something that forbids an upgrade.
#[derive(Debug, Clone, Serialize)]
pub struct Obstacle {
    /// Its stable code.
    pub code: String,
    /// It and its remedy.
    pub message: String,
}

/// The result of `prepare`.
#[derive(Debug, Clone, Serialize)]
pub struct PrepareReport {
    /// The type of the upgrade.
    pub upgrade_type: UpgradeType,
    /// Version that is now prepared.
    pub version: String,
    /// Names of the partitions that now hold it.
    pub targets: Vec<String>,
    /// Bytes of images that the slots now hold.
    pub image_bytes: u64,
    /// Of these, bytes written as data.
    pub written_bytes: u64,
    /// Of these, bytes written as zeroes by the device's own means.
    pub zeroed_bytes: u64,
    /// Of these, bytes that already were in place.
    pub reused_bytes: u64,
    /// What a delta was worth, where it was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<DeltaReport>,
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
    /// What has to happen for it to take effect (`reboot`, `kexec`, `restart-software`, `nothing`).
    pub next_step: String,
    /// How it was written.
    pub switch_method: String,
    /// The writes and barriers, in order, one line each.
    pub plan: Vec<String>,
    /// Whether it was only planned.
    pub dry_run: bool,
}
