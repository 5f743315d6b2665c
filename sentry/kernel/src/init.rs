//! Processes that are started from outside: the first one of a container, and those that are executed in it later.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use abi::signal::{SigSet, sig};
use sentry_base::Errno;
use sentry_vfs::{Access, Credentials, FsContext, LookupFlags, PathCx};

use crate::clone::Admitted;
use crate::exec::{self, ExecSpec};
use crate::signal::Actions;
use crate::task::{Scheduling, TaskParts, comm_from};
use crate::task_set::{Process, Session};
use crate::{Current, InitSpec, Kernel, Limits, Task, ThreadGroup, run};

/// Why a process could not be started from outside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitError {
    /// There is no argument vector.
    #[error("no command was given")]
    NoCommand,
    /// No directory of `PATH` holds the command.
    #[error("executable file {0:?} not found in $PATH")]
    NotInPath(String),
    /// The command could not be executed.
    #[error("cannot execute {path:?}: {errno}")]
    Exec { path: String, errno: Errno },
    /// The working directory cannot be entered.
    #[error("cannot enter the working directory {path:?}: {errno}")]
    WorkingDirectory { path: String, errno: Errno },
    /// The kernel has ended or its limit of tasks is zero.
    #[error("cannot make the first task: {0}")]
    Task(Errno),
}

impl InitError {
    /// What a shell would report: 127 for a command that is not there, 126 for one that cannot run.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::NotInPath(_) | Self::Exec { errno: Errno::ENOENT, .. } => 127,
            _ => 126,
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Kernel {
    /// Makes the first process. Call it once.
    pub fn create_init(self: &Arc<Self>, spec: InitSpec) -> Result<Prepared, InitError> {
        self.set_init_shielded(spec.shielded);
        self.prepare(spec, true)
    }

    /// Makes another process without a parent, in a session of its own. It is an ordinary process but for that nobody
    /// inside waits for it: `on_exit` is told its status.
    pub fn create_process(self: &Arc<Self>, spec: InitSpec) -> Result<Prepared, InitError> {
        self.prepare(spec, false)
    }

    fn prepare(self: &Arc<Self>, spec: InitSpec, is_init: bool) -> Result<Prepared, InitError> {
        let mut limits = Limits::default();
        for (resource, limit) in &spec.rlimits {
            limits.set(*resource, *limit);
        }
        let command = spec.argv.first().cloned().ok_or(InitError::NoCommand)?;
        let pid = self.task_set().allocate(self.max_tasks).map_err(InitError::Task)?;
        let pid_ns = spec.pid_ns.clone().unwrap_or_else(|| Arc::clone(self.first_pid_ns()));
        let mut number = Admitted::new(&pid_ns, pid).map_err(|_| InitError::Task(Errno::ESRCH))?;
        let actions = Arc::new(Actions::default());
        let group = ThreadGroup::new(Arc::clone(self), pid, Arc::clone(&pid_ns), actions, limits);
        group.set_container(spec.container);
        group.exit_signal.store(sig::CHLD, Ordering::Relaxed);
        group.set_oom_score_adj(spec.oom_score_adj);
        let task = Task::new(TaskParts {
            tid: pid,
            kernel: Arc::clone(self),
            group: Arc::clone(&group),
            creds: Arc::new(spec.creds.clone()),
            mm: Arc::clone(self.no_mm()),
            fds: Arc::clone(&spec.fds),
            fs: FsContext::new(spec.root.clone(), spec.root.clone(), spec.umask),
            namespaces: self.first_namespaces().with_mounts_and_pids(&spec.mount_ns, &pid_ns),
            comm: comm_from(&command),
            mask: SigSet::EMPTY,
            scheduling: Scheduling::of_cpus(self.nr_cpus()),
        });
        if let Some(filter) = &spec.filter {
            task.seccomp.begin_with(filter);
        }
        enter_directory(&task, &spec.creds, &spec.cwd)?;
        let program = find_program(&task, &spec, &command)?;

        group.signals.lock().threads.push(Arc::clone(&task));
        {
            let mut set = self.task_set();
            // Asked again under the lock: init may have ended since the number was taken.
            if set.closed || pid_ns.is_closed() {
                return Err(InitError::Task(Errno::ESRCH));
            }
            number.keep();
            set.tasks.insert(pid, Arc::clone(&task));
            let process = Process {
                group: Arc::clone(&group),
                leader: Arc::clone(&task),
                parent: 0,
                parent_tid: 0,
                children: Vec::new(),
                pgid: pid,
                sid: pid,
                zombie: None,
                leader_dead: false,
                stop_report: None,
                continue_report: false,
                has_execed: true,
                lingers: false,
            };
            set.processes.insert(pid, process);
            set.set_group(pid, pid);
            set.set_session(pid, pid);
            set.sessions.insert(pid, Session::default());
        }
        if let Some(terminal) = spec.terminal {
            // A fresh session can always take a terminal that nobody has.
            let _ = task.take_terminal(terminal, true);
        }
        if is_init {
            self.set_exit_callback(spec.on_exit);
        } else if let Some(callback) = spec.on_exit {
            self.on_process_exit(pid, callback);
        }
        spec.fds.close_on_exec(pid);
        let cx = exec::start(&task, program);
        group.watch_cpu_limit();
        Ok(Prepared { cx })
    }
}

/// A process that is there, and has yet to run its first instruction.
pub struct Prepared {
    cx: Current,
}

impl core::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Prepared({})", self.pid())
    }
}

impl Prepared {
    pub fn pid(&self) -> i32 {
        self.cx.task.pid()
    }

    /// Lets it run, and take the signals that have come meanwhile.
    pub fn start(self) {
        let kernel = Arc::clone(self.cx.task.kernel());
        kernel.executor().spawn(run::run(self.cx));
    }
}

fn enter_directory(task: &Arc<Task>, creds: &Credentials, path: &[u8]) -> Result<(), InitError> {
    let fs = task.fs();
    let view = fs.view();
    let ns = task.mount_ns();
    let walk = PathCx::new(&ns, &view, creds, task.as_ref());
    let path = if path.is_empty() { b"/".as_slice() } else { path };
    let at = walk
        .lookup(None, path, LookupFlags::FOLLOW | LookupFlags::DIRECTORY)
        .and_then(|at| walk.check(&at, Access::EXEC).map(|()| at))
        .map_err(|errno| InitError::WorkingDirectory { path: text(path), errno })?;
    fs.set_cwd(at);
    Ok(())
}

/// The default of `execvp(3)` for an environment without `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn find_program(task: &Arc<Task>, spec: &InitSpec, command: &[u8]) -> Result<exec::Program, InitError> {
    let prepare = |path: Vec<u8>| {
        let exec = ExecSpec {
            base: None,
            path: path.clone(),
            flags: LookupFlags::FOLLOW,
            filename: path,
            name_vanishes: false,
            argv: spec.argv.clone(),
            envp: spec.env.clone(),
        };
        exec::prepare(task, exec)
    };
    if command.contains(&b'/') {
        return prepare(command.to_vec()).map_err(|errno| InitError::Exec { path: text(command), errno });
    }
    if command.is_empty() {
        return Err(InitError::NotInPath(String::new()));
    }
    let path = spec.env.iter().find_map(|v| v.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
    let mut denied = None;
    for dir in path.split(|b| *b == b':') {
        let dir = if dir.is_empty() { b".".as_slice() } else { dir };
        let candidate = [dir, b"/", command].concat();
        match prepare(candidate.clone()) {
            Ok(program) => return Ok(program),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
            Err(errno) => {
                denied.get_or_insert(InitError::Exec { path: text(&candidate), errno });
            }
        }
    }
    Err(denied.unwrap_or_else(|| InitError::NotInPath(text(command))))
}
