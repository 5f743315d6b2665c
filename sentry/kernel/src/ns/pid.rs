//! PID namespaces (`pid_namespaces(7)`, `kernel/pid_namespace.c`).
//!
//! Inside the Sentry a task, process, group or session has the number of the sandbox's first namespace. A namespace below
//! gives those that live in it, or deeper, another number, and does not see the rest.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use sentry_base::{Errno, Mutex, Result, lock::rank};
use sentry_vfs::{Credentials, UserNs, next_ns_ino};

use crate::task_set::PID_MAX;

/// Namespaces that may be nested (`MAX_PID_NS_LEVEL`).
const MAX_LEVEL: u32 = 32;

#[derive(Debug, Default)]
struct Numbers {
    /// The Sentry's number by the one in here, and the reverse.
    global: BTreeMap<i32, i32>,
    local: HashMap<i32, i32>,
    last: i32,
    /// Its init has ended: nothing is made in it any more.
    dead: bool,
}

/// A PID namespace.
#[derive(Debug)]
pub struct PidNs {
    ino: u64,
    parent: Option<Arc<PidNs>>,
    level: u32,
    user_ns: Arc<UserNs>,
    numbers: Mutex<Numbers, { rank::LEAF }>,
}

impl PidNs {
    pub(crate) fn first(ino: u64, user_ns: &Arc<UserNs>) -> Arc<Self> {
        Arc::new(Self {
            ino,
            parent: None,
            level: 0,
            user_ns: Arc::clone(user_ns),
            numbers: Mutex::new(Numbers::default()),
        })
    }

    /// A namespace below `parent` that belongs to the user namespace of `creds`.
    pub(crate) fn create(parent: &Arc<Self>, creds: &Credentials) -> Result<Arc<Self>> {
        if !creds.user_ns.is_same_or_below(&parent.user_ns) {
            return Err(Errno::EINVAL);
        }
        if parent.level >= MAX_LEVEL {
            return Err(Errno::ENOSPC);
        }
        Ok(Self::owned(parent, &creds.user_ns))
    }

    /// A namespace below `parent` with the same owner.
    pub(crate) fn below(parent: &Arc<Self>) -> Arc<Self> {
        Self::owned(parent, &parent.user_ns)
    }

    fn owned(parent: &Arc<Self>, user_ns: &Arc<UserNs>) -> Arc<Self> {
        Arc::new(Self {
            ino: next_ns_ino(),
            parent: Some(Arc::clone(parent)),
            level: parent.level + 1,
            user_ns: Arc::clone(user_ns),
            numbers: Mutex::new(Numbers::default()),
        })
    }

    pub fn ino(&self) -> u64 {
        self.ino
    }

    pub fn parent(&self) -> Option<&Arc<Self>> {
        self.parent.as_ref()
    }

    pub fn user_ns(&self) -> &Arc<UserNs> {
        &self.user_ns
    }

    /// Whether it is the sandbox's first.
    pub fn is_first(&self) -> bool {
        self.level == 0
    }

    pub fn level(&self) -> u32 {
        self.level
    }

    pub fn is_same(&self, other: &Self) -> bool {
        self.ino == other.ino
    }

    /// This namespace and those above it.
    pub(crate) fn chain(&self) -> impl Iterator<Item = &Self> {
        core::iter::successors(Some(self), |ns| ns.parent.as_deref())
    }

    /// Whether it is `other` or lies below it.
    pub fn is_same_or_below(&self, other: &Self) -> bool {
        self.chain().any(|ns| ns.is_same(other))
    }

    /// The number in here of what the Sentry calls `global`; 0 for what cannot be seen from here.
    pub fn local(&self, global: i32) -> i32 {
        if self.level == 0 {
            return global;
        }
        self.numbers.lock().local.get(&global).copied().unwrap_or(0)
    }

    /// The Sentry's number of what is called `local` in here.
    pub fn global(&self, local: i32) -> Option<i32> {
        if self.level == 0 {
            return Some(local);
        }
        self.numbers.lock().global.get(&local).copied()
    }

    /// The Sentry's number of its init; `None` before the first process and after init is gone.
    pub fn init(&self) -> Option<i32> {
        self.global(1)
    }

    /// The numbers of a task from the first namespace on down to this one.
    pub fn locals(&self, global: i32) -> Vec<i32> {
        let mut all: Vec<i32> = self.chain().map(|ns| ns.local(global)).collect();
        all.reverse();
        all
    }

    /// Gives `global` a number in this namespace and in those above. `ENOMEM` once init has ended, `EAGAIN` where all
    /// numbers are taken.
    pub(crate) fn admit(&self, global: i32) -> Result<()> {
        for ns in self.chain().filter(|ns| ns.level > 0) {
            let admitted = ns.admit_here(global);
            if admitted.is_err() {
                self.release(global);
                return admitted;
            }
        }
        Ok(())
    }

    fn admit_here(&self, global: i32) -> Result<()> {
        let mut numbers = self.numbers.lock();
        if numbers.dead {
            return Err(Errno::ENOMEM);
        }
        let mut candidate = numbers.last;
        for _ in 0..PID_MAX {
            candidate = if candidate + 1 >= PID_MAX { 300 } else { candidate + 1 };
            if !numbers.global.contains_key(&candidate) {
                numbers.last = candidate;
                numbers.global.insert(candidate, global);
                numbers.local.insert(global, candidate);
                return Ok(());
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Takes the numbers of `global` back, here and above.
    pub(crate) fn release(&self, global: i32) {
        for ns in self.chain().filter(|ns| ns.level > 0) {
            let mut numbers = ns.numbers.lock();
            if let Some(local) = numbers.local.remove(&global) {
                numbers.global.remove(&local);
            }
        }
    }

    /// Init has ended: forks into this namespace fail from now on.
    pub(crate) fn close(&self) {
        self.numbers.lock().dead = true;
    }

    /// Whether init has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.chain().any(|ns| ns.level > 0 && ns.numbers.lock().dead)
    }

    /// Whether init has ended and no number but its own is left.
    pub(crate) fn is_only_init_left(&self) -> bool {
        let numbers = self.numbers.lock();
        numbers.dead && numbers.global.len() <= 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_count_from_one_at_each_level() {
        let first = PidNs::first(1, &UserNs::initial());
        let creds = Credentials::root();
        let outer = PidNs::create(&first, &creds).unwrap();
        let inner = PidNs::create(&outer, &creds).unwrap();
        outer.admit(100).unwrap();
        inner.admit(101).unwrap();
        assert_eq!(inner.locals(101), [101, 2, 1]);
        assert_eq!((inner.local(100), outer.local(100)), (0, 1));
        assert_eq!((outer.global(2), inner.global(1), inner.global(2)), (Some(101), Some(101), None));
        outer.close();
        assert_eq!(inner.admit(102), Err(Errno::ENOMEM));
        assert_eq!(inner.local(102), 0, "nothing is left of what could not be admitted");
        assert!(!outer.is_only_init_left());
        inner.release(101);
        assert!(outer.is_only_init_left());
    }
}
