//! The system calls of each kind of thread in the VM process, each group with its reason. Any other one ends the process.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

use crate::machine::ThreadRole;

/// `_IO(KVMIO, nr)` and friends (include/uapi/linux/kvm.h): the low 16 bits name the request, whatever its size and direction.
const KVMIO: u64 = 0xae00;
const KVM_RUN: u64 = KVMIO | 0x80;
const KVM_GET_REGS: u64 = KVMIO | 0x81;
const KVM_SET_REGS: u64 = KVMIO | 0x82;
const KVM_GET_SREGS: u64 = KVMIO | 0x83;
const KVM_SET_SREGS: u64 = KVMIO | 0x84;
const KVM_GET_VCPU_EVENTS: u64 = KVMIO | 0x9f;
const KVM_SET_VCPU_EVENTS: u64 = KVMIO | 0xa0;
const KVM_GET_XSAVE: u64 = KVMIO | 0xa4;
const KVM_SET_XSAVE: u64 = KVMIO | 0xa5;
const KVM_GET_XCRS: u64 = KVMIO | 0xa6;
const REQUEST_MASK: u32 = 0xffff;
/// What is read of a machine to write it down, all of it read-only or as good as that (`KVM_GET_IRQCHIP`, which is `_IOWR`,
/// names the controller): MSR indices, irqchip, pit2, clock, MP state, regs, sregs, MSRs, LAPIC, events, debug registers, TSC
/// frequency, XSAVE, XCRs. And what tells the guest that it stood, `KVM_KVMCLOCK_CTRL`, and what notes changes of its memory:
/// `KVM_SET_USER_MEMORY_REGION`, `KVM_GET_DIRTY_LOG`.
const KVM_SAVES: [u64; 16] = [
    KVMIO | 0x46,
    KVMIO | 0x42,
    KVMIO | 0x02,
    KVMIO | 0xad,
    KVMIO | 0x62,
    KVMIO | 0x9f,
    KVMIO | 0x7c,
    KVMIO | 0x98,
    KVM_GET_REGS,
    KVM_GET_SREGS,
    KVMIO | 0x88,
    KVMIO | 0x8e,
    KVMIO | 0xa1,
    KVMIO | 0xa3,
    KVM_GET_XSAVE,
    KVM_GET_XCRS,
];
/// Switches a socket to non-blocking; the standard library does it this way.
const FIONBIO: u64 = 0x5421;
/// Says which frames a tap may give, when the guest's driver starts: `TUNSETOFFLOAD` (include/uapi/linux/if_tun.h).
const TUNSETOFFLOAD: u64 = 0x54d0;

/// What every Rust thread needs: its allocator, its locks, its end.
const COMMON: &[i64] = &[
    // The allocator.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mprotect,
    // Locks between threads, and waiting for the other side of one.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    // Event descriptors and the kernel's log.
    libc::SYS_read,
    libc::SYS_write,
    // Time stamps of log lines; the vDSO answers most.
    libc::SYS_clock_gettime,
    // The end of a thread and of the process.
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // The end by abort(3), so that a defect of ours is not taken for an attack.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    // Seeds of hash tables.
    libc::SYS_getrandom,
];

/// What the event loop needs beside it.
const EVENT_LOOP: &[i64] = &[
    // Waiting.
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_poll,
    libc::SYS_ppoll,
    // vsock streams and the monitor's channel.
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_fcntl,
    // The rate of a network interface.
    libc::SYS_timerfd_settime,
];

/// What carries out requests of disks needs beside it. The event loop does, too, for disks without threads.
const DISK: &[i64] = &[
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwritev,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    // One that has grown.
    libc::SYS_lseek,
];

/// What a vCPU's thread needs beside it: a device is activated and reset there, its notifiers are duplicated, its worker comes off
/// the loop.
const VCPU: &[i64] = &[
    libc::SYS_close,
    libc::SYS_epoll_ctl,
    libc::SYS_fcntl,
    libc::SYS_eventfd2,
    // What the guest asks of a shared directory is handed on there, and what is at hand of a disk is read.
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_preadv2,
    // A kick that called it out of the guest is taken back.
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigpending,
];
/// Entering the guest, and doing what its KVM cannot.
const KVM_RUNS: &[u64] = &[
    KVM_RUN,
    KVM_GET_REGS,
    KVM_SET_REGS,
    KVM_GET_SREGS,
    KVM_SET_SREGS,
    KVM_GET_VCPU_EVENTS,
    KVM_SET_VCPU_EVENTS,
    KVM_GET_XSAVE,
    KVM_SET_XSAVE,
    KVM_GET_XCRS,
];

/// What a thread that serves shared directories needs beside it. Landlock says of which files.
const SHARE: &[i64] = &[
    // The device's requests and the replies to them.
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    // Files are opened, by a name in an open directory or by their descriptor's; looked at; closed.
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    // A directory's position, and where data and holes are.
    libc::SYS_lseek,
    // Contents.
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    // With RWF_APPEND: to the end, whatever that is by now.
    libc::SYS_pwritev2,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_copy_file_range,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    // Names.
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    // Attributes, and the umask of what is made.
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_umask,
    // Whose is what is made, where the server is root.
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_getxattr,
    libc::SYS_setxattr,
    libc::SYS_listxattr,
    libc::SYS_removexattr,
    // Locks.
    libc::SYS_fcntl,
    libc::SYS_flock,
];

/// What a network gateway needs beside it.
const GATEWAY: &[i64] = &[
    // Waiting for the guest, its sockets, and moments.
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    // Connections: begun, taken, made to wait for nothing, asked how they began, ended. Sockets are made by a rule of their own.
    libc::SYS_connect,
    libc::SYS_accept4,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_shutdown,
    libc::SYS_close,
    // Frames, and what is in them.
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    // The host's list of name servers, when it has changed. Landlock says where.
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
];
/// The families of the sockets that it makes.
const GATEWAY_FAMILIES: [i32; 2] = [libc::AF_INET, libc::AF_INET6];

/// The system calls of a thread, and the requests to ioctl(2), which is none of them.
fn allowed(role: ThreadRole) -> (Vec<i64>, Vec<u64>) {
    match role {
        ThreadRole::Vcpu => ([COMMON, VCPU].concat(), KVM_RUNS.to_vec()),
        ThreadRole::EventLoop => (
            [COMMON, EVENT_LOOP, DISK].concat(),
            [&KVM_SAVES[..], &[FIONBIO, TUNSETOFFLOAD]].concat(),
        ),
        ThreadRole::Disk => ([COMMON, DISK].concat(), Vec::new()),
    }
}

/// Offsets in `struct seccomp_data` (include/uapi/linux/seccomp.h): the number, the architecture, the low half of the second argument.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const REQUEST: u32 = 24;
/// The low half of the first argument.
const FIRST_ARGUMENT: u32 = 16;
/// `AUDIT_ARCH_X86_64` (include/uapi/linux/audit.h).
const X86_64: u32 = 0xc000_003e;

/// The filter of a thread.
///
/// A library's filter compares the number with each call's in a chain. The kernel translates all of it at the start of each machine,
/// twice, and goes through it for every call that there is (`seccomp_cache_prepare` in kernel/seccomp.c). Sets of bits take a tenth.
pub(super) fn program(role: ThreadRole) -> BpfProgram {
    let (calls, requests) = allowed(role);
    program_of(&calls, &requests)
}

/// The filter of a thread that serves shared directories.
pub(super) fn share_program() -> BpfProgram {
    program_of(&[COMMON, SHARE].concat(), &[])
}

/// The filter of a network gateway: sockets of the Internet's families, and its calls.
pub(super) fn gateway_program() -> BpfProgram {
    let socket = u32::try_from(libc::SYS_socket).unwrap_or(u32::MAX);
    let [ipv4, ipv6] = GATEWAY_FAMILIES.map(|family| u32::try_from(family).unwrap_or(u32::MAX));
    let sockets = [
        load(ARCHITECTURE),
        jump(libc::BPF_JEQ, X86_64, 0, 6),
        load(NUMBER),
        jump(libc::BPF_JEQ, socket, 0, 4),
        load(FIRST_ARGUMENT),
        jump(libc::BPF_JEQ, ipv4, 1, 0),
        jump(libc::BPF_JEQ, ipv6, 0, 1),
        end(libc::SECCOMP_RET_ALLOW),
    ];
    let others = program_of(&[COMMON, GATEWAY].concat(), &[]);
    [&sockets[..], &others].concat()
}

fn program_of(calls: &[i64], requests: &[u64]) -> BpfProgram {
    let number = |call: &i64| u32::try_from(*call).ok();
    let request = |request: &u64| u32::try_from(request & u64::from(REQUEST_MASK)).ok();
    let calls = is_one_of(NUMBER, u32::MAX, calls.iter().filter_map(number));
    let requests = is_one_of(REQUEST, REQUEST_MASK, requests.iter().filter_map(request));
    let ioctl = u32::try_from(libc::SYS_ioctl).unwrap_or(u32::MAX);
    let beginning = [
        load(ARCHITECTURE),
        jump(libc::BPF_JEQ, X86_64, 1, 0),
        end(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
        jump(libc::BPF_JEQ, ioctl, 0, 1),
        skip(calls.len()),
    ];
    [&beginning[..], &calls, &requests].concat()
}

/// Allows the call if the bits of `mask` in the word at `offset` are one of these numbers. No number of another ABI is: x32's have a
/// bit of their own.
fn is_one_of(offset: u32, mask: u32, numbers: impl Iterator<Item = u32>) -> BpfProgram {
    /// A number's word in the set, and its bit in that.
    const WORD_SHIFT: u32 = 5;
    const BIT_MASK: u32 = 31;
    let mut words: BTreeMap<u32, u32> = BTreeMap::new();
    for number in numbers {
        *words.entry(number >> WORD_SHIFT).or_default() |= 1 << (number & BIT_MASK);
    }
    let mut program = vec![
        load(offset),
        compute(libc::BPF_AND, mask & BIT_MASK),
        instruction(libc::BPF_MISC | libc::BPF_TAX, 0, 0, 0),
        load(offset),
        compute(libc::BPF_AND, mask),
        compute(libc::BPF_RSH, WORD_SHIFT),
    ];
    for (after, (word, bits)) in (0..words.len()).rev().zip(words) {
        program.extend([
            jump(libc::BPF_JEQ, word, 0, 2),
            instruction(libc::BPF_LD | libc::BPF_IMM, 0, 0, bits),
            // Over the rest of the words, three instructions each, and the end of those that are in none.
            skip(3 * after + 1),
        ]);
    }
    program.extend([
        end(libc::SECCOMP_RET_KILL_PROCESS),
        instruction(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_X, 0, 0, 0),
        jump(libc::BPF_JSET, 1, 1, 0),
        end(libc::SECCOMP_RET_KILL_PROCESS),
        end(libc::SECCOMP_RET_ALLOW),
    ]);
    program
}

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

fn compute(operation: u32, operand: u32) -> sock_filter {
    instruction(libc::BPF_ALU | operation | libc::BPF_K, 0, 0, operand)
}

/// Goes on behind the next so many instructions, if it is so and if not.
fn jump(condition: u32, operand: u32, if_so: u8, if_not: u8) -> sock_filter {
    let code = libc::BPF_JMP | condition | libc::BPF_K;
    instruction(code, if_so, if_not, operand)
}

/// Goes on behind the next `count` instructions; the kernel refuses what leads out of a program.
fn skip(count: usize) -> sock_filter {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, count)
}

fn end(action: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, action)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    // The codes of `linux/bpf_common.h` have eight bits.
    let code = u16::try_from(code).unwrap_or(u16::MAX);
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;

    /// Runs `body` in a child that has entered the jail of `role`; what became of the child.
    fn jailed(role: ThreadRole, body: impl FnOnce() -> i32) -> String {
        let child = process::fork(|| match super::super::enter_thread(role) {
            Ok(()) => body(),
            Err(_) => 99,
        });
        child.unwrap().wait().unwrap().to_string()
    }

    #[test]
    fn a_jailed_thread_may_end() {
        assert_eq!(jailed(ThreadRole::EventLoop, || 0), "exit status 0");
    }

    #[test]
    fn opening_a_file_ends_the_process() {
        let open = || i32::from(std::fs::File::open("/etc/passwd").is_ok());
        assert_eq!(
            jailed(ThreadRole::EventLoop, open),
            format!("signal {}", libc::SIGSYS)
        );
    }

    /// What a filter says to a call: `seccomp_run_filters` for the few instructions that there are.
    fn allows(program: &BpfProgram, architecture: u32, call: i64, request: u64) -> bool {
        let mut data = [0_u8; 64];
        data[..4].copy_from_slice(&u32::try_from(call).unwrap().to_le_bytes());
        data[4..8].copy_from_slice(&architecture.to_le_bytes());
        data[24..32].copy_from_slice(&request.to_le_bytes());
        let (mut place, mut accumulator, mut index) = (0, 0_u32, 0_u32);
        loop {
            let sock_filter { code, jt, jf, k } = program[place].clone();
            place += 1;
            let is_so = match code {
                0x20 => {
                    let offset = usize::try_from(k).unwrap();
                    accumulator = u32::from_le_bytes(data[offset..offset + 4].try_into().unwrap());
                    continue;
                }
                0x00 => {
                    accumulator = k;
                    continue;
                }
                0x54 => {
                    accumulator &= k;
                    continue;
                }
                0x74 => {
                    accumulator >>= k;
                    continue;
                }
                0x7c => {
                    accumulator >>= index;
                    continue;
                }
                0x07 => {
                    index = accumulator;
                    continue;
                }
                0x05 => {
                    place += usize::try_from(k).unwrap();
                    continue;
                }
                0x06 => return k == libc::SECCOMP_RET_ALLOW,
                0x15 => accumulator == k,
                0x45 => accumulator & k != 0,
                other => panic!("an instruction that no filter here has: {other:#x}"),
            };
            place += usize::from(if is_so { jt } else { jf });
        }
    }

    /// `AUDIT_ARCH_I386` (include/uapi/linux/audit.h).
    const I386: u32 = 0x4000_0003;
    /// `__X32_SYSCALL_BIT` (arch/x86/include/uapi/asm/unistd.h).
    const X32: i64 = 0x4000_0000;

    #[test]
    fn every_call_of_a_role_is_allowed_and_no_other() {
        for role in [ThreadRole::Vcpu, ThreadRole::EventLoop, ThreadRole::Disk] {
            let program = program(role);
            let (calls, requests) = allowed(role);
            for call in (0..1000).filter(|call| *call != libc::SYS_ioctl) {
                let is_allowed = allows(&program, X86_64, call, 0);
                assert_eq!(is_allowed, calls.contains(&call), "{role:?}, call {call}");
                assert!(!allows(&program, I386, call, 0));
                assert!(!allows(&program, X86_64, X32 | call, 0));
            }
            for request in 0..=u64::from(REQUEST_MASK) {
                let is_allowed = allows(&program, X86_64, libc::SYS_ioctl, 0xc0de_0000 | request);
                assert_eq!(
                    is_allowed,
                    requests.contains(&request),
                    "{role:?}, request {request:#x}"
                );
            }
        }
    }

    #[test]
    fn a_vcpu_thread_cannot_make_a_vm() {
        let kvm = kvm_ioctls::Kvm::new().unwrap();
        let create = || i32::from(kvm.create_vm().is_ok());
        assert_eq!(
            jailed(ThreadRole::Vcpu, create),
            format!("signal {}", libc::SIGSYS)
        );
    }
}
