//! `qstage man` and `qstage completions`: made from the same definition as `--help`, so they cannot differ. The
//! verb list hands it over: it has this verb in it.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use super::{config_page, output};
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
            let pages = clap_mangen::generate_to(command, dir);
            let config = dir.join("qstage.toml.5");
            let written = pages.and_then(|()| {
                let mut file = OutputFile::create(&config, 0o644)?;
                file.write_all(config_page::render().as_bytes())?;
                file.publish()
            });
            return written.map_err(failed);
        }
        let mut page = Vec::new();
        // Writes to a vector do not fail; an error here is one of the generator.
        clap_mangen::Man::new(command)
            .render(&mut page)
            .map_err(|problem| Error::Internal { what: format!("the manual page: {problem}") })?;
        output::print(&String::from_utf8_lossy(&page))
    }
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
        output::print(&String::from_utf8_lossy(&script))
    }
}
