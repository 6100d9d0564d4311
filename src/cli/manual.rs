//! `qstage man` and `qstage completions`: made from the same definition as `--help`, so they cannot differ. The
//! verb list hands it over: it has this verb in it.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, Command};
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
    pub(super) fn run(&self, command: Command) -> Result<()> {
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
fn pages_of(command: &Command, name: &str, pages: &mut Vec<(String, Vec<u8>)>) -> io::Result<()> {
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

/// Print the completions of a shell
///
/// For bash: qstage completions bash > /etc/bash_completion.d/qstage
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// Shell to complete in
    shell: Shell,
}

impl CompletionsArgs {
    pub(super) fn run(&self, mut command: Command) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "qstage", &mut script);
        output::document(&String::from_utf8_lossy(&script))
    }
}
