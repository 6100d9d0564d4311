//! Restriction of files, ports and signals, by landlock(7).

use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};

use super::Kept;

/// The newest ABI that is requested; an older kernel restricts what it can.
const NEWEST: ABI = ABI::V6;

/// Drops all rights except `kept`. Returns a message about those that this kernel cannot drop.
pub(super) fn restrict(kept: &Kept) -> io::Result<Option<String>> {
    let failed = |error: landlock::RulesetError| io::Error::other(error);
    let all = AccessFs::from_all(NEWEST);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .and_then(|rules| rules.handle_access(AccessNet::BindTcp))
        .and_then(|rules| rules.scope(Scope::AbstractUnixSocket | Scope::Signal))
        .map_err(failed)?;
    if !kept.network {
        rules = rules.handle_access(AccessNet::ConnectTcp).map_err(failed)?;
    }
    let mut rules = rules.create().map_err(failed)?;
    // Nothing may be executed, not even a file that may be read.
    let read = AccessFs::from_read(NEWEST) & !AccessFs::Execute;
    // IoctlDev on readable files: the backing file of a loop device is queried by ioctl.
    let read = read | AccessFs::IoctlDev;
    for path in kept.readable() {
        rules = allow(rules, &path, read).map_err(failed)?;
    }
    let special = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock | AccessFs::MakeFifo;
    let write = all & !AccessFs::Execute & !special & !AccessFs::MakeSym & !AccessFs::Refer;
    for path in kept.writable() {
        rules = allow(rules, path, write).map_err(failed)?;
    }
    let status = rules.restrict_self().map_err(failed)?;
    Ok(match status.ruleset {
        RulesetStatus::NotEnforced => Some(
            "this kernel has no landlock (5.13, CONFIG_SECURITY_LANDLOCK): files stay within reach"
                .to_owned(),
        ),
        // Files matter most; ports and signals are forbidden by the system-call filter too.
        _ => None,
    })
}

/// Adds rules for the paths that exist; a missing one needs no rule.
fn allow(
    rules: RulesetCreated,
    path: &std::path::Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, landlock::RulesetError> {
    let Ok(file) = PathFd::new(path) else { return Ok(rules) };
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
    rules.add_rule(PathBeneath::new(file, access))
}
