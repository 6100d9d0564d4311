//! `qstage upgrade`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::super::args::PlacesArgs;
use super::super::output::{Format, result};
use super::super::{machine, values};
use super::connection::ServiceArgs;
use super::watch::{finish, watch};
use crate::error::{Error, Result};
use crate::source::address;

/// Prepare a bundle through a service and, on request, commit it
///
/// Shows the progress until it ends. Ctrl-C ends the view: the service continues to
/// prepare, but does not commit, since this program requests the commit afterwards.
/// Without a bundle, the prepared release is committed.
#[derive(Debug, Args)]
pub(in crate::cli) struct UpgradeArgs {
    /// Bundle to install: a file of the service's machine, or an http(s) URL
    #[arg(required_unless_present = "commit")]
    bundle: Option<PathBuf>,

    /// Commit after the prepare
    #[arg(long)]
    commit: bool,

    /// Reboot the nodes of a cluster one set after the other
    #[arg(long, requires = "bundle")]
    rolling: bool,

    /// Nodes that reboot at a time [default: permitted failures - 1]
    #[arg(short, long, value_name = "N", requires = "rolling", value_parser = values::whole::<u32>)]
    num_nodes_to_reboot: Option<u32>,

    /// Accept an older version or another product
    #[arg(long, requires = "bundle")]
    override_compatibility_check: bool,

    /// Show what would be ordered, or the refusal; order nothing
    ///
    /// A commit after a prepare is not checked, since nothing is prepared yet.
    #[arg(long)]
    dry_run: bool,

    /// Print each change as one line of JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,

    #[command(flatten)]
    service: ServiceArgs,

    #[command(flatten)]
    places: PlacesArgs,
}

impl UpgradeArgs {
    pub(in crate::cli) fn run(&self) -> Result<()> {
        let client = self.service.client(&self.places.settings()?)?;
        if self.dry_run {
            let planned = match &self.bundle {
                Some(bundle) => client.dry_run(&self.prepare_path(), &self.order(bundle)?)?,
                None => client.dry_run("/v2/upgrade/commit", &json!({}))?,
            };
            return result(Format::object_if(self.json), &planned, |planned, _| planned.for_people());
        }
        let cancel = machine::cancel_on_signals()?;
        if let Some(bundle) = &self.bundle {
            client.post(&self.prepare_path(), &self.order(bundle)?)?;
        }
        let mut outcome = None;
        if self.bundle.is_some() {
            outcome = Some(watch(&client, self.json, &cancel)?);
        }
        if self.commit {
            cancel.check("watching; what is prepared stays prepared")?;
            client.post("/v2/upgrade/commit", &json!({}))?;
            outcome = Some(watch(&client, self.json, &cancel)?);
        }
        outcome.map_or(Ok(()), |outcome| finish(&client, self.json, &outcome))
    }

    /// Path of a prepare, with its query.
    fn prepare_path(&self) -> String {
        let query = if self.override_compatibility_check { "?override_compatibility_check=true" } else { "" };
        format!("/v2/upgrade/prepare{query}")
    }

    /// Body of a prepare.
    fn order(&self, bundle: &Path) -> Result<Value> {
        let path = if bundle.to_str().is_some_and(address::is_web) {
            bundle.to_owned()
        } else {
            std::path::absolute(bundle).map_err(|source| Error::Open { path: bundle.to_owned(), source })?
        };
        Ok(json!({
            "image_path": path.to_string_lossy(),
            "auto_commit": false,
            "do_rolling_reboot": self.rolling,
            "num_nodes_to_reboot": self.num_nodes_to_reboot,
        }))
    }
}
