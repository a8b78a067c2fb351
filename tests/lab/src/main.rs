//! The lab's command line.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use lab::{Clock, Lab, LabError};

/// A machine with a complete KVM on any machine, and a clock that counts instructions.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  lab run -- cat /proc/cpuinfo
  lab run --vmm target/release/vmm --with target/demo.oci -- vmm run --image target/demo.oci
  lab run --icount --program crun -- lab time --repeat 3 -- crun --version"
)]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Boot a lab, run a command in it, and end with the command's exit code
    Run(Run),
    /// Fetch what a lab takes, and say what it is
    Parts,
    /// Run a command some times; print after how many nanoseconds there was its first byte of output, its exit, and nobody
    /// left whom it had started; fail if one fails
    Time(Time),
}

#[derive(Debug, Args)]
struct Run {
    /// Let the clock count instructions
    #[arg(long)]
    icount: bool,
    /// The lab's memory; everything that is put into it takes of it
    #[arg(long, value_name = "MIB", default_value_t = 3072)]
    memory: u32,
    /// The lab's processors (one with --icount)
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// How long all of it may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    limit: u64,
    /// Put in a file or directory, at its own path or at another one
    #[arg(long = "with", value_name = "PATH[:INSIDE]")]
    with: Vec<String>,
    /// Put in a program, found as the shell finds it, with its libraries
    #[arg(long = "program", value_name = "PROGRAM")]
    programs: Vec<String>,
    /// Put in this vmm as /usr/bin/vmm, with its guest image
    #[arg(long, value_name = "VMM")]
    vmm: Option<PathBuf>,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
struct Time {
    /// How often
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// The command, with nothing to read; what it says is dropped
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Subcommands::Run(arguments) => run(&arguments),
        Subcommands::Parts => parts(),
        Subcommands::Time(arguments) => time(&arguments),
    };
    result.unwrap_or_else(|error| {
        let mut stderr = io::stderr().lock();
        // Nobody is left to tell if standard error is gone.
        let _ = writeln!(stderr, "lab: {}", lab::chain(&error));
        if let Some(help) = error.help() {
            let _ = writeln!(stderr, "help: {help}");
        }
        ExitCode::from(125)
    })
}

fn run(arguments: &Run) -> Result<ExitCode, LabError> {
    lab::end_on_signals(|| ()).map_err(|source| LabError::Host {
        doing: "listen to signals",
        source,
    })?;
    let mut lab = Lab::new()?;
    lab.memory_mib = arguments.memory;
    lab.limit = Duration::from_secs(arguments.limit);
    lab.cpus = arguments.cpus;
    if arguments.icount {
        lab.clock = Clock::Instructions;
        lab.cpus = 1;
    }
    let here = std::env::current_dir().map_err(|source| LabError::File {
        path: ".".into(),
        source,
    })?;
    for with in &arguments.with {
        let (source, inside) = with.split_once(':').unwrap_or((with, with));
        lab.tree.copy(source, here.join(inside))?;
    }
    for program in &arguments.programs {
        if program.contains('/') {
            lab.tree.program(program, here.join(program))?;
        } else {
            lab.tree.program_called(program)?;
        }
    }
    if let Some(vmm) = &arguments.vmm {
        lab.put_vmm(vmm, Path::new("/usr/bin/vmm"))?;
    }
    lab.put_this_program()?;
    lab.tree.directory(&here, 0o755);
    lab.directory = here;
    let ended = lab.run(&arguments.command, &mut io::stdout(), &mut io::stderr())?;
    Ok(ExitCode::from(ended.code))
}

fn parts() -> Result<ExitCode, LabError> {
    let parts = lab::Parts::find()?;
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "QEMU    {}", parts.qemu_version);
    let _ = writeln!(
        stdout,
        "kernel  {} in {}",
        parts.kernel_release,
        parts.kernel.display()
    );
    Ok(ExitCode::SUCCESS)
}

fn time(arguments: &Time) -> Result<ExitCode, LabError> {
    let (program, rest) = arguments
        .command
        .split_first()
        .unwrap_or_else(|| unreachable!("clap asks for one"));
    let failed = |source| LabError::File {
        path: Path::new(program).to_owned(),
        source,
    };
    // Said in the end: who reads it would take of the next time.
    let mut all = String::new();
    let mut code = ExitCode::SUCCESS;
    for _ in 0..arguments.repeat {
        let mut command = Command::new(program);
        let (times, status) = lab::time(command.args(rest), &mut io::sink()).map_err(failed)?;
        all.push_str(&format!("{times}\n"));
        if !status.success() {
            let _ = writeln!(io::stderr(), "lab: {} failed: {status}", program.display());
            code = ExitCode::FAILURE;
            break;
        }
    }
    // Nobody is left to tell if standard output is gone.
    let _ = io::stdout().write_all(all.as_bytes());
    Ok(code)
}
