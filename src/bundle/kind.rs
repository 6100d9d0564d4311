//! What a file is that is no bundle, by its first bytes. A guess for people, who took the wrong file or URL; only fixed words are
//! shown, never bytes of the file.

use super::archive::BLOCK;

/// Offset in bytes, the bytes there, and what has them. The first that fits counts.
const MAGIC: [(usize, &[u8], &str); 19] = [
    (0, b"hsqs", "squashfs: an image, or a RAUC bundle"),
    (0, b"070701", "a cpio archive: an initramfs, or an SWUpdate image"),
    (0, b"070702", "a cpio archive with checksums: an SWUpdate image"),
    (0, b"\x1f\x8b", "gzip: decompress it"),
    (0, b"\x28\xb5\x2f\xfd", "zstd: decompress it"),
    (0, b"\xfd7zXZ\0", "xz: decompress it"),
    (0, b"BZh", "bzip2: decompress it"),
    (0, b"\x04\x22\x4d\x18", "lz4: decompress it"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"\x7fELF", "an ELF program"),
    (0, b"!<arch>\n", "a Debian package, or another ar archive"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"-----BEGIN ", "a key, a certificate or a signature"),
    (0, b"ssh-", "a public key"),
    (0, b"{", "JSON"),
    (0, b"#!", "a script"),
    (257, b"ustar", "another tar archive, perhaps one with the bundle in it"),
    (510, b"\x55\xaa", "a raw disk image; the images of its partitions can be packed"),
];

/// Lines of text of no known kind.
pub(super) const TEXT: &str = "text";

/// What begins with these bytes; `None`: unknown.
pub(super) fn guess(start: &[u8]) -> Option<&'static str> {
    if start.len() >= BLOCK && start.iter().all(|byte| *byte == 0) {
        return Some("zeroes: an image, or a download that was not completed");
    }
    let text = start.trim_ascii_start();
    let begins =
        |word: &str| text.get(..word.len()).is_some_and(|at| at.eq_ignore_ascii_case(word.as_bytes()));
    if begins("<!doctype html") || begins("<html") {
        return Some("HTML: the page of a web server, perhaps about an error");
    }
    let is =
        |(at, magic, _): &&(usize, &[u8], &str)| start.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    MAGIC.iter().find(is).map(|(.., kind)| *kind).or_else(|| is_text(start).then_some(TEXT))
}

/// Whether these bytes are lines of text. The block of a bundle has zeroes between its fields.
fn is_text(start: &[u8]) -> bool {
    let end = start.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let lines = &start[..end];
    let printable = |byte: &u8| matches!(*byte, b'\t' | b'\n' | b'\r' | b' '..=b'~' | 0x80..);
    lines.contains(&b'\n') && lines.iter().all(printable)
}

/// The end of a message about a file that does not begin as a bundle: what it looks like; empty if that is unknown.
pub(super) fn looks_like(start: &[u8]) -> String {
    guess(start).map_or_else(String::new, |kind| format!("; it is no bundle, it looks like {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_known_by_their_start() {
        let mut disk = [0; BLOCK];
        disk[..3].copy_from_slice(b"\xeb\x63\x90");
        disk[510..].copy_from_slice(b"\x55\xaa");
        for (start, part) in [
            (&b"hsqs\x01"[..], "RAUC"),
            (b"070701000", "cpio"),
            (b"\x1f\x8b\x08", "gzip"),
            (b" \r\n<!DOCTYPE HTML><html>", "HTML"),
            (b"<HTML>", "HTML"),
            (b"PK\x03\x04", "zip"),
            (b"\x7fELF\x02", "ELF"),
            (&disk, "raw disk image"),
            (&[0; BLOCK], "zeroes"),
            (b"name key\n\0\0", "text"),
        ] {
            assert!(guess(start).is_some_and(|kind| kind.contains(part)), "{part}: {:?}", guess(start));
        }
        for start in [&b""[..], b"h", b"manifest.json", &[0; 100], b"\x01\n"] {
            assert_eq!(guess(start), None, "{start:?}");
        }
    }
}
