//! Runs the binary on a pseudo-terminal that is its controlling terminal, as a shell would.
//!
//! `setsid --ctty` (util-linux) makes the session: the only way to it without unsafe code. It does not fork here, so the
//! child's process id is that of `vmm` itself.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

use crate::Finished;
use crate::process::{Stream, wait_readable};

/// A command running on a terminal of its own.
#[derive(Debug)]
pub struct OnTerminal {
    described: String,
    child: Child,
    pid: Pid,
    ended: OwnedFd,
    keyboard: File,
    /// Our own hold on the terminal's inner end: keeps its settings readable after the command has ended. Until it is let go of, the
    /// screen does not end.
    inner: Option<File>,
    settings_before: String,
    screen: Stream,
    started: Instant,
    deadline: Instant,
    reaped: bool,
}

impl OnTerminal {
    pub(crate) fn start(
        program: &Path,
        arguments: &[OsString],
        variables: &[(&str, &OsStr)],
        limit: Duration,
    ) -> Self {
        let outer = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("a terminal can be made");
        grantpt(&outer).expect("a new terminal can be granted");
        unlockpt(&outer).expect("a new terminal can be unlocked");
        let name = ptsname(&outer, Vec::new()).expect("a terminal has a name");
        let no_controlling_terminal =
            i32::try_from(OFlags::NOCTTY.bits()).expect("O_NOCTTY is a small number");
        let inner = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(no_controlling_terminal)
            .open(OsStr::from_bytes(name.to_bytes()))
            .expect("a terminal can be opened");
        tcsetwinsize(
            &inner,
            Winsize {
                ws_row: 33,
                ws_col: 99,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )
        .expect("a terminal has a size");

        let end = || Stdio::from(inner.try_clone().expect("a descriptor can be duplicated"));
        let mut command = Command::new("setsid");
        command
            .arg("--ctty")
            .arg(program)
            .args(arguments)
            .envs(variables.iter().copied());
        command
            .env("TERM", "xterm")
            .stdin(end())
            .stdout(end())
            .stderr(end());
        let described = format!("{command:?}");
        let started = Instant::now();
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {described}: {error}"));
        let pid = Pid::from_child(&child);
        Self {
            described,
            pid,
            ended: pidfd_open(pid, PidfdFlags::empty()).expect("a child of ours has a pidfd"),
            child,
            settings_before: settings(&inner),
            inner: Some(inner),
            screen: Stream::collect(outer.try_clone().expect("a descriptor can be duplicated")),
            keyboard: File::from(outer),
            started,
            deadline: started + limit,
            reaped: false,
        }
    }

    /// Returns the process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Types keys.
    pub fn press(&mut self, keys: &[u8]) {
        self.keyboard
            .write_all(keys)
            .expect("a terminal takes keys");
    }

    /// Makes the window another size, as dragging its corner would.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.keyboard, size).expect("a terminal can be resized");
    }

    /// Sends a signal to `vmm` alone.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).expect("a running child can be signalled");
    }

    /// Waits until the screen has shown `needle`.
    pub fn wait_for(&self, needle: &str) {
        if !self.screen.wait_for(needle.as_bytes(), self.deadline) {
            self.give_up(&format!("showing `{needle}`"));
        }
    }

    /// Waits until the terminal is set otherwise than it was found: raw, for a workload of its own.
    pub fn settings_differ(&self) -> bool {
        self.inner.as_ref().map(settings) != Some(self.settings_before.clone())
    }

    /// Waits for the end; the terminal must be set as it was found.
    pub fn finish(self) -> Finished {
        let before = self.settings_before.clone();
        let (finished, after) = self.finish_anyhow();
        assert!(
            before == after,
            "the terminal was not restored\nbefore: {before}\nafter: {after}\n{finished:?}"
        );
        finished
    }

    fn finish_anyhow(mut self) -> (Finished, String) {
        if !wait_readable(&self.ended, self.deadline) {
            self.give_up("its end");
        }
        let status = self
            .child
            .wait()
            .expect("a child that has ended can be reaped");
        self.reaped = true;
        let after = self.inner.take().as_ref().map(settings);
        if !self.screen.wait_closed(self.deadline) {
            self.give_up("letting go of its terminal");
        }
        let finished = Finished::new(
            self.described.clone(),
            status,
            self.screen.bytes(),
            self.started.elapsed(),
        );
        (finished, after.unwrap_or_default())
    }

    fn give_up(&self, awaited: &str) -> ! {
        let shown = self.screen.bytes();
        let shown = String::from_utf8_lossy(&shown);
        panic!(
            "{} did not come to {awaited} within {:?}\nscreen:\n{shown}",
            self.described,
            self.started.elapsed()
        );
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        if !self.reaped {
            // The group may be gone already; then there is nothing to end.
            let _ = kill_process_group(self.pid, Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

fn settings(terminal: &File) -> String {
    let termios = tcgetattr(terminal).expect("a terminal has settings");
    format!("{termios:?}")
}
