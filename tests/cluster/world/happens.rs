//! Possible next events of a cluster.

use qstage::cluster::next::Action;
use qstage::cluster::orders;
use qstage::cluster::state::{BootId, Outcome, RebootState, Standing};
use qstage::cluster::store::{Key, Value, Write};
use qstage::cluster::turn::{self, Step};

use super::{Mutant, World, id};

impl World {
    /// Next events without a fault, an operator or a slow driver.
    pub(crate) fn steps(&self) -> Vec<(String, Self)> {
        let mut all = Vec::new();
        let view = self.view();
        for index in 0..self.nodes.len() {
            let (node, name) = (&self.nodes[index], id(index));
            let key = self.store.entries().get(&Key::Alive(name));
            if !node.up && !node.dead {
                all.push((format!("{name} boots"), self.boots(index, true)));
            }
            if !node.connected && node.up {
                all.push((format!("{name} is connected"), self.with(|w| w.nodes[index].connected = true)));
            }
            if key.is_some() && !self.can_act(index) {
                all.push((format!("lease of {name} ends"), self.lease_ends(index)));
            }
            if !self.can_act(index) {
                continue;
            }
            if key.is_none_or(|entry| entry.value != Value::Alive(self.alive(&view, index))) {
                all.push((format!("{name} publishes"), self.with(|w| w.publish(index))));
                // It publishes its state before it acts, as the driver of a node does.
                continue;
            }
            if let Some(txn) = turn::campaign(&view, name, Self::lease(index)) {
                all.push((format!("{name} leads"), self.with(|w| _ = w.apply(&txn))));
            }
            all.extend(self.node_step(&view, index));
            if view.leader.is_some_and(|(leader, _)| leader == name) {
                all.extend(self.drive(&view, index, false));
            }
        }
        if !self.whole && self.nodes.iter().all(|node| node.up) {
            all.push((
                "the data is protected again".into(),
                self.with(|w| (w.whole, w.exposed) = (true, false)),
            ));
        }
        if let Some((node, txn)) = self.slow.clone() {
            let done = self.with(|w| {
                w.slow = None;
                w.write(node, &txn);
            });
            all.push((format!("{node} writes at last"), done));
        }
        if self.mutant == Mutant::GoesOn && view.reboot.state == RebootState::PausedDueToError {
            let mut txn = orders::resume(&view).unwrap();
            // It does so for ever, and the attempts must not make each time a new state.
            for write in &mut txn.writes {
                if let Write::Put(_, Value::Reboot(reboot), _) = write {
                    reboot.attempt = view.reboot.attempt;
                }
            }
            all.push(("it goes on".into(), self.with(|w| _ = w.apply(&txn))));
        }
        all
    }

    /// Next events that need time to be noticed, orders of operators, and faults.
    pub(crate) fn events(&self) -> Vec<(String, Self)> {
        let mut all = Vec::new();
        let view = self.view();
        for index in 0..self.nodes.len() {
            if self.late && self.can_act(index) && view.leader.is_some_and(|(leader, _)| leader == id(index))
            {
                all.extend(self.drive(&view, index, true));
            }
        }
        if self.pauses > 0
            && let Ok(txn) = orders::pause(&view)
        {
            let next = self.with(|w| {
                w.pauses -= 1;
                w.apply(&txn);
            });
            all.push(("pause".into(), next));
        }
        let mut asked = view.clone();
        if self.mutant == Mutant::Hasty && asked.reboot.state == RebootState::InProgress {
            asked.reboot.state = RebootState::PausedDueToError;
        }
        if self.abandons > 0
            && let Ok(txn) = orders::abandon(&asked)
        {
            let next = self.with(|w| {
                w.abandons -= 1;
                w.apply(&txn);
                // A node that is up serves, whatever it runs, and no longer counts as down, unless it is about to reboot. Of a
                // group that has failed, one that has booted since its turn began and is down again crashed.
                for (node, before) in &view.reboot.current {
                    let leaves = view.alive.get(node).is_some_and(|alive| alive.leaving);
                    let node = &mut w.nodes[node.0 as usize - 1];
                    let crashed = view.reboot.state == RebootState::PausedDueToError
                        && BootId(u128::from(node.boot)) != *before;
                    node.turn &= (!node.up && !crashed) || leaves;
                }
            });
            all.push(("abandon".into(), next));
        }
        if self.take_backs > 0 {
            for (node, _) in &view.reboot.current {
                let Ok(txn) = orders::take_back(&view, *node) else { continue };
                let next = self.with(|w| {
                    w.take_backs -= 1;
                    w.apply(&txn);
                });
                all.push((format!("the turn of {node} is taken back"), next));
            }
        }
        if self.resumes > 0 && view.reboot.state == RebootState::PausedDueToError {
            let txn = orders::resume(&view).unwrap();
            let next = self.with(|w| {
                w.resumes -= 1;
                w.apply(&txn);
            });
            all.push(("resume after a failure".into(), next));
        }
        if view.reboot.state == RebootState::Paused {
            let txn = orders::resume(&view).unwrap();
            all.push(("resume".into(), self.with(|w| _ = w.apply(&txn))));
        }
        let leader =
            view.leader.map(|(leader, _)| leader.0 as usize - 1).filter(|index| self.can_act(*index));
        if let Some(index) = leader.filter(|_| self.slows > 0)
            && let Action::Write(txn) = self.decision(&view, index, false)
        {
            let next = self.with(|w| (w.slows, w.slow) = (w.slows - 1, Some((id(index), txn.clone()))));
            all.push((format!("{} is slow", id(index)), next));
        }
        if self.faults == 0 {
            return all;
        }
        let mut fault = |what: String, act: &dyn Fn(&mut Self)| {
            let next = self.with(|w| {
                w.faults -= 1;
                act(w);
            });
            all.push((what, next));
        };
        for index in 0..self.nodes.len() {
            let (node, name) = (&self.nodes[index], id(index));
            if node.up {
                for dead in [false, true] {
                    fault(format!("{name} crashes, dead: {dead}"), &|w| w.goes_down(index, dead));
                }
                fault(format!("{name} is cut off"), &|w| w.nodes[index].connected = false);
                fault(format!("lease of {name} is lost"), &|w| *w = w.lease_ends(index));
                if node.standing == Standing::Trial {
                    fault(format!("{name} is not healthy"), &|w| {
                        w.nodes[index].standing = Standing::Unhealthy("x".into());
                        w.nodes[index].failed_in = view.reboot.attempt;
                    });
                }
                let fails = matches!(
                    turn::step(&view, name, &self.local(index)),
                    Step::Prepare | Step::Gate | Step::Swap | Step::Flip | Step::StageAgain
                );
                if fails && node.connected {
                    fault(format!("{name} fails"), &|w| {
                        w.nodes[index].gated = false;
                        let txn = turn::report(&view, name, Outcome::Failed("x".into()));
                        w.apply(&txn);
                    });
                }
            } else if !node.dead {
                fault(format!("{name} never comes back"), &|w| w.nodes[index].dead = true);
                if node.next_new && !node.new {
                    fault(format!("{name} falls back"), &|w| *w = w.boots(index, false));
                }
            }
        }
        all
    }
}
