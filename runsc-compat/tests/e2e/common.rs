//! What the tests share: root filesystems, and the comparison with the host.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::bundle::Bundle;
use xtask::processes::Process;
use xtask::rootfs;
use xtask::trial::{Running, Trial};

/// The Debian root filesystem.
pub fn debian() -> Result<&'static Path> {
    static DEBIAN: OnceLock<PathBuf> = OnceLock::new();
    once(&DEBIAN, rootfs::debian)
}

/// The busybox root filesystem.
pub fn busybox() -> Result<&'static Path> {
    static BUSYBOX: OnceLock<PathBuf> = OnceLock::new();
    once(&BUSYBOX, rootfs::busybox)
}

fn once(cell: &'static OnceLock<PathBuf>, make: fn() -> Result<PathBuf>) -> Result<&'static Path> {
    if cell.get().is_none() {
        // Two threads that meet here wait for each other at the cache's lock.
        let _ = cell.set(make()?);
    }
    cell.get().map(PathBuf::as_path).context("a root filesystem")
}

/// Whether the long forms of the tests are asked for.
pub fn long() -> bool {
    std::env::var_os("CASEMATE_TEST_LONG").is_some()
}

/// Whether a test that needs the jobs' root filesystem is to run. Making that takes minutes and gigabytes: it is left to
/// `cargo xtask jobs` and the long form.
pub fn jobs() -> bool {
    let run = long() || rootfs::has_jobs();
    if !run {
        eprintln!(
            "skipped: the root filesystem of the jobs is not made; `cargo xtask jobs --short` makes it"
        );
    }
    run
}

/// Runs a bash script in the Debian root filesystem natively and sandboxed: output and exit code must be equal.
pub fn same_as_host(name: &str, script: &str) -> Result<()> {
    let trial = Trial::new(name)?;
    let limit = Duration::from_mins(if long() { 15 } else { 3 });
    let native = trial.native(debian()?, "/", ["bash", "-c", script]).limit(limit).run()?;
    let inside = trial.run(&Bundle::bash(debian()?, script).all_capabilities())?.limit(limit).run()?;
    ensure!(
        native.out() == inside.out() && native.code() == inside.code(),
        "the sandbox differs from the host.\nscript:\n{script}\nhost: {native}\n\nsandbox: {inside}"
    );
    trial.finish()
}

/// The processes of a live sandbox.
#[derive(Debug)]
pub struct Parts {
    pub sentry: Process,
    pub gofer: Process,
    /// What the Sentry has started: one for each application address space, and those that stand by.
    pub stubs: Vec<Process>,
}

/// Finds the processes of a sandbox that runs.
pub fn parts(running: &mut Running) -> Result<Parts> {
    let all = running.processes()?;
    let named = |name: &str| {
        let found: Vec<&Process> = all.iter().filter(|process| process.title() == name).collect();
        let described: Vec<(i32, i32, Vec<String>)> =
            all.iter().map(|process| (process.pid, process.parent, process.args())).collect();
        ensure!(!found.is_empty(), "no process named {name} among {described:?}");
        Ok(found[0].clone())
    };
    let (sentry, gofer) = (named("casemate-sentry")?, named("casemate-gofer")?);
    let stubs = xtask::processes::descendants(sentry.pid);
    ensure!(!stubs.is_empty(), "the Sentry has no stub process");
    Ok(Parts { sentry, gofer, stubs })
}
