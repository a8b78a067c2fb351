//! The client's terminal while the workload has it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use protocol::WindowSize;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal that passes every key on instead of interpreting it; as it was before once this is dropped.
#[derive(Debug)]
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Puts standard input into raw mode if it is a terminal.
    ///
    /// # Errors
    ///
    /// As tcsetattr(3) says.
    pub fn enter() -> io::Result<Option<Self>> {
        let terminal = rustix::stdio::stdin();
        if !isatty(terminal) {
            return Ok(None);
        }
        let before = tcgetattr(terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        restore_in_panics(before.clone());
        tcsetattr(terminal, OptionalActions::Flush, &raw)?;
        Ok(Some(Self { before }))
    }
}

/// A panic ends this program without dropping anything: its report should find a terminal that shows it.
fn restore_in_panics(before: Termios) {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // The panic is what has to be told, not this.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &before);
        report(panic);
    }));
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before) {
            tracing::warn!(%error, "the terminal is not as it was");
        }
    }
}

/// The size of the window of a terminal; nothing if it is none.
#[must_use]
pub fn window_size(terminal: BorrowedFd<'_>) -> Option<WindowSize> {
    let size = tcgetwinsize(terminal.as_fd()).ok()?;
    Some(WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}
