//! CPU time of a task, by the coarse clock: exact over many switches, and cheap at each one.

use core::sync::atomic::{AtomicU64, Ordering};

use sentry_base::{Nanos, mono_now};

/// User and system time of one task.
#[derive(Debug, Default)]
pub struct CpuClock {
    user: AtomicU64,
    system: AtomicU64,
    /// When application code was entered; 0 while it does not run.
    entered: AtomicU64,
    /// When the Sentry was entered; 0 while application code runs or the task sleeps.
    trapped: AtomicU64,
}

fn coarse_now() -> Nanos {
    sentry_base::clock::coarse_now()
}

impl CpuClock {
    /// Application code starts.
    pub(crate) fn enter_app(&self) {
        let now = coarse_now();
        self.close_system(now);
        self.entered.store(now, Ordering::Relaxed);
    }

    /// Application code trapped.
    pub(crate) fn leave_app(&self) {
        let now = coarse_now();
        let entered = self.entered.swap(0, Ordering::Relaxed);
        if entered != 0 {
            self.user.fetch_add(now.saturating_sub(entered), Ordering::Relaxed);
        }
        self.trapped.store(now, Ordering::Relaxed);
    }

    /// The task goes to sleep.
    pub(crate) fn block(&self) {
        self.close_system(coarse_now());
    }

    /// The task woke up.
    pub(crate) fn unblock(&self) {
        self.trapped.store(coarse_now(), Ordering::Relaxed);
    }

    fn close_system(&self, now: Nanos) {
        let trapped = self.trapped.swap(0, Ordering::Relaxed);
        if trapped != 0 {
            self.system.fetch_add(now.saturating_sub(trapped), Ordering::Relaxed);
        }
    }

    /// User and system time in nanoseconds, the present run included.
    pub fn times(&self) -> (u64, u64) {
        let mut user = self.user.load(Ordering::Relaxed);
        let entered = self.entered.load(Ordering::Relaxed);
        if entered != 0 {
            user = user.saturating_add(mono_now().saturating_sub(entered));
        }
        (user, self.system.load(Ordering::Relaxed))
    }
}
