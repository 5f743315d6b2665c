//! Pods: several containers in one sandbox, told apart by the annotations that engines write.

use std::path::Path;

use anyhow::Result;
use serde_json::json;
use xtask::bundle::{Bundle, write_config};
use xtask::trial::Trial;

use crate::common::busybox;

/// Writes the bundle of a container of the pod `pod`.
fn part(dir: &Path, pod: &str, kind: &str, script: &str) -> Result<()> {
    let mut config = Bundle::new(busybox()?, ["sh", "-c", script]).config();
    config["annotations"] =
        json!({ "io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": pod });
    write_config(dir, &config)
}

#[test]
fn containers_of_a_pod_share_a_sandbox() -> Result<()> {
    let trial = Trial::new("pod")?;
    let bundles = trial.path().join("bundle");
    let hold = "exec sleep 1000";
    part(&bundles.join("s"), trial.id(), "sandbox", hold)?;
    part(&bundles.join("a"), trial.id(), "container", "nc -l -p 7007 > /dev/shm/heard; exec sleep 1001")?;
    part(&bundles.join("b"), trial.id(), "container", "trap 'exit 9' TERM; while :; do sleep 0.02; done")?;
    let script = format!(
        "rt() {{ {} --root {} \"$@\"; }}; id={}; bundle={}; dir={}
         until_() {{ for i in $(seq 500); do \"$@\" && return 0; sleep 0.01; done; echo \"not in time: $*\"; }}
         is() {{ rt state $1 | grep -q '\"status\": \"'$2'\"'; }}
         for part in s a b; do
           name=$id; [ $part = s ] || name=$id-$part
           rt create --bundle $bundle/$part --pid-file $dir/$part $name </dev/null >/dev/null || exit 1
           is $name created || echo $name is not created
           rt start $name || exit 2
         done
         until_ rt exec $id-b sh -c 'echo over the network | nc -w 1 127.0.0.1 7007'
         until_ rt exec $id-a grep -q over /dev/shm/heard
         rt exec $id-b ls /dev/shm
         until_ rt exec $id-a grep -q 1001 /proc/1/cmdline
         rt ps $id-a | grep -c 'sleep 1001'; rt ps $id-b | grep -c 'sleep 100'; rt ps $id | grep -c 'sleep 100'
         rt pause $id-a 2>&1 | grep -o 'cannot pause container'
         rt kill $id-a KILL; until_ is $id-a stopped; is $id-b running && echo alone
         rt kill $id-b TERM; until_ is $id-b stopped
         rt delete $id-b; rt create --bundle $bundle/b $id-c </dev/null >/dev/null; rt start $id-c
         rt kill $id KILL; until_ is $id stopped; until_ is $id-c stopped
         rt create --bundle $bundle/b $id-d 2>&1 </dev/null | grep -o 'is stopped'
         rt delete $id-a; rt delete $id-c; rt delete $id",
        trial.programs().casemate.display(),
        trial.path().join("state").display(),
        trial.id(),
        bundles.display(),
        trial.path().join("scratch").display(),
    );
    let out = trial.host(["bash", "-c", &script]).run()?.expect(0)?;
    out.expect_out("1\n0\n1\ncannot pause container\nalone\nis stopped\n")?;
    trial.finish()
}

/// What the host connects to the loopback of a pod's namespace, as engines do to forward a port.
#[test]
fn a_pods_loopback_is_reached_from_its_namespace() -> Result<()> {
    if !xtask::engine::installed(&["ip", "iptables-restore", "nsenter"]) {
        return Ok(());
    }
    let trial = Trial::new("podforward")?;
    let bundle = trial.path().join("bundle");
    let serve = "httpd -p 127.0.0.1:7007; httpd -p [::1]:7008; exec sleep 1000";
    part(&bundle, trial.id(), "sandbox", serve)?;
    let script = format!(
        "rt() {{ {} --root {} \"$@\"; }}; id={}; bundle={}; ns=casemate-$id
         trap 'rt delete -f $id; ip netns delete $ns' EXIT
         ip netns add $ns && ip -n $ns link set lo up && ip -n $ns link add eth7 type veth peer name eth8 &&
           ip -n $ns address add 10.99.0.2/24 dev eth7 && ip -n $ns link set eth7 up && ip -n $ns link set eth8 up || exit 1
         sed -i \"s,@netns@,/run/netns/$ns,\" $bundle/config.json
         rt create --bundle $bundle $id </dev/null >/dev/null 2>&1 || exit 2
         rt start $id || exit 3
         ask() {{
           for i in $(seq 500); do
             timeout -s KILL 20 nsenter --net=/run/netns/$ns bash -c \"exec 3<>/dev/tcp/127.0.0.1/$1
               printf 'GET /none HTTP/1.0\\r\\n\\r\\n' >&3; head -n 1 <&3\" 2>/dev/null | grep -o 404 && return; sleep 0.02
           done; echo nothing from $1
         }}
         ask 7007; ask 7008
         nsenter --net=/run/netns/$ns bash -c 'exec 3<>/dev/tcp/127.0.0.1/7009; cat <&3' 2>/dev/null; echo closed",
        trial.programs().casemate.display(),
        trial.path().join("state").display(),
        trial.id(),
        bundle.display(),
    );
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(bundle.join("config.json"))?)?;
    if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({ "type": "network", "path": "@netns@" }));
    }
    write_config(&bundle, &config)?;
    let out = trial.host(["bash", "-c", &script]).run()?.expect(0)?;
    out.expect_out("404\n404\nclosed\n")?;
    trial.finish()
}

/// What `docker run --network container:NAME --pid container:NAME` asks for: namespaces that are named by a process.
#[test]
fn a_container_joins_the_namespaces_of_another() -> Result<()> {
    let trial = Trial::new("joined")?;
    let bundles = trial.path().join("bundle");
    let write = |name: &str, script: &str, joins: &[&str]| -> Result<()> {
        let mut config = Bundle::new(busybox()?, ["sh", "-c", script]).config();
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| !joins.contains(&namespace["type"].as_str().unwrap_or_default()));
            for kind in joins {
                let file = if *kind == "network" { "net" } else { kind };
                namespaces.push(json!({ "type": kind, "path": format!("/proc/@pid@/ns/{file}") }));
            }
        }
        write_config(&bundles.join(name), &config)
    };
    write("a", "nc -l -p 7007 > /heard; exec sleep 1001", &[])?;
    let tell =
        "for i in $(seq 500); do echo hello | nc -w 1 127.0.0.1 7007 && exec sleep 1002; sleep 0.02; done";
    write("b", tell, &["network"])?;
    write("c", "exec sleep 1003", &["network", "pid", "ipc"])?;
    let script = format!(
        "rt() {{ {} --root {} \"$@\"; }}; id={}; bundle={}; dir={}
         trap 'for part in c b a d; do rt delete -f $id-$part; done' EXIT
         until_() {{ for i in $(seq 500); do \"$@\" && return 0; sleep 0.02; done; echo \"not in time: $*\"; }}
         make() {{
           sed -i \"s,@pid@,$(cat $dir/a),\" $bundle/$1/config.json
           rt create --bundle $bundle/$1 --pid-file $dir/$1 $id-$2 </dev/null >/dev/null 2>&1 && rt start $id-$2
         }}
         echo 0 >$dir/a; make a a || exit 1; make b b || exit 2; make c c || exit 3
         until_ rt exec $id-a grep -q hello /heard
         rt exec $id-c ps | grep -c 'sleep 100[13]$'; rt exec $id-b ps | grep -c 'sleep 100[13]$'
         rt kill $id-b KILL; rt exec $id-a echo lives
         sed -i \"s,/proc/[0-9]*/,/proc/$$/,\" $bundle/c/config.json
         rt create --bundle $bundle/c $id-d 2>&1 </dev/null | grep -o 'pid namespace of the host cannot be joined'",
        trial.programs().casemate.display(),
        trial.path().join("state").display(),
        trial.id(),
        bundles.display(),
        trial.path().join("scratch").display(),
    );
    let out = trial.host(["bash", "-c", &script]).run()?.expect(0)?;
    out.expect_out("2\n0\nlives\npid namespace of the host cannot be joined\n")?;
    trial.finish()
}
