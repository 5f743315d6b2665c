//! The ways to run a program that are compared: the host itself, runc, runsc, casemate.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xtask::bundle::Bundle;
use xtask::native::Native;
use xtask::place::TempDir;
use xtask::processes::{self, Process};
use xtask::{programs, shell};

/// One way to run a program in a root filesystem.
#[derive(Debug)]
pub struct Peer {
    pub name: &'static str,
    pub version: String,
    kind: Kind,
    dir: TempDir,
}

#[derive(Debug)]
enum Kind {
    Native,
    /// An OCI runtime, with its global arguments.
    Runtime(Vec<OsString>),
}

/// What a run needs: the root filesystem and host directories in it.
#[derive(Debug, Clone)]
pub struct Place {
    pub rootfs: PathBuf,
    /// The folder of the guest program, bound read-only at [`programs::INSIDE`].
    pub inside: PathBuf,
}

/// A run under way.
#[derive(Debug)]
pub struct Started {
    child: Child,
    shown: String,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Peer {
    /// Every way that this machine has. `casemate` is the binary to measure, if it is built.
    pub fn all(casemate: &Path) -> Result<Vec<Self>> {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let release = shell::output(Command::new("uname").arg("-r"))?;
        // What follows the first two numbers names a build, not a kernel.
        let kernel = release.split('.').take(2).collect::<Vec<_>>().join(".");
        let mut peers = vec![Self::new("native", Kind::Native, format!("Linux {kernel}"))?];
        let version = |program: &Path, arg: &str| {
            let text = shell::output(Command::new(program).arg(arg)).unwrap_or_default();
            text.lines().next().unwrap_or_default().to_owned()
        };
        if let Some(runc) = shell::find("runc") {
            peers.push(Self::new(
                "runc",
                Kind::Runtime(vec![runc.clone().into()]),
                version(&runc, "--version"),
            )?);
        }
        // The newest of the builds in PATH and of Go's own folder.
        let own = Some(home.join("go/bin/runsc")).filter(|path| path.is_file());
        let newest = |path: &PathBuf| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        if let Some(runsc) = shell::find("runsc").into_iter().chain(own).max_by_key(newest) {
            // A build by `go install` does not know which it is.
            let said =
                version(&runsc, "--version").replace("VERSION_MISSING", "without a number, platform systrap");
            let flags = ["--platform=systrap", "--network=none", "--ignore-cgroups"].map(OsString::from);
            let words = [vec![runsc.into()], flags.to_vec()].concat();
            peers.push(Self::new("runsc", Kind::Runtime(words), said)?);
        }
        if casemate.is_file() {
            let said = version(casemate, "--version");
            peers.push(Self::new("casemate", Kind::Runtime(vec![casemate.into()]), said)?);
        }
        Ok(peers)
    }

    fn new(name: &'static str, kind: Kind, version: String) -> Result<Self> {
        let dir = TempDir::new(&format!("bench-{name}"))?;
        for part in ["scratch", "state"] {
            std::fs::create_dir(dir.path().join(part))?;
        }
        Ok(Self { name, version: version.trim().to_owned(), kind, dir })
    }

    /// Starts `args` inside. The output is a pipe; the working directory is a file system in memory at `/work`.
    pub fn start(&self, place: &Place, args: &[&str]) -> Result<Started> {
        let mut command = match &self.kind {
            Kind::Native => Native::new(&place.rootfs, self.dir.path().join("scratch"))
                .bind(&place.inside, programs::INSIDE, "ro")
                .tmpfs("/work")
                .cwd("/work")
                .spawn(args),
            Kind::Runtime(words) => self.runtime(words, place, args)?,
        };
        let shown = format!("{}: {}", self.name, args.join(" "));
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {shown}"))?;
        Ok(Started { child, shown })
    }

    /// Runc writes to the root filesystem that it is given: it gets one under a throw-away overlay, like the others.
    fn runtime(&self, words: &[OsString], place: &Place, args: &[&str]) -> Result<Command> {
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("bench-{}-{serial}", std::process::id());
        let bundle = self.dir.path().join(&id);
        let own_root = self.name == "runc";
        let rootfs = if own_root { self.dir.path().join("scratch/root") } else { place.rootfs.clone() };
        Bundle::new(rootfs, args.to_vec())
            .bind(&place.inside, programs::INSIDE, "ro")
            .tmpfs("/work")
            .cwd("/work")
            .write(&bundle)?;
        let line = self.line(words, &bundle, &id);
        if !own_root {
            return Ok(line);
        }
        let script = "set -eu; lower=$1 scratch=$2; shift 2
            mount -t tmpfs casemate \"$scratch\"; mkdir \"$scratch/upper\" \"$scratch/work\" \"$scratch/root\"
            mount -t overlay -o \"lowerdir=$lower,upperdir=$scratch/upper,workdir=$scratch/work\" casemate \"$scratch/root\"
            exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation=private", "sh", "-c", script, "sh"]);
        command.arg(&place.rootfs).arg(self.dir.path().join("scratch")).arg(line.get_program());
        command.args(line.get_args());
        Ok(command)
    }

    /// Starts a program in the bare root filesystem, read-only and without anything bound in, and gives the time
    /// from start to exit. Natively that is a plain `chroot(8)`.
    pub fn start_to_exit(&self, place: &Place, program: &str) -> Result<Duration> {
        let (mut command, id);
        match &self.kind {
            Kind::Native => {
                command = Command::new("chroot");
                command.arg(&place.rootfs).arg(program);
            }
            Kind::Runtime(words) => {
                id = format!("bench-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
                let bundle = self.dir.path().join(&id);
                Bundle::new(&place.rootfs, [program]).readonly().write(&bundle)?;
                command = self.line(words, &bundle, &id);
            }
        }
        let start = Instant::now();
        shell::output(&mut command)?;
        Ok(start.elapsed())
    }

    fn line(&self, words: &[OsString], bundle: &Path, id: &str) -> Command {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("--root").arg(self.dir.path().join("state"));
        command.args(["run", "--bundle"]).arg(bundle).arg(id);
        command
    }

    /// Runs `args` inside and gives its output.
    pub fn run(&self, place: &Place, args: &[&str]) -> Result<String> {
        self.start(place, args)?.end()
    }
}

impl Started {
    /// Waits for the end, and gives the output; any exit code but 0 is an error.
    pub fn end(self) -> Result<String> {
        let out = self.child.wait_with_output()?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            bail!("{}: {}: {}", self.shown, out.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// The processes of the run: all that descend from its first one, itself included.
    pub fn processes(&self) -> Result<Vec<Process>> {
        let pid = i32::try_from(self.child.id())?;
        Ok(Process::of(pid).into_iter().chain(processes::descendants(pid)).collect())
    }
}
