//! The command line: a thin shell over [`engine`](crate::engine) and [`bundle`](crate::bundle) that holds no
//! upgrade logic.
//!
//! ```text
//! main -> args (clap) -> one file per verb -> engine, bundle
//!           |                 |
//!     crate::config       output, progress (human, JSON)
//! ```
//!
//! One file per verb has its flags, its help and its output; a verb's documentation comment *is* its help and its manual
//! page. `args` has the flags that several verbs share, `crate::config` the configuration file, and `machine` constructs
//! disk, bundle source and stop request.

mod answers;
mod args;
mod bench;
mod conclusion;
mod config_page;
mod container;
mod delta;
mod destination;
mod doctor;
mod download;
mod environment;
mod examples;
mod explain;
mod firmware;
mod for_service;
mod health;
mod history;
mod init;
mod inspect;
mod machine;
mod man_page;
mod manual;
mod outlet;
mod output;
mod pace;
mod pack;
mod parse;
mod plan;
mod prepare;
mod progress;
mod remote;
mod repair;
mod select;
mod serve;
mod sign;
mod slots;
mod status;
mod switch;
mod table;
mod terminal;
mod token;
mod values;
mod verb;
mod verbose;
mod verify;

pub use conclusion::Conclusion;
pub use outlet::finish;
pub use output::print_error;
pub use select::select_main;
pub use verb::Cli;
