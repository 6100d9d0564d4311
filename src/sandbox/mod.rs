//! Giving up rights before the first byte of a bundle is read: what strangers wrote is parsed by a process that can do
//! little more than write the slot.
//!
//! | layer | what is left | since |
//! |---|---|---|
//! | descriptors | what was opened before: bundle, disk, standard streams | |
//! | landlock(7) | the files of [`Kept`], by path; no TCP ports; no signals to others | Linux 5.13; ports 6.7; signals 6.12 |
//! | seccomp(2) | the list in `calls`: no programs, no processes, no sockets but for a URL | Linux 3.17; x86-64, ARM64, RISC-V |
//! | capabilities(7) | none, but the few that [`enter`] explains | |
//!
//! It holds for the calling thread and all that it starts. So it is entered before there are others that matter: one that
//! exists already keeps its files and capabilities. A kernel without landlock is no reason not to upgrade: the other layers
//! hold, and [`Confined::missing`] says what does not.

mod calls;
mod files;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

pub use calls::forbid_user_namespaces;
use nix::unistd::geteuid;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::error::{Error, Result};

/// What a process can still open when it has given up the rest. What does not exist then stays out of reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Files to read, and directories with all that lies in them.
    pub read: Vec<PathBuf>,
    /// Files to read and write, directories in which files are made, replaced and removed, devices.
    pub write: Vec<PathBuf>,
    /// Directory of the EFI variables, if they are changed: their files are immutable until somebody with the right says
    /// otherwise.
    pub efivars: Option<PathBuf>,
    /// Whether connections to web servers are made.
    pub network: bool,
}

impl Kept {
    /// How the kernel shows itself: devices, mounts, processors, pressure. Read by every verb.
    const KERNEL: [&str; 2] = ["/proc", "/sys"];
    /// What the C library reads to find the address of a name (nsswitch.conf(5)), and its modules for that.
    const NAMES: [&str; 8] = [
        "/etc",
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
        "/usr/share/ca-certificates",
        "/run/systemd/resolve",
        "/run/resolvconf",
    ];

    fn readable(&self) -> impl Iterator<Item = PathBuf> {
        let names = if self.network { &Self::NAMES[..] } else { &[] };
        let fixed = Self::KERNEL.iter().chain(names).map(PathBuf::from);
        self.read.iter().cloned().chain(fixed)
    }

    fn writable(&self) -> impl Iterator<Item = &PathBuf> {
        self.write.iter().chain(&self.efivars)
    }

    /// Those that are needed with these files: of another owner than this process, which is root, they can only be used
    /// by who may use all. Landlock holds all the same.
    fn capabilities(&self) -> CapabilitySet {
        let own = geteuid().as_raw();
        let foreign = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|about| about.uid() != own);
        let mut kept = CapabilitySet::empty();
        kept.set(CapabilitySet::DAC_OVERRIDE, self.writable().chain(&self.read).any(foreign));
        kept.set(CapabilitySet::LINUX_IMMUTABLE, self.efivars.is_some());
        kept
    }
}

/// Rights that are gone. There is no way back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "what could not be given up has to be said"]
pub struct Confined {
    /// What this kernel, or this processor, could not take away; empty: nothing.
    pub missing: Vec<String>,
}

/// Gives up all rights but `kept`, for this thread and all that it will start.
///
/// # Errors
/// [`Error::Internal`]: the kernel knows how, and refused.
pub fn enter(kept: &Kept) -> Result<Confined> {
    let failed = |what: &'static str| {
        move |error: io::Error| Error::Internal { what: format!("giving up rights ({what}): {error}") }
    };
    let mut missing = Vec::new();
    let capabilities = kept.capabilities();
    missing.extend(files::restrict(kept).map_err(failed("files"))?);
    drop_capabilities(capabilities).map_err(failed("capabilities"))?;
    missing.extend(calls::restrict(kept.network).map_err(failed("system calls"))?);
    Ok(Confined { missing })
}

fn drop_capabilities(kept: CapabilitySet) -> io::Result<()> {
    let has = rustix::thread::capabilities(None)?.permitted;
    let left = kept & has;
    let sets = CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}
