//! Reading of the base. It is read piece by piece and not mapped: pages of a map count as memory of the process, some 64 KiB
//! around each byte that is compared, and a file that is truncated meanwhile would end the process by SIGBUS.

use crate::bundle::ReadAt;
use crate::bundle::source::read_failed;
use crate::error::{Error, Result};
use crate::units::Extent;

/// Bytes that are read at a time to compare a few.
const BLOCK: usize = 4 << 10;
/// Number of blocks that a reader stores: those around the last places are needed again and again.
const BLOCKS: u64 = 256;
/// Number of a block that is not there.
const NONE: u64 = u64::MAX;
/// Bytes that are compared at once.
const STEP: usize = 32;

/// Fills `buffer` from byte `at` of the base.
///
/// # Errors
/// [`Error::Open`] with the name of the file; [`Error::Source`], [`Error::Truncated`].
pub(super) fn read(base: &dyn ReadAt, at: u64, buffer: &mut [u8]) -> Result<()> {
    base.read_exact_at(buffer, at).map_err(|source| read_failed("the base", at, source))
}

/// Replaces `out` by the bytes of the ranges, one after the other.
///
/// # Errors
/// Those of [`read`].
pub(super) fn read_ranges(
    base: &dyn ReadAt,
    ranges: impl IntoIterator<Item = Extent>,
    out: &mut Vec<u8>,
) -> Result<()> {
    out.clear();
    for range in ranges {
        let from = out.len();
        out.resize(from + range.len as usize, 0);
        read(base, range.at.0, &mut out[from..])?;
    }
    Ok(())
}

/// Compares bytes with those of the base. Each worker has its own.
pub(super) struct BaseReader<'a> {
    base: &'a dyn ReadAt,
    len: u64,
    blocks: Vec<u8>,
    /// Number of the block that each part of `blocks` has.
    numbers: Vec<u64>,
    /// First failure. After it nothing is equal.
    problem: Option<Error>,
}

impl<'a> BaseReader<'a> {
    pub(super) fn new(base: &'a dyn ReadAt) -> Self {
        let (blocks, numbers) = (vec![0; BLOCKS as usize * BLOCK], vec![NONE; BLOCKS as usize]);
        Self { base, len: base.len(), blocks, numbers, problem: None }
    }

    /// The base.
    pub(super) const fn base(&self) -> &'a dyn ReadAt {
        self.base
    }

    /// Returns the first failure of the comparisons so far. Without it their results mean nothing.
    ///
    /// # Errors
    /// Those of [`read`].
    pub(super) fn check(&mut self) -> Result<()> {
        self.problem.take().map_or(Ok(()), Err)
    }

    /// Whether the base has these bytes at `at`.
    pub(super) fn has(&mut self, at: u64, bytes: &[u8]) -> bool {
        self.equal_from(at, bytes) == bytes.len()
    }

    /// Number of bytes that are equal from `at` on, before the first difference.
    pub(super) fn equal_from(&mut self, at: u64, bytes: &[u8]) -> usize {
        let mut len = 0;
        while len < bytes.len() {
            let at = at.saturating_add(len as u64);
            let block = self.block(at / BLOCK as u64);
            let here = block.get((at % BLOCK as u64) as usize..).unwrap_or_default();
            let count = here.len().min(bytes.len() - len);
            let equal = equal(&here[..count], &bytes[len..len + count]);
            len += equal;
            if count == 0 || equal < count {
                break;
            }
        }
        len
    }

    /// Number of bytes at the end of `bytes` that are equal to those before `at`.
    pub(super) fn equal_before(&mut self, at: u64, bytes: &[u8]) -> usize {
        let (mut len, at) = (0, at.min(self.len));
        while len < bytes.len() && (len as u64) < at {
            let last = at - len as u64 - 1;
            let block = self.block(last / BLOCK as u64);
            let here = block.get(..=(last % BLOCK as u64) as usize).unwrap_or_default();
            let rest = &bytes[..bytes.len() - len];
            let count = here.len().min(rest.len());
            let pairs = here.iter().rev().zip(rest.iter().rev());
            let equal = pairs.take_while(|(one, other)| one == other).count();
            len += equal;
            if count == 0 || equal < count {
                break;
            }
        }
        len
    }

    /// Bytes of a block; none beyond the end, or if it cannot be read.
    fn block(&mut self, number: u64) -> &[u8] {
        let (place, at) = ((number % BLOCKS) as usize, number.saturating_mul(BLOCK as u64));
        let len = self.len.saturating_sub(at).min(BLOCK as u64) as usize;
        let block = &mut self.blocks[place * BLOCK..][..len];
        if self.numbers[place] != number && len > 0 {
            self.numbers[place] = NONE;
            if let Err(problem) = read(self.base, at, block) {
                self.problem.get_or_insert(problem);
                return &[];
            }
            self.numbers[place] = number;
        }
        block
    }
}

/// Number of bytes that are equal before the first difference; both have the same length.
fn equal(one: &[u8], other: &[u8]) -> usize {
    let steps = one.chunks_exact(STEP).zip(other.chunks_exact(STEP));
    let from = steps.take_while(|(one, other)| one == other).count() * STEP;
    from + one[from..].iter().zip(&other[from..]).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::delta::tests::noise;
    use crate::units::ByteOffset;

    /// The same as with all of the base in memory, whatever blocks the places lie in.
    #[test]
    fn bytes_are_compared_across_blocks_and_at_both_ends() {
        let base = noise(1, 5 * BLOCK + 77);
        let mut changed = base.clone();
        for at in [0, 1, 31, 32, BLOCK - 1, BLOCK, 2 * BLOCK + 5, 5 * BLOCK + 76] {
            changed[at] ^= 1;
        }
        let mut reader = BaseReader::new(&base);
        let places = [0, 1, 2, 33, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 6, 5 * BLOCK, base.len()];
        for at in places {
            for to in places.into_iter().filter(|to| *to >= at) {
                let after = changed[at..to].iter().zip(&base[at..]).take_while(|(a, b)| a == b).count();
                assert_eq!(reader.equal_from(at as u64, &changed[at..to]), after, "{at}..{to}");
                let before = changed[at..to].iter().rev().zip(base[..to].iter().rev());
                let before = before.take_while(|(a, b)| a == b).count();
                assert_eq!(reader.equal_before(to as u64, &changed[at..to]), before, "{at}..{to}");
                assert!(reader.has(at as u64, &base[at..to]));
            }
        }
        let longer = [&base[..], b"more"].concat();
        assert_eq!(reader.equal_from(0, &longer), base.len());
        assert_eq!(reader.equal_before(9, &[b"more", &base[..9]].concat()), 9);
        assert!(!reader.has(base.len() as u64 + 1, b"x") && !reader.has(u64::MAX, b"xy"));
        reader.check().unwrap();
        let (mut out, range) = (vec![1], |at, len| Extent { at: ByteOffset(at), len });
        read_ranges(&base, [range(5, 10), range(5000, 1)], &mut out).unwrap();
        assert_eq!(out, [&base[5..15], &base[5000..5001]].concat());
        read_ranges(&base, [range(base.len() as u64 - 1, 2)], &mut out).unwrap_err();
    }

    /// A base on a failing disk, or truncated meanwhile.
    struct Shorter(Vec<u8>);

    impl ReadAt for Shorter {
        fn len(&self) -> u64 {
            self.0.len() as u64 + 10
        }

        fn read_exact_at(&self, buf: &mut [u8], at: u64) -> std::io::Result<()> {
            self.0.read_exact_at(buf, at)
        }
    }

    #[test]
    fn bytes_that_cannot_be_read_are_equal_to_nothing_and_an_error() {
        let base = Shorter(vec![7; 2 * BLOCK]);
        let mut reader = BaseReader::new(&base);
        assert_eq!(reader.equal_from(0, &[7; 3 * BLOCK]), 2 * BLOCK);
        assert_eq!(reader.check().unwrap_err().code(), "UPGRADE_ERROR_BUNDLE_TRUNCATED");
        reader.check().unwrap();
    }
}
