//! The event loop: the one thread on which all device workers run.
//!
//! A thin layer over `event-manager` that adds what the transports need: a [`Handle`] by which a
//! vCPU thread moves a [`Worker`] onto the loop and gets it back. Moving is synchronous, so after
//! [`Handle::stop`] has returned, nothing of that device runs and its queues lie still.
//!
//! The thread that runs the loop must never wait for a vCPU thread: a vCPU inside a device reset
//! waits for the loop.

use std::fmt;

use event_manager::{
    EventManager, EventOps, Events, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps,
};
use thiserror::Error;

use crate::virtio::Worker;

/// Why the event loop could not do what it was asked.
#[derive(Debug, Error)]
pub enum EventLoopError {
    /// The loop could not be made.
    #[error("cannot create the event loop of the devices")]
    Create(#[source] event_manager::Error),
    /// Waiting for events failed.
    #[error("the event loop of the devices cannot wait for events")]
    Wait(#[source] event_manager::Error),
    /// The loop does not run any more, or does not know the worker.
    #[error("the event loop of the devices did not take the request")]
    Request(#[source] event_manager::Error),
    /// The id names something that is not a worker.
    #[error("the subscriber of the event loop is not a device worker")]
    NotAWorker,
}

impl From<event_manager::Error> for EventLoopError {
    fn from(error: event_manager::Error) -> Self {
        Self::Request(error)
    }
}

/// What can stand on the loop.
enum Subscriber {
    Worker(Box<dyn Worker>),
    Other(Box<dyn MutEventSubscriber + Send>),
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Worker(_) => "Worker",
            Self::Other(_) => "Other",
        })
    }
}

impl MutEventSubscriber for Subscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match self {
            Self::Worker(worker) => worker.process(events, ops),
            Self::Other(other) => other.process(events, ops),
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        match self {
            Self::Worker(worker) => worker.init(ops),
            Self::Other(other) => other.init(ops),
        }
    }
}

/// Names a worker that runs on the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerId(SubscriberId);

/// The event loop itself; lives on the thread that runs it.
///
/// Dropping it drops all workers; a transport that then resets its device finds it lost and tells
/// the guest `DEVICE_NEEDS_RESET`.
#[derive(Debug)]
pub struct EventLoop {
    manager: EventManager<Subscriber>,
}

impl EventLoop {
    /// Makes a loop on which nothing runs yet.
    ///
    /// # Errors
    ///
    /// Returns [`EventLoopError::Create`] if the kernel gives no epoll or event descriptor.
    pub fn new() -> Result<Self, EventLoopError> {
        // No more descriptors are ready at once than a machine's devices have queues and streams.
        const READY_EVENTS: usize = 64;
        let manager =
            EventManager::new_with_capacity(READY_EVENTS).map_err(EventLoopError::Create)?;
        Ok(Self { manager })
    }

    /// Returns a handle by which other threads put workers on this loop.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle {
            endpoint: self.manager.remote_endpoint(),
        }
    }

    /// Puts something that is not a device on the loop: a control channel, an exit event.
    pub fn add(&mut self, subscriber: Box<dyn MutEventSubscriber + Send>) {
        self.manager.add_subscriber(Subscriber::Other(subscriber));
    }

    /// Puts a worker on the loop, as [`Handle::start`] does from another thread.
    pub(crate) fn start(&mut self, worker: Box<dyn Worker>) -> WorkerId {
        WorkerId(self.manager.add_subscriber(Subscriber::Worker(worker)))
    }

    /// Returns a worker that runs on the loop.
    ///
    /// # Errors
    ///
    /// Returns [`EventLoopError::Request`] if the loop does not know it.
    pub(crate) fn worker(&mut self, id: WorkerId) -> Result<&dyn Worker, EventLoopError> {
        match self.manager.subscriber_mut(id.0)? {
            Subscriber::Worker(worker) => Ok(&**worker),
            Subscriber::Other(_) => Err(EventLoopError::NotAWorker),
        }
    }

    /// Waits for events, at most `timeout_ms` milliseconds (-1: for ever), and handles them.
    ///
    /// Returns how many there were; 0 after a signal or a timeout.
    ///
    /// # Errors
    ///
    /// Returns [`EventLoopError::Wait`] if epoll fails.
    pub fn run_once(&mut self, timeout_ms: i32) -> Result<usize, EventLoopError> {
        self.manager
            .run_with_timeout(timeout_ms)
            .map_err(EventLoopError::Wait)
    }
}

/// The way from other threads onto the loop; cheap to clone.
///
/// Its methods block until the loop has done the work. Calling them on the loop's own thread
/// would wait for ever.
#[derive(Clone, Debug)]
pub struct Handle {
    endpoint: RemoteEndpoint<Subscriber>,
}

impl Handle {
    /// Moves `worker` onto the loop, where its `init` registers its descriptors.
    ///
    /// # Errors
    ///
    /// Returns [`EventLoopError::Request`] if the loop is gone; the worker is then dropped.
    pub fn start(&self, worker: Box<dyn Worker>) -> Result<WorkerId, EventLoopError> {
        self.endpoint.call_blocking(move |manager| {
            Ok::<_, EventLoopError>(WorkerId(manager.add_subscriber(Subscriber::Worker(worker))))
        })
    }

    /// Takes the worker off the loop and gives it back.
    ///
    /// # Errors
    ///
    /// Returns [`EventLoopError::Request`] if the loop is gone or does not know the worker.
    pub fn stop(&self, id: WorkerId) -> Result<Box<dyn Worker>, EventLoopError> {
        self.endpoint
            .call_blocking(move |manager| match manager.remove_subscriber(id.0)? {
                Subscriber::Worker(worker) => Ok(worker),
                Subscriber::Other(_) => Err(EventLoopError::NotAWorker),
            })
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::virtio::{SavedQueue, VirtioDevice};

    /// Something on the loop that counts in an eventfd.
    struct Echo {
        input: EventFd,
        output: EventFd,
    }

    impl MutEventSubscriber for Echo {
        fn init(&mut self, ops: &mut EventOps) {
            let events = Events::new(&self.input, event_manager::EventSet::IN);
            ops.add(events).unwrap();
        }

        fn process(&mut self, _events: Events, _ops: &mut EventOps) {
            self.output.write(self.input.read().unwrap()).unwrap();
        }
    }

    impl Worker for Echo {
        fn stop(self: Box<Self>) -> Box<dyn VirtioDevice> {
            unreachable!("the tests do not stop it")
        }

        fn save(&self) -> Vec<SavedQueue> {
            unreachable!("the tests do not save it")
        }
    }

    fn echo() -> (Echo, EventFd, EventFd) {
        let input = EventFd::new(EFD_NONBLOCK).unwrap();
        let output = EventFd::new(EFD_NONBLOCK).unwrap();
        let subscriber = Echo {
            input: input.try_clone().unwrap(),
            output: output.try_clone().unwrap(),
        };
        (subscriber, input, output)
    }

    #[test]
    fn a_subscriber_hears_its_events() {
        let (subscriber, input, output) = echo();
        let mut events = EventLoop::new().unwrap();
        events.add(Box::new(subscriber));
        input.write(5).unwrap();
        assert_eq!(events.run_once(1000).unwrap(), 1);
        assert_eq!(output.read().unwrap(), 5);
    }

    #[test]
    fn a_worker_hears_nothing_after_it_was_stopped() {
        let (worker, input, output) = echo();
        let mut events = EventLoop::new().unwrap();
        let handle = events.handle();
        std::thread::scope(|scope| {
            let other = scope.spawn(move || {
                let id = handle.start(Box::new(worker)).unwrap();
                handle.stop(id).map(drop).unwrap();
            });
            while !other.is_finished() {
                events.run_once(1).unwrap();
            }
        });
        input.write(5).unwrap();
        // The loop may still hear the last of its own wake-ups; the worker must not hear anything.
        events.run_once(10).unwrap();
        assert!(output.read().is_err());
    }

    #[test]
    fn a_loop_that_is_gone_takes_no_worker() {
        let (worker, _input, _output) = echo();
        let handle = EventLoop::new().unwrap().handle();
        assert!(handle.start(Box::new(worker)).is_err());
    }
}
