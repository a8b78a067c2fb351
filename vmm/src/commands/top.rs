//! `vmm top`: the processes of a machine, told by its guest and printed as `ps` does.

use std::time::{Duration, Instant};

use protocol::{Answer, ProcessInfo, ProcessList, Question};
use thiserror::Error;

use super::machines;
use super::output::Columns;
use crate::cli::TopArgs;
use crate::dirs::Directories;
use crate::moment::Moment;
use crate::outcome::ExitCode;
use crate::report::{Help, Report};
use crate::state::{ControlError, Timestamp};

/// How long a guest may take to look at its processes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Lists a machine's processes.
pub(super) fn run(arguments: &TopArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let columns = columns(&arguments.options)?;
    let machines = machines(directories)?;
    let machine = machines.find(&arguments.machine)?;
    let asked = machines.ask(&machine, &Question::Processes)?;
    let list = match asked.answer(Instant::now() + PATIENCE)? {
        Answer::Processes(list) => list,
        _ => return Err(ControlError::Unexpected(machine.directory).into()),
    };
    machines.note(&machine.record, "top");
    table(&columns, &list, Timestamp::now()).print()?;
    if list.is_cut {
        tracing::warn!(
            "the machine has more processes than the {} that are listed",
            list.processes.len()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What was typed is not for this `ps`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
enum TopError {
    /// An option that it does not have.
    #[error("'{0}' is no option of ps that can be had here")]
    Option(String),
    /// A field that it does not have.
    #[error("'{0}' is no field of ps that can be had here")]
    Field(String),
    /// `-o` at the end.
    #[error("-o names no field")]
    NoField,
}

impl Help for TopError {
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::Option(_) => "there are -e, -A, -f, -ef, ax, aux and -o FIELD,...".to_owned(),
            Self::Field(_) | Self::NoField => {
                let names: Vec<&str> = FIELDS.iter().map(|(name, _, _)| *name).collect();
                format!("there are {}", names.join(", "))
            }
        })
    }
}

/// What a column shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Pid,
    Parent,
    User,
    Uid,
    Gid,
    Name,
    Arguments,
    State,
    StateLetter,
    Time,
    ShortTime,
    Elapsed,
    Start,
    CpuWhole,
    Cpu,
    Memory,
    Resident,
    Virtual,
    Terminal,
    Nice,
    Priority,
    Threads,
}

/// Fields by their names, with what stands above them: ps(1), "Standard format specifiers".
const FIELDS: [(&str, Field, &str); 33] = [
    ("pid", Field::Pid, "PID"),
    ("ppid", Field::Parent, "PPID"),
    ("user", Field::User, "USER"),
    ("euser", Field::User, "EUSER"),
    ("uid", Field::Uid, "UID"),
    ("euid", Field::Uid, "EUID"),
    ("gid", Field::Gid, "GID"),
    ("egid", Field::Gid, "EGID"),
    ("comm", Field::Name, "COMMAND"),
    ("ucmd", Field::Name, "CMD"),
    ("args", Field::Arguments, "COMMAND"),
    ("command", Field::Arguments, "COMMAND"),
    ("cmd", Field::Arguments, "CMD"),
    ("stat", Field::State, "STAT"),
    ("s", Field::StateLetter, "S"),
    ("state", Field::StateLetter, "S"),
    ("time", Field::Time, "TIME"),
    ("cputime", Field::Time, "TIME"),
    ("etime", Field::Elapsed, "ELAPSED"),
    ("stime", Field::Start, "STIME"),
    ("c", Field::CpuWhole, "C"),
    ("pcpu", Field::Cpu, "%CPU"),
    ("%cpu", Field::Cpu, "%CPU"),
    ("pmem", Field::Memory, "%MEM"),
    ("%mem", Field::Memory, "%MEM"),
    ("rss", Field::Resident, "RSS"),
    ("vsz", Field::Virtual, "VSZ"),
    ("tty", Field::Terminal, "TT"),
    ("tname", Field::Terminal, "TTY"),
    ("nice", Field::Nice, "NI"),
    ("pri", Field::Priority, "PRI"),
    ("nlwp", Field::Threads, "NLWP"),
    ("thcount", Field::Threads, "THCNT"),
];

/// A column.
type Column = (Field, &'static str);

/// `-f`, docker's usual.
const FULL: [Column; 8] = [
    (Field::User, "UID"),
    (Field::Pid, "PID"),
    (Field::Parent, "PPID"),
    (Field::CpuWhole, "C"),
    (Field::Start, "STIME"),
    (Field::Terminal, "TTY"),
    (Field::Time, "TIME"),
    (Field::Arguments, "CMD"),
];
/// `u`.
const FOR_USERS: [Column; 11] = [
    (Field::User, "USER"),
    (Field::Pid, "PID"),
    (Field::Cpu, "%CPU"),
    (Field::Memory, "%MEM"),
    (Field::Virtual, "VSZ"),
    (Field::Resident, "RSS"),
    (Field::Terminal, "TTY"),
    (Field::State, "STAT"),
    (Field::Start, "START"),
    (Field::ShortTime, "TIME"),
    (Field::Arguments, "COMMAND"),
];
/// `-e` alone.
const SHORT: [Column; 4] = [
    (Field::Pid, "PID"),
    (Field::Terminal, "TTY"),
    (Field::Time, "TIME"),
    (Field::Name, "CMD"),
];
/// `ax` alone.
const SHORT_BSD: [Column; 5] = [
    (Field::Pid, "PID"),
    (Field::Terminal, "TTY"),
    (Field::State, "STAT"),
    (Field::ShortTime, "TIME"),
    (Field::Arguments, "COMMAND"),
];

/// The columns that options of `ps` ask for. All processes are meant, whatever they say of it.
fn columns(options: &[String]) -> Result<Vec<Column>, TopError> {
    if options.is_empty() {
        return Ok(FULL.to_vec());
    }
    let mut chosen = Vec::new();
    let mut usual: &[Column] = &[];
    let mut words = options.iter();
    while let Some(word) = words.next() {
        // People type it so, and ps(1) takes it so.
        let word = if word == "-aux" { "aux" } else { word };
        let refused = || TopError::Option(word.to_owned());
        let (letters, is_bsd) = match word.strip_prefix('-') {
            Some(letters) => (letters, false),
            None => (word, true),
        };
        if letters.is_empty() {
            return Err(refused());
        }
        for (at, letter) in letters.char_indices() {
            match (letter, is_bsd) {
                ('e' | 'A', false) if usual.is_empty() => usual = &SHORT,
                ('a' | 'x', true) if usual.is_empty() => usual = &SHORT_BSD,
                ('e' | 'A', false) | ('a' | 'x', true) => {}
                ('f', false) => usual = &FULL,
                ('u', true) => usual = &FOR_USERS,
                ('o', _) => {
                    let attached = letters.get(at + 1..).filter(|rest| !rest.is_empty());
                    let names = match attached {
                        Some(names) => names,
                        None => words.next().ok_or(TopError::NoField)?,
                    };
                    chosen.extend(fields(names)?);
                    break;
                }
                _ => return Err(refused()),
            }
        }
    }
    Ok(match chosen.is_empty() {
        true => usual.to_vec(),
        false => chosen,
    })
}

/// Fields with commas or spaces between them.
fn fields(names: &str) -> Result<Vec<Column>, TopError> {
    let names = names.split([',', ' ']).filter(|name| !name.is_empty());
    let columns: Vec<Column> = names
        .map(|name| {
            let known = FIELDS.iter().find(|(known, _, _)| *known == name);
            let known = known.map(|(_, field, header)| (*field, *header));
            known.ok_or_else(|| TopError::Field(name.to_owned()))
        })
        .collect::<Result<_, _>>()?;
    match columns.is_empty() {
        true => Err(TopError::NoField),
        false => Ok(columns),
    }
}

fn table(columns: &[Column], list: &ProcessList, now: Timestamp) -> Columns {
    let mut table = Columns::default();
    let header: Vec<String> = columns
        .iter()
        .map(|(_, header)| (*header).to_owned())
        .collect();
    table.row(&header);
    for process in &list.processes {
        let cells: Vec<String> = columns
            .iter()
            .map(|(field, _)| spell(*field, process, list.guest_memory_bytes, now))
            .collect();
        table.row(&cells);
    }
    table
}

fn spell(field: Field, process: &ProcessInfo, guest_memory_bytes: u64, now: Timestamp) -> String {
    match field {
        Field::Pid => process.pid.to_string(),
        Field::Parent => process.parent.to_string(),
        Field::User if process.uid == 0 => "root".to_owned(),
        Field::User | Field::Uid => process.uid.to_string(),
        Field::Gid => process.gid.to_string(),
        Field::Name => process.name.clone(),
        Field::Arguments => arguments(process),
        Field::State => state(process),
        Field::StateLetter => letter(process).to_string(),
        Field::Time => time(process.cpu_ms / 1000),
        Field::ShortTime => {
            let seconds = process.cpu_ms / 1000;
            format!("{}:{:02}", seconds / 60, seconds % 60)
        }
        Field::Elapsed => elapsed(process.age_ms / 1000),
        Field::Start => start(process.age_ms / 1000, now),
        Field::CpuWhole => (tenths(process.cpu_ms, process.age_ms) / 10).to_string(),
        Field::Cpu => percent(process.cpu_ms, process.age_ms),
        Field::Memory => percent(process.resident_bytes, guest_memory_bytes),
        Field::Resident => (process.resident_bytes / 1024).to_string(),
        Field::Virtual => (process.virtual_bytes / 1024).to_string(),
        Field::Terminal => terminal(process.terminal),
        Field::Nice => process.nice.to_string(),
        // As ps(1) has it: 19 for what the kernel calls 20, the usual.
        Field::Priority => 39_i64.saturating_sub(process.priority.into()).to_string(),
        Field::Threads => process.threads.to_string(),
    }
}

/// A process without arguments has its name in brackets.
fn arguments(process: &ProcessInfo) -> String {
    match (process.state, process.arguments.is_empty()) {
        (b'Z', _) => format!("[{}] <defunct>", process.name),
        (_, true) => format!("[{}]", process.name),
        (_, false) => process.arguments.clone(),
    }
}

fn letter(process: &ProcessInfo) -> char {
    let letter = char::from(process.state);
    match letter.is_ascii_alphabetic() {
        true => letter,
        false => '?',
    }
}

/// ps(1), "Process state codes".
fn state(process: &ProcessInfo) -> String {
    let marks = [
        (process.nice < 0, '<'),
        (process.nice > 0, 'N'),
        (process.locks_memory, 'L'),
        (process.leads_session, 's'),
        (process.threads > 1, 'l'),
        (process.is_foreground, '+'),
    ];
    let marks = marks.iter().filter(|(is_there, _)| *is_there);
    std::iter::once(letter(process))
        .chain(marks.map(|(_, mark)| *mark))
        .collect()
}

/// `[DD-]HH:MM:SS`
fn time(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let text = format!("{hours:02}:{:02}:{:02}", seconds / 60 % 60, seconds % 60);
    match days {
        0 => text,
        days => format!("{days}-{text}"),
    }
}

/// `[[DD-]HH:]MM:SS`
fn elapsed(seconds: u64) -> String {
    match seconds {
        0..3600 => format!("{:02}:{:02}", seconds / 60, seconds % 60),
        seconds => time(seconds),
    }
}

/// The time of the last day, or the day: `08:15`, `Nov22`, `2025`.
fn start(age_seconds: u64, now: Timestamp) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let moment = |seconds: u64| Moment::of_seconds(seconds).to_string();
    let (then, today) = (moment(now.0.saturating_sub(age_seconds)), moment(now.0));
    let part = |from: usize, to: usize| then.get(from..to).unwrap_or_default();
    let month = part(5, 7).parse::<usize>().ok();
    let month = month.and_then(|month| MONTHS.get(month.checked_sub(1)?));
    match month {
        _ if age_seconds < 86_400 => part(11, 16).to_owned(),
        Some(month) if today.starts_with(part(0, 4)) => format!("{month}{}", part(8, 10)),
        _ => part(0, 4).to_owned(),
    }
}

fn tenths(part: u64, whole: u64) -> u128 {
    u128::from(part) * 1000 / u128::from(whole.max(1))
}

fn percent(part: u64, whole: u64) -> String {
    let tenths = tenths(part, whole);
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// The name of a terminal by its device number: `Documentation/admin-guide/devices.txt`, numbers split as in proc(5).
fn terminal(number: u32) -> String {
    /// The first of eight majors of pseudo terminals, each with 256 minors.
    const PTS: u32 = 136;
    /// The first minor of serial ports.
    const SERIAL: u32 = 64;
    let major = number >> 8 & 0xFFF;
    let minor = number & 0xFF | number >> 12 & 0xF_FF00;
    match (major, minor) {
        (PTS..144, _) => format!("pts/{}", (major - PTS) * 256 + minor),
        (4, 0..SERIAL) => format!("tty{minor}"),
        (4, _) => format!("ttyS{}", minor - SERIAL),
        (5, 1) => "console".to_owned(),
        _ => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(options: &[&str]) -> Result<String, TopError> {
        let options: Vec<String> = options.iter().map(|it| (*it).to_owned()).collect();
        let columns = columns(&options)?;
        let headers: Vec<&str> = columns.iter().map(|(_, header)| *header).collect();
        Ok(headers.join(" "))
    }

    fn refused(options: &[&str]) -> String {
        headers(options).unwrap_err().to_string()
    }

    fn process() -> ProcessInfo {
        ProcessInfo {
            pid: 7,
            parent: 1,
            uid: 0,
            gid: 5,
            state: b'S',
            leads_session: true,
            is_foreground: true,
            terminal: 136 << 8 | 2,
            nice: 5,
            priority: 25,
            threads: 2,
            cpu_ms: 90_061_500,
            age_ms: 180_123_000,
            virtual_bytes: 8 << 20,
            resident_bytes: 1 << 20,
            name: "sh".to_owned(),
            arguments: "sh -c true".to_owned(),
            ..ProcessInfo::default()
        }
    }

    fn shown(names: &str) -> String {
        let now = Timestamp(1_700_000_000);
        let cells: Vec<String> = fields(names)
            .unwrap()
            .iter()
            .map(|(field, _)| spell(*field, &process(), 64 << 20, now))
            .collect();
        cells.join("|")
    }

    #[test]
    fn usual_forms_have_the_columns_of_ps() {
        let full = "UID PID PPID C STIME TTY TIME CMD";

        assert_eq!(headers(&[]), Ok(full.to_owned()));
        assert_eq!(headers(&["-ef"]), Ok(full.to_owned()));
        assert_eq!(headers(&["-e", "-f"]), Ok(full.to_owned()));
        assert_eq!(headers(&["-e"]), Ok("PID TTY TIME CMD".to_owned()));
        assert_eq!(headers(&["ax"]), Ok("PID TTY STAT TIME COMMAND".to_owned()));
        let for_users = "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND";
        assert_eq!(headers(&["aux"]), Ok(for_users.to_owned()));
        assert_eq!(headers(&["-aux"]), Ok(for_users.to_owned()));
    }

    #[test]
    fn fields_are_chosen_in_all_ways_that_people_type() {
        assert_eq!(headers(&["-o", "pid,args"]), Ok("PID COMMAND".to_owned()));
        assert_eq!(headers(&["-eo", "pid cmd"]), Ok("PID CMD".to_owned()));
        assert_eq!(headers(&["axo", "pid"]), Ok("PID".to_owned()));
        assert_eq!(
            headers(&["-opid", "-o", "thcount"]),
            Ok("PID THCNT".to_owned())
        );
    }

    #[test]
    fn what_this_ps_has_not_is_refused_by_name() {
        assert!(refused(&["--forest"]).starts_with("'--forest' is no option"));
        assert!(refused(&["-ef", "-L"]).starts_with("'-L' is no option"));
        assert!(refused(&["ef"]).starts_with("'ef' is no option"));
        assert!(refused(&["-"]).starts_with("'-' is no option"));
        assert!(refused(&["-o", "pid,wchan"]).starts_with("'wchan' is no field"));
        assert_eq!(refused(&["-e", "-o"]), "-o names no field");
        assert_eq!(refused(&["-o", ","]), "-o names no field");
    }

    #[test]
    fn fields_are_spelled_as_ps_spells_them() {
        assert_eq!(shown("pid,ppid,user,uid,gid"), "7|1|root|0|5");
        assert_eq!(shown("stat,s,tty,nice,pri,nlwp"), "SNsl+|S|pts/2|5|14|2");
        assert_eq!(shown("time,etime"), "1-01:01:01|2-02:02:03");
        assert_eq!(shown("c,pcpu,pmem,rss,vsz"), "50|50.0|1.5|1024|8192");
        assert_eq!(shown("comm,args"), "sh|sh -c true");
        assert_eq!(shown("stime"), "Nov12");
    }

    #[test]
    fn times_are_as_long_as_they_need_to_be() {
        let now = Timestamp(1_700_000_000);

        assert_eq!(
            (elapsed(59), elapsed(3600)),
            ("00:59".into(), "01:00:00".into())
        );
        assert_eq!(start(60, now), "22:12");
        assert_eq!(start(400 * 86_400, now), "2022");
    }

    #[test]
    fn a_process_without_arguments_has_its_name_in_brackets() {
        let bare = ProcessInfo {
            arguments: String::new(),
            ..process()
        };
        let zombie = ProcessInfo {
            state: b'Z',
            ..bare.clone()
        };

        assert_eq!(arguments(&bare), "[sh]");
        assert_eq!(arguments(&zombie), "[sh] <defunct>");
    }

    proptest! {
        #[test]
        fn no_options_and_no_numbers_make_it_panic(
            options in prop::collection::vec(".{0,10}", 0..3),
            number in any::<u32>(),
            (one, other) in (any::<u64>(), any::<u64>()),
        ) {
            let _ = columns(&options);
            let _ = (terminal(number), time(one), elapsed(one), percent(one, other));
            let _ = start(one, Timestamp(other));
        }
    }
}
