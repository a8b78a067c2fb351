//! The command `vmm`.
fn main() {}
