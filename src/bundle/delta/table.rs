//! `delta.bin` as it is stored: plain, or as one zstd frame where that saves some. Pure; what is read is not authenticated.

use super::DELTA_MAX;
use super::aligned::declared;
use super::encoder::compress;
use crate::error::Result;

/// First bytes of a zstd frame (RFC 8878, 3.1.1).
const ZSTD: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// Bytes that a zstd frame has to save. In a squashfs nearly all frames move when a file grows, and each needs a range: the
/// table was 0.4 % of a delta of one package.
const WORTH: usize = 1 << 10;
/// zstd level.
const LEVEL: i32 = 19;

/// The bytes to store for a table.
///
/// # Errors
/// [`Error::Internal`](crate::Error::Internal).
pub(super) fn pack(table: Vec<u8>) -> Result<Vec<u8>> {
    let packed = compress(&table, &[], LEVEL)?;
    Ok(if packed.len() + WORTH <= table.len() { packed } else { table })
}

/// The table that is stored as `bytes`, or the problem.
pub(super) fn unpack(bytes: Vec<u8>) -> Result<Vec<u8>, &'static str> {
    if !bytes.starts_with(&ZSTD) {
        return Ok(bytes);
    }
    let len = usize::try_from(declared(&bytes)?).ok().filter(|len| *len as u64 <= DELTA_MAX);
    let mut table = vec![0; len.ok_or("its table is too large")?];
    // In one step into a buffer of the declared size: no window makes it larger.
    let got = zstd::zstd_safe::decompress(&mut table[..], &bytes).map_err(zstd::zstd_safe::get_error_name)?;
    if got == table.len() { Ok(table) } else { Err("its table has another size than it declares") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::delta::tests::noise;

    fn table() -> Vec<u8> {
        (0..500_u32)
            .flat_map(|n| [&[2, 1, 0, 0, 0, 0, 0, 0][..], &(n << 20 | 0x1234).to_le_bytes()].concat())
            .collect()
    }

    #[test]
    fn a_table_comes_back_and_is_packed_where_that_pays() {
        let long = pack(table()).unwrap();
        assert!(long.len() * 2 < table().len() && unpack(long).unwrap() == table());
        for plain in [Vec::new(), table()[..960].to_vec(), noise(1, 4000)] {
            assert_eq!(pack(plain.clone()).unwrap(), plain);
            assert_eq!(unpack(plain.clone()).unwrap(), plain);
        }
    }

    #[test]
    fn bombs_cuts_and_lies_about_the_size_are_refused() {
        let good = pack(table()).unwrap();
        for len in ZSTD.len()..good.len() {
            unpack(good[..len].to_vec()).unwrap_err();
        }
        // A second frame, an empty one, and one that decoders skip: each adds nothing that a reader of one frame would see.
        let empty = compress(&[], &[], 1).unwrap();
        let skipped = [&0x184d_2a50_u32.to_le_bytes()[..], &[0; 4]].concat();
        for more in [&good, &empty, &skipped] {
            unpack([&good[..], more].concat()).unwrap_err();
        }
        assert!(unpack(compress(&vec![0; DELTA_MAX as usize], &[], 1).unwrap()).is_ok());
        let bomb = compress(&vec![0; DELTA_MAX as usize + 1], &[], 1).unwrap();
        assert_eq!(unpack(bomb), Err("its table is too large"));
        // Frame header: a single segment of 8 bytes of size, which are changed; a dictionary; no size.
        let frame = |header: &[u8]| [&ZSTD[..], header, &[0x19, 0, 0], b"abc"].concat();
        assert_eq!(unpack(frame(&[0x20, 3])), Ok(b"abc".to_vec()));
        for bad in [&[0x20, 4][..], &[0x20, 2], &[0x21, 7, 3], &[0x00, 0x50]] {
            unpack(frame(bad)).unwrap_err();
        }
    }
}
