//! placeholder
#![allow(missing_docs, clippy::needless_pass_by_value)]
use std::io::Write;
use std::marker::PhantomData;
use std::num::NonZeroUsize;

use serde::Serialize;

use crate::boot::BootFlag;
use crate::bundle::Bundle;
use crate::error::{Error, Result};
use crate::host::Machine;
use crate::host::record::Journal;
use crate::progress::{Cancel, Progress};
use crate::state::{PlanReport, PrepareReport, SlotsReport, Status, SwitchReport};
use crate::units::{Blake3, Group, Slot};

fn stub<T>() -> Result<T> {
    Err(Error::Internal { what: "engine stub".into() })
}

#[derive(Debug, Clone, Default)]
pub struct Policy {
    pub boot_flag: BootFlag,
    pub booted: Option<Slot>,
    pub product: Option<String>,
    pub tries: u8,
    pub allow_downgrade: bool,
    pub allow_epoch_rollback: bool,
    pub override_product: bool,
}
#[derive(Debug, Clone, Default)]
pub struct PrepareOptions {
    pub jobs: Option<NonZeroUsize>,
    pub max_rate: Option<u64>,
    pub read_back: bool,
    pub cancel: Cancel,
    pub origin: String,
}
#[derive(Debug, Serialize)]
pub struct ScrubReport {
    pub slot: Slot,
    pub version: String,
    pub bytes: u64,
    pub frames: u64,
    pub seconds: f64,
}
#[derive(Debug, Serialize)]
pub struct FirmwareReport {
    pub name: String,
    pub version: String,
    pub size: u64,
    pub blake3: Blake3,
}
pub struct Engine<'a>(PhantomData<&'a ()>);
impl<'a> Engine<'a> {
    pub fn new(_: &'a dyn Machine, _: &'a dyn Journal, _: Policy) -> Self {
        Self(PhantomData)
    }
    pub fn plan(&self, _: &Bundle) -> Result<PlanReport> {
        stub()
    }
    pub fn prepare(&self, _: Bundle, _: &PrepareOptions, _: &dyn Progress) -> Result<PrepareReport> {
        stub()
    }
    pub fn commit(&self, _dry_run: bool) -> Result<SwitchReport> {
        stub()
    }
    pub fn mark_good(&self, _: Option<Slot>) -> Result<SwitchReport> {
        stub()
    }
    pub fn roll_back(&self) -> Result<SwitchReport> {
        stub()
    }
    pub fn cancel(&self) -> Result<SwitchReport> {
        stub()
    }
    pub fn status(&self) -> Result<Status> {
        stub()
    }
    pub fn slots(&self) -> Result<SlotsReport> {
        stub()
    }
    pub fn scrub(
        &self,
        _: Slot,
        _: Option<Group>,
        _: Option<NonZeroUsize>,
        _: &Cancel,
        _: &dyn Progress,
    ) -> Result<ScrubReport> {
        stub()
    }
    pub fn firmware_list(&self, _: Slot) -> Result<Vec<FirmwareReport>> {
        stub()
    }
    pub fn firmware_extract(&self, _: Slot, _: &str, _: &mut dyn Write) -> Result<u64> {
        stub()
    }
}
