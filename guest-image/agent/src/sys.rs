//! The system calls that no safe wrapper of ours or of a library covers. With `doorbell.rs`, the agent's only unsafe code.

#![allow(
    unsafe_code,
    reason = "these calls have no safe wrapper; each block says why it is sound"
)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::fs::{Gid, Uid};
use rustix::mm::MlockAllFlags;
use rustix::process::{Pid, Signal};
use rustix::thread::{CpuSet, UnshareFlags};
use serde::{Deserialize, Serialize};

/// Which side of a [`clone`] runs.
#[derive(Debug)]
pub(crate) enum Side {
    /// The caller, with the new process's id.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Whose child a process of [`clone`] is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Parent {
    /// The caller's.
    Caller,
    /// That of the caller's own parent, who then learns of its end.
    CallersParent,
}

/// Makes a process that is a copy of this one, in new namespaces and in a cgroup of its own.
///
/// # Errors
///
/// The kernel's, see clone3(2).
pub(crate) fn clone(
    namespaces: c_int,
    cgroup: Option<BorrowedFd<'_>>,
    parent: Parent,
) -> io::Result<Side> {
    // A filter of system calls cannot look at the flags of clone3(2), so many say that there is none: what needs no more than a copy
    // is made in the old way.
    if namespaces == 0 && cgroup.is_none() && parent == Parent::Caller {
        return fork();
    }
    /// `include/uapi/linux/sched.h`; the library's constant has too few bits for it.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let into_cgroup = if cgroup.is_some() {
        CLONE_INTO_CGROUP
    } else {
        0
    };
    // With another parent the signal is that of the caller.
    let (parent, exit_signal) = match parent {
        Parent::Caller => (0, libc::SIGCHLD),
        Parent::CallersParent => (libc::CLONE_PARENT, 0),
    };
    let arguments = libc::clone_args {
        flags: u64::from((namespaces | parent).cast_unsigned()) | into_cgroup,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: u64::from(exit_signal.cast_unsigned()),
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| u64::from(fd.as_raw_fd().cast_unsigned())),
    };
    // SAFETY: without CLONE_VM the child has its own copy of the memory, so this returns twice as fork does. The agent has
    // one thread, so no lock can be held by a thread that does not exist in the child. `arguments` outlives the call, and
    // the size is its own.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::try_from(result)
        .ok()
        .and_then(Pid::from_raw)
        .map_or(Side::Child, Side::Parent))
}

fn fork() -> io::Result<Side> {
    // SAFETY: returns twice. The agent has one thread, so no lock can be held by a thread that does not exist in the child.
    match unsafe { libc::fork() } {
        ..0 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid).map_or(Side::Child, Side::Parent)),
    }
}

/// Tells the kernel's random number generator that this machine is a clone, with bytes that only it has. When this returns, nothing
/// that is read of the generator is what another clone reads.
///
/// # Errors
///
/// The kernel's; `ENODATA` if the generator was never seeded.
pub(crate) fn reseed_as_clone(urandom: &OwnedFd, seed: &[u8]) -> io::Result<()> {
    /// `_IOW('R', 0x10, __u8[64])`: `RNDVMFORK` of our kernel (`patches/0018-…`).
    const RNDVMFORK: libc::Ioctl = 0x4040_5210;
    let seed: &[u8; protocol::SEED_BYTES] =
        seed.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel reads the 64 bytes of the array, and nothing else.
    let result = unsafe { libc::ioctl(urandom.as_raw_fd(), RNDVMFORK, seed.as_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes the ext4 file system that a directory is in so many blocks large, while it is mounted.
///
/// # Errors
///
/// The kernel's, see `ext4_resize_fs` in fs/ext4/resize.c.
pub(crate) fn resize_file_system(directory: &OwnedFd, blocks: u64) -> rustix::io::Result<()> {
    /// `_IOW('f', 16, __u64)`: `EXT4_IOC_RESIZE_FS` in fs/ext4/ext4.h.
    const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;
    // SAFETY: the kernel reads the number, and nothing else.
    let result =
        unsafe { libc::ioctl(directory.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO));
    }
    Ok(())
}

/// Gives a network interface an Ethernet address; any socket will do.
///
/// # Errors
///
/// The kernel's, see `dev_ifsioc` in net/core/dev_ioctl.c.
pub(crate) fn set_ethernet_address(
    socket: &OwnedFd,
    interface: &str,
    address: [u8; 6],
) -> io::Result<()> {
    /// `SIOCSIFHWADDR` in include/uapi/linux/sockios.h, `ARPHRD_ETHER` in if_arp.h, and the lengths of `struct ifreq`.
    const SIOCSIFHWADDR: libc::Ioctl = 0x8924;
    const ETHERNET: u16 = 1;
    const NAME_BYTES: usize = 16;
    const REQUEST_BYTES: usize = 40;
    let mut request = interface.as_bytes().to_vec();
    request.resize(NAME_BYTES, 0);
    request.extend(ETHERNET.to_ne_bytes());
    request.extend(address);
    request.resize(REQUEST_BYTES, 0);
    // SAFETY: the kernel reads and writes a `struct ifreq`, which is as long as the request.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCSIFHWADDR, request.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Has the kernel refuse what would write to a disk.
///
/// # Errors
///
/// The kernel's, see `blkdev_roset` in block/ioctl.c.
pub(crate) fn make_disk_read_only(disk: &OwnedFd) -> io::Result<()> {
    /// `_IO(0x12, 93)`: `BLKROSET` in include/uapi/linux/fs.h.
    const BLKROSET: libc::Ioctl = 0x125d;
    let is_read_only: c_int = 1;
    // SAFETY: the kernel reads the number, and nothing else.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), BLKROSET, &raw const is_read_only) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Writes all of the file system that a directory is in to its disk, and lets nobody write to it any more.
///
/// # Errors
///
/// The kernel's, see `ioctl_fsfreeze` in fs/ioctl.c.
pub(crate) fn freeze_file_system(directory: &OwnedFd) -> rustix::io::Result<()> {
    /// `_IOWR('X', 119, int)`: `FIFREEZE` in include/uapi/linux/fs.h.
    const FIFREEZE: libc::Ioctl = 0xc004_5877;
    // SAFETY: the kernel does not look at the argument.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), FIFREEZE, 0) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO));
    }
    Ok(())
}

/// While it is there, the process and what it makes stay on one processor.
#[derive(Debug)]
pub(crate) struct OneProcessor(());

impl OneProcessor {
    /// Stays where the process is.
    pub(crate) fn stay() -> Self {
        let mut one = CpuSet::new();
        one.set(rustix::thread::sched_getcpu());
        // Wherever it runs, it runs.
        let _ = rustix::thread::sched_setaffinity(None, &one);
        Self(())
    }
}

impl Drop for OneProcessor {
    fn drop(&mut self) {
        use_every_processor();
    }
}

/// Lets the process run on every processor of the machine.
pub(crate) fn use_every_processor() {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|processor| all.set(processor));
    // The kernel takes those that there are.
    let _ = rustix::thread::sched_setaffinity(None, &all);
}

/// Maps all pages of the process that it may ever touch, so that it does not stop for any of them later: in a machine that is about
/// to be frozen, once for all its clones.
pub(crate) fn fault_in() {
    // Locking maps them; that they stay is nobody's concern, nor that one could not be mapped.
    let _ = rustix::mm::mlockall(MlockAllFlags::CURRENT);
    let _ = rustix::mm::munlockall();
}

/// Takes the calling process into a new cgroup namespace, whose root is its present cgroup.
///
/// # Errors
///
/// The kernel's, see unshare(2).
pub(crate) fn unshare_cgroup() -> rustix::io::Result<()> {
    // SAFETY: a cgroup namespace changes how cgroups are shown, and nothing that Rust relies on.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }
}

/// Gives the processes that the caller will make a new time namespace.
///
/// # Errors
///
/// The kernel's, see unshare(2).
pub(crate) fn unshare_time() -> rustix::io::Result<()> {
    // SAFETY: a time namespace changes the clocks of processes that are made later, and nothing that Rust relies on.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWTIME) }
}

/// Makes the caller user 0 and group 0 of its user namespace, in no other group.
///
/// # Errors
///
/// The kernel's, if these ids are not mapped.
pub(crate) fn become_root() -> rustix::io::Result<()> {
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
}

/// What [`set_scheduler`] sets: `struct sched_attr` without its size, `include/uapi/linux/sched/types.h`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct SchedulerAttributes {
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime_ns: u64,
    pub(crate) deadline_ns: u64,
    pub(crate) period_ns: u64,
}

/// Sets how a process, or the calling one, is scheduled.
///
/// # Errors
///
/// The kernel's, see sched_setattr(2).
pub(crate) fn set_scheduler(
    process: Option<Pid>,
    attributes: &SchedulerAttributes,
) -> io::Result<()> {
    #[repr(C)]
    struct Layout {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    /// `SCHED_ATTR_SIZE_VER0`: the size of the above.
    const SIZE_BYTES: u32 = 48;
    let layout = Layout {
        size: SIZE_BYTES,
        policy: attributes.policy,
        flags: attributes.flags,
        nice: attributes.nice,
        priority: attributes.priority,
        runtime: attributes.runtime_ns,
        deadline: attributes.deadline_ns,
        period: attributes.period_ns,
    };
    let process = Pid::as_raw(process);
    // SAFETY: process 0 is the calling one; the kernel reads as many bytes as `size` says, which is the layout's own.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, process, &raw const layout, 0) };
    nothing(result)
}

/// A class of ioprio_set(2).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum IoPriorityClass {
    RealTime,
    BestEffort,
    Idle,
}

/// Sets the input and output priority of a process's group, or of the calling one's.
///
/// # Errors
///
/// The kernel's, see ioprio_set(2).
pub(crate) fn set_io_priority(
    group: Option<Pid>,
    class: IoPriorityClass,
    level: u8,
) -> io::Result<()> {
    /// `IOPRIO_WHO_PGRP`, `include/uapi/linux/ioprio.h`.
    const WHO_GROUP: c_int = 2;
    const CLASS_SHIFT: c_int = 13;
    let class = match class {
        IoPriorityClass::RealTime => 1,
        IoPriorityClass::BestEffort => 2,
        IoPriorityClass::Idle => 3,
    };
    let priority = (class << CLASS_SHIFT) | c_int::from(level);
    let group = Pid::as_raw(group);
    // SAFETY: takes numbers only; group 0 is the caller's.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_GROUP, group, priority) };
    nothing(result)
}

/// Sets the execution domain of the calling process.
///
/// # Errors
///
/// The kernel's, see personality(2).
pub(crate) fn set_personality(persona: libc::c_ulong) -> io::Result<()> {
    // SAFETY: takes a number only, and the domains that there are change nothing that running code relies on.
    nothing(unsafe { libc::personality(persona) }.into())
}

/// What mount_setattr(2) changes of a mount: `struct mount_attr` without propagation, `include/uapi/linux/mount.h`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct MountAttributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
}

impl MountAttributes {
    pub(crate) const RDONLY: u64 = 0x01;
    pub(crate) const NOSUID: u64 = 0x02;
    pub(crate) const NODEV: u64 = 0x04;
    pub(crate) const NOEXEC: u64 = 0x08;
    /// The mask of the kinds of access time.
    pub(crate) const ATIME: u64 = 0x70;
    pub(crate) const RELATIME: u64 = 0x00;
    pub(crate) const NOATIME: u64 = 0x10;
    pub(crate) const STRICTATIME: u64 = 0x20;
    pub(crate) const NODIRATIME: u64 = 0x80;
    pub(crate) const NOSYMFOLLOW: u64 = 0x0020_0000;

    /// Adds a change over those that are there.
    pub(crate) fn change(&mut self, set: u64, clear: u64) {
        self.set = (self.set & !clear) | set;
        self.clear = (self.clear & !set) | clear;
    }
}

/// Changes a mount: the one of a path below a directory, or with an empty path the one of the directory itself.
///
/// # Errors
///
/// The kernel's, see mount_setattr(2).
pub(crate) fn set_mount_attributes(
    directory: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
    attributes: MountAttributes,
    id_map: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    /// `MOUNT_ATTR_IDMAP`.
    const ID_MAP: u64 = 0x0010_0000;
    #[repr(C)]
    struct Layout {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let layout = Layout {
        set: attributes.set | id_map.map_or(0, |_| ID_MAP),
        clear: attributes.clear,
        propagation: 0,
        user_namespace: id_map.map_or(0, |fd| u64::from(fd.as_raw_fd().cast_unsigned())),
    };
    let mut flags = if path.is_empty() {
        libc::AT_EMPTY_PATH
    } else {
        0
    };
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a C string, the structure the kernel's first version of it, of the size that is named; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const layout,
            size_of::<Layout>(),
        )
    };
    nothing(result)
}

/// Has the kernel ask a filter about each system call of the caller and what it makes.
///
/// # Errors
///
/// The kernel's, see seccomp(2).
pub(crate) fn install_filter(instructions: &[u64], flags: u32) -> io::Result<()> {
    /// `SECCOMP_SET_MODE_FILTER`, `include/uapi/linux/seccomp.h`.
    const SET_MODE_FILTER: c_int = 1;
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(io::Error::other)?,
        filter: instructions.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: the kernel reads the program's header and as many instructions as it says, eight bytes each, as they are; all outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match result {
        // With TSYNC, the thread that could not be taken along; there is no other thread.
        1.. => Err(io::ErrorKind::WouldBlock.into()),
        result => nothing(result),
    }
}

/// Loads an eBPF program that decides about devices, and attaches it to a cgroup, which keeps it.
///
/// # Errors
///
/// The kernel's, see bpf(2).
pub(crate) fn attach_device_program(program: &[u64], cgroup: BorrowedFd<'_>) -> io::Result<()> {
    // include/uapi/linux/bpf.h
    const PROG_LOAD: c_int = 5;
    const PROG_ATTACH: c_int = 8;
    const TYPE_CGROUP_DEVICE: u32 = 15;
    const ATTACH_CGROUP_DEVICE: u32 = 6;
    /// `BPF_F_ALLOW_MULTI`: those of outer cgroups stay in force, and inner ones may have their own.
    const ALLOW_MULTI: u32 = 2;
    /// The part of `union bpf_attr` that is for `BPF_PROG_LOAD`.
    #[repr(C)]
    struct Load {
        kind: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
    }
    /// The part that is for `BPF_PROG_ATTACH`.
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let address = |pointer: *const u8| pointer.expose_provenance();
    let number = |address: usize| u64::try_from(address).map_err(io::Error::other);
    let load = Load {
        kind: TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: number(address(program.as_ptr().cast()))?,
        license: number(address(c"".as_ptr().cast()))?,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads the structure, of the size that is named, and as many instructions as it says; all outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    let loaded = owned(RawFd::try_from(fd).map_err(io::Error::other)?)?;
    let attach = Attach {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: loaded.as_raw_fd().cast_unsigned(),
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the kernel reads the structure, of the size that is named, which outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_ATTACH,
            &raw const attach,
            size_of::<Attach>(),
        )
    };
    nothing(result)
}

/// The result of a system call that returns nothing but whether it failed.
fn nothing(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Executes a program in place of this one. Returns only the reason why it did not.
pub(crate) fn execve(program: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let arguments = null_terminated(arguments);
    let environment = null_terminated(environment);
    // SAFETY: `program` is a C string; both arrays are null-terminated arrays of C strings; all outlive the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

fn null_terminated(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// Marks every descriptor from `first` on to be closed by the next exec.
///
/// # Errors
///
/// The kernel's, see close_range(2).
pub(crate) fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    // SAFETY: the flag closes nothing now, so no owned descriptor becomes invalid.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            c_int::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Blocks `SIGCHLD` and gives a descriptor that is readable when one is pending.
///
/// # Errors
///
/// The kernel's, see signalfd(2).
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    let mut children = empty_signal_set();
    // SAFETY: `children` is an initialised set and SIGCHLD a valid signal.
    unsafe { libc::sigaddset(&raw mut children, libc::SIGCHLD) };
    // SAFETY: `children` is an initialised set; the old mask is not asked for.
    if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const children, ptr::null_mut()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `children` is an initialised set, and -1 asks for a new descriptor.
    let fd = unsafe {
        libc::signalfd(
            -1,
            &raw const children,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        )
    };
    owned(fd)
}

/// Closes every descriptor from `first` on, in a process that uses none of them any more.
///
/// # Errors
///
/// The kernel's, see close_range(2).
pub(crate) fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: the caller never comes back to code that owns one of them.
    nothing(unsafe { libc::syscall(libc::SYS_close_range, first, c_int::MAX, 0) })
}

/// Closes every descriptor from `first` on but these, in a process that uses none of the others any more.
///
/// # Errors
///
/// The kernel's, see close_range(2).
pub(crate) fn close_all_but(first: RawFd, kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();
    let mut first = first;
    for fd in kept {
        if first < fd {
            // SAFETY: the caller never comes back to code that owns one of them.
            nothing(unsafe {
                libc::syscall(libc::SYS_close_range, first, fd.saturating_sub(1), 0)
            })?;
        }
        first = first.max(fd.saturating_add(1));
    }
    close_from(first)
}

/// Blocks all signals that can be.
pub(crate) fn block_signals() {
    let mut all = empty_signal_set();
    // SAFETY: `all` is an initialised set.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: `all` is an initialised set; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const all, ptr::null_mut()) };
}

/// Waits for the next signal of those that are blocked, all of them; `None` if it has no number that can be sent on.
pub(crate) fn next_signal() -> Option<Signal> {
    let mut all = empty_signal_set();
    // SAFETY: `all` is an initialised set.
    unsafe { libc::sigfillset(&raw mut all) };
    let mut number = 0;
    // SAFETY: `all` is an initialised set, and `number` takes the result.
    unsafe { libc::sigwait(&raw const all, &raw mut number) };
    signal(u8::try_from(number).ok()?)
}

/// Gives signals the state that a program expects: none blocked, `SIGPIPE` with its default action.
pub(crate) fn reset_signals() {
    let none = empty_signal_set();
    // SAFETY: SIG_DFL is a valid action for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: `none` is an initialised set; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) };
}

fn empty_signal_set() -> libc::sigset_t {
    // SAFETY: a signal set is an array of integers, for which zero is a value; on Linux it is the empty set.
    unsafe { std::mem::zeroed() }
}

/// The signal of a number, also of a real-time one; `None` if there is none.
pub(crate) fn signal(number: u8) -> Option<Signal> {
    /// `SIGRTMAX` of the x86-64 kernel.
    const LAST: i32 = 64;
    let number = i32::from(number);
    // SAFETY: the number is a signal of this kernel. Those that the C library keeps for itself (32, 33) are sent to other
    // programs here, never given a handler in this one, which is what the wrapper guards against.
    (1..=LAST)
        .contains(&number)
        .then(|| unsafe { Signal::from_raw_unchecked(number) })
}

/// Listens on a vsock port, for connections from the host.
///
/// # Errors
///
/// The kernel's, see vsock(7).
pub(crate) fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    /// How many connections may wait: as many as the host may have.
    const BACKLOG: c_int = 512;
    let family = libc::sa_family_t::try_from(libc::AF_VSOCK).map_err(io::Error::other)?;
    let length =
        libc::socklen_t::try_from(size_of::<libc::sockaddr_vm>()).map_err(io::Error::other)?;
    // SAFETY: creates a descriptor and touches no memory.
    let socket = owned(unsafe {
        libc::socket(
            libc::AF_VSOCK,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            0,
        )
    })?;
    let address = libc::sockaddr_vm {
        svm_family: family,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: libc::VMADDR_CID_ANY,
        svm_zero: [0; 4],
    };
    // SAFETY: `address` is a vsock address of `length` bytes that outlives the call.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ends a child with a code, without running anything that its copy of the agent would run at exit.
pub(crate) fn exit_with(code: u8) -> ! {
    // SAFETY: ends the process, with no code of ours after it.
    unsafe { libc::_exit(code.into()) }
}

/// Ends a process that was only made to make another one.
pub(crate) fn exit_maker() -> ! {
    // SAFETY: ends the process, with no code of ours after it.
    unsafe { libc::_exit(0) }
}

/// Ends a child that did not become its program, without running anything that its copy of the agent would run at exit.
pub(crate) fn exit_child() -> ! {
    /// What the agent sees if the message about the failure got lost: docker's code for a failure of its own.
    const FAILED: c_int = 125;
    // SAFETY: ends the process, with no code of ours after it.
    unsafe { libc::_exit(FAILED) }
}
