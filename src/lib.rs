//! placeholder
pub mod device;
pub mod error;
pub mod units;
