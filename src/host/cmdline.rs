//! The kernel's command line. Pure: text in, words out.

/// Value of the last `key=value` in `line`, without its quotes. The last one counts, as for the kernel's own `root=`.
/// Words after a lone `--` are arguments of init, and are ignored.
pub fn last<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    words(line)
        .take_while(|&word| word != "--")
        .filter_map(|word| unquote(word).split_once('='))
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| unquote(value))
        .last()
}

/// Splits at spaces that are not inside double quotes, as the kernel's `next_arg()` (lib/cmdline.c) does;
/// it knows neither single quotes nor escapes.
pub(crate) fn words(line: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    line.trim()
        .split(move |c: char| {
            quoted ^= c == '"';
            c.is_ascii_whitespace() && !quoted
        })
        .filter(|word| !word.is_empty())
}

/// Takes off a leading and a trailing double quote; both `"key=a b"` and `key="a b"` are written.
fn unquote(text: &str) -> &str {
    match text.strip_prefix('"') {
        Some(text) => text.strip_suffix('"').unwrap_or(text),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_counts_and_quotes_hold_together() {
        let line = "quiet root=/dev/sda1 ro dyndbg=\"file a.c +p root=no\" \"root=PARTLABEL=platform a\" rootwait x=\"a b\" empty= -- root=/dev/init\n";
        assert_eq!(last(line, "root"), Some("PARTLABEL=platform a"));
        assert_eq!(last(line, "x"), Some("a b"));
        assert_eq!(last(line, "empty"), Some(""));
        assert_eq!(last(line, "dyndbg"), Some("file a.c +p root=no"));
        for absent in ["quiet", "oot", "roo", "", "nothing"] {
            assert_eq!(last(line, absent), None, "{absent}");
        }
    }

    #[test]
    fn odd_quotes_are_survived() {
        assert_eq!(last("a=\"b c", "a"), Some("b c"));
        assert_eq!(last("\"", "a"), None);
        assert_eq!(last("", ""), None);
    }
}
