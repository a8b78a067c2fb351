//! Another process of a workload's container: what it takes over from the workload, and what the user says besides. The rules are
//! docker's.

use protocol::{Create, DeclaredStreams, Exec, Process, WindowSize};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{environment, profile};

/// What every other process of a container begins with.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Basis {
    /// The runtime-spec configuration of the container, as JSON: it is looked into when somebody asks for a process.
    config: Vec<u8>,
    user: Option<String>,
    groups: Vec<String>,
}

/// What the user says about a process.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ExecChoices {
    /// The program and its arguments.
    pub arguments: Vec<String>,
    /// Variables that are set, or removed, in order.
    pub environment: Vec<(String, Option<String>)>,
    /// The directory to start in; otherwise the container's.
    pub working_directory: Option<String>,
    /// The user, docker's syntax; otherwise the container's.
    pub user: Option<String>,
    /// Whether it gets a terminal.
    pub has_terminal: bool,
    /// The size of the terminal's window at first, if it is known.
    pub window: Option<WindowSize>,
    /// Whether it has every capability, and no filter of system calls.
    pub is_privileged: bool,
}

/// The part of a configuration that counts here.
#[derive(Deserialize)]
struct Configuration {
    process: Map<String, Value>,
}

impl Basis {
    /// The basis of a container.
    #[must_use]
    pub fn of(create: &Create) -> Self {
        Self {
            config: create.config.clone(),
            user: create.user.clone(),
            groups: create.groups.clone(),
        }
    }

    /// Makes the message by which another process of the container is asked for.
    ///
    /// # Errors
    ///
    /// If the container's configuration is not one.
    pub fn exec(
        &self,
        choices: ExecChoices,
        id: Process,
        streams: DeclaredStreams,
    ) -> Result<Exec, serde_json::Error> {
        let Configuration { mut process } = serde_json::from_slice(&self.config)?;
        let mut environment: Vec<String> = match process.remove("env") {
            Some(Value::Array(entries)) => entries
                .into_iter()
                .filter_map(|entry| match entry {
                    Value::String(entry) => Some(entry),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        };
        if choices.has_terminal {
            environment::add_terminal(&mut environment);
        }
        for (name, value) in &choices.environment {
            environment::change(&mut environment, name, value.as_deref());
        }
        let mut set = |name: &str, value: Value| process.insert(name.to_owned(), value);
        set("env", json!(environment));
        set("args", json!(choices.arguments));
        set("terminal", json!(choices.has_terminal));
        let window = choices.window.filter(|_| choices.has_terminal);
        set(
            "consoleSize",
            json!(window.map(|size| json!({ "height": size.rows, "width": size.columns }))),
        );
        if let Some(directory) = choices.working_directory {
            set("cwd", json!(directory));
        }
        if choices.is_privileged {
            let all = profile::ALL_CAPABILITIES.as_slice();
            set(
                "capabilities",
                json!({ "bounding": all, "effective": all, "permitted": all }),
            );
        }
        Ok(Exec {
            process: id,
            spec: serde_json::to_vec(&process)?,
            user: choices.user.or_else(|| self.user.clone()),
            groups: self.groups.clone(),
            streams,
            is_filtered: !choices.is_privileged,
        })
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        let config = json!({
            "process": {
                "args": ["server"],
                "env": ["PATH=/bin", "A=1", "B=2"],
                "cwd": "/srv",
                "terminal": false,
                "capabilities": { "bounding": ["CAP_CHOWN"] },
                "noNewPrivileges": true,
            },
        });
        Self {
            config: config.to_string().into_bytes(),
            user: Some("app".to_owned()),
            groups: vec!["video".to_owned()],
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::{ContainerId, ProcessId};

    use super::*;

    fn exec(choices: ExecChoices) -> (Exec, Value) {
        let id = Process {
            container: ContainerId(0),
            process: ProcessId(7),
        };
        let exec = Basis::for_tests()
            .exec(choices, id, DeclaredStreams::default())
            .unwrap();
        let spec = serde_json::from_slice(&exec.spec).unwrap();
        (exec, spec)
    }

    #[test]
    fn what_is_not_chosen_is_the_containers() {
        let (exec, spec) = exec(ExecChoices {
            arguments: vec!["ls".to_owned(), "-l".to_owned()],
            ..ExecChoices::default()
        });

        assert_eq!(exec.user.as_deref(), Some("app"));
        assert_eq!(exec.groups, ["video"]);
        assert!(exec.is_filtered);
        assert_eq!(spec["args"], json!(["ls", "-l"]));
        assert_eq!(spec["env"], json!(["PATH=/bin", "A=1", "B=2"]));
        assert_eq!(spec["cwd"], "/srv");
        assert_eq!(spec["noNewPrivileges"], true);
        assert_eq!(spec["capabilities"]["bounding"], json!(["CAP_CHOWN"]));
    }

    #[test]
    fn variables_are_set_in_their_place_added_or_removed() {
        let (_, spec) = exec(ExecChoices {
            environment: vec![
                ("A".to_owned(), Some("3".to_owned())),
                ("B".to_owned(), None),
                ("C".to_owned(), Some(String::new())),
            ],
            ..ExecChoices::default()
        });

        assert_eq!(spec["env"], json!(["PATH=/bin", "A=3", "C="]));
    }

    #[test]
    fn a_terminal_brings_its_kind_and_its_size() {
        let (_, spec) = exec(ExecChoices {
            has_terminal: true,
            window: Some(WindowSize {
                rows: 24,
                columns: 80,
            }),
            ..ExecChoices::default()
        });

        assert_eq!(spec["terminal"], true);
        assert_eq!(spec["consoleSize"], json!({ "height": 24, "width": 80 }));
        assert_eq!(
            spec["env"],
            json!(["PATH=/bin", "A=1", "B=2", "TERM=xterm"])
        );
    }

    #[test]
    fn a_privileged_process_has_every_capability_and_no_filter() {
        let (exec, spec) = exec(ExecChoices {
            is_privileged: true,
            user: Some("0:0".to_owned()),
            working_directory: Some("/tmp".to_owned()),
            ..ExecChoices::default()
        });

        assert!(!exec.is_filtered);
        assert_eq!(exec.user.as_deref(), Some("0:0"));
        assert_eq!(spec["cwd"], "/tmp");
        assert_eq!(
            spec["capabilities"]["effective"],
            json!(profile::ALL_CAPABILITIES.as_slice())
        );
    }
}
