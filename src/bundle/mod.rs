//! placeholder
#![allow(missing_docs, clippy::needless_pass_by_value)]
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::host::source::Source;
use crate::progress::{Cancel, Progress};
use crate::units::{Blake3, Sha256};

fn stub<T>() -> Result<T> {
    Err(Error::Internal { what: "bundle stub".into() })
}

pub struct Bundle;
impl Bundle {
    pub fn open(_source: Source, _trust: &Trust) -> Result<Self> {
        stub()
    }
    pub fn summary(&self) -> Summary {
        Summary::default()
    }
}
pub struct Trust;
impl Trust {
    pub fn allowed_signers(_path: &Path) -> Result<Self> {
        stub()
    }
    pub fn dangerously_unsigned() -> Self {
        Self
    }
}

#[derive(Debug, Default, Serialize)]
pub struct Summary {
    pub product: String,
    pub version: String,
    pub min_version: Option<String>,
    pub epoch: u64,
    pub created: Option<i64>,
    pub signed_by: Option<String>,
    pub payloads: Vec<PayloadSummary>,
}
#[derive(Debug, Serialize)]
pub struct PayloadSummary {
    pub name: String,
    pub version: String,
    pub size: u64,
    pub compressed: u64,
    pub frame_size: u32,
    pub blake3: Blake3,
    pub sha256: Sha256,
}
#[derive(Debug)]
pub struct PackSpec {
    pub product: String,
    pub version: String,
    pub min_version: Option<String>,
    pub epoch: u64,
    pub created: Option<i64>,
    pub platform: PathBuf,
    pub software: Option<PathBuf>,
    pub firmware: Vec<(String, PathBuf)>,
    pub key: Option<PathBuf>,
    pub level: i32,
    pub frame_size: u32,
    pub jobs: Option<NonZeroUsize>,
}
#[derive(Debug, Serialize)]
pub struct PackReport {
    pub path: PathBuf,
    pub bundle_bytes: u64,
    pub image_bytes: u64,
    pub signed: bool,
    pub seconds: f64,
}
#[derive(Debug, Serialize)]
pub struct SignReport {
    pub path: PathBuf,
    pub key: String,
    pub signatures: usize,
}
#[derive(Debug, Serialize)]
pub struct VerifyReport {
    pub product: String,
    pub version: String,
    pub signed_by: Option<String>,
    pub image_bytes: u64,
    pub frames: u64,
    pub seconds: f64,
}
pub fn pack(_: &PackSpec, _out: &Path, _: &dyn Progress, _: &Cancel) -> Result<PackReport> {
    stub()
}
pub fn sign(_: &Path, _key: Option<&Path>, _sig: Option<&Path>, _out: Option<&Path>) -> Result<SignReport> {
    stub()
}
pub fn verify(
    _: Source,
    _: &Trust,
    _: Option<NonZeroUsize>,
    _: &dyn Progress,
    _: &Cancel,
) -> Result<VerifyReport> {
    stub()
}
