//! Real jobs, each run by the host kernel and in the sandbox: what they print and their exit code must be equal.
//!
//! A job is a bash script in `xtask/jobs` that prints what is to be compared (digests of what it made, results of
//! test suites) and keeps all that differs from run to run, such as times, to itself. The short form takes seconds and
//! is what the end-to-end tests run; the long form is the whole job.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::bundle::Bundle;
use crate::native::Native;
use crate::place;
use crate::trial::{Outcome, Trial};
use crate::{gonet, python, rootfs, suites};

const PRELUDE: &str = include_str!("../jobs/prelude.sh");

/// One job.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub name: &'static str,
    script: &'static str,
    /// Seconds that the long form may take natively, times a generous factor for the sandbox.
    limit_s: u64,
}

macro_rules! jobs {
    ($($name:literal $limit:literal),* $(,)?) => {
        &[$(Job { name: $name, script: include_str!(concat!("../jobs/", $name, ".sh")), limit_s: $limit }),*]
    };
}

/// Every job, the quick ones first.
pub const JOBS: &[Job] = jobs![
    "tar-rsync" 300, "dpkg" 300, "git" 600, "sqlite" 600, "redis" 1200, "tmux" 120, "java" 300, "pip" 300, "npm" 300,
    "go" 1200, "cargo" 900, "make-zlib" 600, "make-bzip2" 300, "cmake-jsoncpp" 900, "make-sed" 1800, "postgres" 600, "debuggers" 120,
];

/// A job's outcome on both kernels.
#[derive(Debug)]
pub struct Pair {
    pub host: Outcome,
    /// `Err` when the sandbox did not end in time or left something behind.
    pub inside: Result<Outcome>,
}

impl Pair {
    pub fn equal(&self) -> bool {
        self.inside
            .as_ref()
            .is_ok_and(|inside| inside.code() == self.host.code() && inside.out() == self.host.out())
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inside {
            Ok(inside) => {
                let (host, sandbox) = (self.host.out(), inside.out());
                let first = host.lines().zip(sandbox.lines()).find(|(a, b)| a != b);
                if let Some((a, b)) = first {
                    writeln!(f, "first difference: host {a:?}, sandbox {b:?}")?;
                }
                write!(f, "host: {}\nsandbox: {inside}", self.host)
            }
            Err(error) => write!(f, "host: {}\nsandbox: {error:#}", self.host),
        }
    }
}

/// The reason in a list of known differences, whose lines are `name: reason`, for the first name that `is_it`.
pub fn reason(list: &'static str, is_it: impl Fn(&str) -> bool) -> Option<&'static str> {
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(": ")).find(|(known, _)| is_it(known)).map(|(_, why)| why)
}

/// The job of this name.
pub fn named(name: &str) -> Result<&'static Job> {
    JOBS.iter().find(|job| job.name == name).with_context(|| {
        let all: Vec<&str> = JOBS.iter().map(|job| job.name).collect();
        format!("no job named {name}; there are {}", all.join(", "))
    })
}

/// Runs a job on the host kernel, then in the sandbox.
pub fn run(job: &Job, long: bool) -> Result<Pair> {
    let script = format!("{}{PRELUDE}\n{}", if long { "LONG=1\n" } else { "" }, job.script);
    pair(job.name, &script, Duration::from_secs(job.limit_s))
}

/// Runs a bash script in the root filesystem of the jobs on the host kernel, then in the sandbox.
pub fn pair(name: &str, script: &str, limit: Duration) -> Result<Pair> {
    pair_with(name, script, limit, None)
}

/// The same with a directory of the host bound read-only at `/data`.
pub fn pair_with(name: &str, script: &str, limit: Duration, data: Option<&Path>) -> Result<Pair> {
    let trial = Trial::new(name)?;
    let rootfs = rootfs::jobs()?;
    let mut native = Native::new(&rootfs, trial.path().join("scratch"));
    let mut bundle = Bundle::bash(&rootfs, script).all_capabilities();
    if let Some(data) = data {
        native = native.bind(data, "/data", "ro");
        bundle = bundle.bind(data, "/data", "ro");
    }
    let host = trial.host(native.command(["bash", "-c", script])).limit(limit).run()?;
    let inside = trial.run(&bundle).and_then(|invocation| invocation.limit(limit).run());
    Ok(Pair { host, inside })
}

/// The command line `jobs [--short] [NAME...]`.
pub fn main(args: &[String]) -> Result<()> {
    if let Some(flag) = args.iter().find(|arg| arg.starts_with('-') && *arg != "--short") {
        bail!("jobs: there is no {flag}: --short and names of jobs are all that it takes");
    }
    rootfs::need_root("the jobs")?;
    let short = args.iter().any(|arg| arg == "--short");
    let names: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    match names.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        Some(("python", modules)) => return python::main(modules),
        Some(("gonet", packages)) => return gonet::main(packages),
        Some(("stress", classes)) => return suites::stress(classes, short),
        Some(("posix", areas)) => return suites::posix(areas),
        Some(("perl", dirs)) => return suites::perl(dirs),
        _ => {}
    }
    let chosen: Vec<&Job> = if names.is_empty() {
        JOBS.iter().collect()
    } else {
        names.iter().map(|name| named(name)).collect::<Result<_>>()?
    };
    let out = results()?;
    println!("{:16} {:>9} {:>10} {:>10} {:>7}", "job", "", "host", "sandbox", "ratio");
    let mut different = 0;
    for job in chosen {
        let pair = run(job, !short)?;
        keep(&out, job.name, &pair)?;
        let host = pair.host.took().as_secs_f64();
        let inside = pair.inside.as_ref().map_or(f64::NAN, |outcome| outcome.took().as_secs_f64());
        let word = if pair.equal() { "equal" } else { "different" };
        println!("{:16} {word:>9} {host:>9.2}s {inside:>9.2}s {:>6.2}x", job.name, inside / host);
        if pair.host.code() != 0 {
            println!("  on the host it ends with {}: see {}", pair.host.code(), out.display());
        }
        if !pair.equal() {
            different += 1;
        }
    }
    if different > 0 {
        bail!("{different} of the jobs differ; their output is in {}", out.display());
    }
    Ok(())
}

/// Where outputs are kept for a look.
pub fn results() -> Result<PathBuf> {
    let out = place::target().join("jobs");
    fs::create_dir_all(&out)?;
    Ok(out)
}

fn keep(out: &Path, name: &str, pair: &Pair) -> Result<()> {
    fs::write(out.join(format!("{name}.host")), format!("{}{}", pair.host.out(), pair.host.err()))?;
    let inside = match &pair.inside {
        Ok(outcome) => format!("{}{}", outcome.out(), outcome.err()),
        Err(error) => format!("{error:#}"),
    };
    fs::write(out.join(format!("{name}.sandbox")), inside)?;
    Ok(())
}
