//! Pattern lists of ssh_config(5), PATTERNS, byte for byte as OpenSSH matches them (`match_pattern_list` in match.c).

/// Longest pattern of a list in bytes; a list with a longer one matches nothing.
const LONGEST: usize = 1022;

/// Whether `text` matches one of the comma-separated patterns, and none of those with a leading `!`. A list of
/// negated patterns alone matches nothing.
pub(super) fn matches_list(text: &[u8], list: &[u8]) -> bool {
    let mut matched = false;
    if list.is_empty() {
        return false;
    }
    // A trailing comma is not followed by an empty pattern.
    let list = list.strip_suffix(b",").unwrap_or(list);
    for pattern in list.split(|byte| *byte == b',') {
        let (negated, pattern) = match pattern.strip_prefix(b"!") {
            Some(pattern) => (true, pattern),
            None => (false, pattern),
        };
        if pattern.len() > LONGEST {
            return false;
        }
        if matches(text, pattern) {
            if negated {
                return false;
            }
            matched = true;
        }
    }
    matched
}

/// Whether `text` as a whole matches a pattern: `*` stands for any bytes, `?` for one.
fn matches(mut text: &[u8], mut pattern: &[u8]) -> bool {
    // The rest of the pattern after the last star, and of the text from the last place where it was tried. No
    // recursion, so no pattern costs more than the product of both lengths.
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern.split_first(), text.split_first()) {
            (Some((b'*', rest)), _) => {
                star = Some((rest, text));
                pattern = rest;
                continue;
            }
            (None, None) => return true,
            (Some((one, rest)), Some((byte, after))) if *one == b'?' || one == byte => {
                (pattern, text) = (rest, after);
                continue;
            }
            _ => {}
        }
        let Some((rest, [_, after @ ..])) = star else { return false };
        star = Some((rest, after));
        (pattern, text) = (rest, after);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_of_the_manual() {
        for (list, expected) in [
            ("qimg", true),
            ("q*", true),
            ("qim?", true),
            ("qimg?", false),
            ("*", true),
            ("*,!qimg", false),
            ("!qimg,*", false),
            ("!git", false),
            ("!git,*g", true),
            ("git,,qimg", true),
            ("", false),
            (",", false),
            ("QIMG", false),
        ] {
            assert_eq!(matches_list(b"qimg", list.as_bytes()), expected, "{list}");
        }
        assert!(matches_list(b"", b"*") && !matches_list(b"", b"?"));
        assert!(matches_list(b"", b"a,,b") && !matches_list(b"", b"a,"), "an empty pattern between commas");
        assert!(!matches_list(b"qimg", [vec![b'*'; LONGEST + 1], b",qimg".to_vec()].concat().as_slice()));
    }

    /// Defined by recursion, as in OpenSSH.
    fn stated(text: &[u8], pattern: &[u8]) -> bool {
        match (pattern, text) {
            ([], text) => text.is_empty(),
            ([b'*', rest @ ..], text) => (0..=text.len()).any(|at| stated(&text[at..], rest)),
            ([one, rest @ ..], [byte, after @ ..]) => (*one == b'?' || one == byte) && stated(after, rest),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn the_loop_equals_the_recursion(text in "[ab]{0,8}", pattern in "[ab*?]{0,8}") {
            prop_assert_eq!(matches(text.as_bytes(), pattern.as_bytes()), stated(text.as_bytes(), pattern.as_bytes()));
        }
    }
}
