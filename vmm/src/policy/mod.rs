//! What is decided about a machine while nobody looks: whether it is started again. The decisions know no clock and no machine; whoever
//! asks tells them what has happened.

mod restart;

pub use self::restart::{BackOff, End, Order, PolicyError, RestartPolicy};
