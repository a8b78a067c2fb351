//! What workloads in the background write: kept in files, read by `vmm logs`.
//!
//! ```text
//! workload ── agent link ── pipe ── Collector, a thread of the monitor ── LogWriter ── workload.log, .1, .2 …
//!                                                                                        │
//!                                                                 LogReader, in `vmm logs`, which needs no monitor
//! ```
//!
//! The files are docker's of its driver `json-file`: one JSON object for each line, see [`entry`](mod@self::entry). Writers and readers share
//! nothing but the files, so nobody who reads can keep a workload waiting. A disk that takes no more does not, either: what is
//! lost is counted, and said where it is missing.

mod collector;
mod config;
mod entry;
mod files;
mod reader;
mod writer;

pub use self::collector::{Collector, LogSinks, LogSources, log_pipes};
pub use self::config::{LogConfig, LogConfigError, LogDriver, LogOption};
pub use self::entry::{Entry, Stream};
pub use self::files::path_of;
pub use self::reader::{LogReader, Next, ReadError, Window};
pub use self::writer::LogWriter;
