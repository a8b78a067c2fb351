//! Docker's profile: what a container may not call unless it has the capability for it.
//!
//! Docker lists what is allowed. Here it is the other way round, over the calls that the guest's kernel has: all are allowed but these.
//! A call that the kernel does not have fails with `ENOSYS` in either case.

use super::calls::Calls;
use super::compile::{Condition, Operator, Rule, Table};
use super::{ENOSYS, EPERM, SeccompError, calls, compile, result};

/// Calls that no container may make: those of old kernels, and those about the machine that have no capability of their own.
const NEVER: Calls = Calls::named(&[
    "_sysctl",
    "add_key",
    "afs_syscall",
    "create_module",
    "epoll_ctl_old",
    "epoll_wait_old",
    "get_kernel_syms",
    "getpmsg",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "migrate_pages",
    "move_pages",
    "nfsservctl",
    "pivot_root",
    "putpmsg",
    "query_module",
    "request_key",
    "security",
    "swapoff",
    "swapon",
    "sysfs",
    "tuxcall",
    "uselib",
    "userfaultfd",
    "ustat",
    "vserver",
    "personality",
    "socket",
    "clone",
]);

/// Calls that need one of some capabilities.
const WITH_CAPABILITY: [(Calls, &[&str]); 14] = [
    (
        Calls::named(&["open_by_handle_at"]),
        &["CAP_DAC_READ_SEARCH"],
    ),
    (
        Calls::named(&[
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "umount2",
            "unshare",
        ]),
        &["CAP_SYS_ADMIN"],
    ),
    (Calls::named(&["bpf"]), &["CAP_SYS_ADMIN", "CAP_BPF"]),
    (
        Calls::named(&["perf_event_open"]),
        &["CAP_SYS_ADMIN", "CAP_PERFMON"],
    ),
    (Calls::named(&["syslog"]), &["CAP_SYS_ADMIN", "CAP_SYSLOG"]),
    (Calls::named(&["reboot"]), &["CAP_SYS_BOOT"]),
    (Calls::named(&["chroot"]), &["CAP_SYS_CHROOT"]),
    (
        Calls::named(&["delete_module", "finit_module", "init_module"]),
        &["CAP_SYS_MODULE"],
    ),
    (
        Calls::named(&[
            "get_mempolicy",
            "mbind",
            "set_mempolicy",
            "set_mempolicy_home_node",
        ]),
        &["CAP_SYS_NICE"],
    ),
    (Calls::named(&["acct"]), &["CAP_SYS_PACCT"]),
    (
        Calls::named(&[
            "kcmp",
            "pidfd_getfd",
            "process_madvise",
            "process_vm_readv",
            "process_vm_writev",
        ]),
        &["CAP_SYS_PTRACE"],
    ),
    (Calls::named(&["ioperm", "iopl"]), &["CAP_SYS_RAWIO"]),
    (
        Calls::named(&["clock_adjtime", "clock_settime", "settimeofday"]),
        &["CAP_SYS_TIME"],
    ),
    (Calls::named(&["vhangup"]), &["CAP_SYS_TTY_CONFIG"]),
];

/// Calls that every container may make.
const ALWAYS: Calls = {
    let mut calls = Calls::all().without(NEVER);
    let mut at = 0;
    while at < WITH_CAPABILITY.len() {
        calls = calls.without(WITH_CAPABILITY[at].0);
        at += 1;
    }
    calls
};

/// The execution domains that a program may choose: `PER_LINUX` and `PER_LINUX32`, both also with `UNAME26`, and the question which
/// one it has (include/uapi/linux/personality.h).
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];

/// The family of sockets that lead out of the machine (`AF_VSOCK`).
const VSOCK: u64 = 40;

/// The flags of clone(2) that make namespaces.
const NEW_NAMESPACES: u64 = 0x7E02_0000;

/// Compiles the profile for a process with these capabilities (`CAP_…`).
///
/// # Errors
///
/// None that a test would not have seen.
pub(in crate::workload) fn compile(
    capabilities: &[&str],
) -> Result<protocol::Seccomp, SeccompError> {
    let mut table = Table::new(result::ERRNO | EPERM);
    let has_one = |wanted: &[&str]| wanted.iter().any(|wanted| capabilities.contains(wanted));
    let allowed = WITH_CAPABILITY
        .iter()
        .filter(|(_, wanted)| has_one(wanted))
        .fold(ALWAYS, |allowed, (calls, _)| allowed.with(*calls));
    table.decide(allowed.numbers(), result::ALLOW);
    special_cases(&mut table, capabilities);
    Ok(protocol::Seccomp {
        filter: compile::compile(&table)?,
        flags: 0,
    })
}

/// Calls that are allowed with some arguments.
fn special_cases(table: &mut Table, capabilities: &[&str]) {
    let mut allow = |name: &str, operator, value, value_two| {
        let condition = Condition {
            index: 0,
            operator,
            value,
            value_two,
        };
        if let Some(number) = calls::number(name) {
            table.add(
                number,
                Rule {
                    conditions: vec![condition],
                    action: result::ALLOW,
                },
            );
        }
    };
    for personality in PERSONALITIES {
        allow("personality", Operator::Equal, personality, 0);
    }
    allow("socket", Operator::NotEqual, VSOCK, 0);
    if capabilities.contains(&"CAP_SYS_ADMIN") {
        allow("clone", Operator::GreaterOrEqual, 0, 0);
        return;
    }
    allow("clone", Operator::MaskedEqual, NEW_NAMESPACES, 0);
    // Its flags are in memory, where no filter looks; a C library that is told that it is not there takes clone(2).
    if let Some(number) = calls::number("clone3") {
        table.replace(number, result::ERRNO | ENOSYS);
    }
}

#[cfg(test)]
mod tests {
    use super::super::compile::run;
    use super::*;

    fn answer(capabilities: &[&str], call: i64, argument: u64) -> u32 {
        let program = compile(capabilities).unwrap().filter;
        run(&program, call, [argument, 0, 0, 0, 0, 0])
    }

    const DENIED: u32 = result::ERRNO | EPERM;

    #[test]
    fn usual_calls_are_allowed() {
        let usual = [
            libc::SYS_read,
            libc::SYS_execve,
            libc::SYS_ptrace,
            libc::SYS_futex,
            libc::SYS_faccessat2,
        ];

        assert!(
            usual
                .iter()
                .all(|call| answer(&[], *call, 0) == result::ALLOW)
        );
    }

    #[test]
    fn a_call_about_the_machine_needs_its_capability() {
        assert_eq!(answer(&[], libc::SYS_mount, 0), DENIED);
        assert_eq!(
            answer(&["CAP_SYS_ADMIN"], libc::SYS_mount, 0),
            result::ALLOW
        );
        assert_eq!(answer(&["CAP_BPF"], libc::SYS_bpf, 0), result::ALLOW);
        assert_eq!(answer(&["CAP_SYS_ADMIN"], libc::SYS_keyctl, 0), DENIED);
    }

    #[test]
    fn processes_are_made_without_namespaces() {
        const NEWNS: u64 = 0x2_0000;

        assert_eq!(answer(&[], libc::SYS_clone, 17), result::ALLOW);
        assert_eq!(answer(&[], libc::SYS_clone, 17 | NEWNS), DENIED);
        assert_eq!(answer(&[], libc::SYS_clone3, 0), result::ERRNO | ENOSYS);
        assert_eq!(
            answer(&["CAP_SYS_ADMIN"], libc::SYS_clone, NEWNS),
            result::ALLOW
        );
        assert_eq!(
            answer(&["CAP_SYS_ADMIN"], libc::SYS_clone3, 0),
            result::ALLOW
        );
    }

    #[test]
    fn a_socket_does_not_lead_out_of_the_machine() {
        assert_eq!(answer(&[], libc::SYS_socket, VSOCK), DENIED);
        assert_eq!(answer(&[], libc::SYS_socket, 2), result::ALLOW);
    }

    #[test]
    fn only_harmless_personalities_are_allowed() {
        assert_eq!(answer(&[], libc::SYS_personality, 0x8), result::ALLOW);
        assert_eq!(answer(&[], libc::SYS_personality, 0x4_0000), DENIED);
    }

    #[test]
    fn a_call_that_does_not_exist_is_said_not_to() {
        assert_eq!(answer(&[], 4000, 0), result::ERRNO | ENOSYS);
    }

    #[test]
    fn the_program_is_short() {
        let program = compile(&[]).unwrap().filter;

        assert!(program.len() / 8 < 120, "{}", program.len() / 8);
    }
}
