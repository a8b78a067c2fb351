//! Which devices may be used: runtime-spec `config-linux.md`, "Allowed Device list", as an eBPF program of the cgroup.
//!
//! Version 2 of cgroups has no file for this: a program (`BPF_PROG_TYPE_CGROUP_DEVICE`) is asked for each access. It goes through
//! the rules in the listed order, and each allows or denies some rights; what no rule is about is denied. Nothing in it branches: the
//! kernel follows all ways through a program before it takes it, which was most of what the rules cost a container.

use std::collections::{BTreeMap, BTreeSet};
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
const ALL_RIGHTS: u32 = MKNOD | READ | WRITE;

/// What every container may use, whatever the rules say, as in docker: the default devices, the container's terminals, and to
/// make nodes, which are not usable for that alone.
const ALWAYS: [Rule; 10] = [
    Rule::allow(None, None, None, MKNOD),
    Rule::allow(Some(CHARACTER), Some(1), Some(3), ALL_RIGHTS),
    Rule::allow(Some(CHARACTER), Some(1), Some(5), ALL_RIGHTS),
    Rule::allow(Some(CHARACTER), Some(1), Some(7), ALL_RIGHTS),
    Rule::allow(Some(CHARACTER), Some(1), Some(8), ALL_RIGHTS),
    Rule::allow(Some(CHARACTER), Some(1), Some(9), ALL_RIGHTS),
    Rule::allow(Some(CHARACTER), Some(5), Some(0), ALL_RIGHTS),
    Rule::allow(Some(CHARACTER), Some(5), Some(1), ALL_RIGHTS),
    Rule::allow(Some(CHARACTER), Some(5), Some(2), ALL_RIGHTS),
    // /dev/pts/*
    Rule::allow(Some(CHARACTER), Some(136), None, ALL_RIGHTS),
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
    const fn allow(kind: Option<u32>, major: Option<u32>, minor: Option<u32>, access: u32) -> Self {
        Self {
            allow: true,
            kind,
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
            access = ALL_RIGHTS;
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

impl Rule {
    fn is_about_everything(&self) -> bool {
        matches!(
            self,
            Self {
                kind: None,
                major: None,
                minor: None,
                access: ALL_RIGHTS,
                ..
            }
        )
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
        let rules: Vec<Rule> = given.into_iter().chain(ALWAYS).collect();
        Ok(Some(Self(assemble(&rules))))
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
    /// The result, and at first numbers that are soon forgotten.
    pub(super) const RESULT: u8 = 0;
    /// The context: `struct bpf_cgroup_dev_ctx`.
    pub(super) const CONTEXT: u8 = 1;
    pub(super) const KIND: u8 = 2;
    pub(super) const WANTED: u8 = 3;
    pub(super) const MAJOR: u8 = 4;
    pub(super) const MINOR: u8 = 5;
    /// 0 where a rule is about the device; then all ones, and the rule's rights.
    pub(super) const DIFFERENCE: u8 = 6;
    /// The rights that there are after the rules so far.
    pub(super) const ALLOWED: u8 = 7;
}

/// Instructions of eBPF: `Documentation/bpf/instruction-set.rst`.
mod instruction {
    /// `BPF_LDX | BPF_MEM | BPF_W`
    const LOAD_WORD: u8 = 0x61;
    /// `BPF_EXIT | BPF_JMP`
    const EXIT: u8 = 0x95;
    /// Of 64 bits (`BPF_ALU64`) with another register (`BPF_X`): `BPF_MOV`, `BPF_OR`, `BPF_AND`.
    const COPY: u8 = 0xBF;
    const OR: u8 = 0x4F;
    const AND: u8 = 0x5F;
    /// Of 64 bits with a number (`BPF_K`), which is extended by its sign.
    const SET: u8 = 0xB7;
    const ADD_NUMBER: u8 = 0x07;
    const OR_NUMBER: u8 = 0x47;
    const AND_NUMBER: u8 = 0x57;
    const XOR_NUMBER: u8 = 0xA7;
    const SHIFT_RIGHT: u8 = 0x77;
    const SHIFT_SIGN_RIGHT: u8 = 0xC7;
    /// Of 32 bits (`BPF_ALU`), after which the upper half is 0.
    const SET_WORD: u8 = 0xB4;
    const XOR_WORD: u8 = 0xA4;
    const SHIFT_WORD_RIGHT_BY: u8 = 0x7C;

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
        encode(COPY, target, source, 0, 0)
    }

    pub(super) fn or(target: u8, source: u8) -> u64 {
        encode(OR, target, source, 0, 0)
    }

    pub(super) fn and(target: u8, source: u8) -> u64 {
        encode(AND, target, source, 0, 0)
    }

    pub(super) fn set(target: u8, number: u32) -> u64 {
        encode(SET, target, 0, 0, number)
    }

    pub(super) fn or_number(target: u8, number: u32) -> u64 {
        encode(OR_NUMBER, target, 0, 0, number)
    }

    pub(super) fn and_number(target: u8, number: u32) -> u64 {
        encode(AND_NUMBER, target, 0, 0, number)
    }

    pub(super) fn subtract_one(target: u8) -> u64 {
        encode(ADD_NUMBER, target, 0, 0, u32::MAX)
    }

    pub(super) fn invert(target: u8) -> u64 {
        encode(XOR_NUMBER, target, 0, 0, u32::MAX)
    }

    pub(super) fn shift_right(target: u8, bits: u32) -> u64 {
        encode(SHIFT_RIGHT, target, 0, 0, bits)
    }

    pub(super) fn spread_sign(target: u8) -> u64 {
        encode(SHIFT_SIGN_RIGHT, target, 0, 0, 63)
    }

    pub(super) fn set_word(target: u8, number: u32) -> u64 {
        encode(SET_WORD, target, 0, 0, number)
    }

    pub(super) fn xor_word(target: u8, number: u32) -> u64 {
        encode(XOR_WORD, target, 0, 0, number)
    }

    /// Shifts by the lowest five bits of another register.
    pub(super) fn shift_word_right_by(target: u8, source: u8) -> u64 {
        encode(SHIFT_WORD_RIGHT_BY, target, source, 0, 0)
    }

    pub(super) fn exit() -> u64 {
        encode(EXIT, 0, 0, 0, 0)
    }
}

/// What rules that decide alike have in common: type, major number, rights.
type Subject = (Option<u32>, Option<u32>, u32);

/// The minor numbers of rules that have everything else in common.
#[derive(Debug, Default)]
struct Minors {
    all: bool,
    /// A bit for each number below 32.
    low: u32,
    high: BTreeSet<u32>,
}

impl Minors {
    fn add(&mut self, minor: Option<u32>) {
        match minor {
            None => self.all = true,
            Some(low @ 0..32) => self.low |= 1 << low,
            Some(high) => drop(self.high.insert(high)),
        }
    }

    /// The conditions under which a number is one of these; each of them is enough.
    fn conditions(&self) -> Vec<Minor> {
        if self.all {
            return vec![Minor::Any];
        }
        let low = (self.low != 0).then_some(Minor::OneOf(self.low));
        let high = self.high.iter().copied().map(Minor::Is);
        low.into_iter().chain(high).collect()
    }
}

/// A condition on a minor number.
#[derive(Clone, Copy, Debug)]
enum Minor {
    Any,
    Is(u32),
    /// A bit for each number below 32.
    OneOf(u32),
}

/// Makes the program of rules.
fn assemble(rules: &[Rule]) -> Vec<u64> {
    use instruction::{
        and, and_number, copy, exit, invert, load_word, set, shift_right, spread_sign, subtract_one,
    };
    use register::{ALLOWED, CONTEXT, KIND, MAJOR, MINOR, RESULT, WANTED};
    let mut program = vec![
        // The first word is the type, and above it the wanted rights.
        load_word(KIND, CONTEXT, 0),
        copy(WANTED, KIND),
        and_number(KIND, 0xFFFF),
        shift_right(WANTED, 16),
        load_word(MAJOR, CONTEXT, 4),
        load_word(MINOR, CONTEXT, 8),
        set(ALLOWED, 0),
    ];
    // Nothing stays of what comes before a rule about everything.
    let first = rules.iter().rposition(Rule::is_about_everything);
    let rules = rules.get(first.unwrap_or(0)..).unwrap_or_default();
    // Among rules that allow, and among those that deny, the order means nothing.
    for run in rules.chunk_by(|one, next| one.allow == next.allow) {
        let mut subjects: BTreeMap<Subject, Minors> = BTreeMap::new();
        for rule in run {
            let subject = (rule.kind, rule.major, rule.access);
            subjects.entry(subject).or_default().add(rule.minor);
        }
        let allow = run.iter().any(|rule| rule.allow);
        for ((kind, major, access), minors) in subjects {
            for minor in minors.conditions() {
                apply(&mut program, (kind, major, access), minor, allow);
            }
        }
    }
    program.extend([
        // 1 where nothing that is wanted is not allowed.
        copy(RESULT, ALLOWED),
        invert(RESULT),
        and(RESULT, WANTED),
        subtract_one(RESULT),
        spread_sign(RESULT),
        and_number(RESULT, 1),
        exit(),
    ]);
    program
}

/// Allows or denies rights where the device is one of these.
fn apply(program: &mut Vec<u64>, (kind, major, access): Subject, minor: Minor, allow: bool) {
    use instruction::{
        and, and_number, copy, invert, or, or_number, set, set_word, shift_right,
        shift_word_right_by, spread_sign, subtract_one, xor_word,
    };
    use register::{ALLOWED, DIFFERENCE, KIND, MAJOR, MINOR, RESULT};
    if let (None, None, Minor::Any) = (kind, major, minor) {
        program.push(match allow {
            true => or_number(ALLOWED, access),
            false => and_number(ALLOWED, !access),
        });
        return;
    }
    program.push(set(DIFFERENCE, 0));
    let is = match minor {
        Minor::Is(number) => Some(number),
        Minor::Any | Minor::OneOf(_) => None,
    };
    for (register, number) in [(KIND, kind), (MAJOR, major), (MINOR, is)] {
        if let Some(number) = number {
            program.extend([
                copy(RESULT, register),
                xor_word(RESULT, number),
                or(DIFFERENCE, RESULT),
            ]);
        }
    }
    if let Minor::OneOf(bits) = minor {
        program.extend([
            copy(RESULT, MINOR),
            shift_right(RESULT, 5),
            or(DIFFERENCE, RESULT),
            // The bits of the others, so that 1 is a difference, too.
            set_word(RESULT, !bits),
            shift_word_right_by(RESULT, MINOR),
            and_number(RESULT, 1),
            or(DIFFERENCE, RESULT),
        ]);
    }
    program.extend([
        subtract_one(DIFFERENCE),
        spread_sign(DIFFERENCE),
        and_number(DIFFERENCE, access),
    ]);
    match allow {
        true => program.push(or(ALLOWED, DIFFERENCE)),
        false => program.extend([invert(DIFFERENCE), and(ALLOWED, DIFFERENCE)]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            let other = registers[source];
            at += 1;
            registers[target] = match code {
                0x61 => context[offset / 4].into(),
                0xBF => other,
                0x4F => registers[target] | other,
                0x5F => registers[target] & other,
                0xB7 => extended,
                0x07 => registers[target].wrapping_add(extended),
                0x47 => registers[target] | extended,
                0x57 => registers[target] & extended,
                0xA7 => registers[target] ^ extended,
                0x77 => registers[target] >> number,
                0xC7 => (registers[target].cast_signed() >> number).cast_unsigned(),
                0xB4 => number.into(),
                0xA4 => word ^ u64::from(number),
                0x7C => word >> (other & 31),
                0x95 => return registers[0] != 0,
                code => unreachable!("{code:#x}"),
            };
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
    fn rules_that_are_one_test_decide_as_each_would() {
        let program = program(
            r#"[{"allow":true,"type":"c","major":9,"access":"r"},
                {"allow":false,"type":"c","major":9,"minor":0,"access":"r"},
                {"allow":false,"type":"c","major":9,"minor":31,"access":"r"},
                {"allow":false,"type":"c","major":9,"minor":32,"access":"r"},
                {"allow":false,"type":"c","major":9,"minor":4294967295,"access":"r"}]"#,
        );

        assert!(!runs(&program, CHARACTER, 9, 0, READ));
        assert!(runs(&program, CHARACTER, 9, 1, READ));
        assert!(runs(&program, CHARACTER, 9, 30, READ));
        assert!(!runs(&program, CHARACTER, 9, 31, READ));
        assert!(!runs(&program, CHARACTER, 9, 32, READ));
        assert!(runs(&program, CHARACTER, 9, 64, READ));
        assert!(!runs(&program, CHARACTER, 9, u32::MAX, READ));
    }

    #[test]
    fn what_comes_before_a_rule_about_everything_is_not_in_the_program() {
        let all = program(&format!("[{DENY_ALL}]"));
        let more = program(&format!(
            r#"[{{"allow":true,"type":"b","major":8,"access":"r"}},{DENY_ALL}]"#
        ));

        assert_eq!(all, more);
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

    /// What the rules come to, one after the other as the specification lists them.
    fn allows(rules: &[Rule], kind: u32, major: u32, minor: u32, access: u32) -> bool {
        let is_allowed = |right: u32| {
            let mut decided = false;
            for rule in rules {
                let is_about = rule.kind.is_none_or(|it| it == kind)
                    && rule.major.is_none_or(|it| it == major)
                    && rule.minor.is_none_or(|it| it == minor)
                    && rule.access & right != 0;
                if is_about {
                    decided = rule.allow;
                }
            }
            decided
        };
        [MKNOD, READ, WRITE]
            .into_iter()
            .filter(|right| access & right != 0)
            .all(is_allowed)
    }

    fn number() -> impl Strategy<Value = u32> {
        prop_oneof![0..3_u32, 30..34_u32, Just(u32::MAX)]
    }

    prop_compose! {
        fn rule()(
            allow in any::<bool>(),
            kind in prop::option::of(BLOCK..=CHARACTER),
            major in prop::option::of(0..3_u32),
            minor in prop::option::of(number()),
            access in 1..=ALL_RIGHTS,
        ) -> Rule {
            Rule { allow, kind, major, minor, access }
        }
    }

    proptest! {
        #[test]
        fn the_program_decides_as_the_rules_in_their_order(
            rules in prop::collection::vec(rule(), 0..12),
            kind in BLOCK..=CHARACTER,
            major in 0..3_u32,
            minor in number(),
            access in 1..=ALL_RIGHTS,
        ) {
            let decided = runs(&assemble(&rules), kind, major, minor, access);

            prop_assert_eq!(decided, allows(&rules, kind, major, minor, access));
        }
    }
}
