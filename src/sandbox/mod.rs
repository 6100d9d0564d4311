//! Drops rights before the first byte of a bundle is read: untrusted input is parsed by a process that can do little more
//! than write the slot.
//!
//! | layer | remaining rights | since |
//! |---|---|---|
//! | descriptors | files opened before: bundle, disk, standard streams | |
//! | landlock(7) | the files of [`Kept`], by path; no TCP ports; no signals to others | Linux 5.13; ports 6.7; signals 6.12 |
//! | seccomp(2) | the list in `calls`: no programs, no processes, sockets only for a URL | Linux 3.17; x86-64, ARM64, RISC-V |
//! | capabilities(7) | none, except for the few that [`enter`] explains | |
//!
//! It applies to the calling thread and the threads that it starts. A thread that already exists retains its files and
//! capabilities, so such a one drops them itself ([`enter_thread`]). An upgrade also works on a kernel without landlock: the
//! other layers apply, and [`Confined::missing`] reports the missing one.

mod calls;
mod files;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

pub use calls::forbid_user_namespaces;
use nix::unistd::geteuid;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::error::{Error, Result};

/// Rights that remain after the others have been dropped. Paths that do not exist at that time stay out of reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Files to read, and directories with everything below them.
    pub read: Vec<PathBuf>,
    /// Files and devices to read and write, and directories in which files are created, replaced and removed.
    pub write: Vec<PathBuf>,
    /// Directory of the EFI variables, if they are changed: to clear the immutable flag of their files needs a capability.
    /// `None`: they are not changed.
    pub efivars: Option<PathBuf>,
    /// Whether connections to web servers are permitted.
    pub network: bool,
}

impl Kept {
    /// File systems of the kernel: devices, mounts, processors, pressure. Read by every verb.
    const KERNEL: [&str; 2] = ["/proc", "/sys"];
    /// Files that the C library reads to resolve a name (nsswitch.conf(5)), and its modules for that; certificates of the
    /// system.
    const NAMES: [&str; 10] = [
        "/etc",
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
        "/usr/share/ca-certificates",
        "/usr/local/share/ca-certificates",
        "/var/lib/ca-certificates",
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

    /// Capabilities that are needed for these files: root needs one to use files of other owners. Landlock still applies.
    fn capabilities(&self) -> CapabilitySet {
        let own = geteuid().as_raw();
        let foreign = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|about| about.uid() != own);
        let mut kept = CapabilitySet::empty();
        kept.set(CapabilitySet::DAC_OVERRIDE, self.writable().chain(&self.read).any(foreign));
        kept.set(CapabilitySet::LINUX_IMMUTABLE, self.efivars.is_some());
        kept
    }
}

/// Result of [`enter`]. The rights cannot be regained.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "rights that could not be dropped have to be reported"]
pub struct Confined {
    /// Layers that this kernel, or this processor, does not support; empty: none.
    pub missing: Vec<String>,
}

/// Drops all rights except `kept`, for this thread and all threads that it will start.
///
/// # Errors
/// [`Error::Internal`]: the kernel supports a layer, and refused it.
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

/// Drops all rights to files and all capabilities of the calling thread, for one that needs none of them and is started before
/// [`enter`], which does not reach it. Its system calls are restricted there.
///
/// # Errors
/// The kernel supports a layer, and refused it.
pub fn enter_thread() -> io::Result<()> {
    files::restrict(&Kept::default())?;
    drop_capabilities(CapabilitySet::empty())
}

fn drop_capabilities(kept: CapabilitySet) -> io::Result<()> {
    let has = rustix::thread::capabilities(None)?.permitted;
    let left = kept & has;
    let sets = CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}
