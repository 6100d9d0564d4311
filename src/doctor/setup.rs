//! Checks of the configuration, of the trusted keys, and of the files that both name.

use std::path::{Path, PathBuf};

use super::{Finding, Places};
use crate::cluster::etcd::Etcd;
use crate::config::{ClusterConfig, Settings};
use crate::error::{Error, Result, sentence};
use crate::host::files::{check_trusted, trust_remedy};

/// A line of the file of trusted keys.
const LINE: &str = "'NAME namespaces=\"qimg\" KEY'";

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
                let remedy = closing(&self.file).unwrap_or_else(|| {
                    format!("correct {}; qstage.toml(5) explains every key", self.file.display())
                });
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
            let remedy = format!("put the public key of who signs releases into it: {LINE} ({file})");
            return vec![Finding::problem("keys", message, remedy)];
        }
        let read = match trust.read() {
            Err(error) => {
                let mut finding = Finding::of("keys", &error);
                // Another file is a way around it; the file of this machine is to be corrected.
                let lines = || format!("each line of it is: {LINE}");
                finding.remedy = closing(&trust.path).or_else(|| match finding.remedy {
                    Some(remedy) if remedy == error.class().remedy() => Some(lines()),
                    other => other,
                });
                return vec![finding];
            }
            Ok(read) => read,
        };
        let (keys, skipped) = read.keys();
        let needed = trust.demand.threshold.get();
        let mut findings = Vec::new();
        if keys < needed {
            let of = trust.demand.principal.as_ref().map(|name| format!(" of principal '{name}'"));
            let of = of.unwrap_or_default();
            let message = format!(
                "'threshold' asks for {needed} keys{of}, {file} has {keys} that may count: no bundle can be accepted"
            );
            let remedy = if of.is_empty() {
                "add keys, or lower the threshold"
            } else {
                "add keys of that name, lower the threshold, or correct 'principal'"
            };
            findings.push(Finding::problem("keys", message, remedy));
        } else {
            findings.push(Finding::good("keys", format!("{keys} in {file}, {needed} must have signed")));
        }
        for line in skipped {
            let message = format!("{file}, {line}: it does not count");
            findings.push(Finding::warning("keys", message, "correct the line, or take it out"));
        }
        findings
    }

    /// What 'qstage serve' and a transfer would refuse of a configuration whose files are all there.
    fn contradictions(&self) -> Vec<Finding> {
        let settings = &self.settings;
        let store = |cluster: &ClusterConfig| Etcd::new(&cluster.access()?).map(drop);
        let checks = [
            refused("service", settings.certificate().map(drop)),
            refused("service", settings.membership(settings.service.listen()).map(drop)),
            refused("service", settings.fleet_lock().map(drop)),
            refused("service", settings.cluster.as_ref().map_or(Ok(()), store)),
            refused("network", settings.web.check()),
        ];
        let mut findings: Vec<Finding> = Vec::new();
        for one in checks.into_iter().flatten() {
            // A half pair stops the membership too.
            if findings.iter().all(|other| other.message != one.message) {
                findings.push(one);
            }
        }
        findings
    }

    /// The findings about the files that the service reads.
    pub(super) fn service(&self, places: &Places) -> Vec<Finding> {
        let service = &self.settings.service;
        let web = &self.settings.web;
        let cluster = self.settings.cluster.as_ref();
        let of_cluster =
            |path: fn(&ClusterConfig) -> &Option<PathBuf>| cluster.and_then(|c| path(c).as_deref());
        let mut findings = Vec::new();
        let make = "make the file, owned by root, or take the key out";
        let token =
            "'qstage token new NAME' makes the file; or take the key out. Until then no token is accepted";
        let certificate = "make the file, owned by root, or take 'certificate' and 'key' out, for a self-signed one. Until then there is no HTTPS";
        let member = "make the file, owned by root. Until then 'qstage serve' does not start: a member that cannot reach the store must not act alone";
        let trusted = [
            ("tokens", service.tokens.as_deref(), token),
            ("certificate", service.certificate.as_deref(), certificate),
            ("key", service.key.as_deref(), certificate),
            ("web_ca", web.ca.as_deref(), make),
            ("[network] client_certificate", web.client_certificate.as_deref(), make),
            ("[network] client_key", web.client_key.as_deref(), make),
            ("[network] credentials", web.credentials.as_deref(), make),
            ("[cluster] ca", of_cluster(|cluster| &cluster.ca), member),
            ("[cluster] cert", of_cluster(|cluster| &cluster.cert), member),
            ("[cluster] key", of_cluster(|cluster| &cluster.key), member),
            ("[cluster] password_file", of_cluster(|cluster| &cluster.password_file), member),
        ];
        for (key, path, remedy) in trusted {
            let Some(path) = path else { continue };
            if let Err(problem) = check_trusted(&places.at(path)) {
                let message = format!("'{key}' is {}, which cannot be used: {problem}", path.display());
                let remedy = trust_remedy(&problem).unwrap_or_else(|| remedy.to_owned());
                findings.push(Finding::problem("service", message, remedy));
            }
        }
        // Each file that is missing has a finding of its own already.
        if findings.is_empty() {
            findings.extend(self.contradictions());
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

/// A failure of a configuration, as a finding of this subject.
fn refused(subject: &'static str, result: Result<()>) -> Option<Finding> {
    result.err().map(|error| Finding::of(subject, &error))
}

fn missing_directory(dir: &Path) -> String {
    format!("mkdir {}, or set 'image_paths' in [service]", dir.display())
}

/// The command that closes a file to others than its owner; `None` if it is closed, or cannot be looked at.
fn closing(path: &Path) -> Option<String> {
    check_trusted(path).err().as_ref().and_then(trust_remedy)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::Config;

    /// A user that may write to a file decides what it says: each kind of file has the command that ends that as its remedy, not "make
    /// the file", which is there.
    #[test]
    fn a_file_that_others_can_write_has_its_mode_as_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["signers", "tokens", "config"] {
            std::fs::write(at(name), "").unwrap();
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(0o666)).unwrap();
        }
        let text = format!(
            "trust = {:?}\n[service]\ntokens = {:?}\nimage_paths = []\n",
            at("signers"),
            at("tokens")
        );
        let settings = toml::from_str::<Config>(&text).unwrap().into_settings();
        let config = crate::host::files::read_trusted_text(&at("config"), 1).unwrap_err();
        let problem = Some(Error::Config { path: at("config"), problem: config.to_string() });
        let mut setup = Setup { settings, problem, file: at("config") };
        let mut findings = setup.findings();
        setup.problem = None;
        findings.extend(setup.service(&Places::below(Path::new("/"))));
        for (subject, name) in [("configuration", "config"), ("keys", "signers"), ("service", "tokens")] {
            let found = findings.iter().find(|one| one.subject == subject).unwrap();
            assert_eq!(found.verdict, super::super::Severity::Problem, "{found:?}");
            let remedy = found.remedy.as_deref().unwrap();
            assert_eq!(remedy, format!("check its content, then: chmod go-w {}", at(name).display()));
        }
    }

    /// Each file of the configuration that the service reads is named while it is missing.
    #[test]
    fn each_missing_file_of_the_service_is_named() {
        let text = "web_ca = \"/x/ca\"\n[service]\ntokens = \"/x/tokens\"\ncertificate = \"/x/cert\"\nkey = \"/x/key\"\n\
             image_paths = [\"/x/images\"]\n[network]\nclient_certificate = \"/x/cc\"\nclient_key = \"/x/ck\"\n\
             credentials = \"/x/cred\"\n[cluster]\nnode = 1\nendpoints = [\"https://127.0.0.1:1\"]\nca = \"/x/eca\"\n\
             cert = \"/x/ec\"\nkey = \"/x/ek\"\nuser = \"u\"\npassword_file = \"/x/pw\"\n";
        let settings = toml::from_str::<Config>(text).unwrap().into_settings();
        let setup = Setup { settings, problem: None, file: "/x/config".into() };
        let dir = tempfile::tempdir().unwrap();
        let findings = setup.service(&Places::below(dir.path()));
        for file in ["ca", "tokens", "cert", "key", "images", "cc", "ck", "cred", "eca", "ec", "ek", "pw"] {
            let path = format!("/x/{file}");
            let names = |one: &&Finding| one.message.split([' ', ',']).any(|word| word == path);
            let found: Vec<_> = findings.iter().filter(names).collect();
            assert_eq!(found.len(), 1, "{path}: {findings:#?}");
            assert!(found[0].remedy.is_some());
        }
        assert_eq!(findings.len(), 12, "{findings:#?}");
    }

    /// 'qstage serve' refused these to start, and doctor had nothing to say of them.
    #[test]
    fn what_serve_and_a_transfer_refuse_is_a_finding() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pem"), "").unwrap();
        let member = "[cluster]\nnode = 1\nendpoints = [\"http://127.0.0.1:1\"]\n";
        let reboots = "reboot_command = [\"true\"]\n";
        let pem = format!("certificate = {:?}\n", dir.path().join("pem"));
        for (service, rest, part) in [
            (pem.as_str(), "", "[service] certificate and key: only one of them is set; set the other"),
            ("", member, "a member of a cluster needs a 'reboot_command' in [service]; set it"),
            (reboots, "[cluster]\nnode = 1\nendpoints = [\"ftp://x\"]\n", "'ftp://x' is no URL such as"),
            (reboots, "[reboot]\nfleet_lock = \"airlock\"\n", "[reboot] fleet_lock: it is no URL"),
            (
                "",
                "[reboot]\nfleet_lock = \"http://x\"\nfleet_lock_id = \"x\"\n",
                "without a 'reboot_command'",
            ),
            ("", "[network]\nproxy = \"ftp://x\"\n", "its scheme is none of http, https"),
            ("", "[network]\nmirrors = [\"mirror\"]\n", "'mirror' is no URL"),
            (reboots, member, ""),
        ] {
            let text = format!("[service]\nimage_paths = []\n{service}{rest}");
            let settings = toml::from_str::<Config>(&text).unwrap().into_settings();
            let setup = Setup { settings, problem: None, file: "/x/config".into() };
            let findings = setup.service(&Places::below(Path::new("/")));
            let shown = |one: &Finding| format!("{}; {}", one.message, one.remedy.as_deref().unwrap());
            let shown: Vec<String> = findings.iter().map(shown).collect();
            assert_eq!(shown.len(), usize::from(!part.is_empty()), "{text}: {shown:?}");
            assert!(shown.iter().all(|one| one.contains(part)), "{text}: {shown:?}");
        }
    }
}
