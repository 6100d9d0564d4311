//! What verbs would write, act by act, as sectors and variables. Nothing here takes a lock or writes.

use super::checks::is_prepared;
use super::prepare::Intent;
use super::transition::{self, Change, Effect, Printed, Transition};
use super::{Engine, PrepareOptions};
use crate::bundle::Bundle;
use crate::commit;
use crate::error::Result;
use crate::progress::Progress;
use crate::stage;
use crate::state::SwitchReport;
use crate::units::{Group, Slot};

impl Engine<'_> {
    /// What a change would write.
    ///
    /// # Errors
    /// Those of the verb.
    pub fn dry_run(&self, change: &Change<'_>) -> Result<SwitchReport> {
        let view = self.view()?;
        let transition = transition::whole(change, &view)?;
        let printed = Printed::new(&view, &transition)?;
        self.report(&view, &transition, printed, true)
    }

    /// What changes would write one after another, each on the disk that the one before it would leave; one report each.
    ///
    /// # Errors
    /// Those of the verbs.
    pub fn dry_run_each(&self, changes: &[Change<'_>]) -> Result<Vec<SwitchReport>> {
        let mut view = self.view()?;
        let mut reports = Vec::new();
        for change in changes {
            let transition = transition::whole(change, &view)?;
            reports.push(self.report(&view, &transition, Printed::new(&view, &transition)?, true)?);
            if let Some(repair) = commit::repair_plan(&view.loaded)? {
                view.loaded = view.loaded.after(&repair);
            }
            view = view.after(transition.acts())?;
        }
        Ok(reports)
    }

    /// What [`prepare`](Self::prepare) would write. A slot that holds the bundle already is read and verified, as the verb
    /// does it.
    ///
    /// # Errors
    /// Those of the verb, but for what only the write itself shows.
    pub fn prepare_dry_run(
        &self,
        bundle: &Bundle,
        options: &PrepareOptions,
        progress: &dyn Progress,
    ) -> Result<SwitchReport> {
        let found = self.view_for_change()?;
        let manifest = bundle.manifest();
        let Intent { fallback, view, upgrade } = self.intent(&found, bundle)?;
        let slots: Vec<(Group, Slot)> =
            upgrade.targets.iter().map(|(group, slot, _)| (*group, *slot)).collect();
        let names: Vec<&str> = slots.iter().map(|(group, slot)| group.partition_name(*slot)).collect();
        let (version, names) = (&manifest.version, names.join(" and "));
        let whole = is_prepared(&view, &upgrade, manifest.bytes())
            && self.still_whole(&view, &upgrade, options, progress)?.is_some();
        let (mut done, mut acts) =
            (format!("{version} is prepared in {names} already"), fallback.map_or(Vec::new(), |f| f.acts));
        let mut sources = None;
        if !whole {
            sources = self.sources(&view, &upgrade, bundle, options.whole.as_deref())?;
            self.check_limit(&view, &upgrade, bundle, sources.as_ref(), &options.cancel, progress)?;
            done = format!("{version} is prepared in {names}");
            acts.extend(transition::of(&Change::Withdraw(&slots), &view)?.acts);
        }
        let transition = Transition { acts, effect: Effect::Nothing, done };
        let mut printed = Printed::new(&found, &transition)?;
        if !whole {
            let layouts: Vec<_> = upgrade.targets.iter().map(|(group, _, layout)| (*group, layout)).collect();
            let steps = stage::planned(&layouts, bundle, sources.as_ref(), options.read_back);
            printed.stage(&view, &slots, &steps)?;
        }
        let next = found.after(&transition.acts)?.next(Group::Platform);
        Ok(SwitchReport {
            done: transition.done,
            boots_next: next.unwrap_or(upgrade.booted),
            next_step: Effect::Nothing.word().to_owned(),
            switch_method: printed.method(),
            plan: printed.lines,
            dry_run: true,
        })
    }
}
