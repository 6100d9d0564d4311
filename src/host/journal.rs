//! The journal, stored between two runs: last error, origin of its bundle, history. It is for people only. Slots describe
//! themselves ([`crate::slot`]), so no decision depends on it, and a full or read-only `/var` breaks nothing.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::libc;
use serde::{Deserialize, Serialize};

use super::files::{lock_file, private_directory, replace};
use crate::units::text;

/// Directory of [`FileJournal`] unless the configuration names another.
pub const DEFAULT_DIR: &str = "/var/lib/qstage";

/// The journal's record of one disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JournalRecord {
    /// The last failure; `None` since the last success.
    pub last_error: Option<LastError>,
    /// Origin of the bundle that [`last_error`](Self::last_error) is about; `None` without an error.
    pub install_path: Option<String>,
    /// The last swap of the container, as in the history; `None` before the first.
    pub last_swap: Option<Event>,
    /// When a release was last marked good: after a swap, or at the end of a trial; as [`now`] writes it. `None`: never.
    pub last_success: Option<String>,
    /// The last scrub of each slot, by its letter: when, and its code.
    pub scrubs: BTreeMap<String, Event>,
}

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// Its stable code.
    pub code: String,
    /// Its message, a sentence.
    pub message: String,
    /// Time of the failure, as [`now`] writes it.
    pub time: String,
}

/// One line of the history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Time at which the verb ended, as [`now`] writes it.
    pub time: String,
    /// Name of the verb.
    pub verb: String,
    /// Stable code of the error, or [`NO_ERROR`](crate::error::NO_ERROR).
    pub code: String,
    /// The outcome, as a sentence.
    #[serde(default)]
    pub message: String,
    /// Time in milliseconds for which the software was down during a swap; `None` for other verbs, or if unknown.
    #[serde(default)]
    pub downtime_ms: Option<f64>,
}

impl Event {
    /// An event that ended just now.
    pub fn new(verb: &str, code: &str, message: String) -> Self {
        let message = text::shown(&message).into_owned();
        Self { time: now(), verb: verb.to_owned(), code: code.to_owned(), message, downtime_ms: None }
    }
}

/// The current time of the machine's clock, RFC 3339 in UTC, to the second. For people only: appliances boot without a
/// correct clock, so nothing compares it.
pub fn now() -> String {
    date(jiff::Timestamp::now().as_second())
}

/// Formats seconds since 1970 as [`now`] does.
pub fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

/// The reverse of [`date`], for figures; `None` if it is no such time.
pub fn seconds(time: &str) -> Option<f64> {
    Some(time.parse::<jiff::Timestamp>().ok()?.as_second() as f64)
}

/// The journal, separate for each disk; the key is the GUID of the disk as text. No method fails.
pub trait Journal: Send + Sync {
    /// The record of a disk; the default if there is none, or none that can be read.
    fn load(&self, disk: &str) -> JournalRecord;

    /// Changes the record of a disk, atomically as seen by other processes and after a power cut.
    fn update(&self, disk: &str, change: &mut dyn FnMut(&mut JournalRecord));

    /// Appends an event to the history.
    fn append(&self, disk: &str, event: &Event);

    /// The history, oldest first, as far back as it is stored.
    fn history(&self, disk: &str) -> Vec<Event>;
}

/// A journal that ends with the process: for tests, and for disk images.
#[derive(Debug, Default)]
pub struct MemoryJournal(Mutex<HashMap<String, (JournalRecord, Vec<Event>)>>);

impl MemoryJournal {
    fn with<T>(&self, disk: &str, act: impl FnOnce(&mut (JournalRecord, Vec<Event>)) -> T) -> T {
        let mut disks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        act(disks.entry(disk.to_owned()).or_default())
    }
}

impl Journal for MemoryJournal {
    fn load(&self, disk: &str) -> JournalRecord {
        self.with(disk, |(record, _)| record.clone())
    }

    fn update(&self, disk: &str, change: &mut dyn FnMut(&mut JournalRecord)) {
        self.with(disk, |(record, _)| change(record));
    }

    fn append(&self, disk: &str, event: &Event) {
        self.with(disk, |(_, history)| history.push(event.clone()));
    }

    fn history(&self, disk: &str) -> Vec<Event> {
        self.with(disk, |(_, history)| history.clone())
    }
}

/// A journal in `DIR/<disk>/`: `state.json`, replaced as a whole, and `history.jsonl`, appended to. When the history exceeds
/// [`HISTORY_LIMIT`], it is renamed to `history.1.jsonl` and replaces the one before.
pub struct FileJournal {
    dir: PathBuf,
    notice: Box<dyn Fn(&str) + Send + Sync>,
    /// Whether a wait for the lock has reached its limit: there is no second wait.
    gave_up: AtomicBool,
    /// What was reported of the last write; empty if that succeeded. A verb writes several times.
    reported: Mutex<String>,
}

/// Longest wait for the lock of a disk's directory. It is held for milliseconds; a verb does not wait longer for a process
/// that was stopped while it held the lock.
const LOCK_LIMIT: Duration = Duration::from_secs(3);

/// The size in bytes at which the history is rotated; about a thousand events.
pub const HISTORY_LIMIT: u64 = 256 << 10;

/// Number of bytes at the end of a file that are read; neither file grows larger unless another program writes to it.
const READ_LIMIT: u64 = 2 * HISTORY_LIMIT;

const STATE: &str = "state.json";
const HISTORY: &str = "history.jsonl";
const OLD_HISTORY: &str = "history.1.jsonl";

impl FileJournal {
    /// A journal in `dir`, which is created when needed. `notice` receives a message about what could not be stored.
    pub fn new(dir: &Path, notice: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self {
            dir: dir.to_owned(),
            notice: Box::new(notice),
            gave_up: AtomicBool::new(false),
            reported: Mutex::default(),
        }
    }

    /// The directory of a disk. The key is read from a disk, so it is untrusted: it must not form a path.
    fn place(&self, disk: &str) -> io::Result<PathBuf> {
        if disk.is_empty() || !disk.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') {
            return Err(io::Error::other(format!("'{disk}' cannot be the name of a directory")));
        }
        Ok(self.dir.join(disk))
    }

    /// Runs `act` on the disk's directory under its lock.
    fn writing(&self, disk: &str, act: impl FnOnce(&Path) -> io::Result<()>) {
        let done = self.place(disk).and_then(|dir| {
            private_directory(&dir, true)?;
            let limit = if self.gave_up.load(Ordering::Relaxed) { Duration::ZERO } else { LOCK_LIMIT };
            let lock = lock_file(&dir.join("lock"), limit)?;
            self.gave_up.store(lock.is_none(), Ordering::Relaxed);
            let _lock = lock.ok_or_else(|| io::Error::other("another process holds its lock"))?;
            act(&dir)
        });
        let problem = done.err().map_or_else(String::new, |e| {
            format!("{}: cannot be written, history and last error are not kept: {e}", self.dir.display())
        });
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if !problem.is_empty() && *reported != problem {
            (self.notice)(&problem);
        }
        *reported = problem;
    }

    /// The last [`READ_LIMIT`] bytes of a file; empty if it is missing.
    fn text(&self, disk: &str, file: &str) -> String {
        let read = |path: PathBuf| {
            let mut file = match regular(&path, OpenOptions::new().read(true)) {
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
                {
                    return Ok(String::new());
                }
                other => other?,
            };
            let len = file.metadata()?.len();
            file.seek(SeekFrom::Start(len.saturating_sub(READ_LIMIT)))?;
            let mut bytes = Vec::new();
            file.take(READ_LIMIT).read_to_end(&mut bytes)?;
            Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).into_owned())
        };
        let Ok(dir) = self.place(disk) else { return String::new() };
        read(dir.join(file)).unwrap_or_else(|error| {
            (self.notice)(&format!("{}: {file} cannot be read: {error}", self.dir.display()));
            String::new()
        })
    }

    /// The history of the only disk in the journal, for when the GUID of the disk cannot be read; empty if the journal knows
    /// several disks.
    pub fn only_history(&self) -> Vec<Event> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let names =
            entries.filter(|entry| entry.path().join(HISTORY).exists()).map(|entry| entry.file_name());
        let names: Vec<_> = names.filter_map(|name| name.into_string().ok()).take(2).collect();
        match names.as_slice() {
            [only] => self.history(only),
            _ => Vec::new(),
        }
    }
}

/// Opens a regular file only: to open a FIFO may block, to open a device may have effects.
fn regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other(format!("{} is no regular file", path.display())))
    }
}

impl Journal for FileJournal {
    fn load(&self, disk: &str) -> JournalRecord {
        serde_json::from_str(&self.text(disk, STATE)).unwrap_or_default()
    }

    fn update(&self, disk: &str, change: &mut dyn FnMut(&mut JournalRecord)) {
        self.writing(disk, |dir| {
            let before = self.load(disk);
            let mut record = before.clone();
            change(&mut record);
            if record == before {
                return Ok(());
            }
            replace(dir, STATE, &serde_json::to_vec_pretty(&record)?, 0o600)
        });
    }

    fn append(&self, disk: &str, event: &Event) {
        self.writing(disk, |dir| {
            let path = dir.join(HISTORY);
            if fs::metadata(&path).is_ok_and(|meta| meta.len() > HISTORY_LIMIT) {
                fs::rename(&path, dir.join(OLD_HISTORY))?;
            }
            let mut file =
                regular(&path, OpenOptions::new().create(true).read(true).append(true).mode(0o600))?;
            let mut line = Vec::new();
            // A power cut may have left half a line; this one must not become a part of it.
            if file.seek(SeekFrom::End(0))? > 0 {
                let mut last = [0];
                file.seek(SeekFrom::End(-1))?;
                file.read_exact(&mut last)?;
                if last != *b"\n" {
                    line.push(b'\n');
                }
            }
            serde_json::to_writer(&mut line, event)?;
            line.push(b'\n');
            file.write_all(&line)?;
            file.sync_data()
        });
    }

    fn history(&self, disk: &str) -> Vec<Event> {
        let text = self.text(disk, OLD_HISTORY) + "\n" + &self.text(disk, HISTORY);
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const DISK: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

    fn event(n: usize) -> Event {
        Event::new("prepare", crate::error::NO_ERROR, format!("{n}\n"))
    }

    fn journal(dir: &Path) -> (FileJournal, Arc<Mutex<Vec<String>>>) {
        let notices = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&notices);
        (FileJournal::new(dir, move |text| sink.lock().unwrap().push(text.to_owned())), notices)
    }

    fn path(n: u32) -> Option<String> {
        Some(n.to_string())
    }

    #[test]
    fn both_journals_remember_each_disk_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (file, notices) = journal(&dir.path().join("made/when/needed"));
        for journal in [&file as &dyn Journal, &MemoryJournal::default()] {
            assert_eq!(journal.load(DISK), JournalRecord::default());
            journal.update(DISK, &mut |record| record.install_path = path(1));
            journal.update("other", &mut |record| record.install_path = path(2));
            let error = LastError { code: "C".into(), message: "m\"\n".into(), time: now() };
            journal.update(DISK, &mut |record| record.last_error = Some(error.clone()));
            let expected =
                JournalRecord { install_path: path(1), last_error: Some(error), ..JournalRecord::default() };
            assert_eq!(journal.load(DISK), expected);
            assert_eq!(journal.load("other").install_path, path(2));
            (0..3).for_each(|n| journal.append(DISK, &event(n)));
            let told: Vec<_> = journal.history(DISK).into_iter().map(|e| e.message).collect();
            assert_eq!(told, ["0\n", "1\n", "2\n"]);
            assert!(journal.history("other").is_empty());
        }
        assert!(notices.lock().unwrap().is_empty());
    }

    /// Lines of older releases have no downtime.
    #[test]
    fn a_line_without_downtime_is_read() {
        let old = r#"{"time":"t","verb":"swap","code":"C","message":"m"}"#;
        let event: Event = serde_json::from_str(old).unwrap();
        assert_eq!((event.verb.as_str(), event.downtime_ms), ("swap", None));
        assert_eq!(date(1_700_000_000), "2023-11-14T22:13:20Z");
    }

    /// Once a FIFO blocked every verb, and of a large file the oldest part was shown.
    #[test]
    fn a_fifo_is_reported_at_once_and_of_a_large_file_the_end_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, notices) = journal(dir.path());
        journal.append(DISK, &event(0));
        let own = dir.path().join(DISK);
        fs::remove_file(own.join(HISTORY)).unwrap();
        for file in [HISTORY, STATE] {
            nix::unistd::mkfifo(&own.join(file), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        assert_eq!((journal.load(DISK), journal.history(DISK)), (JournalRecord::default(), Vec::new()));
        journal.append(DISK, &event(1));
        let said = std::mem::take(&mut *notices.lock().unwrap());
        assert!(said.len() == 3 && said.iter().all(|text| text.contains("no regular file")), "{said:?}");
        fs::remove_file(own.join(HISTORY)).unwrap();
        let line = serde_json::to_string(&event(2)).unwrap() + "\n";
        fs::write(own.join(HISTORY), line.repeat(3 * READ_LIMIT as usize / line.len())).unwrap();
        fs::OpenOptions::new()
            .append(true)
            .open(own.join(HISTORY))
            .unwrap()
            .write_all(line.replace("2\\n", "new").as_bytes())
            .unwrap();
        assert_eq!(journal.history(DISK).last().unwrap().message, "new");
    }

    #[test]
    fn garbage_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = journal(dir.path());
        journal.update(DISK, &mut |record| record.install_path = path(1));
        journal.append(DISK, &event(0));
        let own = dir.path().join(DISK);
        // Half a line at the end, binary in the middle.
        let mut history = OpenOptions::new().append(true).open(own.join(HISTORY)).unwrap();
        history.write_all(b"\xff\xfe\0\n{\"time\":\"cut off").unwrap();
        journal.append(DISK, &event(1));
        assert_eq!(journal.history(DISK).len(), 2);
        for garbage in [&b"\xff\xfe"[..], b"", b"{\"install_path\": 7}", b"[]"] {
            fs::write(own.join(STATE), garbage).unwrap();
            assert_eq!(journal.load(DISK), JournalRecord::default());
        }
        // Written by a later qstage that knows more.
        fs::write(own.join(STATE), b"{\"install_path\":\"1\",\"new\":[1]}").unwrap();
        assert_eq!(journal.load(DISK).install_path, path(1));
        journal.update(DISK, &mut |record| record.install_path = path(3));
        assert_eq!(journal.load(DISK).install_path, path(3));
    }

    #[test]
    fn the_history_is_bounded_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = journal(dir.path());
        let own = dir.path().join(DISK);
        journal.append(DISK, &event(0));
        for n in 1..4 {
            let mut history = OpenOptions::new().append(true).open(own.join(HISTORY)).unwrap();
            history.write_all(&vec![b'\n'; HISTORY_LIMIT as usize]).unwrap();
            journal.append(DISK, &event(n));
        }
        let told: Vec<_> = journal.history(DISK).into_iter().map(|e| e.message).collect();
        assert_eq!(told, ["2\n", "3\n"]);
        let size: u64 = fs::read_dir(own).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(size < 2 * HISTORY_LIMIT + 4096, "{size}");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_a_notice() {
        let dir = tempfile::tempdir().unwrap();
        // A file in the way stops root as well, which a mode would not.
        let (blocked, notices) = journal(&dir.path().join("file/state"));
        fs::write(dir.path().join("file"), "").unwrap();
        blocked.update(DISK, &mut |record| record.install_path = path(1));
        blocked.append(DISK, &event(0));
        assert_eq!((blocked.load(DISK), blocked.history(DISK)), (JournalRecord::default(), Vec::new()));
        assert_eq!(notices.lock().unwrap().len(), 1, "the same again is not reported");
        // Each cause is, and one that comes back after a success.
        let (journal, notices) = journal(&dir.path().join("good"));
        for wrong in ["", "..", "a/b", "/etc", "a.b"] {
            journal.append(wrong, &event(0));
        }
        assert_eq!(notices.lock().unwrap().len(), 5);
        assert!(!dir.path().join("good").exists());
    }

    /// A scrub or a look that finds nothing new must not wear the medium.
    #[test]
    fn a_record_that_does_not_change_is_not_written() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = journal(dir.path());
        let set =
            |path: &str| journal.update(DISK, &mut |record| record.install_path = Some(path.to_owned()));
        // Each write makes a new file.
        let file = || fs::metadata(dir.path().join(DISK).join(STATE)).unwrap().ino();
        set("/x");
        let first = file();
        set("/x");
        assert_eq!(file(), first);
        set("/y");
        assert_ne!(file(), first);
    }

    /// Another process was stopped while it held the lock: the verb loses its history entry, not its result.
    #[test]
    fn a_lock_that_stays_held_costs_one_wait_and_a_notice() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, notices) = journal(dir.path());
        journal.append(DISK, &event(0));
        let held = lock_file(&dir.path().join(DISK).join("lock"), Duration::ZERO).unwrap();
        let begun = std::time::Instant::now();
        (1..4).for_each(|n| journal.append(DISK, &event(n)));
        assert!((LOCK_LIMIT..3 * LOCK_LIMIT).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        assert_eq!((notices.lock().unwrap().len(), journal.history(DISK).len()), (1, 1));
        drop(held);
        journal.append(DISK, &event(4));
        assert_eq!(journal.history(DISK).len(), 2);
        let _held = lock_file(&dir.path().join(DISK).join("lock"), Duration::ZERO).unwrap();
        journal.append(DISK, &event(5));
        assert_eq!(notices.lock().unwrap().len(), 2);
    }

    #[test]
    fn many_writers_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = journal(dir.path());
        let add = |record: &mut JournalRecord| {
            let n: u32 = record.install_path.as_deref().unwrap_or("0").parse().unwrap();
            record.install_path = path(n + 1);
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..10 {
                        journal.update(DISK, &mut { add });
                        journal.append(DISK, &event(n));
                    }
                });
            }
        });
        assert_eq!(journal.load(DISK).install_path, path(40));
        assert_eq!(journal.history(DISK).len(), 40);
    }
}
