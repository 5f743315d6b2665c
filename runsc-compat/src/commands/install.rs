//! `install` and `uninstall`: casemate as a runtime of the engines on this host.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::args::Install;
use crate::engines::{Done, Engine, Entry};
use crate::output;

/// The engines that were asked for.
fn chosen(install: &Install) -> Result<Vec<Engine>> {
    let flags = [install.docker, install.containerd, install.podman];
    let chosen: Vec<_> = Engine::ALL.into_iter().zip(flags).filter(|(_, on)| *on).map(|(e, _)| e).collect();
    if chosen.is_empty() {
        bail!("say for which engine: --docker, --containerd, --podman");
    }
    if install.config.is_some() && chosen.len() > 1 {
        bail!("--config is the file of one engine; say one");
    }
    Ok(chosen)
}

fn entry(install: &Install) -> Result<Entry> {
    let program = match &install.path {
        Some(path) => std::path::absolute(path)?,
        None => env::current_exe().context("the path of this program")?,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if install.name.is_empty() || !install.name.chars().all(plain) {
        bail!("--name must be made of letters, digits, \"-\", \"_\" and \".\", got {:?}", install.name);
    }
    if program.to_str().is_none_or(|path| path.contains(|c: char| c.is_control())) {
        bail!("the path of the program, {}, cannot be written into a configuration", program.display());
    }
    Ok(Entry {
        name: install.name.clone(),
        has_shim: in_path("containerd-shim-casemate-v1").is_some(),
        program,
    })
}

/// The program of that name in `PATH`.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn place(install: &Install, engine: Engine) -> PathBuf {
    install.config.clone().unwrap_or_else(|| engine.file().to_owned())
}

pub fn install(install: &Install) -> Result<()> {
    let entry = entry(install)?;
    if !entry.program.is_file() {
        bail!("{} is no file", entry.program.display());
    }
    for engine in chosen(install)? {
        let file = place(install, engine);
        let done = engine.install(&file, &entry)?;
        say(engine, &file, done, "installed");
        output::print(&format!("  use: {}\n", engine.usage(&entry.name)));
    }
    Ok(())
}

pub fn uninstall(install: &Install) -> Result<()> {
    let entry = entry(install)?;
    for engine in chosen(install)? {
        let file = place(install, engine);
        let done = engine.uninstall(&file, &entry)?;
        say(engine, &file, done, "uninstalled");
    }
    Ok(())
}

fn say(engine: Engine, file: &Path, done: Done, what: &str) {
    let (name, file) = (engine.name(), file.display());
    let line = match done {
        Done::Unchanged if what == "uninstalled" => {
            format!("{name}: nothing to do, {file} has nothing of casemate's\n")
        }
        Done::Unchanged => format!("{name}: nothing to do, {file} is as it should be\n"),
        Done::Written => format!("{name}: {what} in {file}\n  then: {}\n", engine.reload()),
        Done::Removed => format!(
            "{name}: {what}; {file}, which casemate had made, is removed\n  then: {}\n",
            engine.reload()
        ),
    };
    output::print(&line);
}
