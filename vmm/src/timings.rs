//! Where the time of a run went, step by step.

use std::fmt::Write;
use std::time::{Duration, Instant};

use serde::Serialize;

/// The steps of a run, each from the end of the one before it.
#[derive(Debug)]
pub struct Timings {
    last: Instant,
    steps: Vec<Step>,
}

/// A step that is over.
#[derive(Debug, Clone, Copy, Serialize)]
struct Step {
    step: &'static str,
    microseconds: u128,
    /// How much of it the guest's agent took, by its own clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_microseconds: Option<u128>,
}

impl Timings {
    /// Starts the clock.
    #[must_use]
    pub fn start() -> Self {
        Self {
            last: Instant::now(),
            steps: Vec::new(),
        }
    }

    /// Notes that a step is over.
    pub fn end_of(&mut self, step: &'static str) {
        let now = Instant::now();
        let microseconds = now.duration_since(self.last).as_micros();
        self.steps.push(Step {
            step,
            microseconds,
            agent_microseconds: None,
        });
        self.last = now;
    }

    /// Notes how much of the last step the guest's agent took.
    pub fn spent_inside(&mut self, duration: Duration) {
        if let Some(step) = self.steps.last_mut() {
            step.agent_microseconds = Some(duration.as_micros());
        }
    }

    /// A line for each step, with the agent's part of it below, and the sum of the steps.
    #[must_use]
    pub fn as_text(&self) -> String {
        let mut text = String::new();
        for step in &self.steps {
            line(&mut text, step.step, step.microseconds);
            if let Some(inside) = step.agent_microseconds {
                line(&mut text, "  agent", inside);
            }
        }
        line(&mut text, "total", self.total());
        text
    }

    /// `{"steps":[{"step":…,"microseconds":…},…],"total_microseconds":…}`
    #[must_use]
    pub fn as_json(&self) -> String {
        serde_json::json!({ "steps": self.steps, "total_microseconds": self.total() }).to_string()
    }

    fn total(&self) -> u128 {
        self.steps.iter().map(|step| step.microseconds).sum()
    }
}

fn line(text: &mut String, name: &str, microseconds: u128) {
    let duration = Duration::from_micros(u64::try_from(microseconds).unwrap_or(u64::MAX));
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{name:<10} {:>12.3} ms",
        duration.as_secs_f64() * 1000.0
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_the_sum_of_the_steps() {
        let mut timings = Timings::start();
        timings.end_of("image");
        timings.end_of("boot");
        let json: serde_json::Value = serde_json::from_str(&timings.as_json()).unwrap();
        let steps = json["steps"].as_array().unwrap();
        let sum: u64 = steps
            .iter()
            .map(|step| step["microseconds"].as_u64().unwrap())
            .sum();
        assert_eq!(json["total_microseconds"].as_u64(), Some(sum));
        assert_eq!(timings.as_text().lines().count(), 3);
    }
}
