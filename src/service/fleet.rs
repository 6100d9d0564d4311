//! Client of a FleetLock server: a lock around the reboot of this machine, for fleets that are no cluster and have a lock server
//! (airlock and others). The protocol is two POST requests with the header `fleet-lock-protocol: true`.
//!
//! ```text
//!   commit ─▶ record "wanted" ─▶ POST /v1/pre-reboot until it is granted ─▶ reboot_command
//!   next boot ─▶ trial ─▶ marked good ─▶ POST /v1/steady-state ─▶ record removed
//! ```
//!
//! The record in the state directory is written before the request: a crash in between costs one needless release, and never
//! leaks a lock. If the server has refused every request, nothing is released: this machine holds no lock. After a fallback the
//! lock is held until the failure is cleared or another upgrade begins: a release that does not boot must not reach the next
//! machine. The new release may boot without the lock, if the power fails during the wait for it or a user reboots the machine
//! after the wait was over: the lock is then requested during the trial, so that no other machine reboots beside it.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::Agent;

use crate::error::{Error, Result, sentence};
use crate::host::files::{private_directory, replace};
use crate::service::owner::disk::{DiskView, Place};
use crate::service::owner::hooks::AfterCommit;
use crate::service::owner::order::Handle;
use crate::service::owner::upgrade::{Failure, SeenDisk};
use crate::state::UpgradeType;
use crate::workers;

/// File in the state directory that exists while the lock is wanted or held. It contains the boot that requested the lock.
const RECORD: &str = "fleet-lock";
/// Content of the record after the reboot has failed: the lock is to be released in this boot.
const NO_REBOOT: &str = "-";
/// End of the record while a release is selected for the next boot and the lock is not held: its trial requests the lock.
const RELEASED: &str = "released";
/// Path of the request for the lock. Who holds it is granted it again.
const LOCK: &str = "/v1/pre-reboot";
/// Path of the release.
const UNLOCK: &str = "/v1/steady-state";
/// Limit of a request.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Maximum pause after the first request that fails; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// Longest pause between two requests.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Interval between two looks at the record.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Largest response in bytes.
const RESPONSE_LIMIT: u64 = 64 << 10;

/// Address of the lock server, and the identity of this machine there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetLock {
    /// Address of the server, without the slash at its end.
    pub url: String,
    /// Group of machines that share the slots of the lock.
    pub group: String,
    /// Name of this machine.
    pub id: String,
    /// Limit of the wait for the lock.
    pub timeout: Duration,
}

impl FleetLock {
    /// Sends one request. `path` is one of the two of the protocol.
    fn request(&self, path: &str) -> std::result::Result<(), Refusal> {
        let failed = |problem: String| Error::FleetLock { url: self.url.clone(), problem };
        let lost = |error: ureq::Error| Refusal { error: failed(error.to_string()), is_certain: false };
        let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(REQUEST_LIMIT));
        let agent = Agent::new_with_config(config.max_redirects(0).build());
        let body = json!({"client_params": {"id": self.id, "group": self.group}}).to_string();
        let request = agent.post(format!("{}{path}", self.url)).header("fleet-lock-protocol", "true");
        let mut response = request.header("content-type", "application/json").send(body).map_err(lost)?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let text = response.body_mut().with_config().limit(RESPONSE_LIMIT).read_to_string();
        let refusal: Value = serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
        let error = failed(match (refusal["kind"].as_str(), refusal["value"].as_str()) {
            (Some(kind), Some(value)) => format!("{kind}: {value}"),
            _ => format!("the server responds with status {status}"),
        });
        Err(Refusal { error, is_certain: status.is_client_error() })
    }
}

/// A request that was not granted.
struct Refusal {
    error: Error,
    /// Whether the server has refused it. If not, its answer was lost, or it failed on its way to its store.
    is_certain: bool,
}

/// [`AfterCommit`] whose reboot needs the lock.
pub struct LockedReboot {
    lock: FleetLock,
    place: Place,
    inner: Arc<dyn AfterCommit>,
    /// The lock is being requested, or the machine is shutting down.
    busy: Arc<AtomicBool>,
    /// Why the lock is not granted yet; `None`: it is not being requested.
    waits: Mutex<Option<String>>,
}

impl LockedReboot {
    /// The same as `inner`, with the lock held from before the reboot.
    pub fn new(lock: FleetLock, place: &Place, inner: Arc<dyn AfterCommit>) -> Self {
        Self { lock, place: place.clone(), inner, busy: Arc::default(), waits: Mutex::default() }
    }

    /// What the reboot waits for; `None`: nothing.
    pub(super) fn waits(&self) -> Option<String> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_waits(&self, waits: Option<String>) -> Option<String> {
        std::mem::replace(&mut *self.waits.lock().unwrap_or_else(PoisonError::into_inner), waits)
    }

    /// Waits until the lock is granted. If it is not, the record remains for a release if the lock may be held.
    fn acquire(&self) -> Result<()> {
        let (state_dir, look) = (&self.place.state_dir, self.place.look()?);
        // The lock of an earlier request may not have been released yet.
        let recorded = std::fs::read_to_string(state_dir.join(RECORD));
        let mut may_hold = recorded.is_ok_and(|recorded| !recorded.ends_with(RELEASED));
        write_record(state_dir, &boot_of(&look))?;
        let (begun, mut pauses) = (Instant::now(), Pauses::default());
        loop {
            let Err(Refusal { error, is_certain }) = self.lock.request(LOCK) else {
                tracing::info!(url = self.lock.url, group = self.lock.group, "the fleet lock is granted");
                return Ok(());
            };
            may_hold |= !is_certain;
            let left = self.lock.timeout.saturating_sub(begun.elapsed());
            if left.is_zero() {
                if may_hold {
                    release_in_this_boot(state_dir);
                } else {
                    record_release(state_dir, &look)?;
                }
                return Err(error);
            }
            let why = format!("waiting for the fleet lock: {}", sentence(&error));
            if self.set_waits(Some(why.clone())).as_ref() != Some(&why) {
                tracing::info!(code = error.code(), "{why}");
            }
            std::thread::sleep(pauses.longer().min(left));
        }
    }
}

impl AfterCommit for LockedReboot {
    fn reboots(&self, kind: UpgradeType) -> bool {
        self.inner.reboots(kind)
    }

    fn restarts_selected(&self) -> bool {
        self.inner.restarts_selected()
    }

    fn reboot_words(&self) -> String {
        self.inner.reboot_words()
    }

    fn halts(&self) -> bool {
        self.inner.halts()
    }

    fn halt(&self) -> Result<()> {
        self.inner.halt()
    }

    fn swaps(&self) -> bool {
        self.inner.swaps()
    }

    fn run(&self, kind: UpgradeType) -> Result<String> {
        if !self.inner.reboots(kind) {
            return self.inner.run(kind);
        }
        self.busy.store(true, Ordering::Relaxed);
        let locked = self.acquire();
        self.set_waits(None);
        let done = locked
            .and_then(|()| self.inner.run(kind).inspect_err(|_| release_in_this_boot(&self.place.state_dir)));
        if done.is_err() {
            self.busy.store(false, Ordering::Relaxed);
        }
        done
    }
}

/// Pauses between requests that fail: they double, and no two machines of a fleet have the same.
#[derive(Debug, Default)]
struct Pauses {
    failures: u32,
    chance: RandomState,
}

impl Pauses {
    /// The next pause, between half of its maximum and all of it.
    fn longer(&mut self) -> Duration {
        let most = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
        self.failures += 1;
        let part = u32::try_from(self.chance.hash_one(self.failures) % 1024).unwrap_or_default();
        most / 2 + most / 2 * part / 1024
    }
}

fn write_record(state_dir: &Path, boot: &str) -> Result<()> {
    let write =
        private_directory(state_dir, false).and_then(|()| replace(state_dir, RECORD, boot.as_bytes(), 0o600));
    write.map_err(|source| Error::Open { path: state_dir.join(RECORD), source })
}

/// Records that the lock is not held.
fn record_release(state_dir: &Path, look: &DiskView) -> Result<()> {
    if look.disk.pending {
        return write_record(state_dir, &released_in(&boot_of(look)));
    }
    let path = state_dir.join(RECORD);
    std::fs::remove_file(&path).map_err(|source| Error::Open { path, source })
}

fn released_in(boot: &str) -> String {
    format!("{boot} {RELEASED}")
}

/// Records that the machine does not reboot.
fn release_in_this_boot(state_dir: &Path) {
    if let Err(error) = write_record(state_dir, NO_REBOOT) {
        tracing::warn!(code = error.code(), "the fleet lock is held until the next boot: {error}");
    }
}

/// Identity of a boot: the kernel's boot id, and the slot that runs.
fn boot_of(look: &DiskView) -> String {
    let boot = &look.disk.boot;
    format!("{} {}", boot.id, boot.slot.as_deref().unwrap_or_default())
}

/// Thread that releases the lock after the machine has proved good.
pub(super) struct LockRelease {
    lock: FleetLock,
    place: Place,
    owner: Handle,
    busy: Arc<AtomicBool>,
    /// Limit of the wait for the lock and the shutdown together.
    limit: Duration,
}

impl LockRelease {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Error::NoThread`].
    pub(super) fn start(locked: &LockedReboot, owner: &Handle, limit: Duration) -> Result<()> {
        let release = Self {
            lock: locked.lock.clone(),
            place: locked.place.clone(),
            owner: owner.clone(),
            busy: Arc::clone(&locked.busy),
            limit,
        };
        workers::spawn("the fleet lock", move || release.run()).map(|_| ())
    }

    fn run(&self) {
        let (mut logged, mut idle_since, mut busy_since) = (String::new(), Instant::now(), None::<Instant>);
        let (mut pauses, mut held) = (Pauses::default(), false);
        loop {
            std::thread::sleep(LOOK_EVERY);
            if self.busy.load(Ordering::Relaxed) {
                // The command succeeded and the machine is still up: the service reports that, and needs no lock any more.
                if busy_since.get_or_insert_with(Instant::now).elapsed() > self.limit {
                    release_in_this_boot(&self.place.state_dir);
                    self.busy.store(false, Ordering::Relaxed);
                }
                idle_since = Instant::now();
                continue;
            }
            busy_since = None;
            match self.look(idle_since.elapsed() > self.limit, &mut held) {
                Ok(()) => {
                    logged.clear();
                    pauses = Pauses::default();
                }
                Err((what, error)) => {
                    let why = sentence(&error);
                    if why != logged {
                        tracing::warn!(code = error.code(), "{what}: {why}");
                        logged = why;
                    }
                    std::thread::sleep(pauses.longer());
                }
            }
        }
    }

    /// Releases the lock if that is due. During a trial it makes sure once that the lock is held (`held`): a power cut may have
    /// booted the new release before the lock was granted. An error comes with its consequence.
    fn look(&self, abandoned: bool, held: &mut bool) -> Result<(), (&'static str, Error)> {
        let state_dir = &self.place.state_dir;
        let Ok(recorded) = std::fs::read_to_string(state_dir.join(RECORD)) else { return Ok(()) };
        let still = |error| ("the fleet lock is still held", error);
        let remains = |error| ("the record of the fleet lock is outdated", error);
        let look = self.place.look().map_err(still)?;
        let (shown, boot) = (self.owner.snapshot(), boot_of(&look));
        if recorded == released_in(&boot) {
            return if look.disk.pending {
                Ok(())
            } else {
                record_release(state_dir, &look).map_err(remains)
            };
        }
        let failed = shown.upgrade.error.as_ref().is_some_and(Failure::is_fallback);
        if !is_due(&recorded, &boot, &look.disk, failed, abandoned) {
            if look.disk.trial.is_some() && recorded != boot && !*held {
                let without =
                    |refusal: Refusal| ("the new release is on trial without the fleet lock", refusal.error);
                self.lock.request(LOCK).map_err(without)?;
                *held = true;
            }
            return Ok(());
        }
        self.lock.request(UNLOCK).map_err(|refusal| still(refusal.error))?;
        record_release(state_dir, &look).map_err(remains)?;
        *held = false;
        tracing::info!(url = self.lock.url, group = self.lock.group, "the fleet lock is released");
        Ok(())
    }
}

/// Whether the lock requested in the boot `recorded` is to be released in the boot `boot`. `failed`: the new release fell back.
/// `abandoned`: this service has not tried to reboot for longer than a reboot takes, so one that was requested before a crash of
/// the service is not under way. What is selected for the next boot does not matter then: when that will be is unknown, and
/// the other machines wait.
fn is_due(recorded: &str, boot: &str, disk: &SeenDisk, failed: bool, abandoned: bool) -> bool {
    let good = disk.trial.is_none() && !disk.pending && !failed;
    recorded == NO_REBOOT || if recorded == boot { abandoned } else { good }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute() {
        let mut pauses = Pauses::default();
        for most in [2, 4, 8, 16, 32, 60, 60] {
            let (pause, most) = (pauses.longer(), Duration::from_secs(most));
            assert!(pause >= most / 2 && pause <= most, "{pause:?} of {most:?}");
        }
    }

    #[test]
    fn the_lock_is_released_when_the_running_release_is_good() {
        let good = SeenDisk::default();
        let trial =
            SeenDisk { trial: Some(("2".into(), UpgradeType::SoftwareAndPlatform)), ..SeenDisk::default() };
        let selected = SeenDisk { pending: true, ..trial.clone() };
        assert!(is_due("1 a", "2 b", &good, false, false));
        assert!(!is_due("1 a", "1 a", &good, false, false), "the machine is shutting down");
        assert!(is_due("1 a", "1 a", &good, false, true), "the service crashed, and nothing is selected");
        assert!(!is_due("1 a", "1 a", &selected, false, false), "the machine is shutting down");
        assert!(
            is_due("1 a", "1 a", &selected, false, true),
            "the others must not wait for a reboot that no user orders"
        );
        assert!(!is_due("1 a", "2 b", &trial, false, true));
        assert!(!is_due("1 a", "2 a", &good, true, true), "a bad release must not reach the next machine");
        assert!(is_due(NO_REBOOT, "1 a", &selected, false, false), "the reboot failed");
    }
}
