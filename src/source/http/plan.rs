//! Which bytes to ask a server for next, and those that came and nobody has taken yet. Pure: no clock, no socket.
//!
//! ```text
//!   reads that wait ──┐
//!                     ├─▶ next(): a block of at most 1 MiB, and how far a request may reach ─▶ filled ─▶ taken, once
//!   declared ahead ───┘
//! ```
//!
//! What a reader waits for comes first. What somebody declared comes ahead of the readers, as far as the budget allows. Bytes
//! that nobody asked for or declared are never part of a request, but for gaps too small to be worth one.

use std::collections::BTreeMap;
use std::ops::Range;

/// Largest block: what is allocated at once.
const BLOCK: u64 = 1 << 20;
/// Bytes that may wait to be taken ahead of the readers.
pub(super) const BUDGET: u64 = 8 << 20;
/// A hole between two wanted ranges that is read through: less than a request and its answer cost.
pub(super) const GAP: u64 = 16 << 10;

/// Bytes on their way, or waiting to be taken.
#[derive(Debug)]
struct Block {
    data: Vec<u8>,
    len: u64,
    taken: u64,
    ahead: bool,
    mirror: usize,
}

/// What to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Want {
    /// The block.
    pub(super) block: Range<u64>,
    /// How far what is wanted goes on from there, for the end of the request.
    pub(super) until: u64,
}

/// Demands, declarations and blocks.
#[derive(Debug, Default)]
pub(super) struct Plan {
    demands: BTreeMap<u64, Range<u64>>,
    next_demand: u64,
    ahead: Vec<Range<u64>>,
    blocks: BTreeMap<u64, Block>,
    buffered: u64,
    /// Which mirror sent what, of the last blocks.
    sent: Vec<(Range<u64>, usize)>,
}

/// How many blocks are remembered: more than workers hold frames.
const REMEMBERED: usize = 64;

impl Plan {
    /// Declares that all of a range will be read soon.
    pub(super) fn declare(&mut self, range: Range<u64>) {
        self.undeclare(&range);
        self.ahead.push(range);
        // What is there already, or on its way, is not fetched twice.
        let covered: Vec<_> = self.blocks.iter().map(|(start, block)| *start..start + block.len).collect();
        for block in covered {
            self.undeclare(&block);
        }
        self.ahead.sort_by_key(|range| range.start);
    }

    /// Says that a range will not be read, or not again: what is there of it is dropped.
    pub(super) fn pass(&mut self, range: &Range<u64>) {
        self.undeclare(range);
        let starts: Vec<u64> = self.blocks.range(..range.end).map(|(start, _)| *start).collect();
        for start in starts.into_iter().rev() {
            let Some(block) = self.blocks.get_mut(&start) else { continue };
            let end = start + block.len;
            if end <= range.start {
                break;
            }
            block.taken += end.min(range.end) - start.max(range.start);
            self.drop_if_taken(start);
        }
    }

    fn undeclare(&mut self, range: &Range<u64>) {
        let left = |old: Range<u64>| [old.start..old.end.min(range.start), old.start.max(range.end)..old.end];
        self.ahead = self.ahead.drain(..).flat_map(left).filter(|range| range.start < range.end).collect();
    }

    /// A reader begins to wait for a range; the number is its own until [`end`](Self::end).
    pub(super) fn begin(&mut self, range: Range<u64>) -> u64 {
        self.next_demand += 1;
        self.demands.insert(self.next_demand, range);
        self.next_demand
    }

    /// A reader has all, or gave up.
    pub(super) fn end(&mut self, demand: u64) {
        self.demands.remove(&demand);
    }

    /// Whether anybody waits.
    pub(super) fn is_waited_for(&self) -> bool {
        self.demands.values().any(|range| range.start < range.end)
    }

    /// Copies what is there of a demand into `buf`, which is for its rest; the number of bytes.
    pub(super) fn take(&mut self, demand: u64, buf: &mut [u8]) -> usize {
        let mut copied = 0;
        while let Some(range) = self.demands.get_mut(&demand).filter(|range| range.start < range.end) {
            let Some((&start, block)) = self.blocks.range_mut(..=range.start).next_back() else { break };
            let from = usize::try_from(range.start - start).unwrap_or(usize::MAX);
            let (Some(data), Some(to)) = (block.data.get(from..), buf.get_mut(copied..)) else { break };
            let len = data.len().min(to.len());
            let (Some(to), Some(data)) = (to.get_mut(..len), data.get(..len)) else { break };
            if len == 0 {
                break;
            }
            to.copy_from_slice(data);
            copied += len;
            range.start += len as u64;
            block.taken += len as u64;
            self.drop_if_taken(start);
        }
        copied
    }

    fn drop_if_taken(&mut self, start: u64) {
        // One that is still being filled goes when it is full.
        let done = |block: &Block| block.taken >= block.len && block.data.len() as u64 >= block.len;
        if self.blocks.get(&start).is_some_and(done)
            && let Some(block) = self.blocks.remove(&start)
        {
            self.buffered -= block.len;
        }
    }

    /// The next block to fetch from `mirror`. It counts as on its way until [`fill`](Self::fill) or
    /// [`give_up`](Self::give_up) has ended it.
    pub(super) fn next(&mut self, mirror: usize) -> Option<Want> {
        let waited = self
            .demands
            .values()
            .filter_map(|range| self.uncovered(range.clone()))
            .min_by_key(|range| range.start);
        let first = match waited {
            // Workers take frames in order and ask for them out of order: what is declared comes from front to back.
            Some(range) => {
                let around =
                    |ahead: &&Range<u64>| ahead.contains(&range.start) && range.start - ahead.start <= BUDGET;
                self.ahead.iter().find(around).cloned().unwrap_or(range)
            }
            None if self.buffered < BUDGET => self.ahead.first()?.clone(),
            None => return None,
        };
        let until = self.run_from(first.start);
        let mut block = first.start..until.min(first.start + BLOCK);
        if let Some((&next, _)) = self.blocks.range(block.start..).next() {
            block.end = block.end.min(next);
        }
        let ahead = self.ahead.iter().any(|range| range.start <= block.start && block.end <= range.end);
        self.undeclare(&block);
        let len = block.end - block.start;
        self.buffered += len;
        let data = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        self.blocks.insert(block.start, Block { data, len, taken: 0, ahead, mirror });
        Some(Want { until: until.max(block.end), block })
    }

    /// The first part of a range that no block covers.
    fn uncovered(&self, mut range: Range<u64>) -> Option<Range<u64>> {
        while let Some((start, block)) = self.blocks.range(..=range.start).next_back() {
            if start + block.len <= range.start {
                break;
            }
            range.start = start + block.len;
        }
        (range.start < range.end).then_some(range)
    }

    /// How far it is wanted without a hole from `at` on.
    fn run_from(&self, at: u64) -> u64 {
        let mut wanted: Vec<&Range<u64>> = self.demands.values().chain(&self.ahead).collect();
        wanted.sort_by_key(|range| range.start);
        let mut until = at;
        for range in wanted {
            let near = range.start <= until || until > at && range.start - until <= GAP;
            if near && range.end > until {
                until = range.end;
            }
        }
        until
    }

    /// Takes bytes that came for the block at `start`; how many belonged to it.
    pub(super) fn fill(&mut self, start: u64, bytes: &[u8]) -> usize {
        let Some(block) = self.blocks.get_mut(&start) else { return 0 };
        let room = usize::try_from(block.len).unwrap_or(usize::MAX).saturating_sub(block.data.len());
        let len = room.min(bytes.len());
        block.data.extend_from_slice(bytes.get(..len).unwrap_or_default());
        if len == room {
            let (range, mirror) = (start..start + block.len, block.mirror);
            if self.sent.len() >= REMEMBERED {
                self.sent.remove(0);
            }
            self.sent.push((range, mirror));
        }
        self.drop_if_taken(start);
        len
    }

    /// The byte that the block at `start` lacks next; `None` if it is full.
    pub(super) fn missing(&self, start: u64) -> Option<u64> {
        let block = self.blocks.get(&start)?;
        let got = block.data.len() as u64;
        (got < block.len).then_some(start + got)
    }

    /// Ends the block at `start` where it is: the rest is wanted again.
    pub(super) fn give_up(&mut self, start: u64) {
        let Some(block) = self.blocks.get_mut(&start) else { return };
        let (got, len, ahead) = (block.data.len() as u64, block.len, block.ahead);
        self.buffered -= len - got;
        block.len = got;
        self.sent.push((start..start + got, block.mirror));
        if got == 0 {
            self.blocks.remove(&start);
        } else {
            self.drop_if_taken(start);
        }
        if ahead {
            self.declare(start + got..start + len);
        }
    }

    /// Which mirror sent the bytes at `at`, if it is remembered.
    pub(super) fn sender(&self, at: u64) -> Option<usize> {
        self.sent.iter().rev().find(|(range, _)| range.contains(&at)).map(|(_, mirror)| *mirror)
    }

    /// Drops all that a mirror sent and nobody has taken: it lied once.
    pub(super) fn distrust(&mut self, mirror: usize) {
        let whole = |block: &Block| block.mirror == mirror && block.data.len() as u64 >= block.len;
        let starts: Vec<u64> =
            self.blocks.iter().filter(|(_, block)| whole(block)).map(|(at, _)| *at).collect();
        for start in starts {
            if let Some(block) = self.blocks.remove(&start) {
                self.buffered -= block.len;
                if block.ahead {
                    self.declare(start..start + block.len);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Fills what is next with what lies there: byte n is n % 251.
    fn fetch(plan: &mut Plan) -> Option<Range<u64>> {
        let want = plan.next(0)?;
        let bytes: Vec<u8> = want.block.clone().map(|at| (at % 251) as u8).collect();
        assert_eq!(plan.fill(want.block.start, &bytes), bytes.len());
        Some(want.block)
    }

    #[test]
    fn only_what_is_wanted_is_asked_for_and_readers_come_first() {
        let mut plan = Plan::default();
        assert_eq!(plan.next(0), None);
        plan.declare(10 * MIB..30 * MIB);
        assert_eq!(plan.next(0), Some(Want { block: 10 * MIB..11 * MIB, until: 30 * MIB }));
        let reader = plan.begin(50 * MIB..50 * MIB + 100);
        assert_eq!(plan.next(0), Some(Want { block: 50 * MIB..50 * MIB + 100, until: 50 * MIB + 100 }));
        let near = plan.begin(60 * MIB..60 * MIB + 50);
        let nearer = plan.begin(60 * MIB + 60..60 * MIB + 70);
        assert_eq!(plan.next(0).unwrap().until, 60 * MIB + 70, "a small hole is read through");
        for demand in [reader, near, nearer] {
            plan.end(demand);
        }
        let reader = plan.begin(13 * MIB..14 * MIB);
        assert_eq!(plan.next(0).unwrap().block, 11 * MIB..12 * MIB, "declared: from front to back");
        plan.end(reader);
        while plan.next(0).is_some() {}
        assert!(plan.buffered <= BUDGET + BLOCK, "{}", plan.buffered);
        plan.pass(&(0..100 * MIB));
        assert!(!plan.is_waited_for());
    }

    #[test]
    fn a_block_that_is_given_up_is_wanted_again_from_where_it_ends() {
        let mut plan = Plan::default();
        plan.declare(0..3000);
        assert_eq!(plan.next(0).unwrap().block, 0..3000);
        assert_eq!(plan.fill(0, &[7; 1000]), 1000);
        assert_eq!(plan.missing(0), Some(1000));
        plan.give_up(0);
        assert_eq!(plan.next(1).unwrap().block, 1000..3000);
        assert_eq!((plan.sender(5), plan.fill(1000, &[8; 5000])), (Some(0), 2000));
        assert_eq!(plan.sender(1500), Some(1));
        let reader = plan.begin(0..3000);
        let mut buf = [0; 3000];
        assert_eq!(plan.take(reader, &mut buf), 3000);
        assert!(buf[..1000].iter().all(|&b| b == 7) && buf[1000..].iter().all(|&b| b == 8));
        assert!(plan.blocks.is_empty() && plan.buffered == 0);
    }

    #[test]
    fn what_a_liar_sent_is_fetched_again() {
        let mut plan = Plan::default();
        plan.declare(0..2 * MIB);
        assert_eq!(fetch(&mut plan), Some(0..MIB));
        plan.distrust(1);
        assert_eq!(plan.blocks.len(), 1);
        plan.distrust(0);
        assert!(plan.blocks.is_empty());
        assert_eq!(plan.next(1).unwrap().block, 0..MIB);
    }

    proptest::proptest! {
        /// Whatever is declared, passed, read and given up in whatever order: readers get the right bytes, nothing that was
        /// passed is fetched again, the budget holds, and nothing is left over.
        #[test]
        fn any_order_of_reads_ends_with_the_right_bytes(
            steps in proptest::collection::vec((0..6u8, 0..64u64, 1..9u64), 1..80),
        ) {
            const UNIT: u64 = 50_000;
            let mut plan = Plan::default();
            let mut reads: Vec<(u64, u64, Vec<u8>, usize)> = Vec::new();
            for (kind, at, len) in steps {
                let range = at * UNIT..(at + len) * UNIT;
                match kind {
                    0 => plan.declare(range),
                    1 => {
                        let buf = vec![0; (range.end - range.start) as usize];
                        reads.push((plan.begin(range.clone()), range.start, buf, 0));
                    }
                    2 if reads.is_empty() => plan.pass(&range),
                    3 => {
                        if let Some(want) = plan.next(0) {
                            let half: Vec<u8> = want.block.clone().map(|at| (at % 251) as u8).collect();
                            plan.fill(want.block.start, &half[..half.len() / 2]);
                            plan.give_up(want.block.start);
                        }
                    }
                    _ => drop(fetch(&mut plan)),
                }
                for (demand, _, buf, done) in &mut reads {
                    *done += plan.take(*demand, &mut buf[*done..]);
                }
                proptest::prop_assert!(plan.buffered <= BUDGET + BLOCK + 64 * 9 * UNIT);
            }
            for _ in 0..2000 {
                for (demand, _, buf, done) in &mut reads {
                    *done += plan.take(*demand, &mut buf[*done..]);
                }
                if !plan.is_waited_for() || fetch(&mut plan).is_none() {
                    break;
                }
            }
            for (demand, at, buf, done) in &reads {
                proptest::prop_assert_eq!(*done, buf.len());
                proptest::prop_assert!(buf.iter().zip(*at..).all(|(byte, at)| *byte == (at % 251) as u8));
                plan.end(*demand);
            }
            plan.pass(&(0..1000 * UNIT));
            let held: u64 = plan.blocks.values().map(|block| block.len).sum();
            proptest::prop_assert_eq!(held, plan.buffered);
        }
    }
}
