//! The command line as words. clap reads it; what it says of mistakes is gone over: a tip is typed without a thought, so none
//! destroys anything, and words of other tools lead to the verb that does the same here.

use std::ffi::OsString;

use clap::Parser;
use clap::error::{ContextKind, ContextValue};

use super::args::Cli;

/// Verbs that destroy what a disk holds or what was prepared: no tip names them.
const DESTRUCTIVE: [&str; 2] = ["init", "cancel"];

/// Options that overrule a refusal, by how they begin.
const OVERRULING: [&str; 5] = ["--force", "--allow-", "--override-", "--assume-", "--unsigned-"];

/// Verbs that people know from other tools (RAUC, SWUpdate, Mender, swupd, apt), and ours.
const KNOWN_ELSEWHERE: [(&[&str], &str); 6] = [
    (&["install", "update", "apply", "flash", "write", "stage", "deploy"], "prepare"),
    (&["activate", "switch", "select-slot"], "commit"),
    (&["rollback", "revert", "fallback"], "roll-back"),
    (&["bundle", "create", "build"], "pack"),
    (&["info", "show"], "inspect"),
    (&["list", "ls"], "slots"),
];

impl Cli {
    /// Reads the command line of this process. A mistake is printed, and ends it with exit code 2.
    pub fn of_process() -> Self {
        let words = help_as_option(std::env::args_os().collect());
        let verb = words.get(1).and_then(|word| word.to_str()).unwrap_or_default().to_owned();
        Self::try_parse_from(words).unwrap_or_else(|mut error| {
            correct(&mut error, &verb);
            error.exit()
        })
    }
}

/// `help VERB...` is `VERB... --help`. clap's own verb of that name would repeat all verbs below itself, in the completions and
/// the manual pages too.
fn help_as_option(mut words: Vec<OsString>) -> Vec<OsString> {
    if words.get(1).is_some_and(|word| word == "help") {
        words.remove(1);
        words.push("--help".into());
    }
    words
}

/// Takes tips out of an error that somebody would regret, and adds those for `verb` of other tools.
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

/// Keeps those words of a kind of tip that `keep` wants.
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
