//! Harness of the end-to-end tests: everything a test needs to drive the binary `vmm` from outside.
//!
//! The tests are black boxes. They know what a user knows: flags, streams, exit codes and files; they link none of the
//! project's other crates. A [`Fixture`] is a home of its own for one test: a private root directory, the binary
//! under test, and a broom for whatever it started.
//!
//! A harness reports by panicking: a test that cannot be set up must fail, never pass by doing nothing.
#![forbid(unsafe_code)]
#![expect(
    clippy::missing_panics_doc,
    reason = "a harness reports by panicking, in every function"
)]
#![expect(clippy::panic, reason = "a harness reports by panicking")]

pub mod binary;
pub mod bundle;
pub mod cache;
pub mod fixture;
pub mod guest_image;
pub mod host;
pub mod image_maker;
pub mod kernels;
pub mod lab_script;
pub mod process;
pub mod real_images;
pub mod snapshot;
pub mod terminal;
pub mod workload;

pub use fixture::Fixture;
pub use process::{Finished, Invocation, Running};
