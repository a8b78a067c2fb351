//! The command `vmm`: parse, do, report.

use std::io::Write;
use std::process::ExitCode;

use vmm::{cli, commands, logging, process};

fn main() -> ExitCode {
    let result = cli::parse(std::env::args_os()).and_then(|cli| {
        logging::start(cli.global.verbose);
        commands::dispatch(&cli)
    });
    match result {
        Ok(code) => code.into(),
        Err(report) if report.is_output_closed() => process::die_of_closed_output(),
        Err(report) if report.is_printed() => report.exit_code().into(),
        Err(report) => {
            // Nobody is left to tell if standard error is gone, too.
            let _ = writeln!(std::io::stderr(), "{report}");
            report.exit_code().into()
        }
    }
}
