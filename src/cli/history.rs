//! `qstage history`.

use clap::Args;

use super::answers::look_within_limit;
use super::args::MachineArgs;
use super::machine::Host;
use super::output::{self, Format, Palette};
use super::remote::ServiceArgs;
use super::table::{self, Cell};
use super::values;
use crate::error::{Error, NO_ERROR, Result};
use crate::host::journal::{Event, FileJournal};

/// Show the changes of the disk, their times and outcomes
///
/// One line per verb that changed the disk or tried to, oldest first, and per swap of
/// the container with its downtime. The times are by the machine's clock, which may
/// have been wrong. The history is lost with the state directory.
#[derive(Debug, Args)]
pub(super) struct HistoryArgs {
    /// Show only the newest entries
    #[arg(long, short = 'n', value_name = "NUMBER", value_parser = values::whole::<usize>)]
    last: Option<usize>,

    /// Print one JSON array
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    service: ServiceArgs,

    #[command(flatten)]
    machine: MachineArgs,
}

impl HistoryArgs {
    pub(super) fn run(&self) -> Result<()> {
        let settings = self.machine.settings()?;
        let mut events: Vec<Event> = if self.service.is_given() {
            let text = self.service.client(&settings)?.get("/v1/qstage/history")?;
            let what = |problem| Error::Internal { what: format!("a history that is none: {problem}") };
            serde_json::from_str(&text).map_err(what)?
        } else {
            let look = look_within_limit(&settings, |settings| {
                Host::open_to_look(settings)?.engine(settings.policy()).history()
            });
            match look {
                Err(error @ Error::NoAnswer { .. }) => {
                    let events = FileJournal::new(&settings.state_dir, output::note).only_history();
                    if events.is_empty() {
                        return Err(error);
                    }
                    output::note(&format!("{error}; this is the history of the one disk that is known"));
                    events
                }
                look => look?,
            }
        };
        events.drain(..events.len().saturating_sub(self.last.unwrap_or(usize::MAX)));
        output::result(Format::object_if(self.json), &events, |events, palette| human(events, palette))
    }
}

fn human(events: &[Event], palette: Palette) -> String {
    if events.is_empty() {
        return "nothing is remembered of this disk\n".to_owned();
    }
    let rows = events.iter().map(|event| {
        let ended = if event.code == NO_ERROR {
            Cell::painted("done", Palette::good)
        } else {
            Cell::painted(event.code.as_str(), Palette::bad)
        };
        let down = event.downtime_ms.map(|ms| format!("{ms:.0} ms")).unwrap_or_default();
        vec![
            event.time.as_str().into(),
            event.verb.as_str().into(),
            ended,
            down.into(),
            event.message.as_str().into(),
        ]
    });
    table::render(&["TIME", "VERB", "ENDED", ">DOWN", "WHAT"], rows.collect(), palette)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_a_line() {
        assert_eq!(human(&[], Palette::PLAIN), "nothing is remembered of this disk\n");
        let at = |time: &str, event: Event| Event { time: time.to_owned(), ..event };
        let swap = Event::new("swap", NO_ERROR, "1.1 runs".to_owned());
        let events = [
            at("T1", Event { downtime_ms: Some(127.4), ..swap }),
            at("T2", Event::new("prepare", "UPGRADE_ERROR_READ", "no".to_owned())),
        ];
        assert_eq!(
            human(&events, Palette::PLAIN),
            "TIME  VERB     ENDED                 DOWN  WHAT\n\
             T1    swap     done                127 ms  1.1 runs\n\
             T2    prepare  UPGRADE_ERROR_READ          no\n"
        );
    }
}
