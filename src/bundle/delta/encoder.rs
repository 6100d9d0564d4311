//! Compression of a frame with a raw prefix. Pure.

use zstd::zstd_safe::{CCtx, CParameter, compress_bound, get_error_name};

use crate::error::{Error, Result};

/// Compresses to one zstd frame with a raw prefix. It has no checksum: the index has a better one.
pub(super) fn compress(frame: &[u8], prefix: &[u8], level: i32) -> Result<Vec<u8>> {
    let failed = |code| Error::Internal { what: format!("zstd: {}", get_error_name(code)) };
    let mut context =
        CCtx::try_create().ok_or_else(|| Error::Internal { what: "zstd: no memory".to_owned() })?;
    // All of the prefix is within the window even at the last byte of the frame.
    let window = (frame.len() + prefix.len()).next_power_of_two().trailing_zeros().max(10);
    for parameter in [CParameter::CompressionLevel(level), CParameter::WindowLog(window)] {
        context.set_parameter(parameter).map_err(failed)?;
    }
    context.ref_prefix(prefix).map_err(failed)?;
    let mut packed = Vec::with_capacity(compress_bound(frame.len()));
    context.compress2(&mut packed, frame).map_err(failed)?;
    packed.shrink_to_fit();
    Ok(packed)
}
