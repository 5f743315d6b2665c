//! Making tasks: `clone`, `clone3`, `fork` and `vfork` (`kernel/fork.c`).

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use abi::process::{CloneFlags, RLIM_INFINITY, rlimit};
use abi::signal::{SS_DISABLE, StackT, sig};
use platform::SpaceError;
use sentry_base::{Errno, Result};
use sentry_vfs::cap;

use crate::group::StopState;
use crate::signal::recalc;
use crate::task::{TaskParts, VforkGate, work};
use crate::task_set::Process;
use crate::{Current, Kernel, PidNs, Restart, Stop, Task, ThreadGroup, ptrace, run};

/// What a new task shares with its maker and starts with.
#[derive(Debug, Clone, Copy, Default)]
pub struct CloneSpec {
    pub flags: CloneFlags,
    /// Sent to the parent when the child exits; 0 for none.
    pub exit_signal: i32,
    /// The stack pointer; 0 for the maker's.
    pub stack: u64,
    /// The FS base, with `CLONE_SETTLS`.
    pub tls: u64,
    pub parent_tid: u64,
    pub child_tid: u64,
    /// Where `CLONE_PIDFD` writes the descriptor.
    pub pidfd: u64,
    /// The thread id to take; 0 for any.
    pub set_tid: i32,
}

/// The errno of a platform's refusal to make a process or thread.
pub(crate) fn space_errno(error: SpaceError) -> Errno {
    match error {
        SpaceError::Host(errno) => Errno::from_raw(errno),
        SpaceError::Limit => Errno::EAGAIN,
        SpaceError::BadRange | SpaceError::Gone => Errno::ENOMEM,
    }
}

impl CloneSpec {
    /// The combinations that `copy_process` refuses.
    fn check(&self, task: &Task) -> Result<()> {
        let flags = self.flags;
        let has = |f| flags.contains(f);
        if has(CloneFlags::NEWNS | CloneFlags::FS) || has(CloneFlags::NEWUSER | CloneFlags::FS) {
            return Err(Errno::EINVAL);
        }
        if has(CloneFlags::THREAD) && !has(CloneFlags::SIGHAND) {
            return Err(Errno::EINVAL);
        }
        if has(CloneFlags::SIGHAND) && !has(CloneFlags::VM) {
            return Err(Errno::EINVAL);
        }
        if has(CloneFlags::SIGHAND) && has(CloneFlags::CLEAR_SIGHAND) {
            return Err(Errno::EINVAL);
        }
        if has(CloneFlags::PARENT) && task.group().is_ns_init() {
            return Err(Errno::EINVAL);
        }
        if has(CloneFlags::NEWIPC | CloneFlags::SYSVSEM) {
            return Err(Errno::EINVAL);
        }
        // A thread is in its process's PID namespace.
        if has(CloneFlags::THREAD) && !task.namespaces().pid_for_children.is_same(task.group().pid_ns()) {
            return Err(Errno::EINVAL);
        }
        if has(CloneFlags::THREAD) && flags.intersects(CloneFlags::NEWUSER | CloneFlags::NEWPID) {
            return Err(Errno::EINVAL);
        }
        if has(CloneFlags::PIDFD) && flags.intersects(CloneFlags::DETACHED | CloneFlags::THREAD) {
            return Err(Errno::EINVAL);
        }
        if flags.contains(CloneFlags::INTO_CGROUP) {
            task.kernel().count_unsupported("clone into a cgroup", task);
            return Err(Errno::EPERM);
        }
        if !(0..=sig::MAX).contains(&self.exit_signal) {
            return Err(Errno::EINVAL);
        }
        if self.tls >= task.kernel().platform().user_range().end && has(CloneFlags::SETTLS) {
            return Err(Errno::EPERM);
        }
        Ok(())
    }
}

/// Whether a user without privileges has as many tasks as it may.
fn check_task_limit(task: &Task) -> Result<()> {
    let creds = task.creds();
    if creds.uid == 0 || creds.has_cap(cap::SYS_RESOURCE) || creds.has_cap(cap::SYS_ADMIN) {
        return Ok(());
    }
    if tasks_of_user(task, creds.uid, task.rlimit(rlimit::NPROC)) { Err(Errno::EAGAIN) } else { Ok(()) }
}

/// Whether user `uid` has at least `limit` tasks.
fn tasks_of_user(task: &Task, uid: u32, limit: u64) -> bool {
    let set = task.kernel().task_set();
    (set.tasks.len() as u64) >= limit
        && set.tasks.values().filter(|t| t.creds().uid == uid).count() as u64 >= limit
}

impl Task {
    /// Whether the task's user has more tasks than `RLIMIT_NPROC` allows and `spare` more.
    fn is_over_task_limit(&self, spare: u64) -> bool {
        let creds = self.creds();
        let limit = self.rlimit(rlimit::NPROC);
        creds.uid != 0
            && limit != RLIM_INFINITY
            && tasks_of_user(self, creds.uid, limit.saturating_add(1).saturating_add(spare))
    }

    /// Notes for the next `execve(2)` whether the user that the task has become had too many tasks without it. Linux lets
    /// the change of user pass, and fails the `execve(2)` that usually follows (`flag_nproc_exceeded`).
    pub fn note_task_limit(&self) {
        let over = self.is_over_task_limit(1);
        self.over_task_limit.store(over, Ordering::Relaxed);
    }

    /// `EAGAIN` if [`Task::note_task_limit`] found too many tasks and there still are too many.
    pub(crate) fn check_noted_task_limit(&self) -> Result<()> {
        if self.over_task_limit.load(Ordering::Relaxed) && self.is_over_task_limit(0) {
            return Err(Errno::EAGAIN);
        }
        self.over_task_limit.store(false, Ordering::Relaxed);
        Ok(())
    }
}

/// A number in the PID namespaces below the first, given back unless the task comes to be.
pub(crate) struct Admitted<'a> {
    ns: &'a PidNs,
    number: i32,
    kept: bool,
}

impl<'a> Admitted<'a> {
    pub fn new(ns: &'a PidNs, number: i32) -> Result<Self> {
        ns.admit(number)?;
        Ok(Self { ns, number, kept: false })
    }

    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.ns.release(self.number);
        }
    }
}

/// Makes a task and starts it; its thread id as the caller sees it.
///
/// With `CLONE_VFORK` the caller goes on only when the child has left its memory, which the run loop sees to.
pub async fn clone_task(cx: &mut Current, spec: &CloneSpec) -> Result<i32, Stop> {
    cx.settle_state().await;
    make_task(cx, spec)
}

fn make_task(cx: &mut Current, spec: &CloneSpec) -> Result<i32, Stop> {
    let parent = Arc::clone(&cx.task);
    spec.check(&parent)?;
    let flags = spec.flags;
    let thread = flags.contains(CloneFlags::THREAD);
    // A signal that was sent to the whole group must not miss the child.
    if !thread && parent.work() & work::SIGNAL != 0 {
        return Err(Stop::Restart(Restart::NoIntr));
    }
    check_task_limit(&parent)?;
    let kernel = Arc::clone(parent.kernel());
    let changed = crate::ns::create(&parent, flags)?;

    let mm = if flags.contains(CloneFlags::VM) {
        parent.mm()
    } else {
        let copy = parent.mm().fork()?;
        kernel.watch_space(&copy);
        copy
    };
    let mut context = kernel.platform().new_context(mm.space()).map_err(space_errno)?;
    let fpu = cx.context.fpu().map_err(space_errno)?;
    if !fpu.0.is_empty() {
        context.set_fpu(&fpu).map_err(space_errno)?;
    }
    let fds = if flags.contains(CloneFlags::FILES) { parent.fds() } else { parent.fds().fork() };
    let fs = if flags.contains(CloneFlags::FS) { parent.fs() } else { parent.fs().fork() };

    changed.move_places(&fs);

    let pid_ns =
        if thread { Arc::clone(parent.group().pid_ns()) } else { Arc::clone(&changed.set.pid_for_children) };
    let tid = match spec.set_tid {
        0 => kernel.task_set().allocate(kernel.max_tasks)?,
        // Only in the first namespace is a task's number the Sentry's.
        _ if !pid_ns.is_first() => return Err(Stop::Errno(Errno::EINVAL)),
        chosen => kernel.task_set().claim(chosen, kernel.max_tasks)?,
    };
    let mut number = Admitted::new(&pid_ns, tid)?;
    if flags.contains(CloneFlags::SIGHAND) {
        parent.group().actions().share();
    }
    let group = if thread {
        Arc::clone(parent.group())
    } else {
        let actions = if flags.contains(CloneFlags::SIGHAND) {
            parent.group().actions()
        } else {
            parent.group().actions().fork(flags.contains(CloneFlags::CLEAR_SIGHAND))
        };
        let group =
            ThreadGroup::new(Arc::clone(&kernel), tid, Arc::clone(&pid_ns), actions, parent.group().limits());
        group.set_oom_score_adj(parent.group().oom_score_adj());
        group.set_dumpable(parent.group().dumpable());
        group.set_container(parent.group().container());
        group
    };
    let mut scheduling = *parent.scheduling.lock();
    if scheduling.reset_on_fork {
        scheduling.policy = libc::SCHED_OTHER;
        scheduling.priority = 0;
        scheduling.nice = scheduling.nice.max(0);
        scheduling.reset_on_fork = false;
    }
    let child = Task::new(TaskParts {
        tid,
        kernel: Arc::clone(&kernel),
        group: Arc::clone(&group),
        creds: changed.creds,
        mm: Arc::clone(&mm),
        fds,
        fs,
        namespaces: changed.set,
        comm: parent.comm_raw(),
        mask: parent.signal_mask(),
        scheduling,
    });
    child.inherit(&parent);
    if flags.contains(CloneFlags::SYSVSEM) {
        child.share_sem_undo(&parent);
    }
    {
        // A new thread has no alternate stack; a new process, and a vfork child, keep their parent's.
        let stack = parent.signals.lock().alt_stack;
        let keeps = !flags.contains(CloneFlags::VM) || flags.contains(CloneFlags::VFORK);
        child.signals.lock().alt_stack =
            if keeps { stack } else { StackT { flags: SS_DISABLE, ..StackT::default() } };
    }
    if flags.contains(CloneFlags::CHILD_CLEARTID) {
        child.exit_places.clear_child_tid.store(spec.child_tid, Ordering::Relaxed);
    }
    let gate = flags.contains(CloneFlags::VFORK).then(|| {
        let gate = Arc::new(VforkGate { open: AtomicBool::new(false), parent: Arc::clone(parent.sleeper()) });
        *child.vfork_parent.lock() = Some(Arc::clone(&gate));
        gate
    });

    // Linux ignores bad addresses here too, but for the pidfd's.
    let shown = parent.show_pid(tid);
    if flags.contains(CloneFlags::PARENT_SETTID) {
        let _ = sentry_memory::UserMemory::copy_out(&*cx.task, spec.parent_tid, &shown.to_le_bytes());
    }
    if flags.contains(CloneFlags::CHILD_SETTID) {
        let inside = pid_ns.local(tid);
        let _ = sentry_memory::UserMemory::copy_out(mm.as_ref(), spec.child_tid, &inside.to_le_bytes());
    }
    if flags.contains(CloneFlags::PIDFD) {
        crate::pidfd::install_for_clone(cx, &group, spec.pidfd)?;
    }

    let mut regs = cx.regs;
    regs.rax = 0;
    if spec.stack != 0 {
        regs.rsp = spec.stack;
    }
    if flags.contains(CloneFlags::SETTLS) {
        regs.fs_base = spec.tls;
    }
    let untraced = flags.contains(CloneFlags::UNTRACED);
    let event = ptrace::new_child(&parent, flags.contains(CloneFlags::VFORK), spec.exit_signal, untraced);
    register(&kernel, &parent, &child, spec, event.is_some() || flags.contains(CloneFlags::PTRACE))?;
    number.keep();
    if !thread {
        group.watch_cpu_limit();
    }
    cx.vfork = gate.map(|gate| (gate, tid));
    cx.new_child = event.map(|event| (event, tid));
    let child = Current::new(child, regs, context);
    kernel.executor().spawn(run::run(child));
    Ok(shown)
}

/// Puts the child among the tasks.
fn register(
    kernel: &Arc<Kernel>,
    parent: &Arc<Task>,
    child: &Arc<Task>,
    spec: &CloneSpec,
    traced: bool,
) -> Result<(), Stop> {
    let mut set = kernel.task_set();
    if set.closed {
        return Err(Stop::Errno(Errno::EAGAIN));
    }
    if child.group().pid_ns().is_closed() {
        return Err(Stop::Errno(Errno::ENOMEM));
    }
    {
        let group = parent.group().signals.lock();
        // The caller is being killed, by a signal or by a thread that executes.
        if group.exit.is_some() || parent.work() & work::KILL != 0 {
            return Err(Stop::Restart(Restart::NoIntr));
        }
        drop(group);
        let mut group = child.group().signals.lock();
        // Under this lock, so that filters for all threads do not miss a new one.
        child.seccomp.inherit(&parent.seccomp);
        group.threads.push(Arc::clone(child));
        // A stop that began before this thread was there is its own too (`JOBCTL_STOP_PENDING` is inherited).
        if let StopState::Stopping(signo) = group.stop {
            let mut own = child.signals.lock();
            own.stops.pending = true;
            own.stops.signo = signo;
            child.notify(work::STOP);
        }
        recalc(&group, child, &child.signals.lock());
    }
    set.tasks.insert(child.tid(), Arc::clone(child));
    if !spec.flags.contains(CloneFlags::THREAD) {
        let own = set.process(parent.pid())?;
        let (pgid, sid) = (own.pgid, own.sid);
        let (real_parent, parent_tid, exit_signal) = if spec.flags.contains(CloneFlags::PARENT) {
            (own.parent, own.parent_tid, own.group.exit_signal.load(Ordering::Relaxed))
        } else {
            (parent.pid(), parent.tid(), spec.exit_signal)
        };
        let group = Arc::clone(child.group());
        group.exit_signal.store(exit_signal, Ordering::Relaxed);
        let process = Process {
            group,
            leader: Arc::clone(child),
            parent: real_parent,
            parent_tid,
            children: Vec::new(),
            pgid,
            sid,
            zombie: None,
            leader_dead: false,
            stop_report: None,
            continue_report: false,
            has_execed: false,
            lingers: false,
        };
        let pid = child.pid();
        set.processes.insert(pid, process);
        set.set_group(pid, pgid);
        set.set_session(pid, sid);
        set.set_parent(pid, real_parent, parent_tid);
        if let Ok(parent) = set.process_mut(real_parent) {
            parent.children.push(pid);
        }
    }
    ptrace::inherit(&mut set, parent, child, traced);
    Ok(())
}
