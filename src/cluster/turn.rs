//! Steps of a node: the next one follows from the view and the node's own state, so that a node that was killed in the middle
//! continues.

use super::rolling;
use super::state::{Alive, BootId, NodeId, Outcome, RebootState, Stage, Standing};
use super::store::{Compare, Key, LeaseId, Txn, Value, Write};
use super::view::View;
use crate::state::UpgradeType;
use crate::units::Blake3;

/// State of a node, read from its disk and its kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Local {
    /// Present boot of the node.
    pub boot: BootId,
    /// Digest of the manifest of the running release.
    pub runs: Blake3,
    /// State of the running release.
    pub standing: Standing,
    /// Digest of the manifest that is prepared in the inactive slots; `None`: none is.
    pub staged: Option<Blake3>,
    /// Whether the prepared slot is selected and waits for a reboot.
    pub selected: bool,
    /// Whether the new container waits at its gate.
    pub gated: bool,
    /// Whether it was taken out of service for its turn, and is not back in service yet.
    pub drained: bool,
}

/// Next step of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Stages the ordered bundle.
    Prepare,
    /// Discards the bundle that was staged for an order that is over.
    Discard,
    /// Starts the new container up to its gate, while the old one runs.
    Gate,
    /// Ends a container that waits at its gate and is no longer needed.
    Ungate,
    /// Stops the old container and opens the gate.
    Swap,
    /// Runs the old container again.
    SwapBack,
    /// Selects the prepared slot.
    Flip,
    /// Selects the running slot again.
    FlipBack,
    /// Stages the ordered bundle again, which a fallback or a return has discarded, before its turn begins.
    StageAgain,
    /// Takes its turn by [`take_turn`].
    TakeTurn,
    /// Reboots in its turn. In a rolling upgrade it first selects the prepared slot, and at no earlier time; in an
    /// abandoned one, the slot of the previous release.
    Reboot,
    /// Takes the node back into service after its turn, or after a turn without a reboot.
    Undrain,
    /// Marks the running release good.
    MarkGood,
    /// Returns to the previous release by a reboot.
    RollBack,
    /// Stages and commits by itself the release that the others run, since the upgrade to it was missed.
    CatchUp,
    /// Reports that nothing is left to do.
    Report,
    /// Reports its standing as the reason of a failure.
    ReportFailure,
}

/// Next step of `node`.
pub fn step(view: &View, node: NodeId, local: &Local) -> Step {
    let target = view.upgrade.order.as_ref().map(|order| order.digest);
    let software =
        view.upgrade.order.as_ref().is_some_and(|order| order.upgrade_type == UpgradeType::SoftwareOnly);
    let outcome = view.outcomes.get(&node);
    let on_target = Some(local.runs) == target;
    if !view.members.contains(&node) {
        return Step::Rest;
    }
    if local.gated && !matches!(view.upgrade.stage, Stage::Gate | Stage::Swap) {
        return Step::Ungate;
    }
    if local.drained
        && matches!(local.standing, Standing::Good | Standing::FellBack(_))
        && !goes(view, node, local)
    {
        return Step::Undrain;
    }
    match view.upgrade.stage {
        Stage::Preparing => match outcome {
            None => Step::Prepare,
            Some(_) => Step::Rest,
        },
        Stage::Gate => match outcome {
            Some(Outcome::Prepared) => Step::Gate,
            _ => Step::Rest,
        },
        Stage::Swap => match outcome {
            Some(Outcome::Ready) => Step::Swap,
            _ => Step::Rest,
        },
        Stage::SwapBack => match outcome {
            Some(Outcome::Undone | Outcome::Failed(_)) => Step::Rest,
            _ if on_target => Step::SwapBack,
            _ => Step::Report,
        },
        Stage::Flip => match outcome {
            Some(Outcome::Prepared) => Step::Flip,
            _ => Step::Rest,
        },
        Stage::FlipBack => match outcome {
            Some(Outcome::Undone | Outcome::Failed(_)) => Step::Rest,
            _ if local.selected => Step::FlipBack,
            _ => Step::Report,
        },
        Stage::Keep => match (outcome, &local.standing) {
            (Some(Outcome::Kept | Outcome::Failed(_)), _) => Step::Rest,
            (_, Standing::Trial) => Step::MarkGood,
            (_, Standing::Good) => Step::Report,
            (_, Standing::Unhealthy(_) | Standing::FellBack(_)) => Step::ReportFailure,
        },
        Stage::Return => match outcome {
            Some(Outcome::Undone | Outcome::Failed(_)) => Step::Rest,
            _ if on_target => Step::RollBack,
            _ if local.selected => Step::FlipBack,
            _ => Step::Report,
        },
        // The verdict was decided while the node was away: it does what the others did.
        Stage::Idle | Stage::Prepared if on_target && view.reboot.state == RebootState::Idle => {
            match (&local.standing, view.upgrade.kept) {
                (Standing::Trial, true) => Step::MarkGood,
                (Standing::Trial | Standing::Unhealthy(_), false) if software => Step::SwapBack,
                (Standing::Trial | Standing::Unhealthy(_), false) => Step::RollBack,
                _ => Step::Rest,
            }
        }
        // One that fell back or is not healthy waits for an operator: it would try the same again and again.
        Stage::Idle if view.missed(node, local.runs) => match local.standing {
            Standing::Good => Step::CatchUp,
            _ => Step::Rest,
        },
        // A prepared slot without a purpose: left by an order that was cancelled while this node was away.
        Stage::Idle if local.staged.is_some() && view.reboot.state == RebootState::Idle => Step::Discard,
        Stage::Prepared if local.selected => Step::FlipBack,
        Stage::Idle | Stage::Prepared | Stage::Committed | Stage::Rebooting => turn(view, node, local),
    }
}

/// Whether the node has its turn in this boot, and is to reboot.
fn goes(view: &View, node: NodeId, local: &Local) -> bool {
    let leaving = view.alive.get(&node).is_some_and(|alive| alive.leaving && alive.boot == local.boot);
    let runs = matches!(view.reboot.state, RebootState::InProgress | RebootState::Paused);
    leaving || (runs && view.reboot.current.contains(&(node, local.boot)))
}

/// Whether the next turn of the node needs the ordered bundle, and its slots do not contain it. The limit for a return from a
/// reboot must not include a transfer, so the group of a node begins when it has the bundle.
pub fn lacks_bundle(view: &View, local: &Local) -> bool {
    let reboot = &view.reboot;
    let goes =
        reboot.state != RebootState::Idle && reboot.rolling && reboot.upgrade_initiated && !reboot.back;
    let target = view.upgrade.order.as_ref().map(|order| order.digest);
    goes && Some(local.runs) != target && local.staged != target && !local.selected
}

/// Next step of `node` in a reboot.
fn turn(view: &View, node: NodeId, local: &Local) -> Step {
    let reboot = &view.reboot;
    let leaving = view.alive.get(&node).is_some_and(|alive| alive.leaving && alive.boot == local.boot);
    let mine = reboot.current.contains(&(node, local.boot));
    let failed = matches!(view.outcomes.get(&node), Some(Outcome::Failed(_)));
    match reboot.state {
        // It is counted as down already, and the others wait for its return.
        _ if leaving => Step::Reboot,
        RebootState::InProgress | RebootState::Paused if lacks_bundle(view, local) && !failed => {
            Step::StageAgain
        }
        // It failed, and the leader is about to pause the reboot for that.
        RebootState::InProgress | RebootState::Paused if mine && failed => Step::Rest,
        RebootState::InProgress | RebootState::Paused if mine => Step::TakeTurn,
        // The new release is selected for a boot that must not happen.
        _ if reboot.back && local.selected => Step::FlipBack,
        // In a rolling reboot each node decides by itself, since it is alone in its turn.
        _ if reboot.rolling
            && reboot.upgrade_initiated
            && !reboot.back
            && local.standing == Standing::Trial =>
        {
            Step::MarkGood
        }
        _ => Step::Rest,
    }
}

/// Transaction that reports the outcome of a step, on the condition that the upgrade is unchanged since the view.
pub fn report(view: &View, node: NodeId, outcome: Outcome) -> Txn {
    let key = Key::Outcome(view.upgrade.id, node);
    Txn {
        compare: vec![view.unchanged(Key::Upgrade)],
        writes: vec![Write::Put(key, Value::Outcome(outcome), None)],
    }
}

/// Transaction that publishes the state of the node, or the outcome of a step as by [`report`], or both at one revision: each
/// revision is sent to every node. `None`: there is nothing to publish. The state of another machine with the number of this
/// one is not overwritten.
pub fn publish(
    view: &View,
    node: NodeId,
    alive: Option<(&Alive, LeaseId)>,
    outcome: Option<Outcome>,
) -> Option<Txn> {
    let mut txn = outcome.map(|outcome| report(view, node, outcome)).unwrap_or_default();
    if let Some((alive, lease)) = alive {
        txn.compare.extend([view.unchanged(Key::Alive(node)), view.unchanged(Key::Member(node))]);
        txn.writes.push(Write::Put(Key::Alive(node), Value::Alive(alive.clone()), Some(lease)));
    }
    (!txn.writes.is_empty()).then_some(txn)
}

/// Transaction that takes the right to be down, on the condition that the reboot is unchanged: it is still this node's turn
/// with this boot, and nothing has failed since. Without it a slow node would go down in the turn of another one. It is taken
/// once, on the condition that the state of the node is unchanged, too.
pub fn take_turn(view: &View, node: NodeId, alive: &Alive, lease: LeaseId) -> Txn {
    let leaving = Alive { leaving: true, ..alive.clone() };
    Txn {
        compare: vec![view.unchanged(Key::Reboot), view.unchanged(Key::Alive(node))],
        writes: vec![Write::Put(Key::Alive(node), Value::Alive(leaving), Some(lease))],
    }
}

/// Transaction that makes this node the leader, if there is none. `None`: there is a leader, or this node's turn is next: it
/// has just resigned for that, and another node is alive that can lead meanwhile.
pub fn campaign(view: &View, node: NodeId, lease: LeaseId) -> Option<Txn> {
    let reboot = &view.reboot;
    let next = reboot.state == RebootState::InProgress && reboot.current.is_empty();
    let waits = next && rolling::in_order(view).first() == Some(&node);
    let other = view.alive.keys().any(|other| *other != node && view.members.contains(other));
    (view.leader.is_none() && !(waits && other)).then(|| Txn {
        compare: vec![Compare::Created(Key::Leader, 0)],
        writes: vec![Write::Put(Key::Leader, Value::Leader(node), Some(lease))],
    })
}
