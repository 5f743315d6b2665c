//! Timers of the whole Sentry: one ordered set, fired by whichever worker looks next.
//!
//! No thread of its own: a worker parks no longer than the earliest deadline.

use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::{Nanos, mono_now};
use crate::lock::{Mutex, rank};

/// What happens when a timer expires. Called on a worker, without locks.
pub trait TimerTarget: Send + Sync {
    fn fire(self: Arc<Self>);
}

/// Names a pending timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerId {
    at: Nanos,
    serial: u64,
}

/// The pending timers.
pub struct Timers {
    pending: Mutex<BTreeMap<TimerId, Arc<dyn TimerTarget>>, { rank::RUN_QUEUE }>,
    serial: AtomicU64,
    /// The earliest deadline, `u64::MAX` for none: read without the lock on every turn of a worker.
    earliest: AtomicU64,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            pending: Mutex::new(BTreeMap::new()),
            serial: AtomicU64::new(0),
            earliest: AtomicU64::new(u64::MAX),
        }
    }
}

impl core::fmt::Debug for Timers {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Timers")
    }
}

impl Timers {
    /// Fires `target` at `at` (`CLOCK_MONOTONIC`) or a little later.
    ///
    /// When called from outside a worker, wake one afterwards: it may sleep past the new deadline.
    pub fn add(&self, at: Nanos, target: Arc<dyn TimerTarget>) -> TimerId {
        let id = TimerId { at, serial: self.serial.fetch_add(1, Ordering::Relaxed) };
        let mut pending = self.pending.lock();
        pending.insert(id, target);
        self.publish(&pending);
        id
    }

    /// Removes a timer; true if it had not fired yet.
    pub fn cancel(&self, id: TimerId) -> bool {
        let mut pending = self.pending.lock();
        let removed = pending.remove(&id);
        self.publish(&pending);
        drop(pending);
        removed.is_some()
    }

    /// The earliest deadline.
    pub fn earliest(&self) -> Option<Nanos> {
        match self.earliest.load(Ordering::SeqCst) {
            u64::MAX => None,
            at => Some(at),
        }
    }

    /// Fires what is due and returns how many were.
    pub fn fire_due(&self) -> usize {
        match self.earliest() {
            Some(at) if at <= mono_now() => {}
            _ => return 0,
        }
        let now = mono_now();
        let mut due = Vec::new();
        {
            let mut pending = self.pending.lock();
            while let Some(entry) = pending.first_entry() {
                if entry.key().at > now {
                    break;
                }
                due.push(entry.remove());
            }
            self.publish(&pending);
        }
        let count = due.len();
        for target in due {
            target.fire();
        }
        count
    }

    fn publish(&self, pending: &BTreeMap<TimerId, Arc<dyn TimerTarget>>) {
        let at = pending.first_key_value().map_or(u64::MAX, |(id, _)| id.at);
        self.earliest.store(at, Ordering::SeqCst);
    }
}
