//! What a signal does to a program that runs labs.

use std::io::{self, Write};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// From now on SIGHUP, SIGINT and SIGTERM call `clean`, print a line, and end this program with 128 + n. A QEMU ends with
/// the program that started it.
///
/// # Errors
///
/// If the host gives no descriptor or thread.
pub fn end_on_signals(clean: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                clean();
                // Nobody is left to tell if standard error is gone.
                let _ = writeln!(io::stderr(), "lab: interrupted by signal {signal}");
                exit(128 + signal);
            }
        })
        .map(drop)
}

#[expect(
    clippy::exit,
    reason = "a signal ends the program, wherever its main thread is"
)]
fn exit(code: i32) -> ! {
    std::process::exit(code)
}
