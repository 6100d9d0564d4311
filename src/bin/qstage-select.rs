//! `qstage-select`: `qstage select` as a small program of its own, for an initramfs.

// No input, disk, network or other process may be able to end the program by a panic. Tests may.
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let code = qstage::cli::select_main(std::env::args_os().skip(1));
    qstage::cli::finish();
    ExitCode::from(code)
}
