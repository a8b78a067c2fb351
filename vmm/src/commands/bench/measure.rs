//! What is measured, in which order, and what is left out for want of time or memory.

use std::path::Path;
use std::time::{Duration, Instant};

use super::Stop;
use super::engines::{Engine, Kind};
use super::findings::{Gap, Idle, LoopFigure, Starts, Version};
use super::host::{Host, available_bytes};
use super::interrupt::Interrupt;
use super::place::{Place, Program, SHELL, Task};
use super::processes::pss_bytes;
use super::programs::{self, Loop};
use super::progress::Progress;
use super::runs::{Crew, Sample, kill_descendants, reap};
use super::statistics::{Spread, median};
use crate::cli::BenchFigure;

/// How long instances are left alone before their memory is measured.
const SETTLE: Duration = Duration::from_secs(1);
/// Instances of the second figure of memory, which shows what they share.
const MANY_INSTANCES: u32 = 10;
/// A loop takes at least this long, so that what a line of output costs does not count.
const LOOP_GOAL: Duration = Duration::from_millis(200);
/// Runs of a loop, the middle one of which counts.
const LOOP_RUNS: usize = 3;
/// How much smaller than the native loop the others begin: a guest may be a hundred times slower.
const LOOP_CAUTION: u64 = 16;
/// The share of the memory that could be had which instances may take, as a divisor and a multiplier.
const MEMORY_SHARE: (u64, u64) = (5, 4);

/// What the user wants.
#[derive(Debug)]
pub(super) struct Wishes<'a> {
    pub(super) engines: Vec<Kind>,
    pub(super) figures: Vec<BenchFigure>,
    pub(super) command: &'a [String],
    pub(super) runs: u32,
    pub(super) concurrency: &'a [u32],
    pub(super) time_limit: Duration,
}

/// The figures, and what is missing.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) command: Vec<String>,
    pub(super) engines: Vec<Version>,
    pub(super) starts: Vec<Starts>,
    pub(super) idle: Vec<Idle>,
    pub(super) loops: Vec<LoopFigure>,
    pub(super) gaps: Vec<Gap>,
}

/// An engine that has run the measured program once.
#[derive(Debug)]
struct Contender<'a> {
    engine: Engine<'a>,
    /// What that run took.
    trial: Duration,
    /// What an instance takes while it idles, once that is known.
    idle_bytes: Option<u64>,
}

/// The programs that are run.
struct Tasks {
    start: Task,
    /// Absent without a shell, as are the loops.
    idle: Option<Task>,
}

/// A bench at work.
struct Bench<'a> {
    place: &'a Place,
    machines: &'a Path,
    host: &'a Host,
    wishes: &'a Wishes<'a>,
    interrupt: Interrupt,
    progress: &'a Progress,
    deadline: Instant,
    /// Steps that have begun, and all of them.
    steps: (u32, u32),
    figures: Figures,
}

/// Measures everything that can be.
///
/// # Errors
///
/// If it was interrupted, or there is nothing to run.
pub(super) fn measure(
    place: &Place,
    machines: &Path,
    host: &Host,
    wishes: &Wishes<'_>,
    interrupt: Interrupt,
    progress: &Progress,
) -> Result<Figures, Stop> {
    let mut bench = Bench {
        place,
        machines,
        host,
        wishes,
        interrupt,
        progress,
        deadline: Instant::now() + wishes.time_limit,
        steps: (0, 0),
        figures: Figures::default(),
    };
    bench.run()?;
    Ok(bench.figures)
}

impl<'a> Bench<'a> {
    fn run(&mut self) -> Result<(), Stop> {
        let tasks = self.tasks()?;
        self.figures.command.clone_from(&tasks.start.arguments);
        let mut contenders = self.contenders(&tasks)?;
        if contenders.is_empty() {
            return Ok(());
        }
        let concurrency = self.concurrency();
        let idle_instances = self.idle_instances(tasks.idle.is_some());
        let has_loops = tasks.idle.is_some() && self.is_wanted(BenchFigure::Loops);
        let loops = if has_loops { Loop::ALL.len() } else { 0 };
        let figures = concurrency.len() + idle_instances.len() + loops;
        let steps = figures * contenders.len() + loops;
        self.steps = (0, u32::try_from(steps).unwrap_or(u32::MAX));

        // What one start costs comes first: it says what many would.
        let (first, others) = concurrency.split_at(concurrency.len().min(1));
        self.all_starts(&mut contenders, &tasks.start, first)?;
        if let Some(idle) = &tasks.idle {
            for instances in idle_instances {
                for contender in &mut contenders {
                    self.idle(contender, idle, instances)?;
                }
            }
        }
        if has_loops {
            self.loops(&mut contenders)?;
        }
        self.all_starts(&mut contenders, &tasks.start, others)
    }

    fn is_wanted(&self, figure: BenchFigure) -> bool {
        self.wishes.figures.contains(&figure)
    }

    fn concurrency(&self) -> &'a [u32] {
        match self.is_wanted(BenchFigure::Start) {
            true => self.wishes.concurrency,
            false => &[],
        }
    }

    fn all_starts(
        &mut self,
        contenders: &mut [Contender<'_>],
        task: &Task,
        concurrency: &[u32],
    ) -> Result<(), Stop> {
        for concurrency in concurrency {
            for contender in &mut *contenders {
                self.starts(contender, task, *concurrency)?;
            }
        }
        Ok(())
    }

    /// Decides what is run in the image.
    fn tasks(&mut self) -> Result<Tasks, Stop> {
        let has_shell = self.place.has(SHELL);
        let start = match (self.wishes.command, has_shell) {
            ([], true) => programs::start(),
            (words, _) => Program::typed(words),
        };
        let start = self.place.task("start", start)?;
        if !has_shell {
            let why = format!("the image has no {SHELL}");
            if self.is_wanted(BenchFigure::Idle) {
                self.gap("idle memory", why.clone());
            }
            if self.is_wanted(BenchFigure::Loops) {
                self.gap("loops", why);
            }
            return Ok(Tasks { start, idle: None });
        }
        let idle = Some(self.place.task("idle", programs::idle())?);
        Ok(Tasks { start, idle })
    }

    /// Finds the engines and lets each run the program once.
    fn contenders(&mut self, tasks: &Tasks) -> Result<Vec<Contender<'a>>, Stop> {
        let mut contenders = Vec::new();
        for (kind, number) in self.wishes.engines.iter().zip(1..) {
            let of = u32::try_from(self.wishes.engines.len()).unwrap_or(u32::MAX);
            self.progress.step(number, of, &format!("{kind}: looking"));
            let tried = self.contender(*kind, tasks);
            if let Some(contender) = self.noted(kind.to_string(), tried)? {
                self.figures.engines.push(Version {
                    engine: kind.name(),
                    version: contender.engine.version.clone(),
                });
                contenders.push(contender);
            }
        }
        Ok(contenders)
    }

    fn contender(&self, kind: Kind, tasks: &Tasks) -> Result<Contender<'a>, Stop> {
        let mut engine = Engine::prepare(kind, self.place, self.machines, self.interrupt)?;
        let command = engine.command(&tasks.start);
        let finished = Crew::run(self.interrupt, command)?;
        Ok(Contender {
            engine,
            trial: finished.sample.exit,
            idle_bytes: None,
        })
    }

    fn idle_instances(&self, has_shell: bool) -> Vec<u32> {
        let has_many = |concurrency: &u32| *concurrency >= MANY_INSTANCES;
        match has_shell && self.is_wanted(BenchFigure::Idle) {
            true if self.wishes.concurrency.iter().any(has_many) => vec![1, MANY_INSTANCES],
            true => vec![1],
            false => Vec::new(),
        }
    }

    /// Begins a step, and says until when it may go on by itself: all that are left share the time that is left.
    fn begin(&mut self, what: &str) -> Instant {
        let (begun, all) = self.steps;
        self.steps.0 = begun + 1;
        self.progress.step(begun + 1, all, what);
        let now = Instant::now();
        now + self.deadline.saturating_duration_since(now) / all.saturating_sub(begun).max(1)
    }

    /// Says why so many instances at once are not to be started, if they are not.
    fn refusal(&self, contender: &Contender<'_>, instances: u32) -> Option<String> {
        let at_once = self.host.processors.min(instances).max(1);
        let estimate = contender.trial.saturating_mul(instances) / at_once;
        let left = self.deadline.saturating_duration_since(Instant::now());
        if estimate > left {
            return Some(format!(
                "by its first start it would take {} s, and {} s of --time-limit are left",
                estimate.as_secs().max(1),
                left.as_secs()
            ));
        }
        let (divisor, multiplier) = MEMORY_SHARE;
        let room = available_bytes() / divisor * multiplier;
        match contender.idle_bytes {
            Some(bytes) if bytes.saturating_mul(instances.into()) > room => Some(format!(
                "{instances} instances of {} MiB do not fit into the host's memory",
                bytes >> 20
            )),
            _ => None,
        }
    }

    fn starts(
        &mut self,
        contender: &mut Contender<'_>,
        task: &Task,
        concurrency: u32,
    ) -> Result<(), Stop> {
        let kind = contender.engine.kind;
        let what = format!("{kind}: starts, {concurrency} at once");
        let until = self.begin(&what);
        if let Some(why) = self.refusal(contender, concurrency) {
            self.gap(what, why);
            return Ok(());
        }
        let sampled = self.sample(&mut contender.engine, task, concurrency, until, &what);
        let Some(samples) = self.noted(what.clone(), sampled)? else {
            return Ok(());
        };
        let wanted = self.wishes.runs.max(concurrency);
        let runs = samples.len();
        if runs < usize::try_from(wanted).unwrap_or(usize::MAX) {
            let why = "its share of --time-limit was over";
            self.gap(what, format!("{runs} of {wanted} starts: {why}"));
        }
        let first_bytes: Option<Vec<Duration>> =
            samples.iter().map(|sample| sample.first_byte).collect();
        self.figures.starts.push(Starts {
            engine: kind.name(),
            concurrency,
            runs,
            first_byte: first_bytes.map(Spread::of),
            exit: Spread::of(samples.iter().map(|sample| sample.exit)),
        });
        Ok(())
    }

    /// Keeps `concurrency` starts under way until there are enough, or until `until`.
    fn sample(
        &self,
        engine: &mut Engine<'_>,
        task: &Task,
        concurrency: u32,
        until: Instant,
        what: &str,
    ) -> Result<Vec<Sample>, Stop> {
        let wanted = self.wishes.runs.max(concurrency);
        let mut crew = Crew::new(self.interrupt);
        let mut begun = 0;
        let mut samples = Vec::new();
        loop {
            while u32::try_from(crew.len()).is_ok_and(|running| running < concurrency)
                && begun < wanted
                && (begun < concurrency || Instant::now() < until)
            {
                crew.start(engine.command(task), false)?;
                begun += 1;
            }
            if crew.len() == 0 {
                reap();
                return Ok(samples);
            }
            for finished in crew.watch()? {
                samples.push(finished.succeeded()?.sample);
                let of = usize::try_from(wanted).unwrap_or(usize::MAX);
                self.progress.within(what, samples.len(), of);
            }
        }
    }

    fn idle(
        &mut self,
        contender: &mut Contender<'_>,
        task: &Task,
        instances: u32,
    ) -> Result<(), Stop> {
        let kind = contender.engine.kind;
        let what = format!("{kind}: idle memory of {instances}");
        self.begin(&what);
        if let Some(why) = self.refusal(contender, instances) {
            self.gap(what, why);
            return Ok(());
        }
        let measured = self.weigh(&mut contender.engine, task, instances);
        if let Some(pss_bytes) = self.noted(what, measured)? {
            let pss_bytes_per_instance = pss_bytes / u64::from(instances);
            contender.idle_bytes.get_or_insert(pss_bytes_per_instance);
            self.figures.idle.push(Idle {
                engine: kind.name(),
                instances,
                pss_bytes,
                pss_bytes_per_instance,
            });
        }
        Ok(())
    }

    /// Starts instances that wait for input, and adds up what their processes take.
    fn weigh(&self, engine: &mut Engine<'_>, task: &Task, instances: u32) -> Result<u64, Stop> {
        let because = |why: &str| Stop::Because(why.to_owned());
        let mut crew = Crew::new(self.interrupt);
        for _ in 0..instances {
            crew.start(engine.command(task), true)?;
        }
        let all = crew.len();
        let mut settled = None;
        while settled.is_none_or(|at| Instant::now() < at) {
            if let Some(finished) = crew.watch()?.pop() {
                finished.succeeded()?;
                return Err(because("an instance ended before it was to"));
            }
            if settled.is_none() && crew.speaking() == all {
                settled = Some(Instant::now() + SETTLE);
            }
        }
        let mut sum = 0;
        for id in engine.processes(instances)? {
            sum += pss_bytes(id).map_err(|error| {
                Stop::Because(format!("/proc/{id}/smaps_rollup cannot be read: {error}"))
            })?;
        }
        crew.close_inputs();
        while crew.len() > 0 {
            for finished in crew.watch()? {
                finished.succeeded()?;
            }
        }
        reap();
        Ok(sum)
    }

    fn loops(&mut self, contenders: &mut [Contender<'_>]) -> Result<(), Stop> {
        let prepared = Engine::prepare(Kind::Native, self.place, self.machines, self.interrupt);
        let mut native = self.noted("native loops, and so all ratios".to_owned(), prepared)?;
        for kind in Loop::ALL {
            let mut reference = None;
            let mut iterations = kind.first_iterations();
            if let Some(engine) = &mut native {
                let trial = Duration::ZERO;
                if let Some(figure) = self.timed(engine, trial, kind, iterations, None)? {
                    reference = Some(figure.nanoseconds_per_iteration);
                    iterations = (figure.iterations / LOOP_CAUTION).max(1);
                }
            }
            for contender in &mut *contenders {
                let trial = contender.trial;
                self.timed(&mut contender.engine, trial, kind, iterations, reference)?;
            }
        }
        Ok(())
    }

    /// Measures one loop in one engine, if time allows.
    fn timed(
        &mut self,
        engine: &mut Engine<'_>,
        trial: Duration,
        kind: Loop,
        iterations: u64,
        reference: Option<f64>,
    ) -> Result<Option<LoopFigure>, Stop> {
        let what = format!("{}: {} loop", engine.kind, kind.name());
        let until = self.begin(&what);
        if Instant::now() + trial > self.deadline {
            self.gap(what, "--time-limit was over");
            return Ok(None);
        }
        let measured = self.repeat_loop(engine, kind, iterations, until);
        let Some((iterations, times)) = self.noted(what, measured)? else {
            return Ok(None);
        };
        let Some(time) = median(&times) else {
            return Ok(None);
        };
        let mut all_nanoseconds: Vec<f64> = times
            .iter()
            .map(|time| per_iteration(*time, iterations))
            .collect();
        all_nanoseconds.sort_by(f64::total_cmp);
        let nanoseconds_per_iteration = per_iteration(time, iterations);
        let figure = LoopFigure {
            engine: engine.kind.name(),
            r#loop: kind.name(),
            iterations,
            runs: times.len(),
            all_nanoseconds,
            nanoseconds_per_iteration,
            ratio_to_native: reference.map(|native| nanoseconds_per_iteration / native),
        };
        self.figures.loops.push(figure.clone());
        Ok(Some(figure))
    }

    /// Finds the number of iterations that takes long enough, and times it a few times.
    fn repeat_loop(
        &self,
        engine: &mut Engine<'_>,
        kind: Loop,
        mut iterations: u64,
        until: Instant,
    ) -> Result<(u64, Vec<Duration>), Stop> {
        let first = loop {
            let time = self.time_loop(engine, kind, iterations)?;
            if time >= LOOP_GOAL {
                break time;
            }
            iterations = iterations.saturating_mul(growth(time));
        };
        let mut times = vec![first];
        while times.len() < LOOP_RUNS && Instant::now() < until {
            times.push(self.time_loop(engine, kind, iterations)?);
        }
        Ok((iterations, times))
    }

    /// The time from the first line of a loop to its last.
    fn time_loop(
        &self,
        engine: &mut Engine<'_>,
        kind: Loop,
        iterations: u64,
    ) -> Result<Duration, Stop> {
        let task = self.place.task("loop", kind.program(iterations))?;
        let sample = Crew::run(self.interrupt, engine.command(&task))?.sample;
        reap();
        match (sample.first_byte, sample.last_byte) {
            (Some(first), Some(last)) => Ok(last.saturating_sub(first)),
            _ => Err(Stop::Because("the loop printed nothing".to_owned())),
        }
    }

    fn gap(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.figures.gaps.push(Gap {
            what: what.into(),
            why: why.into(),
        });
    }

    /// Keeps why something could not be measured, and goes on; an interruption ends everything.
    fn noted<T>(&mut self, what: String, result: Result<T, Stop>) -> Result<Option<T>, Stop> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Stop::Because(why)) => {
                // What it left must not count towards the next figure.
                kill_descendants();
                self.gap(what, why);
                Ok(None)
            }
            Err(interrupted) => Err(interrupted),
        }
    }
}

/// How many times more iterations to try when so many took this long.
fn growth(time: Duration) -> u64 {
    let wanted = LOOP_GOAL.as_micros() * 5 / 4;
    let times = wanted.div_ceil(time.as_micros().max(1));
    u64::try_from(times).unwrap_or(u64::MAX).clamp(2, 64)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "iterations stay far below 2^52: each takes longer than a nanosecond"
)]
fn per_iteration(time: Duration, iterations: u64) -> f64 {
    time.as_secs_f64() * 1e9 / iterations.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_is_too_short_grows_past_its_goal() {
        assert_eq!(growth(Duration::from_millis(50)), 5);
        assert_eq!(growth(Duration::from_millis(199)), 2);
        assert_eq!(growth(Duration::ZERO), 64);
    }

    #[test]
    fn an_iteration_takes_its_part_of_the_time() {
        let time = per_iteration(Duration::from_micros(10), 4);
        assert!((time - 2500.0).abs() < 1e-6);
    }
}
