//! The system calls of each kind of thread in the VM process, each group with its reason. Any other one ends the process.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

use crate::machine::ThreadRole;

/// `_IO(KVMIO, nr)` and friends (include/uapi/linux/kvm.h): the low 16 bits name the request, whatever its size and direction.
const KVMIO: u64 = 0xae00;
const KVM_RUN: u64 = KVMIO | 0x80;
const KVM_GET_REGS: u64 = KVMIO | 0x81;
const KVM_SET_REGS: u64 = KVMIO | 0x82;
const KVM_GET_VCPU_EVENTS: u64 = KVMIO | 0x9f;
const KVM_SET_VCPU_EVENTS: u64 = KVMIO | 0xa0;
const REQUEST_MASK: u64 = 0xffff;
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
    KVMIO | 0x83,
    KVMIO | 0x88,
    KVMIO | 0x8e,
    KVMIO | 0xa1,
    KVMIO | 0xa3,
    KVMIO | 0xa4,
    KVMIO | 0xa6,
];
/// Switches a socket to non-blocking; the standard library does it this way.
const FIONBIO: u64 = 0x5421;

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
    // Disks.
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
];

/// The compiled filter of a thread.
pub(super) fn program(role: ThreadRole) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        COMMON.iter().map(|call| (*call, Vec::new())).collect();
    match role {
        ThreadRole::Vcpu => {
            let requests = [
                KVM_RUN,
                KVM_GET_REGS,
                KVM_SET_REGS,
                KVM_GET_VCPU_EVENTS,
                KVM_SET_VCPU_EVENTS,
            ];
            rules.insert(
                libc::SYS_ioctl,
                requests.into_iter().map(ioctl).collect::<Result<_, _>>()?,
            );
            // A device is activated and reset on the vCPU's thread: its notifiers are duplicated, its worker comes off the loop.
            for call in [
                libc::SYS_close,
                libc::SYS_epoll_ctl,
                libc::SYS_fcntl,
                libc::SYS_eventfd2,
                // A kick that called it out of the guest is taken back.
                libc::SYS_rt_sigtimedwait,
                libc::SYS_rt_sigpending,
            ] {
                rules.insert(call, Vec::new());
            }
        }
        ThreadRole::EventLoop => {
            rules.extend(EVENT_LOOP.iter().map(|call| (*call, Vec::new())));
            rules.insert(
                libc::SYS_ioctl,
                KVM_SAVES
                    .into_iter()
                    .chain([FIONBIO])
                    .map(ioctl)
                    .collect::<Result<_, _>>()?,
            );
        }
    }
    compile(rules)
}

/// The most system calls that are compared one after the other.
const LEAF_CALLS: usize = 6;

/// Compiles rules to a search tree, by halving them until few are left. The library makes a chain of comparisons, and the kernel goes
/// through all of it for every system call that there is whenever a filter is installed (`seccomp_cache_prepare` in
/// kernel/seccomp.c): at the start of each machine, twice.
fn compile(mut rules: BTreeMap<i64, Vec<SeccompRule>>) -> Result<BpfProgram, BackendError> {
    let pivot = rules.keys().nth(rules.len() / 2).copied();
    let (Some(pivot), true) = (pivot, rules.len() > LEAF_CALLS) else {
        return SeccompFilter::new(
            rules,
            SeccompAction::KillProcess,
            SeccompAction::Allow,
            TargetArch::x86_64,
        )?
        .try_into();
    };
    let upper = compile(rules.split_off(&pivot))?;
    let lower = compile(rules)?;
    Ok([fork_at(pivot, lower.len()), lower, upper].concat())
}

/// Goes on behind the next `skipped` instructions for system calls from `pivot` on. What is no number of this architecture ends up
/// somewhere, and there the architecture is looked at first.
fn fork_at(pivot: i64, skipped: usize) -> BpfProgram {
    /// Offset of `nr` in `struct seccomp_data` (include/uapi/linux/seccomp.h).
    const NUMBER_OFFSET: u32 = 0;
    /// `BPF_LD | BPF_W | BPF_ABS` (include/uapi/linux/bpf_common.h).
    const LOAD: u16 = 0x20;
    /// `BPF_JMP | BPF_JGE | BPF_K`.
    const IS_NOT_BELOW: u16 = 0x35;
    /// `BPF_JMP | BPF_JA`.
    const JUMP: u16 = 0x05;
    // What does not fit would be refused by the kernel.
    let number = u32::try_from(pivot).unwrap_or(u32::MAX);
    let skipped = u32::try_from(skipped).unwrap_or(u32::MAX);
    [
        (LOAD, 0, 0, NUMBER_OFFSET),
        (IS_NOT_BELOW, 0, 1, number),
        (JUMP, 0, 0, skipped),
    ]
    .map(|(code, jt, jf, k)| sock_filter { code, jt, jf, k })
    .to_vec()
}

/// Allows one ioctl request, by the part of its number that names it.
fn ioctl(request: u64) -> Result<SeccompRule, BackendError> {
    const REQUEST_ARGUMENT: u8 = 1;
    let condition = SeccompCondition::new(
        REQUEST_ARGUMENT,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(REQUEST_MASK),
        request & REQUEST_MASK,
    )?;
    SeccompRule::new(vec![condition])
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
        let (mut place, mut accumulator) = (0, 0_u32);
        loop {
            let sock_filter { code, jt, jf, k } = program[place].clone();
            place += 1;
            let is_so = match code {
                0x20 => {
                    let offset = usize::try_from(k).unwrap();
                    accumulator = u32::from_le_bytes(data[offset..offset + 4].try_into().unwrap());
                    continue;
                }
                0x54 => {
                    accumulator &= k;
                    continue;
                }
                0x05 => {
                    place += usize::try_from(k).unwrap();
                    continue;
                }
                0x06 => return k == libc::SECCOMP_RET_ALLOW,
                0x15 => accumulator == k,
                0x35 => accumulator >= k,
                other => panic!("an instruction that no filter here has: {other:#x}"),
            };
            place += usize::from(if is_so { jt } else { jf });
        }
    }

    /// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_I386` (include/uapi/linux/audit.h).
    const X86_64: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;

    #[test]
    fn every_call_of_a_role_is_allowed_and_no_other() {
        for role in [ThreadRole::Vcpu, ThreadRole::EventLoop] {
            let program = program(role).unwrap();
            let mut calls = COMMON.to_vec();
            match role {
                ThreadRole::Vcpu => calls.extend([
                    libc::SYS_close,
                    libc::SYS_epoll_ctl,
                    libc::SYS_fcntl,
                    libc::SYS_eventfd2,
                    libc::SYS_rt_sigtimedwait,
                    libc::SYS_rt_sigpending,
                ]),
                ThreadRole::EventLoop => calls.extend(EVENT_LOOP),
            }
            for call in (0..1000).filter(|call| *call != libc::SYS_ioctl) {
                let is_allowed = allows(&program, X86_64, call, 0);
                assert_eq!(is_allowed, calls.contains(&call), "{role:?}, call {call}");
                assert!(!allows(&program, I386, call, 0));
            }
            assert!(!allows(&program, X86_64, libc::SYS_ioctl, 0x5401));
            let own = match role {
                ThreadRole::Vcpu => KVM_RUN,
                ThreadRole::EventLoop => FIONBIO,
            };
            assert!(allows(&program, X86_64, libc::SYS_ioctl, own), "{role:?}");
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
