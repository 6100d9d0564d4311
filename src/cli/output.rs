//! Standard output: results for people or for machines. Progress and messages go to standard error, so that
//! a pipe carries the result alone.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::outlet;

use crate::error::{Class, Error, Result, sentence};
use crate::state::SwitchReport;
use crate::units::text;

/// Format of a verb's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Text for people.
    Human,
    /// One JSON object.
    Object,
    /// JSON lines: progress events while it runs, then one `result` or `error` event.
    Lines,
}

impl Format {
    /// The format of a verb that prints only its result.
    pub(super) const fn object_if(json: bool) -> Self {
        if json { Self::Object } else { Self::Human }
    }

    /// The format of a verb that shows progress.
    pub(super) const fn lines_if(json: bool) -> Self {
        if json { Self::Lines } else { Self::Human }
    }
}

/// Version of the events; it is raised when the meaning of a key changes, not when a key is added.
const EVENT_VERSION: u8 = 1;

/// One line of the JSON lines. The keys that every event has come first, then those of its kind.
#[derive(Serialize)]
pub(super) struct JsonEvent<'a, T: Serialize> {
    v: u8,
    event: &'a str,
    #[serde(flatten)]
    body: T,
}

impl<'a, T: Serialize> JsonEvent<'a, T> {
    pub(super) const fn new(event: &'a str, body: T) -> Self {
        Self { v: EVENT_VERSION, event, body }
    }
}

/// Body of an `error` event.
#[derive(Serialize)]
struct Failure {
    code: &'static str,
    class: Class,
    message: String,
}

/// Serialises to one line with its end.
pub(super) fn json_line(value: &impl Serialize) -> Result<String> {
    let mut text = serde_json::to_string(value)
        .map_err(|problem| Error::Internal { what: format!("a report is no JSON: {problem}") })?;
    text = text::json(&text).into_owned();
    text.push('\n');
    Ok(text)
}

/// A dry run for people: the effect, then the writes and barriers, one line each.
pub(super) fn planned(head: &str, plan: &[String]) -> String {
    let plan: String = plan.iter().map(|step| format!("  {step}\n")).collect();
    format!("{head}; the plan, nothing was written:\n{plan}")
}

/// Prints the report of a dry run.
pub(super) fn dry_run(format: Format, report: &SwitchReport) -> Result<()> {
    let head = format!("{} ({})", report.done, report.switch_method);
    result(format, report, |report, _| planned(&head, &report.plan))
}

/// Prints the result of a read-only verb.
pub(super) fn result<T: Serialize>(
    format: Format,
    report: &T,
    human: impl Fn(&T, Palette) -> String,
) -> Result<()> {
    match format {
        Format::Human => people(|palette| human(report, palette)),
        Format::Object => print(&json_line(report)?),
        Format::Lines => print(&json_line(&JsonEvent::new("result", report))?),
    }
}

/// Prints the result of a verb that has changed something. To be called when its locks are released: a reader may be slow,
/// up to a limit.
///
/// # Errors
/// [`Error::ReportLost`], with the first line of the text for people.
pub(super) fn outcome<T: Serialize>(
    format: Format,
    report: &T,
    human: impl Fn(&T, Palette) -> String,
) -> Result<()> {
    let text = match format {
        Format::Human => Palette::of_stdout().clean(|palette| human(report, palette)),
        Format::Object => json_line(report)?,
        Format::Lines => json_line(&JsonEvent::new("result", report))?,
    };
    let lost = |source| Error::ReportLost {
        done: first_line(&Palette::PLAIN.clean(|palette| human(report, palette))),
        source,
    };
    deliver(&text, Some(outlet::READER_LIMIT)).map_err(lost)
}

/// The first line: it has the result, the others have advice.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Writes text to standard output, with control characters escaped. JSON must have been escaped before, by [`json_line`] or
/// [`json`].
pub(super) fn print(text: &str) -> Result<()> {
    document(&text::shown(text))
}

/// Writes JSON that another process made, and the end of its line.
pub(super) fn json(text: &str) -> Result<()> {
    document(&format!("{}\n", text::json(text.trim_end())))
}

/// Writes a text of this program as it is: manual pages and completions have tabs.
pub(super) fn document(text: &str) -> Result<()> {
    deliver(text, None).map_err(|source| Error::Output { path: PathBuf::from("standard output"), source })
}

/// Writes text for people, with colours.
pub(super) fn people(human: impl Fn(Palette) -> String) -> Result<()> {
    document(&Palette::of_stdout().clean(human))
}

/// Writes text. A reader may close the pipe: `qstage prepare --json | head -1` must neither panic nor stop half-way, and its
/// exit code must be that of the verb.
fn deliver(text: &str, limit: Option<Duration>) -> io::Result<()> {
    match outlet::out().deliver(text.as_bytes(), limit) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Whether standard output is a terminal, to which no bundle may be written.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Standard output for a binary result.
pub(super) struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match outlet::out().deliver(bytes, None) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints an error: a line on standard error and, for programs, an `error` event on standard output. To be called from `main`
/// only. A failure to print is ignored; the exit code still has the class.
pub fn print_error(error: &Error, json: bool) {
    let message = sentence(error);
    let code = error.code();
    outlet::err().offer(format!("qstage: error: {message} [{code}]\n").as_bytes());
    if json {
        let failure = Failure { code, class: error.class(), message };
        if let Ok(line) = json_line(&JsonEvent::new("error", failure)) {
            let _ = deliver(&line, Some(outlet::READER_LIMIT));
        }
    }
}

/// Prints a note for people on standard error. A failure to print is ignored.
pub(super) fn note(message: &str) {
    outlet::err().offer(format!("qstage: note: {}\n", text::shown(message)).as_bytes());
}

/// Colours, or none: only on a terminal, and not if `NO_COLOR` (<https://no-color.org>) is set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Palette {
    coloured: bool,
}

impl Palette {
    /// No colours.
    pub(super) const PLAIN: Self = Self { coloured: false };
    /// Colours.
    #[cfg(test)]
    pub(super) const COLOURED: Self = Self { coloured: true };

    pub(super) fn of_stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_some_and(|term| term != "dumb");
        Self { coloured: wanted && is_terminal() }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Text for people, without control sequences except our own colours. A text with an escape character that is not ours has
    /// no colours: its author could imitate them.
    fn clean(self, human: impl Fn(Self) -> String) -> String {
        let plain = human(Self::PLAIN);
        let foreign = plain.contains('\x1b');
        if !self.coloured || foreign {
            return text::shown(&plain).into_owned();
        }
        let coloured = human(self);
        let mut parts = coloured.split('\x1b').map(text::shown);
        let first = parts.next().unwrap_or_default().into_owned();
        parts.fold(first, |out, part| out + "\x1b" + &part)
    }

    /// For a good state.
    pub(super) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// For a state that needs attention.
    pub(super) fn warn(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// For a failure.
    pub(super) fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// For headings.
    pub(super) fn head(self, text: &str) -> String {
        self.paint("1", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::NO_ERROR;
    use crate::state::{Status, UpgradeState};

    /// Clients of the v1 status compare text; the order of the keys is part of the contract.
    #[test]
    fn status_has_seven_keys_in_their_order() {
        let status = Status {
            install_path: "/upgrade/x.qimg".into(),
            state: UpgradeState::UpgradePreparing,
            details: String::new(),
            error_message: String::new(),
            error_state: NO_ERROR.into(),
            is_blocked: false,
            blocked_reason: String::new(),
        };
        assert_eq!(
            json_line(&status).unwrap(),
            "{\"install_path\":\"/upgrade/x.qimg\",\"state\":\"UPGRADE_PREPARING\",\"details\":\"\",\
             \"error_message\":\"\",\"error_state\":\"UPGRADE_ERROR_NO_ERROR\",\"is_blocked\":false,\
             \"blocked_reason\":\"\"}\n"
        );
    }

    #[test]
    fn events_begin_with_version_and_kind() {
        let failure =
            Failure { code: Error::Unsigned.code(), class: Error::Unsigned.class(), message: "m".into() };
        assert_eq!(
            json_line(&JsonEvent::new("error", failure)).unwrap(),
            "{\"v\":1,\"event\":\"error\",\"code\":\"UPGRADE_ERROR_UNSIGNED\",\"class\":\"trust\",\"message\":\"m\"}\n"
        );
    }

    #[test]
    fn a_cause_is_told_once() {
        let source = io::Error::other("disk on fire");
        let error = Error::Sync { what: "platform_b".into(), source };
        assert_eq!(
            sentence(&error),
            "flushing platform_b: disk on fire; what was written may be lost, check the disk"
        );
    }

    #[test]
    fn only_our_own_colours_reach_the_terminal() {
        let text = |palette: Palette| format!("{} \x1b[2J\x1b[32;1mx\u{202e}\n", palette.good("y"));
        assert_eq!(Palette::PLAIN.clean(text), "y \\u{1b}[2J\\u{1b}[32;1mx\\u{202e}\n");
        assert_eq!(Palette::COLOURED.clean(text), Palette::PLAIN.clean(text));
        // Codes that we write too: the author of a text could say in green that all is well.
        let green = |palette: Palette| format!("{} \x1b[32mall is well\x1b[0m\n", palette.bad("no"));
        assert_eq!(Palette::COLOURED.clean(green), "no \\u{1b}[32mall is well\\u{1b}[0m\n");
        let harmless = |palette: Palette| format!("{} x\u{202e}\n", palette.good("y"));
        assert_eq!(Palette::COLOURED.clean(harmless), "\x1b[32my\x1b[0m x\\u{202e}\n");
        let line = json_line(&"\u{9b}2J").unwrap();
        assert_eq!(line, "\"\\u009b2J\"\n");
    }

    #[test]
    fn colours_are_optional() {
        assert_eq!(Palette::PLAIN.good("x"), "x");
        assert_eq!(Palette::COLOURED.bad("x"), "\x1b[31mx\x1b[0m");
    }
}
