//! `exec`: a further process in a container.

use std::fs;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};
use control_protocol::{Process, TerminalSize, Text};
use runtime::log::Log;
use runtime::{Execution, StateRoot};

use crate::args::Exec;

pub fn run(exec: Exec, root: &StateRoot, preserved: Vec<OwnedFd>, log: &Log) -> Result<u8> {
    let state = root.load(&exec.id)?;
    let process = match &exec.process {
        Some(path) => {
            let text = fs::read(path).with_context(|| format!("open {}", path.display()))?;
            runtime::process_of_json(&text)?
        }
        None => of_flags(&exec, runtime::process_of_bundle(&state.bundle)?)?,
    };
    let execution = Execution {
        process,
        console_socket: super::absolute(exec.console_socket.as_ref())?,
        detach: exec.detach,
        pid_file: super::absolute(exec.pid_file.as_ref())?,
        preserved,
        ignore_paused: exec.ignore_paused,
    };
    Ok(runtime::exec(root, &exec.id, execution, log)?)
}

/// The container's own process with what the flags change of it.
fn of_flags(exec: &Exec, mut process: Process) -> Result<Process> {
    if exec.command.is_empty() {
        bail!("process args cannot be empty");
    }
    process.args = exec.command.iter().map(|word| Text::from(word.as_str())).collect();
    process.env.extend(exec.env.iter().map(|entry| Text::from(entry.as_str())));
    if let Some(cwd) = &exec.cwd {
        process.cwd = Text::from(cwd.as_str());
    }
    process.terminal = exec.tty.then(TerminalSize::default);
    process.no_new_privileges |= exec.no_new_privs;
    for name in &exec.cap {
        let bit = runtime::capability_bit(name).with_context(|| format!("unknown capability {name:?}"))?;
        process.capabilities.bounding |= bit;
        process.capabilities.effective |= bit;
        process.capabilities.permitted |= bit;
    }
    if let Some(user) = &exec.user {
        let number =
            |text: &str| text.parse::<u32>().with_context(|| format!("parsing {text:?} as a number"));
        match user.split_once(':') {
            Some((uid, gid)) => {
                process.uid = number(uid)?;
                process.gid = number(gid)?;
            }
            None => process.uid = number(user)?,
        }
    }
    process.additional_gids.extend(&exec.additional_gids);
    Ok(process)
}
