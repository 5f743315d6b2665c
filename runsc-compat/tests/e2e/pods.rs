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
