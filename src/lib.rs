//! placeholder
pub mod boot;
pub mod bundle;
pub mod device;
pub mod error;
pub mod gpt;
pub mod host;
pub mod progress;
pub mod slot;
pub mod stage;
pub mod state;
pub mod units;
pub mod version;
pub mod workers;
