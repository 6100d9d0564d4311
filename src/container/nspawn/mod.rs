//! Containers by systemd-nspawn(1), without machined and without a bus: as transient units if systemd runs, else as new
//! sessions.
//!
//! ```text
//! RUN_DIR/container/            one mount whose mounts propagate
//!   lock                        held by the process that starts or stops
//!   b-4711-0/                   one start
//!     root/                     the slot, mounted read-only
//!     gate/                     a tmpfs: copies of qstage and its libraries, sockets; see gate_dir
//!     instance.json             its processes; written before its gate is opened
//!     exit                      how nspawn ended, with the status of the program; see exit
//!     log                       messages of nspawn
//! ```
//!
//! The directory lies on a tmpfs: after a reboot it is empty, and nothing runs. The next start removes directories of
//! containers that no longer run.

mod exit;
pub mod gate;
mod gate_dir;
mod idmap;
mod launch;
mod mount;
pub mod prober;
mod process;
mod program;

use std::any::Any;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gate::{Gate, Tools, Waiting};
use launch::{GATE_DIR, Outside};
use nix::sys::signal::Signal;
use process::Process;
use program::Problem;
use serde::{Deserialize, Serialize};

use super::config::{Config, Network, Probe};
use super::isolation::Users;
use super::probe;
use super::runtime::{Exit, Running, Runtime, Stopped};
use crate::engine::SoftwareImage;
use crate::error::{Error, Result};
use crate::host::files::lock_file;
use crate::host::outside;
use crate::workers;

/// Time limit of nspawn to reach the gate; it takes 0.2 s on an idle machine.
const ARRANGE_LIMIT: Duration = Duration::from_secs(20);
/// Longest wait for killed processes to end.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for the lock while another swap holds it.
const LOCK_LIMIT: Duration = Duration::from_secs(3);
/// Minimum age of a program for [`Probe::Alive`].
const ALIVE_AFTER: Duration = Duration::from_millis(500);

const INSTANCE: &str = "instance.json";
/// File that names the process of systemd-nspawn, written at its launch; [`INSTANCE`] follows when it waits at its gate.
const LAUNCHED: &str = "launched.json";

/// Containers of this machine.
pub struct Nspawn {
    config: Config,
    base: PathBuf,
    /// The program that acts as the gate: this one.
    qstage: PathBuf,
    systemd: bool,
    begun: Instant,
    waiting: Mutex<HashMap<String, (Waiting, Instance)>>,
    released: Mutex<HashMap<String, Instant>>,
    /// Threads that clean up while the probe already runs; joined before this value is dropped.
    aside: Mutex<Vec<JoinHandle<io::Result<()>>>>,
}

/// Record of a container that was started.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Instance {
    #[serde(flatten)]
    running: Running,
    /// The process of systemd-nspawn.
    nspawn: Process,
    /// Process 1 of the container: when it ends, all processes of the container end.
    init: Process,
    /// The program; the same as `init` under `pid1`.
    program: Process,
    unit: Option<String>,
    /// Openings of its isolation, by the configuration at its start.
    #[serde(default = "of_old")]
    open: Vec<String>,
}

/// Openings of a container that was started by a release that did not record them.
fn of_old() -> Vec<String> {
    vec!["it was started by an earlier version of qstage, with the rights of the host's root".to_owned()]
}

impl Nspawn {
    /// Containers as configured. Nothing is started or examined yet.
    ///
    /// # Errors
    /// [`Error::Open`] if this program cannot find its own file; [`Error::Argument`] for an unknown signal.
    pub fn new(config: Config) -> Result<Self> {
        if let (Some(name), false) = (&config.stop_signal, config.pid1)
            && name.parse::<Signal>().is_err()
        {
            let problem = format!("'{name}' is no signal that a program can be sent; write SIGTERM, say");
            return Err(Error::Argument { what: "stop_signal".to_owned(), problem });
        }
        let qstage = std::env::current_exe()
            .map_err(|source| Error::Open { path: "/proc/self/exe".into(), source })?;
        // The package was upgraded in the meantime: the new program has the same gate.
        let name = qstage.to_string_lossy();
        let qstage = name.strip_suffix(" (deleted)").map_or_else(|| qstage.clone(), PathBuf::from);
        Ok(Self::with_gate(config, qstage))
    }

    /// The same with another program as the gate, for callers that are not qstage itself.
    pub fn with_gate(config: Config, qstage: PathBuf) -> Self {
        Self {
            base: config.run_dir.join("container"),
            config,
            qstage,
            // sd_booted(3).
            systemd: Path::new("/run/systemd/system").is_dir(),
            begun: Instant::now(),
            waiting: Mutex::default(),
            released: Mutex::default(),
            aside: Mutex::default(),
        }
    }

    fn instances(&self) -> Vec<(PathBuf, Option<Instance>)> {
        let read = |dir: &Path| serde_json::from_slice(&fs::read(dir.join(INSTANCE)).ok()?).ok();
        let entries = fs::read_dir(&self.base).into_iter().flatten().flatten();
        let dirs = entries.map(|entry| entry.path()).filter(|path| path.join("root").is_dir());
        dirs.map(|dir| (dir.clone(), read(&dir))).collect()
    }

    fn instance(&self, id: &str) -> Option<Instance> {
        self.instances().into_iter().find_map(|(_, one)| one.filter(|one| one.running.id == id))
    }

    /// Removes containers that ended without being stopped, or were never released.
    fn remove_leftovers(&self) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // A container that ended late stored its exit status while its directory was removed.
        for entry in fs::read_dir(&self.base).into_iter().flatten().flatten() {
            let dir = entry.path();
            if dir.is_dir() && !dir.join("root").exists() {
                let _ = remove(&dir);
            }
        }
        for (dir, instance) in self.instances() {
            let lives = instance.is_some_and(|one| one.init.is_alive() || one.nspawn.is_alive());
            let waits = dir.file_name().is_some_and(|id| waiting.contains_key(&*id.to_string_lossy()));
            if lives && !waits {
                // The process that opened its gate was killed before it had removed the files of the gate.
                gate_dir::shrink(&dir.join(GATE_DIR), self.has_prober());
            }
            if !lives && !waits {
                // The process that launched it was killed before the container had reached its gate. There it ends by
                // itself; until then it would hold its slot.
                let launched = fs::read(dir.join(LAUNCHED)).ok();
                if let Some(nspawn) = launched.and_then(|text| serde_json::from_slice::<Process>(&text).ok())
                    && nspawn.is_alive()
                {
                    end(nspawn, None);
                }
                let _ = remove(&dir);
            }
        }
    }

    /// Mounts the image and starts the container, up to the gate.
    fn begin(&self, image: &SoftwareImage, id: &str, dir: &Path) -> Result<(Waiting, Instance), Problem> {
        let named = |what: &str| {
            let what = what.to_owned();
            move |e: io::Error| format!("{what}: {e}")
        };
        for part in ["root", GATE_DIR] {
            fs::create_dir_all(dir.join(part)).map_err(named("its run directory"))?;
        }
        let root = dir.join("root");
        mount::attach(&image.source, &root, &self.config.file_systems)
            .map_err(named(&format!("mounting {}", image.partition)))?;
        if let Some(problem) = program::obstacle(&self.config, &root) {
            return Err(Problem::Program(problem));
        }
        self.make_outside().map_err(named("what is bound into it"))?;
        let unmapped = idmap::obstacle(&self.config, Some(&root));
        if let (Users::Private, Some(why)) = (self.config.users, &unmapped) {
            return Err(format!("{why}; permit the users of the host by 'users' in [container]").into());
        }
        let private = self.config.users != Users::Host && unmapped.is_none();
        let open = self.config.openings(unmapped.as_deref());
        let tools = Tools::of(&self.qstage).map_err(named(&self.qstage.display().to_string()))?;
        gate_dir::create(&dir.join(GATE_DIR), &tools.files).map_err(named("the directory of its gate"))?;
        let mut args = launch::arguments(&self.config, dir, id, &tools, private);
        if self.has_prober() {
            args.push("--prober".into());
        }
        if self.config.forbids_user_namespaces() {
            args.push("--no-user-namespaces".into());
        }
        if self.config.console.is_some() || !self.systemd {
            args.push("--console".into());
            args.push(self.config.console.as_ref().map_or("/dev/null", |_| gate::CONSOLE).into());
        }
        args.push("--".into());
        args.extend(self.config.command.iter().map(Into::into));
        let gate = Gate::new(&dir.join(GATE_DIR), self.has_prober()).map_err(named("its gate"))?;
        let log = File::create(dir.join("log")).map_err(named("its log"))?;
        let launched =
            launch::launch((id, dir), &Outside::of(&self.config, private), &args, self.systemd, log)
                .map_err(named("systemd-nspawn"))?;
        let known = serde_json::to_vec(&launched.process).map_err(io::Error::from);
        let known = known.and_then(|text| fs::write(dir.join(LAUNCHED), text));
        // If anything fails from here on, everything is removed.
        let begun = known
            .map_err(named("its run directory"))
            .and_then(|()| self.reach_gate(image, id, &launched, gate))
            .map(|(waiting, instance)| (waiting, Instance { open, ..instance }));
        if begun.is_err() {
            end(launched.process, None);
        }
        begun.map_err(|problem| {
            let said = fs::read_to_string(dir.join("log")).unwrap_or_default();
            let said = said.trim().replace('\n', "; ");
            if said.is_empty() { problem } else { format!("{problem}: {said}") }.into()
        })
    }

    fn reach_gate(
        &self,
        image: &SoftwareImage,
        id: &str,
        launched: &launch::Launched,
        gate: Gate,
    ) -> Result<(Waiting, Instance), String> {
        let nspawn = launched.process;
        // While it starts: read into memory what the program will need at once.
        let program = self.config.command.first().cloned();
        let paths = self.config.preread.clone().unwrap_or_else(|| program.into_iter().collect());
        mount::preread(&self.base.join(id).join("root"), &paths);
        let waiting = gate.wait(ARRANGE_LIMIT, || nspawn.is_alive())?;
        let init = nspawn.only_child().ok_or("its first process was not found")?;
        // The process that waits at the gate: process 1 may have another child, the prober.
        let program = waiting.pid().ok().and_then(Process::of).ok_or("its program was not found")?;
        let running = Running {
            id: id.to_owned(),
            slot: image.slot,
            version: image.version.clone(),
            blake3: image.blake3,
        };
        Ok((
            waiting,
            Instance { running, nspawn, init, program, unit: launched.unit.clone(), open: Vec::new() },
        ))
    }

    /// Creates the state directory and the file for output if they are missing.
    fn make_outside(&self) -> io::Result<()> {
        if let Some(bind) = &self.config.state {
            let host = idmap::host_of(bind);
            if !host.exists() {
                fs::create_dir_all(&host)?;
                // Regardless of the umask: users of the container other than root need access.
                fs::set_permissions(&host, fs::Permissions::from_mode(0o755))?;
            }
        }
        if let Some(console) = &self.config.console {
            File::options().create(true).append(true).open(console)?;
        }
        Ok(())
    }

    const fn has_prober(&self) -> bool {
        matches!(self.config.probe, Probe::Command(_))
    }

    fn stop_signal(&self) -> Signal {
        let named = self.config.stop_signal.as_deref().and_then(|name| name.parse().ok());
        named.unwrap_or(Signal::SIGTERM)
    }
}

impl Drop for Nspawn {
    fn drop(&mut self) {
        for thread in self.aside.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = thread.join();
        }
    }
}

impl Runtime for Nspawn {
    fn lock(&self) -> Result<Box<dyn Any>> {
        let path = self.base.join("lock");
        let failed = |source| Error::Open { path: path.clone(), source };
        fs::create_dir_all(&self.base).map_err(failed)?;
        let Some(lock) = lock_file(&path, LOCK_LIMIT).map_err(failed)? else {
            let holder = "another start, stop or swap".to_owned();
            return Err(Error::Busy { disk: "the container".to_owned(), holder });
        };
        // A leftover of a killed process would hold its slot.
        outside::run(|| self.remove_leftovers()).map_err(failed)?;
        Ok(Box::new(lock))
    }

    fn running(&self) -> Result<Vec<Running>> {
        let lives = |one: &Instance| one.program.is_alive();
        let mut found: Vec<Running> = self
            .instances()
            .into_iter()
            .filter_map(|(_, one)| one.filter(lives))
            .map(|one| one.running)
            .collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    fn arrange(&self, image: &SoftwareImage) -> Result<Running> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}-{}", image.slot, std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = self.base.join(&id);
        let begun = outside::run(|| {
            mount::share(&self.base).map_err(|e| Problem::Start(format!("{}: {e}", self.base.display())))?;
            self.begin(image, &id, &dir).inspect_err(|_| {
                let _ = remove(&dir);
            })
        });
        match begun.unwrap_or_else(|e| Err(e.to_string().into())) {
            Ok((waiting, instance)) => {
                let running = instance.running.clone();
                let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                all.insert(id, (waiting, instance));
                Ok(running)
            }
            Err(problem) => Err(problem.into_error(image.slot)),
        }
    }

    fn release(&self, arranged: &Running) -> Result<()> {
        let failed = |problem: Problem| problem.into_error(arranged.slot);
        let found = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&arranged.id);
        let (waiting, instance) = found.ok_or_else(|| failed("it was not arranged".to_owned().into()))?;
        let dir = self.base.join(&arranged.id);
        // Recorded before it runs: after a crash it must be found, to be stopped.
        let opened = serde_json::to_vec(&instance)
            .map_err(io::Error::other)
            .and_then(|text| fs::write(dir.join(INSTANCE), text))
            .map_err(|e| Problem::Start(e.to_string()))
            .and_then(|()| waiting.open());
        match opened {
            Ok(()) => {
                let mut all = self.released.lock().unwrap_or_else(PoisonError::into_inner);
                all.insert(arranged.id.clone(), Instant::now());
                drop(all);
                // In another thread: an unmount waits for all processors, and this is the gap.
                let (gate, prober) = (dir.join(GATE_DIR), self.has_prober());
                // If no thread can be started, the stop does it.
                let leaving = workers::spawn("leaving a gate", move || {
                    outside::run(|| gate_dir::shrink(&gate, prober))
                });
                self.aside.lock().unwrap_or_else(PoisonError::into_inner).extend(leaving.ok());
                Ok(())
            }
            Err(problem) => {
                end(instance.nspawn, Some(instance.init));
                let _ = outside::run(|| remove(&dir));
                Err(failed(problem))
            }
        }
    }

    fn stop(&self, running: &Running) -> Result<Stopped> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&running.id);
        let (gated, instance) = match waiting {
            // The gate reads the end of the stream and exits.
            Some((gate, instance)) => {
                drop(gate);
                (true, Some(instance))
            }
            None => (false, self.instance(&running.id)),
        };
        let mut stopped = Stopped::Gracefully;
        if let Some(one) = instance {
            if !gated && self.config.pid1 {
                // nspawn forwards it as the signal of --kill-signal.
                one.nspawn.signal(Signal::SIGTERM);
            } else if !gated {
                one.program.signal(self.stop_signal());
            }
            if !one.init.ends_within(self.config.stop_timeout) {
                stopped = Stopped::Killed;
            }
            if !end(one.nspawn, Some(one.init)) {
                let problem = format!("process {} outlives SIGKILL", one.init.pid);
                return Err(Error::ContainerStop { slot: running.slot, problem });
            }
        }
        self.released.lock().unwrap_or_else(PoisonError::into_inner).remove(&running.id);
        outside::run(|| remove(&self.base.join(&running.id)))
            .and_then(std::convert::identity)
            .map_err(|e| Error::ContainerStop { slot: running.slot, problem: e.to_string() })?;
        Ok(stopped)
    }

    fn probe(&self, running: &Running) -> Result<(), String> {
        let instance = self.instance(&running.id).filter(|one| one.program.is_alive());
        let instance = instance.ok_or(super::steps::ENDED)?;
        let pid = instance.program.pid;
        let timeout = self.config.probe_timeout;
        let ask = || match &self.config.probe {
            Probe::Alive => {
                let all = self.released.lock().unwrap_or_else(PoisonError::into_inner);
                let settled = all.get(&running.id).is_none_or(|begun| begun.elapsed() >= ALIVE_AFTER);
                if settled { Ok(()) } else { Err("it has only just begun".to_owned()) }
            }
            Probe::Tcp(address) => probe::tcp(address, timeout),
            Probe::Http(address, path) => probe::http(address, path, timeout),
            Probe::Command(words) => {
                let socket = self.base.join(&running.id).join(GATE_DIR).join(gate_dir::PROBER);
                prober::ask(&socket, words, &self.config.environment, timeout)
            }
        };
        match (&self.config.network, &self.config.probe) {
            (Network::Private | Network::Path(_), Probe::Tcp(_) | Probe::Http(..)) => {
                probe::in_network(Path::new(&format!("/proc/{pid}/ns/net")), ask)
            }
            _ => ask(),
        }
    }

    fn exit(&self, ended: &Running) -> Option<Exit> {
        exit::wait(&self.base.join(&ended.id))
    }

    fn openings(&self, running: Option<&Running>) -> Vec<String> {
        let known = running.and_then(|one| self.instance(&one.id)).map(|one| one.open);
        known.unwrap_or_else(|| openings(&self.config))
    }

    fn clock(&self) -> Duration {
        self.begun.elapsed()
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// Openings of the isolation by this configuration, as far as they are known without the image; one sentence each.
pub fn openings(config: &Config) -> Vec<String> {
    config.openings(idmap::obstacle(config, None).as_deref())
}

/// Kills a container if it still runs; returns whether it is gone. All its processes end with process 1, and nspawn after it.
fn end(nspawn: Process, init: Option<Process>) -> bool {
    if let Some(init) = init.or_else(|| nspawn.only_child())
        && init.is_alive()
    {
        init.signal(Signal::SIGKILL);
        if !init.ends_within(KILL_LIMIT) {
            return false;
        }
    }
    if !nspawn.ends_within(Duration::from_secs(1)) {
        nspawn.signal(Signal::SIGKILL);
    }
    nspawn.ends_within(KILL_LIMIT)
}

/// Unmounts and removes the directory of a container. Removes empty directories only, so never the content of a mount.
fn remove(dir: &Path) -> io::Result<()> {
    mount::detach(&dir.join("root"))?;
    mount::detach(&dir.join(GATE_DIR))?;
    for file in [INSTANCE, LAUNCHED, exit::FILE, "log"] {
        let _ = fs::remove_file(dir.join(file));
    }
    for sub in ["root", GATE_DIR] {
        let _ = fs::remove_dir(dir.join(sub));
    }
    let _ = fs::remove_dir(dir);
    Ok(())
}
