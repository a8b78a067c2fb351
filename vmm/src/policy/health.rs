//! How well a workload is: what it is asked, how often, and what is made of the answers. Docker's rules and numbers.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How many answers are kept.
const KEPT_PROBES: usize = 5;
/// How much of what a probe writes is kept.
pub const MAX_OUTPUT_BYTES: usize = 4096;
/// A test that is longer is none that anybody wrote.
const MAX_TEST_BYTES: usize = 64 << 10;
/// The shortest time between two probes that an image can ask for, in nanoseconds.
const LEAST_OF_IMAGE_NS: i64 = 1_000_000_000;
/// The shell of an image that names none.
const USUAL_SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// A health check as images have it, and as it is typed: docker's `Healthcheck`, an extension of the image's configuration. Times are
/// nanoseconds. What is 0, or empty, is not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthConfig {
    /// `NONE`; `CMD` with a program and its arguments; or `CMD-SHELL` with a text for the image's shell.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// From the end of a probe to the next one.
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// How long a probe may take.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// How long a workload may take until failures count.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// From the end of a probe to the next one within that time.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// How many failures one after the other make it unhealthy.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// A health check that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HealthError {
    /// It is too long.
    #[error("the health check is longer than {MAX_TEST_BYTES} bytes")]
    TooLong,
    /// Nobody knows what it means.
    #[error("'{0}' is no kind of health check")]
    Kind(String),
}

impl HealthConfig {
    /// Takes over from an image what is not said here. No image has a workload asked more often than once a second.
    #[must_use]
    pub fn or(self, image: Self) -> Self {
        let or = |own: i64, other: i64| if own == 0 { other } else { own };
        let floored = |interval: i64| match interval {
            1.. => interval.max(LEAST_OF_IMAGE_NS),
            _ => interval,
        };
        Self {
            test: match self.test.is_empty() {
                true => image.test,
                false => self.test,
            },
            interval: or(self.interval, floored(image.interval)),
            timeout: or(self.timeout, image.timeout),
            start_period: or(self.start_period, image.start_period),
            start_interval: or(self.start_interval, floored(image.start_interval)),
            retries: or(self.retries, image.retries),
        }
    }

    /// Decides what is to be done; none if nothing is. `shell` is the image's, if it names one.
    ///
    /// # Errors
    ///
    /// If it is no health check. An image may hold anything.
    pub fn decide(self, shell: &[String]) -> Result<Option<HealthCheck>, HealthError> {
        if is_too_long(&self.test) {
            return Err(HealthError::TooLong);
        }
        let arguments = match self.test.split_first() {
            None => return Ok(None),
            Some((kind, _)) if kind == "NONE" => return Ok(None),
            Some((kind, arguments)) if kind == "CMD" => arguments.to_vec(),
            Some((kind, text)) if kind == "CMD-SHELL" => {
                let usual = USUAL_SHELL.map(str::to_owned);
                let shell = if shell.is_empty() { &usual } else { shell };
                [shell, text].concat()
            }
            Some((kind, _)) => return Err(HealthError::Kind(kind.clone())),
        };
        // The image's shell is part of them.
        if is_too_long(&arguments) {
            return Err(HealthError::TooLong);
        }
        Ok((!arguments.is_empty()).then_some(HealthCheck {
            config: self,
            arguments,
        }))
    }
}

/// Whether words are longer than a health check can be, each with an end.
fn is_too_long(words: &[String]) -> bool {
    let length: usize = words.iter().map(|word| word.len() + 1).sum();
    length > MAX_TEST_BYTES
}

/// A health check that is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// As docker writes it down.
    pub config: HealthConfig,
    /// The program that is run, and its arguments.
    pub arguments: Vec<String>,
}

impl HealthCheck {
    const INTERVAL: Duration = Duration::from_secs(30);
    const TIMEOUT: Duration = Duration::from_secs(30);
    const START_INTERVAL: Duration = Duration::from_secs(5);
    const RETRIES: u32 = 3;
    /// The shortest time that is waited, docker's number.
    pub const LEAST: Duration = Duration::from_millis(1);

    /// How long a probe may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        time(self.config.timeout, Self::TIMEOUT).max(Self::LEAST)
    }

    fn interval(&self) -> Duration {
        time(self.config.interval, Self::INTERVAL).max(Self::LEAST)
    }

    fn start_interval(&self) -> Duration {
        time(self.config.start_interval, Self::START_INTERVAL).max(Self::LEAST)
    }

    fn start_period(&self) -> Duration {
        time(self.config.start_period, Duration::ZERO)
    }

    fn retries(&self) -> u32 {
        let named = u32::try_from(self.config.retries).unwrap_or(0);
        if named == 0 { Self::RETRIES } else { named }
    }
}

fn time(nanoseconds: i64, usual: Duration) -> Duration {
    match u64::try_from(nanoseconds) {
        Ok(0) | Err(_) => usual,
        Ok(nanoseconds) => Duration::from_nanos(nanoseconds),
    }
}

/// How well a workload is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// Nobody knows yet.
    #[default]
    Starting,
    /// Its last probe went well, or not as many have failed as it takes.
    Healthy,
    /// As many have failed, or it does not run any more.
    Unhealthy,
}

impl HealthStatus {
    /// Docker's word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// What came of asking once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Probe {
    /// When, as RFC 3339 has it.
    pub start: String,
    /// When it was over.
    pub end: String,
    /// The exit code; -1 if it had to be ended, or could not be started.
    pub exit_code: i32,
    /// The beginning of what it wrote, or why it could not be started.
    pub output: String,
}

/// What is known of a workload's health.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Health {
    /// How well it is.
    pub status: HealthStatus,
    /// How many probes have failed, one after the other.
    pub failing_streak: u32,
    /// The last probes, oldest first.
    pub log: VecDeque<Probe>,
}

impl Health {
    /// Takes in what came of asking. `since_start` is how long the workload had run when it was asked.
    pub fn note(&mut self, probe: Probe, check: &HealthCheck, since_start: Duration) {
        let is_early = self.status == HealthStatus::Starting && since_start < check.start_period();
        match probe.exit_code {
            0 => {
                self.status = HealthStatus::Healthy;
                self.failing_streak = 0;
            }
            _ if is_early => {}
            _ => {
                self.failing_streak = self.failing_streak.saturating_add(1);
                if self.failing_streak >= check.retries() {
                    self.status = HealthStatus::Unhealthy;
                }
            }
        }
        self.log.push_back(probe);
        while self.log.len() > KEPT_PROBES {
            self.log.pop_front();
        }
    }

    /// How long to wait before asking again. `since_start` is how long the workload has run.
    #[must_use]
    pub fn pause(&self, check: &HealthCheck, since_start: Duration) -> Duration {
        let is_early = self.status == HealthStatus::Starting && since_start < check.start_period();
        match is_early {
            true => check.start_interval(),
            false => check.interval(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LATER: Duration = Duration::from_secs(1000);

    fn config(test: &[&str]) -> HealthConfig {
        HealthConfig {
            test: test.iter().map(|&word| word.to_owned()).collect(),
            ..HealthConfig::default()
        }
    }

    fn check(retries: i64, start_period_seconds: i64) -> HealthCheck {
        let config = HealthConfig {
            retries,
            start_period: start_period_seconds * 1_000_000_000,
            ..config(&["CMD", "true"])
        };
        config.decide(&[]).unwrap().unwrap()
    }

    fn probe(exit_code: i32) -> Probe {
        Probe {
            start: String::new(),
            end: String::new(),
            exit_code,
            output: format!("{exit_code}"),
        }
    }

    /// What becomes of a workload's health with these answers.
    fn health(check: &HealthCheck, since_start: Duration, answers: &[i32]) -> Health {
        let mut health = Health::default();
        for answer in answers {
            health.note(probe(*answer), check, since_start);
        }
        health
    }

    fn arguments(test: &[&str], shell: &[&str]) -> Option<Vec<String>> {
        let shell: Vec<String> = shell.iter().map(|&word| word.to_owned()).collect();
        let check = config(test).decide(&shell).unwrap();
        check.map(|check| check.arguments)
    }

    #[test]
    fn a_text_is_for_the_images_shell_and_a_program_is_run_as_it_is() {
        let usual = arguments(&["CMD-SHELL", "a | b"], &[]).unwrap();
        let own = arguments(&["CMD-SHELL", "a | b"], &["/bin/ash", "-ec"]).unwrap();
        let program = arguments(&["CMD", "curl", "-f"], &[]).unwrap();

        assert_eq!(usual, ["/bin/sh", "-c", "a | b"]);
        assert_eq!(own, ["/bin/ash", "-ec", "a | b"]);
        assert_eq!(program, ["curl", "-f"]);
    }

    #[test]
    fn none_nothing_and_a_program_without_a_name_are_no_check() {
        assert_eq!(arguments(&["NONE"], &[]), None);
        assert_eq!(arguments(&[], &[]), None);
        assert_eq!(arguments(&["CMD"], &[]), None);
    }

    #[test]
    fn what_no_builder_writes_is_refused() {
        let unknown = config(&["EXEC", "true"]).decide(&[]);
        let long = config(&["CMD", &"x".repeat(MAX_TEST_BYTES)]).decide(&[]);

        assert_eq!(unknown, Err(HealthError::Kind("EXEC".into())));
        assert_eq!(long, Err(HealthError::TooLong));
    }

    #[test]
    fn a_shell_and_words_without_letters_count_in_the_length() {
        let half = "x".repeat(MAX_TEST_BYTES / 2);
        let shell = [half.clone()];

        let together = config(&["CMD-SHELL", &half]).decide(&shell);
        let program = config(&["CMD", &half]).decide(&shell);
        let many = config(&[&["CMD"][..], &[""; MAX_TEST_BYTES]].concat()).decide(&[]);

        assert_eq!(together, Err(HealthError::TooLong));
        assert!(program.is_ok());
        assert_eq!(many, Err(HealthError::TooLong));
    }

    #[test]
    fn what_is_not_typed_is_the_images() {
        let image = HealthConfig {
            interval: 5_000_000_000,
            retries: 7,
            ..config(&["CMD", "image"])
        };
        let typed = HealthConfig {
            retries: 2,
            ..HealthConfig::default()
        };

        let joined = typed.or(image.clone());

        assert_eq!(joined.test, image.test);
        assert_eq!((joined.interval, joined.retries), (5_000_000_000, 2));
    }

    #[test]
    fn an_image_has_a_workload_asked_once_a_second_at_most_and_a_person_as_often_as_typed() {
        let hasty = HealthConfig {
            interval: 1_000_000,
            start_interval: 1,
            ..config(&["CMD", "true"])
        };
        let unsaid = HealthConfig {
            interval: -1,
            ..HealthConfig::default()
        };

        let of_image = HealthConfig::default().or(hasty.clone());
        let typed = hasty.clone().or(HealthConfig::default());
        let unsaid = HealthConfig::default().or(unsaid);

        assert_eq!(of_image.interval, LEAST_OF_IMAGE_NS);
        assert_eq!(of_image.start_interval, LEAST_OF_IMAGE_NS);
        assert_eq!(typed, hasty);
        assert_eq!((unsaid.interval, unsaid.start_interval), (-1, 0));
    }

    #[test]
    fn as_many_failures_as_were_named_make_a_workload_unhealthy_and_one_success_healthy() {
        let check = check(2, 0);

        let after = |answers: &[i32]| {
            let health = health(&check, LATER, answers);
            (health.status, health.failing_streak)
        };

        assert_eq!(after(&[1]), (HealthStatus::Starting, 1));
        assert_eq!(after(&[1, -1]), (HealthStatus::Unhealthy, 2));
        assert_eq!(after(&[1, 1, 0]), (HealthStatus::Healthy, 0));
        assert_eq!(after(&[0, 1]), (HealthStatus::Healthy, 1));
        assert_eq!(after(&[0, 1, 0, 1]), (HealthStatus::Healthy, 1));
    }

    #[test]
    fn while_a_workload_starts_failures_do_not_count_and_it_is_asked_more_often() {
        let check = check(1, 60);
        let early = Duration::from_secs(59);

        let starting = health(&check, early, &[1, 1, 1]);
        let healthy = health(&check, early, &[1, 0]);
        let failing = health(&check, early, &[0, 1]);

        assert_eq!(starting.status, HealthStatus::Starting);
        assert_eq!(starting.failing_streak, 0);
        assert_eq!(starting.pause(&check, early), HealthCheck::START_INTERVAL);
        assert_eq!(starting.pause(&check, LATER), HealthCheck::INTERVAL);
        assert_eq!(healthy.pause(&check, early), HealthCheck::INTERVAL);
        assert_eq!(failing.status, HealthStatus::Unhealthy);
    }

    #[test]
    fn the_last_answers_are_kept() {
        let health = health(&check(1, 0), LATER, &[1, 2, 3, 4, 5, 6, 7]);

        let kept: Vec<i32> = health.log.iter().map(|probe| probe.exit_code).collect();

        assert_eq!(kept, [3, 4, 5, 6, 7]);
    }

    proptest! {
        #[test]
        fn whatever_an_image_says_times_are_bounded_below(interval in any::<i64>(), timeout in any::<i64>(), retries in any::<i64>()) {
            let config = HealthConfig { interval, timeout, retries, start_interval: interval, start_period: timeout, ..config(&["CMD", "x"]) };
            let check = config.decide(&[]).unwrap().unwrap();

            prop_assert!(check.timeout() >= HealthCheck::LEAST);
            prop_assert!(Health::default().pause(&check, Duration::ZERO) >= HealthCheck::LEAST);
            prop_assert!(check.retries() >= 1);
        }

        #[test]
        fn a_workload_is_unhealthy_after_enough_failures_and_healthy_after_a_success(answers in prop::collection::vec(-1..3i32, 1..30), retries in 1..5i64) {
            let health = health(&check(retries, 0), LATER, &answers);
            let failures = answers.iter().rev().take_while(|answer| **answer != 0).count();

            prop_assert_eq!(usize::try_from(health.failing_streak).unwrap(), failures);
            prop_assert!(failures > 0 || health.status == HealthStatus::Healthy);
            prop_assert!(failures < usize::try_from(retries).unwrap() || health.status == HealthStatus::Unhealthy);
            prop_assert!(health.log.len() <= KEPT_PROBES);
        }
    }
}
