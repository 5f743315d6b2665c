//! Casemate for somebody without rights on the host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::Result;
use xtask::bundle::Bundle;
use xtask::shell;
use xtask::trial::{Outcome, Trial};

use crate::common::busybox;

const BECOME: [&str; 5] = ["--reuid", "1000", "--regid", "1000", "--clear-groups"];

/// Runs a script as user 1000, who owns the trial's directory and runs a copy of the binary in it. `rt` is the runtime with
/// the trial's state root; `$bundle`, `$id` and `$dir` are set.
fn as_nobody_special(trial: &Trial, text: &str) -> Result<Option<Outcome>> {
    if !shell::has("setpriv") || !rustix::process::geteuid().is_root() {
        println!("skipped: it takes root, and setpriv, to become somebody else");
        return Ok(None);
    }
    let mut probe = std::process::Command::new("setpriv");
    probe.args(BECOME).args(["unshare", "-Ur", "true"]);
    if shell::output(&mut probe).is_err() {
        println!("skipped: this host lets no ordinary user make a user namespace");
        return Ok(None);
    }
    let binary = trial.path().join("scratch/casemate");
    fs::copy(&trial.programs().casemate, &binary)?;
    fs::set_permissions(&binary, PermissionsExt::from_mode(0o755))?;
    shell::run(std::process::Command::new("chown").args(["-R", "1000:1000"]).arg(trial.path()))?;
    let show = |name: &str| trial.path().join(name).display().to_string();
    let text = format!(
        "dir={}; rt() {{ $dir/casemate --root {} \"$@\"; }}; bundle={}; id={}; {text}",
        show("scratch"),
        show("state"),
        show("bundle"),
        trial.id()
    );
    trial.host([&["setpriv"], &BECOME[..], &["bash", "-c", &text]].concat()).run().map(Some)
}

/// A bundle whose root filesystem user 1000 owns.
fn bundle(trial: &Trial, args: [&str; 3]) -> Result<()> {
    let root: PathBuf = trial.path().join("rootfs");
    shell::run(std::process::Command::new("cp").arg("-r").arg(busybox()?).arg(&root))?;
    Bundle::new(root, args).write(&trial.path().join("bundle"))
}

#[test]
fn a_command_of_an_ordinary_user() -> Result<()> {
    let trial = Trial::new("rootless-do")?;
    let script = "cd /; rt do -- sh -c 'id -u; touch /tmp/x && stat -c %u /tmp/x; touch /x' 2>&1";
    if let Some(out) = as_nobody_special(&trial, script)? {
        out.expect(1)?.expect_out("1000\n1000\ntouch: cannot touch '/x': Permission denied\n")?;
    }
    trial.finish()
}

#[test]
fn a_container_of_an_ordinary_user() -> Result<()> {
    let trial = Trial::new("rootless-run")?;
    bundle(&trial, ["sh", "-c", "id -u; echo x >/x; stat -c %u:%g /x /bin/busybox"])?;
    let script = "rt --writes=keep run --bundle $bundle $id; stat -c %u $bundle/../rootfs/x";
    if let Some(out) = as_nobody_special(&trial, script)? {
        out.expect(0)?.expect_out("0\n0:0\n0:0\n1000\n")?;
    }
    trial.finish()
}

/// Made, started, executed in, killed and deleted; and once more by the root of a user namespace.
#[test]
fn a_life_without_rights() -> Result<()> {
    let trial = Trial::new("rootless-steps")?;
    bundle(&trial, ["sh", "-c", "echo up; exec sleep 1000"])?;
    let script = "
        life() {
            rt create --bundle $bundle $id </dev/null >$dir/out 2>&1 || { cat $dir/out; return 1; }
            rt start $id && rt exec $id id -u && rt kill $id KILL
            for i in $(seq 500); do rt delete $id 2>/dev/null && break; sleep 0.02; done
            rt state $id 2>&1; cat $dir/out
        }
        life; export -f rt life; export dir bundle id; unshare -Ur bash -c life";
    if let Some(out) = as_nobody_special(&trial, script)? {
        let one = "0\ncasemate: container does not exist\nup\n";
        out.expect(0)?.expect_out(&format!("{one}{one}"))?;
    }
    trial.finish()
}
