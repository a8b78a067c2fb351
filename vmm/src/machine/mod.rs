//! The machine.
mod arch;
pub mod host;
mod kernel;
mod memory;
mod shape;
pub use kernel::KernelError;
pub use memory::{MemoryError, Part, Window};
pub use shape::*;
