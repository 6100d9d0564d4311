//! Starts the kernel of a slot without the boot loader, by kexec(8): the trial of machines whose loader knows one flag and
//! counts nothing. The flag stays where it is, so whatever becomes of the new kernel, the next reset boots the old slot.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::cmdline;
use super::program::Program;
use crate::error::{Error, Result};
use crate::units::Slot;

/// How long each program may take: a slow disk is mounted and read in it, and what shuts the machine down says that it will.
const LIMIT: Duration = Duration::from_secs(300);

/// The table `[kexec]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where a slot may have its kernel, by the path in its file system; the first that is there.
    pub kernel: Vec<PathBuf>,
    /// Where it may have its initramfs; it may have none.
    pub initrd: Vec<PathBuf>,
    /// The kernel command line; `None`: that of the running kernel. What says which slot it is, is added.
    pub command_line: Option<String>,
    /// What starts the loaded kernel, after the machine was shut down properly.
    pub command: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
        Self {
            kernel: paths(&["boot/vmlinuz", "vmlinuz"]),
            initrd: paths(&["boot/initrd.img", "initrd.img", "initrd"]),
            command_line: None,
            command: vec!["systemctl".to_owned(), "kexec".to_owned()],
        }
    }
}

/// The kernel of a slot, in two steps: what can fail comes before anything is written on the disk.
pub trait SlotKernel {
    /// Loads the kernel of `slot`, whose partition has this node and unique GUID.
    ///
    /// # Errors
    /// [`Error::Kexec`].
    fn load(&self, slot: Slot, node: &Path, partuuid: &str) -> Result<()>;

    /// Starts it. It returns where that is under way, as a shutdown is.
    ///
    /// # Errors
    /// [`Error::Kexec`].
    fn start(&self) -> Result<()>;
}

impl SlotKernel for Config {
    fn load(&self, slot: Slot, node: &Path, partuuid: &str) -> Result<()> {
        let mounted = Mounted::new(node)?;
        let inside = |paths: &[PathBuf]| {
            paths
                .iter()
                .map(|path| mounted.0.join(path.strip_prefix("/").unwrap_or(path)))
                .find(|path| path.is_file())
        };
        let kernel = inside(&self.kernel).ok_or_else(|| {
            let names: Vec<String> = self.kernel.iter().map(|path| path.display().to_string()).collect();
            failed(format!("{} has no kernel ({})", node.display(), names.join(", ")))
        })?;
        let running = || fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let line = command_line(&self.command_line.clone().unwrap_or_else(running), slot, partuuid);
        // The kernel reads the file by itself where it can, which lockdown asks for; else the old call.
        let mut program = Program::new("kexec", LIMIT)
            .args(["-a", "-l"])
            .arg(&kernel)
            .arg(format!("--command-line={line}"));
        if let Some(initrd) = inside(&self.initrd) {
            let mut option = std::ffi::OsString::from("--initrd=");
            option.push(initrd);
            program = program.arg(option);
        }
        run("kexec", program)
    }

    fn start(&self) -> Result<()> {
        let (program, words) =
            self.command.split_first().ok_or_else(|| failed("'command' is empty".to_owned()))?;
        run(program, Program::new(program, LIMIT).args(words))
    }
}

/// The line of the running kernel for the kernel of a slot. Both words say which partition is the root: the first to
/// whatever mounts it, the others to qstage, also where the root is an overlay.
fn command_line(line: &str, slot: Slot, partuuid: &str) -> String {
    let ours = ["root", "qstage.partuuid", "qstage.trial", "qstage.selected", "BOOT_IMAGE", "initrd"];
    let mut init = false;
    let kept = cmdline::words(line).filter(|word| {
        let key = word.trim_start_matches('"').split('=').next().unwrap_or_default();
        // What stands behind a lone "--" is for init.
        init |= *word == "--";
        init || !ours.contains(&key)
    });
    let mut words: Vec<&str> = kept.collect();
    let own = format!(
        "root=PARTUUID={partuuid} qstage.partuuid={partuuid} qstage.selected={slot} qstage.trial={slot}"
    );
    let at = words.iter().position(|word| *word == "--").unwrap_or(words.len());
    words.insert(at, &own);
    words.join(" ")
}

fn failed(problem: String) -> Error {
    Error::Kexec { problem }
}

fn run(name: &str, program: Program) -> Result<()> {
    let outcome = program.run().map_err(|e| failed(format!("{name}: {e}")))?;
    if outcome.end.success() {
        return Ok(());
    }
    Err(failed(format!("{name}: {}: {}", outcome.end, outcome.last_words.replace('\n', "; "))))
}

/// A slot mounted read-only, for as long as the value lives.
struct Mounted(PathBuf);

impl Mounted {
    fn new(node: &Path) -> Result<Self> {
        let at = PathBuf::from("/run/qstage/kexec");
        fs::create_dir_all(&at).map_err(|e| failed(format!("{}: {e}", at.display())))?;
        run("mount", Program::new("mount", LIMIT).args(["-o", "ro"]).arg(node).arg(&at))?;
        Ok(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A mount that stays is read-only, and the machine is about to go down.
        let _ = run("umount", Program::new("umount", LIMIT).arg(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_the_new_slot_once() {
        let line = "BOOT_IMAGE=/vmlinuz root=PARTUUID=old ro \"root=LABEL=x y\" quiet qstage.trial=a dyndbg=\"file a +p\" -- root=x\n";
        let own = "root=PARTUUID=new qstage.partuuid=new qstage.selected=b qstage.trial=b";
        assert_eq!(
            command_line(line, Slot::B, "new"),
            format!("ro quiet dyndbg=\"file a +p\" {own} -- root=x")
        );
        assert_eq!(command_line("", Slot::B, "new"), own);
    }

    #[test]
    fn a_command_that_fails_is_told_with_what_it_said() {
        let start = |words: &[&str]| {
            let command = words.iter().map(|word| (*word).to_owned()).collect();
            Config { command, ..Config::default() }.start()
        };
        start(&["true"]).unwrap();
        for (words, said) in [
            (&["sh", "-c", "echo no kernel; exit 4"][..], "no kernel"),
            (&["/nonexistent/kexec"], "/nonexistent/kexec"),
            (&[], "empty"),
        ] {
            let text = start(words).unwrap_err().to_string();
            assert!(text.contains(said), "{text}");
        }
    }
}
