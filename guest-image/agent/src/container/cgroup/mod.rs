//! The container's cgroup, version 2: `Documentation/admin-guide/cgroup-v2.rst` and runtime-spec `config-linux.md`,
//! "Control groups".

mod device_rules;
mod resources;
mod usage;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use protocol::{ContainerId, StartFailure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;

use self::device_rules::DeviceProgram;
use self::resources::Setting;
pub(super) use self::usage::guest_memory_bytes;
use crate::spec::Resources;
use crate::step::{Step as _, invalid};

/// Where the agent mounts the hierarchy.
pub(crate) const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// How long processes may take to stop: one inside the kernel stops when it comes out.
const FREEZE_PATIENCE: Duration = Duration::from_secs(5);

/// `PATH_MAX`, with the lines of other hierarchies, where there are some.
const MAX_PATH_BYTES: u64 = 8 << 10;

/// What to make and what to write into it.
#[derive(Debug, PartialEq)]
pub(crate) struct CgroupPlan {
    /// Below [`MOUNT_POINT`], one element a level.
    path: Vec<String>,
    /// File and content, in order.
    settings: Vec<Setting>,
    /// Which devices may be used; any without it.
    devices: Option<DeviceProgram>,
    /// Whether the memory is limited, so that a kill for want of memory is to be expected.
    limits_memory: bool,
    /// Whether there is a disk, of which it is to be counted what is read and written.
    has_disk: bool,
}

/// A cgroup that exists.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: String,
    /// Those that did not exist before, from the top to the cgroup itself.
    made: Vec<String>,
    /// There once it is made whole.
    directory: Option<OwnedFd>,
    limits_memory: bool,
    has_disk: bool,
    /// Bytes that were read and written when its first program began: to make its root.
    io_before: (u64, u64),
}

impl CgroupPlan {
    /// Turns resources into the contents of files.
    ///
    /// # Errors
    ///
    /// If the path or a file's name could leave the cgroup, or values contradict each other.
    pub(crate) fn new(
        container: ContainerId,
        path: Option<&str>,
        resources: &Resources,
        has_disk: bool,
    ) -> Result<Self, StartFailure> {
        let default = format!("container-{}", container.0);
        let path: Vec<String> = path
            .unwrap_or(&default)
            .split('/')
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect();
        if path.is_empty() || path.iter().any(|part| part == "." || part == "..") {
            return Err(invalid(
                "linux.cgroupsPath",
                "the path does not name a cgroup below the root",
            ));
        }
        let settings = resources::settings(resources)?;
        Ok(Self {
            path,
            limits_memory: limits_memory(&settings),
            settings,
            devices: DeviceProgram::new(&resources.devices)?,
            has_disk,
        })
    }

    /// The controllers that own the files, as `cgroup.subtree_control` wants them: `+cpu +memory`.
    ///
    /// Only these are enabled: each controller adds a dozen files to every cgroup, which costs at every start.
    fn controllers(&self) -> String {
        Vec::from_iter(owners(&self.settings)).join(" ")
    }

    /// The controllers that only count, which a kernel need not have.
    fn counters(&self) -> &'static str {
        match self.has_disk {
            true => "+io",
            false => "",
        }
    }

    /// Makes the cgroup.
    ///
    /// # Errors
    ///
    /// If a directory cannot be made, there are processes in it already, or a file does not take its value. Nothing of it remains.
    pub(crate) fn make(&self) -> Result<Cgroup, StartFailure> {
        let mut cgroup = Cgroup {
            path: MOUNT_POINT.to_owned(),
            made: Vec::new(),
            directory: None,
            limits_memory: self.limits_memory,
            has_disk: self.has_disk,
            io_before: (0, 0),
        };
        match self.make_into(&mut cgroup) {
            Ok(()) => Ok(cgroup),
            Err(failure) => {
                cgroup.remove();
                Err(failure)
            }
        }
    }

    fn make_into(&self, cgroup: &mut Cgroup) -> Result<(), StartFailure> {
        let controllers = self.controllers();
        let mut is_new = true;
        for level in &self.path {
            let above = &cgroup.path;
            enable(&controllers, above)?;
            // What is not counted is not shown.
            let _ = enable(self.counters(), above);
            let path = format!("{above}/{level}");
            is_new = match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(error) => return Err(error).step(|| format!("making cgroup {path}")),
            };
            if is_new {
                cgroup.made.push(path.clone());
            }
            cgroup.path = path;
        }
        let path = &cgroup.path;
        let directory = rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .step(|| format!("opening cgroup {path}"))?;
        // Whatever ends the one container would end the other.
        if !is_new && !is_empty(&directory).step(|| format!("looking into cgroup {path}"))? {
            return Err(invalid(
                "linux.cgroupsPath",
                format!("there are processes in {path} already"),
            ));
        }
        for (file, value) in &self.settings {
            write_file(&directory, file, value).step(|| format!("setting {file} to {value}"))?;
        }
        cgroup.directory = Some(directory);
        Ok(())
    }

    /// Has the kernel ask the device rules from now on. The root is mounted before that: no rule lets a container use its device.
    ///
    /// # Errors
    ///
    /// The kernel's, see bpf(2).
    pub(super) fn restrict_devices(&self, cgroup: &Cgroup) -> Result<(), StartFailure> {
        match (&self.devices, cgroup.directory()) {
            (Some(program), Some(directory)) => program.attach(directory),
            _ => Ok(()),
        }
    }
}

/// Whether there is a limit of the memory among these.
fn limits_memory(settings: &[Setting]) -> bool {
    settings
        .iter()
        .any(|(file, _)| file == "memory.max" || file == "memory.high")
}

/// The controllers that own these files.
fn owners(settings: &[Setting]) -> BTreeSet<String> {
    let names = settings.iter().filter_map(|(file, _)| file.split_once('.'));
    let owners = names.filter(|(owner, _)| *owner != "cgroup");
    owners.map(|(owner, _)| format!("+{owner}")).collect()
}

/// Enables controllers in the cgroups below this one.
fn enable(controllers: &str, above: &str) -> Result<(), StartFailure> {
    if controllers.is_empty() {
        return Ok(());
    }
    let file = format!("{above}/cgroup.subtree_control");
    write_file(CWD, &file, controllers).step(|| format!("enabling {controllers} in {above}"))
}

/// Whether there is no process in a cgroup.
fn is_empty(directory: &OwnedFd) -> rustix::io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, "cgroup.procs", flags, Mode::empty())?;
    Ok(rustix::io::read(&file, &mut [0])? == 0)
}

impl Cgroup {
    /// The cgroup's directory, for a process that is to be made in it.
    pub(crate) fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.directory.as_ref().map(AsFd::as_fd)
    }

    fn open(&self, file: &str) -> rustix::io::Result<OwnedFd> {
        let directory = self.directory.as_ref().ok_or(Errno::BADF)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(directory, file, flags, Mode::empty())
    }

    fn write(&self, file: &str, value: &str) -> rustix::io::Result<()> {
        write_file(self.directory.as_ref().ok_or(Errno::BADF)?, file, value)
    }

    /// Whether the kernel killed something in the cgroup because its memory limit was reached.
    pub(crate) fn was_oom_killed(&self) -> bool {
        /// More than the file's half dozen short lines.
        const MAX_BYTES: u64 = 4096;
        if !self.limits_memory {
            return false;
        }
        let events = self.read("memory.events", MAX_BYTES).unwrap_or_default();
        events
            .lines()
            .filter_map(|line| line.strip_prefix("oom_kill "))
            .any(|count| count != "0")
    }

    /// Changes limits. What is not named stays as it is; the device rules do, too.
    ///
    /// # Errors
    ///
    /// If values contradict each other, or a file does not take its value. What came before it is changed then.
    pub(crate) fn limit(&mut self, resources: &Resources) -> Result<(), StartFailure> {
        let settings = resources::settings(resources)?;
        let controllers = Vec::from_iter(owners(&settings)).join(" ");
        let mut above = String::new();
        let levels = self.path.strip_prefix(MOUNT_POINT).unwrap_or_default();
        for level in levels.split('/').filter(|level| !level.is_empty()) {
            enable(&controllers, &format!("{MOUNT_POINT}{above}"))?;
            above = format!("{above}/{level}");
        }
        self.limits_memory |= limits_memory(&settings);
        for (file, value) in &settings {
            self.write(file, value)
                .step(|| format!("setting {file} to {value}"))?;
        }
        Ok(())
    }

    /// Kills every process in the cgroup.
    pub(crate) fn kill(&self) {
        // One that is empty already, or a kernel without the file, leaves nothing to do that could be reported better.
        let _ = self.write("cgroup.kill", "1");
    }

    /// Stops every process in the cgroup, or lets them go on, and waits until they do. Returns whether they do.
    pub(crate) fn freeze(&self, is_frozen: bool) -> bool {
        self.directory
            .as_ref()
            .is_some_and(|directory| freeze(directory, is_frozen))
    }

    /// Removes the cgroup, whose processes have ended, with those that a container made in it and those that were made on the way
    /// to it and that nobody else uses.
    pub(crate) fn remove(self) {
        // Left behind, an empty cgroup holds some kernel memory until the machine ends, and nothing else.
        if let Some((own, above)) = self.made.split_last() {
            if rustix::fs::rmdir(own) == Err(Errno::BUSY) {
                remove_below(own);
                let _ = rustix::fs::rmdir(own);
            }
            for path in above.iter().rev() {
                let _ = rustix::fs::rmdir(path);
            }
        }
    }
}

/// A cgroup whose processes stand still for as long as this is there.
#[derive(Debug)]
pub(crate) struct Frozen(OwnedFd);

impl Frozen {
    /// Stops every process in the cgroup of a directory. If they do not come to a stop, they go on.
    fn new(directory: OwnedFd) -> Option<Self> {
        let frozen = Self(directory);
        freeze(&frozen.0, true).then_some(frozen)
    }
}

/// Stops the processes of one cgroup for any number of others at a time: they go on once the last of those is done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Freezer(Rc<RefCell<Weak<Frozen>>>);

impl Freezer {
    /// Stops them, if they do not stand still yet; nothing where they do not come to a stop. `directory` is the cgroup's.
    pub(super) fn freeze(&self, directory: &OwnedFd) -> Option<Rc<Frozen>> {
        let mut shared = self.0.borrow_mut();
        if let Some(frozen) = shared.upgrade() {
            return Some(frozen);
        }
        let directory = rustix::io::fcntl_dupfd_cloexec(directory, 0).ok()?;
        let frozen = Rc::new(Frozen::new(directory)?);
        *shared = Rc::downgrade(&frozen);
        Some(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        freeze(&self.0, false);
    }
}

fn freeze(directory: &OwnedFd, is_frozen: bool) -> bool {
    let value = if is_frozen { "1" } else { "0" };
    if write_file(directory, "cgroup.freeze", value).is_err() {
        return false;
    }
    // What is to go on does so without being waited for.
    !is_frozen || await_frozen(directory).unwrap_or(false)
}

/// The file tells of a change by an exceptional condition (poll(2), `POLLPRI`).
fn await_frozen(directory: &OwnedFd) -> rustix::io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, "cgroup.events", flags, Mode::empty())?;
    let deadline = Instant::now() + FREEZE_PATIENCE;
    loop {
        let mut text = [0; 256];
        let count = rustix::io::pread(&file, &mut text, 0)?;
        let text = text.get(..count).unwrap_or_default();
        if text
            .split(|byte| *byte == b'\n')
            .any(|line| line == b"frozen 1")
        {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let left = Timespec::try_from(left).unwrap_or_default();
        let mut change = [PollFd::new(&file, PollFlags::PRI)];
        match rustix::event::poll(&mut change, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Removes the cgroups in a cgroup, the innermost first. However deep a container has made them, none has a longer path than this.
fn remove_below(cgroup: &str) {
    for path in tree(cgroup, usize::MAX).iter().skip(1).rev() {
        let _ = rustix::fs::rmdir(path);
    }
}

/// The paths of a cgroup and of those in it, the outer ones first; no more than `enough`, but for the cgroup itself.
fn tree(cgroup: &str, enough: usize) -> Vec<String> {
    let mut paths = vec![cgroup.to_owned()];
    let mut next = 0;
    while let Some(path) = paths.get(next).cloned() {
        next += 1;
        if paths.len() >= enough {
            break;
        }
        let Ok(entries) = std::fs::read_dir(&path) else {
            continue;
        };
        let directories = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let below = directories.filter_map(|entry| entry.path().to_str().map(str::to_owned));
        paths.extend(below.take(enough - paths.len()));
    }
    paths
}

/// The cgroup that a process is in: proc(5), `/proc/PID/cgroup`.
pub(super) fn path_of(process: Pid) -> rustix::io::Result<String> {
    let path = format!("/proc/{}/cgroup", process.as_raw_nonzero());
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    std::fs::File::from(file)
        .take(MAX_PATH_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    Ok(format!("{MOUNT_POINT}{}", path.ok_or(Errno::NOENT)?))
}

fn write_file(directory: impl AsFd, file: &str, value: &str) -> rustix::io::Result<()> {
    let file = rustix::fs::openat(
        directory,
        file,
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::io::write(file, value.as_bytes()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with the files by which a cgroup is stopped.
    fn cgroup(events: &str) -> (tempfile::TempDir, OwnedFd) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("cgroup.freeze"), "0").unwrap();
        std::fs::write(directory.path().join("cgroup.events"), events).unwrap();
        let opened = std::fs::File::open(directory.path()).unwrap().into();
        (directory, opened)
    }

    fn is_frozen(directory: &tempfile::TempDir) -> bool {
        std::fs::read_to_string(directory.path().join("cgroup.freeze")).unwrap() == "1"
    }

    #[test]
    fn what_two_have_stopped_goes_on_when_the_last_of_them_is_done() {
        let (directory, opened) = cgroup("populated 1\nfrozen 1\n");
        let freezer = Freezer::default();

        let first = freezer.freeze(&opened).unwrap();
        let second = freezer.clone().freeze(&opened).unwrap();
        drop(first);
        assert!(is_frozen(&directory));
        drop(second);
        assert!(!is_frozen(&directory));

        let third = freezer.freeze(&opened);
        assert!(is_frozen(&directory));
        drop(third);
        assert!(!is_frozen(&directory));
    }

    #[test]
    fn only_the_controllers_in_use_are_enabled() {
        let resources =
            serde_json::from_str(r#"{"memory":{"limit":1},"pids":{"limit":5}}"#).unwrap();

        let plan = CgroupPlan::new(ContainerId(1), None, &resources, false).unwrap();

        assert_eq!(plan.controllers(), "+memory +pids");
    }

    #[test]
    fn what_goes_to_a_disk_is_counted() {
        let plan = CgroupPlan::new(ContainerId(1), None, &Resources::default(), true).unwrap();

        assert_eq!((plan.controllers().as_str(), plan.counters()), ("", "+io"));
    }

    #[test]
    fn no_more_cgroups_are_looked_into_than_is_enough() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c", "d", "a/e"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let top = directory.path().to_str().unwrap();

        assert_eq!(tree(top, 3).len(), 3);
        assert_eq!(tree(top, usize::MAX).len(), 6);
    }

    #[test]
    fn a_path_cannot_leave_the_hierarchy() {
        let path = Some("/a/../b");
        assert!(CgroupPlan::new(ContainerId(1), path, &Resources::default(), false).is_err());
    }
}
