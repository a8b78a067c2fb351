//! Who the process runs as: names resolved in the container's own `/etc/passwd` and `/etc/group` (passwd(5), group(5)),
//! by docker's rules.

use std::fs::File;
use std::io::Read as _;

use protocol::{FailureKind, StartFailure};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::step::{Step as _, failure};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// The most that is read of either file; a larger one is refused, as an image decides its size.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The largest id that docker takes as a number.
const MAX_ID: u32 = i32::MAX.cast_unsigned();

/// The user as the host gives it.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum UserChoice {
    /// Docker's syntax: `[user][:group]`, each a name or a number, and further groups.
    Text { text: String, groups: Vec<String> },
    /// Decided already.
    Numbers {
        uid: u32,
        gid: u32,
        additional_gids: Vec<u32>,
    },
}

/// The user in numbers.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

impl UserChoice {
    /// Resolves the user in the files of the container, which must be the caller's root.
    ///
    /// # Errors
    ///
    /// If a name is unknown, a number too large or a file unreadable.
    pub(crate) fn resolve(&self) -> Result<Identity, StartFailure> {
        let passwd = read(PASSWD)?;
        match self {
            Self::Text { text, groups } => {
                let group = read(GROUP)?;
                let mut identity = resolve(text, &passwd, &group)?;
                for name in groups {
                    let gid = find_group(&group, name)?;
                    if !identity.groups.contains(&gid) {
                        identity.groups.push(gid);
                    }
                }
                Ok(identity)
            }
            Self::Numbers {
                uid,
                gid,
                additional_gids,
            } => Ok(Identity {
                uid: *uid,
                gid: *gid,
                groups: additional_gids.clone(),
                home: find_user(&passwd, &Name::Number(*uid))
                    .map_or("/", |user| user.home)
                    .to_owned(),
            }),
        }
    }
}

/// Lets the kernel know the files that [`UserChoice::resolve`] reads, so that it need not look for them then.
pub(super) fn look_ahead() {
    // What is wrong with them is for whoever needs them.
    let _ = (read(PASSWD), read(GROUP));
}

/// Reads a file as text; an absent one is empty.
fn read(path: &str) -> Result<String, StartFailure> {
    let step = || format!("reading {path}");
    // Not to wait for a writer, should the image have a fifo there.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        result => result.step(step)?,
    };
    let stat = rustix::fs::fstat(&file).step(step)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(failure(FailureKind::Failed, step(), "not a regular file"));
    }
    let mut bytes = Vec::new();
    File::from(file)
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .step(step)?;
    if u64::try_from(bytes.len()).map_or(true, |length| length > MAX_FILE_BYTES) {
        return Err(failure(
            FailureKind::Failed,
            step(),
            format!("larger than {MAX_FILE_BYTES} bytes"),
        ));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A user's or group's name as typed. What is a number is never looked up as a name.
enum Name<'a> {
    Number(u32),
    Text(&'a str),
}

impl<'a> Name<'a> {
    fn parse(text: &'a str) -> Result<Self, StartFailure> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Self::Text(text));
        }
        match text.parse() {
            Ok(number) if number <= MAX_ID => Ok(Self::Number(number)),
            _ => Err(unknown(format!("{text} is above {MAX_ID}, the largest id"))),
        }
    }
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn find_user<'a>(passwd: &'a str, wanted: &Name<'_>) -> Option<PasswdEntry<'a>> {
    passwd
        .lines()
        .filter_map(passwd_entry)
        .find(|entry| match wanted {
            Name::Number(uid) => entry.uid == *uid,
            Name::Text(name) => entry.name == *name,
        })
}

fn passwd_entry(line: &str) -> Option<PasswdEntry<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields
        .next()
        .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
    Some(PasswdEntry {
        name,
        uid,
        gid,
        home,
    })
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn group_entry(line: &str) -> Option<GroupEntry<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields
        .next()
        .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some(GroupEntry {
        name,
        gid,
        members: fields.next().unwrap_or_default(),
    })
}

/// Resolves `[user][:group]`.
fn resolve(text: &str, passwd: &str, group: &str) -> Result<Identity, StartFailure> {
    let (user, group_name) = text.split_once(':').unwrap_or((text, ""));
    let wanted = if user.is_empty() {
        Name::Number(0)
    } else {
        Name::parse(user)?
    };
    let entry = find_user(passwd, &wanted);
    let (uid, gid) = match (&entry, wanted) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Name::Number(uid)) => (uid, 0),
        (None, Name::Text(name)) => {
            return Err(unknown(format!(
                "user {name:?} is not in the image's /etc/passwd"
            )));
        }
    };
    let home = entry.as_ref().map_or("/", |entry| entry.home).to_owned();
    if group_name.is_empty() {
        let groups = entry.map_or_else(Vec::new, |entry| groups_of(group, entry.name));
        return Ok(Identity {
            uid,
            gid,
            groups,
            home,
        });
    }
    let gid = find_group(group, group_name)?;
    Ok(Identity {
        uid,
        gid,
        groups: Vec::new(),
        home,
    })
}

fn find_group(group: &str, name: &str) -> Result<u32, StartFailure> {
    match Name::parse(name)? {
        Name::Number(gid) => Ok(gid),
        Name::Text(name) => group
            .lines()
            .filter_map(group_entry)
            .find(|entry| entry.name == name)
            .map(|entry| entry.gid)
            .ok_or_else(|| unknown(format!("group {name:?} is not in the image's /etc/group"))),
    }
}

/// The groups that list the user as a member.
fn groups_of(group: &str, user: &str) -> Vec<u32> {
    let lists_user =
        |entry: &GroupEntry<'_>| entry.members.split(',').any(|member| member.trim() == user);
    group
        .lines()
        .filter_map(group_entry)
        .filter(lists_user)
        .map(|entry| entry.gid)
        .collect()
}

fn unknown(message: String) -> StartFailure {
    failure(FailureKind::UnknownUser, "resolving the user", message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\napp:x:1000:1001:App:/home/app:/bin/sh\n\
        nohome:x:1002:1002:::\n";
    const GROUP: &str = "root:x:0:root\nwheel:x:10:root,app\nvideo:x:27:app\napp:x:1001:\n";

    fn resolved(text: &str) -> (u32, u32, Vec<u32>, String) {
        let Identity {
            uid,
            gid,
            groups,
            home,
        } = resolve(text, PASSWD, GROUP).unwrap();
        (uid, gid, groups, home)
    }

    #[test]
    fn no_user_is_root_with_its_groups() {
        assert_eq!(resolved(""), (0, 0, vec![0, 10], "/root".to_owned()));
    }

    #[test]
    fn a_name_brings_its_group_its_other_groups_and_its_home() {
        assert_eq!(
            resolved("app"),
            (1000, 1001, vec![10, 27], "/home/app".to_owned())
        );
    }

    #[test]
    fn a_known_number_is_as_good_as_the_name() {
        assert_eq!(resolved("1000"), resolved("app"));
    }

    #[test]
    fn an_unknown_number_has_group_root_and_home_root() {
        assert_eq!(resolved("4242"), (4242, 0, Vec::new(), "/".to_owned()));
    }

    #[test]
    fn a_given_group_replaces_all_groups() {
        assert_eq!(
            resolved("app:video"),
            (1000, 27, Vec::new(), "/home/app".to_owned())
        );
    }

    #[test]
    fn numbers_need_no_entries() {
        assert_eq!(resolved("7:8"), (7, 8, Vec::new(), "/".to_owned()));
    }

    #[test]
    fn a_group_alone_is_roots() {
        assert_eq!(resolved(":wheel"), (0, 10, Vec::new(), "/root".to_owned()));
    }

    #[test]
    fn an_entry_without_a_home_is_at_home_in_the_root() {
        assert_eq!(resolved("nohome").3, "/");
    }

    #[test]
    fn an_unknown_name_is_refused_by_name() {
        let failure = resolve("nobody", PASSWD, GROUP).unwrap_err();

        assert_eq!(failure.kind, FailureKind::UnknownUser);
        assert!(failure.message.contains("\"nobody\""));
    }

    #[test]
    fn an_unknown_group_is_refused_by_name() {
        let failure = resolve("app:nobody", PASSWD, GROUP).unwrap_err();

        assert_eq!(failure.kind, FailureKind::UnknownUser);
        assert!(failure.message.contains("\"nobody\""));
    }

    proptest! {
        #[test]
        fn no_file_and_no_name_do_harm(
            text in "[a-z0-9:]{0,12}|\\PC*",
            passwd in "([a-z:0-9,\n]|\\PC){0,200}",
            group in "([a-z:0-9,\n]|\\PC){0,200}",
        ) {
            let _ = resolve(&text, &passwd, &group);
        }
    }

    #[test]
    fn a_number_above_the_largest_id_is_refused() {
        assert_eq!(
            resolve("2147483648", PASSWD, GROUP).unwrap_err().kind,
            FailureKind::UnknownUser
        );
    }
}
