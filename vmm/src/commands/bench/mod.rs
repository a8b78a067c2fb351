//! `vmm bench`: what running an image costs on this host, with `vmm` and with every other engine that is found.
//!
//! Everything is measured from outside, by spawning the commands that a user types. [`measure`] says what and in which
//! order; [`runs`] has the clocks; [`place`] is the directory that holds everything and takes it away again. What could
//! not be measured becomes a line of the report with its reason.

mod engines;
mod findings;
mod host;
mod html;
mod interrupt;
mod measure;
mod mounts;
mod place;
mod processes;
mod programs;
mod progress;
mod runs;
mod statistics;
mod text;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::process::set_child_subreaper;

use self::engines::Kind;
use self::findings::{Findings, METHODS};
use self::host::Host;
use self::interrupt::Interrupt;
use self::measure::{Figures, Wishes, measure};
use self::place::Place;
use self::progress::Progress;
use super::output::print_json;
use super::partial::PartialFile;
use super::run::open_image;
use crate::cli::{BenchArgs, BenchEngine, BenchFigure};
use crate::dirs::Directories;
use crate::image::Store;
use crate::outcome::ExitCode;
use crate::report::{Help, Report};

/// Version of the JSON's format.
const FORMAT: u32 = 1;

/// Why something was not measured to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stop {
    /// A signal ends the bench.
    Interrupted(u8),
    /// This one cannot be measured, for this reason.
    Because(String),
}

/// Measures and reports. `root` is the typed `--root`.
pub(super) fn run(
    arguments: &BenchArgs,
    directories: &Directories,
    root: Option<&Path>,
) -> Result<ExitCode, Report> {
    mounts::enter_own();
    let (image, words) = arguments.image_and_command();
    let (image, name) = open_image(&image, &arguments.limits, directories)?;
    let image_id = image.id.to_string();

    let interrupt = Interrupt::watch().map_err(BenchError::Watch)?;
    // What the engines leave behind is then ours to find and to end.
    set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| BenchError::Watch(error.into()))?;
    // Whether the page can be written shows before anything is measured.
    let page = arguments.html.as_deref().map(begin_page).transpose()?;
    let host = Host::look(directories);
    let global = root
        .map(|root| [OsString::from("--root"), root.into()])
        .into_iter()
        .flatten()
        .collect();
    let concurrency = concurrency(&arguments.concurrency);
    let wishes = Wishes {
        engines: engines(&arguments.engines),
        figures: figures(&arguments.figures),
        command: words,
        runs: arguments.runs,
        concurrency: &concurrency,
        time_limit: arguments.time_limit,
    };
    let store = Store::open(directories.store())?;
    let (began, clock) = (SystemTime::now(), Instant::now());
    let figures = {
        let progress = Progress::new();
        let place = Place::new(store, image, global, interrupt)?;
        let machines = directories.machines();
        measure(&place, machines, &host, &wishes, interrupt, &progress)?
    };
    let has_engines = !figures.engines.is_empty();

    let findings = assemble(figures, host, name, image_id, began, clock);
    if let (Some(page), Some(path)) = (page, &arguments.html) {
        finish_page(page, path, &html::page(&findings))?;
    }
    if arguments.json {
        print_json(&findings)?;
    } else {
        text::print(&findings)?;
    }
    match has_engines {
        true => Ok(ExitCode::SUCCESS),
        false => Err(BenchError::Nothing.into()),
    }
}

/// Those that were typed, or all, in an order that does not depend on the typing.
fn engines(typed: &[BenchEngine]) -> Vec<Kind> {
    let all = [
        BenchEngine::Vmm,
        BenchEngine::Crun,
        BenchEngine::Runc,
        BenchEngine::Podman,
        BenchEngine::Docker,
    ];
    let wanted = all
        .into_iter()
        .filter(|engine| typed.is_empty() || typed.contains(engine));
    wanted.flat_map(Kind::of).copied().collect()
}

/// Those that were typed, or all.
fn figures(typed: &[BenchFigure]) -> Vec<BenchFigure> {
    match typed {
        [] => vec![BenchFigure::Start, BenchFigure::Idle, BenchFigure::Loops],
        typed => typed.to_vec(),
    }
}

/// From few to many, each once: what many cost is estimated by what few did.
fn concurrency(typed: &[u32]) -> Vec<u32> {
    let mut sorted = typed.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted
}

fn assemble(
    figures: Figures,
    host: Host,
    image: String,
    image_id: String,
    began: SystemTime,
    clock: Instant,
) -> Findings {
    let began = began.duration_since(UNIX_EPOCH).unwrap_or_default();
    Findings {
        format: FORMAT,
        began: began.as_secs(),
        took_seconds: clock.elapsed().as_secs(),
        image,
        image_id,
        command: figures.command,
        host,
        engines: figures.engines,
        starts: figures.starts,
        idle: figures.idle,
        loops: figures.loops,
        not_measured: figures.gaps,
        methods: METHODS.to_vec(),
    }
}

fn begin_page(path: &Path) -> Result<PartialFile, BenchError> {
    let created = match path.is_dir() {
        true => Err(io::ErrorKind::IsADirectory.into()),
        false => PartialFile::create(path),
    };
    created.map_err(|source| BenchError::Page {
        path: path.to_owned(),
        source,
    })
}

fn finish_page(mut page: PartialFile, path: &Path, text: &str) -> Result<(), BenchError> {
    let written = page.file.write_all(text.as_bytes());
    written
        .and_then(|()| page.finish(path))
        .map_err(|source| BenchError::Page {
            path: path.to_owned(),
            source,
        })
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    /// Signals or orphans cannot be noticed.
    #[error("cannot watch signals and processes")]
    Watch(#[source] io::Error),
    /// A signal came.
    #[error("the bench was interrupted by signal {0}; what it started has ended")]
    Interrupted(u8),
    /// It cannot begin.
    #[error("the bench cannot begin: {0}")]
    Begin(String),
    /// No engine could start the image.
    #[error("no engine could start the image; the report has the reasons")]
    Nothing,
    /// The page cannot be written.
    #[error("cannot write {path}", path = path.display())]
    Page {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Help for BenchError {}

impl From<Stop> for Report {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Interrupted(signal) => Self::new(BenchError::Interrupted(signal))
                .with_exit_code(ExitCode::of_signal(signal)),
            Stop::Because(reason) => Self::new(BenchError::Begin(reason)),
        }
    }
}
