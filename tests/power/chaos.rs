//! Many verbs by many processes, which are killed, stopped and started at random, while the disk fails, hangs and fills up:
//! the content of the disk must be sound, by the judgement of sgdisk and of `verify --slot`.
//!
//! Three scenes, each for `QSTAGE_CHAOS_SECONDS`: 20 s if that is not set, so a minute in scripts/test; an hour in scripts/proof.
//! The seed determines the actions of each process, so a run can be repeated by `QSTAGE_CHAOS_SEED=n`. The instant at which a
//! signal arrives within a verb varies.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::machine;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::harness::nbd::Nbd;
use crate::harness::tiny_disk::TinyDisk;
use machine::{Bench, Noise, is_root, tool};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// What must never be said of a disk that only processes and power have been cruel to.
const NEVER: &[&str] = &[
    "INTERNAL",
    "WORKER",
    "GPT_DAMAGED",
    "NOT_GPT",
    "GPT_VERIFY",
    "NOTHING_BOOTS",
    "SLOT_DAMAGED",
    "READ_BACK",
];

/// A disk and those who work on it.
struct Scene {
    bench: Bench,
    disk: PathBuf,
    /// Whether the device itself fails: then a verb may say that, too.
    failing: bool,
    log: Mutex<Vec<String>>,
}

impl Scene {
    fn say(&self, text: String) {
        self.log.lock().unwrap().push(text);
    }

    /// What was done, in numbers.
    fn report(&self) {
        let log = self.log.lock().unwrap();
        let count = |word: &str| log.iter().filter(|line| line.contains(word)).count();
        eprintln!(
            "{} rounds held, {} processes, of these {} by SIGKILL, {} by SIGTERM, {} stopped for a while",
            count(" held"),
            count("actor "),
            count("fate 0 "),
            count("fate 1 "),
            count("fate 2 ")
        );
    }

    fn verb(&self, args: &[&str]) -> Command {
        let disk = self.disk.to_str().unwrap();
        self.bench.command(&[args, &["--config", "config.toml", "--disk", disk]].concat())
    }

    /// One verb by one process, and what befalls it.
    fn act(&self, actor: u64, random: &mut Noise) {
        let jobs = (1 + random.below(6)).to_string();
        let verbs: &[&[&str]] = &[
            &["prepare", "v2.qimg", "--jobs", &jobs],
            &["prepare", "v3.qimg", "--background", "--jobs", &jobs],
            &["prepare", "v2.qimg", "--max-rate", "8M", "--json"],
            &["commit"],
            &["mark-good"],
            &["roll-back"],
            &["cancel"],
            &["status"],
            &["slots"],
            &["history"],
            &["verify", "--slot", "b"],
            &["plan", "v3.qimg"],
            &["bench", "--yes", "--size", "1M", "--repeat", "1"],
        ];
        let verb = verbs[random.below(verbs.len() as u64) as usize];
        let changes = ["prepare", "commit", "mark-good", "roll-back", "bench", "plan"].contains(&verb[0]);
        let own: &[&str] = if changes { &["--booted", "a"] } else { &[] };
        let fate = random.below(6);
        let after = Duration::from_millis(random.below(250));
        let pause = Duration::from_millis(random.below(300));
        let mut child = Ended(self.verb(&[verb, own].concat()).spawn().unwrap());
        let pid = Pid::from_raw(child.0.id() as i32);
        // Both are read to their ends, so that no pipe fills.
        let (out, err) = (child.0.stdout.take().unwrap(), child.0.stderr.take().unwrap());
        let (printed, said) = std::thread::scope(|scope| {
            let read = |mut from: Box<dyn Read + Send>| {
                scope.spawn(move || {
                    let mut bytes = Vec::new();
                    let _ = from.read_to_end(&mut bytes);
                    String::from_utf8_lossy(&bytes).into_owned()
                })
            };
            // At the same time: a long history fills the one pipe while the other is still open.
            let (out, err) = (read(Box::new(out)), read(Box::new(err)));
            std::thread::sleep(after);
            match fate {
                0 => drop(kill(pid, Signal::SIGKILL)),
                1 => drop(kill(pid, Signal::SIGTERM)),
                2 => {
                    let _ = kill(pid, Signal::SIGSTOP);
                    std::thread::sleep(pause);
                    let _ = kill(pid, Signal::SIGCONT);
                }
                _ => {}
            }
            (out.join().unwrap(), err.join().unwrap())
        });
        let status = child.0.wait().unwrap();
        self.say(format!("actor {actor}: {verb:?}, fate {fate} after {after:?}: {status}"));
        let told = said.lines().last().unwrap_or_default();
        // By a signal, of a class that is no defect, or well.
        if let Some(code) = status.code() {
            assert!(
                (0..=9).contains(&code) && code != 1 && code != 2,
                "{verb:?} ended with {code}: {said}{printed}"
            );
        }
        for word in NEVER.iter().filter(|_| !self.failing) {
            assert!(!told.contains(&format!("UPGRADE_ERROR_{word}]")), "{verb:?}: {said}");
        }
    }

    /// When all is quiet: what runs is untouched, one slot boots, and the next upgrade works.
    fn judge(&self, running: blake3::Hash) {
        let (at, len) = self.bench.extent("platform_a");
        assert_eq!(self.bench.hash_of(at, len), running, "the running slot");
        let run = |args: &[&str]| -> machine::Run { self.verb(args).output().unwrap().into() };
        let slots = run(&["slots", "--json"]).json();
        let boots =
            slots["slots"].as_array().unwrap().iter().filter(|slot| slot["boots_next"] == true).count();
        assert_eq!(boots, 1, "{slots}");
        // Whatever was under way: back to the start, and an upgrade.
        let undone = run(&["roll-back", "--booted", "a"]);
        self.say(format!("roll-back: {undone:?}"));
        run(&["prepare", "v2.qimg", "--booted", "a"]).good();
        run(&["verify", "--slot", "b"]).good();
        assert!(self.bench.holds("platform_b", "v2.img"));
        let verdict = tool("sgdisk", &["--verify", self.bench.disk().to_str().unwrap()]);
        assert!(verdict.contains("No problems found"), "{verdict}");
    }

    fn play(&self, seed: u64, seconds: u64) {
        let (at, len) = self.bench.extent("platform_a");
        let running = self.bench.hash_of(at, len);
        let end = Instant::now() + Duration::from_secs(seconds);
        for round in 0.. {
            if Instant::now() >= end {
                break;
            }
            std::thread::scope(|scope| {
                for actor in 0..4 {
                    scope.spawn(move || {
                        let mut random = Noise(seed ^ (round << 8) ^ actor);
                        (0..6).for_each(|_| self.act(actor, &mut random));
                    });
                }
            });
            self.judge(running);
            self.say(format!("round {round} held"));
        }
        self.report();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            eprintln!("---- the last of what was done\n{}", log[log.len().saturating_sub(40)..].join("\n"));
        }
    }
}

/// Ends with its value.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn installed() -> Bench {
    let bench = Bench::installed();
    bench.image("v3.img", 3 * machine::MIB, 3);
    bench.pack("v3", "3.0", &["--platform", "v3.img", "--frame-size", "256K"]);
    bench
}

/// Duration of a scene; a whole round comes to its end.
fn seconds() -> u64 {
    setting("QSTAGE_CHAOS_SECONDS", 20)
}

fn seed() -> u64 {
    let seed = setting("QSTAGE_CHAOS_SEED", 1);
    eprintln!("QSTAGE_CHAOS_SEED={seed}");
    seed
}

#[test]
fn processes_die_at_random_beside_a_full_state_directory() {
    let bench = installed();
    let tight = is_root().then(|| TinyDisk::new(&bench.path("state")));
    let disk = bench.disk();
    let scene = Scene { bench, disk, failing: false, log: Mutex::default() };
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut full = false;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                full = !full;
                tight.iter().for_each(|tight| tight.fill(full));
                std::thread::sleep(Duration::from_millis(400));
            }
        });
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            scene.play(seed(), seconds());
        }));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        played.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// A file system of 24 MiB for the image, which fills and empties: what the image has not allocated yet is not to be had.
struct Small {
    place: PathBuf,
}

impl Small {
    /// Moves the image of the disk there.
    fn new(bench: &Bench) -> Self {
        let (medium, place) = (bench.text("medium"), bench.path("small"));
        File::create(&medium).unwrap().set_len(24 * machine::MIB).unwrap();
        tool("mkfs.ext4", &["-q", "-O", "^has_journal", "-m", "0", &medium]);
        fs::create_dir(&place).unwrap();
        tool("mount", &["-o", "loop", &medium, place.to_str().unwrap()]);
        let small = Self { place };
        tool("cp", &["--sparse=always", bench.disk().to_str().unwrap(), small.disk().to_str().unwrap()]);
        fs::remove_file(bench.disk()).unwrap();
        std::os::unix::fs::symlink(small.disk(), bench.disk()).unwrap();
        small
    }

    fn disk(&self) -> PathBuf {
        self.place.join("disk.img")
    }

    fn fill(&self, full: bool) {
        let filler = self.place.join("filler");
        if full {
            let mut file = File::create(filler).unwrap();
            while file.write_all(&[1; 65536]).and_then(|()| file.sync_data()).is_ok() {}
        } else {
            let _ = fs::remove_file(filler);
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.place).status();
    }
}

#[test]
fn processes_die_at_random_where_the_image_has_no_room() {
    if !is_root() {
        return;
    }
    let bench = installed();
    let small = Small::new(&bench);
    let scene = Scene { bench, disk: small.disk(), failing: false, log: Mutex::default() };
    let (seed, end) = (seed(), Instant::now() + Duration::from_secs(seconds()));
    let (at, len) = scene.bench.extent("platform_a");
    let running = scene.bench.hash_of(at, len);
    let mut refused = 0;
    for round in 0.. {
        if Instant::now() >= end {
            break;
        }
        small.fill(true);
        std::thread::scope(|scope| {
            for actor in 0..3 {
                let scene = &scene;
                scope.spawn(move || {
                    let mut random = Noise(seed ^ (round << 8) ^ actor ^ 0x3c3c);
                    (0..3).for_each(|_| scene.act(actor, &mut random));
                });
            }
        });
        // By itself, and to its end: there is no room for it, and it says so.
        let prepare = scene.verb(&["prepare", "v3.qimg", "--booted", "a"]).output().unwrap();
        refused += u32::from(prepare.status.code() == Some(7));
        small.fill(false);
        scene.judge(running);
        scene.say(format!("round {round} held"));
        // What is free again is a hole again.
        scene.verb(&["roll-back", "--booted", "a"]).output().unwrap();
        let (at, len) = scene.bench.extent("platform_b");
        let (at, len) = (at.to_string(), len.to_string());
        tool("fallocate", &["-p", "-o", &at, "-l", &len, small.disk().to_str().unwrap()]);
    }
    scene.report();
    assert!(refused > 0, "the file system was never full");
}

#[test]
fn processes_die_at_random_on_a_disk_that_fails_and_hangs() {
    if !is_root() {
        return;
    }
    let bench = installed();
    let cruel = Nbd::new(&bench.disk(), &bench.path("."));
    let disk = cruel.device.clone();
    let scene = Scene { bench, disk, failing: true, log: Mutex::default() };
    let (seed, end) = (seed(), Instant::now() + Duration::from_secs(seconds()));
    let (at, len) = scene.bench.extent("platform_a");
    let running = scene.bench.hash_of(at, len);
    let mut weather = Noise(seed);
    for round in 0.. {
        if Instant::now() >= end {
            break;
        }
        let calm = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for actor in 0..3 {
                let (scene, calm) = (&scene, &calm);
                scope.spawn(move || {
                    let mut random = Noise(seed ^ (round << 8) ^ actor ^ 0x5a5a);
                    let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        (0..3).for_each(|_| scene.act(actor, &mut random));
                    }));
                    calm.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    acted.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                });
            }
            while calm.load(std::sync::atomic::Ordering::Relaxed) < 3 {
                let (fails, hangs) = (weather.below(3) == 0, weather.below(4) == 0);
                cruel.fail(fails);
                cruel.pause(hangs);
                std::thread::sleep(Duration::from_millis(100 + weather.below(700)));
                cruel.fail(false);
                cruel.pause(false);
                std::thread::sleep(Duration::from_millis(weather.below(300)));
            }
        });
        scene.judge(running);
        scene.say(format!("round {round} held"));
    }
    scene.report();
}
