//! containerd's own daemon with the shim as a runtime: `ctr` and, where it is installed, `crictl`.
//!
//! The daemon is started for the test alone, with its files in a temporary directory.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "test code")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use xtask::engine::{self, Did, eventually, installed, limited, signal};
use xtask::place::TempDir;
use xtask::programs;

const RUNTIME: &str = "io.containerd.casemate.v1";
const IMAGE: &str = "docker.io/library/busybox:latest";
const PAUSE: &str = "docker.io/library/pause:latest";

/// A daemon of our own, stopped when dropped.
struct Daemon {
    own: engine::Daemon,
    casemate: PathBuf,
}

impl Daemon {
    fn start() -> Result<Self> {
        let casemate = programs::get()?.casemate.clone();
        let dir = TempDir::new("containerd")?;
        let at = |name: &str| dir.path().join(name);
        let quoted = |name: &str| format!("\"{}\"", at(name).display());
        fs::create_dir(at("bin"))?;
        symlink(&casemate, at("bin/containerd-shim-casemate-v1"))?;
        let config = format!(
            "version = 2\nroot = {root}\nstate = {state}\n[grpc]\naddress = {sock}\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {PAUSE:?}\ndisable_apparmor = true\n\
             restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"casemate\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.casemate]\nruntime_type = {RUNTIME:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {cni}\nconf_dir = {cni}\n",
            root = quoted("root"),
            state = quoted("state"),
            sock = quoted("sock"),
            cni = quoted("cni"),
        );
        fs::write(at("config.toml"), config)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(at("config.toml"));
        command.env("PATH", format!("{}:{path}", at("bin").display()));
        let mut own = engine::Daemon::start(dir, command)?;
        own.await_service(|own| {
            let mut command = limited("ctr");
            command.arg("--address").arg(own.path("sock")).arg("version");
            Did::by(command)
        })?;
        let daemon = Self { own, casemate };
        let (busybox, pause) = (daemon.archive(IMAGE)?, daemon.archive(PAUSE)?);
        daemon.ctr(&["image", "import", &busybox])?.ok()?;
        daemon.ctr(&["-n", "k8s.io", "image", "import", &busybox])?.ok()?;
        daemon.ctr(&["-n", "k8s.io", "image", "import", &pause])?.ok()?;
        Ok(daemon)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.own.path(name)
    }

    fn ctr_command(&self, args: &[&str]) -> Command {
        let mut command = limited("ctr");
        command.arg("--address").arg(self.path("sock")).args(args);
        command
    }

    fn ctr(&self, args: &[&str]) -> Result<Did> {
        Did::by(self.ctr_command(args))
    }

    fn run(&self, flags: &[&str], id: &str, words: &[&str]) -> Result<Did> {
        let all = [&["run", "--runtime", RUNTIME], flags, &[IMAGE, id], words].concat();
        self.ctr(&all)
    }

    fn crictl(&self, args: &[&str]) -> Result<Did> {
        let mut command = limited("crictl");
        let sock = format!("unix://{}", self.path("sock").display());
        command.args(["--runtime-endpoint", &sock, "--image-endpoint", &sock, "--timeout", "30s"]);
        command.args(args);
        Did::by(command)
    }

    fn archive(&self, name: &str) -> Result<String> {
        let dir = self.path(&name.replace(['/', ':'], "_"));
        fs::create_dir(&dir)?;
        let words: &[&str] = if name == PAUSE { &["sleep", "100000"] } else { &["sh"] };
        Ok(engine::busybox_image(&dir, name, words)?.display().to_string())
    }

    /// The processes of the shims of this daemon's containers, and of what they stand for.
    fn shims(&self) -> Vec<u32> {
        let address = self.path("sock").display().to_string();
        xtask::processes::all()
            .into_iter()
            .filter(|process| {
                let args = process.args();
                args.first().is_some_and(|name| name.contains("containerd-shim-casemate"))
                    && args.contains(&address)
            })
            .filter_map(|process| u32::try_from(process.pid).ok())
            .collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for namespace in ["default", "k8s.io"] {
            let listed = self.ctr(&["-n", namespace, "task", "ls", "-q"]);
            for id in listed.map(|did| did.out).unwrap_or_default().split_whitespace() {
                let _ = self.ctr(&["-n", namespace, "task", "rm", "-f", id]);
            }
        }
        for pid in self.shims() {
            let _ = signal(pid, Signal::KILL);
        }
    }
}

#[test]
fn containerd_runs_containers_in_the_sandbox() -> Result<()> {
    if !installed(&["containerd", "ctr"]) {
        return Ok(());
    }
    let daemon = Daemon::start()?;
    foreground(&daemon)
        .and_then(|()| background(&daemon))
        .and_then(|()| memory(&daemon))
        .and_then(|()| deaths(&daemon))
        .and_then(|()| by_runc_shim(&daemon))
        .and_then(|()| settings(&daemon))
        .and_then(|()| if installed(&["crictl"]) { pod(&daemon) } else { Ok(()) })
        .with_context(|| format!("the daemon's log ends with\n{}", daemon.own.log()))
}

fn foreground(daemon: &Daemon) -> Result<()> {
    daemon.run(&["--rm"], "a1", &["sh", "-c", "echo hello; echo error >&2; exit 7"])?.expect(7, "hello\n")?;
    let missing = daemon.run(&["--rm"], "a2", &["nonesuch"])?;
    let sentence = "exec: \"nonesuch\": executable file not found in $PATH";
    ensure!(missing.code != 0 && missing.err.contains(sentence), "{missing}");
    let mut command = daemon.ctr_command(&["run", "--rm", "--runtime", RUNTIME, IMAGE, "a3", "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    stdin.write_all(b"through a FIFO\n")?;
    // `ctr` tells the end of its input only to a container that it knows to be there.
    std::thread::sleep(Duration::from_millis(1500));
    drop(stdin);
    ensure!(child.wait_with_output()?.stdout == b"through a FIFO\n", "standard input is lost");
    let log = daemon.path("out.log");
    let uri = format!("file://{}", log.display());
    daemon.run(&["--rm", "--log-uri", &uri], "a4", &["echo", "kept"])?.ok()?;
    eventually("the log is written", Duration::from_secs(5), || {
        Ok(fs::read_to_string(&log).unwrap_or_default() == "kept\n")
    })?;
    let flags = ["--rm", "--memory-limit", "67108864"];
    let dd = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"];
    daemon.run(&flags, "a5", &dd)?.expect(137, "")?;
    terminal(daemon)
}

/// `ctr` wants a terminal for a container with one.
fn terminal(daemon: &Daemon) -> Result<()> {
    let inner = daemon.ctr_command(&["run", "--rm", "-t", "--runtime", RUNTIME, IMAGE, "a6", "sh"]);
    let words = std::iter::once(inner.get_program()).chain(inner.get_args());
    let words = words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    // Without `exec` a shell that forks leaves the command in the background of its terminal.
    let line = format!("exec {words}");
    let mut command = limited("script");
    command.args(["-q", "-e", "-c", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().context("stdin")?.write_all(b"tty; echo answer-$((6*7)); exit 23\n")?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.code() == Some(23) && said.contains("answer-42") && said.contains("/dev/pts/0"),
        "{:?}: {said}",
        output.status
    );
    Ok(())
}

/// What containerd tells of tasks while `body` runs, until `last` comes.
fn events_of(daemon: &Daemon, last: &str, body: impl FnOnce() -> Result<()>) -> Result<Vec<String>> {
    let events = daemon.path("events");
    // Not under `timeout`, which would leave it behind when it is killed itself.
    let mut watch = Command::new("ctr");
    watch.arg("--address").arg(daemon.path("sock")).arg("events").stdin(Stdio::null());
    let mut watcher = watch.stdout(fs::File::create(&events)?).stderr(Stdio::null()).spawn()?;
    // The watcher is there when it has seen something.
    let there = eventually("events come", Duration::from_secs(20), || {
        daemon.ctr(&["image", "label", IMAGE, "seen=yes"])?.ok()?;
        Ok(!fs::read(&events)?.is_empty())
    });
    let done = there.and_then(|()| body());
    let _ = eventually("the last event", Duration::from_secs(10), || {
        Ok(fs::read_to_string(&events)?.contains(last))
    });
    let _ = watcher.kill();
    let _ = watcher.wait();
    done?;
    let text = fs::read_to_string(&events)?;
    let topics =
        text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with("/tasks/")));
    Ok(topics.map(|topic| topic.trim_start_matches("/tasks/").to_owned()).collect())
}

/// A container that goes on without a process that the host has killed for want of memory.
fn memory(daemon: &Daemon) -> Result<()> {
    let script = "awk 'BEGIN { s = \"x\"; while (1) s = s s }'; echo lives; exec sleep 1000";
    let topics = events_of(daemon, "/tasks/oom", || {
        daemon.run(&["-d", "--memory-limit", "67108864"], "m1", &["sh", "-c", script])?.ok().map(drop)
    })?;
    ensure!(topics == ["create", "start", "oom"], "events came as {topics:?}");
    let listed = daemon.ctr(&["task", "ls"])?.ok()?;
    ensure!(listed.lines().any(|line| line.starts_with("m1") && line.ends_with("RUNNING")), "{listed}");
    daemon.ctr(&["task", "rm", "-f", "m1"])?;
    daemon.ctr(&["c", "rm", "m1"])?.ok()?;
    eventually("the shim ends", Duration::from_secs(10), || Ok(daemon.shims().is_empty()))
}

fn background(daemon: &Daemon) -> Result<()> {
    let topics = events_of(daemon, "/tasks/delete", || lifecycle(daemon))?;
    let expected = [
        "create",
        "start",
        "exec-added",
        "exec-started",
        "exit",
        "paused",
        "resumed",
        // containerd pauses a container to checkpoint it.
        "paused",
        "resumed",
        "exec-added",
        "exec-started",
        "exit",
        "exit",
        "delete",
    ];
    ensure!(topics == expected, "events came as {topics:?}");
    Ok(())
}

fn lifecycle(daemon: &Daemon) -> Result<()> {
    daemon.run(&["-d"], "b1", &["sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done"])?.ok()?;
    let status = || -> Result<String> {
        let listed = daemon.ctr(&["task", "ls"])?.ok()?;
        let line = listed.lines().find(|line| line.starts_with("b1")).unwrap_or_default();
        Ok(line.split_whitespace().last().unwrap_or_default().to_owned())
    };
    ensure!(status()? == "RUNNING", "{}", status()?);
    let exec =
        |id: &str, words: &[&str]| daemon.ctr(&[&["task", "exec", "--exec-id", id, "b1"], words].concat());
    exec("e1", &["sh", "-c", "echo inside; exit 3"])?.expect(3, "inside\n")?;
    let metrics = daemon.ctr(&["task", "metrics", "b1"])?.ok()?;
    ensure!(metrics.contains("memory") && metrics.contains("cpu"), "{metrics}");
    daemon.ctr(&["task", "pause", "b1"])?.ok()?;
    ensure!(status()? == "PAUSED", "{}", status()?);
    daemon.ctr(&["task", "resume", "b1"])?.ok()?;
    ensure!(status()? == "RUNNING", "{}", status()?);
    let checkpoint = daemon.ctr(&["task", "checkpoint", "b1"])?;
    ensure!(checkpoint.code != 0 && checkpoint.err.contains("not supported yet"), "{checkpoint}");
    exec("e2", &["kill", "-TERM", "1"])?.expect(0, "")?;
    eventually("the container ends", Duration::from_secs(10), || Ok(status()? == "STOPPED"))?;
    let removed = daemon.ctr(&["task", "rm", "b1"])?;
    ensure!(removed.err.contains("exit code 5") || removed.code == 5 || removed.code == 0, "{removed}");
    daemon.ctr(&["c", "rm", "b1"])?.ok()?;
    eventually("the shim ends", Duration::from_secs(10), || Ok(daemon.shims().is_empty()))
}

/// Whatever is killed, the end is told within a second and nothing is left.
fn deaths(daemon: &Daemon) -> Result<()> {
    let root = Path::new("/run/containerd/casemate/default");
    for victim in ["sandbox", "gofer", "init", "shim"] {
        let id = format!("d-{victim}-{}", std::process::id());
        daemon.run(&["-d"], &id, &["sleep", "1000"])?.ok()?;
        let state: Value = serde_json::from_slice(&fs::read(root.join(&id).join("state.json"))?)?;
        let sandbox = state["sandbox"]["pid"].as_u64().context("sandbox")?;
        let pid = if victim == "shim" {
            *daemon.shims().first().context("the shim is not found")?
        } else {
            u32::try_from(state[victim]["pid"].as_u64().context("pid")?)?
        };
        let mut waiting = daemon.ctr_command(&["task", "wait", &id]);
        let waiting = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        signal(pid, Signal::KILL)?;
        let killed = Instant::now();
        drop(waiting.map(|mut child| child.kill().and_then(|()| child.wait())));
        eventually(&format!("the end of {id}"), Duration::from_secs(2), || {
            let listed = daemon.ctr(&["task", "ls"])?.ok()?;
            Ok(!listed.lines().any(|line| line.starts_with(&id) && line.ends_with("RUNNING")))
        })?;
        let took = killed.elapsed();
        let removed = daemon.ctr(&["task", "rm", &id])?;
        ensure!(victim == "shim" || removed.err.contains("exit code 137"), "killed {victim}: {removed}");
        daemon.ctr(&["c", "rm", &id])?.ok()?;
        eventually(&format!("nothing is left of {id}"), Duration::from_secs(10), || {
            Ok(!root.join(&id).exists()
                && !Path::new("/proc").join(sandbox.to_string()).exists()
                && daemon.shims().is_empty()
                && !fs::read_to_string("/proc/self/mountinfo")?.contains(&id))
        })?;
        println!("killed {victim}: told after {took:?}");
    }
    Ok(())
}

/// containerd's own shim with casemate in the place of runc.
fn by_runc_shim(daemon: &Daemon) -> Result<()> {
    if !installed(&["containerd-shim-runc-v2"]) {
        return Ok(());
    }
    let casemate = daemon.casemate.display().to_string();
    let flags = ["run", "--rm", "--runc-binary", &casemate, IMAGE, "r1", "sh", "-c", "echo by runc; exit 4"];
    daemon.ctr(&flags)?.expect(4, "by runc\n")
}

/// A file of settings, as the runtime's options name it: here, for the host's sockets in a namespace of the container's.
fn settings(daemon: &Daemon) -> Result<()> {
    if !installed(&["ip", "ss"]) {
        return Ok(());
    }
    let file = daemon.path("casemate.toml");
    let path = file.display().to_string();
    let by_file = |flags: &[&str], id: &str, words: &[&str]| {
        daemon.run(&[&["--runtime-config-path", &path], flags].concat(), id, words)
    };
    for (wrong, said) in
        [("[casemate_config]\nnetwork = \"bridge\"", "must be sandbox or host"), ("=", "casemate.toml")]
    {
        fs::write(&file, wrong)?;
        let refused = by_file(&["--rm"], "s0", &["true"])?;
        ensure!(refused.code != 0 && refused.err.contains(said), "{refused}");
    }
    fs::write(&file, "[casemate_config]\nnetwork = \"host\"\n")?;
    let ns = format!("cmshim{}", std::process::id());
    let ip = |words: &[&str]| {
        Did::by({
            let mut command = limited("ip");
            command.args(words);
            command
        })
    };
    ip(&["netns", "add", &ns])?.ok()?;
    let try_it = || -> Result<()> {
        let with = format!("network:/run/netns/{ns}");
        by_file(&["-d", "--with-ns", &with], "s1", &["nc", "-l", "-p", "7011"])?.ok()?;
        eventually("the host's kernel has the container's socket", Duration::from_secs(10), || {
            Ok(ip(&["netns", "exec", &ns, "ss", "-Hltn"])?.out.contains(":7011"))
        })?;
        daemon.ctr(&["task", "rm", "-f", "s1"])?;
        daemon.ctr(&["c", "rm", "s1"])?.ok()?;
        eventually("the shim ends", Duration::from_secs(10), || Ok(daemon.shims().is_empty()))
    };
    let done = try_it();
    ip(&["netns", "del", &ns])?.ok()?;
    done
}

/// A pod with two containers that share a sandbox.
fn pod(daemon: &Daemon) -> Result<()> {
    let write = |name: &str, value: Value| -> Result<String> {
        let path = daemon.path(name);
        fs::write(&path, serde_json::to_vec(&value)?)?;
        Ok(path.display().to_string())
    };
    let logs = daemon.path("pod-logs");
    fs::create_dir(&logs)?;
    let pod = write(
        "pod.json",
        json!({
            "metadata": { "name": "pod", "namespace": "default", "attempt": 1, "uid": "casemate-pod" },
            "log_directory": logs,
            // Without CNI: the host's network, in name.
            "linux": { "security_context": { "namespace_options": { "network": 2 } } },
        }),
    )?;
    let container = |name: &str, script: &str| {
        write(
            &format!("{name}.json"),
            json!({
                "metadata": { "name": name },
                "image": { "image": IMAGE },
                "command": ["sh", "-c", script],
                "log_path": format!("{name}.log"),
                // Process numbers of its own.
                "linux": { "security_context": { "namespace_options": { "pid": 1 } } },
            }),
        )
    };
    let one = container("one", "echo first > /own; nc -l -p 7007 < /etc/hostname > /got; sleep 1000")?;
    let two = container(
        "two",
        "trap 'exit 6' TERM; echo $$; test -e /own || echo apart; while :; do sleep 0.1; done",
    )?;
    let sandbox = daemon.crictl(&["runp", &pod])?.ok()?.trim().to_owned();
    let create = |file: &str| -> Result<String> {
        let id = daemon.crictl(&["create", "--no-pull", &sandbox, file, &pod])?.ok()?.trim().to_owned();
        daemon.crictl(&["start", &id])?.ok()?;
        Ok(id)
    };
    let (one, two) = (create(&one)?, create(&two)?);
    ensure!(daemon.shims().len() == 1, "the pod has {} shims", daemon.shims().len());
    let sentries = |id: &str| -> Result<Value> {
        let path = Path::new("/run/containerd/casemate/k8s.io").join(id).join("state.json");
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    };
    ensure!(sentries(&one)?["pod"] == sandbox.as_str() && sentries(&two)?["pod"] == sandbox.as_str());
    eventually("the second container's log", Duration::from_secs(10), || {
        let log = fs::read_to_string(logs.join("two.log")).unwrap_or_default();
        Ok(log.contains("stdout F 1\n") && log.contains("stdout F apart\n"))
    })?;
    // The network is one.
    eventually("the first container is heard in the second", Duration::from_secs(10), || {
        Ok(daemon.crictl(&["exec", &two, "sh", "-c", "echo hi | nc -w 1 127.0.0.1 7007"])?.code == 0)
    })?;
    daemon.crictl(&["exec", "-s", &one, "sh", "-c", "cat /own; ps | grep -c sleep"])?.ok()?;
    daemon.crictl(&["stop", "--timeout", "10", &two])?.ok()?;
    let code = |id: &str| -> Result<Value> {
        let shown: Value = serde_json::from_str(&daemon.crictl(&["inspect", id])?.ok()?)?;
        Ok(shown["status"]["exitCode"].clone())
    };
    ensure!(code(&two)? == 6, "{}", code(&two)?);
    // A container that is killed leaves the other one alone.
    let own = daemon.crictl(&["exec", "-s", &one, "cat", "/own"])?.ok()?;
    ensure!(own.trim() == "first", "{own:?}");
    let gofer = sentries(&one)?["gofer"]["pid"].as_u64().context("gofer")?;
    signal(u32::try_from(gofer)?, Signal::KILL)?;
    eventually(
        "the end of a container without its gofer",
        Duration::from_secs(2),
        || Ok(code(&one)? == 137),
    )?;
    let pods = daemon.crictl(&["pods", "--state", "Ready", "-q", "--no-trunc"])?.ok()?;
    ensure!(pods.contains(&sandbox), "the pod has gone with its container: {pods}");
    daemon.crictl(&["stopp", &sandbox])?.ok()?;
    daemon.crictl(&["rmp", &sandbox])?.ok()?;
    eventually("nothing is left of the pod", Duration::from_secs(10), || Ok(daemon.shims().is_empty()))
}
