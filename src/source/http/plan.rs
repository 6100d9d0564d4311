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
//!
//! Several connections, the lanes, take blocks side by side. What follows where the answer of a lane stands is left to that
//! lane, so a bundle without holes comes by one answer, and each further hole costs a request of whoever is free.

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
    lane: usize,
    mirror: usize,
}

/// Where the answer of a lane stands, and where it will end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reach {
    at: u64,
    end: u64,
}

impl Reach {
    /// Whether it goes on for longer than anybody may wait for what comes later in it: that of the first request, mostly.
    fn is_long(self) -> bool {
        self.end.saturating_sub(self.at) > 2 * BUDGET
    }

    /// Whether a block from `start` on comes by this answer. All of a short one was wanted when it was asked for.
    fn leads_to(self, start: u64) -> bool {
        self.at <= start && start < self.end && (!self.is_long() || start - self.at <= GAP)
    }
}

/// A connection, as the plan sees it.
#[derive(Debug, Default, Clone, Copy)]
struct Lane {
    reach: Option<Reach>,
    /// It found nothing to do.
    idle: bool,
}

/// What to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FetchRequest {
    /// The block.
    pub(super) block: Range<u64>,
    /// How far what is wanted goes on from there, for the end of the request.
    pub(super) until: u64,
}

/// Demands, declarations and blocks.
#[derive(Debug, Default)]
pub(super) struct RequestPlan {
    demands: BTreeMap<u64, Range<u64>>,
    next_demand: u64,
    /// Whether what is declared can be had only once, in its order.
    in_order: bool,
    /// What was taken or passed, from front to back, joined where it touches.
    done: Vec<Range<u64>>,
    ahead: Vec<Range<u64>>,
    blocks: BTreeMap<u64, Block>,
    buffered: u64,
    /// Which mirror sent what, of the last blocks.
    sent: Vec<(Range<u64>, usize)>,
    lanes: [Lane; LANES],
    /// Memory of blocks that were taken, for the next ones: to give it back and ask for it anew costs a fault for each page.
    spare: Vec<Vec<u8>>,
}

/// Connections at the same time. More would be unkind to servers; at 100 ms these have 40 MiB under way each second.
pub(super) const LANES: usize = 4;
/// How many blocks are remembered: more than workers hold frames.
const REMEMBERED: usize = 64;

impl RequestPlan {
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

    /// Declares all from `at` to `end` that nobody has taken or passed: it can be had only once, in its order.
    pub(super) fn declare_rest(&mut self, at: u64, end: u64) {
        self.in_order = true;
        self.declare(at..end);
        for range in self.done.clone() {
            self.undeclare(&range);
        }
    }

    /// Remembers that nobody will ask for a range again.
    fn finish(&mut self, mut range: Range<u64>) {
        let from = self.done.partition_point(|done| done.end < range.start);
        let to = self.done.partition_point(|done| done.start <= range.end);
        if let Some(touched) = self.done.get(from..to).filter(|touched| !touched.is_empty()) {
            range.start = touched.iter().map(|done| done.start).min().unwrap_or(range.start).min(range.start);
            range.end = touched.iter().map(|done| done.end).max().unwrap_or(range.end).max(range.end);
        }
        self.done.splice(from..to, [range]);
    }

    /// Says that a range will not be read, or not again: what is there of it is dropped.
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

    fn drop_if_taken(&mut self, start: u64) {
        // One that is still being filled goes when it is full.
        let done = |block: &Block| block.taken >= block.len && block.data.len() as u64 >= block.len;
        if self.blocks.get(&start).is_some_and(done)
            && let Some(block) = self.blocks.remove(&start)
        {
            self.buffered -= block.len;
            if block.data.capacity() as u64 >= BLOCK && (self.spare.len() as u64) < BUDGET / BLOCK {
                self.spare.push(block.data);
            }
        }
    }

    /// Says where the answer of a lane stands and ends; `None`: it has none.
    pub(super) fn stands(&mut self, lane: usize, answer: Option<Range<u64>>) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            // One that has none may never ask again.
            lane.idle = lane.idle && answer.is_some();
            lane.reach = answer.map(|range| Reach { at: range.start, end: range.end });
        }
    }

    /// The next block for a lane to fetch. It counts as on its way until [`fill`](Self::fill) or
    /// [`give_up`](Self::give_up) has ended it.
    pub(super) fn next(&mut self, lane: usize) -> Option<FetchRequest> {
        let first = self.candidate(lane);
        if let Some(known) = self.lanes.get_mut(lane) {
            known.idle = first.is_none();
        }
        let first = first?;
        let until = self.run_from(first.start);
        let mut block = first.start..until.min(first.start + BLOCK);
        if let Some((&next, _)) = self.blocks.range(block.start..).next() {
            block.end = block.end.min(next);
        }
        let ahead = self.ahead.iter().any(|range| range.start <= block.start && block.end <= range.end);
        self.undeclare(&block);
        let len = block.end - block.start;
        self.buffered += len;
        // Small blocks, such as headers, leave it to those that fill it.
        let mut data = if len == BLOCK { self.spare.pop().unwrap_or_default() } else { Vec::new() };
        data.clear();
        data.reserve_exact(usize::try_from(len).unwrap_or(0));
        let until = until.max(block.end);
        if let Some(known) = self.lanes.get_mut(lane) {
            let open = known.reach.filter(|reach| reach.leads_to(block.start));
            known.reach = Some(Reach { at: block.end, end: open.map_or(until, |reach| reach.end) });
        }
        self.blocks.insert(block.start, Block { data, len, taken: 0, ahead, lane, mirror: 0 });
        Some(FetchRequest { until, block })
    }

    /// What a lane should take: first what a reader waits for, but nothing that is left to another lane.
    fn candidate(&self, lane: usize) -> Option<Range<u64>> {
        let others = |start: u64| {
            let leads = |other: &Lane| other.reach.is_some_and(|reach| reach.leads_to(start));
            self.lanes.iter().enumerate().any(|(number, other)| number != lane && leads(other))
        };
        let mut waited: Vec<Range<u64>> =
            self.demands.values().filter_map(|range| self.uncovered(range.clone())).collect();
        waited.sort_by_key(|range| range.start);
        // Workers take frames in order and ask for them out of order: what is declared comes from front to back.
        let declared = |range: Range<u64>| {
            let around =
                |ahead: &&Range<u64>| ahead.contains(&range.start) && range.start - ahead.start <= BUDGET;
            self.ahead.iter().find(around).cloned().unwrap_or(range)
        };
        let room = self.buffered < BUDGET;
        if self.in_order {
            // What the answer has passed by comes by another request or not at all; to go on would bring the rest for nothing.
            let declared = |range: &&Range<u64>| self.ahead.iter().any(|ahead| ahead.contains(&range.start));
            if let Some(lost) = waited.iter().find(|range| !declared(range)) {
                return (lane == 0).then(|| lost.clone());
            }
            return self.ahead.first().filter(|_| lane == 0 && (room || !waited.is_empty())).cloned();
        }
        let own = self.lanes.get(lane).and_then(|lane| lane.reach);
        let long = own.is_some_and(Reach::is_long);
        // To leave an answer costs a request, and what is under way of it; to read on costs nothing.
        let idle = self.lanes.iter().enumerate().any(|(number, other)| number != lane && other.idle);
        if let Some(own) = own.filter(|_| idle || !long) {
            // One that another lane has overtaken would ask anew for each block, and lose what is under way each time.
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
        // The answer of the first lane may go on to the end of the file, and may be the only one that the server gives: it
        // is left for a reader that waits, not for what may be wanted.
        let worth = |range: &&Range<u64>| room && (!long || own.is_some_and(|own| own.leads_to(range.start)));
        (waited.into_iter().map(declared))
            .chain(self.ahead.iter().filter(worth).cloned())
            .find(|range| !others(range.start))
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

    /// Takes bytes that came from `mirror` for the block at `start`; how many belonged to it.
    pub(super) fn fill(&mut self, start: u64, bytes: &[u8], mirror: usize) -> usize {
        let Some(block) = self.blocks.get_mut(&start) else { return 0 };
        block.mirror = mirror;
        let room = usize::try_from(block.len).unwrap_or(usize::MAX).saturating_sub(block.data.len());
        let len = room.min(bytes.len());
        block.data.extend_from_slice(bytes.get(..len).unwrap_or_default());
        if len == room {
            let range = start..start + block.len;
            self.remember(range, mirror);
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
        let (got, len, ahead, lane) = (block.data.len() as u64, block.len, block.ahead, block.lane);
        self.buffered -= len - got;
        block.len = got;
        let mirror = block.mirror;
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

    /// Which mirrors sent the bytes of a range, as far as it is remembered; forgets it, since they are fetched again or
    /// never.
    pub(super) fn senders(&mut self, range: &Range<u64>) -> Vec<usize> {
        let overlaps = |sent: &Range<u64>| sent.start < range.end && range.start < sent.end;
        let mut senders: Vec<usize> =
            self.sent.extract_if(.., |(sent, _)| overlaps(sent)).map(|(_, mirror)| mirror).collect();
        // A reader may have its bytes before the block that they are part of is full.
        let begun = |(start, block): &(&u64, &Block)| overlaps(&(**start..**start + block.data.len() as u64));
        senders.extend(self.blocks.iter().filter(begun).map(|(_, block)| block.mirror));
        senders.sort_unstable();
        senders.dedup();
        senders
    }

    /// Drops all that a mirror sent and nobody has taken: it lied once. Readers ask for it when they need it.
    pub(super) fn distrust(&mut self, mirror: usize) {
        let of_it = |block: &Block| block.mirror == mirror && !block.data.is_empty();
        let dropped: Vec<_> = self.blocks.extract_if(.., |_, block| of_it(block)).collect();
        for (start, block) in dropped {
            self.buffered -= block.len;
            let got = block.data.len() as u64;
            if block.ahead && got < block.len {
                self.declare(start + got..start + block.len);
            }
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
