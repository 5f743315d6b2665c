//! Containers made and removed by the dozen, many at a time, while their processes and the commands on them are killed
//! at any moment: `delete -f` always cleans, and nothing is left.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use xtask::bundle::{Bundle, write_config};
use xtask::processes;
use xtask::trial::{Trial, kill};

use crate::common::{busybox, long};

/// How long any one command may take.
const LIMIT: Duration = Duration::from_mins(1);

/// Numbers that look random and are the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What is killed, and when, in one cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Nothing,
    /// A command, so many milliseconds after its start.
    Command(&'static str, u64),
    /// A process of the sandbox, by its name in the state.
    Process(&'static str),
}

struct Cycle<'t> {
    casemate: &'t Path,
    root: PathBuf,
    bundle: PathBuf,
    id: String,
    victim: Victim,
}

impl Cycle<'_> {
    /// Runs a command to its end, or until it is to be killed. `None` for one that was killed.
    fn command(&self, name: &'static str, args: &[&str]) -> Result<Option<i32>> {
        let mut command = Command::new(self.casemate);
        command.arg("--root").arg(&self.root).arg(name).args(args).arg(&self.id);
        if name == "kill" {
            command.arg("KILL");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().context("cannot start casemate")?;
        let started = Instant::now();
        let dies = match self.victim {
            Victim::Command(whose, after) if whose == name => Some(Duration::from_millis(after)),
            _ => None,
        };
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.code());
            }
            if dies.is_some_and(|after| started.elapsed() >= after) {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            if started.elapsed() > LIMIT {
                let _ = child.kill();
                bail!("{name} of {} ({:?}) does not end", self.id, self.victim);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn state(&self) -> Option<Value> {
        let text = std::fs::read(self.root.join(&self.id).join("state.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn run(&self) -> Result<()> {
        let bundle = self.bundle.display().to_string();
        let created = self.command("create", &["--bundle", &bundle])?;
        if self.victim == Victim::Nothing {
            ensure!(created == Some(0), "create of {} ended with {created:?}", self.id);
        }
        if let Some(state) = self.state() {
            self.command("start", &[])?;
            if let Victim::Process(name) = self.victim {
                let pid = state[name]["pid"].as_i64().context("a number in the state")?;
                // It may be gone: a killed command takes what it has made along.
                let _ = kill(i32::try_from(pid)?, Signal::KILL);
                let init = i32::try_from(state["init"]["pid"].as_i64().context("a number")?)?;
                let until = Instant::now() + Duration::from_secs(10);
                while processes::Process::of(init).is_some_and(|process| process.runs()) {
                    ensure!(
                        Instant::now() < until,
                        "{name} of {} was killed, and its init lives on",
                        self.id
                    );
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            self.command("kill", &[])?;
            self.command("delete", &[])?;
        }
        let forced = self.command("delete", &["-f"])?;
        if !matches!(self.victim, Victim::Command("delete", _)) {
            ensure!(forced == Some(0), "delete -f of {} ({:?}) ended with {forced:?}", self.id, self.victim);
        }
        // A delete that was killed is done again.
        let again = Cycle {
            victim: Victim::Nothing,
            root: self.root.clone(),
            bundle: self.bundle.clone(),
            id: self.id.clone(),
            ..*self
        };
        ensure!(again.command("delete", &["-f"])? == Some(0), "{}: delete -f fails", self.id);
        ensure!(!self.root.join(&self.id).exists(), "{} ({:?}) has left its state", self.id, self.victim);
        Ok(())
    }
}

/// Whose number in the sandbox's control group, or whose arguments or working directory, name the trial.
fn ours(trial: &Trial) -> Vec<String> {
    let mark = trial.id();
    processes::all()
        .into_iter()
        .filter(|process| {
            let group = std::fs::read_to_string(process.proc("cgroup")).unwrap_or_default();
            // One that was made by a killed command, and has not become what it was to be, has that command's words.
            process.args().iter().any(|word| word.contains(mark))
                || (process.title().starts_with("casemate-") && group.contains(mark))
        })
        .map(|process| format!("{} {}", process.pid, process.title()))
        .collect()
}

#[test]
fn lives_and_deaths() -> Result<()> {
    let (cycles, parallel) = if long() { (500, 20) } else { (40, 8) };
    let trial = Trial::new("cycles")?;
    let root = trial.path().join("state");
    let seed = 0x5eed_0000_0001_u64;
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    let one = |index: usize| -> Result<()> {
        let mut dice = Dice(seed + index as u64 * 7919);
        for _ in 0..10 {
            dice.below(2);
        }
        let id = format!("{}-{index}", trial.id());
        let mut config = Bundle::new(busybox()?, ["sleep", "1000"]).config();
        config["linux"]["cgroupsPath"] = format!("/{id}").into();
        let bundle = trial.path().join(format!("bundle-{index}"));
        write_config(&bundle, &config)?;
        let victim = match dice.below(8) {
            0 => Victim::Nothing,
            1 | 2 => Victim::Command("create", dice.below(150)),
            3 => Victim::Command("start", dice.below(40)),
            4 => Victim::Command("delete", dice.below(40)),
            5 => Victim::Process("init"),
            6 => Victim::Process("sandbox"),
            _ => Victim::Process("gofer"),
        };
        let casemate: &Path = &trial.programs().casemate;
        Cycle { casemate, root: root.clone(), bundle, id, victim }.run()
    };
    std::thread::scope(|scope| {
        for _ in 0..parallel {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= cycles {
                        return;
                    }
                    if let Err(error) = one(index) {
                        wrong.lock().unwrap().push(format!("cycle {index}: {error:#}"));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    ensure!(wrong.is_empty(), "{} of {cycles} cycles went wrong:\n{}", wrong.len(), wrong.join("\n"));
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let left = ours(&trial);
        if left.is_empty() {
            break;
        }
        ensure!(Instant::now() < until, "left running: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    trial.finish()
}

/// Of commands that make the same container at the same time, one makes it.
#[test]
fn the_same_name_at_the_same_time() -> Result<()> {
    let trial = Trial::new("cycles-race")?;
    let bundle = trial.path().join("bundle");
    Bundle::new(busybox()?, ["sleep", "1000"]).write(&bundle)?;
    let root = trial.path().join("state");
    let casemate: &Path = &trial.programs().casemate;
    let run = |name: &'static str, args: &[&str]| {
        let cycle = Cycle {
            casemate,
            root: root.clone(),
            bundle: bundle.clone(),
            id: trial.id().to_owned(),
            victim: Victim::Nothing,
        };
        cycle.command(name, args)
    };
    let path = bundle.display().to_string();
    let created: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(|| run("create", &["--bundle", &path]))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect::<Result<_>>()
    })?;
    let made = created.iter().filter(|code| **code == Some(0)).count();
    ensure!(made == 1, "one create of four must succeed, not {made}: {created:?}");
    // Started and deleted at once: either may come first, and what is left is nothing.
    let [started, deleted] = std::thread::scope(|scope| {
        let both = [scope.spawn(|| run("start", &[])), scope.spawn(|| run("delete", &["-f"]))];
        both.map(|one| one.join().unwrap())
    });
    ensure!(deleted? == Some(0) && started?.is_some());
    ensure!(run("state", &[])? == Some(1), "the container is still there");
    trial.finish()
}
