//! Diagnostics on standard error: quiet unless asked for. Standard output belongs to the workload.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Starts logging; `verbosity` counts the `-v`s, `VMM_LOG` holds a filter that stands above them.
///
/// Does nothing if logging was started before.
pub fn start(verbosity: u8) {
    let level = match verbosity {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let filter = match std::env::var("VMM_LOG") {
        Ok(filter) if !filter.is_empty() => EnvFilter::builder()
            .with_default_directive(level.into())
            .parse_lossy(filter),
        // Building no regular expressions keeps the usual start short.
        _ => EnvFilter::default().add_directive(level.into()),
    };
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr())
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(verbosity > 1)
        .without_time()
        .try_init();
}
