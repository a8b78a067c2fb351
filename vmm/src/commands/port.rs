//! `vmm port`: where on the host the ports of a machine are reached.

use thiserror::Error;

use super::machines;
use super::output::print_line;
use crate::cli::PortArgs;
use crate::dirs::Directories;
use crate::network::PublishedPort;
use crate::outcome::ExitCode;
use crate::report::{Help, Report};

/// Prints a line for each address and port; of one port of the machine's, the host's alone.
pub(super) fn run(arguments: &PortArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let machine = machines(directories)?.find(&arguments.machine)?;
    let network = &machine.record.settings.network;
    let published = network.published().unwrap_or_default();
    match arguments.port {
        None => {
            for port in published {
                for address in port.addresses() {
                    print_line(format!("{port} -> {address}"))?;
                }
            }
        }
        Some(wanted) => {
            let found: Vec<&PublishedPort> = published
                .iter()
                .filter(|port| wanted.includes(port))
                .collect();
            if found.is_empty() {
                return Err(PortError {
                    port: wanted.to_string(),
                    machine: machine.record.name.to_string(),
                }
                .into());
            }
            for address in found.iter().flat_map(|port| port.addresses()) {
                print_line(address.to_string())?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A port that is not published.
#[derive(Debug, Error)]
#[error("no public port '{port}' published for {machine}")]
struct PortError {
    port: String,
    machine: String,
}

impl Help for PortError {
    fn help(&self) -> Option<String> {
        Some("`vmm port MACHINE` lists those that are".to_owned())
    }
}
