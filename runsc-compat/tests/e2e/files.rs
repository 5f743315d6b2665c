//! Files: what they cost in requests to the gofer, random operations, bombs, what the host may do meanwhile.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use xtask::bundle::Bundle;
use xtask::programs::INSIDE;
use xtask::shell;
use xtask::trial::{Trial, kill};

use crate::common::{busybox, debian, long, parts};

/// Runs a helper of the test program in a root and gives what it printed and the requests that the gofer answered.
fn requests(trial: &Trial, root: &Path, words: &[&str]) -> Result<(String, u64)> {
    let program = format!("{INSIDE}/syscall-tests");
    let args = [program.as_str(), "helper"].into_iter().chain(words.iter().copied());
    requests_of(trial, Bundle::new(root, args).bind(&trial.programs().inside, INSIDE, "ro"))
}

/// The same of a bundle.
fn requests_of(trial: &Trial, bundle: Bundle) -> Result<(String, u64)> {
    let (dir, log) = (trial.path().join("bundle"), trial.path().join("log"));
    bundle.write(&dir)?;
    let _ = fs::remove_file(&log);
    let global = ["--debug".into(), "--log".into(), log.clone().into_os_string()];
    let run = ["run".into(), "--bundle".into(), dir.into_os_string(), trial.id().into()];
    let out = trial.casemate(global.into_iter().chain(run)).run()?.expect(0)?;
    let text = fs::read_to_string(&log).with_context(|| format!("no log at {}", log.display()))?;
    let line =
        text.lines().find(|line| line.contains("the gofer has answered")).context("no count in the log")?;
    let count = line.split_whitespace().filter_map(|word| word.parse().ok()).next_back();
    Ok((out.out(), count.with_context(|| format!("no number in {line:?}"))?))
}

#[test]
fn warm_paths_ask_nobody() -> Result<()> {
    let trial = Trial::new("warm")?;
    let (_, few) = requests(&trial, busybox()?, &["warm", "3"])?;
    let (_, many) = requests(&trial, busybox()?, &["warm", "3000"])?;
    // Descriptors are given back in batches, whose number depends on time.
    ensure!(
        many <= few + 2,
        "{few} requests for 3 rounds of open, stat, access and readlink, {many} for 3000"
    );
    trial.finish()
}

/// `git status` again and again of files that are the root's: the first one asks, the others do not.
#[test]
fn a_repeated_git_status_asks_nobody() -> Result<()> {
    let trial = Trial::new("warm-git")?;
    let status = |times: u32| -> Result<u64> {
        let script = format!(
            "set -e; export GIT_DIR=/tmp/git GIT_WORK_TREE=/usr/share/perl5 HOME=/tmp; cd /usr/share/perl5
             git init -q; git config core.fsmonitor false; git add .; git status -s | wc -l
             for n in $(seq {times}); do git status -s >/dev/null; done"
        );
        let (said, count) = requests_of(&trial, Bundle::bash(debian()?, &script))?;
        let staged: u32 = said.trim().parse().context("no count of staged files")?;
        ensure!(staged > 20, "only {staged} files are in the repository");
        Ok(count)
    };
    let (few, many) = (status(1)?, status(9)?);
    ensure!(many <= few + 2, "{few} requests for 1 more git status, {many} for 9");
    trial.finish()
}

/// Host calls with which the Sentry moves data or asks others, while `times` rounds of the same run inside.
fn host_calls(trial: &Trial, times: &str) -> Result<u64> {
    const MOVING: &[&str] = &[
        "process_vm_readv",
        "process_vm_writev",
        "pread64",
        "preadv",
        "preadv2",
        "pwrite64",
        "sendmsg",
        "recvmsg",
        "sendto",
        "recvfrom",
        "ioctl",
        "fstat",
        "mmap",
    ];
    let log = trial.path().join("calls");
    let program = format!("{INSIDE}/syscall-tests");
    let bundle = Bundle::new(busybox()?, [program.as_str(), "helper", "warm", times]).bind(
        &trial.programs().inside,
        INSIDE,
        "ro",
    );
    let front = ["strace", "-f", "-c", "-U", "name,calls", "-o", log.to_str().context("a path")?, "--"];
    trial.run(&bundle)?.under(front).run()?.expect(0)?;
    let text = fs::read_to_string(&log)?;
    let counts = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (name, count) = (words.next()?, words.next()?);
        MOVING.contains(&name).then(|| count.parse::<u64>().ok()).flatten()
    });
    Ok(counts.sum())
}

/// Small results travel with the return of a call, and small arguments with its trap.
#[test]
fn warm_paths_make_no_host_call() -> Result<()> {
    let trial = Trial::new("warm-calls")?;
    let (few, many) = (host_calls(&trial, "10")?, host_calls(&trial, "510")?);
    ensure!(few > 0, "strace has counted nothing");
    // A round is fourteen calls; what the start and the end cost differs a little from run to run.
    ensure!(many < few + 300, "{few} host calls for 10 rounds of small calls, {many} for 510");
    trial.finish()
}

#[test]
fn a_cold_directory_is_listed_in_four_requests() -> Result<()> {
    let trial = Trial::new("cold")?;
    let root = trial.path().join("root");
    shell::output(Command::new("cp").arg("-a").arg(busybox()?).arg(&root))?;
    let many = root.join("many");
    fs::create_dir(&many)?;
    for n in 0..1000 {
        fs::write(many.join(format!("file-number-{n:04}")), "x")?;
    }
    let (_, base) = requests(&trial, &root, &["list", "/no-such-directory"])?;
    let (sum, listed) = requests(&trial, &root, &["list", "/many"])?;
    ensure!(sum == "1000", "the sizes of 1,000 files of one byte add up to {sum}");
    ensure!(listed <= base + 4, "{} requests for the listing of 1,000 files", listed - base);
    trial.finish()
}

/// Random operations on files on the overlay, in memory, and in a directory of the host that is mounted for writing.
#[test]
fn random_operations_find_no_difference() -> Result<()> {
    let trial = Trial::new("fsx")?;
    let (host, seconds) = (trial.path().join("work"), if long() { "200" } else { "2" });
    fs::create_dir(&host)?;
    for place in ["overlay", "tmpfs", "bind"] {
        let program = format!("{INSIDE}/syscall-tests");
        let bundle =
            Bundle::new(busybox()?, [program.as_str(), "fsx", "--seconds", seconds, "--dir", "/work"]);
        let bundle = match place {
            "tmpfs" => bundle.tmpfs("/work"),
            "bind" => bundle.bind(&host, "/work", "rw"),
            _ => bundle,
        };
        let out = trial.run(&bundle)?.limit(Duration::from_mins(6)).run()?;
        ensure!(out.code() == 0, "on {place}: {out}");
    }
    trial.finish()
}

/// What is written on the root goes to the disk where that is asked for, within its limit, and is gone afterwards.
#[test]
fn a_filestore_on_disk_is_limited_and_vanishes() -> Result<()> {
    let trial = Trial::new("filestore")?;
    let store = trial.path().join("store");
    fs::create_dir(&store)?;
    let script = "
        dd if=/dev/zero of=/big bs=1M count=20 2>/dev/null && echo written
        dd if=/dev/zero of=/bigger bs=1M count=64 2>&1 | grep -o 'No space left on device'
        rm -f /bigger /big; echo fits >/small && cat /small; df / | tail -1 | awk '{print $2}'
    ";
    let bundle = trial.path().join("bundle");
    Bundle::new(busybox()?, ["sh", "-c", script]).write(&bundle)?;
    let place = format!("{},size=48m", store.display());
    let run = ["run".into(), "--bundle".into(), bundle.into_os_string(), trial.id().into()];
    let words = ["--filestore".into(), place.into()].into_iter().chain(run);
    let out = trial.casemate(words).run()?.expect(0)?;
    ensure!(out.out() == "written\nNo space left on device\nfits\n49152\n", "{out}");
    ensure!(fs::read_dir(&store)?.next().is_none(), "something is left in {}", store.display());
    trial.finish()
}

/// Bombs of kernel objects end with the errno that Linux gives, and neither the Sentry's memory nor its descriptors grow
/// with them.
#[test]
fn bombs_of_files_are_refused() -> Result<()> {
    let trial = Trial::new("file-bombs")?;
    let program = format!("{INSIDE}/syscall-tests");
    let mut running = trial.run(&Bundle::new(busybox()?, [program.as_str(), "helper", "bombs"]))?.start()?;
    running.until_says("churned\n")?;
    let parts = parts(&mut running)?;
    let status = fs::read_to_string(format!("/proc/{}/status", parts.sentry.pid))?;
    let resident =
        status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
    let resident = resident.context("no VmRSS")?;
    let descriptors = fs::read_dir(format!("/proc/{}/fd", parts.sentry.pid))?.count();
    let said = running.so_far();
    kill(parts.sentry.pid, Signal::KILL)?;
    running.wait()?;
    for line in said.lines().filter(|line| *line != "churned") {
        ensure!(line.ends_with(" EMFILE"), "{said}");
    }
    ensure!(resident < 200 * 1024, "the Sentry has {resident} KiB resident");
    ensure!(descriptors < 200, "the Sentry has {descriptors} descriptors");
    trial.finish()
}

/// FIFOs, sockets and devices of the host are names in a bind mount and nothing more.
#[test]
fn special_files_of_the_host_are_out_of_reach() -> Result<()> {
    let trial = Trial::new("special")?;
    let data = trial.path().join("data");
    fs::create_dir(&data)?;
    shell::output(Command::new("mkfifo").arg(data.join("fifo")))?;
    shell::output(Command::new("mknod").arg(data.join("disk")).args(["b", "8", "0"]))?;
    let _listener = std::os::unix::net::UnixListener::bind(data.join("socket"))?;
    let mut fifo = fs::OpenOptions::new().read(true).write(true).open(data.join("fifo"))?;
    std::io::Write::write_all(&mut fifo, b"secret of the host")?;
    let script = "
        timeout 20 dd if=/data/fifo iflag=nonblock bs=1 count=1 2>/dev/null | wc -c
        head -c1 /data/disk 2>&1 | grep -o 'No such device or address'
        perl -MSocket -e 'socket(S, PF_UNIX, SOCK_STREAM, 0); print connect(S, sockaddr_un(q(/data/socket))) ? 1 : 0'
    ";
    let bundle = Bundle::bash(debian()?, script).bind(&data, "/data", "rw");
    trial.run(&bundle)?.run()?.expect(0)?.expect_out("0\nNo such device or address\n0")?;
    trial.finish()
}

/// A directory of a bind mount that the host swaps for a link leads nowhere but into the mount.
#[test]
fn swapped_directories_lead_nowhere() -> Result<()> {
    let trial = Trial::new("swapped")?;
    let (data, outside) = (trial.path().join("data"), trial.path().join("outside"));
    for (dir, text) in [(data.join("d"), "inside\n"), (outside.clone(), "secret\n")] {
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("f"), text)?;
    }
    let script = "i=0; while [ $i -lt 1500 ]; do cat /data/d/f; echo x >/data/d/new; rm -f /data/d/new
        ln /data/d/f /data/d/h; mv /data/d/h /data/g; i=$((i+1)); done 2>/dev/null | sort -u; echo end";
    let running =
        trial.run(&Bundle::new(busybox()?, ["sh", "-c", script]).bind(&data, "/data", "rw"))?.start()?;
    let (real, link) = (data.join("d"), data.join("link"));
    let aside = data.join("aside");
    let end = Instant::now() + Duration::from_mins(1);
    while !running.so_far().contains("end") && Instant::now() < end {
        fs::rename(&real, &aside)?;
        std::os::unix::fs::symlink(&outside, &link)?;
        fs::rename(&link, &real)?;
        std::thread::sleep(Duration::from_millis(1));
        fs::remove_file(&real)?;
        fs::rename(&aside, &real)?;
        std::thread::sleep(Duration::from_millis(1));
    }
    let out = running.wait()?.expect(0)?;
    ensure!(!out.out().contains("secret"), "{out}");
    let left: Vec<_> = fs::read_dir(&outside)?.flatten().map(|e| e.file_name()).collect();
    ensure!(left == ["f"] && fs::read_to_string(outside.join("f"))? == "secret\n", "outside: {left:?}");
    trial.finish()
}
