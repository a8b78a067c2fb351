//! Notices that the bench is to end, without dying of it: children and files are cleared away first.
//!
//! A handler and not a blocked signal, as elsewhere: what is measured must start as it does for a user, and children
//! inherit a mask but no handler.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

use libc::{SIGHUP, SIGINT, SIGTERM, c_int, c_void, siginfo_t};
use vmm_sys_util::signal::register_signal_handler;

use super::Stop;

/// The first signal that came. A handler can reach nothing but a static.
static CAUGHT: AtomicI32 = AtomicI32::new(NONE);
const NONE: c_int = 0;

extern "C" fn note(signal: c_int, _: *mut siginfo_t, _: *mut c_void) {
    // Losing the race means that another signal came first.
    let _ = CAUGHT.compare_exchange(NONE, signal, Ordering::Relaxed, Ordering::Relaxed);
}

/// Tells whether SIGINT, SIGTERM or SIGHUP has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interrupt(());

impl Interrupt {
    /// Starts to watch. From here on these signals end nothing by themselves; a blocking call returns early.
    pub(super) fn watch() -> io::Result<Self> {
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            register_signal_handler(signal, note).map_err(io::Error::from)?;
        }
        Ok(Self(()))
    }

    /// Fails once a signal has come.
    pub(super) fn check(self) -> Result<(), Stop> {
        match self.caught() {
            None => Ok(()),
            Some(signal) => Err(Stop::Interrupted(signal)),
        }
    }

    /// The signal that came.
    pub(super) fn caught(self) -> Option<u8> {
        match CAUGHT.load(Ordering::Relaxed) {
            NONE => None,
            signal => u8::try_from(signal).ok(),
        }
    }
}
