//! A terminal for progress bars that nothing waits for.
//!
//! A terminal accepts nothing while its user has stopped it (Ctrl-S), while the other end of a remote shell is gone, or while
//! a serial line is slow. Each drawing is offered as a whole to the thread that writes to standard error, and is dropped if
//! earlier ones still wait: half an escape sequence would be worse than a bar that is out of date.

use std::io::{self, Write};
use std::sync::Mutex;

use indicatif::{ProgressDrawTarget, TermLike};

use super::outlet::{self, Outlet};
use crate::workers::lock;

/// Number of columns if the terminal does not report it.
const COLUMNS: u16 = 80;
/// Drawings per second.
const RATE: u8 = 20;

/// Standard error as a target for bars.
pub(super) fn target() -> ProgressDrawTarget {
    let terminal = Terminal { outlet: outlet::err(), drawing: Mutex::default() };
    ProgressDrawTarget::term_like_with_hz(Box::new(terminal), RATE)
}

/// Number of columns of standard error.
pub(super) fn columns() -> u16 {
    outlet::err().columns().unwrap_or(COLUMNS)
}

/// Collects a drawing between two calls of `flush`, by the control sequences of ECMA-48.
struct Terminal {
    outlet: &'static Outlet,
    drawing: Mutex<Vec<u8>>,
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Terminal")
    }
}

impl Terminal {
    fn put(&self, text: std::fmt::Arguments<'_>) -> io::Result<()> {
        lock(&self.drawing).write_fmt(text)
    }

    fn step(&self, by: usize, letter: char) -> io::Result<()> {
        if by == 0 { Ok(()) } else { self.put(format_args!("\x1b[{by}{letter}")) }
    }
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        self.outlet.columns().unwrap_or(COLUMNS)
    }

    fn move_cursor_up(&self, by: usize) -> io::Result<()> {
        self.step(by, 'A')
    }

    fn move_cursor_down(&self, by: usize) -> io::Result<()> {
        self.step(by, 'B')
    }

    fn move_cursor_right(&self, by: usize) -> io::Result<()> {
        self.step(by, 'C')
    }

    fn move_cursor_left(&self, by: usize) -> io::Result<()> {
        self.step(by, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.put(format_args!("{text}\n"))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.put(format_args!("{text}"))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.put(format_args!("\r\x1b[2K"))
    }

    fn flush(&self) -> io::Result<()> {
        let drawing = std::mem::take(&mut *lock(&self.drawing));
        if !drawing.is_empty() {
            self.outlet.offer_drawing(&drawing);
        }
        Ok(())
    }
}
