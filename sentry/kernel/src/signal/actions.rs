//! Signal actions: handlers and defaults.

use std::sync::Arc;

use abi::signal::{SIG_DFL, SIG_IGN, SigAction, SigSet, sig};
use sentry_base::{Mutex, lock::rank};

/// What the default action of a signal does (`signal(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    Terminate,
    Core,
    Stop,
    Continue,
    Ignore,
}

impl Disposition {
    pub fn of(signo: i32) -> Self {
        match signo {
            sig::CHLD | sig::URG | sig::WINCH => Self::Ignore,
            sig::CONT => Self::Continue,
            sig::STOP | sig::TSTP | sig::TTIN | sig::TTOU => Self::Stop,
            sig::QUIT
            | sig::ILL
            | sig::TRAP
            | sig::ABRT
            | sig::BUS
            | sig::FPE
            | sig::SEGV
            | sig::XCPU
            | sig::XFSZ
            | sig::SYS => Self::Core,
            _ => Self::Terminate,
        }
    }
}

/// The actions of a process; shared by processes made with `CLONE_SIGHAND`.
#[derive(Debug)]
pub struct Actions(Mutex<[SigAction; 64], { rank::TASK }>);

impl Default for Actions {
    fn default() -> Self {
        Self(Mutex::new([SigAction::default(); 64]))
    }
}

fn index(signo: i32) -> usize {
    usize::try_from(signo).unwrap_or(0).wrapping_sub(1)
}

impl Actions {
    /// The action of a signal; the default one for a number out of range.
    pub fn get(&self, signo: i32) -> SigAction {
        self.0.lock().get(index(signo)).copied().unwrap_or_default()
    }

    /// Replaces the action of a signal and returns the old one.
    pub fn set(&self, signo: i32, action: SigAction) -> SigAction {
        match self.0.lock().get_mut(index(signo)) {
            Some(slot) => core::mem::replace(slot, action),
            None => SigAction::default(),
        }
    }

    /// Whether the signal would do nothing if it were delivered.
    pub fn ignores(&self, signo: i32) -> bool {
        match self.get(signo).handler {
            SIG_IGN => true,
            SIG_DFL => matches!(Disposition::of(signo), Disposition::Ignore | Disposition::Continue),
            _ => false,
        }
    }

    /// A copy for a child that does not share them; with `clear`, handlers become the default (`CLONE_CLEAR_SIGHAND`).
    pub fn fork(&self, clear: bool) -> Arc<Self> {
        let copy = Self(Mutex::new(*self.0.lock()));
        if clear {
            copy.reset_handlers();
        }
        Arc::new(copy)
    }

    /// What `execve` does: handlers become the default, ignored signals stay ignored.
    pub fn reset_handlers(&self) {
        for action in self.0.lock().iter_mut() {
            let handler = if action.handler == SIG_IGN { SIG_IGN } else { SIG_DFL };
            *action = SigAction { handler, ..SigAction::default() };
        }
    }

    /// The signals that are ignored and those that have a handler, for `/proc/PID/status`.
    pub fn sets(&self) -> (SigSet, SigSet) {
        let (mut ignored, mut caught) = (SigSet::EMPTY, SigSet::EMPTY);
        for (signo, action) in (1..).zip(self.0.lock().iter()) {
            match action.handler {
                SIG_DFL => {}
                SIG_IGN => ignored = ignored.union(SigSet::of(signo)),
                _ => caught = caught.union(SigSet::of(signo)),
            }
        }
        (ignored, caught)
    }
}
