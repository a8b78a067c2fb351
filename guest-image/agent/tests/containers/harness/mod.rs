//! Runs the agent on this machine: in mount and PID namespaces of its own, on a Unix socket instead of vsock, with a
//! directory that holds a static busybox as the image.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus as ExitStatusOfProcess, Stdio};
use std::time::{Duration, Instant};

use protocol::{
    ContainerId, Create, DeclaredStreams, ExitStatus, Filesystem, FrameBuffer, Hello,
    MAX_HELLO_BYTES, MAX_REPORT_BYTES, MAX_REQUEST_BYTES, Process, ProcessId, Report, Request,
    Role, RootSource, StreamKind, Upper,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The longest that any answer of the agent may take here.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// The containers that tests make.
pub(crate) const CONTAINERS: [u32; 2] = [1, 2];

/// Where the host may have the hierarchy that the agent mounts.
const HIERARCHIES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The host's hierarchy is everybody's, so a name says whose it is.
pub(crate) fn cgroup_name(container: u32) -> String {
    format!("agent-test-{}-{container}", std::process::id())
}

/// An error that a test shows and ends with.
pub(crate) type Failure = Box<dyn std::error::Error>;

/// Whether this machine lets the tests make containers; says so if not.
pub(crate) fn can_make_containers() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new(BUSYBOX).exists();
    if !can {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: needs root and a static busybox at {BUSYBOX}"
        );
    }
    can
}

/// An agent that runs, with its image.
pub(crate) struct Agent {
    process: Child,
    directory: TempDir,
}

impl Agent {
    pub(crate) fn start() -> Result<Self, Failure> {
        Self::start_staged(|_| None)
    }

    /// Starts an agent that builds a container before it listens, if `stage` makes a request for the image.
    pub(crate) fn start_staged(
        stage: impl FnOnce(&Path) -> Option<Create>,
    ) -> Result<Self, Failure> {
        let directory = tempfile::tempdir()?;
        make_image(&directory.path().join("image"))?;
        let socket = directory.path().join("agent");
        let staged = match stage(&directory.path().join("image")) {
            None => Vec::new(),
            Some(create) => {
                let file = directory.path().join("create");
                fs::write(&file, postcard::to_stdvec(&create)?)?;
                vec!["--stage".into(), file.into_os_string()]
            }
        };
        let script = "mount -t cgroup2 none /sys/fs/cgroup && exec \"$0\" --listen \"$@\"";
        let process = Command::new("unshare")
            .args([
                "--mount-proc",
                "--pid",
                "--fork",
                "--kill-child",
                "sh",
                "-c",
                script,
            ])
            .arg(env!("CARGO_BIN_EXE_agent"))
            .arg(&socket)
            .args(staged)
            .stdin(Stdio::null())
            .spawn()?;
        let agent = Self { process, directory };
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(&socket).is_err() {
            if Instant::now() > deadline {
                return Err("the agent does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(agent)
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// The agent's own process, a child of the one that was started.
    pub(crate) fn init(&self) -> Result<String, Failure> {
        let id = self.process.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        Ok(children.trim().to_owned())
    }

    pub(crate) fn connect(&self, role: Role) -> Result<UnixStream, Failure> {
        let mut stream = UnixStream::connect(self.directory.path().join("agent"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut hello = Vec::new();
        protocol::encode(&Hello::new(role), MAX_HELLO_BYTES, &mut hello)?;
        stream.write_all(&hello)?;
        Ok(stream)
    }

    /// The processes in a container's cgroup, as the host numbers them.
    pub(crate) fn processes_of(container: u32) -> Vec<u32> {
        HIERARCHIES
            .iter()
            .map(|hierarchy| Path::new(hierarchy).join(cgroup_name(container)))
            .filter_map(|cgroup| fs::read_to_string(cgroup.join("cgroup.procs")).ok())
            .flat_map(|list| list.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter_map(|line| line.parse().ok())
            .collect()
    }

    /// Opens a control connection as another version would, and reads nothing from it.
    pub(crate) fn control_of_version(&self, version: u16) -> Result<Control, Failure> {
        let mut stream = UnixStream::connect(self.directory.path().join("agent"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut hello = Vec::new();
        protocol::encode(
            &Hello {
                version,
                ..Hello::new(Role::Control)
            },
            MAX_HELLO_BYTES,
            &mut hello,
        )?;
        stream.write_all(&hello)?;
        Ok(Control {
            stream,
            reports: FrameBuffer::new(MAX_REPORT_BYTES),
        })
    }

    /// Waits for the agent's end.
    pub(crate) fn ended(&mut self) -> Result<ExitStatusOfProcess, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err("the agent did not end".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn control(&self) -> Result<Control, Failure> {
        let stream = self.connect(Role::Control)?;
        let mut control = Control {
            stream,
            reports: FrameBuffer::new(MAX_REPORT_BYTES),
        };
        match control.report()? {
            Report::Welcome {
                version: protocol::VERSION,
            } => Ok(control),
            other => Err(format!("not a welcome: {other:?}").into()),
        }
    }

    /// Starts a process without streams that is not to start, and keeps the connection, so that the agent lives on.
    pub(crate) fn fails_to_start(
        &self,
        workload: &Workload,
    ) -> Result<(Control, protocol::StartFailure), Failure> {
        let mut control = self.control()?;
        let create = workload.create(&self.image(), DeclaredStreams::default());
        control.send(&Request::Create(Box::new(create)))?;
        control.send(&Request::Start(workload.process()))?;
        match control.report()? {
            Report::NotStarted { failure, .. } => Ok((control, failure)),
            other => Err(format!("it started: {other:?}").into()),
        }
    }

    /// Runs one process to its end with all its input at hand.
    pub(crate) fn run(&self, workload: &Workload) -> Result<Run, Failure> {
        let mut control = self.control()?;
        let process = workload.process();
        let has_stderr = !workload.terminal;
        let mut stdin = self.connect(Role::Stream {
            process,
            kind: StreamKind::Stdin,
        })?;
        let stdout = self.connect(Role::Stream {
            process,
            kind: StreamKind::Stdout,
        })?;
        let stderr = has_stderr
            .then(|| {
                self.connect(Role::Stream {
                    process,
                    kind: StreamKind::Stderr,
                })
            })
            .transpose()?;
        control.send(&Request::Create(Box::new(workload.create(
            &self.image(),
            DeclaredStreams {
                stdin: true,
                stdout: true,
                stderr: has_stderr,
            },
        ))))?;
        control.send(&Request::Start(process))?;
        let start = control.report()?;
        if let Report::NotStarted { failure, .. } = start {
            return Ok(Run::NotStarted(failure));
        }
        let readers = [Some(stdout), stderr]
            .map(|stream| stream.map(|stream| std::thread::spawn(|| read_all(stream))));
        // A process that does not read its input ends the writing early.
        let _ = stdin.write_all(&workload.stdin);
        if !workload.terminal {
            let _ = stdin.shutdown(Shutdown::Write);
        }
        let end = control.report()?;
        let [stdout, stderr] = readers.map(|reader| match reader {
            Some(reader) => reader
                .join()
                .map_err(|_| "a reader panicked")?
                .map_err(|error| error.to_string()),
            None => Ok(Vec::new()),
        });
        match end {
            Report::Exited { exit, .. } => Ok(Run::Exited {
                status: exit.status,
                stdout: stdout?,
                stderr: stderr?,
            }),
            other => Err(format!("not an exit: {other:?}").into()),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // One that was killed before it could tidy up leaves empty cgroups behind.
        for hierarchy in HIERARCHIES {
            for container in CONTAINERS {
                remove_cgroup(&Path::new(hierarchy).join(cgroup_name(container)));
            }
        }
    }
}

/// Where a container's cgroup is, if it is there.
pub(crate) fn cgroup_path(container: u32) -> Option<PathBuf> {
    HIERARCHIES
        .iter()
        .map(|hierarchy| Path::new(hierarchy).join(cgroup_name(container)))
        .find(|path| path.join("cgroup.procs").exists())
}

/// Whether a container has a cgroup.
pub(crate) fn cgroup_remains(container: u32) -> bool {
    cgroup_path(container).is_some()
}

/// Waits until the agent has removed a container's cgroup, and says whether it did.
pub(crate) fn cgroup_goes(container: u32) -> bool {
    let exists = |hierarchy: &&str| Path::new(hierarchy).join(cgroup_name(container)).exists();
    let deadline = Instant::now() + PATIENCE;
    while HIERARCHIES.iter().any(exists) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Removes a cgroup, whose last processes may take a moment to die.
fn remove_cgroup(path: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = fs::remove_dir(path) {
        if error.kind() != std::io::ErrorKind::ResourceBusy || Instant::now() > deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) struct Control {
    pub(crate) stream: UnixStream,
    reports: FrameBuffer,
}

impl Control {
    pub(crate) fn send(&mut self, request: &Request) -> Result<(), Failure> {
        let mut frame = Vec::new();
        protocol::encode(request, MAX_REQUEST_BYTES, &mut frame)?;
        Ok(self.stream.write_all(&frame)?)
    }

    pub(crate) fn report(&mut self) -> Result<Report, Failure> {
        loop {
            if let Some(report) = self.reports.take()? {
                return Ok(report);
            }
            let mut bytes = [0; 4096];
            let count = self.stream.read(&mut bytes)?;
            if count == 0 {
                return Err("the agent hung up".into());
            }
            self.reports.push(&bytes[..count]);
        }
    }
}

/// How a run ended.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Run {
    NotStarted(protocol::StartFailure),
    Exited {
        status: ExitStatus,
        stdout: Vec<u8>,
        stderr: Vec<u8>,
    },
}

impl Run {
    pub(crate) fn exited(code: u8, stdout: &str, stderr: &str) -> Self {
        let status = ExitStatus::Code(code);
        Self::Exited {
            status,
            stdout: stdout.as_bytes().to_vec(),
            stderr: stderr.as_bytes().to_vec(),
        }
    }

    /// The standard output of a process that exited with 0.
    pub(crate) fn output(self) -> Result<String, Failure> {
        match self {
            Self::Exited {
                status: ExitStatus::Code(0),
                stdout,
                ..
            } => Ok(String::from_utf8(stdout)?),
            other => Err(format!("{other:?}").into()),
        }
    }

    pub(crate) fn status(self) -> Result<ExitStatus, Failure> {
        match self {
            Self::Exited { status, .. } => Ok(status),
            other => Err(format!("{other:?}").into()),
        }
    }

    pub(crate) fn failure(self) -> Result<protocol::StartFailure, Failure> {
        match self {
            Self::NotStarted(failure) => Ok(failure),
            other => Err(format!("it ran: {other:?}").into()),
        }
    }
}

/// What a test wants to run.
pub(crate) struct Workload {
    pub(crate) config: Value,
    pub(crate) user: Option<String>,
    pub(crate) stdin: Vec<u8>,
    pub(crate) terminal: bool,
    pub(crate) container: u32,
    pub(crate) seccomp: Option<protocol::Seccomp>,
    pub(crate) groups: Vec<String>,
    pub(crate) init: bool,
    pub(crate) idles: bool,
}

impl Workload {
    /// The program with docker's usual surroundings.
    pub(crate) fn new(arguments: &[&str]) -> Self {
        let [container, _] = CONTAINERS;
        let cgroup = cgroup_name(container);
        let plain = ["nosuid", "noexec", "nodev"];
        let config = json!({
            "ociVersion": "1.2.0",
            "process": {
                "args": arguments,
                "cwd": "/",
                "env": ["PATH=/bin"],
                "capabilities": { "bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"] }
            },
            "root": { "path": "rootfs" },
            "hostname": "inside",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc", "options": plain },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
                { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=65536k"] },
                { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] }
            ],
            "linux": {
                "cgroupsPath": cgroup,
                "namespaces": [
                    { "type": "pid" }, { "type": "mount" }, { "type": "uts" }, { "type": "ipc" }, { "type": "network" },
                    { "type": "cgroup" }
                ],
                "maskedPaths": ["/proc/keys", "/proc/not-there", "/proc/tty"],
                "readonlyPaths": ["/proc/sys"]
            }
        });
        Self {
            config,
            user: None,
            stdin: Vec::new(),
            terminal: false,
            container,
            seccomp: None,
            groups: Vec::new(),
            init: false,
            idles: false,
        }
    }

    /// A shell script.
    pub(crate) fn script(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    /// Sets what a JSON pointer names.
    pub(crate) fn with(mut self, pointer: &str, value: Value) -> Self {
        let (parent, name) = pointer.rsplit_once('/').unwrap_or(("", pointer));
        if let Some(Value::Object(parent)) = self.config.pointer_mut(parent) {
            parent.insert(name.to_owned(), value);
        }
        self
    }

    pub(crate) fn user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    pub(crate) fn stdin(mut self, bytes: &[u8]) -> Self {
        self.stdin = bytes.to_vec();
        self
    }

    pub(crate) fn terminal(mut self) -> Self {
        self.terminal = true;
        self.with("/process/terminal", json!(true))
    }

    pub(crate) fn process(&self) -> Process {
        Process {
            container: ContainerId(self.container),
            process: ProcessId(0),
        }
    }

    pub(crate) fn create(&self, image: &Path, streams: DeclaredStreams) -> Create {
        Create {
            process: self.process(),
            config: self.config.to_string().into_bytes(),
            root: RootSource {
                source: image.to_string_lossy().into_owned(),
                filesystem: Filesystem::Directory,
                upper: Upper::Tmpfs {
                    size_bytes: 8 << 20,
                },
            },
            volumes: Vec::new(),
            user: self.user.clone(),
            groups: self.groups.clone(),
            init: self.init,
            idles: self.idles,
            stop_signal: 15,
            streams,
            seccomp: self.seccomp.clone(),
            network: None,
            names: protocol::Names::default(),
        }
    }
}

fn read_all(mut stream: UnixStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn make_image(root: &Path) -> Result<(), Failure> {
    let bin = root.join("bin");
    fs::create_dir_all(&bin)?;
    fs::copy(BUSYBOX, bin.join("busybox"))?;
    let applets = Command::new(BUSYBOX).arg("--list").output()?;
    for applet in String::from_utf8(applets.stdout)?
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        symlink("busybox", bin.join(applet))?;
    }
    fs::create_dir(root.join("etc"))?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n",
    )?;
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nvideo:x:27:app\napp:x:1001:\n",
    )?;
    fs::write(root.join("not-executable"), "x")?;
    Ok(())
}
