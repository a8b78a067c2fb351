//! Machines without a network.

use tests::Fixture;

#[test]
fn a_machine_without_a_network_sends_nothing_by_any_interface_but_its_own_loopback() {
    let fixture = Fixture::with_machines();
    let image = crate::busybox_with_probe(&fixture);

    let script = "probe raw-frames; ls /sys/class/net; grep -c . /proc/net/route; ping -c 1 127.0.0.1 | grep -o '0% packet loss'";
    let done = fixture
        .run(&image, &["--network", "none"], &["sh", "-c", script])
        .run();

    done.succeeded()
        .stdout_is("sent by 1\nlo\n1\n0% packet loss\n");
}
