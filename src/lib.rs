//! placeholder
pub mod boot;
pub mod commit;
pub mod device;
pub mod error;
pub mod gpt;
pub mod host;
pub mod progress;
pub mod state;
pub mod units;
