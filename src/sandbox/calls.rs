//! Filters of system calls (seccomp(2)), compiled by `seccompiler` for the processors that it knows.

use std::collections::BTreeMap;
use std::io;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// Calls that match `rules` get `matching`, all others the other action. `None`: not for this processor.
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

/// Forbids this thread, and what it starts, to make user namespaces, in which it would have all capabilities again and
/// meet code of the kernel that is written for root. clone3(2) keeps its flags in memory, where no filter sees them:
/// programs are told that there is none, and take clone(2).
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
