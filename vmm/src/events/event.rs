//! One event, in docker's words: the Engine API's `EventMessage`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::moment::Moment;

/// The longest line. Labels, which may be longer, are left out of an event then.
pub(super) const MAX_LINE_BYTES: usize = 64 << 10;

/// Something that happened to a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub time: Moment,
    /// What: `create`, `start`, `die`, `exec_start: sh -c date`…
    pub action: String,
    /// The machine's id.
    pub id: String,
    /// Its name and image, and what belongs to the action, such as an exit code.
    pub attributes: BTreeMap<String, String>,
    /// What a person wrote on it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Event {
    /// The line that stands for it, with its end; none if it is too long even without labels.
    pub(super) fn line(&self) -> Option<Vec<u8>> {
        let whole = spell(self)?;
        if whole.len() <= MAX_LINE_BYTES {
            return Some(whole);
        }
        let bare = Self {
            labels: BTreeMap::new(),
            ..self.clone()
        };
        spell(&bare).filter(|line| line.len() <= MAX_LINE_BYTES)
    }

    /// Reads a line without its end; none if it was damaged.
    pub(super) fn of_line(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// What docker calls the attributes of the actor: labels are among them, and what is known of the machine stands above them.
    #[must_use]
    pub fn all_attributes(&self) -> BTreeMap<&str, &str> {
        let all = self.labels.iter().chain(&self.attributes);
        all.map(|(key, value)| (key.as_str(), value.as_str()))
            .collect()
    }
}

/// A line begins with one, too, so that what a full disk cut off does not spoil the next.
fn spell(event: &Event) -> Option<Vec<u8>> {
    let mut line = vec![b'\n'];
    serde_json::to_writer(&mut line, event).ok()?;
    line.push(b'\n');
    Some(line)
}
