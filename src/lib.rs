//! placeholder
pub mod boot;
pub mod bundle;
pub mod cli;
pub mod device;
pub mod engine;
pub mod error;
pub mod gpt;
pub mod host;
pub mod init;
pub mod progress;
pub mod state;
pub mod units;
