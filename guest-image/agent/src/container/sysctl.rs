//! Kernel parameters: runtime-spec `config-linux.md`, "Sysctl".

use std::collections::BTreeMap;

use protocol::StartFailure;

use super::namespaces::NamespacesPlan;
use super::write_file;
use crate::step::{Step as _, invalid, unsupported};

/// A kernel parameter of the container.
#[derive(Debug, PartialEq)]
pub(crate) struct Sysctl {
    /// Below `/proc/sys`.
    path: String,
    value: String,
    /// Whether it belongs to the machine, whose network is the container's.
    is_of_machine: bool,
}

/// Parameters that an IPC namespace has its own of: ipc_namespaces(7).
const OF_IPC: [&str; 9] = [
    "kernel/auto_msgmni",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// Those that a UTS namespace has its own of: uts_namespaces(7).
const OF_UTS: [&str; 2] = ["kernel/domainname", "kernel/hostname"];

/// Reads `linux.sysctl`.
///
/// A parameter that belongs to no namespace of the container would change the machine under the feet of other containers. The
/// network is the exception: a container without a network namespace has the machine's for its own.
///
/// # Errors
///
/// If a name is none, or is that of a parameter of the whole machine.
pub(crate) fn read(
    sysctls: BTreeMap<String, String>,
    namespaces: &NamespacesPlan,
) -> Result<Vec<Sysctl>, StartFailure> {
    sysctls
        .into_iter()
        .map(|(name, value)| {
            let path = path(&name)?;
            let lacks = if path.starts_with("net/") {
                None
            } else if OF_IPC.contains(&path.as_str()) || path.starts_with("fs/mqueue/") {
                (!namespaces.has_ipc())
                    .then_some("its IPC namespace, and the container has none of its own")
            } else if OF_UTS.contains(&path.as_str()) {
                (!namespaces.has_uts())
                    .then_some("its UTS namespace, and the container has none of its own")
            } else {
                Some("the whole machine")
            };
            match lacks {
                None => Ok(Sysctl {
                    is_of_machine: path.starts_with("net/") && namespaces.shares_network(),
                    path,
                    value,
                }),
                Some(owner) => Err(unsupported(
                    "linux.sysctl",
                    format!("{name} belongs to {owner}"),
                )),
            }
        })
        .collect()
}

/// The path of a parameter below `/proc/sys`.
fn path(name: &str) -> Result<String, StartFailure> {
    // As sysctl(8): the first separator says which of the two is one, the other one stands for itself.
    let path: String = match name.find(['.', '/']) {
        Some(at) if name.get(at..).is_some_and(|rest| rest.starts_with('.')) => name
            .chars()
            .map(|character| match character {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    };
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(invalid(
            "linux.sysctl",
            format!("{name} is not a kernel parameter's name"),
        ));
    }
    Ok(path)
}

impl Sysctl {
    /// Whether only the machine's root may set it.
    pub(crate) fn is_of_machine(&self) -> bool {
        self.is_of_machine
    }

    /// Sets it in the caller's namespaces.
    ///
    /// # Errors
    ///
    /// If there is no such parameter, or it does not take the value.
    pub(crate) fn set(&self) -> Result<(), StartFailure> {
        let Self { path, value, .. } = self;
        write_file(&format!("/proc/sys/{path}"), value)
            .step(|| format!("setting the kernel parameter {path} to {value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(name: &str, namespaces: &str) -> Option<String> {
        let namespaces: Vec<crate::spec::Namespace> = serde_json::from_str(namespaces).unwrap();
        let namespaces = NamespacesPlan::new(&namespaces, &crate::spec::Linux::default()).unwrap();
        let sysctls = BTreeMap::from([(name.to_owned(), "1".to_owned())]);
        read(sysctls, &namespaces)
            .err()
            .map(|failure| failure.message)
    }

    const MOUNT: &str = r#"[{"type":"mount"}]"#;
    const IPC: &str = r#"[{"type":"mount"},{"type":"ipc"}]"#;

    #[test]
    fn a_parameter_of_the_containers_own_namespace_may_be_set() {
        assert_eq!(refusal("kernel.msgmax", IPC), None);
    }

    #[test]
    fn a_parameter_of_the_machines_ipc_namespace_is_refused() {
        assert!(refusal("kernel.msgmax", MOUNT).unwrap().contains("IPC"));
    }

    #[test]
    fn a_parameter_of_the_machine_is_refused() {
        assert!(
            refusal("vm.overcommit_memory", IPC)
                .unwrap()
                .contains("whole machine")
        );
    }

    #[test]
    fn the_machines_network_is_the_containers() {
        assert_eq!(refusal("net.ipv4.ip_forward", MOUNT), None);
    }

    #[test]
    fn a_slash_in_a_dotted_name_is_a_dot() {
        assert_eq!(
            path("net.ipv4.conf.eth0/1.forwarding"),
            Ok("net/ipv4/conf/eth0.1/forwarding".to_owned())
        );
    }

    #[test]
    fn a_name_cannot_lead_out_of_its_directory() {
        assert!(path("net/../../etc").is_err());
    }
}
