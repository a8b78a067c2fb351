//! A machine under way: what is done with it as a whole while its guest runs.
//!
//! One thing at a time: it is paused and resumed, or written down when its agent says that it may be. Nothing here waits; what has
//! to wait for the guest goes on in [`Running::advance`], and whoever asked is told in an [`Answer`].

use std::fmt;
use std::fs::File;
use std::io::Write;

use devices::doorbell::Ring;
use kvm_bindings::CpuId;
use kvm_ioctls::Kvm;

use super::crew::Crew;
use super::notice::Notice;
use super::{Board, BuildError, Machine, RunError, SavedMachine, ThreadRole, kvm_refuses, saved};
use crate::report::chain;

/// What whoever runs a machine wants of it.
#[derive(Debug)]
pub enum Order {
    /// Let it end.
    Stop,
    /// Let every vCPU stand.
    Pause(Answer),
    /// Let them go on.
    Resume(Answer),
    /// Write it down when its agent says that it may be, and let it go on.
    Save {
        /// Where to.
        files: Box<SaveFiles>,
        /// Told when that is done.
        answer: Answer,
    },
    /// Do not wait for the agent any longer.
    GiveUp,
    /// Let the guest know how large its disks are by now.
    Grow(Answer),
}

/// Where a machine is written down.
#[derive(Debug)]
pub struct SaveFiles {
    /// Gets all but the memory: a [`SavedMachine`] in postcard.
    pub state: File,
    /// Gets the memory; long enough for it, and empty there.
    pub memory: File,
    /// Where in that file the RAM begins; a multiple of a page.
    pub memory_offset_bytes: u64,
    /// Whether only what was written to since the last time is wanted.
    pub only_changes: bool,
    /// Whether there may be such a next time.
    pub tracks_changes: bool,
    /// Whether the machine stands still afterwards.
    pub stays: bool,
}

/// Tells whoever gave an order what came of it; a sentence if nothing did.
pub struct Answer(Box<dyn FnOnce(Result<(), String>) + Send>);

impl Answer {
    /// Makes an answer that is given by calling `tell`.
    pub fn new(tell: impl FnOnce(Result<(), String>) + Send + 'static) -> Self {
        Self(Box::new(tell))
    }

    pub(super) fn tell(self, result: Result<(), String>) {
        (self.0)(result);
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Answer")
    }
}

/// A started machine.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) crew: Crew,
    pub(super) board: Board,
    cpuid: CpuId,
    motion: Motion,
}

/// How the machine moves.
#[derive(Debug)]
enum Motion {
    Going,
    /// The agent was asked to let the machine be frozen.
    AwaitingFreeze(Box<SaveFiles>, Answer),
    /// The agent said so: the vCPUs are about to stand.
    Freezing(Box<SaveFiles>, Answer),
    /// The vCPUs are about to stand.
    Pausing(Answer),
    Paused,
}

impl Running {
    pub(super) fn start<J>(machine: Machine, jail: &J) -> Result<Self, RunError>
    where
        J: Fn(ThreadRole) -> std::io::Result<()> + Clone + Send + 'static,
    {
        let Machine {
            vcpus,
            cpuid,
            board,
        } = machine;
        start_disk_threads(&board, jail)?;
        let crew = Crew::start(
            vcpus,
            board.gate.clone(),
            &board.notifier,
            jail,
            ThreadRole::EventLoop,
        )?;
        Ok(Self {
            crew,
            board,
            cpuid,
            motion: Motion::Going,
        })
    }

    pub(super) fn pause(&mut self, answer: Answer) -> Result<(), RunError> {
        match self.motion {
            Motion::Going => {
                self.crew.stop()?;
                self.motion = Motion::Pausing(answer);
            }
            Motion::Paused => answer.tell(Err("it is paused already".to_owned())),
            _ => answer.tell(Err(BUSY.to_owned())),
        }
        Ok(())
    }

    pub(super) fn resume(&mut self, answer: Answer) {
        match self.motion {
            Motion::Paused => {
                self.go_on();
                answer.tell(Ok(()));
            }
            Motion::Going => answer.tell(Err("it is not paused".to_owned())),
            _ => answer.tell(Err(BUSY.to_owned())),
        }
    }

    /// Waits for the agent's word that the machine may be frozen.
    pub(super) fn await_freeze(&mut self, files: SaveFiles, answer: Answer) {
        match self.motion {
            Motion::Going => {
                self.board.gate.arm(true);
                self.motion = Motion::AwaitingFreeze(Box::new(files), answer);
            }
            Motion::Paused => answer.tell(Err("it is paused".to_owned())),
            _ => answer.tell(Err(BUSY.to_owned())),
        }
    }

    /// Waits no longer for the agent's word. If that has come meanwhile, the machine is written down.
    pub(super) fn give_up(&mut self) {
        if let Motion::AwaitingFreeze(..) = self.motion {
            self.refuse("its agent does not answer");
        }
    }

    /// Takes notice of the doorbell.
    pub(super) fn hear(&mut self, ring: Ring) -> Result<(), RunError> {
        match ring {
            Ring::MayFreeze if matches!(self.motion, Motion::AwaitingFreeze(..)) => {
                // The one that rang stops by itself; the others may be inside the guest.
                self.crew.stop()?;
                if let Motion::AwaitingFreeze(files, answer) =
                    std::mem::replace(&mut self.motion, Motion::Going)
                {
                    self.motion = Motion::Freezing(files, answer);
                }
            }
            Ring::CannotFreeze => self.refuse("its workload cannot be stopped"),
            Ring::NoForkPoint => self.refuse("its workload does not wait at a fork point"),
            _ => {}
        }
        Ok(())
    }

    fn refuse(&mut self, reason: &str) {
        match std::mem::replace(&mut self.motion, Motion::Going) {
            Motion::AwaitingFreeze(_, answer) => {
                self.board.gate.arm(false);
                // The agent's word may just be on its way, or have been lost among more rings than there is room for.
                self.crew.never_mind();
                answer.tell(Err(reason.to_owned()));
            }
            other => self.motion = other,
        }
    }

    /// Does what waited for the vCPUs, once they stand.
    pub(super) fn advance(&mut self, kvm: &Kvm) -> Result<(), RunError> {
        match self.motion {
            Motion::Going => {
                self.crew.never_mind();
                return Ok(());
            }
            Motion::AwaitingFreeze(..) | Motion::Paused => return Ok(()),
            Motion::Freezing(..) | Motion::Pausing(_) if !self.crew.all_stand() => return Ok(()),
            Motion::Freezing(..) | Motion::Pausing(_) => {}
        }
        match std::mem::replace(&mut self.motion, Motion::Paused) {
            Motion::Pausing(answer) => answer.tell(Ok(())),
            Motion::Freezing(files, answer) => {
                self.board.gate.arm(false);
                let saved = self.write_down(kvm, &files);
                if !files.stays || saved.is_err() {
                    self.go_on();
                }
                answer.tell(saved);
            }
            other => self.motion = other,
        }
        Ok(())
    }

    /// Writes the machine down while every vCPU stands; why not, as a sentence.
    pub(super) fn write_down(&mut self, kvm: &Kvm, files: &SaveFiles) -> Result<(), String> {
        let saved = self.save(kvm, files).map_err(|error| chain(&error))?;
        let bytes = postcard::to_stdvec(&saved).map_err(|error| error.to_string())?;
        (&files.state)
            .write_all(&bytes)
            .map_err(|error| format!("its state cannot be written: {error}"))
    }

    fn save(&mut self, kvm: &Kvm, files: &SaveFiles) -> Result<SavedMachine, BuildError> {
        let msr_indices = saved::msr_indices(kvm)?;
        self.board
            .save(self.crew.standing(), &self.cpuid, &msr_indices, files)
    }

    fn go_on(&mut self) {
        for vcpu in self.crew.standing() {
            // Tells the guest that it stood, so that its watchdogs do not bark. A guest without such a clock has none.
            let told = vcpu.fd.kvmclock_ctrl().map_err(kvm_refuses("a pause"));
            if let Err(error) = told {
                tracing::debug!(error = chain(&error), "the guest is not told of its pause");
            }
        }
        self.crew.go_on();
        self.motion = Motion::Going;
    }
}

/// Starts the threads that carry out requests of disks. One that cannot be jailed ends the machine before it does anything.
fn start_disk_threads<J>(board: &Board, jail: &J) -> Result<(), RunError>
where
    J: Fn(ThreadRole) -> std::io::Result<()> + Clone + Send + 'static,
{
    for threads in &board.disks.threads {
        let (threads, jail, notifier) = (threads.clone(), jail.clone(), board.notifier.clone());
        std::thread::Builder::new()
            .name("disk".to_owned())
            .spawn(move || match jail(ThreadRole::Disk) {
                Ok(()) => threads.work(),
                Err(error) => notifier.notify(Notice::GuestFault(format!(
                    "cannot jail a disk's thread: {error}"
                ))),
            })
            .map_err(RunError::Thread)?;
    }
    Ok(())
}

/// Why an order is refused while another one is carried out.
const BUSY: &str = "something else is being done with it";
