//! Configured commands around the turn of a node in a rolling reboot: `drain` takes the node out of service, `undrain` takes it
//! back into service, `protection` reports how many nodes may fail. Each has a time limit, an environment of its own and JSON
//! on its standard input. It runs without a lock, so that other processes can use the disk meanwhile.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::state::{NodeId, Protection, RebootState};
use crate::cluster::view::View;
use crate::error::{Error, Result};
use crate::host::files::{check_trusted, private_directory, replace};
use crate::host::outside;
use crate::host::program::Program;

/// Version of the JSON object that a hook reads.
const VERSION: u32 = 1;
/// Time limit of one run of `protection`.
const ASKED: Duration = Duration::from_secs(30);
/// Number of characters of a hook's last output that are shown.
const LAST_WORDS: usize = 300;
/// File of the state directory that exists while the node is drained.
const DRAINED: &str = "drained";

/// Hooks, each a program and its arguments; empty: the hook is not configured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hooks {
    /// Takes this node out of service.
    pub drain: Vec<String>,
    /// Takes it back into service.
    pub undrain: Vec<String>,
    /// Prints the number of nodes that may fail.
    pub protection: Vec<String>,
    /// Time limit of `drain` and `undrain`, and the time for which `protection` may fail.
    pub timeout: Duration,
}

/// Input of a hook, on its standard input and in its environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub(super) struct Occasion {
    /// Number of the node on which the hook runs.
    pub(super) node: u32,
    /// Numbers of all members.
    pub(super) nodes: Vec<u32>,
    /// Numbers of the nodes whose turn it is.
    pub(super) group: Vec<u32>,
    /// `upgrade` or `reboot`; empty: neither is in progress.
    pub(super) reason: &'static str,
    /// Version that runs on this node.
    pub(super) version: String,
    /// Version of the upgrade; empty if there is none.
    pub(super) target_version: String,
}

impl Occasion {
    /// The turn of a node in the present reboot.
    pub(super) fn new(node: NodeId, view: &View) -> Self {
        let reboot = &view.reboot;
        let order = view.upgrade.order.as_ref().filter(|_| reboot.upgrade_initiated);
        Self {
            node: node.0,
            nodes: view.members.iter().map(|node| node.0).collect(),
            group: reboot.current.iter().map(|(node, _)| node.0).collect(),
            reason: match reboot.state {
                RebootState::Idle => "",
                _ if reboot.upgrade_initiated => "upgrade",
                _ => "reboot",
            },
            version: view.alive.get(&node).map(|alive| alive.version.clone()).unwrap_or_default(),
            target_version: order.map(|order| order.target_version.clone()).unwrap_or_default(),
        }
    }
}

#[derive(Serialize)]
struct Input<'a> {
    v: u32,
    hook: &'a str,
    #[serde(flatten)]
    occasion: &'a Occasion,
}

/// JSON object that `protection` prints.
#[derive(Deserialize)]
struct Answer {
    remaining: u32,
    maximum: u32,
    #[serde(default)]
    rebuilding: bool,
}

impl Hooks {
    /// Takes this node out of service.
    ///
    /// # Errors
    /// [`Error::Hook`].
    pub(super) fn drain(&self, occasion: &Occasion) -> Result<()> {
        run("drain", &self.drain, self.timeout, occasion).map(|_| ())
    }

    /// Takes this node back into service.
    ///
    /// # Errors
    /// [`Error::Hook`].
    pub(super) fn undrain(&self, occasion: &Occasion) -> Result<()> {
        run("undrain", &self.undrain, self.timeout, occasion).map(|_| ())
    }

    /// Asks how many nodes may fail.
    ///
    /// # Errors
    /// [`Error::Hook`], also for an invalid answer.
    pub(super) fn protection(&self, occasion: &Occasion) -> Result<Protection> {
        let answer = run("protection", &self.protection, self.timeout.min(ASKED), occasion)?;
        let failed = |problem: String| Error::Hook { hook: "protection".to_owned(), problem };
        let Answer { remaining, maximum, rebuilding } = serde_json::from_slice(&answer)
            .map_err(|problem| failed(format!("printed no answer: {problem}")))?;
        if remaining > maximum {
            return Err(failed(format!("printed that {remaining} of {maximum} nodes may fail")));
        }
        Ok(Protection { remaining, maximum, rebuilding })
    }
}

/// Runs a hook and returns its standard output; a hook that is not configured is skipped.
fn run(hook: &str, words: &[String], limit: Duration, occasion: &Occasion) -> Result<Vec<u8>> {
    let failed = |problem: String| Error::Hook { hook: hook.to_owned(), problem };
    let Some((program, arguments)) = words.split_first() else { return Ok(Vec::new()) };
    if program.contains('/') {
        check_trusted(Path::new(program)).map_err(|problem| failed(format!("cannot be run: {problem}")))?;
    }
    let input = serde_json::to_vec(&Input { v: VERSION, hook, occasion })
        .map_err(|problem| Error::Internal { what: format!("JSON: {problem}") })?;
    let (node, group) =
        (occasion.node.to_string(), occasion.group.iter().map(u32::to_string).collect::<Vec<_>>());
    let environment = [
        ("QSTAGE_HOOK", hook),
        ("QSTAGE_NODE", &node),
        ("QSTAGE_GROUP", &group.join(" ")),
        ("QSTAGE_REASON", occasion.reason),
        ("QSTAGE_VERSION", &occasion.version),
        ("QSTAGE_TARGET_VERSION", &occasion.target_version),
    ];
    let program = Program::new(program, limit).args(arguments).without_environment().envs(environment);
    // A hook is a program of the machine: the read-only directories of the service's unit must not apply to it.
    let outcome = outside::run(|| program.input(input).answer().run()).and_then(std::convert::identity);
    let outcome = outcome.map_err(|problem| failed(format!("cannot be run: {problem}")))?;
    if outcome.end.success() {
        return Ok(outcome.answer);
    }
    // A program that wrote nothing to standard error may have printed the reason on standard output.
    let printed = String::from_utf8_lossy(&outcome.answer);
    let words = if outcome.last_words.is_empty() { printed.trim() } else { outcome.last_words.as_str() };
    let words: Vec<char> = words.replace('\n', "; ").chars().collect();
    let last: String = words.iter().skip(words.len().saturating_sub(LAST_WORDS)).collect();
    let end = match outcome.end {
        crate::host::program::End::Exited(status) => format!("ended with {status}"),
        end @ crate::host::program::End::TimedOut(_) => end.to_string(),
    };
    Err(failed(if last.is_empty() { end } else { format!("{end}: {last}") }))
}

/// File of the state directory that records that this node is out of service; after a reboot another process needs it.
#[derive(Debug, Clone)]
pub(super) struct DrainedFile {
    dir: PathBuf,
}

impl DrainedFile {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.to_owned() }
    }

    pub(super) fn is_set(&self) -> bool {
        self.dir.join(DRAINED).exists()
    }

    /// Creates the file. If that fails, the node still knows it after its reboot by the turn that it had.
    pub(super) fn set(&self) {
        let set = private_directory(&self.dir, false).and_then(|()| replace(&self.dir, DRAINED, b"", 0o600));
        if let Err(error) = set {
            tracing::warn!("{}: that this node is drained is not kept: {error}", self.dir.display());
        }
    }

    pub(super) fn clear(&self) {
        match std::fs::remove_file(self.dir.join(DRAINED)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("{}: that this node is in service is not kept: {error}", self.dir.display());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(script: &str) -> Hooks {
        let words = ["sh", "-c", script].map(str::to_owned).to_vec();
        let timeout = Duration::from_secs(20);
        Hooks { drain: words.clone(), undrain: words.clone(), protection: words, timeout }
    }

    fn occasion() -> Occasion {
        Occasion {
            node: 2,
            nodes: vec![1, 2, 3],
            group: vec![2],
            reason: "upgrade",
            version: "1.0".into(),
            target_version: "2.0".into(),
        }
    }

    #[test]
    fn a_hook_is_told_what_it_is_for() {
        let wanted = r#"{"v":1,"hook":"drain","node":2,"nodes":[1,2,3],"group":[2],"reason":"upgrade","version":"1.0","target_version":"2.0"}"#;
        let script = format!(
            "test \"$(cat)\" = '{wanted}' && test \"$QSTAGE_HOOK $QSTAGE_NODE $QSTAGE_GROUP $QSTAGE_REASON \
             $QSTAGE_VERSION $QSTAGE_TARGET_VERSION ${{HOME-none}}\" = 'drain 2 2 upgrade 1.0 2.0 none'"
        );
        hooks(&script).drain(&occasion()).unwrap();
        assert!(hooks(&script).undrain(&occasion()).is_err(), "another hook is told another name");
        Hooks::default().drain(&occasion()).unwrap();
    }

    #[test]
    fn a_hook_that_fails_is_named_with_its_last_words() {
        let told = |script: &str| hooks(script).drain(&occasion()).unwrap_err();
        let error = told("echo talk; echo still 3 clients >&2; exit 4");
        assert_eq!(error.code(), "UPGRADE_ERROR_HOOK");
        assert_eq!(error.to_string(), "the hook 'drain' ended with exit status: 4: still 3 clients");
        assert_eq!(told("echo talk; exit 4").to_string(), "the hook 'drain' ended with exit status: 4: talk");
        let hangs = Hooks { timeout: Duration::from_millis(500), ..hooks("echo waiting >&2; sleep 60") };
        let mut tries = (0..5).map(|_| hangs.drain(&occasion()).unwrap_err().to_string());
        // A machine that stands still meanwhile does not get to the word: it gets five attempts.
        assert!(tries.any(|told| told == "the hook 'drain' did not end within 0.5 s: waiting"));
        let none = Hooks { drain: vec!["/nowhere/x".into()], ..Hooks::default() };
        assert!(none.drain(&occasion()).unwrap_err().to_string().contains("cannot be run"));
        let long = told("head -c 9000 /dev/zero | tr '\\0' x >&2; exit 1").to_string();
        assert!(long.len() < LAST_WORDS + 100, "{}", long.len());
    }

    #[test]
    fn a_program_that_others_may_write_is_not_run() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hook");
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        let hooks = Hooks { drain: vec![path.display().to_string()], ..hooks("") };
        assert!(hooks.drain(&occasion()).unwrap_err().to_string().contains("cannot be run"));
    }

    #[test]
    fn protection_is_two_numbers_and_a_state() {
        let asked = |text: &str| hooks(&format!("echo '{text}'")).protection(&occasion());
        let whole = Protection { remaining: 2, maximum: 2, rebuilding: false };
        assert_eq!(asked(r#"{"remaining": 2, "maximum": 2, "more": []}"#).unwrap(), whole);
        let rebuilding = asked(r#"{"remaining": 2, "maximum": 2, "rebuilding": true}"#).unwrap();
        assert!(rebuilding.rebuilding && !rebuilding.whole());
        for garbage in
            ["", "2", "{}", r#"{"remaining": -1, "maximum": 2}"#, r#"{"remaining": 3, "maximum": 2}"#]
        {
            let told = asked(garbage).unwrap_err().to_string();
            assert!(told.starts_with("the hook 'protection' printed"), "{garbage}: {told}");
        }
    }

    #[test]
    fn the_mark_outlives_the_process_and_a_directory_that_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        DrainedFile::new(dir.path()).set();
        assert!(DrainedFile::new(dir.path()).is_set());
        DrainedFile::new(dir.path()).clear();
        DrainedFile::new(dir.path()).clear();
        assert!(!DrainedFile::new(dir.path()).is_set());
        let none = DrainedFile::new(Path::new("/proc/none"));
        none.set();
        none.clear();
        assert!(!none.is_set());
    }
}
