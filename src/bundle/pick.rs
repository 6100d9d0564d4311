//! The whole bundle beside a delta: random access to its single frames, or all of it instead of the delta.

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
/// needed; mostly none is. What can only be read from front to back replaces the delta then.
pub struct Whole(Mutex<State>);

enum State {
    Closed(Opener),
    /// It has no single frames, since it can only be read from front to back.
    InOrder(Opener),
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
        let bundle = bundle.whole()?;
        if !bundle.is_seekable() {
            return Err(no_frames());
        }
        Ok(Self(Mutex::new(State::Open(Arc::new(Picker::new(bundle))))))
    }

    /// A bundle that `open` gives when it is needed.
    pub fn when_needed(open: impl FnOnce() -> Result<Bundle> + Send + 'static) -> Self {
        Self(Mutex::new(State::Closed(Box::new(open))))
    }

    /// A bundle that `open` gives when it is needed, and that can only be read from front to back.
    pub fn in_order(open: impl FnOnce() -> Result<Bundle> + Send + 'static) -> Self {
        Self(Mutex::new(State::InOrder(Box::new(open))))
    }

    /// Whether single frames of it can be read; also true where that is not known yet.
    pub fn has_frames(&self) -> bool {
        !matches!(&*lock(&self.0), State::InOrder(_))
    }

    /// All of the bundle, if the delta that ended with `problem` can be replaced by it: none of its frames was read, so the
    /// problem is the delta's or its base's. `None`: it cannot.
    ///
    /// # Errors
    /// Those of opening it; [`Error::Delta`] where it is the bundle of another release.
    pub fn instead(&self, manifest: &Manifest, problem: &Error) -> Result<Option<Bundle>> {
        // What ended the transfer of the delta ends that of the bundle too, unless the server answers.
        let answers = matches!(problem, Error::Http { .. } | Error::SourceChanged { .. });
        if !answers && problem.class() != Class::Bundle && !matches!(problem, Error::BaseDamaged { .. }) {
            return Ok(None);
        }
        let mut state = lock(&self.0);
        let open = match std::mem::replace(&mut *state, State::Failed) {
            State::Closed(open) | State::InOrder(open) => open,
            other @ (State::Open(_) | State::Failed) => {
                *state = other;
                return Ok(None);
            }
        };
        let bundle = open()?.whole()?;
        same_release(&bundle, manifest)?;
        Ok(Some(bundle))
    }

    /// Refuses the bundle of another release, where it is open already.
    ///
    /// # Errors
    /// [`Error::Delta`].
    pub fn check(&self, manifest: &Manifest) -> Result<()> {
        match &*lock(&self.0) {
            State::Open(picker) => same_release(&picker.bundle, manifest),
            State::Closed(_) | State::InOrder(_) | State::Failed => Ok(()),
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
            State::Closed(_) | State::InOrder(_) | State::Failed => false,
        }
    }

    fn picker(&self, manifest: &Manifest) -> Result<Arc<Picker>> {
        // Held while it is opened: others need it as well, and wait.
        let mut state = lock(&self.0);
        if let State::Open(picker) = &*state {
            return Ok(Arc::clone(picker));
        }
        let open = match std::mem::replace(&mut *state, State::Failed) {
            State::Closed(open) => open,
            in_order @ State::InOrder(_) => {
                *state = in_order;
                return Err(no_frames());
            }
            State::Open(_) | State::Failed => {
                return Err(Error::Delta { problem: "the whole bundle could not be opened".to_owned() });
            }
        };
        let bundle = open()?.whole()?;
        same_release(&bundle, manifest)?;
        if !bundle.is_seekable() {
            *state = State::InOrder(Box::new(|| Ok(bundle)));
            return Err(no_frames());
        }
        let picker = Arc::new(Picker::new(bundle));
        *state = State::Open(Arc::clone(&picker));
        Ok(picker)
    }
}

fn no_frames() -> Error {
    Error::Delta { problem: "the bundle beside it is a stream".to_owned() }
}

fn same_release(bundle: &Bundle, manifest: &Manifest) -> Result<()> {
    if bundle.manifest().bytes() == manifest.bytes() {
        return Ok(());
    }
    Err(Error::Delta { problem: "the bundle beside it is another release".to_owned() })
}

/// A whole bundle with the place of each of its frames.
struct Picker {
    bundle: Bundle,
    /// For each payload and frame where its compressed bytes begin.
    places: Vec<Vec<u64>>,
}

impl Picker {
    /// The places of all frames of a whole bundle that is seekable.
    fn new(bundle: Bundle) -> Self {
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
        Self { bundle, places }
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
