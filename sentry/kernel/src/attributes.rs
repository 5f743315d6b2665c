//! Small attributes of tasks that calls set and get and that change nothing else.

use core::sync::atomic::Ordering;

use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_vfs::Credentials;

use crate::Task;
use crate::task::Scheduling;

/// `SECBIT_KEEP_CAPS` and its lock.
const SECBIT_KEEP_CAPS: u32 = 1 << 4;
const SECBIT_KEEP_CAPS_LOCKED: u32 = 1 << 5;

impl Task {
    /// `PR_GET_KEEPCAPS`.
    pub fn keeps_caps(&self) -> bool {
        self.creds().securebits & SECBIT_KEEP_CAPS != 0
    }

    /// `PR_SET_KEEPCAPS`. `EPERM` if the bit is locked.
    pub fn set_keep_caps(&self, keep: bool) -> Result<()> {
        let old = self.creds();
        if old.securebits & SECBIT_KEEP_CAPS_LOCKED != 0 {
            return Err(Errno::EPERM);
        }
        let bit = if keep { SECBIT_KEEP_CAPS } else { 0 };
        let securebits = old.securebits & !SECBIT_KEEP_CAPS | bit;
        self.set_creds(Arc::new(Credentials { securebits, ..Credentials::clone(&old) }));
        Ok(())
    }

    /// `PR_GET_TIMERSLACK`, in nanoseconds.
    pub fn timer_slack_ns(&self) -> u64 {
        self.timer_slack.load(Ordering::Relaxed)
    }

    /// `PR_SET_TIMERSLACK`; 0 for what the task began with.
    pub fn set_timer_slack_ns(&self, slack_ns: u64) {
        let slack_ns = if slack_ns == 0 { self.first_timer_slack.load(Ordering::Relaxed) } else { slack_ns };
        self.timer_slack.store(slack_ns, Ordering::Relaxed);
    }

    /// `personality(2)`.
    pub fn personality(&self) -> u32 {
        self.personality.load(Ordering::Relaxed)
    }

    pub fn set_personality(&self, persona: u32) {
        self.personality.store(persona, Ordering::Relaxed);
    }

    /// `PR_GET_PDEATHSIG`; 0 for none.
    pub fn pdeath_signal(&self) -> i32 {
        self.pdeath_signal.load(Ordering::Relaxed)
    }

    pub fn set_pdeath_signal(&self, signal: i32) {
        self.pdeath_signal.store(signal, Ordering::Relaxed);
    }

    pub fn scheduling(&self) -> Scheduling {
        *self.scheduling.lock()
    }

    pub fn set_scheduling(&self, scheduling: Scheduling) {
        *self.scheduling.lock() = scheduling;
    }

    /// Where the robust list starts; 0 for none.
    pub fn robust_list(&self) -> u64 {
        self.exit_places.robust_list.load(Ordering::Relaxed)
    }

    pub fn set_robust_list(&self, head: u64) {
        self.exit_places.robust_list.store(head, Ordering::Relaxed);
    }

    /// Where 0 is stored and a waiter woken when the task exits; 0 for nowhere.
    pub fn set_clear_child_tid(&self, addr: u64) {
        self.exit_places.clear_child_tid.store(addr, Ordering::Relaxed);
    }

    pub fn clear_child_tid(&self) -> u64 {
        self.exit_places.clear_child_tid.load(Ordering::Relaxed)
    }

    /// Stores what `restart_syscall(2)` goes on with.
    pub fn set_restart_block(&self, block: crate::RestartBlock) {
        *self.restart_block.lock() = Some(block);
    }

    pub fn take_restart_block(&self) -> Option<crate::RestartBlock> {
        self.restart_block.lock().take()
    }
}
