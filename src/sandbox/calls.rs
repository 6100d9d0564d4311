//! System-call filters (seccomp(2)), compiled by `seccompiler` for the processors that it supports.

use std::collections::BTreeMap;
use std::io;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// Compiles a filter: calls that match `rules` get the action `matching`, all others the other action. `None`: this processor
/// is not supported.
pub(super) fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    matching: SeccompAction,
    others: SeccompAction,
) -> io::Result<Option<BpfProgram>> {
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else { return Ok(None) };
    let filter = SeccompFilter::new(rules, others, matching, arch).map_err(io::Error::other)?;
    filter.try_into().map(Some).map_err(|error: seccompiler::BackendError| io::Error::other(error))
}

fn errno(number: i32) -> SeccompAction {
    SeccompAction::Errno(number.unsigned_abs())
}

/// Forbids this thread, and its descendants, to create user namespaces, in which they would have all capabilities again and
/// reach kernel code that is written for root. clone3(2) has its flags in memory, where a filter cannot read them: it fails
/// with ENOSYS, and programs fall back to clone(2).
///
/// # Errors
/// Those of seccomp(2).
pub fn forbid_user_namespaces() -> io::Result<()> {
    let flag = u64::from(libc::CLONE_NEWUSER.unsigned_abs());
    let asked = |argument| {
        let equal = SeccompCmpOp::MaskedEq(flag);
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, equal, flag)?;
        SeccompRule::new(vec![condition])
    };
    let rule = asked(0).map_err(io::Error::other)?;
    let flagged = BTreeMap::from([(libc::SYS_clone, vec![rule.clone()]), (libc::SYS_unshare, vec![rule])]);
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    for (rules, number) in [(flagged, libc::EPERM), (unknown, libc::ENOSYS)] {
        if let Some(program) = compile(rules, errno(number), SeccompAction::Allow)? {
            seccompiler::apply_filter(&program).map_err(io::Error::other)?;
        }
    }
    Ok(())
}

/// Permitted calls: memory, threads, time, and files within the limits of landlock.
const PERMITTED: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone3,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mkdirat,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_prlimit64,
    libc::SYS_pselect6,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sync_file_range,
    libc::SYS_sysinfo,
    // To its own process: abort(3).
    libc::SYS_tgkill,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Older calls for the same purposes, which exist only on this processor.
#[cfg(target_arch = "x86_64")]
const OLDER: &[i64] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_getdents,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[];

/// Calls for a connection to a web server, on a socket of one of [`FAMILIES`].
const NETWORK: &[i64] = &[
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Both ends in this process: tokio receives signals by such a pair.
    libc::SYS_socketpair,
];

/// Permitted socket families. Netlink, because the C library asks the kernel for addresses before it sorts those of a name.
/// Not AF_UNIX: services of the machine listen there.
const FAMILIES: [i32; 3] = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Forbids all calls except those that a verb on a bundle makes. Returns a message if this is not possible here.
///
/// A forbidden call fails and does not kill: the C library tries new calls first and falls back.
pub(super) fn restrict(network: bool) -> io::Result<Option<String>> {
    let permitted = permitted(network).map_err(io::Error::other)?;
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let programs = [
        compile(unknown, errno(libc::ENOSYS), SeccompAction::Allow)?,
        compile(permitted, SeccompAction::Allow, errno(libc::EPERM))?,
    ];
    for program in &programs {
        match program {
            Some(program) => seccompiler::apply_filter_all_threads(program).map_err(io::Error::other)?,
            None => {
                let arch = std::env::consts::ARCH;
                return Ok(Some(format!("system calls cannot be filtered on {arch}")));
            }
        }
    }
    Ok(None)
}

fn permitted(network: bool) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let condition =
        |argument, operator, value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let more = if network { NETWORK } else { &[] };
    for call in PERMITTED.iter().chain(OLDER).chain(more) {
        rules.insert(*call, Vec::new());
    }
    // Threads only, no processes.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let clone = condition(0, SeccompCmpOp::MaskedEq(thread), thread)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![clone])?]);
    // Forbids input into the caller's terminal: TIOCSTI, and TIOCLINUX of the console.
    let terminal = [libc::TIOCSTI, libc::TIOCLINUX];
    let other = |number: &libc::c_ulong| condition(1, SeccompCmpOp::Ne, *number & 0xffff_ffff);
    let conditions = terminal.iter().map(other).collect::<Result<Vec<_>, _>>()?;
    rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(conditions)?]);
    if network {
        let of = |family: i32| {
            let equal = condition(0, SeccompCmpOp::Eq, u64::from(family.unsigned_abs()))?;
            SeccompRule::new(vec![equal])
        };
        rules.insert(libc::SYS_socket, FAMILIES.into_iter().map(of).collect::<Result<Vec<_>, _>>()?);
    }
    Ok(rules)
}
