//! Messages about a configuration that cannot be used. Those of serde name types of Rust ("invalid type: string "three",
//! expected u8"), which say little to who writes the file.

use crate::units::text;

/// A message of serde in the words of the file.
pub(super) fn plain(message: &str) -> String {
    let own = did_you_mean(message).or_else(|| of_type(message)).or_else(|| missing(message));
    own.unwrap_or_else(|| message.to_owned())
}

/// A message with its line, and with the key there unless the message names it.
pub(super) fn at(file: &str, at: usize, message: &str) -> String {
    let before = file.get(..at).unwrap_or(file);
    let number = before.matches('\n').count() + 1;
    let line = file.lines().nth(number - 1).unwrap_or_default();
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let key = line.split_once('=').map(|(key, _)| key.trim());
    match key.filter(|key| !key.is_empty() && key.chars().all(bare) && !message.contains(key)) {
        Some(key) => format!("line {number}: '{key}': {message}"),
        None => format!("line {number}: {message}"),
    }
}

/// About an unknown word: the known one that may have been meant, or the few that a value can be.
fn did_you_mean(message: &str) -> Option<String> {
    let value = message.starts_with("unknown variant `");
    let mut words = message.split('`').skip(1).step_by(2);
    let word = words.next().filter(|_| value || message.starts_with("unknown field `"))?;
    let known: Vec<&str> = words.collect();
    Some(match text::nearest(word, known.iter().copied()) {
        Some(meant) => format!("'{word}' is not known; did you mean '{meant}'?"),
        None if value => format!("'{word}' is not known: write one of {}", known.join(", ")),
        None => format!("'{word}' is not known"),
    })
}

/// About a value of another type or out of range.
fn of_type(message: &str) -> Option<String> {
    let (kind, rest) = message.split_once(": ")?;
    let (got, expected) = rest.split_once(", expected ")?;
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" | "i32" | "i64" => "a whole number",
        "a boolean" => "true or false",
        "a string" | "path string" => "a text in quotes",
        "a sequence" => "a list such as [\"one\", \"two\"]",
        other if other.starts_with("a nonzero ") => "a whole number above 0",
        other if other.starts_with("struct ") => "a table",
        other => other,
    };
    let got = got.replace('`', "");
    match kind {
        "invalid type" => Some(format!("{got}, but {expected} is needed")),
        "invalid value" => Some(format!("{got} is out of range: {expected} is needed")),
        _ => None,
    }
}

/// About a key that a table must have.
fn missing(message: &str) -> Option<String> {
    let key = message.strip_prefix("missing field `")?.strip_suffix('`')?;
    Some(format!("the key '{key}' is missing"))
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    #[test]
    fn no_type_of_the_program_is_named() {
        for (file, message) in [
            ("tries = \"three\"", "line 1: 'tries': string \"three\", but a whole number is needed"),
            ("\ntries = 300", "line 2: 'tries': integer 300 is out of range: a whole number is needed"),
            (
                "threshold = 0",
                "line 1: 'threshold': integer 0 is out of range: a whole number above 0 is needed",
            ),
            ("web_insecure = 1", "line 1: 'web_insecure': integer 1, but true or false is needed"),
            ("disk = 1", "line 1: 'disk': integer 1, but a text in quotes is needed"),
            ("[service]\nhosts = \"a\"", "line 2: 'hosts': string \"a\", but a list such as"),
            ("service = 1", "line 1: 'service': integer 1, but a table is needed"),
            (
                "[service]\nlisten = \"x\"",
                "line 2: 'listen': 'x' is no address: write an IP address and a port",
            ),
            ("[cluster]\nnode = 1", "line 1: the key 'endpoints' is missing"),
            ("boot_flga = 1", "line 1: 'boot_flga' is not known; did you mean 'boot_flag'?"),
            ("tries = 0", "line 1: tries is 0, allowed is 1 to 15"),
        ] {
            let said = Config::parse(file).unwrap_err();
            assert!(said.starts_with(message), "{file}: {said}");
        }
    }
}
