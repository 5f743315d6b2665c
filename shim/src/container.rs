//! A container of the shim: its processes, how they ended, and what containerd is told about them.
//!
//! A process' end is noticed by a thread that waits for what stands for it on the host. It takes the container's lock to
//! tell it, and whoever starts a process holds the lock until the start is told: so an end never overtakes a start.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use hostsys::polling::{self, Interest};
use hostsys::process::{self, Exit};
use runtime::log::Log;
use runtime::{Error, Group, StateRoot};

use crate::events::Events;
use crate::io::{Places, Streams, Whose};
use crate::messages::{
    DeleteReply, StateReply, TaskDelete, TaskExec, TaskExit, TaskNamed, TaskStart, TaskStatus, Timestamp,
    WaitReply,
};
use crate::oci::Runtime;
use crate::rootfs;
use crate::ttrpc::{Code, Failure};

/// How long the ends of other processes may take to be told before that of init.
const LAST_ENDS: Duration = Duration::from_secs(2);

/// How often it is looked whether memory ran out, in milliseconds.
const MEMORY_TURN_MS: i32 = 1000;

/// How a process ended.
#[derive(Debug, Clone, Copy)]
struct Ended {
    status: u32,
    at: SystemTime,
}

/// Init, or a process that is executed in the container.
#[derive(Debug, Default)]
struct Process {
    places: Places,
    streams: Option<Streams>,
    /// What stands for it on the host; 0 before its start.
    pid: u32,
    started: bool,
    ended: Option<Ended>,
    /// What is to be executed, until it is started.
    spec: Vec<u8>,
}

#[derive(Debug, Default)]
struct Inner {
    init: Process,
    execs: BTreeMap<String, Process>,
    paused: bool,
    /// Those that containerd was told of, or that were before the container.
    oom_kills: u64,
    deleted: bool,
}

impl Inner {
    /// The process of this name; none is init's.
    fn process(&mut self, exec_id: &str) -> Option<&mut Process> {
        if exec_id.is_empty() { Some(&mut self.init) } else { self.execs.get_mut(exec_id) }
    }
}

/// A container.
#[derive(Debug)]
pub struct Container {
    pub id: String,
    pub bundle: PathBuf,
    runtime: Runtime,
    events: Events,
    namespace: String,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// The control groups that memory may run out in: its own, and that of its pod's sandbox.
    memory: Vec<Group>,
    /// The most CPU time that its processes were seen to have had, in milliseconds.
    cpu_ms: AtomicU64,
}

/// A library's error as containerd looks for it.
fn failure(error: Error) -> Failure {
    match error {
        Error::NotRunning | Error::DoesNotExist => {
            Failure::new(Code::NotFound, "process already finished: not found")
        }
        Error::AlreadyRunning | Error::HasStopped | Error::NotPaused => {
            Failure::new(Code::FailedPrecondition, error.to_string())
        }
        error => Failure::new(Code::Unknown, error.to_string()),
    }
}

fn no_process(exec_id: &str) -> Failure {
    Failure::new(Code::NotFound, format!("process {exec_id} does not exist: not found"))
}

/// The control groups that a container's memory may run out in. In a pod it is that of the sandbox, and its own when it passes
/// its own limit.
fn memory_of(root: &Path, id: &str) -> Vec<Group> {
    let load = || {
        let root = StateRoot::new(Some(root)).ok()?;
        let state = root.load(id).ok()?;
        let pod = state.pod.as_deref().and_then(|pod| root.load(pod).ok());
        Some(pod.map(|pod| pod.cgroup).into_iter().chain([state.cgroup]).collect())
    };
    load().unwrap_or_default()
}

/// Waits for a child's end. One that is not ours is awaited without its status.
fn await_end(pid: u32) -> u32 {
    const UNKNOWN: u32 = 255;
    let Some(opened) = i32::try_from(pid).ok().and_then(|pid| process::pidfd_open(pid).ok()) else {
        return UNKNOWN;
    };
    match hostsys::pidfd::wait(&opened, true) {
        Ok(Some(Exit::Code(code))) => u32::try_from(code).unwrap_or(UNKNOWN),
        Ok(Some(Exit::Signal(signo))) => u32::try_from(128 + signo).unwrap_or(UNKNOWN),
        _ => {
            let mut interests = [Interest::new(opened.as_fd(), libc::POLLIN)];
            while polling::wait(&mut interests, None).is_err_and(|e| e.kind() == io::ErrorKind::Interrupted) {
            }
            UNKNOWN
        }
    }
}

impl Container {
    /// Creates the container; the process that stands for its init.
    pub fn create(
        id: &str,
        bundle: PathBuf,
        places: Places,
        runtime: Runtime,
        events: Events,
        namespace: &str,
        created: impl FnOnce(u32),
    ) -> Result<Arc<Self>, Failure> {
        let create = || -> io::Result<(u32, Streams)> {
            let (mut streams, ends) = Streams::open(&places, Whose { id, namespace })?;
            let pid = runtime.create(id, &bundle, ends)?;
            streams.attach()?;
            Ok((pid, streams))
        };
        let (pid, streams) = create().map_err(|error| {
            Failure::new(Code::Unknown, format!("OCI runtime create failed: {error}: unknown"))
        })?;
        let init = Process { places, streams: Some(streams), pid, ..Process::default() };
        let memory = memory_of(&runtime.root, id);
        let container = Arc::new(Self {
            id: id.to_owned(),
            memory,
            bundle,
            runtime,
            events,
            namespace: namespace.to_owned(),
            inner: Mutex::new(Inner { init, ..Inner::default() }),
            changed: Condvar::new(),
            cpu_ms: AtomicU64::new(0),
        });
        let before = container.oom_kills();
        container.lock().oom_kills = before;
        created(pid);
        container.watch("", pid);
        container.watch_memory(pid);
        Ok(container)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn root(&self) -> Result<StateRoot, Failure> {
        StateRoot::new(Some(&self.runtime.root)).map_err(failure)
    }

    /// Has a thread wait for the end of a process and tell it.
    fn watch(self: &Arc<Self>, exec_id: &str, pid: u32) {
        let (container, exec_id) = (Arc::clone(self), exec_id.to_owned());
        thread::spawn(move || {
            let status = await_end(pid);
            container.ended(&exec_id, pid, Ended { status, at: SystemTime::now() });
        });
    }

    fn ended(&self, exec_id: &str, pid: u32, how: Ended) {
        let mut inner = self.lock();
        if exec_id.is_empty() {
            // Everything in the container has ended with it, and is told before.
            let until = Instant::now() + LAST_ENDS;
            while inner.execs.values().any(|exec| exec.pid != 0 && exec.ended.is_none()) {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        self.tell_out_of_memory(&mut inner);
        self.events.put(
            "/tasks/exit",
            "TaskExit",
            &TaskExit {
                container_id: self.id.clone(),
                id: if exec_id.is_empty() { self.id.clone() } else { exec_id.to_owned() },
                pid,
                exit_status: how.status,
                exited_at: Some(how.at.into()),
            },
        );
        let streams = inner.process(exec_id).and_then(|process| {
            process.ended = Some(how);
            process.streams.take()
        });
        drop(inner);
        self.changed.notify_all();
        if let Some(streams) = streams {
            streams.finish();
        }
    }

    /// How often the host has killed in it for want of memory.
    fn oom_kills(&self) -> u64 {
        self.memory.iter().map(crate::stats::oom_kills).sum()
    }

    /// Has a thread look, until the end of init, whether the host has killed for want of memory: a container may go on
    /// without the process that it was.
    fn watch_memory(self: &Arc<Self>, pid: u32) {
        let Some(init) = i32::try_from(pid).ok().and_then(|pid| process::pidfd_open(pid).ok()) else {
            return;
        };
        let container = Arc::clone(self);
        thread::spawn(move || {
            loop {
                let mut interests = [Interest::new(init.as_fd(), libc::POLLIN)];
                match polling::wait(&mut interests, Some(MEMORY_TURN_MS)) {
                    Ok(1..) => return,
                    _ => container.tell_out_of_memory(&mut container.lock()),
                }
            }
        });
    }

    fn tell_out_of_memory(&self, inner: &mut Inner) {
        let kills = self.oom_kills();
        if kills > inner.oom_kills {
            inner.oom_kills = kills;
            self.tell("/tasks/oom", "TaskOOM");
        }
    }

    fn tell(&self, topic: &str, name: &str) {
        self.events.put(topic, name, &TaskNamed { container_id: self.id.clone() });
    }

    /// Starts init, or an added process.
    pub fn start(self: &Arc<Self>, exec_id: &str) -> Result<u32, Failure> {
        if !exec_id.is_empty() {
            return self.start_exec(exec_id);
        }
        let mut inner = self.lock();
        let pid = inner.init.pid;
        runtime::start(&self.root()?, &self.id, &Log::default()).map_err(failure)?;
        inner.init.started = true;
        self.events.put("/tasks/start", "TaskStart", &TaskStart { container_id: self.id.clone(), pid });
        Ok(pid)
    }

    /// Adds a process that is to be executed.
    pub fn add(&self, exec_id: &str, places: Places, spec: Vec<u8>) -> Result<(), Failure> {
        let mut inner = self.lock();
        if !exec_id.chars().all(|c| c.is_ascii_alphanumeric() || "_+.-".contains(c)) {
            return Err(Failure::new(Code::InvalidArgument, format!("{exec_id:?} is no name of a process")));
        }
        if exec_id.is_empty() || exec_id == self.id || inner.execs.contains_key(exec_id) {
            return Err(Failure::new(Code::AlreadyExists, format!("process {exec_id} already exists")));
        }
        if inner.init.ended.is_some() {
            return Err(Failure::new(Code::FailedPrecondition, "cannot exec in a stopped container"));
        }
        inner.execs.insert(exec_id.to_owned(), Process { places, spec, ..Process::default() });
        let added = TaskExec { container_id: self.id.clone(), exec_id: exec_id.to_owned(), pid: 0 };
        self.events.put("/tasks/exec-added", "TaskExecAdded", &added);
        Ok(())
    }

    fn start_exec(self: &Arc<Self>, exec_id: &str) -> Result<u32, Failure> {
        let (places, spec) = {
            let mut inner = self.lock();
            if inner.init.ended.is_some() {
                return Err(Failure::new(Code::FailedPrecondition, "cannot exec in a stopped container"));
            }
            let exec = inner.process(exec_id).ok_or_else(|| no_process(exec_id))?;
            if exec.started {
                return Err(Failure::new(Code::FailedPrecondition, "cannot start a started process"));
            }
            exec.started = true;
            (exec.places.clone(), std::mem::take(&mut exec.spec))
        };
        let whose = Whose { id: &self.id, namespace: &self.namespace };
        let start = || -> io::Result<(u32, Streams)> {
            let (mut streams, ends) = Streams::open(&places, whose)?;
            let pid = self.runtime.exec(&self.id, exec_id, &self.bundle, &spec, ends)?;
            streams.attach()?;
            Ok((pid, streams))
        };
        let started = start();
        let mut inner = self.lock();
        let exec = inner.process(exec_id).ok_or_else(|| no_process(exec_id))?;
        match started {
            Ok((pid, streams)) => {
                exec.pid = pid;
                exec.streams = Some(streams);
                let told = TaskExec { container_id: self.id.clone(), exec_id: exec_id.to_owned(), pid };
                self.events.put("/tasks/exec-started", "TaskExecStarted", &told);
                self.watch(exec_id, pid);
                Ok(pid)
            }
            Err(error) => {
                // It has never been there: who waits for it is told what a shell would say.
                exec.ended = Some(Ended { status: 137, at: SystemTime::now() });
                drop(inner);
                self.changed.notify_all();
                let message = format!("OCI runtime exec failed: {error}: unknown");
                Err(Failure::new(Code::Unknown, message))
            }
        }
    }

    pub fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), Failure> {
        let signo = i32::try_from(signal).unwrap_or(-1);
        let mut inner = self.lock();
        let process = inner.process(exec_id).ok_or_else(|| no_process(exec_id))?;
        if process.ended.is_some() {
            return Err(failure(Error::NotRunning));
        }
        if exec_id.is_empty() {
            drop(inner);
            return runtime::kill(&self.root()?, &self.id, signo, all).map_err(failure);
        }
        if process.pid == 0 {
            return Err(Failure::new(Code::FailedPrecondition, "process not created"));
        }
        // It is our child and not reaped yet, or the end would have been told: the number is its own.
        let pid = i32::try_from(process.pid).unwrap_or(i32::MAX);
        let opened = process::pidfd_open(pid);
        let sent = opened.and_then(|opened| process::pidfd_send_signal(opened.as_fd(), signo));
        sent.map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => failure(Error::NotRunning),
            _ => Failure::new(Code::Unknown, format!("send signal {signo}: {error}")),
        })
    }

    /// Stops every process where it stands, or lets them go on.
    pub fn pause(&self, pause: bool) -> Result<(), Failure> {
        let mut inner = self.lock();
        let root = self.root()?;
        if pause {
            runtime::pause(&root, &self.id).map_err(failure)?;
            self.tell("/tasks/paused", "TaskPaused");
        } else {
            runtime::resume(&root, &self.id).map_err(failure)?;
            self.tell("/tasks/resumed", "TaskResumed");
        }
        inner.paused = pause;
        Ok(())
    }

    pub fn update(&self, resources: &[u8]) -> Result<(), Failure> {
        runtime::update(&self.root()?, &self.id, resources).map_err(failure)
    }

    pub fn resize(&self, exec_id: &str, rows: u32, columns: u32) -> Result<(), Failure> {
        let mut inner = self.lock();
        let process = inner.process(exec_id).ok_or_else(|| no_process(exec_id))?;
        let Some(streams) = &process.streams else { return Ok(()) };
        streams.resize(rows, columns).map_err(|error| Failure::new(Code::Unknown, error.to_string()))
    }

    pub fn close_input(&self, exec_id: &str) -> Result<(), Failure> {
        let mut inner = self.lock();
        let process = inner.process(exec_id).ok_or_else(|| no_process(exec_id))?;
        if let Some(streams) = &mut process.streams {
            streams.close_input();
        }
        Ok(())
    }

    /// Waits for a process' end.
    pub fn wait(&self, exec_id: &str) -> Result<WaitReply, Failure> {
        let mut inner = self.lock();
        loop {
            let process = inner.process(exec_id).ok_or_else(|| no_process(exec_id))?;
            if let Some(Ended { status, at }) = process.ended {
                return Ok(WaitReply { exit_status: status, exited_at: Some(at.into()) });
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub fn state(&self, exec_id: &str) -> Result<StateReply, Failure> {
        let mut inner = self.lock();
        let paused = inner.paused;
        let process = inner.process(exec_id).ok_or_else(|| no_process(exec_id))?;
        let status = match process {
            Process { ended: Some(_), .. } => TaskStatus::Stopped,
            Process { started: false, .. } => TaskStatus::Created,
            _ if paused => TaskStatus::Paused,
            _ => TaskStatus::Running,
        };
        Ok(StateReply {
            id: self.id.clone(),
            bundle: self.bundle.display().to_string(),
            pid: process.pid,
            status: status.into(),
            stdin: process.places.stdin.clone(),
            stdout: process.places.stdout.clone(),
            stderr: process.places.stderr.clone(),
            terminal: process.places.terminal,
            exit_status: process.ended.map_or(0, |ended| ended.status),
            exited_at: Some(process.ended.map_or_else(Timestamp::default, |ended| ended.at.into())),
            exec_id: exec_id.to_owned(),
        })
    }

    /// What stands for the container's processes on the host, with the names of those that were executed later.
    pub fn pids(&self) -> Vec<(u32, String)> {
        let inner = self.lock();
        let execs = inner.execs.iter().map(|(name, process)| (process, name.as_str()));
        std::iter::once((&inner.init, ""))
            .chain(execs)
            .filter(|(process, _)| process.pid != 0 && process.ended.is_none())
            .map(|(process, name)| (process.pid, name.to_owned()))
            .collect()
    }

    pub fn init_pid(&self) -> u32 {
        self.lock().init.pid
    }

    pub fn stats(&self) -> Result<crate::messages::Any, Failure> {
        let root = self.root()?;
        let state = root.load(&self.id).map_err(failure)?;
        if state.pod.is_none() {
            return Ok(crate::stats::of(&state.cgroup));
        }
        let (_, processes) = runtime::processes(&root, &self.id).map_err(failure)?;
        let resident = processes.iter().map(|process| process.resident).sum();
        let cpu_ms = processes.iter().map(|process| process.cpu_ms).sum();
        // The time of processes that have gone does not go with them.
        let cpu_ms = self.cpu_ms.fetch_max(cpu_ms, Ordering::Relaxed).max(cpu_ms);
        let nr = u64::try_from(processes.len()).unwrap_or(0);
        Ok(crate::stats::of_sums(&state.cgroup, cpu_ms, resident, nr))
    }

    /// Removes what is left of a process that has ended; with init, everything of the container.
    pub fn delete(&self, exec_id: &str) -> Result<DeleteReply, Failure> {
        let mut inner = self.lock();
        let process = inner.process(exec_id).ok_or_else(|| no_process(exec_id))?;
        let pid = process.pid;
        let ended = match process.ended {
            Some(ended) => ended,
            None if pid == 0 => Ended { status: 0, at: SystemTime::now() },
            None if exec_id.is_empty() && !process.started => {
                // Made and never started: it goes without having run.
                drop(inner);
                runtime::delete(&self.root()?, &self.id, true, &Log::default()).map_err(failure)?;
                self.wait("")?;
                return self.delete("");
            }
            None => {
                let message = "cannot delete a running process: failed precondition";
                return Err(Failure::new(Code::FailedPrecondition, message));
            }
        };
        let reply = DeleteReply { pid, exit_status: ended.status, exited_at: Some(ended.at.into()) };
        if exec_id.is_empty() {
            runtime::delete(&self.root()?, &self.id, true, &Log::default()).map_err(failure)?;
            rootfs::unmount_all(&self.bundle.join("rootfs"));
            inner.deleted = true;
            self.events.put(
                "/tasks/delete",
                "TaskDelete",
                &TaskDelete {
                    container_id: self.id.clone(),
                    pid,
                    exit_status: ended.status,
                    exited_at: Some(ended.at.into()),
                    id: String::new(),
                },
            );
        } else {
            inner.execs.remove(exec_id);
        }
        drop(inner);
        self.changed.notify_all();
        Ok(reply)
    }
}
