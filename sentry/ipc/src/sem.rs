//! Semaphore sets (`semop(2)`, `ipc/sem.c`).
//!
//! The operations of one call happen all at once or not at all. Whoever cannot go on waits on the set's queue and tries
//! again after every change.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use abi::ipc::{IPC_NOWAIT, IPC_PRIVATE, IpcPerm, SEM_UNDO, SemBuf, SemidDs};
use sentry_base::{Errno, Events, Mutex, Result, WaitQueue, lock::rank};
use sentry_vfs::Credentials;

use crate::registry::{Entry, Registry};
use crate::{Limit, Perm, now_s};

/// The most semaphores of a set, whatever the limit says: every operation looks at all of them.
const SET_MAX: usize = 1 << 20;
/// The largest value (`SEMVMX`).
const VALUE_MAX: i32 = 32_767;

#[derive(Debug, Clone, Copy, Default)]
struct Sem {
    value: i32,
    /// The last process that changed it.
    pid: i32,
}

#[derive(Debug)]
struct State {
    perm: Perm,
    sems: Vec<Sem>,
    otime: i64,
    ctime: i64,
    removed: bool,
    /// Who waits, on which semaphore, and whether for zero.
    blocked: BTreeMap<i32, (u16, bool)>,
    /// What each list takes back when it ends: an adjustment a semaphore.
    undo: Vec<(u64, Vec<i32>)>,
}

/// A set.
#[derive(Debug)]
pub struct SemSet {
    state: Mutex<State, { rank::LEAF }>,
    changed: WaitQueue,
}

/// What an attempt came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Try {
    Done,
    /// Wait for a change and try again.
    Blocked,
}

/// Changes that are taken back when the last task that shares the list ends (`SEM_UNDO`).
#[derive(Debug)]
pub struct UndoList {
    id: u64,
    sets: Mutex<Vec<Weak<SemSet>>, { rank::LEAF }>,
}

impl UndoList {
    pub fn new() -> Arc<Self> {
        use core::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), sets: Mutex::new(Vec::new()) })
    }

    /// Unique in this sandbox.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Takes everything back, for process `pid` (`exit_sem`).
    pub fn apply(&self, pid: i32) {
        let sets = core::mem::take(&mut *self.sets.lock());
        for set in sets.iter().filter_map(Weak::upgrade) {
            set.take_back(self.id, pid);
        }
    }
}

impl Registry<SemSet> {
    /// The set of `key`, or a new one of `nsems` semaphores.
    pub fn get_set(&self, key: i32, nsems: i32, flags: u32, creds: &Credentials) -> Result<i32> {
        let (set_max, all_max) = (self.limits().count(Limit::SemMsl), self.limits().get(Limit::SemMns));
        let nsems = usize::try_from(nsems).ok().filter(|n| *n <= set_max).ok_or(Errno::EINVAL)?;
        let check = |set: &SemSet| {
            if set.state.lock().sems.len() < nsems { Err(Errno::EINVAL) } else { Ok(()) }
        };
        self.get(key, flags, creds, check, |perm, used| {
            if nsems == 0 {
                return Err(Errno::EINVAL);
            }
            if used.saturating_add(nsems as u64) > all_max {
                return Err(Errno::ENOSPC);
            }
            if nsems > SET_MAX {
                return Err(Errno::ENOMEM);
            }
            Ok(SemSet::new(perm, nsems))
        })
    }

    /// `/proc/sysvipc/sem`.
    pub fn table(&self) -> String {
        use core::fmt::Write;
        let mut out = String::from(
            "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n",
        );
        for set in self.all() {
            let (perm, s) = (set.perm(), set.stat());
            let _ = writeln!(
                out,
                "{:10} {:10}  {:4o} {:10} {:5} {:5} {:5} {:5} {:10} {:10}",
                perm.key,
                perm.id,
                perm.mode,
                s.nsems,
                perm.uid,
                perm.gid,
                perm.cuid,
                perm.cgid,
                s.otime,
                s.ctime,
            );
        }
        out
    }
}

impl SemSet {
    fn new(perm: Perm, nsems: usize) -> Self {
        let state = State {
            perm,
            sems: vec![Sem::default(); nsems],
            otime: 0,
            ctime: now_s(),
            removed: false,
            blocked: BTreeMap::new(),
            undo: Vec::new(),
        };
        Self { state: Mutex::new(state), changed: WaitQueue::new() }
    }

    /// Where changes are announced.
    pub fn changed(&self) -> &WaitQueue {
        &self.changed
    }

    /// Semaphores.
    pub fn len(&self) -> usize {
        self.state.lock().sems.len()
    }

    /// No set is empty.
    pub fn is_empty(&self) -> bool {
        false
    }

    pub fn stat(&self) -> SemidDs {
        let state = self.state.lock();
        SemidDs {
            perm: state.perm.show(),
            otime: state.otime,
            ctime: state.ctime,
            nsems: state.sems.len() as u64,
            ..SemidDs::default()
        }
    }

    /// `IPC_SET`.
    pub fn set_perm(&self, from: &IpcPerm) {
        let mut state = self.state.lock();
        state.perm.set(from);
        state.ctime = now_s();
    }

    /// The set is gone: whoever waits gets `EIDRM`.
    pub fn end(&self) {
        self.state.lock().removed = true;
        self.changed.notify(Events::IN);
    }

    /// Tries all of `ops` for thread `tid` of process `pid`. `EFBIG` for a semaphore that is not there, `EAGAIN` for what
    /// would have to wait and may not, `ERANGE` for a value out of bounds, `EIDRM` once the set is gone.
    pub fn operate(
        self: &Arc<Self>,
        ops: &[SemBuf],
        (tid, pid): (i32, i32),
        undo: Option<&Arc<UndoList>>,
    ) -> Result<Try> {
        let mut state = self.state.lock();
        state.blocked.remove(&tid);
        if state.removed {
            return Err(Errno::EIDRM);
        }
        let mut values: Vec<Sem> = state.sems.clone();
        let at_undo = undo.map(|list| {
            let found = state.undo.iter().position(|(id, _)| *id == list.id);
            let nsems = state.sems.len();
            found.unwrap_or_else(|| {
                state.undo.push((list.id, vec![0; nsems]));
                state.undo.len() - 1
            })
        });
        let mut adjusted =
            at_undo.and_then(|at| state.undo.get(at)).map(|(_, adj)| adj.clone()).unwrap_or_default();
        for op in ops {
            let num = usize::from(op.num);
            let sem = values.get_mut(num).ok_or(Errno::EFBIG)?;
            let change = i32::from(op.op);
            let blocked = if change == 0 { sem.value != 0 } else { sem.value + change < 0 };
            if blocked {
                if u32::from(op.flags) & IPC_NOWAIT != 0 {
                    return Err(Errno::EAGAIN);
                }
                state.blocked.insert(tid, (op.num, change == 0));
                return Ok(Try::Blocked);
            }
            if sem.value + change > VALUE_MAX {
                return Err(Errno::ERANGE);
            }
            if u32::from(op.flags) & SEM_UNDO != 0
                && let Some(adjustment) = adjusted.get_mut(num)
            {
                *adjustment -= change;
                if !(-VALUE_MAX - 1..=VALUE_MAX).contains(adjustment) {
                    return Err(Errno::ERANGE);
                }
            }
            sem.value += change;
            sem.pid = pid;
        }
        let altered = ops.iter().any(|op| op.op != 0);
        state.sems = values;
        state.otime = now_s();
        if let Some((_, adj)) = at_undo.and_then(|at| state.undo.get_mut(at)) {
            *adj = adjusted;
        }
        drop(state);
        if let Some(list) = undo {
            let mut sets = list.sets.lock();
            let own = Arc::downgrade(self);
            if !sets.iter().any(|s| s.ptr_eq(&own)) {
                sets.push(own);
            }
        }
        if altered {
            self.changed.notify(Events::IN);
        }
        Ok(Try::Done)
    }

    /// A thread waits no longer.
    pub fn unblock(&self, tid: i32) {
        self.state.lock().blocked.remove(&tid);
    }

    fn take_back(&self, list: u64, pid: i32) {
        {
            let mut state = self.state.lock();
            let Some(at) = state.undo.iter().position(|(id, _)| *id == list) else { return };
            let (_, adjustments) = state.undo.swap_remove(at);
            for (sem, adjustment) in state.sems.iter_mut().zip(adjustments) {
                if adjustment != 0 {
                    sem.value = (sem.value + adjustment).clamp(0, VALUE_MAX);
                    sem.pid = pid;
                }
            }
            state.otime = now_s();
        }
        self.changed.notify(Events::IN);
    }

    /// The value and the last process of a semaphore.
    pub fn value(&self, num: usize) -> Result<(i32, i32)> {
        let state = self.state.lock();
        state.sems.get(num).map(|s| (s.value, s.pid)).ok_or(Errno::EINVAL)
    }

    /// Every value.
    pub fn values(&self) -> Vec<u16> {
        let state = self.state.lock();
        state.sems.iter().map(|s| u16::try_from(s.value).unwrap_or(0)).collect()
    }

    /// How many wait for a semaphore: to rise, or to be zero.
    pub fn waiting(&self, num: u16, for_zero: bool) -> i32 {
        let state = self.state.lock();
        let count = state.blocked.values().filter(|b| **b == (num, for_zero)).count();
        i32::try_from(count).unwrap_or(i32::MAX)
    }

    /// Sets one value; what was to be taken back from it is forgotten.
    pub fn set_value(&self, num: usize, value: i32, pid: i32) -> Result<()> {
        if !(0..=VALUE_MAX).contains(&value) {
            return Err(Errno::ERANGE);
        }
        {
            let mut state = self.state.lock();
            if state.removed {
                return Err(Errno::EIDRM);
            }
            let sem = state.sems.get_mut(num).ok_or(Errno::EINVAL)?;
            *sem = Sem { value, pid };
            for (_, adjustments) in &mut state.undo {
                if let Some(adjustment) = adjustments.get_mut(num) {
                    *adjustment = 0;
                }
            }
            state.ctime = now_s();
        }
        self.changed.notify(Events::IN);
        Ok(())
    }

    /// Sets every value.
    pub fn set_values(&self, values: &[u16], pid: i32) -> Result<()> {
        if values.iter().any(|v| i32::from(*v) > VALUE_MAX) {
            return Err(Errno::ERANGE);
        }
        {
            let mut state = self.state.lock();
            if state.removed {
                return Err(Errno::EIDRM);
            }
            for (sem, value) in state.sems.iter_mut().zip(values) {
                *sem = Sem { value: i32::from(*value), pid };
            }
            for (_, adjustments) in &mut state.undo {
                adjustments.fill(0);
            }
            state.ctime = now_s();
        }
        self.changed.notify(Events::IN);
        Ok(())
    }
}

impl Entry for SemSet {
    fn perm(&self) -> Perm {
        self.state.lock().perm
    }

    fn forget_key(&self) {
        self.state.lock().perm.key = IPC_PRIVATE;
    }

    fn weight(&self) -> u64 {
        self.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(num: u16, op: i16, flags: u32) -> SemBuf {
        SemBuf { num, op, flags: u16::try_from(flags).unwrap() }
    }

    #[test]
    fn all_or_nothing_and_undo() {
        let set = Arc::new(SemSet::new(Perm::default(), 2));
        let list = UndoList::new();
        let me = (1, 1);
        assert_eq!(set.operate(&[op(0, 3, SEM_UNDO)], me, Some(&list)), Ok(Try::Done));
        assert_eq!(set.operate(&[op(0, -1, 0), op(1, -1, 0)], me, None), Ok(Try::Blocked));
        assert_eq!(set.values(), [3, 0]);
        assert_eq!(set.waiting(1, false), 1);
        assert_eq!(set.operate(&[op(0, -1, 0), op(1, -1, IPC_NOWAIT)], me, None), Err(Errno::EAGAIN));
        assert_eq!(set.operate(&[op(2, 1, 0)], me, None), Err(Errno::EFBIG));
        assert_eq!(set.operate(&[op(0, 32_767, 0)], me, None), Err(Errno::ERANGE));
        list.apply(1);
        assert_eq!(set.values(), [0, 0]);
        set.end();
        assert_eq!(set.operate(&[op(0, 0, 0)], me, None), Err(Errno::EIDRM));
    }
}
