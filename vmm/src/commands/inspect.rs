//! `vmm inspect`: all that is known of machines, under docker's names where docker has one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use devices::virtio::net::MacAddress;
use protocol::InterfaceAddress;
use serde::Serialize;
use serde_json::Value;

use super::each;
use super::format::Template;
use super::output::{print_json, print_line, printable_lines};
use crate::cli::InspectArgs;
use crate::dirs::Directories;
use crate::logs::{LogConfig, LogDriver, path_of};
use crate::moment::Moment;
use crate::network::bridge::{Lease, NetworkRecord, Networks};
use crate::network::{DecidedInterface, Network};
use crate::outcome::{ExitCode, Outcome};
use crate::policy::{Health, HealthConfig};
use crate::report::Report;
use crate::state::{
    Cause, Condition, Ended, Machine, MachineId, Record, Registry, Signal, Status, Timestamp,
};
use crate::volumes::{TypedMount, TypedSource};

/// What docker prints for a time that has not come: the zero of Go's clock.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// What is said of a machine whose monitor wrote down no end.
const MONITOR_GONE: &str = "the machine's monitor was killed, or the host went down";
/// The same where the boot is another one.
const HOST_RESTARTED: &str = "the host restarted while the machine ran";

/// Shows what is known of each machine.
pub(super) fn run(arguments: &InspectArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    let template = match arguments.format.as_deref() {
        None => None,
        Some("json") => Some(Template::parse("{{json .}}")?),
        Some(text) => Some(Template::parse(text)?),
    };
    let mut found = Vec::new();
    let result = each(&arguments.machines, |reference| {
        let inspected = Inspected::of(&registry.find(reference)?, directories);
        match &template {
            None => found.push(inspected),
            Some(template) => print_line(filled(template, &inspected)?)?,
        }
        Ok(())
    });
    // As docker prints the list of those that are not there.
    if template.is_none() {
        print_json(&found)?;
    }
    result
}

/// What a template makes of a machine. Labels and commands may hold what a terminal would obey.
fn filled(template: &Template, inspected: &Inspected) -> Result<String, Report> {
    let value = serde_json::to_value(inspected).unwrap_or(Value::Null);
    Ok(printable_lines(&template.fill(&value)?))
}

/// A machine.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    created: String,
    path: String,
    args: Vec<String>,
    state: State,
    image: String,
    log_path: String,
    name: String,
    restart_count: u32,
    host_config: HostConfig,
    mounts: Vec<MountPoint>,
    config: Config,
    network_settings: NetworkSettings,
    vmm: Own,
}

/// How far it is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    status: &'static str,
    running: bool,
    paused: bool,
    restarting: bool,
    #[serde(rename = "OOMKilled")]
    oom_killed: bool,
    dead: bool,
    pid: u32,
    exit_code: u8,
    error: String,
    started_at: String,
    finished_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<Health>,
}

/// What it may use of the host.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    /// What was typed with `-v`, or could have been; none where there is nothing, as with docker.
    binds: Option<Vec<String>>,
    network_mode: String,
    dns: Vec<String>,
    dns_options: Vec<String>,
    dns_search: Vec<String>,
    /// None where there is nothing, as with docker.
    extra_hosts: Option<Vec<String>>,
    log_config: LogChoice,
    restart_policy: Restart,
    auto_remove: bool,
    memory: u64,
    nano_cpus: u64,
    memory_reservation: u64,
    memory_swap: i64,
    cpu_shares: u64,
    cpu_period: u64,
    cpu_quota: i64,
    cpuset_cpus: String,
    /// None where there is no limit.
    pids_limit: Option<i64>,
    readonly_rootfs: bool,
}

/// What it mounts beside its image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct MountPoint {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    source: String,
    destination: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<&'static str>,
    mode: &'static str,
    #[serde(rename = "RW")]
    writable: bool,
    propagation: String,
}

impl MountPoint {
    fn of(mount: &TypedMount, volumes: &Path) -> Self {
        let (kind, name, source) = match &mount.source {
            TypedSource::Bind(bind) => ("bind", None, bind.source.display().to_string()),
            TypedSource::Volume(volume) => {
                let name = volume.name.as_ref().map(ToString::to_string);
                let disk = volumes.join(name.as_deref().unwrap_or_default());
                ("volume", name, disk.join("disk").display().to_string())
            }
            TypedSource::Tmpfs(_) => ("tmpfs", None, String::new()),
            TypedSource::Disk(disk) => ("disk", None, disk.source.display().to_string()),
        };
        Self {
            r#type: kind,
            driver: name.is_some().then_some("local"),
            name,
            source,
            destination: mount.destination.clone(),
            mode: if mount.read_only { "ro" } else { "" },
            writable: !mount.read_only,
            propagation: match &mount.source {
                TypedSource::Bind(bind) => bind
                    .propagation
                    .clone()
                    .unwrap_or_else(|| "rprivate".to_owned()),
                _ => String::new(),
            },
        }
    }
}

/// A mount as `-v` has it; none of one that it has no words for.
fn spell_bind(mount: &TypedMount) -> Option<String> {
    let source = match &mount.source {
        TypedSource::Bind(bind) => bind.source.display().to_string(),
        TypedSource::Volume(volume) => volume.name.as_ref()?.to_string(),
        TypedSource::Tmpfs(_) | TypedSource::Disk(_) => return None,
    };
    let mode = if mount.read_only { ":ro" } else { "" };
    Some(format!("{source}:{}{mode}", mount.destination))
}

/// Its log.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct LogChoice {
    r#type: &'static str,
    config: BTreeMap<&'static str, String>,
}

/// When it is started again.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Restart {
    name: &'static str,
    /// 0 where that is not said.
    maximum_retry_count: u32,
}

/// What runs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    hostname: String,
    user: String,
    tty: bool,
    env: Vec<String>,
    cmd: Vec<String>,
    image: String,
    working_dir: String,
    labels: BTreeMap<String, String>,
    stop_signal: String,
    stop_timeout: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    healthcheck: Option<HealthConfig>,
}

/// Its network, by docker's names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    /// Where the host publishes them.
    ports: BTreeMap<String, Vec<PortBinding>>,
    /// Those of the one network that there can be.
    #[serde(flatten)]
    endpoint: Endpoint,
    networks: BTreeMap<String, Attached>,
}

/// Where a port is published.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct PortBinding {
    host_ip: String,
    host_port: String,
}

/// The machine in a network, with what it is known by there.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Attached {
    #[serde(flatten)]
    endpoint: Endpoint,
    #[serde(rename = "NetworkID")]
    network: String,
    #[serde(rename = "EndpointID")]
    tap: String,
    aliases: Option<Vec<String>>,
    #[serde(rename = "DNSNames")]
    names: Option<Vec<String>>,
}

/// The machine in a network.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    mac_address: String,
    gateway: String,
    #[serde(rename = "IPAddress")]
    ipv4_address: String,
    #[serde(rename = "IPPrefixLen")]
    ipv4_prefix: u8,
    #[serde(rename = "IPv6Gateway")]
    ipv6_gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    ipv6_prefix: u8,
}

impl NetworkSettings {
    fn of(network: &Network, machine: &MachineId, directories: &Directories) -> Self {
        let interface = network.interface.as_ref();
        let networks = Networks::new(directories.networks());
        let lease = network
            .bridge()
            .and_then(|name| networks.lease(name, machine));
        let attached = match lease {
            Some((record, lease)) => Attached::of(&record, &lease, machine),
            None => Attached {
                endpoint: interface.map(Endpoint::of).unwrap_or_default(),
                ..Attached::default()
            },
        };
        let mut ports: BTreeMap<String, Vec<PortBinding>> = BTreeMap::new();
        for port in network.published().unwrap_or_default() {
            let bindings = port.addresses().into_iter().map(|address| PortBinding {
                host_ip: address.ip().to_string(),
                host_port: address.port().to_string(),
            });
            ports.entry(port.to_string()).or_default().extend(bindings);
        }
        Self {
            ports,
            endpoint: attached.endpoint.clone(),
            networks: BTreeMap::from([(network.mode(), attached)]),
        }
    }
}

impl Attached {
    fn of(record: &NetworkRecord, lease: &Lease, machine: &MachineId) -> Self {
        let gateways = record.pools.iter().map(|pool| pool.gateway);
        let gateways = gateways.filter(|_| !record.internal).collect::<Vec<_>>();
        let own = lease.name.iter().cloned();
        let names = own
            .chain(lease.aliases.iter().cloned())
            .chain([machine.short().to_owned()]);
        Self {
            endpoint: Endpoint::at(lease.mac, &lease.addresses, &gateways),
            network: record.id.to_string(),
            tap: lease.tap.clone(),
            aliases: Some(lease.aliases.clone()).filter(|aliases| !aliases.is_empty()),
            names: Some(names.collect()),
        }
    }
}

impl Endpoint {
    fn of(interface: &DecidedInterface) -> Self {
        Self::at(interface.mac, &interface.addresses, &interface.gateways)
    }

    fn at(mac: MacAddress, addresses: &[InterfaceAddress], gateways: &[IpAddr]) -> Self {
        let address = |is_ipv4: bool| {
            let mut addresses = addresses.iter();
            let found = addresses.find(|it| it.address.is_ipv4() == is_ipv4);
            found.map_or_else(Default::default, |it| (it.address.to_string(), it.prefix))
        };
        let gateway = |is_ipv4: bool| {
            let mut gateways = gateways.iter();
            let found = gateways.find(|it| it.is_ipv4() == is_ipv4);
            found.map(ToString::to_string).unwrap_or_default()
        };
        let (ipv4_address, ipv4_prefix) = address(true);
        let (ipv6_address, ipv6_prefix) = address(false);
        Self {
            mac_address: mac.to_string(),
            gateway: gateway(true),
            ipv4_address,
            ipv4_prefix,
            ipv6_gateway: gateway(false),
            ipv6_address,
            ipv6_prefix,
        }
    }
}

/// What docker has no name for.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Own {
    /// Where the machine's files are.
    directory: String,
    /// What ended it, once it has.
    cause: Option<Cause>,
    /// The signal that ended the workload, if one did.
    signal: Option<String>,
    /// Of a guest that died.
    last_log_lines: Vec<String>,
}

impl Inspected {
    fn of(machine: &Machine, directories: &Directories) -> Self {
        let volumes = directories.volumes();
        let Record {
            id,
            name,
            image,
            command,
            created,
            ephemeral,
            settings,
            history,
            ..
        } = &machine.record;
        let condition = machine.condition();
        let ended = match &condition {
            Condition::Restarting(ended) | Condition::Exited(ended) => Some(ended),
            _ => None,
        };
        let log_path = match settings.log {
            Some(log) if log.is_kept() => path_of(&machine.directory).display().to_string(),
            _ => String::new(),
        };
        let (path, args) = match command.split_first() {
            Some((path, args)) => (path.clone(), args.to_vec()),
            None => (String::new(), Vec::new()),
        };
        Self {
            id: id.to_string(),
            created: spell(*created),
            path,
            args,
            state: State::of(machine, &condition),
            image: image.id.clone(),
            log_path,
            name: format!("/{name}"),
            restart_count: history.restarts,
            mounts: settings
                .mounts
                .iter()
                .map(|mount| MountPoint::of(mount, volumes))
                .collect(),
            host_config: HostConfig {
                binds: Some(settings.mounts.iter().filter_map(spell_bind).collect())
                    .filter(|binds: &Vec<String>| !binds.is_empty()),
                network_mode: settings.network.mode(),
                dns: settings
                    .network
                    .names
                    .servers
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                dns_options: settings.network.names.options.clone(),
                dns_search: settings.network.names.search.clone(),
                extra_hosts: Some(
                    settings
                        .network
                        .names
                        .hosts
                        .iter()
                        .map(ToString::to_string)
                        .collect(),
                )
                .filter(|hosts: &Vec<String>| !hosts.is_empty()),
                log_config: LogChoice::of(settings.log),
                restart_policy: Restart {
                    name: settings.restart.name(),
                    maximum_retry_count: settings.restart.max_retries(),
                },
                auto_remove: *ephemeral,
                memory: settings.memory_bytes,
                nano_cpus: settings.nano_cpus,
                memory_reservation: settings.limits.memory_reservation_bytes,
                memory_swap: settings.limits.memory_swap_bytes,
                cpu_shares: settings.limits.cpu_shares,
                cpu_period: settings.limits.cpu_period_us,
                cpu_quota: settings.limits.cpu_quota_us,
                cpuset_cpus: settings.limits.cpuset_cpus.clone(),
                pids_limit: Some(settings.limits.pids_limit).filter(|limit| *limit > 0),
                readonly_rootfs: settings.read_only,
            },
            config: Config {
                hostname: settings.hostname.clone(),
                user: settings.user.clone(),
                tty: settings.terminal,
                env: settings.environment.clone(),
                cmd: command.clone(),
                image: image.reference.clone(),
                working_dir: settings.working_directory.clone(),
                labels: settings.labels.clone(),
                stop_signal: settings.stop_signal.unwrap_or(Signal::TERM).to_string(),
                stop_timeout: settings.stop_timeout_seconds,
                healthcheck: settings.health.as_ref().map(|check| check.config.clone()),
            },
            network_settings: NetworkSettings::of(&settings.network, id, directories),
            vmm: Own {
                directory: machine.directory.display().to_string(),
                cause: match condition {
                    Condition::Dead {
                        host_restarted: true,
                    } => Some(Cause::HostRestarted),
                    _ => ended.map(|ended| ended.cause),
                },
                signal: ended
                    .and_then(|ended| ended.signal)
                    .map(|it| it.to_string()),
                last_log_lines: ended.map_or_else(Vec::new, |it| it.last_log_lines.clone()),
            },
        }
    }
}

impl State {
    fn of(machine: &Machine, condition: &Condition) -> Self {
        let nobody = Self {
            status: condition.name(),
            running: false,
            paused: false,
            restarting: false,
            oom_killed: false,
            dead: false,
            pid: 0,
            exit_code: 0,
            error: String::new(),
            started_at: NEVER.to_owned(),
            finished_at: NEVER.to_owned(),
            health: machine.health(condition),
        };
        let pid = machine.record.settings.monitor_pid;
        match condition {
            Condition::Created => Self { pid, ..nobody },
            Condition::Running { started } => Self {
                running: true,
                pid,
                started_at: spell(*started),
                ..nobody
            },
            Condition::Paused { started } => Self {
                // As docker has it: what is paused runs.
                running: true,
                paused: true,
                pid,
                started_at: spell(*started),
                ..nobody
            },
            Condition::Restarting(ended) => Self {
                // As docker has it, too.
                running: true,
                restarting: true,
                oom_killed: ended.out_of_memory,
                exit_code: ended.exit_code,
                error: why(ended),
                started_at: ended.started.map_or_else(|| NEVER.to_owned(), spell),
                finished_at: spell(ended.finished),
                ..nobody
            },
            Condition::Exited(ended) => Self {
                oom_killed: ended.out_of_memory,
                exit_code: ended.exit_code,
                error: why(ended),
                started_at: ended.started.map_or_else(|| NEVER.to_owned(), spell),
                finished_at: spell(ended.finished),
                ..nobody
            },
            Condition::Dead { host_restarted } => Self {
                dead: true,
                exit_code: Outcome::Killed.exit_code().number(),
                error: match host_restarted {
                    true => HOST_RESTARTED.to_owned(),
                    false => MONITOR_GONE.to_owned(),
                },
                started_at: match machine.record.status {
                    Status::Running { started } => spell(started),
                    _ => NEVER.to_owned(),
                },
                ..nobody
            },
        }
    }
}

/// Why the workload did not end by itself; empty if it did.
fn why(ended: &Ended) -> String {
    match (&ended.message, ended.cause) {
        (Some(message), _) => message.clone(),
        (None, Cause::Killed) => "the machine was killed from outside".to_owned(),
        (None, _) => String::new(),
    }
}

impl LogChoice {
    fn of(log: Option<LogConfig>) -> Self {
        let Some(log) = log else {
            return Self {
                r#type: LogDriver::None.name(),
                config: BTreeMap::new(),
            };
        };
        let size = log
            .max_file_bytes
            .map_or("-1".to_owned(), |bytes| bytes.to_string());
        let config = match log.is_kept() {
            true => BTreeMap::from([("max-size", size), ("max-file", log.max_files.to_string())]),
            false => BTreeMap::new(),
        };
        Self {
            r#type: log.driver.name(),
            config,
        }
    }
}

fn spell(time: Timestamp) -> String {
    Moment::of_seconds(time.0).to_string()
}
