//! Starts the kernel of a slot by kexec(8), without the boot loader: the trial of machines whose loader has one flag and no
//! counter. The flag does not change, so whatever happens to the new kernel, the next reset boots the old slot.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::cmdline;
use super::program::Program;
use crate::error::{Error, Result};
use crate::units::Slot;

/// Time limit of each program: it covers the mount and the read of a slow disk, and the request of a shutdown.
const LIMIT: Duration = Duration::from_secs(300);

/// The table `[kexec]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KexecConfig {
    /// Candidate paths of the kernel in the slot's file system; the first that exists is used.
    pub kernel: Vec<PathBuf>,
    /// Candidate paths of the initramfs; if none exists, there is no initramfs.
    pub initrd: Vec<PathBuf>,
    /// The kernel command line; `None`: that of the running kernel. Words that name the slot are added.
    pub command_line: Option<String>,
    /// Command that shuts the machine down and starts the loaded kernel.
    pub command: Vec<String>,
}

impl Default for KexecConfig {
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

/// The kernel of a slot, started in two steps, so that whatever can fail comes before the first write to the disk.
pub trait SlotKernel {
    /// Loads the kernel of `slot`, whose partition has this device node and unique GUID.
    ///
    /// # Errors
    /// [`Error::Kexec`].
    fn load(&self, slot: Slot, node: &Path, partuuid: &str) -> Result<()>;

    /// Starts the loaded kernel. It may return while that is under way, as a shutdown is.
    ///
    /// # Errors
    /// [`Error::Kexec`].
    fn start(&self) -> Result<()>;
}

impl SlotKernel for KexecConfig {
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
        // kexec_file_load(2) where the kernel has it, since lockdown demands it; else kexec_load(2).
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

/// The running kernel's command line, changed for the kernel of a slot. The words that are added name the root partition:
/// `root=` for the initramfs, the others for qstage, also if the root is an overlay.
fn command_line(line: &str, slot: Slot, partuuid: &str) -> String {
    let ours = ["root", "qstage.partuuid", "qstage.trial", "qstage.selected", "BOOT_IMAGE", "initrd"];
    let mut init = false;
    let kept = cmdline::words(line).filter(|word| {
        let key = word.trim_start_matches('"').split('=').next().unwrap_or_default();
        // Words after a lone "--" are for init.
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

/// A slot that is mounted read-only until the value is dropped.
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
        // If it fails: the mount is read-only, and the machine is about to shut down.
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
    fn a_command_that_fails_is_reported_with_its_output() {
        let start = |words: &[&str]| {
            let command = words.iter().map(|word| (*word).to_owned()).collect();
            KexecConfig { command, ..KexecConfig::default() }.start()
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
