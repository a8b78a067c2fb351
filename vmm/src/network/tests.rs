//! What is typed about networks, and what becomes of it.

use super::*;

fn choices(network: &str) -> NetworkChoices {
    NetworkChoices {
        network: network.parse().unwrap(),
        ..NetworkChoices::default()
    }
}

#[test]
fn a_network_is_none_or_a_tap() {
    assert_eq!("none".parse(), Ok(TypedNetwork::None));
    assert_eq!("tap=tap0".parse(), Ok(TypedNetwork::Tap("tap0".to_owned())));
    assert!("tap=".parse::<TypedNetwork>().is_err());
    assert!("tap".parse::<TypedNetwork>().is_err());
    assert!("host".parse::<TypedNetwork>().is_err());
}

#[test]
fn an_address_is_one_of_an_interface() {
    assert!(TypedAddress::of_ipv4("192.168.5.2/24").is_ok());
    assert!(TypedAddress::of_ipv4("192.168.5.2").is_ok());
    assert!(TypedAddress::of_ipv6("fd00::2/64").is_ok());
    for wrong in [
        "192.168.5.2/33",
        "192.168.5.2/0",
        "fd00::2/64",
        "127.0.0.1/8",
        "224.0.0.1/4",
        "0.0.0.0/8",
        "x/24",
    ] {
        assert!(TypedAddress::of_ipv4(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_rate_is_for_both_directions_or_for_each() {
    let rate = |text: &str| {
        text.parse::<TypedRates>().map(|rates| {
            (
                rates.receive.map(ByteSize::bytes),
                rates.transmit.map(ByteSize::bytes),
            )
        })
    };
    assert_eq!(rate("1m").unwrap(), (Some(1 << 20), Some(1 << 20)));
    assert_eq!(rate("in=2k").unwrap(), (Some(2048), None));
    assert_eq!(rate("out=1k,in=2k").unwrap(), (Some(2048), Some(1024)));
    assert!(rate("in=1k,in=2k").is_err());
    assert!(rate("1k,2k").is_err());
    assert!(rate("1").is_err());
    assert!(rate("").is_err());
}

#[test]
fn an_address_on_a_tap_has_a_prefix() {
    let mut choices = choices("tap=tap0");
    choices.addresses = vec!["192.168.5.2".parse().unwrap()];
    let error = decide(&choices).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the address 192.168.5.2 needs the length of its network's prefix"
    );
    assert!(error.help().is_some());
}

#[test]
fn a_network_that_is_not_there_is_named() {
    let error = decide(&choices("net")).unwrap_err();
    assert_eq!(error.to_string(), "network net not found");
    assert!(error.help().unwrap().contains("vmm network create net"));
}

#[test]
fn a_machine_without_a_network_has_nothing_of_one() {
    let mut choices = choices("none");
    assert_eq!(decide(&choices).unwrap(), Network::default());
    choices.mac = Some("02:00:00:00:00:01".parse().unwrap());

    let error = decide(&choices).unwrap_err();

    assert!(error.to_string().contains("--mac-address"), "{error}");
}

#[test]
fn machines_have_addresses_of_their_own() {
    let mac = || {
        let network = decide(&choices("tap=tap0")).unwrap();
        network.interface.unwrap().mac
    };
    assert_ne!(mac(), mac());
    assert_eq!(mac().bytes()[0], 2);
}

#[test]
fn a_gateway_is_beside_the_machine() {
    let mut choices = choices("tap=tap0");
    choices.addresses = vec!["192.168.5.2/24".parse().unwrap()];
    choices.gateways = vec!["192.168.6.1".parse().unwrap()];
    assert!(decide(&choices).is_err());
    choices.gateways = vec!["192.168.5.1".parse().unwrap()];
    assert!(decide(&choices).is_ok());
    choices.gateways.push("192.168.5.3".parse().unwrap());
    assert!(decide(&choices).is_err());
}

#[test]
fn a_group_has_no_mac_address() {
    assert!("02:42:ac:11:00:02".parse::<TypedMac>().is_ok());
    assert!("02-42-ac-11-00-02".parse::<TypedMac>().is_ok());
    for wrong in [
        "01:00:5e:00:00:01",
        "00:00:00:00:00:00",
        "02:42:ac:11:00",
        "02:42:ac:11:00:02:03",
        "+2:42:ac:11:00:02",
        "",
    ] {
        assert!(wrong.parse::<TypedMac>().is_err(), "{wrong}");
    }
}

#[test]
fn names_of_hosts_are_typed_as_with_docker() {
    let entry = |text: &str| {
        let typed = text.parse::<TypedHost>();
        typed.map(|it| it.address.unwrap().to_string())
    };
    assert_eq!(entry("db:10.0.0.3").unwrap(), "10.0.0.3");
    assert_eq!(entry("db=10.0.0.3").unwrap(), "10.0.0.3");
    assert_eq!(entry("db:fd00::3").unwrap(), "fd00::3");
    assert_eq!(entry("db:[fd00::3]").unwrap(), "fd00::3");
    assert!(entry("db").is_err());
    assert!(entry(":10.0.0.3").is_err());
    assert!(entry("d b:10.0.0.3").is_err());
    assert!(entry("db:elsewhere").is_err());
}

#[test]
fn resolvers_are_the_hosts_unless_others_were_chosen() {
    let of_host = "# a comment\nnameserver 127.0.0.53\nnameserver 10.1.1.1\nsearch old.example\nsearch example.com\toffice\noptions edns0\n";
    let unchanged = NameChoices::default().resolv_conf(of_host);
    assert_eq!(
        unchanged,
        "nameserver 10.1.1.1\nsearch example.com office\noptions edns0\n"
    );
    let chosen = NameChoices {
        servers: vec!["9.9.9.9".parse().unwrap()],
        search: vec![".".to_owned()],
        options: vec!["ndots:2".to_owned()],
        hosts: Vec::new(),
    };
    assert_eq!(
        chosen.resolv_conf(of_host),
        "nameserver 9.9.9.9\noptions ndots:2\n"
    );
}

#[test]
fn the_machine_knows_its_own_name() {
    let mut choices = choices("tap=tap0");
    choices.addresses = vec!["192.168.5.2/24".parse().unwrap()];
    choices.hosts = vec!["db:10.0.0.3".parse().unwrap()];
    let network = decide(&choices).unwrap();

    let names = names(&network).unwrap().unwrap();

    assert!(names.hosts.ends_with("10.0.0.3\tdb\n192.168.5.2\tbox\n"));
    assert_eq!(names.hostname, "box\n");
}

/// The lines of hosts(5) with this name.
fn known_as(choices: &NetworkChoices, name: &str) -> Vec<String> {
    let network = decide(choices).unwrap();
    let hosts = names(&network).unwrap().unwrap().hosts;
    let known = hosts.lines().filter_map(|line| line.split_once('\t'));
    known
        .filter(|(_, known)| *known == name)
        .map(|(address, _)| address.to_owned())
        .collect()
}

#[test]
fn host_gateway_is_the_address_of_the_machines_gateway() {
    let mut of_user = choices("user");
    of_user.hosts = vec!["host:host-gateway".parse().unwrap()];
    let mut of_tap = choices("tap=tap0");
    of_tap.addresses = vec!["192.168.5.2/24".parse().unwrap()];
    of_tap.gateways = vec!["192.168.5.1".parse().unwrap()];
    of_tap.hosts = of_user.hosts.clone();
    let mut of_none = choices("none");
    of_none.hosts = of_user.hosts.clone();

    assert_eq!(known_as(&of_user, "host"), ["10.0.2.2", "fd00:76:6d:6d::2"]);
    assert_eq!(known_as(&of_tap, "host"), ["192.168.5.1"]);
    let error = decide(&of_none).unwrap_err();
    assert!(error.to_string().contains("host:host-gateway"), "{error}");
    assert!(error.help().is_some());
}

#[test]
fn the_hosts_loopback_is_reached_if_that_is_said() {
    let reaches = |text: &str| {
        let network = decide(&choices(text)).unwrap();
        assert_eq!(network.mode(), text);
        match network.interface.unwrap().connection {
            Connection::User { policy, .. } => policy.host_loopback,
            Connection::Tap(_) | Connection::Bridge { .. } => false,
        }
    };
    assert!(!reaches("user"));
    assert!(reaches("user:host-loopback"));
    assert!("user:loopback".parse::<TypedNetwork>().is_err());
}

#[test]
fn an_image_that_names_ports_without_end_is_refused_before_any_is_opened() {
    let mut choices = choices("user");
    let all: TypedPorts = "1-65535".parse().unwrap();
    choices.published = vec![TypedPublish::anywhere(all); 100_000];

    let error = decide(&choices).unwrap_err();

    assert!(error.to_string().starts_with("6553500000 ports"), "{error}");
}

/// Decides on a host without networks.
fn decide(choices: &NetworkChoices) -> Result<Network, NetworkError> {
    let directory = tempfile::tempdir().unwrap();
    Network::decide(choices, &Networks::new(directory.path()))
}

/// The files of names of a machine called `box`.
fn names(network: &Network) -> Result<Option<protocol::Names>, NetworkError> {
    let interface = network.interface.as_ref();
    let addresses = interface.map(|interface| interface.addresses.clone());
    network.names("box", &addresses.unwrap_or_default(), &[])
}
