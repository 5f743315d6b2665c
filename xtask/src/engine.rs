//! What the tests of container engines share: commands under a limit of time and what they did, a daemon of a test's
//! own, images of the busybox root filesystem.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::place::TempDir;
use crate::{processes, rootfs, shell};

/// How long one command of an engine may take.
pub const LIMIT: Duration = Duration::from_mins(1);

/// How long a daemon may take to serve, and to end.
const DAEMON: Duration = Duration::from_mins(1);

/// What a command did.
#[derive(Debug)]
pub struct Did {
    line: String,
    /// -1 when a signal ended it.
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// A command that is killed after [`LIMIT`]; its input is empty.
pub fn limited(program: &str) -> Command {
    // Only SIGKILL ends it for sure: `docker run` hands SIGTERM on to the container and waits.
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", &LIMIT.as_secs().to_string(), program]).stdin(Stdio::null());
    command
}

impl Did {
    /// Runs a command of [`limited`] to its end; one that has to be killed is an error.
    pub fn by(mut command: Command) -> Result<Self> {
        // Not pipes: what stays behind a detached container would hold them open.
        let file = |name: &str| -> Result<File> {
            Ok(memfd_create(name, MemfdFlags::CLOEXEC).context("memfd_create")?.into())
        };
        let (mut out, mut err) = (file("stdout")?, file("stderr")?);
        command.stdout(out.try_clone()?).stderr(err.try_clone()?);
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let mut stuck = None;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if stuck.is_none() && started.elapsed() + Duration::from_secs(2) > LIMIT {
                stuck = Some(processes::describe(i32::try_from(child.id())?));
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let text = |file: &mut File| -> Result<String> {
            let mut bytes = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let code = status.code().unwrap_or(-1);
        let did = Self { line: shell::show(&command), code, out: text(&mut out)?, err: text(&mut err)? };
        if let Some(stuck) = stuck {
            bail!("no end in time; shortly before\n{stuck}\n{did}");
        }
        Ok(did)
    }

    /// Fails when it ended otherwise, or said something else.
    #[track_caller]
    pub fn expect(self, code: i32, out: &str) -> Result<()> {
        let place = Location::caller();
        let same = self.code == code && self.out.replace("\r\n", "\n") == out;
        ensure!(same, "{place}: expected code {code} and {out:?}: {self}");
        Ok(())
    }

    /// Fails when it failed; gives what it said.
    #[track_caller]
    pub fn ok(self) -> Result<String> {
        let place = Location::caller();
        ensure!(self.code == 0, "{place}: {self}");
        Ok(self.out)
    }

    /// Fails when it has not said `text` on standard output.
    #[track_caller]
    pub fn out_has(self, text: &str) -> Result<()> {
        let place = Location::caller();
        ensure!(self.out.contains(text), "{place}: expected {text:?}: {self}");
        Ok(())
    }

    /// Fails when it ended otherwise, or did not say why: on either stream, for `docker exec` says it on standard output.
    #[track_caller]
    pub fn fails(self, code: i32, said: &str) -> Result<()> {
        let place = Location::caller();
        let same = self.code == code && (self.err.contains(said) || self.out.contains(said));
        ensure!(same, "{place}: expected code {code} and {said:?}: {self}");
        Ok(())
    }
}

impl std::fmt::Display for Did {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ended with {}\nstdout: {:?}\nstderr: {:?}", self.line, self.code, self.out, self.err)
    }
}

/// Whether every one of these programs is there; says which one is not.
pub fn installed(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| !shell::has(program));
    if let Some(missing) = missing {
        println!("skipped: {missing} is not installed");
    }
    missing.is_none()
}

/// Tries until it holds; fails when it does not within `patience`.
#[track_caller]
pub fn eventually(what: &str, patience: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let place = Location::caller();
    let until = Instant::now() + patience;
    while !holds()? {
        ensure!(Instant::now() < until, "{place}: not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Sends a signal to one process.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process has this number")?;
    Ok(kill_process(pid, signal)?)
}

/// An engine's daemon of a test's own, with its files in a directory of its own. Dropped, it is stopped, and what it has
/// left mounted there is unmounted.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    dir: TempDir,
}

impl Daemon {
    /// Starts what `command` gives for the directory `dir`; its output goes to a log.
    pub fn start(dir: TempDir, mut command: Command) -> Result<Self> {
        let log = File::create(dir.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start `{}`", shell::show(&command)))?;
        Ok(Self { child, dir })
    }

    /// Waits until `asked` succeeds.
    pub fn await_service(&mut self, mut asked: impl FnMut(&Self) -> Result<Did>) -> Result<()> {
        let until = Instant::now() + DAEMON;
        loop {
            let did = asked(self)?;
            if did.code == 0 {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the daemon ended at once: {status}\n{}", self.log());
            }
            ensure!(Instant::now() < until, "the daemon does not serve: {did}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The end of what it has said.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = signal(self.child.id(), Signal::TERM);
        let until = Instant::now() + DAEMON;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > until {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        unmount_below(self.dir.path());
    }
}

/// Unmounts everything below a directory, the last mounted first.
fn unmount_below(dir: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let below: Vec<&str> = points.filter(|point| Path::new(point).starts_with(dir)).collect();
    for point in below.into_iter().rev() {
        let _ = unmount(point, UnmountFlags::DETACH);
    }
}

/// The busybox root filesystem as one layer: an archive in `dir`.
pub fn busybox_layer(dir: &Path) -> Result<PathBuf> {
    let layer = dir.join("layer.tar");
    shell::run(Command::new("tar").arg("-C").arg(rootfs::busybox()?).arg("-cf").arg(&layer).arg("."))?;
    Ok(layer)
}

/// An image of the busybox root filesystem that runs `words`, as `docker save` writes it: an archive in `dir`, which
/// must be empty.
pub fn busybox_image(dir: &Path, name: &str, words: &[&str]) -> Result<PathBuf> {
    let layer = busybox_layer(dir)?;
    let sum = shell::output(Command::new("sha256sum").arg(&layer))?;
    let sum = sum.split_whitespace().next().unwrap_or_default();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Cmd": words, "Env": ["PATH=/bin:/usr/bin:/sbin:/usr/sbin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{sum}")] },
    });
    fs::write(dir.join("config.json"), serde_json::to_vec(&config)?)?;
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    fs::write(dir.join("manifest.json"), serde_json::to_vec(&manifest)?)?;
    let archive = dir.join("image.tar");
    let files = ["config.json", "layer.tar", "manifest.json"];
    shell::run(Command::new("tar").arg("-C").arg(dir).arg("-cf").arg(&archive).args(files))?;
    Ok(archive)
}
