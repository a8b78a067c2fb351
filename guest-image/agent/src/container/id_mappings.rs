//! Mappings of user and group ids: runtime-spec `config-linux.md`, "User namespace mappings", and user_namespaces(7).

use std::fmt::Write as _;
use std::os::fd::OwnedFd;

use protocol::StartFailure;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::WaitOptions;

use super::write_file;
use crate::spec;
use crate::step::{Step as _, invalid};
use crate::sys::{self, Parent, Side};

/// The most ranges that the kernel takes: user_namespaces(7).
const MAX_RANGES: usize = 340;

/// Which ids of the machine are which in a container, or in a mount.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct IdMappings {
    uids: Vec<spec::IdMapping>,
    gids: Vec<spec::IdMapping>,
}

impl IdMappings {
    /// Reads `uidMappings` and `gidMappings` of `field`; none if both are empty.
    ///
    /// # Errors
    ///
    /// If only one of the two is there, or there are more ranges than the kernel takes.
    pub(crate) fn new(
        field: &str,
        uids: &[spec::IdMapping],
        gids: &[spec::IdMapping],
    ) -> Result<Option<Self>, StartFailure> {
        for (name, other, ranges, others) in [
            ("uidMappings", "gidMappings", uids, gids),
            ("gidMappings", "uidMappings", gids, uids),
        ] {
            if !ranges.is_empty() && others.is_empty() {
                return Err(invalid(
                    format!("{field}.{other}"),
                    format!("there are {name} and no {other}"),
                ));
            }
            if ranges.len() > MAX_RANGES {
                return Err(invalid(
                    format!("{field}.{name}"),
                    format!("there are more than {MAX_RANGES} ranges"),
                ));
            }
        }
        if uids.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            uids: uids.to_vec(),
            gids: gids.to_vec(),
        }))
    }

    /// The machine's ids of a container's user and group; the ids themselves where they are not mapped.
    pub(crate) fn outside(&self, uid: u32, gid: u32) -> (u32, u32) {
        let map = |ranges: &[spec::IdMapping], id: u32| {
            ranges
                .iter()
                .find_map(|range| {
                    let at = id.checked_sub(range.container_id)?;
                    (at < range.size).then(|| range.host_id.checked_add(at))?
                })
                .unwrap_or(id)
        };
        (map(&self.uids, uid), map(&self.gids, gid))
    }

    /// The container's ids of a user and group of the machine; the ids themselves where they are not mapped.
    pub(crate) fn inside(&self, uid: u32, gid: u32) -> (u32, u32) {
        let map = |ranges: &[spec::IdMapping], id: u32| {
            ranges
                .iter()
                .find_map(|range| {
                    let at = id.checked_sub(range.host_id)?;
                    (at < range.size).then(|| range.container_id.checked_add(at))?
                })
                .unwrap_or(id)
        };
        (map(&self.uids, uid), map(&self.gids, gid))
    }

    /// Makes a user namespace of these mappings. It lives as long as the descriptor, or somebody in it.
    ///
    /// # Errors
    ///
    /// If the kernel refuses a mapping, see user_namespaces(7).
    pub(crate) fn namespace(&self) -> Result<OwnedFd, StartFailure> {
        let step = || "making a user namespace".to_owned();
        // A namespace is made with a process, which waits in it until the pipe is closed.
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step(step)?;
        let pid = match sys::clone(libc::CLONE_NEWUSER, None, Parent::Caller).step(step)? {
            Side::Child => {
                drop(write);
                let _ = rustix::io::read(&read, &mut [0]);
                sys::exit_child()
            }
            Side::Parent(pid) => pid,
        };
        let process = format!("/proc/{}", pid.as_raw_nonzero());
        let map = |file: &str, ranges: &[spec::IdMapping]| {
            let lines = lines(ranges);
            write_file(&format!("{process}/{file}"), &lines)
                .step(|| format!("mapping ids ({file}: {})", lines.trim().replace('\n', ", ")))
        };
        let made = map("uid_map", &self.uids)
            .and_then(|()| map("gid_map", &self.gids))
            .and_then(|()| {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                rustix::fs::open(format!("{process}/ns/user"), flags, Mode::empty()).step(step)
            });
        drop(write);
        // Nobody else knows it, and it is on its way out.
        while let Err(rustix::io::Errno::INTR) =
            rustix::process::waitpid(Some(pid), WaitOptions::empty())
        {}
        made
    }
}

fn lines(ranges: &[spec::IdMapping]) -> String {
    let mut lines = String::new();
    for spec::IdMapping {
        container_id,
        host_id,
        size,
    } in ranges
    {
        // Writing to a string does not fail.
        let _ = writeln!(lines, "{container_id} {host_id} {size}");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(container_id: u32, host_id: u32, size: u32) -> spec::IdMapping {
        spec::IdMapping {
            container_id,
            host_id,
            size,
        }
    }

    #[test]
    fn an_id_is_counted_from_the_beginning_of_its_range() {
        let ranges = [range(0, 1000, 10), range(10, 5000, 10)];
        let mappings = IdMappings::new("linux", &ranges, &ranges).unwrap().unwrap();

        assert_eq!(mappings.outside(3, 12), (1003, 5002));
    }

    #[test]
    fn mappings_of_users_alone_are_refused() {
        let failure = IdMappings::new("linux", &[range(0, 1000, 10)], &[]).unwrap_err();

        assert_eq!(failure.step, "linux.gidMappings");
    }

    #[test]
    fn ranges_are_lines() {
        assert_eq!(
            lines(&[range(0, 1000, 10), range(10, 5000, 1)]),
            "0 1000 10\n10 5000 1\n"
        );
    }
}
