//! What a sandbox costs while its programs sleep.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use xtask::bundle::Bundle;
use xtask::processes::Process;
use xtask::trial::Trial;

use crate::common::debian;

/// How long a sandbox is watched, and the wake-ups that it may have meanwhile: five a second.
const WATCHED: Duration = Duration::from_secs(2);
const MOST: u64 = 10;
/// A start leaves work behind, which ends at some time on a busy host.
const PATIENCE: usize = 15;

fn wakes(processes: &[Process]) -> u64 {
    processes.iter().map(Process::wakes).sum()
}

#[test]
fn a_sandbox_that_sleeps_is_hardly_ever_woken() -> Result<()> {
    let trial = Trial::new("idle")?;
    let script = "sleep 1000 & sleep 1000 & echo ready; wait";
    let mut running = trial.run(&Bundle::bash(debian()?, script))?.start()?;
    running.until_says("ready")?;
    let mut counts = Vec::new();
    for _ in 0..PATIENCE {
        let all = running.processes()?;
        ensure!(all.len() >= 5, "command, Sentry, gofer and stubs run: {all:?}");
        let before = wakes(&all);
        sleep(WATCHED);
        let count = wakes(&all).saturating_sub(before);
        if count < MOST {
            trial.casemate(["kill", trial.id(), "KILL"]).run()?.expect(0)?;
            running.wait()?.expect(128 + 9)?;
            return trial.finish();
        }
        counts.push(count);
    }
    anyhow::bail!("woken this often in each {WATCHED:?}: {counts:?}");
}
