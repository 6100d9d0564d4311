//! Model of a small cluster, with every event that can happen to it, as values: nodes, their slots, a store, and a driver that
//! may be slow.

mod happens;
mod mutant;
mod steps;

use qstage::cluster::memory::Memory;
use qstage::cluster::next::{Action, next_action};
use qstage::cluster::orders;
use qstage::cluster::state::{
    Alive, BootId, Member, NodeId, Ordered, Outcome, PROTOCOL, Protection, Reboot, RebootState, Stage,
    Staging, Standing, Upgrade,
};
use qstage::cluster::store::{Compare, Entry, Key, Store, Txn, Value, Write};
use qstage::cluster::turn::{self, Local};
use qstage::cluster::view::View;
use qstage::state::UpgradeType;
use qstage::units::Blake3;

pub(crate) use mutant::Mutant;

pub(crate) const OLD: Blake3 = Blake3([1; 32]);
pub(crate) const NEW: Blake3 = Blake3([2; 32]);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) up: bool,
    /// Whether it does not come up again before an operator repairs it.
    pub(crate) dead: bool,
    pub(crate) connected: bool,
    pub(crate) boot: u8,
    /// Whether it runs the new release.
    pub(crate) new: bool,
    /// Whether the next boot selects the new release.
    pub(crate) next_new: bool,
    pub(crate) standing: Standing,
    pub(crate) staged: bool,
    pub(crate) gated: bool,
    pub(crate) progress: u8,
    pub(crate) drained: bool,
    /// Attempt of the reboot in which it became unhealthy.
    pub(crate) failed_in: u32,
    /// Whether it took its turn and does not count as back yet; the rules count these nodes.
    pub(crate) turn: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) store: Memory,
    pub(crate) nodes: Vec<Node>,
    /// Whether the data is protected.
    pub(crate) whole: bool,
    /// Whether it is unprotected because a node took its turn: the driver must know that. It cannot know of a recent crash.
    exposed: bool,
    /// Transaction that a slow driver has decided and not written yet.
    slow: Option<(NodeId, Txn)>,
    /// Number of faults that may still occur.
    pub(crate) faults: u8,
    /// Number of times that a driver may still be slow.
    slows: u8,
    /// Whether time limits may be exceeded.
    late: bool,
    pub(crate) pauses: u8,
    /// Number of times that the upgrade may still be abandoned.
    pub(crate) abandons: u8,
    /// Number of times that the turn of a node may still be taken back.
    pub(crate) take_backs: u8,
    /// Number of times that a reboot that has failed may still be resumed.
    pub(crate) resumes: u8,
    /// Number of nodes that may fail when the data is protected.
    maximum: u32,
    pub(crate) mutant: Mutant,
    /// Whether the reboot has failed and was not resumed.
    stopped: bool,
    /// Last progress that was shown.
    shown: u8,
    /// Rule that was broken; `None`: none.
    pub(crate) broken: Option<&'static str>,
}

/// Start and limits of an exploration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) nodes: u32,
    pub(crate) upgrade_type: UpgradeType,
    pub(crate) rolling: bool,
    /// Whether it starts with the prepare; `false`: at PREPARED.
    pub(crate) prepare: bool,
    /// Whether it starts after an upgrade that the last node missed.
    pub(crate) missed: bool,
    pub(crate) faults: u8,
    pub(crate) slows: u8,
    pub(crate) late: bool,
    pub(crate) pauses: u8,
    pub(crate) abandons: u8,
    pub(crate) take_backs: u8,
    pub(crate) resumes: u8,
    /// Nodes per group, all of which may fail at the same time; `None`: one node may fail.
    pub(crate) group: Option<u32>,
    pub(crate) mutant: Mutant,
}

fn id(index: usize) -> NodeId {
    NodeId(index as u32 + 1)
}

/// Order of an upgrade.
pub(crate) fn order(digest: Blake3, upgrade_type: UpgradeType, rolling: bool, nodes: Option<u32>) -> Ordered {
    Ordered {
        digest,
        install_path: "/x".into(),
        source: None,
        target_version: "2".into(),
        upgrade_type,
        auto_commit: false,
        rolling,
        nodes,
        overridden: false,
        retry: false,
    }
}

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let node = Node {
            up: true,
            dead: false,
            connected: true,
            boot: 1,
            new: false,
            next_new: false,
            standing: Standing::Good,
            staged: !scenario.prepare,
            gated: false,
            progress: 0,
            drained: false,
            failed_in: 0,
            turn: false,
        };
        let mut world = Self {
            store: Memory::default(),
            nodes: vec![node; scenario.nodes as usize],
            whole: true,
            exposed: false,
            slow: None,
            faults: scenario.faults,
            slows: scenario.slows,
            late: scenario.late,
            pauses: scenario.pauses,
            abandons: scenario.abandons,
            take_backs: scenario.take_backs,
            resumes: scenario.resumes,
            maximum: scenario.group.unwrap_or(1),
            mutant: scenario.mutant,
            stopped: false,
            shown: 0,
            broken: None,
        };
        for index in 0..world.nodes.len() {
            let member =
                Member { uuid: index.to_string(), address: String::new(), certificate: String::new() };
            world.put(Key::Member(id(index)), Value::Member(member));
            world.publish(index);
        }
        let order = order(NEW, scenario.upgrade_type, scenario.rolling, scenario.group);
        let txn = orders::prepare(&world.view(), order).unwrap();
        assert!(world.store.transact(&txn).unwrap());
        assert!(world.apply(&turn::campaign(&world.view(), id(0), Self::lease(0)).unwrap()));
        if !scenario.prepare {
            for index in 0..world.nodes.len() {
                world.put(Key::Outcome(1, id(index)), Value::Outcome(Outcome::Prepared));
            }
            let upgrade = Upgrade { stage: Stage::Prepared, progress: 100, ..world.view().upgrade };
            world.put(Key::Upgrade, Value::Upgrade(upgrade));
            let txn = orders::commit(&world.view()).unwrap();
            assert!(world.store.transact(&txn).unwrap());
        }
        if scenario.missed {
            let upgrade = Upgrade { stage: Stage::Idle, kept: true, ..world.view().upgrade };
            world.put(Key::Upgrade, Value::Upgrade(upgrade));
            let last = world.nodes.len() - 1;
            for index in 0..=last {
                let taken = index != last;
                let node = &mut world.nodes[index];
                (node.new, node.next_new, node.staged) = (taken, taken, false);
                world.publish(index);
            }
        }
        world.canonical()
    }

    fn put(&mut self, key: Key, value: Value) {
        self.store.transact(&Txn { compare: vec![], writes: vec![Write::Put(key, value, None)] }).unwrap();
    }

    pub(crate) fn view(&self) -> View {
        View::new(self.store.entries())
    }

    fn lease(index: usize) -> i64 {
        index as i64 + 1
    }

    fn alive(&self, view: &View, index: usize) -> Alive {
        let node = &self.nodes[index];
        let boot = BootId(u128::from(node.boot));
        let before = view.alive.get(&id(index));
        Alive {
            boot,
            runs: if node.new { NEW } else { OLD },
            platform: None,
            version: if node.new { "2" } else { "1" }.into(),
            product: String::new(),
            protocol: PROTOCOL,
            standing: node.standing.clone(),
            protection: Protection {
                remaining: if self.whole { self.maximum } else { 0 },
                maximum: self.maximum,
                rebuilding: false,
            },
            progress: node.progress,
            blocked: None,
            leaving: before.is_some_and(|before| before.leaving && before.boot == boot),
            drained: node.drained,
            unknown: None,
            failed_in: matches!(node.standing, Standing::Unhealthy(_)).then_some(node.failed_in),
            staging: turn::lacks_bundle(view, &self.local(index)).then(Staging::default),
        }
    }

    fn publish(&mut self, index: usize) {
        let (alive, lease) = (self.alive(&self.view(), index), self.store.grant_as(Self::lease(index)));
        let write = Write::Put(Key::Alive(id(index)), Value::Alive(alive), Some(lease));
        self.store.transact(&Txn { compare: vec![], writes: vec![write] }).unwrap();
        // It was down when the upgrade was abandoned, and has come back outside of a group.
        let reboot = self.reboot();
        if reboot.back
            && !self.nodes[index].drained
            && reboot.current.iter().all(|(turn, _)| *turn != id(index))
        {
            self.nodes[index].turn = false;
        }
    }

    /// See [`Memory::canonical`].
    fn canonical(mut self) -> Self {
        let mut slow = self.slow.take();
        let held = slow.as_mut().map_or(&mut [][..], |(_, txn)| &mut txn.compare);
        let store = self.store.canonical(held);
        Self { slow, store, ..self }
    }

    fn can_act(&self, index: usize) -> bool {
        self.nodes[index].up && self.nodes[index].connected
    }

    fn with(&self, act: impl FnOnce(&mut Self)) -> Self {
        let mut next = self.clone();
        act(&mut next);
        next.look(self);
        next.canonical()
    }

    /// Runs a transaction that is not one of the driver.
    fn apply(&mut self, txn: &Txn) -> bool {
        self.store.transact(txn).unwrap()
    }

    fn goes_down(&mut self, index: usize, dead: bool) {
        let node = &mut self.nodes[index];
        (node.up, node.dead, node.gated) = (false, dead, false);
        self.whole = false;
    }

    fn lease_ends(&self, index: usize) -> Self {
        self.with(|w| {
            w.store.revoke(Self::lease(index)).unwrap();
            if w.mutant == Mutant::TtlLock {
                let mut reboot = w.view().reboot;
                reboot.current.retain(|(node, _)| *node != id(index));
                if reboot != w.view().reboot {
                    reboot.todo.push(id(index));
                    w.put(Key::Reboot, Value::Reboot(reboot));
                }
            }
        })
    }

    fn boots(&self, index: usize, comes_up: bool) -> Self {
        self.with(|w| {
            let node = &mut w.nodes[index];
            (node.up, node.boot) = (true, node.boot + 1);
            match (node.next_new, node.new) {
                (true, false) if comes_up => (node.new, node.standing) = (true, Standing::Trial),
                (true, false) => {
                    (node.next_new, node.standing) = (false, Standing::FellBack("x".into()));
                    // It discards the release.
                    node.staged = false;
                }
                (false, true) => (node.new, node.standing) = (false, Standing::Good),
                // An operator has repaired the node.
                (true, true) if node.standing != Standing::Good => node.standing = Standing::Trial,
                _ => {}
            }
        })
    }

    fn local(&self, index: usize) -> Local {
        let node = &self.nodes[index];
        Local {
            boot: BootId(u128::from(node.boot)),
            runs: if node.new { NEW } else { OLD },
            standing: node.standing.clone(),
            staged: (node.staged && !node.new).then_some(NEW),
            selected: node.next_new && !node.new,
            gated: node.gated,
            drained: node.drained,
        }
    }

    fn decision(&self, view: &View, index: usize, late: bool) -> Action {
        let mut view = view.clone();
        if late {
            view.lost = view.members.iter().filter(|node| !view.alive.contains_key(node)).copied().collect();
            view.overdue = (0..self.nodes.len()).any(|index| !self.can_act(index));
        }
        if self.mutant == Mutant::Unprotected {
            for alive in view.alive.values_mut() {
                alive.protection.remaining = alive.protection.maximum;
            }
        }
        if self.mutant == Mutant::Unchecked && view.reboot.back {
            for alive in view.alive.values_mut() {
                alive.runs = OLD;
            }
        }
        if self.mutant == Mutant::Undrained {
            for alive in view.alive.values_mut() {
                alive.drained = false;
            }
        }
        debug_assert!(view.leader.is_some_and(|(leader, _)| leader == id(index)));
        next_action(&view)
    }

    fn drive(&self, view: &View, index: usize, late: bool) -> Option<(String, Self)> {
        let word = if late { "late" } else { "" };
        match self.decision(view, index, late) {
            Action::Rest => None,
            Action::Wait(what) if what.is_empty() => Some((
                "waits for nothing".into(),
                Self { broken: Some("a wait without a name"), ..self.clone() },
            )),
            Action::Wait(_) => None,
            Action::Resign => {
                let txn = Txn { compare: vec![], writes: vec![Write::Delete(Key::Leader)] };
                Some((
                    format!("{} resigns", id(index)),
                    self.with(|w| {
                        w.apply(&txn);
                    }),
                ))
            }
            Action::Write(txn) => {
                let written = self.with(|w| w.write(id(index), &txn));
                let reboot = written.reboot();
                let (stage, current) =
                    (written.stage(), reboot.current.iter().map(|turn| turn.0.0).collect::<Vec<_>>());
                Some((
                    format!("{} drives {word} {stage:?} {:?} {current:?}", id(index), reboot.state),
                    written,
                ))
            }
        }
    }

    /// Runs a transaction of the driver.
    fn write(&mut self, node: NodeId, txn: &Txn) {
        let mut txn = txn.clone();
        if self.mutant == Mutant::NoFence {
            txn.compare.retain(|compare| !matches!(compare, Compare::Created(Key::Leader, _)));
        }
        let before = self.view();
        if !self.apply(&txn) {
            return;
        }
        let after = self.view();
        if before.leader.is_none_or(|(leader, _)| leader != node) {
            self.broken = Some("somebody writes who does not lead");
        }
        if before.upgrade.stage == Stage::Preparing
            && after.upgrade.stage == Stage::Prepared
            && !self.nodes.iter().all(|node| node.staged)
        {
            self.broken = Some("PREPARED before all are");
        }
        if before.reboot.current.is_empty() && !after.reboot.current.is_empty() && after.reboot.rolling {
            let turn = |node: &NodeId| after.reboot.current.iter().any(|(current, _)| current == node);
            let serves = |standing: &Standing| {
                *standing == Standing::Good || after.reboot.back && matches!(standing, Standing::FellBack(_))
            };
            let fit = |node: &NodeId| {
                before
                    .alive
                    .get(node)
                    .is_some_and(|alive| serves(&alive.standing) && !alive.leaving && !alive.drained)
            };
            if !before.members.iter().all(|node| turn(node) || fit(node)) {
                self.broken = Some("a group begins while another node is away or not good");
            }
            let another = after.reboot.current.iter().any(|(node, _)| !self.nodes[node.0 as usize - 1].turn);
            if self.exposed && another {
                self.broken = Some("a group begins before the data is protected again");
            }
        }
        for node in after.reboot.done.iter().filter(|node| !before.reboot.done.contains(node)) {
            if self.nodes[node.0 as usize - 1].drained {
                self.broken = Some("a node counts that is not back in service");
            }
        }
        for node in &after.reboot.done {
            self.nodes[node.0 as usize - 1].turn = false;
        }
    }

    /// Checks the rules that hold after every step.
    fn look(&mut self, before: &Self) {
        let (after, old) = (self.reboot(), before.reboot());
        if after.state == RebootState::PausedDueToError {
            self.stopped = true;
        } else if old.state == RebootState::PausedDueToError && self.mutant != Mutant::GoesOn {
            self.stopped = false;
        }
        let ended = old.state != RebootState::Idle && after.state == RebootState::Idle;
        if ended && after.back && self.nodes.iter().any(|node| node.up && node.connected && node.new) {
            self.broken = Some("a node keeps what was abandoned");
        }
        let down = self.nodes.iter().filter(|node| node.turn).count();
        if after.rolling && down > after.group as usize {
            self.broken = Some("more nodes are down than may be");
        }
        if let Some(Entry { value: Value::Upgrade(upgrade), .. }) = self.store.entries().get(&Key::Upgrade) {
            if upgrade.progress < before.shown {
                self.broken = Some("progress falls");
            }
            self.shown = upgrade.progress;
        }
    }

    /// The state after an operator has repaired all nodes and resumed the failed reboot.
    pub(crate) fn seen_to(&self) -> Self {
        self.with(|w| {
            w.faults = 0;
            for node in &mut w.nodes {
                (node.dead, node.connected) = (false, true);
            }
            if let Ok(txn) = orders::resume(&w.view()) {
                w.apply(&txn);
            }
        })
    }

    fn stage(&self) -> Stage {
        match self.store.entries().get(&Key::Upgrade) {
            Some(Entry { value: Value::Upgrade(upgrade), .. }) => upgrade.stage,
            _ => Stage::Idle,
        }
    }

    pub(crate) fn reboot(&self) -> Reboot {
        match self.store.entries().get(&Key::Reboot) {
            Some(Entry { value: Value::Reboot(reboot), .. }) => reboot.clone(),
            _ => Reboot::default(),
        }
    }
}
