//! `exec`: a further process in a container.

use std::io::Read;
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
            let mut text = Vec::new();
            super::open(path)?.read_to_end(&mut text).with_context(|| format!("read {}", path.display()))?;
            runtime::process_of_json(&text)?
        }
        None => of_flags(&exec, runtime::process_of_bundle(&state.bundle)?, log)?,
    };
    let execution = Execution {
        process,
        console_socket: super::absolute(exec.console_socket.as_ref())?,
        pidfd_socket: super::absolute(exec.pidfd_socket.as_ref())?,
        detach: exec.detach,
        pid_file: super::absolute(exec.pid_file.as_ref())?,
        preserved,
        ignore_paused: exec.ignore_paused,
    };
    Ok(runtime::exec(root, &exec.id, execution, log)?)
}

/// The container's own process with what the flags change of it.
fn of_flags(exec: &Exec, mut process: Process, log: &Log) -> Result<Process> {
    if exec.command.is_empty() {
        bail!("process args cannot be empty");
    }
    process.args = exec.command.iter().map(|word| Text::from(word.as_str())).collect();
    if let Some(bad) = exec.env.iter().find(|entry| entry.find('=').is_none_or(|at| at == 0)) {
        bail!("unable to start container process: invalid environment variable: {bad:?}");
    }
    process.env.extend(exec.env.iter().map(|entry| Text::from(entry.as_str())));
    if let Some(cwd) = &exec.cwd {
        if !cwd.starts_with('/') {
            bail!("Cwd must be an absolute path");
        }
        process.cwd = Text::from(cwd.as_str());
    }
    process.terminal = exec.tty.then(TerminalSize::default);
    process.no_new_privileges |= exec.no_new_privs;
    for name in &exec.cap {
        let Some(bit) = runtime::capability_bit(name) else {
            log.warnings([format!("unknown capability {name:?} ignored")]);
            continue;
        };
        process.capabilities.bounding |= bit;
        process.capabilities.effective |= bit;
        process.capabilities.permitted |= bit;
    }
    if let Some(user) = &exec.user {
        let number = |text: &str, what: &str| {
            let wrong = || {
                format!(
                    "parsing {text} as int for {what} failed: strconv.Atoi: parsing {text:?}: invalid syntax"
                )
            };
            in_range(text.parse::<u32>().ok().with_context(wrong)?)
        };
        match user.split_once(':') {
            Some((uid, gid)) => {
                process.uid = number(uid, "uid")?;
                process.gid = number(gid, "gid")?;
            }
            None => process.uid = number(user, "uid")?,
        }
    }
    for gid in &exec.additional_gids {
        process.additional_gids.push(in_range(*gid)?);
    }
    Ok(process)
}

/// Numbers of users and groups as runc takes them: the kernel's highest means "unchanged", and is nobody's.
fn in_range(id: u32) -> Result<u32> {
    anyhow::ensure!(i32::try_from(id).is_ok(), "uids and gids must be in range 0-{}: {id}", i32::MAX);
    Ok(id)
}
