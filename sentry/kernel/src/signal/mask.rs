//! Masks, and waiting for signals without handlers.

use std::sync::Arc;

use abi::signal::{SigInfo, SigSet};

use super::recalc;
use crate::Task;
use crate::task::work;

impl Task {
    /// Replaces the mask and returns the old one. SIGKILL and SIGSTOP stay unblocked.
    pub fn set_signal_mask(&self, mask: SigSet) -> SigSet {
        let group = self.group().signals.lock();
        let mut own = self.signals.lock();
        let newly_blocked = mask.without(own.mask);
        let old = core::mem::replace(&mut own.mask, mask.without(SigSet::UNBLOCKABLE));
        recalc(&group, self, &own);
        // A signal of the process that this thread can no longer take is another thread's now.
        let orphaned = group.pending.set().intersect(newly_blocked);
        drop(own);
        if !orphaned.is_empty() {
            for thread in group.threads.iter().filter(|t| !core::ptr::eq(Arc::as_ptr(t), self)) {
                recalc(&group, thread, &thread.signals.lock());
            }
        }
        old
    }

    /// Sets a mask for the time of one call (`ppoll`, `sigsuspend`). The old one is back when the call is over and no
    /// handler runs, or after the handler has returned.
    pub fn set_temporary_mask(&self, mask: SigSet) {
        let old = self.set_signal_mask(mask);
        self.signals.lock().saved_mask = Some(old);
        self.add_work(work::RESTORE_MASK);
    }

    /// Takes a pending signal of `wanted`, whatever the mask says (`signalfd(2)`, `sigtimedwait(2)`).
    pub fn take_signal(&self, wanted: SigSet) -> Option<SigInfo> {
        let wanted = wanted.without(SigSet::UNBLOCKABLE);
        let mut group = self.group().signals.lock();
        let mut own = self.signals.lock();
        let info = own.pending.take(wanted).or_else(|| group.pending.take(wanted))?;
        recalc(&group, self, &own);
        drop(own);
        drop(group);
        Some(self.group().timers.taken(self.group(), info))
    }

    /// Waits for `wanted` from now on: they are unblocked and their actions do not count (`sigtimedwait(2)`).
    pub fn begin_signal_wait(&self, wanted: SigSet) {
        let group = self.group().signals.lock();
        let mut own = self.signals.lock();
        own.waited_for = own.mask;
        own.mask = own.mask.without(wanted);
        recalc(&group, self, &own);
    }

    /// Ends [`Task::begin_signal_wait`].
    pub fn end_signal_wait(&self) {
        let group = self.group().signals.lock();
        let mut own = self.signals.lock();
        own.mask = core::mem::take(&mut own.waited_for);
        recalc(&group, self, &own);
    }
}

impl crate::ThreadGroup {
    /// Sets the action of a signal and returns the old one (`rt_sigaction(2)`). A signal that is ignored from now on is
    /// no longer pending.
    pub fn set_action(&self, signo: i32, action: abi::signal::SigAction) -> abi::signal::SigAction {
        let mut group = self.signals.lock();
        let old = group.actions.set(signo, action);
        if group.actions.ignores(signo) {
            let set = SigSet::of(signo);
            Self::discard(&mut group, set);
            for thread in &group.threads {
                recalc(&group, thread, &thread.signals.lock());
            }
        }
        old
    }
}
