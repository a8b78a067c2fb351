//! The filter of system calls: runtime-spec `config-linux.md`, "Seccomp", and seccomp(2). The host has compiled it.

use protocol::StartFailure;
use serde::{Deserialize, Serialize};

use crate::step::{Step as _, invalid, unsupported};
use crate::sys;

/// `BPF_MAXINSNS`, `include/uapi/linux/bpf_common.h`.
const MAX_INSTRUCTIONS: usize = 4096;

/// The size of `struct sock_filter`.
const INSTRUCTION_BYTES: usize = 8;

/// `SECCOMP_FILTER_FLAG_TSYNC`, `…_LOG`, `…_SPEC_ALLOW`. Those about a listener mean nothing: nobody listens.
const FLAGS: u32 = 0b111;

/// A filter that can be installed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Filter {
    instructions: Vec<u64>,
    flags: u32,
}

impl Filter {
    /// Takes what the host has compiled.
    ///
    /// # Errors
    ///
    /// If it is no program, or a flag is unknown.
    pub(crate) fn new(seccomp: protocol::Seccomp) -> Result<Self, StartFailure> {
        let protocol::Seccomp { filter, flags } = seccomp;
        let (instructions, rest) = filter.as_chunks::<INSTRUCTION_BYTES>();
        if !rest.is_empty() || instructions.is_empty() || instructions.len() > MAX_INSTRUCTIONS {
            return Err(invalid(
                "linux.seccomp",
                format!(
                    "a filter of {} bytes; the kernel takes 1 to {MAX_INSTRUCTIONS} instructions of {INSTRUCTION_BYTES}",
                    filter.len()
                ),
            ));
        }
        if flags & !FLAGS != 0 {
            return Err(unsupported(
                "linux.seccomp.flags",
                format!("{:#x} is not supported", flags & !FLAGS),
            ));
        }
        Ok(Self {
            instructions: instructions
                .iter()
                .copied()
                .map(u64::from_ne_bytes)
                .collect(),
            flags,
        })
    }

    /// Lets the kernel ask the filter about each system call of the caller from now on. Needs `CAP_SYS_ADMIN` or no_new_privs.
    ///
    /// # Errors
    ///
    /// The kernel's, see seccomp(2).
    pub(crate) fn install(&self) -> Result<(), StartFailure> {
        sys::install_filter(&self.instructions, self.flags)
            .step(|| "installing the seccomp filter".to_owned())
    }
}
