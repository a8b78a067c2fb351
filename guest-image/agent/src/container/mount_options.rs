//! What the options of a mount come to: runtime-spec `config.md`, "Linux mount options".

use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::sys::MountAttributes;

/// The options of one mount, told apart.
#[derive(Debug, Default, PartialEq)]
pub(super) struct MountOptions {
    /// `MS_*` of mount(2).
    pub(super) flags: Flags,
    /// In the order in which they were given.
    pub(super) propagation: Vec<Propagation>,
    /// What is to be changed of the mount and all below it: mount_setattr(2), `AT_RECURSIVE`.
    pub(super) recursive: MountAttributes,
    /// `bind` or `rbind`: the mount shows a part of a tree that is there.
    pub(super) bind: bool,
    /// `rbind`: with all that is mounted in it.
    pub(super) recursive_bind: bool,
    /// `remount`: what is mounted there is changed.
    pub(super) remount: bool,
    /// `tmpcopyup`: what the new mount hides is copied into it.
    pub(super) copy_up: bool,
    /// `idmap` or `ridmap`.
    pub(super) id_map: Option<IdMap>,
    /// What only the file system understands.
    pub(super) data: Vec<String>,
}

/// Flags with a default that is none of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Flags(pub(super) MountFlags);

impl Default for Flags {
    fn default() -> Self {
        Self(MountFlags::empty())
    }
}

/// A change of propagation: mount(2), "Changing the propagation type of an existing mount".
pub(super) type Propagation = MountPropagationFlags;

/// How far ids are mapped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum IdMap {
    /// The mount alone.
    This,
    /// All that is mounted below it, too.
    Recursive,
}

/// `MS_I_VERSION` of `include/uapi/linux/mount.h`, which the library has no name for.
const I_VERSION: MountFlags = MountFlags::from_bits_retain(1 << 23);

/// Options that set or clear a flag.
const FLAGS: [(&str, bool, MountFlags); 29] = [
    ("async", false, MountFlags::SYNCHRONOUS),
    ("atime", false, MountFlags::NOATIME),
    ("dev", false, MountFlags::NODEV),
    ("diratime", false, MountFlags::NODIRATIME),
    ("dirsync", true, MountFlags::DIRSYNC),
    ("exec", false, MountFlags::NOEXEC),
    ("iversion", true, I_VERSION),
    ("lazytime", true, MountFlags::LAZYTIME),
    ("loud", false, MountFlags::SILENT),
    ("mand", true, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
    ("noatime", true, MountFlags::NOATIME),
    ("nodev", true, MountFlags::NODEV),
    ("nodiratime", true, MountFlags::NODIRATIME),
    ("noexec", true, MountFlags::NOEXEC),
    ("noiversion", false, I_VERSION),
    ("nolazytime", false, MountFlags::LAZYTIME),
    ("nomand", false, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
    ("norelatime", false, MountFlags::RELATIME),
    ("nostrictatime", false, MountFlags::STRICTATIME),
    ("nosuid", true, MountFlags::NOSUID),
    ("nosymfollow", true, MountFlags::NOSYMFOLLOW),
    ("relatime", true, MountFlags::RELATIME),
    ("ro", true, MountFlags::RDONLY),
    ("rw", false, MountFlags::RDONLY),
    ("silent", true, MountFlags::SILENT),
    ("strictatime", true, MountFlags::STRICTATIME),
    ("suid", false, MountFlags::NOSUID),
    ("symfollow", false, MountFlags::NOSYMFOLLOW),
    ("sync", true, MountFlags::SYNCHRONOUS),
];

/// Options that change the propagation.
const PROPAGATIONS: [(&str, Propagation); 4] = [
    ("private", Propagation::PRIVATE),
    ("shared", Propagation::SHARED),
    ("slave", Propagation::DOWNSTREAM),
    ("unbindable", Propagation::UNBINDABLE),
];

/// Recursive options: what they set, and what they clear first.
const RECURSIVE: [(&str, u64, u64); 18] = {
    use MountAttributes as A;
    [
        ("rro", A::RDONLY, 0),
        ("rrw", 0, A::RDONLY),
        ("rnosuid", A::NOSUID, 0),
        ("rsuid", 0, A::NOSUID),
        ("rnodev", A::NODEV, 0),
        ("rdev", 0, A::NODEV),
        ("rnoexec", A::NOEXEC, 0),
        ("rexec", 0, A::NOEXEC),
        ("rnodiratime", A::NODIRATIME, 0),
        ("rdiratime", 0, A::NODIRATIME),
        ("rnosymfollow", A::NOSYMFOLLOW, 0),
        ("rsymfollow", 0, A::NOSYMFOLLOW),
        // The kinds of access time exclude each other: all are cleared whenever one is set or cleared.
        ("rrelatime", A::RELATIME, A::ATIME),
        ("rnorelatime", 0, A::ATIME),
        ("rnoatime", A::NOATIME, A::ATIME),
        ("ratime", 0, A::ATIME),
        ("rstrictatime", A::STRICTATIME, A::ATIME),
        ("rnostrictatime", 0, A::ATIME),
    ]
};

impl MountOptions {
    /// Reads the options of a mount, the later ones over the earlier ones.
    pub(super) fn new(options: &[String]) -> Self {
        let mut read = Self::default();
        options.iter().for_each(|option| read.add(option));
        read
    }

    fn add(&mut self, option: &str) {
        if let Some((_, is_set, flag)) = FLAGS.iter().find(|(name, ..)| *name == option) {
            return self.flags.0.set(*flag, *is_set);
        }
        if let Some(propagation) = propagation(option) {
            return self.propagation.push(propagation);
        }
        if let Some((_, set, clear)) = RECURSIVE.iter().find(|(name, ..)| *name == option) {
            return self.recursive.change(*set, *clear);
        }
        match option {
            "defaults" => (),
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive_bind) = (true, true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.id_map = Some(IdMap::This),
            "ridmap" => self.id_map = Some(IdMap::Recursive),
            data => self.data.push(data.to_owned()),
        }
    }
}

/// The propagation of a name, with an `r` before it where it is for all mounts below, too.
pub(super) fn propagation(name: &str) -> Option<Propagation> {
    let find = |name: &str| {
        PROPAGATIONS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, flag)| *flag)
    };
    find(name).or_else(|| Some(find(name.strip_prefix('r')?)? | Propagation::REC))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(options: &[&str]) -> MountOptions {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        MountOptions::new(&options)
    }

    #[test]
    fn the_later_of_two_options_counts() {
        assert_eq!(options(&["ro", "rw"]).flags.0, MountFlags::empty());
    }

    #[test]
    fn what_is_no_flag_is_for_the_file_system() {
        assert_eq!(options(&["size=1m", "nosuid"]).data, ["size=1m"]);
    }

    #[test]
    fn every_option_of_the_specification_is_known() {
        let table = "async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev nodiratime \
            noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev rdiratime \
            relatime remount rexec rnoatime rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro rprivate \
            rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared silent slave strictatime suid \
            symfollow sync tmpcopyup unbindable idmap ridmap";

        let all: Vec<&str> = table.split_whitespace().collect();

        assert_eq!(options(&all).data, Vec::<String>::new());
    }

    #[test]
    fn a_recursive_kind_of_access_time_takes_the_place_of_another() {
        let recursive = options(&["rstrictatime", "rnoatime"]).recursive;

        assert_eq!(
            recursive,
            MountAttributes {
                set: MountAttributes::NOATIME,
                clear: MountAttributes::ATIME
            }
        );
    }

    #[test]
    fn a_recursive_option_takes_back_an_earlier_one() {
        let recursive = options(&["rro", "rrw"]).recursive;

        assert_eq!(
            recursive,
            MountAttributes {
                set: 0,
                clear: MountAttributes::RDONLY
            }
        );
    }

    #[test]
    fn propagation_may_be_for_all_mounts_below() {
        assert_eq!(
            propagation("rshared"),
            Some(Propagation::SHARED | Propagation::REC)
        );
    }
}
