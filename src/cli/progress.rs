//! Progress of a long step: JSON lines on standard output for programs; on standard error a bar on a terminal, else a plain
//! line at intervals.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::outlet;
use super::output::{Format, JsonEvent, json_line, note};
use super::pace::{Figures, Meter, Pace};
use super::terminal;
use crate::device::watch::{PendingTransfer, RECEIVE, silent};
use crate::progress::{Phase, Progress};
use crate::sandbox;
use crate::units::size;
use crate::workers;

/// Interval of JSON progress events: 5 Hz suits a display, and a log stays readable.
const JSON_EVERY: Duration = Duration::from_millis(200);
/// Interval of plain lines: acceptable for the journal of a ten-minute upgrade.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Time without a response of the device after which a notice appears. A disk that spins up takes 10 s, a flush of a slow disk
/// some seconds.
const SILENCE: Duration = Duration::from_secs(5);
/// Interval at which the notice is repeated.
const SILENT_AGAIN: Duration = Duration::from_secs(10);

/// Shows the progress of one verb; cleans up the terminal when dropped.
pub(super) struct Reporter {
    start: Instant,
    view: Arc<Mutex<View>>,
}

/// State under the lock. Time is an argument, so that tests can advance it.
struct View {
    kind: Kind,
    pace: Pace,
    meter: Option<Meter>,
    /// Time of the last progress.
    moved: Duration,
    /// Whether figures were withheld, since an event was not due.
    withheld: bool,
}

enum Kind {
    Json(Box<dyn Write + Send>),
    Lines(Box<dyn Write + Send>),
    Bar(ProgressBar),
}

/// Body of a `notice` event.
#[derive(Serialize)]
struct Notice<'a> {
    message: &'a str,
}

/// Body of a `stalled` event.
#[derive(Serialize)]
struct Stalled<'a> {
    device: &'a str,
    operation: &'static str,
    /// Seconds since the request to the device.
    seconds: u64,
    /// Seconds since the last progress.
    idle_seconds: u64,
}

impl Reporter {
    /// The reporter that fits the format and the terminal.
    pub(super) fn new(format: Format) -> Self {
        let kind = match format {
            Format::Lines => Kind::Json(Box::new(outlet::out())),
            _ if io::stderr().is_terminal() => {
                Kind::Bar(ProgressBar::with_draw_target(None, terminal::target()))
            }
            _ => Kind::Lines(Box::new(outlet::err())),
        };
        let (start, view) = (Instant::now(), Arc::new(Mutex::new(View::new(kind))));
        let watched = Arc::downgrade(&view);
        // A thread that hangs in the kernel cannot report it. If no thread can be started, there is no report.
        // It exists before the rights of the process are dropped, so it drops its own; and no byte of a bundle is read before.
        let (dropped, are_dropped) = mpsc::channel::<()>();
        let watch = move || {
            let entered = sandbox::enter_thread();
            drop(dropped);
            entered.map(|()| watch_device(&watched, start))
        };
        let _ = workers::spawn("watching the device", watch);
        let _ = are_dropped.recv();
        Self { start, view }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        // A panic elsewhere leaves at worst a wrong figure in the display.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reports how long a device has not responded, until the view is dropped.
fn watch_device(view: &Weak<Mutex<View>>, start: Instant) {
    let mut said: Option<Instant> = None;
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let Some(view) = view.upgrade() else { return };
        let waiting = silent(SILENCE);
        if waiting.is_none() {
            said = None;
        }
        if let Some(waiting) = waiting.filter(|_| said.is_none_or(|said| said.elapsed() >= SILENT_AGAIN)) {
            said = Some(Instant::now());
            // Without waiting: the thread that holds the view may be the one that hangs.
            if let Ok(mut view) = view.try_lock() {
                view.stalled(&waiting, start.elapsed());
            }
        } else if let Ok(mut view) = view.try_lock() {
            view.catch_up(start.elapsed());
        }
    }
}

impl Progress for Reporter {
    fn begin(&self, phase: Phase, total: u64) {
        self.view().begin(phase, total, self.start.elapsed());
    }

    fn advance(&self, bytes: u64) {
        self.view().advance(bytes, self.start.elapsed());
    }

    fn reuse(&self, bytes: u64) {
        self.view().reuse(bytes, self.start.elapsed());
    }

    fn notice(&self, message: &str) {
        self.view().notice(message);
    }
}

impl View {
    fn new(kind: Kind) -> Self {
        let every = if matches!(kind, Kind::Json(_)) { JSON_EVERY } else { LINE_EVERY };
        Self { kind, pace: Pace::new(every), meter: None, moved: Duration::ZERO, withheld: false }
    }

    fn begin(&mut self, phase: Phase, total: u64, now: Duration) {
        let meter = Meter::begin(phase, total, now);
        self.moved = now;
        self.meter = Some(meter);
        if let Kind::Bar(bar) = &self.kind {
            // Each call may draw: the style with figures comes last, when they are those of this phase.
            bar.set_style(style(TEMPLATE_WITHOUT_BYTES));
            bar.set_prefix(label(phase));
            bar.reset();
            bar.set_length(total);
            bar.set_message(String::new());
            if total > 0 {
                bar.set_style(style(template(terminal::columns())));
            }
        }
        self.show(now);
    }

    fn advance(&mut self, bytes: u64, now: Duration) {
        self.count(now, |meter| meter.advance(bytes));
    }

    fn reuse(&mut self, bytes: u64, now: Duration) {
        // Nothing may be in place.
        if bytes > 0 {
            self.count(now, |meter| meter.reuse(bytes));
        }
    }

    fn count(&mut self, now: Duration, count: impl FnOnce(&mut Meter)) {
        self.moved = now;
        if let Some(meter) = &mut self.meter {
            count(meter);
        }
        self.show(now);
    }

    /// Draws a bar with the figures at `now`; other kinds show what is new only.
    fn draw(&self, now: Duration) {
        let (Kind::Bar(bar), Some(meter)) = (&self.kind, &self.meter) else { return };
        let figures = meter.figures(now);
        if figures.total > 0 {
            bar.set_message(beside_bar(&figures, terminal::columns()));
            bar.set_position(figures.done);
        }
    }

    /// Shows what is new while nothing moves: rate and time left beside a bar; figures that were withheld, which would be missing
    /// for as long as a source or a device stalls.
    fn catch_up(&mut self, now: Duration) {
        if self.withheld {
            self.show(now);
        } else {
            self.draw(now);
        }
    }

    /// Shows the figures if they are due. A failure to write is ignored: a lost progress line is no reason to stop an upgrade.
    fn show(&mut self, now: Duration) {
        let Some(meter) = &self.meter else { return };
        if matches!(self.kind, Kind::Bar(_)) {
            self.draw(now);
            return;
        }
        self.withheld = !self.pace.due(now);
        if self.withheld {
            return;
        }
        let figures = meter.figures(now);
        match &mut self.kind {
            Kind::Json(out) => put_json(out, &JsonEvent::new("progress", figures)),
            Kind::Lines(out) => {
                // One write, which an outlet treats as one line.
                let _ = out.write_all(format!("qstage: {}\n", line(&figures)).as_bytes());
            }
            Kind::Bar(_) => {}
        }
    }

    /// Reports that a device does not respond, and the time since the last progress.
    fn stalled(&mut self, waiting: &PendingTransfer, now: Duration) {
        let idle = now.saturating_sub(self.moved).as_secs();
        if let Kind::Json(out) = &mut self.kind {
            let seconds = waiting.age.as_secs();
            let body = Stalled {
                device: &waiting.device,
                operation: waiting.operation,
                seconds,
                idle_seconds: idle,
            };
            put_json(out, &JsonEvent::new("stalled", body));
        } else {
            let held = if waiting.operation == RECEIVE { "" } else { "; a request to stop waits for it too" };
            self.notice(&format!("{waiting}; last progress {idle} s ago{held}"));
        }
    }

    fn notice(&mut self, message: &str) {
        match &mut self.kind {
            Kind::Json(out) => put_json(out, &JsonEvent::new("notice", Notice { message })),
            Kind::Lines(out) => {
                let _ = out.write_all(format!("qstage: note: {message}\n").as_bytes());
            }
            Kind::Bar(bar) => bar.suspend(|| note(message)),
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Kind::Bar(bar) = &self.kind {
            bar.finish_and_clear();
        }
    }
}

fn put_json(out: &mut dyn Write, event: &impl Serialize) {
    if let Ok(line) = json_line(event) {
        let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    }
}

const fn label(phase: Phase) -> &'static str {
    match phase {
        Phase::Pack => "packing",
        Phase::Verify => "verifying",
        Phase::Probe => "comparing",
        Phase::Zero => "zeroing",
        Phase::Write => "writing",
        Phase::ReadBack => "reading back",
        Phase::Scrub => "scrubbing",
    }
}

/// Number of columns from which there is room for a bar; it takes what its figures leave.
const ROOM_FOR_BAR: u16 = 76;
const TEMPLATE_WITH_BAR: &str = "{prefix:>12} [{wide_bar}] {msg}";
const TEMPLATE_WITHOUT_BAR: &str = "{prefix:>12} {msg}";
/// Of a phase without bytes: figures would be 0 of 0.
const TEMPLATE_WITHOUT_BYTES: &str = "{prefix:>12}";

const fn template(columns: u16) -> &'static str {
    if columns >= ROOM_FOR_BAR { TEMPLATE_WITH_BAR } else { TEMPLATE_WITHOUT_BAR }
}

/// The figures beside a bar, or instead of one. From 100 columns with the bytes that are in place, which the rate leaves out.
fn beside_bar(figures: &Figures, columns: u16) -> String {
    let (done, total) = (size::human(figures.done), size::human(figures.total));
    let (percent, rate) = (figures.percent(), size::human(figures.rate));
    let left = figures.seconds_left().map_or_else(|| "?".to_owned(), |left| format!("{left} s"));
    match columns {
        100.. if figures.reused > 0 => {
            let reused = size::human(figures.reused);
            format!("{done}/{total}, {reused} in place, {rate}/s, {left}")
        }
        ROOM_FOR_BAR.. => format!("{done}/{total} {rate}/s {left}"),
        52.. => format!("{percent:>3}% {done}/{total} {left}"),
        _ => format!("{percent:>3}% {rate}/s"),
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constant and tested; if one were wrong, a default bar is better than none.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// A plain line of progress.
fn line(figures: &Figures) -> String {
    if figures.total == 0 {
        return label(figures.phase).to_owned();
    }
    let mut text = format!(
        "{}: {} of {} ({} %)",
        label(figures.phase),
        size::human(figures.done),
        size::human(figures.total),
        figures.percent()
    );
    if figures.reused > 0 {
        text.push_str(&format!(", {} in place", size::human(figures.reused)));
    }
    if let Some(left) = figures.seconds_left() {
        text.push_str(&format!(", {}/s, {left} s left", size::human(figures.rate)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Paper {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Paper {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(buf)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn json_events_come_at_most_five_times_a_second() {
        let paper = Paper::default();
        let mut view = View::new(Kind::Json(Box::new(paper.clone())));
        view.begin(Phase::Write, 10_000, ms(0));
        for at in 1..=2000 {
            view.advance(5, ms(at));
        }
        let text = paper.text();
        assert_eq!(
            text.lines().next(),
            Some(r#"{"v":1,"event":"progress","phase":"write","done":0,"total":10000,"rate":0}"#)
        );
        assert_eq!(
            text.lines().nth(1),
            Some(r#"{"v":1,"event":"progress","phase":"write","done":1000,"total":10000,"rate":5000}"#)
        );
        assert_eq!(text.lines().count(), 11, "one at 0 ms, then one each 200 ms up to 2000 ms");
        view.notice("the table was repaired");
        assert!(
            paper.text().ends_with("{\"v\":1,\"event\":\"notice\",\"message\":\"the table was repaired\"}\n")
        );
    }

    /// Half of a bundle arrives at once, then the link stalls.
    #[test]
    fn figures_that_were_withheld_follow() {
        let paper = Paper::default();
        let mut view = View::new(Kind::Json(Box::new(paper.clone())));
        view.begin(Phase::Write, 1000, ms(0));
        view.advance(500, ms(10));
        [100, 500, 1000, 1500].into_iter().for_each(|at| view.catch_up(ms(at)));
        let text = paper.text();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.ends_with("\"done\":500,\"total\":1000,\"rate\":1000}\n"), "{text}");
    }

    #[test]
    fn plain_lines_come_every_few_seconds() {
        let paper = Paper::default();
        let mut view = View::new(Kind::Lines(Box::new(paper.clone())));
        view.begin(Phase::ReadBack, 4 << 20, ms(0));
        for at in 1..=8 {
            view.advance(1 << 19, ms(at * 1000));
        }
        assert_eq!(
            paper.text(),
            "qstage: reading back: 0 B of 4.0 MiB (0 %)\n\
             qstage: reading back: 2.5 MiB of 4.0 MiB (62 %), 512.0 KiB/s, 3 s left\n"
        );
    }

    #[test]
    fn the_templates_are_valid_and_follow_the_width() {
        for template in [TEMPLATE_WITH_BAR, TEMPLATE_WITHOUT_BAR, TEMPLATE_WITHOUT_BYTES] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
        assert_eq!([template(76), template(75)], [TEMPLATE_WITH_BAR, TEMPLATE_WITHOUT_BAR]);
        let figures =
            Figures { phase: Phase::Write, done: 3 << 29, total: 1 << 31, rate: 20 << 20, reused: 1 << 30 };
        for (columns, shown) in [
            (200, "1.5 GiB/2.0 GiB, 1.0 GiB in place, 20.0 MiB/s, 26 s"),
            (99, "1.5 GiB/2.0 GiB 20.0 MiB/s 26 s"),
            (75, " 75% 1.5 GiB/2.0 GiB 26 s"),
            (40, " 75% 20.0 MiB/s"),
        ] {
            assert_eq!(beside_bar(&figures, columns), shown);
        }
        assert_eq!(
            line(&figures),
            "writing: 1.5 GiB of 2.0 GiB (75 %), 1.0 GiB in place, 20.0 MiB/s, 26 s left"
        );
        let nothing = Figures { phase: Phase::Verify, done: 0, total: 0, rate: 0, reused: 0 };
        assert_eq!(line(&nothing), "verifying");
    }
}
