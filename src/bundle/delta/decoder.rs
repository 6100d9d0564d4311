//! A frame from bytes of the base and of the delta. Pure.

use zstd::zstd_safe::{DCtx, get_dict_id_from_frame, get_error_name};

use super::{FrameKind, aligned};
use crate::bundle::frame::{Frame, check_declared};
use crate::error::{Error, Result};

/// Makes a frame at the start of `out`. `prefix` are the ranges of its recipe, one after the other, `packed` are its bytes of
/// the delta. The result is untrusted and may only be verified.
///
/// # Errors
/// [`Error::Frame`]; a frame that is left to the bundle is one too.
pub fn rebuild(
    kind: FrameKind,
    frame: &Frame<'_>,
    prefix: &[u8],
    packed: &[u8],
    out: &mut [u8],
) -> Result<()> {
    match kind {
        FrameKind::Zero => out.fill(0),
        FrameKind::InPlace | FrameKind::Copy => match (out.get_mut(..frame.len()), prefix.get(..frame.len()))
        {
            (Some(out), Some(from)) => out.copy_from_slice(from),
            _ => return Err(frame.malformed("the base has fewer bytes".to_owned())),
        },
        FrameKind::Patch => patch(frame, prefix, packed, out)?,
        FrameKind::Aligned => aligned::decode(frame, prefix, packed, out)?,
        FrameKind::Bundle => return Err(frame.malformed("it was left out".to_owned())),
    }
    Ok(())
}

/// Decompresses `packed` with the raw `prefix` into the start of `out`. The bytes are untrusted and may only be
/// verified.
///
/// Frames that [`FrameDecoder`](crate::bundle::frame::FrameDecoder) refuses are refused here too, and frames that name a
/// dictionary. All is decompressed in one step into `out`: there is no window that a frame could make larger.
///
/// # Errors
/// [`Error::Frame`].
fn patch(frame: &Frame<'_>, prefix: &[u8], packed: &[u8], out: &mut [u8]) -> Result<()> {
    check_declared(frame, packed)?;
    let bad = |problem: &str| frame.malformed(problem.to_owned());
    if get_dict_id_from_frame(packed).is_some() {
        return Err(bad("it names a dictionary"));
    }
    let internal = |what: &str| Error::Internal { what: what.to_owned() };
    // A context is bound to the lifetime of its prefix, and each frame has a prefix of its own.
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
