//! `qstage prepare`.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use clap::Args;

use super::args::{InputArgs, JobsArgs, MachineArgs, OverrideArgs, TrustArgs};
use super::download::{DownloadArgs, ForMachine, WholeInput};
use super::for_service::ForServiceArgs;
use super::machine::{self, Host, OpenedInput};
use super::output::{self, Format, Palette};
use super::progress::Reporter;
use crate::bundle::Bundle;
use crate::engine::PrepareOptions;
use crate::error::{Error, Result};
use crate::host::load;
use crate::progress::Cancel;
use crate::sandbox::Kept;
use crate::source::address::Address;
use crate::state::{PrepareReport, UpgradeType};
use crate::units::{Blake3, size};
use crate::workers;

/// Write a bundle into the inactive slot, and verify it
///
/// Checks the signature before anything else, and every frame before it is written.
/// Flushes, reads the slot back past the page cache, and only then marks it as whole.
/// The running slot and the selection of the next boot do not change: 'qstage commit'
/// does that. If it is interrupted, run it again: it continues where it stopped.
#[derive(Debug, Args)]
pub(super) struct PrepareArgs {
    /// Bundle or delta to install: a file or http(s) URL; '-' is standard input
    bundle: PathBuf,

    /// Whole bundle, if BUNDLE is a delta: for frames that cannot be made
    ///
    /// A file or URL. It supplies frames that the delta leaves out, or whose part of
    /// the running slot is damaged. Nothing else is read of it.
    #[arg(long = "bundle", value_name = "WHOLE")]
    whole: Option<PathBuf>,

    #[command(flatten)]
    jobs: JobsArgs,

    /// Write at most this many bytes per second, such as 50M [default: no limit]
    ///
    /// So the disk stays responsive for other processes. It limits the bytes of the
    /// images that are written, their zeroes too: those that the bar and 'rate' of --json
    /// count. Not limited: what is in place already, reading back, and zeroing the rest of
    /// the slot, which most disks do by a command.
    #[arg(long, value_name = "RATE", value_parser = size::parse_rate)]
    max_rate: Option<u64>,

    /// Do not read the slot back after the write
    ///
    /// Saves the time of the read, and trusts the disk.
    #[arg(long)]
    no_read_back: bool,

    /// Verify the SHA-256 of the whole images too
    ///
    /// Every frame is verified by BLAKE3 in any case. This adds no assurance, and takes
    /// longer than everything else on processors without SHA instructions.
    #[arg(long)]
    sha256: bool,

    /// Print the writes and barriers, and write nothing
    ///
    /// Checks all that prepare checks before its first write. A slot that holds the bundle
    /// already is read and verified.
    #[arg(long)]
    dry_run: bool,

    /// Print progress and result as JSON lines
    #[arg(long)]
    pub(super) json: bool,

    /// Run with the lowest priority, so that other processes are not slowed down
    ///
    /// With nice 19, from which the kernel derives the priority of disk accesses. And with
    /// a pause of 60 ms each second, to measure whether others wait for the disk or for
    /// memory (/proc/pressure); while they do, it continues to pause, for 2 s at most.
    #[arg(long)]
    background: bool,

    /// In the background, write at least this many bytes per second, such as 5M
    ///
    /// Below this rate there are no pauses, even if others wait. Without it, work continues
    /// for 250 ms after each pause of 2 s: a machine that is always busy gets its upgrade
    /// too.
    #[arg(long, value_name = "RATE", value_parser = size::parse_rate)]
    min_rate: Option<u64>,

    /// Accept only the bundle whose manifest has this BLAKE3
    ///
    /// 'qstage plan --json' shows it ('manifest'): so the bundle that was planned is the
    /// one that is prepared.
    #[arg(long, value_name = "BLAKE3")]
    manifest: Option<Blake3>,

    /// Stop when standard input is closed: for a program that starts this one
    ///
    /// However that program ends, this one does not continue alone.
    #[arg(long)]
    while_stdin_open: bool,

    /// Be killed when the thread that started this process ends
    #[arg(long, hide = true)]
    die_with_parent: bool,

    #[command(flatten)]
    service: ForServiceArgs,

    #[command(flatten)]
    overrides: OverrideArgs,

    #[command(flatten)]
    input: InputArgs,

    #[command(flatten)]
    download: DownloadArgs,

    #[command(flatten)]
    trust: TrustArgs,

    #[command(flatten)]
    machine: MachineArgs,
}

impl PrepareArgs {
    pub(super) fn run(&self) -> Result<()> {
        if self.die_with_parent {
            // Before everything else. If the kernel refuses it, the end of standard input has the same effect.
            let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        }
        let format = Format::lines_if(self.json);
        let mut settings = self.machine.settings()?;
        let allowed = self.service.allowed(&mut settings);
        let named = self.service.name(&self.bundle)?;
        let web = self.download.web(self.input.web(&settings));
        let timeout = self.input.timeout(&settings);
        if self.background {
            lower_priority(self.while_stdin_open);
        }
        let policy = self.download.policy(self.overrides.policy(settings.policy()), &settings);
        let cancel = machine::cancel_on_signals()?;
        if self.while_stdin_open && named == Path::new("-") {
            let what = "--while-stdin-open".to_owned();
            let problem = "the bundle comes from standard input".to_owned();
            return Err(Error::Argument { what, problem });
        }
        let mut options = PrepareOptions {
            jobs: self.jobs.jobs.or(settings.jobs),
            max_rate: self.max_rate.or(settings.max_rate),
            min_rate: self.min_rate.or(settings.min_rate),
            background: self.background,
            read_back: !self.no_read_back,
            sha256: self.sha256,
            cancel,
            origin: Address::parse(&named)?.origin(),
            whole: None,
        };
        let progress = Arc::new(Reporter::new(format));
        let host =
            if self.dry_run { Host::open_to_look(&settings)? } else { Host::open_to_change(&settings)? };
        let engine = host.engine(policy);
        // Before the service has accepted the order, a refusal is not recorded here: the service does that.
        let asked = !self.service.for_service && !self.dry_run;
        let refused = |error| if asked { engine.bundle_refused(&options.origin, error) } else { error };
        let trust = Arc::new(self.trust.open(&settings.trust, &progress).map_err(refused)?);
        let input =
            OpenedInput::open_allowed(&named, allowed.as_ref(), timeout, &options.cancel).map_err(refused)?;
        let whole =
            self.whole.as_deref().map(|whole| WholeInput::open(whole, timeout, &options.cancel)).transpose();
        let whole = whole.map_err(refused)?;
        let network = whole.as_ref().is_some_and(WholeInput::is_web);
        let kept = if self.dry_run { host.kept_to_look(&settings) } else { host.kept_to_change(&settings) };
        let kept = Kept { network, ..kept };
        let input = input.confine(kept, &web, &progress)?;
        let heard = if self.while_stdin_open { Some(stop_with_stdin(&options.cancel)?) } else { None };
        let (cancel, notice) = (options.cancel.clone(), machine::notices(&progress));
        let read = ForMachine {
            engine: &engine,
            allowed: allowed.as_ref(),
            trust: &trust,
            web: &web,
            cancel: &cancel,
            notice: &notice,
        };
        let (bundle, whole) =
            read.read(input, whole, |bundle| self.check_expected(bundle)).map_err(refused)?;
        options.whole = whole.map(Arc::new);
        if self.dry_run {
            let report = engine.prepare_dry_run(&bundle, &options, &progress)?;
            drop(progress);
            return output::dry_run(format, &report);
        }
        if let Some(heard) = heard.filter(|_| self.service.for_service) {
            // One process plans and prepares: so the planned bundle is the one that is prepared, and a URL is fetched once.
            let plan = engine.plan(&bundle, options.whole.as_deref())?;
            output::print(&output::json_line(&output::JsonEvent::new("planned", &plan))?)?;
            wait_for_word(&heard, &options.cancel)?;
        }
        let report = engine.prepare(bundle, &options, &progress)?;
        // The lock and the slot are released before the report, since its reader may be slow.
        drop((progress, host));
        output::outcome(format, &report, human)
    }
}

impl PrepareArgs {
    /// Refuses another bundle than the one that was required.
    fn check_expected(&self, bundle: &Bundle) -> Result<()> {
        let found = bundle.manifest().digest();
        match self.manifest.filter(|expected| *expected != found) {
            Some(expected) => {
                Err(Error::OtherBundle { expected: expected.to_string(), found: found.to_string() })
            }
            None => Ok(()),
        }
    }
}

/// Lowers the priority. To be called before any thread is started: niceness is per thread, and later threads inherit it. The
/// best-effort I/O priority follows from it (ioprio_set(2)); the idle class was rejected, since on a busy disk it never ends.
fn lower_priority(of_a_service: bool) {
    // Only an increase of the priority can be forbidden.
    let _ = rustix::process::nice(19);
    // If the scheduler groups processes by session (sched(7), autogroup), niceness has no effect between sessions, but each
    // session has a niceness; so a new session is started. A terminal cannot interrupt it, so only a child of the service does
    // this, which is stopped in another way.
    if of_a_service {
        load::lower_session();
    }
}

/// Requests a stop when standard input ends. The receiver gets a message at the first byte; later bytes are ignored.
fn stop_with_stdin(cancel: &Cancel) -> Result<Receiver<()>> {
    let cancel = cancel.clone();
    let (word, heard) = mpsc::channel();
    workers::spawn("watching standard input", move || {
        let mut stdin = io::stdin().lock();
        if stdin.read_exact(&mut [0]).is_ok() {
            let _ = word.send(());
            let _ = io::copy(&mut stdin, &mut io::sink());
        }
        cancel.request();
    })?;
    Ok(heard)
}

/// Waits until the parent process has read the plan and accepts it.
fn wait_for_word(heard: &Receiver<()>, cancel: &Cancel) -> Result<()> {
    loop {
        match heard.recv_timeout(Duration::from_millis(100)) {
            Ok(()) => return Ok(()),
            Err(RecvTimeoutError::Timeout) if !cancel.requested() => {}
            Err(_) => {
                return Err(Error::Interrupted { doing: "waiting for the order to prepare".to_owned() });
            }
        }
    }
}

fn human(report: &PrepareReport, palette: Palette) -> String {
    let verified = if report.read_back { "read back and verified" } else { "not read back" };
    let effect = match report.upgrade_type {
        UpgradeType::SoftwareOnly => "software only, no reboot needed",
        UpgradeType::SoftwareAndPlatform => "takes a reboot",
    };
    let copied = report.copied_bytes.map_or_else(String::new, |copied| {
        let downloaded = size::human(report.downloaded_bytes.unwrap_or_default());
        format!("{downloaded} downloaded, {} copied from what runs.\n", size::human(copied))
    });
    let delta = report.delta.map_or_else(String::new, |delta| {
        format!(
            "Of a delta of {}: {} copied from what runs, {} patched, {} taken from the whole bundle.\n",
            size::human(delta.downloaded_bytes),
            size::human(delta.copied_bytes),
            size::human(delta.patched_bytes),
            size::human(delta.fallen_back_bytes),
        )
    });
    format!(
        "{} {} in {}, {verified} ({effect}): {} written, {} zeroed, {} in place already, {:.1} s\n\
         {copied}{delta}'qstage commit' switches to it.\n",
        report.version,
        palette.good("prepared"),
        report.targets.join(" and "),
        size::human(report.written_bytes),
        size::human(report.zeroed_bytes),
        size::human(report.reused_bytes),
        report.seconds,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_read_back_is_said_to_be_so() {
        let mut report = PrepareReport {
            upgrade_type: UpgradeType::SoftwareAndPlatform,
            version: "1.1".into(),
            targets: vec!["platform_b".into(), "software_b".into()],
            image_bytes: 3 << 20,
            written_bytes: 1 << 20,
            zeroed_bytes: 1 << 20,
            reused_bytes: 1 << 20,
            downloaded_bytes: None,
            copied_bytes: None,
            delta: None,
            read_back: true,
            seconds: 1.25,
        };
        assert_eq!(
            human(&report, Palette::PLAIN),
            "1.1 prepared in platform_b and software_b, read back and verified (takes a reboot): 1.0 MiB written, \
             1.0 MiB zeroed, 1.0 MiB in place already, 1.2 s\n'qstage commit' switches to it.\n"
        );
        report.read_back = false;
        assert!(human(&report, Palette::PLAIN).contains(", not read back ("));
    }
}
