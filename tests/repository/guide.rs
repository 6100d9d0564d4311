//! The guide "A Debian appliance from zero" and the scripts that run it: `scripts/demo-vm` extracts its commands, so nothing of the
//! page may escape that, and no command may name an option that does not exist. The walk itself is in `scripts/test --full`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;

const PAGE: &str = include_str!("../../src/manual/appliance.md");

/// Labels of a code block and whether the demo runs it by default.
const LABELS: [(&str, bool); 5] =
    [("sh setup", true), ("sh", true), ("sh systemd-boot", true), ("sh grub", false), ("sh end", true)];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Label and lines of each code block of a page.
fn blocks(page: &str) -> Vec<(&str, Vec<&str>)> {
    let (mut found, mut inside): (Vec<(&str, Vec<&str>)>, bool) = (Vec::new(), false);
    for line in page.lines() {
        match (line.strip_prefix("```"), inside) {
            (Some(_), true) => inside = false,
            (Some(label), false) => {
                inside = true;
                found.push((label, Vec::new()));
            }
            (None, true) => found.last_mut().unwrap().1.push(line),
            (None, false) => {}
        }
    }
    found
}

fn printed(options: &[&str]) -> String {
    let output = Command::new(path("scripts/demo-vm")).arg("--print").args(options).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_demo_runs_every_command_of_the_page() {
    let mut expected = Vec::new();
    for (label, lines) in blocks(PAGE) {
        let known = LABELS.iter().find(|(known, _)| *known == label);
        let (_, by_default) = known.unwrap_or_else(|| panic!("the demo does not run blocks '{label}'"));
        if *by_default {
            expected.extend(lines);
        }
    }
    assert!(expected.len() > 150, "{} lines", expected.len());
    let text = printed(&[]);
    let commands: Vec<&str> = text.lines().filter(|line| !line.starts_with("#> ")).collect();
    assert_eq!(commands, expected);
    let grub = printed(&["--loader", "grub"]);
    assert!(grub.contains("grub-mkstandalone") && !grub.contains("systemd-bootx64.efi"), "{grub}");

    let dir = tempfile::tempdir().unwrap();
    let walk = dir.path().join("walk");
    for text in [text, grub] {
        std::fs::write(&walk, text).unwrap();
        let parsed = Command::new("bash").arg("-n").arg(&walk).output().unwrap();
        assert!(parsed.status.success(), "{}", String::from_utf8_lossy(&parsed.stderr));
    }
}

/// Every long option after `qstage VERB`, in the guide and in the scripts beside it, is one of that verb.
#[test]
fn options_in_the_guide_exist() {
    let command = qstage::cli::Cli::command();
    let mut checked = 0;
    for name in
        ["src/manual/appliance.md", "examples/mkosi/build", "examples/buildroot/board/box/post-image.sh"]
    {
        let text = std::fs::read_to_string(path(name)).unwrap().replace("\\\n", " ");
        for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
            for call in line.replace("bin/qstage\"", "qstage").split("qstage ").skip(1) {
                let mut words = call.split_whitespace();
                let verb = words.next().unwrap_or_default();
                let Some(mut verb) = command.find_subcommand(verb) else { continue };
                for word in words.take_while(|word| !["|", "&&", ";", "||", ">"].contains(word)) {
                    verb = verb.find_subcommand(word).unwrap_or(verb);
                    let Some(option) = word.trim_end_matches(['`', ',', '.']).strip_prefix("--") else {
                        continue;
                    };
                    let known = ["help", "version", "verbose"].contains(&option)
                        || verb.get_arguments().any(|arg| arg.get_long() == Some(option));
                    assert!(known, "{name}: qstage {} --{option}", verb.get_name());
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 30, "only {checked} options were found");
}

#[test]
fn scripts_of_the_guide_and_the_examples_are_clean() {
    let scripts = [
        "scripts/demo-vm",
        "scripts/first-week",
        "examples/mkosi/build",
        "examples/mkosi/mkosi.postinst",
        "examples/mkosi/mkosi.extra/etc/qstage/health.d/10-systemd",
        "examples/buildroot/board/box/post-build.sh",
        "examples/buildroot/board/box/post-image.sh",
    ];
    let checked = Command::new("shellcheck").arg("--severity=warning").args(scripts.map(path)).output();
    match checked {
        Ok(checked) => assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout)),
        Err(error) => {
            assert!(
                std::env::var_os("CI").is_none(),
                "shellcheck: {error}; see scripts/test for its package"
            );
            eprintln!("SKIPPED: shellcheck is not installed");
        }
    }
}
