//! Docker's own daemon with casemate as a runtime: what people do with containers, end to end.
//!
//! The daemon is started for the test alone, with its files in a temporary directory and without a network of its own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "test code")]

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use xtask::engine::{self, Did, LIMIT, busybox_layer, installed, limited};
use xtask::place::TempDir;
use xtask::programs;
use xtask::trial::{Running, Trial};

#[path = "docker/network.rs"]
mod network;

/// A daemon of our own, stopped when dropped.
struct Daemon(engine::Daemon);

impl Daemon {
    fn start(casemate: &Path) -> Result<Self> {
        let dir = TempDir::new("docker")?;
        let networks = ["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none"];
        Ok(Self(daemon_in(dir, Command::new("dockerd"), casemate, &networks)?))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    fn command<S: Into<OsString>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = client(&self.0);
        command.args(args.into_iter().map(Into::into));
        command
    }

    fn docker<S: Into<OsString>>(&self, args: impl IntoIterator<Item = S>) -> Result<Did> {
        Did::by(self.command(args))
    }

    /// `docker run` in the sandbox, without a network.
    fn run(&self, flags: &[&str], words: &[&str]) -> Result<Did> {
        let first = ["run", "--runtime=casemate", "--network=none"];
        let all = first.iter().chain(flags).chain(&["busybox"]).chain(words);
        self.docker(all.copied())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(list) = self.docker(["ps", "-aq"]) {
            for id in list.out.split_whitespace() {
                let _ = self.docker(["rm", "-f", id]);
            }
        }
    }
}

/// The beginning of a `docker` command for this daemon.
/// Starts `dockerd`, with its files in `dir` and casemate as its runtime, and waits until it serves.
fn daemon_in(dir: TempDir, mut dockerd: Command, casemate: &Path, flags: &[&str]) -> Result<engine::Daemon> {
    let at = |name: &str| dir.path().join(name);
    // Builds have no choice of a runtime but the daemon's default.
    let config = json!({
        "runtimes": {
            "casemate": { "path": casemate },
            "casemate-host": { "path": casemate, "runtimeArgs": ["--network=host"] },
        },
        "default-runtime": "casemate",
    });
    fs::write(at("daemon.json"), serde_json::to_vec(&config)?)?;
    dockerd.arg("--config-file").arg(at("daemon.json"));
    for (flag, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
        dockerd.arg(flag).arg(at(name));
    }
    dockerd.arg("-H").arg(format!("unix://{}", at("socket").display())).args(flags);
    let mut daemon = engine::Daemon::start(dir, dockerd)?;
    daemon.await_service(|daemon| {
        let mut command = client(daemon);
        command.arg("version");
        Did::by(command)
    })?;
    Ok(daemon)
}

fn client(daemon: &engine::Daemon) -> Command {
    let mut command = limited("docker");
    command.arg("-H").arg(format!("unix://{}", daemon.path("socket").display()));
    command
}

#[test]
fn docker_runs_containers_in_the_sandbox() -> Result<()> {
    if !installed(&["dockerd", "docker", "containerd"]) {
        return Ok(());
    }
    let daemon = Daemon::start(&programs::get()?.casemate)?;
    let image = busybox_layer(daemon.0.path("").as_path())?;
    daemon.docker([OsString::from("import"), image.into(), "busybox".into()])?.ok()?;
    let shown = daemon.docker(["info", "-f", "{{json .Runtimes}}"])?;
    ensure!(shown.out.contains("casemate"), "{shown}");
    foreground(&daemon)
        .and_then(|()| volumes(&daemon))
        .and_then(|()| background(&daemon))
        .and_then(|()| profile(&daemon))
        .and_then(|()| terminal(&daemon))
        .and_then(|()| policies(&daemon))
        .and_then(|()| build(&daemon))
        .with_context(|| format!("the daemon's log ends with\n{}", daemon.0.log()))
}

fn foreground(daemon: &Daemon) -> Result<()> {
    daemon.run(&["--rm"], &["echo", "hello"])?.expect(0, "hello\n")?;
    daemon.run(&["--rm"], &["sh", "-c", "exit 7"])?.expect(7, "")?;
    daemon.run(&["--rm"], &["sh", "-c", "kill -KILL $$; sleep 1; echo lives"])?.expect(0, "lives\n")?;
    daemon.run(&["--rm"], &["nonesuch"])?.fails(127, "executable file not found in $PATH")?;
    daemon.run(&["--rm"], &["/etc/passwd"])?.fails(126, "permission denied")?;
    let flags = ["--rm", "-u", "1000:1001", "-w", "/tmp", "-e", "A=b", "-h", "name"];
    daemon
        .run(&flags, &["sh", "-c", "id -u; id -g; pwd; echo $A; hostname; cat /etc/hostname"])?
        .expect(0, "1000\n1001\n/tmp\nb\nname\nname\n")?;
    daemon
        .run(
            &["--rm", "--ulimit", "nofile=77", "--cap-drop", "ALL"],
            &["sh", "-c", "ulimit -n; grep CapEff /proc/self/status"],
        )?
        .expect(0, "77\nCapEff:\t0000000000000000\n")?;
    daemon
        .run(&["--rm", "-t"], &["sh", "-c", "tty; test -c /dev/console && echo console"])?
        .expect(0, "/dev/pts/0\nconsole\n")?;
    daemon
        .run(
            &["--rm", "--cpus", "1", "--pids-limit", "8"],
            &["sh", "-c", "nproc; for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done"],
        )?
        .fails(2, "can't fork")?;
    daemon
        .run(&["--rm", "--memory", "64m"], &["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"])?
        .expect(137, "")?;
    Ok(())
}

fn volumes(daemon: &Daemon) -> Result<()> {
    let dir = daemon.path("volume");
    fs::create_dir(&dir)?;
    fs::write(dir.join("file"), "from the host\n")?;
    let (rw, ro) = (format!("{}:/v", dir.display()), format!("{}:/v:ro", dir.display()));
    daemon
        .run(&["--rm", "-v", &rw], &["sh", "-c", "cat /v/file; echo inside > /v/new"])?
        .expect(0, "from the host\n")?;
    ensure!(fs::read_to_string(dir.join("new"))? == "inside\n", "the volume was not written");
    daemon.run(&["--rm", "-v", &ro], &["sh", "-c", "echo x > /v/more"])?.fails(1, "Read-only file system")?;
    daemon
        .run(
            &["--rm", "--read-only", "--tmpfs", "/t"],
            &["sh", "-c", "echo x > /x; echo y > /t/y; cat /t/y"],
        )?
        .expect(0, "y\n")?;
    Ok(())
}

fn background(daemon: &Daemon) -> Result<()> {
    let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done";
    let started = daemon.run(&["-d", "--name", "one"], &["sh", "-c", script])?;
    ensure!(started.code == 0, "{started}");
    let until = Instant::now() + Duration::from_secs(20);
    while !daemon.docker(["logs", "one"])?.out.contains("up") {
        ensure!(Instant::now() < until, "the container says nothing");
        std::thread::sleep(Duration::from_millis(100));
    }
    daemon.docker(["exec", "one", "echo", "hi"])?.expect(0, "hi\n")?;
    daemon.docker(["exec", "one", "sh", "-c", "exit 9"])?.expect(9, "")?;
    daemon
        .docker(["exec", "-t", "one", "sh", "-c", "test -t 0 && echo terminal"])?
        .expect(0, "terminal\n")?;
    daemon
        .docker(["exec", "-u", "5", "-w", "/tmp", "-e", "Q=1", "one", "sh", "-c", "id -u; pwd; echo $Q"])?
        .expect(0, "5\n/tmp\n1\n")?;
    daemon.docker(["exec", "one", "nonesuch"])?.fails(126, "executable file not found in $PATH")?;
    let top = daemon.docker(["top", "one"])?;
    ensure!(top.code == 0 && top.out.contains("echo bye; exit 5"), "{top}");
    let stats = daemon.docker(["stats", "--no-stream", "--format", "{{.MemUsage}}", "one"])?;
    ensure!(stats.code == 0 && stats.out.contains("iB /") && !stats.out.starts_with("0B"), "{stats}");
    for _ in 0..2 {
        daemon.docker(["pause", "one"])?.expect(0, "one\n")?;
        daemon.docker(["inspect", "-f", "{{.State.Status}}", "one"])?.expect(0, "paused\n")?;
        daemon.docker(["unpause", "one"])?.expect(0, "one\n")?;
    }
    written(daemon)?;
    // The daemon may add what it thinks of the host's network.
    let updated = daemon.docker(["update", "--memory", "200m", "--memory-swap", "200m", "one"])?;
    ensure!(updated.code == 0 && updated.out.starts_with("one\n"), "{updated}");
    let passwd = daemon.path("passwd");
    let copied = daemon.docker([OsString::from("cp"), "one:/etc/passwd".into(), passwd.clone().into()])?;
    ensure!(copied.code == 0 && passwd.is_file(), "{copied}");
    daemon.docker(["stop", "one"])?.expect(0, "one\n")?;
    daemon.docker(["logs", "one"])?.expect(0, "up\nbye\n")?;
    daemon.docker(["inspect", "-f", "{{.State.ExitCode}}", "one"])?.expect(0, "5\n")?;
    daemon.docker(["start", "one"])?.expect(0, "one\n")?;
    daemon.docker(["kill", "one"])?.expect(0, "one\n")?;
    daemon.docker(["wait", "one"])?.expect(0, "137\n")?;
    daemon.docker(["rm", "one"])?.expect(0, "one\n")?;
    interactive(daemon)
}

/// What a container writes is there for the engine, and the other way round.
fn written(daemon: &Daemon) -> Result<()> {
    daemon
        .docker(["exec", "one", "sh", "-c", "mkdir /made; echo inside > /made/file; chown 5:6 /made/file"])?
        .expect(0, "")?;
    daemon.docker(["diff", "one"])?.expect(0, "A /made\nA /made/file\n")?;
    let file = daemon.path("from-outside");
    fs::write(&file, "outside\n")?;
    let copied = daemon.docker([OsString::from("cp"), file.into(), "one:/made/".into()])?;
    ensure!(copied.code == 0, "{copied}");
    daemon.docker(["exec", "one", "cat", "/made/from-outside"])?.expect(0, "outside\n")?;
    let committed = daemon.docker(["commit", "one", "changed"])?;
    ensure!(committed.code == 0, "{committed}");
    daemon
        .docker([
            "run",
            "--runtime=casemate",
            "--network=none",
            "--rm",
            "changed",
            "sh",
            "-c",
            "cat /made/*; stat -c %u:%g /made/file",
        ])?
        .expect(0, "inside\noutside\n5:6\n")?;
    Ok(())
}

/// A shell on a terminal, whose end `script(1)` holds.
fn interactive(daemon: &Daemon) -> Result<()> {
    let inner =
        daemon.command(["run", "--runtime=casemate", "--network=none", "--rm", "-it", "busybox", "sh"]);
    let words = std::iter::once(inner.get_program()).chain(inner.get_args());
    let words = words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    // Without `exec` a shell that forks leaves the command in the background of its terminal.
    let line = format!("exec {words}");
    let trial = Trial::new("docker-tty")?;
    let mut running =
        trial.host(["script", "-q", "-e", "-c", &line, "/dev/null"]).piped_stdin().limit(LIMIT).start()?;
    let type_in = |running: &mut Running, text: &str| -> Result<()> {
        let input = running.stdin.as_mut().context("no input")?;
        input.write_all(text.as_bytes())?;
        Ok(input.flush()?)
    };
    // What is typed is echoed: each answer is one that the typed text does not contain.
    running.until_says("# ")?;
    type_in(&mut running, "echo answer-$((6*7))\n")?;
    running.until_says("answer-42")?;
    type_in(&mut running, "echo begin-$((1)); sleep 1000\n")?;
    running.until_says("begin-1")?;
    // Until the sleep is in the foreground an interrupt would meet the shell alone.
    std::thread::sleep(Duration::from_millis(500));
    type_in(&mut running, "\u{3}")?;
    type_in(&mut running, "\necho code-$?\n")?;
    running.until_says("code-130")?;
    type_in(&mut running, "exit 23\n")?;
    running.wait()?.expect(23)?;
    trial.finish()
}

/// The default profile of system calls, and what an engine asks for besides.
fn profile(daemon: &Daemon) -> Result<()> {
    daemon.run(&["--rm"], &["grep", "Seccomp:", "/proc/self/status"])?.expect(0, "Seccomp:\t2\n")?;
    let free = ["--rm", "--security-opt", "seccomp=unconfined"];
    daemon.run(&free, &["grep", "Seccomp:", "/proc/self/status"])?.expect(0, "Seccomp:\t0\n")?;
    // The profile has no unshare(2) for those without CAP_SYS_ADMIN; the sandbox itself would let them.
    daemon.run(&["--rm"], &["unshare", "-U", "true"])?.fails(1, "Operation not permitted")?;
    let own = daemon.path("profile.json");
    let rules = json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }] });
    fs::write(&own, serde_json::to_vec(&rules)?)?;
    let option = format!("seccomp={}", own.display());
    daemon
        .run(&["--rm", "--security-opt", &option], &["mkdir", "/x"])?
        .fails(1, "Operation not permitted")?;
    daemon
        .run(
            &["--rm", "--init"],
            &["sh", "-c", "cat /proc/1/comm; echo $$ | grep -v '^1$' >/dev/null && echo second"],
        )?
        .expect(0, "docker-init\nsecond\n")?;
    daemon
        .run(&["--rm"], &["sh", "-c", "echo x >/proc/sysrq-trigger; cat /proc/kcore | wc -c; ls /proc/acpi | wc -l; ls -l /dev/null"])?
        .out_has("0\n0\ncrw-rw-rw-")?;
    daemon
        .run(&["--rm", "--domainname", "example"], &["cat", "/proc/sys/kernel/domainname"])?
        .expect(0, "example\n")?;
    daemon.run(&["--rm"], &["sh", "-c", "mkfifo /f; test -p /f && echo pipe"])?.out_has("pipe\n")?;
    // No device is made on the host, as from a user namespace; on a tmpfs it works.
    let nodes = "mknod /dev/n c 1 3 && echo x >/dev/n && wc -c </dev/n; mknod /n c 1 3";
    daemon.run(&["--rm"], &["sh", "-c", nodes])?.fails(1, "mknod: /n: Operation not permitted")?;
    Ok(())
}

/// Containers that are started again by the daemon.
fn policies(daemon: &Daemon) -> Result<()> {
    let flags = ["-d", "--name", "again", "--restart", "on-failure:2"];
    let started = daemon.run(&flags, &["sh", "-c", "echo run >>/runs; exit 3"])?;
    ensure!(started.code == 0, "{started}");
    let until = Instant::now() + Duration::from_secs(30);
    let told = "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}";
    loop {
        let seen = daemon.docker(["inspect", "-f", told, "again"])?;
        if seen.out == "2 exited 3\n" {
            break;
        }
        ensure!(Instant::now() < until, "it is not started again: {seen}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let runs = daemon.path("runs");
    let copied = daemon.docker([OsString::from("cp"), "again:/runs".into(), runs.clone().into()])?;
    ensure!(copied.code == 0 && fs::read_to_string(&runs)? == "run\nrun\nrun\n", "{copied}");
    daemon.docker(["rm", "again"])?.expect(0, "again\n")?;

    let started = daemon.run(&["-d", "--name", "always", "--restart", "always"], &["sleep", "1000"])?;
    ensure!(started.code == 0, "{started}");
    let pid = daemon.docker(["inspect", "-f", "{{.State.Pid}}", "always"])?.out.trim().parse::<i32>()?;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )?;
    let until = Instant::now() + Duration::from_secs(30);
    while daemon.docker(["inspect", "-f", told, "always"])?.out != "1 running 0\n" {
        ensure!(Instant::now() < until, "a container whose init was killed is not started again");
        std::thread::sleep(Duration::from_millis(200));
    }
    daemon.docker(["rm", "-f", "always"])?.expect(0, "always\n")?;
    Ok(())
}

/// A build whose steps run in the sandbox: the daemon's default runtime is casemate for it.
fn build(daemon: &Daemon) -> Result<()> {
    let dir = daemon.path("context");
    fs::create_dir(&dir)?;
    let file = "FROM busybox\nRUN echo built >/built && mkdir -p /a/b && chown 7:8 /a/b\nCOPY extra /a/b/\n\
                RUN cat /a/b/extra /built >/both\nCMD [\"cat\", \"/both\"]\n";
    fs::write(dir.join("Dockerfile"), file)?;
    fs::write(dir.join("extra"), "extra\n")?;
    let mut command = daemon.command(["build", "-q", "--network=none", "-t", "built"]);
    command.env("DOCKER_BUILDKIT", "0").arg(&dir);
    let output = command.output()?;
    ensure!(output.status.success(), "docker build: {output:?}\n{}", daemon.0.log());
    let run = ["run", "--runtime=casemate", "--network=none", "--rm", "built"];
    daemon.docker(run)?.expect(0, "extra\nbuilt\n")?;
    daemon.docker(run.into_iter().chain(["stat", "-c", "%u:%g", "/a/b"]))?.expect(0, "7:8\n")?;
    Ok(())
}

/// A pseudo-terminal with a `docker` command on it.
struct Typist {
    master: fs::File,
    child: Child,
    said: String,
}

impl Typist {
    fn start(mut command: Command, rows: u16, columns: u16) -> Result<Self> {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?.into_string()?;
        let slave = fs::File::options().read(true).write(true).open(name)?;
        let master = fs::File::from(master);
        rustix::io::ioctl_fionbio(&master, true)?;
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
        let typist = Self { master, child: command.spawn()?, said: String::new() };
        typist.resize(rows, columns)?;
        Ok(typist)
    }

    fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.master, size)?;
        // It is not docker's controlling terminal, so that the kernel does not tell docker.
        let pid = rustix::process::Pid::from_child(&self.child);
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::WINCH)?)
    }

    fn types(&mut self, text: &str) -> Result<()> {
        Ok(self.master.write_all(text.as_bytes())?)
    }

    /// Reads until `text` shows; what came before it is dropped.
    fn until(&mut self, text: &str) -> Result<()> {
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.said.find(text) {
                self.said.drain(..at + text.len());
                return Ok(());
            }
            let mut buffer = [0; 4096];
            match std::io::Read::read(&mut self.master, &mut buffer) {
                Ok(len) if len > 0 => self.said.push_str(&String::from_utf8_lossy(&buffer[..len])),
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
            ensure!(Instant::now() < until, "{text:?} does not show: {:?}", self.said);
        }
    }

    fn ends_with(mut self, code: i32) -> Result<()> {
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.code() == Some(code), "{status}, not {code}: {:?}", self.said);
                return Ok(());
            }
            ensure!(Instant::now() < until, "docker does not end: {:?}", self.said);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Typist {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `docker exec -it` on a terminal whose size changes, with an interrupt typed.
fn terminal(daemon: &Daemon) -> Result<()> {
    let started = daemon.run(&["-d", "--name", "term"], &["sleep", "1000"])?;
    ensure!(started.code == 0, "{started}");
    let mut command = Command::new("docker");
    command.arg("-H").arg(format!("unix://{}", daemon.path("socket").display()));
    command.args(["exec", "-it", "-e", "PS1=ready\\$ ", "term", "sh"]);
    let mut typist = Typist::start(command, 33, 101)?;
    typist.until("ready")?;
    let sized = |typist: &mut Typist, size: &str| -> Result<()> {
        typist.types(&format!(
            "until [ \"$(stty size)\" = '{size}' ]; do sleep 0.1; done; echo now-$((6*7))\n"
        ))?;
        typist.until("now-42")?;
        typist.until("ready")
    };
    sized(&mut typist, "33 101")?;
    typist.resize(40, 120)?;
    sized(&mut typist, "40 120")?;
    typist.types("echo begin-$((1)); sleep 1000\n")?;
    typist.until("begin-1")?;
    std::thread::sleep(Duration::from_millis(300));
    typist.types("\u{3}")?;
    typist.until("ready")?;
    typist.types("echo code-$?\n")?;
    typist.until("code-130")?;
    typist.types("exit 4\n")?;
    typist.ends_with(4)?;
    daemon.docker(["rm", "-f", "term"])?.expect(0, "term\n")?;
    Ok(())
}
