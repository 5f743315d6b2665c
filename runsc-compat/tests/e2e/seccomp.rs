//! Profiles of system calls (`linux.seccomp`): what runc and libseccomp make of them on the host's kernel, the sandbox does.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use xtask::bundle::{Bundle, write_config};
use xtask::shell;
use xtask::trial::Trial;

use crate::common::debian;

/// Makes calls and says what each returned; the names are those of the profile.
const PROGRAM: &str = r"
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
def call(name, nr, *args):
    ctypes.set_errno(0)
    got = libc.syscall(ctypes.c_long(nr), *[ctypes.c_ulong(a) for a in args])
    error = ctypes.get_errno()
    print(name, 'ok' if got >= 0 else error)
print([line.split() for line in open('/proc/self/status') if line.startswith(('Seccomp:', 'NoNewPrivs:'))])
call('getppid', 110)
call('getpgrp', 111)
call('getpgid 0', 121, 0)
call('getpgid 1', 121, 1)
call('getpgid big', 121, 1 << 32)
call('personality query', 135, 0xffffffff)
call('umask 0o22', 95, 0o22)
call('umask 0o77', 95, 0o77)
call('sched_get_priority_max 0', 146, 0)
call('sched_get_priority_max 2', 146, 2)
call('sched_get_priority_min 1', 147, 1)
call('newest', 600)
pid = os.fork()
if pid == 0:
    call('killed', 161, 0)
    os._exit(3)
print('status', os.waitpid(pid, 0)[1])
signal.signal(signal.SIGSYS, lambda *_: print('trapped'))
libc.syscall(ctypes.c_long(162))
print('end')
";

fn profile() -> Value {
    let when = |index: u32, value: u64, op: &str| json!({"index": index, "value": value, "op": op});
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            {"names": ["getppid", "no_such_call"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["getpgrp"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
            {"names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 11,
             "args": [when(0, 0, "SCMP_CMP_GT")]},
            {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13,
             "args": [when(0, 0xffff_ffff, "SCMP_CMP_EQ")]},
            {"names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 14,
             "args": [{"index": 0, "value": 0o70, "valueTwo": 0o70, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["sched_get_priority_max", "sched_get_priority_min"], "action": "SCMP_ACT_ERRNO",
             "errnoRet": 15, "args": [when(0, 0, "SCMP_CMP_NE"), when(0, 2, "SCMP_CMP_NE")]},
            {"names": ["chroot"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["sync"], "action": "SCMP_ACT_TRAP"}
        ]
    })
}

/// A profile that allows what is named, as engines write them: calls that are newer fail with ENOSYS.
fn allow_list() -> Value {
    let all: Vec<_> = (0..400)
        .filter(|nr| ![110, 111, 161, 162].contains(nr))
        .map(hostsys::syscall_names::name)
        .filter(|name| *name != "unknown")
        .collect();
    json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": all, "action": "SCMP_ACT_ALLOW"}]
    })
}

#[test]
fn profiles_are_kept_as_runc_keeps_them() -> Result<()> {
    let runc = shell::find("runc");
    for (index, profile) in [profile(), allow_list()].into_iter().enumerate() {
        let trial = Trial::new("seccomp")?;
        let mut config = Bundle::new(debian()?, ["python3", "-c", PROGRAM]).config();
        config["linux"]["seccomp"] = profile;
        let dir = trial.path().join("bundle");
        write_config(&dir, &config)?;
        let args = |dir: &std::path::Path| ["run".into(), "--bundle".into(), dir.into(), trial.id().into()];
        let inside = trial.casemate::<std::ffi::OsString>(args(&dir)).run()?.expect(0)?;
        ensure!(inside.out().ends_with("end\n") && inside.out().contains("getppid 1\n"), "{inside}");
        if index == 1 {
            ensure!(inside.out().contains("newest 38\n"), "{inside}");
        }
        if let Some(runc) = &runc {
            let root = trial.path().join("runc");
            let mut words = vec![runc.clone().into_os_string(), "--root".into(), root.into_os_string()];
            words.extend(args(&dir));
            let outside = trial.host(words).run()?.expect(0)?;
            ensure!(outside.out() == inside.out(), "runc: {outside}\ncasemate: {inside}");
        }
        trial.finish()?;
    }
    Ok(())
}

/// Processes that are executed later are under the profile, too.
#[test]
fn a_profile_holds_for_executed_processes() -> Result<()> {
    let trial = Trial::new("seccomp-exec")?;
    let mut config = Bundle::new(debian()?, ["sleep", "1000"]).config();
    config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{"names": ["chdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]
    });
    let dir = trial.path().join("bundle");
    write_config(&dir, &config)?;
    let rt = trial.programs().casemate.display().to_string();
    let (root, id) = (trial.path().join("state").display().to_string(), trial.id().to_owned());
    let script = format!(
        "rt() {{ {rt} --root {root} \"$@\"; }}
         rt run -d --bundle {} {id} </dev/null >/dev/null || exit 1
         rt exec {id} bash -c 'cd /usr 2>&1; grep Seccomp: /proc/self/status'
         rt delete -f {id}",
        dir.display()
    );
    let out = trial.host(["bash", "-c", &script]).run()?.expect(0)?;
    ensure!(out.out().contains("Operation not permitted") && out.out().contains("Seccomp:\t2"), "{out}");
    trial.finish()
}
