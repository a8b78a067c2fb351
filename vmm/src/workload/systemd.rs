//! What systemd needs of its container: <https://systemd.io/CONTAINER_INTERFACE>, and podman's `--systemd`.

use std::path::Path;
use std::str::FromStr;

use serde_json::{Value, json};

use super::container::ContainerError;

/// `SIGRTMIN+3`, by which systemd is asked to halt: systemd(1).
pub(super) const STOP_SIGNAL: u8 = 37;

/// What a process is asked to end by that is nobody special.
pub(super) const USUAL_STOP_SIGNAL: u8 = 15;

/// Programs that are taken for systemd beside those of this name, as podman does.
const INITS: [&str; 3] = ["/sbin/init", "/usr/sbin/init", "/usr/local/sbin/init"];

/// File systems in memory, with their options.
const TMPFS: [(&str, &[&str]); 2] = [
    ("/run", &["nosuid", "nodev", "mode=755", "tmpcopyup"]),
    (
        "/run/lock",
        &["nosuid", "nodev", "noexec", "mode=1777", "size=5m"],
    ),
];

/// By what systemd knows that it is in a container.
const MARK: &str = "container=oci";

/// Whether the container is made for systemd: `--systemd`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ForSystemd {
    /// If the command is systemd.
    #[default]
    IfItIs,
    /// Whatever the command is.
    Always,
    /// Whatever the command is, it is not.
    Never,
}

impl FromStr for ForSystemd {
    type Err = ContainerError;

    fn from_str(text: &str) -> Result<Self, ContainerError> {
        match text {
            "true" => Ok(Self::IfItIs),
            "always" => Ok(Self::Always),
            "false" => Ok(Self::Never),
            other => Err(ContainerError::ForSystemd(other.to_owned())),
        }
    }
}

impl ForSystemd {
    /// Whether it comes to this with that program.
    pub(super) fn is_for(self, program: &str) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::IfItIs => {
                INITS.contains(&program)
                    || Path::new(program)
                        .file_name()
                        .is_some_and(|name| name == "systemd")
            }
        }
    }
}

/// Makes of a configuration one for systemd: a cgroup of its own to manage, and file systems for what it writes at its start.
pub(super) fn apply(config: &mut Value) {
    if let Value::Array(environment) = &mut config["process"]["env"]
        && !environment.iter().any(|entry| {
            entry
                .as_str()
                .is_some_and(|entry| entry.starts_with("container="))
        })
    {
        environment.push(json!(MARK));
    }
    if let Value::Array(mounts) = &mut config["mounts"] {
        for mount in mounts.iter_mut() {
            if mount["destination"] == "/sys/fs/cgroup"
                && let Value::Array(options) = &mut mount["options"]
            {
                options.retain(|option| option != "ro");
            }
        }
        for (path, options) in TMPFS {
            if !mounts.iter().any(|mount| mount["destination"] == path) {
                mounts.push(json!({ "destination": path, "type": "tmpfs", "source": "tmpfs", "options": options }));
            }
        }
        // What was chosen may be below them, and they below it.
        mounts.sort_by_key(|mount| {
            mount["destination"]
                .as_str()
                .map_or(0, |path| path.matches('/').count())
        });
    }
    // Controllers are there for a cgroup below only if its own cgroup uses them.
    config["linux"]["resources"]["unified"] = json!({ "cpu.weight": "100", "pids.max": "max" });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_known_by_its_names() {
        let is = |program| ForSystemd::IfItIs.is_for(program);

        assert!(is("/sbin/init") && is("/lib/systemd/systemd") && is("systemd"));
        assert!(!is("/bin/init") && !is("/bin/systemd-run") && !is("sh"));
    }

    #[test]
    fn what_was_chosen_is_not_hidden() {
        let mount =
            |path: &str| json!({ "destination": path, "type": "tmpfs", "options": ["mine"] });
        let mut config = json!({ "mounts": [mount("/run/deep/er"), mount("/run/lock")], "process": { "env": [] } });

        apply(&mut config);

        let places: Vec<&Value> = config["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mount| &mount["destination"])
            .collect();
        assert_eq!(places, ["/run", "/run/lock", "/run/deep/er"]);
        assert_eq!(config["mounts"][1]["options"], json!(["mine"]));
        assert_eq!(config["process"]["env"], json!([MARK]));
    }

    #[test]
    fn whoever_says_so_counts_more_than_a_name() {
        let modes = ["always", "false"].map(|mode| mode.parse::<ForSystemd>().unwrap());

        assert_eq!(
            modes.map(|mode| mode.is_for("sh") || mode.is_for("/sbin/init")),
            [true, false]
        );
        assert!("yes".parse::<ForSystemd>().is_err());
    }
}
