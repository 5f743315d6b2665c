//! Executing programs (`execve(2)`, `fs/exec.c`).
//!
//! The new image is built first, so that an error leaves the caller as it was. Then its siblings are ended, and only then
//! are memory, credentials, descriptors and signals changed.

use core::sync::atomic::Ordering;
use std::sync::Arc;

use abi::process::rlimit;
use abi::signal::{SS_DISABLE, StackT};
use platform::{Context, Regs};
use sentry_base::{Errno, Result, WaitClass};
use sentry_loader::{Elf, Format, Ids, Image, Loaded, MAX_SCRIPTS, OpenedFile};
use sentry_mm::MmLimits;
use sentry_vfs::{Credentials, FileDescription, FsContextView, Location, LookupFlags, PathCx, cap};

use crate::clone::space_errno;
use crate::exec_creds::{self, ExecCreds};
use crate::group::ExecWait;
use crate::task::work;
use crate::{Current, Restart, Stop, Task, TaskState};

/// What to execute.
#[derive(Debug)]
pub struct ExecSpec {
    /// Where a relative path starts; the working directory for `None`.
    pub base: Option<Location>,
    pub path: Vec<u8>,
    /// `FOLLOW` unless `AT_SYMLINK_NOFOLLOW`, `EMPTY` for `AT_EMPTY_PATH`.
    pub flags: LookupFlags,
    /// The path as the program sees it (`/dev/fd/N/...` for a descriptor's).
    pub filename: Vec<u8>,
    /// A script could not be opened by its name, because its descriptor will be closed.
    pub name_vanishes: bool,
    pub argv: Vec<Vec<u8>>,
    pub envp: Vec<Vec<u8>>,
}

/// A program that is ready to replace its caller's.
pub(crate) struct Program {
    loaded: Loaded,
    context: Box<dyn Context>,
    creds: Arc<Credentials>,
    exe: Arc<FileDescription>,
    comm: Vec<u8>,
    /// It got privileges that its caller does not have.
    secure: bool,
    /// Others may not look into its memory.
    hidden: bool,
    persona: u32,
}

/// `ADDR_NO_RANDOMIZE` of `personality(2)`.
const ADDR_NO_RANDOMIZE: u32 = 0x0004_0000;
/// Bits of the persona that a program with new privileges does not keep (`PER_CLEAR_ON_SETID`).
const PER_CLEAR_ON_SETID: u32 = 0x0014_0000 | ADDR_NO_RANDOMIZE | 0x0040_0000;

/// Reads, checks and loads a program; the caller is unchanged.
pub(crate) fn prepare(task: &Task, spec: ExecSpec) -> Result<Program> {
    let kernel = task.kernel();
    let fs = task.fs().view();
    let creds = task.creds();
    let walk = |base: Option<&Location>, path: &[u8], flags| open(task, &fs, &creds, base, path, flags);
    let ExecSpec { base, path, flags, filename, name_vanishes, mut argv, envp } = spec;
    if argv.is_empty() {
        argv.push(Vec::new());
    }
    let mut file = walk(base.as_ref(), &path, flags)?;
    let mut name = filename.clone();
    let mut scripts = 0;
    let program: Elf = loop {
        match sentry_loader::identify(&opened(task, &file))? {
            Format::Elf(elf) => break elf,
            Format::Script(_) if name_vanishes => return Err(Errno::ENOENT),
            Format::Script(_) if scripts >= MAX_SCRIPTS => return Err(Errno::ELOOP),
            Format::Script(script) => {
                scripts += 1;
                argv = script.apply(&name, &argv);
                file = walk(None, &script.interpreter, LookupFlags::FOLLOW)?;
                name = script.interpreter;
            }
        }
    };
    let loader_file = match &program.interpreter {
        Some(path) => Some(walk(None, path, LookupFlags::FOLLOW)?),
        None => None,
    };
    let loader = match &loader_file {
        Some(file) => Some(Elf::parse_interpreter(&opened(task, file))?),
        None => None,
    };
    let ExecCreds { creds: new_creds, secure, clears_persona } =
        exec_creds::of_file(&creds, &file, task.has_weak_tracer())?;
    let hidden = exec_creds::hides_memory(&creds, &new_creds) || exec_creds::is_unreadable(&file, &creds);
    let persona = task.personality.load(Ordering::Relaxed);
    let persona = if clears_persona { persona & !PER_CLEAR_ON_SETID } else { persona };
    let loader_opened = loader_file.as_ref().map(|f| opened(task, f));
    let program_opened = opened(task, &file);
    let image = Image {
        program: &program,
        file: &program_opened,
        interpreter: loader.as_ref().zip(loader_opened.as_ref().map(|f| f as &dyn sentry_loader::ExecFile)),
        argv: &argv,
        envp: &envp,
        filename: &filename,
        ids: Ids {
            uid: new_creds.user_ns.show_uid(new_creds.uid),
            euid: new_creds.user_ns.show_uid(new_creds.euid),
            gid: new_creds.user_ns.show_gid(new_creds.gid),
            egid: new_creds.user_ns.show_gid(new_creds.egid),
            secure,
        },
        machine: kernel.machine(),
        limits: task.mm_limits(),
        randomize: persona & ADDR_NO_RANDOMIZE == 0,
    };
    let loaded = sentry_loader::load(kernel.platform().as_ref(), kernel.memory(), &image)?;
    if loader.is_none() {
        // A program without a loader has all its text. What it maps as text is for a program inside it, of which it may be the
        // processor (valgrind): it reads what it runs.
        loaded.mm.keep_later_text();
    }
    let context = kernel.platform().new_context(loaded.mm.space()).map_err(space_errno)?;
    if let Some(file) = &loader_file {
        // Only the program itself is kept from writers while it runs.
        file.allow_write();
    }
    let comm = filename.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec();
    let creds = Arc::new(new_creds);
    Ok(Program { loaded, context, creds, exe: file, comm, secure, hidden, persona })
}

fn opened<'a>(task: &'a Task, description: &'a Arc<FileDescription>) -> OpenedFile<'a> {
    OpenedFile { description, caller: task }
}

fn open(
    task: &Task,
    fs: &FsContextView,
    creds: &Credentials,
    base: Option<&Location>,
    path: &[u8],
    flags: LookupFlags,
) -> Result<Arc<FileDescription>> {
    let ns = task.mount_ns();
    PathCx::new(&ns, fs, creds, task).open_exec(base, path, flags)
}

/// `execve(2)` and `execveat(2)`: on success the registers are the new program's.
pub async fn execve(cx: &mut Current, spec: ExecSpec) -> Stop {
    if let Err(errno) = cx.task.check_noted_task_limit() {
        return Stop::Errno(errno);
    }
    let program = match prepare(&cx.task, spec) {
        Ok(program) => program,
        Err(errno) => return Stop::Errno(errno),
    };
    let old_tid = cx.task.tid();
    if let Err(stop) = end_siblings(cx).await {
        return stop;
    }
    cx.task.set_state(TaskState::ExecCreds);
    commit(cx, program);
    cx.regs.orig_rax = cx.syscall_nr;
    if cx.task.is_traced() {
        cx.task.mm().keep_text();
        Box::pin(crate::ptrace::exec_stop(cx, old_tid)).await;
    }
    Stop::RegistersSet
}

/// Ends every other thread of the process and takes over the leader's place (`de_thread`).
async fn end_siblings(cx: &mut Current) -> Result<(), Stop> {
    let task = Arc::clone(&cx.task);
    let group = Arc::clone(task.group());
    {
        let mut signals = group.signals.lock();
        if signals.exit.is_some() || signals.exec.is_some() || task.work() & work::KILL != 0 {
            return Err(Stop::Restart(Restart::NoIntr));
        }
        if signals.threads.len() > 1 {
            task.set_state(TaskState::ExecSiblings);
            signals.exec = Some(ExecWait { thread: Arc::clone(&task) });
            for thread in signals.threads.iter().filter(|t| !Arc::ptr_eq(t, &task)) {
                thread.notify(work::KILL);
            }
        }
    }
    loop {
        task.sleeper().arm();
        let alone = group.signals.lock().threads.len() <= 1;
        if alone || task.sleeper().is_killed() {
            break;
        }
        cx.sleep(WaitClass::Killable, None).await;
    }
    let mut signals = group.signals.lock();
    signals.exec = None;
    signals.leader_exit = None;
    // Killed by a signal while it waited.
    if task.work() & work::KILL != 0 {
        return Err(Stop::RegistersSet);
    }
    drop(signals);
    if task.tid() != task.pid() {
        let mut set = task.kernel().task_set();
        let pid = task.pid();
        let own = set.tasks.remove(&task.tid());
        let old_leader = set.tasks.insert(pid, Arc::clone(&task));
        let process = set.process_mut(pid)?;
        let leader = core::mem::replace(&mut process.leader, Arc::clone(&task));
        process.leader_dead = false;
        let old_tid = task.tid();
        let traced = crate::ptrace::move_link(&mut set, task.tid(), pid);
        task.set_tid(pid);
        set.give_back(old_tid, task.group().pid_ns());
        drop(set);
        drop((own, old_leader, leader, traced));
    }
    Ok(())
}

/// The registers that a program starts with.
fn first_regs(loaded: &Loaded) -> Regs {
    Regs {
        rip: loaded.entry,
        rsp: loaded.stack_pointer,
        cs: 0x33,
        ss: 0x2b,
        eflags: 0x202,
        orig_rax: u64::MAX,
        ..Regs::default()
    }
}

/// Makes a program the first one of a task that has not run yet.
pub(crate) fn start(task: &Arc<Task>, program: Program) -> Current {
    let regs = first_regs(&program.loaded);
    task.kernel().watch_space(&program.loaded.mm);
    task.set_mm(program.loaded.mm);
    task.set_exe(Some(program.exe));
    task.set_creds(program.creds);
    task.personality.store(program.persona, Ordering::Relaxed);
    task.set_comm(&program.comm);
    Current::new(Arc::clone(task), regs, program.context)
}

/// Replaces the caller's program. Nothing here can fail.
fn commit(cx: &mut Current, program: Program) {
    let Program { loaded, context, creds, exe, comm, secure, hidden, persona } = program;
    let task = Arc::clone(&cx.task);
    let kernel = Arc::clone(task.kernel());
    let group = task.group();
    crate::exit::leave_memory(&task);

    task.set_kicker(context.kicker());
    let old_context = cx.replace_context(context);
    let old_mm = task.mm();
    task.set_mm(Arc::clone(&loaded.mm));
    kernel.watch_space(&loaded.mm);
    task.set_exe(Some(exe));
    cx.regs = first_regs(&loaded);
    cx.user_dispatch = None;
    drop(old_context);
    drop(old_mm);

    if secure || hidden {
        task.pdeath_signal.store(0, Ordering::Relaxed);
    }
    task.personality.store(persona, Ordering::Relaxed);
    group.set_dumpable(i32::from(!hidden));
    task.set_creds(creds);

    let fds = task.fds();
    // Counted with this clone: more than two means that another task shares the table.
    let fds = if Arc::strong_count(&fds) > 2 {
        let own = fds.fork();
        task.set_fds(Arc::clone(&own));
        own
    } else {
        fds
    };
    fds.close_on_exec(task.pid());

    {
        let mut signals = group.signals.lock();
        let actions = signals.actions.fork(true);
        signals.actions = Arc::clone(&actions);
        cx.replace_actions(actions);
        let mut own = task.signals.lock();
        own.alt_stack = StackT { flags: SS_DISABLE, ..StackT::default() };
    }
    group.timers.clear_posix(&kernel);
    group.exit_signal.store(abi::signal::sig::CHLD, Ordering::Relaxed);
    task.set_comm(&comm);
    if let Ok(process) = kernel.task_set().process_mut(task.pid()) {
        process.has_execed = true;
    }
    *task.restart_block.lock() = None;
}

impl Task {
    /// The limits that the calls on memory obey.
    pub fn mm_limits(&self) -> MmLimits {
        let limits = self.group().limits();
        MmLimits {
            address_space: limits.soft(rlimit::AS),
            data: limits.soft(rlimit::DATA),
            stack: limits.soft(rlimit::STACK),
            memlock: limits.soft(rlimit::MEMLOCK),
            may_lock: self.creds().has_cap(cap::IPC_LOCK),
        }
    }
}
