//! Which devices may be used: runtime-spec `config-linux.md`, "Allowed Device list", as an eBPF program of the cgroup.
//!
//! Version 2 of cgroups has no file for this: a program (`BPF_PROG_TYPE_CGROUP_DEVICE`) is asked for each access. It takes the rules
//! from the last to the first, and each decides those of the wanted rights that no later one has decided; that is what it
//! means that they are applied in the listed order. What no rule decides is denied.

use std::os::fd::AsFd;

use protocol::StartFailure;

use crate::spec;
use crate::step::{Step as _, invalid};
use crate::sys;

/// `BPF_DEVCG_ACC_*` and `BPF_DEVCG_DEV_*`, `include/uapi/linux/bpf.h`.
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;

/// What every container may use, whatever the rules say, as in docker: the default devices, the container's terminals, and to
/// make nodes, which are not usable for that alone.
const ALWAYS: [Rule; 11] = [
    Rule::allow(CHARACTER, None, None, MKNOD),
    Rule::allow(BLOCK, None, None, MKNOD),
    Rule::allow(CHARACTER, Some(1), Some(3), READ | WRITE | MKNOD),
    Rule::allow(CHARACTER, Some(1), Some(5), READ | WRITE | MKNOD),
    Rule::allow(CHARACTER, Some(1), Some(7), READ | WRITE | MKNOD),
    Rule::allow(CHARACTER, Some(1), Some(8), READ | WRITE | MKNOD),
    Rule::allow(CHARACTER, Some(1), Some(9), READ | WRITE | MKNOD),
    Rule::allow(CHARACTER, Some(5), Some(0), READ | WRITE | MKNOD),
    Rule::allow(CHARACTER, Some(5), Some(1), READ | WRITE | MKNOD),
    Rule::allow(CHARACTER, Some(5), Some(2), READ | WRITE | MKNOD),
    // /dev/pts/*
    Rule::allow(CHARACTER, Some(136), None, READ | WRITE | MKNOD),
];

/// The most rules that a program is made for: far below the size that the kernel takes, a million instructions.
const MAX_RULES: usize = 10_000;

/// The program of a cgroup.
#[derive(Debug, PartialEq)]
pub(super) struct DeviceProgram(Vec<u64>);

#[derive(Clone, Copy, Debug)]
struct Rule {
    allow: bool,
    /// `None` is both types.
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

impl Rule {
    const fn allow(kind: u32, major: Option<u32>, minor: Option<u32>, access: u32) -> Self {
        Self {
            allow: true,
            kind: Some(kind),
            major,
            minor,
            access,
        }
    }

    fn new(rule: &spec::DeviceRule) -> Result<Self, StartFailure> {
        let kind = match rule.kind.as_deref() {
            None | Some("a" | "") => None,
            Some("b") => Some(BLOCK),
            Some("c" | "u") => Some(CHARACTER),
            Some(other) => {
                return Err(invalid(
                    "linux.resources.devices.type",
                    format!("type {other:?} is unknown"),
                ));
            }
        };
        // -1 is what the specification's authors write for "all".
        let number = |field: &str, number: Option<i64>| match number {
            None | Some(-1) => Ok(None),
            Some(number) => u32::try_from(number)
                .map(Some)
                .map_err(|_| invalid(field, format!("{number} is not a device's number"))),
        };
        let mut access = 0;
        for right in rule.access.as_deref().unwrap_or_default().chars() {
            access |= match right {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                other => {
                    return Err(invalid(
                        "linux.resources.devices.access",
                        format!("{other:?} is neither r, w nor m"),
                    ));
                }
            };
        }
        if access == 0 {
            access = READ | WRITE | MKNOD;
        }
        Ok(Self {
            allow: rule.allow,
            kind,
            major: number("linux.resources.devices.major", rule.major)?,
            minor: number("linux.resources.devices.minor", rule.minor)?,
            access,
        })
    }
}

impl DeviceProgram {
    /// Reads `linux.resources.devices`; without a rule there is no program.
    ///
    /// # Errors
    ///
    /// If a rule makes no sense, or there are too many.
    pub(super) fn new(rules: &[spec::DeviceRule]) -> Result<Option<Self>, StartFailure> {
        if rules.is_empty() {
            return Ok(None);
        }
        if rules.len() > MAX_RULES {
            return Err(invalid(
                "linux.resources.devices",
                format!("there are more than {MAX_RULES} rules"),
            ));
        }
        let given = rules.iter().map(Rule::new).collect::<Result<Vec<_>, _>>()?;
        let last_first = ALWAYS.iter().rev().chain(given.iter().rev());
        Ok(Some(Self(assemble(last_first))))
    }

    /// Has the kernel ask the program for every access from the cgroup.
    ///
    /// # Errors
    ///
    /// The kernel's, see bpf(2).
    pub(super) fn attach(&self, cgroup: impl AsFd) -> Result<(), StartFailure> {
        sys::attach_device_program(&self.0, cgroup.as_fd())
            .step(|| "setting the device rules".to_owned())
    }
}

/// Registers of the program.
mod register {
    /// The result.
    pub(super) const RESULT: u8 = 0;
    /// The context at first: `struct bpf_cgroup_dev_ctx`.
    pub(super) const CONTEXT: u8 = 1;
    pub(super) const KIND: u8 = 2;
    /// The rights that nobody has decided yet.
    pub(super) const WANTED: u8 = 3;
    pub(super) const MAJOR: u8 = 4;
    pub(super) const MINOR: u8 = 5;
    pub(super) const SCRATCH: u8 = 6;
}

/// Instructions of eBPF: `Documentation/bpf/instruction-set.rst`.
mod instruction {
    /// `BPF_LDX | BPF_MEM | BPF_W`
    const LOAD_WORD: u8 = 0x61;
    /// `BPF_ALU64 | BPF_MOV | BPF_X` and `… | BPF_K`
    const MOVE: u8 = 0xBF;
    const MOVE_NUMBER: u8 = 0xB7;
    /// `BPF_ALU64 | BPF_AND | BPF_K`
    const AND_NUMBER: u8 = 0x57;
    /// `BPF_ALU64 | BPF_RSH | BPF_K`
    const SHIFT_RIGHT: u8 = 0x77;
    /// `BPF_JMP32 | BPF_JNE | BPF_K` and `BPF_JEQ`
    const JUMP_UNLESS: u8 = 0x56;
    const JUMP_IF: u8 = 0x16;
    /// `BPF_JMP | BPF_EXIT`
    const EXIT: u8 = 0x95;

    fn encode(code: u8, target: u8, source: u8, offset: i16, number: u32) -> u64 {
        let [offset_low, offset_high] = offset.to_le_bytes();
        let [a, b, c, d] = number.to_le_bytes();
        u64::from_le_bytes([
            code,
            target | (source << 4),
            offset_low,
            offset_high,
            a,
            b,
            c,
            d,
        ])
    }

    pub(super) fn load_word(target: u8, source: u8, offset: i16) -> u64 {
        encode(LOAD_WORD, target, source, offset, 0)
    }

    pub(super) fn copy(target: u8, source: u8) -> u64 {
        encode(MOVE, target, source, 0, 0)
    }

    pub(super) fn set(target: u8, number: u32) -> u64 {
        encode(MOVE_NUMBER, target, 0, 0, number)
    }

    pub(super) fn and(target: u8, number: u32) -> u64 {
        encode(AND_NUMBER, target, 0, 0, number)
    }

    pub(super) fn shift_right(target: u8, bits: u32) -> u64 {
        encode(SHIFT_RIGHT, target, 0, 0, bits)
    }

    /// Skips so many instructions where the register is another number.
    pub(super) fn skip_unless(register: u8, number: u32, skipped: i16) -> u64 {
        encode(JUMP_UNLESS, register, 0, skipped, number)
    }

    /// Skips so many instructions where the register is this number.
    pub(super) fn skip_if(register: u8, number: u32, skipped: i16) -> u64 {
        encode(JUMP_IF, register, 0, skipped, number)
    }

    pub(super) fn exit() -> u64 {
        encode(EXIT, 0, 0, 0, 0)
    }
}

/// Makes the program of rules that come the last first.
fn assemble<'a>(rules: impl Iterator<Item = &'a Rule>) -> Vec<u64> {
    use instruction::{and, copy, exit, load_word, set, shift_right, skip_if, skip_unless};
    use register::{CONTEXT, KIND, MAJOR, MINOR, RESULT, SCRATCH, WANTED};
    let mut program = vec![
        // The first word is the type, and above it the wanted rights.
        load_word(KIND, CONTEXT, 0),
        copy(WANTED, KIND),
        and(KIND, 0xFFFF),
        shift_right(WANTED, 16),
        load_word(MAJOR, CONTEXT, 4),
        load_word(MINOR, CONTEXT, 8),
    ];
    for rule in rules {
        let decision = if rule.allow {
            // What is allowed is no longer wanted; where nothing is left, all is allowed.
            vec![
                and(WANTED, !rule.access),
                skip_unless(WANTED, 0, 2),
                set(RESULT, 1),
                exit(),
            ]
        } else {
            vec![
                copy(SCRATCH, WANTED),
                and(SCRATCH, rule.access),
                skip_if(SCRATCH, 0, 2),
                set(RESULT, 0),
                exit(),
            ]
        };
        let conditions = [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)];
        let conditions: Vec<(u8, u32)> = conditions
            .into_iter()
            .filter_map(|(register, number)| Some((register, number?)))
            .collect();
        // At most three conditions and five instructions.
        let length = conditions.len() + decision.len();
        for (index, (register, number)) in conditions.into_iter().enumerate() {
            let skipped = i16::try_from(length - index - 1).unwrap_or(i16::MAX);
            program.push(skip_unless(register, number, skipped));
        }
        program.extend(decision);
    }
    program.extend([set(RESULT, 0), exit()]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Executes a program as the kernel would.
    fn runs(program: &[u64], kind: u32, major: u32, minor: u32, access: u32) -> bool {
        let context = [kind | (access << 16), major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0;
        loop {
            let [code, names, low, high, a, b, c, d] = program[at].to_le_bytes();
            let (target, source) = (usize::from(names & 15), usize::from(names >> 4));
            let offset = usize::try_from(i16::from_le_bytes([low, high])).unwrap();
            let number = u32::from_le_bytes([a, b, c, d]);
            // The kernel extends an operand of 64 bits with its sign.
            let extended = i64::from(number.cast_signed()).cast_unsigned();
            let word = registers[target] & u64::from(u32::MAX);
            at += 1;
            match code {
                0x61 => registers[target] = context[offset / 4].into(),
                0xBF => registers[target] = registers[source],
                0xB7 => registers[target] = extended,
                0x57 => registers[target] &= extended,
                0x77 => registers[target] >>= number,
                0x56 if word != u64::from(number) => at += offset,
                0x16 if word == u64::from(number) => at += offset,
                0x56 | 0x16 => (),
                0x95 => return registers[0] != 0,
                other => unreachable!("{other:#x}"),
            }
        }
    }

    fn program(rules: &str) -> Vec<u64> {
        let rules: Vec<spec::DeviceRule> = serde_json::from_str(rules).unwrap();
        DeviceProgram::new(&rules).unwrap().unwrap().0
    }

    const DENY_ALL: &str = r#"{"allow":false,"access":"rwm"}"#;

    #[test]
    fn what_no_rule_decides_is_denied() {
        let program = program(r#"[{"allow":true,"type":"c","major":10,"minor":1,"access":"r"}]"#);

        assert!(!runs(&program, CHARACTER, 10, 2, READ));
        assert!(!runs(&program, CHARACTER, 10, 1, READ | WRITE));
        assert!(!runs(&program, BLOCK, 10, 1, READ));
        assert!(runs(&program, CHARACTER, 10, 1, READ));
    }

    #[test]
    fn rights_of_several_rules_add_up() {
        let program = program(&format!(
            r#"[{DENY_ALL},{{"allow":true,"type":"b","major":8,"access":"r"}},{{"allow":true,"type":"b","major":8,"access":"w"}}]"#
        ));

        assert!(runs(&program, BLOCK, 8, 3, READ | WRITE));
    }

    #[test]
    fn a_later_rule_takes_back_an_earlier_one() {
        let program = program(
            r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"c","major":10,"minor":1,"access":"w"}]"#,
        );

        assert!(!runs(&program, CHARACTER, 10, 1, READ | WRITE));
        assert!(runs(&program, CHARACTER, 10, 1, READ));
        assert!(runs(&program, CHARACTER, 10, 2, READ | WRITE));
    }

    #[test]
    fn the_default_devices_stay_usable() {
        let program = program(&format!("[{DENY_ALL}]"));

        assert!(runs(&program, CHARACTER, 1, 3, READ | WRITE | MKNOD));
        assert!(runs(&program, CHARACTER, 136, 0, READ | WRITE));
        assert!(runs(&program, BLOCK, 8, 0, MKNOD));
        assert!(!runs(&program, BLOCK, 8, 0, READ));
    }

    #[test]
    fn an_unknown_right_is_refused_by_name() {
        let rules: Vec<spec::DeviceRule> =
            serde_json::from_str(r#"[{"allow":true,"access":"x"}]"#).unwrap();

        assert_eq!(
            DeviceProgram::new(&rules).unwrap_err().step,
            "linux.resources.devices.access"
        );
    }
}
