//! Containers that are made, started and deleted by commands of their own, as engines do it.

use anyhow::Result;
use serde_json::json;
use xtask::bundle::{Bundle, write_config};
use xtask::trial::{Outcome, Trial};

use crate::common::busybox;

/// Runs a script in which `rt` is the runtime with the trial's state root, and `$id`, `$bundle`, `$dir` are set.
fn script(trial: &Trial, bundle: &Bundle, text: &str) -> Result<Outcome> {
    let dir = trial.path().join("bundle");
    bundle.write(&dir)?;
    script_in(trial, text)
}

pub fn script_in(trial: &Trial, text: &str) -> Result<Outcome> {
    let text = format!(
        "rt='{} --root {}'; rt() {{ $rt \"$@\"; }}; id={}; bundle={}; dir={}\n\
         gone() {{ for i in $(seq 500); do kill -0 $1 2>/dev/null || return 0; sleep 0.01; done; echo $1 lives; }}\n{text}",
        trial.programs().casemate.display(),
        trial.path().join("state").display(),
        trial.id(),
        trial.path().join("bundle").display(),
        trial.path().join("scratch").display(),
    );
    trial.host(["bash", "-c", &text]).run()
}

#[test]
fn a_life_in_steps() -> Result<()> {
    let trial = Trial::new("life-steps")?;
    let bundle = Bundle::new(busybox()?, ["sh", "-c", "echo started; cat; exit 5"]);
    let out = script(
        &trial,
        &bundle,
        "echo from-create | rt create --bundle $bundle --pid-file $dir/pid $id >$dir/out || exit 1
         pid=$(cat $dir/pid); rt state $id | grep -q '\"status\": \"created\"' || echo not created
         [ -s $dir/out ] && echo ran before its start
         rt start $id || exit 2
         gone $pid; cat $dir/out
         rt state $id | grep -q '\"status\": \"stopped\"' || echo not stopped
         rt delete $id; rt delete $id 2>&1; rt delete -f $id && echo idempotent",
    )?
    .expect(0)?;
    out.expect_out("started\nfrom-create\ncasemate: container does not exist\nidempotent\n")?;
    trial.finish()
}

#[test]
fn init_ends_as_the_program_does() -> Result<()> {
    // The supervisor of a test reaps what is left to it, as a shim does; python stands for one here.
    let trial = Trial::new("life-status")?;
    let program = "
import os, subprocess, sys, ctypes
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
rt, root, bundle, pidfile, name = sys.argv[1:]
for code, want in [('exit 0', 0), ('exit 42', 42), ('kill -KILL $$', None), ('exec kill-self', None)]:
    subprocess.run([rt, '--root', root, 'create', '--bundle', bundle, '--pid-file', pidfile, name], check=True,
        stdin=subprocess.DEVNULL)
    pid = int(open(pidfile).read())
    if want is None:
        subprocess.run([rt, '--root', root, 'start', name], check=True)
        subprocess.run([rt, '--root', root, 'kill', name, 'KILL'], check=True)
        want = -9
    else:
        subprocess.run([rt, '--root', root, 'exec', name, 'sh', '-c', 'echo %s > /dev/shm/code' % code], check=True)
        subprocess.run([rt, '--root', root, 'start', name], check=True)
    _, status = os.waitpid(pid, 0)
    got = os.waitstatus_to_exitcode(status)
    print(code, 'ok' if got == want else (got, want))
    subprocess.run([rt, '--root', root, 'delete', name], check=True)
";
    let bundle =
        Bundle::new(busybox()?, ["sh", "-c", "test -f /dev/shm/code || sleep 1000; . /dev/shm/code"]);
    let dir = trial.path().join("bundle");
    bundle.write(&dir)?;
    let words = [
        "python3".into(),
        "-c".into(),
        program.into(),
        trial.programs().casemate.clone().into_os_string(),
        trial.path().join("state").into_os_string(),
        dir.into_os_string(),
        trial.path().join("scratch/pid").into_os_string(),
        trial.id().into(),
    ];
    let out = trial.host(words).run()?.expect(0)?;
    out.expect_out("exit 0 ok\nexit 42 ok\nkill -KILL $$ ok\nexec kill-self ok\n")?;
    trial.finish()
}

#[test]
fn execution() -> Result<()> {
    let trial = Trial::new("life-exec")?;
    let bundle = Bundle::new(busybox()?, ["sleep", "1000"]).env("FROM", "bundle");
    let out = script(
        &trial,
        &bundle,
        "rt create --bundle $bundle $id && rt start $id || exit 1
         rt exec $id sh -c 'exit 7'; echo code $?
         rt exec $id sh -c 'kill -TERM $$'; echo code $?
         echo input | rt exec $id sh -c 'cat; echo err >&2' 2>$dir/err; cat $dir/err
         rt exec -e A=b $id sh -c 'echo $A $FROM'
         rt exec -u 3:4 --cwd /tmp $id sh -c 'id -u; id -g; pwd'
         rt exec -d --pid-file $dir/pid $id sh -c 'echo $$ > /dev/shm/me; sleep 1000' || exit 2
         for i in $(seq 100); do rt exec $id test -s /dev/shm/me && break; done
         inside=$(rt exec $id cat /dev/shm/me); rt ps $id | grep -c 'sleep 1000'
         kill -TERM $(cat $dir/pid); gone $(cat $dir/pid)
         rt exec $id kill -0 $inside 2>/dev/null && echo still there
         $rt exec $id sh -c 'sleep 1000' & sleep 0.5; kill -KILL $!; wait $! 2>/dev/null; sleep 0.3
         rt ps $id | grep -c sleep
         rt delete -f $id",
    )?
    .expect(0)?;
    out.expect_out("code 7\ncode 143\ninput\nerr\nb bundle\n3\n4\n/tmp\n2\n1\n")?;
    trial.finish()
}

#[test]
fn signals_and_pauses() -> Result<()> {
    let trial = Trial::new("life-signal")?;
    let bundle = Bundle::new(
        busybox()?,
        [
            "sh",
            "-c",
            "trap 'echo usr1' USR1; trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.02; done",
        ],
    );
    let out = script(
        &trial,
        &bundle,
        "rt create --bundle $bundle --pid-file $dir/pid $id >$dir/out </dev/null && rt start $id || exit 1
         says() { for i in $(seq 500); do grep -q $1 $dir/out && return; sleep 0.01; done; echo no $1; }
         says up; rt kill $id USR1; says usr1
         for i in 1 2 3; do
           rt pause $id || exit 2; rt state $id | grep -q paused || echo not paused; sleep 0.05
           rt resume $id || exit 3; sleep 0.1
         done
         rt pause $id; rt kill $id TERM; sleep 0.2; grep bye $dir/out; rt resume $id
         gone $(cat $dir/pid); says bye; rt kill $id KILL 2>&1; rt kill --all $id KILL
         rt delete $id
         rt create --bundle $bundle $id </dev/null >/dev/null && rt start $id && rt pause $id && rt delete -f $id",
    )?
    .expect(0)?;
    out.expect_out("casemate: container not running\n")?;
    trial.finish()
}

#[test]
fn a_killed_init_takes_all_along() -> Result<()> {
    let trial = Trial::new("life-killed")?;
    let out = script(
        &trial,
        &Bundle::new(busybox()?, ["sleep", "1000"]),
        "for victim in init sandbox gofer; do
           rt create --bundle $bundle --pid-file $dir/pid $id </dev/null >/dev/null && rt start $id || exit 1
           pid=$(sed \"s/.*\\\"$victim\\\":{\\\"pid\\\":\\([0-9]*\\).*/\\1/\" $(dirname $bundle)/state/$id/state.json)
           kill -KILL $pid; gone $(cat $dir/pid)
           rt state $id | grep -q stopped || echo not stopped
           rt delete $id || exit 2
         done; echo end",
    )?
    .expect(0)?;
    out.expect_out("end\n")?;
    trial.finish()
}

#[test]
fn hooks() -> Result<()> {
    let trial = Trial::new("life-hooks")?;
    let note = trial.path().join("scratch/note");
    let hook = |name: &str| {
        let text = format!("cat > {0}-{name}; echo {name} >> {0}", note.display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/usr/bin:/bin"] }])
    };
    let mut config = Bundle::new(busybox()?, ["sh", "-c", "cat /dev/shm/hooked"]).config();
    config["hooks"] = json!({
        "prestart": hook("prestart"),
        "createRuntime": hook("createRuntime"),
        "createContainer": hook("createContainer"),
        "startContainer": [{
            "path": "/bin/sh",
            "args": ["sh", "-c", "grep -o '\"status\":\"created\"' > /dev/shm/hooked"],
            "env": ["PATH=/bin"]
        }],
        "poststart": hook("poststart"),
        "poststop": hook("poststop"),
    });
    write_config(&trial.path().join("bundle"), &config)?;
    let out = script_in(
        &trial,
        "rt create --bundle $bundle --pid-file $dir/pid $id </dev/null >$dir/out || exit 1
         cat $dir/note; rt start $id; gone $(cat $dir/pid); cat $dir/out; rt delete $id; tail -n +4 $dir/note
         grep -o '\"status\":\"[a-z]*\"' $dir/note-createRuntime $dir/note-poststop | sed 's/.*://'
         rm $dir/note; rt run --bundle $bundle $id </dev/null; cat $dir/note",
    )?
    .expect(0)?;
    let created = "prestart\ncreateRuntime\ncreateContainer\n";
    let hooked = "\"status\":\"created\"\n";
    out.expect_out(&format!(
        "{created}{hooked}poststart\npoststop\n\"creating\"\n\"stopped\"\n{hooked}{created}poststart\npoststop\n"
    ))?;

    config["hooks"]["createRuntime"] =
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo no such luck >&2; exit 3"] }]);
    write_config(&trial.path().join("bundle"), &config)?;
    let out = script_in(&trial, "rt create --bundle $bundle $id </dev/null; rt list -q")?.expect(0)?;
    out.expect_out("")?.expect_err("no such luck")?;
    trial.finish()
}

#[test]
fn a_paused_container_is_not_started() -> Result<()> {
    let trial = Trial::new("life-start-paused")?;
    Bundle::new(busybox()?, ["sleep", "1000"]).write(&trial.path().join("bundle"))?;
    let out = script_in(
        &trial,
        "rt create --bundle $bundle $id </dev/null >/dev/null 2>&1; rt pause $id; rt start $id 2>&1; echo $?
             rt resume $id; rt start $id; rt state $id | grep -o running; rt delete -f $id
         ${rt%% *} --root / list 2>&1",
    )?;
    out.expect_out(
        "casemate: cannot start a container in the paused state\n1\nrunning\n\
         casemate: --root must not be the root directory\n",
    )?;
    trial.finish()
}

/// Of commands that do the same at the same time one does it, with its hooks, and the others say why not.
#[test]
fn at_the_same_time() -> Result<()> {
    let trial = Trial::new("life-together")?;
    let note = trial.path().join("scratch/note");
    let hook = |name: &str| {
        let text = format!("echo {name} >> {}; sleep 0.2", note.display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/usr/bin:/bin"] }])
    };
    let mut config = Bundle::new(busybox()?, ["sleep", "1000"]).config();
    config["hooks"] = json!({ "createRuntime": hook("created"), "poststart": hook("started"), "poststop": hook("stopped") });
    write_config(&trial.path().join("bundle"), &config)?;
    let out = script_in(
        &trial,
        "many() { for i in 1 2 3 4; do (\"$@\" </dev/null >>$dir/said 2>&1; echo $? >>$dir/codes) & done; wait
             echo $1 $2 $(sort $dir/codes | uniq -c) $(grep . $dir/said | sort -u); rm $dir/codes $dir/said; }
         many rt create --bundle $bundle $id
         many rt start $id
         many rt delete -f $id
         rt list -q; cat $dir/note",
    )?
    .expect(0)?;
    out.expect_out(
        "rt create 1 0 3 1 casemate: casemate create failed: container with given ID already exists\n\
         rt start 1 0 3 1 casemate: cannot start an already running container\n\
         rt delete 4 0\ncreated\nstarted\nstopped\n",
    )?;
    // A state that nobody can read hides no other container, and can be removed.
    let out = script_in(
        &trial,
        "mkdir -p ${rt##* }/broken; echo '{' >${rt##* }/broken/state.json
         rt list -q 2>$dir/err; grep -o '^load container broken' $dir/err
         rt delete broken 2>/dev/null || echo refused; rt delete -f broken && rt list -q",
    )?
    .expect(0)?;
    out.expect_out("load container broken\nrefused\n")?;
    trial.finish()
}

#[test]
fn limits_hold() -> Result<()> {
    let trial = Trial::new("life-limits")?;
    let bundle = Bundle::new(busybox()?, ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
    let mut config = bundle.config();
    config["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20, "swap": 64 << 20 } });
    config["linux"]["cgroupsPath"] = json!(format!("/{}", trial.id()));
    write_config(&trial.path().join("bundle"), &config)?;
    let out = script_in(&trial, "rt run --bundle $bundle $id </dev/null; echo code $?")?.expect(0)?;
    out.expect_out("code 137\n")?;
    let mut config =
        Bundle::new(busybox()?, ["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done"]).config();
    config["linux"]["resources"] = json!({ "pids": { "limit": 5 } });
    write_config(&trial.path().join("bundle"), &config)?;
    script_in(&trial, "rt run --bundle $bundle $id </dev/null; echo code $?")?.expect_err("can't fork")?;
    trial.finish()
}

#[test]
fn descriptors_are_passed_on() -> Result<()> {
    let trial = Trial::new("life-fds")?;
    let out = script(
        &trial,
        &Bundle::new(busybox()?, ["sh", "-c", "cat <&3; echo four >&4"]),
        "echo three > $dir/three
         rt create --preserve-fds 2 --bundle $bundle --pid-file $dir/pid $id 3<$dir/three 4>$dir/four </dev/null >$dir/out || exit 1
         rt start $id; gone $(cat $dir/pid); cat $dir/out $dir/four; rt delete $id
         rt create --preserve-fds 2 --bundle $bundle $id 3<$dir/three </dev/null",
    )?;
    out.expect_out("three\nfour\n")?.expect(1)?.expect_err("preserved-fd 4")?;
    trial.finish()
}
