//! The vCPUs at work: a thread for each, which can all be stopped between two instructions and let go on.
//!
//! A vCPU is owned by its thread while it runs, and by the crew while it stands: whoever stops the crew can read every vCPU, and
//! nobody can read one that runs.
//!
//! ```text
//! thread "vcpuN"       KVM_RUN … the gate is closed: Vcpu ──────► Crew      event loop's thread
//!                      KVM_RUN … ◄────── Vcpu    the gate is open ─┘
//! ```

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;

use vmm_sys_util::signal::{Killable, block_signal};

use super::notice::{Notice, Notifier};
use super::vcpu::{Gate, Vcpu};
use super::{RunError, ThreadRole};

/// The vCPUs of a machine that was started.
#[derive(Debug)]
pub(super) struct Crew {
    gate: Gate,
    members: Vec<Member>,
    arrivals: Receiver<Vcpu>,
    standing: Vec<Vcpu>,
}

/// A vCPU's thread.
#[derive(Debug)]
struct Member {
    thread: JoinHandle<()>,
    /// Where its vCPU comes back.
    place: SyncSender<Vcpu>,
}

impl Crew {
    /// Starts a thread for each vCPU, and jails this one too. No vCPU enters the guest before every thread is jailed.
    pub(super) fn start<J>(
        vcpus: Vec<Vcpu>,
        gate: Gate,
        notifier: &Notifier,
        jail: &J,
        own_role: ThreadRole,
    ) -> Result<Self, RunError>
    where
        J: Fn(ThreadRole) -> io::Result<()> + Clone + Send + 'static,
    {
        block_signal(Gate::KICK).map_err(|_| RunError::Signal)?;
        let jailed = Arc::new(Barrier::new(vcpus.len() + 1));
        let (arrive, arrivals) = sync_channel(vcpus.len());
        let mut members = Vec::with_capacity(vcpus.len());
        for vcpu in vcpus {
            vcpu.let_kicks_through().map_err(|_| RunError::Signal)?;
            let jail = jail.clone();
            let jailed = Arc::clone(&jailed);
            let (arrive, notifier) = (arrive.clone(), notifier.clone());
            let (place, own_place) = sync_channel(1);
            let stand = move |vcpu: Vcpu| {
                arrive.send(vcpu).ok()?;
                notifier.wake();
                let vcpu = own_place.recv().ok()?;
                Gate::forget_kick();
                Some(vcpu)
            };
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{}", vcpu.index))
                .spawn(move || {
                    let result = jail(ThreadRole::Vcpu);
                    if let Err(error) = &result {
                        let reason = format!("cannot jail a vCPU thread: {error}");
                        vcpu.notifier.notify(Notice::GuestFault(reason));
                    }
                    jailed.wait();
                    if result.is_ok() {
                        vcpu.run(stand);
                    }
                })
                .map_err(RunError::Thread)?;
            members.push(Member { thread, place });
        }
        jail(own_role).map_err(RunError::Jail)?;
        jailed.wait();
        Ok(Self {
            gate,
            members,
            arrivals,
            standing: Vec::new(),
        })
    }

    /// Calls every vCPU out of the guest. They stand some time later: see [`Self::all_stand`].
    pub(super) fn stop(&self) -> Result<(), RunError> {
        self.gate.close();
        for member in &self.members {
            member
                .thread
                .kill(Gate::KICK)
                .map_err(|_| RunError::Signal)?;
        }
        Ok(())
    }

    /// Opens the gate for good: those that found it closed are let go as they come.
    pub(super) fn never_mind(&mut self) {
        self.standing.extend(self.arrivals.try_iter());
        self.go_on();
    }

    /// Whether every vCPU stands. The event loop is woken whenever one more does.
    pub(super) fn all_stand(&mut self) -> bool {
        self.standing.extend(self.arrivals.try_iter());
        self.standing.sort_by_key(|vcpu| vcpu.index);
        self.standing.len() == self.members.len()
    }

    /// The vCPUs that stand, in their order.
    pub(super) fn standing(&self) -> &[Vcpu] {
        &self.standing
    }

    /// Lets those that stand go on.
    pub(super) fn go_on(&mut self) {
        self.gate.open();
        for vcpu in self.standing.drain(..) {
            if let Some(member) = self.members.get(vcpu.index) {
                // A thread that is gone has said why.
                let _ = member.place.send(vcpu);
            }
        }
    }
}
