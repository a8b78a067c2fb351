//! Records of machines, without a daemon.

mod name;
mod signal;

pub use name::{MachineName, NameError};
pub use signal::{Signal, SignalError};
