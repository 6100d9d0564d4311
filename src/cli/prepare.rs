//! `qstage prepare`.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use clap::Args;

use super::args::{JobsArgs, MachineArgs, MirrorArgs, OverrideArgs, TrustArgs};
use super::for_service::ForServiceArgs;
use super::machine::{self, Host, Input, WholeInput};
use super::output::{self, Format, Palette};
use super::progress::Reporter;
use crate::bundle::Bundle;
use crate::engine::PrepareOptions;
use crate::error::{Error, Result};
use crate::host::load;
use crate::progress::Cancel;
use crate::source::address::Address;
use crate::state::{PrepareReport, UpgradeType};
use crate::units::{Blake3, size};
use crate::workers;

/// Write a bundle into the slot that does not run, and verify it
///
/// Checks the signature before anything else and every frame before it is written,
/// flushes, reads the slot back past the page cache, and only then calls it whole. The
/// running slot is not touched, and what boots next does not change: 'qstage commit'
/// does that. If it is interrupted, run it again: it goes on where it stopped.
#[derive(Debug, Args)]
pub(super) struct PrepareArgs {
    /// Bundle or delta to install: a file or http(s) URL; '-' is standard input
    bundle: PathBuf,

    /// Whole bundle, where BUNDLE is a delta: for frames that cannot be made
    ///
    /// A file. Frames are taken from it that the delta leaves out, or whose
    /// part of the running slot is damaged.
    #[arg(long = "bundle", value_name = "WHOLE")]
    whole: Option<PathBuf>,

    #[command(flatten)]
    jobs: JobsArgs,

    /// Write at most this many bytes per second, such as 50M [default: no limit]
    ///
    /// Keeps a disk responsive for what runs meanwhile.
    #[arg(long, value_name = "RATE", value_parser = size::parse_rate)]
    max_rate: Option<u64>,

    /// Do not read the slot back when it is written
    ///
    /// Saves the time of reading it, and trusts the disk.
    #[arg(long)]
    no_read_back: bool,

    /// Verify the SHA-256 of the whole images too
    ///
    /// Every frame is verified by BLAKE3 in any case. This proves nothing more, and takes
    /// longer than all the rest on processors without SHA instructions.
    #[arg(long)]
    sha256: bool,

    /// Print progress and result as JSON lines
    #[arg(long)]
    pub(super) json: bool,

    /// Run with the lowest priority, so that what else runs is not slowed down
    ///
    /// For the processor nice 19, from which the kernel derives the priority of disk
    /// accesses. And a pause of 60 ms each second, to listen whether others wait for the
    /// disk or for memory (/proc/pressure); while they do it goes on pausing, for 2 s at
    /// most.
    #[arg(long)]
    background: bool,

    /// In the background, write at least this many bytes per second, such as 5M
    ///
    /// Below it no pause is made, whoever waits. Without it work goes on for 250 ms after
    /// each pause of 2 s: a machine that is always busy gets its upgrade too.
    #[arg(long, value_name = "RATE", value_parser = size::parse_rate)]
    min_rate: Option<u64>,

    /// Take no bundle but the one whose manifest has this BLAKE3
    ///
    /// 'qstage plan --json' names it ('manifest'): what was looked at is what is prepared.
    #[arg(long, value_name = "BLAKE3")]
    manifest: Option<Blake3>,

    /// Stop when standard input is closed: for a program that starts this one
    ///
    /// However that program ends, this one does not go on alone.
    #[arg(long)]
    while_stdin_open: bool,

    /// Be killed when the thread ends that started this
    #[arg(long, hide = true)]
    die_with_parent: bool,

    #[command(flatten)]
    service: ForServiceArgs,

    #[command(flatten)]
    overrides: OverrideArgs,

    #[command(flatten)]
    mirrors: MirrorArgs,

    #[command(flatten)]
    trust: TrustArgs,

    #[command(flatten)]
    machine: MachineArgs,
}

impl PrepareArgs {
    pub(super) fn run(&self) -> Result<()> {
        if self.die_with_parent {
            // First of all. Where the kernel refuses it, standard input tells.
            let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        }
        let format = Format::lines_if(self.json);
        let mut settings = self.machine.settings()?;
        let allowed = self.service.allowed(&mut settings);
        let named = self.service.name(&self.bundle)?;
        let web = self.mirrors.web(&settings);
        if self.background {
            lower_priority(self.while_stdin_open);
        }
        let policy = self.overrides.policy(settings.policy());
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
        let host = Host::open_to_change(&settings)?;
        let engine = host.engine(policy);
        // Until the service has accepted the order nobody has asked for this bundle; it keeps the refusal then.
        let asked = !self.service.for_service;
        let refused = |error| if asked { engine.bundle_refused(&options.origin, error) } else { error };
        let trust = self.trust.open(&settings.trust, &progress).map_err(refused)?;
        let input = Input::open_allowed(&named, allowed.as_ref(), &options.cancel).map_err(refused)?;
        let whole = self.whole.as_deref().map(|whole| WholeInput::open(whole, &options.cancel)).transpose();
        let whole = whole.map_err(refused)?;
        let input = input.confine(host.kept_to_change(&settings), &web, &progress)?;
        let heard = if self.while_stdin_open { Some(stop_with_stdin(&options.cancel)?) } else { None };
        let bundle = input
            .bundle(&trust, &web, &options.cancel, &machine::notices(&progress))
            .and_then(|bundle| self.expected(bundle))
            .map_err(refused)?;
        let whole = whole.map(|whole| whole.bundle(&trust)).transpose().map_err(refused)?;
        options.whole = whole.map(Arc::new);
        if let Some(heard) = heard.filter(|_| self.service.for_service) {
            // One process looks and prepares: what was looked at is what is prepared, and a URL is fetched once.
            let plan = engine.plan(&bundle, options.whole.as_deref())?;
            output::print(&output::json_line(&output::Event::new("planned", &plan))?)?;
            wait_for_word(&heard, &options.cancel)?;
        }
        let report = engine.prepare(bundle, &options, &progress)?;
        // The lock and the slot are released before the report: whoever reads it may take its time.
        drop((progress, host));
        output::outcome(format, &report, human)
    }
}

impl PrepareArgs {
    /// The bundle, if it is the one that was asked for.
    fn expected(&self, bundle: Bundle) -> Result<Bundle> {
        let found = bundle.manifest().digest();
        match self.manifest.filter(|expected| *expected != found) {
            Some(expected) => {
                Err(Error::OtherBundle { expected: expected.to_string(), found: found.to_string() })
            }
            None => Ok(bundle),
        }
    }
}

/// Before any thread is started: niceness is one thread's, and those that come later inherit it. The best-effort
/// I/O priority follows from it (ioprio_set(2)); the idle class was rejected, since on a busy disk it never ends.
fn lower_priority(of_a_service: bool) {
    // Only raising it can be forbidden.
    let _ = rustix::process::nice(19);
    // Between sessions niceness counts for nothing where the scheduler groups processes by them (sched(7), autogroup);
    // a session of our own has one niceness for all. A terminal could not interrupt us there any more, so this is for
    // who is ended in another way.
    if of_a_service {
        load::lower_session();
    }
}

/// Requests a stop when standard input ends.
/// What is returned hears of the first byte that comes; of those after it only the end counts.
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

/// Waits until whoever started this has seen the plan and wants it.
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
         {delta}'qstage commit' switches to it.\n",
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
