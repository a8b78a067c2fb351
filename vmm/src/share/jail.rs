//! The jail of the server: what it gives up before the guest's first request.
//!
//! Whoever breaks out of the guest into the server finds what is shared, and nothing else: no other path (Landlock, and for root a mount
//! namespace that is empty), no new privileges, of root's capabilities those that ownership takes, and the system calls of files alone.
//!
//! Landlock covers what is in files and which there are. It covers neither their modes, owners, times and extended attributes, nor
//! lookups without opening (`O_PATH`): under a user other than root, whoever is in the server could change those of the user's other
//! files. Root's server does not see any.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, Scope,
};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount, mount_change, open_tree,
    unmount,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, set_capabilities,
    set_capabilities_secure_bits, set_no_new_privs,
};

use super::sys;
use super::tree::{Ownership, Share};

/// Every directory entry that the guest's kernel has in mind is a descriptor.
pub(super) const MOST_DESCRIPTORS: u64 = 1 << 18;

/// What root keeps: what it takes to make files as another and to give them to another, to reach them whoever they belong to, and to
/// keep their set-id bits.
const OF_ROOT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETFCAP);

/// Gives up what the process gives up as a whole: call it before its threads are made. Returns `/proc/self/fd`, which each of them
/// is to [stand in](enter_thread).
pub(super) fn enter_process(shares: &mut [Share], ownership: Ownership) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let descriptors = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
    limit_resources()?;
    let kept = match ownership {
        Ownership::Same => {
            if let Err(error) = leave_the_mounts(shares) {
                tracing::debug!(%error, "the server of shares has no mount namespace of its own");
            }
            // Who acts as another reaches what it did: the guest's kernel has checked whether that one may, with all of its groups.
            set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
            OF_ROOT
        }
        Ownership::Root { .. } => CapabilitySet::empty(),
    };
    set_no_new_privs(true)?;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    let own = rustix::thread::capabilities(None)?.permitted;
    set_capabilities(
        None,
        CapabilitySets {
            effective: sets.effective & own,
            permitted: sets.permitted & own,
            ..sets
        },
    )?;
    restrict_to(shares).map_err(io::Error::other)?;
    Ok(descriptors)
}

/// What each thread does first: its paths begin at `descriptors`, its umask is its own, and it makes no call but those of files.
pub(super) fn enter_thread(descriptors: impl AsFd) -> io::Result<()> {
    sys::own_filesystem_context()?;
    rustix::process::fchdir(descriptors)?;
    rustix::process::umask(Mode::empty());
    crate::sandbox::enter_share_thread()
}

fn limit_resources() -> io::Result<()> {
    let hard = getrlimit(Resource::Nofile).maximum;
    let most = Some(hard.unwrap_or(MOST_DESCRIPTORS).min(MOST_DESCRIPTORS));
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

/// Takes the shares along as trees of mounts of their own, and leaves all others behind.
fn leave_the_mounts(shares: &mut [Share]) -> io::Result<()> {
    let mut trees = Vec::with_capacity(shares.len());
    for share in &*shares {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        if share.is_recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        trees.push(open_tree(&share.root, "", flags)?);
    }
    sys::own_mounts()?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)?;
    let sealed = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // There is such a directory wherever /proc/self/fd was opened. What is there stays open.
    const PLACE: &str = "/proc";
    mount(
        "tmpfs",
        PLACE,
        "tmpfs",
        sealed | MountFlags::RDONLY,
        c"size=4k,mode=0",
    )?;
    rustix::process::chdir(PLACE)?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => unmount(".", UnmountFlags::DETACH)?,
        // The root of the host is its first file system, which stays.
        Err(_) => rustix::process::chroot(".")?,
    }
    for (share, tree) in shares.iter_mut().zip(trees) {
        share.root = tree;
    }
    Ok(())
}

/// Denies every path but those below the shares, and every TCP port, abstract socket and signal that the host's Landlock knows.
fn restrict_to(shares: &[Share]) -> Result<(), landlock::RulesetError> {
    let abi = ABI::V6;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?;
    for share in shares {
        let rights = match share.read_only {
            true => AccessFs::from_read(abi),
            false => AccessFs::from_all(abi),
        };
        // Nothing is executed here, and no device is spoken to.
        let rights: BitFlags<AccessFs> = rights
            & !(AccessFs::Execute | AccessFs::IoctlDev | AccessFs::MakeChar | AccessFs::MakeBlock);
        ruleset = ruleset.add_rule(PathBeneath::new(&share.root, rights))?;
    }
    ruleset.restrict_self()?;
    Ok(())
}
