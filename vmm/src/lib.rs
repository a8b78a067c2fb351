//! Runs OCI images, each in a microVM of its own.

pub mod agent_link;
pub mod attach;
pub mod cli;
pub mod commands;
pub mod dirs;
pub mod guest;
pub mod image;
pub mod limits;
pub mod logging;
pub mod logs;
pub mod machine;
pub mod moment;
pub mod monitor;
pub mod outcome;
pub mod plan;
pub mod process;
pub mod report;
pub mod sandbox;
pub mod snapshot;
pub mod state;
pub mod storage;
pub mod template;
pub mod timings;
pub mod vm_process;
pub mod workload;
