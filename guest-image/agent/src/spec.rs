//! The part of the OCI runtime-spec's `config.json` that the agent executes, and the refusal of the rest.
//!
//! The types are the agent's own rather than a library's, because a library's types drop what they do not know, and here
//! each field of the specification is either executed or refused by its name. A field that the specification does not know
//! is skipped, as its section "Extensibility" demands. Field names and meanings: runtime-spec 1.2, `config.md` and
//! `config-linux.md`.

use std::collections::BTreeMap;
use std::fmt;

use protocol::StartFailure;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::step::invalid;

/// `config.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config {
    pub(crate) oci_version: String,
    pub(crate) process: Option<Process>,
    pub(crate) root: Option<Root>,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) mounts: Vec<Mount>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) linux: Linux,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) hooks: Hooks,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default)]
    solaris: Given,
    #[serde(default)]
    windows: Given,
    #[serde(default)]
    vm: Given,
    #[serde(default)]
    zos: Given,
    #[serde(default)]
    freebsd: Given,
}

/// `root`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Root {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) readonly: bool,
}

/// `process`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Process {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) terminal: bool,
    pub(crate) console_size: Option<ConsoleSize>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) user: User,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) args: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) capabilities: Option<Capabilities>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) rlimits: Vec<Rlimit>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) no_new_privileges: bool,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) scheduler: Option<Scheduler>,
    pub(crate) io_priority: Option<IoPriority>,
    #[serde(rename = "execCPUAffinity")]
    pub(crate) exec_cpu_affinity: Option<CpuAffinity>,
    #[serde(default)]
    command_line: Given,
    #[serde(default)]
    apparmor_profile: Given,
    #[serde(default)]
    selinux_label: Given,
}

/// `process.scheduler`, times in nanoseconds.
#[derive(Debug, Deserialize)]
pub(crate) struct Scheduler {
    pub(crate) policy: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) nice: i32,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) priority: i32,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) flags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) runtime: u64,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) deadline: u64,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) period: u64,
}

/// `process.ioPriority`.
#[derive(Debug, Deserialize)]
pub(crate) struct IoPriority {
    pub(crate) class: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) priority: i32,
}

/// `process.execCPUAffinity`: lists of processors, for processes that join a container later.
#[derive(Debug, Deserialize)]
pub(crate) struct CpuAffinity {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) initial: String,
    #[serde(default, deserialize_with = "or_default", rename = "final")]
    pub(crate) last: String,
}

/// `process.consoleSize`, in characters.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct ConsoleSize {
    pub(crate) height: u16,
    pub(crate) width: u16,
}

/// `process.user`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct User {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) uid: u32,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) gid: u32,
    pub(crate) umask: Option<u32>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) additional_gids: Vec<u32>,
    #[serde(default)]
    username: Given,
}

/// `process.capabilities`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Capabilities {
    #[serde(deserialize_with = "or_default")]
    pub(crate) bounding: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) effective: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) inheritable: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) permitted: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) ambient: Vec<String>,
}

/// An element of `process.rlimits`.
#[derive(Debug, Deserialize)]
pub(crate) struct Rlimit {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// An element of `mounts`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Mount {
    pub(crate) destination: String,
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) source: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) options: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) uid_mappings: Vec<IdMapping>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) gid_mappings: Vec<IdMapping>,
}

/// `hooks`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Hooks {
    #[serde(deserialize_with = "or_default")]
    pub(crate) prestart: Vec<Hook>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) create_runtime: Vec<Hook>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) create_container: Vec<Hook>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) start_container: Vec<Hook>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) poststart: Vec<Hook>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) poststop: Vec<Hook>,
}

/// An element of a list of `hooks`; the timeout is in seconds.
#[derive(Debug, Deserialize)]
pub(crate) struct Hook {
    pub(crate) path: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) args: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) env: Vec<String>,
    pub(crate) timeout: Option<i64>,
}

/// `linux`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Linux {
    #[serde(deserialize_with = "or_default")]
    pub(crate) namespaces: Vec<Namespace>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) devices: Vec<Device>,
    pub(crate) cgroups_path: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) resources: Resources,
    #[serde(deserialize_with = "or_default")]
    pub(crate) sysctl: BTreeMap<String, String>,
    pub(crate) rootfs_propagation: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) masked_paths: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) readonly_paths: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) uid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) gid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) time_offsets: BTreeMap<String, TimeOffset>,
    intel_rdt: Given,
    memory_policy: Given,
    /// Only whether there is one: what it comes to travels beside the config.
    pub(crate) seccomp: Given,
    mount_label: Given,
    pub(crate) personality: Option<Personality>,
    net_devices: Given,
}

/// `linux.personality`.
#[derive(Debug, Deserialize)]
pub(crate) struct Personality {
    pub(crate) domain: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) flags: Vec<String>,
}

/// An element of `linux.namespaces`.
#[derive(Debug, Deserialize)]
pub(crate) struct Namespace {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) path: Option<String>,
}

/// An element of `uidMappings` or `gidMappings`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
pub(crate) struct IdMapping {
    #[serde(rename = "containerID")]
    pub(crate) container_id: u32,
    #[serde(rename = "hostID")]
    pub(crate) host_id: u32,
    pub(crate) size: u32,
}

/// An element of `linux.timeOffsets`.
#[derive(Debug, Deserialize)]
pub(crate) struct TimeOffset {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) secs: i64,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) nanosecs: u32,
}

/// An element of `linux.devices`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Device {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) path: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) major: u32,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) minor: u32,
    pub(crate) file_mode: Option<u32>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) uid: u32,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) gid: u32,
}

/// `linux.resources`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Resources {
    #[serde(deserialize_with = "or_default")]
    pub(crate) memory: Memory,
    #[serde(deserialize_with = "or_default")]
    pub(crate) cpu: Cpu,
    #[serde(deserialize_with = "or_default")]
    pub(crate) pids: Pids,
    #[serde(deserialize_with = "or_default")]
    pub(crate) unified: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) devices: Vec<DeviceRule>,
    #[serde(deserialize_with = "or_default", rename = "blockIO")]
    pub(crate) block_io: BlockIo,
    #[serde(deserialize_with = "or_default")]
    pub(crate) hugepage_limits: Vec<HugepageLimit>,
    network: Given,
    rdma: Given,
}

/// `linux.resources.memory`, in bytes; -1 is no limit.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Memory {
    pub(crate) limit: Option<i64>,
    pub(crate) reservation: Option<i64>,
    pub(crate) swap: Option<i64>,
    pub(crate) kernel: Option<i64>,
    #[serde(rename = "kernelTCP")]
    pub(crate) kernel_tcp: Option<i64>,
    swappiness: Given,
    #[serde(rename = "disableOOMKiller")]
    disable_oom_killer: Given,
    // `useHierarchy` is what version 2 of cgroups always does, and `checkBeforeUpdate` is about limits that change.
}

/// `linux.resources.cpu`, times in microseconds.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Cpu {
    pub(crate) shares: Option<u64>,
    pub(crate) quota: Option<i64>,
    pub(crate) burst: Option<u64>,
    pub(crate) period: Option<u64>,
    pub(crate) cpus: Option<String>,
    pub(crate) mems: Option<String>,
    pub(crate) idle: Option<i64>,
    realtime_runtime: Given,
    realtime_period: Given,
}

/// `linux.resources.blockIO`, rates in bytes or operations a second.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct BlockIo {
    pub(crate) weight: Option<u16>,
    pub(crate) leaf_weight: Option<u16>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) weight_device: Vec<WeightDevice>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) throttle_read_bps_device: Vec<ThrottleDevice>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) throttle_write_bps_device: Vec<ThrottleDevice>,
    #[serde(deserialize_with = "or_default", rename = "throttleReadIOPSDevice")]
    pub(crate) throttle_read_iops_device: Vec<ThrottleDevice>,
    #[serde(deserialize_with = "or_default", rename = "throttleWriteIOPSDevice")]
    pub(crate) throttle_write_iops_device: Vec<ThrottleDevice>,
}

/// An element of `linux.resources.blockIO.weightDevice`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WeightDevice {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) weight: Option<u16>,
    pub(crate) leaf_weight: Option<u16>,
}

/// An element of `linux.resources.blockIO.throttle…Device`.
#[derive(Debug, Deserialize)]
pub(crate) struct ThrottleDevice {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) rate: u64,
}

/// An element of `linux.resources.hugepageLimits`, in bytes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HugepageLimit {
    pub(crate) page_size: String,
    pub(crate) limit: u64,
}

/// An element of `linux.resources.devices`.
#[derive(Debug, Deserialize)]
pub(crate) struct DeviceRule {
    pub(crate) allow: bool,
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) major: Option<i64>,
    pub(crate) minor: Option<i64>,
    pub(crate) access: Option<String>,
}

/// `linux.resources.pids`; no limit if it is 0 or less.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pids {
    pub(crate) limit: Option<i64>,
}

impl Config {
    /// Parses a `config.json`.
    ///
    /// # Errors
    ///
    /// If the bytes are not JSON of the right shape. The path of the field is named.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, StartFailure> {
        serde_json::from_slice(json).map_err(|error| {
            let step = match field_at(json, error.line(), error.column()) {
                field if field.is_empty() => "reading config.json".to_owned(),
                field => field,
            };
            invalid(step, without_place(&error))
        })
    }

    /// Names the first field that asks for something the agent does not do.
    pub(crate) fn unsupported_field(&self) -> Option<String> {
        let of_config = [
            ("solaris", self.solaris),
            ("windows", self.windows),
            ("vm", self.vm),
            ("zos", self.zos),
            ("freebsd", self.freebsd),
        ];
        let process = self.process.as_ref();
        first_given(&of_config)
            .or_else(|| process.and_then(Process::unsupported_field))
            .or_else(|| self.linux.unsupported_field())
    }
}

impl Resources {
    /// Parses a `linux.resources` that stands alone.
    ///
    /// # Errors
    ///
    /// If the bytes are not JSON of the right shape.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, StartFailure> {
        serde_json::from_slice(json)
            .map_err(|error| invalid("linux.resources", without_place(&error)))
    }
}

impl Process {
    /// Parses a `process` that stands alone.
    ///
    /// # Errors
    ///
    /// If the bytes are not JSON of the right shape. The path of the field is named.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, StartFailure> {
        serde_json::from_slice(json).map_err(|error| {
            let step = match field_at(json, error.line(), error.column()) {
                field if field.is_empty() => "process".to_owned(),
                field => format!("process.{field}"),
            };
            invalid(step, without_place(&error))
        })
    }

    /// Names the first field that asks for something the agent does not do.
    pub(crate) fn unsupported_field(&self) -> Option<String> {
        first_given(&[
            ("process.commandLine", self.command_line),
            ("process.apparmorProfile", self.apparmor_profile),
            ("process.selinuxLabel", self.selinux_label),
            ("process.user.username", self.user.username),
        ])
    }
}

impl Linux {
    fn unsupported_field(&self) -> Option<String> {
        let resources = &self.resources;
        first_given(&[
            ("linux.intelRdt", self.intel_rdt),
            ("linux.memoryPolicy", self.memory_policy),
            ("linux.mountLabel", self.mount_label),
            ("linux.netDevices", self.net_devices),
            ("linux.resources.network", resources.network),
            ("linux.resources.rdma", resources.rdma),
            (
                "linux.resources.memory.swappiness",
                resources.memory.swappiness,
            ),
            (
                "linux.resources.memory.disableOOMKiller",
                resources.memory.disable_oom_killer,
            ),
            (
                "linux.resources.cpu.realtimeRuntime",
                resources.cpu.realtime_runtime,
            ),
            (
                "linux.resources.cpu.realtimePeriod",
                resources.cpu.realtime_period,
            ),
        ])
    }
}

/// What is wrong: where in a text that the host has made is of no use to anybody.
fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    message.to_owned()
}

/// The path of the field in which a JSON text is at a place, like `process.rlimits[1].soft`: what surrounds the byte before it.
/// Lines and columns are counted from 1.
fn field_at(json: &[u8], line: usize, column: usize) -> String {
    /// What is open at a place: an object with the name of the value in it, or a list with the value's number.
    enum Open {
        Object(String),
        List(usize),
    }
    let before: usize = json
        .split_inclusive(|byte| *byte == b'\n')
        .take(line.saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    let until = json.get(..before + column).unwrap_or(json);
    let mut open: Vec<Open> = Vec::new();
    let mut string: Option<Vec<u8>> = None;
    let mut last_string = String::new();
    let mut is_escaped = false;
    for &byte in until {
        if let Some(text) = &mut string {
            match byte {
                b'"' if !is_escaped => {
                    last_string = String::from_utf8_lossy(text).into_owned();
                    string = None;
                }
                _ => text.push(byte),
            }
            is_escaped = byte == b'\\' && !is_escaped;
            continue;
        }
        match byte {
            b'"' => string = Some(Vec::new()),
            b'{' => open.push(Open::Object(String::new())),
            b'[' => open.push(Open::List(0)),
            // At the last byte a value has ended that is still the one that is meant.
            b'}' | b']' => drop(open.pop()),
            b':' => {
                if let Some(Open::Object(name)) = open.last_mut() {
                    name.clone_from(&last_string);
                }
            }
            b',' => {
                if let Some(Open::List(index)) = open.last_mut() {
                    *index += 1;
                }
            }
            _ => (),
        }
    }
    let mut path = String::new();
    for level in open {
        match level {
            Open::Object(name) if name.is_empty() => (),
            Open::Object(name) if path.is_empty() => path = name,
            Open::Object(name) => path = format!("{path}.{name}"),
            Open::List(index) => path = format!("{path}[{index}]"),
        }
    }
    path
}

fn first_given(fields: &[(&str, Given)]) -> Option<String> {
    fields
        .iter()
        .find(|(_, given)| given.0)
        .map(|(name, _)| (*name).to_owned())
}

/// Takes a field that is `null` for one that is not there.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Whether a field asks for anything: it is there, and neither `null`, `false` nor empty.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Given(pub(crate) bool);

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(GivenVisitor)
    }
}

struct GivenVisitor;

impl<'de> Visitor<'de> for GivenVisitor {
    type Value = Given;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Given, E> {
        Ok(Given(false))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Given, E> {
        Ok(Given(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Given, E> {
        Ok(Given(true))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Given, E> {
        Ok(Given(true))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Given, E> {
        Ok(Given(true))
    }

    fn visit_str<E>(self, value: &str) -> Result<Given, E> {
        Ok(Given(!value.is_empty()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Given, A::Error> {
        let mut given = false;
        while seq.next_element::<IgnoredAny>()?.is_some() {
            given = true;
        }
        Ok(Given(given))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Given, A::Error> {
        let mut given = false;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            given = true;
        }
        Ok(Given(given))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> Option<String> {
        Config::parse(json.as_bytes()).unwrap().unsupported_field()
    }

    #[test]
    fn empty_fields_ask_for_nothing() {
        let json = r#"{"ociVersion":"1.2.0","hooks":{},"process":{"cwd":"/","apparmorProfile":"","scheduler":null},
            "linux":{"seccomp":null,"uidMappings":[],"resources":{"memory":{"disableOOMKiller":false}}}}"#;

        assert_eq!(refused(json), None);
    }

    fn wrong(json: &str) -> (String, String) {
        let failure = Config::parse(json.as_bytes()).unwrap_err();
        (failure.step, failure.message)
    }

    #[test]
    fn a_wrong_type_is_named_by_the_path_of_its_field() {
        let json = r#"{"ociVersion":"1.2.0","process":{"cwd":"/","env":["A=\"{"],
            "rlimits":[{"type":"RLIMIT_CORE","soft":1,"hard":1},{"type":"RLIMIT_AS","soft":"much"}]}}"#;

        assert_eq!(
            wrong(json),
            (
                "process.rlimits[1].soft".to_owned(),
                "invalid type: string \"much\", expected u64".to_owned()
            )
        );
    }

    #[test]
    fn an_object_in_place_of_a_list_is_named() {
        let json = r#"{"ociVersion":"1.2.0","mounts":{"destination":"/x"}}"#;

        assert_eq!(wrong(json).0, "mounts");
    }

    #[test]
    fn a_missing_field_is_named_with_what_it_is_missing_in() {
        let json = r#"{"ociVersion":"1.2.0","linux":{"namespaces":[{"path":"/x"}]}}"#;

        let (field, message) = wrong(json);

        assert!(field.starts_with("linux.namespaces"), "{field}");
        assert_eq!(message, "missing field `type`");
    }

    #[test]
    fn a_text_that_is_no_json_is_said_to_be_none() {
        assert_eq!(wrong("hello").0, "reading config.json");
    }

    #[test]
    fn a_process_that_stands_alone_is_named_in_the_path_of_its_fields() {
        let failure = Process::parse(br#"{"cwd":"/","args":{}}"#).unwrap_err();

        assert_eq!(failure.step, "process.args");
    }

    #[test]
    fn what_is_null_is_not_there() {
        let json = r#"{"ociVersion":"1.2.0","mounts":null,"hooks":null,"annotations":null,
            "process":{"cwd":"/","env":null,"user":null,"rlimits":null,"capabilities":{"ambient":null}},
            "linux":{"namespaces":null,"resources":{"memory":null,"pids":null,"devices":null,"unified":null}}}"#;

        assert_eq!(refused(json), None);
    }

    #[test]
    fn fields_that_the_specification_does_not_know_are_skipped() {
        let json =
            r#"{"ociVersion":"1.2.0","org.example.more":{"a":[1]},"process":{"cwd":"/","x":1}}"#;

        assert_eq!(refused(json), None);
    }
}
