//! Root filesystems and configurations that try to get at the host.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use xtask::bundle::Bundle;
use xtask::shell;
use xtask::trial::Trial;

use crate::common::{busybox, debian};

/// A busybox root filesystem of the trial's own, to be spoiled.
fn own_root(trial: &Trial) -> Result<PathBuf> {
    let root = trial.path().join("root");
    shell::output(Command::new("cp").arg("-a").arg(busybox()?).arg(&root))?;
    Ok(root)
}

fn listing(dir: &Path) -> Result<String> {
    shell::output(Command::new("find").arg(dir).args(["-printf", "%P %y %m %U %G %l %s %T@ %C@\\n"]))
}

/// Mount points that are symbolic links: what is mounted there lands inside, or the run fails; never on the host.
#[test]
fn mount_points_that_are_links() -> Result<()> {
    for target in ["absolute", "relative"] {
        let trial = Trial::new("hostile-links")?;
        let (root, victim) = (own_root(&trial)?, trial.path().join("victim"));
        fs::create_dir_all(victim.join("pts"))?;
        fs::write(victim.join("null"), "host\n")?;
        let link = if target == "absolute" { victim.clone() } else { PathBuf::from("../victim") };
        for point in ["dev", "proc", "sys", "data"] {
            let path = root.join(point);
            let _ = fs::remove_dir(&path);
            symlink(&link, path)?;
        }
        let before = listing(&victim)?;
        let script = "echo x >/dev/null; cat /proc/1/comm /proc/self/status >/dev/null; echo y >/data/new; ls /dev; exit 3";
        let bundle =
            Bundle::new(&root, ["/bin/sh", "-c", script]).bind(&trial.path().join("tmp"), "/data", "ro");
        let out = trial.run(&bundle)?.run()?;
        ensure!(out.code() == 3 || !out.err().is_empty(), "it must run or say why not: {out}");
        ensure!(listing(&victim)? == before, "the host's {} has changed: {out}", victim.display());
        ensure!(fs::read_to_string(victim.join("null"))? == "host\n");
        trial.finish()?;
    }
    Ok(())
}

/// Device nodes of the image are no way to the host's devices.
#[test]
fn device_nodes_of_the_image() -> Result<()> {
    let trial = Trial::new("hostile-nodes")?;
    let root = own_root(&trial)?;
    fs::create_dir(root.join("nodes"))?;
    // The disk of the first block device, and the kernel's memory.
    for (name, kind, major, minor) in
        [("disk", "b", "254", "0"), ("mem", "c", "1", "1"), ("console", "c", "5", "1")]
    {
        shell::output(Command::new("mknod").arg(root.join("nodes").join(name)).args([kind, major, minor]))?;
    }
    shell::output(Command::new("mkfifo").arg(root.join("nodes/fifo")))?;
    let script = "cd /nodes; for n in disk mem console; do if dd if=$n of=/tmp/x bs=16 count=1 2>/dev/null; then echo read $n; fi; \
                  done; (timeout 2 cat fifo; echo $?) 2>/dev/null; echo end";
    let out = trial.run(&Bundle::new(&root, ["sh", "-c", script]))?.run()?.expect(0)?;
    ensure!(!out.out().contains("read ") && out.out().ends_with("end\n"), "{out}");
    trial.finish()
}

/// The program that serves the sandbox is not in it, under no name.
#[test]
fn overwriting_the_running_program() -> Result<()> {
    let trial = Trial::new("hostile-exe")?;
    let casemate = trial.programs().casemate.clone();
    let sum = |path: &Path| shell::output(Command::new("sha256sum").arg(path));
    let before = sum(&casemate)?;
    // What shows comes first: a kernel that lets the program be overwritten ends this shell.
    let script = r#"
        for p in /proc/[0-9]*; do readlink $p/exe; done | grep -c casemate
        for p in /proc/[0-9]*; do cat $p/maps; done 2>/dev/null | grep -c casemate
        printf '#!/proc/self/exe\n' >/tmp/s; chmod +x /tmp/s; /tmp/s; echo tried
        python3 -c 'import os
for p in (1, os.getpid()):
  for flags in (os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
    try:
      fd = os.open(f"/proc/{p}/exe", os.O_PATH)
      os.write(os.open(f"/proc/self/fd/{fd}", flags), b"overwritten")
    except OSError: pass'
        (echo overwritten >/proc/self/exe) 2>/dev/null; (echo overwritten >/proc/1/exe) 2>/dev/null; exit 0
    "#;
    let out = trial.run(&Bundle::bash(debian()?, script))?.run()?;
    ensure!(
        out.out().starts_with("0\n0\n") && out.out().contains("tried"),
        "its own program shows inside: {out}"
    );
    ensure!(sum(&casemate)? == before, "the host's program has changed: {out}");
    trial.finish()
}

/// A working directory behind a descriptor that the caller had open must not lead to the host.
#[test]
fn a_working_directory_behind_an_inherited_descriptor() -> Result<()> {
    let trial = Trial::new("hostile-cwd")?;
    fs::write(trial.path().join("secret"), "secret\n")?;
    for number in [3, 7, 8, 9] {
        let cwd = format!("/proc/self/fd/{number}");
        let bundle =
            Bundle::new(debian()?, ["bash", "-c", "pwd; ls; cat secret ../secret; exit 0"]).cwd(&cwd);
        let dir = trial.path().display().to_string();
        let script = format!("exec 7<{dir} 8<{dir} 9</; exec \"$@\"");
        let run = trial.run_as(&bundle, &format!("{}-{number}", trial.id()))?;
        let out = run.under(["bash", "-c", &script, "bash"]).run()?;
        ensure!(out.code() != 0, "such a directory must be refused: {out}");
        ensure!(out.err().contains(&cwd), "the cause must name the directory: {out}");
        ensure!(!out.out().contains("secret"), "{out}");
    }
    trial.finish()
}

#[test]
fn inherited_descriptors_stay_outside() -> Result<()> {
    let trial = Trial::new("hostile-fds")?;
    let secret = trial.path().join("secret");
    fs::write(&secret, "secret\n")?;
    let script = "for f in /proc/*/fd/*; do readlink $f; [ -p $f ] || timeout 5 head -c 100 <$f; done 2>/dev/null | grep -v -e pipe: -e /dev/null -e proc | sort -u; \
                  ls /proc/self/fd | wc -l; for n in 5 6 7; do cat <&$n; done 2>/dev/null; echo end";
    let front = format!("exec 5<{0} 6<>{0} 7</; exec \"$@\"", secret.display());
    let run = trial.run(&Bundle::bash(debian()?, script))?;
    let out = run.under(["bash", "-c", &front, "bash"]).run()?.expect(0)?;
    ensure!(!out.out().contains("secret") && out.out().ends_with("4\nend\n"), "{out}");
    trial.finish()
}

/// What shows of the host inside is none of its secrets.
#[test]
fn the_hosts_own_tree_is_not_seen() -> Result<()> {
    let trial = Trial::new("hostile-view")?;
    let script = "hostname; cat /proc/mounts; cat /proc/self/mountinfo; cat /proc/cmdline; env; cat /proc/1/environ; ps -ef";
    let out =
        trial.run(&Bundle::bash(debian()?, script))?.env("CASEMATE_SECRET", "sesame").run()?.expect(0)?;
    let host = trial.path().display().to_string();
    let cache = debian()?.display().to_string();
    for secret in ["sesame", "casemate-sentry", host.as_str(), cache.as_str()] {
        ensure!(!out.out().contains(secret), "{secret:?} shows inside: {out}");
    }
    trial.finish()
}

#[test]
fn a_fork_bomb_is_only_the_sandboxs_trouble() -> Result<()> {
    let trial = Trial::new("hostile-forks")?;
    // The first process does not fork any more, so that it can end while nobody else can fork.
    let program = "import subprocess, time\nbomb = 'f() { f | f & }; f 2>/dev/null'\n\
                   subprocess.Popen(['bash', '-c', bomb])\ntime.sleep(2)\nraise SystemExit(8)";
    let mut config = Bundle::new(debian()?, ["python3", "-c", program]).user(1234, 1234).config();
    config["process"]["rlimits"] = serde_json::json!([{ "type": "RLIMIT_NPROC", "hard": 300, "soft": 300 }]);
    let dir = trial.path().join("bundle/bomb");
    xtask::bundle::write_config(&dir, &config)?;
    let args = ["run".into(), "--bundle".into(), dir.into_os_string(), trial.id().into()];
    trial.casemate(args).run()?.expect(8)?;
    trial.finish()
}
