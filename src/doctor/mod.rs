//! `qstage doctor`: checks whether this machine is set up so that upgrades and fallbacks work. It reads and changes nothing.
//! Each subject has a file here, which returns [`Finding`]s with their remedies.

mod archive;
mod boot;
mod container;
mod disk;
mod places;
mod setup;
mod units;

use serde::Serialize;

pub(crate) use archive::write as write_archive;
pub(crate) use disk::DiskContent;
pub(crate) use places::Places;
pub(crate) use setup::Setup;

use crate::error::{Error, sentence};

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As required.
    Good,
    /// Upgrades work, but something is missing that is needed when one fails.
    Warning,
    /// An upgrade, a fallback or the software does not work.
    Problem,
}

/// Result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The subject, in one word: `configuration`, `keys`, `disk`, `boot`, `initramfs`, `fallback`, `units`, `health`,
    /// `service`, `network`, `container`.
    pub subject: &'static str,
    /// Its severity.
    pub verdict: Severity,
    /// What was found.
    pub message: String,
    /// What to do; `None` if nothing is to be done.
    pub remedy: Option<String>,
    /// The error code that verbs will fail with; `None` if they will not.
    pub code: Option<&'static str>,
}

/// All findings.
#[derive(Debug, Clone, Serialize)]
pub struct Diagnosis {
    /// Version of qstage.
    pub version: &'static str,
    /// Number of findings that are problems.
    pub problems: usize,
    /// Number of findings that are warnings.
    pub warnings: usize,
    /// The findings, in the order of the subjects.
    pub findings: Vec<Finding>,
}

impl Finding {
    fn good(subject: &'static str, message: impl Into<String>) -> Self {
        Self { subject, verdict: Severity::Good, message: message.into(), remedy: None, code: None }
    }

    fn warning(subject: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { subject, verdict: Severity::Warning, message: message.into(), remedy, code: None }
    }

    fn problem(subject: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Severity::Problem, ..Self::warning(subject, message, remedy) }
    }

    /// A failure that the verbs would meet. The remedy is what follows the last semicolon of its message, else that of its class.
    fn of(subject: &'static str, error: &Error) -> Self {
        let text = sentence(error);
        let (message, remedy) = match text.rsplit_once("; ") {
            Some((message, remedy)) => (message.to_owned(), remedy.to_owned()),
            None => (text, error.class().remedy().to_owned()),
        };
        Self { code: Some(error.code()), ..Self::problem(subject, message, remedy) }
    }
}

impl Diagnosis {
    fn new(findings: Vec<Finding>) -> Self {
        let count = |verdict: Severity| findings.iter().filter(|one| one.verdict == verdict).count();
        let (problems, warnings) = (count(Severity::Problem), count(Severity::Warning));
        Self { version: env!("CARGO_PKG_VERSION"), problems, warnings, findings }
    }

    /// An error if something has to be done, for the exit code.
    ///
    /// # Errors
    /// [`Error::Findings`].
    pub fn verdict(&self) -> crate::error::Result<()> {
        let first = self.findings.iter().find(|one| one.verdict == Severity::Problem);
        match first {
            None => Ok(()),
            Some(first) => Err(Error::Findings { problems: self.problems, first: first.message.clone() }),
        }
    }
}

/// Subjects whose places the configuration names, and that a default says nothing about.
const OF_CONFIGURATION: [&str; 5] = ["service", "network", "health", "container", "boot"];

/// Runs all checks. `seen` is the disk, or the reason why it cannot be read.
pub(crate) fn examine(places: &Places, setup: &Setup, seen: &crate::error::Result<DiskContent>) -> Diagnosis {
    let settings = &setup.settings;
    let mut findings = setup.findings();
    match seen {
        Ok(seen) => findings.extend(seen.findings(settings)),
        // The configuration that cannot be used may name it.
        Err(Error::NoDisk { .. }) if setup.problem.is_some() => {}
        Err(error) => {
            let remedy =
                "correct 'disk' in the configuration, or name the disk with --disk; 'lsblk' lists the disks";
            let own = Finding::of("disk", error);
            findings.push(match error {
                Error::Open { .. } => Finding { remedy: Some(remedy.to_owned()), ..own },
                _ => own,
            });
        }
    }
    // A disk image has no loader, units or kernel, and runs no service.
    if seen.as_ref().map_or(true, |seen| !seen.is_image) {
        let slots = seen.as_ref().ok().and_then(|seen| seen.slots.as_ref().ok());
        findings.extend(setup.service(places));
        findings.extend(boot::findings(places, settings, slots));
        findings.extend(units::findings(places, settings));
        findings.extend(container::findings(places, settings));
    }
    if setup.problem.is_some() {
        // Defaults were looked at, which this machine may not use.
        findings.retain(|one| !OF_CONFIGURATION.contains(&one.subject) || one.verdict == Severity::Good);
        let message = "not all of disk, keys, boot, service, network, health checks and container is checked: the configuration names them";
        findings.push(Finding::warning("configuration", message, "correct it, and run doctor again"));
    }
    Diagnosis::new(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_split_into_message_and_remedy() {
        let found = Finding::of("disk", &Error::NotGpt { disk: "/dev/x".into() });
        assert_eq!(found.message, "/dev/x has no GUID partition table");
        assert_eq!(found.remedy.as_deref(), Some("lay one out with 'qstage init'"));
        assert_eq!(found.code, Some("UPGRADE_ERROR_NOT_GPT"));
        let bare = Finding::of("keys", &Error::Product { bundle: "a".into(), machine: "b".into() });
        assert_eq!(bare.remedy.as_deref(), Some("the message names the rule and the remedy"));
    }

    #[test]
    fn only_problems_fail() {
        let warned = Diagnosis::new(vec![Finding::good("a", "x"), Finding::warning("b", "y", "z")]);
        assert_eq!((warned.problems, warned.warnings), (0, 1));
        warned.verdict().unwrap();
        let failed = Diagnosis::new(vec![Finding::warning("b", "y", "z"), Finding::problem("c", "w", "z")]);
        let error = failed.verdict().unwrap_err();
        assert_eq!(error.class().exit_code(), 9);
        assert!(
            error.to_string().starts_with("problems found: 1") && error.to_string().contains('w'),
            "{error}"
        );
    }
}
