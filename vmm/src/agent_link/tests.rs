//! The link against an agent that follows a script.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use protocol::{
    Answer, ContainerId, DeclaredStreams, Exec, ExitStatus, Filesystem, ProcessId, Question,
    RootSource, StreamKind, Upper, WindowSize,
};

use super::*;

const PROCESS: Process = Process {
    container: ContainerId(1),
    process: ProcessId(0),
};
const EXIT: Exit = Exit {
    status: ExitStatus::Code(7),
    oom_killed: false,
};

/// Hands the guest's end of each connection to the scripted agent.
struct PairDialer(mpsc::Sender<UnixStream>);

impl Dialer for PairDialer {
    fn dial(&self, port: u32) -> io::Result<UnixStream> {
        assert_eq!(port, AGENT_PORT);
        let (host, guest) = UnixStream::pair()?;
        self.0.send(guest).map_err(io::Error::other)?;
        Ok(host)
    }
}

/// The agent's end of everything.
struct Guest {
    control: UnixStream,
    requests: FrameBuffer,
    stdin: Option<UnixStream>,
    stdout: Option<UnixStream>,
    stderr: Option<UnixStream>,
}

impl Guest {
    fn accept(connections: &mpsc::Receiver<UnixStream>, streams: DeclaredStreams) -> Self {
        let control = Self::hello(connections, Role::Control);
        let stream = |wanted: bool, kind| {
            wanted.then(|| {
                Self::hello(
                    connections,
                    Role::Stream {
                        process: PROCESS,
                        kind,
                    },
                )
            })
        };
        let stdin = stream(streams.stdin, StreamKind::Stdin);
        let stdout = stream(streams.stdout, StreamKind::Stdout);
        let stderr = stream(streams.stderr, StreamKind::Stderr);
        Self {
            control,
            requests: FrameBuffer::new(MAX_REQUEST_BYTES),
            stdin,
            stdout,
            stderr,
        }
    }

    fn hello(connections: &mpsc::Receiver<UnixStream>, role: Role) -> UnixStream {
        let mut connection = connections.recv().unwrap();
        let mut buffer = FrameBuffer::new(MAX_HELLO_BYTES);
        while buffer.missing_bytes() > 0 {
            let mut bytes = vec![0; buffer.missing_bytes()];
            connection.read_exact(&mut bytes).unwrap();
            buffer.push(&bytes);
        }
        assert_eq!(buffer.take::<Hello>().unwrap(), Some(Hello::new(role)));
        connection
    }

    fn report(&mut self, report: &Report) {
        self.report_at_once(std::slice::from_ref(report));
    }

    /// In one write, so that they are read together.
    fn report_at_once(&mut self, reports: &[Report]) {
        let mut frames = Vec::new();
        for report in reports {
            protocol::encode(report, MAX_REPORT_BYTES, &mut frames).unwrap();
        }
        self.control.write_all(&frames).unwrap();
    }

    fn welcome(&mut self) {
        self.report(&Report::Welcome { version: VERSION });
    }

    fn request(&mut self) -> Request {
        loop {
            if let Some(request) = self.requests.take().unwrap() {
                return request;
            }
            let mut bytes = [0; 1024];
            let count = self.control.read(&mut bytes).unwrap();
            assert_ne!(count, 0, "the host hung up");
            self.requests.push(&bytes[..count]);
        }
    }

    /// Takes create and start, and says that the program runs.
    fn start(&mut self) {
        self.welcome();
        assert!(matches!(self.request(), Request::Create(_)));
        assert_eq!(self.request(), Request::Start(PROCESS));
        self.report(&started(PROCESS));
    }

    fn exit(&mut self) {
        self.stdout = None;
        self.stderr = None;
        self.report(&Report::Exited {
            process: PROCESS,
            exit: EXIT,
        });
    }
}

fn started(process: Process) -> Report {
    Report::Started {
        process,
        after_us: 1,
    }
}

fn create(streams: DeclaredStreams) -> Create {
    Create {
        process: PROCESS,
        config: b"{}".to_vec(),
        root: RootSource {
            source: "/dev/pmem1".to_owned(),
            filesystem: Filesystem::ErofsDax,
            upper: Upper::Tmpfs {
                size_bytes: 1 << 20,
            },
        },
        volumes: Vec::new(),
        user: None,
        streams,
        groups: Vec::new(),
        init: false,
        idles: false,
        stop_signal: 15,
        seccomp: None,
        network: None,
        names: protocol::Names::default(),
    }
}

/// Runs the link against `script`, which the guest follows in a thread of its own.
fn run(
    client: ClientStreams<'_>,
    events: &EventReceiver,
    script: impl FnOnce(Guest) + Send + 'static,
) -> Result<WorkloadExit, LinkError> {
    let (sender, connections) = mpsc::channel();
    let streams = client.declared();
    let guest: JoinHandle<()> = thread::spawn(move || script(Guest::accept(&connections, streams)));
    let dialer = PairDialer(sender);
    let result = AgentLink::connect(&dialer).and_then(|mut link| {
        link.run(
            &dialer,
            Job::Create(Box::new(create(streams))),
            client,
            events,
            &mut |_| (),
        )
    });
    guest.join().unwrap();
    result
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe().unwrap()
}

fn read_all(fd: OwnedFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::fs::File::from(fd).read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn input_and_both_outputs_are_carried_apart() {
    let (_sender, events) = event_channel().unwrap();
    let (stdin, mut to_stdin) = UnixStream::pair().unwrap();
    let ((out_reader, out), (err_reader, err)) = (pipe(), pipe());
    to_stdin.write_all(b"question").unwrap();
    to_stdin.shutdown(Shutdown::Write).unwrap();
    let client = ClientStreams {
        stdin: Some(stdin.as_fd()),
        stdout: Some(out.as_fd()),
        stderr: Some(err.as_fd()),
    };

    let exit = run(client, &events, |mut guest| {
        guest.start();
        let mut input = String::new();
        guest
            .stdin
            .as_mut()
            .unwrap()
            .read_to_string(&mut input)
            .unwrap();
        guest
            .stdout
            .as_mut()
            .unwrap()
            .write_all(format!("{input}: answer").as_bytes())
            .unwrap();
        guest
            .stderr
            .as_mut()
            .unwrap()
            .write_all(b"warning")
            .unwrap();
        guest.exit();
    });
    drop((out, err));

    assert_eq!(exit.unwrap(), WorkloadExit::Exited(EXIT));
    assert_eq!(read_all(out_reader), b"question: answer");
    assert_eq!(read_all(err_reader), b"warning");
}

#[test]
fn a_client_that_reads_slowly_loses_nothing() {
    let (_sender, events) = event_channel().unwrap();
    let (out_reader, out) = pipe();
    let reader = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        read_all(out_reader)
    });
    let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let to_send = sent.clone();

    let exit = run(
        ClientStreams {
            stdout: Some(out.as_fd()),
            ..ClientStreams::default()
        },
        &events,
        move |mut guest| {
            guest.start();
            guest.stdout.as_mut().unwrap().write_all(&to_send).unwrap();
            guest.exit();
        },
    );
    drop(out);

    assert_eq!(exit.unwrap(), WorkloadExit::Exited(EXIT));
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn output_that_nobody_reads_closes_the_process_output() {
    let (_sender, events) = event_channel().unwrap();
    let (out_reader, out) = pipe();
    drop(out_reader);

    let exit = run(
        ClientStreams {
            stdout: Some(out.as_fd()),
            ..ClientStreams::default()
        },
        &events,
        |mut guest| {
            guest.start();
            let stdout = guest.stdout.as_mut().unwrap();
            while stdout.write_all(&[0; 4096]).is_ok() {}
            guest.exit();
        },
    );

    assert_eq!(exit.unwrap(), WorkloadExit::Exited(EXIT));
}

#[test]
fn signals_and_sizes_are_forwarded() {
    let (sender, events) = event_channel().unwrap();
    let size = protocol::WindowSize {
        rows: 5,
        columns: 6,
    };
    sender.send(Event::Signal(15)).unwrap();
    sender.send(Event::Resize(size)).unwrap();

    let exit = run(ClientStreams::default(), &events, move |mut guest| {
        guest.start();
        assert_eq!(
            guest.request(),
            Request::Signal {
                process: PROCESS,
                signal: 15
            }
        );
        assert_eq!(
            guest.request(),
            Request::Resize {
                process: PROCESS,
                size
            }
        );
        guest.exit();
    });

    assert_eq!(exit.unwrap(), WorkloadExit::Exited(EXIT));
}

#[test]
fn a_process_that_does_not_start_is_a_result() {
    let (_sender, events) = event_channel().unwrap();
    let failure = StartFailure {
        kind: FailureKind::NotFound,
        step: "executing x".to_owned(),
        message: String::new(),
    };
    let reported = failure.clone();

    let exit = run(ClientStreams::default(), &events, move |mut guest| {
        guest.welcome();
        guest.report(&Report::NotStarted {
            process: PROCESS,
            failure: reported,
        });
        assert!(matches!(guest.request(), Request::Create(_)));
    });

    assert_eq!(exit.unwrap(), WorkloadExit::NotStarted(failure));
}

#[test]
fn a_guests_words_cannot_command_the_terminal() {
    let (_sender, events) = event_channel().unwrap();
    let failure = StartFailure {
        kind: FailureKind::Failed,
        step: "x\u{1B}[2J".to_owned(),
        message: "a\nb\u{202E}c".to_owned(),
    };

    let exit = run(ClientStreams::default(), &events, move |mut guest| {
        guest.welcome();
        guest.report(&Report::NotStarted {
            process: PROCESS,
            failure,
        });
        assert!(matches!(guest.request(), Request::Create(_)));
    });

    let WorkloadExit::NotStarted(shown) = exit.unwrap() else {
        panic!("it ran");
    };
    assert_eq!(shown.step, "x\u{FFFD}[2J");
    assert_eq!(shown.message, "a\u{FFFD}b\u{FFFD}c");
}

#[test]
fn an_agent_of_another_version_is_named() {
    let (_sender, events) = event_channel().unwrap();

    let exit = run(ClientStreams::default(), &events, |mut guest| {
        guest.report(&Report::Welcome {
            version: VERSION + 1,
        });
        assert!(matches!(guest.request(), Request::Create(_)));
    });

    assert!(matches!(exit, Err(LinkError::Version { agent }) if agent == VERSION + 1));
}

#[test]
fn a_machine_that_dies_hangs_up() {
    let (_sender, events) = event_channel().unwrap();

    let exit = run(ClientStreams::default(), &events, |mut guest| {
        guest.start();
        drop(guest);
    });

    assert!(matches!(exit, Err(LinkError::HungUp)));
}

#[test]
fn what_was_reported_before_a_hang_up_is_heard() {
    let (sender, connections) = mpsc::channel();
    let mut link = AgentLink::connect(&PairDialer(sender)).unwrap();
    link.flush().unwrap();
    let mut guest = Guest::accept(&connections, DeclaredStreams::default());
    guest.welcome();
    guest.report(&started(PROCESS));
    drop(guest);
    link.queue(&Request::Start(PROCESS)).unwrap();

    link.flush().unwrap();
    link.receive().unwrap();

    assert_eq!(link.next_report().unwrap(), Some(started(PROCESS)));
    assert!(matches!(link.receive(), Err(LinkError::HungUp)));
}

#[test]
fn a_hang_up_after_the_exit_loses_no_output() {
    let (sender, events) = event_channel().unwrap();
    let (out_reader, out) = pipe();

    let exit = run(
        ClientStreams {
            stdout: Some(out.as_fd()),
            ..ClientStreams::default()
        },
        &events,
        move |mut guest| {
            guest.start();
            let mut stdout = guest.stdout.take().unwrap();
            guest.exit();
            drop(guest);
            sender.send(Event::Signal(15)).unwrap();
            thread::sleep(Duration::from_millis(50));
            stdout.write_all(b"the rest").unwrap();
        },
    );
    drop(out);

    assert_eq!(exit.unwrap(), WorkloadExit::Exited(EXIT));
    assert_eq!(read_all(out_reader), b"the rest");
}

#[test]
fn a_report_about_another_process_is_out_of_turn() {
    let (_sender, events) = event_channel().unwrap();
    let other = Process {
        process: ProcessId(9),
        ..PROCESS
    };

    let exit = run(ClientStreams::default(), &events, move |mut guest| {
        guest.start();
        guest.report(&Report::Exited {
            process: other,
            exit: EXIT,
        });
    });

    assert!(matches!(exit, Err(LinkError::OutOfTurn)));
}

#[test]
fn garbage_on_the_control_connection_is_malformed() {
    let (_sender, events) = event_channel().unwrap();

    let exit = run(ClientStreams::default(), &events, |mut guest| {
        guest.control.write_all(&[0xFF; 64]).unwrap();
        assert!(matches!(guest.request(), Request::Create(_)));
    });

    assert!(matches!(exit, Err(LinkError::Malformed(_))));
}

const OTHER: Process = Process {
    container: ContainerId(1),
    process: ProcessId(1),
};

/// What a client of another process is told, in order.
#[derive(Clone, Debug)]
struct Told(mpsc::Sender<Option<WorkloadExit>>);

impl Watcher for Told {
    fn started(&mut self) {
        self.0.send(None).unwrap();
    }

    fn ended(&mut self, exit: WorkloadExit) {
        self.0.send(Some(exit)).unwrap();
    }
}

fn exec(spec: &[u8]) -> (Event, mpsc::Receiver<Option<WorkloadExit>>) {
    let (sender, told) = mpsc::channel();
    let exec = Exec {
        process: OTHER,
        spec: spec.to_vec(),
        user: None,
        groups: Vec::new(),
        streams: DeclaredStreams::default(),
        is_filtered: true,
    };
    let event = Event::Join {
        joining: Joining::Exec(Box::new(exec)),
        watcher: Box::new(Told(sender)),
    };
    (event, told)
}

#[test]
fn another_process_is_asked_for_and_its_client_is_told_of_it() {
    let (sender, events) = event_channel().unwrap();
    let (event, told) = exec(b"{}");
    let size = WindowSize {
        rows: 3,
        columns: 4,
    };
    sender.send(event).unwrap();
    sender.send(Event::ResizeOf(OTHER, size)).unwrap();

    let exit = run(ClientStreams::default(), &events, move |mut guest| {
        guest.start();
        assert!(matches!(guest.request(), Request::Exec(exec) if exec.process == OTHER));
        assert_eq!(guest.request(), Request::Start(OTHER));
        guest.report(&started(OTHER));
        let process = OTHER;
        assert_eq!(guest.request(), Request::Resize { process, size });
        guest.report(&Report::Exited {
            process,
            exit: EXIT,
        });
        guest.exit();
    });

    assert_eq!(exit.unwrap(), WorkloadExit::Exited(EXIT));
    let told: Vec<_> = told.iter().collect();
    assert_eq!(told, [None, Some(WorkloadExit::Exited(EXIT))]);
}

#[test]
fn a_process_that_ends_with_the_workload_has_a_client_that_is_told_nothing_more() {
    let (sender, events) = event_channel().unwrap();
    let (event, told) = exec(b"{}");
    sender.send(event).unwrap();

    let exit = run(ClientStreams::default(), &events, |mut guest| {
        guest.start();
        assert!(matches!(guest.request(), Request::Exec(_)));
        guest.report(&started(OTHER));
        guest.exit();
    });

    assert_eq!(exit.unwrap(), WorkloadExit::Exited(EXIT));
    assert_eq!(told.iter().collect::<Vec<_>>(), [None]);
}

#[test]
fn a_process_that_nobody_wants_any_more_is_killed_if_it_has_not_started() {
    let (sender, events) = event_channel().unwrap();
    let (event, told) = exec(b"{}");
    sender.send(event).unwrap();
    sender.send(Event::Abandon(OTHER)).unwrap();

    let exit = run(ClientStreams::default(), &events, |mut guest| {
        guest.start();
        assert!(matches!(guest.request(), Request::Exec(_)));
        assert_eq!(guest.request(), Request::Start(OTHER));
        let killed = Request::Signal {
            process: OTHER,
            signal: 9,
        };
        assert_eq!(guest.request(), killed);
        guest.exit();
    });

    assert_eq!(exit.unwrap(), WorkloadExit::Exited(EXIT));
    assert!(told.iter().next().is_none());
}

#[test]
fn a_process_that_is_too_much_for_a_frame_fails_alone() {
    let (sender, events) = event_channel().unwrap();
    let (event, told) = exec(&vec![b' '; MAX_REQUEST_BYTES]);
    sender.send(event).unwrap();

    let exit = run(ClientStreams::default(), &events, move |mut guest| {
        guest.start();
        let failure = told.recv().unwrap();
        assert!(matches!(failure, Some(WorkloadExit::NotStarted(_))));
        guest.exit();
    });

    assert_eq!(exit.unwrap(), WorkloadExit::Exited(EXIT));
}

#[test]
fn a_report_about_a_process_that_nobody_asked_for_ends_the_conversation() {
    let (_sender, events) = event_channel().unwrap();

    let exit = run(ClientStreams::default(), &events, |mut guest| {
        guest.start();
        guest.report(&started(OTHER));
    });

    assert!(matches!(exit, Err(LinkError::OutOfTurn)));
}

/// Tells what a question came to.
#[derive(Debug)]
struct Curious(mpsc::Sender<Answer>);

impl Asker for Curious {
    fn answered(self: Box<Self>, answer: Answer) {
        self.0.send(answer).unwrap();
    }
}

fn ask(question: Question) -> (Event, mpsc::Receiver<Answer>) {
    let (sender, told) = mpsc::channel();
    let event = Event::Ask {
        container: PROCESS.container,
        question,
        asker: Box::new(Curious(sender)),
    };
    (event, told)
}

#[test]
fn a_question_is_passed_on_and_its_answer_comes_back() {
    let (sender, events) = event_channel().unwrap();
    let (event, told) = ask(Question::Usage { over_ms: 5 });
    sender.send(event).unwrap();

    let exit = run(ClientStreams::default(), &events, |mut guest| {
        guest.start();
        let Request::Ask {
            number, container, ..
        } = guest.request()
        else {
            unreachable!("the guest is asked");
        };
        assert_eq!(container, PROCESS.container);
        let answer = Answer::Failed("no\u{1b}".to_owned());
        guest.report(&Report::Answer { number, answer });
        guest.exit();
    });

    assert_eq!(exit.unwrap(), WorkloadExit::Exited(EXIT));
    assert_eq!(told.recv(), Ok(Answer::Failed("no\u{FFFD}".to_owned())));
}

#[test]
fn a_question_without_an_answer_ends_with_the_workload() {
    let (sender, events) = event_channel().unwrap();
    let (event, told) = ask(Question::Processes);
    sender.send(event).unwrap();

    let exit = run(ClientStreams::default(), &events, |mut guest| {
        guest.start();
        assert!(matches!(guest.request(), Request::Ask { .. }));
        guest.exit();
    });

    assert_eq!(exit.unwrap(), WorkloadExit::Exited(EXIT));
    assert!(told.recv().is_err());
}

#[test]
fn an_answer_that_comes_with_the_exit_does_not_hide_it() {
    let (sender, events) = event_channel().unwrap();
    let (event, _told) = ask(Question::Processes);
    sender.send(event).unwrap();

    let exit = run(ClientStreams::default(), &events, |mut guest| {
        guest.start();
        let Request::Ask { number, .. } = guest.request() else {
            unreachable!("the guest is asked");
        };
        let exited = Report::Exited {
            process: PROCESS,
            exit: EXIT,
        };
        let answer = Answer::Limited;
        guest.report_at_once(&[exited, Report::Answer { number, answer }]);
    });

    assert_eq!(exit.unwrap(), WorkloadExit::Exited(EXIT));
}

#[test]
fn an_answer_to_what_nobody_asked_ends_the_conversation() {
    let (_sender, events) = event_channel().unwrap();

    let exit = run(ClientStreams::default(), &events, |mut guest| {
        guest.start();
        let (number, answer) = (1, Answer::Limited);
        guest.report(&Report::Answer { number, answer });
    });

    assert!(matches!(exit, Err(LinkError::OutOfTurn)));
}
