//! Finds and executes the process's program, as execvpe(3) would, without its fallback to a shell.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt as _;

use protocol::{FailureKind, StartFailure};
use rustix::fs::Access;
use rustix::io::Errno;

use crate::step::{failure, invalid};
use crate::sys;

/// Executes the program. Returns only the reason why it did not.
pub(crate) fn execute(arguments: &[CString], environment: &[String]) -> StartFailure {
    let Some(name) = arguments.first() else {
        return invalid("process.args", "there is no program to run");
    };
    let shown = OsStr::from_bytes(name.as_bytes()).display();
    let step = format!("executing {shown}");
    if name.is_empty() {
        return failure(FailureKind::NotFound, step, "the program's name is empty");
    }
    let Ok(strings) = environment
        .iter()
        .map(|entry| CString::new(entry.as_str()))
        .collect::<Result<Vec<_>, _>>()
    else {
        return invalid("process.env", "an entry contains a NUL byte");
    };
    if name.as_bytes().contains(&b'/') {
        let error = sys::execve(name, arguments, &strings);
        return refusal(name, &error, step);
    }
    let path = environment
        .iter()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or_default();
    let mut denied = None;
    for directory in path.split(':') {
        // An empty element is the working directory.
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = [directory.as_bytes(), b"/", name.as_bytes()].concat();
        let Ok(candidate) = CString::new(candidate) else {
            continue;
        };
        // A look is much cheaper than an exec that fails.
        if let Err(Errno::NOENT | Errno::NOTDIR) = rustix::fs::access(&candidate, Access::EXISTS) {
            continue;
        }
        let error = sys::execve(&candidate, arguments, &strings);
        if error.raw_os_error() != Some(libc::EACCES) {
            return refusal(&candidate, &error, step);
        }
        denied = Some(error);
    }
    match denied {
        Some(error) => failure(FailureKind::NotExecutable, step, error.to_string()),
        None => failure(
            FailureKind::NotFound,
            step,
            format!("not found in PATH ({path})"),
        ),
    }
}

/// The failure for an error of execve(2).
fn refusal(program: &CStr, error: &io::Error, step: String) -> StartFailure {
    let kind = kind(error);
    // The error is the same for a program whose interpreter or loader is missing.
    if kind == FailureKind::NotFound && rustix::fs::access(program, Access::EXISTS).is_ok() {
        return failure(
            kind,
            step,
            "the interpreter or loader that it names is not there",
        );
    }
    failure(kind, step, error.to_string())
}

/// Sorts the errors of execve(2).
fn kind(error: &io::Error) -> FailureKind {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => FailureKind::NotFound,
        Some(
            libc::EACCES
            | libc::EPERM
            | libc::ENOEXEC
            | libc::EISDIR
            | libc::ELIBBAD
            | libc::EINVAL
            | libc::ELOOP
            | libc::ENAMETOOLONG
            | libc::ETXTBSY,
        ) => FailureKind::NotExecutable,
        _ => FailureKind::Failed,
    }
}
