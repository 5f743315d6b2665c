//! `cargo xtask COMMAND`: developer tasks.
//!
//! Purpose: one entry for all that is done to the project rather than by it. Invariants and threat: see the library.
//! Lock ranks: none.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use xtask::{bundle::Bundle, demo, jobs, layers, ratchet, rootfs, supervise, test};

const USAGE: &str = "usage: cargo xtask COMMAND
  demo                         build casemate and run Debian programs in it
  test [ARGS...]               build everything and run every test; ARGS go to cargo test
  jobs [--short] [NAME...]     run real jobs on the host kernel and in the sandbox, and compare
  jobs python [MODULE...]      the same with CPython's own tests
  jobs stress [--short] [CLASS...]
                               the same with every stressor of stress-ng's classes, verifying
  jobs posix [AREA...]         the same with the POSIX test suite
  jobs perl [DIRECTORY...]     the same with Perl's own tests
  jobs gonet [PACKAGE...]      the same with the tests of Go's network packages
  rootfs debian|busybox|jobs       build a root filesystem in the cache and print its path
  bundle DIR [--rootfs ROOT] [--bind SOURCE:INSIDE:ro|rw] [--tty] -- PROGRAM...
                               write a bundle; ROOT is debian, busybox or a path
  layers                       check the direction of dependencies
  ratchet [--write]            check, or write, the counts that may only fall
  supervise --limit SECONDS [--report FILE] -- PROGRAM...
                               run a program, end it in time, and report what it leaves behind";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let (command, rest) = args.split_first().context(USAGE)?;
    match (command.as_str(), rest) {
        ("demo", []) => demo::run(),
        ("test", _) => test::run(rest),
        ("jobs", _) => jobs::main(rest),
        ("rootfs", [kind]) => {
            println!("{}", root(kind)?.display());
            Ok(())
        }
        ("bundle", [dir, rest @ ..]) => bundle(dir, rest),
        ("layers", []) => layers::check(),
        ("ratchet", []) => ratchet::check(),
        ("ratchet", [write]) if write == "--write" => ratchet::write(),
        ("supervise", _) => supervise::main(rest),
        _ => bail!("{USAGE}"),
    }
}

fn root(kind: &str) -> Result<PathBuf> {
    match kind {
        "debian" => rootfs::debian(),
        "busybox" => rootfs::busybox(),
        "jobs" => rootfs::jobs(),
        path => std::fs::canonicalize(path).with_context(|| format!("no root filesystem at {path}")),
    }
}

fn bundle(dir: &str, args: &[String]) -> Result<()> {
    let mut kind = "debian".to_owned();
    let mut binds = Vec::new();
    let mut terminal = false;
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--rootfs" => kind.clone_from(rest.next().context("--rootfs: give debian, busybox or a path")?),
            "--bind" => binds.push(rest.next().context("--bind: give SOURCE:INSIDE:ro|rw")?),
            "--tty" => terminal = true,
            "--" => break,
            _ => bail!("bundle: unknown option {arg}\n{USAGE}"),
        }
    }
    let program: Vec<&String> = rest.collect();
    if program.is_empty() {
        bail!("bundle: give a program after --");
    }
    let mut made = Bundle::new(root(&kind)?, program);
    for bind in binds {
        let parts: Vec<&str> = bind.split(':').collect();
        let [source, inside, how] = parts[..] else { bail!("--bind {bind}: give SOURCE:INSIDE:ro|rw") };
        made = made.bind(&std::fs::canonicalize(source)?, inside, how);
    }
    if terminal {
        made = made.terminal();
    }
    made.write(dir.as_ref())
}
