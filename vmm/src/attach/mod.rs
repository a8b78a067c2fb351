//! What a machine in the background and the clients that attach to it have between them.
//!
//! ```text
//!            ┌─ pipe ─► Collector, a thread of the monitor ─┬─► the log
//! workload ──┤                                              └─► a socket for each stream of each client ─► client
//!            └◄──────────── one socket pair, of which each client with an input has the other end ◄────────┘
//! ```
//!
//! The sockets are handed over through the machine's control socket, and a client is a process of its own, which moves their bytes by the
//! code that moves the workload's ([`crate::agent_link`]). Who is shown what is [`Audience`]; how a client leaves is [`DetachKeys`].

mod audience;
mod keys;

pub use self::audience::{Audience, Listener, Patience};
pub use self::keys::{DetachKeys, DetachKeysError, KeyFilter, Passed};
