//! A parent for the program, where the workload wants one: process 1 of the container, which passes signals on and reaps.
//!
//! It is the process that built the container, and stays a copy of the agent. It has the program's user, capabilities and filter.

use std::os::fd::BorrowedFd;

use protocol::StartFailure;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};

use crate::step::Step as _;
use crate::sys::{self, Parent, Side};

/// What a shell adds to the number of the signal that ended a program.
const SIGNALLED: u8 = 128;

/// Lets a child become the program by `execute`, and attends it. Returns in the child only, if that did not become the program.
pub(super) fn attend(has_terminal: bool, execute: impl FnOnce() -> StartFailure) -> StartFailure {
    match begin(has_terminal) {
        Ok(()) => execute(),
        Err(failure) => failure,
    }
}

fn begin(has_terminal: bool) -> Result<(), StartFailure> {
    let step = || "making the program's process".to_owned();
    sys::block_signals();
    match sys::clone(0, None, Parent::Caller).step(step)? {
        Side::Parent(program) => {
            // Whoever holds the channel is not the program yet.
            let _ = sys::close_from(3);
            live(program)
        }
        Side::Child => {
            // What is typed at the terminal is for the program, once.
            if has_terminal {
                rustix::process::setpgid(None, None).step(step)?;
                take_terminal().step(step)?;
            }
            sys::reset_signals();
            Ok(())
        }
    }
}

fn take_terminal() -> rustix::io::Result<()> {
    let terminal: BorrowedFd<'_> = rustix::stdio::stdin();
    rustix::termios::tcsetpgrp(terminal, rustix::process::getpgrp())
}

/// Waits for signals, and passes them on, until the program has ended. All are blocked.
fn live(program: Pid) -> ! {
    loop {
        match sys::next_signal() {
            Some(Signal::CHILD) => {
                if let Some(code) = reap(program) {
                    sys::exit_with(code);
                }
            }
            // The program may just have ended.
            Some(signal) => drop(rustix::process::kill_process(program, signal)),
            None => (),
        }
    }
}

/// Takes the exits of all children that have ended. Gives the program's, as a shell would.
fn reap(program: Pid) -> Option<u8> {
    let mut code = None;
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == program => {
                let signal = status.terminating_signal();
                let signal = signal.and_then(|signal| u8::try_from(signal).ok());
                let exit = status
                    .exit_status()
                    .and_then(|code| u8::try_from(code).ok());
                code = exit.or(signal.map(|signal| SIGNALLED.saturating_add(signal)));
            }
            Ok(Some(_)) | Err(Errno::INTR) => (),
            Ok(None) | Err(_) => return code,
        }
    }
}
