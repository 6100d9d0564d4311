//! Many nodes on one etcd: each is the pure state machine over the real back end, with a watch and connections of its own, and
//! a machine that does each step at once. It measures how long the cluster takes between two steps, how much it writes, and
//! what the watches of all nodes transfer.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use qstage::cluster::etcd::{Etcd, EtcdConfig};
use qstage::cluster::next::{Action, next_action};
use qstage::cluster::orders;
use qstage::cluster::replica::Replica;
use qstage::cluster::state::{
    Alive, BootId, Member, NodeId, Ordered, Outcome, PROTOCOL, Protection, RebootState, Stage, Standing,
};
use qstage::cluster::store::{Compare, Key, Store, Txn, Value, Write};
use qstage::cluster::turn::{self, Local, Step};
use qstage::cluster::view::View;
use qstage::state::UpgradeType;
use qstage::units::Blake3;

use crate::etcd::{Etcd as Server, used};

const OLD: Blake3 = Blake3([1; 32]);
/// Maximum time between two steps of the cluster, on a machine that does nothing else.
const LIMIT: Duration = Duration::from_secs(1);

#[derive(Default, Clone)]
struct Seen {
    replica: Arc<Replica>,
    revision: i64,
    /// Number of changes.
    count: u64,
}

/// All keys as one node sees them, by its own watch.
#[derive(Default)]
struct Cache {
    seen: Mutex<Seen>,
    changed: Condvar,
}

impl Cache {
    fn follow(self: Arc<Self>, etcd: Etcd, end: Arc<AtomicBool>) {
        while !end.load(Ordering::Relaxed) {
            let Ok((snapshot, revision)) = etcd.read() else { continue };
            let Ok(mut watch) = etcd.watch(revision) else { continue };
            self.change(revision, |seen| *seen = Arc::new(Replica::new(snapshot)));
            while let Ok((changes, revision)) = watch.wait() {
                self.change(revision, |seen| Arc::make_mut(seen).apply(changes));
            }
        }
    }

    fn change(&self, revision: i64, act: impl FnOnce(&mut Arc<Replica>)) {
        let mut seen = self.seen.lock().unwrap();
        act(&mut seen.replica);
        seen.revision = seen.revision.max(revision);
        seen.count += 1;
        drop(seen);
        self.changed.notify_all();
    }

    /// Waits for a change, at most half a second, as the service does.
    fn wait(&self, known: &mut u64) -> Seen {
        let seen = self.seen.lock().unwrap();
        let limit = Duration::from_millis(500);
        let (seen, _) = self.changed.wait_timeout_while(seen, limit, |seen| seen.count == *known).unwrap();
        *known = seen.count;
        seen.clone()
    }
}

/// Machine of a node: what the steps do to it.
struct Machine {
    id: NodeId,
    etcd: Etcd,
    lease: i64,
    boot: u128,
    runs: Blake3,
    standing: Standing,
    staged: Option<Blake3>,
    gated: bool,
    selected: bool,
    progress: u8,
    spare: u32,
    /// Result of a step that is not in etcd yet, with the stage of the upgrade in which the step ended.
    due: Option<((u64, Stage), Outcome)>,
}

impl Machine {
    fn run(mut self, cache: &Cache, end: &AtomicBool) {
        let mut known = 0;
        while !end.load(Ordering::Relaxed) {
            let seen = cache.wait(&mut known);
            let view = seen.replica.view();
            // As in the service, it decides only on a state with its own last write.
            if view.members.is_empty() || seen.revision < self.etcd.written() {
                continue;
            }
            let alive = self.alive(view);
            self.due.take_if(|(stage, _)| *stage != (view.upgrade.id, view.upgrade.stage));
            let outcome = self.due.as_ref().map(|(_, outcome)| outcome.clone());
            let is_new = view.alive.get(&self.id) != Some(&alive);
            if let Some(txn) = turn::publish(view, self.id, is_new.then_some((&alive, self.lease)), outcome) {
                if self.write(&txn) {
                    self.due = None;
                }
                continue;
            }
            if self.step(view, &alive) {
                // The machine has changed, which is published at once.
                known = u64::MAX;
            }
            self.lead(view);
        }
    }

    fn write(&mut self, txn: &Txn) -> bool {
        self.etcd.transact(txn).unwrap()
    }

    fn alive(&self, view: &View) -> Alive {
        let boot = BootId(self.boot);
        let leaving = view.alive.get(&self.id).is_some_and(|alive| alive.leaving && alive.boot == boot);
        Alive {
            boot,
            runs: self.runs,
            platform: None,
            version: "1.0".into(),
            product: "Demo".into(),
            protocol: PROTOCOL,
            standing: self.standing.clone(),
            protection: Protection { remaining: self.spare, maximum: self.spare, rebuilding: false },
            progress: self.progress,
            blocked: None,
            leaving,
            drained: false,
            unknown: None,
            failed_in: None,
            staging: None,
        }
    }

    /// Does the next step of the node, and returns whether that changed its machine.
    fn step(&mut self, view: &View, alive: &Alive) -> bool {
        let local = Local {
            boot: BootId(self.boot),
            runs: self.runs,
            standing: self.standing.clone(),
            staged: self.staged,
            selected: self.selected,
            gated: self.gated,
            drained: false,
        };
        let target = view.upgrade.order.as_ref().map_or(OLD, |order| order.digest);
        let outcome = match turn::step(view, self.id, &local) {
            Step::Prepare if self.progress < 90 => {
                // The service writes each ten percent.
                self.progress += 10;
                return true;
            }
            Step::Prepare => {
                (self.staged, self.progress) = (Some(target), 0);
                Outcome::Prepared
            }
            Step::Gate => {
                self.gated = true;
                Outcome::Ready
            }
            Step::Swap => {
                (self.gated, self.runs, self.staged) = (false, target, None);
                self.standing = Standing::Trial;
                Outcome::Switched
            }
            Step::Flip => {
                self.selected = true;
                Outcome::Switched
            }
            Step::TakeTurn => {
                self.write(&turn::take_turn(view, self.id, alive, self.lease));
                return false;
            }
            Step::Reboot => {
                (self.boot, self.selected, self.staged) = (self.boot + 1, false, None);
                if view.reboot.upgrade_initiated {
                    (self.runs, self.standing) = (target, Standing::Trial);
                }
                return true;
            }
            Step::MarkGood => {
                self.standing = Standing::Good;
                if view.upgrade.stage != Stage::Keep {
                    return true;
                }
                Outcome::Kept
            }
            Step::Report => Outcome::Kept,
            Step::Rest => return false,
            other => panic!("{}: {other:?}", self.id),
        };
        if view.outcomes.get(&self.id) == Some(&outcome) {
            return false;
        }
        self.due = Some(((view.upgrade.id, view.upgrade.stage), outcome));
        true
    }

    fn lead(&mut self, view: &View) {
        let txn = match view.leader {
            None => turn::campaign(view, self.id, self.lease),
            Some((leader, created)) if leader == self.id => match next_action(view) {
                Action::Write(txn) => Some(txn),
                Action::Resign => {
                    let compare = vec![Compare::Created(Key::Leader, created)];
                    Some(Txn { compare, writes: vec![Write::Delete(Key::Leader)] })
                }
                Action::Rest | Action::Wait(_) => None,
            },
            Some(_) => None,
        };
        if let Some(txn) = txn {
            self.write(&txn);
        }
    }
}

/// The nodes, and an observer.
struct Fleet {
    server: Server,
    etcd: Etcd,
    cache: Arc<Cache>,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    count: u32,
}

impl Fleet {
    fn new(count: u32) -> Option<Self> {
        let server = Server::start(false)?;
        let access = server.access("/fleet/");
        let mut fleet = Self {
            etcd: Etcd::new(&access).unwrap(),
            server,
            cache: Arc::default(),
            end: Arc::default(),
            threads: Vec::new(),
            count,
        };
        for node in (1..=count).map(NodeId) {
            let member =
                Member { uuid: node.to_string(), address: String::new(), certificate: String::new() };
            let writes = vec![Write::Put(Key::Member(node), Value::Member(member), None)];
            assert!(fleet.etcd.transact(&Txn { compare: vec![], writes }).unwrap());
        }
        fleet.start(&access);
        let up = |view: &View| view.alive.len() == count as usize && view.leader.is_some();
        fleet.until(up);
        Some(fleet)
    }

    fn start(&mut self, access: &EtcdConfig) {
        for id in (1..=self.count).map(NodeId) {
            let mut etcd = Etcd::new(access).unwrap();
            let machine = Machine {
                id,
                // Nothing renews it here: it lasts longer than the test.
                lease: etcd.grant(600).unwrap(),
                etcd: etcd.clone(),
                boot: u128::from(id.0),
                runs: OLD,
                standing: Standing::Good,
                staged: None,
                gated: false,
                selected: false,
                progress: 0,
                due: None,
                spare: self.count - self.count / 2 - 1,
            };
            let (cache, end) = (Arc::<Cache>::default(), Arc::clone(&self.end));
            let (watching, over) = (Arc::clone(&cache), Arc::clone(&self.end));
            // It ends with its connection, when etcd ends.
            std::thread::spawn(move || watching.follow(etcd, over));
            self.threads.push(std::thread::spawn(move || machine.run(&cache, &end)));
        }
        let (cache, etcd, end) = (Arc::clone(&self.cache), self.etcd.clone(), Arc::clone(&self.end));
        std::thread::spawn(move || cache.follow(etcd, end));
    }

    /// Waits for a state, and returns the time at which the observer saw it.
    fn until(&self, holds: impl Fn(&View) -> bool) -> (Instant, View) {
        let (begun, mut known) = (Instant::now(), 0);
        loop {
            let seen = self.cache.wait(&mut known);
            let view = seen.replica.view();
            if holds(view) {
                return (Instant::now(), view.clone());
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "{:?} {:?}", view.upgrade.stage, view.reboot);
        }
    }

    fn order(&mut self, decide: impl Fn(&View) -> qstage::Result<Txn>) -> Instant {
        let begun = Instant::now();
        while !self.etcd.transact(&decide(&View::new(&self.etcd.snapshot().unwrap())).unwrap()).unwrap() {}
        begun
    }

    /// Counters of etcd.
    fn counters(&self) -> Counters {
        let address = self.server.url().replace("http://", "");
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let sum = |name: &str, label: &str| {
            let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
            lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum::<u64>()
        };
        Counters {
            bytes: sum("etcd_network_client_grpc_sent_bytes_total", ""),
            messages: sum("grpc_server_msg_sent_total", "grpc_method=\"Watch\""),
            transactions: sum("grpc_server_started_total", "grpc_method=\"Txn\""),
        }
    }
}

/// Counters of etcd since its start.
struct Counters {
    /// Bytes sent to all nodes.
    bytes: u64,
    /// Messages of all watches, each with the changes of one revision or more.
    messages: u64,
    transactions: u64,
}

/// Processor time that all processes of the machine have used, in the unit of /proc/stat.
fn busy() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap();
    let times: Vec<u64> =
        text.lines().next().unwrap().split_whitespace().skip(1).flat_map(str::parse).collect();
    // Without what was idle, and waited for a disk.
    times.iter().take(8).sum::<u64>() - times[3] - times[4]
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.server.stop();
    }
}

fn order(digest: u8, upgrade_type: UpgradeType, rolling: bool) -> Ordered {
    crate::world::order(Blake3([digest; 32]), upgrade_type, rolling, None)
}

/// Upgrades all nodes once and prints what was measured. Returns whether it is within the limits.
fn upgrade(fleet: &mut Fleet, what: &str, order: &Ordered) -> bool {
    let (revision, sent) = (fleet.server.revision(), fleet.counters());
    let own = |fleet: &Fleet| (used("self"), fleet.server.used());
    let (before, others) = (own(fleet), busy());
    let begun = fleet.order(|view| orders::prepare(view, order.clone()));
    let id = fleet.until(|view| view.upgrade.stage == Stage::Preparing).1.upgrade.id;
    let admission = begun.elapsed();
    // From the report of the last node to the stage of all.
    let all =
        |outcome: Outcome| move |view: &View| view.outcomes.values().filter(|at| **at == outcome).count();
    let count = fleet.count as usize;
    let prepared = all(Outcome::Prepared);
    let last = fleet.until(|view| prepared(view) == count || view.upgrade.stage == Stage::Prepared).0;
    let shown = fleet.until(|view| view.upgrade.stage == Stage::Prepared).0;
    let mut times = vec![("admission", admission), ("PREPARED", shown - last)];
    let mut since = fleet.order(orders::commit);
    let mut stage = Stage::Prepared;
    let mut groups = BTreeMap::new();
    while stage != Stage::Idle {
        let done = |view: &View| view.reboot.done.len();
        let known = groups.len();
        let (at, view) = fleet.until(|view| {
            view.upgrade.stage != stage || (view.reboot.rolling && !groups.contains_key(&done(view)))
        });
        if view.upgrade.stage == Stage::Rebooting && order.rolling {
            groups.insert(done(&view), ());
        }
        let name = if groups.len() > known { "a group" } else { view.upgrade.stage.word() };
        times.push((name, at.saturating_duration_since(since)));
        (stage, since) = (view.upgrade.stage, at);
    }
    let view = fleet.until(|view| view.alive.values().all(|alive| alive.standing == Standing::Good)).1;
    assert!(view.alive.values().all(|alive| alive.runs == order.digest) && view.upgrade.error.is_none());
    assert_eq!((view.upgrade.id, view.reboot.state), (id, RebootState::Idle));
    let slowest = times.iter().max_by_key(|(_, time)| *time).unwrap();
    let writes = (fleet.server.revision() - revision) as f64 / f64::from(fleet.count);
    let (count, now) = (u64::from(fleet.count), fleet.counters());
    let (traffic, messages) = ((now.bytes - sent.bytes) / count, (now.messages - sent.messages) / count);
    let transactions = (now.transactions - sent.transactions) as f64 / count as f64;
    let seconds = |now: u64, before: u64| (now - before) as f64 / 100.0;
    let after = own(fleet);
    let (nodes, etcd) = (seconds(after.0, before.0), seconds(after.1, before.1));
    // All nodes are on this machine, and share it with other programs.
    let share = seconds(busy(), others) / (nodes + etcd).max(0.01);
    let limit = LIMIT.mul_f64(share.max(1.0));
    println!(
        "{} nodes, {what}: slowest step {} {:.0?} of {times:.0?}; per node {writes:.1} writes in {transactions:.1} transactions, {messages} messages and {} KiB received; processor time {nodes:.1} s of the nodes, {etcd:.1} s of etcd; processors busy {share:.1} times as long",
        fleet.count,
        slowest.0,
        slowest.1,
        traffic >> 10
    );
    slowest.1 < limit && writes <= 16.0 + 60.0 / f64::from(fleet.count)
}

fn measure(count: u32) {
    let Some(mut fleet) = Fleet::new(count) else { return };
    let mut digests = 2..;
    // A machine that stands still is late, and loses leases: it gets three attempts.
    for (what, upgrade_type, rolling) in [
        ("software", UpgradeType::SoftwareOnly, false),
        ("complete reboot", UpgradeType::SoftwareAndPlatform, false),
        ("rolling reboot", UpgradeType::SoftwareAndPlatform, true),
    ] {
        let mut orders = digests.by_ref().map(|digest| order(digest, upgrade_type, rolling)).take(3);
        assert!(orders.any(|order| upgrade(&mut fleet, what, &order)), "{what}: the figures are above");
    }
    let is_quiet = || {
        let counts = || (fleet.server.revision(), fleet.counters().transactions);
        let before = counts();
        std::thread::sleep(Duration::from_secs(2));
        counts() == before
    };
    assert!((0..3).any(|_| is_quiet()), "an idle cluster writes nothing");
}

#[test]
fn sixteen_nodes() {
    measure(16);
}

#[test]
#[ignore = "full: a minute of two cores"]
fn sixty_four_nodes() {
    measure(64);
}
