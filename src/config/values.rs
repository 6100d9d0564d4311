//! Values of keys with a range or a special form.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::source::address::Url;
use crate::source::allowed;
use crate::units::{BlockSize, size};

/// The largest number of tries that bits 52-55 of a partition entry hold.
const MAX_TRIES: u8 = 15;

pub(super) fn tries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u8>, D::Error> {
    let tries = u8::deserialize(deserializer)?;
    if (1..=MAX_TRIES).contains(&tries) {
        Ok(Some(tries))
    } else {
        Err(D::Error::custom(format!("tries is {tries}, allowed is 1 to {MAX_TRIES}")))
    }
}

/// Parses the address of a listener: an IP address with a port.
pub(crate) fn parse_listener(text: &str) -> Result<SocketAddr, String> {
    let rule = "write an IP address and a port, as in 0.0.0.0:8000 or [::]:8000";
    text.parse().map_err(|_| format!("'{text}' is no address: {rule}"))
}

/// Address of a listener.
pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    parse_listener(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

/// Seconds; more than ten years are refused as a mistake.
pub(super) fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let seconds = u64::deserialize(deserializer)?;
    if seconds > 10 * 366 * 86400 {
        return Err(D::Error::custom(format!("{seconds} seconds are more than ten years")));
    }
    Ok(Some(seconds))
}

/// A path in a FAT file system in UEFI's form; its limit is far below that of a device path node.
pub(super) fn loader<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let path = String::deserialize(deserializer)?;
    let valid = path.starts_with('\\') && path.len() <= 255 && !path.contains(['/', '\0']);
    let problem = || format!("efi_loader is '{path}', not a path such as '\\EFI\\BOOT\\BOOTX64.EFI'");
    if valid { Ok(Some(path)) } else { Err(D::Error::custom(problem())) }
}

/// Absolute paths of directories.
pub(super) fn directories<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<PathBuf>>, D::Error> {
    let paths = Vec::<PathBuf>::deserialize(deserializer)?;
    paths.iter().try_for_each(|path| allowed::directory(path)).map_err(D::Error::custom)?;
    Ok(Some(paths))
}

/// URL prefixes of web servers.
pub(super) fn prefixes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Url>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| allowed::prefix(text)).collect::<Result<_, _>>().map_err(D::Error::custom)
}

pub(super) fn sector_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BlockSize>, D::Error> {
    let bytes = u32::deserialize(deserializer)?;
    BlockSize::from_bytes(bytes)
        .map(Some)
        .ok_or_else(|| D::Error::custom(format!("sector_size is {bytes}, allowed are 512 and 4096")))
}

pub(super) fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    size::parse_rate(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

pub(super) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    size::parse_size(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}
