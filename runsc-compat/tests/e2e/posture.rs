//! What the processes of a live sandbox may do on the host, read from outside.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use xtask::bundle::Bundle;
use xtask::processes::Process;
use xtask::trial::{Running, Trial};

use crate::common::{Parts, debian, parts};

/// A sandbox that has opened, mapped and forked, and now waits for a line of input.
fn busy(trial: &Trial) -> Result<Running> {
    let script = "exec 3</etc/passwd 4>/tmp/new; cat /usr/share/dict/* 2>/dev/null | wc -l >/tmp/n; \
                  python3 -c 'import threading, time
[threading.Thread(target=time.sleep, args=(1000,), daemon=True).start() for _ in range(3)]
print(\"ready\", flush=True); import sys; sys.stdin.readline()'";
    let bundle = Bundle::bash(debian()?, script).bind(trial.path(), "/data", "rw");
    let mut running = trial.run(&bundle)?.piped_stdin().start()?;
    running.until_says("ready")?;
    Ok(running)
}

fn with_parts(name: &str, check: impl FnOnce(&Parts) -> Result<()>) -> Result<()> {
    let trial = Trial::new(name)?;
    let mut running = busy(&trial)?;
    let parts = parts(&mut running)?;
    let checked = check(&parts);
    running.wait()?.expect(0)?;
    checked?;
    trial.finish()
}

/// The status of each thread of a process.
fn threads(process: &Process) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(process.proc("task"))? {
        // A thread may end between the listing and the look.
        if let Ok(text) = fs::read_to_string(entry?.path().join("status")) {
            all.push(text);
        }
    }
    ensure!(!all.is_empty(), "process {} has no thread", process.pid);
    Ok(all)
}

fn field<'t>(status: &'t str, key: &str) -> Result<&'t str> {
    let line = status.lines().find(|line| line.split(':').next() == Some(key));
    Ok(line.and_then(|line| line.split_once(':')).with_context(|| format!("no {key} in status"))?.1.trim())
}

fn every_thread(who: &str, process: &Process, wanted: &[(&str, &str)]) -> Result<()> {
    for status in threads(process)? {
        for (key, value) in wanted {
            let found = field(&status, key)?;
            ensure!(found == *value, "a thread of {who} has {key} {found}, not {value}:\n{status}");
        }
    }
    Ok(())
}

const NO_CAPABILITY: &str = "0000000000000000";

fn own_namespaces(who: &str, process: &Process, kinds: &[&str]) -> Result<()> {
    for kind in kinds {
        let name = format!("ns/{kind}");
        let theirs = fs::read_link(process.proc(&name))?;
        let ours = fs::read_link(Path::new("/proc/self").join(&name))?;
        ensure!(theirs != ours, "{who} is in the host's {kind} namespace");
    }
    Ok(())
}

/// An open descriptor as `/proc` shows it.
#[derive(Debug)]
struct Descriptor {
    number: String,
    target: String,
    info: String,
    is_dir: bool,
}

fn descriptors(process: &Process) -> Result<Vec<Descriptor>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(process.proc("fd"))? {
        let entry = entry?;
        let number = entry.file_name().to_string_lossy().into_owned();
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        let info = fs::read_to_string(process.proc(&format!("fdinfo/{number}"))).unwrap_or_default();
        let is_dir = fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_dir());
        all.push(Descriptor { number, target, info, is_dir });
    }
    Ok(all)
}

impl Descriptor {
    fn is_path_only(&self) -> bool {
        let flags = self.info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0);
        flags & 0o10_000_000 != 0
    }

    fn writable(&self) -> bool {
        let flags = self.info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0);
        flags & 3 != 0
    }

    fn is_kernel_object(&self) -> bool {
        ["pipe:", "socket:", "anon_inode:", "/memfd:"].iter().any(|kind| self.target.starts_with(kind))
    }
}

/// No descriptor leads into the host's tree of files.
fn contained_descriptors(who: &str, process: &Process, root: &Path) -> Result<()> {
    for fd in descriptors(process)? {
        ensure!(!fd.is_dir, "{who} holds a directory: {fd:?}");
        ensure!(!fd.is_path_only(), "{who} holds an O_PATH descriptor: {fd:?}");
        if fd.is_kernel_object() || fd.target == "/dev/null" || fd.target.ends_with(" (deleted)") {
            continue;
        }
        // What else there is are files that the gofer has donated: regular files, for reading, of the root.
        let path = process.proc(&format!("fd/{}", fd.number));
        ensure!(fs::metadata(path)?.is_file(), "{who} holds {fd:?}");
        ensure!(!fd.writable(), "{who} holds a host file for writing: {fd:?}");
        // The gofer keeps attach point N at `/N` of its own root: that is how the path reads.
        let below: PathBuf = Path::new(&fd.target).components().skip(2).collect();
        let about = |path: PathBuf| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
        let inside = about(root.join(below)).ok() == about(process.proc(&format!("fd/{}", fd.number))).ok();
        ensure!(inside, "{who} holds a file from outside of the root: {fd:?}");
    }
    Ok(())
}

/// Nothing to walk: the root directory is empty, and no other file system is mounted that can be reached.
fn empty_root(who: &str, process: &Process) -> Result<()> {
    let names: Vec<_> = fs::read_dir(process.proc("root"))
        .with_context(|| format!("the root of {who}"))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<std::io::Result<_>>()?;
    ensure!(names.is_empty(), "the root of {who} has {names:?}");
    let table = fs::read_to_string(process.proc("mountinfo"))?;
    for line in table.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        ensure!(fields.get(4) == Some(&"/"), "{who} sees a mount: {line}");
        ensure!(
            fields.get(5).is_some_and(|options| options.split(',').any(|o| o == "ro")),
            "{who}: not read-only: {line}"
        );
    }
    ensure!(fs::read_link(process.proc("cwd"))? == Path::new("/"), "{who} is not in its root");
    Ok(())
}

#[test]
fn of_the_sentry() -> Result<()> {
    with_parts("posture-sentry", |parts| {
        let who = "the Sentry";
        let sentry = &parts.sentry;
        every_thread(
            who,
            sentry,
            &[
                ("CapEff", NO_CAPABILITY),
                ("CapPrm", NO_CAPABILITY),
                ("CapInh", NO_CAPABILITY),
                ("CapAmb", NO_CAPABILITY),
                ("CapBnd", NO_CAPABILITY),
                ("NoNewPrivs", "1"),
                ("Seccomp", "2"),
            ],
        )?;
        own_namespaces(who, sentry, &["user", "mnt", "pid", "net", "ipc", "uts"])?;
        let numbers = sentry.status("NSpid").context("NSpid")?;
        ensure!(numbers.ends_with("\t1"), "the Sentry is not the first of its pid namespace: {numbers}");
        let uid = sentry.status("Uid").context("Uid")?;
        ensure!(!uid.split_whitespace().any(|id| id == "0"), "the Sentry runs as the host's root: {uid}");
        empty_root(who, sentry)?;
        contained_descriptors(who, sentry, debian()?)
    })
}

#[test]
fn of_the_stubs() -> Result<()> {
    with_parts("posture-stubs", |parts| {
        for stub in &parts.stubs {
            let who = format!("stub {}", stub.pid);
            every_thread(
                &who,
                stub,
                &[
                    ("CapEff", NO_CAPABILITY),
                    ("CapPrm", NO_CAPABILITY),
                    ("CapAmb", NO_CAPABILITY),
                    ("NoNewPrivs", "1"),
                    ("Seccomp", "2"),
                ],
            )?;
            own_namespaces(&who, stub, &["user", "mnt", "pid", "net", "ipc", "uts"])?;
            empty_root(&who, stub)?;
            contained_descriptors(&who, stub, debian()?)?;
        }
        // Application memory is in the stubs; the application's descriptors are not.
        let numbers: BTreeSet<i32> = parts.stubs.iter().map(|stub| stub.parent).collect();
        ensure!(!numbers.is_empty());
        Ok(())
    })
}

#[test]
fn a_stub_does_not_share_the_sentrys_descriptors() -> Result<()> {
    with_parts("posture-table", |parts| {
        let sentry: BTreeSet<String> = descriptors(&parts.sentry)?.into_iter().map(|fd| fd.target).collect();
        for stub in &parts.stubs {
            for fd in descriptors(stub)? {
                // A socket or pipe end that both hold would be a way round the channel.
                let shared = sentry.contains(&fd.target)
                    && (fd.target.starts_with("socket:") || fd.target.starts_with("pipe:"));
                ensure!(!shared, "stub {} holds the Sentry's {fd:?}", stub.pid);
            }
        }
        Ok(())
    })
}

#[test]
fn of_the_gofer() -> Result<()> {
    with_parts("posture-gofer", |parts| {
        let who = "the gofer";
        let gofer = &parts.gofer;
        every_thread(who, gofer, &[("CapAmb", NO_CAPABILITY), ("NoNewPrivs", "1"), ("Seccomp", "2")])?;
        own_namespaces(who, gofer, &["mnt", "pid", "net", "ipc", "uts"])?;
        // What serving files of any owner needs: CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETFCAP, MKNOD;
        // nothing that reaches beyond files.
        let may: u64 = [0, 1, 2, 3, 4, 27, 31].iter().map(|bit| 1u64 << bit).sum();
        for status in threads(gofer)? {
            for key in ["CapEff", "CapPrm"] {
                let set = u64::from_str_radix(field(&status, key)?, 16)?;
                ensure!(set & !may == 0, "{who} has {key} {set:x}");
            }
        }
        for fd in descriptors(gofer)? {
            let path = gofer.proc(&format!("fd/{}", fd.number));
            let kind = fs::metadata(path).with_context(|| format!("{fd:?}"))?.file_type();
            let device = std::os::unix::fs::FileTypeExt::is_char_device(&kind)
                || std::os::unix::fs::FileTypeExt::is_block_device(&kind);
            ensure!(!device || fd.target == "/dev/null", "{who} holds a device: {fd:?}");
            ensure!(!fd.target.starts_with("/proc"), "{who} holds a file of /proc: {fd:?}");
        }
        let above =
            fs::read_dir(gofer.proc("root"))?.flatten().map(|entry| entry.file_name()).collect::<Vec<_>>();
        for name in ["home", "boot", "var", "usr"] {
            ensure!(!above.iter().any(|found| found == name), "the gofer's root is the host's: {above:?}");
        }
        Ok(())
    })
}

#[test]
fn nobody_else_takes_part() -> Result<()> {
    let trial = Trial::new("posture-others")?;
    let mut running = busy(&trial)?;
    let (own, parts) = (running.pid()?, parts(&mut running)?);
    for process in running.processes()? {
        let known = process.pid == own
            || process.pid == parts.sentry.pid
            || process.pid == parts.gofer.pid
            || xtask::processes::descendants(parts.sentry.pid).iter().any(|stub| stub.pid == process.pid);
        ensure!(known, "an unexpected process: {process:?} {:?}", process.args());
    }
    running.wait()?.expect(0)?;
    trial.finish()
}
