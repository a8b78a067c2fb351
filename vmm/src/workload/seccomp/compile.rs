//! Makes the program of a table of rules: classic BPF, as seccomp(2) takes it.
//!
//! A program is asked at every system call, and the kernel goes through it for each call once more when it is installed. So calls of
//! the same answer that follow each other are one range, and the ranges are searched by halves.

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
    /// By number: rules with conditions in their order, and what counts where none holds.
    calls: Vec<Answer>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Answer {
    conditional: Vec<Rule>,
    otherwise: u32,
    is_decided: bool,
}

impl Table {
    pub(super) fn new(default: u32) -> Self {
        Self {
            default,
            beyond: result::ERRNO | ENOSYS,
            calls: Vec::new(),
        }
    }

    /// Adds a rule. Without conditions, the first one of a call counts.
    pub(super) fn add(&mut self, number: u32, rule: Rule) {
        let Ok(at) = usize::try_from(number) else {
            return;
        };
        if at >= MAX_CALL {
            return;
        }
        let nothing = Answer {
            conditional: Vec::new(),
            otherwise: self.default,
            is_decided: false,
        };
        if self.calls.len() <= at {
            self.calls.resize(at + 1, nothing);
        }
        let Some(answer) = self.calls.get_mut(at) else {
            return;
        };
        match rule.conditions.is_empty() {
            true if answer.is_decided => (),
            true => (answer.otherwise, answer.is_decided) = (rule.action, true),
            false if answer.conditional.contains(&rule) => (),
            false => answer.conditional.push(rule),
        }
    }
}

impl Table {
    /// Answers a call in one way, whatever was said of it.
    pub(super) fn replace(&mut self, number: u32, action: u32) {
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        if let Some(answer) = self.calls.get_mut(at) {
            *answer = Answer {
                conditional: Vec::new(),
                otherwise: action,
                is_decided: true,
            };
        }
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
    let beyond = Answer {
        conditional: Vec::new(),
        otherwise: table.beyond,
        is_decided: true,
    };
    // The first call of each range, and its answer.
    let mut ranges: Vec<(u32, &Answer)> = Vec::new();
    for (number, answer) in (0..).zip(table.calls.iter().chain([&beyond])) {
        let is_same = ranges.last().is_some_and(|(_, last)| {
            last.conditional == answer.conditional && last.otherwise == answer.otherwise
        });
        if !is_same {
            ranges.push((number, answer));
        }
    }
    let mut program = vec![
        Instruction::plain(LOAD, ARCHITECTURE_AT),
        Instruction::skip(IF_EQUAL, X86_64, 1, 0),
        // No kernel of ours executes another; libseccomp's answer, too.
        Instruction::plain(RETURN, result::KILL_THREAD),
        Instruction::plain(LOAD, NUMBER_AT),
    ];
    program.extend(search(&ranges)?);
    if program.len() > MAX_INSTRUCTIONS {
        let message = format!(
            "they come to {} instructions, and the kernel takes {MAX_INSTRUCTIONS}",
            program.len()
        );
        return Err(error("syscalls", message));
    }
    Ok(program
        .iter()
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

/// Finds the range of the call whose number is loaded, and answers. One list of ranges is halved after the other.
fn search(ranges: &[(u32, &Answer)]) -> Result<Vec<Instruction>, SeccompError> {
    let (below, above) = ranges.split_at(ranges.len() / 2);
    let Some((first_above, answer)) = above.first() else {
        return Ok(Vec::new());
    };
    if below.is_empty() {
        return Ok(self::answer(answer));
    }
    let (below, above) = (search(below)?, search(above)?);
    let mut program = Vec::with_capacity(below.len() + above.len() + 2);
    match u8::try_from(below.len()) {
        Ok(skipped) => program.push(Instruction::skip(IF_AT_LEAST, *first_above, skipped, 0)),
        // A conditional jump does not go so far.
        Err(_) => {
            let too_long = |_| error("syscalls", "they come to too many instructions");
            let skipped = u32::try_from(below.len()).map_err(too_long)?;
            program.push(Instruction::skip(IF_AT_LEAST, *first_above, 0, 1));
            program.push(Instruction::plain(JUMP, skipped));
        }
    }
    program.extend(below);
    program.extend(above);
    Ok(program)
}

/// Answers to one call.
fn answer(answer: &Answer) -> Vec<Instruction> {
    let mut program = Vec::new();
    for rule in &answer.conditional {
        let mut checks: Vec<Vec<Check>> = rule.conditions.iter().map(checks).collect();
        // After all conditions comes the result; what does not hold goes past it.
        let mut rest = 1;
        let mut parts = Vec::new();
        while let Some(part) = checks.pop() {
            let length = part.len();
            parts.push(place(&part, rest));
            rest += u8::try_from(length).unwrap_or(u8::MAX);
        }
        parts
            .into_iter()
            .rev()
            .for_each(|part| program.extend(part));
        program.push(Instruction::plain(RETURN, rule.action));
    }
    program.push(Instruction::plain(RETURN, answer.otherwise));
    program
}

/// A step of a condition.
#[derive(Clone, Copy)]
enum Check {
    Do(Instruction),
    /// A comparison, and where each outcome leads.
    If(u16, u32, To, To),
}

/// Where a comparison leads.
#[derive(Clone, Copy)]
enum To {
    Next,
    Holds,
    Fails,
}

/// Puts the steps of a condition where `rest` instructions of the rule follow, the result among them.
fn place(checks: &[Check], rest: u8) -> Vec<Instruction> {
    let mut left = u8::try_from(checks.len()).unwrap_or(u8::MAX);
    checks
        .iter()
        .map(|check| {
            left = left.saturating_sub(1);
            let skip = |to: To| match to {
                To::Next => 0,
                To::Holds => left,
                To::Fails => left.saturating_add(rest),
            };
            match *check {
                Check::Do(instruction) => instruction,
                Check::If(code, value, then, otherwise) => {
                    Instruction::skip(code, value, skip(then), skip(otherwise))
                }
            }
        })
        .collect()
}

/// The steps of a condition: the upper half of the argument, then the lower one.
fn checks(condition: &Condition) -> Vec<Check> {
    use Operator::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, MaskedEqual, NotEqual};
    let Condition {
        index,
        operator,
        value,
        value_two,
    } = *condition;
    let low_at = ARGUMENTS_AT + 8 * u32::from(index);
    let load_high = Check::Do(Instruction::plain(LOAD, low_at + 4));
    let load_low = Check::Do(Instruction::plain(LOAD, low_at));
    let (high, low) = halves(value);
    match operator {
        Equal => vec![
            load_high,
            Check::If(IF_EQUAL, high, To::Next, To::Fails),
            load_low,
            Check::If(IF_EQUAL, low, To::Holds, To::Fails),
        ],
        NotEqual => vec![
            load_high,
            Check::If(IF_EQUAL, high, To::Next, To::Holds),
            load_low,
            Check::If(IF_EQUAL, low, To::Fails, To::Holds),
        ],
        Greater | GreaterOrEqual | Less | LessOrEqual => {
            let (above, below) = match operator {
                Greater | GreaterOrEqual => (To::Holds, To::Fails),
                _ => (To::Fails, To::Holds),
            };
            // What is equal to the value is above it for two of them, and below it for the others.
            let code = match operator {
                Greater | LessOrEqual => IF_GREATER,
                _ => IF_AT_LEAST,
            };
            vec![
                load_high,
                Check::If(IF_GREATER, high, above, To::Next),
                Check::If(IF_EQUAL, high, To::Next, below),
                load_low,
                Check::If(code, low, above, below),
            ]
        }
        MaskedEqual => {
            let (high_two, low_two) = halves(value_two);
            vec![
                load_high,
                Check::Do(Instruction::plain(AND, high)),
                Check::If(IF_EQUAL, high_two, To::Next, To::Fails),
                load_low,
                Check::Do(Instruction::plain(AND, low)),
                Check::If(IF_EQUAL, low_two, To::Holds, To::Fails),
            ]
        }
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
