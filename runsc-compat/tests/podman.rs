//! podman with casemate as its runtime: what people do with containers, end to end.
//!
//! Images, containers and sockets are in a temporary directory; no network is used.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "test code")]

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::place::TempDir;
use xtask::{programs, rootfs, shell};

/// How long one command of podman's may take.
const LIMIT: Duration = Duration::from_secs(40);

struct Podman {
    dir: TempDir,
    runtime: PathBuf,
}

/// What a command did.
struct Did {
    line: String,
    code: Option<i32>,
    out: String,
    err: String,
}

impl Podman {
    fn new() -> Result<Self> {
        let podman = Self { dir: TempDir::new("podman")?, runtime: programs::get()?.casemate.clone() };
        let image = podman.dir.path().join("image.tar");
        let packed =
            Command::new("tar").arg("-C").arg(rootfs::busybox()?).arg("-cf").arg(&image).arg(".").status()?;
        ensure!(packed.success(), "tar failed");
        let imported = podman.run([OsString::from("import"), image.into(), "busybox".into()])?;
        ensure!(imported.code == Some(0), "{imported}");
        Ok(podman)
    }

    fn run<S: Into<OsString>>(&self, args: impl IntoIterator<Item = S>) -> Result<Did> {
        let at = |name: &str| self.dir.path().join(name);
        let mut command = Command::new("timeout");
        command.args(["-s", "KILL", &LIMIT.as_secs().to_string(), "podman"]);
        for (flag, name) in [("--root", "root"), ("--runroot", "runroot"), ("--tmpdir", "tmp")] {
            command.arg(flag).arg(at(name));
        }
        command.args(["--storage-driver", "vfs", "--events-backend", "file", "--cgroup-manager", "cgroupfs"]);
        command.arg("--runtime").arg(&self.runtime).args(args.into_iter().map(Into::into));
        // Not pipes: what stays behind a detached container would hold them open.
        let (out, err) = (at("out"), at("err"));
        command.stdin(Stdio::null()).stdout(fs::File::create(&out)?).stderr(fs::File::create(&err)?);
        let status = command.status().context("cannot run podman")?;
        let line = format!("{command:?}");
        Ok(Did { line, code: status.code(), out: fs::read_to_string(&out)?, err: fs::read_to_string(&err)? })
    }

    fn words(&self, line: &str) -> Result<Did> {
        self.run(line.split(' '))
    }

    /// Runs a shell script in a container of its own.
    fn shell(&self, flags: &str, script: &str) -> Result<Did> {
        let first = ["run", "--rm", "--network", "none"].into_iter();
        let flags = flags.split(' ').filter(|word| !word.is_empty());
        self.run(first.chain(flags).chain(["busybox", "sh", "-c", script]))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.words("pod rm -t 0 -fa");
        let _ = self.words("rm -t 0 -fa");
    }
}

impl Did {
    #[track_caller]
    fn expect(self, code: i32, out: &str) -> Result<()> {
        let place = std::panic::Location::caller();
        let same = self.code == Some(code) && self.out.replace("\r\n", "\n") == out;
        ensure!(same, "{place}: expected code {code} and {out:?}: {self}");
        Ok(())
    }

    #[track_caller]
    fn fails(self, code: i32, said: &str) -> Result<()> {
        let place = std::panic::Location::caller();
        let same = self.code == Some(code) && self.err.contains(said);
        ensure!(same, "{place}: expected code {code} and {said:?}: {self}");
        Ok(())
    }
}

impl std::fmt::Display for Did {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ended with {:?}\nstdout: {:?}\nstderr: {:?}", self.line, self.code, self.out, self.err)
    }
}

#[test]
fn podman_runs_containers_in_the_sandbox() -> Result<()> {
    for program in ["podman", "conmon"] {
        if shell::find(program).is_none() {
            println!("skipped: {program} is not installed, so podman cannot be tried");
            return Ok(());
        }
    }
    let podman = Podman::new()?;
    foreground(&podman)?;
    background(&podman)?;
    pod(&podman)
}

fn foreground(podman: &Podman) -> Result<()> {
    // The default profile of system calls is on.
    podman.shell("", "echo hello; grep Seccomp: /proc/self/status")?.expect(0, "hello\nSeccomp:\t2\n")?;
    podman.shell("", "exit 7")?.expect(7, "")?;
    podman.words("run --rm --network none busybox nonesuch")?.fails(127, "not found in $PATH")?;
    podman.words("run --rm --network none busybox /etc/passwd")?.fails(126, "permission denied")?;
    podman
        .shell("-u 1000:1001 -w /tmp -e A=b -h name", "id -u; id -g; pwd; echo $A; hostname")?
        .expect(0, "1000\n1001\n/tmp\nb\nname\n")?;
    podman
        .shell(
            "--read-only --tmpfs /t --tmpfs /etc",
            "echo y > /t/y; cat /t/y; test -s /etc/passwd && echo kept",
        )?
        .expect(0, "y\nkept\n")?;
    podman.shell("-t", "tty")?.expect(0, "/dev/pts/0\n")?;
    podman.shell("--memory 64m", "dd if=/dev/zero of=/dev/null bs=200M count=1")?.expect(137, "")
}

fn background(podman: &Podman) -> Result<()> {
    let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done";
    let started =
        podman.run(["run", "-d", "--name", "one", "--network", "none", "busybox", "sh", "-c", script])?;
    ensure!(started.code == Some(0), "{started}");
    let until = Instant::now() + Duration::from_secs(20);
    while !podman.words("logs one")?.out.contains("up") {
        ensure!(Instant::now() < until, "the container says nothing");
        std::thread::sleep(Duration::from_millis(100));
    }
    podman.words("exec one echo hi")?.expect(0, "hi\n")?;
    podman.run(["exec", "one", "sh", "-c", "exit 9"])?.expect(9, "")?;
    podman
        .run(["exec", "-u", "5", "-w", "/tmp", "-e", "Q=1", "one", "sh", "-c", "id -u; pwd; echo $Q"])?
        .expect(0, "5\n/tmp\n1\n")?;
    podman.run(["exec", "-t", "one", "sh", "-c", "test -t 0 && echo terminal"])?.expect(0, "terminal\n")?;
    podman.words("pause one")?.expect(0, "one\n")?;
    podman.words("inspect -f {{.State.Status}} one")?.expect(0, "paused\n")?;
    podman.words("unpause one")?.expect(0, "one\n")?;
    podman.run(["exec", "one", "sh", "-c", "mkdir /made; echo x > /made/f"])?.expect(0, "")?;
    let diff = podman.words("diff one")?;
    ensure!(diff.out.contains("A /made/f\n"), "{diff}");
    let committed = podman.words("commit one changed")?;
    ensure!(committed.code == Some(0), "{committed}");
    podman.words("run --rm --network none changed cat /made/f")?.expect(0, "x\n")?;
    podman.words("stop one")?.expect(0, "one\n")?;
    podman.words("logs one")?.expect(0, "up\nbye\n")?;
    podman.words("inspect -f {{.State.ExitCode}} one")?.expect(0, "5\n")?;
    podman.words("start one")?.expect(0, "one\n")?;
    podman.words("kill one")?.expect(0, "one\n")?;
    podman.words("wait one")?.expect(0, "137\n")?;
    podman.words("rm one")?.expect(0, "one\n")
}

/// A pod with two containers beside the one that holds it.
fn pod(podman: &Podman) -> Result<()> {
    let holds = ["/usr/libexec/podman/catatonit", "/usr/bin/catatonit"];
    if !holds.iter().any(|path| std::path::Path::new(path).exists()) {
        println!("skipped: catatonit is not installed, so podman cannot make pods");
        return Ok(());
    }
    let made = podman.words("pod create --name two --network none")?;
    ensure!(made.code == Some(0), "{made}");
    for name in ["a", "b"] {
        let started = podman.words(&format!("run -d --pod two --name {name} busybox sleep 1000"))?;
        ensure!(started.code == Some(0), "{started}");
    }
    podman.words("exec b echo in the pod")?.expect(0, "in the pod\n")?;
    podman.words("pod ps --format {{.Status}}-{{.NumberOfContainers}}")?.expect(0, "Running-3\n")?;
    let removed = podman.words("pod rm -t 0 -f two")?;
    ensure!(removed.code == Some(0), "{removed}");
    podman.words("ps -aq")?.expect(0, "")
}
