//! Questions to the agent that are under way, and what has come of their answers.

use std::collections::BTreeMap;

use protocol::{Answer, MAX_PROCESSES, MAX_VOLUMES, ProcessInfo, ProcessList};

use super::clean;
use super::event::Asker;

/// How many questions may wait for an answer: more than clients can ask at once. Beyond that, the agent does not answer, and the one
/// that waits longest is given up.
const MAX_WAITING: usize = 512;

/// The questions under way.
#[derive(Debug, Default)]
pub(super) struct Questions {
    /// How many were asked; the last one's number.
    asked: u32,
    waiting: BTreeMap<u32, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    asker: Box<dyn Asker>,
    /// What has come of a list.
    processes: Vec<ProcessInfo>,
}

impl Questions {
    /// Notes who asks, and gives the question its number.
    pub(super) fn note(&mut self, asker: Box<dyn Asker>) -> u32 {
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.pop_first();
        }
        self.asked = self.asked.wrapping_add(1);
        let waiting = Waiting {
            asker,
            processes: Vec::new(),
        };
        self.waiting.insert(self.asked, waiting);
        self.asked
    }

    /// Whether there was a question of this number. It may be given up, or answered.
    pub(super) fn is_asked(&self, number: u32) -> bool {
        (1..=self.asked).contains(&number)
    }

    /// Takes an answer, or a part of one. What nobody waits for is dropped.
    pub(super) fn hear(&mut self, number: u32, answer: Answer) {
        let Some(mut waiting) = self.waiting.remove(&number) else {
            return;
        };
        let answer = match answer {
            Answer::Usage(_) | Answer::Limited => answer,
            Answer::Grown(mut lengths) => {
                lengths.truncate(MAX_VOLUMES);
                Answer::Grown(lengths)
            }
            Answer::Failed(_) => match answer.bounded() {
                Answer::Failed(message) => Answer::Failed(clean(&message)),
                other => other,
            },
            Answer::Processes(mut list) => {
                let room = MAX_PROCESSES.saturating_sub(waiting.processes.len());
                list.is_cut |= list.processes.len() > room;
                let processes = list.processes.drain(..).take(room);
                waiting.processes.extend(processes.map(printable));
                if !list.is_last {
                    self.waiting.insert(number, waiting);
                    return;
                }
                Answer::Processes(ProcessList {
                    processes: waiting.processes,
                    is_last: true,
                    ..list
                })
            }
        };
        waiting.asker.answered(answer);
    }
}

/// The guest's words, fit for a terminal.
fn printable(process: ProcessInfo) -> ProcessInfo {
    let process = process.bounded();
    ProcessInfo {
        name: clean(&process.name),
        arguments: clean(&process.arguments),
        ..process
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use protocol::Usage;

    use super::*;

    /// Passes the answer on.
    #[derive(Debug)]
    struct Told(Sender<Answer>);

    impl Asker for Told {
        fn answered(self: Box<Self>, answer: Answer) {
            self.0.send(answer).unwrap();
        }
    }

    fn asker() -> (Box<Told>, Receiver<Answer>) {
        let (sender, receiver) = channel();
        (Box::new(Told(sender)), receiver)
    }

    fn part(names: &[&str], is_last: bool) -> Answer {
        let process = |name: &&str| ProcessInfo {
            name: (*name).to_owned(),
            arguments: "x".repeat(5000),
            ..ProcessInfo::default()
        };
        Answer::Processes(ProcessList {
            processes: names.iter().map(process).collect(),
            is_last,
            ..ProcessList::default()
        })
    }

    #[test]
    fn answers_find_who_asked_whatever_their_order() {
        let mut questions = Questions::default();
        let ((one, of_one), (other, of_other)) = (asker(), asker());
        let (first, second) = (questions.note(one), questions.note(other));

        questions.hear(second, Answer::Limited);
        questions.hear(first, Answer::Usage(Usage::default()));
        questions.hear(first, Answer::Limited);

        assert_eq!(of_other.try_recv(), Ok(Answer::Limited));
        assert_eq!(of_one.try_recv(), Ok(Answer::Usage(Usage::default())));
        assert!(of_one.try_recv().is_err());
        assert!(questions.is_asked(second) && !questions.is_asked(second + 1));
    }

    #[test]
    fn a_list_is_whole_bounded_and_cannot_command_a_terminal() {
        let mut questions = Questions::default();
        let (asker, told) = asker();
        let number = questions.note(asker);

        questions.hear(number, part(&["a\u{1b}[2J"; 600], false));
        assert!(told.try_recv().is_err());
        questions.hear(number, part(&["b"; 600], true));

        let Ok(Answer::Processes(list)) = told.try_recv() else {
            unreachable!("the list is told");
        };
        assert_eq!(list.processes.len(), MAX_PROCESSES);
        assert!(list.is_cut);
        assert_eq!(list.processes[0].name, "a\u{FFFD}[2J");
        assert_eq!(list.processes[0].arguments.len(), 1024);
    }

    #[test]
    fn an_agent_that_does_not_answer_is_not_waited_for_without_a_bound() {
        let mut questions = Questions::default();
        let (longest, told) = asker();
        questions.note(longest);
        for _ in 0..MAX_WAITING {
            questions.note(asker().0);
        }

        assert_eq!(questions.waiting.len(), MAX_WAITING);
        assert!(told.recv().is_err());
    }

    #[test]
    fn a_refusal_is_one_printable_sentence() {
        let mut questions = Questions::default();
        let (asker, told) = asker();
        let number = questions.note(asker);

        questions.hear(number, Answer::Failed("no\u{7}".repeat(5000)));

        let Ok(Answer::Failed(message)) = told.try_recv() else {
            unreachable!("the refusal is told");
        };
        assert!(message.len() < 10_000 && !message.contains('\u{7}'));
    }
}
