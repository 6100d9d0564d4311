//! `commit`: what is prepared is selected, on trial.

use super::super::checks::{needed, platform_needed};
use super::super::remedy::remedy;
use super::super::trust::SignatureCheck;
use super::super::view::{SlotView, View};
use super::{Act, Effect, Transition, counts, mark, variables};
use crate::boot::{BootFlag, Flags};
use crate::error::{Error, Remedy, Result};
use crate::gpt::Attributes;
use crate::slot::{Mark, Record, Verdict};
use crate::state::SlotState;
use crate::units::{Group, Slot};

/// Reason of a slot that the UEFI booted once and that was not marked good.
const ONCE: &str = "its one boot is over and it was not marked good: it crashed, hung, or was reset";
/// Reason of a kernel that kexec started and that was not marked good.
const KEXECED: &str = "it was started by kexec and was not marked good: it crashed, hung, or was reset";

/// What a commit selects.
struct Selection<'v> {
    /// What the bundle needs.
    slots: Vec<&'v SlotView>,
    version: String,
    /// Its signatures, by the current trusted keys.
    provenance: SignatureCheck,
    /// The platform slot that is the fallback.
    booted: Slot,
    platform: bool,
}

/// Slots with what they hold.
type Recorded<'v> = Vec<(&'v SlotView, &'v Record)>;

/// The selection of what is prepared. Repeats the checks of prepare: the records of all slots that the bundle needs are whole
/// and of one manifest, and the release that they were compared with still runs.
fn selection(view: &View) -> Result<Selection<'_>> {
    let not = |problem: String| Err(Error::NotPrepared { problem, remedy: remedy(view) });
    let booted = view.booted()?;
    view.check_foreign_flags()?;
    let (mut prepared, mut half): (Recorded<'_>, Recorded<'_>) = (Vec::new(), Vec::new());
    for group in Group::BOTH {
        let Ok(slot) = view.target(group) else { continue };
        match view.held(group, slot) {
            Some(held) if held.state == SlotState::Prepared || view.again(held) => {
                prepared.extend(held.record().map(|r| (held, r)));
            }
            // A commit by EFI variables that was cut after its first half, the table.
            Some(held)
                if group == Group::Software
                    && view.efi.is_some()
                    && held.state == SlotState::Trial
                    && view.awaits_reboot(held) =>
            {
                half.extend(held.record().map(|r| (held, r)));
            }
            Some(held) if held.state == SlotState::Torn => {
                return not(format!("{} was not prepared to the end", held.partition.name));
            }
            _ => {}
        }
    }
    let Some((_, first)) = prepared.first() else {
        let slot = view.target(Group::Platform)?;
        let failed = view.all().iter().find_map(|held| Some((held, view.failure(held)?)));
        return not(match (view.on_trial().next(), failed) {
            (Some(held), _) => format!("{} is already committed, on trial", held.partition.name),
            (None, Some((held, why))) => {
                format!("{} has failed its trial ({why})", held.partition.name)
            }
            (None, None) => format!("slot {slot} holds nothing that was prepared"),
        });
    };
    // What is selected to boot next is another platform than the one that this was compared with.
    if let remedy @ Remedy::Reboot { slot, .. } = remedy(view) {
        return Err(Error::SwitchPending { slot, remedy });
    }
    let manifest = &first.manifest;
    half.retain(|(_, record)| record.manifest.bytes() == manifest.bytes());
    prepared.extend(half);
    if prepared.iter().any(|(_, record)| record.manifest.bytes() != manifest.bytes()) {
        return not("platform and software were prepared from different bundles".to_owned());
    }
    view.above_floor(manifest)?;
    platform_needed(view, manifest).map_or(Ok(()), Err)?;
    if let Some(obstacle) = view.running_unknown() {
        return Err(obstacle);
    }
    let provenance = view.provenance(&prepared.iter().map(|(_, record)| *record).collect::<Vec<_>>())?;
    let needed = needed(view, manifest);
    if needed.is_empty() {
        return not(format!("{} runs already", manifest.version));
    }
    for group in &needed {
        if !prepared.iter().any(|(held, _)| held.group == *group) {
            return not(format!("{} needs its {group}, which is not prepared", manifest.version));
        }
    }
    let slots = prepared.iter().map(|(held, _)| *held).filter(|held| needed.contains(&held.group));
    let platform = needed.contains(&Group::Platform);
    let version = manifest.version.clone();
    Ok(Selection { slots: slots.collect(), version, provenance, booted, platform })
}

/// Selects the prepared slots in one transaction, then sets BootNext for one boot, then marks the platform.
pub(in crate::engine) fn commit(view: &View) -> Result<Transition> {
    let Selection { slots, version, provenance, booted, platform } = selection(view)?;
    let mut flags = view.flags();
    let mut names = Vec::new();
    for held in slots {
        flags = flags.select_trial(held.group, held.slot, view.policy.tries)?;
        names.push(held.partition.name.clone());
    }
    let effect = if platform { Effect::Reboot } else { Effect::RestartSoftware };
    let tries = match view.policy.tries {
        _ if !counts(view) => String::new(),
        1 => " with one try".to_owned(),
        tries => format!(" with {tries} tries"),
    };
    let from = if platform { format!("{tries}, {}", fallback(view, &flags, booted)) } else { String::new() };
    let done = format!("{version}{provenance} is selected on trial in {}{from}", names.join(" and "));
    let turn = if platform { view.turn(|choice| choice.try_once(!booted)) } else { None };
    let once = turn.as_ref().and(view.held(Group::Platform, !booted));
    let is_once =
        |held: &SlotView| once.is_some_and(|once| (once.group, once.slot) == (held.group, held.slot));
    // A slot that is tried again must not keep the reason of the last time; until it is selected it is bad.
    let again = view.all().iter().filter(|held| view.again(held)).filter_map(|held| match is_once(held) {
        true => mark(held, Verdict::Trying, ONCE),
        false => mark(held, Verdict::Bad, "tried again"),
    });
    // BootNext, then the mark that distinguishes a failed trial from one that never began. In the other order, a cut
    // between them would report a release as failed that was never tried. In this order it leaves a trial without a
    // mark; if that fails, the slot looks prepared, which it is.
    let trying = once.filter(|held| !view.again(held)).and_then(|held| mark(held, Verdict::Trying, ONCE));
    Ok(Transition::nothing(effect, done)
        .then(again)
        .then(view.table_act(flags))
        .then(variables(turn))
        .then(trying))
}

/// What runs if the trial fails, by the flags after the commit. A disk that changed over from another tool may have none for the
/// slot that runs.
fn fallback(view: &View, flags: &Flags<'_>, booted: Slot) -> String {
    let boots = flags.of(Group::Platform, booted).is_some_and(Attributes::will_boot);
    match view.held(Group::Platform, booted) {
        Some(held) if view.policy.boot_flag == BootFlag::Priority && !boots => {
            let number = held.partition.number;
            format!(
                "without a fallback: slot {booted}, which runs, has no boot flag ('sgdisk --attributes={number}:set:48 --attributes={number}:set:56' before the reboot gives it one)"
            )
        }
        _ => format!("slot {booted} is the fallback"),
    }
}

/// Refuses a trial by kexec where the loader has trials of its own.
pub(in crate::engine) fn kexec_allowed(flag: BootFlag) -> Result<()> {
    if flag == BootFlag::Legacy {
        return Ok(());
    }
    let problem = format!("boot_flag is '{}', by which a trial ends by itself", flag.word());
    Err(Error::KexecTrial { problem })
}

/// Marks alone, and the platform slot that kexec starts: the flags stay.
///
/// # Errors
/// [`Error::KexecTrial`] where that makes no trial, and those of [`commit`].
pub(in crate::engine) fn by_kexec(view: &View) -> Result<(&SlotView, Transition)> {
    kexec_allowed(view.policy.boot_flag)?;
    let Selection { slots, version, platform, .. } = selection(view)?;
    let held = slots.iter().find(|held| held.group == Group::Platform).filter(|_| platform);
    let held = *held.ok_or_else(|| Error::KexecTrial {
        problem: "the prepared bundle does not change the platform".to_owned(),
    })?;
    let done = format!("{version} is started by kexec from {}", held.partition.name);
    // The platform last: it is what the others follow.
    let marks = slots.iter().rev().filter_map(|held| mark(held, Verdict::Trying, KEXECED));
    Ok((held, Transition::nothing(Effect::Kexec, done).then(marks)))
}

/// The marks of a trial that did not begin are taken back: the slots are prepared, as they were.
pub(in crate::engine) fn not_started(view: &View) -> Transition {
    let trying = |held: &&SlotView| held.mark().is_some_and(|mark: &Mark| mark.verdict == Verdict::Trying);
    let marks = view.all().iter().filter(trying).map(|held| Act::Mark(held.group, held.slot, None));
    Transition::nothing(Effect::Nothing, String::new()).then(marks)
}
