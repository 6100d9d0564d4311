//! The instant upgrade with real containers: a small HTTP service in squashfs images, systemd-nspawn, loop devices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::clock::Clock;
use crate::harness::containers;

use std::process::Command;
use std::time::Duration;

use containers::{Disk, Machine, Poller, can_run, said};

#[test]
fn an_upgrade_is_a_blink() {
    if !can_run() {
        return;
    }
    for disk in [Disk::Nodes, Disk::File] {
        let machine = Machine::new(disk, "good", "");
        machine.good(&["container", "start"]);
        assert_eq!(machine.answer().as_deref(), Some("1.0"));
        let mut downtimes = Vec::new();
        // Three: the second writes the slot from which the first container ran, so that must have been let go.
        for (version, slot) in [("1.1", "b"), ("1.2", "a"), ("1.3", "b")] {
            machine.prepare(version, "good");
            let poller = Poller::new(machine.port);
            let report = machine.json(&["commit"]);
            let (gap, missing) = poller.done();
            assert_eq!(machine.answer().as_deref(), Some(version), "{report}");
            assert_eq!((&report["slot"], &report["version"]), (&slot.into(), &version.into()));
            let downtime = report["downtime_ms"].as_f64().unwrap();
            println!(
                "{version}: {downtime} ms by the report, {gap:?} and {missing} failures for a client; {report}"
            );
            // The client polls every few milliseconds: it cannot have seen less of a gap than there was, by much.
            assert!(
                downtime + 250.0 > gap.as_secs_f64() * 1e3,
                "the report is not the truth: {downtime} {gap:?}"
            );
            assert!(gap < Duration::from_secs(5));
            downtimes.push(downtime);
            let event = machine.last_event();
            assert_eq!(event["verb"], "swap");
            assert!(event["message"].as_str().unwrap().contains("downtime"), "{event}");
            assert_eq!(machine.software().2, slot);
        }
        assert_eq!(machine.software(), ("good".into(), "good".into(), "b".into()));
        assert_eq!(machine.starts(), ["1.0", "1.1", "1.2", "1.3"]);
        println!("downtimes in ms: {downtimes:?}");
        assert_eq!(machine.mounts().len(), 2, "the shared directory and one slot: {:?}", machine.mounts());
        machine.good(&["container", "stop"]);
        assert_eq!(machine.answer(), None);
        assert_eq!(machine.mounts().len(), 1);
    }
}

#[test]
fn a_sick_release_is_swapped_back() {
    if !can_run() {
        return;
    }
    let machine = Machine::new(Disk::Nodes, "good", "");
    machine.good(&["container", "start"]);
    // Sick: answers, but not 200. Crash: ends at once, so the swap need not wait for the deadline.
    for (version, mode, reason) in
        [("1.1", "sick", "503"), ("1.2", "crash", "ended with exit status 7"), ("1.3", "good", "")]
    {
        machine.prepare(version, mode);
        let before = machine.software();
        let plan = machine.good(&["commit", "--dry-run"]);
        for line in
            ["container: arrange", "container: stop 1.0", "if it is not healthy:", "the mark of software_"]
        {
            assert!(plan.contains(line), "{plan}");
        }
        assert_eq!(
            (machine.software(), machine.answer().as_deref()),
            (before, Some("1.0")),
            "a dry run did it"
        );
        let poller = Poller::new(machine.port);
        let output = machine.run(&["commit", "--json"]);
        let (gap, _) = poller.done();
        println!("{version} {mode}: {gap:?} {}", said(&output));
        if mode == "good" {
            assert!(output.status.success(), "{}", said(&output));
            assert_eq!(machine.answer().as_deref(), Some(version));
            continue;
        }
        assert_eq!(output.status.code(), Some(9), "{}", said(&output));
        assert!(said(&output).contains("UPGRADE_ERROR_SWAPPED_BACK"), "{}", said(&output));
        assert!(said(&output).contains(reason), "{}", said(&output));
        assert_eq!(machine.answer().as_deref(), Some("1.0"));
        assert_eq!(machine.software(), ("good".into(), "bad".into(), "a".into()));
        // What failed is not shown as what runs.
        let slots = machine.good(&["slots"]);
        let runs = slots.lines().find(|line| line.starts_with("runs")).unwrap_or_default();
        assert!(runs.contains("software a") && !runs.contains("software b"), "{slots}");
        let status = machine.good(&["status"]);
        assert!(status.contains("UPGRADE_ERROR_SWAPPED_BACK"), "{status}");
        assert_eq!(machine.last_event()["code"], "UPGRADE_ERROR_SWAPPED_BACK");
        if mode == "crash" {
            let after = said(&output);
            let after = after.split("not healthy after ").nth(1).and_then(|rest| rest.split(' ').next());
            assert!(after.unwrap().parse::<f64>().unwrap() < 4.0, "waited for the dead: {}", said(&output));
        }
    }
}

/// Seen before the old container is stopped, where the image alone decides; else by the kernel, and then it is swapped back.
#[test]
fn a_program_that_cannot_start_is_the_fault_of_the_image() {
    if !can_run() {
        return;
    }
    let machine = Machine::new(Disk::Nodes, "good", "");
    machine.good(&["container", "start"]);
    for (version, mode, reason) in [
        ("1.1", "no-program", "/app is not in the image"),
        ("1.2", "no-interpreter", "/app needs /usr/bin/nothing: /usr/bin/nothing is not in the image"),
        ("1.3", "not-executable", "/app is not executable (mode 644)"),
        ("1.4", "foreign", "/app is built for s390x, and this machine is "),
    ] {
        machine.prepare(version, mode);
        let poller = Poller::new(machine.port);
        let output = machine.run(&["commit"]);
        let (_, missing) = poller.done();
        assert_eq!(output.status.code(), Some(9), "{}", said(&output));
        let text = said(&output);
        for part in
            ["UPGRADE_ERROR_CONTAINER_PROGRAM", "software slot b cannot start", reason, "in the image"]
        {
            assert!(text.contains(part), "{mode}: {text}");
        }
        assert_eq!((machine.answer().as_deref(), missing), (Some("1.0"), 0), "it was not disturbed");
        assert_eq!(machine.software(), ("good".into(), "prepared".into(), "a".into()));
        assert_eq!(machine.last_event()["code"], "UPGRADE_ERROR_CONTAINER_PROGRAM");
        assert_eq!(machine.mounts().len(), 2, "{:?}", machine.mounts());
        machine.good(&["cancel"]);
    }
    assert_eq!(machine.starts(), ["1.0"]);

    // A bind may lie over the program: only the kernel knows.
    let machine = Machine::new(Disk::Nodes, "good", "bind_ro = [\"/media:/usr\"]");
    machine.good(&["container", "start"]);
    machine.prepare("1.1", "no-interpreter");
    let output = machine.run(&["commit"]);
    assert_eq!(output.status.code(), Some(9), "{}", said(&output));
    for part in ["[UPGRADE_ERROR_CONTAINER_PROGRAM]", "No such file", "UPGRADE_ERROR_SWAPPED_BACK"] {
        assert!(said(&output).contains(part), "{}", said(&output));
    }
    assert_eq!(machine.answer().as_deref(), Some("1.0"));
    assert_eq!(machine.software(), ("good".into(), "bad".into(), "a".into()));
}

/// A shell or another program in the image reports by its exit status that a command cannot be executed.
#[test]
fn an_exit_status_of_126_or_127_is_told_apart_from_other_failures() {
    if !can_run() {
        return;
    }
    let machine = Machine::new(Disk::Nodes, "good", "");
    machine.good(&["container", "start"]);
    for (version, status, reason) in
        [("1.1", 127, "a command was not found"), ("1.2", 126, "a command could not be executed")]
    {
        machine.prepare(version, &format!("ends-{status}"));
        let output = machine.run(&["commit"]);
        assert_eq!(output.status.code(), Some(9), "{}", said(&output));
        let status = format!("ended with exit status {status}");
        for part in [&status, reason, "[UPGRADE_ERROR_CONTAINER_PROGRAM]", "UPGRADE_ERROR_SWAPPED_BACK"] {
            assert!(said(&output).contains(part), "no '{part}': {}", said(&output));
        }
        assert_eq!(machine.answer().as_deref(), Some("1.0"));
        assert_eq!(machine.software(), ("good".into(), "bad".into(), "a".into()));
    }
    // A start has the code of its own, and another status that of a program that is not healthy.
    for (mode, code, part) in [
        ("ends-127", "CONTAINER_PROGRAM", "software slot a cannot start: after "),
        ("crash", "CONTAINER_UNHEALTHY", "its program has ended with exit status 7"),
    ] {
        let machine = Machine::new(Disk::File, mode, "");
        let output = machine.run(&["container", "start"]);
        assert_eq!(output.status.code(), Some(9), "{}", said(&output));
        let text = said(&output);
        assert!(text.contains(&format!("UPGRADE_ERROR_{code}")) && text.contains(part), "{text}");
        assert_eq!(machine.last_event()["code"], format!("UPGRADE_ERROR_{code}"));
    }
}

#[test]
fn an_old_service_that_does_not_hear_is_killed() {
    if !can_run() {
        return;
    }
    let machine = Machine::new(Disk::Nodes, "deaf", "");
    machine.good(&["container", "start"]);
    machine.prepare("1.1", "good");
    let clock = Clock::start();
    let report = machine.json(&["commit"]);
    assert_eq!(report["killed"], true);
    let downtime = report["downtime_ms"].as_f64().unwrap();
    // stop_timeout is one second; it went on serving during that.
    assert!((900.0..3000.0 + clock.stalled().as_secs_f64() * 1e3).contains(&downtime), "{report}");
    assert_eq!(machine.answer().as_deref(), Some("1.1"));
}

/// A process that is killed with its value.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Another network namespace has a loopback of its own: the probe must look there.
#[test]
fn a_network_of_its_own_is_probed_from_within() {
    if !can_run() {
        return;
    }
    // unshare(1) becomes sleep, whose namespace is then the given one.
    let other = Command::new("unshare").args(["--net", "sleep", "120"]).spawn();
    let other = Child(other.unwrap());
    let network = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
    while network(&other.0.id().to_string()) == network("self") {
        std::thread::sleep(Duration::from_millis(5));
    }
    for network in ["private".to_owned(), format!("/proc/{}/ns/net", other.0.id())] {
        let given = network.starts_with('/');
        if given {
            // Who hands over a network sets it up.
            let up = ["--net", "--target", &other.0.id().to_string(), "ip", "link", "set", "lo", "up"];
            let done = Command::new("nsenter").args(up).output().unwrap();
            assert!(done.status.success(), "{}", said(&done));
        }
        let machine = Machine::new(Disk::Nodes, "good", &format!("network = \"{network}\""));
        machine.good(&["container", "start"]);
        assert_eq!(machine.answer(), None, "it listens in a network of its own");
        let status = machine.json(&["container", "status"]);
        let (healthy, version) = (&status["healthy"], &status["running"]["version"]);
        assert_eq!((healthy, version), (&true.into(), &"1.0".into()), "{status}");
        machine.prepare("1.1", "good");
        let report = machine.json(&["commit"]);
        assert!(report["downtime_ms"].is_f64(), "{report}");
        assert_eq!(machine.json(&["container", "status"])["running"]["version"], "1.1");
    }
}

/// Images of every kind that is allowed run, and one that is not allowed is refused before anything is switched.
#[test]
fn every_allowed_file_system_runs() {
    if !can_run() {
        return;
    }
    let machine = Machine::new(Disk::File, "good", "");
    machine.good(&["container", "start"]);
    for (version, kind) in [("1.1", "erofs"), ("1.2", "ext4"), ("1.3", "squashfs")] {
        let bundle = machine.bundle_of(version, "good", kind);
        machine.good(&["prepare", bundle.to_str().unwrap()]);
        machine.good(&["commit"]);
        assert_eq!(machine.answer().as_deref(), Some(version), "{kind}");
        // Mounting wrote nothing, not even the journal of ext4: the slot is what its record says.
        let slot = machine.software().2;
        machine.good(&["verify", "--slot", &slot, "--group", "software"]);
    }
    let config = machine.dir.path().join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap() + "file_systems = [\"squashfs\"]\n";
    std::fs::write(&config, text).unwrap();
    let bundle = machine.bundle_of("1.4", "good", "ext4");
    machine.good(&["prepare", bundle.to_str().unwrap()]);
    let before = machine.software();
    let output = machine.run(&["commit"]);
    assert!(said(&output).contains("it holds ext4, allowed are: squashfs"), "{}", said(&output));
    assert_eq!((machine.answer().as_deref(), machine.software()), (Some("1.3"), before));
}

/// A probe inside is a program of the image; it decides as the others do.
#[test]
fn a_command_inside_is_a_probe() {
    if !can_run() {
        return;
    }
    let machine = Machine::new(Disk::Nodes, "good", "probe = [\"/app\", \"--check\"]\ndeadline = 1");
    machine.good(&["container", "start"]);
    machine.prepare("1.1", "sick");
    let output = machine.run(&["commit"]);
    assert!(said(&output).contains("/app --check: exit status: 1"), "{}", said(&output));
    machine.prepare("1.2", "good");
    let report = machine.json(&["commit"]);
    assert!(report["downtime_ms"].is_f64(), "{report}");
    assert_eq!(machine.answer().as_deref(), Some("1.2"));
}

/// A TCP probe: who accepts is healthy, who does not listen in time is swapped back; in the network of the host and in one
/// of the container's own.
#[test]
fn an_accepted_connection_is_a_probe() {
    if !can_run() {
        return;
    }
    for network in ["host", "private"] {
        let more = format!("probe = \"tcp://127.0.0.1:PORT\"\ndeadline = 1\nnetwork = \"{network}\"");
        let machine = Machine::new(Disk::File, "good", &more);
        machine.good(&["container", "start"]);
        // It answers 503, which is not read here.
        machine.prepare("1.1", "sick");
        let report = machine.json(&["commit"]);
        assert!(report["downtime_ms"].is_f64(), "{network}: {report}");
        // It listens after two seconds, and the deadline is one.
        machine.prepare("1.2", "slow");
        let output = machine.run(&["commit"]);
        let told = said(&output);
        assert_eq!(output.status.code(), Some(9), "{network}: {told}");
        assert!(told.contains("SWAPPED_BACK") && told.contains("refused"), "{network}: {told}");
        let status = machine.json(&["container", "status"]);
        assert_eq!(
            (&status["running"]["version"], &status["healthy"]),
            (&"1.1".into(), &true.into()),
            "{status}"
        );
        assert_eq!(machine.software(), ("bad".into(), "good".into(), "b".into()));
    }
}

/// Without a probe it is enough that the program stays: one that ends at once is swapped back.
#[test]
fn a_program_that_stays_is_the_least_probe() {
    if !can_run() {
        return;
    }
    let machine = Machine::new(Disk::File, "good", "probe = \"alive\"");
    machine.good(&["container", "start"]);
    machine.prepare("1.1", "crash");
    let output = machine.run(&["commit"]);
    assert!(said(&output).contains("SWAPPED_BACK") && said(&output).contains("ended"), "{}", said(&output));
    machine.prepare("1.2", "good");
    assert!(machine.json(&["commit"])["downtime_ms"].is_f64());
    // People find the downtime in the status, programs in the history.
    let table = machine.good(&["status", "--human"]);
    assert!(table.contains("last swap  1.2 runs from software_b") && table.contains("\ndowntime"), "{table}");
    assert!(machine.last_event()["downtime_ms"].as_f64().unwrap() >= 500.0, "{}", machine.last_event());
}

/// What others still run from cannot be written, whatever the flags say: the software was not restarted.
#[test]
fn a_slot_that_still_runs_blocks_the_next_upgrade() {
    if !can_run() {
        return;
    }
    let machine = Machine::new(Disk::Nodes, "good", "");
    machine.good(&["container", "start"]);
    machine.prepare("1.1", "good");
    machine.good(&["commit", "--no-restart"]);
    // What runs is the old software: the new one cannot be marked good, and its slot is not free.
    let done = machine.good(&["mark-good"]);
    assert!(done.contains("software_b has not been started yet"), "{done}");
    let status: serde_json::Value = serde_json::from_str(&machine.good(&["status"])).unwrap();
    let reason = "on trial: software_b; the only good fallback is software_a; restart the software to start it, or go back by 'qstage roll-back'";
    assert_eq!(status["blocked_reason"], reason);
    machine.good(&["container", "start"]);
    assert_eq!(machine.software(), ("good".into(), "good".into(), "b".into()));
    let status: serde_json::Value = serde_json::from_str(&machine.good(&["status"])).unwrap();
    assert_eq!(status["is_blocked"], false, "{status}");
}
