//! A frame from bytes of the base and of the delta. Pure.

use zstd::zstd_safe::{DCtx, get_dict_id_from_frame, get_error_name};

use super::FrameKind;
use super::aligned::{self, Streams};
use crate::bundle::frame::{Frame, check_declared};
use crate::error::{Error, Result};

/// Makes a frame at the start of `out`. `prefix` are the ranges of its recipe, one after the other, `packed` are its bytes of
/// the delta, `streams` is memory that it may use. The result is untrusted and may only be verified.
///
/// # Errors
/// [`Error::Frame`]; a frame that is left to the bundle is one too.
pub fn rebuild(
    kind: FrameKind,
    frame: &Frame<'_>,
    prefix: &[u8],
    packed: &[u8],
    streams: &mut Streams,
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
        FrameKind::Aligned => aligned::decode(frame, prefix, packed, streams, out)?,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::delta::encoder::compress;
    use crate::bundle::delta::tests::{noise, release};

    const LEN: usize = 4096;

    /// A zstd frame with this header (RFC 8878, 3.1.1.1) and one raw block of these bytes.
    fn raw(header: &[u8], bytes: &[u8]) -> Vec<u8> {
        let block = ((bytes.len() as u32) << 3 | 1).to_le_bytes();
        [&0xfd2f_b528_u32.to_le_bytes()[..], header, &block[..3], bytes].concat()
    }

    /// What a frame declares is believed only where it is what the manifest implies, whatever comes then.
    #[test]
    fn bombs_and_lies_about_sizes_are_refused() {
        let image = noise(1, LEN);
        let release = release(&image, LEN as u32);
        let frame = release.frame(0, 0);
        let prefix = noise(2, 2 * LEN);
        let good = compress(&image, &prefix, 9).unwrap();
        let mut out = vec![0; LEN];
        let mut made = |packed: &[u8]| {
            rebuild(FrameKind::Patch, &frame, &prefix, packed, &mut Streams::default(), &mut out)
        };
        made(&good).unwrap();
        let single = |size: u32| [&[0xa0][..], &size.to_le_bytes()].concat();
        let cases = [
            ("declares 3 GiB", raw(&single(0xc000_0000), &image)),
            ("declares less than comes", raw(&single(100), &image)),
            ("declares more than comes", raw(&single(LEN as u32), &image[1..])),
            ("declares no size, and a window of 64 MiB", raw(&[0x00, 0x80], &image)),
            ("holds 64 MiB", compress(&vec![0; 64 << 20], &prefix, 1).unwrap()),
            (
                "names a dictionary",
                raw(&[&[0xa3][..], &[1, 0, 0, 0], &(LEN as u32).to_le_bytes()].concat(), &image),
            ),
            ("a second frame follows", [&good[..], &good].concat()),
            (
                "a skippable frame follows",
                [&good[..], &0x184d_2a50_u32.to_le_bytes(), &[4, 0, 0, 0], &[9; 4]].concat(),
            ),
            ("a match before the prefix", compress(&image, &[&image[..], &prefix].concat(), 9).unwrap()),
            ("is cut", good[..good.len() - 1].to_vec()),
            ("is nothing", Vec::new()),
        ];
        for (what, packed) in cases {
            let problem = made(&packed).unwrap_err();
            assert_eq!(problem.code(), "UPGRADE_ERROR_BUNDLE_FRAME", "{what}: {problem}");
        }
        // All of what is in the prefix can be reached, and no more; of the other kinds the length is judged.
        let mut out = vec![0; LEN];
        for (kind, prefix) in [
            (FrameKind::Copy, &prefix[..LEN - 1]),
            (FrameKind::InPlace, &[][..]),
            (FrameKind::Bundle, &prefix[..]),
        ] {
            let problem = rebuild(kind, &frame, prefix, &[], &mut Streams::default(), &mut out).unwrap_err();
            assert_eq!(problem.code(), "UPGRADE_ERROR_BUNDLE_FRAME", "{kind:?}: {problem}");
        }
    }
}
