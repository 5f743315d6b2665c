//! The differential suite: every case that holds on the host kernel must hold in the sandbox.
//!
//! `syscall-tests` runs natively, in a bundle on the overlay root, in one with its files in memory, and in one with them
//! on a directory of the host. A case that fails inside only must be in `differential-known.txt` with its reason; one that is there and passes must leave.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use xtask::bundle::Bundle;
use xtask::programs::INSIDE;
use xtask::trial::{Outcome, Trial};
use xtask::{place, rootfs, shell, test};

/// What a case said: `ok`, `fail` or `skip`, and why.
type Verdicts = BTreeMap<String, (String, String)>;

/// Known differences: the case, the place (one of [`PLACES`], or `all`), the reason.
type Known = BTreeMap<String, (String, String)>;

/// Where the cases' files are: on the overlay root, in a tmpfs, in a directory of the host that is mounted for writing.
const PLACES: [&str; 3] = ["overlay", "tmpfs", "bind"];

fn known() -> Result<Known> {
    let path = place::workspace().join("runsc-compat/tests/differential-known.txt");
    let mut known = Known::new();
    for line in std::fs::read_to_string(&path)?.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.splitn(3, ' ');
        let (Some(case), Some(place), Some(reason)) = (words.next(), words.next(), words.next()) else {
            bail!("{}: {line:?}: write CASE overlay|tmpfs|bind|all REASON", path.display());
        };
        let is_place = place == "all" || PLACES.contains(&place);
        ensure!(is_place, "{}: {line:?}: no such place", path.display());
        known.insert(case.to_owned(), (place.to_owned(), reason.to_owned()));
    }
    Ok(known)
}

fn verdicts(out: &Outcome) -> Result<Verdicts> {
    let mut found = Verdicts::new();
    for line in out.out().lines() {
        let value: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("{line:?} of {out}"))?;
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        if value.get("case").is_some() {
            found.insert(text("case"), (text("verdict"), text("reason")));
        }
    }
    ensure!(!found.is_empty(), "no verdict came: {out}");
    Ok(found)
}

/// What to run: the cases' files go to the working directory.
fn arguments(dir: &str) -> Vec<String> {
    let program = format!("{INSIDE}/syscall-tests");
    let words = ["run", "--all", "--json", "--jobs", "2", "--timeout", "60", "--dir", dir];
    std::iter::once(program).chain(words.map(str::to_owned)).collect()
}

/// A directory of the trial, to be mounted for the cases' files.
fn host_directory(trial: &Trial) -> Result<std::path::PathBuf> {
    let dir = trial.path().join("work");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

fn inside(place: &str, root: &Path) -> Result<Verdicts> {
    let trial = Trial::new(&format!("diff-{place}"))?;
    let mut bundle = Bundle::new(root, arguments("/work")).all_capabilities();
    match place {
        "tmpfs" => bundle = bundle.tmpfs("/work"),
        "bind" => bundle = bundle.bind(&host_directory(&trial)?, "/work", "rw"),
        _ => {}
    }
    let out = trial.run(&bundle)?.limit(Duration::from_mins(15)).run()?;
    ensure!(out.code() <= 1, "the suite itself failed inside ({place}): {out}");
    let found = verdicts(&out)?;
    trial.finish()?;
    Ok(found)
}

fn native(place: &str, root: &Path) -> Result<Verdicts> {
    let trial = Trial::new(&format!("diff-native-{place}"))?;
    let mut native = xtask::native::Native::new(root, trial.path().join("scratch")).bind(
        &trial.programs().inside,
        INSIDE,
        "ro",
    );
    match place {
        "tmpfs" => native = native.tmpfs("/work"),
        "bind" => native = native.bind(&host_directory(&trial)?, "/work", "rw"),
        _ => {}
    }
    let out = trial.host(native.command(arguments("/work"))).limit(Duration::from_mins(15)).run()?;
    ensure!(out.code() <= 1, "the suite itself failed natively ({place}): {out}");
    verdicts(&out)
}

/// Areas whose calls wait. Cases of `interrupted-known.txt` may see an interruption: the call ends with `EINTR` where
/// Linux does not restart it either, whatever the reason (signal(7)), or the case counts wake-ups.
const WAITING: &[&str] = &[
    "pipe",
    "unix",
    "futex",
    "futexv",
    "futex_pi",
    "process",
    "signal",
    "thread",
    "tty",
    "pty",
    "fd",
    "lock",
    "event",
    "inet_stream",
    "inet_dgram",
    "inet_wait",
    "poll",
    "time",
    "mqueue",
    "pidfd",
    "seccomp",
    "aio",
    "sigio",
];

/// Calls that end with `EINTR` whatever the reason was (signal(7)).
const NOT_RESTARTED: &[&str] = &[
    "epoll_",
    "poll(",
    "select(",
    "sleep(",
    "sigtimedwait(",
    "sigwaitinfo(",
    "semop(",
    "msgrcv(",
    "SYS_io_getevents",
];

/// The calls that wait, with interruptions of which no signal is the cause at one of their first waits: a call that Linux
/// restarts shows nothing of it.
#[test]
fn interruptions_without_a_signal_do_not_show() -> Result<()> {
    let trial = Trial::new("diff-interrupted")?;
    let seed =
        std::env::var("CASEMATE_TEST_SEED").ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(7);
    let program = format!("{INSIDE}/syscall-tests");
    let words = ["run", "--json", "--jobs", "4", "--timeout", "60", "--dir", "/work"];
    let args = std::iter::once(program.as_str()).chain(words).chain(WAITING.iter().copied());
    let dir = trial.path().join("bundle/interrupted");
    let bundle = Bundle::new(rootfs::busybox()?, args).bind(&trial.programs().inside, INSIDE, "ro");
    bundle.all_capabilities().write(&dir)?;
    let run = ["--inject-interrupts".into(), seed.to_string().into(), "run".into(), "--bundle".into()];
    let run = run.into_iter().chain([dir.into_os_string(), trial.id().into()]);
    let out = trial.casemate(run).limit(Duration::from_mins(5)).run()?;
    let known = std::fs::read_to_string(place::workspace().join("runsc-compat/tests/interrupted-known.txt"))?;
    let known: BTreeSet<&str> =
        known.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split(' ').next()).collect();
    let found = verdicts(&out)?;
    let expected =
        |reason: &str| reason.contains("EINTR") && NOT_RESTARTED.iter().any(|call| reason.contains(call));
    let wrong: Vec<String> = found
        .iter()
        .filter(|(case, (verdict, reason))| {
            verdict == "fail" && !known.contains(case.as_str()) && !expected(reason)
        })
        .map(|(case, (_, reason))| format!("{case}: {reason}"))
        .collect();
    ensure!(
        wrong.is_empty(),
        "with seed {seed}, {} of {} differ:\n{}",
        wrong.len(),
        found.len(),
        wrong.join("\n")
    );
    trial.finish()
}

/// Areas that look closely at what a call leaves behind: registers, signals, tracers, threads.
const CLOSE_LOOKS: &[&str] =
    &["signal", "sigaction", "straight", "ptrace", "seccomp", "thread", "process", "exec", "futex"];

/// Runs `areas` inside `root` with flags of the command before `run`.
fn inside_with(root: &Path, flags: &[&str], areas: &[&str]) -> Result<Verdicts> {
    let trial = Trial::new("diff-flags")?;
    let program = format!("{INSIDE}/syscall-tests");
    let words = ["run", "--json", "--jobs", "4", "--timeout", "60", "--dir", "/work"];
    let args = std::iter::once(program.as_str()).chain(words).chain(areas.iter().copied());
    let dir = trial.path().join("bundle/flags");
    let bundle = Bundle::new(root, args).bind(&trial.programs().inside, INSIDE, "ro");
    bundle.all_capabilities().write(&dir)?;
    let line = flags.iter().copied().chain(["run", "--bundle"]).map(std::ffi::OsString::from);
    let line = line.chain([dir.into_os_string(), trial.id().into()]);
    let out = trial.casemate(line).limit(Duration::from_mins(5)).run()?;
    ensure!(out.code() <= 1, "the suite itself failed inside with {flags:?}: {out}");
    let found = verdicts(&out)?;
    trial.finish()?;
    Ok(found)
}

/// Calls of changed text that take the trap all the same, by chance, and returns to such text by way of the host: the two
/// ways in and the two ways out mix, and nobody can tell. The same with a Sentry that answers every call itself. With
/// `CASEMATE_TEST_LONG=1`, every area, and with text left alone too.
#[test]
fn the_way_of_a_call_does_not_show() -> Result<()> {
    let seed = std::env::var("CASEMATE_TEST_SEED").unwrap_or_else(|_| "11".to_owned());
    let slow = ["--patch-slow", seed.as_str()];
    let (off, asks) = (["--patch", "off"], ["--resident", "off"]);
    let long = std::env::var("CASEMATE_TEST_LONG").is_ok_and(|long| long == "1");
    let (ways, areas): (&[&[&str]], &[&str]) =
        if long { (&[&slow, &off, &asks], &["--all"]) } else { (&[&slow, &asks], CLOSE_LOOKS) };
    let root = rootfs::busybox()?;
    let usual = inside_with(&root, &[], areas)?;
    for way in ways {
        let found = inside_with(&root, way, areas)?;
        let wrong: Vec<String> = usual
            .iter()
            .filter(|(_, (verdict, _))| verdict == "ok")
            .filter_map(|(case, _)| match found.get(case) {
                Some((verdict, _)) if verdict == "ok" => None,
                Some((verdict, reason)) => Some(format!("{case}: {verdict}: {reason}")),
                None => Some(format!("{case}: no verdict: the suite ended before")),
            })
            .collect();
        ensure!(
            wrong.is_empty(),
            "with {way:?}, {} of {} differ:\n{}",
            wrong.len(),
            usual.len(),
            wrong.join("\n")
        );
    }
    Ok(())
}

/// A root file system with the files that area `hand` reads: they are those of nobody's but a read-only layer, so that each
/// case is the first to change its own.
fn root_with_files(trial: &Trial) -> Result<PathBuf> {
    let root = trial.path().join("root");
    shell::output(Command::new("cp").arg("-a").arg(rootfs::busybox()?).arg(&root))?;
    let text =
        |size: usize| (0..=size / 5).flat_map(|n| format!("{:04}\n", n % 10_000).into_bytes()).take(size);
    let list = shell::output(Command::new(trial.programs().inside.join("syscall-tests")).arg("list"))?;
    for case in list.lines().filter_map(|line| line.strip_prefix("hand/")) {
        let dir = root.join("lower").join(case);
        std::fs::create_dir_all(&dir)?;
        for n in 0..24 {
            std::fs::write(dir.join(format!("f{n}")), text(3000).collect::<Vec<u8>>())?;
        }
        std::fs::write(dir.join("big"), text(100_000).collect::<Vec<u8>>())?;
    }
    Ok(root)
}

/// Files that nobody has changed are answered for without the Sentry: natively and inside, by each way of a call, they are
/// the same files.
#[test]
fn files_at_hand_do_not_show() -> Result<()> {
    let trial = Trial::new("diff-hand")?;
    let root = root_with_files(&trial)?;
    let native = xtask::native::Native::new(&root, trial.path().join("scratch")).bind(
        &trial.programs().inside,
        INSIDE,
        "ro",
    );
    let program = format!("{INSIDE}/syscall-tests");
    let words = ["run", "--json", "--jobs", "4", "--timeout", "60", "--dir", "/work", "hand"];
    let args = std::iter::once(program).chain(words.map(str::to_owned));
    let host = verdicts(&trial.host(native.command(args)).limit(Duration::from_mins(5)).run()?)?;
    let seed = std::env::var("CASEMATE_TEST_SEED").unwrap_or_else(|_| "11".to_owned());
    let ways: [&[&str]; 4] =
        [&[], &["--patch-slow", seed.as_str()], &["--patch", "off"], &["--resident", "off"]];
    let mut wrong = Vec::new();
    for (way, found) in std::iter::once(Ok(("natively".to_owned(), host.clone())))
        .chain(ways.iter().map(|way| {
            let found = inside_with(&root, way, &["hand"])?;
            Ok((format!("inside with {way:?}"), found))
        }))
        .collect::<Result<Vec<_>>>()?
    {
        ensure!(found.len() == host.len(), "{way}: {} of {} cases ran", found.len(), host.len());
        let bad = found.iter().filter(|(_, (verdict, _))| verdict != "ok");
        wrong.extend(bad.map(|(case, (verdict, reason))| format!("{way}: {case}: {verdict}: {reason}")));
    }
    ensure!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    trial.finish()
}

/// Compares, and adds to the report; returns what is wrong.
fn compare(
    place: &str,
    host: &Verdicts,
    sandbox: &Verdicts,
    known: &Known,
    report: &mut String,
) -> Vec<String> {
    let mut wrong = Vec::new();
    // By area: cases that hold on the host, of those that hold inside, known differences.
    let mut areas: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    for (case, (verdict, _)) in host {
        if verdict != "ok" {
            continue;
        }
        let area = areas.entry(case.split('/').next().unwrap_or_default()).or_default();
        area[0] += 1;
        let listed = known.get(case).filter(|(at, _)| at == place || at == "all");
        let (inside, reason) = match sandbox.get(case) {
            Some((verdict, reason)) => (verdict.as_str(), reason.as_str()),
            None => ("missing", "no verdict: the suite ended before"),
        };
        match (inside, listed) {
            ("ok", None) => area[1] += 1,
            ("ok", Some(_)) => {
                area[1] += 1;
                wrong.push(format!("{case} ({place}): passes: take it off the list of known differences"));
            }
            (_, Some(_)) => area[2] += 1,
            (verdict, None) => wrong.push(format!("{case} ({place}): {verdict}: {reason}")),
        }
    }
    let _ = writeln!(report, "\n{place}:\n  {:<16} {:>8} {:>8} {:>8}", "area", "host", "inside", "known");
    let mut total = [0; 3];
    for (area, counts) in &areas {
        let [host, inside, known] = counts;
        let _ = writeln!(report, "  {area:<16} {host:>8} {inside:>8} {known:>8}");
        total = [total[0] + host, total[1] + inside, total[2] + known];
    }
    let [host, inside, known] = total;
    let _ = writeln!(report, "  {:<16} {host:>8} {inside:>8} {known:>8}", "all");
    wrong
}

#[test]
fn cases_that_hold_on_the_host_hold_inside() -> Result<()> {
    let (root, known) = (rootfs::busybox()?, known()?);
    let mut report =
        String::from("Differential cases: those that hold on the host, of those that hold in the sandbox.\n");
    let mut wrong = Vec::new();
    let mut every = BTreeSet::new();
    for place in PLACES {
        let host = native(place, &root)?;
        for (case, (verdict, reason)) in &host {
            if verdict == "fail" {
                wrong
                    .push(format!("{case} ({place}): does not hold on the host, so it is no case: {reason}"));
            }
            every.insert(case.clone());
        }
        wrong.extend(compare(place, &host, &inside(place, &root)?, &known, &mut report));
    }
    wrong.extend(
        known.keys().filter(|case| !every.contains(*case)).map(|case| format!("{case}: known, but no case")),
    );
    std::fs::write(test::report_path(), &report)?;
    println!("{report}");
    ensure!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}
