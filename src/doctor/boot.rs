//! Checks of the boot: whether the loader reads the configured boot flag, whether the selector is in the initramfs, and how
//! long a fallback takes.

use std::path::Path;

use super::{Finding, Places, Severity};
use crate::boot::BootFlag;
use crate::config::Settings;
use crate::host::cmdline;
use crate::host::efivars::EFIVARS;
use crate::state::SlotsReport;

/// The hook of initramfs-tools and its script.
const HOOK: &str = "/etc/initramfs-tools/hooks/qstage";
const SCRIPT: &str = "/etc/initramfs-tools/scripts/local-top/qstage";
/// The module of dracut.
const MODULE: &str = "/usr/lib/dracut/modules.d/90qstage/module-setup.sh";
/// Output of the selector at this boot, written by both hooks.
const LOG: &str = "/run/qstage-select.log";
const INSTALL: &str = "install the hook of initramfs-tools or dracut (/usr/share/doc/qstage/examples) and make the initramfs anew; the loaders of ChromeOS, Flatcar and Bottlerocket need none";

/// The findings. `slots`: `None` if the disk could not be read.
pub(super) fn findings(places: &Places, settings: &Settings, slots: Option<&SlotsReport>) -> Vec<Finding> {
    let mut findings = match settings.boot_flag {
        BootFlag::Priority => vec![priority(places)],
        BootFlag::Legacy => legacy(places),
        BootFlag::Efi => efi(places, settings, slots),
    };
    if settings.boot_flag == BootFlag::Priority {
        findings.extend(initramfs(places));
    }
    findings.extend(fallback(places, settings));
    findings
}

fn booted_by_efi(places: &Places) -> bool {
    places.has("/sys/firmware/efi")
}

/// The boot loader, by its own report (Boot Loader Interface) or by its files.
fn loader(places: &Places) -> Option<&'static str> {
    let line = places.text("/proc/cmdline");
    let info = places.text(format!("{EFIVARS}/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"));
    // UTF-16 of ASCII characters: every second byte is zero.
    let info = info.replace('\0', "");
    if info.contains("systemd-boot") {
        Some("systemd-boot")
    } else if info.contains("GRUB") || places.has("/boot/grub/grub.cfg") && line.contains("BOOT_IMAGE=") {
        Some("GRUB")
    } else {
        None
    }
}

fn priority(places: &Places) -> Finding {
    let line = places.text("/proc/cmdline");
    let selected =
        ["qstage.partuuid", "qstage.selected"].iter().any(|key| cmdline::last(&line, key).is_some());
    if places.has(LOG) || selected {
        return Finding::good("boot", "qstage-select chose the slot of this boot and counts tries");
    }
    match loader(places) {
        Some(loader) => Finding::problem(
            "boot",
            format!(
                "boot_flag is 'priority', but {loader} does not read these flags, and no qstage-select has chosen the slot of this boot: a trial would not begin, or not end"
            ),
            INSTALL,
        ),
        None => Finding::warning(
            "boot",
            "boot_flag is 'priority', and nothing shows that what booted this machine reads these flags and counts tries",
            INSTALL,
        ),
    }
}

fn legacy(places: &Places) -> Vec<Finding> {
    // U-Boot offers UEFI too, and its scripts read bit 2; its boards have a device tree.
    let uefi = booted_by_efi(places) && !places.has("/sys/firmware/devicetree/base");
    let mut findings = if uefi {
        let message =
            "boot_flag is 'legacy', but this machine was booted by UEFI, which does not look at bit 2";
        vec![Finding::problem(
            "boot",
            message,
            "say boot_flag = \"efi\", or \"priority\" with qstage-select in the initramfs",
        )]
    } else {
        vec![Finding::good("boot", "boot_flag 'legacy' fits how this machine was booted")]
    };
    if !places.has_program("kexec") {
        let message = "kexec is not installed: 'qstage commit --trial kexec' is the only trial under boot_flag 'legacy'";
        findings.push(Finding::warning("fallback", message, "apt install kexec-tools"));
    } else {
        let message = "boot_flag 'legacy': 'qstage commit --trial kexec' on this machine makes a trial; a commit over the service has none";
        findings.push(Finding::good("fallback", message));
    }
    findings
}

fn efi(places: &Places, settings: &Settings, slots: Option<&SlotsReport>) -> Vec<Finding> {
    let dir = settings.efivars.clone().unwrap_or_else(|| EFIVARS.into());
    if !places.has(&dir) {
        let message = format!(
            "boot_flag is 'efi', but there is no {}: this machine was not booted by UEFI, or efivarfs is not mounted",
            dir.display()
        );
        let remedy = "boot by UEFI (mount -t efivarfs efivarfs /sys/firmware/efi/efivars), or choose another boot_flag";
        return vec![Finding::problem("boot", message, remedy)];
    }
    let mut findings = Vec::new();
    if is_read_only(&places.text("/proc/self/mountinfo"), &dir) {
        let message = format!("{} is mounted read-only: nothing can be switched", dir.display());
        findings.push(Finding::problem("boot", message, format!("mount -o remount,rw {}", dir.display())));
    }
    for slot in slots.into_iter().flat_map(|slots| &slots.slots).filter(|slot| slot.state.word() == "good") {
        let named = slot.group.partition_name(slot.slot);
        let active = slot.boot_entry.as_ref().map(|entry| entry.active);
        if slot.group == crate::units::Group::Platform && active != Some(true) {
            let what =
                if active.is_none() { "has no boot entry" } else { "has a boot entry that is not active" };
            let message = format!("{named} {what}: the firmware cannot fall back to it");
            findings.push(Finding::warning(
                "boot",
                message,
                format!("'qstage mark-good --slot {}' while it runs makes one", slot.slot),
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::good(
            "boot",
            "boot_flag 'efi': the variables of the firmware can be read and written",
        ));
    }
    findings
}

/// Whether the last mount on a directory is read-only, or its file system (proc_pid_mountinfo(5)).
fn is_read_only(mounts: &str, dir: &Path) -> bool {
    let options = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(4);
        (Path::new(fields.next()?) == dir).then(|| {
            format!(
                "{},{}",
                fields.next().unwrap_or_default(),
                file_system.rsplit(' ').next().unwrap_or_default()
            )
        })
    };
    let last = mounts.lines().filter_map(options).next_back();
    last.is_some_and(|options| options.split(',').any(|option| option == "ro"))
}

/// Whether the images of the initramfs contain the selector.
fn initramfs(places: &Places) -> Vec<Finding> {
    let mut findings = Vec::new();
    let tools = [(HOOK, SCRIPT), (SCRIPT, HOOK)];
    for (there, missing) in tools {
        if places.has(there) && !places.has(missing) {
            let message = format!("{there} is there, but {missing} is not: half a hook starts nothing");
            findings.push(Finding::problem(
                "initramfs",
                message,
                "install both, from /usr/share/doc/qstage/examples",
            ));
        }
    }
    let images = [
        (HOOK, "initrd.img-", "lsinitramfs", "update-initramfs -u -k all"),
        (MODULE, "initramfs-", "lsinitrd", "dracut --regenerate-all --force"),
    ];
    for (hook, prefix, lister, again) in images {
        if !places.has(hook) {
            continue;
        }
        let found = places.files("/boot", prefix);
        if found.is_empty() {
            let message = format!("{hook} is there, but /boot has no {prefix}* that it could be in");
            findings.push(Finding::warning("initramfs", message, again));
        }
        for image in found {
            let shown = image.display().to_string();
            findings.extend(places.ask(lister, &[&shown]).map(|list| in_image(&shown, &list, again)));
        }
    }
    findings
}

fn in_image(image: &str, list: &str, again: &str) -> Finding {
    if list.lines().any(|line| line.trim_end().ends_with("bin/qstage-select")) {
        Finding::good("initramfs", format!("{image} has qstage-select"))
    } else {
        Finding::problem("initramfs", format!("{image} has no qstage-select: it starts no slot"), again)
    }
}

/// Time to fallback of a slot on trial that fails, by the kind of failure.
fn fallback(places: &Places, settings: &Settings) -> Vec<Finding> {
    let tries = if settings.boot_flag == BootFlag::Priority { settings.tries } else { 1 };
    let times = |one: &str| if tries == 1 { one.to_owned() } else { format!("{tries} x {one}") };
    let mut findings = Vec::new();
    let panic = places.text("/proc/sys/kernel/panic");
    match panic.trim().parse::<i64>() {
        Ok(0) => findings.push(Finding::warning(
            "fallback",
            "a kernel that panics does not reboot: a trial that ends so waits for somebody for ever",
            "put panic=10 on the kernel command line",
        )),
        Ok(seconds) => {
            let each = times(&format!("{} s and a boot", seconds.max(0)));
            findings.push(Finding::good("fallback", format!("after a panic of the kernel: {each}")));
        }
        Err(_) => {}
    }
    let Some(watchdog) = places.ask("systemctl", &["show", "-P", "RuntimeWatchdogUSec"]) else {
        return findings;
    };
    match watchdog.trim() {
        "0" | "" | "infinity" => findings.push(Finding::warning(
            "fallback",
            "no watchdog: a kernel that hangs on trial waits for somebody for ever",
            "set RuntimeWatchdogSec=60 in /etc/systemd/system.conf, where the machine has a watchdog",
        )),
        time => {
            let each = times(&format!("{time} and a boot"));
            findings.push(Finding::good("fallback", format!("after a hang of the kernel: {each}")));
        }
    }
    let unit = ["show", "-P", "TimeoutStartUSec", "qstage-mark-good.service"];
    if let Some(limit) = places.ask("systemctl", &unit).filter(|limit| !limit.trim().is_empty()) {
        let each = times(&format!("at most {} and a boot", limit.trim()));
        findings.push(Finding::good("fallback", format!("after a health check that fails or hangs: {each}")));
    }
    debug_assert!(findings.iter().all(|one| one.verdict != Severity::Problem));
    findings
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Config;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn verdicts(files: &[(&str, &str)], flag: BootFlag) -> Vec<(Severity, String)> {
        let dir = root(files);
        let settings = Settings { boot_flag: flag, ..Config::default().into_settings() };
        let found = findings(&Places::below(dir.path()), &settings, None);
        found.into_iter().map(|one| (one.verdict, one.message)).collect()
    }

    #[test]
    fn a_flag_that_the_loader_does_not_read_is_a_problem() {
        let flag = BootFlag::Priority;
        assert_eq!(verdicts(&[(LOG, "slot a")], flag)[0].0, Severity::Good);
        assert_eq!(verdicts(&[("/proc/cmdline", "ro qstage.partuuid=x\n")], flag)[0].0, Severity::Good);
        assert_eq!(verdicts(&[("/proc/cmdline", "ro root=/dev/sda1\n")], flag)[0].0, Severity::Warning);
        let grub = [("/proc/cmdline", "BOOT_IMAGE=/vmlinuz ro\n"), ("/boot/grub/grub.cfg", "")];
        let told = verdicts(&grub, flag);
        assert!(told[0].0 == Severity::Problem && told[0].1.contains("GRUB"), "{told:?}");
        let info = "\0\0\0\0s\0y\0s\0t\0e\0m\0d\0-\0b\0o\0o\0t\0 \x002\0";
        let file = format!("{EFIVARS}/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f");
        assert!(verdicts(&[(&file, info)], flag)[0].1.contains("systemd-boot"));
    }

    #[test]
    fn bit_2_is_nothing_to_uefi() {
        assert_eq!(verdicts(&[("/sys/firmware/efi/runtime", "")], BootFlag::Legacy)[0].0, Severity::Problem);
        assert_eq!(verdicts(&[], BootFlag::Legacy)[0].0, Severity::Good);
        let board = [("/sys/firmware/efi/runtime", ""), ("/sys/firmware/devicetree/base/model", "")];
        assert_eq!(verdicts(&board, BootFlag::Legacy)[0].0, Severity::Good);
    }

    #[test]
    fn variables_that_cannot_be_written_are_a_problem() {
        assert_eq!(verdicts(&[], BootFlag::Efi)[0].0, Severity::Problem);
        let there = (format!("{EFIVARS}/x"), "");
        let mount = |option: &str| format!("30 20 0:25 / {EFIVARS} {option},nosuid - efivarfs efivarfs rw\n");
        for (option, verdict) in [("ro", Severity::Problem), ("rw", Severity::Good)] {
            let mounts = mount(option);
            let files = [(there.0.as_str(), there.1), ("/proc/self/mountinfo", mounts.as_str())];
            assert_eq!(verdicts(&files, BootFlag::Efi)[0].0, verdict, "{option}");
        }
    }

    #[test]
    fn half_a_hook_and_an_image_without_the_selector_are_problems() {
        let told = verdicts(&[(LOG, ""), (HOOK, "")], BootFlag::Priority);
        assert!(told[1].0 == Severity::Problem && told[1].1.contains("local-top"), "{told:?}");
        assert_eq!(told[2].0, Severity::Warning);
        assert_eq!(in_image("i", "init\nusr/bin/qstage-select\n", "again").verdict, Severity::Good);
        let missing = in_image("i", "init\nusr/bin/qstage-selector\n", "again");
        assert_eq!((missing.verdict, missing.remedy.as_deref()), (Severity::Problem, Some("again")));
    }

    #[test]
    fn a_panic_that_waits_is_warned_of() {
        let told = |panic: &str| {
            verdicts(&[(LOG, ""), ("/proc/sys/kernel/panic", panic)], BootFlag::Priority).remove(1)
        };
        assert_eq!(told("0\n").0, Severity::Warning);
        let (verdict, text) = told("10\n");
        assert_eq!(verdict, Severity::Good);
        assert!(text.contains("3 x 10 s"), "{text}");
    }
}
