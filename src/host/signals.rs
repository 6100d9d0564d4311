//! Signals: the first one asks to stop, the second one ends the process. HUP, INT, QUIT and TERM mean the same: whoever
//! wants a process to end sends any of them.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag;

use crate::progress::Cancel;

/// Those that ask a process to end, but for a hangup that `nohup` has it ignore.
fn ending() -> impl Iterator<Item = i32> {
    // SigIgn of proc_pid_status(5): a bit for each signal, the first one for number 1.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let nohup = ignored & (1 << (SIGHUP - 1)) != 0;
    [SIGHUP, SIGINT, SIGQUIT, SIGTERM].into_iter().filter(move |signal| !(nohup && *signal == SIGHUP))
}

/// Lets them request `cancel`, and do nothing else however many come: for verbs whose first write is followed by the last
/// one within moments, and which look at the request before the first.
///
/// # Errors
/// Of sigaction(2).
pub fn defer(cancel: &Cancel) -> io::Result<()> {
    ending().try_for_each(|signal| flag::register(signal, cancel.flag()).map(drop))
}

/// Lets them request `cancel`. When it has been requested already, whoever did it, the
/// signal has its default action at once: nobody has to find SIGKILL for a process that does not listen.
pub fn cancel_on_signals(cancel: &Cancel) -> io::Result<()> {
    for signal in ending() {
        // Actions run in the order of registration: asked before it is set, the flag is still down at the
        // first signal. The other way round the first would kill.
        flag::register_conditional_default(signal, cancel.flag())?;
        flag::register(signal, cancel.flag())?;
    }
    Ok(())
}
