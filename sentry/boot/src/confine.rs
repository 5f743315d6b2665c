//! Gives up everything that the Sentry does not need, in the order that this is possible in.

use std::fs;
use std::io;

use hostsys::credentials::{self, Limit};
use hostsys::{empty_root, process, signals};

/// Descriptors that a Sentry may have open: guests may open as many files as Linux lets a process, in several processes.
const MAX_FILES: u64 = 1 << 20;

/// A step that the host refused.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct ConfineError {
    step: &'static str,
    source: io::Error,
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> ConfineError {
    move |source| ConfineError { step, source }
}

/// What can be read of the host only before.
#[derive(Debug)]
pub struct Seen {
    /// `/proc/self/maps`.
    pub maps: String,
    /// `/proc/self/auxv`.
    pub auxv: Vec<u8>,
    /// The host's memory, in bytes.
    pub total_memory: u64,
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total_memory() -> u64 {
    let table = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = table.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    kilobytes.unwrap_or(1 << 20) << 10
}

/// Confines this process, which must have one thread and be alone in its namespaces.
pub fn enter() -> Result<Seen, ConfineError> {
    // The command's death is ours. Set once more: the exec may have cleared it.
    process::set_parent_death_signal(libc::SIGKILL).map_err(step("prctl(PR_SET_PDEATHSIG)"))?;
    signals::report_refused_calls().map_err(step("sigaction(SIGSYS)"))?;
    credentials::set_limit(Limit::CoreSize, 0).map_err(step("setrlimit(RLIMIT_CORE)"))?;
    credentials::set_limit(Limit::OpenFiles, MAX_FILES).map_err(step("setrlimit(RLIMIT_NOFILE)"))?;
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let auxv = fs::read("/proc/self/auxv").unwrap_or_default();
    let seen = Seen { maps, auxv, total_memory: total_memory() };
    empty_root::enter().map_err(step("replacing the root by an empty one"))?;
    credentials::drop_capabilities().map_err(step("dropping capabilities"))?;
    process::set_no_new_privs().map_err(step("prctl(PR_SET_NO_NEW_PRIVS)"))?;
    // Stubs are read and written by `process_vm_readv(2)`, which wants both sides to be dumpable; the namespaces keep
    // every other process of the same user away.
    process::set_dumpable(true).map_err(step("prctl(PR_SET_DUMPABLE)"))?;
    Ok(seen)
}
