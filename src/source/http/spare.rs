//! Memory of blocks that were taken, kept for new ones: freeing it and allocating it again costs a page fault for each page.
//! Pure.

/// Minimum size in bytes of what is kept. Small blocks, such as headers, leave the memory to blocks that fill it.
const MIN: u64 = 64 << 10;

/// Vectors that hold nothing of use.
#[derive(Debug, Default)]
pub(super) struct Spare(Vec<Vec<u8>>);

impl Spare {
    /// Keeps the memory of a vector, if it is of use and no more than `most` bytes are kept with it.
    pub(super) fn keep(&mut self, data: Vec<u8>, most: u64) {
        let capacity = data.capacity() as u64;
        let kept: u64 = self.0.iter().map(|data| data.capacity() as u64).sum();
        if capacity >= MIN && kept + capacity <= most {
            self.0.push(data);
        }
    }

    /// An empty vector with room for `len` bytes: the smallest that has it, unless it is far too large.
    pub(super) fn take(&mut self, len: u64) -> Vec<u8> {
        let fits = |data: &Vec<u8>| (len..=len.saturating_mul(2)).contains(&(data.capacity() as u64));
        let found = self.0.iter().enumerate().filter(|(_, data)| len >= MIN && fits(data));
        let best = found.min_by_key(|(_, data)| data.capacity()).map(|(at, _)| at);
        let mut data = best.map(|at| self.0.swap_remove(at)).unwrap_or_default();
        data.clear();
        data.reserve_exact(usize::try_from(len).unwrap_or(0));
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 8 << 20;

    #[test]
    fn memory_is_used_again_where_it_fits_and_is_bounded() {
        let mut spare = Spare::default();
        [100_000, 1 << 20].into_iter().for_each(|len| spare.keep(vec![1; len], MOST));
        let mut taken = |len| spare.take(len).capacity();
        assert_eq!(taken(40_000), 40_000, "a header leaves what is for frames");
        assert_eq!(taken(90_000), 100_000);
        assert_eq!(taken(90_000), 90_000, "far too large");
        assert_eq!(taken(600_000), 1 << 20);
        spare.keep(vec![1; 1 << 20], MOST);
        assert!(spare.take(1 << 20).is_empty());
        (0..100).for_each(|_| spare.keep(vec![0; 1 << 20], MOST));
        assert_eq!(spare.0.len() as u64, MOST >> 20);
        spare.keep(vec![0; 9], MOST);
        assert!(spare.take(9).capacity() < 100_000);
    }
}
