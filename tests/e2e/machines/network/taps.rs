//! Machines on taps of the host's.

use tests::Fixture;
use tests::image_maker::ImageMaker;

use super::script;

#[test]
fn a_machine_on_a_tap_reaches_the_host_and_is_reached() {
    let fixture = crate::with_busybox();

    let done = script(
        &fixture,
        r#"
        make_tap tap0 192.168.5.1/24 fd00:5::1/64
        before=$(ip -o link | busybox cut -d: -f2)
        vmm run -d --name web --network tap=tap0 --mac-address 02:00:00:00:00:09 \
            --ip 192.168.5.2/24 --ip6 fd00:5::2/64 --gateway 192.168.5.1 \
            --hostname box --add-host db:10.0.0.3 --dns 9.9.9.9 --dns-search example.com --read-only \
            busybox:test sleep 1000 > /dev/null
        busybox ping -c 1 -W 30 192.168.5.2 | busybox grep -o '0% packet loss'
        busybox ping -6 -c 1 -W 30 fd00:5::2 | busybox grep -o '0% packet loss'
        vmm exec web sh -c '
            ping -c 1 -W 30 192.168.5.1 | grep -o "0% packet loss"
            ip route | grep -o "default via 192.168.5.1 dev eth0"
            cat /sys/class/net/eth0/address
            tail -n 3 /etc/hosts; cat /etc/hostname /etc/resolv.conf
            cat /proc/sys/net/ipv4/ip_unprivileged_port_start'
        vmm diff web
        vmm inspect -f '{{.NetworkSettings.IPAddress}}/{{.NetworkSettings.IPPrefixLen}} {{.NetworkSettings.MacAddress}} {{.HostConfig.NetworkMode}}' web
        vmm stats --no-stream --format '{{.NetIO}}' web | busybox grep -q '^0B\|--' || echo counted
        vmm run --rm --network tap=tap0 busybox:test || echo "refused: $?"
        vmm rm -f web
        until_so is_free tap0
        test "$before" = "$(ip -o link | busybox cut -d: -f2)" && echo 'nothing left'
        "#,
    )
    .run();

    let expected = "0% packet loss\n0% packet loss\n0% packet loss\ndefault via 192.168.5.1 dev eth0\n02:00:00:00:00:09\n\
        10.0.0.3\tdb\n192.168.5.2\tbox\nfd00:5::2\tbox\nbox\nnameserver 9.9.9.9\nsearch example.com\n0\n\
        192.168.5.2/24 02:00:00:00:00:09 tap=tap0\ncounted\nrefused: 125\nweb\nnothing left\n";
    done.succeeded().stdout_is(expected);
    done.stderr_has("the tap \"tap0\" is in use");
    fixture.nothing_runs();
}

#[test]
fn streams_arrive_as_they_were_sent_in_large_packets_too() {
    let fixture = crate::with_busybox();

    let done = script(
        &fixture,
        r#"
        make_tap tap0 192.168.5.1/24 fd00:5::1/64 9000
        cd "$VMM_ROOT"
        busybox head -c 8000000 /dev/urandom > there
        # What ends the input of a `nc` ends its connection.
        mkfifo open
        exec 3<>open
        busybox nc -l -p 9000 > back <&3 &
        server=$!
        vmm run --rm --network tap=tap0 --ip 192.168.5.2/24 busybox:test sh -c '
            cat /sys/class/net/eth0/mtu
            ping -c 1 -W 30 -s 8900 192.168.5.1 | grep -o "0% packet loss"
            mkfifo /tmp/open
            exec 3<>/tmp/open
            nc -l -p 9001 > /tmp/file <&3
            sha256sum < /tmp/file
            nc 192.168.5.1 9000 < /tmp/file' > said &
        machine=$!
        until_so busybox ping -c 1 -W 1 192.168.5.2
        until_so busybox nc 192.168.5.2 9001 < there
        wait $machine $server
        busybox cat said
        busybox sha256sum < there
        busybox cmp there back && echo same
        busybox awk '/^Ip: [0-9]/ { print "reassembled:", $15 }' /proc/net/snmp
        "#,
    )
    .run();

    let said = done.succeeded().stdout_text();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["9000", "0% packet loss"], "{said}");
    assert_eq!(lines[2], lines[3], "{said}");
    assert_eq!(lines[4..], ["same", "reassembled: 0"], "{said}");
    fixture.nothing_runs();
}

#[test]
fn a_machine_outlives_its_tap() {
    let fixture = crate::with_busybox();

    let done = script(
        &fixture,
        r#"
        make_tap tap0 192.168.5.1/24 fd00:5::1/64
        vmm run -d --name web --network tap=tap0 --ip 192.168.5.2/24 busybox:test sleep 1000 > /dev/null
        vmm exec web cat /sys/class/net/eth0/carrier
        ip link del tap0
        vmm exec web sh -c 'while test "$(cat /sys/class/net/eth0/carrier)" = 1; do sleep 0.1; done; echo down; ping -c 1 -W 1 192.168.5.1 > /dev/null || echo unreachable'
        vmm ps --format '{{.Names}}'
        vmm rm -f web
        "#,
    )
    .run();

    done.succeeded()
        .stdout_is("1\ndown\nunreachable\nweb\nweb\n");
    fixture.nothing_runs();
}

#[test]
fn clones_have_addresses_of_their_own() {
    let fixture = crate::with_busybox();

    let done = script(
        &fixture,
        r#"
        export VMM_NO_TEMPLATE=0
        cd "$VMM_ROOT"
        make_tap tap0 192.168.5.1/24 fd00:5::1/64
        make_tap tap1 192.168.6.1/24 fd00:6::1/64
        vmm prepare --rm --interface 1500:segmentation busybox:test
        for network in 5 6; do
            vmm run --rm --timings --network tap=tap$((network - 5)) --ip 192.168.$network.2/24 --hostname box$network \
                busybox:test sh -c "
                    ping -c 1 -W 30 192.168.$network.1 | grep -o '0% packet loss'
                    ip -4 -o addr show eth0 | grep -o 'inet [0-9.]*'
                    tail -n 1 /etc/hosts
                    cat /sys/class/net/eth0/address >&2" 2> said$network
            busybox grep -o clone said$network
        done
        busybox grep -h '^02:' said5 said6 | busybox sort -u | busybox wc -l
        "#,
    )
    .run();

    let of = |network: u8| {
        format!(
            "0% packet loss\ninet 192.168.{network}.2\n192.168.{network}.2\tbox{network}\nclone\n"
        )
    };
    done.succeeded()
        .stdout_is(&format!("prepared\n{}{}2\n", of(5), of(6)));
    fixture.nothing_runs();
}

#[test]
fn a_machine_that_is_kept_has_its_network_again() {
    let fixture = crate::with_busybox();

    let done = script(
        &fixture,
        r#"
        make_tap tap0 192.168.5.1/24 fd00:5::1/64
        vmm create --name web --network tap=tap0 --ip 192.168.5.2/24 busybox:test \
            sh -c 'cat /sys/class/net/eth0/address; ping -c 1 -W 30 192.168.5.1 | grep -o "0% packet loss"' > /dev/null
        vmm start -a web
        vmm start -a web
        vmm inspect -f '{{.NetworkSettings.MacAddress}}' web
        vmm rm web
        "#,
    )
    .run();

    let said = done.succeeded().stdout_text();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        (lines[1], lines[3]),
        ("0% packet loss", "0% packet loss"),
        "{said}"
    );
    assert_eq!((lines[0], lines[0]), (lines[2], lines[4]), "{said}");
    fixture.nothing_runs();
}

#[test]
fn what_cannot_be_a_machines_network_is_said() {
    let fixture = Fixture::with_machines();
    let image = ImageMaker::busybox().name("busybox:test").layout();
    let file = fixture.file("busybox.oci", image.archive());
    fixture.load(&file).run().succeeded();

    let done = script(
        &fixture,
        r#"
        refused() { vmm run --rm "$@" busybox:test 2>&1 && echo 'it ran' || echo "code $?"; }
        refused --network tap=nowhere
        refused --network tap=lo
        refused --network tap=no/name
        refused --ip 192.168.5.2/24
        refused --network none --ip 192.168.5.2/24
        refused --network tap=lo --ip 192.168.5.2/24 --gateway 10.0.0.1
        busybox mount -t tmpfs none /dev/net
        refused --network tap=lo
        "#,
    )
    .run();

    let said = done.succeeded().stdout_text();
    for words in [
        "there is no network interface \"nowhere\" on this host\n",
        "help: make it first, as in: ip tuntap add dev nowhere mode tap",
        "the network interface \"lo\" is not a tap",
        "\"no/name\" is not the name of a network interface",
        "a machine with --network user has addresses of its own, and none by --ip\n",
        "--ip needs a network, and the machine has none\n",
        "help: name one with --network",
        "the gateway 10.0.0.1 is on no network of the machine's addresses\n",
        "there is no /dev/net/tun on this host\n",
        "help: load the kernel's tun module",
    ] {
        assert!(said.contains(words), "{words} is not in:\n{said}");
    }
    assert_eq!(said.matches("code 125").count(), 7, "{said}");
}
