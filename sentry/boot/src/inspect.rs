//! What the sandbox holds, in lines for whoever debugs it: tasks with what they do now, open files, memory by kind.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use sentry_kernel::{Kernel, Task, TaskState, ThreadGroup, TraceSink};

use crate::log::Log;

/// Lines that are told at most.
const MAX_LINES: usize = 20_000;

/// The longest line, in bytes: 32 of them fit into one message, whatever their bytes are.
const MAX_LINE: usize = 320;

/// A trace of system calls into `file`.
pub fn trace_to(file: OwnedFd) -> TraceSink {
    let log = Log::to_file(file);
    Arc::new(move |line: &str| log.trace(line))
}

/// Everything there is to tell; with `files`, the open ones too.
pub fn lines(kernel: &Arc<Kernel>, files: bool) -> Vec<String> {
    let mut lines = vec![format!("{:>7} {:>7} {:<10} {:<20} COMMAND", "PID", "TID", "STATE", "SYSCALL")];
    let processes = kernel.processes();
    for group in &processes {
        lines.extend(group.threads().iter().map(|task| line_of(kernel, group, task)));
    }
    if files {
        lines.push(String::new());
        lines.push(format!("{:>7} {:>5} {:<4} FILE", "PID", "FD", "MODE"));
        for group in &processes {
            if let Some(task) = group.threads().first() {
                files_of(group, task, &mut lines);
            }
            if lines.len() > MAX_LINES {
                break;
            }
        }
    }
    lines.push(String::new());
    lines.extend(memory(kernel, &processes));
    lines.truncate(MAX_LINES);
    for line in &mut lines {
        if line.len() > MAX_LINE {
            let end = (0..=MAX_LINE).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
            line.truncate(end);
        }
    }
    lines
}

fn state_of(task: &Task) -> &'static str {
    match task.state() {
        TaskState::App => "runs",
        TaskState::Syscall => "syscall",
        TaskState::Interrupt => "signals",
        TaskState::Stopped => "stopped",
        TaskState::Traced => "traced",
        TaskState::VforkWait => "vfork",
        TaskState::ExecCreds | TaskState::ExecSiblings => "execs",
        TaskState::Exiting => "exits",
        TaskState::Dead => "dead",
    }
}

fn printable(bytes: &[u8]) -> String {
    let plain = |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' };
    bytes.iter().map(plain).collect()
}

fn line_of(kernel: &Kernel, group: &ThreadGroup, task: &Task) -> String {
    let call = task.current_call().map_or("-", |nr| kernel.table().name(u64::from(nr)));
    let (pid, tid, state) = (group.pid(), task.tid(), state_of(task));
    format!("{pid:>7} {tid:>7} {state:<10} {call:<20} {}", printable(&task.comm()))
}

fn files_of(group: &ThreadGroup, task: &Task, lines: &mut Vec<String>) {
    let (fds, root) = (task.fds(), task.fs().root());
    let mut from = 0;
    loop {
        let batch = fds.list(from, 64);
        let Some(last) = batch.last() else { return };
        from = last.unsigned_abs() + 1;
        for fd in batch.into_iter().filter(|fd| !task.has_closed(*fd)) {
            let Ok(file) = fds.get(fd) else { continue };
            let flags = file.flags();
            let mode = match (flags.reads(), flags.writes()) {
                (true, true) => "rw",
                (true, false) => "r",
                (false, true) => "w",
                (false, false) => "-",
            };
            let name = match (file.ops().link_text(), file.location()) {
                (Some(text), _) => text.into_bytes(),
                (None, Some(location)) => location.display_path(&root),
                (None, None) => b"anonymous".to_vec(),
            };
            lines.push(format!("{:>7} {fd:>5} {mode:<4} {}", group.pid(), printable(&name)));
        }
        if lines.len() > MAX_LINES {
            return;
        }
    }
}

fn memory(kernel: &Kernel, processes: &[Arc<ThreadGroup>]) -> [String; 4] {
    let (mut anonymous, mut files, mut shared) = (0, 0, 0);
    for group in processes {
        if let Some(task) = group.threads().first() {
            let resident = task.mm().resident();
            anonymous += resident.anon;
            files += resident.file;
            shared += resident.shmem;
        }
    }
    let line = |kind: &str, bytes: u64| format!("memory: {kind}: {} KiB", bytes / 1024);
    [
        line("files and shared memory that the Sentry holds", kernel.memory().allocated()),
        line("anonymous memory of processes", anonymous),
        line("mapped files of processes", files),
        line("mapped shared memory of processes", shared),
    ]
}
