//! The one test command: everything that the project checks about itself, except what a submission checks besides
//! (formatting, lints, licences).

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};

use crate::{place, programs, rootfs, shell};

/// How long one test program may take, in seconds: several times what the longest one needs on two busy cores.
const TEST_LIMIT_S: u32 = 900;

/// Builds the programs and the root filesystems, then runs every test of the workspace; `args` go to `cargo test`.
pub fn run(args: &[String]) -> Result<()> {
    rootfs::need_root("the end-to-end tests")?;
    for (program, package) in
        [("strace", "strace"), ("unshare", "util-linux"), ("git", "git"), ("gcc", "gcc")]
    {
        shell::need(program, package)?;
    }
    // The root filesystems wait for the network, the build for the processor.
    let made = std::thread::spawn(root_filesystems);
    programs::build(false)?;
    made.join().map_err(|_| anyhow!("the thread that makes the root filesystems has panicked"))??;
    let report = report_path();
    let _ = fs::remove_file(&report);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["test", "--workspace", "--no-fail-fast"]).args(args).current_dir(place::workspace());
    command.env("CASEMATE_BIN_DIR", programs::output_dir(false));
    // A test program that hangs is ended and named, and the others still run.
    // Not this program's own file, which the build may have replaced.
    let xtask = programs::output_dir(false).join("xtask");
    let runner = format!("{} supervise --limit {TEST_LIMIT_S} --", xtask.display());
    command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", runner);
    let ended = shell::run(&mut command);
    if let Ok(text) = fs::read_to_string(&report) {
        println!("\n{text}");
    }
    if let Err(error) = ended {
        bail!("{error:#}: see the tests' output above");
    }
    Ok(())
}

/// Makes the root filesystems, that of the jobs too where `$CASEMATE_TEST_JOBS` asks for it. Without that one, tests that
/// need it are left out and say so.
fn root_filesystems() -> Result<()> {
    rootfs::busybox()?;
    rootfs::debian()?;
    if std::env::var_os("CASEMATE_TEST_JOBS").is_some() {
        let started = Instant::now();
        rootfs::jobs()?;
        println!("the root filesystem of the jobs is there after {} s", started.elapsed().as_secs());
    }
    Ok(())
}

/// Where the differential test writes its table by area.
pub fn report_path() -> std::path::PathBuf {
    place::target().join("differential.txt")
}
