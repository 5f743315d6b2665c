//! One function a command.

mod host_command;
mod spec;

use std::env;

use anyhow::Result;
use control_protocol::{Options, Report};
use runtime::log::{Format, Level, Log};
use runtime::{Config, Error, Registration, StateRoot};

use crate::args::{Arguments, Command, Global, List, Run};
use crate::output::{self, Shown};

/// Runs a command and gives its exit status.
pub fn run(arguments: Arguments, log: &Log) -> Result<u8> {
    let global = &arguments.global;
    let root = || StateRoot::new(global.root.as_deref());
    match arguments.command {
        Command::Run(run) => return run_bundle(&run, global, &root()?, log),
        Command::Do(command) => return host_command::run(command, global, log),
        Command::Spec(spec) => spec::write(&spec)?,
        Command::State { id } => {
            let state = root()?.load(&id)?;
            output::print(&serde_json::to_string_pretty(&Shown::new(&state, false))?);
        }
        Command::List(list) => show_list(&list, &root()?)?,
        Command::Kill(kill) => {
            let signo = runtime::signal_names::parse(&kill.signal)?;
            match runtime::kill(&root()?, &kill.id, signo) {
                // Engines kill everything that may be left of a container, whether or not something is.
                Err(Error::NotRunning) if kill.all => {}
                done => done?,
            }
        }
        Command::Delete(delete) => runtime::delete(&root()?, &delete.id, delete.force)?,
    }
    Ok(0)
}

fn options(global: &Global, log: &Log) -> Options {
    Options {
        debug: global.debug,
        strace: global.strace,
        log_json: log.format() == Format::Json,
        ..Options::default()
    }
}

fn run_bundle(run: &Run, global: &Global, root: &StateRoot, log: &Log) -> Result<u8> {
    runtime::check_id(&run.id)?;
    let config = Config::load(&run.bundle)?;
    log.warnings(config.warnings.iter().cloned());
    let plan = runtime::of_bundle(&run.id, &config, options(global, log))?;
    let pid_file = match &run.pid_file {
        Some(path) => Some(env::current_dir()?.join(path)),
        None => None,
    };
    let registration = Registration { root, config: &config, pid_file, keep: run.keep };
    let report = runtime::run(plan, Some(registration), log)?;
    log.warnings(report.unsupported.iter().map(ToString::to_string));
    Ok(conclude(&report, log))
}

/// Says why the sandbox ended, if it was not the program's doing.
fn conclude(report: &Report, log: &Log) -> u8 {
    if let Some(cause) = &report.cause {
        log.write(Level::Error, cause);
        eprintln!("casemate: {cause}");
    }
    report.status.code()
}

fn show_list(list: &List, root: &StateRoot) -> Result<()> {
    let states = root.list()?;
    if list.quiet {
        let ids: Vec<_> = states.iter().map(|state| format!("{}\n", state.id)).collect();
        output::print(&ids.concat());
        return Ok(());
    }
    match list.format.as_str() {
        "table" => output::print(&output::table(&states)),
        // Go shows an empty list as null.
        "json" if states.is_empty() => output::print("null"),
        "json" => {
            let shown: Vec<_> = states.iter().map(|state| Shown::new(state, true)).collect();
            output::print(&serde_json::to_string(&shown)?);
        }
        _ => anyhow::bail!("invalid format option"),
    }
    Ok(())
}
