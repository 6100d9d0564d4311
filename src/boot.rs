//! placeholder
use serde::{Deserialize, Serialize};

/// Which bits of a partition entry say what boots (DESIGN 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BootFlag {
    /// Bits 48-51 priority, 52-55 tries left, 56 successful: ChromeOS, Flatcar, Bottlerocket.
    #[default]
    Priority,
    /// Bit 2, "legacy BIOS bootable": syslinux, U-Boot and others. Exactly one platform slot carries it.
    Legacy,
}
