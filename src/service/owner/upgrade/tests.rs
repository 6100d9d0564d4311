//! Every sequence of inputs up to a depth, against the rules that clients rely on.

use std::collections::HashSet;

use super::*;

fn settings(auto_commit: bool) -> UpgradeSettings {
    UpgradeSettings {
        install_path: "/x.qimg".into(),
        target_version: "2".into(),
        upgrade_type: UpgradeType::SoftwareAndPlatform,
        auto_commit,
        do_rolling_reboot: false,
        num_nodes_to_reboot: None,
    }
}

fn failure() -> Failure {
    Failure { code: "UPGRADE_ERROR_READ".into(), message: "m".into() }
}

fn disks() -> Vec<SeenDisk> {
    let kind = UpgradeType::SoftwareAndPlatform;
    let prepared = Some(("/x.qimg".to_owned(), "2".to_owned(), kind));
    let other = Some(("/y.qimg".to_owned(), "3".to_owned(), UpgradeType::SoftwareOnly));
    let trial = Some(("2".to_owned(), kind));
    let boot = Boot { id: "one".into(), slot: Some("a".into()) };
    let base = SeenDisk { running: Some("1".into()), boot, ..SeenDisk::default() };
    vec![
        base.clone(),
        SeenDisk { prepared, ..base.clone() },
        SeenDisk { prepared: other, ..base.clone() },
        SeenDisk { trial: trial.clone(), pending: true, ..base.clone() },
        SeenDisk { trial, ..base.clone() },
        SeenDisk { fallen: Some(fallen()), ..base },
    ]
}

fn fallen() -> FallenBack {
    let failure = Failure { code: FELL_BACK.into(), message: "2 did not come up".into() };
    FallenBack { version: "2".into(), origin: "/x.qimg".into(), failure }
}

fn inputs() -> Vec<Input> {
    let mut all = vec![
        Input::Begin { settings: settings(false), staged: false },
        Input::Begin { settings: settings(true), staged: false },
        Input::Begin { settings: settings(false), staged: true },
        Input::Begin { settings: settings(true), staged: true },
        Input::Progress(0),
        Input::Progress(50),
        Input::Progress(200),
        Input::Staged { version: "2".into(), upgrade_type: UpgradeType::SoftwareOnly },
        Input::Failed(failure()),
        Input::Beside(settings(false), failure()),
        Input::Commit(Remedy::Prepare),
        Input::Switched,
        Input::Reboot,
        Input::Discarded,
    ];
    all.extend(disks().into_iter().map(Input::Observed));
    all
}

/// All reachable states of an upgrade.
fn reachable() -> HashSet<String> {
    let mut seen = HashSet::new();
    let mut todo = vec![LocalUpgrade::default()];
    while let Some(upgrade) = todo.pop() {
        if !seen.insert(serde_json::to_string(&upgrade).unwrap()) {
            continue;
        }
        for input in inputs() {
            if let Ok(next) = upgrade.apply(input) {
                todo.push(next);
            }
        }
        for disk in disks() {
            todo.push(upgrade.clone().recover(disk));
        }
    }
    seen
}

fn all() -> Vec<LocalUpgrade> {
    reachable().iter().map(|text| serde_json::from_str(text).unwrap()).collect()
}

/// Clients stop with an assertion where one of these is broken.
fn check(upgrade: &LocalUpgrade, how: &dyn std::fmt::Debug) {
    let auto = upgrade.settings.as_ref().is_some_and(|settings| settings.auto_commit);
    assert!(!(auto && upgrade.phase == Phase::Prepared), "PREPARED with auto_commit: {how:?}");
    if upgrade.phase != Phase::Idle || upgrade.error.is_some() {
        assert!(upgrade.settings.is_some(), "no settings in {:?} after {how:?}", upgrade.phase);
    }
    assert!(upgrade.phase != Phase::Preparing || upgrade.progress < 100, "{how:?}");
    assert!(
        upgrade.phase != Phase::Preparing || upgrade.error.is_none(),
        "a client takes the error for one of this prepare: {how:?}"
    );
}

#[test]
fn whatever_happens_clients_can_follow() {
    let all = all();
    assert!(all.len() > 60, "{} states were seen: the walk does not walk", all.len());
    for upgrade in &all {
        for input in inputs() {
            let Ok(next) = upgrade.apply(input.clone()) else { continue };
            check(&next, &(upgrade, &input));
            let same = next.phase == upgrade.phase;
            if same && next.phase == Phase::Preparing {
                assert!(next.progress >= upgrade.progress, "progress fell by {input:?}");
            }
            // A prepare that ended badly says so.
            if upgrade.phase == Phase::Preparing && next.phase == Phase::Idle {
                assert!(next.error.is_some(), "{input:?}");
            }
            // After a commit the settings stay until the next prepare.
            if upgrade.phase == Phase::Committing {
                assert!(next.settings.is_some(), "{input:?}");
            }
        }
        for disk in disks() {
            let next = upgrade.clone().recover(disk.clone());
            check(&next, &(upgrade, &disk));
            assert!(
                !matches!(next.phase, Phase::Preparing | Phase::Committing | Phase::Rebooting),
                "nothing is being done at the start: {upgrade:?} {disk:?}"
            );
            assert_eq!(next.clone().recover(disk.clone()).phase, next.phase, "{upgrade:?} {disk:?}");
        }
    }
}

#[test]
fn the_steps_are_those_of_the_contract_and_no_others() {
    use Phase::{Committed, Committing, Idle, Prepared, Preparing, Rebooting};
    let own = [
        (Idle, Preparing),
        (Idle, Prepared),
        (Idle, Committing),
        (Preparing, Prepared),
        (Preparing, Committing),
        (Preparing, Idle),
        (Prepared, Preparing),
        (Prepared, Committing),
        (Prepared, Idle),
        (Committing, Committed),
        (Committing, Prepared),
        (Committed, Rebooting),
        (Rebooting, Committed),
        // The next upgrade, of which the software was committed.
        (Committed, Preparing),
        (Committed, Prepared),
        (Committed, Committing),
        (Committed, Idle),
    ];
    for upgrade in all() {
        for input in inputs() {
            if matches!(input, Input::Observed(_)) {
                continue;
            }
            let Ok(next) = upgrade.apply(input.clone()) else { continue };
            let step = (upgrade.phase, next.phase);
            assert!(step.0 == step.1 || own.contains(&step), "{step:?} by {input:?}");
        }
    }
}

#[test]
fn a_commit_leaves_prepared_at_once_and_is_possible_only_there() {
    for upgrade in all() {
        let advised = Remedy::EndTrial { roll_back: true };
        match upgrade.apply(Input::Commit(advised)) {
            Ok(next) => assert_eq!((upgrade.phase, next.phase), (Phase::Prepared, Phase::Committing)),
            Err(error) => {
                assert_ne!(upgrade.phase, Phase::Prepared);
                let code = error.code();
                assert!(
                    ["UPGRADE_ERROR_NOT_PREPARED", "UPGRADE_ERROR_UPGRADE_BUSY"].contains(&code),
                    "{code}"
                );
                // It is committed already, or a trial runs: the slots decide what may be done, not the state of the upgrade.
                assert!(
                    code != "UPGRADE_ERROR_NOT_PREPARED" || error.to_string().ends_with(&advised.to_string())
                );
            }
        }
    }
}

/// The refusal of a bundle is shown with the state, and does not change it.
#[test]
fn what_fails_beside_an_upgrade_leaves_it_as_it_is() {
    for upgrade in all() {
        let other = UpgradeSettings { install_path: "/y".into(), ..settings(true) };
        match upgrade.apply(Input::Beside(other.clone(), failure())) {
            Ok(next) if upgrade.error == Some(fallen().failure) => assert_eq!(next.phase, upgrade.phase),
            Ok(next) => {
                assert_eq!((next.phase, &next.error), (upgrade.phase, &Some(failure())));
                let shown = if upgrade.phase == Phase::Idle { Some(other) } else { upgrade.settings };
                assert_eq!(next.settings, shown);
            }
            Err(_) => {
                assert!(matches!(upgrade.phase, Phase::Preparing | Phase::Committing | Phase::Rebooting))
            }
        }
    }
}

#[test]
fn the_same_order_twice_is_one() {
    let begin = |auto| Input::Begin { settings: settings(auto), staged: false };
    let preparing = LocalUpgrade::default().apply(begin(false)).unwrap().apply(Input::Progress(40)).unwrap();
    assert_eq!(preparing.apply(begin(false)).unwrap(), preparing);
    let error = preparing.apply(begin(true)).unwrap_err();
    assert_eq!(error.code(), "UPGRADE_ERROR_UPGRADE_BUSY");
}

#[test]
fn a_start_after_the_reboot_tells_whether_it_took() {
    let committed =
        LocalUpgrade { phase: Phase::Committed, settings: Some(settings(true)), ..LocalUpgrade::default() };
    let committed = LocalUpgrade { boot: Boot { id: "zero".into(), slot: Some("a".into()) }, ..committed };
    let disk = |running: &str, slot: &str| SeenDisk {
        running: Some(running.into()),
        boot: Boot { id: "one".into(), slot: Some(slot.into()) },
        ..SeenDisk::default()
    };
    let took = committed.clone().recover(disk("2", "b"));
    assert_eq!((took.phase, &took.settings, &took.error), (Phase::Idle, &None, &None));
    let fell = committed.recover(disk("1", "a"));
    assert_eq!(fell.error.unwrap().code, "UPGRADE_ERROR_FELL_BACK");
}

/// A fallback is shown even if the service did not see it, or ran in the failed slot in between. It is shown until it is
/// cleared or the next prepare begins, and not again after that.
#[test]
fn a_fallback_is_shown_until_it_is_cleared_and_once() {
    let disk = |fallen: Option<FallenBack>, id: &str| SeenDisk {
        running: Some("1".into()),
        fallen,
        boot: Boot { id: id.into(), slot: Some("a".into()) },
        ..SeenDisk::default()
    };
    let committed =
        LocalUpgrade { phase: Phase::Committed, settings: Some(settings(true)), ..LocalUpgrade::default() };
    let committed = LocalUpgrade { boot: Boot { id: "zero".into(), slot: Some("a".into()) }, ..committed };
    let trial = SeenDisk { trial: Some(("2".into(), UpgradeType::SoftwareAndPlatform)), ..disk(None, "one") };
    let trial = SeenDisk { running: Some("2".into()), ..trial };
    for seen in [false, true] {
        let before = if seen { committed.clone().recover(trial.clone()) } else { committed.clone() };
        assert!(before.error.is_none());
        let fell = before.recover(disk(Some(fallen()), "two"));
        assert_eq!((fell.phase, &fell.error), (Phase::Idle, &Some(fallen().failure)), "{seen}");
        assert_eq!(fell.settings.as_ref().map(|s| s.target_version.as_str()), Some("2"));
        // It stays over looks and restarts.
        let again = fell.apply(Input::Observed(disk(Some(fallen()), "two"))).unwrap();
        assert_eq!(again.error, fell.error);
        assert_eq!(again.clone().recover(disk(Some(fallen()), "three")).error, fell.error);
        let cleared = again.apply(Input::Discarded).unwrap();
        assert_eq!((&cleared.error, &cleared.settings), (&None, &None));
        let other = Input::Begin { settings: settings(false), staged: false };
        let failed = again.apply(other).unwrap().apply(Input::Failed(failure())).unwrap();
        assert_eq!(failed.error, Some(failure()), "the newer one");
        for done in [cleared, failed.apply(Input::Discarded).unwrap()] {
            let done = done.apply(Input::Observed(disk(Some(fallen()), "two"))).unwrap();
            assert_eq!(done.error, None);
            let done = done.recover(disk(Some(fallen()), "three"));
            assert_eq!(done.error, None, "also after a start");
            // Tried again, and failed again with the same message.
            let tried = done.apply(Input::Observed(trial.clone())).unwrap();
            let fell = tried.recover(disk(Some(fallen()), "four"));
            assert_eq!(fell.error, Some(fallen().failure), "a new failure is news");
        }
    }
}

#[test]
fn what_is_discarded_before_its_commit_is_a_cancelled_upgrade() {
    for upgrade in all() {
        let Ok(next) = upgrade.apply(Input::Discarded) else { continue };
        assert_eq!(next.phase, Phase::Idle);
        if upgrade.phase == Phase::Idle {
            assert_eq!((&next.error, &next.settings), (&None, &None), "cleared");
        } else {
            assert_eq!(next.error.map(|error| error.code).as_deref(), Some("UPGRADE_ERROR_CANCELLED"));
            assert_eq!(next.settings, upgrade.settings, "clients print them beside the error");
        }
    }
}

#[test]
fn a_killed_service_reports_what_it_was_doing() {
    let at = |phase| LocalUpgrade { phase, settings: Some(settings(true)), ..LocalUpgrade::default() };
    let [nothing, prepared, _, pending, ..] = <[SeenDisk; 6]>::try_from(disks()).unwrap();
    let ended = |upgrade: LocalUpgrade, disk: &SeenDisk| {
        let next = upgrade.recover(disk.clone());
        (next.phase, next.error.map(|error| error.code))
    };
    let code = Some("UPGRADE_ERROR_SERVICE_ENDED".to_owned());
    assert_eq!(ended(at(Phase::Preparing), &nothing), (Phase::Idle, code.clone()));
    // The child finished, or an earlier prepare was complete.
    assert_eq!(ended(at(Phase::Preparing), &prepared), (Phase::Prepared, code.clone()));
    assert_eq!(ended(at(Phase::Committing), &prepared), (Phase::Prepared, code));
    assert_eq!(ended(at(Phase::Committing), &pending), (Phase::Committed, None));
    // Killed after the new software was marked good, and before that was recorded.
    let soft = UpgradeSettings { upgrade_type: UpgradeType::SoftwareOnly, ..settings(false) };
    let soft = LocalUpgrade { phase: Phase::Committing, settings: Some(soft), ..LocalUpgrade::default() };
    let good = |version: &str| SeenDisk { software: Some(version.into()), ..nothing.clone() };
    assert_eq!(ended(soft.clone(), &good("2")), (Phase::Idle, None));
    assert_eq!(ended(soft, &good("1")).1.as_deref(), Some("UPGRADE_ERROR_SERVICE_ENDED"));
    let idle = LocalUpgrade::default();
    assert_eq!(ended(idle.clone(), &prepared), (Phase::Prepared, None));
    assert_eq!(ended(idle, &pending), (Phase::Committed, None));
}
