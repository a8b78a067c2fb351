//! A library to preload into a `vmm` that runs under valgrind.
//!
//! valgrind does not know seccomp(2): the call does nothing and says that it was done. Every other system call that goes
//! through libc's `syscall` is made as it was asked for. And the VM process, which is ended with its parent, gets the time to
//! write down what was counted: at its end the parent waits for its children.

use std::arch::asm;
use std::ptr;

/// Linux `arch/x86/entry/syscalls/syscall_64.tbl`.
const SECCOMP: i64 = 317;
/// Error numbers come as the last 4095 values.
const LARGEST_ERROR: i64 = 4095;

/// Takes the place of libc's.
///
/// # Safety
///
/// That of the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(number: i64, a: i64, b: i64, c: i64, d: i64, e: i64, f: i64) -> i64 {
    if number == SECCOMP {
        return 0;
    }
    let result: i64;
    // SAFETY: the caller answers for the system call; it changes rcx and r11 beside the result.
    unsafe {
        asm!(
            "syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _,
        );
    }
    if (-LARGEST_ERROR..0).contains(&result) {
        // SAFETY: the C library gives each thread a place for its error number.
        unsafe { *__errno_location() = i32::try_from(-result).unwrap_or(0) };
        return -1;
    }
    result
}

/// The dynamic linker calls what is in this section when a program ends, but not at `_exit`.
#[used]
#[unsafe(link_section = ".fini_array")]
static AT_END: extern "C" fn() = wait_for_children;

extern "C" fn wait_for_children() {
    // SAFETY: wait(2) may be called by anybody, and a null pointer asks for nothing.
    while unsafe { wait(ptr::null_mut()) } > 0 {}
}

unsafe extern "C" {
    fn wait(status: *mut i32) -> i32;
    fn __errno_location() -> *mut i32;
}
