//! `qstage`: parse, run, exit code. The only place where an error is printed.

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
