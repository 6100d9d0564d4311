//! `qstage man` and `qstage completions`: made from the same definition as `--help`, so they cannot differ. The
//! verb list hands it over: it has this verb in it.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
// Not by the name of the processes of std, which only some modules may start.
use clap::{Arg, Args, Command as CommandLine};
use clap_complete::Shell;

use super::{config_page, man_page, output};
use crate::error::{Error, Result};
use crate::host::files::OutputFile;

/// Write the manual pages
///
/// Without DIR, qstage(1) goes to standard output. With DIR, one page per verb is
/// written into it, such as qstage-prepare.1, and qstage.toml.5 about the configuration.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Existing directory to write the pages into
    dir: Option<PathBuf>,
}

impl ManArgs {
    pub(super) fn run(&self, command: CommandLine) -> Result<()> {
        if let Some(dir) = &self.dir {
            let failed = |source| Error::Output { path: dir.clone(), source };
            let mut pages = vec![("qstage.toml.5".to_owned(), config_page::render().into_bytes())];
            let mut command = command.disable_help_subcommand(true);
            // Gives each verb its whole name, "qstage-prepare".
            command.build();
            let written = pages_of(&command, "", &mut pages)
                .and_then(|()| pages.iter().try_for_each(|(name, page)| write(&dir.join(name), page)));
            return written.map_err(failed);
        }
        // Writes to a vector do not fail; an error here is one of the generator.
        let page = man_page::render(&command, "")
            .map_err(|problem| Error::Internal { what: format!("the manual page: {problem}") })?;
        output::document(&String::from_utf8_lossy(&page))
    }
}

/// The pages of a command and its verbs, with their file names. `name`: the words of the command, joined by `-`.
fn pages_of(command: &CommandLine, name: &str, pages: &mut Vec<(String, Vec<u8>)>) -> io::Result<()> {
    let file = if name.is_empty() { "qstage.1".to_owned() } else { format!("qstage-{name}.1") };
    pages.push((file, man_page::render(command, name)?));
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let words = if name.is_empty() { String::new() } else { format!("{name}-") };
        pages_of(verb, &format!("{words}{}", verb.get_name()), pages)?;
    }
    Ok(())
}

fn write(path: &Path, page: &[u8]) -> io::Result<()> {
    let mut file = OutputFile::create(path, 0o644)?;
    file.write_all(page)?;
    file.publish()
}

/// The command as shells complete it: without hidden verbs, and with the words for slots and groups.
fn completed(command: CommandLine) -> CommandLine {
    let arguments: Vec<Arg> = command.get_arguments().cloned().map(with_words).collect();
    let verbs: Vec<CommandLine> =
        command.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned().map(completed).collect();
    let about = command.get_about().cloned().unwrap_or_default();
    // clap cannot remove a verb from a command, so it is made anew.
    // Its names have to be static: some hundred bytes, and the process ends after this.
    CommandLine::new(&*command.get_name().to_owned().leak())
        .about(about)
        .disable_help_subcommand(true)
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(command.is_disable_version_flag_set() || command.get_version().is_none())
        .args(arguments)
        .subcommands(verbs)
}

/// The argument with the words that it takes, where these are few.
fn with_words(argument: Arg) -> Arg {
    let name = argument.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
    let words: &[&'static str] = match (name, argument.get_id().as_str()) {
        ("SLOT", _) if argument.get_default_values().is_empty() => &["a", "b"],
        ("SLOT", _) => &["a", "b", "both"],
        ("GROUP", _) => &["platform", "software"],
        _ => return argument,
    };
    argument.value_parser(PossibleValuesParser::new(words))
}

/// Print the completions of a shell
///
/// For bash: qstage completions bash > /etc/bash_completion.d/qstage
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// Shell to complete in
    shell: Shell,
}

impl CompletionsArgs {
    pub(super) fn run(&self, command: CommandLine) -> Result<()> {
        let mut script = Vec::new();
        let mut command = completed(command);
        clap_complete::generate(self.shell, &mut command, "qstage", &mut script);
        output::document(&String::from_utf8_lossy(&script))
    }
}
