//! Report of `qstage select`: one structure, as JSON and as lines for a shell.

use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;

use crate::boot::SelectionReason;
use crate::error::{Error, Result};
use crate::gpt::Partition;
use crate::units::Slot;

/// Location of a partition, in every form that `mount` needs.
#[derive(Debug, Clone, Serialize)]
pub struct PartitionLocation {
    /// Its name, for instance `platform_b`.
    pub name: String,
    /// Device node; `None` if the kernel has none, for instance because it rejects the table.
    pub node: Option<PathBuf>,
    /// Number in the table.
    pub number: u32,
    /// Unique GUID, as in `root=PARTUUID=`.
    pub partuuid: String,
    /// Offset of the first byte on the disk, in bytes.
    pub offset: u64,
    /// Size in bytes.
    pub size: u64,
}

impl PartitionLocation {
    pub(super) fn new(partition: &Partition, node: Option<PathBuf>) -> Self {
        Self {
            name: partition.name.clone(),
            node,
            number: partition.number,
            partuuid: partition.guid.to_string(),
            offset: partition.extent.at.0,
            size: partition.extent.len,
        }
    }
}

/// The selected slot.
#[derive(Debug, Clone, Serialize)]
pub struct Selection {
    /// The platform slot.
    pub slot: Slot,
    /// Reason for the selection.
    pub reason: SelectionReason,
    /// Tries left of a slot on trial, after this one; `None` if no try was counted.
    pub tries_left: Option<u8>,
    /// Path or name of the disk.
    pub disk: String,
    /// Partition of the platform.
    pub platform: PartitionLocation,
    /// Partition of the software that belongs to it; `None` if there is none to start.
    pub software: Option<PartitionLocation>,
}

impl Selection {
    /// The report as one line of JSON.
    ///
    /// # Errors
    /// [`Error::Internal`], which cannot occur for these types.
    pub fn json(&self) -> Result<String> {
        let text = serde_json::to_string(self);
        text.map(|text| text + "\n")
            .map_err(|e| Error::Internal { what: format!("a selection is no JSON: {e}") })
    }

    /// The report as lines `KEY='value'` that a POSIX shell may `eval`: always every key, with an empty value if
    /// there is none. Names come from a disk and are untrusted; within single quotes only the quote itself has a
    /// meaning.
    pub fn shell(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &str| {
            let value: String = value.chars().filter(|c| !c.is_control()).collect();
            // Writing to a string cannot fail.
            let _ = writeln!(text, "QSTAGE_{key}='{}'", value.replace('\'', r"'\''"));
        };
        line("SLOT", &self.slot.to_string());
        line("REASON", self.reason.word());
        line("TRIES_LEFT", &self.tries_left.map(|n| n.to_string()).unwrap_or_default());
        line("DISK", &self.disk);
        for (group, place) in [("PLATFORM", Some(&self.platform)), ("SOFTWARE", self.software.as_ref())] {
            let text = |value: &dyn Fn(&PartitionLocation) -> String| place.map(value).unwrap_or_default();
            line(group, &text(&|p| p.name.clone()));
            let key = |field: &str| format!("{group}_{field}");
            line(
                &key("NODE"),
                &text(&|p| p.node.as_ref().map(|n| n.display().to_string()).unwrap_or_default()),
            );
            line(&key("NUMBER"), &text(&|p| p.number.to_string()));
            line(&key("PARTUUID"), &text(&|p| p.partuuid.clone()));
            line(&key("OFFSET"), &text(&|p| p.offset.to_string()));
            line(&key("SIZE"), &text(&|p| p.size.to_string()));
        }
        text
    }
}
