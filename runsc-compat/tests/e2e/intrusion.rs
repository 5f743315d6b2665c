//! What a hostile image, configuration, caller or program may try against the command, its helpers and their sockets.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use xtask::bundle::{Bundle, write_config};
use xtask::trial::{Outcome, Trial};

use crate::common::busybox;

/// Runs a script with `rt` for the runtime, and `$id`, `$bundle`, `$dir` set.
fn script(trial: &Trial, config: &Value, text: &str) -> Result<Outcome> {
    write_config(&trial.path().join("bundle"), config)?;
    let text = format!(
        "rt='{} --root {}'; rt() {{ $rt \"$@\"; }}; id={}; bundle={}; dir={}\n{text}",
        trial.programs().casemate.display(),
        trial.path().join("state").display(),
        trial.id(),
        trial.path().join("bundle").display(),
        trial.path().join("scratch").display(),
    );
    trial.host(["bash", "-c", &text]).run()
}

fn sleeper() -> Result<Value> {
    Ok(Bundle::new(busybox()?, ["sleep", "1000"]).config())
}

/// What stands for the container on the host holds nothing of what passes through.
#[test]
fn floods_do_not_fill_the_helpers() -> Result<()> {
    let trial = Trial::new("intrusion-flood")?;
    let text = "
        rt create --bundle $bundle --pid-file $dir/pid $id </dev/null >/dev/null && rt start $id || exit 1
        # Output that is read slowly, terminals that are resized, and many executed processes at once.
        (rt exec $id dd if=/dev/zero bs=1M count=64 2>/dev/null) | (sleep 1; wc -c)
        for i in $(seq 20); do rt exec $id true & done; wait
        grep VmHWM /proc/$(cat $dir/pid)/status | awk '{print $2}' >$dir/peak
        rt delete -f $id";
    let out = script(&trial, &sleeper()?, text)?.expect(0)?;
    out.expect_out("67108864\n")?;
    let peak: u64 = fs::read_to_string(trial.path().join("scratch/peak"))?.trim().parse()?;
    ensure!(peak < 64 << 10, "the monitor has used {peak} KiB");
    trial.finish()
}

/// `exec --cwd` behind a descriptor of the runtime's, and a mount over a path that links to the host.
#[test]
fn directories_behind_descriptors() -> Result<()> {
    let trial = Trial::new("intrusion-cwd")?;
    let text = "
        rt run -d --bundle $bundle $id </dev/null >/dev/null || exit 1
        for n in 3 4 5 6 7 8 9 10; do
          rt exec --cwd /proc/self/fd/$n $id sh -c 'pwd; ls /proc/self/cwd/' 7<. 8</ 2>/dev/null && echo entered $n
        done
        rt exec $id sh -c 'for f in /proc/*/fd/*; do readlink $f; done' 7<. 8</ 2>/dev/null | grep -e / | grep -v -e /dev/null -e /proc -e pipe: -e socket: -e /dev/pts
        rt delete -f $id; exit 0";
    let out = script(&trial, &sleeper()?, text)?.expect(0)?;
    out.expect_out("")?;
    trial.finish()
}

/// Values that no configuration should have: a sentence, and nothing made.
#[test]
fn hostile_configurations() -> Result<()> {
    let base = sleeper()?;
    let with = |pointer: &str, value: Value| {
        let mut config = base.clone();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        match config.pointer_mut(parent).unwrap() {
            Value::Array(list) => list.push(value),
            parent => parent[name] = value,
        }
        config
    };
    let cases = [
        ("uid", with("/process/user/uid", json!(u32::MAX))),
        ("wide-uid", with("/process/user/uid", json!(1_u64 << 32))),
        ("negative-gid", with("/process/user/gid", json!(-1))),
        ("nul", with("/process/args", json!(["a\0b"]))),
        ("cwd", with("/process/cwd", json!("../x"))),
        ("namespaces", with("/linux/namespaces/-", json!({"type": "pid"}))),
        ("host-pid", with("/linux/namespaces", json!([{"type": "pid", "path": "/proc/1/ns/pid"}]))),
        ("sysctl-lines", with("/linux/sysctl", json!({"net.ipv4.ip_forward": "1\nb"}))),
        ("sysctl-path", with("/linux/sysctl", json!({"kernel/../../etc/passwd": "1"}))),
        ("sysctl-host", with("/linux/sysctl", json!({"kernel.core_pattern": "|/bin/sh"}))),
        ("cpuset", with("/linux/resources", json!({"cpu": {"cpus": "0-1; rm -rf /"}}))),
        ("pids", with("/linux/resources", json!({"pids": {"limit": -7}}))),
        ("memory", with("/linux/resources", json!({"memory": {"limit": -2}}))),
        ("unified", with("/linux/resources", json!({"unified": {"../cgroup.procs": "1"}}))),
        ("cgroup", with("/linux/cgroupsPath", json!("/../../x"))),
        (
            "shared",
            with("/mounts/-", json!({"destination": "/x", "source": "/", "options": ["rbind", "rshared"]})),
        ),
        ("root-mount", with("/mounts/-", json!({"destination": "/x/..", "source": "/", "type": "bind"}))),
        ("relative", with("/mounts/-", json!({"destination": "x", "type": "tmpfs"}))),
        ("device", with("/mounts/-", json!({"destination": "/x", "source": "/dev/null", "type": "bind"}))),
        ("rlimit", with("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]))),
        ("hook", with("/hooks", json!({"prestart": [{"path": "sh"}]}))),
        ("seccomp", with("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}))),
        ("vm", with("/vm", json!({"kernel": {"path": "/boot/vmlinuz"}}))),
    ];
    let trial = Trial::new("intrusion-config")?;
    for (name, config) in cases {
        let dir = trial.path().join("bundles").join(name);
        write_config(&dir, &config)?;
        refused(&trial, name, &dir)?;
    }
    // Not JSON that anybody would write.
    for (name, text) in [
        ("deep", format!("{{\"annotations\":{}", "[".repeat(100_000))),
        ("large", format!("{{\"ociVersion\":\"1.0.2\",\"x\":\"{}\"}}", "y".repeat(9 << 20))),
        ("empty", String::new()),
        ("array", "[]".to_owned()),
    ] {
        let dir = trial.path().join("bundles").join(name);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("config.json"), text)?;
        refused(&trial, name, &dir)?;
    }
    // A pipe in its place would hold a careless reader.
    let dir = trial.path().join("bundles/fifo");
    fs::create_dir_all(&dir)?;
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("config.json"), rustix::fs::Mode::RUSR)?;
    refused(&trial, "fifo", &dir)?;
    trial.finish()
}

fn refused(trial: &Trial, name: &str, bundle: &Path) -> Result<()> {
    let args = ["create".into(), "--bundle".into(), bundle.as_os_str().to_owned(), trial.id().into()];
    let out = trial.casemate(args).limit(Duration::from_secs(10)).run()?;
    ensure!(out.code() == 1 && out.err().trim().lines().count() == 1, "{name}: {out}");
    let state = trial.path().join("state").join(trial.id());
    ensure!(!state.exists(), "{name}: state is left");
    Ok(())
}

/// Annotations and labels give nothing: an image's words change no flag of the sandbox.
#[test]
fn annotations_loosen_nothing() -> Result<()> {
    let trial = Trial::new("intrusion-annotations")?;
    let mut config =
        Bundle::new(busybox()?, ["sh", "-c", "cat /proc/self/status | grep -e Cap -e Seccomp; ls /"])
            .config();
    let text = "rt run --bundle $bundle $id </dev/null";
    let plain = script(&trial, &config, text)?.expect(0)?.out();
    config["annotations"] = json!({
        "dev.gvisor.flag.network": "host", "dev.gvisor.flag.directfs": "true", "run.oci.handler": "krun",
        "dev.gvisor.spec.mount.x.source": "/", "dev.gvisor.spec.mount.x.type": "bind",
        "casemate.writes": "keep", "casemate.network": "host", "casemate.debug": "true",
        "io.kubernetes.cri.container-type": "sandbox", "org.opencontainers.image.x": "binary:///bin/sh",
        "a\nb": "c\u{0}d"
    });
    let loud = script(&trial, &config, text)?.expect(0)?.out();
    ensure!(plain == loud, "{plain:?} became {loud:?}");
    trial.finish()
}

/// Annotations name the sandbox that a container goes into: one that holds a pod, and no other container's.
#[test]
fn annotations_lead_to_pods_alone() -> Result<()> {
    let trial = Trial::new("intrusion-pod")?;
    let config = Bundle::new(busybox()?, ["sleep", "1000"]).config();
    let mut intruder = Bundle::new(busybox()?, ["sh", "-c", "ps -o args; echo that is all"]).config();
    intruder["annotations"] = json!({ "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": trial.id() });
    write_config(&trial.path().join("scratch/intruder"), &intruder)?;
    let text = "
        rt create --bundle $bundle $id </dev/null >/dev/null && rt start $id
        rt create --bundle $dir/intruder $id-2 </dev/null >$dir/out && rt start $id-2
        for i in $(seq 500); do grep -q 'that is all' $dir/out && break; sleep 0.02; done
        cat $dir/out; rt delete -f $id-2; rt delete -f $id";
    let seen = script(&trial, &config, text)?.expect(0)?.out();
    ensure!(seen.contains("that is all") && !seen.contains("sleep 1000"), "{seen}");
    trial.finish()
}

/// What cannot go on ends by its time limit or a signal: a hook that reads nothing of a long text, and an exec into a paused
/// container. Numbers of users that the kernel takes for none are refused.
#[test]
fn nothing_waits_for_ever() -> Result<()> {
    let trial = Trial::new("intrusion-waits")?;
    let mut config = Bundle::new(busybox()?, ["sleep", "1000"]).config();
    let plain = config.clone();
    config["annotations"] = json!({ "long": "x".repeat(200_000) });
    config["hooks"] =
        json!({ "createRuntime": [{ "path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1 }] });
    let text = "timeout -s KILL 30 $rt create --bundle $bundle $id </dev/null 2>&1 | grep -c 'past specified timeout'";
    script(&trial, &config, text)?.expect(0)?.expect_out("1\n")?;
    let text = "
        rt create --bundle $bundle $id </dev/null >/dev/null && rt start $id
        rt exec --user 4294967295 $id true 2>&1 | grep -c 'must be in range'
        rt exec --user 1:4294967295 $id true 2>&1 | grep -c 'must be in range'
        rt pause $id
        timeout -s TERM -k 30 1 $rt exec --ignore-paused $id true </dev/null; echo code $?
        rt resume $id; rt exec $id echo lives; rt delete -f $id";
    script(&trial, &plain, text)?.expect(0)?.expect_out("1\n1\ncode 124\nlives\n")?;
    trial.finish()
}

/// A console socket that nobody serves, that is closed or is no socket ends the command with a sentence, soon. One that takes
/// the terminal and never reads does not hold the container up.
#[test]
fn console_sockets() -> Result<()> {
    let trial = Trial::new("intrusion-console")?;
    let config = Bundle::new(busybox()?, ["sleep", "1000"]).terminal().config();
    let scratch = trial.path().join("scratch");
    // Bound and not listened on any more.
    drop(UnixListener::bind(scratch.join("closed"))?);
    fs::write(scratch.join("file"), "")?;
    symlink("/nonesuch", scratch.join("dangling"))?;
    let listener = UnixListener::bind(scratch.join("stalled"))?;
    let text = "
        for name in closed file dangling absent; do
          timeout -s KILL 20 $rt create --bundle $bundle --console-socket $dir/$name $id </dev/null 2>&1 >/dev/null | grep -c 'console socket'
        done
        timeout -s KILL 20 $rt create --bundle $bundle --console-socket $dir/stalled $id </dev/null >/dev/null; echo code $?
        rt start $id; rt exec $id echo lives; rt delete -f $id";
    let out = script(&trial, &config, text)?.expect(0)?;
    out.expect_out("1\n1\n1\n1\ncode 0\nlives\n")?;
    let (mut peer, _) = listener.accept()?;
    peer.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut name = [0; 64];
    let len = peer.read(&mut name)?;
    ensure!(name[..len].starts_with(b"/dev/pts/"), "{:?}", &name[..len]);
    ensure!(peer.read(&mut name)? == 0, "the socket is to be closed");
    trial.finish()
}

/// What the helpers listen on cannot be reached from inside, by no name.
#[test]
fn control_sockets_are_out_of_reach() -> Result<()> {
    let trial = Trial::new("intrusion-sockets")?;
    let mut config = sleeper()?;
    // Without a network namespace: the host's, for those who share it.
    config["linux"]["namespaces"] =
        json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]);
    let text = "
        rt run -d --bundle $bundle --pid-file $dir/pid $id </dev/null >/dev/null || exit 1
        rt exec $id sh -c 'cat /proc/net/unix | tail -n +2; find / -type s 2>/dev/null; ls -a /run/casemate 2>/dev/null'
        grep -c '@.*casemate' /proc/net/unix
        stat -c '%a %U' $dir/../state/$id/control.sock
        rt delete -f $id";
    let out = script(&trial, &config, text)?.expect(0)?;
    out.expect_out("0\n600 root\n")?;
    trial.finish()
}

/// A killed part of the sandbox is seen at once: all others end with it. The limit leaves room for a busy host.
#[test]
fn deaths_are_told_within_a_second() -> Result<()> {
    let trial = Trial::new("intrusion-deaths")?;
    let text = "
        number() { sed \"s/.*\\\"$1\\\":{\\\"pid\\\":\\([0-9]*\\).*/\\1/\" $dir/../state/$id/state.json; }
        gone() { ! grep -q '^State:.[^ZX]' /proc/$1/status 2>/dev/null; }
        for victim in init sandbox gofer; do
          rt create --bundle $bundle $id </dev/null >/dev/null && rt start $id || exit 1
          all=\"$(number init) $(number sandbox) $(number gofer)\"
          start=$(date +%s%N); kill -KILL $(number $victim)
          for one in $all; do until gone $one; do sleep 0.01; done; done
          echo $victim $(( ($(date +%s%N) - start) / 3000000000 ))
          rt delete $id; rt delete -f $id
        done";
    let out = script(&trial, &sleeper()?, text)?.expect(0)?;
    out.expect_out("init 0\nsandbox 0\ngofer 0\n")?;
    trial.finish()
}
