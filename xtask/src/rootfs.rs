//! Root filesystems of real distributions, built once and kept in the cache.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{place, shell};

/// What the Debian root filesystem holds besides debootstrap's `minbase` set.
pub const DEBIAN_PACKAGES: &[&str] = &[
    "bash",
    "coreutils",
    "python3",
    "perl",
    "tar",
    "grep",
    "findutils",
    "dpkg",
    "procps",
    "git",
    "make",
    "gcc",
    "libc6-dev",
    "stress-ng",
    "strace",
];
/// What the root filesystem of [`servers`] holds besides the same set.
const SERVER_PACKAGES: &[&str] = &["redis-server", "redis-tools", "nginx-light", "wrk", "iperf3"];
const SUITE: &str = "bookworm";
/// Raised when the recipe changes in a way that the package list does not show.
const RECIPE: u32 = 2;
/// Where tests and benchmarks mount things: there from the start, so that no runtime has to make them in the cache.
const MOUNT_POINTS: &[&str] = &["opt/programs", "work", "data"];

/// The Debian root filesystem; built by debootstrap at the first call, which needs root and a Debian mirror
/// (`$CASEMATE_DEBIAN_MIRROR`, else debootstrap's own).
pub fn debian() -> Result<PathBuf> {
    bootstrapped("debian", DEBIAN_PACKAGES)
}

/// A Debian root filesystem of network servers and of the programs that put load on them; see [`debian`].
pub fn servers() -> Result<PathBuf> {
    bootstrapped("servers", SERVER_PACKAGES)
}

fn bootstrapped(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let recipe = format!("{RECIPE} {SUITE} {}", packages.join(" "));
    cached(name, &recipe, |dir| {
        shell::need("debootstrap", "debootstrap")?;
        need_root("debootstrap")?;
        eprintln!("building a Debian root filesystem with debootstrap, once, in {}", dir.display());
        let mut command = Command::new("debootstrap");
        command.arg("--variant=minbase").arg(format!("--include={}", packages.join(",")));
        command.arg(SUITE).arg(dir);
        if let Some(mirror) = std::env::var_os("CASEMATE_DEBIAN_MIRROR") {
            command.arg(mirror);
        }
        shell::output(&mut command).with_context(|| {
            let log = fs::read_to_string(dir.join("debootstrap/debootstrap.log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            format!("debootstrap's log ends with:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"))
        })?;
        for litter in ["var/cache/apt/archives", "var/lib/apt/lists"] {
            let path = dir.join(litter);
            fs::remove_dir_all(&path).and_then(|()| fs::create_dir(&path))?;
        }
        fs::write(dir.join("etc/hostname"), "casemate\n")?;
        mount_points(dir)
    })
}

const JOBS_RECIPE: &str = include_str!("../jobs/rootfs.sh");

/// The Debian root filesystem with the tools and sources that the jobs of [`crate::jobs`] need; see
/// `xtask/jobs/rootfs.sh`, which installs them. It needs root and the package registries.
pub fn jobs() -> Result<PathBuf> {
    let base = debian()?;
    let script = JOBS_RECIPE;
    cached("jobs", script, |dir| {
        eprintln!("building the root filesystem of the jobs, once, in {}: some minutes", dir.display());
        shell::run(Command::new("cp").arg("-a").arg("--").arg(base.join(".")).arg(dir))?;
        let log = dir.with_extension("log");
        let out = fs::File::create(&log)?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation=private", "bash", "-c", script, "rootfs"]).arg(dir);
        command.stdin(std::process::Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let ended = command.status()?;
        if !ended.success() {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(20).collect();
            bail!("{ended}:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        Ok(())
    })
}

/// Whether [`jobs`] is in the cache.
pub fn has_jobs() -> bool {
    place::cache().is_ok_and(|cache| {
        let stamp = fs::read_to_string(cache.join("jobs.recipe"));
        cache.join("jobs").is_dir() && stamp.is_ok_and(|text| text == JOBS_RECIPE)
    })
}

/// A root filesystem of one static busybox and its links.
pub fn busybox() -> Result<PathBuf> {
    cached("busybox", &RECIPE.to_string(), |dir| {
        shell::need("busybox", "busybox-static")?;
        let busybox = shell::find("busybox").context("busybox went away")?;
        for name in ["bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr", "var"] {
            fs::create_dir(dir.join(name))?;
        }
        fs::set_permissions(dir.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        let inside = dir.join("bin/busybox");
        fs::copy(&busybox, &inside)?;
        let kind = shell::output(Command::new(&inside).arg("--list"))?;
        for applet in kind.lines().filter(|name| *name != "busybox") {
            symlink("busybox", dir.join("bin").join(applet))?;
        }
        fs::write(dir.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
        fs::write(dir.join("etc/group"), "root:x:0:\n")?;
        let elf = fs::read(&inside)?;
        mount_points(dir)?;
        // A dynamic busybox names its interpreter; it would not start in this root.
        if elf.windows(8).any(|part| part == b"/ld-linu") {
            bail!("{} is not static: run `apt-get install busybox-static`", busybox.display());
        }
        Ok(())
    })
}

fn mount_points(dir: &Path) -> Result<()> {
    for point in MOUNT_POINTS {
        fs::create_dir_all(dir.join(point))?;
    }
    Ok(())
}

/// Fails when the caller is not root.
pub fn need_root(what: &str) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("{what} needs root: run this as root");
    }
    Ok(())
}

/// `<cache>/<name>`, made by `build` unless it is there from the same recipe. Other processes wait meanwhile.
fn cached(name: &str, recipe: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = place::cache()?;
    let done = cache.join(name);
    let stamp = cache.join(format!("{name}.recipe"));
    let lock = fs::File::create(cache.join(format!("{name}.lock")))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    if done.is_dir() && fs::read_to_string(&stamp).is_ok_and(|text| text == recipe) {
        return Ok(done);
    }
    let partial = cache.join(format!("{name}.partial"));
    for old in [&partial, &done] {
        remove_tree(old)?;
    }
    fs::create_dir(&partial)?;
    build(&partial).with_context(|| format!("cannot build the {name} root filesystem"))?;
    fs::rename(&partial, &done)?;
    fs::write(&stamp, recipe)?;
    Ok(done)
}

/// Removes a tree of this file system alone: what may still be mounted in it stays.
fn remove_tree(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let below = format!("{}/", path.display());
    if table.lines().filter_map(|line| line.split(' ').nth(4)).any(|point| point.starts_with(&below)) {
        bail!("{} has file systems mounted in it: unmount them first", path.display());
    }
    shell::run(Command::new("rm").args(["-rf", "--one-file-system"]).arg(path))
}
