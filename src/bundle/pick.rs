//! Random access to single frames of a seekable bundle.

use std::fmt;
use std::sync::{Arc, Mutex};

use super::archive;
use super::frame::Frame;
use super::manifest::Manifest;
use super::reader::Bundle;
use super::source::read_failed;
use crate::error::{Class, Error, Result};
use crate::workers::lock;

/// Opens the whole bundle.
type Opener = Box<dyn FnOnce() -> Result<Bundle> + Send>;

/// The whole bundle beside a delta: where the frames come from that cannot be made. It is opened when the first one is
/// needed; mostly none is.
pub struct Whole(Mutex<State>);

enum State {
    Closed(Opener),
    Open(Arc<Picker>),
    /// It could not be opened; the first to ask got the reason.
    Failed,
}

impl fmt::Debug for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Whole")
    }
}

impl Whole {
    /// A bundle that is open.
    ///
    /// # Errors
    /// [`Error::Delta`] for a stream, and for a delta.
    pub fn of(bundle: Bundle) -> Result<Self> {
        Ok(Self(Mutex::new(State::Open(Arc::new(Picker::new(bundle)?)))))
    }

    /// A bundle that `open` gives when it is needed.
    pub fn when_needed(open: impl FnOnce() -> Result<Bundle> + Send + 'static) -> Self {
        Self(Mutex::new(State::Closed(Box::new(open))))
    }

    /// Refuses the bundle of another release, where it is open already.
    ///
    /// # Errors
    /// [`Error::Delta`].
    pub fn check(&self, manifest: &Manifest) -> Result<()> {
        match &*lock(&self.0) {
            State::Open(picker) => picker.check(manifest),
            State::Closed(_) | State::Failed => Ok(()),
        }
    }

    /// Reads the compressed bytes of a frame of the release with this manifest. They are not verified yet.
    ///
    /// # Errors
    /// [`Error::Delta`] where it is the bundle of another release; [`Error::Source`], [`Error::Truncated`],
    /// [`Error::Interrupted`]; those of opening it, and class Network.
    pub fn load(&self, manifest: &Manifest, frame: &Frame<'_>, compressed: &mut Vec<u8>) -> Result<()> {
        self.picker(manifest)?.load(frame, compressed)
    }

    /// Says what was wrong with the bytes of a frame. Whether loading it again may bring other ones, from another server.
    pub fn has_another(&self, frame: &Frame<'_>, problem: &Error) -> bool {
        match &*lock(&self.0) {
            State::Open(picker) => problem.class() == Class::Bundle && picker.distrust(frame),
            State::Closed(_) | State::Failed => false,
        }
    }

    fn picker(&self, manifest: &Manifest) -> Result<Arc<Picker>> {
        // Held while it is opened: others need it as well, and wait.
        let mut state = lock(&self.0);
        if let State::Open(picker) = &*state {
            return Ok(Arc::clone(picker));
        }
        let State::Closed(open) = std::mem::replace(&mut *state, State::Failed) else {
            return Err(Error::Delta { problem: "the whole bundle could not be opened".to_owned() });
        };
        let picker = Arc::new(Picker::new(open()?)?);
        picker.check(manifest)?;
        *state = State::Open(Arc::clone(&picker));
        Ok(picker)
    }
}

/// A whole bundle with the place of each of its frames.
struct Picker {
    bundle: Bundle,
    /// For each payload and frame where its compressed bytes begin.
    places: Vec<Vec<u64>>,
}

impl Picker {
    /// The places of all frames.
    fn new(bundle: Bundle) -> Result<Self> {
        let bundle = bundle.whole()?;
        if !bundle.is_seekable() {
            return Err(Error::Delta { problem: "the bundle beside it is a stream".to_owned() });
        }
        let (release, mut at) = (bundle.release(), bundle.payloads_at());
        let payloads = 0..release.manifest.payloads.len();
        let places = payloads.map(|payload| {
            at += archive::BLOCK as u64;
            let start = at;
            let frames = release.frames(payload);
            let places = frames.map(|frame| {
                let place = at;
                at += u64::from(frame.entry().compressed);
                place
            });
            let places: Vec<u64> = places.collect();
            at += archive::padding(at - start);
            places
        });
        let places = places.collect();
        Ok(Self { bundle, places })
    }

    fn check(&self, manifest: &Manifest) -> Result<()> {
        if self.bundle.manifest().bytes() == manifest.bytes() {
            return Ok(());
        }
        Err(Error::Delta { problem: "the bundle beside it is another release".to_owned() })
    }

    fn place(&self, frame: &Frame<'_>) -> Option<u64> {
        self.places.get(frame.payload_number())?.get(frame.number() as usize).copied()
    }

    fn load(&self, frame: &Frame<'_>, compressed: &mut Vec<u8>) -> Result<()> {
        let (Some(file), Some(at)) = (self.bundle.file(), self.place(frame)) else {
            return Err(Error::Internal { what: "no such frame, or a stream".to_owned() });
        };
        let len = frame.entry().compressed as usize;
        let member = || frame.payload().member();
        file.read_into(compressed, at, len).map_err(|source| read_failed(&member(), at, source))
    }

    fn distrust(&self, frame: &Frame<'_>) -> bool {
        let len = u64::from(frame.entry().compressed);
        let (file, place) = (self.bundle.file(), self.place(frame));
        file.zip(place).is_some_and(|(file, at)| file.distrust(at, len))
    }
}
