//! Machines on record: their directories, names, locks and control sockets, without a daemon.
//!
//! The monitor of a machine creates it in the [`Registry`] and holds it as an [`OwnedMachine`] for
//! as long as it lives; every other command reads the record, looks at the lock and talks to the
//! monitor by the control socket.

mod control;
mod detach;
mod health;
mod id;
mod name;
mod record;
mod registry;
mod settings;
mod signal;
mod words;

pub use control::{
    Action, Answerer, Asked, AttachOffer, AttachRequest, Attached, AttachedTeller, Attachment,
    Control, ControlClient, ControlError, ControlServer, ExecRequest, Session, SessionNews,
    SessionOffer, SessionTeller,
};
pub use detach::{DetachError, StartReporter, StartWaiter, detach};
pub use health::HealthMark;
pub use id::{IdError, MachineId};
pub use name::{MachineName, NameError};
pub use record::{Cause, Ended, History, ImageLabel, Record, Status, Timestamp};
pub use registry::{
    BLUEPRINT, Condition, LOCK, Machine, NewMachine, Notes, OwnedMachine, PauseMark, Registry,
    StateError,
};
pub use settings::{OtherLimits, Settings};
pub use signal::{Signal, SignalError};
