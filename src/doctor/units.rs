//! Checks of the units of systemd, and of the health checks that end a trial.

use super::{Finding, Places};
use crate::config::Settings;
use crate::host::health::{DEFAULT_DIR, is_check};

const MARK_GOOD: &str = "qstage-mark-good.service";
const CONTAINER: &str = "qstage-container.service";
const SERVICE: &str = "qstage.service";

/// The findings.
pub(super) fn findings(places: &Places, settings: &Settings) -> Vec<Finding> {
    let mut findings = health(places);
    if !places.has("/run/systemd/system") {
        let message = "systemd does not run here: something else has to run 'qstage health' and 'qstage mark-good' after a boot";
        findings.push(Finding::warning(
            "units",
            message,
            "after each boot run 'qstage health && qstage mark-good'; if that fails, 'qstage health --trial-failed' and a reboot",
        ));
        return findings;
    }
    let all = [MARK_GOOD, "qstage-trial-failed.service", CONTAINER, SERVICE];
    let mut args = vec!["show", "-p", "Id,LoadState,UnitFileState,ActiveState,Result"];
    args.extend(all);
    let Some(shown) = places.ask("systemctl", &args) else { return findings };
    for unit in shown.split("\n\n").map(Unit::parse) {
        findings.push(unit.finding(settings.container.is_some()));
    }
    findings
}

fn health(places: &Places) -> Vec<Finding> {
    if !places.has(DEFAULT_DIR) {
        let message =
            format!("there is no {DEFAULT_DIR}: 'qstage health' fails, and a trial never ends well");
        return vec![Finding::problem(
            "health",
            message,
            format!("mkdir -p {DEFAULT_DIR}, and put checks into it"),
        )];
    }
    let checks = places.files(DEFAULT_DIR, "").into_iter().filter(|path| is_check(&places.at(path))).count();
    if checks == 0 {
        let message = format!("no checks in {DEFAULT_DIR}: a slot is good as soon as it has booted");
        let remedy = "put an executable file there that ends with 0 when the machine does its work";
        return vec![Finding::warning("health", message, remedy)];
    }
    vec![Finding::good("health", format!("{checks} checks in {DEFAULT_DIR}"))]
}

/// Properties of a unit, from systemctl(1).
#[derive(Debug, Default)]
struct Unit<'a> {
    name: &'a str,
    load: &'a str,
    file: &'a str,
    active: &'a str,
    result: &'a str,
}

impl<'a> Unit<'a> {
    fn parse(text: &'a str) -> Self {
        let mut unit = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            match key {
                "Id" => unit.name = value,
                "LoadState" => unit.load = value,
                "UnitFileState" => unit.file = value,
                "ActiveState" => unit.active = value,
                "Result" => unit.result = value,
                _ => {}
            }
        }
        unit
    }

    fn finding(&self, has_container: bool) -> Finding {
        let name = self.name;
        let enable = format!("systemctl enable {name}");
        let on = self.file.starts_with("enabled");
        if self.load == "masked" || self.load == "not-found" {
            let message = format!("{name} is {}", self.load);
            let remedy = "install the package, or unmask it (systemctl unmask)";
            return if name == SERVICE || name == CONTAINER && !has_container {
                Finding::good("units", format!("{message}, which this machine can do without"))
            } else {
                Finding::problem("units", message, remedy)
            };
        }
        if self.active == "failed" {
            let message = format!("{name} has failed ({})", self.result);
            return Finding::problem("units", message, format!("journalctl -u {name}"));
        }
        match name {
            MARK_GOOD if !on => {
                Finding::problem("units", format!("{name} is {}: nothing ends a trial", self.file), enable)
            }
            CONTAINER if !on && has_container => Finding::problem(
                "units",
                format!("{name} is {}: nothing starts the software at boot", self.file),
                enable,
            ),
            _ => Finding::good("units", format!("{name} is {}, {}", self.file, self.active)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    #[test]
    fn a_unit_that_has_failed_or_does_not_start_is_a_problem() {
        let shown = |name: &str, load: &str, file: &str, active: &str| {
            let text = format!(
                "Id={name}\nLoadState={load}\nUnitFileState={file}\nActiveState={active}\nResult=exit-code\n"
            );
            Unit::parse(&text).finding(true).verdict
        };
        for (name, load, file, active, verdict) in [
            (MARK_GOOD, "loaded", "enabled", "active", Severity::Good),
            (MARK_GOOD, "loaded", "disabled", "inactive", Severity::Problem),
            (MARK_GOOD, "not-found", "", "inactive", Severity::Problem),
            (SERVICE, "loaded", "disabled", "inactive", Severity::Good),
            (SERVICE, "loaded", "enabled", "failed", Severity::Problem),
            (SERVICE, "masked", "masked", "inactive", Severity::Good),
            (CONTAINER, "loaded", "disabled", "inactive", Severity::Problem),
            ("qstage-trial-failed.service", "loaded", "static", "inactive", Severity::Good),
        ] {
            assert_eq!(shown(name, load, file, active), verdict, "{name} {load} {file} {active}");
        }
    }

    #[test]
    fn a_machine_without_checks_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::below(dir.path());
        assert_eq!(health(&places)[0].verdict, Severity::Problem);
        std::fs::create_dir_all(places.at(DEFAULT_DIR)).unwrap();
        assert_eq!(health(&places)[0].verdict, Severity::Warning);
    }
}
