//! Secure computing: filters that an application puts on its own system calls (`seccomp(2)`, `kernel/seccomp.c`).
//!
//! Filters form a tree: each names the one that was there before it, and a task holds a leaf. A call passes every filter
//! from the leaf to the root, and the most restrictive answer counts. A task's filters are only ever added to.
//!
//! **Lock ranks:** leaves. `TSYNC` and the birth of a thread meet under the process's lock of rank `SigHand`.
//!
//! **Threat.** Programs are checked before they run ([`Program::check`]); their number and length are bounded.

mod bpf;
mod cache;
mod listener;

use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use abi::process::WaitStatus;
use abi::seccomp::{AUDIT_ARCH_X86_64, SeccompData, flag, mode, ret};
use abi::signal::{SigInfo, sig};
use sentry_base::{Errno, Mutex, Result, lock::rank};
use sentry_vfs::{Credentials, cap};

pub use bpf::Program;
pub use listener::Listener;

use cache::Cache;

use crate::task::work;
use crate::{Current, Stop, SysResult, Task};

/// The most instructions on a path from a leaf to the root, each filter counted with four more
/// (`MAX_INSNS_PER_PATH`).
const MAX_PATH: usize = (1 << 18) / 8;
/// The largest errno that a filter can give (`MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;

/// A filter, with those that were there before it.
#[derive(Debug)]
pub struct Filter {
    previous: Option<Arc<Filter>>,
    program: Program,
    /// Instructions from here to the root.
    path: usize,
    depth: u32,
    /// Answers `USER_NOTIF`.
    listener: Option<Arc<Listener>>,
    /// Calls that this filter and those before it let pass whatever their arguments are.
    cache: Cache,
}

impl Filter {
    /// A filter with nothing before it.
    pub fn first(program: Program) -> Arc<Self> {
        let path = program.weight() + 4;
        Arc::new(Self { previous: None, program, path, depth: 1, listener: None, cache: Cache::default() })
    }

    /// Whether the chain allows call `nr` whatever its arguments are.
    fn passes(&self, nr: i32) -> bool {
        self.cache.asks(nr, || self.chain().all(|filter| filter.program.settles(nr) == Some(ret::ALLOW)))
    }

    /// The most restrictive answer of the chain, with the filter that gave it.
    fn evaluate(&self, data: &SeccompData) -> (u32, &Self) {
        let order = |answer: u32| (answer & ret::ACTION).cast_signed();
        let mut verdict = (ret::ALLOW, self);
        let mut next = Some(self);
        while let Some(filter) = next {
            let answer = filter.program.run(data);
            if order(answer) < order(verdict.0) {
                verdict = (answer, filter);
            }
            next = filter.previous.as_deref();
        }
        verdict
    }

    fn chain(&self) -> impl Iterator<Item = &Self> {
        core::iter::successors(Some(self), |f| f.previous.as_deref())
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.orphan();
        }
        // A long chain must not be dropped by recursion.
        let mut next = self.previous.take();
        while let Some(filter) = next {
            let Ok(mut filter) = Arc::try_unwrap(filter) else { break };
            next = filter.previous.take();
        }
    }
}

/// The restriction of a task.
#[derive(Debug, Default)]
pub(crate) struct Seccomp {
    /// [`mode`]; set after the filter.
    mode: AtomicU32,
    filter: Mutex<Option<Arc<Filter>>, { rank::LEAF }>,
}

impl Seccomp {
    pub fn mode(&self) -> u32 {
        self.mode.load(Ordering::Acquire)
    }

    fn filter(&self) -> Option<Arc<Filter>> {
        self.filter.lock().clone()
    }

    fn set_filter(&self, filter: Option<Arc<Filter>>) {
        let old = core::mem::replace(&mut *self.filter.lock(), filter);
        self.mode.store(mode::FILTER, Ordering::Release);
        drop(old);
    }

    /// Puts a first filter on a task that has none yet.
    pub fn begin_with(&self, filter: &Arc<Filter>) {
        self.set_filter(Some(Arc::clone(filter)));
    }

    /// Takes over the restriction of the task that makes this one.
    pub fn inherit(&self, parent: &Self) {
        match parent.mode() {
            mode::DISABLED => {}
            mode::FILTER => self.set_filter(parent.filter()),
            other => self.mode.store(other, Ordering::Release),
        }
    }
}

/// What becomes of a call.
#[derive(Debug)]
pub(crate) enum Gate {
    Pass,
    Answer(SysResult),
}

/// What a filter sees of the call that `cx` makes.
fn data_of(cx: &Current) -> SeccompData {
    #[allow(clippy::cast_possible_truncation, reason = "Linux takes the number as an int")]
    let number = cx.regs.orig_rax as u32;
    SeccompData {
        nr: number.cast_signed(),
        arch: AUDIT_ARCH_X86_64,
        instruction_pointer: cx.regs.rip,
        args: cx.regs.syscall_args(),
    }
}

/// Asks the filters about a call of a task that has some (`__secure_computing`). A tracer that is asked may change it.
pub(crate) async fn enter(cx: &mut Current) -> Gate {
    let task = Arc::clone(&cx.task);
    if task.seccomp.mode() == mode::STRICT {
        // read, write, exit, rt_sigreturn.
        if matches!(data_of(cx).nr, 0 | 1 | 60 | 15) {
            return Gate::Pass;
        }
        end_thread(&task, sig::KILL);
        return Gate::Answer(Err(Stop::RegistersSet));
    }
    let Some(filter) = task.seccomp.filter() else { return Gate::Pass };
    if filter.passes(data_of(cx).nr) {
        return Gate::Pass;
    }
    let mut asked_tracer = false;
    loop {
        let data = data_of(cx);
        let (answer, filter) = filter.evaluate(&data);
        if answer & ret::ACTION != ret::TRACE {
            return act(cx, data, answer, filter).await;
        }
        if asked_tracer {
            return Gate::Pass;
        }
        if !crate::ptrace::seccomp_stop(cx, answer & ret::DATA).await {
            return Gate::Answer(Err(Stop::Errno(Errno::ENOSYS)));
        }
        if data_of(cx).nr < 0 || task.work() & work::KILL != 0 {
            // The tracer has said what the call returns.
            return Gate::Answer(Err(Stop::RegistersSet));
        }
        // What the tracer has made of the call is looked at again.
        asked_tracer = true;
    }
}

/// Does what a filter has answered.
async fn act(cx: &mut Current, data: SeccompData, answer: u32, filter: &Filter) -> Gate {
    let task = Arc::clone(&cx.task);
    let low = answer & ret::DATA;
    match answer & ret::ACTION {
        ret::ALLOW | ret::LOG => Gate::Pass,
        ret::ERRNO => Gate::Answer(match low.min(MAX_ERRNO) {
            0 => Ok(0),
            errno => Err(Stop::Errno(Errno::from_raw(errno.cast_signed()))),
        }),
        ret::TRAP => {
            cx.regs.rax = u64::from(data.nr.cast_unsigned());
            let info = SigInfo::seccomp(cx.regs.rip, data.nr, AUDIT_ARCH_X86_64, low.cast_signed());
            task.force_signal(info);
            Gate::Answer(Err(Stop::RegistersSet))
        }
        ret::USER_NOTIF => match &filter.listener {
            Some(listener) => listener.ask(cx, data).await,
            None => Gate::Answer(Err(Stop::Errno(Errno::ENOSYS))),
        },
        ret::KILL_THREAD if task.group().nr_threads() > 1 => {
            end_thread(&task, sig::SYS);
            Gate::Answer(Err(Stop::RegistersSet))
        }
        _ => {
            task.force_fatal(sig::SYS);
            Gate::Answer(Err(Stop::RegistersSet))
        }
    }
}

/// Ends a thread as if `signo` had killed it alone.
fn end_thread(task: &Task, signo: i32) {
    task.signals.lock().exit = Some(WaitStatus::signaled(signo, false));
    task.notify(work::KILL);
}

/// Whether a filter may return this action (`SECCOMP_GET_ACTION_AVAIL`).
pub fn knows_action(action: u32) -> bool {
    use ret::*;
    [KILL_PROCESS, KILL_THREAD, TRAP, ERRNO, USER_NOTIF, TRACE, LOG, ALLOW].contains(&action)
}

/// What adding a filter came to.
#[derive(Debug)]
pub enum Added {
    /// Done; with a listener if one was asked for.
    Filter(Option<Arc<Listener>>),
    /// With `TSYNC`: this thread has filters that the caller has not.
    Diverged(i32),
}

impl Task {
    /// `PR_GET_SECCOMP`: 0, 1 for strict mode, 2 with filters.
    pub fn seccomp_mode(&self) -> u32 {
        self.seccomp.mode()
    }

    /// Whether these calls pass whatever their arguments are.
    pub(crate) fn filters_pass(&self, calls: &[i64]) -> bool {
        match self.seccomp.mode() {
            mode::DISABLED => true,
            mode::STRICT => false,
            _ => self.seccomp.filter().is_some_and(|filter| {
                calls.iter().all(|call| i32::try_from(*call).is_ok_and(|nr| filter.passes(nr)))
            }),
        }
    }

    /// How many filters a call passes.
    pub fn seccomp_filters(&self) -> u32 {
        self.seccomp.filter().map_or(0, |f| f.depth)
    }

    /// `SECCOMP_SET_MODE_STRICT`. `EINVAL` for a task with filters.
    pub fn set_seccomp_strict(&self) -> Result<()> {
        if !matches!(self.seccomp.mode(), mode::DISABLED | mode::STRICT) {
            return Err(Errno::EINVAL);
        }
        self.seccomp.mode.store(mode::STRICT, Ordering::Release);
        Ok(())
    }

    /// Whether the task may add filters: `EACCES` unless it cannot gain privileges or has the right to administer.
    pub fn may_filter(&self) -> Result<()> {
        let creds = self.creds();
        if creds.no_new_privs || creds.has_cap_here(cap::SYS_ADMIN) { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// Adds a checked filter (`seccomp_attach_filter`); `flags` are those of [`flag`]. `EINVAL` in strict mode, `ENOMEM`
    /// for too many instructions in all, `EBUSY` for a second listener, `ESRCH` for `TSYNC` with `TSYNC_ESRCH` where
    /// threads diverge.
    pub fn add_filter(self: &Arc<Self>, program: Program, flags: u32) -> Result<Added> {
        let group = self.group().signals.lock();
        if self.seccomp.mode() == mode::STRICT {
            return Err(Errno::EINVAL);
        }
        let previous = self.seccomp.filter();
        let wants_listener = flags & flag::NEW_LISTENER != 0;
        if wants_listener && previous.iter().flat_map(|f| f.chain()).any(|f| f.listener.is_some()) {
            return Err(Errno::EBUSY);
        }
        let path = program.weight() + 4 + previous.as_ref().map_or(0, |f| f.path);
        if path - 4 > MAX_PATH {
            return Err(Errno::ENOMEM);
        }
        let others: Vec<_> = match flags & flag::TSYNC {
            0 => Vec::new(),
            _ => group.threads.iter().filter(|t| !Arc::ptr_eq(t, self)).cloned().collect(),
        };
        let mut replaced = Vec::new();
        for other in &others {
            let theirs = other.seccomp.filter();
            let agrees = match (other.seccomp.mode(), &theirs) {
                (mode::DISABLED, _) => true,
                (mode::FILTER, Some(theirs)) => {
                    previous.iter().flat_map(|f| f.chain()).any(|f| core::ptr::eq(f, Arc::as_ptr(theirs)))
                }
                _ => false,
            };
            replaced.push(theirs);
            if !agrees {
                let tid = other.ns_tid();
                return if flags & flag::TSYNC_ESRCH != 0 {
                    Err(Errno::ESRCH)
                } else {
                    Ok(Added::Diverged(tid))
                };
            }
        }
        let listener = wants_listener.then(|| Listener::new(flags & flag::WAIT_KILLABLE_RECV != 0));
        let depth = previous.as_ref().map_or(0, |f| f.depth) + 1;
        let filter = Arc::new(Filter {
            previous,
            program,
            path,
            depth,
            listener: listener.clone(),
            cache: Cache::default(),
        });
        self.seccomp.set_filter(Some(Arc::clone(&filter)));
        let creds = self.creds();
        for other in &others {
            other.seccomp.set_filter(Some(Arc::clone(&filter)));
            if creds.no_new_privs {
                let theirs = other.creds();
                other.set_creds(Arc::new(Credentials { no_new_privs: true, ..Credentials::clone(&theirs) }));
            }
        }
        drop(group);
        drop(replaced);
        // Calls that they answer by themselves must pass the filter from here on.
        for other in &others {
            other.notify(0);
        }
        Ok(Added::Filter(listener))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::seccomp::SockFilter;

    fn returning(answer: u32, previous: Option<Arc<Filter>>) -> Arc<Filter> {
        let program = Program::check(&[SockFilter { code: 6, jt: 0, jf: 0, k: answer }]).unwrap();
        Arc::new(Filter { previous, program, path: 5, depth: 1, listener: None, cache: Cache::default() })
    }

    #[test]
    fn the_most_restrictive_answer_counts_and_the_newest_of_equals() {
        let data = SeccompData::default();
        let errno = returning(ret::ERRNO | 1, None);
        let same = returning(ret::ERRNO | 2, Some(errno));
        assert_eq!(same.evaluate(&data).0, ret::ERRNO | 2);
        let allow = returning(ret::ALLOW, Some(Arc::clone(&same)));
        assert_eq!(allow.evaluate(&data).0, ret::ERRNO | 2);
        let trap = returning(ret::TRAP, Some(allow));
        let kill = returning(ret::KILL_THREAD, Some(trap));
        assert_eq!(kill.evaluate(&data).0, ret::KILL_THREAD);
        assert_eq!(returning(ret::KILL_PROCESS, Some(kill)).evaluate(&data).0, ret::KILL_PROCESS);
    }

    #[test]
    fn a_call_passes_at_once_if_every_filter_allows_it_by_its_number() {
        let allow = returning(ret::ALLOW, None);
        assert!(allow.passes(39));
        assert!(allow.passes(39), "and when asked again");
        let logs = returning(ret::LOG, Some(allow));
        assert!(!logs.passes(39));
        let allow = returning(ret::ALLOW, Some(logs));
        assert!(!allow.passes(39));
        assert!(!returning(ret::ALLOW, None).passes(-1));
        // Allows all calls whose first argument is zero.
        let by_argument = [(0x20, 0, 0, 16), (0x15, 0, 1, 0), (6, 0, 0, ret::ALLOW), (6, 0, 0, 0)];
        let by_argument = by_argument.map(|(code, jt, jf, k)| SockFilter { code, jt, jf, k });
        assert!(!Filter::first(Program::check(&by_argument).unwrap()).passes(39));
    }

    #[test]
    fn a_long_chain_is_dropped() {
        let mut last = None;
        for _ in 0..200_000 {
            last = Some(returning(ret::ALLOW, last));
        }
        drop(last);
    }
}
