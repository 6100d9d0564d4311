//! Checks of the configuration, of the trusted keys, and of the files that both name.

use std::path::{Path, PathBuf};

use super::{Finding, Places};
use crate::config::Settings;
use crate::error::{Error, sentence};
use crate::host::files::check_trusted;

/// The settings of this machine, and whether its configuration file could be used.
pub(crate) struct Setup {
    /// The settings; the defaults if the file cannot be used.
    pub(crate) settings: Settings,
    /// Why the file cannot be used.
    pub(crate) problem: Option<Error>,
    /// The configuration file.
    pub(crate) file: PathBuf,
}

impl Setup {
    /// The findings about configuration and keys.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![self.configuration()];
        findings.extend(self.keys());
        findings
    }

    fn configuration(&self) -> Finding {
        match &self.problem {
            Some(error) => {
                let remedy = format!("correct {}; qstage.toml(5) explains every key", self.file.display());
                // The whole message: what follows its last semicolon is no remedy here.
                Finding {
                    message: sentence(error),
                    remedy: Some(remedy),
                    ..Finding::of("configuration", error)
                }
            }
            None if self.file.exists() => {
                Finding::good("configuration", format!("{} is sound", self.file.display()))
            }
            None => Finding::good("configuration", format!("there is no {}: defaults", self.file.display())),
        }
    }

    fn keys(&self) -> Vec<Finding> {
        let trust = &self.settings.trust;
        let file = trust.path.display();
        // The configuration that cannot be used may name another file.
        if !trust.is_there() && self.problem.is_some() {
            return Vec::new();
        }
        if !trust.is_there() {
            let message = format!("there is no {file}: no bundle can be accepted");
            let remedy = format!(
                "put the public key of who signs releases into it: 'NAME namespaces=\"qimg\" KEY' ({file})"
            );
            return vec![Finding::problem("keys", message, remedy)];
        }
        let read = match trust.read() {
            Err(error) => return vec![Finding::of("keys", &error)],
            Ok(read) => read,
        };
        let (keys, skipped) = read.keys();
        let needed = trust.demand.threshold.get();
        let mut findings = Vec::new();
        if keys < needed {
            let message = format!(
                "'threshold' asks for {needed} keys, {file} has {keys} that may count: no bundle can be accepted"
            );
            findings.push(Finding::problem("keys", message, "add keys, or lower the threshold"));
        } else {
            findings.push(Finding::good("keys", format!("{keys} in {file}, {needed} must have signed")));
        }
        for line in skipped {
            let message = format!("{file}, {line}: it does not count");
            findings.push(Finding::warning("keys", message, "correct the line, or take it out"));
        }
        findings
    }

    /// The findings about the files that the service reads.
    pub(super) fn service(&self, places: &Places) -> Vec<Finding> {
        let service = &self.settings.service;
        let mut findings = Vec::new();
        let trusted = [
            ("tokens", service.tokens.as_deref()),
            ("certificate", service.certificate.as_deref()),
            ("key", service.key.as_deref()),
            ("[network] client_key", self.settings.web.client_key.as_deref()),
            ("[network] credentials", self.settings.web.credentials.as_deref()),
        ];
        for (key, path) in trusted {
            let Some(path) = path else { continue };
            if let Err(problem) = check_trusted(&places.at(path)) {
                let message = format!("'{key}' is {}, which cannot be used: {problem}", path.display());
                findings.push(Finding::problem(
                    "service",
                    message,
                    "make the file, owned by root, or take the key out",
                ));
            }
        }
        for dir in service.allowed().directories {
            if !places.has(&dir) {
                let message =
                    format!("{} is missing: a caller of the service can name no bundle in it", dir.display());
                findings.push(Finding::warning("service", message, missing_directory(&dir)));
            }
        }
        findings
    }
}

fn missing_directory(dir: &Path) -> String {
    format!("mkdir {}, or set 'image_paths' in [service]", dir.display())
}
