//! Device models of the microVM.
//!
//! Devices only: no KVM, no container images, no command line. Memory, queues, the interrupt line
//! and descriptors are handed in. The vCPU threads reach devices through a [`bus`]; the queues of
//! virtio devices are served on one [`event_loop`].
//!
//! `unsafe` stands in two files: in `guest_io.rs`, where the kernel reads and writes guest memory, and in `virtio/net/tap.rs`, for its requests to a tap.
#![deny(unsafe_code)]

pub mod bus;
pub mod doorbell;
pub mod event_loop;
mod guest_io;
pub mod i8042;
pub mod interrupt;
pub mod serial;
pub mod virtio;
