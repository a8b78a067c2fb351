//! The image store: opens, verifies and converts OCI images.

pub mod erofs;
