//! Records, pools and rules of networks.

use proptest::prelude::*;

use super::*;

/// A network with these subnets.
pub(super) fn network(name: &str, subnets: &[&str]) -> NetworkRecord {
    let new = new(name, subnets);
    NetworkRecord {
        format: NetworkRecord::FORMAT,
        id: MachineId::random().unwrap(),
        name: new.name.clone(),
        created: Timestamp::now(),
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
        pools: decide_pools(&new, &[]).unwrap(),
        internal: false,
        bridge: "vmm-0".to_owned(),
        mtu: USUAL_MTU,
        is_up: false,
        leases: BTreeMap::new(),
    }
}

/// Puts a machine on it.
pub(super) fn with_machine(
    record: &mut NetworkRecord,
    name: &str,
    aliases: &[&str],
    addresses: &[&str],
) -> MachineId {
    let id = MachineId::random().unwrap();
    let interface = |text: &&str| InterfaceAddress {
        address: text.parse().unwrap(),
        prefix: 24,
    };
    let lease = Lease {
        name: Some(name.to_owned()),
        aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
        tap: interface_name(TAP, &id),
        mac: MacAddress::local([1; 6]),
        addresses: addresses.iter().map(interface).collect(),
        resolver_port: 4000,
        published: Vec::new(),
    };
    record.leases.insert(id.clone(), lease);
    id
}

fn new(name: &str, subnets: &[&str]) -> NewNetwork {
    NewNetwork {
        name: name.parse().unwrap(),
        subnets: subnets.iter().map(|text| text.parse().unwrap()).collect(),
        gateways: Vec::new(),
        ranges: Vec::new(),
        ipv6: false,
        internal: false,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
        mtu: None,
        bridge: None,
    }
}

fn empty() -> (tempfile::TempDir, Networks) {
    let directory = tempfile::tempdir().unwrap();
    let networks = Networks::new(&directory.path().join("networks"));
    (directory, networks)
}

/// What is said of a network that cannot be made.
fn refusal(networks: &Networks, new: &NewNetwork) -> String {
    networks.create(new).unwrap_err().to_string()
}

#[test]
fn a_network_is_found_by_name_id_and_the_beginning_of_that() {
    let (_directory, networks) = empty();
    let made = networks.create(&new("net", &["10.5.0.0/24"])).unwrap();
    for typed in ["net", made.id.as_str(), made.id.short()] {
        assert_eq!(networks.find(typed).unwrap(), made);
    }
    let error = networks.find("other").unwrap_err().to_string();
    assert_eq!(error, "network other not found");
    assert!(networks.find("").is_err());
}

#[test]
fn a_name_and_addresses_are_given_once() {
    let (_directory, networks) = empty();
    networks.create(&new("net", &["10.5.0.0/16"])).unwrap();
    assert_eq!(
        refusal(&networks, &new("net", &["10.6.0.0/16"])),
        "network with name net already exists"
    );
    assert_eq!(
        refusal(&networks, &new("other", &["10.5.1.0/24"])),
        "invalid pool request: pool 10.5.1.0/24 overlaps with 10.5.0.0/16 of network net"
    );
}

#[test]
fn what_is_in_no_subnet_is_named() {
    let (_directory, networks) = empty();
    let gateway = NewNetwork {
        gateways: vec!["10.6.0.1".parse().unwrap()],
        ..new("net", &["10.5.0.0/16"])
    };
    assert_eq!(
        refusal(&networks, &gateway),
        "no matching subnet for gateway 10.6.0.1"
    );
    let range = NewNetwork {
        ranges: vec!["10.4.0.0/15".parse().unwrap()],
        ..new("net", &["10.5.0.0/16"])
    };
    assert_eq!(
        refusal(&networks, &range),
        "no matching subnet for range 10.4.0.0/15"
    );
    assert!(refusal(&networks, &new("net", &["127.0.0.0/8"])).contains("no addresses"));
}

#[test]
fn networks_without_addresses_typed_have_their_own() {
    let (_directory, networks) = empty();
    let six = NewNetwork {
        ipv6: true,
        ..new("six", &[])
    };
    let made = [
        networks.create(&new("one", &[])).unwrap(),
        networks.create(&new("two", &[])).unwrap(),
        networks.create(&six).unwrap(),
    ];
    let subnets: Vec<Subnet> = made
        .iter()
        .flat_map(|it| &it.pools)
        .map(|it| it.subnet)
        .collect();
    assert_eq!(subnets.len(), 4);
    for (at, one) in subnets.iter().enumerate() {
        assert!(subnets[at + 1..].iter().all(|other| !one.overlaps(other)));
    }
}

#[test]
fn machines_have_free_addresses_until_there_are_none() {
    let mut record = network("net", &["10.5.0.0/29"]);
    for last in 2..7 {
        let decided = record.decide_addresses(&[]).unwrap()[0].address;
        assert_eq!(decided.to_string(), format!("10.5.0.{last}"));
        with_machine(&mut record, "web", &[], &[&decided.to_string()]);
    }
    let error = record.decide_addresses(&[]).unwrap_err().to_string();
    assert_eq!(
        error,
        "no available addresses on the pool 10.5.0.0/29 of network net"
    );
}

#[test]
fn an_address_that_was_typed_is_free_and_of_the_network() {
    let mut record = network("net", &["10.5.0.0/24"]);
    with_machine(&mut record, "web", &[], &["10.5.0.9"]);
    let refused = |text: &str| {
        record
            .decide_addresses(&[text.parse().unwrap()])
            .unwrap_err()
            .to_string()
    };
    assert!(refused("10.5.0.9").contains("Address already in use"));
    assert!(refused("10.5.0.1").contains("Address already in use"));
    assert!(refused("10.5.0.255").contains("no configured subnet"));
    assert!(refused("10.6.0.2").contains("no configured subnet"));
    let decided = record
        .decide_addresses(&["10.5.0.7".parse().unwrap()])
        .unwrap();
    assert_eq!(decided[0].address.to_string(), "10.5.0.7");
}

#[test]
fn a_lease_is_over_when_its_tap_is_gone_or_anothers() {
    let mut record = network("net", &["10.5.0.0/24"]);
    let living = with_machine(&mut record, "web", &[], &["10.5.0.2"]);
    let gone = with_machine(&mut record, "db", &[], &["10.5.0.3"]);
    let link = |of: &MachineId, mark: String| HostLink {
        index: 7,
        name: interface_name(TAP, of),
        mark,
    };
    let links = [
        link(&living, machine_mark(&living)),
        link(&gone, "else".to_owned()),
    ];
    assert!(record.drop_leases(&links));
    assert!(!record.drop_leases(&links));
    assert_eq!(record.leases.keys().collect::<Vec<_>>(), [&living]);
}

#[test]
fn a_record_that_makes_no_sense_is_said_to_be_damaged() {
    let (_directory, networks) = empty();
    networks.create(&new("net", &["10.5.0.0/24"])).unwrap();
    let path = networks.directory.join("net.json");
    for (text, why) in [("{", "makes no sense"), (r#"{"format":9}"#, "format 9")] {
        fs::write(&path, text).unwrap();
        let error = networks.find("net").unwrap_err();
        assert!(crate::report::chain(&error).contains(why), "{error:?}");
    }
    assert!(networks.list().unwrap()[0].1.is_err());
}

proptest! {
    #[test]
    fn no_two_machines_have_one_address(prefix in 24_u8..=30, count in 0_usize..300) {
        let subnet = format!("10.5.0.0/{prefix}");
        let mut record = network("net", &[&subnet]);
        let mut given = std::collections::BTreeSet::new();
        for _ in 0..count {
            let Ok(decided) = record.decide_addresses(&[]) else { break };
            let address = decided[0].address;
            prop_assert!(record.pools[0].subnet.may_have(address));
            prop_assert!(address != record.pools[0].gateway);
            prop_assert!(given.insert(address));
            with_machine(&mut record, "web", &[], &[&address.to_string()]);
        }
        let room = (1_usize << (32 - prefix)) - 3;
        prop_assert_eq!(given.len(), count.min(room));
    }

    #[test]
    fn a_record_is_read_as_it_was_written(name in "[a-z0-9][a-z0-9_.-]{0,30}", alias in "[a-z]{0,9}") {
        prop_assume!(name.parse::<NetworkName>().is_ok());
        let (_directory, networks) = empty();
        let mut record = networks.create(&new(&name, &["10.5.0.0/24"])).unwrap();
        with_machine(&mut record, "web", &[&alias], &["10.5.0.2"]);
        networks.write(&record).unwrap();
        prop_assert_eq!(networks.read(&record.name).unwrap(), record);
    }

    #[test]
    fn no_name_leads_out_of_the_directory(text in ".{0,200}") {
        if let Ok(name) = text.parse::<NetworkName>() {
            prop_assert!(!name.as_str().contains('/') && !name.as_str().starts_with('.'));
        }
    }
}
