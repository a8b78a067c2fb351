//! Machines with a network, from outside: on taps in a network namespace that each test makes for itself and that goes with it.
//!
//! The host's side is a shell script, which sees only its own interfaces. What it leaves in its namespace it says at its end.

mod bridges;
mod copies;
mod taps;
mod user;
mod without;

use tests::process::MACHINE_LIMIT;
use tests::{Fixture, Invocation};

/// What every script begins with: a tap with addresses, and short words.
const BEGINNING: &str = r#"
ip link set lo up
make_tap() {
    ip tuntap add dev "$1" mode tap
    ip addr add "$2" dev "$1"
    ip -6 addr add "$3" dev "$1" nodad
    ip link set "$1" mtu "${4:-1500}" up
}
vmm() { "$VMM_BINARY" "$@"; }
# Waits until a command succeeds.
until_so() { for _ in $(busybox seq 600); do "$@" > /dev/null 2>&1 && return; busybox sleep 0.1; done; echo "in vain: $*"; return 1; }
# Whether nobody has the tap open.
is_free() { ip link show "$1" | busybox grep -q NO-CARRIER; }
"#;

/// Prepares a script in a network namespace of its own.
fn script(fixture: &Fixture, text: &str) -> Invocation {
    fixture
        .in_private_network(&format!("{BEGINNING}{text}"))
        .limit(MACHINE_LIMIT * 2)
}
