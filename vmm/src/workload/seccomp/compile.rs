//! Makes the program of a table of rules: classic BPF, as seccomp(2) takes it.
//!
//! A program is asked at every system call, and the kernel goes through it for each call once more when it is installed, after it has
//! translated it. So calls of the same answer that follow each other are one range, the ranges are searched by halves, and a result
//! is there once. Jumps lead forward only: a program is put together from its end, where all that can be jumped to is already there.

use std::collections::BTreeMap;

use super::{ENOSYS, SeccompError, error, result};

/// `BPF_MAXINSNS`, include/uapi/linux/bpf_common.h.
const MAX_INSTRUCTIONS: usize = 4096;

/// The largest number that a call of the table may have: well above the kernel's.
const MAX_CALL: usize = 1024;

/// Where fields are in `struct seccomp_data`, include/uapi/linux/seccomp.h.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

/// `AUDIT_ARCH_X86_64`, include/uapi/linux/audit.h.
const X86_64: u32 = 0xC000_003E;

/// A condition on an argument.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Condition {
    pub(super) index: u8,
    pub(super) operator: Operator,
    pub(super) value: u64,
    pub(super) value_two: u64,
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Operator {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    /// With a mask, which is the first value, to the second value.
    MaskedEqual,
}

/// A result for a call if all conditions hold.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: u32,
}

/// What is answered to each call.
#[derive(Debug)]
pub(super) struct Table {
    default: u32,
    /// For calls above the last that has a rule.
    pub(super) beyond: u32,
    /// By number: what counts where no condition holds, if anything was said of it.
    otherwise: Vec<Option<u32>>,
    /// By number: rules with conditions, in their order.
    conditional: BTreeMap<usize, Vec<Rule>>,
}

/// What is answered to a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Answer<'a> {
    conditional: &'a [Rule],
    otherwise: u32,
}

impl Table {
    pub(super) fn new(default: u32) -> Self {
        Self {
            default,
            beyond: result::ERRNO | ENOSYS,
            otherwise: Vec::new(),
            conditional: BTreeMap::new(),
        }
    }

    /// Answers calls in one way, where no conditions hold. The first answer to a call counts.
    pub(super) fn decide(&mut self, numbers: impl IntoIterator<Item = u32>, action: u32) {
        for number in numbers {
            if let Some(at) = self.reach(number)
                && let Some(otherwise) = self.otherwise.get_mut(at)
            {
                otherwise.get_or_insert(action);
            }
        }
    }

    /// Adds a rule that has conditions.
    pub(super) fn add(&mut self, number: u32, rule: Rule) {
        if let Some(at) = self.reach(number) {
            let rules = self.conditional.entry(at).or_default();
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }

    /// Answers a call in one way, whatever was said of it.
    pub(super) fn replace(&mut self, number: u32, action: u32) {
        if let Some(at) = self.reach(number)
            && let Some(otherwise) = self.otherwise.get_mut(at)
        {
            *otherwise = Some(action);
            self.conditional.remove(&at);
        }
    }

    /// Where the call is, which is in the table from now on; none of one that no kernel has.
    fn reach(&mut self, number: u32) -> Option<usize> {
        let at = usize::try_from(number).ok().filter(|at| *at < MAX_CALL)?;
        if self.otherwise.len() <= at {
            self.otherwise.resize(at + 1, None);
        }
        Some(at)
    }

    /// The first call of each range of calls with the same answer, and that.
    fn ranges(&self) -> Vec<(u32, Answer<'_>)> {
        let mut ranges: Vec<(u32, Answer<'_>)> = Vec::new();
        let mut conditional = self.conditional.iter().peekable();
        let answers = self.otherwise.iter().enumerate().map(|(at, otherwise)| {
            let rules = conditional.next_if(|(number, _)| **number == at);
            Answer {
                conditional: rules.map_or(&[], |(_, rules)| rules),
                otherwise: otherwise.unwrap_or(self.default),
            }
        });
        let beyond = Answer {
            conditional: &[],
            otherwise: self.beyond,
        };
        for (number, answer) in (0..).zip(answers.chain([beyond])) {
            if ranges.last().is_none_or(|(_, last)| *last != answer) {
                ranges.push((number, answer));
            }
        }
        ranges
    }
}

/// An instruction: `struct sock_filter`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Instruction {
    code: u16,
    then: u8,
    otherwise: u8,
    value: u32,
}

/// `BPF_*` of include/uapi/linux/bpf_common.h, put together.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

impl Instruction {
    const fn plain(code: u16, value: u32) -> Self {
        Self {
            code,
            then: 0,
            otherwise: 0,
            value,
        }
    }

    const fn skip(code: u16, value: u32, then: u8, otherwise: u8) -> Self {
        Self {
            code,
            then,
            otherwise,
            value,
        }
    }
}

/// Compiles a table.
///
/// # Errors
///
/// If the program would be longer than the kernel takes.
pub(super) fn compile(table: &Table) -> Result<Vec<u8>, SeccompError> {
    let mut program = Backwards::default();
    let found = program.search(&table.ranges());
    program.go_to(found);
    let of_x86_64 = program.put(Instruction::plain(LOAD, NUMBER_AT));
    // No kernel of ours executes another; libseccomp's answer, too.
    let of_another = program.result(result::KILL_THREAD);
    program.branch(IF_EQUAL, X86_64, of_x86_64, of_another);
    program.put(Instruction::plain(LOAD, ARCHITECTURE_AT));
    let count = program.from_end.len();
    if count > MAX_INSTRUCTIONS {
        let message =
            format!("they come to {count} instructions, and the kernel takes {MAX_INSTRUCTIONS}");
        return Err(error("syscalls", message));
    }
    Ok(program
        .from_end
        .iter()
        .rev()
        .flat_map(|instruction| {
            let Instruction {
                code,
                then,
                otherwise,
                value,
            } = *instruction;
            let [a, b] = code.to_le_bytes();
            let [c, d, e, f] = value.to_le_bytes();
            [a, b, then, otherwise, c, d, e, f]
        })
        .collect())
}

/// A program of which there is the end.
#[derive(Debug, Default)]
struct Backwards {
    /// The last instruction first.
    from_end: Vec<Instruction>,
    /// Where results are.
    results: Vec<(u32, Label)>,
}

/// An instruction: how many there are from it to the end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Label(usize);

impl Backwards {
    /// How far a conditional jump goes, with room for the two that take its outcomes further.
    const NEAR: usize = 250;

    fn put(&mut self, instruction: Instruction) -> Label {
        self.from_end.push(instruction);
        Label(self.from_end.len())
    }

    /// How many instructions the next one skips to come there.
    fn distance(&self, Label(to): Label) -> usize {
        self.from_end.len() - to
    }

    /// Lets what is put next be followed by this.
    fn go_to(&mut self, to: Label) -> Label {
        match u32::try_from(self.distance(to)) {
            Ok(0) => to,
            distance => self.put(Instruction::plain(JUMP, distance.unwrap_or(u32::MAX))),
        }
    }

    /// Where a conditional jump can go to come there.
    fn near(&mut self, to: Label) -> Label {
        if self.distance(to) > Self::NEAR {
            return self.go_to(to);
        }
        to
    }

    fn branch(&mut self, code: u16, value: u32, then: Label, otherwise: Label) -> Label {
        let (then, otherwise) = (self.near(then), self.near(otherwise));
        let skipped = |to| u8::try_from(self.distance(to)).unwrap_or(u8::MAX);
        self.put(Instruction::skip(
            code,
            value,
            skipped(then),
            skipped(otherwise),
        ))
    }

    /// Ends with a result.
    fn result(&mut self, action: u32) -> Label {
        let known = self.results.iter().rfind(|(known, _)| *known == action);
        match known {
            Some((_, label)) if self.distance(*label) <= Self::NEAR => *label,
            _ => {
                let label = self.put(Instruction::plain(RETURN, action));
                self.results.push((action, label));
                label
            }
        }
    }

    /// Finds the range of the call whose number is loaded, and answers. One list of ranges is halved after the other.
    fn search(&mut self, ranges: &[(u32, Answer<'_>)]) -> Label {
        let (below, above) = ranges.split_at(ranges.len() / 2);
        match (below, above) {
            (_, []) => self.result(result::KILL_THREAD),
            ([], [(_, answer), ..]) => self.answer(*answer),
            (_, [(first_above, _), ..]) => {
                let (above, below) = (self.search(above), self.search(below));
                self.branch(IF_AT_LEAST, *first_above, above, below)
            }
        }
    }

    /// Answers to one call.
    fn answer(&mut self, answer: Answer<'_>) -> Label {
        let mut next = self.result(answer.otherwise);
        for rule in answer.conditional.iter().rev() {
            let mut holds = self.result(rule.action);
            for condition in rule.conditions.iter().rev() {
                holds = self.condition(condition, holds, next);
            }
            next = holds;
        }
        next
    }

    /// Compares an argument: the upper half, then the lower one.
    fn condition(&mut self, condition: &Condition, holds: Label, fails: Label) -> Label {
        use Operator::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, MaskedEqual, NotEqual};
        let Condition {
            index,
            operator,
            value,
            value_two,
        } = *condition;
        let low_at = ARGUMENTS_AT + 8 * u32::from(index);
        let load_low = Instruction::plain(LOAD, low_at);
        let load_high = Instruction::plain(LOAD, low_at + 4);
        let (high, low) = halves(value);
        match operator {
            Equal | NotEqual => {
                let (same, other) = match operator {
                    Equal => (holds, fails),
                    _ => (fails, holds),
                };
                self.branch(IF_EQUAL, low, same, other);
                let then = self.put(load_low);
                self.branch(IF_EQUAL, high, then, other);
            }
            Greater | GreaterOrEqual | Less | LessOrEqual => {
                let (above, below) = match operator {
                    Greater | GreaterOrEqual => (holds, fails),
                    _ => (fails, holds),
                };
                // What is equal to the value is above it for two of them, and below it for the others.
                let code = match operator {
                    Greater | LessOrEqual => IF_GREATER,
                    _ => IF_AT_LEAST,
                };
                self.branch(code, low, above, below);
                let then = self.put(load_low);
                let is_no_greater = self.branch(IF_EQUAL, high, then, below);
                self.branch(IF_GREATER, high, above, is_no_greater);
            }
            MaskedEqual => {
                let (high_two, low_two) = halves(value_two);
                self.branch(IF_EQUAL, low_two, holds, fails);
                self.put(Instruction::plain(AND, low));
                let then = self.put(load_low);
                self.branch(IF_EQUAL, high_two, then, fails);
                self.put(Instruction::plain(AND, high));
            }
        }
        self.put(load_high)
    }
}

fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (
        u32::from_le_bytes([e, f, g, h]),
        u32::from_le_bytes([a, b, c, d]),
    )
}

/// Runs a program as the kernel would, for a call of x86-64.
#[cfg(test)]
pub(super) fn run(program: &[u8], call: i64, arguments: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(u32::try_from(call).unwrap().to_le_bytes());
    data.extend(X86_64.to_le_bytes());
    data.extend([0; 8]);
    data.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let instruction: [u8; 8] = program[8 * at..8 * at + 8].try_into().unwrap();
        let [a, b, then, otherwise, c, d, e, f] = instruction;
        let value = u32::from_le_bytes([c, d, e, f]);
        let skip = |holds: bool| usize::from(if holds { then } else { otherwise });
        at += 1;
        match u16::from_le_bytes([a, b]) {
            LOAD => {
                let from = usize::try_from(value).unwrap();
                accumulator = u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
            }
            AND => accumulator &= value,
            JUMP => at += usize::try_from(value).unwrap(),
            IF_EQUAL => at += skip(accumulator == value),
            IF_GREATER => at += skip(accumulator > value),
            IF_AT_LEAST => at += skip(accumulator >= value),
            RETURN => return value,
            other => unreachable!("{other:#x}"),
        }
    }
}
