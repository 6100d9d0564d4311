//! Mounts of all mount namespaces that this process may read.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use super::{Kernel, names};
use crate::host::mountinfo::{self, Mount};

/// The mounts that one process sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// ID of a process in it; `None`: the namespace of this process.
    pub process: Option<u32>,
    /// Its mounts, in the order of the kernel's file.
    pub mounts: Vec<Mount>,
}

impl Kernel {
    /// The mounts that this process sees, then those of process 1, then those of every other namespace. (If this process was
    /// started in another root directory, only process 1 sees the whole of its own namespace.) A process that has ended, or
    /// may not be inspected, is left out: the exclusive open of the kernel still refuses what no table shows.
    pub fn namespaces(&self) -> io::Result<Vec<Namespace>> {
        let own = self.mounts()?;
        let mut found = vec![Namespace { process: None, mounts: own }];
        let mut processes: Vec<u32> = names(&self.proc).iter().filter_map(|name| name.parse().ok()).collect();
        processes.sort_unstable();
        let id = |process: &str| fs::read_link(self.proc.join(process).join("ns/mnt")).ok();
        let mut seen: BTreeSet<_> = id("self").into_iter().collect();
        for process in processes {
            let Some(id) = id(&process.to_string()) else { continue };
            if !seen.insert(id) && process != 1 {
                continue;
            }
            let file = self.proc.join(process.to_string()).join("mountinfo");
            let Ok(text) = fs::read_to_string(file) else { continue };
            found.push(Namespace { process: Some(process), mounts: mountinfo::mounts(&text) });
        }
        Ok(found)
    }

    /// The name of a process, for messages.
    pub fn process_name(&self, process: u32) -> String {
        let name = fs::read_to_string(self.proc.join(process.to_string()).join("comm"));
        name.unwrap_or_default().trim_end().to_owned()
    }
}
