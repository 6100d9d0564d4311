//! The processes that touch bundles: `qstage prepare` and `qstage plan`, the program of this service itself.
//!
//! Why processes and not threads: a bundle is hostile input and a disk may be dying. A process that runs out of memory, is
//! killed or hangs in the kernel ends alone, and the service continues to answer. Its CPU priority can be lowered without
//! lowering that of the service, and with it the I/O priority, which the kernel derives. And the service does exactly what
//! an operator can do by hand.
//!
//! A prepare does not outlive the service: by `PR_SET_PDEATHSIG` the kernel kills it at the end of the thread that forked it.
//! tokio's threads come and go, so one thread that lives as long as the process forks all of them. For the moment before
//! that call, its standard input is a pipe whose other end is closed with the service.

use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::device::watch::RECEIVE;
use crate::error::{Class, Error, Result};
use crate::progress::Phase;
use crate::service::owner::process::WorkerProcess;
use crate::service::owner::upgrade::Failure;
use crate::source::address;
use crate::state::UpgradeType;
use crate::workers;

/// This program, even if its file was replaced by a newer one: a service runs one version, not two.
const PROGRAM: &str = "/proc/self/exe";
/// Grace period of a stopped process before SIGKILL. It runs at the lowest priority, so on a busy machine its threads see
/// the request late. A killed process leaves what it leaves at any time: a torn slot.
const GRACE_PERIOD: Duration = Duration::from_millis(600);
/// Time limit of `plan`: it reads a few megabytes at most, perhaps over a network.
const PLAN_LIMIT: Duration = Duration::from_secs(60);

/// Arguments of the processes.
#[derive(Debug, Clone, Default)]
pub struct Arguments {
    /// Flags that describe the machine and the trusted keys, for `prepare` and `plan`.
    pub machine: Vec<OsString>,
    /// Flags of `prepare` alone.
    pub prepare: Vec<OsString>,
}

/// The part of the result of `plan` that the service uses.
#[derive(Debug, Clone, Deserialize)]
pub(in crate::service) struct Planned {
    pub(in crate::service) target_version: String,
    pub(in crate::service) upgrade_type: UpgradeType,
    pub(in crate::service) already_prepared: bool,
    /// BLAKE3 of the manifest: the planned bundle is the one that is prepared, even if the path has another by then.
    pub(in crate::service) manifest: String,
    pub(in crate::service) blocked_by: Vec<Failure>,
    /// The whole report, as printed.
    #[serde(skip)]
    pub(in crate::service) report: serde_json::Value,
}

impl Planned {
    /// The images that a prepare would write, one line each.
    pub(in crate::service) fn steps(&self) -> Vec<String> {
        let payloads = self.report["payloads"].as_array().into_iter().flatten();
        let line = |payload: &serde_json::Value| {
            let (name, target) = (payload["name"].as_str()?, payload["target"].as_str()?);
            Some(format!("write {name} to {target}"))
        };
        payloads.filter_map(line).collect()
    }
}

/// A report of a prepare.
#[derive(Debug)]
pub(in crate::service) enum Report {
    Progress(u8),
    /// A device has not answered for some seconds.
    Stalled {
        device: String,
        seconds: u64,
    },
    Done(Result<Staged, Failure>),
}

/// The result of `prepare`.
#[derive(Debug, Clone, Deserialize)]
pub(in crate::service) struct Staged {
    pub(in crate::service) version: String,
    pub(in crate::service) upgrade_type: UpgradeType,
}

/// A prepare that runs. The drop stops it.
#[derive(Debug)]
pub(in crate::service) struct Preparing {
    pub(in crate::service) stop: Option<oneshot::Sender<()>>,
}

#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line {
    Progress { phase: String, done: u64, total: u64 },
    Stalled { device: String, operation: String, seconds: u64 },
    Notice { message: String },
    Planned(Box<Planned>),
    Result(Staged),
    Error(Failure),
}

/// Rules that a request overrides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::service) struct Overrides {
    /// Product and version need not match the running release.
    pub(in crate::service) compatibility: bool,
    /// A release that has failed its trial on this machine may be tried again.
    pub(in crate::service) retry: bool,
    /// A prepared bundle may be discarded for another one.
    pub(in crate::service) replace: bool,
}

impl Overrides {
    /// The flags of `prepare`. The epoch is not among them: no remote caller may bring back a release with known holes.
    fn flags(self) -> impl Iterator<Item = &'static str> {
        let compatibility = ["--allow-downgrade", "--override-product"].into_iter();
        compatibility.filter(move |_| self.compatibility).chain(self.retry.then_some("--retry"))
    }
}

/// Plans an upgrade to this bundle.
///
/// # Errors
/// The error that `plan` printed, with its code.
pub(in crate::service) async fn plan(
    arguments: &Arguments,
    path: &str,
    overrides: Overrides,
) -> Result<Planned> {
    let shown = address::shown(path);
    let died = |problem: String| Error::Worker { what: format!("looking at {shown}"), problem };
    let mut command = Command::new(PROGRAM);
    command.args(["plan", "--json", "--for-service"]).args(overrides.flags()).args(&arguments.machine);
    command.arg("--").arg(&*shown);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let run = async {
        let mut child = command.spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let mut process = WorkerProcess::new(child);
        let _open = name(stdin, path).await;
        let mut printed = Vec::new();
        if let Some(mut stdout) = stdout {
            stdout.read_to_end(&mut printed).await?;
        }
        Ok((process.wait().await?, printed))
    };
    let (status, printed) = tokio::time::timeout(PLAN_LIMIT, run)
        .await
        .map_err(|_| died(format!("took longer than {} s", PLAN_LIMIT.as_secs())))?
        .map_err(|error: io::Error| died(format!("cannot be started: {error}")))?;
    // A plan with obstacles is a report as well: the caller decides which of them hold.
    let reported = [0, Class::Refused.exit_code()].map(i32::from).contains(&status.code().unwrap_or(-1));
    let parsed = serde_json::from_slice(&printed);
    if let Ok(Line::Error(failure)) = parsed {
        return Err(Error::remote(&failure.code, &failure.message));
    }
    if reported {
        let report: serde_json::Value = serde_json::from_slice(&printed)
            .map_err(|problem| died(format!("printed no report: {problem}")))?;
        let mut planned = Planned::deserialize(&report).map_err(|problem| died(problem.to_string()))?;
        planned.report = report;
        return Ok(planned);
    }
    Err(died(ended(status)))
}

/// A prepare that has planned its bundle and waits for permission to continue. The drop ends it. It has the bundle open:
/// the planned bundle is the one that is prepared, even if the path has another by then, and a URL is fetched once.
#[derive(Debug)]
pub(in crate::service) struct Begun {
    process: WorkerProcess,
    /// The process ends when this is closed.
    lifeline: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    said: JoinHandle<String>,
}

/// Starts a prepare, up to its plan of the upgrade.
///
/// # Errors
/// [`Error::Worker`]: the process cannot be started or does not answer. Else the error that it printed, with its code.
pub(in crate::service) async fn begin(
    arguments: &Arguments,
    path: &str,
    overrides: Overrides,
) -> Result<(Planned, Begun)> {
    let mut command = Command::new(PROGRAM);
    command.args([
        "prepare",
        "--json",
        "--background",
        "--for-service",
        "--while-stdin-open",
        "--die-with-parent",
    ]);
    command.args(overrides.flags()).args(&arguments.prepare).args(&arguments.machine);
    command.arg("--").arg(&*address::shown(path));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let failed = |problem: String| Error::Worker { what: "preparing".to_owned(), problem };
    let unstarted = |error: io::Error| failed(format!("cannot be started: {error}"));
    let mut child = fork(command).await.map_err(unstarted)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let process = WorkerProcess::new(child);
    let said = tokio::spawn(last_words(stderr));
    let lifeline = name(stdin, path).await;
    let stdout = stdout.ok_or_else(|| failed("has no output".to_owned()))?;
    let mut begun = Begun { process, lifeline, lines: BufReader::new(stdout).lines(), said };
    let late = |_| failed(format!("looking at the bundle took longer than {} s", PLAN_LIMIT.as_secs()));
    let planned = tokio::time::timeout(PLAN_LIMIT, begun.planned()).await.map_err(late)??;
    Ok((planned, begun))
}

impl Begun {
    async fn planned(&mut self) -> Result<Planned> {
        while let Ok(Some(line)) = self.lines.next_line().await {
            match serde_json::from_str(&line) {
                Ok(Line::Planned(planned)) => return Ok(*planned),
                Ok(Line::Error(failure)) => return Err(Error::remote(&failure.code, &failure.message)),
                Ok(Line::Notice { message }) => tracing::info!(target: "prepare", "{message}"),
                _ => {}
            }
        }
        Err(Error::Worker { what: "looking at the bundle".to_owned(), problem: self.end().await })
    }

    /// How the process ended, with the end of its standard error.
    async fn end(&mut self) -> String {
        let problem = match self.process.wait().await {
            Ok(status) => ended(status),
            Err(error) => format!("is lost: {error}"),
        };
        let said = (&mut self.said).await.unwrap_or_default();
        let said = said.trim();
        if said.is_empty() { problem } else { format!("{problem} ({said})") }
    }

    /// Permits it to continue. It reports to `reports`; the last report is [`Report::Done`].
    pub(in crate::service) async fn go(mut self, reports: mpsc::Sender<Report>) -> Preparing {
        if let Some(lifeline) = &mut self.lifeline {
            // If the process is gone, its end gives the reason.
            let _ = lifeline.write_all(b"\n").await;
            let _ = lifeline.flush().await;
        }
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(supervise(self, stopped, reports));
        Preparing { stop: Some(stop) }
    }
}

/// Passes the name of the bundle by standard input, since every user can read the arguments of a process. The returned end
/// keeps that open.
async fn name(mut stdin: Option<ChildStdin>, path: &str) -> Option<ChildStdin> {
    if let Some(stdin) = &mut stdin {
        // If the process is gone already, its end gives the reason.
        let _ = stdin.write_all(&[path.as_bytes(), b"\0"].concat()).await;
        let _ = stdin.flush().await;
    }
    stdin
}

/// Starts a process from the thread for that; the process ends with the thread.
async fn fork(command: Command) -> io::Result<Child> {
    type Order = (Command, Handle, oneshot::Sender<io::Result<Child>>);
    static FORKER: Mutex<Option<std::sync::mpsc::Sender<Order>>> = Mutex::new(None);
    let lost = || io::Error::other("the thread that starts processes is gone");
    let (answer, answered) = oneshot::channel();
    {
        let mut forker = FORKER.lock().unwrap_or_else(PoisonError::into_inner);
        if forker.is_none() {
            let (sender, orders) = std::sync::mpsc::channel::<Order>();
            let work = move || {
                for (mut command, runtime, answer) in orders {
                    let _within = runtime.enter();
                    // If the caller is gone, the drop of the handle kills the child.
                    let _ = answer.send(command.spawn());
                }
            };
            workers::spawn("starting processes", work).map_err(io::Error::other)?;
            *forker = Some(sender);
        }
        let sender = forker.as_ref().ok_or_else(lost)?;
        sender.send((command, Handle::current(), answer)).map_err(|_| lost())?;
    }
    answered.await.map_err(|_| lost())?
}

/// Follows a prepare to its end. No other function signals it: only here is it certain that its process number has not been
/// reused.
async fn supervise(mut begun: Begun, mut stopped: oneshot::Receiver<()>, reports: mpsc::Sender<Report>) {
    let (mut outcome, mut asked) = (None, false);
    let mut meter = Meter::default();
    let deadline = tokio::time::sleep(Duration::MAX);
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            line = begun.lines.next_line() => match line {
                Ok(Some(line)) => match serde_json::from_str(&line) {
                    Ok(Line::Progress { phase, done, total }) => {
                        // If the channel is full, the owner is busy, and the next figure will do.
                        let _ = reports.try_send(Report::Progress(meter.percent(&phase, done, total)));
                    }
                    // A pipe whose writer is slow is no device that hangs: it ends with the prepare.
                    Ok(Line::Stalled { device, operation, seconds }) if operation == RECEIVE => {
                        tracing::info!(target: "prepare", "no data from {device} for {seconds} s");
                    }
                    Ok(Line::Stalled { device, seconds, .. }) => {
                        tracing::warn!(target: "prepare", "no answer from {device} for {seconds} s");
                        let _ = reports.try_send(Report::Stalled { device, seconds });
                    }
                    Ok(Line::Notice { message }) => tracing::info!(target: "prepare", "{message}"),
                    Ok(Line::Planned(_)) => {}
                    Ok(Line::Result(staged)) => outcome = Some(Ok(staged)),
                    Ok(Line::Error(failure)) => outcome = Some(Err(failure)),
                    Err(problem) => tracing::debug!("prepare printed '{line}': {problem}"),
                },
                Ok(None) | Err(_) => break,
            },
            _ = &mut stopped, if !asked => {
                asked = true;
                begun.process.terminate();
                deadline.as_mut().reset(tokio::time::Instant::now() + GRACE_PERIOD);
            }
            () = &mut deadline, if asked => {
                begun.process.kill();
                deadline.as_mut().reset(tokio::time::Instant::now() + GRACE_PERIOD);
            }
        }
    }
    let problem = begun.end().await;
    let outcome = outcome
        .unwrap_or_else(|| Err(Failure::from(&Error::Worker { what: "preparing".to_owned(), problem })));
    let _ = reports.send(Report::Done(outcome)).await;
}

/// The end of a process's standard error. All of it is read, so that the process never waits.
async fn last_words(stderr: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let (mut last, mut buffer) = (Vec::new(), [0; 1024]);
    while let Ok(len @ 1..) = stderr.read(&mut buffer).await {
        last.extend_from_slice(buffer.get(..len).unwrap_or_default());
        let excess = last.len().saturating_sub(1024);
        last.drain(..excess);
    }
    let text = String::from_utf8_lossy(&last);
    text.lines().last().unwrap_or_default().to_owned()
}

fn ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was ended by signal {signal}"),
        (None, code) => format!("ended with exit code {}", code.unwrap_or_default()),
    }
}

/// One scale for all phases: writing is most of the work; on usual devices reading back is faster.
#[derive(Debug, Default)]
struct Meter {
    best: u8,
}

impl Meter {
    fn percent(&mut self, phase: &str, done: u64, total: u64) -> u8 {
        let named = |phase: Phase| {
            serde_json::to_value(phase)
                .ok()
                .and_then(|name| name.as_str().map(str::to_owned))
                .unwrap_or_default()
        };
        let (from, span) = match phase {
            _ if phase == named(Phase::ReadBack) => (70, 29),
            _ if phase == named(Phase::Write) => (0, 70),
            // The check of a prepared slot: if it is not whole, writing begins, and the figure must not fall.
            _ => (0, 1),
        };
        let part = (u128::from(done.min(total)) * span).checked_div(u128::from(total)).unwrap_or(span);
        let percent = u8::try_from(from + part).unwrap_or(99);
        self.best = self.best.max(percent);
        self.best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_never_falls_and_never_reaches_the_end() {
        let mut meter = Meter::default();
        assert_eq!(meter.percent("scrub", 10, 10), 1);
        assert_eq!(meter.percent("write", 0, 10), 1, "a slot that is written after all");
        assert_eq!(meter.percent("write", 5, 10), 35);
        assert_eq!(meter.percent("write", 50, 10), 70);
        assert_eq!(meter.percent("read-back", 0, 10), 70);
        assert_eq!(meter.percent("read-back", u64::MAX, u64::MAX), 99);
        assert_eq!(meter.percent("write", 0, 0), 99);
    }

    #[test]
    fn the_lines_of_prepare_are_understood() {
        let line = r#"{"v":1,"event":"progress","phase":"read-back","done":1,"total":2,"rate":7}"#;
        assert!(matches!(serde_json::from_str(line).unwrap(), Line::Progress { done: 1, total: 2, .. }));
        let line = r#"{"v":1,"event":"error","code":"C","class":"io","message":"m"}"#;
        assert!(matches!(serde_json::from_str(line).unwrap(), Line::Error(f) if f.code == "C"));
    }
}
