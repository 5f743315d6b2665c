//! `ps`: the processes of a container.
//!
//! On the host they have no numbers of their own. The list in JSON, which engines match against the host's, holds what
//! stands for init there; the table shows the container's own numbers.

use anyhow::{Result, bail};
use control_protocol::ProcessInfo;
use runtime::{StateRoot, timestamp};

use crate::args::Ps;
use crate::output;

pub fn show(ps: &Ps, root: &StateRoot) -> Result<()> {
    match ps.format.as_str() {
        "json" => {
            let state = root.load(&ps.id)?;
            output::print(&format!("[{}]\n", state.init.pid));
        }
        "table" => {
            let (_, processes) = runtime::processes(root, &ps.id)?;
            let mut text = "UID        PID  PPID  C STIME TTY          TIME CMD\n".to_owned();
            for process in &processes {
                text.push_str(&row(process));
            }
            output::print(&text);
        }
        _ => bail!("invalid format option"),
    }
    Ok(())
}

/// A line as `ps -ef` writes it.
fn row(process: &ProcessInfo) -> String {
    let user = output::user_name(process.uid);
    let terminal = process.terminal.map_or_else(|| "?".to_owned(), |number| format!("pts/{number}"));
    let seconds = process.cpu_ms / 1000;
    let time = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let share = (process.cpu_ms * 100).checked_div(process.age_ms).unwrap_or(0).min(99);
    let started = timestamp::hour_and_minute(process.age_ms);
    let (pid, ppid) = (process.pid, process.ppid);
    let command = &process.command;
    format!("{user:<8} {pid:>5} {ppid:>5} {share:>2} {started} {terminal:<8} {time} {command}\n")
}
