//! The jail of the VM process: what it gives up before the guest's first instruction.
//!
//! Whoever breaks out of the guest into the VM process finds no capabilities, no way to new ones, no file or network address within
//! reach (Landlock), and only the system calls that its thread needs (seccomp). The process keeps the descriptors that it holds.

mod filter;

use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

use crate::machine::ThreadRole;

/// Gives up what a process gives up as a whole. Threads that are made afterwards inherit it.
///
/// # Errors
/// When the host refuses; the process must then not go on.
pub fn enter_process() -> io::Result<()> {
    set_no_new_privs(true)?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)?;
    restrict_to_nothing().map_err(io::Error::other)
}

/// Denies every path, TCP port, abstract socket and signal that the host's Landlock knows. Without Landlock (before Linux 5.13, or
/// switched off) the seccomp filter stands alone: it has no call that opens anything.
fn restrict_to_nothing() -> Result<(), landlock::RulesetError> {
    let abi = ABI::V6;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .restrict_self()?;
    Ok(())
}

/// Restricts the calling thread to the system calls of its role.
///
/// # Errors
/// When the filter cannot be installed; the thread must then not go on.
pub fn enter_thread(role: ThreadRole) -> io::Result<()> {
    seccompiler::apply_filter(&filter::program(role)).map_err(io::Error::other)
}

/// Restricts the calling thread to the system calls of a server of shared directories.
///
/// # Errors
/// When the filter cannot be installed; the thread must then not go on.
pub fn enter_share_thread() -> io::Result<()> {
    seccompiler::apply_filter(&filter::share_program()).map_err(io::Error::other)
}

/// Restricts the calling thread to the system calls of a network gateway.
///
/// # Errors
/// When the filter cannot be installed; the thread must then not go on.
pub fn enter_gateway() -> io::Result<()> {
    seccompiler::apply_filter(&filter::gateway_program()).map_err(io::Error::other)
}
