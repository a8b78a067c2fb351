//! How far the bench is: a line that changes on a terminal, a line for each step elsewhere.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};

/// Says on standard error what is being measured.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(1);
            if let Ok(style) = ProgressStyle::with_template("{bar:20} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { bar }
    }

    /// A step of so many begins.
    pub(super) fn step(&self, number: u32, of: u32, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(of.into());
                bar.set_position(number.saturating_sub(1).into());
                bar.set_message(what.to_owned());
            }
            None => {
                // Nobody is left to tell if standard error is gone.
                let _ = writeln!(io::stderr(), "bench: {number}/{of} {what}");
            }
        }
    }

    /// So much of the step is done; only a terminal is told.
    pub(super) fn within(&self, what: &str, done: usize, of: usize) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{what}: {done}/{of}"));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
