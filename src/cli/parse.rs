//! The command line as words. clap parses it; its messages about mistakes are corrected. Users type a tip without a thought,
//! so no tip may destroy anything; and verbs of other tools lead to the verb with the same purpose here.

use std::ffi::OsString;

use clap::Parser;
use clap::error::{ContextKind, ContextValue};

use super::verb::Cli;

/// Verbs that destroy the content of a disk or a prepared slot, end a membership or an upgrade of all nodes, or make a token
/// useless: no tip names them.
const DESTRUCTIVE: [&str; 6] = ["init", "cancel", "leave", "abandon", "take-back", "revoke"];

/// Prefixes of options that override a refusal, or answer a question in advance.
const OVERRULING: [&str; 6] = ["--force", "--allow-", "--override-", "--assume-", "--unsigned-", "--yes"];

/// Verbs of other tools (RAUC, SWUpdate, Mender, swupd, apt), and ours.
const KNOWN_ELSEWHERE: [(&[&str], &str); 6] = [
    (&["install", "update", "apply", "flash", "write", "stage", "deploy"], "prepare"),
    (&["activate", "switch", "select-slot"], "commit"),
    (&["rollback", "revert", "fallback"], "roll-back"),
    (&["bundle", "create", "build"], "pack"),
    (&["info", "show"], "inspect"),
    (&["list", "ls"], "slots"),
];

impl Cli {
    /// Parses the command line of this process. A mistake is printed, and ends the process with exit code 2.
    pub fn of_process() -> Self {
        let words = help_as_option(std::env::args_os().collect());
        let verb = words.get(1).and_then(|word| word.to_str()).unwrap_or_default().to_owned();
        Self::try_parse_from(words).unwrap_or_else(|mut error| {
            correct(&mut error, &verb);
            error.exit()
        })
    }
}

/// Turns `help VERB...` into `VERB... --help`. clap's own verb `help` would repeat all verbs below itself, also in completions
/// and manual pages.
fn help_as_option(mut words: Vec<OsString>) -> Vec<OsString> {
    if words.get(1).is_some_and(|word| word == "help") {
        words.remove(1);
        words.push("--help".into());
    }
    words
}

/// Removes dangerous tips from an error, and adds those for verbs of other tools.
fn correct(error: &mut clap::Error, verb: &str) {
    let is_destructive = |word: &str| DESTRUCTIVE.contains(&word);
    let is_overruling = |word: &str| OVERRULING.iter().any(|start| word.starts_with(start));
    retain(error, ContextKind::SuggestedSubcommand, |word| !is_destructive(word));
    retain(error, ContextKind::SuggestedArg, |word| !is_overruling(word));
    let invalid =
        matches!(error.get(ContextKind::InvalidSubcommand), Some(ContextValue::String(word)) if word == verb);
    let known = KNOWN_ELSEWHERE.iter().find(|(words, _)| words.contains(&verb));
    if let (true, Some((_, ours))) = (invalid, known) {
        let tip = ContextValue::Strings(vec![(*ours).to_owned()]);
        error.insert(ContextKind::SuggestedSubcommand, tip);
    }
}

/// Retains the words of a kind of tip for which `keep` holds.
fn retain(error: &mut clap::Error, kind: ContextKind, keep: impl Fn(&str) -> bool) {
    match error.remove(kind) {
        Some(ContextValue::String(word)) if keep(&word) => {
            error.insert(kind, ContextValue::String(word));
        }
        Some(ContextValue::Strings(words)) => {
            let words: Vec<String> = words.into_iter().filter(|word| keep(word)).collect();
            if !words.is_empty() {
                error.insert(kind, ContextValue::Strings(words));
            }
        }
        _ => {}
    }
}
