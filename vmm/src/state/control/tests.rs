use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Instant;

use protocol::{ProcessInfo, ProcessList};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::record::{Cause, Timestamp};
use super::server::{ENDED_BEFORE, MAX_CONNECTIONS, READ_BYTES, write_long_reply};
use super::*;

/// A monitor that notes what it was asked for.
#[derive(Default)]
struct Monitor {
    executed: Vec<Vec<String>>,
    resized: Vec<(u32, WindowSize)>,
    abandoned: Vec<u32>,
    left_alone: Vec<u32>,
    passed: Vec<(Signal, Attached)>,
    left: Vec<(Attached, bool)>,
    teller: Option<SessionTeller>,
    killed: Vec<Signal>,
    stopped: Vec<Signal>,
    acted: Vec<Action>,
    refuse: bool,
}

impl Control for Monitor {
    fn kill(&mut self, signal: Signal) -> Result<(), String> {
        if self.refuse {
            return Err("the workload has not started".to_owned());
        }
        self.killed.push(signal);
        Ok(())
    }

    fn stop(&mut self, signal: Signal) -> Result<(), String> {
        self.stopped.push(signal);
        Ok(())
    }

    fn status(&self) -> Status {
        Status::Running {
            started: Timestamp(7),
        }
    }

    fn act(&mut self, action: Action, answerer: Answerer) {
        let refused = self.refuse.then(|| "it is paused already".to_owned());
        self.acted.push(action);
        std::thread::spawn(move || answerer.tell(refused.map_or(Ok(()), Err)));
    }

    fn ask(&mut self, question: Question, answerer: Answerer) {
        let process = ProcessInfo {
            arguments: "x".repeat(1000),
            ..ProcessInfo::default()
        };
        std::thread::spawn(move || match question {
            Question::Usage { .. } | Question::Grow => drop(answerer),
            Question::Limit { .. } => answerer.answer(Answer::Failed("no".to_owned())),
            Question::Processes => answerer.answer_slowly(Answer::Processes(ProcessList {
                processes: vec![process; 1000],
                ..ProcessList::default()
            })),
        });
    }

    fn exec(&mut self, request: ExecRequest, offer: SessionOffer) -> Result<u32, String> {
        if self.refuse {
            return Err("it is paused".to_owned());
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut teller = offer.open(&[theirs.as_fd()]).unwrap();
        (&ours).write_all(b"through the stream").unwrap();
        self.executed.push(request.choices.arguments);
        teller.started();
        self.teller = Some(teller);
        Ok(7)
    }

    fn files(&mut self, _: FilesTask, _: SessionOffer) -> Result<u32, String> {
        Err("it is paused".to_owned())
    }

    fn resize(&mut self, process: u32, size: WindowSize) {
        self.resized.push((process, size));
        if let Some(mut teller) = self.teller.take() {
            teller.ended(Outcome::Exited(42));
        }
    }

    fn abandon(&mut self, process: u32) {
        self.abandoned.push(process);
    }

    fn leave(&mut self, process: u32) {
        self.left_alone.push(process);
    }

    fn attach(&mut self, request: AttachRequest, offer: AttachOffer) -> Result<(), String> {
        if self.refuse {
            return Err("it is paused".to_owned());
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&ours).write_all(b"output").unwrap();
        let attachment = Attachment {
            streams: DeclaredStreams {
                stdin: request.stdin,
                stdout: true,
                stderr: false,
            },
            passes_end: true,
        };
        let teller = offer.teller().unwrap();
        offer.open(attachment, &[theirs.as_fd()]).unwrap();
        teller.missed(3);
        Ok(())
    }

    fn resize_workload(&mut self, size: WindowSize) {
        self.resized.push((0, size));
    }

    fn pass(&mut self, signal: Signal, from: Attached) {
        self.passed.push((signal, from));
    }

    fn left(&mut self, client: Attached, has_detached: bool) {
        self.left.push((client, has_detached));
    }
}

fn ended() -> Ended {
    Ended {
        exit_code: 42,
        cause: Cause::Exited,
        signal: None,
        out_of_memory: false,
        message: None,
        last_log_lines: Vec::new(),
        started: None,
        finished: Timestamp(9),
    }
}

/// Runs a monitor's loop for as long as `client` takes, ends the machine, and returns the monitor.
fn with_monitor(refuse: bool, client: impl FnOnce(&Path) + Send) -> Monitor {
    let base = tempfile::tempdir().unwrap();
    // Longer than a socket's address.
    let directory = base.path().join("a".repeat(150));
    fs::create_dir(&directory).unwrap();
    let mut server = ControlServer::bind(&directory).unwrap();
    let mut monitor = Monitor {
        refuse,
        ..Monitor::default()
    };
    let (done, is_done) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            client(&directory);
            drop(done);
        });
        while is_done.try_recv() == Err(mpsc::TryRecvError::Empty) {
            let tick = Timespec {
                tv_sec: 0,
                tv_nsec: 5_000_000,
            };
            let mut fds = [PollFd::new(&server, PollFlags::IN)];
            poll(&mut fds, Some(&tick)).unwrap();
            server.handle(&mut monitor).unwrap();
        }
    });
    server.finish(&ended(), &Outcome::Exited(42));
    monitor
}

#[test]
fn a_signal_reaches_the_monitor() {
    let monitor = with_monitor(false, |directory| {
        let mut client = ControlClient::connect(directory).unwrap();
        client.kill(Signal::TERM).unwrap();
        client.kill(Signal::KILL).unwrap();
    });

    assert_eq!(monitor.killed, [Signal::TERM, Signal::KILL]);
    assert!(monitor.stopped.is_empty());
}

#[test]
fn a_signal_that_is_to_end_the_machine_for_good_is_told_from_others() {
    let monitor = with_monitor(false, |directory| {
        let mut client = ControlClient::connect(directory).unwrap();
        client.stop(Signal::TERM).unwrap();
    });

    assert_eq!(monitor.stopped, [Signal::TERM]);
    assert!(monitor.killed.is_empty());
}

#[test]
fn after_the_end_of_a_run_others_may_still_ask_and_wait_for_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = ControlServer::bind(directory.path()).unwrap();
    let mut monitor = Monitor::default();
    let (connected, is_connected) = mpsc::channel::<()>();
    let (ended_once, has_ended_once) = mpsc::channel::<()>();
    let path = directory.path();
    std::thread::scope(|scope| {
        let asking = scope.spawn(move || {
            let mut client = ControlClient::connect(path).unwrap();
            drop(connected);
            has_ended_once.recv().unwrap_err();
            client.kill(Signal::TERM).unwrap();
            client.wait(None).unwrap().exit_code
        });
        let waiting = scope.spawn(move || {
            is_connected.recv().unwrap_err();
            let client = ControlClient::connect(path).unwrap();
            client.wait(None).unwrap().exit_code
        });
        let next = Ended {
            exit_code: 7,
            ..ended()
        };
        while !waiting.is_finished() {
            server.handle(&mut monitor).unwrap();
            server.tell_end(&ended(), &Outcome::Exited(42));
        }
        drop(ended_once);
        while !asking.is_finished() {
            server.handle(&mut monitor).unwrap();
            server.tell_end(&next, &Outcome::Exited(7));
        }

        assert_eq!(waiting.join().unwrap(), 42);
        assert_eq!(asking.join().unwrap(), 7);
    });
    assert_eq!(monitor.killed, [Signal::TERM]);
}

#[test]
fn an_action_is_answered_when_it_is_done() {
    let snapshot = Action::Snapshot {
        target: Target::File("/tmp/file".into()),
        incremental: true,
        at_fork_point: false,
        stop: false,
    };
    let wanted = [Action::Pause, Action::Resume, snapshot];
    let monitor = with_monitor(false, |directory| {
        for action in wanted.clone() {
            let client = ControlClient::connect(directory).unwrap();
            client.act(action).unwrap();
        }
    });
    assert_eq!(monitor.acted, wanted);

    with_monitor(true, |directory| {
        let client = ControlClient::connect(directory).unwrap();
        let error = client.act(Action::Pause).unwrap_err();
        assert_eq!(error.to_string(), "it is paused already");
    });
}

#[test]
fn the_monitors_reason_reaches_the_client() {
    with_monitor(true, |directory| {
        let mut client = ControlClient::connect(directory).unwrap();
        let error = client.kill(Signal::TERM).unwrap_err();
        assert_eq!(error.to_string(), "the workload has not started");
    });
}

fn asked(directory: &Path, question: &Question) -> Result<Answer, ControlError> {
    let patience = Duration::from_secs(20);
    Asked::send(directory, question)?.answer(Instant::now() + patience)
}

#[test]
fn an_answer_arrives_whole_however_long_it_is() {
    with_monitor(false, |directory| {
        let answer = asked(directory, &Question::Processes).unwrap();
        let Answer::Processes(list) = answer else {
            unreachable!("that is a list");
        };
        assert_eq!(list.processes.len(), 1000);
    });
}

#[test]
fn a_question_without_an_answer_has_a_reason() {
    with_monitor(false, |directory| {
        let limit = Question::Limit {
            resources: Vec::new(),
        };
        let error = asked(directory, &limit).unwrap_err();
        assert_eq!(error.to_string(), "no");
        let error = asked(directory, &Question::Usage { over_ms: 1 }).unwrap_err();
        assert_eq!(error.to_string(), "the machine ended before it answered");
    });
}

/// A socket that takes nothing more, since nobody reads at its other end.
fn full_socket() -> (UnixStream, UnixStream) {
    let (stream, client) = UnixStream::pair().unwrap();
    stream.set_nonblocking(true).unwrap();
    while (&stream).write(&[0; 4096]).is_ok() {}
    (stream, client)
}

#[test]
fn a_client_that_does_not_read_is_not_waited_for() {
    let (stream, _client) = full_socket();
    let (sender, told) = std::sync::mpsc::channel();

    std::thread::spawn(move || {
        Answerer::new(stream, ENDED_BEFORE).answer(Answer::Limited);
        sender.send(())
    });

    assert_eq!(told.recv_timeout(REPLY_TIMEOUT / 2), Ok(()));
}

#[test]
fn a_long_reply_has_one_deadline_for_all_of_it() {
    let (stream, _client) = full_socket();

    let written = write_long_reply(&stream, &Reply::Done, Instant::now());

    assert_eq!(written.unwrap_err().kind(), ErrorKind::TimedOut);
}

#[test]
fn a_monitor_that_does_not_answer_is_waited_for_until_the_deadline() {
    let base = tempfile::tempdir().unwrap();
    let _server = ControlServer::bind(base.path()).unwrap();

    let asked = Asked::send(base.path(), &Question::Processes).unwrap();
    let answered = asked.answer(Instant::now() + Duration::from_millis(50));

    assert!(matches!(answered, Err(ControlError::Io { .. })));
}

fn exec_request() -> ExecRequest {
    ExecRequest {
        choices: ExecChoices {
            arguments: vec!["sh".to_owned()],
            ..ExecChoices::default()
        },
        streams: DeclaredStreams::default(),
    }
}

#[test]
fn a_session_has_the_streams_and_hears_of_the_start_and_the_end() {
    let size = WindowSize {
        rows: 1,
        columns: 2,
    };

    let monitor = with_monitor(false, |directory| {
        let (mut session, passed) = Session::open(directory, &exec_request()).unwrap();
        let mut text = [0; 18];
        let stream = passed.into_iter().next().unwrap();
        UnixStream::from(stream).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"through the stream");
        let started = session.next(&mut Vec::new()).unwrap();
        session.resize(size).unwrap();
        let ended = session.next(&mut Vec::new()).unwrap();
        assert_eq!(started, Reply::Started);
        assert_eq!(ended, Reply::Outcome(Outcome::Exited(42)));
    });

    assert_eq!(monitor.executed, [["sh"]]);
    assert_eq!(monitor.resized, [(7, size)]);
}

#[test]
fn a_session_that_its_client_leaves_is_abandoned() {
    let monitor = with_monitor(false, |directory| {
        drop(Session::open(directory, &exec_request()).unwrap());
        // Answered after the monitor has noticed.
        ControlClient::connect(directory).unwrap().status().unwrap();
    });

    assert_eq!(monitor.abandoned, [7]);
}

#[test]
fn a_session_that_its_client_leaves_alone_is_not_abandoned() {
    let monitor = with_monitor(false, |directory| {
        let (mut session, _) = Session::open(directory, &exec_request()).unwrap();
        session.next(&mut Vec::new()).unwrap();
        session.detach().unwrap();
        assert_eq!(session.next(&mut Vec::new()).unwrap(), Reply::Detached);
        drop(session);
        // Answered after the monitor has noticed.
        ControlClient::connect(directory).unwrap().status().unwrap();
    });

    assert_eq!(monitor.left_alone, [7]);
    assert!(monitor.abandoned.is_empty());
}

#[test]
fn a_session_ends_with_its_machine() {
    let monitor = with_monitor(false, |directory| {
        let (mut session, _) = Session::open(directory, &exec_request()).unwrap();
        session.next(&mut Vec::new()).unwrap();
        std::mem::forget(session);
    });
    let (client, stream) = UnixStream::pair().unwrap();
    let teller = SessionOffer(stream).open(&[]).unwrap();

    drop((teller, monitor));

    let mut said = String::new();
    (&client).read_to_string(&mut said).unwrap();
    assert!(said.contains("the machine has ended"), "{said}");
}

#[test]
fn an_attached_client_has_the_streams_and_hears_what_it_missed_and_the_end() {
    let size = WindowSize {
        rows: 1,
        columns: 2,
    };
    let (result, told) = mpsc::channel();

    let monitor = with_monitor(false, |directory| {
        let request = AttachRequest { stdin: false };
        let (mut session, attachment, sockets) = Session::attach(directory, request).unwrap();
        assert!(attachment.streams.stdout && !attachment.streams.stdin);
        let mut text = [0; 6];
        let stream = sockets.into_iter().next().unwrap();
        UnixStream::from(stream).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"output");
        let missed = session.next(&mut Vec::new()).unwrap();
        assert_eq!(missed, Reply::Missed { bytes: 3 });
        session.resize(size).unwrap();
        session.pass(Signal::TERM).unwrap();
        // Answered after all that was said before.
        ControlClient::connect(directory).unwrap().status().unwrap();
        std::thread::spawn(move || result.send(session.next(&mut Vec::new())));
    });

    let ended = told.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(ended.unwrap(), Reply::Outcome(Outcome::Exited(42)));
    assert_eq!(monitor.resized, [(0, size)]);
    assert_eq!(monitor.passed, [(Signal::TERM, Attached::Other)]);
}

#[test]
fn a_client_that_detaches_is_told_from_one_that_is_gone() {
    let monitor = with_monitor(false, |directory| {
        let request = AttachRequest { stdin: true };
        let attach = || Session::attach(directory, request).unwrap().0;
        let mut polite = attach();
        polite.next(&mut Vec::new()).unwrap();
        polite.detach().unwrap();
        assert_eq!(polite.next(&mut Vec::new()).unwrap(), Reply::Detached);
        drop(polite);
        drop(attach());
        // Answered after the monitor has noticed.
        ControlClient::connect(directory).unwrap().status().unwrap();
    });

    let other = Attached::Other;
    assert_eq!(monitor.left, [(other, true), (other, false)]);
}

#[test]
fn a_client_that_is_not_joined_has_the_monitors_reason() {
    with_monitor(true, |directory| {
        let request = AttachRequest { stdin: true };
        let error = Session::attach(directory, request).unwrap_err();
        assert_eq!(error.to_string(), "it is paused");
    });
}

#[test]
fn a_refused_process_has_the_monitors_reason() {
    with_monitor(true, |directory| {
        let error = Session::open(directory, &exec_request()).unwrap_err();
        assert_eq!(error.to_string(), "it is paused");
    });
}

#[test]
fn the_status_is_told() {
    with_monitor(false, |directory| {
        let mut client = ControlClient::connect(directory).unwrap();
        let status = client.status().unwrap();
        assert_eq!(
            status,
            Status::Running {
                started: Timestamp(7)
            }
        );
    });
}

#[test]
fn who_waits_is_told_the_end() {
    let (result, waited) = mpsc::channel();

    with_monitor(false, |directory| {
        let client = ControlClient::connect(directory).unwrap();
        std::thread::spawn(move || {
            result
                .send(client.wait(Some(Duration::from_secs(20))))
                .unwrap();
        });
        std::thread::sleep(Duration::from_millis(100));
    });

    let told = waited.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(told.unwrap(), ended());
}

#[test]
fn a_client_of_another_version_is_told_and_hung_up_on() {
    with_monitor(false, |directory| {
        let mut stream = with_short_path(directory, UnixStream::connect).unwrap();
        stream.write_all(b"{\"hello\":{\"version\":99}}\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "{\"hello\":{\"version\":5}}\n");
    });
}

#[test]
fn nothing_is_done_before_the_versions_are_known() {
    let monitor = with_monitor(false, |directory| {
        let mut stream = with_short_path(directory, UnixStream::connect).unwrap();
        stream.write_all(b"{\"kill\":{\"signal\":9}}\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "");
    });

    assert!(monitor.killed.is_empty());
}

#[test]
fn an_endless_request_is_cut_off() {
    with_monitor(false, |directory| {
        let mut stream = with_short_path(directory, UnixStream::connect).unwrap();
        let flood = vec![b'x'; MAX_REQUEST_BYTES + READ_BYTES];
        // The monitor hangs up in the midst of it.
        let _ = stream.write_all(&flood);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty());
    });
}

#[test]
fn more_clients_than_the_limit_wait_their_turn() {
    with_monitor(false, |directory| {
        let crowd: Vec<_> = (0..MAX_CONNECTIONS)
            .map(|_| ControlClient::connect(directory).unwrap())
            .collect();
        let late = std::thread::scope(|scope| {
            let late = scope.spawn(|| ControlClient::connect(directory).map(drop));
            std::thread::sleep(Duration::from_millis(50));
            drop(crowd);
            late.join().unwrap()
        });
        late.unwrap();
    });
}

#[test]
fn without_a_monitor_the_machine_does_not_run() {
    let base = tempfile::tempdir().unwrap();
    drop(ControlServer::bind(base.path()).unwrap());

    let error = ControlClient::connect(base.path()).unwrap_err();

    assert!(matches!(error, ControlError::NotRunning(_)));
}
