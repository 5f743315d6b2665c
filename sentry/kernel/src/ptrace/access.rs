//! Who may look into whom (`ptrace_may_access`, `kernel/ptrace.c`; `kernel.yama.ptrace_scope` is 0).

use sentry_vfs::cap;

use crate::Task;

/// Why one task looks into another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To read what is private, with the ids that files are accessed with (`PTRACE_MODE_READ_FSCREDS`).
    Read,
    /// To trace or to write, with the real ids (`PTRACE_MODE_ATTACH_REALCREDS`).
    Attach,
    /// To write through a file, with the ids that files are accessed with (`PTRACE_MODE_ATTACH_FSCREDS`).
    AttachFs,
}

impl Task {
    /// Whether a tracer watches that has no right to trace everybody (`LSM_UNSAFE_PTRACE`).
    pub(crate) fn has_weak_tracer(&self) -> bool {
        let tracer = self.signals.lock().trace.as_ref().map(|t| std::sync::Arc::clone(&t.tracer));
        tracer.is_some_and(|t| !t.creds().has_cap(cap::SYS_PTRACE))
    }
}

/// Whether `caller` may look into `target`.
pub fn may_access(caller: &Task, target: &Task, access: Access) -> bool {
    if std::sync::Arc::ptr_eq(caller.group(), target.group()) {
        return true;
    }
    let (ours, theirs) = (caller.creds(), target.creds());
    if ours.has_cap_in(&theirs.user_ns, cap::SYS_PTRACE) {
        return true;
    }
    let (uid, gid) = match access {
        Access::Attach => (ours.uid, ours.gid),
        Access::Read | Access::AttachFs => (ours.fsuid, ours.fsgid),
    };
    let same = [theirs.uid, theirs.euid, theirs.suid].iter().all(|id| *id == uid)
        && [theirs.gid, theirs.egid, theirs.sgid].iter().all(|id| *id == gid);
    let capable = match access {
        Access::Attach => ours.permitted,
        Access::Read | Access::AttachFs => ours.effective,
    };
    same && target.group().dumpable() == 1
        && theirs.permitted.is_subset_of(capable)
        && theirs.user_ns == ours.user_ns
}
