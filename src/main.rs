//! `qstage`: parse, run, exit code. The only place where an error is printed.

// No input, disk, network or other process may be able to end the program by a panic. Tests may.
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use qstage::Error;
use qstage::cli::{self, Cli};

fn main() -> ExitCode {
    // clap prints its own errors and exits with 2, the code of the class "usage".
    let cli = Cli::of_process();
    // A panic is a defect; it is reported with a code and an event, instead of exit code 101 and no output.
    let result = catch_unwind(AssertUnwindSafe(|| cli.run()))
        .unwrap_or_else(|_| Err(Error::Internal { what: "a panic, see the lines before".to_owned() }));
    let code = match result {
        Ok(verdict) => ExitCode::from(verdict.exit_code()),
        Err(error) => {
            cli::print_error(&error, cli.wants_json());
            ExitCode::from(error.class().exit_code())
        }
    };
    cli::finish();
    code
}
