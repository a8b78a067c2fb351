//! What is decided about a machine while nobody looks: whether it is started again, and how well it is. The decisions know no clock and no
//! machine; whoever asks tells them what has happened.

mod health;
mod restart;

pub use self::health::{
    Health, HealthCheck, HealthConfig, HealthError, HealthStatus, MAX_OUTPUT_BYTES, Probe,
};
pub use self::restart::{BackOff, End, Order, PolicyError, RestartPolicy};
