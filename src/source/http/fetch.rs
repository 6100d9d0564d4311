//! Tasks that fetch from servers. Each takes blocks from the plan, one after the other, and recovers from failures of
//! the link.
//!
//! A response is read on as long as the next wanted byte follows its position; only a hole costs another request. So a
//! server that gives out a file only once, or does not serve ranges, can serve a transfer from front to back with its
//! first response. Further lanes start only once a server has answered a second request: then holes are fetched in
//! parallel.
//!
//! Only the first lane decides whether the transfer goes on or fails. The others help: a block that fails there returns
//! to the plan, and the first lane meets the failure itself if it persists. So a server that accepts one connection per
//! client can serve a transfer too.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Url;
use tokio::task::JoinSet;

use super::client::{FileResponse, chain};
use super::mirrors::Mirrors;
use super::plan::{FetchRequest, GAP, LANES};
use super::shared::{FailedTransfer, Head, Shared};
use super::transfer_error::{RateMeter, TransferError, pause};
use crate::bundle::archive::{BLOCK, END_LEN};

/// Bytes stored since the last failure after which the count of retries starts again from zero.
const PROGRESS: u64 = 64 << 10;
/// Consecutive failures after which a lane other than the first one ends.
const FAILURES_MAX: u32 = 3;

/// Response that is being read.
struct Body {
    answer: FileResponse,
    /// Bytes that were received but not used yet.
    rest: bytes::Bytes,
    /// Offset in the file of the next byte.
    at: u64,
    /// Number of the address that sends it.
    mirror: usize,
    /// Number of zero bytes at the end of what was received; only counted where the length is unknown.
    zeroes: usize,
}

/// Task that reads one response at a time.
pub(super) struct Lane {
    shared: Arc<Shared>,
    mirrors: Arc<Mirrors>,
    /// Number of the lane; 0 is the first one.
    number: usize,
    body: Option<Body>,
    /// Number of consecutive retries; progress of [`PROGRESS`] bytes sets it back to zero.
    retry: u32,
    /// Bytes stored since the last failure.
    gained: u64,
    /// Whether a further request was refused while the first response was open: that response is then read in order.
    once: bool,
    meter: RateMeter,
    chance: RandomState,
}

/// Runs the lanes until the first one fails, and stores its failure for the readers. The first request is for `first`
/// bytes; `None`: for the whole file.
pub(super) async fn run(shared: Arc<Shared>, urls: Vec<Url>, first: Option<u64>) {
    let mirrors = Arc::new(Mirrors::new(urls));
    let lane = |number| Lane::new(Arc::clone(&shared), Arc::clone(&mirrors), number);
    // The tasks of this set end when it is dropped with this function.
    let mut helpers = JoinSet::new();
    for number in 1..LANES {
        helpers.spawn(lane(number).help());
    }
    let failed = lane(0).lead(first).await;
    shared.fail(failed);
}

impl Lane {
    fn new(shared: Arc<Shared>, mirrors: Arc<Mirrors>, number: usize) -> Self {
        Self {
            shared,
            mirrors,
            number,
            body: None,
            retry: 0,
            gained: 0,
            once: false,
            meter: RateMeter::default(),
            chance: RandomState::new(),
        }
    }

    /// Runs the first lane until it fails.
    async fn lead(mut self, first: Option<u64>) -> FailedTransfer {
        match self.head(first).await {
            Ok(()) => self.blocks().await,
            Err(failed) => failed,
        }
    }

    /// Runs a lane other than the first one until too many of its blocks fail one after the other.
    async fn help(mut self) {
        self.mirrors.known_to_answer_again().await;
        let mut failures = 0;
        while failures < FAILURES_MAX {
            let want = self.want().await;
            let start = want.block.start;
            match self.block(&want).await {
                Ok(()) => failures = 0,
                Err(_) => {
                    self.drop_body();
                    self.shared.give_up(self.number, start);
                    failures += 1;
                    tokio::time::sleep(pause(failures + 1, self.chance.hash_one(failures), None)).await;
                }
            }
        }
        self.shared.stands(self.number, None);
    }

    /// Obtains the first response and stores what it says of the file; its body is read by [`blocks`](Self::blocks).
    async fn head(&mut self, first: Option<u64>) -> Result<(), FailedTransfer> {
        loop {
            match self.request(0, first).await {
                Ok(body) => {
                    let (len, ranges) = (body.answer.total, body.answer.ranges);
                    let mirror = body.mirror;
                    self.shared.stands(self.number, Some(0..body.answer.end.unwrap_or(u64::MAX)));
                    self.body = Some(body);
                    self.shared.answered(Head { len, ranges, mirror });
                    return Ok(());
                }
                Err(trouble) => self.recover(trouble, 0).await?,
            }
        }
    }

    async fn blocks(&mut self) -> FailedTransfer {
        loop {
            for liar in self.shared.liars() {
                if let Err(failed) = self.leave(liar, None, "it sent other bytes than the bundle has") {
                    return failed;
                }
            }
            let want = self.want().await;
            let start = want.block.start;
            if let Err(trouble) = self.block(&want).await {
                if let (TransferError::Once, Some(body)) = (&trouble, &self.body) {
                    let (at, end) = (body.at, body.answer.end.unwrap_or(u64::MAX));
                    self.once = true;
                    self.shared.give_up(self.number, start);
                    self.shared.stands(self.number, Some(at..end));
                    self.shared.read_in_order(at);
                    continue;
                }
                let at = self.shared.missing(self.number, start).unwrap_or(start);
                self.drop_body();
                self.shared.give_up(self.number, start);
                if let Err(failed) = self.recover(trouble, at).await {
                    return failed;
                }
            }
        }
    }

    /// Waits until the plan has a block for this lane.
    async fn want(&mut self) -> FetchRequest {
        loop {
            let shared = Arc::clone(&self.shared);
            // Created before the plan is read, so that a change between reading and waiting is not missed.
            let change = shared.work.notified();
            if self.body.as_ref().is_some_and(|body| self.shared.is_left(body.mirror)) {
                self.drop_body();
            }
            match self.shared.next(self.number) {
                Some(want) => return want,
                None => change.await,
            }
        }
    }

    fn drop_body(&mut self) {
        self.body = None;
        self.shared.stands(self.number, None);
    }

    async fn block(&mut self, want: &FetchRequest) -> Result<(), TransferError> {
        let start = want.block.start;
        while let Some(at) = self.shared.missing(self.number, start) {
            if self.body.as_ref().is_some_and(|body| self.shared.is_left(body.mirror)) {
                return Err(TransferError::Broken("the address is asked no more".to_owned()));
            }
            self.seek(at, want.until).await?;
            let mirror = self.body.as_ref().map_or(0, |body| body.mirror);
            let Some(chunk) = self.chunk().await? else {
                // The end of a file of unknown length.
                self.shared.end_at(at);
                return Ok(());
            };
            let used = self.shared.fill(self.number, start, &chunk, mirror);
            self.gained += used as u64;
            if let Some(body) = &mut self.body {
                body.rest = chunk.slice(used..);
                body.at += used as u64;
            }
            if let Some((slow, faster)) = self.mirrors.compare(mirror) {
                self.shared.notice(&format!("{slow}; {faster} is asked instead"));
                self.body = None;
            }
        }
        Ok(())
    }

    /// Provides a response at byte `at`: the open one if it reaches that byte soon or no other is possible, else a new
    /// one.
    async fn seek(&mut self, at: u64, until: u64) -> Result<(), TransferError> {
        let leads = |body: &Body| body.at <= at && body.answer.end.is_none_or(|end| at < end);
        let open = self.body.as_ref().filter(|body| leads(body));
        let near = open.is_some_and(|body| at - body.at <= GAP || self.once || !body.answer.ranges);
        if !near {
            // The open response is kept until the new one is accepted: a server may give out a file only once.
            let leads = open.is_some();
            match self.request(at, (until != u64::MAX).then_some(until)).await {
                Ok(body) => {
                    if body.answer.ranges {
                        self.mirrors.answered_again();
                    }
                    self.body = Some(body);
                }
                Err(TransferError::Answer(_)) if leads => return Err(TransferError::Once),
                Err(trouble) => return Err(trouble),
            }
        }
        while self.body.as_ref().is_some_and(|body| body.at < at) {
            let Some(chunk) = self.chunk().await? else {
                return Err(TransferError::Changed(format!("it ends before byte {at}")));
            };
            if let Some(body) = &mut self.body {
                let passed = usize::try_from(at - body.at).unwrap_or(usize::MAX).min(chunk.len());
                body.rest = chunk.slice(passed..);
                body.at += passed as u64;
            }
        }
        Ok(())
    }

    /// Next bytes of the open response; `None` at the end of a file of unknown length.
    async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, TransferError> {
        let (limits, stall_limit) = (self.shared.limits, self.stall_limit());
        let Some(body) = &mut self.body else {
            return Err(TransferError::Broken("no answer is open".to_owned()));
        };
        if !body.rest.is_empty() {
            return Ok(Some(std::mem::take(&mut body.rest)));
        }
        let begun = Instant::now();
        let chunk = within(stall_limit, body.answer.response.chunk()).await?;
        match chunk.map_err(|error| TransferError::Broken(chain(&error)))? {
            Some(chunk) => {
                self.shared.alive();
                self.mirrors.took(body.mirror, chunk.len() as u64, begun.elapsed());
                if body.answer.end.is_none() {
                    let other = chunk.iter().rposition(|byte| *byte != 0);
                    body.zeroes = other.map_or(body.zeroes + chunk.len(), |at| chunk.len() - at - 1);
                }
                let slow = self.meter.too_slow(
                    chunk.len() as u64,
                    begun.elapsed(),
                    limits.least_rate,
                    limits.least_rate_time,
                );
                match slow {
                    Some(rate) => Err(TransferError::Slow {
                        rate,
                        least: limits.least_rate,
                        over: limits.least_rate_time,
                    }),
                    None => Ok(Some(chunk)),
                }
            }
            None if body.answer.end.is_some_and(|end| body.at < end) => {
                Err(TransferError::Broken("the body ended early".to_owned()))
            }
            // Without a length, a connection that breaks looks like the end of the file. Its first block was judged by its
            // reader before.
            None if body.answer.end.is_none()
                && self.shared.is_archive
                && body.at >= BLOCK as u64
                && body.zeroes < END_LEN =>
            {
                Err(TransferError::Broken("the body ended before the archive in it".to_owned()))
            }
            None if body.answer.end.is_none() => Ok(None),
            None => Err(TransferError::Broken("the answer is at its end".to_owned())),
        }
    }

    /// Timeout of the wait for the next byte: shorter where another address can be used.
    fn stall_limit(&self) -> Duration {
        let stall = self.shared.limits.stall;
        if self.mirrors.state().alive > 1 { stall / 3 } else { stall }
    }

    async fn request(&mut self, at: u64, until: Option<u64>) -> Result<Body, TransferError> {
        let limits = self.shared.limits;
        let asked = self.mirrors.current();
        let get = self.shared.clients.get(&asked.url, at, until, asked.validator.as_ref());
        // A connection has a limit of its own; after it, the header may take as long as any byte. Hence the sum.
        let result = within(self.stall_limit() + limits.connect, get).await.and_then(|answer| answer);
        let answer = match result {
            Err(trouble) => {
                let refused = matches!(trouble, TransferError::Answer(_));
                if self.mirrors.failed(&asked, refused) && refused {
                    let problem =
                        format!("{}; its other URL, before or after a redirect, is next", trouble.problem());
                    return Err(TransferError::Broken(problem));
                }
                return Err(trouble);
            }
            Ok(answer) => answer,
        };
        self.shared.alive();
        if let Some(problem) = asked.validator.as_ref().and_then(|known| known.differs(&answer.validator)) {
            return Err(TransferError::Changed(problem));
        }
        if let (Some(len), Some(total)) = (self.shared.len(), answer.total)
            && len != total
        {
            let problem = format!("it had {len} bytes, it has {total}");
            return Err(if asked.validator.is_some() {
                TransferError::Changed(problem)
            } else {
                TransferError::Answer(format!("another file: {problem}"))
            });
        }
        self.mirrors.answered(asked.mirror, &answer);
        Ok(Body { at: answer.start, rest: bytes::Bytes::new(), answer, mirror: asked.mirror, zeroes: 0 })
    }

    /// Handles a failure: waits before the next try, stops using the address, or ends the transfer with an error.
    async fn recover(&mut self, trouble: TransferError, at: u64) -> Result<(), FailedTransfer> {
        self.drop_body();
        if self.gained >= PROGRESS {
            self.retry = 0;
        }
        self.gained = 0;
        self.meter = RateMeter::default();
        let state = self.mirrors.state();
        let failed = |trouble: TransferError, retries| FailedTransfer {
            trouble,
            url: state.shown.clone(),
            at,
            retries,
        };
        if !trouble.may_pass(state.answered) {
            let problem = trouble.problem();
            let host = trouble.is_of_server().then_some(state.host.as_str());
            let left = self.leave(state.current, host, &problem);
            return left.map_err(|_| failed(trouble, self.retry));
        }
        self.retry += 1;
        let most = self.shared.limits.retries.saturating_mul(state.alive);
        if self.retry > most {
            return Err(failed(trouble, most));
        }
        let asked = if let TransferError::Busy(_, asked) = &trouble { *asked } else { None };
        self.mirrors.go_on();
        let wait = if self.retry.is_multiple_of(state.alive) {
            pause(self.retry / state.alive, self.chance.hash_one(self.retry), asked)
        } else {
            Duration::ZERO
        };
        let problem = format!("{}, byte {at}: {}", state.host, trouble.problem());
        self.shared.retrying(&state.host, &problem, self.retry, most, wait);
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Stops using an address; an error if it was the last one. `host`: named instead of the address, if no file of it can be
    /// had.
    fn leave(&mut self, which: usize, host: Option<&str>, problem: &str) -> Result<(), FailedTransfer> {
        let Some(shown) = self.mirrors.leave(which) else { return Ok(()) };
        self.shared.left(which);
        if self.mirrors.state().alive == 0 {
            let trouble = TransferError::Answer(problem.to_owned());
            return Err(FailedTransfer { trouble, url: shown, at: 0, retries: 0 });
        }
        self.shared.notice(&format!("{} is asked no more: {problem}", host.unwrap_or(&shown)));
        Ok(())
    }
}

/// Result of `work`; [`TransferError::Stalled`] if it takes longer than `limit`.
async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, TransferError> {
    tokio::time::timeout(limit, work).await.map_err(|_| TransferError::Stalled(limit))
}
