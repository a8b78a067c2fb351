//! Runs OCI images, each in a microVM of its own.

pub mod image;
