//! Bytes to request from a server next, and received bytes that no reader has taken yet. Pure: no clock, no socket.
//!
//! ```text
//!   reads that wait ──┐
//!                     ├─▶ next(): a block of at most 1 MiB, and how far a request may reach ─▶ filled ─▶ taken, once
//!   declared ahead ───┘
//! ```
//!
//! Bytes that a reader waits for are fetched first. Declared ranges are fetched ahead of the readers, as far as the
//! budget allows. Bytes that are neither waited for nor declared are never requested, except in gaps that cost less than
//! another request.
//!
//! Several connections, the lanes, take blocks in parallel. Bytes that follow the position of a lane's response are left
//! to that lane. So a bundle without holes comes in one response, and each hole costs one request of a free lane.

use std::collections::BTreeMap;
use std::ops::Range;

use super::spare::Spare;

/// Maximum size of a block in bytes, all of which is allocated at once.
const BLOCK: u64 = 1 << 20;
/// Bytes by which a block may exceed [`BLOCK`] if it then ends with a read: a frame that does not compress is a little longer
/// than its size.
const SLACK: u64 = 64 << 10;
/// Bytes in blocks from which on nothing more is fetched ahead of the readers.
pub(super) const BUDGET: u64 = 8 << 20;
/// Largest gap in bytes between two wanted ranges that is read through: it costs less than a request and its response.
pub(super) const GAP: u64 = 16 << 10;

/// Bytes that are on their way or wait to be taken.
#[derive(Debug)]
struct Block {
    data: Vec<u8>,
    len: u64,
    /// Bytes that readers took or passed.
    taken: u64,
    /// Whether it is part of a declared range.
    ahead: bool,
    lane: usize,
    mirror: usize,
}

/// Position of a lane's response, and where it will end, as offsets in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reach {
    at: u64,
    end: u64,
}

impl Reach {
    /// Whether too much of it is left for a reader to wait for its later bytes; mostly so for the first request.
    fn is_long(self) -> bool {
        self.end.saturating_sub(self.at) > 2 * BUDGET
    }

    /// Whether a block at `start` is left to this response. All of a short response was wanted when it was requested; of
    /// a long one, only the next bytes count.
    fn leads_to(self, start: u64) -> bool {
        self.at <= start && start < self.end && (!self.is_long() || start - self.at <= GAP)
    }
}

/// State of a connection in the plan.
#[derive(Debug, Default, Clone, Copy)]
struct Lane {
    /// Its response, open or requested; `None`: it has none.
    reach: Option<Reach>,
    /// Whether it found no block to fetch.
    idle: bool,
}

/// What there is of a block that has just the bytes that a reader waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WholeBlock {
    /// All of it, and the reader has it now.
    Taken,
    /// It is on its way.
    Coming,
    /// There is no such block: the bytes come in others, or none was requested yet.
    Other,
}

/// Block to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FetchRequest {
    /// Range of the block in the file.
    pub(super) block: Range<u64>,
    /// End of the wanted bytes that follow from there, for the end of the request.
    pub(super) until: u64,
}

/// Demands (ranges that readers wait for), declared ranges, and blocks.
#[derive(Debug, Default)]
pub(super) struct RequestPlan {
    demands: BTreeMap<u64, Range<u64>>,
    next_demand: u64,
    /// Whether declared bytes come only once, in their order in the file.
    in_order: bool,
    /// Ranges that were taken or passed: ascending, joined where they touch.
    done: Vec<Range<u64>>,
    ahead: Vec<Range<u64>>,
    blocks: BTreeMap<u64, Block>,
    buffered: u64,
    /// Ranges of the last blocks, and which mirror sent each.
    sent: Vec<(Range<u64>, usize)>,
    lanes: [Lane; LANES],
    /// Memory of blocks that were taken.
    spare: Spare,
    /// Offsets, ascending, at which larger reads begin. A block ends there, so that it can be handed over.
    begins: Vec<u64>,
}

/// Number of connections at the same time. More would be a burden on servers; at a round trip of 100 ms, these
/// request 40 MiB each second.
pub(super) const LANES: usize = 4;
/// Number of blocks whose mirror is remembered: more than workers hold frames.
const REMEMBERED: usize = 64;

impl RequestPlan {
    /// Declares that all of a range will be read soon.
    pub(super) fn declare(&mut self, range: Range<u64>) {
        self.undeclare(&range);
        self.ahead.push(range);
        // Bytes that are here already, or on their way, are not fetched twice.
        let covered: Vec<_> = self.blocks.iter().map(|(start, block)| *start..start + block.len).collect();
        for block in covered {
            self.undeclare(&block);
        }
        self.ahead.sort_by_key(|range| range.start);
    }

    /// Declares all bytes from `at` to `end` that were neither taken nor passed: they come only once, in their order.
    pub(super) fn declare_rest(&mut self, at: u64, end: u64) {
        self.in_order = true;
        self.declare(at..end);
        for range in self.done.clone() {
            self.undeclare(&range);
        }
    }

    /// Records that no reader will request a range again.
    fn finish(&mut self, mut range: Range<u64>) {
        let from = self.done.partition_point(|done| done.end < range.start);
        let to = self.done.partition_point(|done| done.start <= range.end);
        if let Some(touched) = self.done.get(from..to).filter(|touched| !touched.is_empty()) {
            range.start = touched.iter().map(|done| done.start).min().unwrap_or(range.start).min(range.start);
            range.end = touched.iter().map(|done| done.end).max().unwrap_or(range.end).max(range.end);
        }
        self.done.splice(from..to, [range]);
    }

    /// Records that a range will not be read, or not again; bytes of it that are here are dropped.
    pub(super) fn pass(&mut self, range: &Range<u64>) {
        self.finish(range.clone());
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

    /// Registers a reader that waits for a range. Returns its number, which is valid until [`end`](Self::end).
    pub(super) fn begin(&mut self, range: Range<u64>) -> u64 {
        self.next_demand += 1;
        self.demands.insert(self.next_demand, range);
        self.next_demand
    }

    /// Removes a reader that has all its bytes or has stopped waiting.
    pub(super) fn end(&mut self, demand: u64) {
        self.demands.remove(&demand);
    }

    /// Whether any reader waits.
    pub(super) fn is_waited_for(&self) -> bool {
        self.demands.values().any(|range| range.start < range.end)
    }

    /// Copies what is here of a demand into `buf`, the rest of the reader's buffer. Returns the number of bytes.
    pub(super) fn take(&mut self, demand: u64, buf: &mut [u8]) -> usize {
        let mut copied = 0;
        let begin = self.demands.get(&demand).map_or(0, |range| range.start);
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
        if copied > 0 {
            self.finish(begin..begin + copied as u64);
        }
        copied
    }

    /// Hands over the block that has just the bytes of a demand of which nothing was taken. What `buf` held is lost.
    pub(super) fn take_block(&mut self, demand: u64, buf: &mut Vec<u8>) -> WholeBlock {
        let Some(range) = self.demands.get(&demand).cloned() else { return WholeBlock::Other };
        let fits = |block: &Block| range.start + block.len == range.end && block.taken == 0;
        let Some(block) = self.blocks.get_mut(&range.start).filter(|block| fits(block)) else {
            // None was requested yet; the one that will be may be just this.
            return if self.uncovered(range.clone()) == Some(range) {
                WholeBlock::Coming
            } else {
                WholeBlock::Other
            };
        };
        if (block.data.len() as u64) < block.len {
            return WholeBlock::Coming;
        }
        std::mem::swap(buf, &mut block.data);
        block.taken = block.len;
        if let Some(range) = self.demands.get_mut(&demand) {
            range.start = range.end;
        }
        self.remove(range.start);
        self.finish(range);
        WholeBlock::Taken
    }

    /// Declares the offsets, ascending, at which larger reads will begin.
    pub(super) fn begin_blocks_at(&mut self, offsets: Vec<u64>) {
        self.begins = offsets;
    }

    /// Range of the block at `start`; `None` if there is none.
    pub(super) fn block(&self, start: u64) -> Option<Range<u64>> {
        self.blocks.get(&start).map(|block| start..start + block.len)
    }

    /// Readers that wait and to which new bytes of a block are of use; `full`: there are all of them now.
    pub(super) fn served(&self, block: &Range<u64>, full: bool) -> Vec<u64> {
        let of_use = |range: &Range<u64>| range.start < block.end && block.start < range.end;
        let waiting = self.demands.iter().filter(|(_, range)| of_use(range) && (full || *range != block));
        waiting.map(|(demand, _)| *demand).collect()
    }

    /// Whether all of a range is here or on its way.
    pub(super) fn covers(&self, range: &Range<u64>) -> bool {
        self.uncovered(range.clone()).is_none()
    }

    fn drop_if_taken(&mut self, start: u64) {
        // A block that is still being filled is dropped once it is full.
        let done = |block: &Block| block.taken >= block.len && block.data.len() as u64 >= block.len;
        if self.blocks.get(&start).is_some_and(done) {
            self.remove(start);
        }
    }

    fn remove(&mut self, start: u64) {
        if let Some(block) = self.blocks.remove(&start) {
            self.buffered -= block.len;
            self.spare.keep(block.data, BUDGET);
        }
    }

    /// End of a block from `start` on, of which bytes are wanted up to `until`: where a larger read begins or the wanted bytes
    /// end, if that is not far, else at its maximum size.
    fn block_end(&self, start: u64, until: u64) -> u64 {
        let next = self.begins.partition_point(|begin| *begin <= start);
        let end = self.begins.get(next).map_or(until, |begin| until.min(*begin));
        if end - start <= BLOCK + SLACK { end } else { start + BLOCK }
    }

    /// Records position and end of a lane's response; `None`: it has none.
    pub(super) fn stands(&mut self, lane: usize, answer: Option<Range<u64>>) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            // A lane without a response may never take a block again, so it does not count as idle.
            lane.idle = lane.idle && answer.is_some();
            lane.reach = answer.map(|range| Reach { at: range.start, end: range.end });
        }
    }

    /// Next block for a lane to fetch; `None`: there is none now. It counts as on its way until [`fill`](Self::fill) has
    /// filled it or [`give_up`](Self::give_up) has ended it.
    pub(super) fn next(&mut self, lane: usize) -> Option<FetchRequest> {
        let first = self.candidate(lane);
        if let Some(known) = self.lanes.get_mut(lane) {
            known.idle = first.is_none();
        }
        let first = first?;
        let until = self.run_from(first.start);
        let mut block = first.start..self.block_end(first.start, until);
        if let Some((&next, _)) = self.blocks.range(block.start..).next() {
            block.end = block.end.min(next);
        }
        let ahead = self.ahead.iter().any(|range| range.start <= block.start && block.end <= range.end);
        self.undeclare(&block);
        let len = block.end - block.start;
        self.buffered += len;
        let data = self.spare.take(len);
        let until = until.max(block.end);
        if let Some(known) = self.lanes.get_mut(lane) {
            let open = known.reach.filter(|reach| reach.leads_to(block.start));
            known.reach = Some(Reach { at: block.end, end: open.map_or(until, |reach| reach.end) });
        }
        self.blocks.insert(block.start, Block { data, len, taken: 0, ahead, lane, mirror: 0 });
        Some(FetchRequest { until, block })
    }

    /// Range that a lane should fetch from next: first what a reader waits for, but nothing that is left to another
    /// lane.
    fn candidate(&self, lane: usize) -> Option<Range<u64>> {
        let others = |start: u64| {
            let leads = |other: &Lane| other.reach.is_some_and(|reach| reach.leads_to(start));
            self.lanes.iter().enumerate().any(|(number, other)| number != lane && leads(other))
        };
        let mut waited: Vec<Range<u64>> =
            self.demands.values().filter_map(|range| self.uncovered(range.clone())).collect();
        waited.sort_by_key(|range| range.start);
        // Workers take frames in order but read them out of order, so declared bytes are fetched from front to back.
        let declared = |range: Range<u64>| {
            let around =
                |ahead: &&Range<u64>| ahead.contains(&range.start) && range.start - ahead.start <= BUDGET;
            self.ahead.iter().find(around).cloned().unwrap_or(range)
        };
        let room = self.buffered < BUDGET;
        if self.in_order {
            // Bytes that the response has passed come by another request or not at all. Reading on would fetch the rest
            // for nothing.
            let declared = |range: &&Range<u64>| self.ahead.iter().any(|ahead| ahead.contains(&range.start));
            if let Some(lost) = waited.iter().find(|range| !declared(range)) {
                return (lane == 0).then(|| lost.clone());
            }
            return self.ahead.first().filter(|_| lane == 0 && (room || !waited.is_empty())).cloned();
        }
        let own = self.lanes.get(lane).and_then(|lane| lane.reach);
        let long = own.is_some_and(Reach::is_long);
        // Leaving a response costs a request, and the bytes of it that are on their way; reading on costs nothing.
        let idle = self.lanes.iter().enumerate().any(|(number, other)| number != lane && other.idle);
        if let Some(own) = own.filter(|_| idle || !long) {
            // A lane that another one has overtaken would send a request for each block, and lose the bytes on their way
            // each time.
            let overtaken = |start: u64| {
                let closer = |other: &Reach| other.at > own.at && other.leads_to(start);
                start.saturating_sub(own.at) > GAP
                    && self.lanes.iter().filter_map(|lane| lane.reach.as_ref()).any(closer)
            };
            let led = |range: &&Range<u64>| own.leads_to(range.start) && !overtaken(range.start);
            let first = self.ahead.iter().chain(&waited).filter(led).min_by_key(|range| range.start);
            if first.is_some() && (room || waited.iter().any(|range| led(&range))) {
                return first.cloned();
            }
        }
        // The response of the first lane may go on to the end of the file, and may be the only one that the server
        // gives. It is abandoned for a reader that waits, but not for bytes that are only declared.
        let worth = |range: &&Range<u64>| room && (!long || own.is_some_and(|own| own.leads_to(range.start)));
        (waited.into_iter().map(declared))
            .chain(self.ahead.iter().filter(worth).cloned())
            .find(|range| !others(range.start))
    }

    /// Rest of a range from its first byte that no block covers; `None` if blocks cover all of it.
    fn uncovered(&self, mut range: Range<u64>) -> Option<Range<u64>> {
        while let Some((start, block)) = self.blocks.range(..=range.start).next_back() {
            if start + block.len <= range.start {
                break;
            }
            range.start = start + block.len;
        }
        (range.start < range.end).then_some(range)
    }

    /// End of the wanted bytes from `at` on, without a hole larger than [`GAP`].
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

    /// The block at `start` that `lane` fetches; `None` if it is gone. Another lane may fetch a new one from the same offset,
    /// after the bytes of the first one were dropped.
    fn of_lane(&mut self, lane: usize, start: u64) -> Option<&mut Block> {
        self.blocks.get_mut(&start).filter(|block| block.lane == lane)
    }

    /// Stores bytes that `lane` received from `mirror` in its block at `start`. Returns how many belonged to it.
    pub(super) fn fill(&mut self, lane: usize, start: u64, bytes: &[u8], mirror: usize) -> usize {
        let Some(block) = self.of_lane(lane, start) else { return 0 };
        let (former, got) = (std::mem::replace(&mut block.mirror, mirror), block.data.len());
        let room = usize::try_from(block.len).unwrap_or(usize::MAX).saturating_sub(got);
        let len = room.min(bytes.len());
        block.data.extend_from_slice(bytes.get(..len).unwrap_or_default());
        let whole = start..start + block.len;
        if former != mirror {
            self.remember(start..start + got as u64, former);
        }
        if len == room {
            self.remember(whole, mirror);
        }
        self.drop_if_taken(start);
        len
    }

    /// Offset of the next byte that the block of `lane` at `start` lacks; `None` if it is full or gone.
    pub(super) fn missing(&mut self, lane: usize, start: u64) -> Option<u64> {
        let block = self.of_lane(lane, start)?;
        let got = block.data.len() as u64;
        (got < block.len).then_some(start + got)
    }

    /// Ends the block of `lane` at `start` after the bytes that it has; the rest is wanted again.
    pub(super) fn give_up(&mut self, lane: usize, start: u64) {
        let Some(block) = self.of_lane(lane, start) else { return };
        let (got, len, ahead, mirror) = (block.data.len() as u64, block.len, block.ahead, block.mirror);
        block.len = got;
        self.buffered -= len - got;
        self.remember(start..start + got, mirror);
        if got == 0 {
            self.blocks.remove(&start);
        } else {
            self.drop_if_taken(start);
        }
        if ahead {
            self.declare(start + got..start + len);
        }
        self.stands(lane, None);
    }

    fn remember(&mut self, range: Range<u64>, mirror: usize) {
        if range.is_empty() {
            return;
        }
        if self.sent.len() >= REMEMBERED {
            self.sent.remove(0);
        }
        self.sent.push((range, mirror));
    }

    /// Mirrors that sent the bytes of a range, as far as they are remembered. Forgets them for this range alone, since its
    /// bytes are fetched again or never: readers of other bytes of the same block may find them wrong a moment later.
    pub(super) fn senders(&mut self, range: &Range<u64>) -> Vec<usize> {
        let overlaps = |sent: &Range<u64>| sent.start < range.end && range.start < sent.end;
        let asked: Vec<_> = self.sent.extract_if(.., |(sent, _)| overlaps(sent)).collect();
        let mut senders: Vec<usize> = asked.iter().map(|(_, mirror)| *mirror).collect();
        for (sent, mirror) in asked {
            self.remember(sent.start..range.start, mirror);
            self.remember(range.end..sent.end, mirror);
        }
        // A reader may have its bytes before the block that contains them is full.
        let begun = |(start, block): &(&u64, &Block)| overlaps(&(**start..**start + block.data.len() as u64));
        senders.extend(self.blocks.iter().filter(begun).map(|(_, block)| block.mirror));
        senders.sort_unstable();
        senders.dedup();
        senders
    }

    /// Drops all bytes from a mirror that no reader has taken, since it sent wrong bytes once. They are fetched again
    /// when a reader waits for them.
    pub(super) fn distrust(&mut self, mirror: usize) {
        let of_it = |block: &Block| block.mirror == mirror && !block.data.is_empty();
        let dropped: Vec<_> = self.blocks.extract_if(.., |_, block| of_it(block)).collect();
        for (start, block) in dropped {
            self.buffered -= block.len;
            let got = block.data.len() as u64;
            if got < block.len {
                // A reader may have some of them, although the block was not full.
                self.remember(start..start + got, mirror);
                if block.ahead {
                    self.declare(start + got..start + block.len);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
