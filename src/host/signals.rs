//! Signals: the first requests a stop, the second ends the process. HUP, INT, QUIT and TERM have the same meaning: each of
//! them is sent to end a process.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag;

use crate::progress::Cancel;

/// Signals that request the end of a process; without HUP if `nohup` has set it to be ignored.
fn ending() -> impl Iterator<Item = i32> {
    // SigIgn of proc_pid_status(5): one bit per signal, the lowest for number 1.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let nohup = ignored & (1 << (SIGHUP - 1)) != 0;
    [SIGHUP, SIGINT, SIGQUIT, SIGTERM].into_iter().filter(move |signal| !(nohup && *signal == SIGHUP))
}

/// Makes every such signal request `cancel` and nothing else: for verbs that check the request before their first write, and
/// finish their writes within moments.
///
/// # Errors
/// Those of sigaction(2).
pub fn defer(cancel: &Cancel) -> io::Result<()> {
    ending().try_for_each(|signal| flag::register(signal, cancel.flag()).map(drop))
}

/// Makes the first such signal request `cancel`. If a stop has been requested already, for whatever reason, a signal has its
/// default action: a process that does not react needs no SIGKILL.
pub fn cancel_on_signals(cancel: &Cancel) -> io::Result<()> {
    for signal in ending() {
        // Actions run in the order of registration: the flag is tested before it is set, so at the first signal it is still
        // clear. In the other order the first signal would kill.
        flag::register_conditional_default(signal, cancel.flag())?;
        flag::register(signal, cancel.flag())?;
    }
    Ok(())
}
