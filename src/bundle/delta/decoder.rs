//! Making a frame out of what the base has and what the delta brings. Pure.

use zstd::zstd_safe::{DCtx, get_dict_id_from_frame, get_error_name};

use crate::bundle::frame::{Frame, check_declared};
use crate::error::{Error, Result};

/// Decompresses `packed` with the raw `prefix` into the start of `out`. Nothing may be done with the bytes but to verify
/// them.
///
/// What [`FrameDecoder`](crate::bundle::frame::FrameDecoder) refuses is refused here too, and a frame that names a
/// dictionary. All is decompressed in one step into `out`: there is no window that a frame could make larger.
///
/// # Errors
/// [`Error::Frame`].
pub fn patch(frame: &Frame<'_>, prefix: &[u8], packed: &[u8], out: &mut [u8]) -> Result<()> {
    check_declared(frame, packed)?;
    let bad = |problem: &str| frame.malformed(problem.to_owned());
    if get_dict_id_from_frame(packed).is_some() {
        return Err(bad("it names a dictionary"));
    }
    let internal = |what: &str| Error::Internal { what: what.to_owned() };
    // A context is bound to the life of its prefix, which is another one for each frame.
    let mut context = DCtx::try_create().ok_or_else(|| internal("zstd: no memory"))?;
    context.ref_prefix(prefix).map_err(|code| bad(get_error_name(code)))?;
    let len = frame.len();
    let room = out.get_mut(..len).ok_or_else(|| internal("frame buffer too short"))?;
    match context.decompress(room, packed) {
        Ok(got) if got == len => Ok(()),
        Ok(got) => Err(bad(&format!("decompresses to {got} bytes instead of {len}"))),
        Err(code) => Err(bad(get_error_name(code))),
    }
}
