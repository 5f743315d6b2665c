//! The one test command: everything that the project checks about itself, except what a submission checks besides
//! (formatting, lints, licences).

use std::fs;
use std::process::Command;

use anyhow::{Result, bail};

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
    programs::build(false)?;
    rootfs::debian()?;
    rootfs::busybox()?;
    let report = report_path();
    let _ = fs::remove_file(&report);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["test", "--workspace", "--no-fail-fast"]).args(args).current_dir(place::workspace());
    command.env("CASEMATE_BIN_DIR", programs::output_dir(false));
    // A test program that hangs is ended and named, and the others still run.
    let runner = format!("{} supervise --limit {TEST_LIMIT_S} --", std::env::current_exe()?.display());
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

/// Where the differential test writes its table by area.
pub fn report_path() -> std::path::PathBuf {
    place::target().join("differential.txt")
}
