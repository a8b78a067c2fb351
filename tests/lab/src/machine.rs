//! Boots a lab, runs its command and takes it down.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::FdFlags;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::parts::host;
use crate::pulse;
use crate::{LabError, Parts, Tree};

const INIT: &str = include_str!("init.sh");
const SESSION: &str = include_str!("session.sh");

/// Where Debian's static busybox lies.
const BUSYBOX: &str = "/bin/busybox";
/// How much of the lab kernel's log is kept.
const LOG_BYTES: usize = 256 << 10;
/// How long a lab may take to go once its command has ended.
const GOODBYE: Duration = Duration::from_secs(20);

/// What the lab's clock counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The time here.
    Time,
    /// Instructions of the one emulated processor, a nanosecond each; idle time passes at once.
    Instructions,
}

/// A lab that is about to boot.
#[derive(Debug, Clone)]
pub struct Lab {
    /// What it is made of.
    pub parts: Parts,
    /// The files in it.
    pub tree: Tree,
    /// What its clock counts.
    pub clock: Clock,
    /// How much memory it has; everything in its tree takes of it.
    pub memory_mib: u32,
    /// How many processors it has; one if it counts instructions.
    pub cpus: u32,
    /// Whether it has bridges and rules of nftables.
    pub has_bridges: bool,
    /// Environment variables of the command.
    pub environment: Vec<(String, String)>,
    /// Where the command starts.
    pub directory: PathBuf,
    /// How long it may take from here, boot included.
    pub limit: Duration,
}

/// How a lab's command ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its exit code; 128 + n for signal n.
    pub code: u8,
    /// What the lab's kernel said.
    pub kernel_log: String,
}

impl Lab {
    /// A lab with nothing in it but a shell.
    ///
    /// # Errors
    ///
    /// If a part is missing.
    pub fn new() -> Result<Self, LabError> {
        Ok(Self {
            parts: Parts::find()?,
            tree: Tree::new(),
            clock: Clock::Time,
            memory_mib: 3072,
            has_bridges: false,
            cpus: 1,
            environment: vec![
                ("HOME".to_owned(), "/root".to_owned()),
                (
                    "PATH".to_owned(),
                    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/lab/bin"
                        .to_owned(),
                ),
            ],
            directory: "/".into(),
            limit: Duration::from_secs(120),
        })
    }

    /// Puts in a `vmm` at the path `inside`, with the guest image that belongs to it.
    ///
    /// # Errors
    ///
    /// If one of them is not there.
    pub fn put_vmm(&mut self, vmm: &Path, inside: &Path) -> Result<(), LabError> {
        self.tree.program(vmm, inside)?;
        let beside = |vmm: &Path| vmm.with_file_name("").join("../share/vmm/guest");
        let guest = beside(vmm);
        let failed = |source| LabError::File {
            path: guest.clone(),
            source,
        };
        let current = fs::canonicalize(guest.join("current")).map_err(failed)?;
        let version = current.file_name().unwrap_or_default();
        let inside = beside(inside);
        self.tree.copy(&current, inside.join(version))?;
        self.tree.symlink(inside.join("current"), version);
        Ok(())
    }

    /// Puts in this program as `/usr/bin/lab`, whose `lab time` measures.
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn put_this_program(&mut self) -> Result<(), LabError> {
        let program = std::env::current_exe().map_err(host("find this program"))?;
        self.tree.program(program, "/usr/bin/lab")
    }

    /// Boots, runs `command`, which is found by the lab's own PATH, and copies what it prints.
    ///
    /// # Errors
    ///
    /// If the lab could not be made, or ended before its command. How the command ended is no error.
    pub fn run<A: AsRef<OsStr>>(
        &self,
        command: &[A],
        stdout: &mut (dyn Write + Send),
        stderr: &mut (dyn Write + Send),
    ) -> Result<Ended, LabError> {
        let initramfs = self.initramfs(command)?;
        let mut lines = Vec::new();
        // The last one is QEMU's monitor.
        for _ in 0..5 {
            lines.push(UnixStream::pair().map_err(host("make a socket"))?);
        }
        let (ours, theirs): (Vec<_>, Vec<_>) = lines.into_iter().unzip();
        let deadline = Instant::now() + self.limit;
        let mut qemu = self.start(&initramfs, &theirs)?;
        // QEMU has them now: the lines end when it does.
        drop((theirs, initramfs));

        let [log, out, err, result, monitor]: [UnixStream; 5] = ours
            .try_into()
            .unwrap_or_else(|_| unreachable!("five pairs"));
        let stood_still = AtomicBool::new(false);
        let kernel_log = Mutex::new(Vec::new());
        let complaint = Mutex::new(Vec::new());
        let qemu_stderr = qemu.stderr.take();
        let answer = thread::scope(|scope| {
            scope.spawn(|| keep(log, &kernel_log));
            scope.spawn(|| qemu_stderr.map(|stream| keep(stream, &complaint)));
            scope.spawn(|| copy(out, stdout));
            scope.spawn(|| copy(err, stderr));
            scope.spawn(|| {
                if self.clock == Clock::Instructions && pulse::stops(&monitor) {
                    stood_still.store(true, Ordering::Relaxed);
                    // Whoever waits for the result sees its line end.
                    let _ = result.shutdown(Shutdown::Read);
                }
            });
            let answer = await_result(&result, deadline);
            if let Ok(Some(_)) = answer {
                // It is about to reset itself; if not, it is ended below.
                let _ = await_end(&qemu, Instant::now() + GOODBYE);
            }
            // It may be gone already.
            let _ = qemu.kill();
            let _ = qemu.wait();
            answer
        });
        let text = |bytes: Mutex<Vec<u8>>| {
            let bytes = bytes.into_inner().unwrap_or_else(PoisonError::into_inner);
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (kernel_log, complaint) = (text(kernel_log), text(complaint));
        let last_words = || last_lines(&complaint) + &last_lines(&kernel_log);
        match answer.map_err(host("wait for the lab"))? {
            Some(Answer::Code(code)) => Ok(Ended { code, kernel_log }),
            Some(Answer::Nothing) if stood_still.into_inner() => Err(LabError::StoodStill {
                kernel_log: last_words(),
            }),
            Some(Answer::Nothing) => Err(LabError::Died {
                kernel_log: last_words(),
            }),
            None => Err(LabError::TimeLimit {
                limit: self.limit,
                kernel_log: last_words(),
            }),
        }
    }

    /// The initramfs: PID 1 and the modules beside the lab's own root.
    fn initramfs<A: AsRef<OsStr>>(&self, command: &[A]) -> Result<File, LabError> {
        let mut script = String::from("#!/lab/busybox sh\n");
        for (name, value) in &self.environment {
            let _ = writeln!(script, "export {name}={}", quoted(value));
        }
        let _ = writeln!(script, "cd {}", quoted(&self.directory.to_string_lossy()));
        script.push_str("exec");
        for argument in command {
            let _ = write!(script, " {}", quoted(&argument.as_ref().to_string_lossy()));
        }
        script.push('\n');

        let mut root = self.tree.clone();
        root.directory("/root", 0o700);
        root.copy(BUSYBOX, "/lab/busybox")?;
        root.bytes("/lab/session", SESSION, 0o755);
        root.bytes("/lab/command", script, 0o755);
        let mut whole = Tree::new();
        whole.bytes("/init", INIT, 0o755);
        whole.copy(BUSYBOX, "/busybox")?;
        let of_networks = self.has_bridges.then_some(&self.parts.network_modules);
        let modules = self
            .parts
            .modules
            .iter()
            .chain(of_networks.into_iter().flatten());
        for (number, module) in modules.enumerate() {
            whole.copy(module, format!("/modules/{number:02}"))?;
        }
        whole.graft("/lab-root", &root);
        whole.initramfs()
    }

    fn start(&self, initramfs: &File, lines: &[UnixStream]) -> Result<Child, LabError> {
        // An emulator without its caller would run for ever. A caller that is gone before it could be watched sends no signal,
        // hence the second look.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        command.args(["sh", "-c", "test $PPID = $0 && exec \"$@\""]);
        command.arg(std::process::id().to_string());
        command.arg(&self.parts.qemu);
        command
            .args("-no-user-config -nodefaults -no-reboot -display none -machine q35".split(' '));
        // EPYC has what KVM's nested paging takes; what TCG cannot do of it is left out by QEMU.
        command.args("-cpu EPYC,+svm".split(' '));
        match self.clock {
            Clock::Time => command.args(["-accel", "tcg,thread=multi"]),
            Clock::Instructions => command.args([
                "-accel",
                "tcg,thread=single",
                "-icount",
                "shift=0,sleep=off",
            ]),
        };
        command.args(["-m", &format!("{}M", self.memory_mib)]);
        command.args(["-smp", &self.cpus.to_string()]);
        command.arg("-kernel").arg(&self.parts.kernel);
        command.args(["-initrd", &inherited(initramfs)?]);
        // The mitigations would count as the work of whoever is measured; a reset by triple fault needs no firmware.
        let parameters = "console=ttyS0 quiet mitigations=off reboot=t panic=-1";
        command.args(["-append", parameters]);
        // Nothing in it follows the host's clock.
        command.args(["-rtc", "clock=vm"]);
        let (monitor, lines) = lines
            .split_last()
            .unwrap_or_else(|| unreachable!("five lines"));
        inherited(monitor)?;
        let descriptor = monitor.as_raw_fd();
        command.args([
            "-chardev",
            &format!("socket,id=monitor,fd={descriptor}"),
            "-mon",
            "chardev=monitor,mode=control",
        ]);
        for (number, line) in lines.iter().enumerate() {
            let descriptor = line.as_raw_fd();
            inherited(line)?;
            command.args([
                "-chardev",
                &format!("socket,id=line{number},fd={descriptor}"),
            ]);
            command.args(["-serial", &format!("chardev:line{number}")]);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| LabError::NoTool {
                tool: "setpriv",
                package: "util-linux",
                source,
            })
    }
}

/// Lets children have a descriptor, and says by which path they find it.
fn inherited(descriptor: &(impl AsFd + AsRawFd)) -> Result<String, LabError> {
    rustix::io::fcntl_setfd(descriptor, FdFlags::empty())
        .map_err(io::Error::from)
        .map_err(host("hand a file to QEMU"))?;
    Ok(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

enum Answer {
    Code(u8),
    /// The line ended, or held something else.
    Nothing,
}

/// Waits for the last line; nothing if the time is over.
fn await_result(result: &UnixStream, deadline: Instant) -> io::Result<Option<Answer>> {
    let mut line = Vec::new();
    loop {
        if !readable(result, deadline)? {
            return Ok(None);
        }
        let mut chunk = [0; 64];
        let count = (&*result).read(&mut chunk)?;
        line.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8_lossy(&line);
        if let Some((said, _)) = text.split_once('\n') {
            let code = said.trim().strip_prefix("exit ");
            return Ok(Some(
                code.and_then(|code| code.parse().ok())
                    .map_or(Answer::Nothing, Answer::Code),
            ));
        }
        if count == 0 {
            return Ok(Some(Answer::Nothing));
        }
    }
}

fn await_end(qemu: &Child, deadline: Instant) -> io::Result<()> {
    let pid = rustix::process::Pid::from_child(qemu);
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    readable(&ended, deadline).map(drop)
}

/// Waits until there is something to read; false if the time is over before.
fn readable(descriptor: &impl AsFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(descriptor, PollFlags::IN)], Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Keeps the end of what comes.
fn keep(mut from: impl Read, to: &Mutex<Vec<u8>>) {
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        let mut kept = to.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&chunk[..count]);
        let excess = kept.len().saturating_sub(LOG_BYTES);
        kept.drain(..excess);
    }
}

/// Copies what comes; goes on reading when nobody wants it any more, so that the lab is not held up.
fn copy(mut from: UnixStream, to: &mut dyn Write) {
    let mut chunk = [0; 4096];
    let mut is_wanted = true;
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        is_wanted = is_wanted
            && to
                .write_all(&chunk[..count])
                .and_then(|()| to.flush())
                .is_ok();
    }
}

fn last_lines(text: &str) -> String {
    const LINES: usize = 20;
    /// What QEMU says of each part of the processor that it leaves out.
    const EXPECTED: &str = "TCG doesn't support requested feature";
    let lines = text.lines().filter(|line| !line.contains(EXPECTED));
    let lines: Vec<&str> = lines.collect();
    let mut last = String::new();
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        last.extend(line.chars().filter(|character| !character.is_control()));
        last.push('\n');
    }
    last
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_is_one_word() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("don't"), r"'don'\''t'");
    }

    #[test]
    fn the_last_lines_are_printable() {
        assert_eq!(last_lines("a\x1b[2Jb\r\nc"), "a[2Jb\nc\n");
    }
}
