//! The running image as a source of frames. It is opened read-only, and its frames are verified as any other before they are
//! written.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::bundle::frame::{Frame, VerifiedFrame};
use crate::device::{self, AlignedBuf, BlockDevice};
use crate::error::Result;
use crate::slot::{FrameAt, Record, UNIT};
use crate::units::{ByteOffset, Extent};

/// Unit of reads of the base, in bytes: the device requires whole blocks, a recipe names any bytes.
pub(super) const STEP: u64 = 256 << 10;

/// The running image that the frames of one payload are made from.
pub struct BaseSlot {
    /// Name of the partition, for messages.
    pub partition: String,
    /// The slot.
    pub device: Box<dyn BlockDevice>,
    /// Record of the slot.
    pub record: Record,
    /// Place of the image in the record's manifest.
    pub payload: usize,
}

impl BaseSlot {
    /// Offset of the image in the slot.
    fn start(&self) -> u64 {
        self.record.layout.place(self.payload).map_or(0, |place| place.at)
    }

    /// Appends a range of the image to `out`. The device is read in whole blocks.
    pub(super) fn read(&self, range: Extent, step: &mut AlignedBuf, out: &mut Vec<u8>) -> Result<()> {
        let (mut at, end) = (self.start() + range.at.0, self.start() + range.at.0 + range.len);
        while at < end {
            let from = at / UNIT * UNIT;
            let to = end.next_multiple_of(UNIT).min(from + STEP);
            let buffer = &mut step[..(to - from) as usize];
            device::read(&*self.device, &self.partition, buffer, ByteOffset(from))?;
            let part = &buffer[(at - from) as usize..(end.min(to) - from) as usize];
            out.extend_from_slice(part);
            at = end.min(to);
        }
        Ok(())
    }

    /// Start of the first frame that overlaps `ranges` and differs from the record.
    pub(super) fn damage(&self, ranges: impl Iterator<Item = Extent>) -> Option<u64> {
        let payload = self.record.manifest.payloads.get(self.payload)?;
        let size = u64::from(payload.frame_size);
        let mut buffer = AlignedBuf::zeroed((size as usize).next_multiple_of(UNIT as usize));
        for range in ranges {
            for number in range.at.0 / size..(range.at.0 + range.len).div_ceil(size).min(payload.frames()) {
                let frame = self.record.frame(self.payload, number);
                let at = self.start() + frame.extent().at.0;
                let sound = self
                    .record
                    .frame_at(frame, &*self.device)
                    .map(|frame| frame.read_back(&mut buffer).is_ok());
                if !sound.unwrap_or(false) {
                    return Some(at);
                }
            }
        }
        None
    }

    /// `frame` of the release that is staged at its place in the base, where the base holds it too: where both indexes
    /// have one value for one place, the bytes are the same.
    fn frame_at<'f>(&'f self, frame: Frame<'f>) -> Option<FrameAt<'f>> {
        let payload = self.record.manifest.payloads.get(self.payload)?;
        if payload.frame_size != frame.payload().frame_size || frame.number() >= payload.frames() {
            return None;
        }
        let own = self.record.frame(self.payload, frame.number());
        let same = own.extent() == frame.extent() && own.entry().value == frame.entry().value;
        let at = ByteOffset(self.start() + own.extent().at.0);
        same.then(|| FrameAt::elsewhere(frame, &*self.device, at))
    }
}

/// Frames of a bundle on a server that the running slot holds at the same place: they need not come over the network.
pub(super) struct RunningFrames<'a> {
    bases: &'a [Option<BaseSlot>],
    copied: AtomicU64,
}

impl<'a> RunningFrames<'a> {
    pub(super) fn new(bases: &'a [Option<BaseSlot>]) -> Self {
        Self { bases, copied: AtomicU64::new(0) }
    }

    fn find<'f>(&self, frame: Frame<'f>) -> Option<FrameAt<'f>>
    where
        'a: 'f,
    {
        self.bases.get(frame.payload_number())?.as_ref()?.frame_at(frame)
    }

    /// Whether the running slot should hold a frame, by its record.
    pub(super) fn has(&self, frame: Frame<'_>) -> bool {
        self.find(frame).is_some()
    }

    /// The frame, where the running slot really holds it.
    pub(super) fn read<'b>(&self, frame: Frame<'_>, buffer: &'b mut [u8]) -> Option<VerifiedFrame<'b>> {
        let verified = self.find(frame)?.find(buffer)?;
        self.copied.fetch_add(verified.len() as u64, Ordering::Relaxed);
        Some(verified)
    }

    /// Bytes that were copied.
    pub(super) fn copied(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }
}
