//! The process between its making and its program: builds the container around itself, then becomes what runs in it, one step a line.

use std::ffi::c_int;
use std::os::fd::{AsFd as _, OwnedFd};

use protocol::StartFailure;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::channel::AgentChannel;
use super::devices::ReadyDevice;
use super::mounts::ReadyMount;
use super::outside::Outside;
use super::personality::Personality;
use super::plan::{ContainerPlan, ProcessPlan, Terminal};
use super::seccomp::Filter;
use super::sysctl::Sysctl;
use super::user::Identity;
use super::{devices, files, init, loopback, mounts, paths, program, rootfs};
use crate::step::Step as _;
use crate::sys::{self, Parent, Side};

/// The process's ends of its standard streams.
#[derive(Debug, Default)]
pub(crate) struct ChildStdio {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Builds the container around the calling process, the first of its namespaces. The agent's tree is out of reach afterwards. Where the
/// namespaces need it the caller is a maker: this then returns in the process that it makes, and ends in the maker itself.
///
/// # Errors
///
/// If a step fails; it is named.
pub(super) fn build(
    container: &ContainerPlan,
    outside: &Outside<'_>,
    agent: &AgentChannel,
) -> Result<(), StartFailure> {
    let first_half = if container.namespaces.needs_maker() {
        make_process(container, outside, agent)?
    } else {
        begin_process(container)?;
        outside.namespaces.join()?;
        if container.namespaces.makes_network() || container.namespaces.shares_network() {
            loopback::set_up()?;
        }
        FirstHalf::build(container, outside, agent)?
    };
    if container.hooks.come_before_entry() {
        // They expect all mounts and devices to be there, and that the root is not entered yet.
        let machines_tree = rootfs::look_inside()?;
        first_half.mount_all(container)?;
        agent.wait()?;
        container.hooks.create_container()?;
        machines_tree.come_back()?;
        rootfs::enter()?;
        rootfs::leave_machine()?;
    } else {
        if container.waits_for_agent() {
            agent.wait()?;
        }
        if container.namespaces.has_user() {
            // They may mount what their mount namespace shows already, proc(5) and sysfs(5): the machine's tree stays for so long.
            let machines_tree = rootfs::look_inside()?;
            first_half.mount_all(container)?;
            machines_tree.come_back()?;
            rootfs::enter()?;
            rootfs::leave_machine()?;
        } else {
            rootfs::enter()?;
            rootfs::leave_machine()?;
            first_half.mount_all(container)?;
        }
    }
    container
        .sysctls
        .iter()
        .filter(|sysctl| !(container.namespaces.has_user() && sysctl.is_of_machine()))
        .try_for_each(Sysctl::set)?;
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

/// What of a container is built with the rights of the machine's root, and in reach of its tree.
#[derive(Debug)]
struct FirstHalf<'plan> {
    mounts: Vec<ReadyMount<'plan>>,
    /// The devices of one that may not make them itself.
    devices: Vec<ReadyDevice<'plan>>,
}

impl<'plan> FirstHalf<'plan> {
    /// Mounts the root, and opens what comes from elsewhere.
    fn build(
        container: &'plan ContainerPlan,
        outside: &Outside<'_>,
        agent: &AgentChannel,
    ) -> Result<Self, StartFailure> {
        let layers = rootfs::mount(&container.root, outside.namespaces.user())?;
        agent
            .send_layers(&layers)
            .step(|| "handing over the layers".to_owned())?;
        drop(layers);
        container.cgroup.restrict_devices(outside.cgroup)?;
        let mounts = container
            .mounts
            .iter()
            .enumerate()
            .map(|(index, mount)| mount.ready(&container.namespaces, outside.users_of_mount(index)))
            .collect::<Result<_, _>>()?;
        let devices = if container.namespaces.has_user() {
            devices::make_ahead(&container.devices, container.namespaces.mappings())?
        } else {
            Vec::new()
        };
        Ok(Self { mounts, devices })
    }

    /// Mounts what is to be in the root, and makes its devices. The root is the caller's.
    fn mount_all(self, container: &ContainerPlan) -> Result<(), StartFailure> {
        for mount in self.mounts {
            mount.mount()?;
        }
        make_devices(container, &self.devices)
    }
}

/// Lives a maker's life: does the first half, enters the namespaces that come before a process, and makes that. Returns in it.
fn make_process<'plan>(
    container: &'plan ContainerPlan,
    outside: &Outside<'_>,
    agent: &AgentChannel,
) -> Result<FirstHalf<'plan>, StartFailure> {
    sys::reset_signals();
    rustix::process::umask(Mode::empty());
    let namespaces = &container.namespaces;
    let first_half = FirstHalf::build(container, outside, agent)?;
    namespaces.make_time()?;
    outside.namespaces.join()?;
    if namespaces.shares_network() {
        loopback::set_up()?;
    }
    if namespaces.has_user() {
        container
            .sysctls
            .iter()
            .filter(|sysctl| sysctl.is_of_machine())
            .try_for_each(Sysctl::set)?;
    }
    outside.namespaces.join_user()?;
    give_way(namespaces.at_clone(), agent)?;
    begin_process(container)?;
    rootfs::unlock()?;
    if namespaces.makes_network() {
        loopback::set_up()?;
    }
    Ok(first_half)
}

/// Makes the process that the calling maker was only there for, as a sibling, and ends. Returns in the process.
pub(super) fn give_way(namespaces: c_int, agent: &AgentChannel) -> Result<(), StartFailure> {
    let step = || "making the process".to_owned();
    let (maker_ends, of_maker) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step(step)?;
    let made = sys::clone(namespaces, None, Parent::CallersParent).step(step)?;
    if let Side::Parent(pid) = made {
        agent.made(pid)?;
        sys::exit_maker();
    }
    // The agent is to hear of the process before it hears from it.
    drop(of_maker);
    rustix::io::read(&maker_ends, &mut [0]).map(drop).step(step)
}

/// Gives the process what every first process of a container has.
fn begin_process(container: &ContainerPlan) -> Result<(), StartFailure> {
    sys::reset_signals();
    rustix::process::umask(Mode::empty());
    rustix::process::setsid().step(|| "making a session".to_owned())?;
    if container.namespaces.makes_cgroup() {
        sys::unshare_cgroup().step(|| "making a cgroup namespace".to_owned())?;
    }
    Ok(())
}

/// What a process is in its container.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Part {
    /// The first, around which the container is built, and with which it ends.
    First,
    /// One that joins the container, and leaves it as it is.
    Joined,
}

/// Becomes the program of the container that the calling process is in. Returns only the reason why it did not.
pub(super) fn become_program(
    part: Part,
    container: &ContainerPlan,
    process: &ProcessPlan,
    stdio: ChildStdio,
    agent: &AgentChannel,
) -> StartFailure {
    if process.idles {
        return files::idle(stdio, agent);
    }
    match prepare(part, container, process, stdio, agent) {
        Ok(environment) => {
            let execute = || program::execute(&process.arguments, &environment);
            match process.init {
                false => execute(),
                true => init::attend(process.terminal.is_some(), execute),
            }
        }
        Err(failure) => failure,
    }
}

/// Does all but the exec, and says with which environment to do that.
fn prepare(
    part: Part,
    container: &ContainerPlan,
    process: &ProcessPlan,
    stdio: ChildStdio,
    agent: &AgentChannel,
) -> Result<Vec<String>, StartFailure> {
    let terminal = process
        .terminal
        .map(|terminal| open_terminal(terminal, part, agent))
        .transpose()?;
    if let Some(name) = &process.hostname {
        rustix::system::sethostname(name.as_bytes())
            .step(|| format!("setting the host name to {name}"))?;
    }
    if let Some(name) = &process.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .step(|| format!("setting the domain name to {name}"))?;
    }
    let identity = process.user.resolve()?;
    connect_stdio(stdio, terminal.as_ref(), &identity)?;
    enter_working_directory(&process.working_directory, part)?;
    if process.root_is_read_only {
        paths::make_root_read_only()?;
    }
    // In a user namespace the agent has given them.
    if !container.namespaces.has_user() {
        process.give_scheduling(None)?;
        process
            .limits
            .iter()
            .try_for_each(|limit| limit.set(None))?;
    }
    rustix::process::umask(Mode::from_raw_mode(process.umask.unwrap_or(DEFAULT_UMASK)));
    sys::close_on_exec_from(3).step(|| "closing the agent's descriptors".to_owned())?;
    process.capabilities.bound()?;
    // A filter that is not to be a new privilege needs one, which is about to go.
    let (filter_now, filter_last) = match process.no_new_privileges {
        false => (process.seccomp.as_ref(), None),
        true => (None, process.seccomp.as_ref()),
    };
    filter_now.map_or(Ok(()), Filter::install)?;
    become_user(&identity)?;
    process.capabilities.apply()?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).step(|| "setting no_new_privs".to_owned())?;
    }
    if part == Part::First {
        container.hooks.start_container()?;
    }
    filter_last.map_or(Ok(()), Filter::install)?;
    Ok(environment(process, &identity.home))
}

/// As docker's, and most systems'.
const DEFAULT_UMASK: u32 = 0o022;

fn make_devices(
    container: &ContainerPlan,
    made_ahead: &[ReadyDevice<'_>],
) -> Result<(), StartFailure> {
    // Who binds a /dev of their own brings its nodes.
    let own = container
        .mounts
        .iter()
        .rfind(|mount| mount.destination.trim_end_matches('/') == "/dev");
    let brings_nodes = own.is_some_and(mounts::Mount::is_bind);
    if own.is_none() {
        mounts::make_directories("/dev").step(|| "making /dev".to_owned())?;
    }
    if !brings_nodes {
        devices::make_links()?;
    }
    if container.namespaces.has_user() {
        return made_ahead
            .iter()
            .filter(|device| !(brings_nodes && device.is_default()))
            .try_for_each(ReadyDevice::place);
    }
    if !brings_nodes {
        devices::make_defaults()?;
    }
    container
        .devices
        .iter()
        .try_for_each(devices::DeviceNode::make)
}

/// Opens a terminal of the container's own devpts, sends its controlling side away and gives the process's side. That of the first
/// process is the container's console.
fn open_terminal(
    terminal: Terminal,
    part: Part,
    agent: &AgentChannel,
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
    if part == Part::First {
        let name = rustix::pty::ptsname(&controller, Vec::new()).step(step)?;
        mounts::make_file("/dev/console").step(step)?;
        rustix::mount::mount_bind(name, "/dev/console").step(step)?;
    }
    rustix::process::ioctl_tiocsctty(&side).step(step)?;
    agent.send_terminal(controller.as_fd()).step(step)?;
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
            match rustix::fs::fchown(stream, Some(Uid::from_raw(identity.uid)), None) {
                // In a user namespace that was joined it belongs to nobody whom the container knows.
                Err(Errno::PERM | Errno::INVAL) => (),
                result => result.step(step)?,
            }
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

/// Goes to the working directory, as docker does: it is made for the first process if need be, and has to be there for others.
fn enter_working_directory(path: &str, part: Part) -> Result<(), StartFailure> {
    let step = || format!("entering the working directory {path}");
    if path == "/" {
        return Ok(());
    }
    match rustix::process::chdir(path) {
        Err(Errno::NOENT) if part == Part::First => {
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
