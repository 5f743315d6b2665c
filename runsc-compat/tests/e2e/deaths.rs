//! Every process of a sandbox may be killed from outside: the run ends with the right code and a cause in one line,
//! and nothing is left.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use xtask::bundle::Bundle;
use xtask::trial::{Outcome, Running, Trial, kill};

use crate::common::{debian, long, parts};

/// A sandbox with a few processes and threads, up and running.
fn busy(trial: &Trial) -> Result<Running> {
    let script = "sleep 1000 & python3 -c 'import threading, time
[threading.Thread(target=time.sleep, args=(1000,)).start() for _ in range(4)]
print(\"ready\", flush=True)'; echo not reached";
    let mut running = trial.run(&Bundle::bash(debian()?, script))?.start()?;
    running.until_says("ready")?;
    Ok(running)
}

/// One line of standard error that says who died and how.
fn one_cause(out: &Outcome, words: &[&str]) -> Result<()> {
    let err = out.err();
    ensure!(err.trim().lines().count() == 1, "the cause must be one line: {out}");
    let lower = err.to_lowercase();
    ensure!(words.iter().all(|word| lower.contains(word)), "the cause must say {words:?}: {out}");
    ensure!(!out.out().contains("not reached"), "{out}");
    Ok(())
}

#[test]
fn the_sentry() -> Result<()> {
    let trial = Trial::new("kill-sentry")?;
    let mut running = busy(&trial)?;
    kill(parts(&mut running)?.sentry.pid, Signal::KILL)?;
    let out = running.wait()?.expect(128 + 9)?;
    one_cause(&out, &["sandbox process", "sigkill"])?;
    trial.finish()
}

#[test]
fn the_gofer() -> Result<()> {
    let trial = Trial::new("kill-gofer")?;
    let mut running = busy(&trial)?;
    kill(parts(&mut running)?.gofer.pid, Signal::KILL)?;
    let out = running.wait()?.expect(128 + 9)?;
    one_cause(&out, &["gofer", "sigkill"])?;
    trial.finish()
}

#[test]
fn every_stub() -> Result<()> {
    let trial = Trial::new("kill-stubs")?;
    let mut running = busy(&trial)?;
    for stub in parts(&mut running)?.stubs {
        // Some end by themselves when those before them do.
        let _ = kill(stub.pid, Signal::KILL);
    }
    let out = running.wait()?;
    ensure!(out.code() == 128 + 9, "{out}");
    ensure!(out.err().trim().lines().count() <= 1, "at most one line of cause: {out}");
    ensure!(!out.out().contains("not reached"), "{out}");
    trial.finish()
}

#[test]
fn the_stub_of_a_child_ends_that_child_alone() -> Result<()> {
    let trial = Trial::new("kill-stub")?;
    // The child names itself by its memory: its stub is the one process that maps this much.
    let script = "python3 -c 'import time\nx = bytearray(300 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\n\
                  print(\"ready\", flush=True)\ntime.sleep(1000)'; echo ended $?";
    let mut running = trial.run(&Bundle::bash(debian()?, script))?.start()?;
    running.until_says("ready")?;
    let stubs = parts(&mut running)?.stubs;
    let largest = stubs.iter().max_by_key(|stub| stub.pss_kib().unwrap_or(0)).unwrap();
    kill(largest.pid, Signal::KILL)?;
    running.wait()?.expect(0)?.expect_out("ready\nended 137\n")?;
    trial.finish()
}

#[test]
fn the_command() -> Result<()> {
    let trial = Trial::new("kill-command")?;
    let mut running = busy(&trial)?;
    running.signal(Signal::KILL)?;
    let out = running.wait()?;
    ensure!(out.signalled() && out.code() == 128 + 9, "{out}");
    // Nobody was left to remove the state: it shows a stopped container, and goes with `delete`.
    let state = trial.casemate(["state", trial.id()]).run()?.expect(0)?;
    ensure!(state.out().contains("\"stopped\""), "{state}");
    trial.casemate(["delete", trial.id()]).run()?.expect(0)?;
    trial.finish()
}

#[test]
fn a_kill_through_the_command_line() -> Result<()> {
    let trial = Trial::new("kill-by-cli")?;
    let running = busy(&trial)?;
    let state = trial.casemate(["state", trial.id()]).run()?.expect(0)?;
    ensure!(state.out().contains("\"running\""), "{state}");
    trial.casemate(["delete", trial.id()]).run()?.expect(1)?.expect_err("not stopped")?;
    trial.casemate(["kill", trial.id(), "KILL"]).run()?.expect(0)?;
    let out = running.wait()?;
    ensure!(out.code() == 128 + 9, "{out}");
    trial.casemate(["kill", trial.id(), "KILL"]).run()?.expect(1)?;
    trial.finish()
}

/// Writes on a bind mount in four ways for ever, and says a number when all that belongs to it has been synchronised.
const SYNCED: &str = r#"
import mmap, os
log = os.open("/data/log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
direct = os.open("/data/direct", os.O_CREAT | os.O_WRONLY | os.O_DSYNC)
place = os.open("/data/map", os.O_CREAT | os.O_RDWR)
os.ftruncate(place, 1 << 20)
pages, folder, n = mmap.mmap(place, 1 << 20), os.open("/data", os.O_RDONLY), 0
while True:
    n += 1
    os.write(log, b"%08d\n" % n)
    os.fsync(log) if n % 2 else os.fdatasync(log)
    os.pwrite(direct, b"%08d\n" % n, 9 * (n - 1))
    at = n % 256 * 4096
    pages[at:at + 8] = b"%08d" % n
    pages.flush(at, 4096)
    new = os.open("/data/new", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.write(new, b"%08d\n" % n * 2000)
    os.fsync(new)
    os.close(new)
    os.rename("/data/new", "/data/current")
    os.fsync(folder)
    os.write(1, b"%08d\n" % n)
"#;

/// The numbers of a file of lines, as far as they are whole; they must count up from 1.
fn counted(path: &Path) -> Result<usize> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let mut count = 0;
    for line in whole {
        count += 1;
        ensure!(line.trim() == format!("{count:08}"), "{} has {line:?} for {count}", path.display());
    }
    Ok(count)
}

#[test]
fn what_was_synchronised_outlives_sentry_and_gofer() -> Result<()> {
    let rounds = if long() { 20 } else { 2 };
    for round in 0..rounds {
        for victim in ["sentry", "gofer"] {
            let trial = Trial::new(&format!("synced-{victim}"))?;
            let (data, said) = (trial.path().join("data"), trial.path().join("said"));
            fs::create_dir(&data)?;
            let bundle = Bundle::new(debian()?, ["python3", "-c", SYNCED]).bind(&data, "/data", "rw");
            let mut running = trial.run(&bundle)?.stdout(fs::File::create(&said)?).start()?;
            // A few hundred more each round, so that the blow falls elsewhere.
            let enough = 9 * (40 + 37 * round);
            running.until("it has synchronised often enough", || {
                fs::metadata(&said).is_ok_and(|file| file.len() >= enough)
            })?;
            let parts = parts(&mut running)?;
            kill(if victim == "sentry" { parts.sentry.pid } else { parts.gofer.pid }, Signal::KILL)?;
            let out = running.wait()?.expect(128 + 9)?;
            let last = counted(&said)?;
            ensure!(
                counted(&data.join("log"))? >= last,
                "{victim}: the log lost what fsync acknowledged: {out}"
            );
            ensure!(
                counted(&data.join("direct"))? >= last,
                "{victim}: O_DSYNC lost what it acknowledged: {out}"
            );
            let pages = fs::read(data.join("map"))?;
            for number in last.saturating_sub(255).max(1)..=last {
                let at = number % 256 * 4096;
                let found: usize = std::str::from_utf8(&pages[at..at + 8])?.parse()?;
                // The next round through the pages may have begun.
                ensure!(
                    found == number || found == number + 256,
                    "{victim}: {found} for {number} in the mapping"
                );
            }
            let current = fs::read_to_string(data.join("current"))?;
            let number: usize = current.get(..8).context("the renamed file is empty")?.parse()?;
            ensure!(number >= last, "{victim}: the renamed file is that of {number}, not of {last}");
            ensure!(
                current == format!("{number:08}\n").repeat(2000),
                "{victim}: the renamed file is not whole"
            );
            trial.finish()?;
        }
    }
    Ok(())
}
