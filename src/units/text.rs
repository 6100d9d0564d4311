//! Untrusted text as it is shown: names in a bundle, marks and footers of a disk, answers of servers and checks. On
//! a terminal a control character is a command, and one that changes the direction of writing makes text look like
//! other text.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a character has an effect other than being visible: Unicode's categories Cc except the line feed, Cf, Zl
/// and Zp (UnicodeData.txt, version 16).
pub(crate) fn is_control(c: char) -> bool {
    match c {
        '\n' => false,
        ' '..='~' => false,
        _ if c.is_control() => true,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}' | '\u{891}' => true,
        '\u{8e2}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' => true,
        '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' => true,
        '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' => true,
        '\u{e0000}'..='\u{e007f}' => true,
        _ => false,
    }
}

/// The text with every character for which [`is_control`] returns true written as `\u{…}`.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    if !text.contains(is_control) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_control(c) {
            let _ = write!(out, "{}", c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// JSON with every character for which [`is_control`] returns true as a JSON escape (RFC 8259, section 7); its meaning is
/// unchanged.
pub(crate) fn json(text: &str) -> Cow<'_, str> {
    if !text.contains(is_control) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_control(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// The known word that is most similar to a misspelt `word`; `None` if none is similar enough.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Stricter than clap is with options: a configuration is read by people who cannot ask again.
    const ALIKE: f64 = 0.8;
    let near = known.into_iter().map(|known| (strsim::jaro(word, known), known));
    near.filter(|(alike, _)| *alike > ALIKE)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_is_left() {
        assert_eq!(shown("plain \u{e9} \u{4e2d}\n"), "plain \u{e9} \u{4e2d}\n");
        assert_eq!(shown("\u{1b}[2Jall is well\r\u{202e}x"), "\\u{1b}[2Jall is well\\u{d}\\u{202e}x");
        for c in (0..=0x10_ffff).filter_map(char::from_u32) {
            let text = shown(c.encode_utf8(&mut [0; 4])).into_owned();
            assert!(!text.contains(is_control), "{c:?}");
            // Compared with the standard library's list of unprintable characters, except those that are
            // unassigned, private, or combine with the letter before.
            if c != '\n' && is_control(c) {
                assert!(c.escape_debug().count() > 1 || c == '\u{e0000}', "{c:?} is only a letter");
            }
        }
    }

    #[test]
    fn the_nearest_word_is_near() {
        let known = ["disk", "boot_flag", "boot_flags", "trust"];
        assert_eq!(nearest("boot_flga", known), Some("boot_flag"));
        assert_eq!(nearest("dsik", known), Some("disk"));
        assert_eq!(nearest("zebra", known), None);
        assert_eq!(nearest("", known), None);
    }

    #[test]
    fn json_keeps_its_meaning() {
        for text in ["a\u{1b}b", "\u{7f}\u{9b}", "\u{202e}", "\u{e0041}", "\"\\\n"] {
            let plain = serde_json::to_string(text).unwrap();
            let escaped = json(&plain);
            assert!(!escaped.contains(is_control), "{escaped}");
            assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text);
        }
    }
}
