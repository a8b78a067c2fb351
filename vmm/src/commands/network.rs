//! `vmm network`: networks of this host, in docker's words.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::each;
use super::format::Template;
use super::output::{print_json, print_line, print_text, printable_lines};
use super::rmi::confirm;
use super::rows::{Listed, RowFormat};
use crate::cli::{
    NetworkCommand, NetworkCreateArgs, NetworkInspectArgs, NetworkListArgs, NetworkOption,
    NetworkPruneArgs, NetworkRmArgs,
};
use crate::dirs::Directories;
use crate::moment::Moment;
use crate::network::bridge::{
    BridgeError, Lease, NetworkName, NetworkRecord, Networks, NewNetwork,
};
use crate::outcome::ExitCode;
use crate::report::{Help, Report, chain};

/// The only driver.
const DRIVER: &str = "bridge";
/// Where what it makes is known.
const SCOPE: &str = "local";

/// Runs `vmm network …`.
pub(super) fn run(command: &NetworkCommand, directories: &Directories) -> Result<ExitCode, Report> {
    let networks = Networks::new(directories.networks());
    if let Err(error) = networks.tidy() {
        // Who only looks needs no right to the host's interfaces.
        tracing::debug!("what machines have left is not removed: {}", chain(&error));
    }
    match command {
        NetworkCommand::Create(arguments) => create(arguments, &networks),
        NetworkCommand::Ls(arguments) => list(arguments, &networks),
        NetworkCommand::Inspect(arguments) => inspect(arguments, &networks),
        NetworkCommand::Rm(arguments) => remove(arguments, &networks),
        NetworkCommand::Prune(arguments) => prune(arguments, &networks),
    }
}

fn create(arguments: &NetworkCreateArgs, networks: &Networks) -> Result<ExitCode, Report> {
    let mut new = NewNetwork {
        name: arguments.name.clone(),
        subnets: arguments.subnet.clone(),
        gateways: arguments.gateway.clone(),
        ranges: arguments.ip_range.clone(),
        ipv6: arguments.ipv6,
        internal: arguments.internal,
        labels: arguments.label.iter().cloned().collect(),
        options: arguments.options.iter().map(NetworkOption::pair).collect(),
        mtu: None,
        bridge: None,
    };
    for option in &arguments.options {
        match option {
            NetworkOption::Mtu(mtu) => new.mtu = Some(*mtu),
            NetworkOption::Bridge(name) => new.bridge = Some(name.clone()),
        }
    }
    print_line(networks.create(&new)?.id.as_str())?;
    Ok(ExitCode::SUCCESS)
}

/// Docker's columns.
const USUAL_TABLE: &str = "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}";

/// What stands above a column, by the name of its field.
const HEADERS: [(&str, &str); 8] = [
    ("ID", "NETWORK ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("IPv6", "IPV6"),
    ("Internal", "INTERNAL"),
    ("Labels", "LABELS"),
    ("CreatedAt", "CREATED AT"),
];

/// A network in a list.
struct Row {
    record: NetworkRecord,
    is_whole: bool,
}

impl Row {
    fn id(&self) -> &str {
        match self.is_whole {
            true => self.record.id.as_str(),
            false => self.record.id.short(),
        }
    }
}

impl Listed for Row {
    fn fields(&self) -> Value {
        let labels = self.record.labels.iter();
        let labels: Vec<String> = labels
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        json!({
            "ID": self.id(),
            "Name": self.record.name.as_str(),
            "Driver": DRIVER,
            "Scope": SCOPE,
            "IPv6": self.record.pool(false).is_some().to_string(),
            "Internal": self.record.internal.to_string(),
            "Labels": labels.join(","),
            "CreatedAt": Moment::of_seconds(self.record.created.0).to_string(),
        })
    }
}

/// The networks that can be read; the others are named.
fn readable(networks: &Networks) -> Result<Vec<NetworkRecord>, Report> {
    let mut found = Vec::new();
    for (_, record) in networks.list()? {
        match record {
            Ok(record) => found.push(record),
            Err(error) => tracing::warn!("{}", chain(&error)),
        }
    }
    Ok(found)
}

fn list(arguments: &NetworkListArgs, networks: &Networks) -> Result<ExitCode, Report> {
    let filters = Filters::parse(&arguments.filter)?;
    let mut found = readable(networks)?;
    found.retain(|record| filters.take(record));
    if arguments.json {
        let inspected: Vec<_> = found.iter().map(Inspected::of).collect();
        print_json(&inspected)?;
        return Ok(ExitCode::SUCCESS);
    }
    let is_whole = arguments.no_trunc;
    let rows: Vec<Row> = found
        .into_iter()
        .map(|record| Row { record, is_whole })
        .collect();
    if arguments.quiet {
        for row in &rows {
            print_line(row.id())?;
        }
    } else {
        let format = RowFormat::parse(arguments.format.as_deref(), USUAL_TABLE, &HEADERS)?;
        print_text(&format.fill(&rows)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Which networks are wanted.
#[derive(Debug, Default)]
struct Filters {
    names: Vec<String>,
    ids: Vec<String>,
    labels: Vec<(String, Option<String>)>,
    dangling: Option<bool>,
    /// Something was asked for that there is not.
    none: bool,
}

impl Filters {
    fn parse(typed: &[String]) -> Result<Self, FilterError> {
        let mut filters = Self::default();
        for text in typed {
            let wrong = || FilterError(text.clone());
            let (kind, value) = text.split_once('=').ok_or_else(wrong)?;
            match (kind, value) {
                ("name", name) => filters.names.push(name.to_owned()),
                ("id", id) => filters.ids.push(id.to_owned()),
                ("label", label) => filters.labels.push(match label.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (label.to_owned(), None),
                }),
                ("dangling", "true" | "1") => filters.dangling = Some(true),
                ("dangling", "false" | "0") => filters.dangling = Some(false),
                ("driver", driver) => filters.none |= driver != DRIVER,
                ("scope", scope) => filters.none |= scope != SCOPE,
                ("type", kind) => filters.none |= kind != "custom",
                _ => return Err(wrong()),
            }
        }
        Ok(filters)
    }

    fn take(&self, record: &NetworkRecord) -> bool {
        let (name, id) = (record.name.as_str(), record.id.as_str());
        let has_label = |(key, value): &(String, Option<String>)| {
            let found = record.labels.get(key);
            found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
        };
        !self.none
            && (self.names.is_empty() || self.names.iter().any(|part| name.contains(part.as_str())))
            && (self.ids.is_empty() || self.ids.iter().any(|part| id.starts_with(part.as_str())))
            && self.labels.iter().all(has_label)
            && self
                .dangling
                .is_none_or(|dangling| dangling == record.leases.is_empty())
    }
}

/// A network under docker's names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    name: String,
    id: String,
    created: String,
    scope: &'static str,
    driver: &'static str,
    #[serde(rename = "EnableIPv4")]
    has_ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    has_ipv6: bool,
    #[serde(rename = "IPAM")]
    addresses: Addresses,
    internal: bool,
    attachable: bool,
    ingress: bool,
    /// Machines that run on it, by their ids.
    containers: BTreeMap<String, Attached>,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    vmm: Own,
}

/// Where its addresses come from.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Addresses {
    driver: &'static str,
    options: Option<BTreeMap<String, String>>,
    config: Vec<AddressPool>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct AddressPool {
    subnet: String,
    #[serde(rename = "IPRange", skip_serializing_if = "Option::is_none")]
    range: Option<String>,
    gateway: String,
}

/// A machine on it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Attached {
    name: String,
    #[serde(rename = "EndpointID")]
    endpoint: String,
    mac_address: String,
    #[serde(rename = "IPv4Address")]
    ipv4_address: String,
    #[serde(rename = "IPv6Address")]
    ipv6_address: String,
}

/// What docker has no name for.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Own {
    /// The host's interface.
    bridge: String,
    /// The table of nftables.
    table: String,
    mtu: u16,
}

impl Inspected {
    fn of(record: &NetworkRecord) -> Self {
        let pools = record.pools.iter().map(|pool| AddressPool {
            subnet: pool.subnet.to_string(),
            range: pool.range.map(|range| range.to_string()),
            gateway: pool.gateway.to_string(),
        });
        let leases = record.leases.iter();
        Self {
            name: record.name.to_string(),
            id: record.id.to_string(),
            created: Moment::of_seconds(record.created.0).to_string(),
            scope: SCOPE,
            driver: DRIVER,
            has_ipv4: record.pool(true).is_some(),
            has_ipv6: record.pool(false).is_some(),
            addresses: Addresses {
                driver: "default",
                options: None,
                config: pools.collect(),
            },
            internal: record.internal,
            attachable: false,
            ingress: false,
            containers: leases
                .map(|(id, lease)| (id.to_string(), Attached::of(lease)))
                .collect(),
            options: record.options.clone(),
            labels: record.labels.clone(),
            vmm: Own {
                bridge: record.bridge.clone(),
                table: record.table(),
                mtu: record.mtu,
            },
        }
    }
}

impl Attached {
    fn of(lease: &Lease) -> Self {
        let spell = |is_ipv4: bool| {
            let address = lease.address(is_ipv4);
            address.map_or_else(String::new, |it| format!("{}/{}", it.address, it.prefix))
        };
        Self {
            name: lease.name.clone().unwrap_or_default(),
            endpoint: lease.tap.clone(),
            mac_address: lease.mac.to_string(),
            ipv4_address: spell(true),
            ipv6_address: spell(false),
        }
    }
}

fn inspect(arguments: &NetworkInspectArgs, networks: &Networks) -> Result<ExitCode, Report> {
    let template = match arguments.format.as_deref() {
        None => None,
        Some("json") => Some(Template::parse("{{json .}}")?),
        Some(text) => Some(Template::parse(text)?),
    };
    let mut found = Vec::new();
    let result = each(&arguments.networks, |typed| {
        let inspected = Inspected::of(&networks.find_current(typed)?);
        match &template {
            None => found.push(inspected),
            Some(template) => {
                let value = serde_json::to_value(&inspected).unwrap_or(Value::Null);
                print_line(printable_lines(&template.fill(&value)?))?;
            }
        }
        Ok(())
    });
    if template.is_none() {
        print_json(&found)?;
    }
    result
}

fn remove(arguments: &NetworkRmArgs, networks: &Networks) -> Result<ExitCode, Report> {
    each(&arguments.networks, |typed| {
        let removed = networks
            .find(typed)
            .and_then(|record| networks.remove(&record.name));
        match removed {
            Err(BridgeError::None(_)) if arguments.force => return Ok(()),
            removed => removed?,
        }
        print_line(typed)
    })
}

fn prune(arguments: &NetworkPruneArgs, networks: &Networks) -> Result<ExitCode, Report> {
    let filters = Filters::parse(&arguments.filter)?;
    if !arguments.force {
        confirm("all networks that no machine is on")?;
    }
    let mut removed: Vec<NetworkName> = Vec::new();
    for record in readable(networks)? {
        if !filters.take(&record) {
            continue;
        }
        match networks.remove(&record.name) {
            Ok(()) => removed.push(record.name),
            // It is needed, or is gone.
            Err(BridgeError::InUse { .. } | BridgeError::None(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if !removed.is_empty() {
        print_line("Deleted Networks:")?;
        removed
            .iter()
            .try_for_each(|name| print_line(name.as_str()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// There is no such filter.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no filter of networks")]
struct FilterError(String);

impl Help for FilterError {
    fn help(&self) -> Option<String> {
        Some("there are name, id, label, driver, scope, type and dangling".to_owned())
    }
}
