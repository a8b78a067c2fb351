//! Seccomp profiles and the programs that they are compiled to: runtime-spec `config-linux.md`, "Seccomp", and the kernel's
//! `Documentation/userspace-api/seccomp_filter.rst`.
//!
//! The guest's kernel executes system calls of x86-64 and no others, so a program has one table; profiles may name other
//! architectures, of which there is then nothing to decide. [`compile`] makes the program; [`default`] is docker's profile.

mod calls;
mod compile;
pub(super) mod default;

use serde::Deserialize;
use thiserror::Error;

use self::compile::{Condition, Operator, Rule, Table};

/// A profile that cannot be compiled.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{field}: {message}")]
pub struct SeccompError {
    /// The path of the field.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// `linux.seccomp`, or a profile as docker reads it from a file: that has conditions on when its rules count.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<serde::de::IgnoredAny>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    syscalls: Option<Vec<Syscall>>,
}

/// An element of `syscalls`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Syscall {
    #[serde(default)]
    names: Vec<String>,
    /// Docker's older form.
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

/// An element of `syscalls[].args`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// Docker's conditions on a rule.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    caps: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// The version of the guest's kernel, for profiles that ask for it.
const KERNEL: (u32, u32) = (6, 1);

/// The architecture of the guest, as docker's profiles call it.
const ARCHITECTURE: &str = "amd64";

/// Names that a profile may give its calls' architectures: those of libseccomp 2.6, without the prefix.
const ARCHITECTURES: [&str; 23] = [
    "X86",
    "X86_64",
    "X32",
    "ARM",
    "AARCH64",
    "MIPS",
    "MIPS64",
    "MIPS64N32",
    "MIPSEL",
    "MIPSEL64",
    "MIPSEL64N32",
    "PPC",
    "PPC64",
    "PPC64LE",
    "S390",
    "S390X",
    "PARISC",
    "PARISC64",
    "RISCV64",
    "LOONGARCH64",
    "M68K",
    "SH",
    "SHEB",
];

/// `SECCOMP_FILTER_FLAG_*` of include/uapi/linux/seccomp.h.
const FLAGS: [(&str, u32); 3] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", 1),
    ("SECCOMP_FILTER_FLAG_LOG", 2),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", 4),
];

/// Results of a filter: `SECCOMP_RET_*` of include/uapi/linux/seccomp.h.
mod result {
    pub(super) const KILL_PROCESS: u32 = 0x8000_0000;
    pub(super) const KILL_THREAD: u32 = 0;
    pub(super) const TRAP: u32 = 0x0003_0000;
    pub(super) const ERRNO: u32 = 0x0005_0000;
    pub(super) const TRACE: u32 = 0x7FF0_0000;
    pub(super) const LOG: u32 = 0x7FFC_0000;
    pub(super) const ALLOW: u32 = 0x7FFF_0000;
    /// The kernel takes no larger error from a filter: `MAX_ERRNO`, include/linux/err.h.
    pub(super) const MAX_ERRNO: u32 = 4095;
}

/// `EPERM`, what a call fails with for which a profile names no error, and `ENOSYS`.
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

fn error(field: impl Into<String>, message: impl Into<String>) -> SeccompError {
    SeccompError {
        field: field.into(),
        message: message.into(),
    }
}

impl Profile {
    /// Compiles the profile for a process with these capabilities (`CAP_…`).
    ///
    /// # Errors
    ///
    /// If it asks for what neither the specification nor the guest's kernel has, or comes to more than the kernel takes.
    pub(super) fn compile(&self, capabilities: &[&str]) -> Result<protocol::Seccomp, SeccompError> {
        for (index, name) in self.architectures.iter().flatten().enumerate() {
            let is_known = name
                .strip_prefix("SCMP_ARCH_")
                .is_some_and(|name| ARCHITECTURES.contains(&name));
            if !is_known {
                let message = format!("{name} is unknown");
                return Err(error(format!("architectures[{index}]"), message));
            }
        }
        if self.architectures.is_some() && self.arch_map.is_some() {
            return Err(error("archMap", "architectures are given as well"));
        }
        let default = action(&self.default_action, self.default_errno_ret, "default")?;
        let mut table = Table::new(default);
        for (index, syscall) in self.syscalls.iter().flatten().enumerate() {
            syscall.add_to(&mut table, capabilities, &format!("syscalls[{index}]"))?;
        }
        // As runc has it: a call that is newer than the profile fails as on an older kernel, and programs have another way.
        if matches!(default, result::ALLOW | result::LOG) {
            table.beyond = default;
        }
        Ok(protocol::Seccomp {
            filter: compile::compile(&table)?,
            flags: self.flags()?,
        })
    }

    fn flags(&self) -> Result<u32, SeccompError> {
        let mut flags = 0;
        for (index, name) in self.flags.iter().flatten().enumerate() {
            let known = FLAGS.iter().find(|(known, _)| known == name);
            let Some((_, flag)) = known else {
                let message = match name.as_str() {
                    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => {
                        "it is about SCMP_ACT_NOTIFY, which is not supported".to_owned()
                    }
                    _ => format!("{name} is unknown"),
                };
                return Err(error(format!("flags[{index}]"), message));
            };
            flags |= flag;
        }
        Ok(flags)
    }
}

impl Syscall {
    fn add_to(
        &self,
        table: &mut Table,
        capabilities: &[&str],
        field: &str,
    ) -> Result<(), SeccompError> {
        let is_wanted = self
            .includes
            .as_ref()
            .is_none_or(|filter| filter.includes(capabilities))
            && !self
                .excludes
                .as_ref()
                .is_some_and(|filter| filter.excludes(capabilities));
        let action = action(&self.action, self.errno_ret, &format!("{field}."))?;
        if self.names.is_empty() && self.name.is_none() {
            return Err(error(format!("{field}.names"), "there is no system call"));
        }
        let arguments = self.args.as_deref().unwrap_or_default();
        let conditions = arguments
            .iter()
            .enumerate()
            .map(|(index, argument)| argument.condition(&format!("{field}.args[{index}]")))
            .collect::<Result<Vec<_>, _>>()?;
        if !is_wanted {
            return Ok(());
        }
        // As runc and crun have it: two conditions on one argument are alternatives.
        let repeats = conditions.iter().enumerate().any(|(at, one)| {
            conditions
                .iter()
                .take(at)
                .any(|other| other.index == one.index)
        });
        let alternatives = match repeats {
            true => conditions.into_iter().map(|one| vec![one]).collect(),
            false => vec![conditions],
        };
        // What the guest's kernel does not have needs no rule: other processors' calls, newer ones, misspelt ones.
        let numbers = self.names.iter().chain(&self.name).filter_map(|name| {
            let number = calls::number(name);
            if number.is_none() {
                tracing::debug!(name, "the guest has no such system call");
            }
            number
        });
        if arguments.is_empty() {
            table.decide(numbers, action);
            return Ok(());
        }
        for number in numbers {
            for conditions in &alternatives {
                table.add(
                    number,
                    Rule {
                        conditions: conditions.clone(),
                        action,
                    },
                );
            }
        }
        Ok(())
    }
}

impl Filter {
    /// Whether all that is named holds.
    fn includes(&self, capabilities: &[&str]) -> bool {
        self.arches
            .as_ref()
            .is_none_or(|arches| arches.is_empty() || arches.iter().any(|one| one == ARCHITECTURE))
            && self
                .caps
                .iter()
                .flatten()
                .all(|capability| capabilities.contains(&capability.as_str()))
            && self.min_kernel.as_deref().is_none_or(has_kernel)
    }

    /// Whether something that is named holds.
    fn excludes(&self, capabilities: &[&str]) -> bool {
        self.arches.iter().flatten().any(|one| one == ARCHITECTURE)
            || self
                .caps
                .iter()
                .flatten()
                .any(|capability| capabilities.contains(&capability.as_str()))
            || self.min_kernel.as_deref().is_some_and(has_kernel)
    }
}

/// Whether the guest's kernel is of this version, or newer.
fn has_kernel(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    let wanted: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    KERNEL >= wanted
}

impl Argument {
    fn condition(&self, field: &str) -> Result<Condition, SeccompError> {
        let operator = match self.op.as_str() {
            "SCMP_CMP_NE" => Operator::NotEqual,
            "SCMP_CMP_LT" => Operator::Less,
            "SCMP_CMP_LE" => Operator::LessOrEqual,
            "SCMP_CMP_EQ" => Operator::Equal,
            "SCMP_CMP_GE" => Operator::GreaterOrEqual,
            "SCMP_CMP_GT" => Operator::Greater,
            "SCMP_CMP_MASKED_EQ" => Operator::MaskedEqual,
            other => return Err(error(format!("{field}.op"), format!("{other} is unknown"))),
        };
        let index = u8::try_from(self.index).ok().filter(|index| *index < 6);
        let index = index.ok_or_else(|| {
            let message = format!("a system call has no argument {}", self.index);
            error(format!("{field}.index"), message)
        })?;
        Ok(Condition {
            index,
            operator,
            value: self.value,
            value_two: self.value_two,
        })
    }
}

/// The result of a filter for an action. `field` is what the names of both fields begin with.
fn action(name: &str, errno: Option<u32>, field: &str) -> Result<u32, SeccompError> {
    let (action_field, errno_field) = match field {
        "default" => ("defaultAction".to_owned(), "defaultErrnoRet".to_owned()),
        prefix => (format!("{prefix}action"), format!("{prefix}errnoRet")),
    };
    let with_errno = match name {
        "SCMP_ACT_ERRNO" => Some(result::ERRNO),
        "SCMP_ACT_TRACE" => Some(result::TRACE),
        _ => None,
    };
    if let Some(base) = with_errno {
        let errno = errno.unwrap_or(EPERM);
        if errno > result::MAX_ERRNO {
            return Err(error(errno_field, format!("{errno} is no error")));
        }
        return Ok(base | errno);
    }
    let result = match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => result::KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => result::KILL_PROCESS,
        "SCMP_ACT_TRAP" => result::TRAP,
        "SCMP_ACT_LOG" => result::LOG,
        "SCMP_ACT_ALLOW" => result::ALLOW,
        "SCMP_ACT_NOTIFY" => {
            let message = "SCMP_ACT_NOTIFY is not supported: nobody in the guest would be notified";
            return Err(error(action_field, message));
        }
        other => return Err(error(action_field, format!("{other} is unknown"))),
    };
    match errno {
        // Zero is what profiles of docker and podman have for "none".
        None | Some(0) => Ok(result),
        Some(_) => Err(error(errno_field, format!("{name} has no error"))),
    }
}

#[cfg(test)]
mod tests {
    use super::compile::run;
    use super::*;

    fn profile(json: &str) -> Result<protocol::Seccomp, SeccompError> {
        serde_json::from_str::<Profile>(json)
            .unwrap()
            .compile(&["CAP_SYS_ADMIN"])
    }

    fn refused(json: &str) -> String {
        profile(json).unwrap_err().field
    }

    /// What a profile of one rule says of `personality` with an argument.
    fn said(args: &str, argument: u64) -> u32 {
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["personality"],"action":"SCMP_ACT_TRAP","args":{args}}}]}}"#
        );
        let program = profile(&json).unwrap().filter;
        run(&program, libc::SYS_personality, [argument, 0, 0, 0, 0, 0])
    }

    fn traps(operator: &str, value: u64, value_two: u64, argument: u64) -> bool {
        let args = format!(
            r#"[{{"index":0,"value":{value},"valueTwo":{value_two},"op":"SCMP_CMP_{operator}"}}]"#
        );
        said(&args, argument) == result::TRAP
    }

    /// A value of which both halves count.
    const LARGE: u64 = 0x0000_0005_0000_0007;

    #[test]
    fn every_operator_compares_all_64_bits() {
        let above = LARGE + (1 << 32);
        let below = LARGE - (1 << 32);
        let near = [LARGE - 1, LARGE, LARGE + 1, below, above];
        let of = |operator| near.map(|argument| traps(operator, LARGE, 0, argument));

        assert_eq!(of("EQ"), [false, true, false, false, false]);
        assert_eq!(of("NE"), [true, false, true, true, true]);
        assert_eq!(of("LT"), [true, false, false, true, false]);
        assert_eq!(of("LE"), [true, true, false, true, false]);
        assert_eq!(of("GT"), [false, false, true, false, true]);
        assert_eq!(of("GE"), [false, true, true, false, true]);
    }

    #[test]
    fn a_mask_takes_what_is_to_be_compared() {
        let mask = 0x0000_00F0_0000_00F0;

        assert!(traps("MASKED_EQ", mask, 0x10_0000_0020, 0xFF1F_0000_FF2F));
        assert!(!traps("MASKED_EQ", mask, 0x10_0000_0020, 0xFF1F_0000_FF3F));
        assert!(!traps("MASKED_EQ", mask, 0x10_0000_0020, 0xFF2F_0000_FF2F));
    }

    #[test]
    fn conditions_on_one_argument_are_alternatives() {
        let args = r#"[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]"#;

        assert_eq!(
            [said(args, 1), said(args, 2), said(args, 3)],
            [result::TRAP, result::TRAP, result::ALLOW]
        );
    }

    #[test]
    fn each_call_gets_its_own_answer() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5,"syscalls":[
            {"names":["read","write","close"],"action":"SCMP_ACT_ALLOW"},
            {"names":["open","set_mempolicy_home_node"],"action":"SCMP_ACT_KILL_PROCESS"},
            {"names":["stat"],"action":"SCMP_ACT_ERRNO","errnoRet":7}]}"#;
        let program = profile(json).unwrap().filter;

        let answers = [
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_open,
            libc::SYS_close,
            libc::SYS_stat,
            libc::SYS_fstat,
            450,
            451,
        ]
        .map(|call| run(&program, call, [0; 6]));

        assert_eq!(
            answers,
            [
                result::ALLOW,
                result::ALLOW,
                result::KILL_PROCESS,
                result::ALLOW,
                result::ERRNO | 7,
                result::ERRNO | 5,
                result::KILL_PROCESS,
                result::ERRNO | ENOSYS
            ]
        );
    }

    #[test]
    fn a_profile_that_allows_allows_newer_calls_too() {
        let program = profile(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#)
            .unwrap()
            .filter;

        assert_eq!(run(&program, 5000, [0; 6]), result::ALLOW);
    }

    #[test]
    fn dockers_conditions_decide_whether_a_rule_counts() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["bpf"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_BPF"]}},
            {"names":["read"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["write"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["amd64"],"minKernel":"4.8"}},
            {"names":["close"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"7.0"}}]}"#;
        let program = profile(json).unwrap().filter;

        let allowed = [
            libc::SYS_mount,
            libc::SYS_bpf,
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_close,
        ]
        .map(|call| run(&program, call, [0; 6]) == result::ALLOW);

        assert_eq!(allowed, [true, false, false, true, false]);
    }

    #[test]
    fn an_unknown_call_is_left_out() {
        let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["fly"],"action":"SCMP_ACT_KILL"}]}"#;

        assert!(profile(json).is_ok());
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_field() {
        let rule = |rule: &str| {
            refused(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{{rule}}}]}}"#
            ))
        };

        assert_eq!(
            refused(r#"{"defaultAction":"SCMP_ACT_FLY"}"#),
            "defaultAction"
        );
        assert_eq!(
            refused(r#"{"defaultAction":"SCMP_ACT_ALLOW","defaultErrnoRet":1}"#),
            "defaultErrnoRet"
        );
        assert_eq!(
            refused(r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_Z80"]}"#),
            "architectures[0]"
        );
        assert_eq!(
            refused(
                r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#
            ),
            "flags[0]"
        );
        assert_eq!(
            rule(r#""names":["read"],"action":"SCMP_ACT_NOTIFY""#),
            "syscalls[0].action"
        );
        assert_eq!(
            rule(r#""names":[],"action":"SCMP_ACT_TRAP""#),
            "syscalls[0].names"
        );
        assert_eq!(
            rule(
                r#""names":["read"],"action":"SCMP_ACT_TRAP","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]"#
            ),
            "syscalls[0].args[0].index"
        );
        assert_eq!(
            rule(
                r#""names":["read"],"action":"SCMP_ACT_TRAP","args":[{"index":0,"value":0,"op":"="}]"#
            ),
            "syscalls[0].args[0].op"
        );
    }

    #[test]
    fn five_thousand_plain_rules_come_to_a_small_program() {
        let rule = r#"{"names":["read","write"],"action":"SCMP_ACT_ALLOW"}"#;
        let rules = vec![rule; 5000].join(",");
        let json = format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{rules}]}}"#);

        assert!(profile(&json).unwrap().filter.len() < 8 * 32);
    }

    #[test]
    fn answers_are_found_in_a_long_program_too() {
        // Each call has results of its own, and is far from the others'.
        let rule = |(call, base): (&'static str, u64)| {
            (0..200).map(move |value| {
                let errno = base + value;
                format!(
                    r#"{{"names":["{call}"],"action":"SCMP_ACT_ERRNO","errnoRet":{errno},"args":[{{"index":1,"value":{value},"op":"SCMP_CMP_EQ"}}]}}"#
                )
            })
        };
        let rules: Vec<String> = [("read", 1000), ("ioctl", 2000), ("openat2", 3000)]
            .into_iter()
            .flat_map(rule)
            .collect();
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}}"#,
            rules.join(",")
        );
        let program = profile(&json).unwrap().filter;

        let answer = |call, value| run(&program, call, [0, value, 0, 0, 0, 0]);
        for value in [0, 7, 199] {
            let errno = u32::try_from(value).unwrap();
            assert_eq!(
                answer(libc::SYS_read, value),
                result::ERRNO | (1000 + errno)
            );
            assert_eq!(
                answer(libc::SYS_ioctl, value),
                result::ERRNO | (2000 + errno)
            );
            assert_eq!(
                answer(libc::SYS_openat2, value),
                result::ERRNO | (3000 + errno)
            );
        }
        assert_eq!(answer(libc::SYS_ioctl, 200), result::ALLOW);
        assert_eq!(answer(libc::SYS_write, 7), result::ALLOW);
    }

    #[test]
    fn more_than_the_kernel_takes_is_refused() {
        let rules: Vec<String> = (0..5000)
            .map(|value| {
                format!(
                    r#"{{"names":["ioctl"],"action":"SCMP_ACT_TRAP","args":[{{"index":1,"value":{value},"op":"SCMP_CMP_EQ"}}]}}"#
                )
            })
            .collect();
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}}"#,
            rules.join(",")
        );

        assert_eq!(refused(&json), "syscalls");
    }
}
