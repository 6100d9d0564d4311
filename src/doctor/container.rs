//! Checks of the kernel and the programs that `[container]` needs, and of the kernel for the sandbox.

use super::{Finding, Places};
use crate::config::Settings;
use crate::container;

/// The findings.
pub(super) fn findings(places: &Places, settings: &Settings) -> Vec<Finding> {
    let mut findings = sandbox(places);
    if let Some(config) = &settings.container {
        findings.extend(of(places, config));
    }
    findings
}

/// Landlock, by which the process that reads a bundle drops rights; without it, it keeps more of them.
fn sandbox(places: &Places) -> Vec<Finding> {
    let lsm = places.text("/sys/kernel/security/lsm");
    if lsm.is_empty() || lsm.trim().split(',').any(|module| module == "landlock") {
        return Vec::new();
    }
    let message = "the kernel has no Landlock: the process that reads a bundle keeps the right to open files";
    vec![Finding::warning(
        "sandbox",
        message,
        "CONFIG_SECURITY_LANDLOCK=y, and lsm=landlock,... on the command line",
    )]
}

fn of(places: &Places, config: &container::Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !places.has_program("systemd-nspawn") {
        let message = "systemd-nspawn is missing: no container can be started";
        findings.push(Finding::problem("container", message, "apt install systemd-container"));
    }
    if !places.has("/sys/fs/cgroup/cgroup.controllers") {
        let message = "the machine has no unified cgroup hierarchy";
        findings.push(Finding::warning(
            "container",
            message,
            "systemd.unified_cgroup_hierarchy=1 on the command line",
        ));
    }
    let spaces = places.text("/proc/sys/user/max_user_namespaces");
    let none = spaces.trim() == "0" || !places.has("/proc/self/ns/user");
    if none && config.users != container::Users::Host {
        let message = "the kernel has no user namespaces: root in the container is root of the machine";
        let remedy =
            "CONFIG_USER_NS=y, sysctl user.max_user_namespaces=15000; or say users = \"host\" to mean it";
        findings.push(if config.users == container::Users::Private {
            Finding::problem("container", message, remedy)
        } else {
            Finding::warning("container", message, remedy)
        });
    }
    if !places.text("/proc/self/status").lines().any(|line| line.starts_with("Seccomp:")) {
        let message = "the kernel has no seccomp: the container may do every system call";
        findings.push(Finding::warning("container", message, "CONFIG_SECCOMP_FILTER=y"));
    }
    let able: Vec<&String> =
        config.file_systems.iter().filter(|name| has_file_system(places, name)).collect();
    if able.is_empty() {
        let named = config.file_systems.join(", ");
        let message = format!("the kernel has none of the file systems that an image may have ({named})");
        findings.push(Finding::problem(
            "container",
            message,
            "build one of them into the kernel, or install its module",
        ));
    }
    if config.overlay && !has_file_system(places, "overlay") {
        let message = "'overlay' is set, but the kernel has no overlay file system";
        findings.push(Finding::problem("container", message, "CONFIG_OVERLAY_FS, or leave 'overlay' out"));
    }
    let binds = config.state.iter().chain(&config.bind).chain(&config.bind_ro);
    // A missing state directory is created.
    for outside in binds.skip(config.state.iter().count()).filter_map(|bind| bind.split(':').next()) {
        if !places.has(outside) {
            let message = format!("{outside} is bound into the container, and is missing");
            findings.push(Finding::problem("container", message, "make it, or take it out of [container]"));
        }
    }
    for device in config.devices.iter().filter(|device| !places.has(device)) {
        let message = format!("{} is given to the container, and is missing", device.display());
        findings.push(Finding::problem("container", message, "load its driver, or take it out of 'devices'"));
    }
    if findings.is_empty() {
        findings.push(Finding::good("container", "the kernel and the programs have what [container] needs"));
    }
    findings
}

/// Whether the kernel knows a file system, or has a module for it.
fn has_file_system(places: &Places, name: &str) -> bool {
    let known =
        places.text("/proc/filesystems").lines().any(|line| line.split_whitespace().last() == Some(name));
    if known {
        return true;
    }
    let release = places.text("/proc/sys/kernel/osrelease");
    let dir = format!("/lib/modules/{}", release.trim());
    let file = format!("/{name}.ko");
    ["modules.dep", "modules.builtin"].iter().any(|list| places.text(format!("{dir}/{list}")).contains(&file))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Severity;
    use super::*;

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Places) {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::below(dir.path());
        for (path, text) in files {
            fs::create_dir_all(places.at(path).parent().unwrap()).unwrap();
            fs::write(places.at(path), text).unwrap();
        }
        (dir, places)
    }

    const ABLE: [(&str, &str); 6] = [
        ("/usr/bin/systemd-nspawn", ""),
        ("/sys/fs/cgroup/cgroup.controllers", "cpu"),
        ("/proc/self/ns/user", ""),
        ("/proc/self/status", "Name:\tx\nSeccomp:\t0\n"),
        ("/proc/sys/kernel/osrelease", "6.1\n"),
        ("/lib/modules/6.1/modules.dep", "kernel/fs/squashfs/squashfs.ko.xz: \n"),
    ];

    #[test]
    fn a_kernel_that_has_all_is_good_and_each_lack_is_named() {
        let config = container::Config::new(vec!["/app".into()]);
        let (_dir, places) = machine(&ABLE);
        let found = of(&places, &config);
        assert!(found.len() == 1 && found[0].verdict == Severity::Good, "{found:?}");
        for (missing, word) in [
            (0, "systemd-nspawn"),
            (1, "cgroup"),
            (2, "user namespaces"),
            (3, "seccomp"),
            (5, "file systems"),
        ] {
            let rest: Vec<_> =
                ABLE.iter().enumerate().filter(|(n, _)| *n != missing).map(|(_, file)| *file).collect();
            let (_dir, places) = machine(&rest);
            let found = of(&places, &config);
            assert!(found.len() == 1 && found[0].message.contains(word), "{word}: {found:?}");
            assert!(found[0].remedy.is_some());
        }
        let overlay = container::Config { overlay: true, bind: vec!["/srv/x:/x".into()], ..config };
        assert_eq!(of(&places, &overlay).len(), 2);
    }

    #[test]
    fn a_kernel_without_landlock_is_reported() {
        assert!(sandbox(&machine(&[]).1).is_empty());
        assert!(sandbox(&machine(&[("/sys/kernel/security/lsm", "capability,landlock,yama")]).1).is_empty());
        assert_eq!(sandbox(&machine(&[("/sys/kernel/security/lsm", "capability,yama")]).1).len(), 1);
    }
}
