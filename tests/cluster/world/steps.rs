//! Steps of a node, and what they do to it.

use qstage::cluster::state::{Outcome, Stage, Standing};
use qstage::cluster::turn::{self, Step};
use qstage::cluster::view::View;

use super::{World, id};

impl World {
    pub(super) fn node_step(&self, view: &View, index: usize) -> Option<(String, Self)> {
        let name = id(index);
        if view.tries_again(&view.alive[&name]) {
            let next =
                self.with(|w| (w.nodes[index].standing, w.nodes[index].failed_in) = (Standing::Trial, 0));
            return Some((format!("{name} tries again"), next));
        }
        let step = turn::step(view, name, &self.local(index));
        let report = |w: &mut Self, outcome| {
            let txn = turn::report(view, name, outcome);
            w.apply(&txn);
        };
        let undone = matches!(view.upgrade.stage, Stage::SwapBack | Stage::FlipBack | Stage::Return);
        let next = self.with(|w| match step {
            Step::Rest => {}
            Step::Prepare if w.nodes[index].progress == 0 => w.nodes[index].progress = 50,
            Step::Prepare => {
                w.nodes[index].staged = true;
                report(w, Outcome::Prepared);
            }
            Step::Discard => (w.nodes[index].staged, w.nodes[index].next_new) = (false, false),
            Step::Gate => {
                w.nodes[index].gated = true;
                report(w, Outcome::Ready);
            }
            Step::Ungate => w.nodes[index].gated = false,
            Step::Swap => {
                (w.nodes[index].new, w.nodes[index].next_new, w.nodes[index].gated) = (true, true, false);
                w.nodes[index].standing = Standing::Trial;
                report(w, Outcome::Switched);
            }
            Step::SwapBack => {
                (w.nodes[index].new, w.nodes[index].next_new) = (false, false);
                w.nodes[index].standing = Standing::Good;
                if undone {
                    report(w, Outcome::Undone);
                }
            }
            Step::Flip => {
                w.nodes[index].next_new = true;
                report(w, Outcome::Switched);
            }
            Step::CatchUp if !w.nodes[index].staged => w.nodes[index].staged = true,
            Step::CatchUp => {
                w.nodes[index].next_new = true;
                w.goes_down(index, false);
            }
            Step::FlipBack => {
                w.nodes[index].next_new = false;
                if undone {
                    report(w, Outcome::Undone);
                }
            }
            Step::StageAgain => w.nodes[index].staged = true,
            Step::TakeTurn => w.takes_turn(view, index),
            Step::Reboot => {
                if view.reboot.rolling && view.reboot.upgrade_initiated {
                    if !view.reboot.back && !w.nodes[index].staged && !w.nodes[index].new {
                        w.broken = Some("a turn begins without the bundle");
                    }
                    if w.nodes[index].new && !view.reboot.back {
                        w.broken = Some("a node that needs no turn has one");
                    }
                    w.nodes[index].next_new = !view.reboot.back;
                }
                w.nodes[index].drained = view.reboot.rolling;
                w.goes_down(index, false);
                w.exposed = true;
            }
            Step::Undrain => w.nodes[index].drained = false,
            Step::MarkGood => {
                if !view.upgrade.kept && !view.reboot.rolling {
                    w.broken = Some("a node marks good before the verdict");
                }
                w.nodes[index].standing = Standing::Good;
                if view.upgrade.stage == Stage::Keep {
                    report(w, Outcome::Kept);
                }
            }
            Step::RollBack => {
                w.nodes[index].next_new = false;
                w.goes_down(index, false);
            }
            Step::ReportFailure => report(w, Outcome::Failed("x".into())),
            Step::Report => report(w, if undone { Outcome::Undone } else { Outcome::Kept }),
        });
        (step != Step::Rest).then(|| (format!("{name}: {step:?}"), next))
    }

    fn takes_turn(&mut self, view: &View, index: usize) {
        let txn = turn::take_turn(view, id(index), &self.alive(view, index), Self::lease(index));
        if self.apply(&txn) {
            if self.stopped {
                self.broken = Some("a node begins after a failure");
            }
            self.nodes[index].turn = true;
        }
    }
}
