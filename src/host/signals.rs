//! Signals: the first one asks to stop, the second one ends the process.

use std::io;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::progress::Cancel;

/// Lets `SIGINT` and `SIGTERM` request `cancel`. When it has been requested already, whoever did it, the
/// signal has its default action at once: nobody has to find SIGKILL for a process that does not listen.
pub fn cancel_on_signals(cancel: &Cancel) -> io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // Actions run in the order of registration: asked before it is set, the flag is still down at the
        // first signal. The other way round the first would kill.
        flag::register_conditional_default(signal, cancel.flag())?;
        flag::register(signal, cancel.flag())?;
    }
    Ok(())
}
