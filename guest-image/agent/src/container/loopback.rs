//! Brings the loopback interface up.

use protocol::StartFailure;

use crate::step::Step as _;
use netlink::{self, Batch, kind};

/// The loopback interface has this index in every network namespace (`LOOPBACK_IFINDEX`, `include/net/flow.h`).
const LOOPBACK_INDEX: u32 = 1;
/// `IFF_UP`.
const UP: u32 = 1;

/// Sets the loopback interface of the caller's network namespace up; it gets its addresses with that.
///
/// # Errors
///
/// If the kernel refuses it.
pub(crate) fn set_up() -> Result<(), StartFailure> {
    let mut batch = Batch::default();
    let link = netlink::link(LOOPBACK_INDEX, UP, UP);
    batch.request(kind::SET_LINK, &link, |_| ());
    batch
        .carry_out()
        .step(|| "setting up the loopback interface".to_owned())
}
