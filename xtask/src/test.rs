//! The one test command: everything that the project checks about itself, except what a submission checks besides
//! (formatting, lints, licences).

use std::fs;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{place, programs, rootfs, shell};

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
