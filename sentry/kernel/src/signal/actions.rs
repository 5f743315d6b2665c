//! Signal actions: handlers and defaults.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
pub struct Actions {
    table: Mutex<[SigAction; 64], { rank::TASK }>,
    /// The signals whose action is all zero, or none once several tasks have used the table: [`Actions::untouched`].
    untouched: AtomicU64,
    shared: AtomicBool,
}

impl Default for Actions {
    fn default() -> Self {
        Self::new(&[SigAction::default(); 64])
    }
}

fn index(signo: i32) -> usize {
    usize::try_from(signo).unwrap_or(0).wrapping_sub(1)
}

/// What `execve` does: handlers become the default, ignored signals stay ignored.
fn reset_handlers(table: &mut [SigAction; 64]) {
    for action in table {
        let handler = if action.handler == SIG_IGN { SIG_IGN } else { SIG_DFL };
        *action = SigAction { handler, ..SigAction::default() };
    }
}

impl Actions {
    fn new(table: &[SigAction; 64]) -> Self {
        let zero = (1..).zip(table).filter(|(_, action)| **action == SigAction::default());
        let untouched = zero.fold(SigSet::EMPTY, |set, (signo, _)| set.union(SigSet::of(signo)));
        Self {
            table: Mutex::new(*table),
            untouched: AtomicU64::new(untouched.0),
            shared: AtomicBool::new(false),
        }
    }

    /// Several tasks use the table from now on, and each may change it while another runs.
    pub(crate) fn share(&self) {
        self.shared.store(true, Ordering::Relaxed);
    }

    /// The signals whose action is all zero, and stays so while the one task that uses the table runs its application. None
    /// where several have ever used it.
    pub(crate) fn untouched(&self) -> SigSet {
        if self.shared.load(Ordering::Relaxed) {
            return SigSet::EMPTY;
        }
        SigSet(self.untouched.load(Ordering::Relaxed))
    }

    /// The action of a signal; the default one for a number out of range.
    pub fn get(&self, signo: i32) -> SigAction {
        self.table.lock().get(index(signo)).copied().unwrap_or_default()
    }

    /// Replaces the action of a signal and returns the old one.
    pub fn set(&self, signo: i32, action: SigAction) -> SigAction {
        let mut table = self.table.lock();
        let Some(slot) = table.get_mut(index(signo)) else { return SigAction::default() };
        let set = SigSet(self.untouched.load(Ordering::Relaxed)).without(SigSet::of(signo));
        let zero = action == SigAction::default();
        self.untouched.store(if zero { set.union(SigSet::of(signo)) } else { set }.0, Ordering::Relaxed);
        core::mem::replace(slot, action)
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
        let mut table = *self.table.lock();
        if clear {
            reset_handlers(&mut table);
        }
        Arc::new(Self::new(&table))
    }

    /// The signals that are ignored and those that have a handler, for `/proc/PID/status`.
    pub fn sets(&self) -> (SigSet, SigSet) {
        let (mut ignored, mut caught) = (SigSet::EMPTY, SigSet::EMPTY);
        for (signo, action) in (1..).zip(self.table.lock().iter()) {
            match action.handler {
                SIG_DFL => {}
                SIG_IGN => ignored = ignored.union(SigSet::of(signo)),
                _ => caught = caught.union(SigSet::of(signo)),
            }
        }
        (ignored, caught)
    }
}
