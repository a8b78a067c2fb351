//! PID 1 of the guest: mounts, rings, listens, runs containers for the host, ends the machine.
//!
//! It never exits and never panics by intent: an error is reported on the console, which is the kernel's log, and the machine
//! ends. With `--listen SOCKET` it serves on a Unix socket instead and touches neither mounts nor
//! doorbell, so that the containers can be tested without a machine. `--stage FILE` after it names a request (postcard) whose
//! container is built ahead.

#![deny(unsafe_code)]

mod boot;
mod clone;
mod connections;
mod container;
mod doorbell;
mod fork_point;
mod network;
mod process;
mod pump;
mod server;
mod spec;
mod step;
mod sys;

use std::error::Error;
use std::os::fd::OwnedFd;
use std::path::Path;

use container::{Plan, Staged};
use doorbell::{Doorbell, Mailbox, Vmm};
use protocol::{Create, Handover};
use server::{Server, Stop};

fn main() {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [option, socket] if option == "--listen" => {
            report(serve_without_machine(Path::new(socket), None))
        }
        [option, socket, second, create] if option == "--listen" && second == "--stage" => report(
            serve_without_machine(Path::new(socket), Some(Path::new(create))),
        ),
        // The kernel passes on what it did not understand of its command line.
        _ => be_init(),
    }
}

/// Lives the whole life of the machine.
fn be_init() -> ! {
    let vmm = Doorbell::map().and_then(|doorbell| {
        let mailbox = Mailbox::map()?;
        Ok(Vmm { doorbell, mailbox })
    });
    report(boot_and_serve(vmm.as_ref().ok()));
    container::volumes::settle();
    rustix::fs::sync();
    match &vmm {
        Ok(vmm) => vmm.doorbell.ring(protocol::DOORBELL_END),
        Err(error) => report(Err(format!("mapping the doorbell: {error}").into())),
    }
    // Where nobody hears the doorbell, the machine still ends.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    loop {
        rustix::event::pause();
    }
}

fn boot_and_serve(vmm: Option<&Vmm>) -> Result<(), Box<dyn Error>> {
    boot::mount_filesystems()?;
    boot::quieten_kernel();
    let children = sys::child_signals()?;
    let listener = sys::listen_vsock(protocol::AGENT_PORT)?;
    let mut staged = None;
    if let Some(Vmm { doorbell, mailbox }) = vmm {
        staged = mailbox.take::<Create>()?.and_then(stage);
        // What comes back from this may be a clone.
        doorbell.ring(protocol::DOORBELL_FREEZE);
        match mailbox.take::<Handover>()? {
            None => doorbell.ring(protocol::DOORBELL_READY),
            Some(handover) => {
                clone::become_another(&handover)?;
                doorbell.ring(protocol::DOORBELL_HANDED_OVER);
            }
        }
    }
    serve(listener, children, staged, vmm)
}

/// Builds a container ahead. One that cannot be built is left to whoever wants it and can be told why not.
fn stage(create: Create) -> Option<Staged> {
    let staged = Plan::new(create).and_then(Plan::stage);
    sys::fault_in();
    staged
        .map_err(|failure| report(Err(format!("no container is ready: {failure}").into())))
        .ok()
}

fn serve(
    listener: OwnedFd,
    children: OwnedFd,
    staged: Option<Staged>,
    vmm: Option<&Vmm>,
) -> Result<(), Box<dyn Error>> {
    match Server::new(listener, children, staged, vmm).run() {
        Stop::PowerOff | Stop::HungUp => Ok(()),
        stop => Err(stop.into()),
    }
}

fn serve_without_machine(socket: &Path, create: Option<&Path>) -> Result<(), Box<dyn Error>> {
    let children = sys::child_signals()?;
    let staged = match create {
        Some(file) => stage(postcard::from_bytes(&std::fs::read(file)?)?),
        None => None,
    };
    let listener = std::os::unix::net::UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    serve(listener.into(), children, staged, None)
}

/// Says on the console what went wrong and ends nothing.
fn warn(failure: &protocol::StartFailure) {
    report(Err(format!("warning: {failure}").into()));
}

/// Says on the console what went wrong.
#[expect(
    clippy::print_stderr,
    reason = "standard error of PID 1 is the console, which is the kernel's log"
)]
fn report(result: Result<(), Box<dyn Error>>) {
    let Err(error) = result else { return };
    let mut chain = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        chain.push_str(": ");
        chain.push_str(&cause.to_string());
        source = cause.source();
    }
    eprintln!("agent: {chain}");
}
