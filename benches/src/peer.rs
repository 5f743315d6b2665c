//! The ways to run a program that are compared: the host itself, runc, crun, runsc, casemate.

use std::ffi::OsString;
use std::io::Read;
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

use crate::veth;

/// One way to run a program in a root filesystem.
#[derive(Debug)]
pub struct Peer {
    pub name: &'static str,
    pub version: String,
    kind: Kind,
    dir: TempDir,
    /// Where it finds control groups of version 2, if the host mounts others.
    groups: Option<Groups>,
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
    /// A network namespace by name; else a new one.
    pub network: Option<String>,
}

impl Place {
    pub fn new(rootfs: PathBuf, inside: PathBuf) -> Self {
        Self { rootfs, inside, network: None }
    }

    /// The bundle of a program there, which works in `/work`.
    fn bundle(&self, rootfs: PathBuf, args: &[&str]) -> Bundle {
        let bundle = Bundle::new(rootfs, args.to_vec())
            .bind(&self.inside, programs::INSIDE, "ro")
            .tmpfs("/work")
            .cwd("/work")
            .max_files(MAX_FILES);
        match &self.network {
            Some(name) => bundle.network(veth::path(name)),
            None => bundle,
        }
    }
}

/// What programs with ten thousand connections need.
const MAX_FILES: u32 = 16_384;

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
        if let Some(crun) = shell::find("crun") {
            // It takes control groups of one version alone, and not even with that flag both.
            let words = vec![crun.clone().into(), "--cgroup-manager=disabled".into()];
            let peer = Self::new("crun", Kind::Runtime(words), version(&crun, "--version"))?;
            let mixed = !Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
            peers.push(if mixed { peer.with_groups(Groups::new()?) } else { peer });
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
        Ok(Self { name, version: version.trim().to_owned(), kind, dir, groups: None })
    }

    fn with_groups(mut self, groups: Groups) -> Self {
        self.version.push_str(", by nsenter");
        self.groups = Some(groups);
        self
    }

    /// A command where its control groups are; every millisecond of it is counted.
    fn command(&self, program: impl Into<OsString>) -> Command {
        let Some(groups) = &self.groups else { return Command::new(program.into()) };
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", groups.0.id())).arg(program.into());
        command
    }

    /// Starts `args` inside. The output is a pipe; the working directory is a file system in memory at `/work`.
    pub fn start(&self, place: &Place, args: &[&str]) -> Result<Started> {
        self.spawn(place, args, Stdio::null())
    }

    /// The same with an input that is open, and empty, until the run's end is waited for.
    pub fn start_waiting(&self, place: &Place, args: &[&str]) -> Result<Started> {
        self.spawn(place, args, Stdio::piped())
    }

    fn spawn(&self, place: &Place, args: &[&str], input: Stdio) -> Result<Started> {
        let mut command = match &self.kind {
            Kind::Native => native(place, &self.dir.path().join("scratch"), args),
            Kind::Runtime(words) => self.runtime(words, place, args)?,
        };
        let shown = format!("{}: {}", self.name, args.join(" "));
        let child = command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {shown}"))?;
        Ok(Started { child, shown })
    }

    /// Runc and crun write to the root filesystem that they are given: it is one under a throw-away overlay, like the others.
    fn runtime(&self, words: &[OsString], place: &Place, args: &[&str]) -> Result<Command> {
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("bench-{}-{serial}", std::process::id());
        let bundle = self.dir.path().join(&id);
        let own_root = matches!(self.name, "runc" | "crun");
        let rootfs = if own_root { self.dir.path().join("scratch/root") } else { place.rootfs.clone() };
        place.bundle(rootfs, args).write(&bundle)?;
        if !own_root {
            // Runsc's own word for the network of a namespace.
            let word = |word: &OsString| match word.to_str() {
                Some("--network=none") if place.network.is_some() => "--network=sandbox".into(),
                _ => word.clone(),
            };
            let words: Vec<OsString> = words.iter().map(word).collect();
            return Ok(self.line(&words, &bundle, &id));
        }
        let script = "set -eu; lower=$1 scratch=$2; shift 2
            mount -t tmpfs casemate \"$scratch\"; mkdir \"$scratch/upper\" \"$scratch/work\" \"$scratch/root\"
            mount -t overlay -o \"lowerdir=$lower,upperdir=$scratch/upper,workdir=$scratch/work\" casemate \"$scratch/root\"
            exec \"$@\"";
        let mut command = self.command("unshare");
        command.args(["--mount", "--propagation=private", "sh", "-c", script, "sh"]);
        command.arg(&place.rootfs).arg(self.dir.path().join("scratch")).args(words);
        command
            .arg("--root")
            .arg(self.dir.path().join("state"))
            .args(["run", "--bundle"])
            .arg(bundle)
            .arg(id);
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
        let mut command = self.call(words, &["run", "--bundle"]);
        command.arg(bundle).arg(id);
        command
    }

    fn call(&self, words: &[OsString], args: &[&str]) -> Command {
        let mut command = self.command(&words[0]);
        command.args(&words[1..]).arg("--root").arg(self.dir.path().join("state")).args(args);
        command
    }

    /// The time that `create`, `start` and `delete` of a program take, each a command of its own. That the program ends is
    /// waited for in between, and not counted. `None` natively, where there is nothing of the kind.
    pub fn create_start_delete(&self, place: &Place, program: &str) -> Result<Option<Duration>> {
        let Kind::Runtime(words) = &self.kind else { return Ok(None) };
        let id = format!("bench-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let bundle = self.dir.path().join(&id);
        Bundle::new(&place.rootfs, [program]).readonly().write(&bundle)?;
        let mut create = self.call(words, &["create", "--bundle"]);
        create.arg(&bundle).arg(&id);
        let mut taken = Duration::ZERO;
        for mut command in [create, self.call(words, &["start", &id])] {
            taken += timed(&mut command)?;
        }
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let state = self.call(words, &["state", &id]).stdout(Stdio::piped()).output()?;
            if String::from_utf8_lossy(&state.stdout).contains("\"stopped\"") {
                break;
            }
            if Instant::now() > until {
                bail!("{}: {program} does not end", self.name);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Some(taken + timed(&mut self.call(words, &["delete", &id]))?))
    }

    /// Runs `args` inside and gives its output.
    pub fn run(&self, place: &Place, args: &[&str]) -> Result<String> {
        self.start(place, args)?.end()
    }
}

/// A program that the host itself runs in `place`, with a directory to mount over.
pub fn native(place: &Place, scratch: &Path, args: &[&str]) -> Command {
    let native = Native::new(&place.rootfs, scratch)
        .bind(&place.inside, programs::INSIDE, "ro")
        .tmpfs("/work")
        .cwd("/work");
    let Some(name) = &place.network else { return native.spawn(args) };
    let mut command = Command::new("ip");
    command.args(["netns", "exec", name]).args(native.in_caller_network().command(args));
    command
}

impl Started {
    /// Waits for a line of output.
    pub fn line(&mut self) -> Result<String> {
        let out = self.child.stdout.as_mut().context("no output")?;
        let mut line = String::new();
        let mut byte = [0];
        while out.read(&mut byte)? == 1 && byte != *b"\n" {
            line.push(char::from(byte[0]));
        }
        Ok(line)
    }

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

/// A process that holds mounts where control groups of version 2 are the only ones. Dropped, it ends.
#[derive(Debug)]
struct Groups(Child);

impl Groups {
    fn new() -> Result<Self> {
        let script = "umount -R /sys/fs/cgroup && mount -t cgroup2 casemate /sys/fs/cgroup && echo there && exec sleep 86400";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation=private", "sh", "-c", script]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut said = [0; 6];
        let out = child.stdout.take().context("no pipe")?;
        let groups = Self(child);
        { out }.read_exact(&mut said).context("cannot mount control groups of version 2")?;
        Ok(groups)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end; any exit code but 0 is an error.
fn timed(command: &mut Command) -> Result<Duration> {
    // What stays behind as the container must not hold our pipes open.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let status = command.status()?;
    let taken = start.elapsed();
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(taken)
}
