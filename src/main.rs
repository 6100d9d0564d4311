//! `qstage`: parse, run, exit code. The only place where an error is printed.

// Nothing that input, disk, network or another process can influence may end the program by a panic. Tests may.
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::ExitCode;

use clap::Parser;
use qstage::cli::{self, Cli};

fn main() -> ExitCode {
    // clap prints its own errors and exits with 2, the code of our class "usage".
    let cli = Cli::parse();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::print_error(&error, cli.wants_json());
            ExitCode::from(error.class().exit_code())
        }
    }
}
