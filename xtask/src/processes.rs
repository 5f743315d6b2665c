//! What `/proc` says about the host's processes: trees, arguments, memory.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

/// One line of `/proc/PID/stat`, as far as it is used here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// `R`, `S`, `D`, `Z`, ...
    pub state: char,
    pub name: String,
    /// Clock ticks since the host's start; with the number, names a process for good.
    pub started: u64,
}

impl Process {
    pub fn of(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (before, rest) = text.rsplit_once(") ")?;
        let (_, name) = before.split_once(" (")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        Some(Self {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            state: fields.first()?.chars().next()?,
            name: name.to_owned(),
            started: fields.get(19)?.parse().ok()?,
        })
    }

    /// Whether this very process still runs; one that is only waited for does not.
    pub fn runs(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now.started == self.started && !"ZX".contains(now.state))
    }

    /// A file or folder of `/proc/PID`.
    pub fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
    }

    /// The arguments as the process shows them.
    pub fn args(&self) -> Vec<String> {
        let bytes = fs::read(self.proc("cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        text.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
    }

    /// The first argument.
    pub fn title(&self) -> String {
        self.args().swap_remove(0)
    }

    /// A value of `/proc/PID/status`.
    pub fn status(&self, key: &str) -> Option<String> {
        let text = fs::read_to_string(self.proc("status")).ok()?;
        let line = text.lines().find(|line| line.split(':').next() == Some(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    }

    /// The share of memory that is this process's, in KiB (`Pss` of `smaps_rollup`).
    pub fn pss_kib(&self) -> Option<u64> {
        let text = fs::read_to_string(self.proc("smaps_rollup")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// How often its threads have gone to sleep of their own accord, each time woken before.
    pub fn wakes(&self) -> u64 {
        let threads = fs::read_dir(self.proc("task")).into_iter().flatten().flatten();
        let status = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
        let count = |text: String| {
            let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.and_then(|line| line.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        status.map(count).sum()
    }
}

/// Every process.
pub fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(Process::of).collect()
}

/// The processes that descend from `ancestor`, without it, parents before children.
pub fn descendants(ancestor: i32) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for process in all() {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found: Vec<Process> = children.remove(&ancestor).unwrap_or_default();
    let mut next = 0;
    while next < found.len() {
        let more = children.remove(&found[next].pid).unwrap_or_default();
        found.extend(more);
        next += 1;
    }
    found
}

/// How many processes a description has.
const MOST: usize = 24;

/// What each process below `ancestor` is doing, for somebody who asks why nothing ends.
pub fn describe(ancestor: i32) -> String {
    let mut text = String::new();
    let all = descendants(ancestor);
    for process in all.iter().take(MOST) {
        let Process { pid, parent, state, name, .. } = process;
        let line = process.args().join(" ");
        let line: String = line.chars().take(160).collect();
        let _ = writeln!(text, "  pid {pid} (parent {parent}) {state} {name}: {line}");
        for thread in fs::read_dir(process.proc("task")).into_iter().flatten().flatten() {
            let read = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
            let (name, wchan, call) = (read("comm"), read("wchan"), read("syscall"));
            let (id, call) = (thread.file_name(), call.trim());
            let _ = writeln!(
                text,
                "    thread {} {}: in {wchan}, system call {call}",
                id.to_string_lossy(),
                name.trim()
            );
        }
    }
    if all.len() > MOST {
        let _ = writeln!(text, "  and {} more", all.len() - MOST);
    }
    text
}
