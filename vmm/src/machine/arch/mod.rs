//! What is specific to the processor: x86-64.

pub(super) mod boot;
pub(super) mod cpuid;
pub(super) mod layout;
pub(super) mod mptable;
pub(super) mod paging;
pub(super) mod registers;
