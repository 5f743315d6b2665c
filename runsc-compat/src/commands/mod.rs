//! One function a command.

mod debug;
mod doctor;
mod events;
mod execute;
mod features;
mod host_command;
mod install;
mod lint;
mod ps;
mod spec;
mod update;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use control_protocol::{Options, Report};
use runtime::log::{Format, Level, Log};
use runtime::{Config, Creation, Error, NetworkMode, Plan, Registration, StateRoot};

use crate::args::{Arguments, Command, Create, Global, List, Making, Run};
use crate::output::{self, Shown};

/// Runs a command and gives its exit status.
pub fn run(arguments: Arguments, preserved: Vec<OwnedFd>, log: &Log) -> Result<u8> {
    let global = &arguments.global;
    let root = || StateRoot::new(global.root.as_deref());
    match arguments.command {
        Command::Create(create) => make(&create, global, &root()?, preserved, log)?,
        Command::Start { id } => runtime::start(&root()?, &id, log)?,
        Command::Run(run) => return run_bundle(&run, global, &root()?, preserved, log),
        Command::Do(command) => return host_command::run(command, global, log),
        Command::Exec(exec) => return execute::run(*exec, &root()?, preserved, log),
        Command::Spec(spec) => spec::write(&spec)?,
        Command::State { id } => {
            let state = root()?.load(&id)?;
            output::print(&serde_json::to_string_pretty(&Shown::new(&state, false))?);
        }
        Command::List(list) => show_list(&list, &root()?, log)?,
        Command::Ps(ps) => ps::show(&ps, &root()?)?,
        Command::Events(events) => events::show(&events, &root()?)?,
        Command::Kill(kill) => {
            let root = root()?;
            // The container is looked for before the signal's name is, as runc does.
            root.load(&kill.id)?;
            let signo = runtime::signal_names::parse(&kill.signal)?;
            match runtime::kill(&root, &kill.id, signo, kill.all) {
                // Engines kill everything that may be left of a container, whether or not something is.
                Err(Error::NotRunning) if kill.all => {}
                done => done?,
            }
        }
        Command::Pause { id } => runtime::pause(&root()?, &id)?,
        Command::Resume { id } => runtime::resume(&root()?, &id)?,
        Command::Update(update) => update::run(&update, &root()?)?,
        Command::Delete(delete) => runtime::delete(&root()?, &delete.id, delete.force, log)?,
        Command::Features => features::print()?,
        Command::Install(install) => install::install(&install)?,
        Command::Uninstall(install) => install::uninstall(&install)?,
        Command::Lint { bundle } => lint::show(&bundle)?,
        Command::Doctor => return doctor::show(),
        Command::Debug(debug) => debug::show(&debug, &root()?)?,
        Command::Checkpoint(_) => anyhow::bail!("checkpoint: not supported yet"),
        Command::Restore(_) => anyhow::bail!("restore: not supported yet"),
    }
    Ok(0)
}

fn options(global: &Global, log: &Log) -> Options {
    Options {
        debug: global.debug,
        strace: global.strace,
        interruptions: global.inject_interrupts,
        log_json: log.format() == Format::Json,
        patch: global.patch == "on",
        slow: global.patch_slow,
        no_answers: global.resident == "off",
        ingress_bandwidth: global.ingress_bandwidth.unwrap_or(0),
        egress_bandwidth: global.egress_bandwidth.unwrap_or(0),
        timing: log.stopwatch(),
        ..Options::default()
    }
}

/// A bundle's configuration and the plan for it.
///
/// With `keeps`, writes to the root are kept unless the caller says otherwise.
fn load(making: &Making, id: &str, global: &Global, keeps: bool, log: &Log) -> Result<(Config, Plan)> {
    runtime::check_id(id)?;
    let config = Config::load(&making.bundle)?;
    log.warnings(config.warnings.iter().cloned());
    let mut plan = runtime::of_bundle(id, &config, options(global, log), global.systemd_cgroup)?;
    for note in &plan.notes {
        log.write(Level::Debug, note);
    }
    plan.filestore = runtime::Filestore::parse(&global.filestore)?;
    if global.writes.as_deref().map_or(keeps, |writes| writes == "keep") {
        plan.write_through();
    }
    log.moment("configuration read");
    Ok((config, plan))
}

/// Opens a file that a flag names; the error is worded as runc's.
fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| anyhow::anyhow!("open {}: {}", path.display(), runtime::words(&error)))
}

/// A path that stays what it is when the working directory does not.
fn absolute(path: Option<&PathBuf>) -> Result<Option<PathBuf>> {
    path.map(|path| std::path::absolute(path).with_context(|| path.display().to_string())).transpose()
}

/// The text of a network policy.
fn read_policy(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read the network policy {}", path.display()))
}

fn host_net_policy(global: &Global) -> Result<Option<String>> {
    global.host_net_policy.as_deref().map(read_policy).transpose()
}

fn network_mode(global: &Global) -> NetworkMode {
    global.network.as_deref().and_then(NetworkMode::parse).unwrap_or_default()
}

fn creation(making: &Making, global: &Global, preserved: Vec<OwnedFd>) -> Result<Creation> {
    Ok(Creation {
        pid_file: absolute(making.pid_file.as_ref())?,
        console_socket: absolute(making.console_socket.as_ref())?,
        pidfd_socket: absolute(making.pidfd_socket.as_ref())?,
        preserved,
        network: network_mode(global),
        net_policy: host_net_policy(global)?,
    })
}

fn make(
    create: &Create,
    global: &Global,
    root: &StateRoot,
    preserved: Vec<OwnedFd>,
    log: &Log,
) -> Result<()> {
    let (config, plan) = load(&create.making, &create.id, global, true, log)?;
    runtime::create(root, &config, plan, creation(&create.making, global, preserved)?, log)?;
    Ok(())
}

fn run_bundle(
    run: &Run,
    global: &Global,
    root: &StateRoot,
    preserved: Vec<OwnedFd>,
    log: &Log,
) -> Result<u8> {
    let (config, plan) = load(&run.making, &run.id, global, run.detach, log)?;
    if run.detach {
        runtime::create(root, &config, plan, creation(&run.making, global, preserved)?, log)?;
        if let Err(error) = runtime::start(root, &run.id, log) {
            let _ = runtime::delete(root, &run.id, true, log);
            return Err(error.into());
        }
        return Ok(0);
    }
    if run.making.console_socket.is_some() {
        anyhow::bail!("cannot use console socket if runc will not detach or allocate tty");
    }
    let pid_file = absolute(run.making.pid_file.as_ref())?;
    let registration = Registration {
        root,
        config: &config,
        pid_file,
        keep: run.keep,
        preserved,
        network: network_mode(global),
        net_policy: host_net_policy(global)?,
    };
    let report = runtime::run(plan, Some(registration), log)?;
    log.warnings(report.unsupported.iter().map(ToString::to_string));
    Ok(conclude(&report, log))
}

/// Says why the sandbox ended, if it was not the program's doing.
fn conclude(report: &Report, log: &Log) -> u8 {
    if let Some(cause) = &report.cause {
        log.write(Level::Error, cause);
        crate::say(&format!("casemate: {cause}"));
    }
    report.status.code()
}

fn show_list(list: &List, root: &StateRoot, log: &Log) -> Result<()> {
    let states = root.list(|id, error| {
        log.write(Level::Warning, &format!("load container {id}: {error}"));
        crate::say(&format!("load container {id}: {error}"));
    })?;
    if list.quiet {
        let ids: Vec<_> = states.iter().map(|state| format!("{}\n", state.id)).collect();
        output::print(&ids.concat());
        return Ok(());
    }
    match list.format.as_str() {
        "table" => output::print(&output::table(&states)),
        // Go shows an empty list as null.
        "json" if states.is_empty() => output::print("null\n"),
        "json" => {
            let shown: Vec<_> = states.iter().map(|state| Shown::new(state, true)).collect();
            output::print(&format!("{}\n", serde_json::to_string(&shown)?));
        }
        _ => anyhow::bail!("invalid format option"),
    }
    Ok(())
}
