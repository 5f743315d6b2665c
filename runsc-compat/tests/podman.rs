//! podman with casemate as its runtime: what people do with containers, end to end.
//!
//! Images, containers and sockets are in a temporary directory; networks are made in a network namespace of the test's own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "test code")]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use xtask::engine::{Did, busybox_layer, eventually, installed, limited};
use xtask::place::TempDir;
use xtask::programs;
use xtask::shell;

struct Podman {
    dir: TempDir,
    runtime: PathBuf,
    /// The network namespace that stands for the host's.
    host: Option<String>,
}

impl Podman {
    fn new(host: Option<String>) -> Result<Self> {
        let podman = Self { dir: TempDir::new("podman")?, runtime: programs::get()?.casemate.clone(), host };
        let image = busybox_layer(podman.dir.path())?;
        podman.run([OsString::from("import"), image.into(), "busybox".into()])?.ok()?;
        Ok(podman)
    }

    fn run<S: Into<OsString>>(&self, args: impl IntoIterator<Item = S>) -> Result<Did> {
        let at = |name: &str| self.dir.path().join(name);
        let mut command = match &self.host {
            None => limited("podman"),
            Some(name) => {
                let mut command = limited("nsenter");
                command.arg(format!("--net=/run/netns/{name}")).arg("podman");
                command.arg("--network-config-dir").arg(at("networks"));
                command
            }
        };
        // conmon notes in its working directory that memory ran out.
        command.current_dir(self.dir.path());
        for (flag, name) in [("--root", "root"), ("--runroot", "runroot"), ("--tmpdir", "tmp")] {
            command.arg(flag).arg(at(name));
        }
        command.args(["--storage-driver", "vfs", "--events-backend", "file", "--cgroup-manager", "cgroupfs"]);
        command.arg("--runtime").arg(&self.runtime).args(args.into_iter().map(Into::into));
        Did::by(command)
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
        if let Some(name) = &self.host {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

#[test]
fn podman_runs_containers_in_the_sandbox() -> Result<()> {
    if !installed(&["podman", "conmon"]) {
        return Ok(());
    }
    let podman = Podman::new(None)?;
    foreground(&podman)?;
    background(&podman)?;
    pod(&podman)
}

/// A network by CNI's bridge: to the host, to another container, and in by a published port.
#[test]
fn podman_connects_containers() -> Result<()> {
    if !installed(&["podman", "conmon", "ip", "nsenter", "iptables"])
        || !Path::new("/usr/lib/cni/bridge").exists()
    {
        println!("skipped: the bridge of CNI is not installed");
        return Ok(());
    }
    let name = format!("cmp{}", std::process::id());
    let ip = |words: &str| shell::run(Command::new("ip").args(words.split(' ')));
    ip(&format!("netns add {name}"))?;
    ip(&format!("-n {name} link set lo up"))?;
    let podman = Podman::new(Some(name))?;
    let v6 = Path::new("/proc/sys/net/ipv6").exists();
    let second = if v6 { " --subnet fd83::/64 --ipv6" } else { "" };
    podman.words(&format!("network create --subnet 10.83.0.0/24{second} mine"))?.ok()?;
    let serve = "mkdir /www; echo served >/www/f; exec httpd -f -p 80 -h /www";
    let words = "run -d --name web --network mine --ip 10.83.0.5 -p 8080:80 busybox sh -c".split(' ');
    podman.run(words.chain([serve]))?.ok()?;
    let on = |script: &str| {
        podman.run("run --rm --network mine --cap-add NET_RAW busybox sh -c".split(' ').chain([script]))
    };
    eventually("a container serves another one", Duration::from_secs(30), || {
        Ok(on("wget -q -O - http://10.83.0.5/f")?.out == "served\n")
    })?;
    let script =
        "ping -c 1 -W 10 10.83.0.1 | grep -o '1 packets received'; wget -q -O - http://10.83.0.1:8080/f";
    on(script)?.expect(0, "1 packets received\nserved\n")?;
    // The host's sockets in the container's namespace, by a flag that podman passes on.
    let by_host = |mode: &str, flags: &str, script: &str| {
        let words = format!("--runtime-flag network={mode} run --network mine {flags} busybox sh -c");
        podman.run(words.split(' ').chain([script]).map(OsString::from))
    };
    by_host("bridge", "--rm", "true")?.fails(126, "must be sandbox or host")?;
    by_host("host", "-d --name fast --ip 10.83.0.6 -p 8081:80", serve)?.ok()?;
    eventually("host sockets serve another container", Duration::from_secs(30), || {
        Ok(on("wget -q -O - http://10.83.0.6/f")?.out == "served\n")
    })?;
    on("wget -q -O - http://10.83.0.1:8081/f")?.expect(0, "served\n")?;
    by_host("host", "--rm", "wget -q -O - http://10.83.0.5/f; wget -q -O - http://10.83.0.6/f")?
        .expect(0, "served\nserved\n")?;
    if v6 {
        on("ping -c 1 -W 10 fd83::1 | grep -o '1 packets received'")?.expect(0, "1 packets received\n")?;
    }
    Ok(())
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
    podman.run(["run", "-d", "--name", "one", "--network", "none", "busybox", "sh", "-c", script])?.ok()?;
    eventually("the container speaks", Duration::from_secs(20), || {
        Ok(podman.words("logs one")?.out.contains("up"))
    })?;
    podman.words("exec one echo hi")?.expect(0, "hi\n")?;
    podman.run(["exec", "one", "sh", "-c", "exit 9"])?.expect(9, "")?;
    podman
        .run(["exec", "-u", "5", "-w", "/tmp", "-e", "Q=1", "one", "sh", "-c", "id -u; pwd; echo $Q"])?
        .expect(0, "5\n/tmp\n1\n")?;
    podman.run(["exec", "-t", "one", "sh", "-c", "test -t 0 && echo terminal"])?.expect(0, "terminal\n")?;
    podman.words("top one -ef")?.out_has("PID")?;
    // Without options of ps it enters the mount namespace of init and reads /proc there.
    for _ in 0..2 {
        podman
            .words("top one user pid ppid args")?
            .out_has("root        1           0           sh -c trap")?;
    }
    podman.words("top one")?.out_has("ELAPSED")?;
    podman.words("pause one")?.expect(0, "one\n")?;
    podman.words("inspect -f {{.State.Status}} one")?.expect(0, "paused\n")?;
    podman.words("unpause one")?.expect(0, "one\n")?;
    podman.run(["exec", "one", "sh", "-c", "mkdir /made; echo x > /made/f"])?.expect(0, "")?;
    podman.words("diff one")?.out_has("A /made/f\n")?;
    podman.words("commit one changed")?.ok()?;
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
    podman.words("pod create --name two --network none")?.ok()?;
    for name in ["a", "b"] {
        podman.words(&format!("run -d --pod two --name {name} busybox sleep 1000"))?.ok()?;
    }
    podman.words("exec b echo in the pod")?.expect(0, "in the pod\n")?;
    podman.words("pod ps --format {{.Status}}-{{.NumberOfContainers}}")?.expect(0, "Running-3\n")?;
    podman.words("pod rm -t 0 -f two")?.ok()?;
    podman.words("ps -aq")?.expect(0, "")
}
