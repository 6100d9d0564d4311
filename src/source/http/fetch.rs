//! The one task that talks to servers: takes blocks off the plan, one after the other, and survives what a link does.
//!
//! One answer is read for as long as what is wanted follows where it stands; only a hole costs another request. So a server
//! that gives a file out once, or knows no ranges, serves a transfer from front to back with the very first answer.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Url;

use super::client::{Answer, chain};
use super::header::Validator;
use super::plan::{GAP, Want};
use super::shared::{Failed, Head, Shared};
use super::trouble::{RateMeter, Trouble, pause};
use crate::source::address::shown;

/// Progress after which the retries count from the beginning again.
const PROGRESS: u64 = 64 << 10;

/// What is known of one address.
struct Mirror {
    /// As it was given.
    url: Url,
    /// Where redirects led last; asked first, until it fails.
    led: Option<Url>,
    /// The version of the file there.
    validator: Option<Validator>,
    /// Not asked again.
    left: bool,
}

/// An answer that is being read.
struct Body {
    answer: Answer,
    /// Bytes that came and were not wanted yet.
    rest: bytes::Bytes,
    /// The byte of the file that comes next.
    at: u64,
}

pub(super) struct Fetcher {
    shared: Arc<Shared>,
    mirrors: Vec<Mirror>,
    current: usize,
    body: Option<Body>,
    /// Tries in a row that brought nothing.
    retry: u32,
    gained: u64,
    /// A further request was refused while the first answer went on: read through holes from now on.
    once: bool,
    meter: RateMeter,
    chance: RandomState,
}

impl Fetcher {
    pub(super) fn new(shared: Arc<Shared>, urls: Vec<Url>) -> Self {
        let mirror = |url| Mirror { url, led: None, validator: None, left: false };
        Self {
            shared,
            mirrors: urls.into_iter().map(mirror).collect(),
            current: 0,
            body: None,
            retry: 0,
            gained: 0,
            once: false,
            meter: RateMeter::default(),
            chance: RandomState::new(),
        }
    }

    /// Works until it fails; the failure is left for the readers.
    pub(super) async fn run(mut self) {
        let failed = match self.head().await {
            Ok(()) => self.blocks().await,
            Err(failed) => failed,
        };
        self.shared.fail(failed);
    }

    /// The first answer: what there is to be had, and its first bytes.
    async fn head(&mut self) -> Result<(), Failed> {
        loop {
            match self.request(0, None).await {
                Ok(body) => {
                    let (len, ranges) = (body.answer.total, body.answer.ranges);
                    self.body = Some(body);
                    self.shared.answered(Head { len, ranges });
                    return Ok(());
                }
                Err(trouble) => self.recover(trouble, 0).await?,
            }
        }
    }

    async fn blocks(&mut self) -> Failed {
        loop {
            let shared = Arc::clone(&self.shared);
            let change = shared.work.notified();
            for liar in self.shared.liars() {
                if let Err(failed) = self.leave(liar, "it sent other bytes than the bundle has") {
                    return failed;
                }
            }
            let Some(want) = self.shared.next(self.current) else {
                change.await;
                continue;
            };
            let start = want.block.start;
            if let Err(trouble) = self.block(&want).await {
                let at = self.shared.missing(start).unwrap_or(start);
                self.shared.give_up(start);
                if let Err(failed) = self.recover(trouble, at).await {
                    return failed;
                }
            }
        }
    }

    async fn block(&mut self, want: &Want) -> Result<(), Trouble> {
        let start = want.block.start;
        while let Some(at) = self.shared.missing(start) {
            self.seek(at, want.until).await?;
            let Some(chunk) = self.chunk().await? else {
                // The end of a file of unknown length.
                self.shared.end_at(at);
                return Ok(());
            };
            let used = self.shared.fill(start, &chunk);
            self.gained += used as u64;
            if let Some(body) = &mut self.body {
                body.rest = chunk.slice(used..);
                body.at += used as u64;
            }
        }
        Ok(())
    }

    /// Brings an answer to byte `at`: the one that is open where it leads there, else a new one.
    async fn seek(&mut self, at: u64, until: u64) -> Result<(), Trouble> {
        let leads = |body: &Body| body.at <= at && body.answer.end.is_none_or(|end| at < end);
        let open = self.body.as_ref().filter(|body| leads(body));
        let near = open.is_some_and(|body| at - body.at <= GAP || self.once || !body.answer.ranges);
        if !near {
            // Kept until the new one is accepted: a server may give a file out once only.
            let leads = open.is_some();
            match self.request(at, (until != u64::MAX).then_some(until)).await {
                Ok(body) => self.body = Some(body),
                Err(Trouble::Answer(_)) if leads => self.once = true,
                Err(trouble) => return Err(trouble),
            }
        }
        while self.body.as_ref().is_some_and(|body| body.at < at) {
            let Some(chunk) = self.chunk().await? else {
                return Err(Trouble::Changed(format!("it ends before byte {at}")));
            };
            if let Some(body) = &mut self.body {
                let passed = usize::try_from(at - body.at).unwrap_or(usize::MAX).min(chunk.len());
                body.rest = chunk.slice(passed..);
                body.at += passed as u64;
            }
        }
        Ok(())
    }

    /// The next bytes of the open answer; `None` at the end of a file whose length nobody said.
    async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, Trouble> {
        let limits = self.shared.limits;
        let Some(body) = &mut self.body else { return Err(Trouble::Broken("no answer is open".to_owned())) };
        if !body.rest.is_empty() {
            return Ok(Some(std::mem::take(&mut body.rest)));
        }
        let begun = Instant::now();
        let chunk = within(limits.stall, body.answer.response.chunk()).await?;
        match chunk.map_err(|error| Trouble::Broken(chain(&error)))? {
            Some(chunk) => {
                self.shared.alive();
                let slow = self.meter.too_slow(
                    chunk.len() as u64,
                    begun.elapsed(),
                    limits.least_rate,
                    limits.least_rate_time,
                );
                match slow {
                    Some(rate) => {
                        Err(Trouble::Slow { rate, least: limits.least_rate, over: limits.least_rate_time })
                    }
                    None => Ok(Some(chunk)),
                }
            }
            None if body.answer.end.is_some_and(|end| body.at < end) => {
                Err(Trouble::Broken("the body ended early".to_owned()))
            }
            None if body.answer.end.is_none() => Ok(None),
            None => Err(Trouble::Broken("the answer is at its end".to_owned())),
        }
    }

    async fn request(&mut self, at: u64, until: Option<u64>) -> Result<Body, Trouble> {
        let limits = self.shared.limits;
        let Some(mirror) = self.mirrors.get(self.current) else {
            return Err(Trouble::Answer("no address".to_owned()));
        };
        let url = mirror.led.as_ref().unwrap_or(&mirror.url);
        let asked = self.shared.clients.get(url, at, until, mirror.validator.as_ref());
        // Of the two limits the connection has its own; the header may take as long as any byte.
        let result = within(limits.stall + limits.connect, asked).await.and_then(|answer| answer);
        let len = self.shared.len();
        let Some(mirror) = self.mirrors.get_mut(self.current) else {
            return Err(Trouble::Answer("no address".to_owned()));
        };
        let answer = match result {
            // The address that a redirect led to may have been for one time.
            Err(Trouble::Answer(_)) if mirror.led.is_some() => {
                mirror.led = None;
                return Err(Trouble::Broken("the address that a redirect led to is gone".to_owned()));
            }
            result => result?,
        };
        self.shared.alive();
        if let Some(known) = &mirror.validator
            && let Some(problem) = known.differs(&answer.validator)
        {
            return Err(Trouble::Changed(problem));
        }
        if let (Some(len), Some(total)) = (len, answer.total)
            && len != total
        {
            let problem = format!("it had {len} bytes, it has {total}");
            let same = mirror.validator.is_some();
            return Err(if same {
                Trouble::Changed(problem)
            } else {
                Trouble::Answer(format!("another file: {problem}"))
            });
        }
        mirror.validator = Some(answer.validator.clone());
        mirror.led = (answer.url != mirror.url).then(|| answer.url.clone());
        Ok(Body { at: answer.start, rest: bytes::Bytes::new(), answer })
    }

    /// After a failure: waits and tries again, leaves for another address, or ends.
    async fn recover(&mut self, trouble: Trouble, at: u64) -> Result<(), Failed> {
        self.body = None;
        if self.gained >= PROGRESS {
            self.retry = 0;
        }
        self.gained = 0;
        self.meter = RateMeter::default();
        let Some(mirror) = self.mirrors.get(self.current) else { return Ok(()) };
        let url = shown(mirror.url.as_str()).into_owned();
        let answered = mirror.validator.is_some();
        let failed = |trouble: Trouble, retries| Failed { trouble, url: url.clone(), at, retries };
        if !trouble.may_pass(answered) {
            let problem = trouble.problem();
            return self.leave(self.current, &problem).map_err(|_| failed(trouble, self.retry));
        }
        let alive =
            u32::try_from(self.mirrors.iter().filter(|mirror| !mirror.left).count()).unwrap_or(1).max(1);
        self.retry += 1;
        let most = self.shared.limits.retries.saturating_mul(alive);
        if self.retry > most {
            return Err(failed(trouble, most));
        }
        let asked = if let Trouble::Busy(_, asked) = &trouble { *asked } else { None };
        let host = host(&mirror.url);
        self.next_mirror();
        let wait = if self.retry.is_multiple_of(alive) {
            pause(self.retry / alive, self.chance.hash_one(self.retry), asked)
        } else {
            Duration::ZERO
        };
        let problem = format!("{host}, byte {at}: {}", trouble.problem());
        self.shared.retrying(&host, &problem, self.retry, most, wait);
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn next_mirror(&mut self) {
        let count = self.mirrors.len();
        let next = (1..=count).map(|step| (self.current + step) % count.max(1));
        let alive = |at: &usize| self.mirrors.get(*at).is_some_and(|mirror| !mirror.left);
        if let Some(next) = next.into_iter().find(alive) {
            self.current = next;
        }
    }

    /// Asks an address no more; an error if it was the last one.
    fn leave(&mut self, which: usize, problem: &str) -> Result<(), Failed> {
        let Some(mirror) = self.mirrors.get_mut(which) else { return Ok(()) };
        mirror.left = true;
        self.shared.left(which);
        let url = shown(mirror.url.as_str()).into_owned();
        if self.mirrors.iter().all(|mirror| mirror.left) {
            return Err(Failed { trouble: Trouble::Answer(problem.to_owned()), url, at: 0, retries: 0 });
        }
        self.shared.notice(&format!("{url} is asked no more: {problem}"));
        if which == self.current {
            self.body = None;
            self.next_mirror();
        }
        Ok(())
    }
}

/// The host as it is shown.
pub(super) fn host(url: &Url) -> String {
    let port = url.port().map_or(String::new(), |port| format!(":{port}"));
    format!("{}{port}", url.host_str().unwrap_or_default())
}

/// The result, unless it takes too long.
async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Trouble> {
    tokio::time::timeout(limit, work).await.map_err(|_| Trouble::Stalled(limit))
}
