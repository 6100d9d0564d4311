//! What comes over the network for this machine, and how much of it may.

use std::path::Path;
use std::sync::Arc;

use clap::Args;

use super::machine::ConfinedInput;
use crate::bundle::pick::Whole;
use crate::bundle::{Bundle, Source, Trust};
use crate::config::Settings;
use crate::engine::{Engine, Policy};
use crate::error::{Error, Result};
use crate::progress::Cancel;
use crate::source::address::{Address, Url};
use crate::source::allowed::{Allowed, Permitted};
use crate::source::beside::{Asking, Wish};
use crate::source::http::{Notice, Unreachable, Web};
use crate::source::{InputTimeout, open_source};
use crate::units::size;

/// `--no-delta` and `--max-download`: for verbs that read a bundle for what runs here.
#[derive(Debug, Args)]
#[command(next_help_heading = "Source of the bundle")]
pub(super) struct DownloadArgs {
    /// Look for no delta beside a bundle at a URL
    ///
    /// A delta from what runs is taken instead of the bundle where there is one: at the
    /// URL with '.from-HASH.qdelta' at its end, HASH being the first 16 hex digits of
    /// the BLAKE3 of the image that runs. 404 means that there is none.
    #[arg(long)]
    no_delta: bool,

    /// Refuse what needs more bytes than this over the network, such as 200M
    ///
    /// Before a slot is touched. What the slots hold already does not count.
    #[arg(long, value_name = "SIZE", value_parser = size::parse_size)]
    max_download: Option<u64>,
}

impl DownloadArgs {
    /// The settings of the network with these.
    pub(super) fn web(&self, web: Web) -> Web {
        Web { no_deltas: web.no_deltas || self.no_delta, ..web }
    }

    /// The rules with these.
    pub(super) fn policy(&self, policy: Policy, settings: &Settings) -> Policy {
        Policy { max_download: self.max_download.or(settings.max_download), ..policy }
    }
}

/// What is read for this machine.
pub(super) struct ForMachine<'a> {
    /// What runs there.
    pub(super) engine: &'a Engine<'a>,
    /// What the caller may have read; `None`: everything.
    pub(super) allowed: Option<&'a Allowed>,
    /// Who may have signed.
    pub(super) trust: &'a Arc<Trust>,
    /// How servers are reached.
    pub(super) web: &'a Web,
    /// Raised to stop.
    pub(super) cancel: &'a Cancel,
    /// Takes what a person should know of a transfer.
    pub(super) notice: &'a Notice,
}

impl ForMachine<'_> {
    /// Reads the head of a bundle or delta and checks its signature. Beside a bundle at a URL a delta is looked for; `check`
    /// says whether it is the release that is required. `beside`: the bundle that was named beside a delta.
    ///
    /// # Errors
    /// Those of the bundle.
    pub(super) fn read(
        &self,
        input: ConfinedInput,
        beside: Option<WholeInput>,
        check: impl Fn(&Bundle) -> Result<()>,
    ) -> Result<(Bundle, Option<Whole>)> {
        let asking = Asking {
            web: self.web,
            trust: self.trust,
            cancel: self.cancel,
            notice: self.notice,
            unreachable: Unreachable::default(),
        };
        let url = input.url().filter(|_| beside.is_none()).cloned();
        let Some(url) = url else {
            let bundle = input.bundle(self.trust, self.web, self.cancel, self.notice)?;
            check(&bundle)?;
            let whole = beside.map(|beside| beside.whole(&asking, &bundle)).transpose()?;
            return Ok((bundle, whole));
        };
        // Where it is not known what runs, the verb will say why.
        let running = self.engine.running_images().unwrap_or_default();
        let permits = |url: &Url| {
            self.allowed.is_none_or(|allowed| matches!(allowed.open(url.as_str()), Ok(Permitted::Web(_))))
        };
        let useful = |delta: &Bundle, whole: Option<&Whole>| {
            check(delta)?;
            self.engine.check_delta(delta, whole)
        };
        let wish = Wish { running: &running, permits: &permits, check: &useful };
        let (bundle, whole) = asking.open(&url, &wish)?;
        check(&bundle)?;
        Ok((bundle, whole))
    }
}

/// The whole bundle beside a delta: a file that is open before rights are dropped, or a URL that is contacted when a frame is
/// needed of it.
pub(super) struct WholeInput(Address, Option<Source>);

impl WholeInput {
    /// Opens a file; of a URL nothing yet.
    ///
    /// # Errors
    /// Class Io; [`Error::Argument`] for standard input.
    pub(super) fn open(from: &Path, timeout: InputTimeout, cancel: &Cancel) -> Result<Self> {
        let address = Address::parse(from)?;
        let source = match &address {
            Address::File(path) => Some(open_source(path, timeout, cancel)?),
            Address::Web(_) => None,
            Address::Stdin => {
                let problem = "standard input; frames are taken from any place of it".to_owned();
                return Err(Error::Argument { what: "--bundle".to_owned(), problem });
            }
        };
        Ok(Self(address, source))
    }

    /// Whether it comes over the network.
    pub(super) fn is_web(&self) -> bool {
        self.1.is_none()
    }

    fn whole(self, asking: &Asking<'_>, delta: &Bundle) -> Result<Whole> {
        match self {
            Self(_, Some(source)) => Whole::of(Bundle::open(source, asking.trust)?),
            Self(Address::Web(url), None) => Ok(asking.whole_at(url, delta)),
            Self(address, None) => Err(Error::Internal { what: format!("{address} was not opened") }),
        }
    }
}
