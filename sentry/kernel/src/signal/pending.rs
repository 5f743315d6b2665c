//! Queues of pending signals.

use std::collections::VecDeque;

use abi::signal::{SigInfo, SigSet, sig};

/// Signals that the processor raises; they go first, so that a handler sees the fault's own registers.
const SYNCHRONOUS: SigSet = SigSet::of_all(&[sig::SEGV, sig::BUS, sig::ILL, sig::TRAP, sig::FPE, sig::SYS]);

/// The pending signals of a task or of a process.
#[derive(Debug, Default)]
pub struct Pending {
    set: SigSet,
    queue: VecDeque<SigInfo>,
}

impl Pending {
    pub fn set(&self) -> SigSet {
        self.set
    }

    /// What is queued with its information, in order of arrival.
    pub fn iter(&self) -> impl Iterator<Item = &SigInfo> {
        self.queue.iter()
    }

    /// Signals queued with their information.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Adds a signal. A second one of a number below 32 is merged into the first.
    pub fn add(&mut self, info: SigInfo) {
        if info.signo < sig::RT_MIN && self.set.has(info.signo) {
            return;
        }
        self.set = self.set.union(SigSet::of(info.signo));
        self.queue.push_back(info);
    }

    /// Adds a signal without room for its information: it arrives with none.
    pub fn add_bare(&mut self, signo: i32) {
        self.set = self.set.union(SigSet::of(signo));
    }

    /// Takes the next signal of `wanted`: those that a fault raised first, then by number, then by arrival.
    pub fn take(&mut self, wanted: SigSet) -> Option<SigInfo> {
        let due = self.set.intersect(wanted);
        let signo = due.intersect(SYNCHRONOUS).first().or_else(|| due.first())?;
        let at = self.queue.iter().position(|i| i.signo == signo);
        let info = at.and_then(|at| self.queue.remove(at)).unwrap_or(SigInfo::kernel(signo, 0));
        if signo < sig::RT_MIN || !self.queue.iter().any(|i| i.signo == signo) {
            self.set = self.set.without(SigSet::of(signo));
        }
        Some(info)
    }

    /// Forgets every pending signal of `set`.
    pub fn discard(&mut self, set: SigSet) {
        if self.set.intersect(set).is_empty() {
            return;
        }
        self.set = self.set.without(set);
        self.queue.retain(|i| !set.has(i.signo));
    }

    /// The queued information of a pending timer signal, to add an overrun to.
    pub fn find_timer(&mut self, id: i32) -> Option<&mut SigInfo> {
        self.queue.iter_mut().find(|i| i.code == abi::signal::SI_TIMER && i.pid() == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_merging() {
        let mut pending = Pending::default();
        let user = |signo, pid| SigInfo::user(signo, 0, pid, 0);
        pending.add(user(40, 1));
        pending.add(user(40, 2));
        pending.add(user(sig::USR1, 3));
        pending.add(user(sig::USR1, 4));
        pending.add(user(sig::SEGV, 5));
        let all = SigSet(!0);
        let order: Vec<_> = core::iter::from_fn(|| pending.take(all)).map(|i| (i.signo, i.pid())).collect();
        assert_eq!(order, [(sig::SEGV, 5), (sig::USR1, 3), (40, 1), (40, 2)]);
        assert!(pending.set().is_empty());
    }
}
