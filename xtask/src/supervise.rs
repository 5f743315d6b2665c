//! Runs one command and sees what it leaves behind.
//!
//! A supervisor is a process of its own, and the subreaper of all that the command starts: whatever outlives the
//! command becomes its child, so that leftovers of one command are told from those of its neighbours, however many
//! run beside it. It also holds the time limit, and ends everything when its own parent is gone.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};

use crate::processes::{self, Process};

/// How long the descendants of a command may take to end after it, before they count as left behind.
const GRACE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(4);

/// What the supervisor found; the last line of its report file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The exit code, unless a signal ended the command.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The command did not end in time; what its processes were doing.
    pub stuck: Option<String>,
    /// Processes that outlived the command, with their arguments.
    pub left: Vec<String>,
    /// Milliseconds from start to end.
    pub took_ms: u64,
}

/// The command line `supervise --limit SECONDS [--report FILE] -- COMMAND...`. Without a report file what it found goes to
/// stderr, and it ends as the command has ended: so it stands before a test program.
pub fn main(args: &[String]) -> Result<()> {
    let mut limit = Duration::from_mins(1);
    let mut report = None;
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let mut value = || rest.next().with_context(|| format!("supervise: {arg}: give a value"));
        match arg.as_str() {
            "--limit" => limit = Duration::from_secs(value()?.parse()?),
            "--report" => report = Some(PathBuf::from(value()?)),
            "--" => break,
            _ => bail!("supervise: unknown option {arg}"),
        }
    }
    let words: Vec<&String> = rest.collect();
    let (program, args) = words.split_first().context("supervise: give a command")?;
    let mut command = Command::new(program);
    command.args(args);
    let found = supervise(command, limit, report.as_deref())?;
    if report.is_some() {
        return Ok(());
    }
    let shown = words.iter().map(|word| word.as_str()).collect::<Vec<_>>().join(" ");
    if let Some(stuck) = &found.stuck {
        bail!("no end of `{shown}` within {} s; its processes were\n{stuck}", limit.as_secs());
    }
    for left in &found.left {
        eprintln!("xtask: `{shown}` left a process behind: {left}");
    }
    std::process::exit(found.code.or(found.signal.map(|signal| 128 + signal)).unwrap_or(1));
}

fn supervise(mut command: Command, limit: Duration, report: Option<&Path>) -> Result<Report> {
    let parent = rustix::process::getppid();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    // A group of its own, as a shell gives to a foreground command: a signal to it reaches no neighbour.
    command.process_group(0);
    let started = Instant::now();
    let child =
        command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let pid = i32::try_from(child.id())?;
    let mut file = match report {
        Some(report) => Some(fs::OpenOptions::new().create(true).append(true).open(report)?),
        None => None,
    };
    if let Some(file) = &mut file {
        writeln!(file, "{pid}")?;
    }
    // From here on waiting is done for any child: `child` must not wait for itself.
    drop(child);
    let me = rustix::process::getpid().as_raw_nonzero().get();
    let mut end = None;
    let mut stuck = None;
    while end.is_none() {
        end = reap(pid)?;
        if rustix::process::getppid() != parent {
            kill_all(me);
            bail!("the process that had asked for the command is gone");
        }
        if end.is_none() && started.elapsed() > limit {
            stuck = Some(processes::describe(me));
            // This waits for the command too: its end is not of interest any more.
            kill_all(me);
            break;
        }
        std::thread::sleep(if end.is_none() { POLL } else { Duration::ZERO });
    }
    let took_ms = u64::try_from(started.elapsed().as_millis())?;
    let over = Instant::now();
    let mut left = processes::descendants(me);
    while !left.is_empty() && over.elapsed() < GRACE {
        std::thread::sleep(POLL);
        reap(pid)?;
        left = processes::descendants(me);
    }
    let name = |process: &Process| {
        format!(
            "{} (pid {}, state {}) {}",
            process.name,
            process.pid,
            process.state,
            process.args().join(" ")
        )
    };
    let left: Vec<String> = left.iter().map(name).collect();
    kill_all(me);
    let (code, signal) = end.unwrap_or_default();
    let found = Report { code, signal, stuck, left, took_ms };
    if let Some(file) = &mut file {
        writeln!(file, "{}", serde_json::to_string(&found)?)?;
    }
    Ok(found)
}

/// Waits for whoever has ended, without blocking; gives the end of `pid` when that was among them.
fn reap(pid: i32) -> Result<Option<(Option<i32>, Option<i32>)>> {
    let mut end = None;
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((who, status))) => {
                if who.as_raw_nonzero().get() == pid {
                    end = Some((status.exit_status(), status.terminating_signal()));
                }
            }
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(end),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends every process that this one has started.
fn kill_all(me: i32) {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let _ = reap(0);
        let left = processes::descendants(me);
        if left.is_empty() || Instant::now() > until {
            return;
        }
        for process in left {
            if let Some(pid) = Pid::from_raw(process.pid) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(POLL);
    }
}
