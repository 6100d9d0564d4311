//! The tar around the members: POSIX ustar (IEEE Std 1003.1-1988, "ustar Interchange Format"), in exactly one
//! encoding.
//!
//! Every header field but name, size and time is fixed, and a reader compares whole headers with what it would have
//! written itself: every bit has a meaning, and nothing can hide in them. Sizes from 8 GiB on are written in the
//! base-256 form that GNU tar, bsdtar and busybox share; a pax header would be one more member to distrust.

use tar::{EntryType, Header};

use crate::error::{Error, Result};

/// Block size of a tar archive in bytes: the size of a header; members are padded to a multiple of it.
pub const BLOCK: usize = 512;
/// Size of the end-of-archive mark in bytes: two blocks of zeroes.
pub const END_LEN: usize = 2 * BLOCK;

/// The 512 bytes of a member's header.
pub fn header(name: &str, size: u64, mtime: u64) -> Result<[u8; BLOCK]> {
    let mut header = Header::new_ustar();
    header
        .set_path(name)
        .map_err(|problem| Error::Internal { what: format!("tar member name {name}: {problem}") })?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header.set_mtime(mtime);
    header.set_cksum();
    Ok(*header.as_bytes())
}

/// Size and time from the header of a member whose size is not known beforehand; every other field must be as
/// [`header`] writes it.
///
/// # Errors
/// [`Error::TarHeader`].
pub fn read_header(bytes: &[u8; BLOCK], name: &str, at: u64) -> Result<(u64, u64)> {
    let bad = |problem: String| Error::TarHeader { member: name.to_owned(), at, problem };
    let found = Header::from_byte_slice(bytes);
    // The library's message repeats the field and the name: text from an untrusted file.
    let size = found.entry_size().map_err(|_| bad("the size is no number".to_owned()))?;
    let mtime = found.mtime().map_err(|_| bad("the time is no number".to_owned()))?;
    check_header(bytes, name, size, mtime, at)?;
    Ok((size, mtime))
}

/// Checks a header whose name, size and time are all known.
///
/// # Errors
/// [`Error::TarHeader`], with the field that differs.
pub fn check_header(bytes: &[u8; BLOCK], name: &str, size: u64, mtime: u64, at: u64) -> Result<()> {
    let expected = header(name, size, mtime)?;
    let Some(differs) = (0..BLOCK).find(|&i| bytes[i] != expected[i]) else { return Ok(()) };
    // Field boundaries of the ustar header.
    const FIELDS: [(usize, &str); 10] = [
        (0, "name"),
        (100, "mode"),
        (108, "owner"),
        (124, "size"),
        (136, "time"),
        (148, "checksum"),
        (156, "type"),
        (157, "link name"),
        (257, "magic"),
        (265, "owner names, device or prefix"),
    ];
    let field = FIELDS.iter().rev().find(|(start, _)| *start <= differs).map_or("name", |(_, field)| field);
    let found = Header::from_byte_slice(bytes);
    Err(Error::TarHeader {
        member: name.to_owned(),
        at,
        problem: format!(
            // Not the bytes found there: they are unauthenticated, and a message must not show an attacker's text.
            "the {field} is not as packed (expected '{name}', {size} bytes; found {} bytes)",
            found.entry_size().map_or_else(|_| "unreadable".to_owned(), |size| size.to_string())
        ),
    })
}

/// Whether a header has this member name; no other field is checked.
pub fn is_named(bytes: &[u8; BLOCK], name: &str) -> bool {
    Header::from_byte_slice(bytes).path_bytes().as_ref() == name.as_bytes()
}

/// Number of zero bytes after a member of `size` bytes.
pub const fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// Size in bytes of a member with `size` bytes of content: header, content, padding. `None` beyond 2^64.
pub fn member_len(size: u64) -> Option<u64> {
    size.checked_add(padding(size))?.checked_add(BLOCK as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_a_header_counts() {
        for size in [0, 511, 8 << 30, u64::MAX >> 8] {
            let good = header("firmware/bios.zst", size, 1_700_000_000).unwrap();
            assert_eq!(read_header(&good, "firmware/bios.zst", 0).unwrap(), (size, 1_700_000_000));
            for bit in 0..BLOCK * 8 {
                let mut bad = good;
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(
                    check_header(&bad, "firmware/bios.zst", size, 1_700_000_000, 0).is_err(),
                    "bit {bit} at size {size}"
                );
                // Even if size and time are not known beforehand, the checksum still covers them.
                assert!(read_header(&bad, "firmware/bios.zst", 0).is_err(), "bit {bit} at size {size}");
            }
        }
    }
}
