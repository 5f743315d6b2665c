//! The programs that tests and benchmarks start: built once, then used by path.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};

use crate::{place, shell};

/// Paths of the workspace's programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The sandbox; `$CASEMATE` names another one, such as an installed build, or runc to try the tests themselves.
    pub casemate: PathBuf,
    pub xtask: PathBuf,
    /// A folder that is bound into test bundles: `syscall-tests`, `guest`, and the programs in Go where that is
    /// installed.
    pub inside: PathBuf,
}

/// Where the folder of [`Programs::inside`] appears in test bundles.
pub const INSIDE: &str = "/opt/programs";

/// The programs. They are built by cargo at the first call, unless `$CASEMATE_BIN_DIR` says where they are.
pub fn get() -> Result<&'static Programs> {
    static PROGRAMS: OnceLock<Result<Programs, String>> = OnceLock::new();
    let made = PROGRAMS.get_or_init(|| make().map_err(|error| format!("{error:#}")));
    made.as_ref().map_err(|error| anyhow!("{error}"))
}

/// Cargo's output directory of a profile: the build is for a named target, see `.cargo/config.toml`.
pub fn output_dir(release: bool) -> PathBuf {
    place::target().join("x86_64-unknown-linux-gnu").join(if release { "release" } else { "debug" })
}

/// Builds every program of the workspace. The whole workspace at once: cargo then chooses the same features as
/// `cargo test --workspace` and builds nothing twice.
pub fn build(release: bool) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--workspace", "--bins"]).current_dir(place::workspace());
    if release {
        command.arg("--release");
    }
    shell::run(&mut command)
}

fn make() -> Result<Programs> {
    let release = !cfg!(debug_assertions);
    let dir = if let Some(dir) = std::env::var_os("CASEMATE_BIN_DIR") {
        PathBuf::from(dir)
    } else {
        build(release)?;
        output_dir(release)
    };
    let inside = place::target().join("test-programs").join(if release { "release" } else { "debug" });
    fs::create_dir_all(&inside)?;
    for name in ["syscall-tests", "guest"] {
        let program = dir.join(name);
        if program.is_file() {
            install(&inside.join(name), |new| fs::copy(&program, new).map(drop).map_err(Into::into))?;
        }
    }
    if let Some(go) = go() {
        for name in GO_PROGRAMS {
            let source =
                place::workspace().join("runsc-compat/tests/programs").join(name).with_extension("go");
            let program = inside.join(format!("{name}-go"));
            let newer = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
            if source.is_file() && newer(&program) < newer(&source) {
                install(&program, |new| {
                    let mut command = Command::new(&go);
                    command.args(["build", "-o"]).arg(new).arg(&source);
                    command.env("CGO_ENABLED", "0").env("GO111MODULE", "off").env("GOFLAGS", "");
                    shell::output(&mut command).map(drop)
                })?;
            }
        }
    }
    let casemate = std::env::var_os("CASEMATE").map_or_else(|| dir.join("casemate"), PathBuf::from);
    Ok(Programs { casemate: std::path::absolute(casemate)?, xtask: dir.join("xtask"), inside })
}

/// Programs in Go, which become `NAME-go`.
const GO_PROGRAMS: [&str; 2] = ["threads", "signals"];

/// Go's compiler, if there is one.
pub fn go() -> Option<PathBuf> {
    shell::find("go").or_else(|| Some(PathBuf::from("/usr/local/go/bin/go")).filter(|go| go.is_file()))
}

/// Puts a new file in place at once: another test process may be starting the old one.
fn install(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let new = path.with_extension(std::process::id().to_string());
    make(&new).with_context(|| format!("cannot make {}", path.display()))?;
    fs::rename(&new, path).with_context(|| format!("cannot put {} in place", path.display()))
}
