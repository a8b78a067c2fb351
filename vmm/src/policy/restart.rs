//! Whether a machine is started again when its workload has ended, and how long that is waited with: docker's rules and numbers.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What `--restart` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// It stays as it ended.
    #[default]
    No,
    /// It is started again after a failure.
    OnFailure {
        /// How often at most; 0 is without end.
        max_retries: u32,
    },
    /// It is started again however it ended.
    Always,
    /// The same, but after a restart of the host not if a person had stopped it.
    UnlessStopped,
}

/// What is no policy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// There is none of this name.
    #[error("'{0}' is no restart policy")]
    Unknown(String),
    /// Only failures are counted.
    #[error("a number of restarts means nothing with the restart policy '{0}'")]
    NumberWithoutFailure(String),
    /// It is no number.
    #[error("'{0}' is no number of restarts")]
    Number(String),
}

impl RestartPolicy {
    /// Docker's word for it, without a number.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure { .. } => "on-failure",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
        }
    }

    /// How often the machine is started again at most; 0 where that is not said.
    #[must_use]
    pub fn max_retries(self) -> u32 {
        match self {
            Self::OnFailure { max_retries } => max_retries,
            Self::No | Self::Always | Self::UnlessStopped => 0,
        }
    }

    /// Whether it never starts a machine.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::No
    }

    /// Whether a machine is started again that was started so often by this already.
    #[must_use]
    pub fn goes_on(self, end: End, restarts: u32) -> bool {
        end.has_run && end.order.is_none() && self.wants(end.is_failure, restarts)
    }

    /// Whether a machine that had been started before is started after a restart of the host. `is_stopped` says that a person had
    /// ended it.
    #[must_use]
    pub fn goes_on_with_host(self, is_failure: bool, is_stopped: bool, restarts: u32) -> bool {
        let is_left = is_stopped && self != Self::Always;
        !is_left && self.wants(is_failure, restarts)
    }

    fn wants(self, is_failure: bool, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure { max_retries } => {
                is_failure && (max_retries == 0 || restarts < max_retries)
            }
            Self::Always | Self::UnlessStopped => true,
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.max_retries() {
            0 => formatter.write_str(self.name()),
            number => write!(formatter, "{}:{number}", self.name()),
        }
    }
}

impl FromStr for RestartPolicy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => (name, Some(number)),
            None => (text, None),
        };
        let policy = match name {
            "no" | "" => Self::No,
            "on-failure" => {
                let max_retries = number.map_or(Ok(0), str::parse);
                return match max_retries {
                    Ok(max_retries) => Ok(Self::OnFailure { max_retries }),
                    Err(_) => Err(PolicyError::Number(number.unwrap_or_default().to_owned())),
                };
            }
            "always" => Self::Always,
            "unless-stopped" => Self::UnlessStopped,
            _ => return Err(PolicyError::Unknown(text.to_owned())),
        };
        match number {
            None => Ok(policy),
            Some(_) => Err(PolicyError::NumberWithoutFailure(name.to_owned())),
        }
    }
}

/// Who ended a machine that did not end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A person, by a command.
    Person,
    /// A signal to the monitor, as the host sends it to all when it goes down.
    Host,
}

/// The end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Whether the workload's program ran. What cannot start now will not start later.
    pub has_run: bool,
    /// Whether its exit code is another than 0.
    pub is_failure: bool,
    /// Who wanted it.
    pub order: Option<Order>,
}

/// How long a restart is waited with: longer each time, for as long as runs are short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackOff(Option<Duration>);

impl BackOff {
    /// The first time.
    const LEAST: Duration = Duration::from_millis(100);
    /// The longest time.
    const MOST: Duration = Duration::from_secs(60);
    /// How long a run takes that is not short.
    const LONG_RUN: Duration = Duration::from_secs(10);

    /// Says how long to wait after a run that took so long.
    pub fn next(&mut self, run: Duration) -> Duration {
        let last = self.0.filter(|_| run < Self::LONG_RUN);
        let next = last.map_or(Self::LEAST, |last| last.saturating_mul(2).min(Self::MOST));
        self.0 = Some(next);
        next
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXIT: End = End {
        has_run: true,
        is_failure: false,
        order: None,
    };
    const FAILURE: End = End {
        is_failure: true,
        ..EXIT
    };
    const POLICIES: [RestartPolicy; 5] = [
        RestartPolicy::No,
        RestartPolicy::OnFailure { max_retries: 0 },
        RestartPolicy::OnFailure { max_retries: 3 },
        RestartPolicy::Always,
        RestartPolicy::UnlessStopped,
    ];

    fn refused(text: &str) -> PolicyError {
        text.parse::<RestartPolicy>().unwrap_err()
    }

    #[test]
    fn each_policy_is_read_as_it_is_written() {
        let written = POLICIES.map(|policy| policy.to_string());

        let read: Vec<RestartPolicy> = written.iter().map(|it| it.parse().unwrap()).collect();

        assert_eq!(read, POLICIES);
        assert_eq!(written[2], "on-failure:3");
        assert_eq!("".parse(), Ok(RestartPolicy::No));
        assert_eq!("on-failure:0".parse(), Ok(POLICIES[1]));
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        assert_eq!(refused("often"), PolicyError::Unknown("often".into()));
        assert_eq!(refused("on-failure:-1"), PolicyError::Number("-1".into()));
        assert_eq!(
            refused("always:3"),
            PolicyError::NumberWithoutFailure("always".into())
        );
    }

    #[test]
    fn an_end_without_failure_is_one_to_those_that_ask_for_failures() {
        let again = POLICIES.map(|policy| policy.goes_on(EXIT, 0));

        assert_eq!(again, [false, false, false, true, true]);
    }

    #[test]
    fn failures_are_counted_where_a_number_was_named() {
        let after = |restarts| POLICIES.map(|policy| policy.goes_on(FAILURE, restarts));

        assert_eq!(after(2), [false, true, true, true, true]);
        assert_eq!(after(3), [false, true, false, true, true]);
    }

    #[test]
    fn what_somebody_ended_or_what_never_ran_stays() {
        let by_a_person = End {
            order: Some(Order::Person),
            ..FAILURE
        };
        let by_the_host = End {
            order: Some(Order::Host),
            ..FAILURE
        };
        let not_started = End {
            has_run: false,
            ..FAILURE
        };

        for end in [by_a_person, by_the_host, not_started] {
            assert_eq!(POLICIES.map(|policy| policy.goes_on(end, 0)), [false; 5]);
        }
    }

    #[test]
    fn after_a_restart_of_the_host_a_machine_that_was_stopped_comes_back_only_if_always() {
        let stopped = POLICIES.map(|policy| policy.goes_on_with_host(true, true, 0));
        let taken = POLICIES.map(|policy| policy.goes_on_with_host(true, false, 0));

        assert_eq!(stopped, [false, false, false, true, false]);
        assert_eq!(taken, [false, true, true, true, true]);
    }

    #[test]
    fn waiting_begins_with_a_moment_and_ends_at_a_minute() {
        let mut back_off = BackOff::default();

        let waits: Vec<u128> = (0..12)
            .map(|_| back_off.next(Duration::ZERO).as_millis())
            .collect();

        assert_eq!(
            waits,
            [
                100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000
            ]
        );
    }

    #[test]
    fn after_a_long_run_waiting_begins_anew() {
        let mut back_off = BackOff::default();
        back_off.next(Duration::ZERO);
        back_off.next(Duration::ZERO);

        assert_eq!(back_off.next(Duration::from_secs(10)), BackOff::LEAST);
    }

    proptest! {
        #[test]
        fn waiting_is_never_shorter_than_before_but_after_a_long_run(runs in prop::collection::vec(0..20_000u64, 1..40)) {
            let mut back_off = BackOff::default();
            let mut last = Duration::ZERO;
            for run in runs.into_iter().map(Duration::from_millis) {
                let next = back_off.next(run);
                prop_assert!((BackOff::LEAST..=BackOff::MOST).contains(&next));
                prop_assert!(next >= last || run >= BackOff::LONG_RUN);
                last = next;
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,30}") {
            let _ = text.parse::<RestartPolicy>();
        }
    }
}
