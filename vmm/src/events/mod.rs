//! What happened to machines, in one journal for all of them: whoever changes a machine appends a line, whoever wants to know reads
//! and follows, and nobody is asked.
//!
//! ```text
//! monitors, commands ── Journal::append ── machines/.events/journal, journal.1 ── EventReader, in `vmm events`
//! ```
//!
//! Each line is one event as JSON, written by one write(2) to a file that is open for appending, so that lines of several writers never
//! mix. The journal is not synced: it tells what happened, and the records say what is.

mod event;
mod journal;
mod reader;

pub use self::event::Event;
pub use self::journal::Journal;
pub use self::reader::EventReader;

#[cfg(test)]
mod tests;
