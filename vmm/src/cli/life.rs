//! What is typed about the life of machines: how it is recorded, watched and ended.

use std::path::PathBuf;

use clap::Args;

use crate::logs::{LogDriver, LogOption};
use crate::moment::{Moment, nanoseconds_of_duration};
use crate::policy::{HealthConfig, RestartPolicy};
use crate::state::{MachineName, Signal};

/// What `vmm run` is told about the machine's life.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Machine")]
pub struct LifeArgs {
    /// Write KEY with a value on the machine, for `vmm ps --filter` and `vmm inspect`
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = parse_label)]
    pub label: Vec<(String, String)>,
    /// Take labels from FILE, one KEY[=VALUE] a line; lines with # are comments
    #[arg(long, value_name = "FILE")]
    pub label_file: Vec<PathBuf>,
    /// Write the machine's id to FILE, which must not exist
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Write the id of the process to FILE whose end is the machine's
    #[arg(long, value_name = "FILE")]
    pub pidfile: Option<PathBuf>,
    /// When to start the machine again: no, on-failure[:NUMBER], always or unless-stopped, see `vmm system restore`, too
    #[arg(
        long,
        value_name = "POLICY",
        default_value_t,
        conflicts_with = "restore"
    )]
    pub restart: RestartPolicy,
    /// What asks the command to end [default: the image's, or TERM]
    #[arg(long, value_name = "SIGNAL", conflicts_with = "restore")]
    pub stop_signal: Option<Signal>,
    /// How the command is asked how it is.
    #[command(flatten)]
    pub health: HealthArgs,
    /// How long `vmm stop` waits before it kills the machine; -1 for ever [default: 10]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = parse_seconds)]
    pub stop_timeout: Option<i64>,
    /// With -d, where output goes: json-file, for `vmm logs`, or none
    #[arg(long, value_name = "DRIVER", default_value = "json-file")]
    pub log_driver: LogDriver,
    /// With json-file: max-size=SIZE of a file, in units of k, m or g, and max-file=NUMBER [default: 10m and 3]
    #[arg(long, value_name = "NAME=VALUE")]
    pub log_opt: Vec<LogOption>,
}

/// How a workload is asked how it is.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Health")]
pub struct HealthArgs {
    /// Run COMMAND in the container's shell now and then: the machine is healthy if it exits with 0
    #[arg(long, value_name = "COMMAND", conflicts_with = "restore")]
    pub health_cmd: Option<String>,
    /// How long to wait between two of them, as in 1m30s [default: the image's, or 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "restore")]
    pub health_interval: Option<i64>,
    /// How long one may take [default: the image's, or 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "restore")]
    pub health_timeout: Option<i64>,
    /// How many are to fail, one after the other, until the machine is unhealthy [default: the image's, or 3]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(0..), conflicts_with = "restore")]
    pub health_retries: Option<i64>,
    /// How long the machine may take until failures count [default: the image's, or 0s]
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "restore")]
    pub health_start_period: Option<i64>,
    /// How long to wait between two within that time [default: the image's, or 5s]
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "restore")]
    pub health_start_interval: Option<i64>,
    /// Do not ask, whatever the image says
    #[arg(long, conflicts_with_all = ["restore", "health_cmd", "health_interval", "health_timeout", "health_retries", "health_start_period", "health_start_interval"])]
    pub no_healthcheck: bool,
}

impl HealthArgs {
    /// What was typed.
    #[must_use]
    pub fn config(&self) -> HealthConfig {
        let shell = |text: &String| vec!["CMD-SHELL".to_owned(), text.clone()];
        HealthConfig {
            test: self.health_cmd.as_ref().map(shell).unwrap_or_default(),
            interval: self.health_interval.unwrap_or_default(),
            timeout: self.health_timeout.unwrap_or_default(),
            start_period: self.health_start_period.unwrap_or_default(),
            start_interval: self.health_start_interval.unwrap_or_default(),
            retries: self.health_retries.unwrap_or_default(),
        }
    }
}

/// Takes a time, as nanoseconds: none at all, or at least docker's millisecond.
fn parse_time(text: &str) -> Result<i64, TimeError> {
    const LEAST_NS: i64 = 1_000_000;
    match nanoseconds_of_duration(text) {
        Some(nanoseconds) if nanoseconds == 0 || nanoseconds >= LEAST_NS => Ok(nanoseconds),
        Some(_) => Err(TimeError::Short(text.to_owned())),
        None => Err(TimeError::NoTime(text.to_owned())),
    }
}

/// A time that makes no sense.
#[derive(Debug, Clone, thiserror::Error)]
enum TimeError {
    /// It is none.
    #[error("'{0}' is no time as in 1m30s")]
    NoTime(String),
    /// It is shorter than anything that is waited for.
    #[error("'{0}' is shorter than a millisecond")]
    Short(String),
}

/// Takes `KEY=VALUE` or `KEY`.
pub(super) fn parse_label(text: &str) -> Result<(String, String), LabelError> {
    label_of(text).ok_or_else(|| LabelError(text.to_owned()))
}

/// Parses `KEY=VALUE` or `KEY`; nothing if the key is empty.
pub(crate) fn label_of(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (!key.is_empty()).then(|| (key.to_owned(), value.to_owned()))
}

/// Takes a number of seconds; one below zero is for ever.
pub(super) fn parse_seconds(text: &str) -> Result<i64, SecondsError> {
    text.parse().map_err(|_| SecondsError(text.to_owned()))
}

/// A time that is no number.
#[derive(Debug, Clone, thiserror::Error)]
#[error("'{0}' is no number of seconds")]
pub(super) struct SecondsError(String);

/// `--label` without a key.
#[derive(Debug, Clone, thiserror::Error)]
#[error("'{0}' is no label as in KEY=VALUE")]
pub(super) struct LabelError(String);

/// Arguments of `vmm ps`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Filters: name=TEXT, contained in the name; id=TEXT, its beginning;
  status=created, restarting, running, paused, exited or dead; exited=CODE; label=KEY or label=KEY=VALUE;
  health=starting, healthy, unhealthy or none; ancestor=IMAGE; volume=NAME, or a path here or there;
  before=MACHINE and since=MACHINE.
  Of several of one kind one is to match, but of labels all.

Templates: {{.ID}} {{.Image}} {{.Command}} {{.CreatedAt}} {{.RunningFor}} {{.Status}} {{.State}}
  {{.Names}} {{.Labels}} {{.Label \"KEY\"}} {{json .}}

Examples:
  vmm ps
  vmm ps -a --json
  vmm ps -a --filter status=exited --filter label=team=blue
  vmm ps --format 'table {{.Names}}\\t{{.Status}}'
  vmm kill $(vmm ps -q)")]
pub struct PsArgs {
    /// List machines that have ended, too
    #[arg(short, long)]
    pub all: bool,
    /// Print only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not shorten ids and commands
    #[arg(long)]
    pub no_trunc: bool,
    /// List the NUMBER of machines that were created last, ended or not; -1 for all
    #[arg(
        short = 'n',
        long,
        value_name = "NUMBER",
        allow_negative_numbers = true
    )]
    pub last: Option<i64>,
    /// List the machine that was created last, ended or not
    #[arg(short, long, conflicts_with = "last")]
    pub latest: bool,
    /// List only machines of this kind, see below
    #[arg(short, long, value_name = "KIND=VALUE")]
    pub filter: Vec<String>,
    /// How to print the list: table, json for an object a line, a template, or a table of one, see below
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Print a JSON array
    #[arg(long, conflicts_with_all = ["format", "quiet"])]
    pub json: bool,
}

/// Arguments of `vmm logs`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Times are RFC 3339 or the beginning of it, in UTC unless it names a zone; seconds since 1970; or how long ago, as in 1m30s.

Examples:
  vmm logs web
  vmm logs -f --tail 10 web
  vmm logs --since 1h --timestamps web")]
pub struct LogsArgs {
    /// Go on with what the workload writes, until the machine ends
    #[arg(short, long)]
    pub follow: bool,
    /// Show nothing before TIME
    #[arg(long, value_name = "TIME")]
    pub since: Option<Moment>,
    /// Show nothing after TIME
    #[arg(long, value_name = "TIME")]
    pub until: Option<Moment>,
    /// Show only the last NUMBER of lines
    #[arg(
        short = 'n',
        long,
        value_name = "NUMBER|all",
        default_value = "all",
        allow_negative_numbers = true
    )]
    pub tail: Tail,
    /// Begin each line with its time
    #[arg(short, long)]
    pub timestamps: bool,
    /// Name, id or beginning of an id
    #[arg(value_name = "MACHINE")]
    pub machine: String,
}

/// Arguments of `vmm events`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Of each machine: create, start, pause, unpause, kill, oom, die, stop, restart, rename, update, attach,
detach, exec_create, exec_start, exec_die, health_status, top, export, commit, destroy. Without --since and --until only what happens
from now on is shown, until ^C. Some ten thousand events are kept.

Filters: container=NAME|ID event=ACTION image=IMAGE label=KEY[=VALUE] type=container scope=local; several
of one kind are alternatives.

Templates: {{.Time}} {{.TimeNano}} {{.Type}} {{.Action}} {{.Status}} {{.ID}} {{.From}} {{.Scope}}
  {{.Actor.ID}} {{.Actor.Attributes.name}} {{.Actor.Attributes.exitCode}} {{json .}}

TIME is a moment as in 2026-11-20T12:34:56Z or 2026-11-20, seconds since 1970, or how long ago it was,
as in 1m30s.

Examples:
  vmm events
  vmm events --since 1h --filter event=die --format '{{.Actor.Attributes.name}} {{.Actor.Attributes.exitCode}}'
  vmm events --since 2026-11-20 --until 2026-11-21 --format json")]
pub struct EventsArgs {
    /// Show only events of this kind, see below
    #[arg(short, long, value_name = "KIND=VALUE")]
    pub filter: Vec<String>,
    /// Show what happened since TIME, too
    #[arg(long, value_name = "TIME")]
    pub since: Option<Moment>,
    /// Show nothing after TIME, and end then
    #[arg(long, value_name = "TIME")]
    pub until: Option<Moment>,
    /// How to print it: json for an object a line, or a template, see below
    #[arg(long, value_name = "FORMAT", conflicts_with = "json")]
    pub format: Option<String>,
    /// Print an object a line
    #[arg(long)]
    pub json: bool,
}

/// How many lines from the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail(pub Option<u64>);

impl std::str::FromStr for Tail {
    type Err = TailError;

    /// A number below zero is all, as with docker.
    fn from_str(text: &str) -> Result<Self, TailError> {
        match (text, text.parse::<i64>()) {
            ("all", _) => Ok(Self(None)),
            (_, Ok(number)) => Ok(Self(u64::try_from(number).ok())),
            _ => Err(TailError(text.to_owned())),
        }
    }
}

/// `--tail` of something else.
#[derive(Debug, Clone, thiserror::Error)]
#[error("'{0}' is no number of lines, and not all")]
pub struct TailError(String);

/// Arguments of `vmm stop`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  vmm stop web
  vmm stop -t 2 web shop
  vmm stop -s INT web")]
pub struct StopArgs {
    /// The signal that asks the workload to end, by name or number [default: what it was run with]
    #[arg(short, long, value_name = "SIGNAL")]
    pub signal: Option<Signal>,
    /// Kill the machine after so many seconds; -1 waits for ever [default: what it was run with, or 10]
    #[arg(
        short,
        long,
        visible_alias = "time",
        value_name = "SECONDS",
        allow_negative_numbers = true,
        value_parser = parse_seconds
    )]
    pub timeout: Option<i64>,
    /// Names, ids or beginnings of ids
    #[arg(value_name = "MACHINE", required = true)]
    pub machines: Vec<String>,
}

/// Arguments of `vmm rename`.
#[derive(Debug, Clone, Args)]
pub struct RenameArgs {
    /// Name, id or beginning of an id
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// The new name
    #[arg(value_name = "NAME")]
    pub name: MachineName,
}

/// Arguments of `vmm inspect`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Templates: {{.Field}} {{.Field.Field}} {{json .Field}} {{index .Field \"KEY\"}} {{index .Field NUMBER}}, with text around them.

Examples:
  vmm inspect web
  vmm inspect -f '{{.State.Status}}' web
  vmm inspect -f '{{json .State}}' web")]
pub struct InspectArgs {
    /// Print this of each machine instead of a JSON array: a template, see below, or json
    #[arg(short, long, value_name = "TEMPLATE")]
    pub format: Option<String>,
    /// Names, ids or beginnings of ids
    #[arg(value_name = "MACHINE", required = true)]
    pub machines: Vec<String>,
}
