//! What the gateway gives up before it reads the guest's first frame.
//!
//! Whoever breaks out of the guest into the gateway can do on the network what the guest may do without the rules, and nothing else: no
//! new privileges, no capabilities, as nobody where the machine is root's, no file but those beside the host's list of name servers
//! (Landlock), no port of the host's to listen on, no process of the host's to signal, and the system calls of sockets alone.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, Scope,
};
use rustix::process::{Gid, Resource, Rlimit, Signal, Uid, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use super::datagrams::MOST_FLOWS;
use super::dns::{MOST_QUESTIONS, RESOLV_CONF};
use super::tcp::MOST_CONNECTIONS;

/// `nobody` and `nogroup`, whose nothing is (`overflowuid` in the kernel's include/linux/highuid.h).
const NOBODY: u32 = 65_534;
/// What the gateway has open beside what the guest asks for: published ports and its own.
const OWN_DESCRIPTORS: usize = 2048;

/// Gives all of it up, but for the system calls.
pub(super) fn enter() -> io::Result<()> {
    limit_resources()?;
    if rustix::process::geteuid().is_root() {
        become_nobody()?;
    }
    // Only now: a change of user takes it back (prctl(2)).
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    set_no_new_privs(true)?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)?;
    restrict().map_err(io::Error::other)
}

/// Gives up the system calls that it does not need, too.
pub(super) fn seal() -> io::Result<()> {
    crate::sandbox::enter_gateway()
}

fn limit_resources() -> io::Result<()> {
    let wanted = [
        MOST_CONNECTIONS,
        MOST_FLOWS,
        MOST_QUESTIONS,
        OWN_DESCRIPTORS,
    ];
    let wanted = u64::try_from(wanted.iter().sum::<usize>()).unwrap_or(u64::MAX);
    let hard = getrlimit(Resource::Nofile).maximum;
    let most = Some(hard.unwrap_or(wanted).min(wanted));
    for (resource, limit) in [(Resource::Nofile, most), (Resource::Core, Some(0))] {
        setrlimit(
            resource,
            Rlimit {
                current: limit,
                maximum: limit,
            },
        )?;
    }
    Ok(())
}

/// Root without capabilities still owns root's files. A user namespace may know no such user; nothing is owned by its root outside.
fn become_nobody() -> io::Result<()> {
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    let became = set_thread_groups(&[])
        .and_then(|()| set_thread_res_gid(group, group, group))
        .and_then(|()| set_thread_res_uid(user, user, user));
    match became {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => Ok(()),
        became => Ok(became?),
    }
}

/// Denies every path but files beside the list of name servers, where it is and where its link leads, so that one that replaces it can
/// be read; every TCP port to listen on; abstract sockets and signals.
fn restrict() -> Result<(), landlock::RulesetError> {
    let abi = ABI::V6;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(abi))?
        .create()?;
    let there = std::fs::canonicalize(RESOLV_CONF).ok();
    let places = [Some(Path::new(RESOLV_CONF)), there.as_deref()];
    for directory in places.into_iter().flatten().filter_map(Path::parent) {
        if let Ok(directory) = PathFd::new(directory) {
            ruleset = ruleset.add_rule(PathBeneath::new(directory, AccessFs::ReadFile))?;
        }
    }
    ruleset.restrict_self()?;
    Ok(())
}
