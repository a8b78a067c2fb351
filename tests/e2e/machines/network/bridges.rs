//! Machines on networks that `vmm network create` has made. What is made on the host is in a network namespace of each test.

use std::io::Write as _;

use tests::process::MACHINE_LIMIT;
use tests::{Fixture, Invocation};

use super::BEGINNING;

/// What every script begins with: what is there before, and how to see that it is all that is there after.
const HOST: &str = r#"
all_there_is() { ip -o link | busybox cut -d: -f2; ip -o addr; ip route; nft list ruleset; }
all_there_is > "$VMM_ROOT/before"
same_as_before() { all_there_is > "$VMM_ROOT/after"; busybox cmp "$VMM_ROOT/before" "$VMM_ROOT/after" && echo 'nothing left'; }
# Another host, reached as 192.0.2.2 from here, which is 192.0.2.1 and does not know the way to any network.
make_world() {
    unshare --net busybox sleep 1000 & world=$!
    trap 'kill $world' EXIT
    until_so ip link add up0 type veth peer name eth0 netns $world
    echo 0 > /proc/sys/net/ipv6/conf/up0/accept_dad
    ip addr add 192.0.2.1/24 dev up0; ip link set up0 up
    in_world ip addr add 192.0.2.2/24 dev eth0; in_world ip link set eth0 up
}
in_world() { nsenter --target $world --net "$@"; }
# Where there are several machines, they begin as clones.
prepare() { export VMM_NO_TEMPLATE=0; vmm prepare -q --rm --interface 1500:segmentation busybox:test; }
# The page of a web server; nothing if it does not answer. The same in a machine.
PAGE='page() { printf "GET / HTTP/1.0\r\n\r\n" | busybox nc -w ${3:-60} "$1" "${2:-80}" 2> /dev/null | busybox tail -n 1; }'
eval "$PAGE"
datagram() { bash -c "exec 3<> /dev/udp/$1/$2; echo datagram >&3; busybox timeout 60 busybox head -n 1 <&3"; }
SERVE='mkdir /tmp/w; echo "page of $HOSTNAME" > /tmp/w/index.html; exec httpd -f -p 80 -h /tmp/w'
"#;

/// Prepares a script, as root in a namespace of its own; none where that cannot be.
fn script(fixture: &Fixture, text: &str) -> Option<Invocation> {
    if !rustix::process::geteuid().is_root() {
        let said = "skipped: networks on bridges need root";
        let _ = writeln!(std::io::stderr(), "{said}");
        return None;
    }
    let script = fixture.in_private_network(&format!("{BEGINNING}{HOST}{text}"));
    Some(script.limit(MACHINE_LIMIT * 4))
}

#[test]
fn machines_reach_each_other_by_name_and_are_reached() {
    let fixture = Fixture::with_machines();
    let image = crate::busybox_with_probe(&fixture);
    let load = fixture.load(&image).arg("--name=busybox:test");
    load.run().succeeded();

    let done = script(
        &fixture,
        r#"
        prepare
        vmm network create --subnet 10.5.0.0/24 net > /dev/null
        web=$(vmm run -d --rm --name web --hostname web --network net --network-alias shop -p 8080:80 -p 127.0.0.1:5300:53/udp \
            busybox:test sh -c "probe echo-datagrams 53 & $SERVE" 2> "$VMM_ROOT/said")
        busybox grep -o 'ip_forward is 1' "$VMM_ROOT/said"
        vmm run -d --rm --name two --network net --ip 10.5.0.9 busybox:test sleep 1000 > /dev/null
        vmm rename web shop2
        vmm exec two sh -c "$PAGE
            ping -c 1 -W 60 shop2 | grep -o '0% packet loss'
            for name in shop2 shop $(echo "$web" | busybox cut -c 1-12) shop.net; do page \$name; done
            page 10.5.0.1 8080
            nslookup 10.5.0.2 | grep -o 'name = .*'
            nslookup -type=aaaa shop | grep -c '::'
            nslookup web > /dev/null 2>&1 || echo unknown
            cat /etc/resolv.conf | head -n 1; ip -o -4 addr show eth0 | grep -o 'inet [^ ]*'; ip route | head -n 1"
        for at in 127.0.0.1 ::1 10.5.0.1; do page $at 8080; done
        datagram 127.0.0.1 5300
        vmm ps --format '{{.Names}} {{.Networks}} {{.Ports}}'
        vmm port shop2 80
        vmm inspect -f '{{.NetworkSettings.Networks.net.IPAddress}} {{.NetworkSettings.Networks.net.Gateway}} {{.HostConfig.NetworkMode}}' shop2
        vmm network inspect -f '{{json .Containers}}' net
        vmm network rm net || echo "refused: $?"
        vmm rm -f shop2 two
        vmm network rm net
        same_as_before
        "#,
    );
    let Some(done) = done else { return };
    let done = done.run();

    let expected = "ip_forward is 1\n0% packet loss\npage of web\npage of web\npage of web\npage of web\npage of web\n\
        name = shop2.net\n0\nunknown\nnameserver 10.5.0.1\ninet 10.5.0.9/24\ndefault via 10.5.0.1 dev eth0 \n\
        page of web\npage of web\npage of web\ndatagram\n\
        two net \nshop2 net 0.0.0.0:8080->80/tcp, [::]:8080->80/tcp, 127.0.0.1:5300->53/udp\n\
        0.0.0.0:8080\n[::]:8080\n10.5.0.2 10.5.0.1 net\n";
    let said = done.succeeded().stdout_text();
    let rest = said.strip_prefix(expected);
    let rest = rest.unwrap_or_else(|| panic!("{said}"));
    for words in [
        "\"Name\":\"shop2\"",
        "\"10.5.0.2/24\"",
        "\"Name\":\"two\"",
        "\"10.5.0.9/24\"",
    ] {
        assert!(rest.contains(words), "{said}");
    }
    let end = "refused: 1\nshop2\ntwo\nnet\nnothing left\n";
    assert!(rest.ends_with(end), "{said}");
    done.stderr_has("network net has active endpoints (");
    fixture.nothing_runs();
}

#[test]
fn a_network_leads_out_and_into_no_other_and_an_internal_one_nowhere() {
    let fixture = crate::with_busybox();

    let done = script(
        &fixture,
        r#"
        prepare
        make_world
        all_there_is > "$VMM_ROOT/before"
        cd "$VMM_ROOT"
        mkdir www; echo 'of the world' > www/index.html
        nsenter --target $world --net busybox httpd -f -p 80 -h www & server=$!
        trap 'kill $world $server' EXIT
        vmm network create --ipv6 one > /dev/null
        vmm network create --internal two > /dev/null
        vmm run -d --rm --name aa --network one -p 8080:80 busybox:test sh -c "$SERVE" > /dev/null
        vmm run -d --rm --name bb --network two --cap-add NET_ADMIN busybox:test sh -c "$SERVE" > /dev/null
        a=$(vmm inspect -f '{{.NetworkSettings.Networks.one.IPAddress}}' aa)
        six=$(vmm inspect -f '{{.NetworkSettings.Networks.one.GlobalIPv6Address}}' aa)
        b=$(vmm inspect -f '{{.NetworkSettings.Networks.two.IPAddress}}' bb)
        # Out, with this host's address, and not to the other; from out there to the published port, and to nothing else.
        vmm exec aa sh -c "$PAGE
            page 192.0.2.2
            page $b 80 3 | grep page || echo 'not to the other'
            ping -c 1 -W 1 bb > /dev/null 2>&1 || echo 'not by name'"
        in_world sh -c "$PAGE; page 192.0.2.1 8080" | busybox grep -o page
        in_world ip route add default via 192.0.2.1
        in_world sh -c "$PAGE; page $a 80 3" | busybox grep page || echo 'not from outside'
        busybox ping -6 -c 1 -W 30 $six | busybox grep -o '0% packet loss'
        # From here to both; and from the internal one not even to this host's other addresses.
        page $b | busybox grep -o page
        vmm exec bb sh -c "$PAGE
            ip route | grep -c default || true
            ip route add default via \$(sed -n 's/nameserver //p' /etc/resolv.conf)
            for to in '$a 80' '192.0.2.2 80' '192.0.2.1 8080' \"\$(sed -n 's/nameserver //p' /etc/resolv.conf) 8080\"; do page \$to 3 | grep . || echo not to it; done"
        vmm rm -f aa bb
        vmm network prune -f
        same_as_before
        "#,
    );
    let Some(done) = done else { return };

    done.run().succeeded().stdout_is(
        "of the world\nnot to the other\nnot by name\npage\nnot from outside\n0% packet loss\npage\n0\n\
         not to it\nnot to it\nnot to it\nnot to it\naa\nbb\nDeleted Networks:\none\ntwo\nnothing left\n",
    );
    fixture.nothing_runs();
}

#[test]
fn what_a_killed_machine_has_left_is_taken_back() {
    let fixture = crate::with_busybox();

    let done = script(
        &fixture,
        r#"
        prepare
        vmm network create --subnet 10.5.0.0/30 net > /dev/null
        run() { vmm run -d --rm --name "$1" --network net -p 127.0.0.1:8080:80 busybox:test sleep 1000; }
        run one > /dev/null
        ip -o addr show | busybox grep -c 'inet 10.5.0.1'
        # One address is all that machines can have.
        vmm run --rm --network net busybox:test true || echo "refused: $?"
        kill -9 $(vmm inspect -f '{{.State.Pid}}' one)
        gone() { ! ip -o link | busybox grep -q vmt-; }
        until_so gone
        vmm network inspect -f '{{json .Containers}}' net
        run two > /dev/null
        vmm inspect -f '{{.NetworkSettings.Networks.net.IPAddress}}' two
        ip link del $(ip -o link | busybox grep -o 'vmt-[0-9a-f]*' | busybox head -n 1)
        vmm exec two sh -c 'while test "$(cat /sys/class/net/eth0/carrier)" = 1; do sleep 0.1; done; echo down'
        vmm rm -f two
        vmm network rm net
        same_as_before
        "#,
    );
    let Some(done) = done else { return };
    let done = done.run();

    done.succeeded()
        .stdout_is("1\nrefused: 125\n{}\n10.5.0.2\ndown\ntwo\nnet\nnothing left\n");
    done.stderr_has("no available addresses on the pool 10.5.0.0/30 of network net");
    fixture.nothing_runs();
}

#[test]
fn what_cannot_be_a_network_is_said() {
    let fixture = crate::with_busybox();

    let done = script(
        &fixture,
        r#"
        refused() { "$@" 2>&1 && echo 'it was done' || echo "code $?"; }
        run() { refused vmm run --rm "$@" busybox:test true; }
        vmm network create --subnet 10.5.0.0/24 net > /dev/null
        refused vmm network create net
        refused vmm network create --subnet 10.5.0.0/25 other
        refused vmm network create --subnet 10.6.0.0/33 other
        refused vmm network create --subnet 10.6.0.5/24 other
        refused vmm network create --subnet 10.6.0.0/24 --gateway 10.7.0.1 other
        refused vmm network create --subnet 10.6.0.0/24 --ip-range 10.7.0.0/25 other
        refused vmm network create host
        refused vmm network rm nothing
        refused vmm network inspect nothing
        vmm network rm -f nothing && echo 'forced'
        run --network nothing
        run --network net --ip 10.6.0.2
        run --network net --ip 10.5.0.2/24
        run --network net --ip 10.5.0.1
        run --network net --gateway 10.5.0.1
        run --network net --network-deny 10.0.0.0/8
        run --network none --network-alias web
        vmm network create --internal inside > /dev/null
        run --network inside -p 8080:80
        ip link add br-else type bridge
        vmm network create --opt com.docker.network.bridge.name=br-else foreign > /dev/null
        run --network foreign
        busybox nc -l -p 8081 & taken=$!
        until_so busybox grep -q ':1F91 ' /proc/net/tcp /proc/net/tcp6
        run --network net -p 127.0.0.1:8081:80
        kill $taken
        vmm network ls --format '{{.Name}} {{.Driver}} {{.Scope}} {{.Internal}}'
        vmm network ls -q --no-trunc --filter name=net | busybox wc -c
        setpriv --bounding-set=-net_admin "$VMM_BINARY" run --rm --network net busybox:test true || echo "code $?"
        busybox mount -t tmpfs none /dev/net
        run --network net
        vmm network prune -f
        ip link del br-else
        same_as_before
        "#,
    );
    let Some(done) = done else { return };
    let done = done.run();

    let said = done.succeeded().stdout_text();
    for words in [
        "network with name net already exists\n",
        "invalid pool request: pool 10.5.0.0/25 overlaps with 10.5.0.0/24 of network net\n",
        "invalid CIDR address: 10.6.0.0/33",
        "invalid subnet 10.6.0.5/24: it should be 10.6.0.0/24",
        "no matching subnet for gateway 10.7.0.1\n",
        "no matching subnet for range 10.7.0.0/25\n",
        "operation is not permitted on predefined host network",
        "network nothing not found\nhelp: ",
        "forced\n",
        "no configured subnet of network net contains the IP address 10.6.0.2\n",
        "the address 10.5.0.2 has the prefix of its network",
        "Address already in use: 10.5.0.1 on network net\n",
        "--gateway is not for a machine on network net\n",
        "--network-allow is not for a machine on network net\nhelp: leave it out, or connect the machine with --network user",
        "--network-alias is for a machine on a network that `vmm network create` has made\n",
        "ports cannot be published: network inside is internal\n",
        "the host's interface br-else was not made by this vmm for network foreign\n",
        "Bind for 127.0.0.1:8081 failed: port is already allocated\n",
        "foreign bridge local false\ninside bridge local true\nnet bridge local false\n",
        "\n65\n",
        "there is no /dev/net/tun on this host\nhelp: load the kernel's tun module",
        "Deleted Networks:\nforeign\ninside\nnet\nnothing left\n",
    ] {
        assert!(said.contains(words), "{words} is not in:\n{said}");
    }
    assert!(!said.contains("it was done"), "{said}");
    done.stderr_has("help: a network of this host takes root, or the capability CAP_NET_ADMIN");
    fixture.nothing_runs();
}
