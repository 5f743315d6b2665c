//! Real jobs in their short form give the host's result; `cargo xtask jobs` runs the long form.

use std::time::Duration;

use anyhow::{Result, ensure};
use xtask::{jobs, python};

fn same(name: &str) -> Result<()> {
    if !crate::common::jobs() {
        return Ok(());
    }
    let pair = jobs::run(jobs::named(name)?, false)?;
    ensure!(pair.host.code() == 0, "the job fails on the host: {}", pair.host);
    ensure!(pair.equal(), "{pair}");
    Ok(())
}

macro_rules! jobs {
    ($($name:ident $job:literal),* $(,)?) => {
        $(#[test] fn $name() -> Result<()> { same($job) })*
    };
}

jobs! {
    c_project_by_configure_and_make "make-zlib",
    c_project_by_make "make-bzip2",
    trees_by_tar_and_rsync "tar-rsync",
    database_by_postgres "postgres",
    debuggers_and_tracers "debuggers",
    cpp_project_by_cmake_and_ninja "cmake-jsoncpp",
    rust_crate_by_cargo "cargo",
    go_module "go",
    java_threads "java",
    node_modules_by_npm "npm",
    python_wheels_by_pip "pip",
    packages_by_dpkg_and_apt "dpkg",
    repository_by_git "git",
    database_by_sqlite "sqlite",
    server_redis "redis",
    terminals_by_tmux_and_script "tmux",
}

/// A slice of CPython's own tests; `cargo xtask jobs python` runs all of them.
#[test]
fn tests_of_cpython() -> Result<()> {
    if !crate::common::jobs() {
        return Ok(());
    }
    for (module, patterns) in [
        ("test_posix", &[][..]),
        ("test_signal", &["*Pending*", "*Wakeup*", "*Itimer*"]),
        ("test_pty", &[]),
        ("test_fcntl", &[]),
        ("test_mmap", &[]),
    ] {
        let different = python::compare(module, patterns, Duration::from_mins(2))?;
        ensure!(different.is_empty(), "{module}: {different:#?}");
    }
    Ok(())
}
