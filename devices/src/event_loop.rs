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
