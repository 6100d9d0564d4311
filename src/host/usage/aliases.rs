//! Aliases of a range of bytes: every device that exposes some of it.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use super::{Disk, KernelQuery};
use crate::device::{DeviceNumber, Identity};
use crate::host::kernel::{Kernel, Loop, Node, same_file};
use crate::units::{ByteOffset, Extent};

/// A device that exposes some of the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alias {
    pub(super) node: Node,
    /// Devices stacked on it, except for its own partitions by kpartx.
    pub(super) foreign: Vec<String>,
    /// Whether an exclusive open of it is about these bytes alone. It is not for a disk with partitions, since others of
    /// them may be in use, nor for a partition whose disk is held by kpartx.
    pub(super) exclusive: bool,
}

/// All aliases of a range.
#[derive(Debug, Default)]
pub(super) struct Aliases {
    pub(super) devices: Vec<Alias>,
    /// Devices that may be further aliases; it could not be found out.
    pub(super) doubts: Vec<String>,
    seen: BTreeSet<DeviceNumber>,
}

/// A range of a file or device that loop devices may lie over.
struct Range {
    inside: Identity,
    /// Its path, for loop devices that do not report their backing file.
    path: PathBuf,
    extent: Extent,
    /// Number of the partition that the range is, if this device holds the table; else `None`.
    number: Option<u32>,
}

/// A loop device and its backing file, as far as it reports it.
type Attached = (Loop, io::Result<Identity>);

impl Aliases {
    pub(super) fn find(
        kernel: &Kernel,
        ask: &dyn KernelQuery,
        disk: &Disk,
        number: u32,
        extent: Extent,
    ) -> io::Result<Self> {
        let mut aliases = Self::default();
        let attached: Vec<Attached> =
            kernel.loops().into_iter().map(|l| (l.clone(), ask.below(&l.node.path))).collect();
        let number = Some(number);
        let mut open = match disk {
            Disk::File(path) => {
                vec![Range { inside: Identity::of(path)?, path: path.clone(), extent, number }]
            }
            Disk::Block(node) => aliases.device(kernel, node, extent, number)?,
        };
        if ask.holds_disk() {
            aliases.devices.iter_mut().for_each(|alias| alias.exclusive = false);
        }
        while let Some(range) = open.pop() {
            // If this is a loop device itself, continue below it: other loop devices may lie over the same file.
            open.extend(attached.iter().filter_map(|(l, below)| lower(l, below, &range)));
            for (l, below) in &attached {
                let over = match below {
                    Ok(below) => *below == range.inside,
                    Err(e) if cannot_write(e) => false,
                    Err(e) => aliases.guess(kernel, l, &range, e),
                };
                let inside = if over { shifted(l, range.extent) } else { None };
                if let Some(inside) = inside {
                    let number = range.number.filter(|_| l.extent.at.0 == 0);
                    open.extend(aliases.device(kernel, &l.node, inside, number)?);
                }
            }
        }
        Ok(aliases)
    }

    /// Adds a device, and those of its partitions that expose `extent`; returns the ranges that loop devices may lie over.
    fn device(
        &mut self,
        kernel: &Kernel,
        node: &Node,
        extent: Extent,
        number: Option<u32>,
    ) -> io::Result<Vec<Range>> {
        if !self.seen.insert(node.number) {
            return Ok(Vec::new());
        }
        let partitions = kernel.partitions(node.number)?;
        let mapped = kernel.mapped_partitions(node.number);
        let is_mapped = |holder: &String| mapped.iter().any(|(_, part)| part.path.ends_with(holder));
        let foreign = |number| {
            let mut holders = kernel.holders(number);
            holders.retain(|holder| !is_mapped(holder));
            holders
        };
        let exclusive = partitions.is_empty() && mapped.is_empty();
        self.devices.push(Alias { node: node.clone(), foreign: foreign(node.number), exclusive });
        let mut ranges = vec![range(node, extent, number)];
        for part in partitions {
            let Some(inside) = part.partition.and_then(|(_, own)| within(own, extent)) else { continue };
            ranges.push(range(&part, inside, None));
            self.seen.insert(part.number);
            self.devices.push(Alias {
                foreign: foreign(part.number),
                exclusive: mapped.is_empty(),
                node: part,
            });
        }
        for (_, part) in mapped.iter().filter(|(own, _)| Some(*own) == number) {
            let whole = Extent { at: ByteOffset(0), len: extent.len };
            ranges.extend(self.device(kernel, part, whole, None)?);
        }
        Ok(ranges)
    }

    /// Whether a loop device that does not report its backing file lies over `range`, by the path in sysfs. If that path
    /// leads nowhere here, the size of the device may rule it out; else it becomes a doubt.
    fn guess(&mut self, kernel: &Kernel, l: &Loop, range: &Range, problem: &io::Error) -> bool {
        let named = match range.inside {
            Identity::File(..) => same_file(&l.backing, &range.path),
            Identity::Block(number) => {
                kernel.node(number).is_ok_and(|node| kernel.is_same(&l.backing, &node))
            }
        };
        if named {
            return true;
        }
        let below = match range.inside {
            Identity::File(..) => std::fs::metadata(&range.path).ok().map(|found| found.len()),
            Identity::Block(number) => kernel.size(number),
        };
        let possible = match (below, kernel.size(l.node.number)) {
            (Some(below), Some(size)) => shown(l, below) == size,
            _ => true,
        };
        let leads_nowhere = std::fs::metadata(kernel.in_dev(&l.backing)).is_err();
        if possible && leads_nowhere && shifted(l, range.extent).is_some() {
            self.doubts.push(format!(
                "{} may overlap with the same bytes, which cannot be determined ({problem}); it is attached to {}, which is not seen here",
                l.node.path.display(),
                l.backing.display()
            ));
        }
        false
    }
}

/// Whether a loop device that gives this error is attached to a file of a FUSE file system whose server is gone. Such a
/// connection never comes back (`fuse_abort_conn` in fs/fuse/dev.c): nothing can be written by way of it, whatever the
/// file was, and a server that crashed beside us must not forbid our upgrades.
fn cannot_write(problem: &io::Error) -> bool {
    problem.raw_os_error() == Some(nix::libc::ENOTCONN)
}

/// The range below a range of a loop device; `None` if the range belongs to another device.
fn lower(l: &Loop, below: &io::Result<Identity>, range: &Range) -> Option<Range> {
    if range.inside != Identity::Block(l.node.number) {
        return None;
    }
    let inside = below.as_ref().map_or_else(|_| Identity::of(&l.backing).ok(), |below| Some(*below))?;
    let at = ByteOffset(l.extent.at.0.saturating_add(range.extent.at.0));
    let number = range.number.filter(|_| l.extent.at.0 == 0);
    Some(Range { inside, path: l.backing.clone(), extent: Extent { at, len: range.extent.len }, number })
}

fn range(node: &Node, extent: Extent, number: Option<u32>) -> Range {
    Range { inside: Identity::Block(node.number), path: node.path.clone(), extent, number }
}

/// The size in bytes of a loop device over a file of `below` bytes; the kernel counts in sectors of 512 bytes.
fn shown(l: &Loop, below: u64) -> u64 {
    let rest = below.saturating_sub(l.extent.at.0);
    let size = if l.extent.len == 0 { rest } else { rest.min(l.extent.len) };
    size / 512 * 512
}

/// The part of the loop device that exposes `extent` of its backing file; `None` if it exposes nothing of it.
fn shifted(l: &Loop, extent: Extent) -> Option<Extent> {
    within(Extent { at: l.extent.at, len: if l.extent.len == 0 { u64::MAX } else { l.extent.len } }, extent)
}

/// The part of `extent` that lies in `window`, relative to the start of the window.
fn within(window: Extent, extent: Extent) -> Option<Extent> {
    let end = |e: Extent| e.at.0.saturating_add(e.len);
    let (from, to) = (window.at.0.max(extent.at.0), end(window).min(end(extent)));
    (from < to).then(|| Extent { at: ByteOffset(from - window.at.0), len: to - from })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Compared byte by byte: a window shows the bytes that are in both ranges.
        #[test]
        fn a_window_shows_the_intersection(a in 0u64..12, b in 0u64..12, c in 0u64..12, d in 0u64..12) {
            let of = |at, len| Extent { at: ByteOffset(at), len };
            let expected: Vec<u64> =
                (0..40).filter(|&n| n >= a && n < a + b && n >= c && n < c + d).map(|n| n - a).collect();
            let found = within(of(a, b), of(c, d)).map(|e| (e.at.0..e.at.0 + e.len).collect::<Vec<_>>());
            prop_assert_eq!(found.unwrap_or_default(), expected);
        }
    }
}
