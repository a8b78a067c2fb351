//! A whole configuration that somebody hands in: `--config FILE`.
//!
//! It is passed on as it is, with the fields that nobody here knows. What the host has to do with it is to compile its seccomp profile,
//! to find out whether its process has a terminal, and to say early what is no configuration at all.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::seccomp::Profile;
use super::systemd::{self, ForSystemd};
use super::{Workload, WorkloadError};

/// The most that is read of a configuration or a profile: as much as a request to the agent may have.
const MAX_BYTES: u64 = 4 << 20;

impl Workload {
    /// Takes the configuration in a file.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is no configuration, names no program, or has a seccomp profile that cannot be compiled.
    pub fn from_config(path: &Path) -> Result<Self, WorkloadError> {
        let mut config: Value = read_json(path, "configuration of the runtime-spec")?;
        let has_program = config["process"]["args"]
            .as_array()
            .is_some_and(|arguments| !arguments.is_empty());
        if !has_program {
            return Err(WorkloadError::NoProcess(path.to_owned()));
        }
        let seccomp = config
            .get_mut("linux")
            .and_then(Value::as_object_mut)
            .and_then(|linux| linux.remove("seccomp"))
            .filter(|profile| !profile.is_null())
            .map(|profile| {
                let profile: Profile =
                    serde_json::from_value(profile).map_err(|source| WorkloadError::NotJson {
                        path: path.to_owned(),
                        what: "configuration with a profile in linux.seccomp",
                        source,
                    })?;
                profile.compile(&[]).map_err(WorkloadError::from)
            })
            .transpose()?;
        let program = config["process"]["args"][0].as_str();
        let stop_signal = match program.is_some_and(|program| ForSystemd::IfItIs.is_for(program)) {
            true => systemd::STOP_SIGNAL,
            false => systemd::USUAL_STOP_SIGNAL,
        };
        Ok(Self {
            config,
            user: None,
            groups: Vec::new(),
            init: false,
            stop_signal,
            seccomp,
            has_usual_container: false,
            volumes: Vec::new(),
            network: None,
            names: protocol::Names::default(),
        })
    }
}

/// Reads a seccomp profile, docker's or the specification's.
///
/// # Errors
///
/// If the file cannot be read or is none.
pub(super) fn read_profile(path: &Path) -> Result<Profile, WorkloadError> {
    read_json(path, "seccomp profile")
}

fn read_json<T: DeserializeOwned>(path: &Path, what: &'static str) -> Result<T, WorkloadError> {
    let failed = |source| WorkloadError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX_BYTES {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    serde_json::from_slice(&text).map_err(|source| WorkloadError::NotJson {
        path: path.to_owned(),
        what,
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use protocol::{
        ContainerId, DeclaredStreams, Filesystem, Process, ProcessId, RootSource, Upper,
    };
    use serde_json::json;

    use super::*;

    fn workload(text: &str) -> Result<Workload, WorkloadError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        Workload::from_config(&path)
    }

    #[test]
    fn a_configuration_is_passed_on_with_what_nobody_knows() {
        let config = json!({ "ociVersion": "1.2.1", "process": { "args": ["sh"], "cwd": "/" }, "org.example": [1] });
        let process = Process {
            container: ContainerId(0),
            process: ProcessId(0),
        };
        let root = RootSource {
            source: "/dev/pmem1".to_owned(),
            filesystem: Filesystem::ErofsDax,
            upper: Upper::Tmpfs { size_bytes: 1 },
        };

        let create = workload(&config.to_string())
            .unwrap()
            .create(process, root, DeclaredStreams::default())
            .unwrap();

        let passed: Value = serde_json::from_slice(&create.config).unwrap();
        assert_eq!((passed, create.user), (config, None));
    }

    #[test]
    fn its_profile_is_compiled_and_taken_out() {
        let config = json!({ "process": { "args": ["sh"] },
            "linux": { "seccomp": { "defaultAction": "SCMP_ACT_ALLOW" } } });

        let workload = workload(&config.to_string()).unwrap();

        assert!(workload.seccomp.is_some());
        assert_eq!(workload.config()["linux"], json!({}));
    }

    #[test]
    fn a_profile_that_asks_for_notification_is_refused_by_name() {
        let config = json!({ "process": { "args": ["sh"] },
            "linux": { "seccomp": { "defaultAction": "SCMP_ACT_NOTIFY" } } });

        let error = workload(&config.to_string()).unwrap_err();

        let cause = error.source().unwrap().to_string();
        assert!(cause.contains("SCMP_ACT_NOTIFY"), "{cause}");
    }

    #[test]
    fn a_configuration_without_a_program_is_refused() {
        let error = workload(r#"{"ociVersion":"1.2.1"}"#).unwrap_err();

        assert!(error.to_string().contains("process.args"), "{error}");
    }

    #[test]
    fn what_is_no_json_is_refused() {
        assert!(matches!(
            workload("hello").unwrap_err(),
            WorkloadError::NotJson { .. }
        ));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Workload::from_config(Path::new("/not/there")).unwrap_err();

        assert!(error.to_string().contains("/not/there"));
    }
}
