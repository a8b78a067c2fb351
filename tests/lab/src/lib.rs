//! A lab: a Debian machine with a complete KVM, on any machine.
//!
//! Many machines offer no hardware virtualisation to those who work on them, and their clocks are as noisy as their
//! neighbours. QEMU's TCG emulates an AMD processor with SVM, on which Debian's own kernel loads `kvm-amd`: a complete KVM,
//! slow and faithful. With instruction counting one instruction takes one nanosecond of the lab's clock, whatever the
//! machine outside is doing. So a duration read inside is a count of instructions that everybody can repeat.
//!
//! ```text
//! here                                       the lab
//! Tree ── cpio ──> initramfs ──> QEMU (TCG) ── Debian's kernel ── init ── the command
//! stdout, stderr, exit code <── serial lines ──────────────────────────────────'
//! ```
//!
//! - [`Parts`]: the QEMU and the kernel that a lab is made of.
//! - [`Tree`]: the files that are in it.
//! - [`Lab`]: boots it, runs one command and returns how that ended.
//!
//! It is not a model of time: an exit from a guest costs hardware about a microsecond that instructions do not show, and there
//! are no caches. Count exits beside it.

mod error;
mod interrupt;
mod machine;
mod parts;
mod pulse;
mod stopwatch;
mod tree;

pub use error::{LabError, chain};
pub use interrupt::end_on_signals;
pub use machine::{Clock, Ended, Lab};
pub use parts::Parts;
pub use stopwatch::{Times, time};
pub use tree::Tree;
