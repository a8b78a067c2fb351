//! What was typed.

use std::path::PathBuf;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Measure all scenarios, and write everything that is kept of it.
    All,
    /// The same without those that take minutes.
    Short,
    /// Measure what has a ceiling.
    Budgets,
    /// Measure again and compare.
    Check,
    /// Take a cold start apart.
    Profile,
    /// Measure one scenario.
    Only(String),
}

/// The other VMMs that were named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Peers {
    pub(crate) firecracker: Option<PathBuf>,
    pub(crate) cloud_hypervisor: Option<PathBuf>,
    /// QEMU is a part of the lab, so it is on the PATH.
    pub(crate) qemu: bool,
}

/// Reads the command line; the error is a sentence.
pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<(Mode, Peers), String> {
    let mut arguments = arguments;
    let mut mode = None;
    let mut peers = Peers::default();
    while let Some(argument) = arguments.next() {
        let mut value = || {
            let value = arguments.next();
            value.ok_or_else(|| format!("{argument} takes a value"))
        };
        let chosen = match argument.as_str() {
            "--short" => Mode::Short,
            "--budgets" => Mode::Budgets,
            "--check" => Mode::Check,
            "--profile" => Mode::Profile,
            "--only" => Mode::Only(value()?),
            "--firecracker" => {
                peers.firecracker = Some(value()?.into());
                continue;
            }
            "--cloud-hypervisor" => {
                peers.cloud_hypervisor = Some(value()?.into());
                continue;
            }
            "--qemu" => {
                peers.qemu = true;
                continue;
            }
            // Cargo adds it.
            "--bench" => continue,
            _ => return Err(format!("unknown argument {argument:?}")),
        };
        if mode.replace(chosen).is_some() {
            return Err(format!("{argument} does not go with what stands before it"));
        }
    }
    Ok((mode.unwrap_or(Mode::All), peers))
}
