//! What a test needs of the host, checked with a sentence that says what is missing.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};

/// Fails the test unless machines can be started here.
pub fn require_kvm() {
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        panic!("this test starts a machine and cannot open /dev/kvm: {error}");
    }
}

/// Fails the test unless `tool` can be run; `package` is what to install.
pub fn require_tool(tool: &str, package: &str) {
    let found = Command::new(tool)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(
        found.is_ok(),
        "this test needs the tool {tool} (Debian package {package})"
    );
}

/// Returns the bytes of Debian's static busybox.
pub fn busybox() -> Vec<u8> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|path| fs::read(path).ok())
        .expect("/bin/busybox is missing (Debian package busybox-static)")
}

/// Returns how many bytes this process and the children it has waited for have read with `read`-like calls.
///
/// Source: `rchar` of proc(5), `/proc/pid/io`; the kernel adds a child's counters when the child is reaped.
pub fn bytes_read_so_far() -> u64 {
    let counters = fs::read_to_string("/proc/self/io").expect("/proc/self/io can be read");
    counters
        .lines()
        .find_map(|line| line.strip_prefix("rchar: "))
        .and_then(|count| count.parse().ok())
        .expect("/proc/self/io has a line rchar")
}

/// Returns the bytes that a directory's files take on disk, holes not counted.
pub fn bytes_on_disk(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut total = 0;
    let mut pending = vec![directory.to_path_buf()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).expect("a file of the store has metadata");
        // st_blocks counts units of 512 bytes whatever the filesystem (stat(2)).
        total += metadata.blocks() * 512;
        if metadata.is_dir() {
            pending.extend(
                fs::read_dir(&path)
                    .expect("a directory can be listed")
                    .map(|entry| entry.expect("a directory can be listed").path()),
            );
        }
    }
    total
}

/// Makes a file of `length_bytes` that takes no space.
pub fn sparse_file(path: &Path, length_bytes: u64) {
    File::create(path)
        .and_then(|file| file.set_len(length_bytes))
        .expect("a sparse file can be made");
}
