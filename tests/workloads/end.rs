//! The init of a machine that does nothing: it ends the machine. What is left is what booting costs.
//!
//! The kernel is told how a machine resets (`reboot=`). With the argument `port-0x600` the machine ends by a write to that
//! port, where Cloud Hypervisor has an ACPI sleep register: to it a reset is no end.

use std::arch::asm;
use std::env;

/// ACPI's sleep control register: sleep, as type 5, which its tables call soft off.
const SOFT_OFF: u8 = 1 << 5 | 5 << 2;
/// `LINUX_REBOOT_CMD_RESTART`, reboot(2).
const RESTART: i32 = 0x0123_4567;

fn main() {
    if env::args().any(|argument| argument == "port-0x600") {
        // SAFETY: ioperm(2) takes numbers only.
        unsafe { ioperm(0x600, 1, 1) };
        // SAFETY: the port may be used now; nothing in memory changes.
        unsafe { asm!("out dx, al", in("dx") 0x600_u16, in("al") SOFT_OFF) };
    }
    // SAFETY: reboot(2) takes a number only.
    unsafe { reboot(RESTART) };
}

unsafe extern "C" {
    fn ioperm(from: u64, count: u64, on: i32) -> i32;
    fn reboot(command: i32) -> i32;
}
