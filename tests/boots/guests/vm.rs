//! One QEMU process. Its serial console is read line by line, with a deadline; the drop kills it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::which;
use crate::harness::load::bound;

/// How long a console may be silent. Boots take some ten seconds on an idle machine; this is for busy ones.
pub const TIMEOUT: Duration = Duration::from_secs(180);

/// Parameters of each kernel. On a busy machine its check of the timer fails: emulated time does not pass evenly.
pub const CMDLINE: &str = "console=ttyS0 no_timer_check";

/// A line that is not ended for so long has no more to come. Long: a guest on a busy machine pauses within a line.
const OPEN: Duration = Duration::from_secs(3);
/// Texts after which nothing of the line is wanted.
const PROMPTS: [&str; 2] = ["=>", "Booting from Hard Disk"];

/// How a disk is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// `/dev/vdX`: what U-Boot and SeaBIOS boot from. A module in Debian's kernel.
    Virtio,
    /// `/dev/nvme0nX`, all of them namespaces of one controller, from 1 on: built into Debian's kernel.
    Nvme,
}

/// A machine to be started.
#[derive(Clone, Debug)]
pub struct Machine {
    firmware: Option<PathBuf>,
    kernel: Option<(PathBuf, PathBuf, String)>,
    drives: Vec<(PathBuf, Bus, &'static str)>,
    memory: u32,
    reboot: bool,
    more: Vec<String>,
}

impl Default for Machine {
    fn default() -> Self {
        Self { firmware: None, kernel: None, drives: vec![], memory: 512, reboot: true, more: vec![] }
    }
}

impl Machine {
    /// A PC with SeaBIOS.
    pub fn new() -> Self {
        Self::default()
    }

    /// Another firmware in place of SeaBIOS.
    pub fn firmware(mut self, rom: impl Into<PathBuf>) -> Self {
        self.firmware = Some(rom.into());
        self
    }

    /// U-Boot as the firmware, as Debian ships it.
    pub fn u_boot(self) -> Self {
        let rom = Path::new("/usr/lib/u-boot/qemu-x86/u-boot.rom");
        assert!(rom.is_file(), "U-Boot is not installed: apt-get install u-boot-qemu");
        self.firmware(rom)
    }

    /// Starts a kernel directly, without a boot loader; [`CMDLINE`] is added.
    pub fn kernel(mut self, kernel: &Path, initrd: &Path, cmdline: &str) -> Self {
        self.kernel = Some((kernel.to_owned(), initrd.to_owned(), format!("{CMDLINE} {cmdline}")));
        self
    }

    /// Attaches a raw image; what the guest writes, stays.
    pub fn drive(mut self, image: &Path, bus: Bus) -> Self {
        self.drives.push((image.to_owned(), bus, "off"));
        self
    }

    /// Attaches a raw image; what the guest writes, is forgotten with the machine.
    pub fn snapshot(mut self, image: &Path, bus: Bus) -> Self {
        self.drives.push((image.to_owned(), bus, "on"));
        self
    }

    /// Memory in MiB; default 512.
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory = mib;
        self
    }

    /// A reboot ends the machine instead.
    pub fn once(mut self) -> Self {
        self.reboot = false;
        self
    }

    /// Further options of QEMU.
    pub fn option(mut self, words: &[&str]) -> Self {
        self.more.extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    /// The command line. `graphics=off` makes SeaBIOS, and with it gptmbr, print on the serial line.
    fn args(&self) -> Vec<String> {
        let mut args: Vec<String> = "-machine pc,accel=tcg,graphics=off -nodefaults -no-user-config \
             -display none -monitor none -serial stdio -net none -smp 1 -m"
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        args.push(self.memory.to_string());
        let mut option = |words: &[&str]| args.extend(words.iter().map(|word| (*word).to_owned()));
        if let Some(rom) = &self.firmware {
            option(&["-bios", rom.to_str().unwrap()]);
        }
        if let Some((kernel, initrd, cmdline)) = &self.kernel {
            option(&["-kernel", kernel.to_str().unwrap(), "-initrd", initrd.to_str().unwrap()]);
            option(&["-append", cmdline]);
        }
        if !self.reboot {
            option(&["-no-reboot"]);
        }
        if self.drives.iter().any(|(_, bus, _)| *bus == Bus::Nvme) {
            option(&["-device", "nvme,id=nvme,serial=boots"]);
        }
        let mut namespaces = 0;
        for (i, (image, bus, snapshot)) in self.drives.iter().enumerate() {
            let image = image.to_str().unwrap().replace(',', ",,");
            let drive = format!("if=none,id=d{i},format=raw,snapshot={snapshot},file={image}");
            let device = match bus {
                Bus::Virtio => format!("virtio-blk-pci,drive=d{i}"),
                Bus::Nvme => {
                    namespaces += 1;
                    format!("nvme-ns,bus=nvme,nsid={namespaces},drive=d{i}")
                }
            };
            option(&["-drive", &drive, "-device", &device]);
        }
        args.extend(self.more.iter().cloned());
        args
    }

    /// Starts it.
    pub fn start(&self) -> Vm {
        let qemu = which("qemu-system-x86_64").unwrap();
        let mut child = bound(qemu.to_str().unwrap())
            .args(self.args())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let (input, mut output) = (child.stdin.take(), child.stdout.take().unwrap());
        let empty =
            Console { text: String::new(), escape: Escape::No, changed: Instant::now(), ended: false };
        let console = Arc::new((Mutex::new(empty), Condvar::new()));
        let shared = Arc::clone(&console);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            loop {
                let n = output.read(&mut bytes).unwrap_or(0);
                let mut console = lock(&shared.0);
                bytes[..n].iter().for_each(|byte| console.take(*byte));
                (console.ended, console.changed) = (n == 0, Instant::now());
                shared.1.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        Vm { child, input, console, seen: 0, started: Instant::now() }
    }
}

/// SeaBIOS leaves its last line open, and whatever speaks next would stand in it: it is ended here. A third dot is held
/// back for the sake of the cursor; it is seldom sent at all, and belongs to this line when it is.
const FIRMWARE_IS_DONE: &str = "Booting from ROM..\n";

#[derive(Debug)]
struct Console {
    text: String,
    escape: Escape,
    changed: Instant,
    ended: bool,
}

/// Where in a sequence for the cursor of a terminal: firmware and boot loaders clear screens.
#[derive(Debug, PartialEq, Eq)]
enum Escape {
    No,
    Begun,
    Parameters,
}

impl Console {
    /// Takes a byte of the serial line: text, without carriage returns and escape sequences (ECMA-48).
    fn take(&mut self, byte: u8) {
        self.escape = match (&self.escape, byte) {
            (_, 0x1b) => Escape::Begun,
            (Escape::Begun, b'[') => Escape::Parameters,
            (Escape::Parameters, 0x20..=0x3f) => Escape::Parameters,
            (Escape::No, b'\r') => Escape::No,
            (Escape::No, b'.') if self.text.ends_with(FIRMWARE_IS_DONE) => Escape::No,
            (Escape::No, _) => {
                self.text.push(if byte.is_ascii() { char::from(byte) } else { '?' });
                if FIRMWARE_IS_DONE.strip_suffix('\n').is_some_and(|line| self.text.ends_with(line)) {
                    self.text.push('\n');
                }
                Escape::No
            }
            _ => Escape::No,
        };
    }
}

fn lock(console: &Mutex<Console>) -> std::sync::MutexGuard<'_, Console> {
    console.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A machine that runs.
pub struct Vm {
    child: Child,
    input: Option<ChildStdin>,
    console: Arc<(Mutex<Console>, Condvar)>,
    /// Up to where the console was searched.
    seen: usize,
    started: Instant,
}

impl Vm {
    /// Waits for a text after the last one that was found, and returns its line. The test fails after
    /// [`TIMEOUT`], and when the machine ends before.
    #[track_caller]
    pub fn wait(&mut self, wanted: &str) -> String {
        self.wait_any(&[wanted])
    }

    /// The same for the first of several texts.
    #[track_caller]
    pub fn wait_any(&mut self, wanted: &[&str]) -> String {
        self.wait_within(TIMEOUT, wanted).unwrap_or_else(|| {
            let console = lock(&self.console.0);
            let why = if console.ended { "the machine ended" } else { "nothing came in time" };
            let lines: Vec<&str> = console.text.lines().collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n");
            panic!("{why}, waiting for {wanted:?}; the console ends with:\n{tail}");
        })
    }

    /// The same with another limit for the silence, and ten times that for all; `None`: it did not come, or the machine
    /// ended.
    pub fn wait_within(&mut self, limit: Duration, wanted: &[&str]) -> Option<String> {
        let begun = Instant::now();
        let (console, changed) = &*Arc::clone(&self.console);
        let mut console = lock(console);
        loop {
            let new = &console.text[self.seen..];
            let found = wanted.iter().filter_map(|text| Some((new.find(text)?, text.len()))).min();
            let deadline = (console.changed.max(begun) + limit).min(begun + 10 * limit);
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some((at, len)) = found {
                let (from, to) = (self.seen + at, self.seen + at + len);
                let begin = console.text[..from].rfind('\n').map_or(0, |at| at + 1);
                let end = console.text[to..].find('\n').map(|at| to + at);
                // The rest of the line is under way, unless it is a prompt.
                let is_whole = end.is_some() || console.ended || PROMPTS.contains(&&console.text[from..to]);
                if !is_whole && console.changed.elapsed() < OPEN {
                    console = changed.wait_timeout(console, OPEN).unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
                let end = end.unwrap_or(console.text.len());
                self.seen = end;
                return Some(console.text[begin..end].to_owned());
            }
            if console.ended || left.is_zero() {
                return None;
            }
            console = changed.wait_timeout(console, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the machine ends by itself; all that it printed.
    #[track_caller]
    pub fn end(mut self) -> String {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let status = self.child.try_wait().unwrap();
            if let Some(status) = status {
                assert!(status.success(), "QEMU: {status}; {}", self.text());
                break;
            }
            assert!(Instant::now() < deadline, "the machine goes on; the console:\n{}", self.text());
            thread::sleep(Duration::from_millis(20));
        }
        let (console, changed) = &*self.console;
        let mut console = lock(console);
        while !console.ended {
            console = changed.wait(console).unwrap_or_else(PoisonError::into_inner);
        }
        console.text.clone()
    }

    /// Types a line.
    pub fn send(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(line.as_bytes()).and_then(|()| input.write_all(b"\n")).unwrap();
        input.flush().unwrap();
    }

    /// Runs a command in the guest's shell, which must succeed; what it printed. The shell echoes nothing.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        let (code, out) = self.try_run(command);
        assert_eq!(code, 0, "'{command}' in the guest: {out}");
        out
    }

    /// Runs a command in the guest's shell; its exit code, and what it printed on both of its outputs. A list of slots is
    /// read again when the disk did not answer in time: on a busy machine the emulated one takes longer than a real one may.
    #[track_caller]
    pub fn try_run(&mut self, command: &str) -> (i32, String) {
        for _ in 0..5 {
            let (code, text) = self.once(command);
            if !(command.starts_with("qstage slots") && text.contains("UPGRADE_ERROR_NO_ANSWER")) {
                return (code, text);
            }
        }
        self.once(command)
    }

    #[track_caller]
    fn once(&mut self, command: &str) -> (i32, String) {
        let from = self.seen;
        self.send(&format!("{command}; echo \"[exit $?]\""));
        // Whole: a guest on a busy machine may pause within a line.
        let codes: Vec<String> = (0..=255).map(|code| format!("[exit {code}]")).collect();
        let line = self.wait_any(&codes.iter().map(String::as_str).collect::<Vec<_>>());
        let code = line.split_once("[exit ").and_then(|(_, rest)| rest.split(']').next()?.parse().ok());
        let end = self.seen - line.len();
        let code = code.unwrap_or_else(|| panic!("no exit code in '{line}'"));
        (code, lock(&self.console.0).text[from..end].trim().to_owned())
    }

    /// All that was printed so far.
    pub fn text(&self) -> String {
        lock(&self.console.0).text.clone()
    }

    /// Time since the start, for the tests' figures.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Cuts the power: nothing is flushed, nothing is said.
    pub fn cut(self) {}
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_the_firmware_leaves_open_is_no_part_of_the_guests_first_line() {
    for dots in ["..", "..."] {
        let mut console =
            Console { text: String::new(), escape: Escape::No, changed: Instant::now(), ended: false };
        format!("Booting from ROM{dots}disk 1: a\r\n.hidden\n").bytes().for_each(|byte| console.take(byte));
        assert_eq!(console.text, "Booting from ROM..\ndisk 1: a\n.hidden\n");
    }
}
