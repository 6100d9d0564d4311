//! A frame with its place in a slot.

use std::ops::Deref;

use super::Record;
use crate::bundle::frame::{Frame, VerifiedFrame, ZeroState, is_zero};
use crate::device::{self, BlockDevice};
use crate::error::{Error, Result};
use crate::units::{ByteOffset, Extent};

/// A frame of a release with its place in a slot that holds that release, or will hold it.
#[derive(Clone, Copy)]
pub struct FrameAt<'a> {
    frame: Frame<'a>,
    slot: &'a dyn BlockDevice,
    at: ByteOffset,
}

impl<'a> Deref for FrameAt<'a> {
    type Target = Frame<'a>;

    fn deref(&self) -> &Frame<'a> {
        &self.frame
    }
}

impl Record {
    /// `frame` with its place in `slot`, by this record's layout.
    ///
    /// # Errors
    /// [`Error::Internal`] for a frame of the other group's payloads.
    pub fn frame_at<'a>(&self, frame: Frame<'a>, slot: &'a dyn BlockDevice) -> Result<FrameAt<'a>> {
        let place = self.layout.place(frame.payload_number());
        let at = place.and_then(|place| place.at.checked_add(frame.extent().at.0));
        let homeless = || Error::Internal { what: format!("{} has no place in a slot", frame.payload()) };
        Ok(FrameAt { frame, slot, at: ByteOffset(at.ok_or_else(homeless)?) })
    }
}

impl<'a> FrameAt<'a> {
    /// A frame at byte `at` of a slot that holds another release with the same frame.
    pub(crate) fn elsewhere(frame: Frame<'a>, slot: &'a dyn BlockDevice, at: ByteOffset) -> Self {
        Self { frame, slot, at }
    }
}

impl FrameAt<'_> {
    /// Extent in the slot, in whole pages.
    pub fn stored(&self) -> Extent {
        Extent { at: self.at, len: self.frame.stored_len() as u64 }
    }

    /// Reads it from the medium into the start of `buffer` and verifies it.
    ///
    /// # Errors
    /// [`Error::Read`]; [`Error::ReadBack`] if the slot holds other bytes.
    pub fn read_back<'b>(&self, buffer: &'b mut [u8]) -> Result<VerifiedFrame<'b>> {
        let buffer = &mut buffer[..self.frame.stored_len()];
        device::read(self.slot, &self.payload().to_string(), buffer, self.at)?;
        self.frame.verify(buffer).map_err(|_| Error::ReadBack {
            payload: self.payload().to_string(),
            frame: self.number(),
            at: self.at.0,
        })
    }

    /// The frame, if the slot holds it already; else `None`. A read error counts as no match: the frame is written
    /// then, which makes a disk remap a bad sector.
    pub(crate) fn find<'b>(&self, buffer: &'b mut [u8]) -> Option<VerifiedFrame<'b>> {
        let buffer = &mut buffer[..self.frame.stored_len()];
        self.slot.read_at(buffer, self.at).ok()?;
        // The bytes after a shorter last frame must be zero as well, or it has to be written. And if zeroes are
        // expected, other bytes are refused without hashing.
        let expected = self.zero_state() == ZeroState::Unproven || is_zero(buffer);
        if !expected || !is_zero(&buffer[self.len()..]) {
            return None;
        }
        self.frame.verify(buffer).ok()
    }
}
