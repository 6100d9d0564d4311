//! Help is the documentation: it is complete, fits a terminal, and the manual pages made from it are sound.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use clap::CommandFactory;
use qstage::cli::Cli;
use qstage::error::Class;

/// The verbs of the design; renaming one breaks scripts.
const VERBS: [&str; 30] = [
    "pack",
    "sign",
    "delta",
    "inspect",
    "verify",
    "init",
    "plan",
    "prepare",
    "commit",
    "mark-good",
    "roll-back",
    "cancel",
    "repair",
    "status",
    "slots",
    "history",
    "select",
    "firmware",
    "bench",
    "container",
    "health",
    "serve",
    "token",
    "upgrade",
    "watch",
    "cluster",
    "doctor",
    "explain",
    "completions",
    "man",
];

fn qstage(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_qstage")).args(args).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Each verb as the words of its command line, those of `firmware` included. A hidden one has no page: only qstage
/// calls it.
fn verbs() -> Vec<Vec<String>> {
    fn walk(command: &clap::Command, path: &[String], all: &mut Vec<Vec<String>>) {
        all.push(path.to_vec());
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            walk(verb, &[path, &[verb.get_name().to_owned()]].concat(), all);
        }
    }
    let mut all = Vec::new();
    walk(&Cli::command(), &[], &mut all);
    all
}

#[test]
fn the_verbs_are_those_of_the_design() {
    let command = Cli::command();
    let shown = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    let names: Vec<_> = shown.map(|verb| verb.get_name().to_owned()).collect();
    assert_eq!(names, VERBS);
}

#[test]
fn every_verb_and_every_flag_has_help() {
    fn check(command: &clap::Command) {
        let name = command.get_name();
        let about = command.get_about().unwrap_or_else(|| panic!("{name} has no about text")).to_string();
        assert!(
            about.len() <= 70 && !about.ends_with('.'),
            "{name}: one short line without a stop: {about:?}"
        );
        for arg in command.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()))
        {
            let help =
                arg.get_help().unwrap_or_else(|| panic!("{name} {} has no help", arg.get_id())).to_string();
            assert!(help.len() <= 80 && !help.ends_with('.'), "{name} {}: {help:?}", arg.get_id());
        }
        command.get_subcommands().for_each(check);
    }
    check(&Cli::command());
}

#[test]
fn no_line_of_help_is_wider_than_a_terminal() {
    for verb in verbs() {
        for flag in ["-h", "--help"] {
            let mut line: Vec<&str> = verb.iter().map(String::as_str).collect();
            line.push(flag);
            for text in stdout(qstage(&line)).lines() {
                assert!(text.chars().count() <= 80, "{line:?}: {text}");
            }
        }
    }
}

#[test]
fn the_help_lists_every_exit_code() {
    let text = stdout(qstage(&["--help"])).replace('\n', " ");
    for code in [
        Class::Internal,
        Class::Usage,
        Class::Bundle,
        Class::Trust,
        Class::Refused,
        Class::Disk,
        Class::Io,
        Class::Interrupted,
        Class::Service,
        Class::Network,
        Class::Report,
        Class::Access,
    ]
    .map(Class::exit_code)
    {
        assert!(text.contains(&format!("{code} ")), "{code} is not in: {text}");
    }
}

/// The manual repeats what the code says; here is who notices when only one of them changes.
#[test]
fn the_manual_lists_exit_codes_verbs_and_keys() {
    assert!(
        stdout(qstage(&["explain", "--page"])) == include_str!("../../src/manual/errors.md"),
        "src/manual/errors.md is out of date: target/debug/qstage explain --page > src/manual/errors.md"
    );
    let page = include_str!("../../src/manual/verbs.md");
    for verb in VERBS {
        assert!(page.contains(&format!("`{verb}")), "{verb} is not in src/manual/verbs.md");
    }
    let table = include_str!("../../src/manual/configuration.md");
    let sample = include_str!("../../fixtures/config.toml");
    let (mut section, mut keys) = ("", 0);
    for line in sample.lines() {
        let header = line.trim_start_matches('#').strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        section = header.unwrap_or(section);
        // Those of two sections are explained in the sample alone.
        if ["kexec", "container"].contains(&section) {
            continue;
        }
        if let Some((key, _)) = line.strip_prefix('#').and_then(|line| line.split_once(" = "))
            && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        {
            keys += 1;
            assert!(
                table.contains(&format!("| `{key}` |")),
                "{key} has no row in src/manual/configuration.md"
            );
        }
    }
    assert!(keys >= 65, "{keys} keys were found in the sample");
}

/// The pages of the manual and the documents at the root point at files that exist.
#[test]
fn links_between_the_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages: Vec<_> = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "src/SAFETY.md"]
        .map(|name| root.join(name))
        .into();
    let manual = std::fs::read_dir(root.join("src/manual")).unwrap().map(|entry| entry.unwrap().path());
    pages.extend(manual.filter(|path| path.extension().is_some_and(|ext| ext == "md")));
    let mut links = 0;
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if !link.is_empty() && !link.contains("://") {
                links += 1;
                assert!(page.parent().unwrap().join(link).exists(), "{}: {link}", page.display());
            }
        }
    }
    assert!(links > 15, "{links} links were found");
}

#[test]
fn completions_are_accepted_by_their_shells() {
    for (shell, check) in [("bash", "bash -n"), ("zsh", "zsh -n"), ("fish", "fish -n")] {
        let script = stdout(qstage(&["completions", shell]));
        for verb in VERBS {
            assert!(script.contains(verb), "{shell}: {verb}");
        }
        // A verb for qstage itself, and the words for slots and groups.
        assert!(!script.contains("answers"), "{shell}: a hidden verb");
        let words = match shell {
            "bash" => ["\"a b\"", "\"a b both\"", "\"platform software\""],
            "zsh" => [":SLOT:(a b)", ":SLOT:(a b both)", ":GROUP:(platform software)"],
            _ => ["\"a\\t''\nb\\t''\"", "both\\t''\"", "\"platform\\t''\nsoftware\\t''\""],
        };
        for word in words {
            assert!(script.contains(word), "{shell}: {word}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("script");
        std::fs::write(&file, script).unwrap();
        if let Some(output) = run(check, &file) {
            assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

#[test]
fn manual_pages_are_complete_and_render_without_warnings() {
    let dir = tempfile::tempdir().unwrap();
    stdout(qstage(&["man", dir.path().to_str().unwrap()]));
    for verb in verbs() {
        let name = [&["qstage".to_owned()], verb.as_slice()].concat().join("-");
        let page = dir.path().join(format!("{name}.1"));
        assert!(page.is_file(), "{name}.1 is missing");
        let text = std::fs::read_to_string(&page).unwrap();
        assert!(text.contains(&format!(".TH {name} 1 ")), "{name}: {}", text.lines().nth(2).unwrap());
        for section in ["EXIT STATUS", "FILES", "EXAMPLES", "SEE ALSO"] {
            assert!(
                text.contains(&format!(".SH \"{section}\"")) || text.contains(&format!(".SH {section}")),
                "{name}: {section}"
            );
        }
        // Links of rustdoc mean nothing on a terminal.
        assert!(!text.contains("[`") && !text.contains("](") && !text.contains("crate::"), "{name}");
        for judge in ["groff -ww -man -Tutf8 -z", "man --warnings -E UTF-8 -l -Tutf8 -Z"] {
            if let Some(output) = run(judge, &page) {
                let complaints = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success() && complaints.is_empty(), "{judge} {name}.1: {complaints}");
            }
        }
    }
    let config = dir.path().join("qstage.toml.5");
    let text = std::fs::read_to_string(&config).unwrap();
    for section in ["FILES", "EXAMPLES", "SEE ALSO"] {
        let heading = [format!(".SH {section}\n"), format!(".SH \"{section}\"\n")];
        assert!(heading.iter().any(|line| text.contains(line)), "qstage.toml(5): {section}");
    }
    let sample = include_str!("../../fixtures/config.toml");
    for line in sample
        .lines()
        .filter(|line| line.strip_prefix('#').is_some_and(|key| key.contains(" = ") && !key.starts_with(' ')))
    {
        let key = line[1..].split(" = ").next().unwrap();
        assert!(text.contains(&format!("\\fB{key} = ")), "{key}");
    }
    // The page of the selector is written by hand.
    let select = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/packaging/qstage-select.1");
    let by_hand = std::fs::read_to_string(&select).unwrap();
    for section in ["EXIT STATUS", "FILES", "EXAMPLES", "SEE ALSO"] {
        assert!(by_hand.contains(&format!(".SH {section}\n")), "qstage-select(1): {section}");
    }
    for page in [&config, &select] {
        for judge in ["groff -ww -man -Tutf8 -z", "man --warnings -E UTF-8 -l -Tutf8 -Z"] {
            if let Some(output) = run(judge, page) {
                let complaints = String::from_utf8_lossy(&output.stderr);
                let sound = output.status.success() && complaints.is_empty();
                assert!(sound, "{judge} {}: {complaints}", page.display());
            }
        }
    }
    assert!(stdout(qstage(&["man"])).contains(".TH qstage 1"));
}

/// Runs a tool on a file; `None` where it is not installed (scripts/test installs those that must be there).
fn run(tool: &str, file: &Path) -> Option<Output> {
    let mut words = tool.split(' ');
    Command::new(words.next()?).args(words).arg(file).env("MANWIDTH", "80").output().ok()
}

/// --mirror and --max-download stood under "Overrides", --json of `commit` under "Trust", and `watch`, which asks a service, offered
/// --boot-flag and --assume-unused.
#[test]
fn options_are_under_the_heading_that_says_what_they_are() {
    fn check(command: &clap::Command, path: &str, seen: &mut usize) {
        let path = format!("{path} {}", command.get_name());
        for arg in command.get_arguments() {
            let name = arg.get_long().unwrap_or_default();
            let heading = arg.get_help_heading();
            let overrules = ["retry", "allow-", "override-"].iter().any(|start| name.starts_with(start));
            if heading == Some("Overrides") {
                assert!(overrules, "{path} --{name} overrides nothing");
            }
            if ["mirror", "input-timeout", "no-delta", "max-download"].contains(&name) {
                assert_eq!(heading, Some("Source of the bundle"), "{path} --{name}");
                *seen += 1;
            }
            if ["json", "dry-run", "force"].contains(&name) {
                assert_eq!(heading, None, "{path} --{name}");
                *seen += 1;
            }
            let of_service =
                ["upgrade", "watch", "cluster"].iter().any(|verb| path.contains(&format!(" {verb}")));
            if of_service && heading == Some("Machine") {
                assert!(["state-dir", "config"].contains(&name), "{path} --{name} has no effect");
            }
        }
        command.get_subcommands().for_each(|verb| check(verb, &path, seen));
    }
    let mut seen = 0;
    check(&Cli::command(), "", &mut seen);
    assert!(seen >= 10, "{seen}");
}

/// The sample named a verb 'qstage manual', which there is not. What stands in quotes or as code is a command.
#[test]
fn every_command_that_a_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "src/SAFETY.md",
        "src/error/list.rs",
        "fixtures/config.toml",
    ]
    .map(|name| root.join(name))
    .into();
    for directory in ["src/manual", "src/doctor", "fixtures/packaging"] {
        let all = std::fs::read_dir(root.join(directory)).unwrap().map(|entry| entry.unwrap().path());
        files.extend(all.filter(|path| path.is_file() && path.extension().is_none_or(|ext| ext != "png")));
    }
    let groups = Cli::command();
    let mut commands = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for quote in ['\'', '`'] {
            for rest in text.split(&format!("{quote}qstage ")).skip(1) {
                let mut words = rest.split(|c: char| !c.is_ascii_lowercase() && c != '-');
                let verb = words.next().unwrap_or_default();
                // VERB stands for any, an option for the program itself.
                if verb.is_empty() || verb.starts_with('-') || verb == "help" {
                    continue;
                }
                commands += 1;
                let group = groups.find_subcommand(verb);
                let group =
                    group.unwrap_or_else(|| panic!("{}: there is no 'qstage {verb}'", file.display()));
                let below = words.next().unwrap_or_default();
                if group.has_subcommands() && below.len() > 1 && !below.starts_with('-') {
                    let found = group.find_subcommand(below).is_some();
                    assert!(found, "{}: there is no 'qstage {verb} {below}'", file.display());
                }
            }
        }
    }
    assert!(commands > 100, "{commands} commands were found");
}
