//! Frames survive the way there and back, and garbage never harms.

use proptest::prelude::*;
use protocol::{
    Answer, ContainerId, Create, DeclaredStreams, Exec, Exit, ExitStatus, FailureKind, Filesystem,
    FrameBuffer, FrameError, Hello, MAX_HELLO_BYTES, MAX_REPORT_BYTES, MAX_REQUEST_BYTES, Process,
    ProcessId, ProcessInfo, ProcessList, Question, Report, Request, Role, RootSource, Seccomp,
    StartFailure, StreamKind, Upper, Usage, VERSION, Volume, WindowSize, encode,
};

fn process() -> impl Strategy<Value = Process> {
    (any::<u32>(), any::<u32>()).prop_map(|(container, process)| Process {
        container: ContainerId(container),
        process: ProcessId(process),
    })
}

fn stream_kind() -> impl Strategy<Value = StreamKind> {
    prop_oneof![
        Just(StreamKind::Stdin),
        Just(StreamKind::Stdout),
        Just(StreamKind::Stderr)
    ]
}

fn hello() -> impl Strategy<Value = Hello> {
    prop_oneof![
        Just(Role::Control),
        (process(), stream_kind()).prop_map(|(process, kind)| Role::Stream { process, kind }),
    ]
    .prop_map(Hello::new)
}

fn create() -> impl Strategy<Value = Create> {
    let filesystem = prop_oneof![
        Just(Filesystem::ErofsDax),
        Just(Filesystem::Erofs),
        Just(Filesystem::Directory)
    ];
    let streams =
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(stdin, stdout, stderr)| {
            DeclaredStreams {
                stdin,
                stdout,
                stderr,
            }
        });
    let upper = prop_oneof![
        any::<u64>().prop_map(|size_bytes| Upper::Tmpfs { size_bytes }),
        any::<String>().prop_map(|source| Upper::Disk { source }),
    ];
    let volume = prop_oneof![
        any::<String>().prop_map(|tag| Volume::Share { tag }),
        any::<(String, bool, Option<String>)>().prop_map(|(device, read_only, directory)| {
            Volume::Disk {
                device,
                read_only,
                directory,
            }
        }),
    ];
    let config = prop::collection::vec(any::<u8>(), 0..4096);
    (
        process(),
        config,
        any::<String>(),
        filesystem,
        (upper, prop::collection::vec(volume, 0..4)),
        (
            any::<Option<String>>(),
            prop::collection::vec(any::<String>(), 0..4),
            any::<bool>(),
            any::<u8>(),
        ),
        streams,
        prop::option::of((prop::collection::vec(any::<u8>(), 0..4096), any::<u32>())),
    )
        .prop_map(
            |(
                process,
                config,
                source,
                filesystem,
                (upper, volumes),
                (user, groups, init, stop_signal),
                streams,
                seccomp,
            )| Create {
                process,
                config,
                root: RootSource {
                    source,
                    filesystem,
                    upper,
                },
                volumes,
                user,
                groups,
                init,
                idles: !init,
                stop_signal,
                streams,
                seccomp: seccomp.map(|(filter, flags)| Seccomp { filter, flags }),
                network: None,
                names: protocol::Names::default(),
            },
        )
}

fn exec() -> impl Strategy<Value = Exec> {
    (create(), any::<bool>()).prop_map(|(create, is_filtered)| Exec {
        process: create.process,
        spec: create.config,
        user: create.user,
        groups: create.groups,
        streams: create.streams,
        is_filtered,
    })
}

fn question() -> impl Strategy<Value = Question> {
    prop_oneof![
        any::<u32>().prop_map(|over_ms| Question::Usage { over_ms }),
        Just(Question::Processes),
        prop::collection::vec(any::<u8>(), 0..512)
            .prop_map(|resources| Question::Limit { resources }),
    ]
}

fn process_info() -> impl Strategy<Value = ProcessInfo> {
    let numbers = (any::<[u32; 6]>(), any::<[i32; 2]>(), any::<[u64; 4]>());
    (
        numbers,
        any::<[bool; 3]>(),
        any::<String>(),
        any::<String>(),
    )
        .prop_map(
            |((small, signed, large), flags, name, arguments)| ProcessInfo {
                pid: small[0],
                parent: small[1],
                uid: small[2],
                gid: small[3],
                state: b'S',
                leads_session: flags[0],
                is_foreground: flags[1],
                locks_memory: flags[2],
                terminal: small[4],
                nice: signed[0],
                priority: signed[1],
                threads: small[5],
                cpu_ms: large[0],
                age_ms: large[1],
                virtual_bytes: large[2],
                resident_bytes: large[3],
                name,
                arguments,
            },
        )
}

fn answer() -> impl Strategy<Value = Answer> {
    let usage = (any::<[u64; 8]>(), any::<Option<u64>>()).prop_map(|(numbers, memory_bytes)| {
        Answer::Usage(Usage {
            cpu_us: numbers[0],
            over_us: numbers[1],
            memory_bytes,
            memory_limit_bytes: numbers[2],
            tasks: numbers[3],
            read_bytes: numbers[4],
            written_bytes: numbers[5],
            received_bytes: numbers[6],
            sent_bytes: numbers[7],
        })
    });
    let list = (
        prop::collection::vec(process_info(), 0..4),
        any::<u64>(),
        any::<bool>(),
        any::<bool>(),
    );
    let list = list.prop_map(|(processes, guest_memory_bytes, is_last, is_cut)| {
        Answer::Processes(ProcessList {
            processes,
            guest_memory_bytes,
            is_last,
            is_cut,
        })
    });
    prop_oneof![
        usage,
        list,
        Just(Answer::Limited),
        any::<String>().prop_map(Answer::Failed),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (any::<u32>(), any::<u32>(), question()).prop_map(|(number, container, question)| {
            Request::Ask {
                number,
                container: ContainerId(container),
                question,
            }
        }),
        create().prop_map(|create| Request::Create(Box::new(create))),
        exec().prop_map(|exec| Request::Exec(Box::new(exec))),
        process().prop_map(Request::Start),
        (process(), any::<u8>()).prop_map(|(process, signal)| Request::Signal { process, signal }),
        (process(), any::<u16>(), any::<u16>()).prop_map(|(process, rows, columns)| {
            Request::Resize {
                process,
                size: WindowSize { rows, columns },
            }
        }),
        Just(Request::PowerOff),
    ]
}

fn report() -> impl Strategy<Value = Report> {
    let kind = prop_oneof![
        Just(FailureKind::NotFound),
        Just(FailureKind::NotExecutable),
        Just(FailureKind::UnknownUser),
        Just(FailureKind::Unsupported),
        Just(FailureKind::Failed),
    ];
    let status = prop_oneof![
        any::<u8>().prop_map(ExitStatus::Code),
        any::<u8>().prop_map(ExitStatus::Signal)
    ];
    prop_oneof![
        (any::<u32>(), answer()).prop_map(|(number, answer)| Report::Answer { number, answer }),
        any::<u16>().prop_map(|version| Report::Welcome { version }),
        (process(), any::<u32>())
            .prop_map(|(process, after_us)| Report::Started { process, after_us }),
        (process(), kind, any::<String>(), any::<String>()).prop_map(
            |(process, kind, step, message)| {
                Report::NotStarted {
                    process,
                    failure: StartFailure {
                        kind,
                        step,
                        message,
                    },
                }
            }
        ),
        (process(), status, any::<bool>()).prop_map(|(process, status, oom_killed)| {
            Report::Exited {
                process,
                exit: Exit { status, oom_killed },
            }
        }),
    ]
}

fn take_all<M: serde::de::DeserializeOwned>(
    bytes: &[u8],
    chunk: usize,
    limit: usize,
) -> Result<Vec<M>, FrameError> {
    let mut buffer = FrameBuffer::new(limit);
    let mut messages = Vec::new();
    for piece in bytes.chunks(chunk) {
        buffer.push(piece);
        while let Some(message) = buffer.take()? {
            messages.push(message);
        }
    }
    Ok(messages)
}

proptest! {
    #[test]
    fn requests_come_back_whatever_the_pieces(requests in prop::collection::vec(request(), 0..4), chunk in 1usize..5000) {
        let mut bytes = Vec::new();
        for request in &requests {
            encode(request, MAX_REQUEST_BYTES, &mut bytes).unwrap();
        }
        prop_assert_eq!(take_all::<Request>(&bytes, chunk, MAX_REQUEST_BYTES).unwrap(), requests);
    }

    #[test]
    fn reports_come_back_whatever_the_pieces(reports in prop::collection::vec(report(), 0..4), chunk in 1usize..500) {
        let mut bytes = Vec::new();
        for report in &reports {
            encode(report, MAX_REPORT_BYTES, &mut bytes).unwrap();
        }
        prop_assert_eq!(take_all::<Report>(&bytes, chunk, MAX_REPORT_BYTES).unwrap(), reports);
    }

    #[test]
    fn a_reader_that_asks_for_missing_bytes_stops_at_the_stream(hello in hello(), stream in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut bytes = Vec::new();
        encode(&hello, MAX_HELLO_BYTES, &mut bytes).unwrap();
        let frame_bytes = bytes.len();
        bytes.extend_from_slice(&stream);
        let mut buffer = FrameBuffer::new(MAX_HELLO_BYTES);
        let mut read = 0;
        while buffer.missing_bytes() > 0 {
            let end = read + buffer.missing_bytes();
            buffer.push(&bytes[read..end]);
            read = end;
        }
        prop_assert_eq!(buffer.take::<Hello>().unwrap(), Some(hello));
        prop_assert_eq!(read, frame_bytes);
    }

    #[test]
    fn bytes_after_the_hello_are_given_back(hello in hello(), stream in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut bytes = Vec::new();
        encode(&hello, MAX_HELLO_BYTES, &mut bytes).unwrap();
        bytes.extend_from_slice(&stream);
        let mut buffer = FrameBuffer::new(MAX_HELLO_BYTES);
        buffer.push(&bytes);
        prop_assert_eq!(buffer.take::<Hello>().unwrap(), Some(hello));
        prop_assert_eq!(buffer.into_rest(), stream);
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2048), framed in any::<bool>()) {
        let mut input = Vec::new();
        if framed {
            input.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_le_bytes());
        }
        input.extend_from_slice(&bytes);
        let mut requests = FrameBuffer::new(MAX_REQUEST_BYTES);
        requests.push(&input);
        while let Ok(Some(_)) = requests.take::<Request>() {}
        let mut reports = FrameBuffer::new(MAX_REPORT_BYTES);
        reports.push(&input);
        while let Ok(Some(_)) = reports.take::<Report>() {}
    }
}

#[test]
fn a_length_above_the_limit_is_refused_before_the_body_arrives() {
    let mut buffer = FrameBuffer::new(MAX_REPORT_BYTES);
    buffer.push(&u32::MAX.to_le_bytes());

    let taken = buffer.take::<Report>();

    assert!(matches!(taken, Err(FrameError::TooLong { .. })));
}

#[test]
fn a_message_above_the_limit_is_not_encoded() {
    let report = Report::NotStarted {
        process: Process {
            container: ContainerId(0),
            process: ProcessId(0),
        },
        failure: StartFailure {
            kind: FailureKind::Failed,
            step: "x".repeat(MAX_REPORT_BYTES),
            message: String::new(),
        },
    };
    let mut bytes = Vec::new();

    let encoded = encode(&report, MAX_REPORT_BYTES, &mut bytes);

    assert!(matches!(encoded, Err(FrameError::TooLong { .. })));
    assert!(bytes.is_empty());
}

#[test]
fn bytes_after_the_message_are_refused() {
    let mut bytes = Vec::new();
    encode(&(Request::PowerOff, 7u8), MAX_REQUEST_BYTES, &mut bytes).unwrap();
    let mut buffer = FrameBuffer::new(MAX_REQUEST_BYTES);
    buffer.push(&bytes);

    let taken = buffer.take::<Request>();

    assert!(matches!(taken, Err(FrameError::Trailing(1))));
}

#[test]
fn the_encoding_of_the_first_fields_is_fixed() {
    let mut hello = Vec::new();
    encode(&Hello::new(Role::Control), MAX_HELLO_BYTES, &mut hello).unwrap();
    let mut welcome = Vec::new();
    encode(
        &Report::Welcome { version: 1 },
        MAX_REPORT_BYTES,
        &mut welcome,
    )
    .unwrap();

    let version = u8::try_from(VERSION).unwrap();
    assert_eq!(hello, [6, 0, 0, 0, 0xF6, 0xDA, 0xB5, 0x03, version, 0]);
    assert_eq!(welcome, [2, 0, 0, 0, 0, 1]);
}

#[test]
fn a_bounded_answer_and_process_are_cut_at_a_character() {
    let text = "\u{1F980}".repeat(MAX_REPORT_BYTES);
    let process = ProcessInfo {
        name: text.clone(),
        arguments: text.clone(),
        ..ProcessInfo::default()
    };

    let process = process.bounded();
    let Answer::Failed(message) = Answer::Failed(text).bounded() else {
        unreachable!("a failure stays one");
    };

    assert_eq!((process.name.len(), process.arguments.len()), (1024, 1024));
    assert_eq!(message.len(), 2048);
}

#[test]
fn a_bounded_failure_fits_a_report() {
    let process = Process {
        container: ContainerId(u32::MAX),
        process: ProcessId(u32::MAX),
    };
    let text = "\u{1F980}".repeat(MAX_REPORT_BYTES);
    let failure = StartFailure {
        kind: FailureKind::Failed,
        step: text.clone(),
        message: text,
    }
    .bounded();
    let mut bytes = Vec::new();

    let encoded = encode(
        &Report::NotStarted { process, failure },
        MAX_REPORT_BYTES,
        &mut bytes,
    );

    assert!(encoded.is_ok());
}
