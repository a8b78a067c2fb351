//! What is run in the image: short scripts for its shell, which need no other program of it.

use super::place::{Program, SCRATCH_FILE};

/// Prints a byte and exits.
const START: &str = "echo .";
/// Prints a byte and waits until its standard input ends.
const IDLE: &str = "echo .; read line; :";

/// The program whose start is measured where the user named none.
pub(super) fn start() -> Program {
    Program::script(START)
}

/// The program whose memory is measured.
pub(super) fn idle() -> Program {
    Program::script(IDLE).keeping_input()
}

/// A loop that is timed from its first line of output to its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loop {
    /// Arithmetic of the shell.
    Cpu,
    /// A string doubled until it has a mebibyte: memory taken, filled, copied and given back.
    Memory,
    /// A file opened, appended to, opened and read, through the container's root. Not overwritten: some file systems
    /// write a file to the disk when it is closed after it was cut to nothing.
    File,
}

impl Loop {
    pub(super) const ALL: [Self; 3] = [Self::Cpu, Self::Memory, Self::File];

    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::File => "file",
        }
    }

    /// The number of iterations to begin with: some milliseconds on a slow processor.
    pub(super) fn first_iterations(self) -> u64 {
        match self {
            Self::Cpu => 20_000,
            Self::Memory => 4,
            Self::File => 200,
        }
    }

    /// The loop with so many iterations.
    pub(super) fn program(self, iterations: u64) -> Program {
        let (before, body) = match self {
            Self::Cpu => (String::new(), ":".to_owned()),
            Self::Memory => (
                String::new(),
                "s=................; while [ ${#s} -lt 1048576 ]; do s=$s$s; done".to_owned(),
            ),
            Self::File => (
                format!(": >{SCRATCH_FILE}; "),
                format!("echo . >>{SCRATCH_FILE}; read line <{SCRATCH_FILE}"),
            ),
        };
        Program::script(format!(
            "{before}echo .; i=0; while [ $i -lt {iterations} ]; do {body}; i=$((i+1)); done; echo ."
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_loop_prints_when_it_begins_and_when_it_ends() {
        let program = Loop::Memory.program(1);

        let output = Command::new("/bin/sh").args(&program.words).output();

        assert_eq!(output.unwrap().stdout, b".\n.\n");
    }
}
