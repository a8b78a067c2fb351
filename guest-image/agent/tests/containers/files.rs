//! What the agent does with a container's files: `Files`.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use archive::{Kind, Member, ReadError, Writer, each_member};
use protocol::{
    CopySource, DeclaredStreams, ExitStatus, Files, FilesTask, Process, ProcessId, Report, Request,
    Role, StreamKind,
};

use crate::harness::{Agent, Control, Failure, Workload};
use crate::staged::container_of;
use crate::{Test, needs_containers};

/// A container whose first process has run a script, and waits for the end of its input.
struct Container {
    agent: Agent,
    control: Control,
    first: Process,
    stdin: UnixStream,
    stdout: UnixStream,
    last: u32,
}

/// How a task ended.
#[derive(Debug)]
struct Done {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: String,
}

impl Container {
    fn after(script: &str) -> Result<Self, Failure> {
        Self::start(&Workload::script(&format!(
            "{script}\necho ready; exec cat"
        )))
    }

    fn start(workload: &Workload) -> Result<Self, Failure> {
        let mut container = Self::begin(Agent::start()?, workload)?;
        let mut ready = [0; 6];
        container.stdout.read_exact(&mut ready)?;
        Ok(container)
    }

    fn begin(agent: Agent, workload: &Workload) -> Result<Self, Failure> {
        let mut control = agent.control()?;
        let first = workload.process();
        let stream = |kind| {
            agent.connect(Role::Stream {
                process: first,
                kind,
            })
        };
        let stdin = stream(StreamKind::Stdin)?;
        let stdout = stream(StreamKind::Stdout)?;
        let streams = DeclaredStreams {
            stdin: true,
            stdout: true,
            stderr: false,
        };
        control.send(&Request::Create(Box::new(
            workload.create(&agent.image(), streams),
        )))?;
        control.send(&Request::Start(first))?;
        match control.report()? {
            Report::Started { .. } => {}
            other => return Err(format!("not started: {other:?}").into()),
        }
        Ok(Self {
            agent,
            control,
            first,
            stdin,
            stdout,
            last: 0,
        })
    }

    fn perform(&mut self, task: FilesTask, input: &[u8]) -> Result<Done, Failure> {
        self.last += 1;
        let process = Process {
            process: ProcessId(self.last),
            ..self.first
        };
        let streams = task.streams();
        let stream = |is_there: bool, kind| {
            is_there
                .then(|| self.agent.connect(Role::Stream { process, kind }))
                .transpose()
        };
        let stdin = stream(streams.stdin, StreamKind::Stdin)?;
        let stdout = stream(streams.stdout, StreamKind::Stdout)?;
        let stderr = stream(streams.stderr, StreamKind::Stderr)?;
        self.control
            .send(&Request::Files(Box::new(Files { process, task })))?;
        self.control.send(&Request::Start(process))?;
        match self.control.report()? {
            Report::Started {
                process: started, ..
            } if started == process => {}
            other => return Err(format!("not started: {other:?}").into()),
        }
        if let Some(mut stdin) = stdin {
            // One that is refused is not read.
            let _ = stdin.write_all(input);
            let _ = stdin.shutdown(Shutdown::Write);
        }
        let mut done = Done {
            status: ExitStatus::Code(0),
            stdout: Vec::new(),
            stderr: String::new(),
        };
        if let Some(mut stdout) = stdout {
            stdout.read_to_end(&mut done.stdout)?;
        }
        if let Some(mut stderr) = stderr {
            stderr.read_to_string(&mut done.stderr)?;
        }
        match self.control.report()? {
            Report::Exited { exit, .. } => done.status = exit.status,
            other => return Err(format!("not an exit: {other:?}").into()),
        }
        Ok(done)
    }

    fn done(&mut self, task: FilesTask, input: &[u8]) -> Result<Vec<u8>, Failure> {
        let done = self.perform(task, input)?;
        match done.status {
            ExitStatus::Code(0) => Ok(done.stdout),
            _ => Err(format!("{done:?}").into()),
        }
    }

    fn refused(&mut self, task: FilesTask, input: &[u8]) -> Result<String, Failure> {
        let done = self.perform(task, input)?;
        match done.status {
            ExitStatus::Code(1) => Ok(done.stderr),
            _ => Err(format!("it is done: {done:?}").into()),
        }
    }

    fn changes(&mut self) -> Result<Vec<String>, Failure> {
        let list = self.done(FilesTask::Changes, &[])?;
        let records = String::from_utf8(list)?;
        let mut changes: Vec<String> = records.split_terminator('\0').map(str::to_owned).collect();
        changes.sort_by(|one, other| one[1..].cmp(&other[1..]));
        Ok(changes)
    }

    /// The members of what is at a path, each with its content.
    fn members(&mut self, path: &str) -> Result<Vec<(Member, String)>, Failure> {
        let task = read(path);
        members(&self.done(task, &[])?)
    }

    fn names(&mut self, path: &str) -> Result<Vec<String>, Failure> {
        let members = self.members(path)?;
        Ok(members.iter().map(|(member, _)| name(member)).collect())
    }

    fn content(&mut self, path: &str) -> Result<String, Failure> {
        let mut members = self.members(path)?;
        Ok(members
            .pop()
            .map(|(_, content)| content)
            .unwrap_or_default())
    }
}

fn members(archive: &[u8]) -> Result<Vec<(Member, String)>, Failure> {
    let mut members = Vec::new();
    each_member(&mut &*archive, |member, content| {
        let mut text = Vec::new();
        content.read_to_end(&mut text)?;
        members.push((member, String::from_utf8_lossy(&text).into_owned()));
        Ok::<_, ReadError>(())
    })?;
    Ok(members)
}

fn name(member: &Member) -> String {
    String::from_utf8_lossy(&member.path).into_owned()
}

fn read(path: &str) -> FilesTask {
    FilesTask::Read {
        path: path.to_owned(),
        follow: false,
    }
}

fn write(path: &str, source: CopySource) -> FilesTask {
    FilesTask::Write {
        path: path.to_owned(),
        source,
        keeps_owners: false,
    }
}

/// An archive of these members, files with their content.
fn archive(members: &[(&str, Kind, &str)]) -> Result<Vec<u8>, Failure> {
    let mut writer = Writer::new(Vec::new());
    for (path, kind, content) in members {
        let member = Member {
            path: path.as_bytes().to_vec(),
            kind: kind.clone(),
            mode: 0o755,
            uid: 1000,
            gid: 1001,
            mtime_s: 1_000_000_000,
            size_bytes: content.len() as u64,
            xattrs: Vec::new(),
        };
        writer.member(&member, &mut content.as_bytes())?;
    }
    Ok(writer.finish()?)
}

fn file(name: &str) -> CopySource {
    CopySource::File(name.to_owned())
}

#[test]
fn a_tree_is_read_as_it_is_in_the_container() -> Test {
    needs_containers!();
    let mut container = Container::after(
        "mkdir -p /d/sub; echo one > /d/one; ln /d/one /d/two; ln -s one /d/link; chmod 751 /d/sub; chown 7:8 /d/one",
    )?;

    let members = container.members("/d")?;
    let contents = container.names("/d/.")?;

    let names: Vec<String> = members.iter().map(|(member, _)| name(member)).collect();
    assert_eq!(names, ["d", "d/link", "d/one", "d/sub", "d/two"]);
    assert_eq!(contents, [".", "./link", "./one", "./sub", "./two"]);
    let kinds: Vec<&Kind> = members.iter().map(|(member, _)| &member.kind).collect();
    assert_eq!(kinds[1], &Kind::Symlink(b"one".to_vec()));
    assert_eq!(kinds[4], &Kind::HardLink(b"d/one".to_vec()));
    assert_eq!((members[2].0.uid, members[2].0.gid), (7, 8));
    assert_eq!((members[2].1.as_str(), members[3].0.mode), ("one\n", 0o751));
    Ok(())
}

#[test]
fn what_is_mounted_is_read_and_the_kernel_is_not() -> Test {
    needs_containers!();
    let mut container = Container::after("echo in memory > /dev/shm/file")?;

    assert_eq!(container.content("/dev/shm/file")?, "in memory\n");
    assert!(container.content("/proc/version")?.starts_with("Linux"));
    let everything = container.names("/")?;
    assert!(everything.contains(&"./dev/shm/file".to_owned()));
    assert!(everything.contains(&"./proc".to_owned()));
    assert!(!everything.iter().any(|name| name.starts_with("./proc/")));
    Ok(())
}

#[test]
fn a_link_leads_nowhere_but_into_the_container() -> Test {
    needs_containers!();
    let mut container = Container::after(
        "echo inside > /etc/target; ln -s /etc /abs; ln -s ../../../../etc /rel; ln -s /proc/1/root/etc /magic; ln -s target /etc/last; mkdir /x",
    )?;
    let input = archive(&[(".", Kind::File, "new")])?;

    assert_eq!(container.content("/abs/target")?, "inside\n");
    assert_eq!(container.content("/rel/target")?, "inside\n");
    assert_eq!(container.content("../../../etc/target")?, "inside\n");
    assert!(
        container
            .refused(read("/magic/target"), &[])?
            .contains("/magic/target")
    );
    container.done(write("/rel/made", file("f")), &input)?;
    container.done(write("/etc/last", file("f")), &input)?;
    assert_eq!(container.content("/etc/made")?, "new");
    assert_eq!(container.content("/etc/target")?, "new");
    assert_eq!(container.names("/etc/last")?, ["last"]);
    Ok(())
}

#[test]
fn a_copy_goes_where_docker_puts_it() -> Test {
    needs_containers!();
    let mut container = Container::after("mkdir -p /d /full/sub; echo old > /file")?;
    let one = archive(&[(".", Kind::File, "new")])?;
    let tree = archive(&[
        (".", Kind::Directory, ""),
        ("sub", Kind::Directory, ""),
        ("sub/f", Kind::File, "deep"),
    ])?;
    let directory = || CopySource::Directory("tree".to_owned());

    container.done(write("/d", file("name")), &one)?;
    container.done(write("/d/other", file("name")), &one)?;
    container.done(write("/file", file("name")), &one)?;
    container.done(write("/full", directory()), &tree)?;
    container.done(write("/made", directory()), &tree)?;
    container.done(write("/full", CopySource::Contents), &tree)?;

    assert_eq!(container.names("/d")?, ["d", "d/name", "d/other"]);
    assert_eq!(container.content("/file")?, "new");
    assert_eq!(
        container.names("/full")?,
        [
            "full",
            "full/sub",
            "full/sub/f",
            "full/tree",
            "full/tree/sub",
            "full/tree/sub/f"
        ]
    );
    assert_eq!(
        container.names("/made")?,
        ["made", "made/sub", "made/sub/f"]
    );
    assert!(
        container
            .refused(write("/no/where", file("n")), &one)?
            .contains("/no/where")
    );
    assert!(
        container
            .refused(write("/no/", file("n")), &one)?
            .contains("does not exist")
    );
    assert!(
        container
            .refused(write("/file/", file("n")), &one)?
            .contains("not a directory")
    );
    assert!(
        container
            .refused(write("/file", directory()), &tree)?
            .contains("cannot copy a directory")
    );
    assert!(
        container
            .refused(write("/dev/null", file("n")), &one)?
            .contains("neither a file")
    );
    assert!(
        container
            .refused(read("/file/"), &[])?
            .contains("not a directory")
    );
    assert!(container.refused(read("/none"), &[])?.contains("/none"));
    Ok(())
}

#[test]
fn owners_are_roots_unless_they_are_to_be_kept() -> Test {
    needs_containers!();
    let mut container = Container::after("mkdir /d")?;
    let input = archive(&[
        ("f", Kind::File, "x"),
        ("p", Kind::CharacterDevice(1, 3), ""),
    ])?;
    let kept = FilesTask::Write {
        path: "/d".to_owned(),
        source: CopySource::Archive,
        keeps_owners: true,
    };

    let done = container.perform(write("/d", CopySource::Archive), &input)?;
    let roots = container.members("/d/f")?;
    container.done(kept, &input)?;
    let own = container.members("/d/f")?;

    assert_eq!(done.stderr, "`p` is a device, and was left out\n");
    assert_eq!((roots[0].0.uid, roots[0].0.mtime_s), (0, 1_000_000_000));
    assert_eq!((own[0].0.uid, own[0].0.gid), (1000, 1001));
    assert_eq!(container.names("/d")?, ["d", "d/f"]);
    Ok(())
}

#[test]
fn no_name_of_an_archive_leads_out_of_the_destination() -> Test {
    needs_containers!();
    let mut container = Container::after("mkdir /d")?;
    let up = archive(&[("../up", Kind::File, "x")])?;
    let absolute = archive(&[("/top", Kind::File, "x")])?;

    assert!(
        container
            .refused(write("/d", CopySource::Archive), &up)?
            .contains("leads out")
    );
    container.done(write("/d", CopySource::Archive), &absolute)?;
    assert!(
        container
            .refused(write("/d", CopySource::Archive), b"no archive at all")?
            .contains("archive")
    );
    assert_eq!(container.names("/d")?, ["d", "d/top"]);
    Ok(())
}

#[test]
fn changes_are_those_of_the_container_alone() -> Test {
    needs_containers!();
    let mut untouched = Container::after("true")?;
    assert_eq!(untouched.changes()?, [""; 0]);
    drop(untouched);
    let mut container = Container::after(
        "echo x >> /etc/passwd; rm /etc/group; mkdir -p /new/dir; echo y > /new/dir/f; rm -r /bin/sh; chmod 600 /not-executable; ln -s a /link; echo z > /dev/shm/not-mine; rm /link; mkdir /gone; rmdir /gone",
    )?;

    assert_eq!(
        container.changes()?,
        [
            "C/bin",
            "D/bin/sh",
            "C/etc",
            "D/etc/group",
            "C/etc/passwd",
            "A/new",
            "A/new/dir",
            "A/new/dir/f",
            "C/not-executable"
        ]
    );
    Ok(())
}

#[test]
fn a_directory_that_was_made_anew_hides_what_was_there() -> Test {
    needs_containers!();
    let mut container = Container::after("rm -r /etc; mkdir /etc; echo new > /etc/passwd")?;

    let changes = container.changes()?;
    let layer = members(&container.done(FilesTask::Layer { pauses: false }, &[])?)?;

    let names: Vec<String> = layer.iter().map(|(member, _)| name(member)).collect();
    assert_eq!(changes, ["C/etc", "D/etc/group", "C/etc/passwd"]);
    assert_eq!(names, ["etc", "etc/.wh..wh..opq", "etc/passwd"]);
    Ok(())
}

#[test]
fn a_layer_has_whiteouts_attributes_and_no_mount_points() -> Test {
    needs_containers!();
    let mut container = Container::after(
        "rm /etc/group; echo tool > /bin/tool; chmod 4755 /bin/tool; echo x > /.wh.odd; mkdir /bin/d; mkfifo /bin/d/p",
    )?;

    let done = container.perform(FilesTask::Layer { pauses: true }, &[])?;

    let layer = members(&done.stdout)?;
    let names: Vec<String> = layer.iter().map(|(member, _)| name(member)).collect();
    assert_eq!(
        names,
        [
            "bin",
            "bin/d",
            "bin/d/p",
            "bin/tool",
            "etc",
            "etc/.wh.group"
        ]
    );
    assert_eq!((layer[3].0.mode, layer[3].1.as_str()), (0o4755, "tool\n"));
    assert!(done.stderr.contains(".wh.odd"), "{}", done.stderr);
    assert_eq!(container.content("/bin/tool")?, "tool\n");
    Ok(())
}

#[test]
fn the_root_is_whole_without_what_is_mounted_on_it() -> Test {
    needs_containers!();
    let mut container =
        Container::after("echo new > /etc/new; rm /etc/group; echo shm > /dev/shm/x")?;

    let root = members(&container.done(FilesTask::Root, &[])?)?;

    let names: Vec<String> = root.iter().map(|(member, _)| name(member)).collect();
    let has = |name: &str| names.iter().any(|it| it == name);
    assert!(has("etc/new") && has("etc/passwd") && has("bin/busybox") && has("proc"));
    assert!(!has("etc/group") && !has("dev/shm") && !has("proc/version"));
    Ok(())
}

#[test]
fn a_container_without_a_program_serves_its_files_until_its_input_ends() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let workload = Workload {
        idles: true,
        ..Workload::new(&["not-there"])
    };
    let mut container = Container::begin(agent, &workload)?;

    assert_eq!(container.changes()?, [""; 0]);
    assert!(container.content("/etc/passwd")?.starts_with("root"));
    drop(container.stdin);

    assert!(matches!(
        container.control.report()?,
        Report::Exited { exit, .. } if exit.status == ExitStatus::Code(0)
    ));
    Ok(())
}

#[test]
fn a_container_that_was_made_ahead_tells_what_it_changed_too() -> Test {
    needs_containers!();
    let workload = Workload::script("echo x > /made; echo ready; exec cat");
    let agent = Agent::start_staged(|image| Some(container_of(&workload, image)))?;
    let mut container = Container::begin(agent, &workload)?;
    container.stdout.read_exact(&mut [0; 6])?;

    assert_eq!(container.changes()?, ["A/made"]);
    Ok(())
}

#[test]
fn what_a_task_leaves_is_nothing() -> Test {
    needs_containers!();
    let mut container = Container::after("mkdir /d")?;
    let mut input = archive(&[("f", Kind::File, "whole"), ("g", Kind::File, "cut off")])?;
    input.truncate(2 * 512 + 512 + 3);

    let reason = container.refused(write("/d", CopySource::Archive), &input)?;

    assert!(
        reason.contains("`g`") || reason.contains("archive"),
        "{reason}"
    );
    assert_eq!(container.names("/d")?, ["d", "d/f"]);
    assert_eq!(Agent::processes_of(container.first.container.0).len(), 1);
    Ok(())
}
