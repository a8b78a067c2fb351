//! The process between its making and its program: builds the container around itself, then becomes what runs in it, one step a line.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use protocol::StartFailure;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::personality::Personality;
use super::plan::{ContainerPlan, ProcessPlan, Terminal};
use super::scheduling::{IoPriority, Scheduler};
use super::sysctl::Sysctl;
use super::user::Identity;
use super::{devices, loopback, mounts, paths, program, rootfs, write_file};
use crate::step::Step as _;
use crate::sys;

/// The process's ends of its standard streams.
#[derive(Debug, Default)]
pub(crate) struct ChildStdio {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Builds the container around the calling process, the first of its namespaces. The agent's tree is out of reach afterwards.
///
/// # Errors
///
/// If a step fails; it is named.
pub(crate) fn build(container: &ContainerPlan) -> Result<(), StartFailure> {
    sys::reset_signals();
    rustix::process::umask(Mode::empty());
    rustix::process::setsid().step(|| "making a session".to_owned())?;
    if container.namespaces.makes_cgroup() {
        sys::unshare_cgroup().step(|| "making a cgroup namespace".to_owned())?;
    }
    // Of a network namespace of its own, or of the machine's.
    loopback::set_up()?;
    rootfs::mount(&container.root)?;
    let ready_mounts = container
        .mounts
        .iter()
        .map(mounts::Mount::ready)
        .collect::<Result<Vec<_>, _>>()?;
    rootfs::enter()?;
    for mount in ready_mounts {
        mount.mount()?;
    }
    make_devices(container)?;
    container.sysctls.iter().try_for_each(Sysctl::set)?;
    container
        .readonly_paths
        .iter()
        .try_for_each(|path| paths::make_read_only(path))?;
    container
        .masked_paths
        .iter()
        .try_for_each(|path| paths::mask(path))?;
    container
        .root_propagation
        .map_or(Ok(()), mounts::propagate_root)?;
    container.personality.map_or(Ok(()), Personality::apply)
}

/// Becomes the program of a container that was built around the calling process. Returns only the reason why it did not.
///
/// `send_terminal` hands the terminal's controlling side to the agent.
pub(crate) fn become_program(
    process: &ProcessPlan,
    stdio: ChildStdio,
    send_terminal: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<()>,
) -> StartFailure {
    match prepare(process, stdio, send_terminal) {
        Ok(environment) => program::execute(&process.arguments, &environment),
        Err(failure) => failure,
    }
}

/// Does all but the exec, and says with which environment to do that.
fn prepare(
    process: &ProcessPlan,
    stdio: ChildStdio,
    send_terminal: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<()>,
) -> Result<Vec<String>, StartFailure> {
    let terminal = process
        .terminal
        .map(|terminal| open_terminal(terminal, send_terminal))
        .transpose()?;
    if let Some(name) = &process.hostname {
        rustix::system::sethostname(name.as_bytes())
            .step(|| format!("setting the host name to {name}"))?;
    }
    if let Some(name) = &process.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .step(|| format!("setting the domain name to {name}"))?;
    }
    if let Some(score) = process.oom_score_adj {
        write_file("/proc/self/oom_score_adj", &score.to_string())
            .step(|| format!("setting the score for want of memory to {score}"))?;
    }
    process
        .scheduler
        .as_ref()
        .map_or(Ok(()), Scheduler::apply)?;
    process
        .io_priority
        .as_ref()
        .map_or(Ok(()), IoPriority::apply)?;
    let identity = process.user.resolve()?;
    connect_stdio(stdio, terminal.as_ref(), &identity)?;
    enter_working_directory(&process.working_directory)?;
    if process.root_is_read_only {
        paths::make_root_read_only()?;
    }
    process
        .limits
        .iter()
        .try_for_each(|limit| limit.set(None))?;
    process.capabilities.bound()?;
    become_user(&identity)?;
    process.capabilities.apply()?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).step(|| "setting no_new_privs".to_owned())?;
    }
    rustix::process::umask(Mode::from_raw_mode(process.umask.unwrap_or(DEFAULT_UMASK)));
    sys::close_on_exec_from(3).step(|| "closing the agent's descriptors".to_owned())?;
    Ok(environment(process, &identity.home))
}

/// As docker's, and most systems'.
const DEFAULT_UMASK: u32 = 0o022;

fn make_devices(container: &ContainerPlan) -> Result<(), StartFailure> {
    // Who binds a /dev of their own brings its nodes.
    let own = container
        .mounts
        .iter()
        .rfind(|mount| mount.destination.trim_end_matches('/') == "/dev");
    if !own.is_some_and(mounts::Mount::is_bind) {
        if own.is_none() {
            mounts::make_directories("/dev").step(|| "making /dev".to_owned())?;
        }
        devices::make_defaults()?;
    }
    container
        .devices
        .iter()
        .try_for_each(devices::DeviceNode::make)
}

/// Opens a terminal of the container's own devpts, sends its controlling side away and gives the process's side.
fn open_terminal(
    terminal: Terminal,
    send_terminal: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<()>,
) -> Result<OwnedFd, StartFailure> {
    let step = || "making a terminal".to_owned();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let controller = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).step(step)?;
    rustix::pty::unlockpt(&controller).step(step)?;
    if let Some(size) = terminal.size {
        rustix::termios::tcsetwinsize(&controller, winsize(size)).step(step)?;
    }
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let side = rustix::pty::ioctl_tiocgptpeer(&controller, flags).step(step)?;
    let name = rustix::pty::ptsname(&controller, Vec::new()).step(step)?;
    mounts::make_file("/dev/console").step(step)?;
    rustix::mount::mount_bind(name, "/dev/console").step(step)?;
    rustix::process::ioctl_tiocsctty(&side).step(step)?;
    send_terminal(controller.as_fd()).step(step)?;
    Ok(side)
}

/// The kernel's form of a window size.
pub(crate) fn winsize(size: protocol::WindowSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Puts the streams where the program looks for them, owned by the user, so that it may open them anew through `/dev/stdout`.
fn connect_stdio(
    stdio: ChildStdio,
    terminal: Option<&OwnedFd>,
    identity: &Identity,
) -> Result<(), StartFailure> {
    let step = || "connecting the standard streams".to_owned();
    let ChildStdio {
        stdin,
        stdout,
        stderr,
    } = stdio;
    let null = if terminal.is_none() && (stdin.is_none() || stdout.is_none() || stderr.is_none()) {
        // Not the container's: whoever bound a /dev may have left it out, and stdio is to be there in any case.
        Some(
            rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                .step(step)?,
        )
    } else {
        None
    };
    let owned = [stdin.as_ref(), stdout.as_ref(), stderr.as_ref(), terminal]
        .into_iter()
        .flatten();
    if identity.uid != 0 {
        for stream in owned {
            rustix::fs::fchown(stream, Some(Uid::from_raw(identity.uid)), None).step(step)?;
        }
    }
    let fallback = terminal.or(null.as_ref());
    if let Some(stream) = stdin.as_ref().or(fallback) {
        rustix::stdio::dup2_stdin(stream).step(step)?;
    }
    if let Some(stream) = stdout.as_ref().or(fallback) {
        rustix::stdio::dup2_stdout(stream).step(step)?;
    }
    if let Some(stream) = stderr.as_ref().or(fallback) {
        rustix::stdio::dup2_stderr(stream).step(step)?;
    }
    Ok(())
}

/// Goes to the working directory, made if need be, as docker does.
fn enter_working_directory(path: &str) -> Result<(), StartFailure> {
    let step = || format!("entering the working directory {path}");
    if path == "/" {
        return Ok(());
    }
    match rustix::process::chdir(path) {
        Err(rustix::io::Errno::NOENT) => {
            mounts::make_directories(path).step(step)?;
            rustix::process::chdir(path).step(step)
        }
        result => result.step(step),
    }
}

/// Changes groups and user. The permitted capabilities stay, to be set by the next step.
fn become_user(identity: &Identity) -> Result<(), StartFailure> {
    let step = || "becoming the user".to_owned();
    let groups: Vec<Gid> = identity
        .groups
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    rustix::thread::set_thread_groups(&groups).step(step)?;
    if identity.gid != 0 {
        let gid = Gid::from_raw(identity.gid);
        rustix::thread::set_thread_res_gid(gid, gid, gid).step(step)?;
    }
    if identity.uid != 0 {
        rustix::thread::set_keep_capabilities(true).step(step)?;
        let uid = Uid::from_raw(identity.uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid).step(step)?;
    }
    Ok(())
}

fn environment(process: &ProcessPlan, home: &str) -> Vec<String> {
    let mut environment = process.environment.clone();
    if !environment.iter().any(|entry| entry.starts_with("HOME=")) {
        environment.push(format!("HOME={home}"));
    }
    environment
}
