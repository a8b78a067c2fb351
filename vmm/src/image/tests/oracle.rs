//! Real images against an unpacking runtime.
