//! `do`: a host command on the host's files, none of which it can change.

use std::env;
use std::io;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use control_protocol::TerminalSize;
use hostsys::terminal::KeptMode;
use hostsys::{credentials, terminal};
use runtime::HostCommand;
use runtime::log::Log;

use crate::args::{Do, Global};

pub fn run(command: Do, global: &Global, log: &Log) -> Result<u8> {
    let cwd = env::current_dir().context("the working directory")?;
    // With a pipe on either side the command is part of something larger, and gets exactly that pipe.
    let (input, output, error) = (io::stdin(), io::stdout(), io::stderr());
    let streams = [input.as_fd(), output.as_fd(), error.as_fd()];
    let on_terminal = streams.into_iter().all(terminal::is_terminal);
    // A program on a terminal that is only some of its streams may set it, and may end without setting it back.
    let kept = if on_terminal { None } else { streams.into_iter().find_map(|fd| KeptMode::of(fd).ok()) };
    let policy = match &command.net_policy {
        Some(path) => Some(super::read_policy(path)?),
        None => None,
    };
    let usual = match (command.net, &policy, global.network.as_deref()) {
        (true, _, _) => "nat",
        (_, _, Some("host")) => "host",
        (_, Some(_), _) => "nat",
        _ => "none",
    };
    let network = command.network.unwrap_or_else(|| usual.to_owned());
    let command = HostCommand {
        args: command.command,
        env: env::vars_os().collect(),
        cwd,
        uid: credentials::effective_uid(),
        gid: credentials::effective_gid(),
        groups: credentials::groups().context("the supplementary groups")?,
        umask: credentials::umask(),
        limits: credentials::limits(),
        terminal: on_terminal.then(TerminalSize::default),
    };
    let id = format!("do-{}", std::process::id());
    let mut plan = runtime::of_host_command(&id, command, super::options(global, log));
    plan.filestore = runtime::Filestore::parse(&global.filestore)?;
    match network.as_str() {
        "nat" => plan.nat = Some(policy.unwrap_or_default()),
        "host" => plan.use_host_sockets(policy)?,
        _ => {}
    }
    let report = runtime::run(plan, None, log)?;
    for call in &report.unsupported {
        crate::say(&format!("casemate: {call}"));
    }
    drop(kept);
    log.warnings(report.unsupported.iter().map(ToString::to_string));
    Ok(super::conclude(&report, log))
}
