//! Work of one kind, timed from inside: prints how many nanoseconds it took. Run in a machine, in a container and bare, it
//! says what the boundary costs while a program runs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode, exit};
use std::time::Instant;
use std::{env, hint, thread};

/// How large the file of which pieces are read is.
const PIECES_BYTES: u64 = 16 << 20;
/// How large a piece is.
const PIECE_BYTES: usize = 4096;
/// How many are asked for at once, and how many each that asks reads.
const DEPTH: u64 = 32;
const PIECES_EACH: u64 = 64;

/// Where the other side of the network listens, whose address is the second argument.
const PORT: u16 = 7000;
/// How much one side sends the other.
const STREAM_BYTES: usize = 64 << 20;
/// How often a byte goes to the other side and back.
const ROUNDS: usize = 2_000;
/// What the other side is to do: read to the end and say so, write it all, send back each byte.
const READ: u8 = b'r';
const WRITE: u8 = b'w';
const ECHO: u8 = b'e';

fn main() -> ExitCode {
    let kind = env::args().nth(1).unwrap_or_default();
    let work: fn() = match kind.as_str() {
        "cpu" => cpu,
        "memset" => memset,
        "getpid" => getpid,
        "fork" => fork,
        "ping-pong" => ping_pong,
        "untar" => untar,
        "share-write" => share_write,
        "share-read" => share_read,
        "share-stat" => share_stat,
        "share-untar" => share_untar,
        "volume-read" => volume_read,
        "net-serve" => net_serve,
        "net-send" => net_send,
        "net-receive" => net_receive,
        "net-ping-pong" => net_ping_pong,
        _ => {
            eprintln!("work: unknown: {kind}");
            return ExitCode::from(99);
        }
    };
    prepare(&kind);
    let start = Instant::now();
    work();
    println!("{}", start.elapsed().as_nanos());
    ExitCode::SUCCESS
}

/// Makes what the work needs, before its time begins.
fn prepare(kind: &str) {
    match kind {
        // What is not there need not go.
        "share-write" => drop(fs::remove_file("/data/written")),
        "share-untar" => {
            // To remove it would be work of another kind.
            let mut before = (0..).map(|number| format!("/data/before-{number}"));
            if let Some(free) = before.find(|path| !Path::new(path).exists()) {
                drop(fs::rename("/data/unpacked", free));
            }
            must(fs::create_dir("/data/unpacked").is_ok());
        }
        "volume-read" => {
            let mebibyte = vec![7; 1 << 20];
            let made = File::create("/data/pieces").and_then(|mut file| {
                for _ in 0..PIECES_BYTES >> 20 {
                    file.write_all(&mebibyte)?;
                }
                file.sync_all()
            });
            must(made.is_ok());
        }
        "net-send" | "net-receive" | "net-ping-pong" => {
            // The first connection also finds the neighbour and starts what carries the others.
            while connect().is_err() {
                thread::yield_now();
            }
        }
        _ => {}
    }
}

fn must(is_so: bool) {
    if !is_so {
        exit(92);
    }
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

/// Runs a line of the shell.
fn shell(line: &str) {
    let done = Command::new("/bin/busybox").args(["sh", "-c", line]).status();
    must(done.is_ok_and(|status| status.success()));
}

/// Writes 256 MiB in requests of one, down to the disk.
fn share_write() {
    shell("dd if=/dev/zero of=/data/written bs=1M count=256 conv=fsync 2>/dev/null");
}

/// Reads them.
fn share_read() {
    shell("dd if=/data/read of=/dev/null bs=1M 2>/dev/null");
}

/// Finds twenty thousand files and asks what each is.
fn share_stat() {
    shell("find /data/tree -type f | xargs stat -c %s >/dev/null");
}

/// Unpacks a thousand files of a kibibyte.
fn share_untar() {
    shell("tar -xf /small.tar -C /data/unpacked");
}

/// Reads 2,048 pieces of a file in no order, 32 at a time: past the page cache, where the file system has that.
fn volume_read() {
    const O_DIRECT: i32 = 0o40000;
    let direct = OpenOptions::new().read(true).custom_flags(O_DIRECT).open("/data/pieces");
    let Ok(file) = direct.or_else(|_| File::open("/data/pieces")) else {
        exit(91)
    };
    thread::scope(|scope| {
        for number in 0..DEPTH {
            scope.spawn({
                let file = &file;
                move || read_pieces(file, number)
            });
        }
    });
}

fn read_pieces(file: &File, number: u64) {
    let mut buffer = vec![0; 2 * PIECE_BYTES];
    let start = buffer.as_ptr().align_offset(PIECE_BYTES);
    let piece = &mut buffer[start..start + PIECE_BYTES];
    let mut random = number + 1;
    for _ in 0..PIECES_EACH {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (random >> 33) % (PIECES_BYTES / PIECE_BYTES as u64) * PIECE_BYTES as u64;
        must(file.read_exact_at(piece, offset).is_ok());
    }
}

/// Does for everybody what they ask for.
fn net_serve() {
    let Ok(listener) = TcpListener::bind(("::", PORT)) else {
        exit(90)
    };
    for stream in listener.incoming().flatten() {
        thread::spawn(move || serve(stream));
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut asked = [0];
    stream.read_exact(&mut asked)?;
    let mut buffer = vec![7; 1 << 16];
    match asked {
        [READ] => {
            while stream.read(&mut buffer)? > 0 {}
            stream.write_all(&asked)
        }
        [WRITE] => (0..STREAM_BYTES / buffer.len()).try_for_each(|_| stream.write_all(&buffer)),
        _ => loop {
            stream.read_exact(&mut asked)?;
            stream.write_all(&asked)?;
        },
    }
}

fn connect() -> io::Result<TcpStream> {
    let address = env::args().nth(2).unwrap_or_default();
    let stream = TcpStream::connect((address.as_str(), PORT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Asks the other side for something, and does its own part.
fn with_other(ask: u8, part: impl FnOnce(TcpStream) -> io::Result<()>) {
    let done = connect().and_then(|mut stream| {
        stream.write_all(&[ask])?;
        part(stream)
    });
    must(done.is_ok());
}

/// Sends 64 MiB, and waits until the other side has them.
fn net_send() {
    with_other(READ, |mut stream| {
        let buffer = vec![7; 1 << 16];
        for _ in 0..STREAM_BYTES / buffer.len() {
            stream.write_all(&buffer)?;
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.read_exact(&mut [0])
    });
}

/// Receives 64 MiB.
fn net_receive() {
    with_other(WRITE, |mut stream| {
        let (mut buffer, mut received) = (vec![0; 1 << 16], 0);
        while received < STREAM_BYTES {
            match stream.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => received += count,
            }
        }
        Ok(())
    });
}

/// Two thousand times a byte to the other side and one back.
fn net_ping_pong() {
    with_other(ECHO, |mut stream| {
        let mut byte = [7];
        for _ in 0..ROUNDS {
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
        }
        Ok(())
    });
}
