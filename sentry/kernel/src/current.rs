//! The running task as its system calls see it: the task, its registers and its platform context.

use core::future::poll_fn;
use core::ops::Deref;
use std::sync::Arc;

use abi::signal::{SIG_DFL, SigAction, SigSet, sig};
use platform::{ANSWERED, Context, Defaulted, Identity, Regs};
use sentry_base::{Errno, Events, Nanos, Observer, Result, WaitClass, WaitEnd, WaitQueue};
use sentry_memory::{UserMemory, copy_in_cstr};
use sentry_vfs::{Credentials, IoStart};
use zerocopy::{FromBytes, IntoBytes};

use crate::at_hand::Holding;
use crate::injection::Injection;
use crate::outbox::{self, CallerMemory, SharedOutbox};
use crate::signal::{Actions, FaultRecord};
use crate::task::VforkGate;
use crate::user_dispatch::UserDispatch;
use crate::{Restart, Stop, Task};

/// The task that runs, with what only it may touch. Owned by the task's future.
pub struct Current {
    pub task: Arc<Task>,
    pub regs: Regs,
    pub context: Box<dyn Context>,
    /// The number of the present or last system call.
    pub syscall_nr: u64,
    /// The last call was interrupted, and goes on like this unless a handler runs.
    pub(crate) restart: Option<Restart>,
    pub(crate) injection: Injection,
    pub(crate) last_fault: FaultRecord,
    /// A child made with `CLONE_VFORK` that is to be waited for, and its thread id.
    pub(crate) vfork: Option<(Arc<VforkGate>, i32)>,
    /// An event that the tracer wants to know of: its number, and the new child's thread id.
    pub(crate) new_child: Option<(i32, i32)>,
    /// Calls that are to be caught (`PR_SET_SYSCALL_USER_DISPATCH`).
    pub user_dispatch: Option<UserDispatch>,
    outbox: SharedOutbox,
    /// The credentials that the context answers calls by.
    answered: Option<Arc<Credentials>>,
    actions: Arc<Actions>,
    /// The signals that the context was told have their first action.
    untouched: SigSet,
    pub(crate) holding: Holding,
}

impl core::fmt::Debug for Current {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Current({})", self.task.tid())
    }
}

impl Deref for Current {
    type Target = Task;
    fn deref(&self) -> &Task {
        &self.task
    }
}

/// Why a blocking attempt ended without its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockEnd {
    Errno(Errno),
    TimedOut,
    /// A signal is due (or the task is being killed).
    Interrupted,
}

impl From<Errno> for BlockEnd {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl BlockEnd {
    /// The usual edge of a call without a timeout of its own: restart after a signal.
    pub fn or_restart(self, restart: Restart) -> Stop {
        match self {
            Self::Errno(errno) => Stop::from(errno),
            Self::TimedOut => Stop::Errno(Errno::EAGAIN),
            Self::Interrupted => Stop::Restart(restart),
        }
    }
}

impl From<BlockEnd> for Stop {
    fn from(end: BlockEnd) -> Self {
        end.or_restart(Restart::Sys)
    }
}

/// The longest path, its NUL included (`PATH_MAX`, `limits.h`).
pub const PATH_MAX: usize = 4096;

impl Current {
    pub(crate) fn new(task: Arc<Task>, regs: Regs, context: Box<dyn Context>) -> Self {
        let actions = task.group().actions();
        let injection = Injection::new(task.kernel().interruptions, task.tid());
        Self {
            task,
            injection,
            regs,
            context,
            syscall_nr: 0,
            restart: None,
            last_fault: FaultRecord::default(),
            vfork: None,
            new_child: None,
            user_dispatch: None,
            outbox: SharedOutbox::default(),
            answered: None,
            actions,
            untouched: SigSet::EMPTY,
            holding: Holding::new(),
        }
    }

    /// A path argument. Uses what the trap carried along, else copies.
    pub fn path(&self, addr: u64) -> Result<Vec<u8>> {
        if let Some(staged) = self.context.staged(addr)
            && let Some(end) = staged.iter().take(PATH_MAX).position(|b| *b == 0)
        {
            return Ok(staged.get(..end).unwrap_or_default().to_vec());
        }
        self.settle_memory();
        copy_in_cstr(self.task.as_ref(), addr, PATH_MAX, Errno::ENAMETOOLONG)
    }

    /// Copies in from user memory; small structures often need no host call.
    pub fn copy_in(&self, addr: u64, dst: &mut [u8]) -> Result<()> {
        if let Some(staged) = self.context.staged(addr).and_then(|s| s.get(..dst.len())) {
            dst.copy_from_slice(staged);
            return Ok(());
        }
        self.settle_memory();
        self.task.copy_in(addr, dst)
    }

    /// Gives a result to user memory. Small ones are there when the task goes back to its application, not before.
    pub fn copy_out(&self, addr: u64, src: &[u8]) -> Result<()> {
        if src.is_empty() || outbox::keep(&self.task, &self.outbox, addr, src) {
            return Ok(());
        }
        self.settle_memory();
        self.task.copy_out(addr, src)
    }

    /// The application's memory for transfers of this call, which may reach it when the task goes back.
    pub fn memory(&self) -> CallerMemory {
        CallerMemory { task: Arc::clone(&self.task), outbox: Arc::clone(&self.outbox) }
    }

    /// Has memory show every result of the call so far; says whether it could.
    pub fn settle_memory(&self) -> bool {
        outbox::flush(&self.task, &self.outbox).is_ok()
    }

    /// Has memory show the results of a call that is over. One that finds no memory fails the call.
    pub(crate) fn settle_call(&mut self) {
        if !self.settle_memory() && self.regs.rax.cast_signed() >= 0 {
            self.regs.rax = Errno::EFAULT.to_rax();
        }
    }

    /// Hands the results of the call to the context, to be in memory when the application goes on.
    pub(crate) fn give_results(&mut self) {
        let taken = {
            let outbox = self.outbox.lock();
            outbox.is_empty() || outbox.give_to(&mut *self.context)
        };
        if !taken {
            self.settle_call();
        }
    }

    /// Lets the context answer what only depends on who the task is, unless someone wants to see every call. To be called
    /// once the task counts as one that runs application code: who changes what is asked here kicks it then.
    pub(crate) fn update_answers(&mut self) {
        self.update_identity();
        // Only this task can change them before its next trap.
        let untouched = if self.answered.is_some() { self.actions.untouched() } else { SigSet::EMPTY };
        if untouched != self.untouched {
            self.context.answer_actions(untouched.0);
            self.untouched = untouched;
        }
    }

    fn update_identity(&mut self) {
        let watched = self.task.trace_mode() != 0
            || self.user_dispatch.is_some()
            || self.kernel().traces()
            || !self.task.filters_pass(&ANSWERED);
        if !watched && self.answered.as_ref().is_some_and(|known| self.task.has_creds(known)) {
            return;
        }
        self.let_go();
        let creds = self.task.creds();
        // The maps of a user namespace may be written at any time.
        if watched || !creds.user_ns.is_initial() {
            if self.answered.take().is_some() {
                self.context.answer(None);
            }
            return;
        }
        let ns = &creds.user_ns;
        self.context.answer(Some(Identity {
            pid: self.ns_pid().cast_unsigned(),
            tid: self.ns_tid().cast_unsigned(),
            uid: ns.show_uid(creds.uid),
            euid: ns.show_uid(creds.euid),
            gid: ns.show_gid(creds.gid),
            egid: ns.show_gid(creds.egid),
        }));
        self.answered = Some(creds);
    }

    /// An absolute path that led to a directory, by a look-up that began in `epoch` ([`sentry_vfs::epoch`]): the context may
    /// answer for it as long as that lasts.
    pub fn remember_directory(&mut self, path: &[u8], epoch: u64) {
        self.context.remember_directory(path, epoch);
    }

    /// Whether the context answers calls by itself.
    pub(crate) fn is_answered(&self) -> bool {
        self.answered.is_some()
    }

    /// Waits until the context knows the extended state, for those who read or replace it. What was refused shows when they
    /// try.
    pub(crate) async fn settle_state(&mut self) {
        let _ = poll_fn(|poller| self.context.poll_settle(poller)).await;
    }

    /// Goes on in another context, which has answered nothing yet.
    pub(crate) fn replace_context(&mut self, context: Box<dyn Context>) -> Box<dyn Context> {
        self.answered = None;
        self.untouched = SigSet::EMPTY;
        self.let_go();
        self.holding = Holding::new();
        core::mem::replace(&mut self.context, context)
    }

    /// Enters the actions that the application has set without a trap.
    pub(crate) fn take_defaulted(&mut self) {
        if self.untouched.is_empty() {
            return;
        }
        let Some(Defaulted { signals, flags, restorer, mask }) = self.context.take_defaulted() else {
            return;
        };
        let action = SigAction { handler: SIG_DFL, flags, restorer, mask: SigSet(mask) }.kept();
        let set = SigSet(signals).intersect(self.untouched);
        for signo in (1..=sig::MAX).filter(|signo| set.has(*signo)) {
            self.actions.set(signo, action);
        }
        self.untouched = self.untouched.without(set);
    }

    /// Another table of actions is the process's from now on.
    pub(crate) fn replace_actions(&mut self, actions: Arc<Actions>) {
        self.actions = actions;
    }

    /// The results of the last call are in memory.
    pub(crate) fn forget_results(&mut self) {
        self.outbox.lock().clear();
    }

    /// A structure argument.
    pub fn read_obj<T: FromBytes + IntoBytes + zerocopy::Immutable>(&self, addr: u64) -> Result<T> {
        let mut value = T::new_zeroed();
        self.copy_in(addr, value.as_mut_bytes())?;
        Ok(value)
    }

    pub fn write_obj<T: IntoBytes + zerocopy::Immutable>(&self, addr: u64, value: &T) -> Result<()> {
        self.copy_out(addr, value.as_bytes())
    }

    /// Tries until `attempt` is done, waiting on `queue` for `events` in between.
    ///
    /// The attempt runs again after the waiter is queued, so that no event is missed. `deadline` is
    /// `CLOCK_MONOTONIC`.
    pub async fn block_on<T>(
        &mut self,
        queue: &WaitQueue,
        events: Events,
        deadline: Option<Nanos>,
        mut attempt: impl FnMut(&Task) -> Result<IoStart<T>> + Send,
    ) -> Result<T, BlockEnd> {
        if let IoStart::Done(value) = attempt(&self.task)? {
            return Ok(value);
        }
        let sleeper = Arc::clone(self.task.sleeper());
        sleeper.arm();
        let id = queue.add(events, Arc::clone(&sleeper) as Arc<dyn Observer>);
        let result = loop {
            match attempt(&self.task) {
                Ok(IoStart::Done(value)) => break Ok(value),
                Ok(IoStart::WouldBlock) => {}
                Err(errno) => break Err(BlockEnd::Errno(errno)),
            }
            match self.sleep(WaitClass::Interruptible, deadline).await {
                WaitEnd::Ready => {}
                WaitEnd::TimedOut => break Err(BlockEnd::TimedOut),
                WaitEnd::Interrupted | WaitEnd::Killed => break Err(BlockEnd::Interrupted),
            }
        };
        queue.remove(id);
        result
    }

    /// Sleeps on the task's sleeper until it is woken. Arm it before it is shared.
    pub async fn sleep(&mut self, class: WaitClass, deadline: Option<Nanos>) -> WaitEnd {
        self.settle_memory();
        if class == WaitClass::Interruptible && self.injection.strikes() {
            return WaitEnd::Interrupted;
        }
        self.context.will_block();
        self.task.cpu.block();
        let task = Arc::clone(&self.task);
        let end = task.sleeper().sleep(class, deadline, task.kernel().executor().timers()).await;
        self.task.cpu.unblock();
        end
    }
}
