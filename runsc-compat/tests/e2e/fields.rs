//! What fields of a configuration do: sysctls of the IPC namespace, read-only mounts with mounts below, properties for
//! systemd, a limit of memory for one container of a pod.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use xtask::bundle::{Bundle, write_config};
use xtask::trial::Trial;

use crate::common::busybox;

fn run(trial: &Trial, config: &Value) -> Result<xtask::trial::Outcome> {
    let dir = trial.path().join("bundle");
    write_config(&dir, config)?;
    trial.casemate(["run".into(), "--bundle".into(), dir.into_os_string(), trial.id().into()]).run()
}

#[test]
fn sysctls_of_the_namespaces_are_set() -> Result<()> {
    let trial = Trial::new("sysctl")?;
    let sysctls = json!({
        "kernel.shm_rmid_forced": "1", "kernel.shmmax": "1048576", "kernel.shmmni": "7", "kernel.shmall": "99",
        "kernel.msgmax": "100", "kernel.msgmnb": "200", "kernel.msgmni": "3", "kernel.sem": "1 2 3 4",
        "fs.mqueue.msg_max": "20", "fs.mqueue.msgsize_max": "256", "fs.mqueue.queues_max": "5",
        "net.ipv4.ip_unprivileged_port_start": "0"
    });
    let names: Vec<_> =
        sysctls.as_object().into_iter().flatten().map(|(name, _)| name.replace('.', "/")).collect();
    let script = format!("cd /proc/sys; grep . {}", names.join(" "));
    let mut config = Bundle::new(busybox()?, ["sh", "-c", &script]).config();
    config["linux"]["sysctl"] = sysctls;
    let out = run(&trial, &config)?.expect(0)?;
    ensure!(!out.err().contains("not applied"), "{out}");
    out.expect_out(
        "fs/mqueue/msg_max:20\nfs/mqueue/msgsize_max:256\nfs/mqueue/queues_max:5\nkernel/msgmax:100\n\
         kernel/msgmnb:200\nkernel/msgmni:3\nkernel/sem:1\t2\t3\t4\nkernel/shm_rmid_forced:1\nkernel/shmall:99\n\
         kernel/shmmax:1048576\nkernel/shmmni:7\nnet/ipv4/ip_unprivileged_port_start:0\n",
    )?;
    config["linux"]["sysctl"] = json!({ "fs.mqueue.msg_max": "0" });
    run(&trial, &config)?.expect(1)?.expect_err("write sysctl key fs.mqueue.msg_max")?;
    trial.finish()
}

/// The files by which language runtimes find their limits.
#[test]
fn the_control_group_shows_the_limits() -> Result<()> {
    let trial = Trial::new("cgroupfs")?;
    let script = "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max cgroup.type; cat /proc/self/cgroup
         test $(cat pids.current) -ge 1 && grep -q '^1$' cgroup.procs && test $(cat memory.current) -gt 4096 && echo lives
         grep -c 'cgroup2 /sys/fs/cgroup' /proc/self/mounts; echo 1 2>/dev/null >memory.max || echo kept";
    let mut config = Bundle::new(busybox()?, ["sh", "-c", script]).config();
    let mounts = config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| mount["type"] != "cgroup" && mount["type"] != "cgroup2");
    mounts.push(
        json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] }),
    );
    config["linux"]["resources"] = json!({
        "memory": { "limit": 67_108_864 }, "cpu": { "quota": 50_000, "period": 100_000 }, "pids": { "limit": 99 }
    });
    let limits = "67108864\n50000 100000\n99\ndomain\n";
    run(&trial, &config)?.expect(0)?.expect_out(&format!("{limits}0::/\nlives\n1\nkept\n"))?;
    trial.finish()
}

/// As `docker run --uts host` asks for.
#[test]
fn without_a_namespace_of_its_own_a_container_has_the_hosts_name() -> Result<()> {
    let trial = Trial::new("hostsname")?;
    let mut config = Bundle::new(busybox()?, ["hostname"]).config();
    if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "uts");
    }
    if let Some(config) = config.as_object_mut() {
        config.remove("hostname");
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    run(&trial, &config)?.expect(0)?.expect_out(&name)?;
    trial.finish()
}

/// A tree with a file system of its own below that can be written to, and one that cannot.
#[test]
fn read_only_is_the_top_alone_or_all() -> Result<()> {
    let trial = Trial::new("readonly")?;
    let source = trial.path().join("scratch/source");
    let look = "cd $1; for f in top sub/x sub/deep/x locked/x; do
          touch $f 2>/dev/null && echo $f is written || echo $f is not
        done; ls sub | grep -c marked || :";
    let cases = [
        (json!(["rbind", "ro"]), "top is not\nsub/x is written\nsub/deep/x is written\nlocked/x is not\n1\n"),
        (json!(["rbind", "rro"]), "top is not\nsub/x is not\nsub/deep/x is not\nlocked/x is not\n1\n"),
        (json!(["rbind"]), "top is written\nsub/x is written\nsub/deep/x is written\nlocked/x is not\n1\n"),
        // What is mounted below is not there, but for an empty directory in its place.
        (json!(["bind"]), "top is written\nsub/x is not\nsub/deep/x is not\nlocked/x is not\n0\n"),
        (json!(["bind", "ro"]), "top is not\nsub/x is not\nsub/deep/x is not\nlocked/x is not\n0\n"),
    ];
    for (options, expected) in cases {
        let mut config = Bundle::new(busybox()?, ["sh", "-c", look, "sh", "/data"]).config();
        config["mounts"]
            .as_array_mut()
            .expect("mounts")
            .push(json!({ "destination": "/data", "type": "bind", "source": source, "options": options }));
        let bundle = trial.path().join("bundle");
        write_config(&bundle, &config)?;
        let script = "set -eu; mkdir -p $1; mount -t tmpfs a $1; mkdir $1/sub $1/locked; mount -t tmpfs b $1/sub
             mkdir $1/sub/deep; mount -t tmpfs c $1/sub/deep; touch $1/sub/marked; mount -t tmpfs -o ro d $1/locked
             shift; exec \"$@\"";
        let args = ["run".into(), "--bundle".into(), bundle.into_os_string(), trial.id().into()];
        let front = ["unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh"]
            .map(std::ffi::OsString::from);
        let front = front.into_iter().chain([source.clone().into_os_string()]);
        let out = trial.casemate(args).under(front).run()?.expect(0)?;
        ensure!(out.out() == expected, "{options}: {out}");
    }
    trial.finish()
}

#[test]
fn a_wrong_property_of_systemd_is_named() -> Result<()> {
    let trial = Trial::new("property")?;
    let mut config = Bundle::new(busybox()?, ["true"]).config();
    config["annotations"] = json!({ "org.systemd.property.MemoryMax": "lots" });
    let bundle = trial.path().join("bundle");
    write_config(&bundle, &config)?;
    let args = ["run".into(), "--bundle".into(), bundle.clone().into_os_string(), trial.id().into()];
    let with = |args: [std::ffi::OsString; 4]| ["--systemd-cgroup".into()].into_iter().chain(args);
    trial.casemate(args.clone()).run()?.expect(0)?;
    let out = trial.casemate(with(args)).run()?.expect(1)?;
    ensure!(out.err().contains("org.systemd.property.MemoryMax=lots value parse error"), "{out}");
    trial.finish()
}

/// A container that takes more than its own limit, in a pod that may have more.
#[test]
fn a_container_of_a_pod_is_held_to_its_own_limit() -> Result<()> {
    let trial = Trial::new("podmemory")?;
    let bundles = trial.path().join("bundle");
    let part = |name: &str, kind: &str, script: &str, limit: u64| -> Result<()> {
        let mut config = Bundle::new(busybox()?, ["sh", "-c", script]).config();
        config["annotations"] =
            json!({ "io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": trial.id() });
        if limit > 0 {
            config["linux"]["resources"] = json!({ "memory": { "limit": limit } });
        }
        config["linux"]["cgroupsPath"] = json!(format!("/{}-{name}", trial.id()));
        write_config(&bundles.join(name), &config)
    };
    let hold = "exec sleep 1000";
    part("s", "sandbox", hold, 0)?;
    part("a", "container", "dd if=/dev/zero of=/dev/null bs=200M count=1000000", 64 << 20)?;
    part("b", "container", hold, 64 << 20)?;
    let script = format!(
        "rt() {{ {} --root {} --log $dir/log \"$@\"; }}; id={}; bundle={}; dir={}
         until_() {{ for i in $(seq 2000); do \"$@\" && return 0; sleep 0.01; done; echo \"not in time: $*\"; }}
         is() {{ rt state $1 | grep -q '\"status\": \"'$2'\"'; }}
         for part in s a b; do
           name=$id; [ $part = s ] || name=$id-$part
           rt create --bundle $bundle/$part --pid-file $dir/$part $name </dev/null >/dev/null 2>&1 || exit 1
           rt start $name || exit 2
         done
         until_ is $id-a stopped; is $id-b running && is $id running && echo alone
         cat /sys/fs/cgroup/$id-a/memory.events /sys/fs/cgroup/memory/$id-a/memory.oom_control 2>/dev/null |
           grep -c 'oom_kill [1-9]'
         grep -c 'memory ran out: the container.s limit is 67108864 bytes' $dir/log
         rt kill $id KILL; until_ is $id stopped; until_ is $id-b stopped
         rt delete $id-a; rt delete $id-b; rt delete $id",
        trial.programs().casemate.display(),
        trial.path().join("state").display(),
        trial.id(),
        bundles.display(),
        trial.path().join("scratch").display(),
    );
    if !can_limit(Path::new("/sys/fs/cgroup")) {
        return Ok(());
    }
    trial.host(["bash", "-c", &script]).run()?.expect(0)?.expect_out("alone\n1\n1\n")?;
    trial.finish()
}

/// Whether this machine lets anybody limit memory.
fn can_limit(mount: &Path) -> bool {
    let has = |path: &str, word: &str| {
        std::fs::read_to_string(mount.join(path)).is_ok_and(|text| text.split_whitespace().any(|w| w == word))
    };
    mount.join("memory/memory.limit_in_bytes").exists() || has("cgroup.controllers", "memory")
}
