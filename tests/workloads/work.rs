//! Work of one kind, timed from inside: prints how many nanoseconds it took. Run in a machine, in a container and bare, it
//! says what the boundary costs while a program runs.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, exit};
use std::time::Instant;
use std::{env, hint, thread};

fn main() -> ExitCode {
    let kind = env::args().nth(1).unwrap_or_default();
    let work: fn() = match kind.as_str() {
        "cpu" => cpu,
        "memset" => memset,
        "getpid" => getpid,
        "fork" => fork,
        "ping-pong" => ping_pong,
        "untar" => untar,
        _ => {
            eprintln!("work: unknown: {kind}");
            return ExitCode::from(99);
        }
    };
    let start = Instant::now();
    work();
    println!("{}", start.elapsed().as_nanos());
    ExitCode::SUCCESS
}

/// A hundred million turns of a loop that leaves the registers alone.
fn cpu() {
    let mut sum = 0_u64;
    for number in 0..100_000_000_u64 {
        sum = hint::black_box(sum.wrapping_mul(3) ^ number);
    }
    hint::black_box(sum);
}

/// Touches a gibibyte for the first time.
fn memset() {
    hint::black_box(vec![1_u8; 1 << 30]);
}

/// Ten thousand system calls that do next to nothing.
fn getpid() {
    for _ in 0..10_000 {
        // SAFETY: getpid(2) takes and changes nothing.
        hint::black_box(unsafe { libc_getpid() });
    }
}

unsafe extern "C" {
    #[link_name = "getpid"]
    fn libc_getpid() -> i32;
}

/// A thousand processes, one after the other.
fn fork() {
    for _ in 0..1_000 {
        let done = Command::new("/bin/busybox").arg("true").status();
        if !done.is_ok_and(|status| status.success()) {
            exit(98);
        }
    }
}

/// Ten thousand times a byte to another thread and one back.
fn ping_pong() {
    let Ok((mut here, mut there)) = UnixStream::pair() else {
        exit(97)
    };
    let other = thread::spawn(move || {
        let mut byte = [0];
        while there.read_exact(&mut byte).is_ok() {
            if there.write_all(&byte).is_err() {
                exit(96);
            }
        }
    });
    let mut byte = [7];
    for _ in 0..10_000 {
        if here.write_all(&byte).and_then(|()| here.read_exact(&mut byte)).is_err() {
            exit(95);
        }
    }
    drop(here);
    if other.join().is_err() {
        exit(94);
    }
}

/// Unpacks a tree like a kernel's: two thousand small files.
fn untar() {
    let done = Command::new("/bin/busybox").args(["tar", "-xf", "/tree.tar", "-C", "/tmp"]).status();
    if !done.is_ok_and(|status| status.success()) {
        exit(93);
    }
}
