//! Machines and programs of the host that talk by a network, as people have them do it: servers and clients of Debian's, each once on
//! either side. In the lab, where the host's side has the same programs in a directory. Only in the full profile.

use std::path::Path;

use lab::{Lab, LabError};
use tests::lab_script::{WAIT_FOR, in_lab, lab_with};
use tests::{Fixture, bundle, real_images};

/// What every script begins with: `peer` runs a program on the host's side, from the image's files.
const PEER: &str = r#"
    for name in dev proc sys; do mkdir -p /peer/$name; mount --bind /$name /peer/$name; done
    mkdir -p /peer/tmp /peer/run
    peer() { chroot /peer env PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C "$@"; }
    # An address that is the host's and not its loopback.
    ip link set lo up
    ip address add 198.51.100.7/32 dev lo
    vmm load --quiet --input /image.oci --name peers:1 > /dev/null
"#;

/// A lab whose machines can be of the image with peers, and the host's side of it. What it is put together from goes with the fixture.
fn lab_with_peers() -> (Lab, Fixture) {
    let image = real_images::debian_app("peers");
    let fixture = Fixture::new();
    let mut lab = lab_with(&image);
    put_unpacked(&mut lab, &fixture, &image, "peer");
    (lab, fixture)
}

/// Puts the files of an image where a script finds them: in a directory of this name.
fn put_unpacked(lab: &mut Lab, fixture: &Fixture, image: &Path, name: &str) {
    let unpacked = fixture.path(name);
    bundle::unpack(image, &unpacked);
    let put = lab.tree.copy(unpacked.join("rootfs"), format!("/{name}"));
    put.unwrap_or_else(|error: LabError| unreachable!("no lab: {error}"));
}

/// Runs a script between the two sides, and shows both streams if the answers are not these.
fn says(lab: &mut Lab, script: &str, answers: &str) {
    let (said, complaint) = in_lab(lab, &format!("{PEER}{WAIT_FOR}{script}"));
    assert_eq!(said, answers, "{complaint}");
}

#[test]
fn a_web_server_answers_over_both_families_and_under_load() {
    let script = r#"
        vmm run -d --name web --memory 256m -p 8080:80 peers:1 nginx -g 'daemon off;' > /dev/null
        wait_for peer curl --silent --fail http://127.0.0.1:8080/
        peer curl --silent http://127.0.0.1:8080/ | grep -c '<h1>Welcome'
        peer curl --silent --globoff 'http://[::1]:8080/' | grep -c '<h1>Welcome'
        peer curl --silent http://198.51.100.7:8080/ | grep -c '<h1>Welcome'
        peer wrk --threads 1 --connections 16 --duration 5s http://127.0.0.1:8080/ > /wrk
        grep -cE 'Socket errors|Non-2xx' /wrk
        awk '/requests in/ { print ($1 > 100) ? "many" : $0 }' /wrk; cat /wrk >&2
        vmm exec web sh -c 'grep -c "GET / HTTP/1.1. 200" /var/log/nginx/access.log' | awk '{ print ($1 > 100) ? "many" : $0 }'
        vmm stop web
        ps | grep -c '[n]etwork-gateway'"#;

    let (mut lab, _files) = lab_with_peers();
    says(&mut lab, script, "1\n1\n1\n0\nmany\nmany\nweb\n0\n");
}

#[test]
fn redis_and_its_clients_are_on_either_side_and_ten_thousand_connections_come_and_go() {
    let script = r"
        vmm run -d --name store --memory 256m -p 6379:6379 peers:1 redis-server --save '' --protected-mode no > /dev/null
        wait_for peer redis-cli ping
        peer redis-cli set word kept; peer redis-cli get word
        peer redis-benchmark -q -t ping_mbulk -n 10000 -c 20 -k 0 | tr '\r' '\n' | grep -c 'requests per second'
        peer redis-cli info stats | awk -F: '/total_connections_received/ { print ($2 > 10000) ? 10000 : $2 }'
        peer redis-cli info clients | grep connected_clients | tr -d '\r'
        vmm rm -f store
        peer redis-server --save '' --port 6380 --daemonize yes > /dev/null
        wait_for peer redis-cli -p 6380 ping
        vmm run --rm --network user:host-loopback --add-host host:host-gateway peers:1 sh -c '
            redis-cli -h host -p 6380 set other way; redis-cli -h host -p 6380 get other'
        vmm run --rm --network user peers:1 redis-cli -h 10.0.2.2 -p 6380 get other 2>&1 | grep -ci refused
        peer redis-cli -p 6380 shutdown nosave";

    let (mut lab, _files) = lab_with_peers();
    says(
        &mut lab,
        script,
        "OK\nkept\n1\n10000\nconnected_clients:1\nstore\nOK\nway\n1\n",
    );
}

#[test]
fn postgresql_and_its_clients_are_on_either_side() {
    let (mut lab, files) = lab_with_peers();
    let server = real_images::debian_app("postgresql");
    put_unpacked(&mut lab, &files, &server, "server");
    lab.tree
        .copy(&server, "/server.oci")
        .unwrap_or_else(|error| unreachable!("no lab: {error}"));
    let serve = r#"
        export PATH=/usr/lib/postgresql/15/bin:$PATH
        initdb --no-sync --auth=trust --pgdata=/tmp/cluster > /dev/null
        echo 'host all all all trust' >> /tmp/cluster/pg_hba.conf
        exec postgres -D /tmp/cluster -k /tmp -c "listen_addresses=*" -p "$0"
    "#;
    lab.tree.bytes("/serve", serve, 0o644);
    let script = r#"
        vmm load --quiet --input /server.oci --name postgresql:1 > /dev/null
        vmm run -d --name database --memory 512m -p 5432:5432 postgresql:1 bash -c "$(cat /serve)" 5432 > /dev/null
        ask() { psql --no-psqlrc --quiet --tuples-only --no-align --username=postgres "$@" postgres; }
        in_peer() { peer /usr/lib/postgresql/15/bin/psql --no-psqlrc --tuples-only --no-align --username=postgres --host=127.0.0.1 "$@" postgres; }
        wait_for in_peer --command 'select 1'
        in_peer --quiet --command 'create table t (n int); insert into t select generate_series(1, 1000); select sum(n) from t'
        vmm rm -f database
        for name in dev proc; do mkdir -p /server/$name; mount --bind /$name /server/$name; done
        chmod 1777 /server/tmp
        chroot /server /usr/bin/setpriv --reuid=postgres --regid=postgres --clear-groups \
            /bin/bash -c "PATH=/usr/bin:/bin; $(cat /serve)" 5433 > /dev/null 2>&1 &
        client='/usr/lib/postgresql/15/bin/psql --no-psqlrc --tuples-only --no-align --username=postgres --host=198.51.100.7 --port=5433'
        wait_for peer $client --command 'select 1' postgres
        vmm run --rm --memory 256m --network user peers:1 $client --command 'select sum(n) from generate_series(1, 100) n' postgres
        chroot /server /usr/bin/pkill -INT postgres"#;

    says(&mut lab, script, "500500\ndatabase\n5050\n");
}

#[test]
fn names_are_found_hosts_are_pinged_packages_are_listed_and_shells_are_opened() {
    let script = r#"
        echo '0 2147483647' > /proc/sys/net/ipv4/ping_group_range
        echo 'nameserver 198.51.100.7' > /etc/resolv.conf
        peer dnsmasq --listen-address=198.51.100.7 --bind-interfaces --no-resolv --no-hosts --user=root --pid-file= \
            --address=/web.test/192.0.2.7 --address=/web.test/2001:db8::7 --txt-record=long.test,$(seq -s- 60),$(seq -s- 61)
        machine() { vmm run --rm --memory 256m --network user peers:1 sh -c "$1"; }
        machine '
            dig +short web.test; dig +short AAAA web.test; dig +short +tcp web.test; dig +short TXT long.test | wc -w
            dig nothing.else | grep -c "status: REFUSED\|status: NXDOMAIN"
            getent ahostsv4 web.test | head -n 1 | tr -s " "
            ping -q -c 3 198.51.100.7 | grep -o "3 received"
            ping -q -c 1 -W 1 192.0.2.99 | grep -o "0 received"'
        mkdir /repository
        printf 'Package: peer\nVersion: 1.2\nArchitecture: all\nMaintainer: nobody\nFilename: ./peer.deb\nSize: 1\nDescription: none\n' > /repository/Packages
        busybox httpd -p 198.51.100.7:8081 -h /repository
        machine '
            rm -rf /etc/apt/sources.list*
            echo "deb [trusted=yes] http://198.51.100.7:8081/ ./" > /etc/apt/sources.list
            apt-get update > /dev/null && apt-cache policy peer | grep Candidate'
        peer ssh-keygen -q -t ed25519 -N '' -f /tmp/key
        vmm run -d --name shell --memory 256m -p 2222:22 -e KEY="$(cat /peer/tmp/key.pub)" peers:1 sh -c '
            mkdir -p /run/sshd /root/.ssh; chmod 700 /root/.ssh; echo "$KEY" > /root/.ssh/authorized_keys
            exec /usr/sbin/sshd -D -e' > /dev/null
        over_ssh() { peer ssh -q -i /tmp/key -p 2222 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@127.0.0.1 "$@"; }
        wait_for over_ssh true
        over_ssh 'echo over ssh; exit 7'; echo $?
        head -c 3000000 /peer/usr/bin/redis-server | over_ssh cat | cmp -n 3000000 - /peer/usr/bin/redis-server && echo same
        vmm rm -f shell"#;

    let (mut lab, _files) = lab_with_peers();
    says(
        &mut lab,
        script,
        "192.0.2.7\n2001:db8::7\n192.0.2.7\n2\n1\n192.0.2.7 STREAM web.test\n3 received\n0 received\n  Candidate: 1.2\n\
         over ssh\n7\nsame\nshell\n",
    );
}

#[test]
fn a_gibibyte_arrives_as_it_was_sent_in_both_directions() {
    let script = r#"
        numbers() { seq 1 200000000 | head -c 1073741824; }
        vmm run -d --name both --memory 256m -p 9000-9001:9000-9001 peers:1 bash -c '
            socat -b 65536 TCP-LISTEN:9000,reuseaddr,fork SYSTEM:"seq 1 200000000 | head -c 1073741824" &
            socat -u -b 65536 TCP-LISTEN:9001,reuseaddr - | sha1sum; wait' > /dev/null
        wait_for peer socat -u OPEN:/dev/null TCP:127.0.0.1:9000
        expected=$(numbers | sha1sum)
        [ "$(peer socat -u -b 65536 TCP:127.0.0.1:9000 - | sha1sum)" = "$expected" ] && echo down
        numbers | peer socat -u -b 65536 - TCP:127.0.0.1:9001
        is_told() { vmm logs both | grep .; }
        wait_for is_told
        [ "$(vmm logs both)" = "$expected" ] && echo up
        vmm rm -f both"#;

    let (mut lab, _files) = lab_with_peers();
    says(&mut lab, script, "down\nup\nboth\n");
}

#[test]
fn ends_of_streams_and_the_largest_datagrams_and_frames_arrive() {
    let script = r#"
        vmm run -d --name ends --memory 256m -p 9002-9003:9002-9003 -p 9004:9004/udp peers:1 bash -c '
            socat TCP-LISTEN:9002,reuseaddr,fork SYSTEM:"wc -c" &
            socat -u TCP-LISTEN:9003,reuseaddr,fork,linger=0 SYSTEM:"head -c 1 > /dev/null" &
            socat -b 65507 UDP-RECVFROM:9004,fork PIPE' > /dev/null
        counted() { printf ask | peer socat -t 30 - TCP:127.0.0.1:9002 | grep .; }
        wait_for counted
        printf 'half a talk' | peer socat -t 30 - TCP:127.0.0.1:9002
        peer bash -c 'exec 3<>/dev/tcp/127.0.0.1/9003; echo one line >&3; cat <&3' 2>&1 | grep -o 'reset by peer'
        head -c 65507 /dev/urandom > /peer/tmp/datagram
        peer socat -t 10 -b 65507 OPEN:/tmp/datagram,rdonly!!CREATE:/tmp/answer UDP:127.0.0.1:9004
        cmp /peer/tmp/datagram /peer/tmp/answer && echo whole
        vmm rm -f ends
        peer ip tuntap add jumbo mode tap
        ip address add 10.9.0.1/24 dev jumbo
        ip link set jumbo mtu 9000 up
        vmm run --rm --network tap=jumbo --ip 10.9.0.2/24 peers:1 sh -c '
            cat /sys/class/net/eth0/mtu; ping -q -c 2 -M do -s 8972 10.9.0.1 | grep -o "2 received"'
        peer ip tuntap del jumbo mode tap"#;

    let (mut lab, _files) = lab_with_peers();
    says(
        &mut lab,
        script,
        "11\nreset by peer\nwhole\nends\n9000\n2 received\n",
    );
}
