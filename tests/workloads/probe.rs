//! Runs inside the guest and does what no shell can: faults on purpose, and looks at processor state.
//!
//! One program, called as `probe WHAT [ARGUMENT…]`. It prints what it saw; the test on the host compares.

use std::arch::asm;
use std::io::{self, Read, Write};
use std::process::{Command, ExitCode, exit};
use std::{env, thread, time};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["segfault"] => segfault(),
        ["illegal"] => illegal(),
        ["allocate", mebibytes] => allocate(number(mebibytes)),
        ["fill", bytes] => fill(number(bytes)),
        ["registers"] => registers(),
        ["hold-registers", pattern] => hold_registers(number(pattern) as u64),
        ["spin", milliseconds, threads] => spin(number(milliseconds) as u64, number(threads)),
        ["arguments", rest @ ..] => rest.iter().for_each(|argument| println!("[{argument}]")),
        _ => {
            eprintln!("probe: unknown: {arguments:?}");
            return ExitCode::from(99);
        }
    }
    ExitCode::SUCCESS
}

fn number(text: &str) -> usize {
    text.parse().unwrap_or_else(|_| exit(98))
}

/// Reads address zero: the processor faults, and the default action of SIGSEGV ends even a PID 1.
fn segfault() {
    // SAFETY: not sound at all, on purpose: the access faults and the process ends.
    unsafe { asm!("mov {0}, qword ptr [{0}]", inout(reg) 0_u64 => _) };
}

/// Executes the instruction that is defined to be undefined.
fn illegal() {
    // SAFETY: raises SIGILL, which ends the process; nothing after it runs.
    unsafe { asm!("ud2") };
}

/// Touches every page of so many mebibytes and keeps them.
fn allocate(mebibytes: usize) {
    let mut kept = Vec::new();
    for number in 1..=mebibytes {
        kept.push(vec![1_u8; 1 << 20]);
        if number % 8 == 0 {
            println!("touched {number} MiB");
        }
    }
    println!("all {} MiB touched", kept.len());
}

/// Writes so many bytes of a pattern that never repeats within a page's length: see the harness's twin of it.
fn fill(bytes: usize) {
    let pattern: Vec<u8> = (0..bytes).map(|index| (index % 251) as u8 ^ (index >> 12) as u8).collect();
    if io::stdout().write_all(&pattern).is_err() {
        exit(97);
    }
}

/// Two processes fill the vector registers with patterns of their own and yield to each other; each says how often
/// it found somebody else's pattern.
fn registers() {
    let me = env::current_exe().unwrap_or_else(|_| exit(96));
    let start = |pattern: &str| {
        Command::new(&me).args(["hold-registers", pattern]).spawn().unwrap_or_else(|_| exit(95))
    };
    let mut children = [start("1"), start("2")];
    for child in &mut children {
        if child.wait().is_err() {
            exit(94);
        }
    }
}

fn hold_registers(pattern: u64) {
    let wide = std::is_x86_feature_detected!("avx");
    let value = [pattern.wrapping_mul(0x0101_0101_0101_0101); 4];
    let (mut low_lost, mut high_lost) = (0, 0);
    for _ in 0..ROUNDS {
        let mut after = value;
        if wide {
            // SAFETY: the processor has AVX; reads and writes 32 bytes of arrays that long.
            unsafe {
                asm!(
                    "vmovdqu ymm7, [{value}]",
                    "2:",
                    "dec {count}",
                    "jnz 2b",
                    "vmovdqu [{after}], ymm7",
                    "vzeroupper",
                    value = in(reg) &value,
                    after = in(reg) &mut after,
                    count = inout(reg) SPINS => _,
                    out("ymm7") _,
                );
            }
        } else {
            // SAFETY: every x86-64 has SSE2; reads and writes 16 bytes of arrays that are longer.
            unsafe {
                asm!(
                    "movdqu xmm7, [{value}]",
                    "2:",
                    "dec {count}",
                    "jnz 2b",
                    "movdqu [{after}], xmm7",
                    value = in(reg) &value,
                    after = in(reg) &mut after,
                    count = inout(reg) SPINS => _,
                    out("xmm7") _,
                );
            }
        }
        low_lost += u32::from(after[..2] != value[..2]);
        high_lost += u32::from(after[2..] != value[2..]);
    }
    let bits = if wide { 256 } else { 128 };
    println!("pattern {pattern}: {bits} bits, low halves lost {low_lost}, high halves lost {high_lost}");
}

/// How often each process looks.
const ROUNDS: u32 = 20;

/// How many turns of two instructions a register is held for: several time slices of a scheduler.
const SPINS: u64 = 60_000_000;

/// Keeps so many threads busy for a while and prints how many rounds they made together.
fn spin(milliseconds: u64, threads: usize) {
    let until = time::Instant::now() + time::Duration::from_millis(milliseconds);
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            thread::spawn(move || {
                let mut rounds = 0_u64;
                while time::Instant::now() < until {
                    rounds += 1;
                }
                rounds
            })
        })
        .collect();
    let rounds: u64 = workers.into_iter().map(|worker| worker.join().unwrap_or(0)).sum();
    println!("rounds {rounds}");
    let mut rest = Vec::new();
    let _ = io::stdin().read_to_end(&mut rest);
}
