//! What a workload sees beside its image.

mod shares;
