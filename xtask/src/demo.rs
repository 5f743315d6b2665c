//! The main job, shown: unmodified Debian programs in a Debian root filesystem, sandboxed.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Command;

use anyhow::{Result, bail};

use crate::bundle::Bundle;
use crate::place::TempDir;
use crate::{programs, rootfs};

/// Each step is a title and a shell command; the sandbox stays the same from the first to the last.
const STEPS: &[(&str, &str)] = &[
    ("the kernel that answers is not the host's", "uname -a; cat /proc/version"),
    (
        "a shell with pipelines and jobs",
        "for i in $(seq 5); do echo $((i * i)) & wait; done | sort -n | paste -sd+ | tee /dev/stderr | python3 -c 'print(eval(input()))'",
    ),
    (
        "python3",
        "python3 -c 'import threading, subprocess, sys; t = [threading.Thread(target=lambda: sum(range(100000))) for _ in range(8)]; [x.start() for x in t]; [x.join() for x in t]; print(sys.version); print(subprocess.check_output([\"echo\", \"from a child\"], text=True), end=\"\")'",
    ),
    ("perl", "perl -e 'my %h = map { $_ => $_ ** 2 } 1 .. 1000; print scalar(keys %h), \" squares\\n\"'"),
    (
        "coreutils",
        "ls -l /usr/bin | wc -l; date -u +%Y; stat -c '%n %a' /etc/passwd; head -c 1M /dev/urandom | sha256sum | wc -c",
    ),
    (
        "tar, there and back",
        "tar -cf /tmp/etc.tar /etc 2>/dev/null; mkdir /tmp/x; tar -xf /tmp/etc.tar -C /tmp/x; diff -r --no-dereference /etc /tmp/x/etc && echo same",
    ),
    ("grep -r", "grep -r root /etc 2>/dev/null | wc -l"),
    ("find /", "find / -xdev | wc -l"),
    ("dpkg -l", "dpkg -l | tail -3"),
    ("ps", "ps -eo pid,ppid,user,stat,comm"),
    (
        "a C program by make and gcc",
        "mkdir /tmp/c; cd /tmp/c; printf '#include <stdio.h>\\nint main(void){puts(\"hello from C\");return 0;}\\n' > hello.c; make -s hello && ./hello",
    ),
    (
        "git",
        "cd /tmp/c; git init -q . && git add hello.c && git -c user.name=n -c user.email=e@example.org commit -qm first && git log --oneline | wc -l",
    ),
    (
        "sort of a 100 MB file",
        "cd /tmp; head -c 75000000 /dev/urandom | base64 -w 76 > big; ls -lh big; sort big > sorted; sort -c sorted && echo sorted",
    ),
];

/// The steps as one bash script, which names each, goes on after a failure, and ends with 1 if there was one.
pub fn script() -> String {
    let mut script = String::from("set -o pipefail\nfailed=0\n");
    for (title, step) in STEPS {
        // Each step is a child shell: one that changes its directory or fails does not disturb the next.
        let (title, step) = (quote(title), quote(step));
        let _ = writeln!(
            script,
            "echo; echo \"== \"{title}; SECONDS=0; bash -o pipefail -c {step}; code=$?; \
             [ $code = 0 ] || {{ failed=$((failed + 1)); echo \"FAILED with exit code $code\"; }}; \
             [ $SECONDS -lt 2 ] || echo \"($SECONDS s)\""
        );
    }
    script.push_str("echo; echo \"$failed of the steps failed\"; exit $((failed > 0))\n");
    script
}

/// Builds what is needed and runs the steps.
pub fn run() -> Result<()> {
    rootfs::need_root("building a Debian root filesystem")?;
    programs::build(true)?;
    let rootfs = rootfs::debian()?;
    let dir = TempDir::new("demo")?;
    Bundle::bash(rootfs, &script()).write(dir.path())?;
    let casemate = programs::output_dir(true).join("casemate");
    println!("\n$ {} run --bundle {} demo", casemate.display(), dir.path().display());
    std::io::stdout().flush()?;
    let status = Command::new(&casemate)
        .arg("--root")
        .arg(dir.path().join("state"))
        .args(["run", "--bundle"])
        .arg(dir.path())
        .arg("demo")
        .status()?;
    if !status.success() {
        bail!("the sandboxed job ended with {status}");
    }
    println!("\nAll of this ran in the sandbox; the root filesystem in the cache is unchanged.");
    Ok(())
}

/// One word for a POSIX shell.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
