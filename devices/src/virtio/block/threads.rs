//! Threads on which disks do what may take long, so that the event loop goes on.
//!
//! Who runs the machine makes the threads, and jails them, before the guest runs: no thread is made later. What a device hands in
//! before there is a thread is done once there is one.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// One thing to do.
type Task = Box<dyn FnOnce() + Send>;

/// The tasks of some disks, and the threads that wait for them. Clones name the same threads.
#[derive(Clone, Default)]
pub struct DiskThreads(Arc<Tasks>);

#[derive(Default)]
struct Tasks {
    waiting: Mutex<VecDeque<Task>>,
    more: Condvar,
}

impl DiskThreads {
    /// Makes room for tasks; no thread yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Does tasks for as long as the process lives: the whole life of one of the threads.
    pub fn work(&self) -> ! {
        loop {
            let task = self.next();
            task();
        }
    }

    /// Has a task done by the next thread that is free.
    pub(super) fn submit(&self, task: Task) {
        self.waiting().push_back(task);
        self.0.more.notify_one();
    }

    fn next(&self) -> Task {
        let mut waiting = self.waiting();
        loop {
            if let Some(task) = waiting.pop_front() {
                return task;
            }
            waiting = self
                .0
                .more
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nothing panics while it holds the lock; were it otherwise, the tasks are still whole.
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Task>> {
        self.0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for DiskThreads {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DiskThreads({} tasks)", self.waiting().len())
    }
}
