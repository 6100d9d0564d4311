//! placeholder
#![allow(missing_docs, clippy::needless_pass_by_value)]
use std::path::PathBuf;

use serde::Serialize;

use crate::bundle::Bundle;
use crate::error::{Error, Result};
use crate::progress::{Cancel, Progress};
use crate::units::BlockSize;

pub struct InitSpec {
    pub disk: PathBuf,
    pub size: Option<u64>,
    pub slot_size: u64,
    pub software_size: Option<u64>,
    pub sector_size: BlockSize,
    pub force: bool,
    pub bundle: Option<Bundle>,
}
#[derive(Debug, Serialize)]
pub struct InitReport {
    pub disk: String,
    pub partitions: Vec<String>,
    pub installed: Option<String>,
}
pub fn init(_: InitSpec, _: &dyn Progress, _: &Cancel) -> Result<InitReport> {
    Err(Error::Internal { what: "init stub".into() })
}
