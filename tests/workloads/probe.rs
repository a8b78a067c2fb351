//! Runs inside the guest and does what no shell can: faults on purpose, and looks at processor state.
//!
//! One program, called as `probe WHAT [ARGUMENT…]`. It prints what it saw; the test on the host compares.

use std::arch::asm;
use std::ffi::{c_int, c_void};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Command, ExitCode, exit};
use std::{env, ptr, thread, time};

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
        ["identity"] => identity(),
        ["process-identity", prefix] => process_identity(prefix),
        ["clocks"] => clocks(),
        ["status", field] => status(field),
        ["lock", file] => lock(file),
        ["raw-frames"] => raw_frames(),
        ["echo-datagrams", port] => echo_datagrams(number(port) as u16),
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

/// Locks a file: says when it is refused, and then waits for it.
fn lock(path: &str) {
    let file = File::options().read(true).write(true).open(path).unwrap_or_else(|_| exit(92));
    if file.try_lock().is_err() {
        println!("refused");
        file.lock().unwrap_or_else(|_| exit(91));
    }
    println!("locked");
}

/// Sends a frame by every interface that there could be, past all of the network stack, and says by which it went: packet(7).
fn raw_frames() {
    const AF_PACKET: u16 = 17;
    const SOCK_RAW: c_int = 3;
    /// All protocols, in the network's byte order.
    const ETH_P_ALL: u16 = 3_u16.to_be();
    const INTERFACES: i32 = 256;
    unsafe extern "C" {
        fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
        fn sendto(
            socket: c_int,
            bytes: *const c_void,
            length: usize,
            flags: c_int,
            address: *const c_void,
            address_length: u32,
        ) -> isize;
    }
    // SAFETY: the call takes no memory.
    let socket = unsafe { socket(AF_PACKET.into(), SOCK_RAW, ETH_P_ALL.into()) };
    if socket < 0 {
        println!("no packet socket");
        exit(90);
    }
    for index in 1..=INTERFACES {
        let frame = [0xff_u8; 60];
        // `struct sockaddr_ll`: family, protocol, interface, and what is not looked at.
        let mut address = [0_u8; 20];
        address[..2].copy_from_slice(&AF_PACKET.to_ne_bytes());
        address[2..4].copy_from_slice(&ETH_P_ALL.to_ne_bytes());
        address[4..8].copy_from_slice(&index.to_ne_bytes());
        // SAFETY: both pointers lead to so many bytes, which the call only reads.
        let sent = unsafe {
            sendto(
                socket,
                frame.as_ptr().cast(),
                frame.len(),
                0,
                address.as_ptr().cast(),
                20,
            )
        };
        if sent >= 0 {
            println!("sent by {index}");
        }
    }
}

/// Prints one line of what the kernel says of this process.
fn status(field: &str) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_else(|_| exit(93));
    status.lines().filter(|line| line.starts_with(field)).for_each(|line| println!("{line}"));
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

/// Two processes fill the vector registers with patterns of their own, while signals come whose handler clears them; each says how
/// often it found something else there.
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
    let stack = take_signals();
    for _ in 0..ROUNDS {
        // The kernel finds no page where it puts the next signal's frame, and the registers in it.
        // SAFETY: no handler runs on it but between these instructions, and one that comes later starts at its top again.
        unsafe { madvise(stack, SIGNAL_STACK_BYTES, MADV_DONTNEED) };
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

/// Lets a signal come every few milliseconds, on a stack of its own, which comes back.
fn take_signals() -> *mut c_void {
    const SIGALRM: c_int = 14;
    const ITIMER_REAL: c_int = 0;
    const PERIOD_US: i64 = 20_000;
    // SAFETY: a new mapping; what the kernel is given are its own structures (sigaltstack(2), sigaction(2), setitimer(2)), filled in.
    unsafe {
        let stack = mmap(ptr::null_mut(), SIGNAL_STACK_BYTES, 3, 0x22, -1, 0);
        let on_it = SignalStack { start: stack, flags: 0, length: SIGNAL_STACK_BYTES };
        let action = SignalAction { handler: clear_registers, mask: [0; 16], flags: SA_ONSTACK | SA_RESTART, restorer: 0 };
        let timer = [0, PERIOD_US, 0, PERIOD_US];
        if sigaltstack(&on_it, ptr::null_mut()) != 0
            || sigaction(SIGALRM, &action, ptr::null_mut()) != 0
            || setitimer(ITIMER_REAL, &timer, ptr::null_mut()) != 0
        {
            exit(92);
        }
        stack
    }
}

/// Leaves nothing in a register that is compared.
extern "C" fn clear_registers(_signal: c_int) {
    if std::is_x86_feature_detected!("avx") {
        // SAFETY: the processor has AVX.
        unsafe { asm!("vpxor xmm7, xmm7, xmm7", out("ymm7") _) };
    } else {
        // SAFETY: every x86-64 has SSE2.
        unsafe { asm!("pxor xmm7, xmm7", out("xmm7") _) };
    }
}

const SIGNAL_STACK_BYTES: usize = 64 << 10;
const MADV_DONTNEED: c_int = 4;
const SA_ONSTACK: c_int = 0x0800_0000;
const SA_RESTART: c_int = 0x1000_0000;

/// `stack_t`
#[repr(C)]
struct SignalStack {
    start: *mut c_void,
    flags: c_int,
    length: usize,
}

/// `struct sigaction`
#[repr(C)]
struct SignalAction {
    handler: extern "C" fn(c_int),
    mask: [u64; 16],
    flags: c_int,
    restorer: usize,
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

/// Prints what no two machines may have in common, a name and a value a line; once for each processor what may come from a pool of
/// its own.
fn identity() {
    process_identity("first");
    let processors = thread::available_parallelism().map_or(1, usize::from);
    for processor in 0..processors {
        let prefix = format!("cpu{processor}");
        stay_on(processor);
        let mut drawn = [0; 32];
        // SAFETY: the buffer is as long as the call is told.
        let count = unsafe { getrandom(drawn.as_mut_ptr().cast(), drawn.len(), 0) };
        assert_eq!(count, 32, "getrandom gives what it is asked for");
        println!("{prefix}.getrandom {}", hexadecimal(&drawn));
        let mut urandom = File::open("/dev/urandom").unwrap_or_else(|_| exit(93));
        urandom.read_exact(&mut drawn).unwrap_or_else(|_| exit(92));
        println!("{prefix}.urandom {}", hexadecimal(&drawn));
        println!("{prefix}.uuid {}", line_of("/proc/sys/kernel/random/uuid"));
        let child = Command::new("/proc/self/exe").args(["process-identity", &prefix]).status();
        assert!(child.is_ok_and(|status| status.success()), "a process can be started");
    }
    println!("boot-id {}", line_of("/proc/sys/kernel/random/boot_id"));
    println!("hostname {}", line_of("/proc/sys/kernel/hostname"));
    connections();
}

/// Prints what the kernel gave this process by chance.
fn process_identity(prefix: &str) {
    const AT_RANDOM: u64 = 25;
    const AT_SYSINFO_EHDR: u64 = 33;
    // SAFETY: any number may be asked for; one that is not there gives 0.
    let (random, vdso) = unsafe { (getauxval(AT_RANDOM), getauxval(AT_SYSINFO_EHDR)) };
    assert_ne!(random, 0, "the kernel gives every process random bytes");
    // SAFETY: AT_RANDOM is the address of 16 bytes, which nobody writes (getauxval(3)).
    let canary = unsafe { *(random as *const [u8; 16]) };
    println!("{prefix}.canary {}", hexadecimal(&canary));
    println!("{prefix}.stack {random:x}");
    println!("{prefix}.vdso {vdso:x}");
    // Too large for the heap, so a mapping of its own.
    let mapping = vec![0_u8; 8 << 20];
    println!("{prefix}.mapping {:p}", mapping.as_ptr());
}

/// Prints what the clocks say, whether they ever went backwards, and how long a short sleep takes by each.
fn clocks() {
    let started = (time::SystemTime::now(), time::Instant::now());
    let since_epoch = started.0.duration_since(time::UNIX_EPOCH).unwrap_or_default();
    println!("realtime-ms {}", since_epoch.as_millis());
    let uptime = line_of("/proc/uptime");
    let seconds: f64 = uptime.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or_default();
    println!("uptime-ms {:.0}", seconds * 1000.0);
    let mut backwards = 0;
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let mut last = time::Instant::now();
    for processor in (0..processors).cycle().take(ROUNDS as usize) {
        stay_on(processor);
        for _ in 0..1000 {
            let now = time::Instant::now();
            backwards += u32::from(now < last);
            last = now;
        }
    }
    println!("backwards {backwards}");
    thread::sleep(time::Duration::from_millis(300));
    println!("monotonic-passed-ms {}", started.1.elapsed().as_millis());
    println!("realtime-passed-ms {}", started.0.elapsed().unwrap_or_default().as_millis());
}

/// Connects to itself and prints which ports the kernel chose, and the sequence numbers of connections between ports that are always
/// the same, less what the time of day adds to them (Linux, `secure_tcp_seq`): 1 for each 64 ns.
fn connections() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 2000)).unwrap_or_else(|_| exit(91));
    let ports: Vec<String> = (0..4)
        .map(|_| {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 2000)).unwrap_or_else(|_| exit(90));
            let address: SocketAddr = stream.local_addr().unwrap_or_else(|_| exit(89));
            address.port().to_string()
        })
        .collect();
    println!("ports {}", ports.join(","));
    drop(listener);

    const AF_INET: c_int = 2;
    const SOCK_STREAM: c_int = 1;
    const SOCK_RAW: c_int = 3;
    const IPPROTO_TCP: c_int = 6;
    // SAFETY: takes numbers, gives a descriptor or -1.
    let raw = unsafe { socket(AF_INET, SOCK_RAW, IPPROTO_TCP) };
    assert!(raw >= 0, "a raw socket can be made");
    // SAFETY: it was made above, and nobody else has it.
    let mut packets = File::from(unsafe { OwnedFd::from_raw_fd(raw) });
    for from in [2001_u16, 2002] {
        // SAFETY: as above.
        let stream = unsafe { socket(AF_INET, SOCK_STREAM, 0) };
        let (own, other) = (internet_address(from), internet_address(2000));
        // SAFETY: the address is as long as the call is told.
        let bound = unsafe { bind(stream, own.as_ptr().cast(), own.len() as u32) };
        assert_eq!(bound, 0, "port {from} is free");
        let now = time::SystemTime::now().duration_since(time::UNIX_EPOCH).unwrap_or_default();
        // Nobody listens: it is refused, after its first packet.
        // SAFETY: the address is as long as the call is told.
        let _ = unsafe { connect(stream, other.as_ptr().cast(), other.len() as u32) };
        let sequence = first_sequence_number(&mut packets, from);
        println!("sequence-{from} {}", sequence.wrapping_sub((now.as_nanos() >> 6) as u32));
    }
}

/// A `struct sockaddr_in` of the loopback address (ip(7)).
fn internet_address(port: u16) -> [u8; 16] {
    let mut address = [0; 16];
    address[0] = 2;
    address[2..4].copy_from_slice(&port.to_be_bytes());
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    address
}

/// Reads packets until one begins a connection from this port, and returns its sequence number (RFC 791 section 3.1, RFC 9293
/// section 3.1).
fn first_sequence_number(packets: &mut File, from: u16) -> u32 {
    const SYN: u8 = 2;
    loop {
        let mut packet = [0; 128];
        let count = packets.read(&mut packet).unwrap_or_else(|_| exit(88));
        let header = usize::from(packet[0] & 0xf) * 4;
        let Some(segment) = packet[..count].get(header..) else { continue };
        if segment.len() >= 20 && segment[..2] == from.to_be_bytes() && segment[13] == SYN {
            return u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
        }
    }
}

/// Lets this thread run on no other processor.
fn stay_on(processor: usize) {
    let mask = 1_u64 << processor;
    // SAFETY: the mask is as long as the call is told.
    let refused = unsafe { sched_setaffinity(0, size_of_val(&mask), (&raw const mask).cast()) };
    assert_eq!(refused, 0, "there is a processor {processor}");
}

fn line_of(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|_| exit(87)).trim().to_owned()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// Of the C library that the standard library is linked with.
unsafe extern "C" {
    fn mmap(address: *mut c_void, length: usize, access: c_int, flags: c_int, file: c_int, offset: i64) -> *mut c_void;
    fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
    fn sigaltstack(new: *const SignalStack, old: *mut SignalStack) -> c_int;
    fn sigaction(signal: c_int, new: *const SignalAction, old: *mut SignalAction) -> c_int;
    fn setitimer(which: c_int, new: *const [i64; 4], old: *mut [i64; 4]) -> c_int;
    fn getrandom(buffer: *mut c_void, length: usize, flags: u32) -> isize;
    fn getauxval(kind: u64) -> u64;
    fn sched_setaffinity(thread: c_int, length: usize, mask: *const c_void) -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn bind(socket: c_int, address: *const c_void, length: u32) -> c_int;
    fn connect(socket: c_int, address: *const c_void, length: u32) -> c_int;
}

/// Sends every datagram back to where it came from.
fn echo_datagrams(port: u16) {
    let mut room = [0; 1 << 16];
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("the port is free");
    loop {
        let (length, from) = socket.recv_from(&mut room).expect("a socket is read");
        socket.send_to(&room[..length], from).expect("a socket is written to");
    }
}
