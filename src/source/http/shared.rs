//! State shared by the tasks that fetch and the threads that read.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Url;
use tokio::sync::Notify;

use super::client::Clients;
use super::list;
use super::mirrors::host;
use super::plan::{FetchRequest, RequestPlan};
use super::transfer_error::TransferError;
use super::{Notice, TransferLimits};
use crate::error::Error;

/// Bytes received after which waiting readers are woken although a block is not full.
const WAKE: usize = 128 << 10;
/// Number of readers that can be woken one by one; of more than these, some are woken together.
const WAITING: usize = 16;
/// Time without data after which the user is notified, and the interval of further notices.
const SILENCE: Duration = Duration::from_secs(10);

/// What the first response says of the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    /// Size of the file in bytes; `None` if the server does not send it.
    pub(super) len: Option<u64>,
    /// Whether it can be read at any offset.
    pub(super) ranges: bool,
    /// Number of the address that sent the response.
    pub(super) mirror: usize,
}

/// Failure that ended a transfer.
#[derive(Debug, Clone)]
pub(super) struct FailedTransfer {
    pub(super) trouble: TransferError,
    pub(super) url: String,
    pub(super) at: u64,
    pub(super) retries: u32,
}

impl FailedTransfer {
    pub(super) fn error(&self) -> Error {
        self.trouble.clone().error(&self.url, self.at, self.retries)
    }
}

/// State of a transfer, guarded by the lock in [`Shared`].
pub(super) struct TransferState {
    pub(super) plan: RequestPlan,
    pub(super) head: Option<Head>,
    pub(super) failed: Option<FailedTransfer>,
    /// Offset at which a file of unknown length ended; `None`: not yet.
    pub(super) ended: Option<u64>,
    /// Addresses that sent wrong bytes and that the first lane has yet to leave.
    liars: Vec<usize>,
    /// All addresses that are no longer used.
    left: Vec<usize>,
    /// Bytes received since readers were last woken.
    quiet: usize,
    /// When data last arrived, or when it was last not waited for.
    alive: Instant,
    /// Time without data at the last notice.
    told: Duration,
    /// Host in use, and text about the current retry, empty if there is none.
    trying: (String, String),
}

/// State and settings of one transfer.
pub(super) struct Shared {
    state: Mutex<TransferState>,
    /// Wake readers, each by the number of its demand. With one for all, every block woke every worker, and all but one slept
    /// again: 4,200 calls of futex for 256 MiB instead of 600.
    changed: [Condvar; WAITING],
    /// Wakes tasks that had nothing to do.
    pub(super) work: Notify,
    /// Ends the tasks.
    pub(super) closed: Notify,
    pub(super) clients: Clients,
    pub(super) limits: TransferLimits,
    /// Whether the file is a tar archive, which ends with zeroes.
    pub(super) is_archive: bool,
    notice: Notice,
    /// Number of addresses.
    mirrors: usize,
}

impl Shared {
    pub(super) fn new(clients: Clients, limits: TransferLimits, notice: Notice, urls: &[Url]) -> Arc<Self> {
        let state = TransferState {
            plan: RequestPlan::default(),
            head: None,
            failed: None,
            ended: None,
            liars: Vec::new(),
            left: Vec::new(),
            quiet: 0,
            alive: Instant::now(),
            told: Duration::ZERO,
            trying: (urls.first().map(host).unwrap_or_default(), String::new()),
        };
        Arc::new(Self {
            state: Mutex::new(state),
            changed: std::array::from_fn(|_| Condvar::new()),
            work: Notify::new(),
            closed: Notify::new(),
            clients,
            limits,
            is_archive: !urls.iter().any(list::is_one),
            notice,
            mirrors: urls.len(),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, TransferState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What wakes the reader with a demand; 0: one without.
    pub(super) fn reader(&self, demand: u64) -> &Condvar {
        &self.changed[demand as usize % WAITING]
    }

    fn wake_all(&self) {
        self.changed.iter().for_each(Condvar::notify_all);
    }

    pub(super) fn next(&self, lane: usize) -> Option<FetchRequest> {
        let want = self.state().plan.next(lane);
        if want.is_some() {
            // Bytes that this lane leaves may be for another one.
            self.work.notify_waiters();
        }
        want
    }

    /// Records position and end of a lane's response; `None`: it has none.
    pub(super) fn stands(&self, lane: usize, answer: Option<Range<u64>>) {
        self.state().plan.stands(lane, answer);
        self.work.notify_waiters();
    }

    /// Declares that all that is left comes by one response only, which is at `at`: it is read from there, in its order.
    pub(super) fn read_in_order(&self, at: u64) {
        let mut state = self.state();
        let end = state.head.and_then(|head| head.len).unwrap_or(u64::MAX);
        state.plan.declare_rest(at, end);
        drop(state);
        self.work.notify_waiters();
    }

    pub(super) fn missing(&self, lane: usize, start: u64) -> Option<u64> {
        self.state().plan.missing(lane, start)
    }

    pub(super) fn give_up(&self, lane: usize, start: u64) {
        self.state().plan.give_up(lane, start);
        self.wake_all();
        self.work.notify_waiters();
    }

    pub(super) fn fill(&self, lane: usize, start: u64, bytes: &[u8], mirror: usize) -> usize {
        let mut state = self.state();
        let range = state.plan.block(start);
        let used = state.plan.fill(lane, start, bytes, mirror);
        state.quiet += used;
        // Readers of other bytes sleep on: there are many blocks ahead of them, and each wake costs a change of context.
        let full = state.plan.missing(lane, start).is_none();
        let range = range.filter(|_| full || state.quiet >= WAKE);
        let served = range.map(|range| state.plan.served(&range, full)).unwrap_or_default();
        if !served.is_empty() {
            state.quiet = 0;
        }
        drop(state);
        served.into_iter().for_each(|demand| self.reader(demand).notify_all());
        used
    }

    pub(super) fn answered(&self, head: Head) {
        self.state().head = Some(head);
        self.wake_all();
    }

    pub(super) fn len(&self) -> Option<u64> {
        self.state().head.and_then(|head| head.len)
    }

    pub(super) fn end_at(&self, at: u64) {
        let mut state = self.state();
        state.ended = Some(at);
        state.plan.pass(&(at..u64::MAX));
        self.wake_all();
    }

    pub(super) fn fail(&self, failed: FailedTransfer) {
        self.state().failed.get_or_insert(failed);
        self.wake_all();
    }

    /// Handles wrong bytes in a range: the address that sent them is no longer used, if it is known and not the last
    /// one. Returns whether other bytes may come when the range is read again.
    pub(super) fn distrust(&self, range: &Range<u64>) -> bool {
        let mut state = self.state();
        let senders = state.plan.senders(range);
        let known = senders.iter().any(|sender| state.left.contains(sender));
        match senders[..] {
            [] => return false,
            // On the next read it comes from one of them alone, or without the one that is known to send wrong bytes.
            _ if known || senders.len() > 1 => {}
            [only] => {
                if state.left.len() + 1 >= self.mirrors {
                    return false;
                }
                state.left.push(only);
                state.liars.push(only);
            }
            [..] => {}
        }
        for sender in senders {
            state.plan.distrust(sender);
        }
        drop(state);
        self.work.notify_waiters();
        true
    }

    /// Whether an address is no longer used.
    pub(super) fn is_left(&self, mirror: usize) -> bool {
        self.state().left.contains(&mirror)
    }

    /// Records that an address is no longer used.
    pub(super) fn left(&self, mirror: usize) {
        let mut state = self.state();
        if !state.left.contains(&mirror) {
            state.left.push(mirror);
        }
    }

    pub(super) fn liars(&self) -> Vec<usize> {
        std::mem::take(&mut self.state().liars)
    }

    /// Records that data arrived.
    pub(super) fn alive(&self) {
        let mut state = self.state();
        (state.alive, state.told) = (Instant::now(), Duration::ZERO);
        state.trying.1.clear();
    }

    pub(super) fn retrying(&self, host: &str, problem: &str, retry: u32, most: u32, wait: Duration) {
        self.state().trying = (host.to_owned(), format!(", retry {retry} of {most}"));
        // A connection that is resumed at once is not worth a notice.
        if retry > 1 {
            self.notice(&format!("{problem}; retry {retry} of {most} in {:.1} s", wait.as_secs_f64()));
        }
    }

    pub(super) fn notice(&self, message: &str) {
        (self.notice)(message);
    }

    /// Notifies the user at intervals that no data arrives although it is waited for.
    pub(super) async fn watch(&self) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let mut state = self.state();
            if state.head.is_some() && !state.plan.is_waited_for() {
                state.alive = Instant::now();
            }
            let silent = state.alive.elapsed();
            if silent.saturating_sub(state.told) < SILENCE {
                continue;
            }
            state.told = silent;
            let (host, trying) = state.trying.clone();
            drop(state);
            self.notice(&format!("waiting for {host}, nothing for {} s{trying}", silent.as_secs()));
        }
    }
}
