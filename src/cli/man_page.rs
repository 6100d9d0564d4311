//! A manual page of section 1: what clap's definition has, and the sections that it cannot have: exit status, environment,
//! files, examples. Examples are parsed by a test, so that none outlives its option.

use std::io;

use clap::Command;
use clap_mangen::Man;
use roff::{Roff, bold, italic, roman};

use super::environment;
use super::examples::EXAMPLES;
use crate::error::Class;

/// Files of the program.
const FILES: [(&str, &str); 8] = [
    ("/etc/qstage/config.toml", "Configuration, see qstage.toml(5)."),
    ("/etc/qstage/allowed_signers", "Keys that may sign bundles, see ssh-keygen(1)."),
    ("/etc/qstage/health.d", "Health checks that end a trial."),
    ("/etc/qstage/tokens", "Hashes of the tokens of the service."),
    ("/run/qstage/service.sock", "Socket of the service."),
    ("/run/qstage-select.log", "Output of the selector at this boot."),
    ("/upgrade", "Bundles that callers of the service may name."),
    ("/var/lib/qstage", "Journal and certificate; it may be lost at any time."),
];

/// Environment variables, by the option that they are the default of.
const VARIABLES: [(&str, &str); 6] = [
    (environment::CONFIG, "--config"),
    (environment::DISK, "--disk"),
    (environment::STATE_DIR, "--state-dir"),
    (environment::TRUST, "--trust"),
    (environment::SERVICE, "--service"),
    (environment::TOKEN_FILE, "--token-file"),
];

/// The page of a verb, or of the program. `name`: its words joined by `-`, without "qstage".
///
/// # Errors
/// Those of the writer.
pub(super) fn render(command: &Command, name: &str) -> io::Result<Vec<u8>> {
    let is_program = name.is_empty();
    let title = if is_program { "qstage".to_owned() } else { format!("qstage-{name}") };
    let mut page = Vec::new();
    let man = Man::new(command.clone()).title(title).source(concat!("qstage ", env!("CARGO_PKG_VERSION")));
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut page)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut more = Roff::new();
    exit_status(&mut more);
    if is_program {
        list(
            &mut more,
            "ENVIRONMENT",
            VARIABLES.map(|(name, option)| (name, format!("Default of {option}."))),
        );
        list(&mut more, "FILES", FILES.map(|(path, about)| (path, about.to_owned())));
    } else {
        more.control("SH", ["FILES"]).text([roman("See "), bold("qstage"), roman("(1).")]);
    }
    if let Some((_, examples)) = EXAMPLES.iter().find(|(verb, _)| *verb == name) {
        more.control("SH", ["EXAMPLES"]);
        for (line, about) in *examples {
            more.control("TP", []).text([bold(*line)]).text([roman(*about)]);
        }
    }
    more.control("SH", ["SEE ALSO"]);
    let others: &[&str] =
        if is_program { &["qstage.toml(5)", "ssh-keygen(1)"] } else { &["qstage(1)", "qstage.toml(5)"] };
    more.text([italic(others.join(", "))]);
    more.to_writer(&mut page)?;
    Ok(page)
}

fn list<const N: usize>(page: &mut Roff, heading: &str, entries: [(&str, String); N]) {
    page.control("SH", [heading]);
    for (name, about) in entries {
        page.control("TP", []).text([bold(name)]).text([roman(about)]);
    }
}

fn exit_status(page: &mut Roff) {
    page.control("SH", ["EXIT STATUS"]);
    page.control("TP", []).text([bold("0")]).text([roman("Done.")]);
    for class in Class::ALL {
        let about = format!("{}: {}.", class.word(), class.meaning());
        page.control("TP", []).text([bold(class.exit_code().to_string())]).text([roman(about)]);
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::verb::Cli;
    use super::*;

    /// The command lines of a shell line that run this program.
    fn own(line: &str) -> Vec<Vec<String>> {
        let line = line.trim_start_matches('(').trim_end_matches(')');
        let commands = line.split(['|', ';']).flat_map(|part| part.split("&&"));
        commands
            .map(|command| {
                let words = command.split('>').next().unwrap_or_default().split_whitespace();
                words.map(str::to_owned).collect::<Vec<_>>()
            })
            .filter(|words| words.first().is_some_and(|word| word == "qstage"))
            .collect()
    }

    #[test]
    fn every_example_is_a_command_line() {
        for (verb, examples) in EXAMPLES {
            for (line, about) in *examples {
                let commands = own(line);
                assert!(!commands.is_empty() && about.ends_with('.'), "{verb}: {line}");
                for words in commands {
                    let parsed = Cli::command().try_get_matches_from(&words);
                    assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
                }
            }
        }
    }

    #[test]
    fn every_example_belongs_to_a_verb_and_every_verb_has_one() {
        fn names(command: &Command, path: &str, all: &mut Vec<String>) {
            for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
                let name = format!("{path}{}", verb.get_name());
                names(verb, &format!("{name}-"), all);
                all.push(name);
            }
        }
        let mut all = vec![String::new()];
        names(&Cli::command(), "", &mut all);
        for (verb, _) in EXAMPLES {
            assert!(all.iter().any(|name| name == verb), "{verb}");
        }
        for name in &all {
            assert!(EXAMPLES.iter().any(|(verb, _)| verb == name), "'{name}' has no example");
        }
    }
}
