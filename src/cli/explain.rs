//! `qstage explain`.

use clap::Args;

use super::output::{self, Format, Palette};
use super::table;
use crate::error::{self, Class, Error, Explanation, Result};
use crate::units::text;

/// Explain an error code: what it means, what helps, how the process ends
///
/// Error codes stand in brackets at the end of a message, in the status, in the history
/// and in JSON. UPGRADE_ERROR_ may be left away, and small letters do as well. An exit
/// code or the name of a class stands for all its codes, a whole code only for itself;
/// without CODE all are listed.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// Error code, exit code or class, such as ON_TRIAL, 5 or refused
    code: Option<String>,

    /// Print JSON: one object for a CODE, an array for several
    #[arg(long)]
    pub(super) json: bool,

    /// Print the page of all codes in Markdown, as it is in the manual
    #[arg(long, conflicts_with_all = ["code", "json"])]
    page: bool,
}

impl ExplainArgs {
    pub(super) fn run(&self) -> Result<()> {
        if self.page {
            return output::print(&error::page());
        }
        let Some(code) = &self.code else {
            return output::result(Format::object_if(self.json), &error::all(), |all, palette| {
                list(all, palette)
            });
        };
        let format = Format::object_if(self.json);
        match &error::explain(code)[..] {
            [] => Err(unknown(code)),
            [one] => output::result(format, one, explained),
            several => output::result(format, &several, |several, palette| list(several, palette)),
        }
    }
}

fn explained(one: &Explanation, palette: Palette) -> String {
    let mut facts = vec![("meaning", one.meaning.clone())];
    if !one.message.is_empty() {
        facts.push(("message", one.message.clone()));
    }
    let class = Class::ALL.into_iter().find(|class| class.word() == one.class);
    let about = class.map_or_else(String::new, |class| format!(": {}", class.meaning()));
    facts.push(("class", format!("{}, exit code {}{about}", one.class, one.exit_code)));
    facts.push(("remedy", one.remedy.to_owned()));
    format!("{}\n{}", palette.head(one.code), table::facts(&facts))
}

fn list(all: &[Explanation], palette: Palette) -> String {
    let rows = all.iter().map(|one| {
        vec![one.code.into(), one.class.into(), one.exit_code.to_string().into(), one.meaning.as_str().into()]
    });
    table::render(&["CODE", "CLASS", ">EXIT", "MEANING"], rows.collect(), palette)
}

/// A code that is not in the list, with the one that may have been meant.
fn unknown(code: &str) -> Error {
    let word = code.to_ascii_uppercase().replace('-', "_").replace("UPGRADE_ERROR_", "");
    let all = error::all();
    let short: Vec<_> = all.iter().filter_map(|one| one.code.strip_prefix("UPGRADE_ERROR_")).collect();
    let tip = match text::nearest(&word, short) {
        Some(near) => format!("did you mean {near}? 'qstage explain' lists all"),
        None => "'qstage explain' lists all".to_owned(),
    };
    Error::Argument { what: "CODE".to_owned(), problem: format!("'{code}' is no error code; {tip}") }
}
