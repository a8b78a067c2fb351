//! The progress of an import, on a terminal only.

use std::cell::RefCell;
use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use crate::image::{Progress, Step};

/// Shows a bar on standard error while an import works; silent where standard error is no terminal.
///
/// It draws on the importing thread and makes none of its own: the process may fork afterwards.
#[derive(Debug)]
pub(super) struct ImportProgress {
    is_shown: bool,
    bar: RefCell<Option<ProgressBar>>,
}

impl ImportProgress {
    /// Shows nothing until a step begins.
    pub(super) fn new() -> Self {
        Self {
            is_shown: std::io::stderr().is_terminal(),
            bar: RefCell::new(None),
        }
    }
}

impl Progress for ImportProgress {
    fn begin(&self, step: &Step, total_bytes: Option<u64>) {
        if !self.is_shown {
            return;
        }
        let message = match step {
            Step::Spool => "reading".to_owned(),
            Step::Layer { number, of } => format!("layer {number}/{of}"),
            Step::Store => "storing".to_owned(),
        };
        let (bar, template) = match total_bytes {
            Some(total) => (
                ProgressBar::new(total),
                "{msg:12} {bar:30} {bytes:>10} of {total_bytes} {bytes_per_sec}",
            ),
            None => (ProgressBar::no_length(), "{msg:12} {bytes:>10}"),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(message);
        if let Some(before) = self.bar.replace(Some(bar)) {
            before.finish_and_clear();
        }
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = self.bar.borrow().as_ref() {
            bar.inc(bytes);
        }
    }
}

impl Drop for ImportProgress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get_mut() {
            bar.finish_and_clear();
        }
    }
}
