//! Every device through which a range of bytes can be reached.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use super::{Disk, KernelQuery};
use crate::device::{DeviceNumber, Identity};
use crate::host::kernel::{Kernel, Loop, Node, same_file};
use crate::units::{ByteOffset, Extent};

/// A device that shows some of the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) node: Node,
    /// What is stacked on it, apart from its own partitions by kpartx.
    pub(super) foreign: Vec<String>,
    /// Whether an exclusive open of it speaks of these bytes alone: not that of a disk with partitions, of which others
    /// may be in use, and not that of a partition whose disk is held by kpartx.
    pub(super) exclusive: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Ways {
    pub(super) devices: Vec<Way>,
    /// Devices that may be further ways, which could not be found out.
    pub(super) doubts: Vec<String>,
    seen: BTreeSet<DeviceNumber>,
}

/// Bytes in one thing that loop devices may lie over.
struct Range {
    inside: Identity,
    /// Its path, for loop devices that do not tell what they are attached to.
    path: PathBuf,
    extent: Extent,
    /// The partition that it is, where this thing carries the table.
    number: Option<u32>,
}

/// A loop device and what it told of what lies below it.
type Attached = (Loop, io::Result<Identity>);

impl Ways {
    pub(super) fn find(
        kernel: &Kernel,
        ask: &dyn KernelQuery,
        disk: &Disk,
        number: u32,
        extent: Extent,
    ) -> io::Result<Self> {
        let mut ways = Self::default();
        let attached: Vec<Attached> =
            kernel.loops().into_iter().map(|l| (l.clone(), ask.below(&l.node.path))).collect();
        let number = Some(number);
        let mut open = match disk {
            Disk::File(path) => {
                vec![Range { inside: Identity::of(path)?, path: path.clone(), extent, number }]
            }
            Disk::Block(node) => ways.device(kernel, node, extent, number)?,
        };
        if ask.holds_disk() {
            ways.devices.iter_mut().for_each(|way| way.exclusive = false);
        }
        while let Some(range) = open.pop() {
            // Down, where this is a loop device itself: others may lie over the same file.
            open.extend(attached.iter().filter_map(|(l, below)| lower(l, below, &range)));
            for (l, below) in &attached {
                let over = match below {
                    Ok(below) => *below == range.inside,
                    Err(e) if cannot_write(e) => false,
                    Err(e) => ways.guess(kernel, l, &range, e),
                };
                let inside = if over { shifted(l, range.extent) } else { None };
                if let Some(inside) = inside {
                    let number = range.number.filter(|_| l.extent.at.0 == 0);
                    open.extend(ways.device(kernel, &l.node, inside, number)?);
                }
            }
        }
        Ok(ways)
    }

    /// Adds a device and its partitions that show `extent` of it; returns what loop devices may lie over.
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
        self.devices.push(Way { node: node.clone(), foreign: foreign(node.number), exclusive });
        let mut ranges = vec![range(node, extent, number)];
        for part in partitions {
            let Some(inside) = part.partition.and_then(|(_, own)| within(own, extent)) else { continue };
            ranges.push(range(&part, inside, None));
            self.seen.insert(part.number);
            self.devices.push(Way {
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

    /// Whether a loop device that does not tell what it is attached to lies over `range`, by the path in sysfs. Where
    /// that path leads nowhere here, its size may rule it out; else it remains a doubt.
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
                "{} may lie over the same bytes, and does not tell ({problem}); it is attached to {}, which is not seen here",
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

/// What lies below a range of a loop device; `None` where the range is not one of that device.
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

/// The size in bytes of a loop device over something of `below` bytes; the kernel counts in sectors of 512.
fn shown(l: &Loop, below: u64) -> u64 {
    let rest = below.saturating_sub(l.extent.at.0);
    let size = if l.extent.len == 0 { rest } else { rest.min(l.extent.len) };
    size / 512 * 512
}

/// Where `extent` of what lies below lies in the loop device; `None` where it shows nothing of it.
fn shifted(l: &Loop, extent: Extent) -> Option<Extent> {
    within(Extent { at: l.extent.at, len: if l.extent.len == 0 { u64::MAX } else { l.extent.len } }, extent)
}

/// The part of `extent` that lies in `window`, counted from the beginning of the window.
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
        /// Byte by byte: what the window shows of the range is what both hold.
        #[test]
        fn a_window_shows_what_both_hold(a in 0u64..12, b in 0u64..12, c in 0u64..12, d in 0u64..12) {
            let of = |at, len| Extent { at: ByteOffset(at), len };
            let expected: Vec<u64> =
                (0..40).filter(|&n| n >= a && n < a + b && n >= c && n < c + d).map(|n| n - a).collect();
            let found = within(of(a, b), of(c, d)).map(|e| (e.at.0..e.at.0 + e.len).collect::<Vec<_>>());
            prop_assert_eq!(found.unwrap_or_default(), expected);
        }
    }
}
