//! The threads of a monitor that outlive the run in which they began.
//!
//! A VM process is forked, and nobody forks while there are threads (see [`process::fork`](crate::process::fork)): before the next one,
//! they are waited for.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

/// Threads that end by themselves: soon, or with the machine.
#[derive(Debug, Default)]
pub struct Threads(Mutex<Vec<JoinHandle<()>>>);

impl Threads {
    /// Starts one more.
    pub(super) fn start(&self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let started = Builder::new().name(name.to_owned()).spawn(body)?;
        let mut running = self.running();
        running.retain(|thread| !thread.is_finished());
        running.push(started);
        Ok(())
    }

    /// Waits until all have ended. To be called once the machine is gone.
    pub fn join(&self) {
        let running = std::mem::take(&mut *self.running());
        for thread in running {
            if thread.join().is_err() {
                tracing::warn!("a thread of the monitor failed");
            }
        }
    }

    fn running(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn all_that_were_started_have_ended_once_they_were_waited_for() {
        let (threads, ended) = (Threads::default(), Arc::new(AtomicU32::new(0)));
        for _ in 0..3 {
            let ended = Arc::clone(&ended);
            let count = move || {
                ended.fetch_add(1, Ordering::SeqCst);
            };
            threads.start("test", count).unwrap();
        }

        threads.join();

        assert_eq!(ended.load(Ordering::SeqCst), 3);
    }
}
