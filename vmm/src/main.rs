//! The command `vmm`: parse, do, report.

use std::io::Write;
use std::process;

use vmm::cli::Command;
use vmm::network::gateway;
use vmm::outcome::ExitCode;
use vmm::report::Report;
use vmm::{cli, commands, logging};

fn main() -> process::ExitCode {
    let result = match gateway::is_asked_for() {
        true => gateway::live()
            .map(|()| ExitCode::SUCCESS)
            .map_err(Into::into),
        false => run(),
    };
    match result {
        Ok(code) => code.into(),
        Err(report) if report.is_output_closed() => vmm::process::die_of_closed_output(),
        Err(report) if report.is_printed() => report.exit_code().into(),
        Err(report) => {
            // Nobody is left to tell if standard error is gone, too.
            let _ = writeln!(std::io::stderr(), "{report}");
            report.exit_code().into()
        }
    }
}

/// Does what was typed.
fn run() -> Result<ExitCode, Report> {
    cli::parse(std::env::args_os()).and_then(|cli| {
        logging::start(cli.global.verbose);
        let done = commands::dispatch(&cli);
        match cli.command {
            // As with docker: its other codes are the workload's.
            Command::Run(_) => {
                done.map_err(|report| report.or_exit_code(ExitCode::APPLIANCE_FAILED))
            }
            _ => done,
        }
    })
}
