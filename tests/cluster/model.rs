//! Every interleaving of small clusters: nodes that publish late, leases that end, a slow driver, and one fault at any step,
//! with the state machine of `src/cluster` and a store in memory. It prints the number of states.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use std::collections::HashSet;
use std::hash::{Hash, Hasher};

use crate::world::{Mutant, Scenario, World};
use qstage::cluster::next::{Action, next_action};
use qstage::cluster::state::{RebootState, Stage, Standing};
use qstage::state::UpgradeType;

/// Two 64-bit hashes of a state, made in one pass: most of the time of an exploration is spent here. That two states have both
/// in common is less likely than a bit flip in memory.
struct Fingerprint(u64, u64);

impl Fingerprint {
    fn of(world: &World) -> (u64, u64) {
        let mut both = Self(0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344);
        world.hash(&mut both);
        (both.0, both.1)
    }
}

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let mixed = |state: u64, factor: u64| {
            let product = u128::from(state ^ word) * u128::from(factor);
            (product as u64) ^ ((product >> 64) as u64)
        };
        (self.0, self.1) =
            (mixed(self.0, 0x9e37_79b9_7f4a_7c15), mixed(self.1.rotate_left(29), 0xd6e8_feb8_6659_fd93));
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.1
    }
}

/// Maximum number of states, before the memory of the machine is full.
const STATES: usize = 20_000_000;

/// Result of an exploration.
struct Explored {
    states: usize,
    /// States in which nothing more happens by itself.
    ends: Vec<World>,
    /// Rule that was broken, and the events that led to it.
    broken: Option<(&'static str, Vec<String>)>,
}

fn explore(scenario: Scenario) -> Explored {
    let mut seen = HashSet::new();
    let mut result = Explored { states: 0, ends: Vec::new(), broken: None };
    let start = World::new(scenario);
    seen.insert(Fingerprint::of(&start));
    let mut stack: Vec<(String, Vec<(String, World)>)> = vec![(String::new(), vec![(String::new(), start)])];
    while let Some((_, open)) = stack.last_mut() {
        let Some((label, world)) = open.pop() else {
            stack.pop();
            continue;
        };
        result.states += 1;
        assert!(result.states < STATES, "more than {STATES} states: does something count for ever?");
        if let Some(rule) = world.broken {
            let path = stack.iter().map(|(label, _)| label.clone()).chain([label]).collect();
            result.broken = Some((rule, path));
            break;
        }
        let mut next = world.steps();
        let ended = next.is_empty();
        next.extend(world.events());
        next.retain(|(_, world)| seen.insert(Fingerprint::of(world)));
        if ended {
            result.ends.push(world);
        }
        stack.push((label, next));
    }
    result.states = seen.len();
    result
}

/// Checks that a cluster waits only with a status that names the reason, and lacks a leader only if no node could lead.
fn is_a_good_end(world: &World, scenario: Scenario) {
    let view = world.view();
    let waits = match next_action(&view) {
        Action::Rest => String::new(),
        Action::Wait(what) => what,
        // There is a next action, but no node that could lead.
        Action::Write(_) | Action::Resign => {
            assert!(world.nodes.iter().all(|node| !node.up || !node.connected), "nobody goes on: {world:#?}");
            return;
        }
    };
    let idle = view.upgrade.stage == Stage::Idle && view.reboot.state == RebootState::Idle;
    let names = waits.contains("node ")
        || waits.contains("resume")
        || waits.contains("commit")
        || waits.contains("protection");
    assert!(idle || names, "it waits for '{waits}': {world:#?}");
    if idle && view.upgrade.error.is_none() && !scenario.prepare {
        // A node that is not healthy after the verdict reports it, and blocks the next upgrade.
        let well = |node: &crate::world::Node| {
            scenario.upgrade_type == UpgradeType::SoftwareOnly || node.standing == Standing::Good
        };
        // A node that falls back as it catches up waits for an operator.
        let well = |node: &crate::world::Node| well(node) || scenario.missed;
        let took = world.nodes.iter().filter(|node| !node.dead).all(|node| {
            let failed = scenario.missed && matches!(node.standing, Standing::FellBack(_));
            failed || (node.new && well(node))
        });
        assert!(took, "not all took it: {world:#?}");
        let open = |node: &crate::world::Node| node.standing == Standing::Trial && node.up && node.connected;
        assert!(!world.nodes.iter().any(open), "a trial that nobody ends: {world:#?}");
    }
    let undone = matches!(view.upgrade.stage, Stage::Idle | Stage::Prepared) && !view.upgrade.kept;
    if undone && scenario.upgrade_type == UpgradeType::SoftwareOnly {
        let left = world.nodes.iter().filter(|node| node.up && node.connected && node.new).count();
        assert!(left == 0, "some run what the others gave up: {world:#?}");
    }
    if idle && view.reboot.back {
        assert!(view.upgrade.error.as_ref().is_some_and(|error| error.contains("abandoned")));
        let left = |node: &crate::world::Node| node.up && node.connected && node.new;
        assert!(!world.nodes.iter().any(left), "some run what was abandoned: {world:#?}");
    }
    if idle && !view.upgrade.kept && !scenario.rolling && scenario.upgrade_type == PLATFORM {
        let came = world.nodes.iter().filter(|node| !node.dead && node.new).count();
        assert!(came == 0, "some kept what the others gave up: {world:#?}");
    }
}

/// Checks that no right to be down is held for ever: after a repair of the nodes and a resume, the reboot ends.
fn can_go_on(world: &World) {
    let mut world = world.seen_to();
    for _ in 0..400 {
        assert!(world.broken.is_none(), "{:?}", world.broken);
        let mut next = world.steps();
        if next.is_empty() {
            if world.reboot().state == RebootState::Idle {
                break;
            }
            // A node that crashed before its turn is another failure, and needs another resume.
            next.push((String::new(), world.seen_to()));
        }
        world = next.swap_remove(0).1;
    }
    assert_eq!(world.reboot().state, RebootState::Idle, "{world:#?}");
    let back = world.reboot().back;
    let well = |node: &crate::world::Node| match node.standing {
        Standing::Good => node.new != back,
        Standing::FellBack(_) => back && !node.new,
        _ => false,
    };
    assert!(world.nodes.iter().all(well), "{world:#?}");
}

fn holds(what: &str, scenario: Scenario) {
    let begun = std::time::Instant::now();
    let explored = explore(scenario);
    if let Some((rule, path)) = &explored.broken {
        panic!("{what}: {rule}:\n{}", path.join("\n"));
    }
    for world in &explored.ends {
        is_a_good_end(world, scenario);
        if scenario.rolling && world.reboot().state != RebootState::Idle {
            can_go_on(world);
        }
    }
    assert!(!explored.ends.is_empty());
    let (states, ends, time) = (explored.states, explored.ends.len(), begun.elapsed());
    println!("{what}: {states} states, {ends} ends, {time:.1?}");
}

const PLATFORM: UpgradeType = UpgradeType::SoftwareAndPlatform;

const fn scenario(nodes: u32, upgrade_type: UpgradeType, rolling: bool) -> Scenario {
    let mutant = Mutant::None;
    Scenario {
        nodes,
        upgrade_type,
        rolling,
        prepare: false,
        missed: false,
        faults: 1,
        slows: 0,
        late: true,
        pauses: 0,
        abandons: 0,
        take_backs: 0,
        resumes: 0,
        group: None,
        mutant,
    }
}

#[test]
fn a_prepare() {
    holds("prepare, 3 nodes", Scenario { prepare: true, ..scenario(3, PLATFORM, false) });
}

#[test]
fn a_node_that_missed_an_upgrade() {
    holds("missed, 3 nodes", Scenario { missed: true, ..scenario(3, PLATFORM, false) });
}

#[test]
fn software_on_all_nodes_at_once() {
    holds("software, 3 nodes", scenario(3, UpgradeType::SoftwareOnly, false));
}

#[test]
fn a_complete_reboot() {
    holds("complete, 3 nodes, no fault", Scenario { faults: 0, late: false, ..scenario(3, PLATFORM, false) });
    holds("complete, 2 nodes, no fault", Scenario { faults: 0, ..scenario(2, PLATFORM, false) });
    holds("complete, 2 nodes", scenario(2, PLATFORM, false));
}

#[test]
fn a_rolling_reboot() {
    holds("rolling, 3 nodes, a pause", Scenario { pauses: 1, ..scenario(3, PLATFORM, true) });
    holds(
        "rolling, 3 nodes, a slow driver",
        Scenario { slows: 1, late: false, ..scenario(3, PLATFORM, true) },
    );
}

#[test]
fn a_rolling_upgrade_that_is_abandoned() {
    let pauses = Scenario { pauses: 1, abandons: 1, faults: 0, ..scenario(3, PLATFORM, true) };
    holds("rolling, 3 nodes, paused and abandoned", pauses);
    holds(
        "rolling, 3 nodes, abandoned",
        Scenario { abandons: 1, late: false, ..scenario(3, PLATFORM, true) },
    );
}

/// A node whose turn was taken back, because it was slow or is thought to be lost, may come back at any time.
#[test]
fn a_turn_that_is_taken_back() {
    let taken = Scenario { take_backs: 1, resumes: 1, faults: 0, late: false, ..scenario(3, PLATFORM, true) };
    holds("rolling, 3 nodes, a turn taken back", taken);
}

#[test]
#[ignore = "full: two minutes"]
fn a_rolling_reboot_with_everything() {
    let all = Scenario { pauses: 1, slows: 1, ..scenario(3, PLATFORM, true) };
    holds("rolling, 3 nodes, a pause and a slow driver", all);
}

#[test]
#[ignore = "full: half a minute"]
fn a_rolling_reboot_with_a_fault() {
    holds("rolling, 4 nodes", scenario(4, PLATFORM, true));
    holds("rolling, 5 nodes in groups", Scenario { late: false, ..groups() });
}

#[test]
#[ignore = "full: half a minute"]
fn an_abandoned_upgrade_with_a_pause_and_a_fault() {
    let abandoned = Scenario { pauses: 1, abandons: 1, ..scenario(3, PLATFORM, true) };
    holds("rolling, 3 nodes, a pause, abandoned", abandoned);
}

#[test]
#[ignore = "full: half a minute"]
fn a_complete_reboot_with_a_fault() {
    holds("complete, 3 nodes", Scenario { late: false, ..scenario(3, PLATFORM, false) });
}

#[test]
#[ignore = "full: a minute"]
fn a_complete_reboot_of_four() {
    holds("complete, 4 nodes, no fault", Scenario { faults: 0, late: false, ..scenario(4, PLATFORM, false) });
}

#[test]
#[ignore = "full: half a minute"]
fn a_prepare_of_four() {
    holds("prepare, 4 nodes", Scenario { prepare: true, ..scenario(4, PLATFORM, false) });
}

#[test]
#[ignore = "full: a minute"]
fn software_on_four_nodes_at_once() {
    holds("software, 4 nodes", scenario(4, UpgradeType::SoftwareOnly, false));
}

/// Five nodes, two at a time.
const fn groups() -> Scenario {
    Scenario { group: Some(2), ..scenario(5, PLATFORM, true) }
}

#[test]
fn a_rolling_reboot_in_groups() {
    holds("rolling, 5 nodes in groups, no fault", Scenario { faults: 0, late: false, ..groups() });
}

#[test]
fn a_rolling_reboot_of_four() {
    holds("rolling, 4 nodes, no fault", Scenario { faults: 0, ..scenario(4, PLATFORM, true) });
}

/// Each rule must be able to fail, otherwise it checks nothing.
#[test]
fn what_others_got_wrong_is_found() {
    for (mutant, rule) in [
        (Mutant::NoFence, "somebody writes who does not lead"),
        (Mutant::TtlLock, "more nodes are down than may be"),
        (Mutant::GoesOn, "a node begins after a failure"),
        (Mutant::Unprotected, "a group begins before the data is protected again"),
        (Mutant::Undrained, "a node counts that is not back in service"),
    ] {
        let explored = explore(Scenario { mutant, slows: 1, ..scenario(3, PLATFORM, true) });
        let (found, path) = explored.broken.unwrap_or_else(|| panic!("{mutant:?} is not found"));
        println!("{mutant:?}: {found}, after {} states, by {} steps", explored.states, path.len());
        // Another rule may be broken first on the first path; it suffices that a rule is broken.
        assert!(found == rule || found.contains("group begins"), "{mutant:?}: {found}, not {rule}");
    }
    for (mutant, rule) in [
        (Mutant::Unchecked, "a node keeps what was abandoned"),
        (Mutant::Hasty, "more nodes are down than may be"),
    ] {
        let explored = explore(Scenario { mutant, abandons: 1, late: false, ..scenario(3, PLATFORM, true) });
        let (found, path) = explored.broken.unwrap_or_else(|| panic!("{mutant:?} is not found"));
        println!("{mutant:?}: {found}, after {} states, by {} steps", explored.states, path.len());
        assert!(found == rule || found.contains("group begins"), "{mutant:?}: {found}, not {rule}");
    }
}
