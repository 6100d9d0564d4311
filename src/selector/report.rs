//! What `qstage select` tells: one structure, as JSON and as lines for a shell.

use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;

use crate::boot::SelectionReason;
use crate::error::{Error, Result};
use crate::gpt::Partition;
use crate::units::Slot;

/// Where a partition lies, in every way in which it can be mounted.
#[derive(Debug, Clone, Serialize)]
pub struct Place {
    /// Its name: `platform_b`, say.
    pub name: String,
    /// The kernel's node; `None` where the kernel shows none, as where it does not accept the table.
    pub node: Option<PathBuf>,
    /// Its number in the table.
    pub number: u32,
    /// Its unique GUID, as in `root=PARTUUID=`.
    pub partuuid: String,
    /// Where it begins on the disk, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
}

impl Place {
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

/// What is to be started.
#[derive(Debug, Clone, Serialize)]
pub struct Selection {
    /// The platform slot.
    pub slot: Slot,
    /// Why this one.
    pub reason: SelectionReason,
    /// Tries left of a slot on trial, this one taken off; `None` where none was counted.
    pub tries_left: Option<u8>,
    /// The disk.
    pub disk: String,
    /// The partition of the platform.
    pub platform: Place,
    /// The partition of the software that belongs to it; `None` where there is none to start.
    pub software: Option<Place>,
}

impl Selection {
    /// One line of JSON.
    ///
    /// # Errors
    /// [`Error::Internal`]: it cannot fail for these types.
    pub fn json(&self) -> Result<String> {
        let text = serde_json::to_string(self);
        text.map(|text| text + "\n")
            .map_err(|e| Error::Internal { what: format!("a selection is no JSON: {e}") })
    }

    /// Lines `KEY='value'` that a POSIX shell may `eval`: every key always, empty where there is nothing to tell. Names
    /// come from a disk, thus from anybody; between single quotes nothing has a meaning but the quote itself.
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
            let text = |value: &dyn Fn(&Place) -> String| place.map(value).unwrap_or_default();
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
