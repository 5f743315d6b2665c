//! Every task and process by number, and how processes are related: parents, process groups, sessions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use abi::process::WaitStatus;
use sentry_base::{Errno, Result};
use sentry_vfs::Terminal;

use crate::ptrace::TraceLink;
use crate::{PidNs, Task, ThreadGroup};

/// The largest task number plus one (`PID_MAX_LIMIT` of 64-bit kernels).
pub const PID_MAX: i32 = 4_194_304;

/// A process that has ended and was not yet waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Zombie {
    pub status: WaitStatus,
    pub utime: u64,
    pub stime: u64,
    pub children_utime: u64,
    pub children_stime: u64,
    /// The parent was told; before that the leader is gone but other threads are not.
    pub uid: u32,
}

/// A process among its relatives.
#[derive(Debug)]
pub(crate) struct Process {
    pub group: Arc<ThreadGroup>,
    pub leader: Arc<Task>,
    /// 0 for init.
    pub parent: i32,
    /// The thread that made it, for `PR_SET_PDEATHSIG` and `__WNOTHREAD`.
    pub parent_tid: i32,
    pub children: Vec<i32>,
    pub pgid: i32,
    pub sid: i32,
    pub zombie: Option<Zombie>,
    /// The leader has exited, other threads live on.
    pub leader_dead: bool,
    /// A stop that was not yet waited for.
    pub stop_report: Option<i32>,
    pub continue_report: bool,
    pub has_execed: bool,
    /// The ended init of a PID namespace: reported once everything else in it is gone.
    pub lingers: bool,
}

/// A session (`setsid(2)`).
#[derive(Debug, Default)]
pub(crate) struct Session {
    pub terminal: Option<Arc<dyn Terminal>>,
}

#[derive(Debug, Default)]
pub(crate) struct TaskSet {
    pub tasks: HashMap<i32, Arc<Task>>,
    pub processes: BTreeMap<i32, Process>,
    pub sessions: HashMap<i32, Session>,
    /// Who is traced, by thread id.
    pub traces: BTreeMap<i32, TraceLink>,
    last_pid: i32,
    /// Processes that linger.
    pub nr_lingering: usize,
    /// No more tasks are made: the sandbox ends.
    pub closed: bool,
}

impl TaskSet {
    fn number_in_use(&self, number: i32) -> bool {
        self.tasks.contains_key(&number)
            || self.processes.contains_key(&number)
            || self.sessions.contains_key(&number)
            || self.processes.values().any(|p| p.pgid == number || p.sid == number)
    }

    /// A number that names no task, process, group or session.
    pub fn allocate(&mut self, max_tasks: usize) -> Result<i32> {
        if self.closed {
            return Err(Errno::EAGAIN);
        }
        if self.tasks.len() >= max_tasks {
            return Err(Errno::EAGAIN);
        }
        let mut candidate = self.last_pid;
        for _ in 0..PID_MAX {
            candidate = if candidate + 1 >= PID_MAX { 300 } else { candidate + 1 };
            if !self.tasks.contains_key(&candidate) && !self.number_in_use(candidate) {
                self.last_pid = candidate;
                return Ok(candidate);
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Takes a number of the caller's choice; `EEXIST` if it names something.
    pub fn claim(&self, number: i32, max_tasks: usize) -> Result<i32> {
        if self.closed || self.tasks.len() >= max_tasks {
            return Err(Errno::EAGAIN);
        }
        if self.number_in_use(number) { Err(Errno::EEXIST) } else { Ok(number) }
    }

    pub fn process(&self, pid: i32) -> Result<&Process> {
        self.processes.get(&pid).ok_or(Errno::ESRCH)
    }

    pub fn process_mut(&mut self, pid: i32) -> Result<&mut Process> {
        self.processes.get_mut(&pid).ok_or(Errno::ESRCH)
    }

    /// The living processes of a process group.
    pub fn members(&self, pgid: i32) -> Vec<Arc<ThreadGroup>> {
        self.processes
            .values()
            .filter(|p| p.pgid == pgid && p.zombie.is_none())
            .map(|p| Arc::clone(&p.group))
            .collect()
    }

    pub fn group_exists(&self, pgid: i32) -> bool {
        self.processes.values().any(|p| p.pgid == pgid)
    }

    /// The session of a process group that has members.
    pub fn session_of_group(&self, pgid: i32) -> Option<i32> {
        self.processes.values().find(|p| p.pgid == pgid).map(|p| p.sid)
    }

    pub fn set_group(&mut self, pid: i32, pgid: i32) {
        if let Some(process) = self.processes.get_mut(&pid) {
            let old = core::mem::replace(&mut process.pgid, pgid);
            process.group.pgid.store(pgid, Ordering::Relaxed);
            let ns = Arc::clone(process.group.pid_ns());
            self.give_back(old, &ns);
        }
    }

    /// Takes a number out of the PID namespaces below the first once nothing has it any more.
    pub fn give_back(&mut self, number: i32, ns: &PidNs) {
        if !ns.is_first() && !self.number_in_use(number) {
            ns.release(number);
        }
    }

    /// The inits that linger and have nobody left to wait for.
    pub fn take_lone_inits(&mut self) -> Vec<i32> {
        if self.nr_lingering == 0 {
            return Vec::new();
        }
        let lone: Vec<i32> = self
            .processes
            .iter()
            .filter(|(_, p)| p.lingers && p.group.pid_ns().is_only_init_left())
            .map(|(pid, _)| *pid)
            .collect();
        for pid in &lone {
            if let Some(process) = self.processes.get_mut(pid) {
                process.lingers = false;
                self.nr_lingering = self.nr_lingering.saturating_sub(1);
            }
        }
        lone
    }

    pub fn set_session(&mut self, pid: i32, sid: i32) {
        if let Some(process) = self.processes.get_mut(&pid) {
            let old = core::mem::replace(&mut process.sid, sid);
            process.group.sid.store(sid, Ordering::Relaxed);
            let ns = Arc::clone(process.group.pid_ns());
            self.give_back(old, &ns);
        }
    }

    pub fn set_parent(&mut self, pid: i32, parent: i32, parent_tid: i32) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.parent = parent;
            process.parent_tid = parent_tid;
            process.group.ppid.store(parent, Ordering::Relaxed);
        }
    }

    /// Whether no member of the group has a parent in another group of the same session, `ignored` left out
    /// (`will_become_orphaned_pgrp`).
    pub fn is_orphaned(&self, pgid: i32, ignored: Option<i32>) -> bool {
        !self.processes.iter().any(|(pid, p)| {
            p.pgid == pgid
                && Some(*pid) != ignored
                && p.zombie.is_none()
                && p.parent > 0
                && self
                    .processes
                    .get(&p.parent)
                    .is_some_and(|parent| parent.pgid != pgid && parent.sid == p.sid)
        })
    }

    /// Removes a zombie. Its children are already another's.
    pub fn remove_process(&mut self, pid: i32) -> Option<Process> {
        let process = self.processes.remove(&pid)?;
        self.tasks.remove(&pid);
        self.traces.remove(&pid);
        if let Some(parent) = self.processes.get_mut(&process.parent) {
            parent.children.retain(|c| *c != pid);
        }
        if !self.processes.values().any(|p| p.sid == process.sid) {
            self.sessions.remove(&process.sid);
        }
        let ns = process.group.pid_ns();
        for number in [pid, process.pgid, process.sid] {
            self.give_back(number, ns);
        }
        Some(process)
    }
}
