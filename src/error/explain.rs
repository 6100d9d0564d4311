//! Explanations of error codes: `qstage explain`, and the page of all codes in the manual. Both come from the
//! [list](super::Error), so that none can be missing or differ.

use std::fmt::Write as _;

use super::entry::ErrorEntry;
use super::list::ENTRIES;
use super::{Class, NO_ERROR};

/// Prefix of every code.
const PREFIX: &str = "UPGRADE_ERROR_";

/// Explanation of a code.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Explanation {
    /// The stable code.
    pub code: &'static str,
    /// The class in one word; `none` for the code of success.
    pub class: &'static str,
    /// The exit code of the process.
    pub exit_code: u8,
    /// Meaning of the failure.
    pub meaning: String,
    /// The message, with `{name}` in place of each fact.
    pub message: String,
    /// The remedy for failures of this class; the message itself is more exact if it names one.
    pub remedy: &'static str,
}

impl Class {
    /// Meaning of a failure of this class.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Internal => "a defect of qstage",
            Self::Usage => "command line or configuration is wrong",
            Self::Bundle => "the bundle is damaged or malformed",
            Self::Trust => "no trusted key signed the bundle",
            Self::Refused => "everything is sound, but a rule forbids the step now",
            Self::Disk => "the disk is not laid out as needed, or a slot is damaged",
            Self::Io => "reading or writing failed",
            Self::Interrupted => "stopped by a signal",
            Self::Service => "a container or a health check failed; the disk is sound",
            Self::Network => "a server, a proxy or the link failed; this says nothing about the bundle",
            Self::Report => "the work is done, but standard output did not take the report within 11 s",
            Self::Access => "the service does not let this caller do it",
        }
    }

    /// Remedy for a failure of this class.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Internal => "report it",
            Self::Usage => "correct it",
            Self::Bundle => "transfer it again",
            Self::Trust => "check signature and keys",
            Self::Refused => "the message names the rule and the remedy",
            Self::Disk => "see the message",
            Self::Io => {
                "the message has the cause: the name, the rights, the room, another process, or the disk"
            }
            Self::Interrupted | Self::Network => "run it again; it goes on",
            Self::Service => "the message says what runs now",
            Self::Access => {
                "give a token that may (--token-file; 'qstage token new' makes one), or call as root by the Unix socket"
            }
            Self::Report => "the message says what is on the disk; `qstage status` shows it",
        }
    }
}

impl ErrorEntry {
    /// The message with a name in place of each fact, without formats: `{}` for `.path.display()` is `{path}`.
    fn message(&self) -> String {
        let mut unnamed = self.values.split(',').filter_map(|value| {
            let value = value.trim().trim_start_matches('.').trim_start();
            value.split(|c: char| !c.is_alphanumeric() && c != '_').next().filter(|name| !name.is_empty())
        });
        let mut parts = self.sentence.split('{');
        let mut message = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (inside, after) = part.split_once('}').unwrap_or((part, ""));
            let name = inside.split(':').next().unwrap_or_default();
            let name = if name.is_empty() { unnamed.next().unwrap_or_default() } else { name };
            let _ = write!(message, "{{{name}}}{after}");
        }
        message
    }

    fn explanation(&self) -> Explanation {
        Explanation {
            code: self.code,
            class: self.class.word(),
            exit_code: self.class.exit_code(),
            meaning: self.meaning.trim().replace('`', "'"),
            message: self.message(),
            remedy: self.class.remedy(),
        }
    }
}

/// Every error code, in the order of the list: by class, then by subject.
pub fn all() -> Vec<Explanation> {
    ENTRIES.iter().map(ErrorEntry::explanation).collect()
}

/// The explanations for `asked`: a code in any spelling (`on-trial`, `[UPGRADE_ERROR_ON_TRIAL]`), or all codes of a
/// class by its name or its exit code. A whole code is never taken for a class: `UPGRADE_ERROR_INTERNAL` is one code,
/// `internal` is a class. Empty if there is no such name.
pub fn explain(asked: &str) -> Vec<Explanation> {
    let code = asked.trim().trim_matches(['[', ']']).to_ascii_uppercase().replace('-', "_");
    let short = code.strip_prefix(PREFIX).unwrap_or(&code);
    if NO_ERROR.ends_with(&format!("_ERROR_{short}")) {
        return vec![Explanation {
            code: NO_ERROR,
            class: "none",
            exit_code: 0,
            meaning: "Nothing failed.".to_owned(),
            message: String::new(),
            remedy: "nothing to do",
        }];
    }
    let mut found = all();
    if short.len() < code.len() {
        found.retain(|one| one.code == code);
        return found;
    }
    found.retain(|one| {
        one.code.strip_prefix(PREFIX) == Some(short)
            || one.class.eq_ignore_ascii_case(short)
            || short == one.exit_code.to_string()
    });
    found
}

/// The page of exit codes and error codes in Markdown: `src/manual/errors.md`.
pub fn page() -> String {
    let mut page = String::from(
        "# Exit codes and error codes\n\n\
         | code | class | meaning | what to do |\n|---|---|---|---|\n| 0 | | done | |\n",
    );
    for class in Class::ALL {
        let (code, word) = (class.exit_code(), class.word());
        let _ = writeln!(page, "| {code} | `{word}` | {} | {} |", class.meaning(), class.remedy());
    }
    page.push_str(
        "\nEach failure also has a stable code, `UPGRADE_ERROR_…`, at the end of its message and in the JSON.\n\
         `qstage explain CODE` shows what is here of one. Names in braces stand for the facts of the case.\n\
         `src/error/list.rs` is the one list of them, from which `qstage explain --page` makes this page.\n",
    );
    for class in Class::ALL {
        let _ = write!(page, "\n## Class {}: exit code {}\n", class.word(), class.exit_code());
        for one in all().iter().filter(|one| one.class == class.word()) {
            let message = one.message.replace('<', "\\<");
            let _ = write!(page, "\n`{}`\n: {}\n  Message: {message}\n", one.code, one.meaning);
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_message_names_every_fact() {
        let [config] = &explain("config")[..] else { panic!() };
        assert_eq!(config.message, "configuration {path}: {problem}");
        let [slow] = &explain("TOO_SLOW")[..] else { panic!() };
        assert!(slow.message.starts_with("prepare reached {reached} of the ideal, {wanted} was"), "{slow:?}");
        for one in all() {
            assert!(!one.message.contains("{}"), "{one:?}");
        }
    }

    #[test]
    fn a_code_is_found_in_any_spelling() {
        for asked in ["UPGRADE_ERROR_ON_TRIAL", "on-trial", "On_Trial", "[UPGRADE_ERROR_ON_TRIAL]"] {
            let found = explain(asked);
            assert_eq!(found.len(), 1, "{asked}");
            assert_eq!((found[0].code, found[0].exit_code), ("UPGRADE_ERROR_ON_TRIAL", 5));
        }
        for (code, class) in Error::ALL {
            assert!(explain(code).iter().any(|one| one.code == *code && one.class == class.word()), "{code}");
        }
        assert_eq!(explain(NO_ERROR)[0].exit_code, 0);
        assert_eq!(explain("no_such"), []);
        assert_eq!(explain(""), []);
    }

    #[test]
    fn a_class_stands_for_all_its_codes() {
        let trust = explain("trust");
        assert!(trust.len() > 5 && trust.iter().all(|one| one.class == "trust"));
        assert_eq!(explain("4"), trust);
    }
}
