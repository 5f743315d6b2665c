//! Signals: what is pending, what is done with it, who is told (`signal(7)`, `kernel/signal.c`).
//!
//! A process's signal state is under its lock of rank `SigHand`; each task's own part is under the task's lock of rank
//! `Task`, which is taken inside. A task learns of a signal through its work flags, its sleeper and, while it
//! runs application code, a kick.

mod actions;
mod deliver;
mod frame;
mod mask;
mod pending;
mod send;
mod stop;

pub use actions::{Actions, Disposition};
pub use frame::{FaultRecord, alt_stack, fuzz, set_alt_stack, sigreturn};
pub use pending::Pending;
pub use send::Origin;

pub(crate) use deliver::{Outcome, interrupt};
pub(crate) use send::recalc;

use abi::signal::{SigSet, sig};

/// The signals that stop a process.
pub(crate) const STOPS: SigSet = SigSet::of_all(&[sig::STOP, sig::TSTP, sig::TTIN, sig::TTOU]);
