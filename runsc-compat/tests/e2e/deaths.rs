//! Every process of a sandbox may be killed from outside: the run ends with the right code and a cause in one line,
//! and nothing is left.

use anyhow::{Result, ensure};
use rustix::process::Signal;
use xtask::bundle::Bundle;
use xtask::trial::{Outcome, Running, Trial, kill};

use crate::common::{debian, parts};

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
