//! The amount of memory that this process may still use.
//!
//! A worker holds a frame and its compressed bytes. If a cgroup, a resource limit or a small machine has no room
//! for them the kernel kills the process, or an allocation fails, and Rust calls `abort`. Either would happen in
//! the middle of a slot, so the room is checked before. It changes with the other processes on the machine, hence
//! the [`RESERVE`].

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};

/// Bytes reserved for everything besides workers: index and record of a bundle, the allocator, page tables.
/// Measured on a bundle of 2 GiB: 9 MiB with one worker.
const RESERVE: u64 = 8 << 20;

/// Address space of a thread besides its buffers, in bytes: its stack (2 MiB) and its share of the allocator's
/// arenas.
const THREAD_BYTES: u64 = 3 << 20;

/// Memory in bytes from which on an explicitly requested number of workers causes a notice.
pub(super) const NOTICE_BYTES: u64 = 256 << 20;

/// As many of `jobs` workers as fit into `room`, each with `bytes`; at least one.
pub(super) fn fit(jobs: NonZeroUsize, bytes: u64, room: Option<u64>) -> NonZeroUsize {
    let Some(room) = room else { return jobs };
    let workers = room.saturating_sub(RESERVE) / bytes.max(1);
    jobs.min(super::at_least_one(usize::try_from(workers).unwrap_or(usize::MAX)))
}

/// Bytes that may still be used; `None` if no limit is known.
pub(super) fn room() -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| field(&text, "MemAvailable:"));
    let machine = machine.map(|kib| kib.saturating_mul(1024));
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let group = groups.lines().filter_map(|line| in_group(line, Path::new("/sys/fs/cgroup"))).min();
    [machine, group, in_limits()].into_iter().flatten().min()
}

/// Bytes left by the limits of this process (setrlimit(2)): address space, and data; `None` if unlimited.
fn in_limits() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let left = |resource, used: &str| {
        let (limit, _) = getrlimit(resource).ok().filter(|(limit, _)| *limit != nix::libc::RLIM_INFINITY)?;
        let left = limit.saturating_sub(field(&status, used)?.saturating_mul(1024));
        // Half is for what is reserved and never touched: stacks and arenas, see [`THREAD_BYTES`].
        Some(left.saturating_sub(THREAD_BYTES) / 2)
    };
    let limits = [left(Resource::RLIMIT_AS, "VmSize:"), left(Resource::RLIMIT_DATA, "VmData:")];
    limits.into_iter().flatten().min()
}

/// Bytes left by the cgroup in a line of `/proc/self/cgroup` (cgroups(7): `id:controllers:path`): the minimum of
/// the group and its parents, in version 1 or 2. A path of another namespace does not exist here; the root of the
/// mount counts in any case.
fn in_group(line: &str, mount: &Path) -> Option<u64> {
    let mut fields = line.splitn(3, ':');
    let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let roots: Vec<PathBuf> = match (id, controllers) {
        ("0", "") => vec![mount.to_owned(), mount.join("unified")],
        _ if controllers.split(',').any(|name| name == "memory") => vec![mount.join("memory")],
        _ => return None,
    };
    let path = Path::new(path.trim_start_matches('/'));
    let places = roots.iter().flat_map(|root| path.ancestors().map(|part| root.join(part)));
    places.filter_map(|place| left_in(&place)).min()
}

/// Bytes that a group may still use. Its page cache counts as free: the kernel reclaims that before it kills.
fn left_in(group: &Path) -> Option<u64> {
    let text = |name: &str| fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes")).unwrap_or_default();
    let stat = text("memory.stat").unwrap_or_default();
    let cache = |kind: &str| {
        field(&stat, &format!("total_{kind}_file")).or_else(|| field(&stat, &format!("{kind}_file")))
    };
    let cache = cache("active").unwrap_or_default().saturating_add(cache("inactive").unwrap_or_default());
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

/// The number after a word at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split_ascii_whitespace().next() == Some(name))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn at_least_one_worker_runs_and_more_if_they_fit() {
        let jobs = |room| fit(super::super::at_least_one(12), 2 * MIB, room).get();
        assert_eq!(jobs(None), 12);
        for (room, fits) in [(0, 1), (RESERVE, 1), (RESERVE + 2 * MIB, 1), (RESERVE + 7 * MIB, 3)] {
            assert_eq!(jobs(Some(room)), fits, "{room}");
        }
        assert_eq!(jobs(Some(u64::MAX)), 12);
        assert!(room().is_some(), "Linux says what is available");
    }

    /// Both versions of cgroups, limits of parent groups, and missing paths.
    #[test]
    fn the_smallest_limit_applies_and_page_cache_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let make = |group: &str, files: &[(&str, &str)]| {
            let group = dir.path().join(group);
            fs::create_dir_all(&group).unwrap();
            files.iter().for_each(|(name, text)| fs::write(group.join(name), text).unwrap());
        };
        let v2 =
            |max, current, stat| [("memory.max", max), ("memory.current", current), ("memory.stat", stat)];
        make("a", &v2("1000", "600", "anon 100\nactive_file 100\ninactive_file 300\n"));
        make("a/b", &v2("max", "500", "active_file 100\n"));
        assert_eq!(in_group("0::/a/b", dir.path()), Some(800));
        assert_eq!(in_group("0::/a/b/gone", dir.path()), Some(800));
        assert_eq!(in_group("0::/../elsewhere", dir.path()), None);
        make("a/b", &v2("300", "500", "active_file 100\n"));
        assert_eq!(in_group("0::/a/b", dir.path()), Some(0), "over its limit");
        make(
            "memory/x",
            &[
                ("memory.limit_in_bytes", "4096\n"),
                ("memory.usage_in_bytes", "4096\n"),
                ("memory.stat", "active_file 1\ntotal_active_file 1000\ntotal_inactive_file 96\n"),
            ],
        );
        assert_eq!(in_group("5:cpu,memory:/x", dir.path()), Some(1096));
        assert_eq!(in_group("5:cpu:/x", dir.path()), None);
        assert_eq!(in_group("garbage", dir.path()), None);
    }
}
